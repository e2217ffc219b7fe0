"""Tasks for FastMCP 4: `task=True` tools unchanged, their tasks on tasktrail.

Guarantees: those of `serving.py`. What a tool declares counts (`task=True`, `TaskConfig(mode=…, poll_interval=…)`),
unless `tools` names it. FastMCP's middleware runs once, around the creating call; `ctx.elicit`
works inside a task, too. Needs fastmcp >= 4.1.

    mcp = FastMCP("reports")
    mcp.add_extension(TasktrailTasks.connect("nats://127.0.0.1:4222"))

    @mcp.tool(task=True)
    async def report(quarter: str) -> str: …
"""

import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, cast

from tasktrail.mcp.extras import Needs

with Needs(__name__, "FastMCP 4", extra="fastmcp"):
    from fastmcp.exceptions import FastMCPError, NotFoundError
    from fastmcp.exceptions import ToolError as FastMCPToolError
    from fastmcp.server.context import Context as ToolContext
    from fastmcp.server.dependencies import bind_request_context, extract_version_spec, fastmcp_request_ctx
    from fastmcp.server.extensions import MethodBinding, ServerExtension, ToolCallContinuation, ToolCallOutcome
    from fastmcp.tools.base import InputRequiredToolResult, ToolResult
    from fastmcp.tools.base import Tool as FastMCPTool
    from fastmcp.utilities.async_utils import is_coroutine_function
    from fastmcp.utilities.versions import VersionSpec
    from mcp.server.mcpserver.resolve import returns_input_required
    from mcp.shared.exceptions import MCPError
    from mcp_types import CallToolRequestParams, CallToolResult, InputRequiredResult, TextContent
    from mcp_types.version import LATEST_HANDSHAKE_VERSION, MODERN_PROTOCOL_VERSIONS
    from pydantic import BaseModel, ConfigDict

from tasktrail.events.facts import OnWorkerLost, TaskSupport
from tasktrail.mcp.definitions import definition_sha256
from tasktrail.mcp.earlier import Earlier, making_of
from tasktrail.mcp.link import EmbeddedLink, Link, connected
from tasktrail.mcp.recording import App, Recording
from tasktrail.mcp.running import RequestContext, Tool
from tasktrail.mcp.serving import Serving, TaskParams, ToolPolicy, UpdateParams, declared, policy_of, warn_of_unknown
from tasktrail.services import wire
from tasktrail.services.messages import DEFINED_MAX

__all__ = ["TasktrailTasks", "ToolPolicy", "in_task"]


in_task: ContextVar[bool] = ContextVar("tasktrail_in_task", default=False)
"""Whether a tool runs as a task, here and now."""


class _Created(BaseModel):
    """`CreateTaskResult` as FastMCP hands it on."""

    model_config = ConfigDict(extra="allow")


