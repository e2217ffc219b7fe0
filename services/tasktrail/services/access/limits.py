"""What one principal, and one tenant, may have at once or in a minute (`[limits]`), and whose turn it is.

Guarantees: never more than N creations, or N failed look-ups that are told as such, within any 60 s; a poll that comes
`poll_interval_ms` or more after the last answered one is never limited; a principal's requests wait for each other,
nobody else's for them; what is refused says its setting and when to come again. A principal is the identity context a
handle is bound to, so anonymous callers of a tenant are one.

Each service process counts for itself: two of them allow up to twice as much. Live tasks are exact across processes, up
to the lag of the projection, when every state is `observe`d, at the start those that the bucket holds. Memory is
bounded: what is forgotten, the longest unused first, can only make a limit come later. A clock that is set back never
holds anybody up.

    async with limits.turn(who):
        limits.create(who, ref)       # each raises RateLimited
        limits.poll(state, who)
        limits.missed(who)
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable, Hashable

from tasktrail.events.authority import Binding
from tasktrail.events.errors import RateLimited
from tasktrail.projections.current import State
from tasktrail.services import configuration

MINUTE_S = 60
SECOND_MS = 1_000
KEYS_MAX = 10_000
"""Principals, and tenants, whose minute is remembered."""
POLLS_MAX = 100_000
"""Pairs of a task and who polls it whose pace is remembered."""
LIVE_MAX = 1_000_000
"""Live tasks counted."""
CREATING_MS = 15_000
"""A creation counts as a live task for this long unless it is observed to be one: it may have come to nothing."""
SWEEP_MS = 10_000
"""Tasks whose time is over, though nobody said that they ended, are looked for this often at most."""
LIVE_RETRY_MS = 5_000
"""When to come again when a task has to end first: a guess, nobody can know."""
WAITING_PER_TURN = 7
"""How many requests of a principal may wait for each that is worked on; more are refused at once."""
TURN_WITHIN_S = 0.5
"""How long one waits: what is left of the two seconds of promise 1 after `answer_within_ms`."""
TURN_RETRY_MS = 1_000


class _Seconds:
    """How much happened in each second, oldest first, and in all of them."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = 0

    def keep(self, first: int, last: int) -> None:
        """Leave out what is before `first`, or after `last`: of before the clock was set back."""
        while self.counts and (oldest := next(iter(self.counts))) < first:
            self.total -= self.counts.pop(oldest)
        while self.counts and (newest := next(reversed(self.counts))) > last:
            self.total -= self.counts.pop(newest)


