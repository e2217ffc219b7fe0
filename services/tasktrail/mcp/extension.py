"""Tasks for the official MCP Python SDK (v2, protocol 2026-07-28): `io.modelcontextprotocol/tasks`, SEP-2663.

Guarantees: a task's handle is returned only when every replica resolves it; it opens its task only for the caller that
made it; whoever is turned away is on the trail. Needs mcp >= 2.3; connected, a running tasktrail reachable over NATS;
embedded, the extra `service`.

    tasks = Tasks.connect("nats://127.0.0.1:4222", tools={"report": "optional"})
    mcp = MCPServer("reports", extensions=[tasks], lifespan=tasks.lifespan)
"""

import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from tasktrail.mcp.extras import Needs

with Needs(__name__, "the official MCP SDK v2", extra="mcp"):
    from mcp.server import MCPServer
    from mcp.server.context import CallNext, HandlerResult
    from mcp.server.extension import Extension, MethodBinding
    from mcp.server.mcpserver import Context as ToolContext
    from mcp.server.mcpserver.resolve import returns_input_required
    from mcp.server.mcpserver.tools import Tool as SdkTool
    from mcp.shared.exceptions import MCPError
    from mcp_types import CallToolRequestParams, CallToolResult, InputRequiredResult
    from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from tasktrail.events.errors import TasktrailError
from tasktrail.events.facts import OnWorkerLost, TaskSupport
from tasktrail.mcp.definitions import definition_sha256
from tasktrail.mcp.earlier import Earlier, making_of
from tasktrail.mcp.link import EmbeddedLink, Link, connected
from tasktrail.mcp.recording import App, Recording
from tasktrail.mcp.running import RequestContext as Context
from tasktrail.mcp.running import Tool
from tasktrail.mcp.serving import Serving, TaskParams, ToolPolicy, UpdateParams, declared, policy_of, warn_of_unknown
from tasktrail.services import wire
from tasktrail.services.access.claims import TEXT_MAX
from tasktrail.services.messages import DEFINED_MAX

__all__ = ["Tasks", "ToolPolicy"]

Lifespan = Callable[[MCPServer[Any]], AbstractAsyncContextManager[Any]]


