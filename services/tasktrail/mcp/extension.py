"""Tasks for the official MCP Python SDK (v2, protocol 2026-07-28): `io.modelcontextprotocol/tasks`, SEP-2663.

Guarantees: a task's handle is returned only when every replica resolves it; it opens its task only for the caller that
made it; whoever is turned away is on the trail. Needs mcp >= 2.3; connected, a running tasktrail reachable over NATS;
embedded, the extra `service`.

    tasks = Tasks.connect("nats://127.0.0.1:4222", tools={"report": "optional"})
    mcp = MCPServer("reports", extensions=[tasks], lifespan=tasks.lifespan)
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NoReturn, cast

import msgspec
from mcp.server import MCPServer
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver import require_client_extension
from mcp.server.mcpserver.resolve import returns_input_required
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import decode_header_value
from mcp_types import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolRequestParams,
    RequestParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from tasktrail.events.errors import InvalidRequest, TaskNotFound, TasktrailError
from tasktrail.events.facts import TaskSupport
from tasktrail.mcp import wire
from tasktrail.mcp.callers import call, caller, handle_text, words
from tasktrail.mcp.link import ConnectedLink, EmbeddedLink, Link, patiently
from tasktrail.mcp.listening import TaskStream, wanted, wants_tasks
from tasktrail.mcp.recording import App, Recording
from tasktrail.mcp.running import Run
from tasktrail.services import messages
from tasktrail.services.clock import now_ms
from tasktrail.services.connection import Connection
from tasktrail.services.messages import Signal, TaskView

URL_VARIABLE = "TASKTRAIL_CONNECT"
STOP_WITHIN_S = 5.0
SETTLE_WITHIN_MS = 60_000

Context = ServerRequestContext[Any, Any]
Lifespan = Callable[[MCPServer[Any]], AbstractAsyncContextManager[Any]]


class ToolPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How a tool runs. `ttl_ms` and `poll_interval_ms` are wishes: tasktrail grants them within its own limits."""

    support: TaskSupport
    ttl_ms: int | None = None
    poll_interval_ms: int | None = None


class TaskParams(RequestParams):
    """`taskId` as it came: what is wrong with it is for the gate to say, in one voice."""

    task_id: Any = None


class UpdateParams(TaskParams):
    """`inputResponses` as they came: only the answers to outstanding requests are looked at."""

    input_responses: Any = None