class TasktrailTasks(ServerExtension):
    """The extension: give it to `mcp.add_extension(…)`."""

    identifier = wire.EXTENSION
    _serving: ClassVar[type[Serving]] = Serving

    def __init__(
        self, link: Link, tools: Mapping[str, str | ToolPolicy] | None = None, *, forward_tokens: bool = False
    ) -> None:
        self._tasks = self._serving(link, forward_tokens=forward_tokens)
        self._earlier = Earlier(self._tasks, self._support)
        self._tools = {name: policy_of(name, said) for name, said in (tools or {}).items()}
        self._defined: dict[str, str] = {}

    @classmethod
    def connect(
        cls,
        target: str | Path | None = None,
        *,
        server: str = "",
        tools: Mapping[str, str | ToolPolicy] | None = None,
        forward_tokens: bool = False,
    ) -> "TasktrailTasks":
        """Connect to a running tasktrail.

        `target` is a `nats://` URL (several with commas) or a connection file that `tasktrail up` wrote; default: the
        environment's TASKTRAIL_CONNECT. `server` names this server on the trail; default: the FastMCP server's name.
        `tools`: wishes for some of them by name or pattern (`*`), and which run as tasks although nothing at the tool
        says so (a mounted or proxied one's). The rest: as `tasktrail.mcp.extension.Tasks.connect`.

        Raises:
            InvalidRequest: the target or a tool's support is not of this form.
        """
        return cls(connected(target, server), tools, forward_tokens=forward_tokens)

    @classmethod
    def embed(
        cls,
        data: str | Path = ".tasktrail",
        *,
        server: str = "",
        tools: Mapping[str, str | ToolPolicy] | None = None,
        forward_tokens: bool = False,
    ) -> "TasktrailTasks":
        """Run a whole tasktrail in this process, its data in the directory `data`. The others: as `connect`."""
        return cls(EmbeddedLink(Path(data), server), tools, forward_tokens=forward_tokens)

    def recording(self, app: App) -> Recording:
        """This server's ASGI application, with the requests that it turns away itself (401, 403) put on the trail."""
        return self._tasks.recording(app)

    def lifespan(self) -> AbstractAsyncContextManager[None]:
        """Start with the server, stop with it."""
        return self._lifespan()

    @contextlib.asynccontextmanager
    async def _lifespan(self) -> AsyncGenerator[None]:
        middleware = self.server._mcp_server.middleware  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # FastMCP has no public way to spec methods
        if self._tasks.listen not in middleware:
            middleware.extend((self._tasks.listen, self._earlier))
        offered = await self._offered()
        self._note(offered)
        again = {tool.name for tool in offered if self._policy(tool).on_worker_lost is OnWorkerLost.RERUN}
        async with self._tasks.open(self.server.name, lambda: self._defined):
            self._tasks.rerun(again, self._found, self.server._lifespan_result)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # as FastMCP's own contexts have it
            yield

    def methods(self) -> Sequence[MethodBinding]:
        """`tasks/get`, `tasks/update`, `tasks/cancel`."""
        modern = frozenset(MODERN_PROTOCOL_VERSIONS)
        return [
            MethodBinding("tasks/get", TaskParams, cast("Any", self._tasks.get), modern),
            MethodBinding("tasks/update", UpdateParams, cast("Any", self._tasks.update), modern),
            MethodBinding("tasks/cancel", TaskParams, cast("Any", self._tasks.cancel), modern),
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, context: ToolContext, call_next: ToolCallContinuation
    ) -> ToolCallOutcome:
        """Run the call as a task where its tool and its client both can (SEP-2663, Task Creation)."""
        version = _version(params)
        tool = await self._tool(params.name, version)
        policy = self._policy(tool) if tool is not None else None
        request = context.request_context
        if tool is None or policy is None or policy.support is TaskSupport.FORBIDDEN or request is None:
            return await call_next()
        ctx = cast("RequestContext", request._srctx)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # FastMCP's own way to the SDK's context
        if ctx.method != "tools/call" or _named(ctx) != params.name:  # another tool, or a resource, calls this one
            if policy.support is TaskSupport.REQUIRED:
                message = f"tool {params.name!r} runs as a task only: the client has to call it itself"
                raise FastMCPToolError(message)
            return await call_next()
        run = Tool(self._entering(version), _sha256(tool), in_thread=_in_thread(tool))
        if (making := making_of(ctx)) is not None:
            return _Created(**await making.create(self._tasks, params, ctx, policy, run))
        if not declared(ctx):
            if policy.support is TaskSupport.REQUIRED:
                await self._tasks.refuse_undeclared(ctx)
            return await call_next()
        if (policy.asks_first or _asks_first(tool)) and params.input_responses is None:
            return await call_next()
        return _Created(**wire.created(await self._tasks.create(params, ctx, policy, run)))

    async def _offered(self) -> list[FastMCPTool]:
        """The tools that may become tasks."""
        tools = await self.server.list_tools(run_middleware=False)
        warn_of_unknown(self._tools, {tool.name for tool in tools})
        return self._able(tools)

    def _able(self, tools: Iterable[FastMCPTool]) -> list[FastMCPTool]:
        return [tool for tool in tools if self._policy(tool).support is not TaskSupport.FORBIDDEN][:DEFINED_MAX]

    def _note(self, tools: Sequence[FastMCPTool]) -> None:
        """Remember how these are defined. Of several versions a task may be any's: none has drifted from it."""
        versions = Counter(tool.name for tool in tools)
        self._defined = {tool.name: _sha256(tool) for tool in tools if versions[tool.name] == 1}

    async def _found(self, name: str) -> Tool | None:
        """The tool of this name, to be run again: its newest version."""
        tool = await self._tool(name, None)
        return None if tool is None else Tool(self._entering(None), _sha256(tool), in_thread=_in_thread(tool))

    async def _support(self, name: str) -> TaskSupport:
        tool = await self._tool(name, None)
        return TaskSupport.FORBIDDEN if tool is None else TaskSupport(self._policy(tool).support)

    async def _tool(self, name: str, version: VersionSpec | None) -> FastMCPTool | None:
        try:
            return await self.server.get_tool(name, version)
        except NotFoundError:
            return None

    def _policy(self, tool: FastMCPTool) -> ToolPolicy:
        """What the tool declares, unless `tools` says more; there the first that fits counts."""
        said = next((one for name, one in self._tools.items() if fnmatchcase(tool.name, name)), None)
        if said is not None:
            return said
        own = tool.task_config
        every_ms = int(own.poll_interval.total_seconds() * 1000)
        return ToolPolicy(support=TaskSupport(own.mode), poll_interval_ms=every_ms)

    def _entering(self, version: VersionSpec | None) -> Any:  # noqa: ANN401 - an Enter
        server = self.server

        async def enter(params: CallToolRequestParams, ctx: RequestContext) -> CallToolResult | InputRequiredResult:
            """Run the tool without the server's middleware, which was around the creating call."""
            raw = params.model_dump(by_alias=True, mode="json", exclude_none=True)
            with bind_request_context(replace(ctx, params=raw, meta=_with_progress(ctx))) as bound:
                # In the background there is a way back to the client, as there was before 2026-07-28.
                running = in_task.set(True)
                token = fastmcp_request_ctx.set(replace(bound, protocol_version=LATEST_HANDSHAKE_VERSION))
                try:
                    result = await server.call_tool(
                        params.name, params.arguments, version=version, run_middleware=False
                    )
                except FastMCPError as error:
                    if isinstance(error.__cause__, MCPError):  # a JSON-RPC error of the tool: the task fails with it
                        raise error.__cause__ from error
                    return CallToolResult(content=[TextContent(type="text", text=str(error))], is_error=True)
                finally:
                    fastmcp_request_ctx.reset(token)
                    in_task.reset(running)
            return result.input_required if isinstance(result, InputRequiredToolResult) else _result(result)

        return enter


