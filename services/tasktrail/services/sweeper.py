"""The sweeper: removes sealed payloads from the object bucket that no entry ever came to commit to.

Guarantees: a blob is removed only when it is older than a day and its task, read from the trail's leader, does not
commit to it; what is committed to stays.

    sweeper = Sweeper(js, states)
    await sweeper.start()
"""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from tasktrail.events.errors import TasktrailError
from tasktrail.events.facts import Commitment
from tasktrail.events.subjects import PAYLOADS, is_task_ref
from tasktrail.events.task import Task
from tasktrail.services.states import States

_log = logging.getLogger(__name__)

EVERY_S = 3_600.0
OLD = timedelta(days=1)


class Sweeper:
    """Sweeps every hour, first an hour after the start."""

    def __init__(self, js: JetStreamContext, states: States) -> None:
        self._js, self._states = js, states
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin."""
        self._running = asyncio.create_task(self._sweep_for_ever())

    async def stop(self) -> None:
        """Stop; a sweep under way ends where it is."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.sweep(datetime.now(UTC) - OLD)
            except (TasktrailError, NatsError, OSError) as error:
                _log.warning("the object bucket is swept next time: %s", error)

    async def sweep(self, before: datetime) -> int:
        """Remove the orphans stored before this moment. Returns how many."""
        bucket = await self._js.object_store(PAYLOADS)
        try:
            stored = await bucket.list()
        except NotFoundError:
            return 0
        removed = 0
        for info in stored:
            ref = info.description or ""
            at = datetime.fromisoformat(info.mtime) if info.mtime else before
            if at >= before or not is_task_ref(ref):
                continue
            state = await self._states.by_handle(ref)
            if state is None or info.name not in {one.sha256 for one in committed(state.task)}:
                await bucket.delete(info.name)
                removed += 1
        return removed


def committed(task: Task) -> tuple[Commitment, ...]:
    """Every payload that may be in the bucket and that the task's entries commit to."""
    found = [task.arguments, task.message, task.result, task.error]
    for one in task.inputs.values():
        found += [one.request, one.response]
    return tuple(commitment for commitment in found if commitment is not None)
