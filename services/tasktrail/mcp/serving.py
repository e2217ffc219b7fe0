"""A server's tasks, whichever framework it is built with: creation, the methods of the extension, the runs.

Guarantees: a task's handle is returned only when every replica resolves it; it opens its task only for the caller that
made it; whoever is turned away is on the trail. Everything of a request comes from the official SDK's own context,
which the frameworks share; how a tool is found and run is theirs.

    async with serving.open("reports"):
        view = await serving.create(params, ctx, ToolPolicy(support="optional"), Tool(enter=call_my_tool))

Source: SEP-2663 (`io.modelcontextprotocol/tasks`, protocol 2026-07-28).
"""

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

import msgspec
from mcp.server.context import CallNext, HandlerResult
from mcp.server.mcpserver import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import decode_header_value
from mcp_types import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolRequestParams,
    RequestParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from tasktrail.events.errors import InvalidRequest, TasktrailError
from tasktrail.events.facts import OnWorkerLost, TaskSupport
from tasktrail.mcp.callers import call, caller, handle_text, words
from tasktrail.mcp.leasing import Leasing
from tasktrail.mcp.link import Link, patiently
from tasktrail.mcp.listening import TaskStream, wanted, wants_tasks
from tasktrail.mcp.recording import App, Recording
from tasktrail.mcp.running import Call, RequestContext, Run, Tool
from tasktrail.services import messages, wire, wire_2025
from tasktrail.services.clock import now_ms
from tasktrail.services.ending import end
from tasktrail.services.messages import DEFINED_MAX, Signal, TaskView

_log = logging.getLogger(__name__)

STOP_WITHIN_S = 5.0
NAME_MAX = 512
"""Characters of a tool's name that a message can say."""
SETTLE_WITHIN_MS = 60_000
LOOK_EVERY_S = 10.0
"""How often, at the most rarely, it is asked for work that no signal told of."""
WAIT_MS = 1_000
"""How long to wait for work that a signal told of: it is on its way to the queue."""

Context = RequestContext

if TYPE_CHECKING:
    Support = TaskSupport | Literal["forbidden", "optional", "required"]
    WhenLost = OnWorkerLost | Literal["fail", "rerun"]
else:  # what `policy_of` makes of either
    Support, WhenLost = TaskSupport, OnWorkerLost


class ToolPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How a tool runs. `ttl_ms` and `poll_interval_ms` are wishes: tasktrail grants them within its own limits.

    `on_worker_lost`: what becomes of a task whose process dies: `fail`, or `rerun` by any process of this server, from
    the start. That is for tools that may do their work twice. `asks_first`: the tool asks before there is a task, by
    returning `InputRequiredResult`, although nothing at it says so (a proxied one).
    """

    support: Support
    ttl_ms: int | None = None
    poll_interval_ms: int | None = None
    on_worker_lost: WhenLost = OnWorkerLost.FAIL
    asks_first: bool = False


def warn_of_unknown(named: Iterable[str], have: Collection[str]) -> None:
    """Tell the log of names, or patterns, in `tools` that fit none of the server's tools: these are never tasks."""
    for name in named:
        if not any(fnmatchcase(one, name) for one in have):
            _log.warning(
                "`tools` names %r, which this server does not have (it has %s)", name, ", ".join(sorted(have)) or "none"
            )


def policy_of(name: str, said: str | ToolPolicy) -> ToolPolicy:
    """A tool's policy, of its short form as well.

    Raises:
        InvalidRequest: it is neither forbidden, optional nor required, or something else of it is not of its form.
    """
    if isinstance(said, ToolPolicy):
        try:
            return msgspec.convert(msgspec.structs.asdict(said), ToolPolicy)
        except msgspec.ValidationError as error:
            message = f"tool {name!r}: {error}"
            raise InvalidRequest(message) from None
    try:
        return ToolPolicy(support=TaskSupport(said))
    except ValueError:
        message = f"tool {name!r}: task support {said!r} is none of forbidden, optional, required"
        raise InvalidRequest(message) from None


class TaskParams(RequestParams):
    """`taskId` as it came: what is wrong with it is for the gate to say, in one voice."""

    task_id: Any = None


class UpdateParams(TaskParams):
    """`inputResponses` as they came: only the answers to outstanding requests are looked at."""

    input_responses: Any = None


