"""Tasks for clients that speak the earlier revision (2025-11-25), on servers that speak both.

Guarantees: such a client's `tools/call` with `task` makes the same task as any other; `tasks/get`, `tasks/list`,
`tasks/cancel` and `tasks/result` go to the same desk, so they are decided and recorded alike. `tasks/result` blocks
until the task has ended, and meanwhile puts its questions on its own stream; how many calls wait is bounded
(`waiting_results`), and none does much longer than its client is there. An answer is that of the call which waits:
where the server checks tokens, the SDK lets nobody else use its session; elsewhere, as with the proxy, only the
question's id, which cannot be guessed, keeps others from answering. An answer that is none is recorded and asked for
again, a few times in one call. The SDK v2 defines nothing of this at that revision, and lets a middleware answer in its
stead. Needs sessions.

    server.middleware.append(Earlier(serving, support_of_tool))

Source: MCP 2025-11-25, tasks.
"""

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextvars import ContextVar
from typing import Any, cast

import msgspec
from mcp.server.context import CallNext, HandlerResult
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED, INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, CallToolRequestParams

from tasktrail.events.errors import TasktrailError
from tasktrail.events.facts import TaskSupport
from tasktrail.mcp.callers import handle_text
from tasktrail.mcp.link import in_turn, patiently
from tasktrail.mcp.running import RequestContext as Context
from tasktrail.mcp.running import Tool
from tasktrail.mcp.serving import Serving, ToolPolicy, described, rpc_error
from tasktrail.services import messages, wire_2025
from tasktrail.services.access.claims import TEXT_MAX
from tasktrail.services.clock import now_ms
from tasktrail.services.messages import InputAsk, TaskView
from tasktrail.services.waiting_results import LOOK_EVERY_S, TooManyWait, WaitingResults, whose

_log = logging.getLogger(__name__)

ASKED_MAX = 3
"""How often one call asks one question: answers that are none come again and again from some clients."""
SETTLE_WITHIN_MS = 60_000
TTL_MAX_MS = 2**53 - 1

_CAPABILITY: dict[str, Any] = {"cancel": {}, "requests": {"tools": {"call": {}}}}

Supports = Callable[[str], Awaitable[TaskSupport]]
Asking = dict[str, "asyncio.Task[None]"]


class Making:
    """The task that a call of this wire asks for."""

    def __init__(self, ttl_ms: int | None) -> None:
        self._ttl_ms = ttl_ms
        self.taken = False
        self.view: TaskView | None = None

    async def create(
        self, tasks: Serving, params: CallToolRequestParams, ctx: Context, policy: ToolPolicy, tool: Tool
    ) -> dict[str, Any]:
        """Make it; what is returned stands in the place of the tool's result until `Earlier` has it.

        Raises:
            MCPError: no task was made.
        """
        self.taken = True
        if policy.ttl_ms is None:
            policy = msgspec.structs.replace(policy, ttl_ms=self._ttl_ms)
        self.view = await tasks.create(params, ctx, policy, tool)
        return {"content": []}


_making: ContextVar[Making | None] = ContextVar("making", default=None)


def making_of(ctx: Context) -> Making | None:
    """The task that this request asks for and that is not made yet, if it came by this wire."""
    making = _making.get()
    return making if making is not None and not making.taken and _speaks(ctx) else None


def _speaks(ctx: Context) -> bool:
    return ctx.protocol_version == wire_2025.REVISION


