"""The wire `mcp/2026-07-28`: JSON-RPC over streamable HTTP to a real MCP server. Needs httpx.

Two endpoints of one server: one that asks for a token and one that asks for none, for callers who have none.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
from tests.binding.wire import Asking, Outcome

VERSION = "2026-07-28"
EXTENSION = "io.modelcontextprotocol/tasks"
WITHIN_S = 30.0
_RPC_ID = 7
_META: dict[str, Any] = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientInfo": {"name": "matrix", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}, "elicitation": {}},
}


class McpWire:
    """Callers of an MCP server. `extra_headers`, `extra_meta` and `arguments` are what a caller says of itself."""

    kind = "mcp/2026-07-28"

    def __init__(self, with_tokens: str, without: str) -> None:
        self._urls = {True: with_tokens, False: without}
        self.http = _connections()
        self.extra_headers: dict[str, str] = {}
        self.extra_meta: dict[str, Any] = {}
        self.arguments: dict[str, Any] = {}

    @property
    def ways(self) -> Mapping[str, Asking]:
        """The follow-ups of this wire."""
        return {
            "tasks/get": self.get,
            "tasks/update": self.update,
            "subscriptions/listen": self.subscribe,
            "tasks/cancel": self.cancel,
        }

    async def listed(self, token: str | None) -> list[str] | None:  # noqa: ARG002 - there is no list
        """Nothing: the extension lists no tasks."""
        return None

    def url(self, token: str | None) -> str:
        """The endpoint for this token, or for none."""
        return self._urls[token is not None]

    async def close(self) -> None:
        """Close the connections."""
        await self.http.aclose()

    async def reconnect(self) -> None:
        """Leave all connections and take new ones."""
        await self.http.aclose()
        self.http = _connections()

    def _request(self, token: str | None, method: str, params: Mapping[str, Any], name: str | None) -> httpx.Request:
        headers = {
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
            "MCP-Protocol-Version": VERSION,
            "Mcp-Method": method,
            **({} if name is None else {"Mcp-Name": name}),
            **({} if token is None else {"Authorization": f"Bearer {token}"}),
            **self.extra_headers,
        }
        said = {**params, "_meta": {**_META, **self.extra_meta}}
        body = {"jsonrpc": "2.0", "id": _RPC_ID, "method": method, "params": said}
        return self.http.build_request("POST", self.url(token), content=json.dumps(body), headers=headers)

    async def _ask(
        self, token: str | None, method: str, params: Mapping[str, Any], name: str | None
    ) -> tuple[Outcome, dict[str, Any]]:
        """One request, read to its end: what it came to, and the JSON-RPC message, empty when there is none."""
        response = await self.http.send(self._request(token, method, params, name))
        messages = json_messages(response.text)
        message = messages[-1] if messages else {}
        raw = shown(response, response.content)
        return Outcome(allowed="result" in message, status=response.status_code, raw=raw), message

    async def create(self, token: str | None, tool: str) -> Outcome:
        """tools/call of a tool that becomes a task."""
        params = {"name": tool, "arguments": self.arguments}
        outcome, message = await self._ask(token, "tools/call", params, tool)
        made = str(message.get("result", {}).get("taskId", ""))
        return Outcome(allowed=bool(made), status=outcome.status, raw=outcome.raw, task_id=made)

    async def get(self, token: str | None, task_id: str) -> Outcome:
        """tasks/get."""
        return (await self._ask(token, "tasks/get", {"taskId": task_id}, None))[0]

    async def update(self, token: str | None, task_id: str) -> Outcome:
        """tasks/update with an answer under a key that was never asked."""
        params = {"taskId": task_id, "inputResponses": {"never-asked": {"action": "decline"}}}
        return (await self._ask(token, "tasks/update", params, None))[0]

    async def cancel(self, token: str | None, task_id: str) -> Outcome:
        """tasks/cancel."""
        return (await self._ask(token, "tasks/cancel", {"taskId": task_id}, None))[0]

    async def subscribe(self, token: str | None, task_id: str) -> Outcome:
        """subscriptions/listen: to its end when the task is not granted, to the acknowledgement when it is."""
        return await self._listen(token, task_id, None)

    async def listen_while(self, token: str | None, task_id: str, meanwhile: Callable[[], Awaitable[None]]) -> Outcome:
        """subscriptions/listen, to its end."""
        async with asyncio.timeout(WITHIN_S):
            return await self._listen(token, task_id, meanwhile)

    async def _listen(
        self, token: str | None, task_id: str, meanwhile: Callable[[], Awaitable[None]] | None
    ) -> Outcome:
        params = {"notifications": {"taskIds": [task_id]}}
        response = await self.http.send(self._request(token, "subscriptions/listen", params, None), stream=True)
        raw, granted = b"", False
        try:
            async for chunk in response.aiter_bytes():
                raw += chunk
                if not granted and any(task_id in _granted(message) for message in json_messages(raw.decode())):
                    granted = True
                    if meanwhile is None:
                        break
                    await meanwhile()
        finally:
            await response.aclose()
        return Outcome(allowed=granted, status=response.status_code, raw=shown(response, raw))


def _connections() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=WITHIN_S, trust_env=False)


def shown(response: httpx.Response, body: bytes) -> bytes:
    """Headers, without the date, and body."""
    headers = sorted(f"{name}: {value}" for name, value in response.headers.items() if name != "date")
    return "\n".join(headers).encode() + b"\n\n" + body


def json_messages(text: str) -> list[dict[str, Any]]:
    """The whole JSON-RPC messages of a body, which may be one or a stream of events."""
    lines = [line.removeprefix("data:") for line in text.splitlines() if line.startswith("data:")]
    found: list[dict[str, Any]] = []
    for line in lines or [text]:
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if isinstance(message, dict):
            found.append(message)
    return found


def _granted(message: Mapping[str, Any]) -> list[str]:
    """The tasks that an acknowledgement names."""
    if message.get("method") != "notifications/subscriptions/acknowledged":
        return []
    return list(message["params"]["notifications"].get("taskIds", []))
