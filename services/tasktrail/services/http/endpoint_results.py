"""What the tasks endpoint answers on the 2025-11-25 wire; above all `tasks/result`, which waits for the task's end.

Guarantees: whoever waits is shown what is outstanding then, on the stream of its own call, and again when its answer
was none, `ASKED_MAX` times at most; an answer counts as that of the credential it came with, on whichever replica it
comes; what is shown is decided anew at each look; how many calls wait is bounded (`waiting_results`);
everyone is let go when the service stops. A nudge may be lost: everyone looks by itself, too. Source: MCP 2025-11-25,
tasks.

    earlier = Earlier(service.desk, service.moved, service.keyring.ref)
    async for message in earlier.result(asked, who): …
"""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeAlias, cast

from tasktrail.events.authority import Binding
from tasktrail.events.errors import InvalidAnswer, TasktrailError, Unavailable
from tasktrail.projections.current import State
from tasktrail.services import messages, wire, wire_2025
from tasktrail.services.access.claims import TEXT_MAX
from tasktrail.services.access.desk import Desk
from tasktrail.services.http.endpoint_requests import INVALID_PARAMS, Asked, Refused, message
from tasktrail.services.messages import Listed, TaskView
from tasktrail.services.waiting_results import LOOK_EVERY_S, WaitingResults
from tasktrail.services.wire_2025 import Question

ASKED_MAX = 3
"""How often one call puts one question: answers that are none come again and again from some clients."""
_STOPPING = "this tasktrail is stopping: ask again"

Message = dict[str, Any]
Messages: TypeAlias = AsyncGenerator[Message | None]


