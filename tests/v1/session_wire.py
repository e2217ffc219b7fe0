"""The wire `mcp/2025-11-25`: JSON-RPC over streamable HTTP to a server of the SDK v1, byte by byte. Needs httpx.

A session for each token, all over the same connections. `expired` is whether the server opens none for a token.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import httpx
from tests.binding.mcp_wire import McpWire, json_messages, shown
from tests.binding.wire import Outcome

from tasktrail.events.errors import NOT_FOUND_TEXT

REVISION = "2025-11-25"
METHODS = ("tasks/get", "tasks/cancel", "tasks/result")
"""In an order in which each gets an answer: what is cancelled has a result to tell."""
_RPC_ID = 7
_SESSION = "mcp-session-id"


class SessionWire(McpWire):
    """Callers of an MCP server of the SDK v1."""

    def __init__(self, with_tokens: str, without: str) -> None:
        super().__init__(with_tokens, without)
        self._sessions: dict[str | None, str] = {}
        self.session_of: str | None = None
        """Whose session everybody uses: a token, or None for one's own."""

    def posted(self, token: str | None, message: Mapping[str, Any], session: str | None) -> httpx.Request:
        """The POST of a message."""
        headers = {
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
            **({} if token is None else {"Authorization": f"Bearer {token}"}),
            **({} if session is None else {_SESSION: session, "MCP-Protocol-Version": REVISION}),
            **self.extra_headers,
        }
        return self.http.build_request("POST", self.url(token), content=json.dumps(message), headers=headers)

    async def send(
        self, token: str | None, message: Mapping[str, Any], session: str | None
    ) -> tuple[httpx.Response, list[dict[str, Any]]]:
        """One POST, read to its end, and the messages in its answer."""
        response = await self.http.send(self.posted(token, message, session))
        return response, json_messages(response.text)

    async def session(self, token: str | None) -> str | None:
        """The session of this token, opened when there is none; None where the server turns the token away."""
        token = self.session_of or token
        if token not in self._sessions:
            params = {
                "protocolVersion": REVISION,
                "capabilities": {"elicitation": {}},
                "clientInfo": {"name": "matrix", "version": "1"},
            }
            first = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
            response, _ = await self.send(token, first, None)
            if _SESSION not in response.headers:
                return None
            self._sessions[token] = response.headers[_SESSION]
            await self.send(token, {"jsonrpc": "2.0", "method": "notifications/initialized"}, self._sessions[token])
        return self._sessions[token]

    async def asked(self, token: str | None, method: str, params: Mapping[str, Any]) -> tuple[Outcome, dict[str, Any]]:
        """What a request came to, and the JSON-RPC message, empty when there is none."""
        said = {**params, **({"_meta": self.extra_meta} if self.extra_meta else {})}
        message = {"jsonrpc": "2.0", "id": _RPC_ID, "method": method, "params": said}
        response, messages = await self.send(token, message, await self.session(token))
        answer = messages[-1] if messages else {}
        error = answer.get("error")
        refused = isinstance(error, dict) and error["message"] == NOT_FOUND_TEXT
        allowed = bool(answer) and not refused and response.status_code == HTTPStatus.OK
        return Outcome(allowed=allowed, status=response.status_code, raw=shown(response, response.content)), answer

    async def create(self, token: str | None, tool: str) -> Outcome:
        """tools/call of a tool that becomes a task."""
        params = {"name": tool, "arguments": self.arguments, "task": {"ttl": 60_000} if "brief" not in tool else {}}
        outcome, answer = await self.asked(token, "tools/call", params)
        made = str(answer.get("result", {}).get("task", {}).get("taskId", ""))
        return Outcome(allowed=bool(made), status=outcome.status, raw=outcome.raw, task_id=made)

    async def get(self, token: str | None, task_id: str) -> Outcome:
        """tasks/get."""
        return await self.of(token, "tasks/get", task_id)

    async def of(self, token: str | None, method: str, task_id: str) -> Outcome:
        """One of `METHODS`. A result that is an error of the task's own is one that was told."""
        return (await self.asked(token, method, {"taskId": task_id}))[0]

    async def result_of(self, token: str | None, task_id: str, questions: "asyncio.Queue[int]") -> dict[str, Any]:
        """tasks/result to its end; the ids of the questions that come meanwhile go to `questions`."""
        message = {"jsonrpc": "2.0", "id": _RPC_ID, "method": "tasks/result", "params": {"taskId": task_id}}
        request = self.posted(token, message, await self.session(token))
        response = await self.http.send(request, stream=True)
        try:
            async for line in response.aiter_lines():
                for found in json_messages(line):
                    if "method" in found and "id" in found:
                        questions.put_nowait(found["id"])
                    elif found.get("id") == _RPC_ID:
                        result: dict[str, Any] = found["result"]
                        return result
        finally:
            await response.aclose()
        raise AssertionError(task_id)

    async def listed(self, token: str | None) -> list[str]:
        """The ids of all that tasks/list tells."""
        found: list[str] = []
        params: dict[str, Any] = {}
        while True:
            _, answer = await self.asked(token, "tasks/list", params)
            result = answer.get("result", {})
            found += [task["taskId"] for task in result.get("tasks", [])]
            if "nextCursor" not in result:
                return found
            params = {"cursor": result["nextCursor"]}

    async def reconnect(self) -> None:
        """Leave all sessions and connections."""
        for token, session in self._sessions.items():
            with contextlib.suppress(httpx.HTTPError):
                headers = {_SESSION: session, **({} if token is None else {"Authorization": f"Bearer {token}"})}
                await self.http.delete(self.url(token), headers=headers)
        self._sessions.clear()
        await super().reconnect()
