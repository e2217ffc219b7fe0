"""Writing an evidence bundle: entries of a trail with everything that proves them, in one archive.

Guarantees: the same contents, checkpoint and keys give the same bytes; entries are the exact bytes of the trail; every
proof is to one checkpoint, the newest of the log; the manifest names every file by its SHA-256 and is signed. A bundle
that does not verify is written all the same: what is wrong is for the verifier to say. Payloads stay sealed.
Formats: docs/evidence.md. The verifier is `offline.py`; each bundle holds it, in one file, as `verify.py`.

    with Log.open(folder, read_only=True) as log:
        data = write(contents, log, Signer(keyring.kid, keyring.sign))
    verify(data, [Key.of(vkey)])["verdict"]
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import msgspec

from tasktrail.events.entry import Entry, decode
from tasktrail.events.errors import InvalidRequest, MalformedEntry
from tasktrail.events.facts import KeyActivated
from tasktrail.events.subjects import access_subject, task_subject
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog.log import Log
from tasktrail.projections.tlog.note import Checkpoint, Note
from tasktrail.projections.tlog.offline import FORMAT, LIMITS, MEANINGS, SIGNED_AS
from tasktrail.projections.tlog.offline_checks import tar_of

ENTRIES_MAX = 100_000
BYTES_MAX = 256 * 1024 * 1024
"""Of all entries together: a bundle is made in memory."""


class NothingToProve(InvalidRequest):
    """The log has no checkpoint that these entries could be proved by, or there are too many of them."""


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for: `kind` is task, principal, time, sequence or query."""

    kind: str
    parameters: dict[str, str]


class Custody(msgspec.Struct, frozen=True, kw_only=True):
    """Who made the bundle: an operator, at a time (RFC 3339), as the trail's entry `entry_id` says; `version`: ours.

    `note`: what whoever reads it should know, such as why later entries are not in it.
    """

    exported_by: str
    exported_at: str
    entry_id: str
    case_id: str
    reason: str
    version: str
    note: str = ""


class Signer(NamedTuple):
    """The signing key in use: its id, and what makes base64 of its Ed25519 signature over some bytes."""

    key_id: str
    sign: Callable[[bytes], str]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A task all of whose entries are in the bundle."""

    tenant: str
    task_ref: str

    @property
    def subjects(self) -> tuple[str, str]:
        """Where its entries stand, and the accesses to it."""
        return task_subject(self.tenant, self.task_ref), access_subject(self.tenant, self.task_ref)


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What goes into a bundle.

    `gaps`: sequences of the scope that the stream does not hold. `related`: the sequences that are there to judge the
    others by. `range`: the bundle holds every sequence from the first to the last. `policies`: Cedar texts, by the hex
    SHA-256 of each. `refused`: why messages were refused as entries, by sequence. `holding`: sizes of checkpoints that
    whoever gets the bundle has. `cosigned`: checkpoints with the cosignatures of witnesses, by size.
    """

    scope: Scope
    custody: Custody
    messages: Sequence[Message]
    gaps: frozenset[int] = frozenset()
    related: frozenset[int] = frozenset()
    tasks: Sequence[Task] = ()
    range: tuple[int, int] | None = None
    policies: dict[str, str] = {}
    refused: dict[int, str] = {}
    holding: frozenset[int] = frozenset()
    cosigned: dict[int, Note] = {}


def write(contents: Contents, log: Log, signer: Signer) -> bytes:
    """The bundle of these contents, proved by the newest checkpoint of a log that is opened for reading.

    Raises:
        NothingToProve: that checkpoint does not reach the last of them, or there are more than `ENTRIES_MAX`.
        LogError: the log cannot prove it.
    """
    messages = {message.stream_seq: message for message in contents.messages}
    sequences = sorted({*messages, *contents.gaps})
    newest = _newest(log, sequences)
    size = newest.size
    entries = {seq: _entry(message) for seq, message in messages.items() if seq not in contents.refused}
    policies, absent = _policies(contents, entries.values())
    kept = _checkpoints(log, size, sequences, contents)
    made = {f"entries/{seq}.json": message.body for seq, message in messages.items()}
    made |= {f"checkpoints/{at}": note.encode() for at, note in kept.items()}
    made |= {f"policies/{sha256}.cedar": text.encode() for sha256, text in policies.items()}
    made |= {
        "messages.json": _json({"messages": [_listed(seq, messages.get(seq), contents.related) for seq in sequences]}),
        "proofs.json": _json(
            {"size": size, "proofs": {str(seq): _texts(log.inclusion(seq - 1, size)) for seq in sequences}}
        ),
        "consistency.json": _json({"size": size, "proofs": _grown(log, size, {*kept, *contents.holding})}),
        "heads.json": _json({"size": size, "proofs": _heads(log, contents.tasks)}),
        "keys.json": _json({"keys": _keys(entries)}),
        "custody.json": _json(contents.custody),
        "README.txt": _readme(newest).encode(),
        "verify.py": verifier(),
    }
    manifest = _json(
        {
            "format": FORMAT,
            "origin": newest.origin,
            "checkpoint": size,
            "scope": contents.scope,
            "counts": {"messages": len(messages), "gaps": len(contents.gaps), "related": len(contents.related)},
            "tasks": contents.tasks,
            "range": list(contents.range or ()),
            "refused": {str(seq): why for seq, why in contents.refused.items() if seq in messages},
            "policies_absent": absent,
            "limits": LIMITS,
            "files": {name: hashlib.sha256(body).hexdigest() for name, body in made.items()},
        }
    )
    signature = _json({"key_id": signer.key_id, "signature": signer.sign(SIGNED_AS + manifest)})
    return tar_of({**made, "manifest.json": manifest, "manifest.sig": signature})


