"""A tool's run as a task: in the background, with a context that works as it does in a request.

Guarantees: `ctx.elicit`, `ctx.session.create_message` and `ctx.report_progress` of the official SDK work unchanged, as
the task's input requests and status messages; a client is asked only what it declared that it can be asked; a tool that
returns `InputRequiredResult` is entered again with the answers; cancelling the task cancels the tool, also while policy
makes its work wait; the outcome is reported until the trail has it, or nobody wants it any more. Work that another
process began is run again from the start, but nobody is asked twice: a question with the same method and parameters as
one of before has that one's answer, or waits for it. A run that is no longer this process's stops, and does not say so.

    run = Run(link, view, params, Call.of(ctx), Tool(enter=call_my_tool), worker="9f2c…")
    run.begin()
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, cast

import anyio
import msgspec
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.session import ServerSession
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    INTERNAL_ERROR,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolRequestParams,
    CallToolResult,
    ClientCapabilities,
    ElicitationCapability,
    FormElicitationCapability,
    InputRequiredResult,
    MissingRequiredClientCapabilityErrorData,
    RootsCapability,
    SamplingCapability,
    TextContent,
    UrlElicitationCapability,
)
from mcp_types.version import LATEST_MODERN_VERSION

from tasktrail.events.errors import TasktrailError
from tasktrail.events.tracing import TraceContext
from tasktrail.mcp import tracing
from tasktrail.mcp.callers import call as described
from tasktrail.mcp.link import Link
from tasktrail.mcp.voice import MESSAGE_MAX, REPORT_EVERY_S, Voice
from tasktrail.services import messages
from tasktrail.services.messages import Asked, InputAsk, Order, RpcError, Signal, TaskView, WorkView

_log = logging.getLogger(__name__)

LOSE_AFTER_S = 2.0
"""How long a tool may take to stop when the process goes away, before its task is ended without it."""

_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")


RequestContext = ServerRequestContext[Any, Any]
Enter = Callable[[CallToolRequestParams, RequestContext], Awaitable[CallToolResult | InputRequiredResult]]
"""How a framework runs a tool: with these parameters, in this context."""


class Tool(NamedTuple):
    """A tool as it is run. `sha256` is of its definition, as clients are told it.

    `in_thread`: it is a plain function, which the SDK runs in a thread that nothing can stop.
    """

    enter: Enter
    sha256: str = ""
    in_thread: bool = False


class Call(NamedTuple):
    """What of a `tools/call` outlives its request."""

    protocol_version: str
    client_info: Any
    capabilities: Any
    lifespan_context: Any
    params: Mapping[str, Any] | None = None
    meta: Any = None
    method: str = "tools/call"
    trace: TraceContext = TraceContext()

    @classmethod
    def of(cls, ctx: RequestContext) -> "Call":
        """Of a request that is being answered."""
        said = described(ctx)
        capabilities, client = ctx.session.client_capabilities, ctx.session.client_params
        return cls(
            ctx.protocol_version,
            client.client_info.model_dump(by_alias=True) if client else None,
            capabilities.model_dump(by_alias=True, exclude_none=True) if capabilities else None,
            ctx.lifespan_context,
            ctx.params,
            ctx.meta,
            ctx.method,
            TraceContext(said.traceparent, said.tracestate),
        )

    @classmethod
    def again(cls, order: Order, lifespan_context: Any) -> "Call":  # noqa: ANN401 - whatever a lifespan gives
        """Of a request that another process answered, as far as it is recorded: without the client's name and token."""
        capabilities: dict[str, Any] = {}
        for feature in order.client_features:
            name, _, part = feature.partition(".")
            parts = capabilities.setdefault(name, {})
            if part:
                parts[part] = {}
        capabilities["extensions"] = {name: {} for name in order.client_extensions}
        params = {"name": order.tool, "arguments": order.arguments or {}}
        version, trace = order.protocol_version or LATEST_MODERN_VERSION, TraceContext(order.traceparent)
        return cls(version, None, capabilities, lifespan_context, params, trace=trace)


