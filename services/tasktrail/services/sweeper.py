"""The sweeper: removes sealed payloads from the object bucket that no entry came to commit to, or that are shredded.

Guarantees: a blob is removed only when it is older than a day and no entry of its task commits to it, or its task was
shredded; what is committed to, were it by a status text long overwritten, stays as long as its task's key does.

    sweeper = Sweeper(js, states)
    await sweeper.start()
"""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from nats.errors import Error as NatsError
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError

from tasktrail.events import entry as entries
from tasktrail.events.entry import Entry
from tasktrail.events.errors import TasktrailError
from tasktrail.events.facts import Commitment
from tasktrail.events.subjects import PAYLOADS, TRAIL, is_task_ref, task_subject
from tasktrail.events.task import Task
from tasktrail.projections.current import State
from tasktrail.services.ending import end
from tasktrail.services.fetching import fetch
from tasktrail.services.states import States

_log = logging.getLogger(__name__)

EVERY_S = 3_600.0
_FETCH = 500
_FETCH_S = 5.0
_GONE_S = 30.0
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
            await end(self._running)
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
            if state is None or state.task.shredded_at_ms is not None or not await self._is_committed(state, info.name):
                await bucket.delete(info.name)
                removed += 1
        return removed

    async def _is_committed(self, state: State, sha256: str | None) -> bool:
        """Whether the task commits to this blob: by its state, or by any of its entries."""
        if sha256 in {one.sha256 for one in committed(state.task)}:
            return True
        config = api.ConsumerConfig(ack_policy=api.AckPolicy.NONE, inactive_threshold=_GONE_S)
        consumer = await self._js.pull_subscribe(
            task_subject(state.tenant, state.task_ref), stream=TRAIL, config=config
        )
        try:
            left = (await consumer.consumer_info()).num_pending or 0
            while left > 0:
                messages = await fetch(consumer, min(_FETCH, left), timeout_s=_FETCH_S)
                left -= len(messages)
                if any(sha256 in _digests(entries.decode(message.data)) for message in messages):
                    return True
        finally:
            await consumer.unsubscribe()
        return False


def committed(task: Task) -> tuple[Commitment, ...]:
    """Every payload that may be in the bucket and that the task's entries commit to."""
    found = [task.arguments, task.message, task.result, task.error]
    for one in task.inputs.values():
        found += [one.request, one.response]
    return tuple(commitment for commitment in found if commitment is not None)


def _digests(entry: Entry) -> set[str]:
    values = (getattr(event, field) for event in entry.events for field in event.__struct_fields__)
    return {value.sha256 for value in values if isinstance(value, Commitment)}