class Tasks(Extension):
    """The extension: give it to `MCPServer(extensions=[tasks], lifespan=tasks.lifespan)`."""

    identifier = wire.EXTENSION

    def __init__(self, link: Link, tools: Mapping[str, str | ToolPolicy], *, forward_tokens: bool = False) -> None:
        self._tasks = Serving(link, forward_tokens=forward_tokens)
        self._tools = {name: policy_of(name, said) for name, said in tools.items()}
        self._server: MCPServer[Any] | None = None
        self._earlier = Earlier(self._tasks, self._support)

    @classmethod
    def connect(
        cls,
        target: str | Path | None = None,
        *,
        server: str = "",
        tools: Mapping[str, str | ToolPolicy],
        forward_tokens: bool = False,
    ) -> "Tasks":
        """Connect to a running tasktrail.

        `target` is a `nats://` URL (several with commas) or a connection file that `tasktrail up` wrote into its data:
        `adapter.json`, or the `servers/NAME.json` of a server with a login of its own (`[[servers]]`); default: the
        environment's TASKTRAIL_CONNECT. `server` names this MCP server on the trail; default: the MCPServer's name.
        `tools` says which tools are `optional`, `required` or `forbidden` (the default) as tasks, or more of them in a
        `ToolPolicy`. `forward_tokens`:
        give tasktrail each caller's bearer token to verify for itself, instead of this server's word on who calls; the
        token is kept nowhere (docs/identity.md).

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
        tools: Mapping[str, str | ToolPolicy],
        forward_tokens: bool = False,
    ) -> "Tasks":
        """Run a whole tasktrail in this process, its data in the directory `data`. The others: as `connect`."""
        return cls(EmbeddedLink(Path(data), server), tools, forward_tokens=forward_tokens)

    @contextlib.asynccontextmanager
    async def lifespan(self, server: MCPServer[Any]) -> AsyncGenerator[dict[str, Any]]:
        """Start with the MCP server, stop with it; work still running then ends as failed, or is another's to rerun."""
        async with self._serving(server):
            state: dict[str, Any] = {}
            self._rerun(state)
            yield state

    def around(self, lifespan: Lifespan) -> Lifespan:
        """Your own lifespan inside ours: `MCPServer(lifespan=tasks.around(mine))`."""

        @contextlib.asynccontextmanager
        async def both(server: MCPServer[Any]) -> AsyncGenerator[Any]:
            async with self._serving(server), lifespan(server) as state:
                self._rerun(state)
                try:
                    yield state
                finally:
                    await self._tasks.lose_runs()  # what tools use is theirs until they have stopped

        return both

    @contextlib.asynccontextmanager
    async def _serving(self, server: MCPServer[Any]) -> AsyncGenerator[None]:
        self._server = server
        if self._tasks.listen not in server.middleware:
            server.middleware.extend((self._tasks.listen, self._earlier))
        warn_of_unknown(self._tools, {tool.name for tool in await server.list_tools()})
        async with self._tasks.open(server.name, self._defined):
            yield

    def _rerun(self, lifespan_context: Any) -> None:  # noqa: ANN401 - whatever the server's lifespan gives
        names = [name for name, policy in self._tools.items() if policy.on_worker_lost is OnWorkerLost.RERUN]
        self._tasks.rerun(names, self._found, lifespan_context)

    def _defined(self) -> dict[str, str]:
        names = [name for name in self._tools if len(name) <= TEXT_MAX]
        tools = [tool for name in names[:DEFINED_MAX] if (tool := self._tool(name)) is not None]
        return {tool.name: _sha256(tool) for tool in tools}

    async def _found(self, name: str) -> Tool | None:
        tool = self._tool(name)
        return None if tool is None else self._runnable(tool)

    def _runnable(self, tool: SdkTool) -> Tool:
        return Tool(self._enter, _sha256(tool), in_thread=not tool.is_async)

    def recording(self, app: App) -> Recording:
        """This server's ASGI application, with the requests that it turns away itself (401, 403) put on the trail."""
        return self._tasks.recording(app)

    def methods(self) -> Sequence[MethodBinding]:
        """`tasks/get`, `tasks/update`, `tasks/cancel`."""
        modern = frozenset(MODERN_PROTOCOL_VERSIONS)
        return [
            MethodBinding("tasks/get", TaskParams, self._tasks.get, protocol_versions=modern),
            MethodBinding("tasks/update", UpdateParams, self._tasks.update, protocol_versions=modern),
            MethodBinding("tasks/cancel", TaskParams, self._tasks.cancel, protocol_versions=modern),
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: Context, call_next: CallNext
    ) -> HandlerResult:
        """Run the call as a task where its tool and its client both can (SEP-2663, Task Creation)."""
        policy = self._tools.get(params.name)
        if policy is None or policy.support is TaskSupport.FORBIDDEN:
            return await call_next(ctx)
        tool = self._tool(params.name)
        if tool is not None and (making := making_of(ctx)) is not None:
            return await making.create(self._tasks, params, ctx, policy, self._runnable(tool))
        if not declared(ctx):
            if policy.support is TaskSupport.REQUIRED:
                await self._tasks.refuse_undeclared(ctx)
            return await call_next(ctx)
        if tool is None or (params.input_responses is None and (policy.asks_first or _asks_first(tool))):
            return await call_next(ctx)
        return wire.created(await self._tasks.create(params, ctx, policy, self._runnable(tool)))

    async def _support(self, name: str) -> TaskSupport:
        policy = self._tools.get(name)
        if policy is None or self._tool(name) is None:
            return TaskSupport.FORBIDDEN
        return TaskSupport(policy.support)

    async def _enter(self, params: CallToolRequestParams, ctx: Context) -> CallToolResult | InputRequiredResult:
        server = self._started()
        context: ToolContext[Any, Any] = ToolContext(
            request_context=ctx,
            mcp_server=server,
            input_params=params,
            subscriptions=server._subscriptions,  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # the SDK has no public way to what ctx.notify_* need
        )
        return await server.call_tool(params.name, params.arguments or {}, context)

    def _started(self) -> MCPServer[Any]:
        if self._server is None:
            message = "the extension is not started: MCPServer(…, lifespan=tasks.lifespan)"
            raise MCPError(TasktrailError.code, message)
        return self._server

    def _tool(self, name: str) -> SdkTool | None:
        return self._started()._tool_manager.get_tool(name)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # the SDK has no public way to a tool's function


def _asks_first(tool: SdkTool) -> bool:
    """Whether the tool may ask before there is a task: its function is declared to return questions or resolve them."""
    return bool(tool.resolved_params) or returns_input_required(tool.fn)


def _sha256(tool: SdkTool) -> str:
    return definition_sha256(tool.name, tool.description, tool.parameters, tool.output_schema)