class Run:
    """One task's work in this process."""

    def __init__(  # noqa: PLR0913 - what a run is of
        self,
        link: Link,
        view: TaskView | Order,
        params: CallToolRequestParams,
        call: Call,
        tool: Tool,
        *,
        worker: str = "",
    ) -> None:
        """`worker` is what this process is called; an `Order` is work that another one began."""
        self.ref = view.task_ref
        self._worker, self.attempt = worker, view.attempt if isinstance(view, Order) else 1
        self._asked = list(view.asked) if isinstance(view, Order) else []
        self._lost = False
        self._enter, self._link, self._params = tool.enter, link, params
        self._voice = Voice(link, view, worker=worker, attempt=self.attempt if worker else 0)
        self._trace = TraceContext.of_run(self.ref, *call.trace)
        self._context = _background(call, self, self._trace)
        self._asks: dict[str, InputAsk] = {}
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._said: str | None = None
        self._stopped = False
        self._in_thread, self._unstoppable = tool.in_thread, False
        self._live = True
        self._unwanted = asyncio.Event()
        self._nudged = asyncio.Event()
        self._tool: asyncio.Task[CallToolResult] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self.running: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start the tool."""
        self.running = asyncio.create_task(self._run())

    def signalled(self, signal: Signal) -> None:
        """The task moved: look, and stop at once when it is to stop."""
        self._heed(signal)
        self._nudged.set()

    def _heed(self, seen: Signal | WorkView) -> None:
        """Stop when the task is to stop, has ended, or is another's."""
        self._live = self._live and seen.live
        self._lost = self._lost or self._is_lost(seen)
        if seen.cancel_requested or not seen.live or self._lost:
            self._unwanted.set()
            self._stop_tool()

    def _is_lost(self, seen: Signal | WorkView) -> bool:
        if isinstance(seen, WorkView):
            return seen.lost
        if not (seen.worker or seen.waiting) or seen.attempt < self.attempt:
            return False
        return seen.waiting or (seen.worker, seen.attempt) != (self._worker, self.attempt)

    def abandon(self) -> None:
        """The work is begun anew beside this run, which was lost."""
        self._lost = True
        self._unwanted.set()
        self._stop_tool()

    def _stop_tool(self) -> None:
        """Tell the tool to stop: once, for a second time would break into what it does to clean up."""
        if self._unstoppable:
            return  # it cannot be stopped: what it comes to is reported when it ends, and refused if that is too late
        if self._tool is not None and not self._tool.done() and not self._stopped:
            self._stopped = True
            self._tool.cancel()

    async def lose(self, cause: str) -> None:
        """This process is going away: stop the tool and say so.

        Raises:
            TasktrailError: it could not be said.
        """
        if self.running is None or self.running.done():
            return
        self.running.cancel()
        await asyncio.wait([self.running], timeout=LOSE_AFTER_S)
        if not self._lost:
            await self._voice.say("lose", messages.LoseWorker(**self._voice.mine(), cause=cause))

    async def _run(self) -> None:
        with tracing.running(self._trace):
            self._tool = asyncio.create_task(self._call())
        self._following = asyncio.create_task(self._follow())
        try:
            await asyncio.wait([self._tool])
            await self._report(self._tool)
        except asyncio.CancelledError:
            self._tool.cancel()
            await asyncio.gather(self._tool, return_exceptions=True)
            raise
        except TasktrailError as error:
            _log.error("the outcome of task %s could not be recorded: %s", self.ref, error.message)
        finally:
            for helper in (self._following, self._asking):
                if helper is not None:
                    helper.cancel()

    async def _call(self) -> CallToolResult:
        """Enter the tool, and again with the answers as long as it returns questions."""
        params = self._params
        while True:
            self._unstoppable = self._in_thread
            try:
                result = await self._enter(params, self._context)
            finally:
                self._unstoppable = False
            if not isinstance(result, InputRequiredResult):
                return result
            requests = {
                key: request.model_dump(by_alias=True, mode="json", exclude_none=True)
                for key, request in (result.input_requests or {}).items()
            }
            asked = {key: self._enqueue(one["method"], one.get("params"), key) for key, one in requests.items()}
            if not asked:
                await asyncio.sleep(REPORT_EVERY_S)  # a tool that only wants to be entered again, later
            answers = dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))
            params = CallToolRequestParams.model_validate(
                {
                    "name": params.name,
                    "arguments": params.arguments,
                    "inputResponses": answers,
                    "requestState": result.request_state,
                }
            )

    async def ask(self, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
        """Park on one request for input until it is answered.

        Raises:
            MCPError: the client did not declare that it can be asked this, or the task could not ask.
        """
        answer: dict[str, Any] = await self._enqueue(method, dict(params or {}), method.partition("/")[0])
        return answer

    def _enqueue(self, method: str, params: object, stem: str) -> "asyncio.Future[Any]":
        """Ask, together with whatever else is asked in this turn of the loop.

        Raises:
            MCPError: the client did not declare that it can be asked this (SEP-2322, server requirements).
        """
        _require_declared(self._context.session.client_capabilities, method, params)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if (before := self._asked_before(method, params)) is not None:
            if before.answered:
                future.set_result(before.answer)
            else:
                self._waiting[before.key] = future
                self._nudged.set()
            return future
        key = f"{stem if _KEY.fullmatch(stem) else 'input'}-{secrets.token_hex(4)}"
        self._asks[key] = InputAsk(method=method, params=params)
        self._waiting[key] = future
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._send_asks())
        return future

    def _asked_before(self, method: str, params: object) -> Asked | None:
        """The first such question of an earlier attempt that this one has not come to yet."""
        same = (one for one in self._asked if (one.method, _compared(one.params)) == (method, _compared(params)))
        found = next(same, None) if self._asked else None
        if found is not None:
            self._asked.remove(found)
        return found

    async def _send_asks(self) -> None:
        while self._asks:
            await anyio.lowlevel.checkpoint()
            asks, self._asks = self._asks, {}
            try:
                view = await self._voice.say("ask", messages.RequestInput(**self._voice.mine(), asks=asks))
                why = f"refused: {view.reason}" if view.outcome == "refused" else ""
            except TasktrailError as error:
                why = error.message
            if why:
                for key in asks:
                    future = self._waiting.pop(key)
                    if not future.done():
                        future.set_exception(MCPError(INTERNAL_ERROR, f"the task could not ask for input: {why}"))
            self._nudged.set()

    def say(self, text: str) -> None:
        """The tool says how far it is; the last word of a short while counts."""
        self._said = text[:MESSAGE_MAX]
        self._nudged.set()

    async def _follow(self) -> None:
        """Pass on what the tool says, and what the client answers, while the tool runs."""
        await self._voice.follow(self._nudged, self._exchange, self._pause_s)

    def _pause_s(self) -> float:
        return REPORT_EVERY_S if self._said is None and not self._waiting else 0.01

    async def _exchange(self) -> None:
        """Report, or look. A report that must wait is the next round's, unless there is news; now look all the same."""
        said, self._said = self._said, None
        waits: TasktrailError | None = None
        if said is not None:
            report = messages.ReportStatus(**self._voice.mine(), message=said)
            try:
                self._take(await self._link.request("report", report))
            except TasktrailError as error:
                if not error.retriable:
                    raise
                waits = error
                if self._said is None:
                    self._said = said
            await asyncio.sleep(REPORT_EVERY_S)
        if said is None or waits is not None:
            self._take(await self._link.request("collect", messages.CollectInput(**self._voice.of())))
        if waits is not None:
            raise waits

    def _take(self, view: WorkView) -> None:
        """Pass the answers on, and stop when the task is to stop."""
        for key, answer in view.answers.items():
            future = self._waiting.pop(key, None)
            if future is not None and not future.done():
                future.set_result(answer)
        self._heed(view)

    async def _report(self, tool: "asyncio.Task[CallToolResult]") -> None:
        """What became of the tool, on the trail; an outcome that does not fit in is recorded as one that failed."""
        if self._lost and tool.cancelled():
            return
        try:
            await self._voice.end(*self._outcome(tool), unwanted=self._unwanted, live=lambda: self._live)
        except Exception as unfit:
            if isinstance(unfit, TasktrailError) and unfit.retriable:
                raise
            why = unfit.message if isinstance(unfit, TasktrailError) else "it is not JSON"
            _log.exception("the outcome of task %s cannot be recorded as it is", self.ref)
            error = RpcError(code=INTERNAL_ERROR, message=f"the outcome could not be recorded: {why}")
            await self._voice.say("fail", messages.FailTask(**self._voice.mine(), error=error))

    def _outcome(self, tool: "asyncio.Task[CallToolResult]") -> tuple[str, messages.Said]:
        """What the tool's end is to be recorded as."""
        if tool.cancelled() and self._stopped:
            return "stop", messages.StopTask(**self._voice.mine())
        failure = asyncio.CancelledError() if tool.cancelled() else tool.exception()
        if isinstance(failure, MCPError):
            error = msgspec.convert(failure.error.model_dump(mode="json", exclude_none=True), RpcError)
            return "fail", messages.FailTask(**self._voice.mine(), error=error)
        result = tool.result() if failure is None else self._tool_error(failure)
        return "complete", messages.CompleteTask(
            **self._voice.mine(),
            result=result.model_dump(by_alias=True, mode="json", exclude_none=True),
            is_error=bool(result.is_error),
        )

    def _tool_error(self, failure: BaseException) -> CallToolResult:
        """A tool's exception as the result a synchronous call would have given."""
        if not isinstance(failure, ToolError) or isinstance(failure, UnexpectedToolError):
            _log.error("tool %r raised an unexpected exception", self._params.name, exc_info=failure)
        text = str(failure) if isinstance(failure, ToolError) else f"Error executing tool {self._params.name}"
        return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)


