"""Related messages find their task on the 2026-07-28 wire, whoever passes them on and however often. Source: issue
"Adapters" (correlation), features L6, A1; W3C Trace Context."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fastmcp import Context as ProxiedContext
from fastmcp import FastMCP
from mcp.server import MCPServer
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context
from opentelemetry import propagate

from tasktrail.events.authority import Level, Trigger
from tasktrail.events.facts import CommandRefused, InputIgnored, InputResponded, TaskCreated, TaskSupport, ToolDriftSeen
from tasktrail.events.tracing import TraceContext, run_span
from tasktrail.mcp import tracing
from tasktrail.mcp.extension import Tasks, ToolPolicy
from tasktrail.mcp.proxy import Upstream, proxy
from tasktrail.mcp.verifier import Issuer, JwtVerifier
from tasktrail.testing.waiting import until

from .answering import accept, asked, text_of
from .client import Client
from .place import Place, carrying, only, opened, refused
from .serving import listening, served, url_of
from .workshop import SUPPORT, Workshop

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Place]:
    data: Path = tmp_path_factory.mktemp("correlation") / "data"
    async with opened("connected", data) as one:
        yield one


@contextlib.asynccontextmanager
async def beside(
    place: Place, name: str, tools: dict[str, Any], build: Callable[..., MCPServer[Any]]
) -> AsyncGenerator[str]:
    """Another process of an MCP server, which takes the same tokens; gives its URL."""
    tasks = Tasks.connect(place.data / "adapter.json", tools=tools)
    issuers = [Issuer(one.url, one.jwks_url, place.url) for one in (place.issuer, place.other_issuer)]
    auth = AuthSettings(
        issuer_url=place.issuer.url,  # type: ignore[arg-type] # pydantic takes text
        resource_server_url=place.url,  # type: ignore[arg-type] # the same
        validate_token_resource=False,
    )
    mcp = build(tasks, name=name, auth=auth, token_verifier=JwtVerifier(issuers))
    with listening() as sock:
        async with served(mcp, sock):
            yield url_of(sock)


def front(place: Place) -> Callable[..., MCPServer[Any]]:
    """A server whose tools call the workshop's."""

    async def delegates(text: str, ctx: Context[Any, Any]) -> dict[str, Any]:
        injected: dict[str, str] = {}
        propagate.inject(injected)
        async with place.client("bank", "bank") as back:
            back.extra_meta = tracing.current().carried()
            made = await back.start("echo", text=text)
        meta: Any = ctx.request_context.meta or {}
        return {
            "made": made["taskId"],
            "carried": tracing.current().carried(),
            "injected": injected,
            "meta": {name: meta.get(name) for name in ("traceparent", "tracestate")},
        }

    def in_thread() -> dict[str, str]:
        return tracing.current().carried()

    def build(tasks: Tasks, **settings: Any) -> MCPServer[Any]:  # noqa: ANN401 - of the server
        name = settings.pop("name")
        mcp: MCPServer[Any] = MCPServer(name, extensions=[tasks], lifespan=tasks.lifespan, **settings)
        mcp.add_tool(delegates)
        mcp.add_tool(in_thread)
        return mcp

    return build


@pytest.mark.requirement("L6", "A5", "O4")
async def test_a_tool_that_calls_another_server_names_its_task_and_not_its_id(place: Place) -> None:
    """W3C trace context travels through `_meta`, whether the tool or OpenTelemetry puts it there; ids stay at home."""
    tools = {"delegates": "optional", "in_thread": "optional"}
    async with beside(place, "front", tools, front(place)) as url, Client(url, place.token()) as ana:
        ana.extra_meta = {"traceparent": PARENT, "tracestate": "congo=t61"}
        made = await ana.start("delegates", text="x")
        done = await ana.until(made["taskId"], "completed")
        ana.extra_meta = {}
        threaded = await ana.start("in_thread")
        told = (await ana.until(threaded["taskId"], "completed"))["result"]["structuredContent"]
    ref = place.trail.ref(made["taskId"])
    said = done["result"]["structuredContent"]
    wanted = TraceContext.of_run(ref, PARENT, "congo=t61").carried()
    assert (said["carried"], said["injected"], said["meta"]) == (wanted, wanted, wanted)
    assert wanted["traceparent"] == f"00-{PARENT.split('-')[1]}-{run_span(ref)}-01"
    assert told == TraceContext.of_run(place.trail.ref(threaded["taskId"])).carried()
    child = only(await place.trail.of(said["made"]), TaskCreated)
    assert (child.parent, child.parent_level) == (ref, Level.CLAIMED)
    assert only(await place.trail.of(made["taskId"]), TaskCreated).parent == ""
    assert tracing.current() == TraceContext()


