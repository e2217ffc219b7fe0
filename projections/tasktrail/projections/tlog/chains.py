"""What an entry says of itself, held against where it stands: its id, subject, place in its task's chain, signature.

Guarantees: pure; reads no more of an entry than it needs. After a break a chain is taken up again, so one break is one
finding, whichever of the two sides the entries after it continue. Which signing keys count is learnt from the trail: a
key counts when a `KeyActivated` announces it that a key that counts has signed; the first is given, or the first one
that the trail announces. A key may be used shortly before its announcement is on the trail.

    checks = Chains(found=findings.append)
    leaf_hashes = checks.take_all(index, messages)
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal, cast

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tasktrail.events.entry import GENESIS, VERSION, decode
from tasktrail.events.errors import TasktrailError
from tasktrail.events.facts import AccessEvent, ControlEvent, GovernanceEvent, KeyActivated, TaskEvent
from tasktrail.events.subjects import ANONYMOUS_TENANT, GENERATION, control_subject, tenant_token
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog.findings import Finding, Kind, found

PENDING_MAX = 10_000
PENDING_BYTES_MAX = 64 * 1024 * 1024
_KID_LENGTH = 16
_WITH_REF, _WITHOUT_REF = 5, 4
_ALONE_BYTES = 12  # of a leaf hash: enough never to meet by chance
CONTROL = control_subject(ANONYMOUS_TENANT)
_ANNOUNCES = b'"KeyActivated"'
_SHOWN = 80
_tenant_token = lru_cache(maxsize=4096)(tenant_token)


class _Tag(msgspec.Struct, gc=False):
    type: str


class _Narrow(msgspec.Struct, gc=False):
    """What of an entry its place depends on."""

    v: int
    id: str
    tenant: str
    events: list[_Tag]
    task_ref: str = ""
    task_seq: int = 0
    prev: str = GENESIS


_decoder = msgspec.json.Decoder(_Narrow)
_EVENTS: dict[str, tuple[type, ...]] = {
    "task": TaskEvent.__args__,
    "access": AccessEvent.__args__,
    "denied": tuple(one for one in ControlEvent.__args__ if one.__name__ == "AccessDenied"),
    "control": tuple(one for one in ControlEvent.__args__ if one.__name__ != "AccessDenied"),
    "governance": GovernanceEvent.__args__,
}
_ALLOWED = {kind: frozenset(one.__name__ for one in types) for kind, types in _EVENTS.items()}
_KNOWN: frozenset[str] = frozenset[str]().union(*_ALLOWED.values())
_REFERRING = frozenset({"task", "access"})
_GENERATION = str(GENERATION)
_KIND_AT = len(f"trail.{_GENERATION}.")
_CREATED = "TaskCreated"
_OF_TASK, _OF_ACCESS = f"trail.{_GENERATION}.task.", f"trail.{_GENERATION}.access."
_NO_ENTRY = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _only(kind: str) -> Callable[[bytes], _Narrow]:
    """Decodes entries of our version with known events of this kind of subject; all else raises `_NO_ENTRY`."""
    of_kind: Any = Literal[tuple(sorted(_ALLOWED[kind]))]
    version: Any = Literal[VERSION]
    event: Any = msgspec.defstruct("_Event", [("type", of_kind)], gc=False)
    entry = msgspec.defstruct("_Entry", [("v", version), ("events", list[event])], bases=(_Narrow,), gc=False)
    return msgspec.json.Decoder(cast("type[_Narrow]", entry)).decode


_task_entry, _access_entry = _only("task"), _only("access")

Head = tuple[int, str]
"""`task_seq` and hex SHA-256 of a chain's last entry."""
_Place = tuple[int, str, int, int, bytes]
"""Of one subject: the head of its chain, how many messages it has, and the last one's sequence and leaf hash."""
_EMPTY: _Place = (0, GENESIS, 0, 0, b"")
_Wrong = tuple[Kind, str]


