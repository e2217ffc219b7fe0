"""Bundles for tests: a signed trail, its log with checkpoints, and bundles of parts of it. No service.

here = Exporter(tmp_path, signed(1_000))
data = here.bundle(tasks=[ref])
verify(data, here.keys)["verdict"]
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.projections.audit.histories import NOW_MS, Trail, mixed, operator

from tasktrail.events.entry import decode
from tasktrail.events.facts import KeyActivated
from tasktrail.events.subjects import control_subject, kind_of
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog.bundle import Contents, Custody, Scope, Signer, Task, write
from tasktrail.projections.tlog.log import Log
from tasktrail.projections.tlog.note import COSIGNATURE, Checkpoint, Note, Signature, cosign, sign, vkey
from tasktrail.projections.tlog.offline_checks import Key

ORIGIN = "trail.example/log"
CUSTODY = Custody(
    exported_by="olga",
    exported_at="2026-11-22T10:00:00.000Z",
    entry_id="e" * 40,
    case_id="C-7",
    reason="an incident",
    version="0.0",
)


class Pair:
    """An Ed25519 key pair, the same for the same number."""

    def __init__(self, number: int) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        self.public = self.private.public_key().public_bytes_raw()
        self.kid = hashlib.sha256(self.public).hexdigest()[:16]

    def text(self, body: bytes) -> str:
        return base64.b64encode(self.private.sign(body)).decode()

    def announced(self, purpose: str = "signing") -> KeyActivated:
        public = base64.urlsafe_b64encode(self.public).decode().rstrip("=")
        return KeyActivated(at_ms=NOW_MS, purpose=purpose, kid=self.kid, algorithm="Ed25519", public_key=public)


LEDGER, LOG, WITNESS, STRANGER = Pair(1), Pair(2), Pair(3), Pair(9)
WITNESS_KEY = vkey("witness.example", WITNESS.public, COSIGNATURE)


def signed_by(pair: Pair, message: Message, seq: int = 0) -> Message:
    """The message with this pair's signature; at another sequence when one is given."""
    return message._replace(stream_seq=seq or message.stream_seq, key_id=pair.kid, signature=pair.text(message.body))


def signed(entries: int, *, seed: int = 1, tasks_at_once: int = 8) -> list[Message]:
    """A trail of so many entries of many tasks, of which the first announces the key that signs them all."""
    first = Trail()
    first.note(control_subject("_"), "_", (LEDGER.announced(),), authority=operator("service", "_"))
    rest = mixed(entries - 1, seed=seed, tasks_at_once=tasks_at_once).messages
    return [signed_by(LEDGER, message, seq) for seq, message in enumerate([*first.messages, *rest], 1)]


def tasks_of(messages: Iterable[Message]) -> dict[str, Task]:
    """Every task of a trail, by its reference."""
    made = (message for message in messages if kind_of(message.subject) == "task" and b"TaskCreated" in message.body)
    entries = (decode(message.body) for message in made)
    return {entry.task_ref: Task(tenant=entry.tenant, task_ref=entry.task_ref) for entry in entries}


class Exporter:
    """A log over `messages`, with a checkpoint at each of `sizes` and at the end; of another owner with `log`."""

    def __init__(
        self, folder: Path, messages: Sequence[Message], *, sizes: Iterable[int] = (), log: Pair = LOG
    ) -> None:
        self.messages, self.pair = list(messages), log
        self.key_text = vkey(ORIGIN, log.public)
        self.keys = [Key.of(self.key_text)]
        self.folder = folder
        at = 0
        with Log.open(folder) as writing:
            for size in [*sizes, self.messages[-1].stream_seq]:
                writing.append([message for message in self.messages if at < message.stream_seq <= size])
                text = Checkpoint(ORIGIN, writing.size, writing.root(), writing.heads.root()).text()
                writing.commit(Note(text, (sign(text, ORIGIN, log.public, log.private.sign), *self._witnessed(text))))
                at = size

    @staticmethod
    def _witnessed(text: str) -> tuple[Signature, ...]:
        return (cosign(text, "witness.example", WITNESS.public, WITNESS.private.sign, NOW_MS // 1000),)

    def checkpoint(self, size: int | None = None) -> bytes:
        with Log.open(self.folder, read_only=True) as log:
            note = log.checkpoint(size)
            assert note is not None, log.checkpoints()
            return note.encode()

    def contents(self, refs: Iterable[str], **changes: object) -> Contents:
        """What the service would put together for these tasks: their entries, and the key's announcement."""
        wanted = list(refs)
        known = tasks_of(self.messages) if wanted else {}
        tasks = [known[ref] for ref in wanted]
        subjects = {subject for task in tasks for subject in task.subjects}
        messages = [one for one in self.messages if one.subject in subjects or one.stream_seq == 1]
        fields: dict[str, object] = {
            "scope": Scope(kind="task", parameters={"task": ",".join(task.task_ref for task in tasks)}),
            "custody": CUSTODY,
            "messages": messages,
            "related": frozenset({1}),
            "tasks": tasks,
        }
        return Contents(**{**fields, **changes})  # type: ignore[arg-type]  # fields of `Contents`

    def everything(self, **changes: object) -> Contents:
        """The whole trail, with every task."""
        last = self.messages[-1].stream_seq
        held = {message.stream_seq for message in self.messages}
        gaps = frozenset(range(1, last + 1)) - held
        scope = Scope(kind="sequence", parameters={"from": "1", "to": str(last)})
        whole = {"scope": scope, "messages": self.messages, "gaps": gaps, "range": (1, last), **changes}
        return self.contents(tasks_of(self.messages), **whole)

    def write(self, contents: Contents, signer: Pair = LEDGER) -> bytes:
        with Log.open(self.folder, read_only=True) as log:
            return write(contents, log, Signer(signer.kid, signer.text))
