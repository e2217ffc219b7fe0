"""The projection that answers polls: a task's state together with the sealed payloads a poll may show.

Guarantees: pure; a state never goes back in sequence; it is the same whoever folds it and whenever. Blobs larger than
travel in an entry are not in it: they are fetched from the object bucket by digest.

    state = advance(None, entry, leaf_hash(body), stream_seq)
    decode(encode(state)) == state
"""

import msgspec

from tasktrail.events.authority import Record
from tasktrail.events.entry import Entry
from tasktrail.events.facts import Commitment
from tasktrail.events.task import Task, apply

FORMAT = 3
"""Changes when a stored state could not be read by the code before; then the bucket is rebuilt."""


class State(Record, frozen=True, kw_only=True):
    """One task as of stream sequence `stream_seq`; `sealed` holds blobs by digest."""

    format: int
    tenant: str
    task_ref: str
    stream_seq: int
    task: Task
    sealed: dict[str, bytes] = {}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(State)


def shown(task: Task) -> tuple[Commitment, ...]:
    """The payloads that a poll, or the work itself, may still ask for."""
    kept = [*filter(None, (task.message, task.result, task.error))]
    if task.inputs:
        terminal = task.status.terminal
        for one in task.inputs.values():
            if one.response is None:
                kept.append(one.request)
            elif not terminal:
                kept.append(one.response)
    return tuple(kept)


def advance(state: State | None, entry: Entry, leaf: str, stream_seq: int) -> State:
    """The state after one more entry of its task.

    Raises:
        ChainBroken: the entry does not follow the last one.
    """
    task = apply(state.task if state else None, entry, leaf)
    return State(
        format=FORMAT,
        tenant=entry.tenant,
        task_ref=entry.task_ref,
        stream_seq=stream_seq,
        task=task,
        sealed=_sealed(state.sealed if state else {}, entry.sealed, shown(task)),
    )


def _sealed(known: dict[str, bytes], new: dict[str, bytes], wanted: tuple[Commitment, ...]) -> dict[str, bytes]:
    """Of the blobs known by digest and the entry's own, which are by name, those that are wanted, by digest."""
    kept: dict[str, bytes] = {}
    for commitment in wanted:
        digest = commitment.sha256
        blob = known.get(digest)
        if blob is None:
            blob = new.get(commitment.name)
        if blob is not None:
            kept.setdefault(digest, blob)
    return kept


def encode(state: State) -> bytes:
    """The bytes of a state in the bucket."""
    return _encoder.encode(state)


def decode(body: bytes) -> State | None:
    """The state of these bytes; None when they are of another format: then it is folded from the trail."""
    try:
        state = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return state if state.format == FORMAT else None
