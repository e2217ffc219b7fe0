"""MCP over streamable HTTP: tasks by tasktrail beside tasks by a dictionary, in the same SDK, with the same requests.

Guarantees: every server is a process of its own, every request the same bytes for each of them but ids, sent by a raw
httpx client on kept connections. `bare` is `benchmarks.bare`; `embedded` runs tasktrail inside the MCP server's
process; `connected` reaches a tasktrail in another process over NATS. Callers are anonymous: tokens cost both alike.

    async with mcp_cases(directory) as cases:
        for question, sides, in_flight in cases: ...
"""

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from mcp_types import CLIENT_CAPABILITIES_META_KEY, CLIENT_INFO_META_KEY, PROTOCOL_VERSION_META_KEY

from benchmarks.conditions import LIMITS_LIFTED
from benchmarks.rounds import Planned, Question
from tasktrail.services.wire import EXTENSION

CONFIGURATION = "benchmark.toml"
IN_FLIGHT = (1, 16)
POLLED = 32
"""Tasks that `get` asks for in turn."""

_PROTOCOL = "2026-07-28"
_META: dict[str, object] = {
    PROTOCOL_VERSION_META_KEY: _PROTOCOL,
    CLIENT_INFO_META_KEY: {"name": "benchmark", "version": "1"},
    CLIENT_CAPABILITIES_META_KEY: {"elicitation": {}, "extensions": {EXTENSION: {}}},
}
_READY_WITHIN_S = 30.0
_END_WITHIN_S = 20.0
_POLL_S = 0.002
_POLLS_MAX = 5_000

NAMES = ("create", "get", "life")
_CREATE = Question(
    name="create",
    what="tools/call answered with a task; its tool goes on working",
    aims={"embedded": 0.5},
)
_GET = Question(name="get", what=f"tasks/get of {POLLED} working tasks in turn", aims={"embedded": 0.7})
_LIFE = Question(
    name="life",
    what="tools/call, tasks/get until input is required, tasks/update, tasks/get until completed; "
    f"polls {_POLL_S * 1000:g} ms apart",
)


class Endpoint:
    """One MCP server under test, and a client of it."""

    def __init__(self, url: str, processes: Sequence[psutil.Process]) -> None:
        self.under_test = processes
        self._url = url
        self._ids = itertools.count(1)
        most = max(IN_FLIGHT)
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
        self._http = httpx.AsyncClient(limits=limits, timeout=30, trust_env=False)

    async def close(self) -> None:
        """Close the client's connections."""
        await self._http.aclose()

    async def request(self, method: str, name: str, params: dict[str, object]) -> dict[str, Any]:
        """One JSON-RPC request; its result."""
        headers = {
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": _PROTOCOL,
            "Mcp-Method": method,
            "Mcp-Name": name,
        }
        body: dict[str, object] = {
            "jsonrpc": "2.0",
            "id": next(self._ids),
            "method": method,
            "params": {**params, "_meta": _META},
        }
        answer = (await self._http.post(self._url, json=body, headers=headers)).json()
        if "result" not in answer:
            message = f"{method} was answered with {answer}"
            raise AssertionError(message)
        result: dict[str, Any] = answer["result"]
        return result

    async def create(self, tool: str) -> str:
        """Make a task of a tool; its id."""
        made = await self.request("tools/call", tool, {"name": tool, "arguments": {}})
        return str(made["taskId"])

    async def get(self, task: str) -> dict[str, Any]:
        """The task as it is now."""
        return await self.request("tasks/get", task, {"taskId": task})

    async def until(self, task: str, status: str) -> dict[str, Any]:
        """The task once it has this status."""
        seen = await self.get(task)
        for _ in range(_POLLS_MAX):
            if seen["status"] == status:
                return seen
            await asyncio.sleep(_POLL_S)
            seen = await self.get(task)
        message = f"a task did not become {status}; it was last seen {seen['status']}"
        raise AssertionError(message)

    async def release(self) -> None:
        """Let every parked tool return."""
        await self.request("tools/call", "release", {"name": "release", "arguments": {}})


class _Operation:
    """One kind of operation at one endpoint."""

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        self.name = name
        self._endpoint = endpoint

    async def begin(self) -> None:
        """Nothing is needed."""

    async def settle(self) -> None:
        """Nothing is left."""

    def processes(self) -> Sequence[psutil.Process]:
        """The server's processes."""
        return self._endpoint.under_test


