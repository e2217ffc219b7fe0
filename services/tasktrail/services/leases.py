"""Leases: which of the processes that run tasks are alive, and what becomes of the tasks of one that is not.

Guarantees: a worker has one lease for all its tasks, a message schedule in the stream TIMERS that each renewal moves;
any process of the service notices its end. A worker is lost only when its lease has lapsed by the Ledger's clock, was
not renewed meanwhile, and could have been: after an outage of the broker, a start, or a pause of this process every
worker has another whole lease, and `RETURN_MS` to come back. Whatever task names a worker has a lease that will end:
what is lacking is set again; a server cannot have leases without end. Renewals are not on the trail; that a worker was
lost is.

    leases = Leases(nc, js, ledger.now, lease_ms=30_000, lose=losing.lapsed)
    await leases.start()
    await leases.renew("reports", "9f2c…")
    leases.observe(state)          # fed by the projector
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext

from tasktrail.events.errors import RateLimited
from tasktrail.events.subjects import TIMERS
from tasktrail.projections.current import State
from tasktrail.services.ending import end
from tasktrail.services.timers import Timer, TimerStream, What

_log = logging.getLogger(__name__)

RETURN_MS = 3_000
"""After an outage: how long connections may take to come back before leases count again."""
LOOK_MS_MAX = 1_000
"""How often, at the most rarely, it is looked whether the broker answers."""
LOOKS_PER_LEASE = 4
AT_ONCE = 256
WORKERS_MAX, WORKERS_OF_ALL = 1_000, 10_000
"""How many processes of one MCP server, and of all, may have a lease, and no task, in one process of the service."""
NAP_MS = 60_000


class Worker(NamedTuple):
    """A process that runs tasks, of one MCP server."""

    server: str
    worker: str


class Held(NamedTuple):
    """One live task of a worker."""

    tenant: str
    task_ref: str
    attempt: int


Lose: TypeAlias = Callable[[Held, Worker], Awaitable[None]]
"""Deals with one task of a worker that was lost, if it still is that worker's."""


class Leases:
    """The leases of all workers, and which live tasks each of them runs."""

    def __init__(self, nc: Client, js: JetStreamContext, now: Callable[[], int], *, lease_ms: int, lose: Lose) -> None:
        """`now` is the Ledger's clock."""
        self._js, self._now, self.lease_ms, self._lose = js, now, lease_ms, lose
        self._timers = TimerStream(nc, js)
        self._tasks: dict[Worker, dict[str, Held]] = {}
        self._worker_of: dict[str, Worker] = {}
        self._until: dict[Worker, int] = {}
        self._look_ms = min(LOOK_MS_MAX, lease_ms // LOOKS_PER_LEASE)
        self._steady_since_ms = self._answered_ms = now()
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin. From now on every worker has a whole lease."""
        self._steady_since_ms = self._answered_ms = self._now()
        self._running = asyncio.create_task(self._look_for_ever())

    async def stop(self) -> None:
        """Stop. Leases that end meanwhile are dealt with after the next start, each after another whole lease."""
        if self._running is not None:
            await end(self._running)
            self._running = None

    async def renew(self, server: str, worker: str) -> None:
        """A worker is alive.

        Raises:
            RateLimited: it has no task, and as many others of its server have none either.
            nats.errors.Error: the stream of timers is not there or does not answer.
        """
        one = Worker(server, worker)
        before = self._until.get(one)
        if before is None and one not in self._tasks:
            self._see_room(server)
        until_ms = self._now() + self.lease_ms
        self._until[one] = until_ms  # before the wait: others that come meanwhile count it
        try:
            await self._timers.set(_timer(one, until_ms))
        except BaseException:
            if before is None:
                self._until.pop(one, None)
            else:
                self._until[one] = before
            raise

    def _see_room(self, server: str) -> None:
        """Raises RateLimited: processes without a task have as many leases as there may be."""
        idle = [known for known in self._until if known not in self._tasks]
        if len(idle) >= WORKERS_OF_ALL or sum(known.server == server for known in idle) >= WORKERS_MAX:
            message = (
                f"{WORKERS_MAX} processes of this MCP server, or {WORKERS_OF_ALL} of all, have a lease and no task; a "
                f"process has one name for as long as it lives, and those that are gone are forgotten within "
                f"{self.lease_ms} ms"
            )
            raise RateLimited(message, self.lease_ms)

    def observe(self, state: State) -> None:
        """A task moved: whose is it now? Never waits."""
        task, ref = state.task, state.task_ref
        before = self._worker_of.pop(ref, None)
        if before is not None:
            held = self._tasks[before]
            held.pop(ref, None)
            if not held:
                del self._tasks[before]
        if task.worker and task.live:
            one = self._worker_of[ref] = Worker(task.server, task.worker)
            self._tasks.setdefault(one, {})[ref] = Held(state.tenant, ref, task.attempt)

    def tasks_of(self, server: str, worker: str) -> list[Held]:
        """The live tasks of a worker, as far as they were observed."""
        return list(self._tasks.get(Worker(server, worker), {}).values())

    async def lapsed(self, timer: Timer) -> int:
        """Deal with a lease whose timer fired. Returns in how many ms it is to be dealt with again, 0 when done.

        Raises:
            TasktrailError, nats.errors.Error: some task could not be dealt with; it is to be tried again.
        """
        one, now = Worker(timer.server, timer.worker), self._now()
        if now < timer.due_ms:
            return min(timer.due_ms - now, NAP_MS)
        if await self._timers.is_set(timer):
            return 0
        if not 0 <= now - self._answered_ms <= self._gap_ms:
            return self._look_ms
        earliest_ms = self._steady_since_ms + self.lease_ms + RETURN_MS
        if now < earliest_ms and one in self._tasks:
            await self._timers.set(_timer(one, earliest_ms))
            self._until[one] = earliest_ms
            return 0
        lost = self.tasks_of(*one)
        if lost:
            _log.warning("worker %s of server %s is lost, with %d tasks", one.worker, one.server, len(lost))
        for start in range(0, len(lost), AT_ONCE):
            await asyncio.gather(*(self._lose(held, one) for held in lost[start : start + AT_ONCE]))
        self._until.pop(one, None)
        return 0

    @property
    def _gap_ms(self) -> int:
        """A pause longer than this between two answers of the broker is an outage: renewals may have been lost."""
        return max(self.lease_ms // 2, 2 * self._look_ms)

    async def _look_for_ever(self) -> None:
        while True:
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001 - whatever it was, leases go on
                if not isinstance(error, (NatsError, OSError, TimeoutError)):
                    _log.exception("leases are looked after again in %d ms", self._look_ms)
            await asyncio.sleep(self._look_ms / 1000)

    async def _look(self) -> None:
        """See that the broker answers, and that every worker with tasks has a lease that will end."""
        async with asyncio.timeout(self._gap_ms / 1000):
            await self._js.stream_info(TIMERS)
        now = self._now()
        if not 0 <= now - self._answered_ms <= self._gap_ms:
            self._steady_since_ms = now
        self._answered_ms = now
        for one in [one for one, until in self._until.items() if until <= now and one not in self._tasks]:
            del self._until[one]
        unsure = [one for one in self._tasks if self._until.get(one, 0) <= now]
        for timer in await self._timers.lacking(_timer(one, now + self.lease_ms) for one in unsure):
            await self._timers.set(timer)
        self._until |= dict.fromkeys(unsure, now + self.lease_ms)


def _timer(one: Worker, due_ms: int) -> Timer:
    return Timer(what=What.LEASE, tenant="", task_ref="", server=one.server, worker=one.worker, due_ms=due_ms)