@pytest.mark.requirement("L6", "O4")
async def test_a_proxy_hands_the_trace_of_its_task_to_the_server_behind_it(place: Place) -> None:
    """W3C Trace Context: what the upstream server makes of the call can be linked to the proxy's task."""
    behind: FastMCP = FastMCP("behind")

    @behind.tool
    async def hears(ctx: ProxiedContext) -> dict[str, Any]:
        meta: Any = ctx.request_context.meta if ctx.request_context else None
        return {name: (meta or {}).get(name) for name in ("traceparent", "tracestate")}

    with listening() as back, listening() as sock:
        async with served(behind.http_app(), back):
            made = proxy(
                Upstream(url=url_of(back)),
                place.data / "adapter.json",
                {"hears": ToolPolicy(support=TaskSupport.OPTIONAL)},
            )
            async with served(made.http_app(), sock), Client(url_of(sock)) as ana:
                ana.extra_meta = {"traceparent": PARENT, "tracestate": "congo=t61"}
                task = await ana.start("hears")
                done = await ana.until(task["taskId"], "completed")
    wanted = TraceContext.of_run(place.trail.ref(task["taskId"]), PARENT, "congo=t61").carried()
    assert done["result"]["structuredContent"] == wanted


class Newer(Workshop):
    """The next version of the workshop."""

    async def waits(self, label: str, colour: str = "plum") -> str:
        """Work until the test says go, in a colour."""
        return f"{await super().waits(label)} in {colour}"


@pytest.mark.requirement("P3")
async def test_a_replica_of_the_next_version_is_noticed_on_the_tasks_that_live(place: Place) -> None:
    """Issue: tool-definition drift between creation and later steps is noticed, also when nobody calls the tool."""
    with place.bench() as label:
        async with place.client() as ana:
            made, other = await ana.start("waits", label=label), await ana.start("asks")

            async def noticed() -> bool:
                return "ToolDriftSeen" in await place.trail.names(made["taskId"])

            async with beside(place, "workshop", dict(SUPPORT), Newer().server):
                await until(noticed)
            place.workshop.bench(label).go.set()
            await ana.until(made["taskId"], "completed")
            assert (await ana.cancel(other["taskId"])).result["resultType"] == "complete"
    found = await place.trail.of(made["taskId"])
    assert only(found, ToolDriftSeen).tool_sha256 != only(found, TaskCreated).tool_sha256
    seen = carrying(found, ToolDriftSeen).authority
    assert (seen.trigger, seen.created_by) == (Trigger.MCP_SERVER, found[0].id)
    assert "ToolDriftSeen" not in await place.trail.names(other["taskId"])


@pytest.mark.requirement("L6", "L7", "A1")
async def test_an_answer_by_a_new_token_over_another_replica_counts_once(place: Place) -> None:
    """By task and principal, never by connection: a repeat after a lost reply is told apart, another's is refused."""
    workshop = Workshop()
    async with beside(place, "workshop", dict(SUPPORT), workshop.server) as url, place.client() as ana:
        made = await ana.start("asks")
        (key,) = await asked(ana, made["taskId"])
        async with Client(url, place.token("eve")) as eve, Client(url, place.token()) as again:
            answer = await eve.update(made["taskId"], {key: accept(age=1)})
            assert answer.error["code"] == -32602
            for _ in range(2):
                assert (await again.update(made["taskId"], {key: accept(age=41)})).result["resultType"] == "complete"
            assert (await ana.update(made["taskId"], {key: accept(age=42)})).result["resultType"] == "complete"
            assert await text_of(again, made["taskId"]) == "accept 41"
    found = await place.trail.of(made["taskId"])
    assert only(found, InputResponded).key == key
    late = [event.reason for entry in found for event in entry.events if isinstance(event, InputIgnored)]
    told = [event.reason for entry in found for event in entry.events if isinstance(event, CommandRefused)]
    assert set(late) <= {"already_answered"}
    assert len(late) + len(told) == 2, "each repeat is on the trail: ignored, or refused once the task had ended"
    entry = await refused(place, place.trail.ref(made["taskId"]), "other-identity-context")
    assert entry.authority.principal is not None
    assert entry.authority.principal.sub == "eve"
