"""The projector: from the trail to the bucket of current states.

Guarantees: a state in the bucket never goes back in sequence, with one projector or several; the bucket may be deleted
at any time and comes back, equal; polls never depend on it (see `states`). Its position is kept in the bucket itself
and moves over entries that are in the bucket only: each start reads on from there by a consumer of its own. An entry
that is none, or does not continue its task, is left out and told in the log. Needs the streams of `trail`.

    projector = Projector(js, states, bus, observe)
    await projector.start()
    projector.position, projector.behind
"""

import asyncio
import contextlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import msgspec
from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, NotFoundError

from tasktrail.events import entry as entries
from tasktrail.events.entry import EXPECTED
from tasktrail.events.errors import TasktrailError
from tasktrail.events.subjects import CURRENT, GENERATION, TRAIL, kind_of
from tasktrail.projections import current
from tasktrail.projections.current import State
from tasktrail.services import trail
from tasktrail.services.bus import RAW, keep_what_was_fetched
from tasktrail.services.ending import end
from tasktrail.services.ledger import WRONG_SEQUENCE
from tasktrail.services.states import States, task_entry

_log = logging.getLogger(__name__)

BATCH = 500
BATCH_WAIT_S = 0.05
INACTIVE_S = 60.0
"""How long the server keeps the consumer of a projector that asks no more."""
REVISIONS_KEPT = 100_000
WATCH_S = 1.0
STUCK_AFTER_S = 5.0
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
_POSITION = "_position"


class _Position(msgspec.Struct, frozen=True):
    """Up to where the bucket has been built, and of which stream."""

    stream: str
    seq: int


