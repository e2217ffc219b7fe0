"""The entry: one immutable record of the trail, and its bytes.

Guarantees: an entry is encoded once and its bytes are the leaf that is chained, signed and proved; they are never
re-encoded. `prev` is the SHA-256 of the previous entry's bytes of the same task, so a task's entries form a chain.
Events of unknown type survive decoding.

    body = encode(entry)
    decode(body) == entry
"""

import hashlib
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from tasktrail.events.authority import Authority, Record
from tasktrail.events.errors import MalformedEntry
from tasktrail.events.facts import Event, UnknownEvent

VERSION = 1
GENESIS = ""
"""`prev` of a task's first entry and of every entry outside a chain."""

MSG_ID = "Nats-Msg-Id"
SIGNATURE = "Tasktrail-Signature"
KEY_ID = "Tasktrail-Key"
EXPECTED = "Nats-Expected-Last-Subject-Sequence"


if TYPE_CHECKING:
    _Event: TypeAlias = Event | UnknownEvent
else:
    _Event = Event  # what msgspec reads an entry with: one with an event of unknown type is read the loose way


class Head(Record, frozen=True, kw_only=True):
    """Everything of an entry but its events. `command_sha256` tells a repeated command from another with its id."""

    v: int
    id: str
    tenant: str
    task_ref: str = ""
    task_seq: int = 0
    prev: str = GENESIS
    recorded_at: str
    command: str = ""
    command_sha256: str = ""
    authority: Authority
    sealed: dict[str, bytes] = {}


class Entry(Head, frozen=True, kw_only=True):
    """One command's events with their authority and their place in the task's chain.

    `task_seq` counts the task's entries from 1; 0 for entries outside a chain. `recorded_at` is RFC 3339 in UTC with
    milliseconds. `sealed` maps a commitment's name to its ciphertext blob; a blob not in it is in the object bucket
    under the commitment's `sha256`.
    """

    events: tuple[_Event, ...]


class _Loose(Head, frozen=True, kw_only=True):
    """`Entry` with its events still raw."""

    events: tuple[msgspec.Raw, ...]


class _Tag(msgspec.Struct):
    type: str
    at_ms: int = 0


_encoder = msgspec.json.Encoder()
_typed = msgspec.json.Decoder(Entry)
_loose = msgspec.json.Decoder(_Loose)
_event = msgspec.json.Decoder(Event)
_tag = msgspec.json.Decoder(_Tag)
_KNOWN: frozenset[str] = frozenset(t.__name__ for t in Event.__args__)


def encode(entry: Entry) -> bytes:
    """The bytes of an entry: what is published, chained, signed and proved."""
    return _encoder.encode(entry)


def decode(body: bytes) -> Entry:
    """The entry of these bytes.

    Raises:
        MalformedEntry: the bytes are no entry of a version this code reads.
    """
    try:
        entry = _typed.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        entry = _decode_loose(body)
    if entry.v != VERSION:
        message = f"entry {entry.id} has version {entry.v}; this code reads {VERSION}: read it with a newer tasktrail"
        raise MalformedEntry(message)
    return entry


def _decode_loose(body: bytes) -> Entry:
    try:
        loose = _loose.decode(body)
        events = tuple(_decode_event(raw) for raw in loose.events)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"these {len(body)} bytes are no entry of version {VERSION}: {error}"
        raise MalformedEntry(message) from None
    return _entry(loose, events)


def _decode_event(raw: msgspec.Raw) -> Event | UnknownEvent:
    tag = _tag.decode(raw)
    if tag.type in _KNOWN:
        known: Event = _event.decode(raw)
        return known
    return UnknownEvent(type=tag.type, raw=raw.copy(), at_ms=tag.at_ms)


def _entry(head: Head, events: tuple[Event | UnknownEvent, ...]) -> Entry:
    return Entry(
        v=head.v,
        id=head.id,
        tenant=head.tenant,
        task_ref=head.task_ref,
        task_seq=head.task_seq,
        prev=head.prev,
        recorded_at=head.recorded_at,
        command=head.command,
        command_sha256=head.command_sha256,
        authority=head.authority,
        sealed=head.sealed,
        events=events,
    )


def leaf_hash(body: bytes) -> str:
    """Hex SHA-256 of an entry's bytes: the next entry's `prev`."""
    return hashlib.sha256(body).hexdigest()
