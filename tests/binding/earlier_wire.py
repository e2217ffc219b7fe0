"""The wire `mcp/2025-11-25` at the tasks endpoint: JSON-RPC over plain HTTP to tasktrail itself. Needs httpx.

The tasks are made by an MCP server of that revision, which is played over NATS; it forwards its callers' tokens. All
else goes to `POST /mcp/workshop`, whose address is looked up for each request: a restart moves it.

    async with installed_at_earlier_endpoint(tmp_path) as place:
        made = await place.wire.create(ana.token(), "exact")
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
from tests.binding.installation import Installation
from tests.binding.mcp_wire import json_messages, shown
from tests.binding.nats_wire import NatsWire
from tests.binding.played_wire import SERVER, WITHIN_S, Json, played
from tests.binding.wire import Asking, Outcome

from tasktrail.events.errors import NOT_FOUND_TEXT
from tasktrail.mcp.verifier import JwtVerifier
from tasktrail.services.responder import find
from tasktrail.testing.service import UpProcess

REVISION = "2025-11-25"
_RPC_ID = 7
_STREAM = "text/event-stream"


class EarlierWire:
    """Callers of the endpoint."""

    kind = "mcp/2025-11-25"

    def __init__(self, up: UpProcess, verifier: JwtVerifier | None) -> None:
        self._data = up.data
        self._server = NatsWire(up, verifier, REVISION)
        self._http = _connections()

    @property
    def ways(self) -> Mapping[str, Asking]:
        """The follow-ups of this wire: what is cancelled has a result to tell."""
        return {
            "tasks/get": self.get,
            "response": self.respond,
            "tasks/cancel": self.cancel,
            "tasks/result": self.result,
        }

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()
        await self._http.aclose()

    async def reconnect(self) -> None:
        """Leave all connections and take new ones."""
        await self._server.reconnect()
        await self._http.aclose()
        self._http = _connections()

    def _request(self, token: str | None, message: Json) -> httpx.Request:
        running = find(self._data)
        headers = {
            "Accept": f"application/json, {_STREAM}",
            "MCP-Protocol-Version": REVISION,
            "Mcp-Session-Id": "one-for-everybody",
            **({} if token is None else {"Authorization": f"Bearer {token}"}),
        }
        url = f"{running.url if running else 'http://127.0.0.1:9'}/mcp/{SERVER}"
        return self._http.build_request("POST", url, json={"jsonrpc": "2.0", **message}, headers=headers)

    async def _ask(self, token: str | None, method: str, params: Json) -> tuple[Outcome, Json]:
        """One request, read to its end."""
        message = {"id": _RPC_ID, "method": method, "params": params}
        response = await self._http.send(self._request(token, message))
        outcome = _came_to(response, response.content)
        return outcome, response.json().get("result", {}) if outcome.allowed else {}

    async def create(self, token: str | None, tool: str) -> Outcome:
        """A tool that becomes a task, at the MCP server."""
        return await self._server.create(token, tool)

    async def get(self, token: str | None, task_id: str) -> Outcome:
        """tasks/get."""
        return (await self._ask(token, "tasks/get", {"taskId": task_id}))[0]

    async def cancel(self, token: str | None, task_id: str) -> Outcome:
        """tasks/cancel, which is answered once the task has stopped."""
        return (await self._ask(token, "tasks/cancel", {"taskId": task_id}))[0]

    async def respond(self, token: str | None, task_id: str) -> Outcome:
        """The response to a question that the task never asked."""
        message = {"id": f"{task_id}.stream.never-asked", "result": {"action": "decline"}}
        response = await self._http.send(self._request(token, message))
        raw = shown(response, response.content)
        return Outcome(allowed=response.status_code == HTTPStatus.ACCEPTED, status=response.status_code, raw=raw)

    async def result(self, token: str | None, task_id: str) -> Outcome:
        """tasks/result: to its end when there is an answer at once, to its beginning when it waits for one."""
        return await self._waited(token, task_id, None)

    async def listen_while(self, token: str | None, task_id: str, meanwhile: Callable[[], Awaitable[None]]) -> Outcome:
        """tasks/result of a task that goes on, to its end."""
        async with asyncio.timeout(WITHIN_S):
            return await self._waited(token, task_id, meanwhile)

    async def _waited(
        self, token: str | None, task_id: str, meanwhile: Callable[[], Awaitable[None]] | None
    ) -> Outcome:
        message = {"id": _RPC_ID, "method": "tasks/result", "params": {"taskId": task_id}}
        response = await self._http.send(self._request(token, message), stream=True)
        try:
            if not response.headers["content-type"].startswith(_STREAM):
                return _came_to(response, await response.aread())
            if meanwhile is None:
                return Outcome(allowed=True, status=response.status_code, raw=shown(response, b""))
            await meanwhile()
            return Outcome(allowed=True, status=response.status_code, raw=shown(response, await response.aread()))
        finally:
            await response.aclose()

    async def listed(self, token: str | None) -> list[str]:
        """The ids of all that tasks/list tells."""
        found: list[str] = []
        params: Json = {}
        while True:
            _, page = await self._ask(token, "tasks/list", params)
            found += [task["taskId"] for task in page.get("tasks", ())]
            if "nextCursor" not in page:
                return found
            params = {"cursor": page["nextCursor"]}


def _came_to(response: httpx.Response, body: bytes) -> Outcome:
    """What a request came to. A result that is an error of the task's own is one that was told."""
    (answer,) = json_messages(body.decode())
    error: Any = answer.get("error")
    allowed = response.status_code == HTTPStatus.OK and (error is None or error["message"] != NOT_FOUND_TEXT)
    return Outcome(allowed=allowed, status=response.status_code, raw=shown(response, body))


def _connections() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=WITHIN_S, trust_env=False)


def installed_at_earlier_endpoint(directory: Path) -> AbstractAsyncContextManager[Installation]:
    """Start everything."""
    return played("forwarded", directory, EarlierWire)
