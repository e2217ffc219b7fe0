"""`tasks/result`: blocks until the task has ended, and meanwhile puts its questions to whoever waits.

Guarantees: each call is shown what is outstanding then, on its own stream, so that a client that comes again is asked
again; what is answered is asked of nobody any more; an answer is that of the credential which sent it, to the question
it answers, whichever session or call it comes by; an answer that is none is recorded and asked for again, a few times
in one call. Source: MCP 2025-11-25, tasks (Input Required Status, Result Retrieval). Needs SSE answers.

    results = Results(link, forward=False, find=works.get)
    return await results.wait(ctx, task_id)
"""

import asyncio
import contextlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import mcp.types as mcp
from mcp.server.session import ServerSession
from mcp.shared.message import ServerMessageMetadata, SessionMessage

from tasktrail.events.errors import TasktrailError
from tasktrail.mcp.link import Link, in_turn, patiently
from tasktrail.mcp.v1 import requests, wire
from tasktrail.mcp.v1.requests import Context
from tasktrail.mcp.v1.work import Work
from tasktrail.services import messages, wire_2025
from tasktrail.services.clock import now_ms
from tasktrail.services.messages import Signal, TaskView
from tasktrail.services.waiting_results import LOOK_EVERY_S, TooManyWait, WaitingResults, whose

_log = logging.getLogger(__name__)

METHOD = "tasks/result"
ASKED_MAX = 3
"""How often one call asks one question: answers that are none come again and again from some clients."""
QUESTIONS_MAX = 10_000
"""Questions whose answers are still recognised; of more than these the oldest are forgotten."""
SETTLE_WITHIN_MS = 60_000
_IDS_FROM = 2**32
"""Our JSON-RPC ids are numbers, as the SDK expects, and far from those that its sessions count."""

_answering: ContextVar[tuple[object, str]] = ContextVar("answering")
"""The transport's request that brings the response being read, and the session's revision."""


class _Question(NamedTuple):
    """A question as it was put: to which task it belongs, who to tell when its answer was none."""

    task_id: str
    task_ref: str
    key: str
    method: str
    again: Callable[[str], None]