class _Beginnings(dict[str, str]):
    """By tenant what its subjects of one kind begin with."""

    def __init__(self, of_kind: str) -> None:
        super().__init__()
        self._of_kind = of_kind

    def __missing__(self, tenant: str) -> str:
        made = self[tenant] = f"{self._of_kind}{tenant_token(tenant)}."
        return made


class Chains:
    """The checks of every message but its signature. Hands each finding to `found`; at most one for a message."""

    def __init__(self, found: Callable[[Finding], None]) -> None:
        self._found = found
        self._places: dict[str, _Place] = {}
        self._others: dict[str, list[Head]] = {}
        self._created: dict[str, str] = {}
        self._alone: set[bytes] = set()
        self._of_task, self._of_access = _Beginnings(_OF_TASK), _Beginnings(_OF_ACCESS)

    def take_all(self, index: int, messages: Sequence[Message]) -> list[bytes]:
        """Check messages that follow each other from `index` on; their leaf hashes.

        What is as it should be, as nearly everything is, is seen here at little cost; `take` judges the rest.
        """
        leaves: list[bytes] = []
        begun, places, created, alone = sha256(b"\x00").copy, self._places, self._created, self._alone
        of_task, of_access = self._of_task, self._of_access
        for message in messages:
            stream_seq, subject, body, msg_id, _, _ = message
            before, prev, count, _, _ = places.get(subject, _EMPTY)
            hashing = begun()
            hashing.update(body)
            leaf = hashing.digest()
            leaves.append(leaf)
            try:
                if subject.startswith(_OF_TASK):
                    entry = _task_entry(body)
                    task_seq = entry.task_seq
                    if (
                        task_seq == before + 1
                        and entry.prev == prev
                        and entry.id == msg_id
                        and subject == of_task[entry.tenant] + entry.task_ref
                        and (task_seq != 1 or self._begins(entry))
                    ):
                        places[subject] = (task_seq, sha256(body).hexdigest(), count + 1, stream_seq, leaf)
                        continue
                elif subject.startswith(_OF_ACCESS):
                    entry, mark = _access_entry(body), leaf[:_ALONE_BYTES]
                    if (
                        created.get(entry.task_ref) == entry.tenant
                        and entry.id == msg_id
                        and subject == of_access[entry.tenant] + entry.task_ref
                        and not (entry.task_seq or entry.prev or mark in alone)
                    ):
                        alone.add(mark)
                        places[subject] = (0, GENESIS, count + 1, stream_seq, leaf)
                        continue
            except _NO_ENTRY:
                pass
            self.take(index + len(leaves) - 1, message, leaf)
        return leaves

    def heads(self) -> Iterator[tuple[str, int, int, bytes]]:
        """Each subject so far with how many messages it has, and the last one's sequence and leaf hash."""
        for subject, (_, _, count, stream_seq, leaf) in self._places.items():
            yield subject, count, stream_seq, leaf

    def _begins(self, entry: _Narrow) -> bool:
        """Whether a task may begin with this entry, of which nothing else is wrong."""
        events, ref = entry.events, entry.task_ref
        alone = len(events) == 1 and events[0].type == _CREATED
        return alone and "." not in ref and self._created.setdefault(ref, entry.tenant) == entry.tenant

    def take(self, index: int, message: Message, leaf: bytes) -> None:
        """Check one message, whose leaf hash is given."""
        task_seq, body_hash, count, _, _ = self._places.get(message.subject, _EMPTY)
        self._places[message.subject] = (task_seq, body_hash, count + 1, message.stream_seq, leaf)
        wrong = self._wrong(message, leaf)
        if wrong is not None:
            self._found(found(wrong[0], index, wrong[1], ref_of(message.subject)))

    def _wrong(self, message: Message, leaf: bytes) -> _Wrong | None:  # noqa: PLR0911 - one for each check
        subject = message.subject
        try:
            entry = _decoder.decode(message.body)
        except _NO_ENTRY:
            return Kind.UNCHAINED, "its bytes are no entry"
        wrong = _misplaced(message, subject, entry)
        if wrong is not None:
            return wrong
        task_seq = entry.task_seq
        if subject.startswith("task", _KIND_AT):
            before, prev, count, stream_seq, _ = self._places[subject]
            head, body_hash = (before, prev), sha256(message.body).hexdigest()
            self._places[subject] = (task_seq, body_hash, count, stream_seq, leaf)
            if task_seq != head[0] + 1 or entry.prev != head[1]:
                return self._broken(subject, entry, head, body_hash)
            return self._begun(entry) if task_seq == 1 else None
        if task_seq or entry.prev != GENESIS:
            return Kind.UNCHAINED, f"it is in no task's chain, and has task_seq {task_seq}"
        if entry.task_ref and self._created.get(entry.task_ref) != entry.tenant:
            return Kind.UNCHAINED, "no creation of its task is on the trail before it"
        mark = leaf[:_ALONE_BYTES]
        if mark in self._alone:
            return Kind.DUPLICATED, "the same entry is on the trail before"
        self._alone.add(mark)
        return None

    def _broken(self, subject: str, entry: _Narrow, head: Head, body_hash: str) -> _Wrong | None:
        """The entry does not continue the chain's head; nothing is wrong when it continues what a break left behind."""
        if (entry.task_seq, body_hash) == head:
            return Kind.DUPLICATED, "the same entry is on the trail before"
        others = self._others.setdefault(subject, [])
        known = (entry.task_seq - 1, entry.prev) in others
        others.append(head)
        if known:
            return None
        return Kind.UNCHAINED, (
            f"it has task_seq {entry.task_seq} and prev {entry.prev[:_KID_LENGTH] or 'none'}; its task's chain goes on "
            f"with {head[0] + 1} and {head[1][:_KID_LENGTH] or 'none'}"
        )

    def _begun(self, entry: _Narrow) -> _Wrong | None:
        creations = [event for event in entry.events if event.type == _CREATED]
        if len(creations) != 1 or entry.events[0].type != _CREATED:
            return Kind.UNCHAINED, "its task begins here, and not with one TaskCreated"
        if self._created.setdefault(entry.task_ref, entry.tenant) != entry.tenant:
            return Kind.UNCHAINED, f"its task was created before, for tenant {self._created[entry.task_ref][:_SHOWN]!r}"
        return None


