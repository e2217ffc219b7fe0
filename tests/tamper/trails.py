"""Signed trails with a tree and checkpoints, for tampering with: `mixed` histories, signed as the service signs.

trail = SignedTrail.of(entries=1_000, seed=1)
verdict = trail.verified(removed(trail.messages, 17))
"""

import base64
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.projections.audit.histories import NOW_MS, Trail, mixed

from tasktrail.events.facts import KeyActivated
from tasktrail.events.subjects import ANONYMOUS_TENANT, control_subject
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog.findings import Verdict
from tasktrail.projections.tlog.log import Log
from tasktrail.projections.tlog.merkle import Frontier, gap_record, leaf
from tasktrail.projections.tlog.note import Checkpoint, Note, sign, vkey
from tasktrail.projections.tlog.verification import Known, Tree, Verification

ORIGIN = "example.com/trail"


class Signer:
    """A signing key of the service's."""

    def __init__(self, seed: int) -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"signer %d" % seed).digest())
        self.raw = self.key.public_key().public_bytes_raw()
        self.kid = hashlib.sha256(self.raw).hexdigest()[:16]
        self.public = base64.urlsafe_b64encode(self.raw).decode().rstrip("=")

    def signed(self, message: Message) -> Message:
        """The message as this key signs it."""
        signature = base64.b64encode(self.key.sign(message.body)).decode()
        return message._replace(key_id=self.kid, signature=signature)

    def announced(self, number: int = 0) -> Message:
        """The entry that announces it; signed by nobody yet."""
        event = KeyActivated(at_ms=NOW_MS, purpose="signing", kid=self.kid, algorithm="Ed25519", public_key=self.public)
        made = Trail()
        made.now_ms += number
        return made.note(control_subject(ANONYMOUS_TENANT), ANONYMOUS_TENANT, (event,))


SERVICE, STRANGER = Signer(1), Signer(2)
CHECKPOINTS = Signer(3)
VKEY = vkey(ORIGIN, CHECKPOINTS.raw)


def numbered(messages: Sequence[Message]) -> list[Message]:
    """The same messages as a stream holds them that was filled anew."""
    return [message._replace(stream_seq=seq) for seq, message in enumerate(messages, start=1)]


def signed_mixture(entries: int, seed: int) -> list[Message]:
    """An honest history: the key is announced, then many tasks, accesses and denials."""
    plain = [SERVICE.announced(), *mixed(max(0, entries - 1), seed=seed).messages]
    return numbered([SERVICE.signed(message) for message in plain])


def hashes_of(messages: Sequence[Message]) -> list[bytes]:
    """The tree's leaves, with those of gaps."""
    found: list[bytes] = []
    for message in messages:
        while len(found) < message.stream_seq - 1:
            found.append(leaf(gap_record(len(found) + 1)))
        found.append(leaf(message.body))
    return found


def checkpoint(leaves: Sequence[bytes], size: int, heads: bytes = b"") -> Checkpoint:
    """What the log says of its first `size` leaves."""
    frontier = Frontier()
    frontier.extend(leaves[:size])
    return Checkpoint(ORIGIN, size, frontier.root(), heads)


def known(leaves: Sequence[bytes], *sizes: int, own: bool = True) -> list[Known]:
    """Checkpoints of these sizes, as read from the log or, else, kept elsewhere."""
    where = "the log's" if own else "the kept"
    return [Known(checkpoint(leaves, size), f"{where} checkpoint of {size}", own) for size in sizes]


def tree_of(leaves: Sequence[bytes]) -> Tree:
    """Leaves as a log gives them."""
    return Tree(len(leaves), lambda first, end: leaves[first:end])


def verified(  # noqa: PLR0913 - what may differ
    messages: Sequence[Message],
    checkpoints: Sequence[Known],
    tree: Tree | None,
    *,
    quick: bool = False,
    whole: bool = True,
    pinned: str = "",
    batch: int = 500,
) -> Verdict:
    """The verdict of a verification."""
    verification = Verification(checkpoints, tree, quick=quick, whole=whole, pinned=pinned)
    for start in range(0, len(messages), batch):
        verification.take(messages[start : start + batch])
    return verification.finish()


def seen(verdict: Verdict) -> tuple[str, int | None]:
    """The first finding's kind and index."""
    first = verdict.findings[0]
    return first.kind.value, first.index


def sealed_log(folder: Path, messages: Sequence[Message], *sizes: int, signer: Signer = CHECKPOINTS) -> None:
    """A log on disk as the notary writes it, with a checkpoint at each size; `signer` signs them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vkey").write_text(vkey(ORIGIN, signer.raw) + "\n", encoding="ascii")
    with Log.open(folder) as log:
        for size in sizes:
            log.append([one for one in messages if log.size < one.stream_seq <= size])
            text = Checkpoint(ORIGIN, log.size, log.root(), log.heads.root()).text()
            log.commit(Note(text, (sign(text, ORIGIN, signer.raw, signer.key.sign),)))


def another(message: Message, draw: random.Random) -> Message:
    """Another entry in the message's place, as good as any: of the same subject, signed by the service."""
    body = message.body.replace(b'"recorded_at":"2', b'"recorded_at":"%d' % draw.choice((1, 3, 4)), 1)
    assert body != message.body
    return SERVICE.signed(message._replace(body=body))