class Results:
    """Every waiting `tasks/result`, and every question that was put. The SDK's `ResponseRouter`."""

    def __init__(self, link: Link, *, forward: bool, find: Callable[[str], Work | None]) -> None:
        """`find` gives the work of a task, by its reference, when it runs in this process."""
        self._link, self._forward, self._find = link, forward, find
        self._questions: OrderedDict[int, _Question] = OrderedDict()
        self._calls: dict[str, set[_Call]] = {}
        self._settling: set[asyncio.Task[None]] = set()
        self._waiting = WaitingResults()

    def attend(self, session: ServerSession) -> None:
        """Take the answers that come by this session, and notice by whose credential each comes."""
        read = session._handle_response  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # the SDK tells routers an answer, not who sent it

        async def reading(message: SessionMessage) -> None:
            params = session.client_params
            request: object = getattr(message.metadata, "request_context", None)
            token = _answering.set((request, str(params.protocolVersion) if params else ""))
            try:
                await read(message)
            finally:
                _answering.reset(token)

        session._handle_response = reading  # type: ignore[method-assign] # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # see above
        session.add_response_router(self)

    def signalled(self, ref: str, _signal: Signal) -> None:
        """A task moved."""
        for call in self._calls.get(ref, ()):
            call.moved.set()

    async def stop(self) -> None:
        """Leave what is not settled yet."""
        for settling in self._settling:
            settling.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)

    async def wait(self, ctx: Context, task_id: str) -> mcp.GetTaskPayloadResult:
        """What the task's request came to, once it has.

        Raises:
            McpError: the task does not open for this caller; too many calls wait; or its request came to an error.
        """
        view = await self._look(ctx, task_id, first=True)
        await self._pass_on(ctx, view)
        if not view.status.terminal:
            who = requests.caller(ctx.request, forward=self._forward)
            try:
                with self._waiting.one(whose(who, requests.call(ctx, METHOD).address)):
                    view = await self._waited(ctx, view)
            except TooManyWait as error:
                raise wire.rpc_error(error) from error
        return wire.outcome(view)

    async def _waited(self, ctx: Context, view: TaskView) -> TaskView:
        """The task once it has ended."""
        call = _Call()
        calls = self._calls.setdefault(view.task_ref, set())
        calls.add(call)
        call.moved.set()  # it may have moved since it was looked at
        try:
            while not view.status.terminal:
                await self._put(ctx, view, call)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await call.moved.wait()
                call.moved.clear()
                seen, view = view, await self._look(ctx, view.task_id)
                await self._pass_on(ctx, view)
                if (seen.status, seen.status_message) != (view.status, view.status_message):
                    await ctx.session.send_notification(wire.notification(view), related_request_id=ctx.request_id)
        finally:
            calls.discard(call)
            if not calls:
                self._calls.pop(view.task_ref, None)
        return view

    async def _look(self, ctx: Context, task_id: str, *, first: bool = False) -> TaskView:
        who = requests.caller(ctx.request, forward=self._forward)
        said = messages.GetTask(caller=who, call=requests.call(ctx, METHOD), task_id=task_id)
        until_ms = now_ms() + SETTLE_WITHIN_MS
        try:
            view: TaskView = await (in_turn if first else patiently)(
                self._link, "get", said, until_ms=until_ms, now_ms=now_ms
            )
        except TasktrailError as error:
            raise wire.rpc_error(error) from error
        return view

    async def _pass_on(self, ctx: Context, view: TaskView) -> None:
        """Tell whoever waits what the task's work sends along."""
        work = self._find(view.task_ref)
        while work is not None and work.notifications:
            one = work.notifications.popleft()
            related = mcp.JSONRPCNotification(
                jsonrpc="2.0", method=one.method, params=wire_2025.related(view.task_id, one.params)
            )
            await self._send(ctx, related)

    async def _put(self, ctx: Context, view: TaskView, call: "_Call") -> None:
        """Put the outstanding questions that this call has not put yet, or whose answers were none."""
        for key, ask in view.input_requests.items():
            if not call.asks(key):
                continue
            number = _IDS_FROM + secrets.randbelow(_IDS_FROM)  # not to be guessed: who answers another's eats it
            self._questions[number] = _Question(view.task_id, view.task_ref, key, ask.method, call.again)
            while len(self._questions) > QUESTIONS_MAX:
                self._questions.popitem(last=False)
            params = wire_2025.related(view.task_id, ask.params)
            await self._send(ctx, mcp.JSONRPCRequest(jsonrpc="2.0", id=number, method=ask.method, params=params))

    @staticmethod
    async def _send(ctx: Context, message: mcp.JSONRPCRequest | mcp.JSONRPCNotification) -> None:
        metadata = ServerMessageMetadata(related_request_id=ctx.request_id)
        await ctx.session.send_message(SessionMessage(mcp.JSONRPCMessage(message), metadata=metadata))

    def route_response(self, request_id: mcp.RequestId, response: dict[str, Any]) -> bool:
        """Take the answer to a question of ours."""
        return self._answered(request_id, response, None)

    def route_error(self, request_id: mcp.RequestId, error: mcp.ErrorData) -> bool:
        """Take the error that a client answered a question of ours with."""
        return self._answered(request_id, {"error": error.model_dump(mode="json", exclude_none=True)}, error)

    def _answered(self, request_id: mcp.RequestId, answer: dict[str, Any], error: mcp.ErrorData | None) -> bool:
        question = self._questions.pop(request_id, None) if isinstance(request_id, int) else None
        if question is None:
            return False
        request, version = _answering.get((None, ""))
        who = requests.caller(request, forward=self._forward)
        meta: object = answer.get("_meta")
        call = requests.described(request, question.method, request_id, version, meta if isinstance(meta, dict) else {})
        said = messages.UpdateTask(
            caller=who,
            call=call,
            command_id=secrets.token_hex(16),
            task_id=question.task_id,
            answers={question.key: wire_2025.unrelated(answer)},
        )
        settling = asyncio.create_task(self._settle(question, said, error))
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)
        return True

    async def _settle(self, question: _Question, said: messages.UpdateTask, error: mcp.ErrorData | None) -> None:
        """Record an answer. What is none is recorded as such; an error is then for the work to handle."""
        try:
            await patiently(self._link, "update", said, until_ms=now_ms() + SETTLE_WITHIN_MS, now_ms=now_ms)
        except TasktrailError as refusal:
            _log.info("an answer to a question of task %s was refused: %s", question.task_ref, refusal.reason)
            work = self._find(question.task_ref)
            if error is not None and refusal.reason == "invalid_answer" and work is not None:
                work.refused(question.key, error)
            else:
                question.again(question.key)


class _Call:
    """One `tasks/result` that waits: how often it put which question."""

    def __init__(self) -> None:
        self.moved = asyncio.Event()
        self._put: dict[str, int] = {}
        self._due: set[str] = set()

    def asks(self, key: str) -> bool:
        """Whether to put this question now; it then counts as put."""
        if key in self._put and key not in self._due:
            return False
        self._due.discard(key)
        self._put[key] = self._put.get(key, 0) + 1
        return self._put[key] <= ASKED_MAX

    def again(self, key: str) -> None:
        """The answer to this question was none."""
        self._due.add(key)
        self.moved.set()