class Create(_Operation):
    """Make tasks that work on."""

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        super().__init__(name, endpoint)
        self._last = ""

    async def one(self, worker: int) -> None:  # noqa: ARG002 - workers are alike
        """Make one task."""
        self._last = await self._endpoint.create("park")

    async def settle(self) -> None:
        """Let the tools return, and see the last task completed."""
        await self._endpoint.release()
        await self._endpoint.until(self._last, "completed")


class Get(_Operation):
    """Poll tasks that work."""

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        super().__init__(name, endpoint)
        self._tasks: list[str] = []
        self._turn = itertools.count()

    async def begin(self) -> None:
        """Make the tasks; older ones may end."""
        await self._endpoint.release()
        self._tasks = [await self._endpoint.create("park") for _ in range(POLLED)]

    async def one(self, worker: int) -> None:  # noqa: ARG002 - workers are alike
        """Poll the next task."""
        seen = await self._endpoint.get(self._tasks[next(self._turn) % POLLED])
        if seen["status"] != "working":
            message = f"a parked task is {seen['status']}"
            raise AssertionError(message)


class Life(_Operation):
    """A whole task with one question."""

    async def one(self, worker: int) -> None:
        """From the call to the result."""
        task = await self._endpoint.create("ask")
        asked = await self._endpoint.until(task, "input_required")
        (key,) = asked["inputRequests"]
        answer = {"action": "accept", "content": {"part": worker}}
        await self._endpoint.request("tasks/update", task, {"taskId": task, "inputResponses": {key: answer}})
        done = await self._endpoint.until(task, "completed")
        if done["result"]["content"][0]["text"] != f"part {worker}":
            message = f"the task answered {done['result']}"
            raise AssertionError(message)


@contextlib.asynccontextmanager
async def mcp_cases(directory: Path) -> AsyncGenerator[list[Planned]]:
    """The cases, with the servers they need started."""
    async with contextlib.AsyncExitStack() as stack:
        (directory / CONFIGURATION).write_text(LIMITS_LIFTED, encoding="utf-8")
        bare = await _started(stack, "bare", directory, directory)
        embedded = await _started(stack, "embedded", directory / "embedded", directory)
        service = await _started(stack, "service", directory / "connected", directory)
        connected = await _started(stack, "connected", Path(service.where), directory)
        ends = {
            "bare": await _endpoint(stack, bare.where, bare),
            "embedded": await _endpoint(stack, embedded.where, embedded),
            "connected": await _endpoint(stack, connected.where, connected, service),
        }
        kinds: list[tuple[Question, type[Create | Get | Life]]] = [(_CREATE, Create), (_GET, Get), (_LIFE, Life)]
        yield [
            (question, [kind(name, endpoint) for name, endpoint in ends.items()], in_flight)
            for question, kind in kinds
            for in_flight in IN_FLIGHT
        ]


class _Process:
    """A process under test, and what it said when it was ready."""

    def __init__(self, child: asyncio.subprocess.Process, where: str) -> None:
        self.child, self.where = child, where

    def all(self) -> list[psutil.Process]:
        """It and its children: the nats-server of an embedded tasktrail."""
        own = psutil.Process(self.child.pid)
        return [own, *own.children(recursive=True)]


async def _endpoint(stack: contextlib.AsyncExitStack, url: str, *under_test: _Process) -> Endpoint:
    endpoint = Endpoint(url, [process for one in under_test for process in one.all()])
    stack.push_async_callback(endpoint.close)
    stack.push_async_callback(endpoint.release)
    return endpoint


async def _started(stack: contextlib.AsyncExitStack, kind: str, place: Path, directory: Path) -> _Process:
    """A process of `benchmarks.server`, ended with the stack."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks.server", kind, str(place)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TASKTRAIL_CONFIG": str(directory / CONFIGURATION)},
    )
    stack.push_async_callback(_end, child)
    if child.stdout is None:
        message = "the process has no standard output"
        raise AssertionError(message)
    async with asyncio.timeout(_READY_WITHIN_S):
        word, _, where = (await child.stdout.readline()).decode().strip().partition(" ")
    if word != "ready":
        message = f"the {kind} server did not start; what it said is above"
        raise AssertionError(message)
    return _Process(child, where)


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.stdin is not None:
        child.stdin.close()
    try:
        async with asyncio.timeout(_END_WITHIN_S):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()
