"""FastMCP's tools as tasks. The wire itself is the official suite's (tests/conformance), on both frameworks.

Sources: docs/fastmcp.md; issue "Adapters" ("`task=True` tools unchanged"); FastMCP 4.1 and its `TaskConfig`.
"""

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from fastmcp import Context, FastMCP
from fastmcp.server.auth.providers.jwt import JWTVerifier
from fastmcp.server.dependencies import get_http_headers
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.utilities.tasks import TaskConfig
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from pydantic import BaseModel

from tasktrail.events.facts import (
    AccessDenied,
    Status,
    StatusReported,
    TaskCancelled,
    TaskCreated,
    TaskSupport,
)
from tasktrail.mcp.fastmcp import TasktrailTasks, ToolPolicy
from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.service import UpProcess, wait_for
from tasktrail.testing.waiting import until

from .client import DECLARED, UNDECLARED, Client
from .place import Trail, only, reading, settings
from .serving import listening, served, url_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.requirement("O2")]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fastmcp.md"
EVERY_MS, WISHED_MS = 250, 90_000


class Age(BaseModel):
    """What is asked."""

    age: int


class Seen(Middleware):
    """Counts what FastMCP's middleware hears of calls."""

    calls: int = 0

    async def on_call_tool(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:  # noqa: ANN401 - FastMCP's
        """One call."""
        self.calls += 1
        return await call_next(context)


class Held(NamedTuple):
    """Where a tool that waits and its test meet."""

    entered: asyncio.Event
    stopped: asyncio.Event
    blocking: threading.Event
    go: threading.Event


class Place(NamedTuple):
    """A FastMCP server on an embedded tasktrail."""

    url: str
    trail: Trail
    issuer: LocalIssuer
    seen: Seen
    held: Held

    def client(self, sub: str = "ana", capabilities: dict[str, Any] = DECLARED) -> Client:
        """A client with a fresh token."""
        return Client(self.url, self.issuer.issue(sub, "cli", aud=self.url), capabilities)


def tools(mcp: FastMCP, held: Held) -> None:  # noqa: C901 - a function for each tool
    """Tools as FastMCP's users write them."""

    @mcp.tool(task=TaskConfig(mode="required", poll_interval=timedelta(milliseconds=EVERY_MS)))
    async def says(ctx: Context) -> str:
        await ctx.report_progress(1, 2, "half way")
        answer = await ctx.elicit("How old?", Age)
        return f"{answer.data.age}" if answer.action == "accept" else answer.action

    @mcp.tool(task=True)
    async def guards(ctx: Context) -> Any:  # noqa: ANN401 - no annotation: the first round is asked inside the task
        answer = (ctx.input_responses or {}).get("age")
        if not isinstance(answer, ElicitResult):
            asked = ElicitRequestFormParams(message="How old?", requested_schema=Age.model_json_schema())
            return InputRequiredResult(input_requests={"age": ElicitRequest(params=asked)}, request_state="once")
        return f"{ctx.request_state}: {(answer.content or {})['age']}"

    @mcp.tool(task=True)
    async def waits() -> str:
        held.entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            held.stopped.set()
        return "never"

    @mcp.tool(task=True, version="1.0")
    async def versioned() -> str:
        return "old"

    @mcp.tool(task=True, version="2.0", name="versioned")
    async def newer() -> str:
        return "new"

    @mcp.tool
    def blocks() -> str:
        held.blocking.set()
        held.go.wait(60)
        return "late"

    @mcp.tool
    async def declares_nothing() -> dict[str, int]:
        return {"answer": 41}

    @mcp.tool
    async def calls_another(ctx: Context) -> str:
        return str((await ctx.fastmcp.call_tool("versioned", {})).content[0].text)  # type: ignore[union-attr] # a text

    @mcp.tool(task=True)
    async def breaks() -> str:
        raise MCPError(-32050, "out of quota")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Place]:
    data = tmp_path_factory.mktemp("fastmcp")
    async with contextlib.AsyncExitStack() as stack:
        issuer = stack.enter_context(LocalIssuer())
        stack.enter_context(settings({"tenants": {issuer.url: "acme"}, "cancel_grace_ms": 500}))
        sock = stack.enter_context(listening())
        url, seen, held = (
            url_of(sock),
            Seen(),
            Held(asyncio.Event(), asyncio.Event(), threading.Event(), threading.Event()),
        )
        checks = JWTVerifier(jwks_uri=issuer.jwks_url, issuer=issuer.url, audience=url, algorithm="ES256")
        mcp: FastMCP = FastMCP("reports", auth=checks, middleware=[seen])
        tools(mcp, held)
        wishes: dict[str, str | ToolPolicy] = {
            "declares_nothing": ToolPolicy(support="optional", ttl_ms=WISHED_MS),
            "blocks": "optional",
        }
        mcp.add_extension(TasktrailTasks.embed(data, tools=wishes))
        await stack.enter_async_context(served(mcp.http_app(), sock))
        trail = await stack.enter_async_context(reading(data))
        yield Place(url, trail, issuer, seen, held)


