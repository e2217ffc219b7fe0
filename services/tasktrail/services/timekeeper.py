"""The timekeeper: ends tasks whose time is over and cancellations that nobody confirmed, and shreds what was kept.

It also hands the leases of workers that end to whoever deals with them (`leases`).

Guarantees: timers are message schedules in the stream TIMERS (see `timers`), so they outlive this process and the
broker; the stream is disposable, for what it lacks is set again from the current states at the next start. A timer is a
caller with an identity of its own (`trigger: timer`), never the requestor's. Any number of timekeepers may run: setting
a timer twice does no harm, what one fired is dealt with by one of them, and the ids of its commands end a task once.
What fails is tried again until it succeeds. Nothing happens before its time by the Ledger's clock, whatever the
broker's says. Access ends at the time to live whether or not a timer has fired (see `access.gate`).

    timekeeper = Timekeeper(nc, js, ledger, states, settings, shredder)
    await timekeeper.start()
    timekeeper.observe(state)      # fed by the projector
"""

import asyncio
import contextlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext

from tasktrail.events import commands
from tasktrail.events.authority import Authority, Standing, Trigger
from tasktrail.events.errors import TasktrailError
from tasktrail.events.subjects import TIMERS
from tasktrail.events.task import Outcome, Task
from tasktrail.projections.current import State
from tasktrail.services import trail
from tasktrail.services.access.callers import service_authority
from tasktrail.services.access.rules import Rule, decision
from tasktrail.services.ending import end
from tasktrail.services.fetching import fetch
from tasktrail.services.ledger import Ledger
from tasktrail.services.settings import Settings
from tasktrail.services.shredder import Shredder
from tasktrail.services.states import States
from tasktrail.services.timers import OF_TASKS, Timer, TimerStream, What, decode, pending, wanted

_log = logging.getLogger(__name__)

EXPIRE = "timer:expire"
UNCONFIRMED = "timer:unconfirmed"
RETRY_MS = 1_000
RETRIES_DOUBLED = 6
"""After so many tries the pause between them does not grow any more: 64 times `RETRY_MS`."""
AT_ONCE = 64
WAITING_MAX = 100_000
"""How many timers may wait to be set; when more do, they are read back from the bucket afterwards."""
KNOWN_MAX = 100_000
LONGEST_NAP_MS = 60_000
_IDLE_S = 5.0
_FETCH = 500


def _unsaid(_task: Task) -> Standing | None:
    return None


async def _unheeded(_lease: Timer) -> int:
    return 0


