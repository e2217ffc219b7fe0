"""Logs for tests: messages of a made-up trail, and the signed checkpoints that commit them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog.log import Log
from tasktrail.projections.tlog.merkle import gap_record, leaf
from tasktrail.projections.tlog.note import Checkpoint, Note, sign

ORIGIN = "example.com/trail"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()


def message(stream_seq: int) -> Message:
    """The message of a sequence: seven subjects take turns."""
    return Message(stream_seq, f"trail.1.task.acme.{stream_seq % 7}", b'{"n":%d}' % stream_seq)


def messages(last: int, first: int = 1, holes: Iterable[int] = ()) -> list[Message]:
    """The messages of these sequences, both included, without those of the holes."""
    missing = set(holes)
    return [message(one) for one in range(first, last + 1) if one not in missing]


def checkpoint(log: Log) -> Note:
    """A signed checkpoint of the log as it stands."""
    text = Checkpoint(ORIGIN, log.size, log.root(), log.heads.root()).text()
    return Note(text, (sign(text, ORIGIN, PUBLIC, KEY.sign),))


def grow(log: Log, more: Sequence[Message]) -> Note:
    """Append and commit."""
    log.append(more)
    note = checkpoint(log)
    log.commit(note)
    return note


def grown(folder: Path, *sizes: int) -> None:
    """A log in this directory with a commit at each of these sizes."""
    with Log.open(folder) as log:
        for size in sizes:
            grow(log, messages(size, log.size + 1))


def hashes(last: int, holes: Iterable[int] = ()) -> list[bytes]:
    """The leaves of `messages`, by the definition of the plan of issue 4."""
    missing = set(holes)
    return [leaf(gap_record(at) if at in missing else message(at).body) for at in range(1, last + 1)]


def states(log: Log) -> tuple[int, bytes, bytes]:
    """All that a checkpoint says of a log."""
    return log.size, log.root(), log.heads.root()