class _Parked:
    """The channel of a tool in the background: requests park on the task, progress becomes its status message."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.transport = TransportContext(kind="task", can_send_request=True)
        self.can_send_request = True
        self.request_id = None
        self.message_metadata = None
        self.cancel_requested = anyio.Event()

    async def send_raw_request(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,  # noqa: ARG002 - a task waits its whole time to live, whatever the caller says
    ) -> dict[str, Any]:
        """Ask the client by way of the task."""
        if method not in {"elicitation/create", "sampling/createMessage", "roots/list"}:
            raise NoBackChannelError(method)
        return await self._run.ask(method, params)

    async def notify(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,  # noqa: ARG002 - nothing is sent that could wait
    ) -> None:
        """Progress becomes the task's status message, the rest is dropped: a task has no stream for log messages
        (SEP-2663, Task Status Notifications).
        """  # noqa: D205 - one sentence
        if method == "notifications/progress" and params is not None:
            await self.progress(params.get("progress", 0), params.get("total"), params.get("message"))

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Becomes the task's status message."""
        self._run.say(message or (f"{progress:g} of {total:g}" if total is not None else f"{progress:g}"))


def _background(call: Call, run: Run, trace: TraceContext) -> RequestContext:
    """The request's context without the request, which is over when the tool runs; its trace goes on as the run's."""
    parked = _Parked(run)
    connection = Connection.from_envelope(call.protocol_version, call.client_info, call.capabilities, outbound=parked)
    return ServerRequestContext(
        session=ServerSession(parked, connection),
        lifespan_context=call.lifespan_context,
        protocol_version=call.protocol_version,
        method=call.method,
        params=call.params,
        meta=cast("Any", {**(call.meta or {}), **trace.carried()}),
    )


