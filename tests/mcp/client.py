"""A client as the wire sees it: JSON-RPC over streamable HTTP at protocol 2026-07-28, one caller's token on each.

Guarantees: every answer to a request of the extension is checked against `shapes` before a test sees it; the raw body
is kept. Needs httpx.

    async with Client(url, token) as ana:
        task = await ana.start("echo", text="hello")
        done = await ana.until(task["taskId"], "completed")
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from . import shapes
from .serving import WITHIN_S

VERSION = "2026-07-28"
EXTENSION = "io.modelcontextprotocol/tasks"
DECLARED: dict[str, Any] = {
    "extensions": {EXTENSION: {}},
    "elicitation": {"form": {}, "url": {}},
    "sampling": {},
    "roots": {},
}
UNDECLARED: dict[str, Any] = {"elicitation": {}}
_LOOK_S = 0.01


class Answer:
    """One HTTP answer to one JSON-RPC request."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body
        self.message: dict[str, Any] = json.loads(body)

    def __repr__(self) -> str:
        return f"{self.status} {self.body.decode()}"

    @property
    def result(self) -> dict[str, Any]:
        """The result; the test fails when there is none."""
        assert "result" in self.message, self
        found: dict[str, Any] = self.message["result"]
        return found

    @property
    def error(self) -> dict[str, Any]:
        """The error; the test fails when there is none."""
        assert "error" in self.message, self
        found: dict[str, Any] = self.message["error"]
        return found

    @property
    def refusal(self) -> tuple[int, bytes]:
        """What a stranger could tell answers apart by: everything but the JSON-RPC id, which is the request's own."""
        own = json.dumps(self.message["id"]).encode()
        return self.status, self.body.replace(b'"id":' + own, b'"id":0')


class Client:
    """One caller. `token` None is nobody in particular; `capabilities` are declared on every request."""

    def __init__(self, url: str, token: str | None = None, capabilities: Mapping[str, Any] = DECLARED) -> None:
        self._url, self._capabilities = url, capabilities
        self.next_id: int | str = 1
        self.last_id: int | str = 0
        self.extra_headers: dict[str, str] = {}
        self.extra_meta: dict[str, Any] = {}
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(headers=headers, timeout=WITHIN_S, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    def body(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """The next JSON-RPC request."""
        self.last_id = self.next_id
        self.next_id = self.last_id + 1 if isinstance(self.last_id, int) else f"{self.last_id}+"
        meta = {
            **self.extra_meta,
            "io.modelcontextprotocol/protocolVersion": VERSION,
            "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": dict(self._capabilities),
        }
        return {"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": {**params, "_meta": meta}}

    def headers(self, method: str, name: str | None) -> dict[str, str]:
        """The routing headers of a request (SEP-2243)."""
        routing = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        routing |= {"MCP-Protocol-Version": VERSION, "Mcp-Method": method, **self.extra_headers}
        return routing if name is None else {**routing, "Mcp-Name": name}

    async def send(self, method: str, params: Mapping[str, Any], *, name: str | None = None) -> Answer:
        """One request, `name` as its Mcp-Name; its answer, of the right shape."""
        body = self.body(method, params)
        sent = json.dumps(body).encode()  # escapes what UTF-8 cannot say, so that lone surrogates travel
        response = await self._http.post(self._url, content=sent, headers=self.headers(method, name))
        answer = Answer(response.status_code, _only_message(response))
        assert answer.message["id"] == body["id"], answer
        shapes.check(method, answer.message)
        return answer

    async def status(self, method: str, params: Mapping[str, Any]) -> int:
        """The HTTP status of one request, whatever its body."""
        headers = self.headers(method, None)
        return (await self._http.post(self._url, json=self.body(method, params), headers=headers)).status_code

    async def call(self, tool: str, **arguments: object) -> Answer:
        """tools/call."""
        return await self.send("tools/call", {"name": tool, "arguments": arguments}, name=tool)

    async def start(self, tool: str, **arguments: object) -> dict[str, Any]:
        """tools/call that becomes a task: its CreateTaskResult."""
        answer = await self.call(tool, **arguments)
        assert answer.result["resultType"] == "task", answer
        return answer.result

    async def get(self, task_id: object, *, name: str | None = None) -> Answer:
        """tasks/get, without Mcp-Name unless given."""
        return await self.send("tasks/get", {"taskId": task_id}, name=name)

    async def update(self, task_id: object, responses: object, *, name: str | None = None) -> Answer:
        """tasks/update."""
        return await self.send("tasks/update", {"taskId": task_id, "inputResponses": responses}, name=name)

    async def cancel(self, task_id: object, *, name: str | None = None) -> Answer:
        """tasks/cancel."""
        return await self.send("tasks/cancel", {"taskId": task_id}, name=name)

    async def until(self, task_id: str, *statuses: str, **like: object) -> dict[str, Any]:
        """Poll until the task has one of these statuses, and these fields."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            task = (await self.get(task_id)).result
            if task["status"] in statuses and all(task.get(field) == wanted for field, wanted in like.items()):
                return task
            assert time.monotonic() < deadline, f"not {statuses} {like} within {WITHIN_S:g} s: {task}"
            await asyncio.sleep(_LOOK_S)

    @contextlib.asynccontextmanager
    async def listening(self, **notifications: object) -> AsyncGenerator["Stream"]:
        """subscriptions/listen: its stream of messages."""
        body = self.body("subscriptions/listen", {"notifications": notifications})
        headers = self.headers("subscriptions/listen", None)
        async with self._http.stream("POST", self._url, content=json.dumps(body), headers=headers) as response:
            assert response.headers["content-type"] == "text/event-stream", (await response.aread(), response)
            yield Stream(body["id"], response)


class Stream:
    """The messages of a subscription stream, in order."""

    def __init__(self, rpc_id: int | str, response: httpx.Response) -> None:
        self.rpc_id = rpc_id
        self._lines = response.aiter_lines()

    async def next(self) -> dict[str, Any]:
        """The next message, of the right shape."""
        found = await self.next_unchecked()
        shapes.check_streamed(found, self.rpc_id)
        return found

    async def next_unchecked(self) -> dict[str, Any]:
        """The next message, also of a stream that is not about tasks."""
        async with asyncio.timeout(WITHIN_S):
            async for line in self._lines:
                if line.startswith("data:"):
                    found: dict[str, Any] = json.loads(line.removeprefix("data:"))
                    return found
        message = "the stream ended without its result"
        raise AssertionError(message)

    async def rest(self) -> list[dict[str, Any]]:
        """Every message up to the result that ends the stream, that included."""
        seen = [await self.next()]
        while "method" in seen[-1]:
            seen.append(await self.next())
        return seen


def _only_message(response: httpx.Response) -> bytes:
    """The JSON of an answer, which may travel as the only event of a stream."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        events = [line.removeprefix("data:").strip() for line in response.text.splitlines() if line.startswith("data:")]
        assert len(events) == 1, events
        return events[0].encode()
    return response.content
