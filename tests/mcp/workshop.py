"""The tools of the test server: each does one thing that a tool may do to a task, and the test says when.

A tool that can be held takes a `label`; `workshop.bench(label)` is where it and its test meet.
"""

import asyncio
import threading
from collections import defaultdict
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequests,
    InputRequiredResult,
    SamplingMessage,
    TextContent,
)
from pydantic import BaseModel, Field

from tasktrail.mcp.extension import Tasks

CRASH = "crash-canary-7e1f"
QUOTA = -32050


class Name(BaseModel):
    """What most questions ask for."""

    name: str


class Age(BaseModel):
    """A question with a type that can be got wrong."""

    age: int


class Letters(BaseModel):
    """A question with a pattern that JSON Schema and pydantic know, and Python's `re` does not."""

    word: Annotated[str, Field(pattern=r"^\p{L}+$")]


class Bench:
    """Where a tool and its test meet. `log` is what the tool did, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.go = asyncio.Event()
        self.let_go = threading.Event()

    def done(self, *steps: str) -> bool:
        """Whether the tool has done exactly this."""
        return self.log == list(steps)


def question(model: type[BaseModel]) -> ElicitRequest:
    """An elicitation as a tool returns it."""
    params = ElicitRequestFormParams(message="Please say.", requested_schema=model.model_json_schema())
    return ElicitRequest(params=params)


async def whoever(ctx: Context[Any, Any]) -> Elicit[Name]:
    """A resolver that always asks."""
    assert ctx.protocol_version
    return Elicit("Who?", Name)


class Workshop:
    """One server's tools."""

    def __init__(self) -> None:
        self._benches: defaultdict[str, Bench] = defaultdict(Bench)

    def bench(self, label: str) -> Bench:
        """The bench of this label."""
        return self._benches[label]

    def server(
        self,
        tasks: Tasks,
        *,
        name: str = "workshop",
        lifespan: Any = None,  # noqa: ANN401 - the SDK's own type is invariant in its state
        auth: AuthSettings | None = None,
        token_verifier: TokenVerifier | None = None,
    ) -> MCPServer[Any]:
        """An MCP server with all of them."""
        mcp: MCPServer[Any] = MCPServer(
            name,
            extensions=[tasks],
            lifespan=lifespan or tasks.lifespan,
            log_level="CRITICAL",
            auth=auth,
            token_verifier=token_verifier,
        )
        for tool in (*OPTIONAL, *REQUIRED, *FORBIDDEN):
            mcp.add_tool(getattr(self, tool))
        return mcp

    def greet(self, name: str) -> str:
        """Never a task."""
        return f"Hello, {name}!"

    async def echo(self, text: str) -> str:
        """Give the text back."""
        return text

    async def must(self, text: str) -> str:
        """Always a task."""
        return text

    async def fails(self) -> str:
        """Fail as tools fail."""
        message = "the printer is out of paper"
        raise ToolError(message)

    async def crashes(self) -> str:
        """Fail as programs fail."""
        raise RuntimeError(CRASH)

    async def breaks(self) -> str:
        """Fail as JSON-RPC requests fail."""
        raise MCPError(QUOTA, "quota exceeded", {"limit": 3})

    async def gives_up(self) -> str:
        """End as a tool ends that awaits something which was cancelled."""
        raise asyncio.CancelledError

    async def odd(self, kind: str) -> CallToolResult:
        """Results and errors that are legal, and rare."""
        values: dict[str, Any] = {"nul": "a\0b", "integer": 2**60, "surrogate": "a\ud800", "deep": _deep(200)}
        if kind == "error":
            raise MCPError(QUOTA, "odd", {"when": "a\ud800"})
        return CallToolResult(content=[], structured_content={"value": values[kind]})

    async def waits(self, label: str) -> str:
        """Work until the test says go; clean up when told to stop, which takes a moment."""
        bench = self.bench(label)
        bench.log.append("started")
        try:
            await bench.go.wait()
        except asyncio.CancelledError:
            bench.log.append("told to stop")
            await asyncio.sleep(0.1)
            bench.log.append("cleaned up")
            raise
        return label

    async def stubborn(self, label: str) -> str:
        """Work until the test says go, whoever says stop."""
        bench = self.bench(label)
        bench.log.append("started")
        while not bench.go.is_set():
            try:
                await bench.go.wait()
            except asyncio.CancelledError:
                bench.log.append("told to stop")
        return label

    def blocks(self, label: str) -> str:
        """Work in a thread until the test says go."""
        bench = self.bench(label)
        bench.log.append("started")
        bench.let_go.wait(30)
        bench.log.append("finished")
        return label

    async def reports(self, label: str, ctx: Context[Any, Any]) -> str:
        """Say how far it is: the test takes it from one step to the next."""
        bench = self.bench(label)
        for done, text in ((1, "measuring"), (2, None), (3, "cutting")):
            await ctx.report_progress(done, 3, text)
            bench.log.append(str(text))
            await bench.go.wait()
            bench.go.clear()
        return label

    async def says(self, text: str, label: str, ctx: Context[Any, Any]) -> str:
        """Say something, and wait until the test has heard it."""
        await ctx.report_progress(1, 1, text)
        await self.bench(label).go.wait()
        return text

    async def fails_with(self, text: str) -> str:
        """Fail as tools fail, with these words."""
        raise ToolError(text)

    async def breaks_with(self, text: str) -> str:
        """Fail as JSON-RPC requests fail, with these words."""
        raise MCPError(QUOTA, text, {"why": text})

    async def remembers(self, ctx: Context[Any, Any]) -> dict[str, Any]:
        """What a tool can know of the request that made its task."""
        token = get_access_token()
        session = ctx.session
        assert session.client_params is not None
        assert session.client_capabilities is not None
        return {
            "client": session.client_params.client_info.name,
            "extensions": sorted(session.client_capabilities.extensions or {}),
            "version": ctx.protocol_version,
            "subject": token.subject if token else None,
            "lifespan": ctx.request_context.lifespan_context,
        }

    async def announces(self, ctx: Context[Any, Any]) -> str:
        """Say that the list of tools changed."""
        await ctx.notify_tools_changed()
        return "announced"

    async def asks(self, ctx: Context[Any, Any]) -> str:
        """Ask for an age."""
        answer = await ctx.elicit("How old?", Age)
        return f"{answer.action} {answer.data.age}" if answer.action == "accept" else answer.action

    async def asks_in_letters(self, ctx: Context[Any, Any]) -> str:
        """Ask for a word of letters."""
        answer = await ctx.elicit("A word?", Letters)
        return answer.data.word if answer.action == "accept" else answer.action

    async def asks_twice(self, ctx: Context[Any, Any]) -> str:
        """Ask two people at the same time, then a third."""
        first = await asyncio.gather(ctx.elicit("First?", Name), ctx.elicit("Second?", Name))
        answers = [*first, await ctx.elicit("Third?", Name)]
        return " and ".join(one.data.name if one.action == "accept" else one.action for one in answers)

    async def asks_impatiently(self, label: str, ctx: Context[Any, Any]) -> str:
        """Ask, and go on without an answer."""
        asking = asyncio.create_task(ctx.elicit("Anyone?", Name))
        await self.bench(label).go.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return "nobody"

    async def sends_to(self, ctx: Context[Any, Any]) -> str:
        """Ask for a visit to a page."""
        return (await ctx.elicit_url("Please sign in.", "https://id.example/consent", "visit-1")).action

    async def samples(self, ctx: Context[Any, Any]) -> str:
        """Ask the client's model."""
        said = SamplingMessage(role="user", content=TextContent(type="text", text="A word?"))
        answer = await ctx.session.create_message([said], max_tokens=5)  # pyright: ignore[reportDeprecated] # the extension carries it
        assert isinstance(answer.content, TextContent)
        return answer.content.text

    async def lists_roots(self, ctx: Context[Any, Any]) -> list[str]:
        """Ask for the client's roots."""
        found = await ctx.session.list_roots()  # pyright: ignore[reportDeprecated] # the extension carries it
        return [str(root.uri) for root in found.roots]

    async def asks_before(self, ctx: Context[Any, Any]) -> str | InputRequiredResult:
        """Ask before there is a task."""
        answer = (ctx.input_responses or {}).get("who")
        if not isinstance(answer, ElicitResult):
            return InputRequiredResult(input_requests={"who": question(Name)}, request_state="round 1")
        return f"{(answer.content or {})['name']} after {ctx.request_state}"

    async def resolves(self, who: Annotated[Name, Resolve(whoever)]) -> str:
        """Ask before there is a task, by a parameter."""
        return f"{who.name} resolved"

    async def asks_inside(self, ctx: Context[Any, Any]) -> Any:  # noqa: ANN401 - what it returns is not declared
        """Return questions from within the task: two, then one more under a key used before."""
        given = {
            key: (answer.content or {})["name"]
            for key, answer in (ctx.input_responses or {}).items()
            if isinstance(answer, ElicitResult)
        }
        match ctx.request_state:
            case None:
                asked: InputRequests = {"who": question(Name), "bad key! ": question(Name)}
                return InputRequiredResult(input_requests=asked, request_state="one")
            case "one":
                state = f"one {given['who']} {given['bad key! ']}"
                return InputRequiredResult(input_requests={"who": question(Name)}, request_state=state)
            case state:
                return f"{state} then {given['who']}"

    def asks_from_a_thread(self, ctx: Context[Any, Any]) -> Any:  # noqa: ANN401 - as above
        """Return a question from a plain function."""
        if ctx.input_responses is None:
            return InputRequiredResult(input_requests={"who": question(Name)})
        return "answered"

    async def comes_back(self, label: str, ctx: Context[Any, Any]) -> Any:  # noqa: ANN401 - as above
        """Ask for nothing but to be entered again, until the test says go."""
        bench = self.bench(label)
        bench.log.append("entered")
        if bench.go.is_set():
            return f"{ctx.request_state}"
        return InputRequiredResult(request_state="again")


def _deep(levels: int) -> Any:  # noqa: ANN401 - arrays in arrays
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


OPTIONAL = (
    "echo",
    "fails",
    "crashes",
    "breaks",
    "gives_up",
    "odd",
    "waits",
    "stubborn",
    "blocks",
    "reports",
    "says",
    "fails_with",
    "breaks_with",
    "remembers",
    "announces",
    "asks",
    "asks_in_letters",
    "asks_twice",
    "asks_impatiently",
    "sends_to",
    "samples",
    "lists_roots",
    "asks_before",
    "resolves",
    "asks_inside",
    "asks_from_a_thread",
    "comes_back",
)
REQUIRED = ("must",)
FORBIDDEN = ("greet",)
SUPPORT: dict[str, Any] = {
    **dict.fromkeys(OPTIONAL, "optional"),
    **dict.fromkeys(REQUIRED, "required"),
    **dict.fromkeys(FORBIDDEN, "forbidden"),
}