async def test_elicitation_and_progress_work_inside_a_task(place: Place) -> None:
    """docs/fastmcp.md: `ctx.elicit` inside a task, and `ctx.report_progress` as its status message."""
    async with place.client() as ana:
        task = await ana.start("says")
        assert task["pollIntervalMs"] == EVERY_MS
        asked = await ana.until(task["taskId"], "input_required")
        (key,) = asked["inputRequests"]
        await ana.update(task["taskId"], {key: {"action": "accept", "content": {"age": 41}}})
        done = await ana.until(task["taskId"], "completed")
    assert done["result"]["content"][0]["text"] == "41"
    entries = await place.trail.of(task["taskId"])
    assert only(entries, StatusReported).message is not None
    assert only(entries, TaskCreated).task_support is TaskSupport.REQUIRED


async def test_a_guard_tool_is_entered_again_with_the_answers_inside_its_task(place: Place) -> None:
    """Migration from fastmcp-tasks: the guard pattern (`InputRequiredResult`) as it is."""
    async with place.client() as ana:
        task = await ana.start("guards")
        asked = await ana.until(task["taskId"], "input_required")
        (key,) = asked["inputRequests"]
        await ana.update(task["taskId"], {key: {"action": "accept", "content": {"age": 41}}})
        done = await ana.until(task["taskId"], "completed")
    assert done["result"]["content"][0]["text"] == "once: 41"


@pytest.mark.requirement("A1", "A4")
async def test_a_task_opens_for_who_made_it_and_for_nobody_else(place: Place) -> None:
    """FastMCP's own bearer check names the caller; a stranger gets the bytes of an unknown id."""
    async with place.client() as ana, place.client("bob") as bob:
        task = await ana.start("declares_nothing")
        assert task["ttlMs"] == WISHED_MS
        done = await ana.until(task["taskId"], "completed")
        assert done["result"]["structuredContent"] == {"answer": 41}
        assert (await bob.get(task["taskId"])).refusal == (await bob.get("unknown")).refusal
    binding = only(await place.trail.of(task["taskId"]), TaskCreated).binding
    assert (binding.tenant, binding.iss, binding.sub, binding.client_id) == ("acme", place.issuer.url, "ana", "cli")
    await until(lambda: place.trail.denied(place.trail.ref(task["taskId"])))
    denied = await place.trail.denied(place.trail.ref(task["taskId"]))
    assert only(denied, AccessDenied).reasons


async def test_cancelling_stops_the_tool(place: Place) -> None:
    """Feature L8: a stopped task's work is really told to stop."""
    async with place.client() as ana:
        task = await ana.start("waits")
        await place.held.entered.wait()
        await ana.cancel(task["taskId"])
        await ana.until(task["taskId"], "cancelled")
    assert place.held.stopped.is_set()


async def test_a_plain_function_is_not_said_to_have_stopped_while_it_runs(place: Place) -> None:
    """FastMCP runs it in a thread, which nothing can stop: its task ends unconfirmed, and what it says then is late."""
    async with place.client() as ana:
        task = await ana.start("blocks")
        await asyncio.to_thread(place.held.blocking.wait)
        await ana.cancel(task["taskId"])

        async def over() -> bool:
            return "TaskCancelled" in await place.trail.names(task["taskId"])

        await until(over)
        assert only(await place.trail.of(task["taskId"]), TaskCancelled).reason == "unconfirmed"
        place.held.go.set()

        async def refused() -> bool:
            return (await place.trail.names(task["taskId"]))[-1] == "CommandRefused"

        await until(refused)