class Minute:
    """Counts, by key, what happened in the last 60 s, to the second: at most `most` in any 60 s."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._seconds: OrderedDict[Hashable, _Seconds] = OrderedDict()

    def wait_ms(self, key: Hashable, now_ms: int) -> int:
        """How long until one more fits; 0 when it does now."""
        seconds = self._seconds.get(key)
        if seconds is None:
            return 0
        now_s = now_ms // SECOND_MS
        seconds.keep(now_s - MINUTE_S, now_s)
        if seconds.total < self.most:
            return 0
        return (next(iter(seconds.counts)) + MINUTE_S + 1) * SECOND_MS - now_ms

    def add(self, key: Hashable, now_ms: int) -> None:
        """One more has happened, after `wait_ms` said that it may."""
        seconds = self._seconds.setdefault(key, _Seconds())
        now_s = now_ms // SECOND_MS
        seconds.counts[now_s] = seconds.counts.get(now_s, 0) + 1
        seconds.total += 1
        self._seconds.move_to_end(key)
        while len(self._seconds) > KEYS_MAX:
            self._seconds.popitem(last=False)


class Pace:
    """Lets through, by key, one in each interval and `early` more; these come back, one with each interval.

    It holds the time up to which the intervals of the answered ones reach (the generic cell rate algorithm).
    """

    def __init__(self, early: int) -> None:
        self._early = early
        self._reach: OrderedDict[Hashable, int] = OrderedDict()

    def wait_ms(self, key: Hashable, interval_ms: int, now_ms: int) -> int:
        """How long until the next is let through; 0 when this one is, and then it counts."""
        room = self._early * interval_ms
        ahead = max(0, self._reach.get(key, now_ms) - now_ms)
        if ahead > room + interval_ms:  # no sequence of polls does that: the clock was set back
            ahead = room
        if ahead > room:
            return ahead - room
        self._reach[key] = now_ms + ahead + interval_ms
        self._reach.move_to_end(key)
        while len(self._reach) > POLLS_MAX:
            self._reach.popitem(last=False)
        return 0


class Live:
    """Counts the live tasks of each principal and tenant, by reference, each until a time when it is over anyway."""

    def __init__(self) -> None:
        self._tasks: dict[str, tuple[Binding, int]] = {}
        self._swept_ms: int | None = None
        self.count: Counter[Binding | str] = Counter()
        """How many, by principal and by tenant."""

    def __contains__(self, ref: str) -> bool:
        return ref in self._tasks

    def add(self, ref: str, who: Binding, until_ms: int) -> None:
        """This one is live."""
        self.discard(ref)
        self._tasks[ref] = who, until_ms
        self.count.update((who, who.tenant))
        while len(self._tasks) > LIVE_MAX:
            self.discard(next(iter(self._tasks)))

    def discard(self, ref: str) -> None:
        """This one is not, if it was."""
        who, _ = self._tasks.pop(ref, (None, 0))
        if who is None:
            return
        for key in (who, who.tenant):
            self.count[key] -= 1
            if not self.count[key]:
                del self.count[key]

    def sweep(self, now_ms: int) -> None:
        """Leave out those whose time is over, if that was not done just now."""
        if self._swept_ms is not None and 0 <= now_ms - self._swept_ms < SWEEP_MS:
            return
        self._swept_ms = now_ms
        for ref in [ref for ref, (_, until_ms) in self._tasks.items() if until_ms <= now_ms]:
            self.discard(ref)


class _Turns:
    """The requests of one principal: how many there are, and the places for those being worked on."""

    def __init__(self, places: int) -> None:
        self.requests = 0
        self.free = asyncio.Semaphore(places)


class Limits:
    """The limits of one service process. `clock` tells epoch milliseconds."""

    def __init__(self, limits: configuration.Limits, clock: Callable[[], int]) -> None:
        self._limits, self._clock = limits, clock
        self._live = Live()
        self._creations = (
            Minute(limits.creations_per_minute_per_principal),
            Minute(limits.creations_per_minute_per_tenant),
        )
        self._misses = (
            Minute(limits.failed_lookups_per_minute_per_principal),
            Minute(limits.failed_lookups_per_minute_per_tenant),
        )
        self._polls = Pace(limits.polls_early)
        self._turns: dict[Binding, _Turns] = {}

    def observe(self, state: State) -> None:
        """Whether a task is live. Give the bucket's states before the projector goes on from there, then its own."""
        if state.task.live:
            self._live.add(state.task_ref, state.task.binding, state.task.expires_at_ms)
        else:
            self._live.discard(state.task_ref)

    def create(self, who: Binding, ref: str) -> None:
        """This principal is about to make the task `ref`. The same creation, sent again, counts once.

        Raises:
            RateLimited: it, or its tenant, has as many live tasks, or made as many in a minute, as it may.
        """
        if ref in self._live:
            return
        now, limits = self._clock(), self._limits
        counted: tuple[tuple[int, str, Binding | str], ...] = (
            (limits.live_tasks_per_principal, "live_tasks_per_principal", who),
            (limits.live_tasks_per_tenant, "live_tasks_per_tenant", who.tenant),
        )
        for most, setting, key in counted:
            if self._live.count[key] < most:
                continue
            self._live.sweep(now)
            if self._live.count[key] >= most:
                message = f"{most} tasks are live (limits.{setting}); let one end, or cancel it, and come again"
                raise RateLimited(message, LIVE_RETRY_MS)
        self._count(self._creations, "creations_per_minute", "tasks were made", who, now)
        self._live.add(ref, who, now + CREATING_MS)

    def poll(self, state: State, who: Binding) -> None:
        """This principal polls this task.

        Raises:
            RateLimited: it came within the polling interval more often than `polls_early`.
        """
        self._pace((state.task_ref, who), "this task is to be polled", state.task.poll_interval_ms)

    def list(self, who: Binding, every_ms: int) -> None:
        """This principal lists its tasks: as often as one of them is to be polled, for each is looked at.

        Raises:
            RateLimited: it came within that time more often than `polls_early`.
        """
        self._pace(("", who), "tasks are to be listed", every_ms)

    def _pace(self, key: Hashable, what: str, every_ms: int) -> None:
        wait_ms = self._polls.wait_ms(key, every_ms, self._clock())
        if wait_ms:
            message = (
                f"{what} every {every_ms} ms, and {self._limits.polls_early} polls came earlier "
                f"(limits.polls_early); come again in {wait_ms} ms"
            )
            raise RateLimited(message, wait_ms)

    def missed(self, who: Binding) -> None:
        """This principal looked for a task that it may not open, for whatever reason.

        After the look-up, never before: who is over the limit still opens what is its own, and all that it may not open
        is refused alike.

        Raises:
            RateLimited: it, or its tenant, did so as often in a minute as it may. Say this instead of `TaskNotFound`.
        """
        self._count(self._misses, "failed_lookups_per_minute", "look-ups found nothing", who, self._clock())

    @staticmethod
    def _count(minutes: tuple[Minute, Minute], setting: str, what: str, who: Binding, now: int) -> None:
        """One more by this principal and within its tenant: counted for both or, when it is refused, for neither."""
        keys = ((minutes[0], who, "principal"), (minutes[1], who.tenant, "tenant"))
        for minute, key, whose in keys:
            wait_ms = minute.wait_ms(key, now)
            if wait_ms:
                message = (
                    f"{minute.most} {what} within a minute (limits.{setting}_per_{whose}); come again in {wait_ms} ms"
                )
                raise RateLimited(message, wait_ms)
        for minute, key, _ in keys:
            minute.add(key, now)

    @contextlib.asynccontextmanager
    async def turn(self, who: Binding) -> AsyncGenerator[None]:
        """Wait until this principal has few enough requests being worked on, in the order they came.

        Raises:
            RateLimited: too many of its own wait already, or this one waited `TURN_WITHIN_S`.
        """
        places = self._limits.in_flight_per_principal
        turns = self._turns.setdefault(who, _Turns(places))
        if turns.requests >= places * (1 + WAITING_PER_TURN):
            raise _busy(places)
        turns.requests += 1
        try:
            await _place(turns, places)
            try:
                yield
            finally:
                turns.free.release()
        finally:
            turns.requests -= 1
            if not turns.requests:
                del self._turns[who]


async def _place(turns: _Turns, places: int) -> None:
    """Wait for a place among the requests being worked on."""
    try:
        async with asyncio.timeout(TURN_WITHIN_S):
            await turns.free.acquire()
    except TimeoutError:
        raise _busy(places) from None


def _busy(places: int) -> RateLimited:
    message = f"{places} requests of this caller are being worked on (limits.in_flight_per_principal), and more wait"
    return RateLimited(f"{message}; come again in {TURN_RETRY_MS} ms", TURN_RETRY_MS)