class Earlier:
    """The middleware of the SDK's server. `supports` says of a tool, by name, whether it runs as a task."""

    def __init__(self, tasks: Serving, supports: Supports) -> None:
        self._tasks, self._supports = tasks, supports
        self._waiting = WaitingResults()
        self._methods = {
            "tasks/get": self._get,
            "tasks/list": self._list,
            "tasks/cancel": self._cancel,
            "tasks/result": self._result,
        }

    async def __call__(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """One message of a client."""
        if ctx.request_id is None or not _speaks(ctx):
            return await call_next(ctx)
        if (serve := self._methods.get(ctx.method)) is not None:
            return await serve(ctx)
        if ctx.method == "tools/call" and (ctx.params or {}).get("task") is not None:
            return await self._made(ctx, call_next)
        answer = await call_next(ctx)
        if ctx.method == "initialize":
            return _able(answer, lists=self._tasks.caller() != messages.Caller())
        return await self._listed(answer) if ctx.method == "tools/list" else answer

    async def _listed(self, answer: HandlerResult) -> HandlerResult:
        """`tools/list` with what each tool's support is here, whatever a server behind says of itself."""
        told = cast("dict[str, Any]", answer)
        for tool in told["tools"]:
            support = await self._supports(tool["name"])
            if support is not TaskSupport.FORBIDDEN or "execution" in tool:
                tool["execution"] = {**tool.get("execution", {}), "taskSupport": support.value}
        return told

    async def _made(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """`tools/call` as a task: its handle. The server's own middleware is around it, as around any call."""
        params = cast("Mapping[str, Any]", ctx.params)
        name = params.get("name")
        if not isinstance(name, str) or await self._supports(name) is TaskSupport.FORBIDDEN:
            await self._tasks.refuse(ctx, METHOD_NOT_FOUND, "task_forbidden", "")
            raise MCPError(METHOD_NOT_FOUND, "the tool does not run as a task: call it without `task`")
        making = Making(_wished(params["task"]))
        token = _making.set(making)
        try:
            answer = await call_next(ctx)
        finally:
            _making.reset(token)
        return answer if making.view is None else {"task": wire_2025.task(making.view)}

    async def _get(self, ctx: Context) -> HandlerResult:
        return wire_2025.task(await self._look(ctx, status_only=True))

    async def _list(self, ctx: Context) -> HandlerResult:
        cursor: object = (ctx.params or {}).get("cursor", "")
        if not isinstance(cursor, str) or len(cursor) > TEXT_MAX:
            raise MCPError(INVALID_PARAMS, wire_2025.NO_CURSOR)
        said = messages.ListTasks(caller=self._tasks.caller(), call=described(ctx), cursor=cursor)
        return wire_2025.page(await self._tasks.request("list", said))

    async def _cancel(self, ctx: Context) -> HandlerResult:
        """Tell the task to stop, and answer once it is cancelled (Task Cancellation)."""
        view = await self._look(ctx, status_only=True)
        if not view.status.terminal:
            said = messages.CancelTask(
                caller=self._tasks.caller(),
                call=described(ctx),
                command_id=secrets.token_hex(16),
                task_id=view.task_id,
            )
            with self._moves(view) as moved:
                await self._tasks.request("cancel", said)
                view = await self._ended(ctx, moved)
            if wire_2025.status(view) == "cancelled":
                return wire_2025.task(view)
        if view.status.terminal:
            raise MCPError(INVALID_PARAMS, wire_2025.over(view))
        raise MCPError(INTERNAL_ERROR, wire_2025.NOT_STOPPED, {"retriable": True})

    async def _ended(self, ctx: Context, moved: asyncio.Event) -> TaskView:
        """The task once it has ended, or as it is after `CANCELLED_WITHIN_S`."""
        view = await self._look(ctx, status_only=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wire_2025.CANCELLED_WITHIN_S):
                while not view.status.terminal:
                    await _pause(moved)
                    view = await self._look(ctx, status_only=True)
        return view

    async def _result(self, ctx: Context) -> HandlerResult:
        """Wait for the task's end, and meanwhile put its questions to whoever waits (Result Retrieval)."""
        view = await self._look(ctx, first=True)
        if not view.status.terminal:
            try:
                with self._waiting.one(whose(self._tasks.caller(), described(ctx).address)):
                    view = await self._waited(ctx, view)
            except TooManyWait as error:
                raise rpc_error(error) from error
        outcome = wire_2025.outcome(view)
        if "error" in outcome:
            raise MCPError(outcome["error"]["code"], outcome["error"]["message"], outcome["error"].get("data"))
        return cast("dict[str, Any]", outcome["result"])

    async def _waited(self, ctx: Context, view: TaskView) -> TaskView:
        """The task once it has ended."""
        asking: Asking = {}
        asked: Counter[str] = Counter()
        with self._moves(view) as moved:
            try:
                while not view.status.terminal:
                    self._ask(ctx, view, asking, asked, moved)
                    await _pause(moved)
                    if await _gone(ctx):
                        raise MCPError(CONNECTION_CLOSED, "whoever waited is gone")
                    seen, view = view, await self._newer(ctx, view)
                    if (seen.status, seen.status_message) != (view.status, view.status_message):
                        await _outbound(ctx).notify("notifications/tasks/status", wire_2025.task(view))
            finally:
                for one in asking.values():
                    one.cancel()
                await asyncio.gather(*asking.values(), return_exceptions=True)
        return view

    async def _newer(self, ctx: Context, view: TaskView) -> TaskView:
        """The task as it is now; the same when it did not move, or while the trail does not answer."""
        try:
            now = await self._look(ctx, status_only=True)
        except MCPError as error:
            told: object = error.error.data
            if isinstance(told, Mapping) and cast("Mapping[str, object]", told).get("retriable"):
                return view
            raise
        return await self._look(ctx) if now.seq != view.seq else view

    def _ask(self, ctx: Context, view: TaskView, asking: Asking, asked: Counter[str], moved: asyncio.Event) -> None:
        """Put what is outstanding and not put yet, or whose answer was none; take back what somebody else answered."""
        for key in asking.keys() - view.input_requests.keys():
            asking.pop(key).cancel()
        if view.input_requests and not ctx.session.can_send_request:
            raise MCPError(INTERNAL_ERROR, "the task asks for input: that needs a server with sessions and SSE answers")
        for key, ask in view.input_requests.items():
            if (key not in asking or asking[key].done()) and asked[key] < ASKED_MAX:
                asked[key] += 1
                asking[key] = asyncio.create_task(self._put(ctx, view, key, ask, moved))

    async def _put(self, ctx: Context, view: TaskView, key: str, ask: InputAsk, moved: asyncio.Event) -> None:
        """Put one question, and record its answer; an error is recorded as an answer that is none."""
        params = wire_2025.related(view.task_id, ask.params)
        try:
            answer = await _outbound(ctx).send_raw_request(ask.method, params, {"request_id": secrets.token_hex(16)})
        except MCPError as error:
            if error.error.code == CONNECTION_CLOSED:
                return
            answer = {"error": error.error.model_dump(mode="json", exclude_none=True)}
        said = messages.UpdateTask(
            caller=self._tasks.caller(),
            call=msgspec.structs.replace(described(ctx), method=ask.method),
            command_id=secrets.token_hex(16),
            task_id=view.task_id,
            answers={key: wire_2025.unrelated(answer)},
        )
        try:
            await self._patiently("update", said)
        except MCPError as refusal:
            _log.info("an answer to a question of task %s was refused: %s", view.task_ref, refusal.error.message)
        moved.set()

    async def _look(self, ctx: Context, *, status_only: bool = False, first: bool = False) -> TaskView:
        handle = handle_text((ctx.params or {}).get("taskId"))
        said = messages.GetTask(
            caller=self._tasks.caller(), call=described(ctx), task_id=handle, status_only=status_only
        )
        asked = self._tasks.request("get", said) if status_only else self._patiently("get", said, first=first)
        view: TaskView = await asked
        return view

    async def _patiently(self, action: str, said: messages.Said, *, first: bool = False) -> Any:  # noqa: ANN401 - the action's reply
        """Carry an action out, again and again while it cannot be; a `first` look waits for the trail only."""
        by = in_turn if first else patiently
        try:
            return await by(self._tasks.link, action, said, until_ms=now_ms() + SETTLE_WITHIN_MS, now_ms=now_ms)
        except TasktrailError as error:
            raise rpc_error(error) from error

    @contextlib.contextmanager
    def _moves(self, view: TaskView) -> Generator[asyncio.Event]:
        """Set whenever the task moved."""
        moved = asyncio.Event()
        moved.set()  # it may have since it was looked at
        stop = self._tasks.link.listen(lambda ref, _signal: moved.set() if ref == view.task_ref else None)
        try:
            yield moved
        finally:
            stop()


def _able(answer: HandlerResult, *, lists: bool) -> HandlerResult:
    """`initialize` with what this server can do for this client, once both speak this revision."""
    told = cast("dict[str, Any]", answer)
    if told.get("protocolVersion") == wire_2025.REVISION:
        able = {"list": {}, **_CAPABILITY} if lists else _CAPABILITY
        told["capabilities"] = {**told["capabilities"], "tasks": able}
    return told


def _wished(task: object) -> int | None:
    """The time to live that a call asks for.

    Raises:
        MCPError: it is none.
    """
    if not isinstance(task, Mapping):
        raise MCPError(INVALID_PARAMS, "task is not an object")
    ttl = cast("Mapping[str, object]", task).get("ttl")
    if ttl is None or (isinstance(ttl, int) and not isinstance(ttl, bool) and 0 < ttl <= TTL_MAX_MS):
        return ttl
    raise MCPError(INVALID_PARAMS, f"task.ttl is not a whole number of milliseconds from 1 to {TTL_MAX_MS}")


async def _gone(ctx: Context) -> bool:
    """Whether the request's connection has ended, and its client cannot take the stream up again on another."""
    disconnected = getattr(ctx.request, "is_disconnected", None)
    resumable = ctx.close_sse_stream is not None  # given where streams are stored
    return disconnected is not None and not resumable and await disconnected()


def _outbound(ctx: Context) -> Any:  # noqa: ANN401 - the SDK's own
    """This request's stream. The SDK's typed helpers choose ids that can be guessed, and keep what is no answer."""
    return ctx.session._request_outbound  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # see above


async def _pause(moved: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOOK_EVERY_S):
            await moved.wait()
    moved.clear()