async def test_a_client_is_given_the_version_it_asks_for(place: Place) -> None:
    """FastMCP's clients name a component's version in `_meta`."""
    async with place.client() as ana:
        newest = await ana.start("versioned")
        ana.extra_meta = {"fastmcp": {"version": "1.0"}}
        older = await ana.start("versioned")
        ended = [await ana.until(one["taskId"], "completed") for one in (newest, older)]
    assert [one["result"]["content"][0]["text"] for one in ended] == ["new", "old"]


async def test_an_error_of_the_protocol_fails_the_task(place: Place) -> None:
    """SEP-2663: a JSON-RPC error ends a task as failed, with that error."""
    async with place.client() as ana:
        task = await ana.start("breaks")
        failed = await ana.until(task["taskId"], Status.FAILED.value)
    assert (failed["error"]["code"], failed["error"]["message"]) == (-32050, "out of quota")


async def test_only_the_tool_that_the_client_called_becomes_a_task(place: Place) -> None:
    """A tool that calls another gets its result: its client asked for no task of that one."""
    async with place.client() as ana:
        assert (await ana.call("calls_another")).result["content"][0]["text"] == "new"


async def test_clients_without_tasks_are_served_directly_or_told(place: Place) -> None:
    """`optional` and `required` of `TaskConfig`."""
    async with place.client(capabilities=UNDECLARED) as ana:
        assert (await ana.call("versioned")).result["content"][0]["text"] == "new"
        assert (await ana.call("says")).error["code"] == -32021


async def test_the_middleware_is_around_the_creating_call_only(place: Place) -> None:
    """docs/fastmcp.md: FastMCP's middleware runs once."""
    async with place.client() as ana:
        before = place.seen.calls
        task = await ana.start("versioned")
        await ana.until(task["taskId"], "completed")
    assert place.seen.calls == before + 1


@pytest.mark.requirement("L9")
async def test_a_tool_that_may_run_twice_is_run_again_by_another_process_of_its_server(tmp_path: Path) -> None:
    """`on_worker_lost = rerun`, which FastMCP has no word for: `tools` says it.

    docs/fastmcp.md: the tool sees the creating request's headers while the process that took it runs the task, and
    none when another one runs it again.
    """
    entered: list[str] = []
    seen: list[str | None] = []

    def replica(name: str, data: Path) -> FastMCP:
        mcp: FastMCP = FastMCP("reports")
        again = ToolPolicy(support="optional", on_worker_lost="rerun")
        mcp.add_extension(TasktrailTasks.connect(data / "adapter.json", tools={"says": again}))

        @mcp.tool(task=True)
        async def says(text: str) -> str:
            entered.append(name)
            seen.append(get_http_headers(include={"authorization"}).get("authorization"))
            if len(entered) == 1:
                await asyncio.Event().wait()
            return f"{text} by {name}"

        return mcp

    with UpProcess(tmp_path / "data") as up, listening() as one, listening() as other:
        async with Client(url_of(other)) as somebody:
            async with served(replica("one", up.data).http_app(), one):
                async with Client(url_of(one), "of-ana") as first:
                    task = await first.start("says", text="hello")
                await until(lambda: bool(entered))
            async with served(replica("other", up.data).http_app(), other):
                await until(lambda: entered == ["one", "other"])
                done = await somebody.until(task["taskId"], "completed")
    assert done["result"]["content"][0]["text"] == "hello by other"
    assert seen == ["Bearer of-ana", None]


async def test_the_server_of_the_page_works_when_pasted(tmp_path: Path) -> None:
    """docs/fastmcp.md, as a user pastes it beside a running `tasktrail up`."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "server.py").write_text(code.replace('mcp.run("http")', f'mcp.run("http", port={port})'))

    async def used() -> str:
        async with Client(f"http://127.0.0.1:{port}/mcp") as somebody:
            task = await somebody.start("report", quarter="Q3")
            done = await somebody.until(task["taskId"], "completed")
            return str(done["result"]["content"][0]["text"])

    def answers() -> bool:
        with socket.socket() as probe:
            return server.poll() is not None or probe.connect_ex(("127.0.0.1", port)) == 0

    with UpProcess(tmp_path / ".tasktrail"):
        command = [sys.executable, "server.py"]
        server = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)  # noqa: ASYNC220 - nothing else runs
        try:
            wait_for("the pasted server answers", answers)
            assert await used() == "Q3: up 4 %"
        finally:
            server.terminate()
            server.wait(10)
