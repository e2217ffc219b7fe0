"""The bucket of current states as it is, and where it is not what a trail gives. Nothing is ever written.

Guarantees: a state is called wrong only when it is so although the projector had come that far; what a running service
has not projected yet, or has projected meanwhile, is not. Needs the right to read the bucket's stream.

    fold = Fold()
    fold.take(messages)
    found = await fold.differences(nc, created)
"""

import asyncio
import contextlib
import secrets
from datetime import datetime
from typing import NamedTuple

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError

from tasktrail.events.entry import decode, leaf_hash
from tasktrail.events.errors import TasktrailError, Unavailable
from tasktrail.events.subjects import CURRENT, kind_of, task_subject
from tasktrail.projections import current
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.current import State
from tasktrail.services.fetching import fetch
from tasktrail.services.trail import KV_STREAM

READS = 3
READ_WITHIN_S = 300.0
_FETCH = 500
_READ_S = 10.0
_FORGOTTEN_S = 30.0
_PREFIX = f"$KV.{CURRENT}."
_POSITION = "_position"
_OPERATION = "KV-Operation"


class _Position(msgspec.Struct):
    stream: str
    seq: int


class Bucket(NamedTuple):
    """What the bucket holds: states by reference; and how far of which stream (its creation) it says to be built.

    `position` is 0 where that is not known.
    """

    states: dict[str, bytes]
    stream: str
    position: int


class StateDifference(NamedTuple):
    """A state that is not what the trail gives. `stream_seq`: the entry it should be of, or says to be."""

    task_ref: str
    stream_seq: int | None
    what: str


async def read_bucket(nc: Client) -> Bucket | None:
    """The bucket as it is now; None when there is none.

    Read until nothing more is pending: so every entry up to its position is in what was read, or a later one is.

    Raises:
        Unavailable: the broker stopped answering, or states changed for `READ_WITHIN_S` as fast as they were read.
    """
    js = JetStreamContext(nc)
    states: dict[str, bytes] = {}
    try:
        async with asyncio.timeout(READ_WITHIN_S):
            if (await js.stream_info(KV_STREAM)).state.messages:
                await _read(js, states)
    except NotFoundError:
        return None
    except (NatsError, TimeoutError, OSError) as error:
        message = f"the broker stopped answering while the current states were read: {error or type(error).__name__}"
        raise Unavailable(message) from error
    try:
        at = msgspec.json.decode(states.pop(_POSITION, b""), type=_Position)
    except msgspec.DecodeError:
        at = _Position("", 0)
    return Bucket(states, at.stream, at.seq)


async def _read(js: JetStreamContext, states: dict[str, bytes]) -> None:
    config = api.ConsumerConfig(
        deliver_policy=api.DeliverPolicy.ALL,
        ack_policy=api.AckPolicy.NONE,
        inactive_threshold=_FORGOTTEN_S,
        name=f"reading-{secrets.token_hex(8)}",
    )
    made = await js.add_consumer(KV_STREAM, config)
    pending = made.num_pending
    consumer = await js.pull_subscribe_bind(made.name, KV_STREAM)
    try:
        while pending != 0:
            found = await fetch(consumer, _FETCH, timeout_s=_READ_S)
            for one in found:
                ref = one.subject.removeprefix(_PREFIX)
                if (one.headers or {}).get(_OPERATION):  # a marker of what was deleted
                    states.pop(ref, None)
                else:
                    states[ref] = one.data
            pending = found[-1].metadata.num_pending
    finally:
        with contextlib.suppress(NatsError, OSError):
            await consumer.unsubscribe()


class Fold:
    """The states that a trail gives: `states` by reference, `last_seq` its last message."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.last_seq = 0

    def take(self, messages: list[Message]) -> None:
        """Take the next messages; one that is no entry, or does not continue its task, is left out."""
        for message in messages:
            self.last_seq = message.stream_seq
            if kind_of(message.subject) != "task":
                continue
            try:
                entry = decode(message.body)
                if message.subject != task_subject(entry.tenant, entry.task_ref):
                    continue
                before = self.states.get(entry.task_ref)
                leaf = leaf_hash(message.body)
                self.states[entry.task_ref] = current.advance(before, entry, leaf, message.stream_seq)
            except TasktrailError:
                continue

    async def differences(self, nc: Client, created: datetime) -> tuple[list[StateDifference], int | None]:
        """Where the bucket is not this, and how far it has been built; None: there is no bucket.

        A service that goes on changes states while they are read: only what is wrong at each of `READS` reads counts.

        Raises:
            Unavailable: the broker stopped answering.
        """
        found: dict[str, StateDifference] = {}
        position: int | None = None
        for turn in range(READS):
            bucket = await read_bucket(nc)
            if bucket is None:
                return [], None
            position = bucket.position if bucket.stream == str(created) else 0
            now = {one.task_ref: one for one in self._against(bucket.states, position)}
            found = now if turn == 0 else {ref: one for ref, one in now.items() if ref in found}
            if not found:
                break
        return sorted(found.values(), key=lambda one: one.stream_seq or 0), position

    def _against(self, held: dict[str, bytes], position: int) -> list[StateDifference]:
        found: list[StateDifference] = []
        for ref, state in self.states.items():
            body = held.get(ref)
            what = self._wrong(state, body, position)
            if what:
                found.append(StateDifference(ref, state.stream_seq, what))
        for ref in held.keys() - self.states.keys():
            stray = current.decode(held[ref])
            if stray is None or stray.stream_seq <= self.last_seq:
                found.append(StateDifference(ref, stray.stream_seq if stray else None, "the trail has no such task"))
        return found

    def _wrong(self, state: State, body: bytes | None, position: int) -> str:
        """What is wrong with the state that is held of a task; empty when nothing is."""
        projected = state.stream_seq <= position
        if body is None:
            return "there is no current state of it" if projected else ""
        if body == current.encode(state):
            return ""
        held = current.decode(body)
        if held is None:
            return "its current state is none of this format"
        if held.stream_seq > self.last_seq or (held.stream_seq < state.stream_seq and not projected):
            return ""
        if held.stream_seq < state.stream_seq:
            return f"its current state is older: that of sequence {held.stream_seq}, not {state.stream_seq}"
        return f"its current state ({held.task.status}) is not what the trail gives ({state.task.status})"
