"""Tasks of clients of protocol 2025-11-25 on the adapters that speak both revisions: SDK v2, FastMCP 4, the proxy.

Sources: MCP 2025-11-25, tasks (Capabilities, Tool-Level Negotiation, Result Retrieval, Task Cancellation, Listing);
docs/mcp-sdk.md, docs/fastmcp.md, docs/proxy.md. The client is the real SDK v1 in its own environment, as in tests/v1.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from fastmcp import Context, FastMCP
from fastmcp.server.auth.providers.jwt import JWTVerifier
from mcp.server import MCPServer
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context as SdkContext
from pydantic import BaseModel
from tests.v1.running import Client, Clients, Refused, clients
from tests.v1.session_wire import SessionWire

from tasktrail.events.facts import InputRequested, InputResponded, TaskCreated
from tasktrail.mcp import earlier
from tasktrail.mcp.extension import Tasks
from tasktrail.mcp.fastmcp import TasktrailTasks
from tasktrail.mcp.verifier import Issuer, JwtVerifier
from tasktrail.services import waiting_results
from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.service import UpProcess
from tasktrail.testing.waiting import until

from .client import Client as ModernClient
from .place import Trail, only, reading
from .serving import listening, served, url_of
from .test_proxy import ASKS, LONG, NODE, everything, proxying

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.requirement("O2")]

AUDIENCE = "reports"
SUPPORT = {"greets": "optional", "asks": "required", "waits": "optional", "breaks": "optional"}
NAMES = itertools.count(1)


class Age(BaseModel):
    """What is asked."""

    age: int


def greets(name: str) -> str:
    """Say hello."""
    return f"hello {name}"


async def waits() -> str:
    """Wait for ever."""
    await asyncio.Event().wait()
    return "never"


async def breaks() -> str:
    """Fail."""
    message = "it broke"
    raise ValueError(message)


def plain() -> str:
    """Be no task."""
    return "plain"


def of_fastmcp(issuer: LocalIssuer | None, adapter: Path) -> FastMCP:
    """Without an issuer the server asks nobody for a token."""
    checks = None
    if issuer is not None:
        checks = JWTVerifier(jwks_uri=issuer.jwks_url, issuer=issuer.url, audience=AUDIENCE, algorithm="ES256")
    mcp: FastMCP = FastMCP("reports", auth=checks)
    mcp.add_extension(TasktrailTasks.connect(adapter, tools=SUPPORT, forward_tokens=True))

    @mcp.tool
    async def asks(ctx: Context) -> str:
        answer = await ctx.elicit("How old?", Age)
        return f"{answer.data.age}" if answer.action == "accept" else answer.action

    for one in (greets, waits, breaks, plain):
        mcp.tool(one)
    return mcp


def of_the_sdk(issuer: LocalIssuer, adapter: Path) -> MCPServer[Any]:
    tasks = Tasks.connect(adapter, tools=SUPPORT, forward_tokens=True)
    mcp: MCPServer[Any] = MCPServer(
        "reports",
        extensions=[tasks],
        lifespan=tasks.lifespan,
        auth=AuthSettings(issuer_url=issuer.url, resource_server_url=issuer.url, validate_token_resource=False),  # type: ignore[arg-type] # pydantic takes text
        token_verifier=JwtVerifier([Issuer(issuer.url, issuer.jwks_url, AUDIENCE)]),
    )

    @mcp.tool()
    async def asks(ctx: SdkContext[Any, Any]) -> str:
        answer = await ctx.elicit("How old?", Age)
        return f"{answer.data.age}" if answer.action == "accept" else answer.action

    for one in (greets, waits, breaks, plain):
        mcp.tool()(one)
    return mcp


class Place(NamedTuple):
    """A server, clients of the earlier revision, and the trail."""

    url: str
    issuer: LocalIssuer
    clients: Clients
    trail: Trail

    async def client(self, sub: str = "ana") -> Client:
        """A session of this caller's."""
        return await self.clients.open(f"{sub}-{next(NAMES)}", self.url, self.token(sub))

    def token(self, sub: str) -> str:
        return self.issuer.issue(sub, "cli", aud=AUDIENCE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def common(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[tuple[UpProcess, LocalIssuer, Clients]]:
    directory = tmp_path_factory.mktemp("earlier")
    async with contextlib.AsyncExitStack() as stack:
        issuer = stack.enter_context(LocalIssuer())
        said = {"url": issuer.url, "jwks_url": issuer.jwks_url, "tenant": "acme", "audience": AUDIENCE}
        config = directory / "tasktrail.toml"
        lines = [
            f'{name} = "{value}"' if name != "audience" else f'{name} = ["{value}"]' for name, value in said.items()
        ]
        config.write_text("\n".join(["[[issuers]]", *lines]))
        up = stack.enter_context(UpProcess(directory / "data", "--config", str(config)))
        yield up, issuer, await stack.enter_async_context(clients(directory / "clients.log"))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[of_fastmcp, of_the_sdk])
async def place(
    request: pytest.FixtureRequest, common: tuple[UpProcess, LocalIssuer, Clients]
) -> AsyncGenerator[Place]:
    up, issuer, some = common
    with listening() as sock:
        mcp = request.param(issuer, up.data / "adapter.json")
        app = mcp.http_app() if isinstance(mcp, FastMCP) else mcp
        async with served(app, sock), reading(up.data) as trail:
            yield Place(url_of(sock), issuer, some, trail)


def text(result: dict[str, Any]) -> str:
    """What a tool said."""
    return str(result["content"][0]["text"])


async def test_the_server_says_that_it_takes_tasks_and_which_tools_run_as_one(place: Place) -> None:
    """Capabilities; Tool-Level Negotiation."""
    ana = await place.client()
    assert ana.server["capabilities"]["tasks"] == {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}
    tools = {tool["name"]: tool.get("execution", {}).get("taskSupport") for tool in (await ana.do("tools"))["tools"]}
    assert tools == {**SUPPORT, "plain": None}


async def test_a_call_with_a_task_makes_one_whose_result_names_it(place: Place) -> None:
    """Task creation and result retrieval; on the trail it is a call of this wire."""
    ana = await place.client()
    task = await ana.call("greets", ttl=90_000, name="Ana")
    assert (task["status"], task["ttl"]) == ("working", 90_000)
    result = await ana.do("result", task_id=task["taskId"])
    assert text(result) == "hello Ana"
    assert result["_meta"]["io.modelcontextprotocol/related-task"] == {"taskId": task["taskId"]}
    assert (await ana.status(task, "completed"))["taskId"] == task["taskId"]
    (entry,) = [
        one for one in await place.trail.of(task["taskId"]) if any(isinstance(e, TaskCreated) for e in one.events)
    ]
    assert entry.authority.request is not None
    assert entry.authority.request.wire == "mcp/2025-11-25"
    async with ModernClient(place.url, place.token("ana")) as later:  # the same caller, by the other wire
        assert (await later.get(task["taskId"])).result["status"] == "completed"


async def test_a_time_to_live_that_is_none_makes_no_task(place: Place) -> None:
    """Task creation: -32602 for what is no number of milliseconds, before anything is on the trail."""
    wire = SessionWire(place.url, place.url)
    token = place.token(f"ttl-{next(NAMES)}")
    params = {"name": "greets", "arguments": {"name": "Ana"}}
    try:
        none: tuple[Any, ...] = (True, False, 0, -5, 10**30, 2**53, 1.5, "5", [])
        for task in (*({"ttl": ttl} for ttl in none), 5, "x", []):
            _, answer = await wire.asked(token, "tools/call", {**params, "task": task})
            assert answer["error"]["code"] == -32602, task
            assert "task" in answer["error"]["message"], answer
        for task in ({}, {"ttl": None}, {"ttl": 2**53 - 1}):
            _, answer = await wire.asked(token, "tools/call", {**params, "task": task})
            assert answer["result"]["task"]["status"] == "working", answer
        _, page = await wire.asked(token, "tasks/list", {})
        assert len(page["result"]["tasks"]) == 3
    finally:
        await wire.close()


@contextlib.asynccontextmanager
async def asked_on_a_stream(wire: SessionWire, token: str, task: dict[str, Any]) -> AsyncGenerator[None]:
    """While a `tasks/result` waits: the task's question came on it. Then it hangs up without a word to the server."""
    params = {"taskId": task["taskId"]}
    message = {"jsonrpc": "2.0", "id": 100 + next(NAMES), "method": "tasks/result", "params": params}
    stream = await wire.http.send(wire.posted(token, message, await wire.session(token)), stream=True)
    try:
        lines = stream.aiter_lines()
        async with asyncio.timeout(60):
            while "elicitation/create" not in await anext(lines):
                pass
        yield
    finally:
        await stream.aclose()


@pytest.mark.requirement("L6", "P4")
async def test_few_calls_of_a_caller_wait_and_none_for_a_client_that_is_gone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/mcp-sdk.md: one call too many is told when to come again; what a killed client left makes room."""
    monkeypatch.setattr(waiting_results, "CALLER_MAX", 2)
    monkeypatch.setattr(earlier, "LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(waiting_results, "LOOK_EVERY_S", 0.2)
    token, wire = place.token("ina"), SessionWire(place.url, place.url)  # one token: by that its calls are counted
    later = await place.clients.open(f"ina-{next(NAMES)}", place.url, token)
    asks, ended = await later.call("asks"), await later.call("greets", name="Ina")
    async with asked_on_a_stream(wire, token, asks), asked_on_a_stream(wire, token, asks):
        with pytest.raises(Refused, match="calls of a caller wait") as refused:
            await later.do("result", task_id=asks["taskId"])
        assert refused.value.code == -32029
        assert refused.value.error["data"] == {"retriable": True, "written": "nothing", "retryAfterMs": 200}
        await later.status(ended, "completed")
        assert text(await later.do("result", task_id=ended["taskId"])) == "hello Ina"
        bob = await place.client("bob")
        mine = await bob.call("asks")
        answering = asyncio.create_task(bob.do("result", task_id=mine["taskId"]))
        await bob.answer(await bob.question(), action="decline")
        assert text(await answering) == "decline"

    async def has_room() -> bool:
        call = asyncio.create_task(later.do("result", task_id=asks["taskId"]))
        await until(lambda: later.asked or call.done())
        if later.asked:
            await later.answer(later.asked[0], action="decline")
            return text(await call) == "decline"
        error = call.exception()
        assert isinstance(error, Refused)
        assert error.code == -32029, error
        return False

    await until(has_room)
    await wire.close()


@pytest.mark.requirement("A1")
async def test_a_server_without_tokens_offers_no_list(common: tuple[UpProcess, LocalIssuer, Clients]) -> None:
    """Task Listing: who cannot be told apart gets no list, -32601; an id opens its task as ever."""
    up, _, some = common
    with listening() as sock:
        async with served(of_fastmcp(None, up.data / "adapter.json").http_app(), sock):
            nobody, other = [await some.open(f"nobody-{next(NAMES)}", url_of(sock)) for _ in range(2)]
            assert nobody.server["capabilities"]["tasks"] == {"cancel": {}, "requests": {"tools": {"call": {}}}}
            task = await nobody.call("greets", name="you")
            for client in (nobody, other):
                with pytest.raises(Refused, match="send a bearer token") as refused:
                    await client.do("list")
                assert refused.value.code == -32601
            assert text(await nobody.do("result", task_id=task["taskId"])) == "hello you"


@pytest.mark.requirement("L6")
async def test_a_waiting_call_is_asked_what_the_task_asks(place: Place) -> None:
    """Input Required Status: an answer that is none is asked for again, and the right one ends the task."""
    ana = await place.client()
    task = await ana.call("asks")
    waiting = asyncio.create_task(ana.do("result", task_id=task["taskId"]))
    question = await ana.question()
    assert question["params"]["message"] == "How old?"
    assert question["params"]["_meta"]["io.modelcontextprotocol/related-task"] == {"taskId": task["taskId"]}
    await (await place.client()).status(task, "input_required")  # the SDK v1 hears nothing while it is asked
    await ana.answer(question, action="accept", content={"age": "forty"})
    await ana.answer(await ana.question(1), action="accept", content={"age": 41})
    assert text(await waiting) == "41"
    events = [event for entry in await place.trail.of(task["taskId"]) for event in entry.events]
    assert [type(one) for one in events if isinstance(one, InputRequested | InputResponded)] == [
        InputRequested,
        InputResponded,
    ]


async def test_a_tools_own_error_is_a_failed_task(place: Place) -> None:
    """Result retrieval: the result is what the call would have got."""
    ana = await place.client()
    task = await ana.call("breaks")
    assert (await ana.do("result", task_id=task["taskId"]))["isError"]
    await ana.status(task, "failed")


async def test_a_cancelled_task_is_answered_as_cancelled_and_not_twice(place: Place) -> None:
    """Task Cancellation: -32602 for one that has ended."""
    ana = await place.client()
    task = await ana.call("waits")
    assert (await ana.do("cancel", task_id=task["taskId"]))["status"] == "cancelled"
    with pytest.raises(Refused, match="cancelled") as refused:
        await ana.do("cancel", task_id=task["taskId"])
    assert refused.value.code == -32602


@pytest.mark.requirement("A1", "A4")
async def test_a_task_opens_for_who_made_it_only_and_is_listed_for_nobody_else(place: Place) -> None:
    """Task Listing, and the binding of a task: a stranger hears what an unknown id gets."""
    ana, bob = await place.client(), await place.client("bob")
    task = await ana.call("greets", name="Ana")
    assert task["taskId"] in {one["taskId"] for one in (await ana.do("list"))["tasks"]}
    assert task["taskId"] not in {one["taskId"] for one in (await bob.do("list"))["tasks"]}
    for op in ("get", "result", "cancel"):
        errors: list[Any] = []
        for task_id in (task["taskId"], "unknown"):
            with pytest.raises(Refused) as refused:
                await bob.do(op, task_id=task_id)
            errors.append(refused.value.error)
        assert errors[0] == errors[1]
        assert errors[0]["code"] == -32602


async def test_a_tool_is_called_as_it_declares(place: Place) -> None:
    """Tool-Level Negotiation: -32601 for a task where none may be, and for none where one must be."""
    ana = await place.client()
    for op, tool in (("call", "plain"), ("plain", "asks")):
        with pytest.raises(Refused) as refused:
            await ana.do(op, name=tool)
        assert refused.value.code == -32601
    assert text(await ana.do("plain", name="greets", arguments={"name": "Ana"})) == "hello Ana"
    assert text(await ana.do("plain", name="plain")) == "plain"


async def test_a_server_that_answers_without_streams_says_that_it_cannot_ask(
    common: tuple[UpProcess, LocalIssuer, Clients],
) -> None:
    """docs/mcp-sdk.md: questions need a stream; nobody waits for one that cannot be put."""
    up, issuer, some = common
    with listening() as sock:
        mcp = of_fastmcp(issuer, up.data / "adapter.json")
        async with served(mcp.http_app(json_response=True), sock):
            ana = await some.open("ana-json", url_of(sock), issuer.issue("ana", "cli", aud=AUDIENCE))
            task, other = await ana.call("asks"), await ana.call("greets", name="Ana")
            with pytest.raises(Refused, match="needs a server with sessions"):
                await ana.do("result", task_id=task["taskId"])
            assert text(await ana.do("result", task_id=other["taskId"])) == "hello Ana"


@pytest.mark.requirement("L6")
async def test_a_proxy_gives_tasks_to_such_clients_too(
    common: tuple[UpProcess, LocalIssuer, Clients], tmp_path: Path
) -> None:
    """docs/proxy.md: over a public server that is none of ours, of this revision itself."""
    up, issuer, some = common
    behind: list[str | Path] = ["--task", LONG, "--task", ASKS, "--", NODE, everything(), "stdio"]
    with proxying(up, tmp_path / "log", *behind) as proxy:
        ana = await some.open("ana-proxied", proxy.url, issuer.issue("ana", "cli", aud=AUDIENCE))
        assert ana.server["capabilities"]["tasks"]["list"] == {}
        tools = {tool["name"]: tool.get("execution", {}) for tool in (await ana.do("tools"))["tools"]}
        assert (tools[LONG]["taskSupport"], tools[ASKS]["taskSupport"]) == ("optional", "optional")
        assert {name for name, one in tools.items() if one.get("taskSupport", "forbidden") != "forbidden"} == {
            LONG,
            ASKS,
        }
        task, slow = await ana.call(ASKS), await ana.call(LONG, duration=0.2, steps=1)
        waiting = asyncio.create_task(ana.do("result", task_id=task["taskId"]))
        await until(lambda: ana.asked or waiting.done())
        await ana.answer(await ana.question(), action="decline")
        assert "declined" in text(await waiting)
        assert "completed" in text(await ana.do("result", task_id=slow["taskId"]))
        async with reading(up.data) as trail:
            assert only(await trail.of(task["taskId"]), TaskCreated).binding.sub == "ana"
