"""What the work of one task says to tasktrail, whichever SDK runs it.

Guarantees: an outcome is said again and again until the trail has it, or the task's time is over; where policy lets it
wait for the creator's authority, cancelling the task ends the wait, and the task is stopped instead. Needs asyncio.

    voice = Voice(link, view, worker="9f2c…", attempt=1)
    await voice.say("complete", messages.CompleteTask(**voice.mine(), result={…}))
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from tasktrail.events.errors import AuthorityPaused, TasktrailError
from tasktrail.mcp.link import Link, patiently
from tasktrail.services import messages
from tasktrail.services.clock import now_ms
from tasktrail.services.messages import Order, TaskView, WorkView

_log = logging.getLogger(__name__)

REPORT_EVERY_S = 0.25
"""At most one status message this often; of those between, the last one counts."""

LOOK_EVERY_S = 2.0
"""How often work that waits looks for itself: signals may be lost."""

MESSAGE_MAX = 4_096
"""Characters of a status message; what is beyond is cut off."""


class Voice:
    """One task's work, as it speaks."""

    def __init__(self, link: Link, view: TaskView | Order, *, worker: str, attempt: int = 0) -> None:
        """`worker` is what this process is called, and `attempt` the how-manieth run this is; 0: it is not told."""
        self._link, self.ref = link, view.task_ref
        self._who: dict[str, Any] = {"task_ref": view.task_ref, "worker": worker, "attempt": attempt}
        self._until_ms = view.created_at_ms + view.ttl_ms

    def of(self) -> dict[str, Any]:
        """Which task, and who speaks of it."""
        return dict(self._who)

    def mine(self) -> dict[str, Any]:
        """The same, with the id of a new command."""
        return {**self._who, "command_id": secrets.token_hex(16)}

    async def say(self, action: str, said: messages.Said, *, unless: asyncio.Event | None = None) -> WorkView:
        """Carry an action out, as `patiently` does, while the task has time to live.

        Raises:
            TasktrailError: what is not retriable, or the last retriable one.
        """
        view: WorkView = await patiently(
            self._link, action, said, until_ms=self._until_ms, now_ms=now_ms, unless=unless
        )
        if view.outcome == "refused":
            _log.info("task %s: %s refused: %s", self.ref, action, view.reason)
        return view

    async def end(self, action: str, said: messages.Said, *, unwanted: asyncio.Event, live: Callable[[], bool]) -> None:
        """Say the outcome; one that waits for the creator's authority until nobody wants it is a stop instead.

        Raises:
            TasktrailError: as `say`; also what waits, when the task has ended meanwhile.
        """
        try:
            await self.say(action, said, unless=unwanted)
        except AuthorityPaused:
            if not (unwanted.is_set() and live()):
                raise
            await self.say("stop", messages.StopTask(**self.mine()))

    async def follow(
        self, nudged: asyncio.Event, exchange: Callable[[], Awaitable[None]], pause_s: Callable[[], float]
    ) -> NoReturn:
        """Exchange whenever nudged, and from time to time, until cancelled; what goes wrong is logged once."""
        why = ""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await nudged.wait()
            nudged.clear()
            try:
                await exchange()
                why = ""
            except TasktrailError as error:
                if error.reason != why:  # the same again and again, perhaps for hours, says nothing new
                    _log.warning("task %s: %s", self.ref, error.message)
                why = error.reason
            await asyncio.sleep(pause_s())
