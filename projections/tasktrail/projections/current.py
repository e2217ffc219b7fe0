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

FORMAT = 2
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
    kept = [task.message, task.result, task.error]
    for one in task.inputs.values():
        if one.response is None:
            kept.append(one.request)
        elif not task.status.terminal:
            kept.append(one.response)
    return tuple(commitment for commitment in kept if commitment is not None)


def advance(state: State | None, entry: Entry, leaf: str, stream_seq: int) -> State:
    """The state after one more entry of its task.

    Raises:
        ChainBroken: the entry does not follow the last one.
    """
    task = apply(state.task if state else None, entry, leaf)
    known = dict(state.sealed) if state else {}
    for commitment in shown(task):
        blob = entry.sealed.get(commitment.name)
        if blob is not None and commitment.sha256 not in known:
            known[commitment.sha256] = blob
    wanted = {commitment.sha256 for commitment in shown(task)}
    return State(
        format=FORMAT,
        tenant=entry.tenant,
        task_ref=entry.task_ref,
        stream_seq=stream_seq,
        task=task,
        sealed={digest: blob for digest, blob in known.items() if digest in wanted},
    )


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