Find = Callable[[str], Awaitable[Tool | None]]
"""How a tool is found by its name."""
Defined = Callable[[], dict[str, str]]
"""The digests of the tools' definitions as they are now, by name."""


def _sayable(tools: Mapping[str, str]) -> dict[str, str]:
    """Those of these tools that a message can name: as many as it takes, with names that fit."""
    fitting = {name: said for name, said in tools.items() if len(name) <= NAME_MAX}
    return dict(itertools.islice(fitting.items(), DEFINED_MAX))


class Serving:
    """The tasks of one server."""

    def __init__(self, link: Link, *, forward_tokens: bool = False) -> None:
        """`forward_tokens`: tasktrail gets each caller's token to verify, instead of this server's word."""
        self._link, self._forward = link, forward_tokens
        self._runs: dict[str, Run] = {}
        self._settling: set[asyncio.Task[None]] = set()
        self._worker = secrets.token_hex(8)
        self._leasing = Leasing(link, self._worker)
        self._taking: asyncio.Task[None] | None = None
        self._waiting = asyncio.Event()
        self._taken: OrderedDict[str, int] = OrderedDict()

    @contextlib.asynccontextmanager
    async def open(self, name: str, defined: Defined | None = None) -> AsyncGenerator[None]:
        """While the server of this name runs; work that is still running at the end ends as failed, on the trail.

        `defined` are its tools with the digests of their definitions, to be told as often as the lease is renewed.

        Raises:
            NothingWritten: connected, and no NATS server answers.
            InvalidRequest: embedded, and the extra `service` is not installed, or a setting is not of its form.
            NotReady, KeyringError, BrokerError: embedded, and the service cannot start; with what to do.
        """
        self._link.server = self._link.server or name
        await self._link.start()
        stop = self._link.listen(self._signalled)
        renewing = asyncio.create_task(self._leasing.renew_for_ever(lambda: _sayable((defined or dict)())))
        try:
            yield
        finally:
            stop()
            await self.lose_runs()
            await end(renewing)
            await self._link.stop()

    def rerun(self, names: Iterable[str], find: Find, lifespan_context: Any) -> None:  # noqa: ANN401 - as `Call.again`
        """From here on take over tasks of these tools whose process was lost, until `lose_runs`."""
        tools = tuple(_sayable(dict.fromkeys(names, "")))
        if tools and self._taking is None:
            self._taking = asyncio.create_task(self._take_for_ever(tools, find, lifespan_context))

    async def lose_runs(self) -> None:
        """Stop what is running, and say so."""
        taking, self._taking = self._taking, None
        if taking is not None:
            await end(taking)
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

    @property
    def link(self) -> Link:
        """The link to tasktrail."""
        return self._link

    def caller(self) -> messages.Caller:
        """Who makes the current request."""
        return caller(forward=self._forward)

    async def _take_for_ever(self, names: tuple[str, ...], find: Find, lifespan_context: Any) -> None:  # noqa: ANN401 - see `rerun`
        """Take over work when a signal says that some waits, and look from time to time: signals may be lost."""
        why = ""
        while True:
            try:
                took, why = await self._take(names, find, lifespan_context), ""
            except TasktrailError as error:
                took = False
                if error.reason != why:
                    _log.warning("work that lost its worker could not be taken: %s", error.message)
                why = error.reason
            except Exception:  # noqa: BLE001 - whatever it was, the next piece of work is to be found
                took = False
                _log.exception("work that lost its worker could not be begun")
            if not took:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(LOOK_EVERY_S, self._leasing.lease_s / 3)):
                        await self._waiting.wait()

    async def _take(self, names: tuple[str, ...], find: Find, lifespan_context: Any) -> bool:  # noqa: ANN401 - see `rerun`
        """Ask for work once, and begin it. Returns whether there was any."""
        found = {name: await find(name) for name in names}
        tools = {name: tool for name, tool in found.items() if tool is not None}
        if not tools:
            return False
        wait_ms = WAIT_MS if self._waiting.is_set() else 0
        self._waiting.clear()
        said = messages.TakeWork(
            worker=self._worker,
            tools={name: tool.sha256 for name, tool in tools.items()},
            taken=dict(self._taken),
            wait_ms=wait_ms,
        )
        taken: messages.Taken = await self._link.request("take", said)
        order = taken.order
        if order is None:
            return False
        self._taken[order.task_ref] = order.attempt
        self._taken.move_to_end(order.task_ref)
        while len(self._taken) > messages.TAKEN_MAX:
            self._taken.popitem(last=False)
        running = self._runs.get(order.task_ref)
        if running is not None and running.attempt == order.attempt:
            return False
        params = CallToolRequestParams(name=order.tool, arguments=order.arguments)
        call = Call.again(order, lifespan_context)
        self._begin(Run(self._link, order, params, call, tools[order.tool], worker=self._worker))
        return True

    def _begin(self, run: Run) -> None:
        before = self._runs.get(run.ref)
        if before is not None:
            before.abandon()
        self._runs[run.ref] = run
        run.begin()
        if run.running is not None:
            run.running.add_done_callback(lambda _done: self._ended(run))

    def _ended(self, run: Run) -> None:
        if self._runs.get(run.ref) is run:
            del self._runs[run.ref]

    def _signalled(self, ref: str, signal: Signal) -> None:
        if signal.waiting:
            self._waiting.set()
        run = self._runs.get(ref)
        if run is not None:
            run.signalled(signal)

    async def create(self, params: CallToolRequestParams, ctx: Context, policy: ToolPolicy, tool: Tool) -> TaskView:
        """Make the task and begin its work: not interrupted by a client that goes away meanwhile.

        Raises:
            MCPError: no task was made.
        """
        return await asyncio.shield(asyncio.create_task(self._create(params, ctx, policy, tool)))

    async def _create(self, params: CallToolRequestParams, ctx: Context, policy: ToolPolicy, tool: Tool) -> TaskView:
        extensions, features = _capabilities(ctx)
        said = messages.CreateTask(
            caller=self.caller(),
            call=described(ctx),
            command_id=secrets.token_hex(16),
            tool=params.name,
            tool_sha256=tool.sha256,
            task_support=TaskSupport(policy.support),
            client_extensions=extensions,
            client_features=features,
            ttl_ms=policy.ttl_ms,
            poll_interval_ms=policy.poll_interval_ms,
            arguments=params.arguments,
            on_worker_lost=OnWorkerLost(policy.on_worker_lost),
            worker=self._worker,
        )
        try:
            view: TaskView = await self._link.request("create", said)
        except TasktrailError as error:
            if error.written == "maybe":
                self._settle(said)
            raise rpc_error(error) from error
        self._begin(Run(self._link, view, params, Call.of(ctx), tool, worker=self._worker))
        return view

    def _settle(self, said: messages.CreateTask) -> None:
        """A task may have been made that nobody was told of: find out, and end it, so that no ghost stays behind."""

        async def lose() -> None:
            until_ms = now_ms() + SETTLE_WITHIN_MS
            with contextlib.suppress(TasktrailError):
                view: TaskView = await patiently(self._link, "create", said, until_ms=until_ms, now_ms=now_ms)
                lost = messages.LoseWorker(
                    task_ref=view.task_ref,
                    command_id=f"{said.command_id}:unanswered",
                    cause="unanswered",
                    worker=self._worker,
                )
                await patiently(self._link, "lose", lost, until_ms=until_ms, now_ms=now_ms)

        settling = asyncio.create_task(lose())
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)

    async def get(self, ctx: Context, params: TaskParams) -> HandlerResult:
        """`tasks/get`."""
        handle = await self._handle(ctx, params)
        view: TaskView = await self.request(
            "get", messages.GetTask(caller=self.caller(), call=described(ctx), task_id=handle)
        )
        return wire.got(view)

    async def update(self, ctx: Context, params: UpdateParams) -> HandlerResult:
        """`tasks/update`."""
        handle = await self._handle(ctx, params)
        responses: object = params.input_responses
        if not isinstance(responses, Mapping):
            raise MCPError(INVALID_PARAMS, "inputResponses is not an object")
        said = messages.UpdateTask(
            caller=self.caller(),
            call=described(ctx),
            command_id=secrets.token_hex(16),
            task_id=handle,
            answers=dict(cast("Mapping[str, Any]", responses)),
        )
        await self.request("update", said)
        return {"resultType": "complete"}

    async def cancel(self, ctx: Context, params: TaskParams) -> HandlerResult:
        """`tasks/cancel`."""
        handle = await self._handle(ctx, params)
        said = messages.CancelTask(
            caller=self.caller(), call=described(ctx), command_id=secrets.token_hex(16), task_id=handle
        )
        await self.request("cancel", said)
        return {"resultType": "complete"}

    async def _handle(self, ctx: Context, params: TaskParams) -> str:
        """The handle a request names, once the client may name one at all: -32021 before -32020 before -32602."""
        handle = handle_text(params.task_id)
        if not declared(ctx):
            await self.refuse_undeclared(ctx, handle)
        headers: Mapping[str, str] = getattr(ctx.request, "headers", None) or {}
        name = headers.get("mcp-name")
        if name is not None and decode_header_value(name) != params.task_id:
            await self.refuse(ctx, HEADER_MISMATCH, "header_mismatch", handle)
            raise MCPError(HEADER_MISMATCH, "the Mcp-Name header does not match the request's taskId")
        return handle

    async def refuse_undeclared(self, ctx: Context, handle: str = "") -> NoReturn:
        """Turn away a client that does not take tasks: -32021, on the 2025-11-25 wire -32601; on the trail first."""
        if ctx.protocol_version == wire_2025.REVISION and ctx.method == "tools/call":
            await self.refuse(ctx, METHOD_NOT_FOUND, "task_required", handle)
            raise MCPError(METHOD_NOT_FOUND, "the tool runs as a task only: call it with `task`")
        await self.refuse(ctx, MISSING_REQUIRED_CLIENT_CAPABILITY, "missing_capability", handle)
        require_client_extension(ctx, wire.EXTENSION)
        message = f"the extension {wire.EXTENSION} is not defined for protocol {ctx.protocol_version}"
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, message)

    async def refuse(self, ctx: Context, code: int, reason: str, handle: str) -> None:
        """Put on the trail that this server turned a request away."""
        said = messages.ReportRefusal(
            caller=self.caller(), call=described(ctx), code=code, reason=reason, task_id=handle
        )
        await self.request("refusal", said)

    async def request(self, action: str, said: messages.Said) -> Any:  # noqa: ANN401 - the action's reply
        """Carry an action out.

        Raises:
            MCPError: it was refused, or nothing could be written.
        """
        try:
            return await self._link.request(action, said)
        except TasktrailError as error:
            raise rpc_error(error) from error

    async def listen(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Middleware: serve `taskIds` of `subscriptions/listen`."""
        if not wants_tasks(ctx):
            return await call_next(ctx)
        if not declared(ctx):
            await self.refuse_undeclared(ctx, "")
        try:
            return await TaskStream(self._link, ctx, self.caller(), described(ctx)).serve(wanted(ctx), call_next)
        except TasktrailError as error:
            raise rpc_error(error) from error


def described(ctx: Context) -> messages.Call:
    """The request at hand, on the wire that it came by."""
    said = call(ctx)
    earlier = ctx.protocol_version == wire_2025.REVISION
    return msgspec.structs.replace(said, wire=wire_2025.WIRE) if earlier else said


def declared(ctx: Context) -> bool:
    """Whether the client speaks the extension on this request; it does not exist before 2026-07-28."""
    capabilities = ctx.session.client_capabilities
    extensions = (capabilities.extensions if capabilities else None) or {}
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS and wire.EXTENSION in extensions


def _capabilities(ctx: Context) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the client declared: names of extensions, names of features and, after a full stop, of their parts."""
    capabilities = ctx.session.client_capabilities
    if capabilities is None:
        return (), ()
    declared = capabilities.model_dump(by_alias=True, exclude_none=True)
    extensions = cast("Mapping[str, object]", declared.pop("extensions", {}))
    features = [name for feature, parts in declared.items() for name in (feature, *_parts(feature, parts))]
    return words(extensions), words(features)


def _parts(feature: str, parts: object) -> list[str]:
    return [f"{feature}.{part}" for part in cast("Mapping[str, object]", parts)] if isinstance(parts, Mapping) else []


def rpc_error(error: TasktrailError) -> MCPError:
    """An error as JSON-RPC: a handle that opens nothing gets the same bytes whatever the reason."""
    return MCPError(**wire.rpc_error(error))
