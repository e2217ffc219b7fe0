"""A task's work in this process: what the SDK v1's `run_task` started, apart from the session that asked for it.

Guarantees: the work goes on when its session ends; its questions are the task's input requests and its status messages
the task's, in the order said; answers reach it whichever replica took them; cancelling the task cancels it; its outcome
is reported until the trail has it, or nobody wants it any more. Needs asyncio.

    work = Work(link, view, worker="…", call=call)
    work.begin(execute)
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import mcp.types as mcp
from mcp.shared.exceptions import McpError
from mcp.shared.experimental.tasks.message_queue import QueuedMessage
from mcp.shared.experimental.tasks.resolver import Resolver

from tasktrail.events.errors import TasktrailError
from tasktrail.events.tracing import TraceContext
from tasktrail.mcp import tracing
from tasktrail.mcp.link import Link
from tasktrail.mcp.voice import MESSAGE_MAX, REPORT_EVERY_S, Voice
from tasktrail.services import messages
from tasktrail.services.messages import Call, InputAsk, Signal, TaskView, WorkView
from tasktrail.services.wire_2025 import unrelated

_log = logging.getLogger(__name__)

STOP_WITHIN_S = 1.0
"""How long cancelled work may take to clean up before its task is cancelled without it."""
NOTIFICATIONS_MAX = 64
LOST = "lost_worker"


class Work:
    """One task's work. `notifications` are those that it queued for its client, not yet delivered."""

    def __init__(self, link: Link, view: TaskView, *, worker: str, call: Call) -> None:
        """`call` is the request that made the task: its trace goes on in the work."""
        self.ref, self.view = view.task_ref, view
        self._trace = TraceContext.of_run(view.task_ref, call.traceparent, call.tracestate)
        self.notifications: deque[mcp.JSONRPCNotification] = deque(maxlen=NOTIFICATIONS_MAX)
        self._link, self._voice = link, Voice(link, view, worker=worker)
        self._waiting: dict[str, Resolver[dict[str, Any]]] = {}
        self._said: str | None = None
        self._reported = asyncio.Lock()
        self._result: dict[str, Any] | None = None
        self._is_error = False
        self._ending, self._ended = False, asyncio.Event()
        self._live, self._stopped = True, False
        self._unwanted, self._nudged = asyncio.Event(), asyncio.Event()
        self._tool: asyncio.Task[None] | None = None
        self.running: asyncio.Task[None] | None = None

    def begin(self, execute: Callable[[], Awaitable[None]]) -> None:
        """Start."""
        self.running = asyncio.create_task(self._run(execute))

    def signalled(self, signal: Signal) -> None:
        """The task moved: look, and stop at once when it is to stop."""
        self._heed(signal)
        self._nudged.set()

    def _heed(self, seen: Signal | WorkView) -> None:
        self._live = self._live and seen.live
        if seen.cancel_requested or not seen.live:
            self._unwanted.set()
            if self._tool is not None and not self._tool.done() and not self._ending and not self._stopped:
                self._stopped = True  # told once: a second time would break into what it does to clean up
                self._tool.cancel()

    async def lose(self, cause: str) -> None:
        """This process is going away: stop, and say so.

        Raises:
            TasktrailError: it could not be said.
        """
        if self.running is None or self.running.done():
            return
        self.running.cancel()
        await asyncio.wait([self.running], timeout=STOP_WITHIN_S)
        await self._voice.say("lose", messages.LoseWorker(**self._voice.mine(), cause=cause))

    async def _run(self, execute: Callable[[], Awaitable[None]]) -> None:
        async def tool() -> None:
            await execute()

        with tracing.running(self._trace):
            self._tool = asyncio.create_task(tool())
        following = asyncio.create_task(self._follow())
        unwanted, ended = asyncio.create_task(self._unwanted.wait()), asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait([self._tool, unwanted], return_when=asyncio.FIRST_COMPLETED)
            if self._ending:  # its end is just being recorded, and may be what was heard of
                await asyncio.wait([self._tool, ended], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([self._tool], timeout=STOP_WITHIN_S)
            await self._settle(self._tool)
        except TasktrailError as error:
            _log.error("the outcome of task %s could not be recorded: %s", self.ref, error.message)
        finally:
            helpers = (self._tool, following, unwanted, ended)
            for one in helpers:
                one.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _settle(self, tool: "asyncio.Task[None]") -> None:
        """See that the task has an outcome once its work has ended, or was told to."""
        if self._ended.is_set():
            return
        if self._unwanted.is_set():
            await self._voice.say("stop", messages.StopTask(**self._voice.mine()))
            return
        failure = None if tool.cancelled() else tool.exception()
        if failure is not None:
            _log.error("the work of task %s failed", self.ref, exc_info=failure)
        await self.fail("the work was cancelled" if tool.cancelled() else str(failure or "the work has no result"))

    def keep(self, result: mcp.Result) -> None:
        """The result that the work is about to complete with."""
        self._result = result.model_dump(by_alias=True, mode="json", exclude_none=True)
        self._is_error = bool(self._result.get("isError"))

    async def complete(self) -> None:
        """Record that the work is done, with the result kept.

        Raises:
            TasktrailError: the trail does not take it, for good or until the task's time was over.
        """
        said = messages.CompleteTask(**self._voice.mine(), result=self._result or {}, is_error=self._is_error)
        await self._end("complete", said)

    async def fail(self, text: str) -> None:
        """Record that the work failed: as the tool error that a synchronous call would have answered with.

        Raises:
            TasktrailError: as `complete`.
        """
        result = mcp.CallToolResult(content=[mcp.TextContent(type="text", text=text)], isError=True)
        self.keep(result)
        await self.complete()

    async def _end(self, action: str, said: messages.Said) -> None:
        await self._report()
        self._ending = True
        await self._voice.end(action, said, unwanted=self._unwanted, live=lambda: self._live)
        self._ended.set()

    def say(self, text: str) -> None:
        """The work says how far it is; the last word of a short while counts."""
        self._said = text[:MESSAGE_MAX]
        self._nudged.set()

    async def ask(self, message: QueuedMessage) -> None:
        """Put a question to the task's client; its resolver gets the answer.

        Raises:
            McpError: it cannot be asked.
        """
        request = message.message
        if isinstance(request, mcp.JSONRPCNotification):
            self.notifications.append(request)
            return
        params = unrelated(request.params or {})
        if "task" in params:
            text = "a task's questions are asked through the task itself, not as tasks of its client"
            raise McpError(mcp.ErrorData(code=mcp.INVALID_REQUEST, message=text))
        key = f"{request.method.partition('/')[0]}-{secrets.token_hex(4)}"
        if message.resolver is not None:
            self._waiting[key] = message.resolver
        asks = {key: InputAsk(method=request.method, params=params)}
        await self._report()
        try:
            view = await self._voice.say(
                "ask", messages.RequestInput(**self._voice.mine(), asks=asks), unless=self._unwanted
            )
            why = f"refused: {view.reason}" if view.outcome == "refused" else ""
        except TasktrailError as error:
            why = error.message
        if why:
            self._waiting.pop(key, None)
            text = f"the task could not ask for input: {why}"
            raise McpError(mcp.ErrorData(code=mcp.INTERNAL_ERROR, message=text))
        self._nudged.set()

    def refused(self, key: str, error: mcp.ErrorData) -> None:
        """The client answered a question with a JSON-RPC error: for the work to handle, as in a synchronous call."""
        resolver = self._waiting.pop(key, None)
        if resolver is not None and not resolver.done():
            resolver.set_exception(McpError(error))

    async def _follow(self) -> None:
        """Pass on what the work says, and what its client answers."""
        await self._voice.follow(self._nudged, self._exchange, self._pause_s)

    async def _exchange(self) -> None:
        await self._report()
        self._take(await self._link.request("collect", messages.CollectInput(**self._voice.of())))

    def _pause_s(self) -> float:
        return 0.01 if self._waiting and self._said is None else REPORT_EVERY_S

    async def _report(self) -> None:
        """Record what the work said last, before whatever comes next. What has to wait is the next round's."""
        async with self._reported:
            said, self._said = self._said, None
            if said is None or self._ended.is_set():
                return
            try:
                self._take(
                    await self._link.request("report", messages.ReportStatus(**self._voice.mine(), message=said))
                )
            except TasktrailError as error:
                if not error.retriable:
                    raise
                if self._said is None:
                    self._said = said

    def _take(self, view: WorkView) -> None:
        for key, answer in view.answers.items():
            resolver = self._waiting.pop(key, None)
            if resolver is not None and not resolver.done():
                resolver.set_result(answer)
        if view.outcome == "refused" and view.reason == LOST:
            self._lost()
        self._heed(view)

    def _lost(self) -> None:
        """Another process, or none, runs this task now: nobody wants what this one says."""
        _log.warning("task %s is no longer this process's: its work is stopped", self.ref)
        self._ended.set()
        if self.running is not None:
            self.running.cancel()
