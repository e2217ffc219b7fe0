"""Current states, right on every replica the moment a change was acknowledged.

Guarantees: each read asks the stream's leader for the last entry of the task's subject and answers with the state as of
exactly that entry: from this process's cache or the bucket when it is that one, folded from the trail when it is not.
A chain that does not hold is an error, never a guess. Needs a stream with `allow_direct`; a direct read that is behind
is repeated at the leader.

    state = await states.by_handle(ref)      # whoever's it is
    state = await states.of(tenant, ref)
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeout
from nats.js import JetStreamContext, api
from nats.js.errors import APIError

from tasktrail.events import entry as entries
from tasktrail.events.entry import Entry
from tasktrail.events.errors import ChainBroken, TrailError
from tasktrail.events.subjects import CURRENT, TRAIL, any_tenant_subject, is_task_ref, task_subject
from tasktrail.projections import current
from tasktrail.projections.current import State
from tasktrail.services.fetching import fetch

BATCH = 512
"""Entries fetched in one request when a state is folded, and states when all are read."""

_DIRECT = f"$JS.API.DIRECT.GET.{TRAIL}"
_LEADER = f"$JS.API.STREAM.MSG.GET.{TRAIL}"
_NO_MESSAGE = 10037
_READ_S = 1.0
_FETCH_S = 10.0
_INACTIVE_S = 60.0

_log = logging.getLogger(__name__)


class _Message(msgspec.Struct, frozen=True):
    """A message as the stream's leader tells it."""

    subject: str
    seq: int
    data: bytes = b""


class _Answer(msgspec.Struct, frozen=True):
    """The leader's answer: one of the two."""

    message: _Message | None = None
    error: dict[str, Any] | None = None


_answer = msgspec.json.Decoder(_Answer)