class Tasks(Extension):
    """The extension: give it to `MCPServer(extensions=[tasks], lifespan=tasks.lifespan)`."""

    identifier = wire.EXTENSION

    def __init__(self, link: Link, tools: Mapping[str, str | ToolPolicy], *, forward_tokens: bool = False) -> None:
        self._link = link
        self._forward = forward_tokens
        self._tools = {name: _policy(name, said) for name, said in tools.items()}
        self._server: MCPServer[Any] | None = None
        self._runs: dict[str, Run] = {}
        self._settling: set[asyncio.Task[None]] = set()

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

        `target` is a `nats://` URL (several with commas) or the `adapter.json` that `tasktrail up` wrote; default: the
        environment's TASKTRAIL_CONNECT. `server` names this MCP server on the trail; default: the MCPServer's name.
        `tools` says which tools are `optional`, `required` or `forbidden` (the default) as tasks. `forward_tokens`:
        give tasktrail each caller's bearer token to verify for itself, instead of this server's word on who calls; the
        token is kept nowhere (docs/identity.md).

        Raises:
            InvalidRequest: the target or a tool's support is not of this form.
        """
        text = str(target or os.environ.get(URL_VARIABLE, ""))
        if not text:
            message = f"say where tasktrail is: Tasks.connect('nats://…') or the environment's {URL_VARIABLE}"
            raise InvalidRequest(message)
        return cls(ConnectedLink(Connection.from_text(text), server), tools, forward_tokens=forward_tokens)

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
        """Start with the MCP server, stop with it; work still running then ends as failed, on the trail."""
        async with self._serving(server):
            yield {}

    def around(self, lifespan: Lifespan) -> Lifespan:
        """Your own lifespan inside ours: `MCPServer(lifespan=tasks.around(mine))`."""

        @contextlib.asynccontextmanager
        async def both(server: MCPServer[Any]) -> AsyncGenerator[Any]:
            async with self._serving(server), lifespan(server) as state:
                try:
                    yield state
                finally:
                    await self._lose_runs()  # what tools use is theirs until they have stopped

        return both

    @contextlib.asynccontextmanager
    async def _serving(self, server: MCPServer[Any]) -> AsyncGenerator[None]:
        self._server = server
        self._link.server = self._link.server or server.name
        await self._link.start()
        stop = self._link.listen(self._signalled)
        if self._listen not in server.middleware:
            server.middleware.append(self._listen)
        try:
            yield
        finally:
            stop()
            await self._lose_runs()
            await self._link.stop()

    async def _lose_runs(self) -> None:
        for settling in self._settling:
            settling.cancel()
        losing = [run.lose("shutdown") for run in self._runs.values()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_WITHIN_S):
                await asyncio.gather(*losing, return_exceptions=True)
        self._runs.clear()

    def recording(self, app: App) -> Recording:
        """This server's ASGI application, with the requests that it turns away itself (401, 403) put on the trail."""
        return Recording(app, self._link, forward=self._forward)

    def _caller(self) -> messages.Caller:
        return caller(forward=self._forward)

    def _signalled(self, ref: str, signal: Signal) -> None:
        run = self._runs.get(ref)
        if run is not None:
            run.signalled(signal)

    def methods(self) -> Sequence[MethodBinding]:
        """`tasks/get`, `tasks/update`, `tasks/cancel`."""
        modern = frozenset(MODERN_PROTOCOL_VERSIONS)
        return [
            MethodBinding("tasks/get", TaskParams, self._get, protocol_versions=modern),
            MethodBinding("tasks/update", UpdateParams, self._update, protocol_versions=modern),
            MethodBinding("tasks/cancel", TaskParams, self._cancel, protocol_versions=modern),
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: Context, call_next: CallNext
    ) -> HandlerResult:
        """Run the call as a task where its tool and its client both can (SEP-2663, Task Creation)."""
        policy = self._tools.get(params.name)
        if policy is None or policy.support is TaskSupport.FORBIDDEN:
            return await call_next(ctx)
        if not _declared(ctx):
            if policy.support is TaskSupport.REQUIRED:
                await self._refuse_undeclared(ctx, "")
            return await call_next(ctx)
        tool = self._tool(params.name)
        if tool is None or (_asks_first(tool) and params.input_responses is None):
            return await call_next(ctx)
        view = await asyncio.shield(asyncio.create_task(self._create(params, ctx, policy, tool)))
        return wire.created(view)

    def _tool(self, name: str) -> Tool | None:
        if self._server is None:
            message = "the extension is not started: MCPServer(…, lifespan=tasks.lifespan)"
            raise MCPError(TasktrailError.code, message)
        return self._server._tool_manager.get_tool(name)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # the SDK has no public way to a tool's function

    async def _create(self, params: CallToolRequestParams, ctx: Context, policy: ToolPolicy, tool: Tool) -> TaskView:
        """Make the task and begin its work: not interrupted by a client that goes away meanwhile."""
        extensions, features = _capabilities(ctx)
        said = messages.CreateTask(
            caller=self._caller(),
            call=call(ctx),
            command_id=secrets.token_hex(16),
            tool=params.name,
            tool_sha256=_definition_sha256(tool),
            task_support=policy.support,
            client_extensions=extensions,
            client_features=features,
            ttl_ms=policy.ttl_ms,
            poll_interval_ms=policy.poll_interval_ms,
            arguments=params.arguments,
        )
        try:
            view: TaskView = await self._link.request("create", said)
        except TasktrailError as error:
            if error.written == "maybe":
                self._settle(said)
            raise _rpc_error(error) from error
        run = Run(cast("MCPServer[Any]", self._server), self._link, view, params, ctx, in_thread=not tool.is_async)
        self._runs[run.ref] = run
        run.begin()
        if run.running is not None:
            run.running.add_done_callback(lambda _done: self._runs.pop(run.ref, None))
        return view

    def _settle(self, said: messages.CreateTask) -> None:
        """A task may have been made that nobody was told of: find out, and end it, so that no ghost stays behind."""

        async def end() -> None:
            until_ms = now_ms() + SETTLE_WITHIN_MS
            with contextlib.suppress(TasktrailError):
                view: TaskView = await patiently(self._link, "create", said, until_ms=until_ms, now_ms=now_ms)
                lost = messages.LoseWorker(
                    task_ref=view.task_ref, command_id=f"{said.command_id}:unanswered", cause="unanswered"
                )
                await patiently(self._link, "lose", lost, until_ms=until_ms, now_ms=now_ms)

        settling = asyncio.create_task(end())
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)

    async def _get(self, ctx: Context, params: TaskParams) -> HandlerResult:
        handle = await self._handle(ctx, params)
        view: TaskView = await self._request(
            "get", messages.GetTask(caller=self._caller(), call=call(ctx), task_id=handle)
        )
        return wire.got(view)

    async def _update(self, ctx: Context, params: UpdateParams) -> HandlerResult:
        handle = await self._handle(ctx, params)
        responses: object = params.input_responses
        if not isinstance(responses, Mapping):
            raise MCPError(INVALID_PARAMS, "inputResponses is not an object")
        said = messages.UpdateTask(
            caller=self._caller(),
            call=call(ctx),
            command_id=secrets.token_hex(16),
            task_id=handle,
            answers=dict(cast("Mapping[str, Any]", responses)),
        )
        await self._request("update", said)
        return {"resultType": "complete"}

    async def _cancel(self, ctx: Context, params: TaskParams) -> HandlerResult:
        handle = await self._handle(ctx, params)
        said = messages.CancelTask(
            caller=self._caller(), call=call(ctx), command_id=secrets.token_hex(16), task_id=handle
        )
        await self._request("cancel", said)
        return {"resultType": "complete"}

    async def _handle(self, ctx: Context, params: TaskParams) -> str:
        """The handle a request names, once the client may name one at all: -32021 before -32020 before -32602."""
        handle = handle_text(params.task_id)
        if not _declared(ctx):
            await self._refuse_undeclared(ctx, handle)
        headers: Mapping[str, str] = getattr(ctx.request, "headers", None) or {}
        name = headers.get("mcp-name")
        if name is not None and decode_header_value(name) != params.task_id:
            await self._refuse(ctx, HEADER_MISMATCH, "header_mismatch", handle)
            raise MCPError(HEADER_MISMATCH, "the Mcp-Name header does not match the request's taskId")
        return handle

    async def _refuse_undeclared(self, ctx: Context, handle: str) -> NoReturn:
        await self._refuse(ctx, MISSING_REQUIRED_CLIENT_CAPABILITY, "missing_capability", handle)
        require_client_extension(ctx, self.identifier)
        message = f"the extension {self.identifier} is not defined for protocol {ctx.protocol_version}"
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, message)

    async def _refuse(self, ctx: Context, code: int, reason: str, handle: str) -> None:
        """Put on the trail that this server turned a request away."""
        said = messages.ReportRefusal(caller=self._caller(), call=call(ctx), code=code, reason=reason, task_id=handle)
        await self._request("refusal", said)

    async def _request(self, action: str, said: messages.Said) -> Any:  # noqa: ANN401 - the action's reply
        try:
            return await self._link.request(action, said)
        except TasktrailError as error:
            raise _rpc_error(error) from error

    async def _listen(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Middleware: serve `taskIds` of `subscriptions/listen`."""
        if not wants_tasks(ctx):
            return await call_next(ctx)
        if not _declared(ctx):
            await self._refuse_undeclared(ctx, "")
        try:
            return await TaskStream(self._link, ctx, self._caller(), call(ctx)).serve(wanted(ctx), call_next)
        except TasktrailError as error:
            raise _rpc_error(error) from error


def _policy(name: str, said: str | ToolPolicy) -> ToolPolicy:
    if isinstance(said, ToolPolicy):
        return said
    try:
        return ToolPolicy(support=TaskSupport(said))
    except ValueError:
        message = f"tool {name!r}: task support {said!r} is none of forbidden, optional, required"
        raise InvalidRequest(message) from None


def _declared(ctx: Context) -> bool:
    """Whether the client speaks the extension on this request; it does not exist before 2026-07-28."""
    capabilities = ctx.session.client_capabilities
    extensions = (capabilities.extensions if capabilities else None) or {}
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS and wire.EXTENSION in extensions


def _capabilities(ctx: Context) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the client declared: names of extensions, names of features."""
    capabilities = ctx.session.client_capabilities
    if capabilities is None:
        return (), ()
    declared = capabilities.model_dump(by_alias=True, exclude_none=True)
    extensions = cast("Mapping[str, object]", declared.pop("extensions", {}))
    return words(extensions), words(declared)


def _asks_first(tool: Tool) -> bool:
    """Whether the tool may ask before there is a task: its function is declared to return questions or resolve them."""
    return bool(tool.resolved_params) or returns_input_required(tool.fn)


def _definition_sha256(tool: Tool) -> str:
    """Digest of what a client is told of the tool."""
    told = [tool.name, tool.description, tool.parameters, tool.output_schema]
    return hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()


def _rpc_error(error: TasktrailError) -> MCPError:
    """An error as JSON-RPC: a handle that opens nothing gets the same bytes whatever the reason."""
    if isinstance(error, TaskNotFound) or (error.code == TaskNotFound.code and not error.retriable):
        return MCPError(error.code, error.message)
    data: dict[str, Any] = {"retriable": error.retriable, "written": error.written}
    if error.retry_after_ms:
        data["retryAfterMs"] = error.retry_after_ms
    return MCPError(error.code, error.message, data)