def _misplaced(message: Message, subject: str, entry: _Narrow) -> _Wrong | None:
    """Id, tenant, task and events against message id and subject."""
    if entry.v != VERSION:
        return Kind.UNCHAINED, f"it is an entry of version {entry.v}, this code reads {VERSION}"
    if message.msg_id != entry.id:
        return Kind.CHANGED, f"its message id is {message.msg_id[:_SHOWN]!r}, its entry's id {entry.id[:_SHOWN]!r}"
    parts = subject.split(".")
    allowed = _ALLOWED.get(parts[2]) if len(parts) >= _WITHOUT_REF else None
    place = [_GENERATION, parts[2], _tenant_token(entry.tenant)] if allowed is not None else []
    if allowed is None or parts[1:] != ([*place, entry.task_ref] if parts[2] in _REFERRING else place):
        whose = f"tenant {entry.tenant[:_SHOWN]!r}, task {entry.task_ref[:_SHOWN]!r}"
        return Kind.CHANGED, f"it stands on {subject[:200]!r}, its entry is of {whose}"
    if parts[2] not in _REFERRING and entry.task_ref:
        return Kind.CHANGED, f"it stands on {subject[:200]!r}, its entry is of task {entry.task_ref[:_SHOWN]!r}"
    for event in entry.events:
        if event.type not in allowed and event.type in _KNOWN:
            return Kind.CHANGED, f"it stands on a {parts[2]} subject, where no {event.type} belongs"
    return None