class States:
    """Reads states; keeps the last `kept` of them."""

    def __init__(self, nc: Client, js: JetStreamContext, *, kept: int) -> None:
        self._nc = nc
        self._js = js
        self._kept = kept
        self._cache: OrderedDict[str, State] = OrderedDict()

    def remember(self, state: State) -> None:
        """Keep a state, unless a later one is kept already."""
        known = self._cache.get(state.task_ref)
        if known is None or known.stream_seq < state.stream_seq:
            self._cache[state.task_ref] = state
        self._cache.move_to_end(state.task_ref)
        while len(self._cache) > self._kept:
            self._cache.popitem(last=False)

    def kept(self, ref: str) -> State | None:
        """The state this process remembers, which may be behind."""
        return self._cache.get(ref)

    async def by_handle(self, ref: str) -> State | None:
        """The state of the task with this reference, in whichever tenant; None when there is none.

        The same requests are made whether or not the task exists or is remembered: for the last entry, for the bucket's
        state, and for entries. Only a long task that the bucket lacks, too, takes more of the last kind.

        Raises:
            nats.errors.Error, TimeoutError: the trail does not answer.
            ChainBroken, MalformedEntry: it does not hold.
        """
        subject = any_tenant_subject(ref)
        last, stored = await self._last(subject), await self._stored(ref)
        if last is None:
            await self._batch(subject, 1, 1)
            return None
        base = _nearest(last, self._cache.get(ref), stored)
        if base is not None and base.stream_seq == last.seq:
            await self._batch(subject, base.stream_seq, 1)
            state = base
        else:
            state = await self._fold(base, last)
        self.remember(state)
        return state

    async def of(self, tenant: str, ref: str) -> State | None:
        """The state of a task whose tenant is known; None when there is none. Raises as `by_handle`."""
        last = await self._last(task_subject(tenant, ref))
        if last is None:
            return None
        known = self._cache.get(ref)
        if known is not None and known.stream_seq == last.seq:
            self._cache.move_to_end(ref)
            return known
        state = _followed(known, last) if known is not None else None
        if state is None:
            base = _nearest(last, known, await self._stored(ref))
            state = base if base is not None and base.stream_seq == last.seq else await self._fold(base, last)
        self.remember(state)
        return state

    async def creation(self, state: State) -> Entry:
        """The entry that created a task. Raises as `by_handle`."""
        subject = task_subject(state.tenant, state.task_ref)
        found = await self._batch(subject, 1, 1) or [await self._next(subject, 1)]
        return task_entry(subject, found[0][0])

    async def history(self, state: State) -> list[Entry]:
        """Every entry of a task up to this state, the first one first. Raises as `by_handle`."""
        subject, start = task_subject(state.tenant, state.task_ref), 1
        found: list[Entry] = []
        while len(found) < state.task.seq:
            messages = await self._batch(subject, start, min(BATCH, state.task.seq - len(found)))
            for body, stream_seq in messages or [await self._next(subject, start)]:
                found.append(task_entry(subject, body))
                start = stream_seq + 1
        return found

    async def each(self) -> AsyncGenerator[list[State]]:
        """Every state that the bucket, which must be there, holds now, some at a time; to be closed.

        One of an earlier format, which this code cannot read, is folded from the trail; where the trail does not hold
        either, the task is left out, and the log says so.

        Raises:
            nats.errors.Error, TimeoutError: the bucket cannot be read for `_FETCH_S`.
        """
        config = api.ConsumerConfig(
            ack_policy=api.AckPolicy.NONE, deliver_policy=api.DeliverPolicy.ALL, inactive_threshold=_INACTIVE_S
        )
        consumer = await self._js.pull_subscribe(f"$KV.{CURRENT}.>", stream=f"KV_{CURRENT}", config=config)
        try:
            left = (await consumer.consumer_info()).num_pending or 0
            while left > 0:
                messages = await fetch(consumer, min(BATCH, left), timeout_s=_FETCH_S)
                left -= len(messages)
                found = [await self._in(message) for message in messages]
                yield [state for state in found if state is not None]
        finally:
            await consumer.unsubscribe()

    async def _in(self, message: Msg) -> State | None:
        """The state in a message of the bucket."""
        state = current.decode(message.data) if message.data else None
        ref = message.subject.rpartition(".")[2]
        if state is not None or not message.data or not is_task_ref(ref):
            return state
        try:
            return await self.by_handle(ref)
        except TrailError as error:  # its message quotes the trail
            _log.error("the state of task %s cannot be read: %s", ref, error.reason)
            return None

    async def _last(self, subject: str) -> "_Message | None":
        """The last entry of a subject, from the leader. Decoded here: nats-py's own way takes 50 to 80 us more."""
        question = msgspec.json.encode({"last_by_subj": subject})
        reply = await self._nc.request(_LEADER, question, timeout=_READ_S)
        answer = _answer.decode(reply.data)
        if answer.error is not None and answer.error.get("err_code") != _NO_MESSAGE:
            APIError.from_error(answer.error)  # raises; a missing stream says nothing of the task
        return answer.message

    async def _stored(self, ref: str) -> State | None:
        """What the bucket holds; None when it holds nothing usable, or is not there."""
        try:
            async with asyncio.timeout(_READ_S):
                message = await self._js.get_last_msg(f"KV_{CURRENT}", f"$KV.{CURRENT}.{ref}", direct=True)
        except (NatsError, TimeoutError):
            return None
        return current.decode(message.data) if message.data else None

    async def _fold(self, base: State | None, last: _Message) -> State:
        """The state as of the leader's last entry, from the nearest one there is."""
        subject = last.subject
        task_seq = task_entry(subject, last.data).task_seq
        state = base
        while state is None or state.task.seq < task_seq:
            have = state.task.seq if state else 0
            start = state.stream_seq + 1 if state else 1
            messages = await self._batch(subject, start, min(BATCH, task_seq - have))
            if not messages:
                messages = [await self._next(subject, start)]
            for body, stream_seq in messages:
                state = current.advance(state, task_entry(subject, body), entries.leaf_hash(body), stream_seq)
        if state.stream_seq != last.seq:
            message = (
                f"{subject}: entry {task_seq} is at {state.stream_seq}, but the stream says its last is {last.seq}"
            )
            raise ChainBroken(message)
        return state

    async def _next(self, subject: str, start: int) -> tuple[bytes, int]:
        """The first entry of the subject at or after `start`, from the leader."""
        async with asyncio.timeout(_READ_S):
            message = await self._js.get_msg(TRAIL, seq=start, subject=subject, next=True)
        return message.data or b"", message.seq or 0

    async def _batch(self, subject: str, start: int, count: int) -> list[tuple[bytes, int]]:
        """Up to `count` entries by one direct request; fewer when the answering replica is behind."""
        inbox = self._nc.new_inbox()
        subscription = await self._nc.subscribe(inbox)
        found: list[tuple[bytes, int]] = []
        try:
            question = msgspec.json.encode({"seq": start, "batch": count, "next_by_subj": subject})
            await self._nc.publish(_DIRECT, question, reply=inbox)
            while len(found) < count:
                message = await subscription.next_msg(timeout=_READ_S)
                headers = message.headers or {}
                if "Status" in headers or "Nats-Sequence" not in headers:
                    break
                found.append((message.data, int(headers["Nats-Sequence"])))
        except NatsTimeout:
            pass
        finally:
            await subscription.unsubscribe()
        return found


def task_entry(subject: str, body: bytes) -> Entry:
    """The entry of a message on a task's subject.

    Raises:
        MalformedEntry: it is none.
        ChainBroken: it is of another task than the subject's.
    """
    entry = entries.decode(body)
    if not is_task_ref(entry.task_ref) or subject != task_subject(entry.tenant, entry.task_ref):
        message = f"an entry of task {entry.task_ref!r:.80} stands on {subject}"
        raise ChainBroken(message)
    return entry


def _followed(known: State, last: _Message) -> State | None:
    """The state after the last entry when it is the very next one after what is known; None when it is not."""
    body = last.data
    entry = task_entry(last.subject, body)
    if entry.task_seq != known.task.seq + 1:
        return None
    return current.advance(known, entry, entries.leaf_hash(body), last.seq)


def _nearest(last: _Message, *held: State | None) -> State | None:
    """The latest of these states that is not after the last entry; one that claims to be as of it must be so."""
    at, leaf = last.seq, entries.leaf_hash(last.data)
    fits = [one for one in held if one and (one.stream_seq < at or (one.stream_seq == at and one.task.leaf == leaf))]
    return max(fits, key=lambda one: one.stream_seq, default=None)