def _newest(log: Log, sequences: Sequence[int]) -> Checkpoint:
    note = log.checkpoint()
    newest = Checkpoint.parse(note.text) if note else None
    if newest is None or (sequences and sequences[-1] > newest.size):
        message = "the newest checkpoint of the log does not reach these entries yet; try again"
        raise NothingToProve(message)
    if len(sequences) > ENTRIES_MAX:
        message = f"{len(sequences)} entries are more than the {ENTRIES_MAX} of a bundle; ask for less, or for parts"
        raise NothingToProve(message)
    return newest


def _entry(message: Message) -> Entry | None:
    try:
        return decode(message.body)
    except MalformedEntry:
        return None


def _policies(contents: Contents, entries: Iterable[Entry | None]) -> tuple[dict[str, str], list[str]]:
    """The policies that decisions here name, and which of them nobody has the text of."""
    decisions = [entry.authority.decision for entry in entries if entry]
    named = {one.policy_sha256 for one in decisions if one and one.policy_sha256}
    known = {sha256: text for sha256, text in contents.policies.items() if sha256 in named}
    return known, sorted(named - known.keys())


def _checkpoints(log: Log, size: int, sequences: Sequence[int], contents: Contents) -> dict[int, Note]:
    """The first, the last before the entries, the first that covers them, those asked for, and the newest."""
    sizes = [at for at in log.checkpoints() if at <= size]
    before = [at for at in sizes if sequences and at < sequences[0]]
    covering = [at for at in sizes if not sequences or at >= sequences[-1]]
    cosigned = [at for at in sorted(contents.cosigned) if at <= size]
    wanted = {*sizes[:1], *before[-1:], *covering[:1], *(contents.holding & set(sizes)), *cosigned[-1:], size}
    found = ((at, log.checkpoint() if at == size else log.checkpoint(at)) for at in sorted(wanted))
    notes = {at: note for at, note in found if note is not None}
    mine = _log_keys(notes[size])
    return {at: _with_witnesses(one, contents.cosigned.get(at)) for at, one in notes.items() if _log_keys(one) & mine}


def _log_keys(note: Note) -> set[bytes]:
    """The ids of the log's keys that signed a checkpoint: one by a key of before is of no use beside the newest."""
    origin = Checkpoint.parse(note.text).origin
    return {one.key_id for one in note.signatures if one.name == origin}


def _with_witnesses(note: Note, cosigned: Note | None) -> Note:
    return cosigned if cosigned is not None and cosigned.text == note.text else note


def _grown(log: Log, size: int, kept: Iterable[int]) -> dict[str, list[str]]:
    return {str(at): _texts(log.consistency(at, size)) for at in sorted(kept) if 0 < at < size}


def _heads(log: Log, tasks: Iterable[Task]) -> list[dict[str, object]]:
    subjects = sorted(subject for task in tasks for subject in task.subjects)
    proofs = ((subject, log.heads.proof(subject)) for subject in subjects)
    return [{"subject": subject, "records": _texts(one.records), "path": _texts(one.path)} for subject, one in proofs]


def _keys(entries: dict[int, Entry | None]) -> list[dict[str, object]]:
    """Keys as the entries announce them; for people, a verifier reads the entries."""
    return [
        {"stream_seq": seq, "purpose": event.purpose, "kid": event.kid, "public_key": event.public_key}
        for seq, entry in sorted(entries.items())
        for event in (entry.events if entry else ())
        if isinstance(event, KeyActivated)
    ]


def _listed(seq: int, message: Message | None, related: frozenset[int]) -> dict[str, object]:
    part = {"stream_seq": seq, "part": "related" if seq in related else "scope"}
    if message is None:
        return {**part, "gap": True}
    said = {"subject": message.subject, "msg_id": message.msg_id, "key_id": message.key_id}
    return {**part, **said, "signature": message.signature}


def _texts(hashes: Iterable[bytes]) -> list[str]:
    return [b64encode(one).decode() for one in hashes]


def _json(document: object) -> bytes:
    return msgspec.json.encode(document, order="sorted") + b"\n"


def _readme(newest: Checkpoint) -> str:
    verdicts = "\n".join(f"  {verdict:8}  {meaning}" for verdict, meaning in MEANINGS.items())
    limits = "\n".join(f"  - {limit}" for limit in LIMITS)
    return f"""Evidence from a trail of tasktrail: entries/ holds them as they were recorded, byte for byte.

Check it with the verifier, which needs only Python 3.9 or later:

  python3 -I verify.py BUNDLE --key KEY

KEY is the public key of {newest.origin}. Get it from its operator in another way than you got this
bundle; nothing in here can vouch for it. The same holds of verify.py: compare it with one from elsewhere.

For each entry it says one of:
{verdicts}

What a bundle cannot show:
{limits}
"""


@cache
def verifier() -> bytes:
    """The stand-alone `verify.py`: `offline.py` with what it imports of ours in its place.

    Raises:
        RuntimeError: it imports something of ours that cannot be put there.
    """
    folder = files("tasktrail.projections.tlog")

    def source(found: re.Match[str]) -> str:
        text = folder.joinpath(f"{found[1]}.py").read_text(encoding="utf-8")
        return text.partition("from __future__ import annotations\n")[2].lstrip("\n")

    ours = r"^from tasktrail\.projections\.tlog\.(offline_\w+) import (?:\([^)]*\)|[^(\n]*)\n"
    whole = re.sub(ours, source, folder.joinpath("offline.py").read_text(encoding="utf-8"), flags=re.MULTILINE)
    if re.search(r"^\s*(?:from|import) tasktrail", whole, re.MULTILINE):
        message = "offline.py imports something of ours that cannot stand in its place"
        raise RuntimeError(message)
    return whole.encode()