def ref_of(subject: str) -> str:
    """The task reference a subject ends in; empty when it has none."""
    parts = subject.split(".")
    return parts[4] if len(parts) == _WITH_REF else ""


class Signatures:
    """The signatures of messages in the trail's order. `first` is the public key everything starts from, base64url."""

    def __init__(self, found: Callable[[Finding], None], pinned: str = "") -> None:
        """`pinned`: the key to start from; without, the first that the trail announces.

        Raises:
            ValueError: it is no Ed25519 public key in base64url.
        """
        self._found = found
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._pending: list[tuple[int, Message]] = []
        self._pending_bytes = 0
        self.first = ""
        if pinned:
            self._add(pinned)

    def _add(self, public_key: str) -> str:
        raw = base64.urlsafe_b64decode(public_key + "=" * (-len(public_key) % 4))
        kid = sha256(raw).hexdigest()[:_KID_LENGTH]
        self._keys.setdefault(kid, Ed25519PublicKey.from_public_bytes(raw))
        self.first = self.first or public_key
        return kid

    @property
    def kids(self) -> tuple[str, ...]:
        """Ids of the keys that count so far."""
        return tuple(self._keys)

    def learn(self, message: Message) -> None:
        """Take up the keys that this message announces, if it may."""
        if message.subject != CONTROL or _ANNOUNCES not in message.body:
            return
        try:
            events = decode(message.body).events
        except TasktrailError:
            return
        for event in events:
            if isinstance(event, KeyActivated) and event.purpose == "signing":
                self._learn(event, message)

    def _learn(self, event: KeyActivated, message: Message) -> None:
        try:
            raw = base64.urlsafe_b64decode(event.public_key + "=" * (-len(event.public_key) % 4))
            announced = Ed25519PublicKey.from_public_bytes(raw)
        except (ValueError, binascii.Error):
            return
        signer = self._keys.get(message.key_id) if self._keys else announced
        if signer is None or not _verifies(signer, message):
            return
        kid = self._add(event.public_key)
        waiting, self._pending = self._pending, []
        self._pending_bytes = 0
        for index, one in waiting:
            if one.key_id == kid or not self._wait(index, one):
                self.take(index, one)

    def is_valid(self, message: Message) -> bool:
        """Whether a key that counts by now has signed the message."""
        key = self._keys.get(message.key_id)
        return key is not None and _verifies(key, message)

    def take(self, index: int, message: Message) -> None:
        """Check one signature; of a key that is not known yet when it is announced, or at `finish`."""
        key = self._keys.get(message.key_id)
        if key is None:
            if not message.signature or not self._wait(index, message):
                self._refuse(index, message)
        elif not _verifies(key, message):
            self._refuse(index, message)

    def _wait(self, index: int, message: Message) -> bool:
        size = self._pending_bytes + len(message.body)
        if len(self._pending) >= PENDING_MAX or size > PENDING_BYTES_MAX:
            return False
        self._pending.append((index, message))
        self._pending_bytes = size
        return True

    def finish(self, *, whole: bool = True) -> int:
        """Nothing more comes: what waits for its key has none. How many do, when more of the trail would follow."""
        if not whole:
            return len(self._pending)
        for index, message in self._pending:
            self._refuse(index, message)
        self._pending.clear()
        return 0

    def _refuse(self, index: int, message: Message) -> None:
        if not message.signature:
            what = "it has no signature"
        elif message.key_id in self._keys:
            what = f"key {message.key_id} did not sign these bytes"
        else:
            what = f"it is signed by key {message.key_id[:_SHOWN]!r}, which no key that counts has announced"
        self._found(found(Kind.UNSIGNED, index, what, ref_of(message.subject)))


def _verifies(key: Ed25519PublicKey, message: Message) -> bool:
    try:
        key.verify(base64.b64decode(message.signature, validate=True), message.body)
    except (InvalidSignature, ValueError):
        return False
    return True
