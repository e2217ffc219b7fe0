"""Timers as message schedules in the stream TIMERS (ADR-51), and which timers a task needs.

Guarantees: one timer of each kind for a task: setting it again moves it; what a timer fired stays in the stream until
it was acknowledged. The subjects: `timer.<gen>.pending.<what>.<task_ref>` holds the schedule, which publishes to
`timer.<gen>.fired.<what>.<task_ref>` when the broker's clock has reached it. A worker's lease is a timer, too: its
subjects end with `lease.<server>.<worker>`.

Needs a stream with `allow_msg_schedules` and `allow_direct` (nats-server 2.12 or later); see `trail.timers`.

    timers = TimerStream(nc, js)
    for timer in await timers.lacking(wanted(state, settings)):
        await timers.set(timer)
"""

import re
from collections.abc import Iterable
from enum import StrEnum

import msgspec
from nats.aio.client import Client
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError

from tasktrail.events.subjects import GENERATION, TIMERS, is_task_ref, tenant_token
from tasktrail.projections.current import State
from tasktrail.services.clock import rfc3339
from tasktrail.services.lifetime import shred_at_ms
from tasktrail.services.settings import Settings

CONSUMER = "timekeeper"
ACK_WAIT_S = 30.0
"""How long whoever was given a fired timer has to deal with it before somebody else is given it."""
IN_HAND_MAX = 10_000
LATEST_MS = 253_000_000_000_000
"""The latest time that is set: in the year 9987, for RFC 3339 ends with 9999."""

_SCHEDULE = "Nats-Schedule"
_TARGET = "Nats-Schedule-Target"
_DIRECT = f"$JS.API.DIRECT.GET.{TIMERS}"
_READ_S = 5.0
ASKED_MAX = 512
"""How many subjects one direct request may name; the server takes 1,024."""


class What(StrEnum):
    """What a timer is for."""

    EXPIRE = "expire"  # the handle ends
    UNCONFIRMED = "unconfirmed"  # nobody confirmed a cancellation
    SHRED = "shred"  # the payloads' retention ends
    LEASE = "lease"  # a worker's lease ends


OF_TASKS = (What.EXPIRE, What.UNCONFIRMED, What.SHRED)


class Timer(msgspec.Struct, frozen=True, kw_only=True):
    """One timer of one task, due at an epoch millisecond of the Ledger's clock.

    A lease is of a `worker` of an MCP server instead, and of no task.
    """

    what: What
    tenant: str
    task_ref: str
    due_ms: int
    server: str = ""
    worker: str = ""

    @property
    def pending(self) -> str:
        """The subject of its schedule."""
        return pending(self.what, self._whose)

    @property
    def fired(self) -> str:
        """The subject that it fires to."""
        return f"timer.{GENERATION}.fired.{self.what}.{self._whose}"

    @property
    def _whose(self) -> str:
        return self.task_ref if self.what is not What.LEASE else f"{tenant_token(self.server)}.{self.worker}"


def pending(what: What, whose: str) -> str:
    """The subject of the schedule of a task's, or a worker's, timer of this kind."""
    return f"timer.{GENERATION}.pending.{what}.{whose}"


_timer = msgspec.json.Decoder(Timer)
_WORKER = re.compile(r"[A-Za-z0-9_-]{1,64}")


def wanted(state: State, settings: Settings) -> tuple[Timer, ...]:
    """The timers that a task needs as it is now. A task under a hold has none to shred it."""
    task, due = state.task, dict[What, int]()
    if task.expired_at_ms is None:
        due[What.EXPIRE] = task.expires_at_ms
        if task.cancel_requested_at_ms is not None and not task.status.terminal:
            due[What.UNCONFIRMED] = task.cancel_requested_at_ms + settings.cancel_grace_ms
    elif task.shredded_at_ms is None and not task.holds:
        due[What.SHRED] = shred_at_ms(settings, task.expired_at_ms, task.retention_ms)
    return tuple(
        Timer(what=what, tenant=state.tenant, task_ref=state.task_ref, due_ms=at_ms) for what, at_ms in due.items()
    )