class Earlier:
    """The methods of this wire."""

    def __init__(self, desk: Desk, moved: list[Callable[[State], None]], ref: Callable[[str], str]) -> None:
        """`moved`: what is called whenever a task moved, here or elsewhere; it gains one member. `ref`: of a handle."""
        self._desk, self._ref = desk, ref
        self._calls: dict[str, set[_Waiting]] = {}
        self._waiting = WaitingResults()
        self._closing = False
        moved.append(self._moved)

    def close(self) -> None:
        """Let everyone go."""
        self._closing = True
        for calls in self._calls.values():
            for call in calls:
                call.moved.set()

    async def get(self, asked: Asked) -> Message:
        """`tasks/get`."""
        return wire_2025.task(await self._look(asked, status_only=True))

    async def list(self, asked: Asked) -> Message:
        """`tasks/list`."""
        cursor: object = asked.params.get("cursor", "")
        if not isinstance(cursor, str) or len(cursor) > TEXT_MAX:
            raise Refused(INVALID_PARAMS, wire_2025.NO_CURSOR)
        said = messages.ListTasks(caller=asked.caller, call=asked.call, cursor=cursor)
        return wire_2025.page(cast("Listed", await self._carry_out("list", said, asked)))

    async def cancel(self, asked: Asked) -> Message:
        """`tasks/cancel`: tell the task to stop, and answer once it is cancelled."""
        view = await self._look(asked, status_only=True)
        if not view.status.terminal:
            said = messages.CancelTask(
                caller=asked.caller, call=asked.call, command_id=secrets.token_hex(16), task_id=view.task_id
            )
            with self._told(view.task_ref) as waiting:
                await self._carry_out("cancel", said, asked)
                view = await self._ended(asked, waiting)
            if wire_2025.status(view) == "cancelled":
                return wire_2025.task(view)
        if view.status.terminal:
            raise Refused(INVALID_PARAMS, wire_2025.over(view))
        raise Unavailable(wire_2025.NOT_STOPPED)

    async def _ended(self, asked: Asked, waiting: "_Waiting") -> TaskView:
        """The task once it has ended, or as it is after `CANCELLED_WITHIN_S`."""
        view = await self._look(asked, status_only=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wire_2025.CANCELLED_WITHIN_S):
                while not (view.status.terminal or self._closing):
                    await waiting.pause()
                    view = await self._look(asked, status_only=True)
        return view

    async def answer(self, asked: Asked, question: Question) -> None:
        """Take the answer to a question.

        Raises:
            TasktrailError: it opens no task, or is none; then whoever waits here is asked again.
        """
        said = messages.UpdateTask(
            caller=asked.caller,
            call=asked.call,
            command_id=secrets.token_hex(16),
            task_id=wire.handle_text(question.task_id),
            answers={question.key: wire_2025.unrelated(asked.answer or {})},
        )
        try:
            await self._carry_out("update", said, asked)
        except InvalidAnswer:
            for waiting in self._calls.get(self._ref(said.task_id), ()):
                waiting.again(question)
            raise

    async def result(self, asked: Asked, who: Binding) -> Messages:
        """`tasks/result`: messages for the call's own stream, the last of which is its answer; None: nothing yet.

        `who`: whose call it is.

        Raises:
            TasktrailError: before the first message only: the task does not open, or too many wait.
        """
        with self._told(self._ref(wire.handle_text(asked.params.get("taskId")))) as waiting:
            view = await self._look(asked)
            if not view.status.terminal:
                if self._closing:
                    raise Unavailable(_STOPPING)
                with self._waiting.one(who):
                    yield None
                    async for one in self._while_it_lives(asked, waiting, view):
                        yield one
                return
            yield message(asked.id, wire_2025.outcome(view))

    async def _while_it_lives(self, asked: Asked, waiting: "_Waiting", view: TaskView) -> Messages:
        try:
            while not view.status.terminal:
                for question in waiting.questions(view):
                    yield question
                if not await waiting.pause():
                    yield None
                if self._closing:
                    raise Unavailable(_STOPPING)
                seen, view = view, await self._newer(asked, view)
                if (seen.status, seen.status_message) != (view.status, view.status_message):
                    yield wire_2025.notification(view)
            yield message(asked.id, wire_2025.outcome(view))
        except TasktrailError as error:
            yield message(asked.id, {"error": wire.rpc_error(error)})

    async def _newer(self, asked: Asked, view: TaskView) -> TaskView:
        """The task as it is now; the same when it did not move, or while the trail does not answer."""
        try:
            now = await self._look(asked, status_only=True)
            return await self._look(asked) if now.seq != view.seq else view
        except TasktrailError as error:
            if error.retriable:
                return view
            raise

    async def _look(self, asked: Asked, *, status_only: bool = False) -> TaskView:
        handle = wire.handle_text(asked.params.get("taskId"))
        said = messages.GetTask(caller=asked.caller, call=asked.call, task_id=handle, status_only=status_only)
        return cast("TaskView", await self._carry_out("get", said, asked))

    async def _carry_out(self, action: str, said: messages.Said, asked: Asked) -> object:
        return await self._desk.carry_out(action, said, asked.channel)

    @contextlib.contextmanager
    def _told(self, ref: str) -> Generator["_Waiting"]:
        """Somebody who hears that the task moved."""
        waiting = _Waiting()
        calls = self._calls.setdefault(ref, set())
        calls.add(waiting)
        try:
            yield waiting
        finally:
            calls.discard(waiting)
            if not calls:
                self._calls.pop(ref, None)

    def _moved(self, state: State) -> None:
        for waiting in self._calls.get(state.task_ref, ()):
            waiting.moved.set()


class _Waiting:
    """One call that waits for its task: how often it put which question."""

    def __init__(self) -> None:
        self.moved = asyncio.Event()
        self._stream = secrets.token_hex(4)
        self._put: Counter[str] = Counter()
        self._due: set[str] = set()

    def questions(self, view: TaskView) -> Generator[Message]:
        """The outstanding questions that were not put yet, or whose answers were none."""
        for key, ask in view.input_requests.items():
            if (key in self._put and key not in self._due) or self._put[key] >= ASKED_MAX:
                continue
            self._due.discard(key)
            self._put[key] += 1
            stream = f"{self._stream}-{self._put[key]}"
            yield Question(view.task_id, stream, key).request(ask)

    def again(self, question: Question) -> None:
        """An answer to this question was none: put it again on the stream that it was put on."""
        if question.stream.partition("-")[0] == self._stream:
            self._due.add(question.key)
            self.moved.set()

    async def pause(self) -> bool:
        """Until the task moves, `LOOK_EVERY_S` at the most. Returns whether it did."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                await self.moved.wait()
        moved = self.moved.is_set()
        self.moved.clear()
        return moved
