"""The timekeeper: ends tasks whose time is over, and cancellations that nobody confirmed.

Guarantees: a timer is a caller with an identity of its own (`trigger: timer`), never the requestor's; its commands have
fixed ids, so any number of timekeepers end a task once; after a restart the timers are read back from the current
states. Access ends at the time to live whether or not a timer has fired (see `access.gate`).

    timekeeper.observe(state)      # fed by the projector
"""

import asyncio
import heapq
import logging

import msgspec
from nats.errors import Error as NatsError
from nats.js import JetStreamContext, api

from tasktrail.events import decide
from tasktrail.events.authority import Trigger
from tasktrail.events.errors import NothingWritten, TasktrailError
from tasktrail.events.subjects import CURRENT
from tasktrail.projections import current
from tasktrail.projections.current import State
from tasktrail.services.access.callers import service_authority
from tasktrail.services.access.rules import Rule, decision
from tasktrail.services.ending import end
from tasktrail.services.ledger import Ledger
from tasktrail.services.states import States

_log = logging.getLogger(__name__)

EXPIRE = "timer:expire"
UNCONFIRMED = "timer:unconfirmed"
RETRY_MS = 1_000
AT_ONCE = 64
_LONGEST_NAP_S = 60.0
_FETCH = 500


class Timekeeper:
    """Timers in memory, due times from the states."""

    def __init__(self, ledger: Ledger, states: States, js: JetStreamContext, *, cancel_grace_ms: int) -> None:
        self._ledger, self._states, self._js, self._grace_ms = ledger, states, js, cancel_grace_ms
        self._due: list[tuple[int, str, str, str]] = []
        self._set: set[tuple[str, str]] = set()
        self._sooner = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the timers of live tasks back from the bucket, then keep time."""
        await self._recover()
        self._running = asyncio.create_task(self._keep_time())

    async def stop(self) -> None:
        """Stop; what is due fires after the next start."""
        if self._running is not None:
            await end(self._running)
            self._running = None

    def observe(self, state: State) -> None:
        """A task moved: set its timers."""
        task = state.task
        if task.expired_at_ms is not None:
            return
        self._add(task.expires_at_ms, state, EXPIRE)
        if task.cancel_requested_at_ms is not None and not task.status.terminal:
            self._add(task.cancel_requested_at_ms + self._grace_ms, state, UNCONFIRMED)

    def _add(self, due_ms: int, state: State, what: str) -> None:
        if (state.task_ref, what) in self._set:
            return
        self._set.add((state.task_ref, what))
        heapq.heappush(self._due, (due_ms, state.task_ref, state.tenant, what))
        if self._due[0][0] == due_ms:
            self._sooner.set()

    async def _recover(self) -> None:
        consumer = await self._js.pull_subscribe(
            f"$KV.{CURRENT}.>",
            stream=f"KV_{CURRENT}",
            config=api.ConsumerConfig(
                ack_policy=api.AckPolicy.NONE, deliver_policy=api.DeliverPolicy.ALL, inactive_threshold=30
            ),
        )
        try:
            left = (await consumer.consumer_info()).num_pending or 0
            while left > 0:
                messages = await consumer.fetch(min(_FETCH, left), timeout=5)
                left -= len(messages)
                for message in messages:
                    state = current.decode(message.data) if message.data else None
                    if state is not None:
                        self.observe(state)
        finally:
            await consumer.unsubscribe()

    async def _keep_time(self) -> None:
        while True:
            now = self._ledger.now()
            ready: list[tuple[int, str, str, str]] = []
            while self._due and self._due[0][0] <= now and len(ready) < AT_ONCE:
                ready.append(heapq.heappop(self._due))
            if ready:
                await asyncio.gather(*(self._fire(*one) for one in ready))
                continue
            nap_s = min(_LONGEST_NAP_S, (self._due[0][0] - now) / 1000) if self._due else _LONGEST_NAP_S
            self._sooner.clear()
            try:
                async with asyncio.timeout(max(0.001, nap_s)):
                    await self._sooner.wait()
            except TimeoutError:
                continue

    async def _fire(self, due_ms: int, ref: str, tenant: str, what: str) -> None:
        try:
            await self._end(ref, tenant, what)
        except (TasktrailError, NatsError, OSError) as error:
            _log.warning("a timer of task %s fires again in %d ms: %s", ref, RETRY_MS, error)
            heapq.heappush(self._due, (max(due_ms, self._ledger.now()) + RETRY_MS, ref, tenant, what))
        else:
            self._set.discard((ref, what))

    async def _end(self, ref: str, tenant: str, what: str) -> None:
        state = await self._states.of(tenant, ref)
        if state is None or state.task.expired_at_ms is not None:
            return
        command: decide.TaskCommand = decide.ExpireTask(id=EXPIRE)
        if what == EXPIRE and self._ledger.now() < state.task.expires_at_ms:
            message = "the clock went back; its command id must not be spent on a refusal"
            raise NothingWritten(message)
        if what == UNCONFIRMED:
            if state.task.status.terminal:
                return
            command = decide.StopTask(id=UNCONFIRMED, reason="unconfirmed")
        authority = msgspec.structs.replace(
            service_authority(Trigger.TIMER, tenant, "timekeeper"),
            created_by=state.task.created_by,
            decision=decision(Rule.TIME_IS_UP, what, state.task.binding),
        )
        await self._ledger.submit(tenant, ref, command, authority)