class Projector:
    """Follows the trail and keeps the bucket current."""

    def __init__(
        self, js: JetStreamContext, states: States, bus: NatsBroker, observe: Callable[[State], None] | None = None
    ) -> None:
        self._js, self._states, self._bus = js, states, bus
        self._observe = observe or (lambda _state: None)
        self._revisions: OrderedDict[str, int] = OrderedDict()
        self._stream = ""
        self._consumer = f"projector-{secrets.token_hex(6)}"
        self._delivered = 0
        self._astray = False
        self._watch: asyncio.Task[None] | None = None
        self.position = 0
        self.target = 0
        self.last = 0
        self.failure = ""
        self._subscriber = bus.subscriber(
            f"trail.{GENERATION}.>",
            stream=JStream(TRAIL, declare=False),
            durable=self._consumer,
            pull_sub=PullSub(BATCH, timeout=BATCH_WAIT_S, batch=True),
            ack_policy=AckPolicy.MANUAL,
            config=_consumer(self._consumer, 1),
            codec=RAW,
        )
        self._subscriber(self._project)

    @property
    def behind(self) -> int:
        """How many entries the bucket lacks of what the trail held when last looked at."""
        return max(0, self.last - self.position)

    @property
    def ready(self) -> bool:
        """Whether it has reached what the trail held when it started."""
        return self.position >= self.target

    async def start(self) -> None:
        """Make the bucket if it is missing, and place the consumer where the bucket ends. Then start the bus."""
        await trail.create(self._js, only=frozenset({trail.KV_STREAM}))
        info = await self._js.stream_info(TRAIL)
        self._stream = str(info.created)
        self.target = self.last = info.state.last_seq
        self.position = await self._stored_position()
        await self._place_consumer()
        self._watch = asyncio.create_task(self._watch_over())

    def attach(self) -> None:
        """Call it when the bus has started."""
        keep_what_was_fetched(cast("Any", self._subscriber).subscription)

    async def stop(self) -> None:
        """Stop watching; the bus is stopped by its owner."""
        if self._watch is not None:
            await end(self._watch)
            self._watch = None

    async def _stored_position(self) -> int:
        try:
            message = await self._js.get_last_msg(trail.KV_STREAM, f"$KV.{CURRENT}.{_POSITION}")
            found = msgspec.json.decode(message.data or b"", type=_Position)
        except (NotFoundError, msgspec.DecodeError):
            return 0
        return found.seq if found.stream == self._stream and found.seq <= self.last else 0

    async def _place_consumer(self) -> None:
        """A new consumer that begins where the bucket ends: an old one may have delivered what was never projected."""
        with contextlib.suppress(NotFoundError):
            await self._js.delete_consumer(TRAIL, self._consumer)
        self._delivered = 0
        await self._js.add_consumer(TRAIL, _consumer(self._consumer, self.position + 1))

    async def _watch_over(self) -> None:
        """Look at the trail's end and at the bucket; what stopped without a word, or went astray, is begun again."""
        still_s, seen = 0.0, self.position
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                self.last = (await self._js.stream_info(TRAIL)).state.last_seq
                still_s = 0.0 if self.position >= self.last or self.position > seen else still_s + WATCH_S
                seen = self.position
                if self._astray or still_s >= STUCK_AFTER_S or not await self._has_bucket():
                    _log.warning("the projector stands at %d of %d: beginning again", self.position, self.last)
                    still_s = 0.0
                    await self._begin_again()
            except (NatsError, APIError, OSError) as error:
                _log.warning("the projector cannot look at the trail: %s", str(error) or type(error).__name__)

    async def _has_bucket(self) -> bool:
        try:
            await self._js.stream_info(trail.KV_STREAM)
        except NotFoundError:
            return False
        return True

    async def _begin_again(self) -> None:
        self._astray = True  # so that a batch under way ends, before the bucket's position is read
        await self._subscriber.stop()
        await trail.create(self._js, only=frozenset({trail.KV_STREAM}))
        self._revisions.clear()
        self.position = await self._stored_position()
        await self._place_consumer()
        self._astray = False
        await self._subscriber.start()
        self.attach()

    async def _project(self, msg: NatsMessage) -> None:
        """Take one batch, however long it takes, if it begins where the last one taken ended."""
        batch = msg.raw_message
        messages = batch if isinstance(batch, list) else [batch]
        first, last = (one.metadata.sequence.consumer for one in (messages[0], messages[-1]))
        if first != self._delivered + 1 or last - first + 1 != len(messages):
            self._astray = True
        pause_s = RETRY_FIRST_S
        while not self._astray:
            try:
                await self._take(messages)
            except (NatsError, APIError, OSError) as error:
                self.failure = str(error) or type(error).__name__
                _log.warning("a batch of %d entries is not projected yet: %s", len(messages), self.failure)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
            else:
                self.failure = ""
                self._delivered = last
                return

    async def _take(self, messages: list[Msg]) -> None:
        """The last state of each task that the batch touches goes to the bucket, then the position."""
        touched: dict[str, State] = {}
        for message in messages:
            state = await self._advanced(message.subject, message.data, message.metadata.sequence.stream, touched)
            if state is not None:
                touched[state.task_ref] = state
        await asyncio.gather(*(self._put(state) for state in touched.values()))
        last = messages[-1].metadata.sequence.stream
        position = msgspec.json.encode(_Position(stream=self._stream, seq=last))
        await self._js.publish(f"$KV.{CURRENT}.{_POSITION}", position)
        self.position = max(self.position, last)
        self.last = max(self.last, last)

    async def _advanced(self, subject: str, body: bytes, stream_seq: int, touched: dict[str, State]) -> State | None:
        """The task's state with at least this entry; None for entries of no task and for broken ones."""
        if kind_of(subject) != "task":
            return None
        try:
            entry = task_entry(subject, body)
            ref = entry.task_ref
            known = touched.get(ref) or self._states.kept(ref)
            if known is None or known.stream_seq < stream_seq:
                if entry.task_seq == (known.task.seq + 1 if known else 1):
                    known = current.advance(known, entry, entries.leaf_hash(body), stream_seq)
                else:
                    known = await self._states.of(entry.tenant, ref)
        except TasktrailError as error:
            # Not its message: that quotes the entry, and the log is no place for what a stranger wrote.
            _log.error("entry at %d of %s is left out of the current states: %s", stream_seq, TRAIL, error.reason)
            return None
        except (NatsError, OSError):
            raise
        except Exception:  # noqa: BLE001 - whatever is wrong with one entry, the others go on
            _log.exception("entry at %d of %s is left out of the current states", stream_seq, TRAIL)
            return None
        if known is not None:
            self._states.remember(known)
            self._observe(known)
        return known

    async def _put(self, state: State) -> None:
        """Write a state unless the bucket holds a later one."""
        revision = self._revisions.get(state.task_ref, 0)
        subject = f"$KV.{CURRENT}.{state.task_ref}"
        body = current.encode(state)
        for _ in range(3):
            try:
                ack = await self._js.publish(subject, body, headers={EXPECTED: str(revision)})
            except APIError as error:
                if error.err_code not in WRONG_SEQUENCE:
                    raise
                stored, revision = await self._bucket_has(subject)
                if stored is not None and stored.stream_seq >= state.stream_seq:
                    return
                continue
            self._keep_revision(state.task_ref, ack.seq)
            return
        message = f"the bucket's state of {state.task_ref} kept changing"
        raise NatsError(message)

    async def _bucket_has(self, subject: str) -> tuple[State | None, int]:
        try:
            message = await self._js.get_last_msg(trail.KV_STREAM, subject)
        except NotFoundError:
            return None, 0
        return current.decode(message.data or b""), message.seq or 0

    def _keep_revision(self, ref: str, revision: int) -> None:
        self._revisions[ref] = revision
        self._revisions.move_to_end(ref)
        while len(self._revisions) > REVISIONS_KEPT:
            self._revisions.popitem(last=False)


def _consumer(name: str, start: int) -> api.ConsumerConfig:
    return api.ConsumerConfig(
        durable_name=name,
        deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=start,
        ack_policy=api.AckPolicy.NONE,
        inactive_threshold=INACTIVE_S,
        filter_subject=f"trail.{GENERATION}.>",
    )