class Timekeeper:
    """Sets timers of the states it is told, and deals with those that fire."""

    def __init__(  # noqa: PLR0913, PLR0917 - its collaborators
        self,
        nc: Client,
        js: JetStreamContext,
        ledger: Ledger,
        states: States,
        settings: Settings,
        shredder: Shredder,
        *,
        standing: Callable[[Task], Standing | None] = _unsaid,
        lapsed: Callable[[Timer], Awaitable[int]] = _unheeded,
    ) -> None:
        """`lapsed` deals with a lease that ended; it says in how many ms it wants it again, 0 for never."""
        self._js, self._ledger, self._states, self._settings = js, ledger, states, settings
        self._shredder, self._standing, self._lapsed = shredder, standing, lapsed
        self._timers = TimerStream(nc, js)
        self._waiting: dict[str, Timer] = {}
        self._known: OrderedDict[str, int] = OrderedDict()
        self._told = asyncio.Event()
        self._to_read_back = self._reading_back = self._new_stream = False
        self._running: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Whether every timer it knows of is set, and those of the states that were there when it started."""
        return bool(self._running) and not (self._to_read_back or self._reading_back or self._waiting)

    async def start(self) -> None:
        """Begin. An embedded broker's stream is made when it is missing.

        Raises:
            nats.js.errors.NotFoundError: an external broker has no stream TIMERS: `tasktrail init` makes it.
        """
        await self._place()
        self._to_read_back = True
        self._running = [asyncio.create_task(self._set_for_ever()), asyncio.create_task(self._deal_for_ever())]

    async def stop(self) -> None:
        """Stop. What fires meanwhile waits in the stream; what was not set yet is set after the next start."""
        for task in self._running:
            await end(task)
        self._running = []

    def observe(self, state: State) -> None:
        """A task moved: its timers are to be set. Never waits."""
        if state.task.shredded_at_ms is not None:
            self._shredder.forget(state.task_ref)
        needed = wanted(state, self._settings)
        for timer in needed:
            if self._known.get(timer.pending) != timer.due_ms:
                self._know(timer)
                self._wait_for(timer)
        self._forget_unwanted(state.task_ref, {timer.what for timer in needed})

    def _forget_unwanted(self, task_ref: str, needed: set[What]) -> None:
        """What a task no longer needs may fire and be dropped by any process; needed again, it is set again."""
        for what in OF_TASKS:
            if what not in needed:
                self._known.pop(pending(what, task_ref), None)

    def _know(self, timer: Timer) -> None:
        self._known[timer.pending] = timer.due_ms
        self._known.move_to_end(timer.pending)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def _wait_for(self, timer: Timer) -> None:
        if len(self._waiting) >= WAITING_MAX and timer.pending not in self._waiting:
            self._to_read_back = True
            self._known.pop(timer.pending, None)
        else:
            self._waiting[timer.pending] = timer
        self._told.set()

    # --- setting timers -----------------------------------------------------------------------------------------------

    async def _set_for_ever(self) -> None:
        tries = 0
        while True:
            try:
                if self._waiting:
                    await self._set_some()
                elif self._to_read_back:
                    await self._read_back()
                else:
                    self._told.clear()
                    await self._told.wait()
                tries = 0
            except Exception as error:  # noqa: BLE001 - whatever it was, timers go on
                tries += 1
                _told(error, f"{len(self._waiting)} timers are set later")
                await asyncio.sleep(_pause_ms(tries) / 1000)

    async def _set_some(self) -> None:
        """Set the timers that have waited longest. Those that fail wait on, and so do those that moved meanwhile."""
        some = list(itertools.islice(self._waiting.values(), AT_ONCE))
        results = await asyncio.gather(*(self._timers.set(timer) for timer in some), return_exceptions=True)
        failed: BaseException | None = None
        for timer, result in zip(some, results, strict=True):
            failed = failed or result
            if result is None and self._waiting.get(timer.pending) is timer:
                del self._waiting[timer.pending]
        if failed is not None:
            raise failed

    async def _read_back(self) -> None:
        """Set the timers that the states in the bucket need and the stream lacks; finish what was left half shredded.

        A half shredded task has its timer, not yet acknowledged; only when the stream is new its key is looked for.
        """
        new_stream, self._new_stream = self._new_stream, False
        self._to_read_back, self._reading_back = False, True
        try:
            async with contextlib.aclosing(self._states.each()) as batches:
                async for states in batches:
                    await self._set_lacking(states)
                    for state in states if new_stream else ():
                        if state.task.shredded_at_ms is not None:
                            await self._shredder.shred(state)
        except BaseException:
            self._to_read_back, self._new_stream = True, self._new_stream or new_stream
            raise
        finally:
            self._reading_back = False

    async def _set_lacking(self, states: list[State]) -> None:
        needed = (timer for state in states for timer in wanted(state, self._settings))
        for timer in await self._timers.lacking(one for one in needed if one.pending not in self._waiting):
            self._know(timer)
            self._waiting.setdefault(timer.pending, timer)
        while len(self._waiting) > _FETCH:
            await self._set_some()

    # --- what fires ---------------------------------------------------------------------------------------------------

    async def _place(self) -> None:
        if self._settings.embedded:
            await trail.create(self._js, only=frozenset({TIMERS}))
        if await self._timers.place():
            self._new_stream = self._to_read_back = True
            self._known.clear()
            self._told.set()

    async def _deal_for_ever(self) -> None:
        tries = 0
        while True:
            try:
                await self._place()
                tries = 0
                await self._deal()
            except Exception as error:  # noqa: BLE001 - whatever it was, timers go on
                tries += 1
                _told(error, "timers that fire are dealt with later")
                await asyncio.sleep(_pause_ms(tries) / 1000)

    async def _deal(self) -> None:
        """Deal with what fires until the consumer is gone: that ends a fetch with nothing, or never."""
        subscription = await self._timers.fired()
        try:
            while True:
                messages: list[Msg] = []
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2 * _IDLE_S):
                        messages = await fetch(subscription, AT_ONCE, timeout_s=_IDLE_S)
                await asyncio.gather(*(self._take(message) for message in messages))
                if not messages and not await self._timers.is_placed():
                    return
        finally:
            with contextlib.suppress(NatsError):
                await subscription.unsubscribe()

    async def _take(self, message: Msg) -> None:
        """Deal with a fired timer and acknowledge it, or have it again later."""
        timer, later_ms = decode(message.data), 0
        try:
            if timer is None:
                _log.error("a message in %s is no timer; it is dropped", TIMERS)
            elif timer.what is What.LEASE:
                later_ms = await self._lapsed(timer)
            else:
                later_ms = await self._fire(timer)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one, the others go on
            later_ms = _pause_ms(message.metadata.num_delivered or 1)
            _told(error, f"{timer and timer.pending} is dealt with in {later_ms} ms again")
        with contextlib.suppress(NatsError):
            if later_ms:
                await message.nak(delay=later_ms / 1000)
            else:
                await message.ack()

    async def _fire(self, timer: Timer) -> int:
        """Do what the timer is for, if it still is for something. Returns in how many ms it is due, 0 when done."""
        state = await self._states.of(timer.tenant, timer.task_ref)
        if state is None:
            return 0
        if timer.what is What.SHRED and state.task.shredded_at_ms is not None:
            await self._shredder.shred(state)
        due = {one.what: one.due_ms for one in wanted(state, self._settings)}
        at_ms, now = due.get(timer.what), self._ledger.now()
        if at_ms is not None and now < at_ms:
            return min(at_ms - now, LONGEST_NAP_MS)
        self._known.pop(timer.pending, None)
        if at_ms is None:
            return 0
        if timer.what is What.SHRED:
            await self._shredder.shred(state)
            return 0
        command: commands.TaskCommand = commands.StopTask(id=UNCONFIRMED, reason="unconfirmed")
        if timer.what is What.EXPIRE:
            # With the entry's number: should the clock go back just now, the refusal is not the outcome for ever.
            command = commands.ExpireTask(id=f"{EXPIRE}:{state.task.seq}")
        done = await self._ledger.submit(state.tenant, state.task_ref, command, self._authority(timer, state))
        self.observe(done.state)
        return RETRY_MS if done.outcome is Outcome.REFUSED else 0

    def _authority(self, timer: Timer, state: State) -> Authority:
        return msgspec.structs.replace(
            service_authority(Trigger.TIMER, state.tenant, "timekeeper"),
            created_by=state.task.created_by,
            standing=self._standing(state.task),
            decision=decision(Rule.TIME_IS_UP, f"timer:{timer.what}", state.task.binding),
        )


def _pause_ms(tries: int) -> int:
    return RETRY_MS << min(tries - 1, RETRIES_DOUBLED)


def _told(error: Exception, what: str) -> None:
    """What is expected to pass is a line in the log; anything else is shown with where it came from."""
    passing = isinstance(error, (TasktrailError, NatsError, OSError, TimeoutError))
    _log.warning("%s: %s", what, str(error) or type(error).__name__, exc_info=None if passing else error)