def _with_progress(ctx: RequestContext) -> Any:  # noqa: ANN401 - the SDK's own
    """The request's metadata, with a token: what a task says of its progress is its status, whoever asked for it."""
    return {**cast("dict[str, Any]", ctx.meta or {}), "progress_token": "task"}


def _result(result: ToolResult) -> CallToolResult:
    """A tool's result as the wire has it."""
    said = result.to_mcp_result()
    if isinstance(said, CallToolResult):
        return said
    content, structured = said if isinstance(said, tuple) else (said, None)
    return CallToolResult(content=content, structured_content=structured)


def _version(params: CallToolRequestParams) -> VersionSpec | None:
    """The version of a tool that a client asks for, as FastMCP's clients do."""
    said = extract_version_spec(cast("dict[str, Any] | None", params.meta))
    return VersionSpec(eq=said) if said else None


def _named(ctx: RequestContext) -> object:
    return (ctx.params or {}).get("name")


def _asks_first(tool: FastMCPTool) -> bool:
    """Whether the tool may ask before there is a task: its function is declared to return questions."""
    fn = getattr(tool, "fn", None)
    return fn is not None and returns_input_required(fn)


def _in_thread(tool: FastMCPTool) -> bool:
    """Whether FastMCP runs the tool in a thread, which nothing can stop: one that `tools` names may be plain."""
    fn = getattr(tool, "fn", None)
    return fn is not None and not is_coroutine_function(fn)


def _sha256(tool: FastMCPTool) -> str:
    return definition_sha256(tool.name, tool.description, tool.parameters, tool.output_schema)