def _compared(params: object) -> object:
    """A question's parameters as JSON, without what belongs to one request only."""
    said = msgspec.json.decode(msgspec.json.encode(params))
    return {name: value for name, value in said.items() if name != "_meta"} if isinstance(said, dict) else said or {}


def _require_declared(capabilities: ClientCapabilities | None, method: str, params: object) -> None:
    """Refuse a question of a kind that the task's client did not declare.

    Raises:
        MCPError: -32021, with the capability that is missing.
    """
    declared = capabilities or ClientCapabilities()
    elicitation = declared.elicitation
    required: ClientCapabilities | None = None
    if method == "elicitation/create" and isinstance(params, Mapping) and params.get("mode") == "url":
        if elicitation is None or elicitation.url is None:
            required = ClientCapabilities(elicitation=ElicitationCapability(url=UrlElicitationCapability()))
    elif method == "elicitation/create":
        if elicitation is None or (elicitation.form is None and elicitation.url is not None):
            required = ClientCapabilities(elicitation=ElicitationCapability(form=FormElicitationCapability()))
    elif method == "sampling/createMessage" and declared.sampling is None:
        required = ClientCapabilities(sampling=SamplingCapability())
    elif method == "roots/list" and declared.roots is None:
        required = ClientCapabilities(roots=RootsCapability())
    if required is not None:
        data = MissingRequiredClientCapabilityErrorData(required_capabilities=required)
        told = data.model_dump(by_alias=True, mode="json", exclude_none=True)
        message = f"the client did not declare that it takes {method}"
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, message, told)