def decode(body: bytes) -> Timer | None:
    """The timer that fired this message; None when it is none of ours."""
    try:
        timer = _timer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if timer.what is What.LEASE:
        return timer if timer.server and _WORKER.fullmatch(timer.worker) else None
    return timer if is_task_ref(timer.task_ref) else None


class TimerStream:
    """The stream TIMERS, and the one consumer of what fires that all timekeepers share."""

    def __init__(self, nc: Client, js: JetStreamContext) -> None:
        self._nc, self._js = nc, js

    async def set(self, timer: Timer) -> None:
        """Set a timer, or move it. One that is due already fires at once.

        Raises:
            nats.errors.Error: the stream is not there or does not answer.
        """
        at = rfc3339(min(max(timer.due_ms, 0), LATEST_MS))
        headers = {_SCHEDULE: f"@at {at}", _TARGET: timer.fired}
        await self._js.publish(timer.pending, msgspec.json.encode(timer), headers=headers)

    async def lacking(self, timers: Iterable[Timer]) -> list[Timer]:
        """Those of these timers that are neither set for their time nor fired and waiting to be dealt with.

        A lease is not lacking, whatever it is set for.

        Raises:
            nats.errors.Error, TimeoutError: the stream is not there or does not answer.
        """
        asked = list(timers)
        found: list[Timer] = []
        for start in range(0, len(asked), ASKED_MAX // 2):
            some = asked[start : start + ASKED_MAX // 2]
            there = await self._bodies([subject for timer in some for subject in (timer.pending, timer.fired)])
            for timer in some:
                held = decode(there.get(timer.pending, b""))
                moved = held is None or (held.due_ms != timer.due_ms and timer.what is not What.LEASE)
                if timer.fired not in there and moved:
                    found.append(timer)
        return found

    async def is_set(self, timer: Timer) -> bool:
        """Whether its schedule is there and has not fired, as the stream's leader says.

        Raises:
            nats.errors.Error: the stream is not there or does not answer.
        """
        try:
            await self._js.get_last_msg(TIMERS, timer.pending, direct=False)
        except NotFoundError:
            return False
        return True

    async def _bodies(self, subjects: list[str]) -> dict[str, bytes]:
        """The last message of each of these subjects that has one, by one direct request."""
        found: dict[str, bytes] = {}
        inbox = self._nc.new_inbox()
        subscription = await self._nc.subscribe(inbox)
        try:
            question = msgspec.json.encode({"multi_last": subjects, "batch": len(subjects)})
            await self._nc.publish(_DIRECT, question, reply=inbox)
            while len(found) < len(subjects):
                message = await subscription.next_msg(timeout=_READ_S)
                headers = message.headers or {}
                if "Nats-Subject" not in headers:
                    break
                found[headers["Nats-Subject"]] = message.data
        finally:
            await subscription.unsubscribe()
        return found

    async def place(self) -> bool:
        """Make the consumer when there is none. Returns whether it was made, which says that the stream is new.

        Raises:
            nats.js.errors.NotFoundError: there is no stream.
        """
        if await self.is_placed():
            return False
        await self._js.add_consumer(
            TIMERS,
            api.ConsumerConfig(
                durable_name=CONSUMER,
                description="tasktrail: timers that fired",
                filter_subject=f"timer.{GENERATION}.fired.>",
                ack_policy=api.AckPolicy.EXPLICIT,
                ack_wait=ACK_WAIT_S,
                max_ack_pending=IN_HAND_MAX,
            ),
        )
        return True

    async def is_placed(self) -> bool:
        """Whether the consumer is there."""
        try:
            await self._js.consumer_info(TIMERS, CONSUMER)
        except NotFoundError:
            return False
        return True

    async def fired(self) -> JetStreamContext.PullSubscription:
        """What fires, to be fetched and acknowledged."""
        return await self._js.pull_subscribe_bind(CONSUMER, stream=TIMERS)
