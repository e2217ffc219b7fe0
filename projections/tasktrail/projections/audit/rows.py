"""Messages of the trail become rows of the audit store: pure, and the same whoever reads them and whenever.

Guarantees: every message gives rows. One that is no entry, whose message id is not its entry's, that stands on another
subject than it says, or that does not continue its task's chain becomes a rejected row and changes nothing else; a hole
in the stream's sequence becomes one too. Bytes are kept as they are and never decrypted. No clock is read: the rows of
a trail are a function of the trail alone. Signatures are kept, not verified.

    rows = read(messages, after=position, known={ref: task row})
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from tasktrail.events.entry import GENESIS, Entry, decode, leaf_hash
from tasktrail.events.errors import MalformedEntry
from tasktrail.events.facts import (
    AccessDenied,
    AccessEvent,
    ControlEvent,
    GovernanceEvent,
    TaskCreated,
    TaskEvent,
    UnknownEvent,
)
from tasktrail.events.subjects import kind_of, tenant_token
from tasktrail.projections.audit.columns import (
    EntryRow,
    EventRow,
    Message,
    OutOfRange,
    entry_row,
    event_row,
    int64,
)
from tasktrail.projections.audit.notable import NotableRow, notable
from tasktrail.projections.audit.plain import PlainEvent, PlainRow, is_plain, plain_event, plain_row
from tasktrail.projections.audit.task_rows import TaskRow, changes_of, created_row

_OF_SERVICE = frozenset({"control", "governance"})
_REF_TOKEN = 4  # trail.<gen>.<kind>.<tenant>.<ref>
_tenant_token = lru_cache(maxsize=4096)(tenant_token)


class Reason(StrEnum):
    """Why a message of the trail is not among the entries."""

    UNDECODABLE = "undecodable"  # its bytes are no entry this version reads
    MSG_ID = "msg_id"  # its Nats-Msg-Id is not the entry's id
    SUBJECT = "subject"  # it says another tenant, task or kind than its subject
    CHAIN = "chain"  # it does not continue its task's chain
    ORPHAN = "orphan"  # an access to a task of which there is no creation
    OUT_OF_RANGE = "out_of_range"  # a time or number no column can hold
    MISSING = "missing"  # nothing is there: the stream's sequence has a hole


class DenialRow(NamedTuple):
    """One row of `denials`: a task reference that refused callers claimed."""

    stream_seq: int
    ord: int
    task_ref: str
    reason: str
    times: int


class RejectedRow(NamedTuple):
    """One row of `rejected`: `sequences` of them from `stream_seq` on; more than one only for a hole."""

    stream_seq: int
    sequences: int
    subject: str | None
    task_ref: str | None
    leaf_sha256: str | None
    reason: str
    detail: str
    body: bytes | None


class Rows:
    """What some messages came to. `created` and `changed` hold the last row of each task they touched.

    `plain_entries` and `plain_events` hold some only where that was asked for; then `notable` and `service_events` are
    left to be read, too.
    """

    def __init__(self, last_seq: int) -> None:
        self.last_seq = last_seq
        self.entries: list[EntryRow] = []
        self.plain_entries: list[PlainRow] = []
        self.plain_events: list[PlainEvent] = []
        self.events: list[EventRow] = []
        self.denials: list[DenialRow] = []
        self.notable: list[NotableRow] = []
        self.service_events: list[NotableRow] = []
        self.rejected: list[RejectedRow] = []
        self.created: dict[str, TaskRow] = {}
        self.changed: dict[str, TaskRow] = {}


class _Refused(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class _Payloads(msgspec.Struct):
    """An entry's events as written: what a newer version added to an event we know stays in the text."""

    events: tuple[msgspec.Raw, ...]


_payloads = msgspec.json.Decoder(_Payloads)


def ref_of(subject: str) -> str:
    """The task reference a subject ends in; empty when it has none."""
    parts = subject.split(".")
    return parts[_REF_TOKEN] if len(parts) == _REF_TOKEN + 1 else ""


def refs_of(messages: Iterable[Message]) -> list[str]:
    """The task references that some messages' subjects end in, each once."""
    refs = dict.fromkeys(ref_of(message.subject) for message in messages)
    refs.pop("", None)
    return list(refs)


def read(messages: Iterable[Message], *, after: int, known: Mapping[str, TaskRow], plainly: bool = False) -> Rows:
    """The rows of these messages, in the stream's order, of which those up to sequence `after` are known already.

    `known` holds the row of every task that a message's subject names (see `ref_of`) and that exists. `after` is 0 for
    a trail not yet begun: then whatever was archived before its first message is no hole. `plainly`: see `Rows`.
    """
    reading = _Reading(after, known, plainly=plainly)
    for message in messages:
        reading.take(message)
    return reading.rows


class _Reading:
    def __init__(self, after: int, known: Mapping[str, TaskRow], *, plainly: bool) -> None:
        self.rows = Rows(after)
        self._known = known
        self._plainly = plainly

    def take(self, message: Message) -> None:
        rows, seq = self.rows, message.stream_seq
        if seq <= rows.last_seq:
            return
        if rows.last_seq and seq > rows.last_seq + 1:
            self._miss(rows.last_seq + 1, seq - rows.last_seq - 1)
        rows.last_seq = seq
        leaf = leaf_hash(message.body)
        try:
            self._accept(message, leaf)
        except _Refused as refused:
            self._reject(message, leaf, refused.reason, refused.detail)
        except MalformedEntry as error:
            self._reject(message, leaf, Reason.UNDECODABLE, str(error))
        except OutOfRange as error:
            self._reject(message, leaf, Reason.OUT_OF_RANGE, str(error))

    def _miss(self, first: int, count: int) -> None:
        detail = f"the stream has no message {first}" + (f" to {first + count - 1}" if count > 1 else "")
        self.rows.rejected.append(RejectedRow(first, count, None, None, None, Reason.MISSING.value, detail, None))

    def _reject(self, message: Message, leaf: str, reason: Reason, detail: str) -> None:
        ref = ref_of(message.subject) or None
        self.rows.rejected.append(
            RejectedRow(message.stream_seq, 1, message.subject, ref, leaf, reason.value, detail, message.body)
        )

    def _accept(self, message: Message, leaf: str) -> None:
        """Add the rows of an entry; nothing is added when this raises."""
        entry = decode(message.body)
        if message.msg_id != entry.id:
            detail = f"its message id is {message.msg_id or 'absent'}, its entry's id {entry.id}"
            raise _Refused(Reason.MSG_ID, detail)
        kind = _kind(message.subject, entry)
        before = self._row_of(entry.task_ref)
        task: TaskRow | None = None
        changes: dict[str, Any] = {}
        if kind == "task":
            task, changes = _continued(message.stream_seq, entry, before, leaf)
        elif kind == "access":
            task, changes = _looked_at(message.stream_seq, entry, before)
        statuses: list[str | None] = []
        for event in entry.events:
            if task is not None:
                changes |= changes_of(task, event)
                task = msgspec.structs.replace(task, **changes)
                changes = {}
            statuses.append(task.status if task else None)
        if task is not None and changes:
            task = msgspec.structs.replace(task, **changes)
        if self._plainly and is_plain(message.body, entry):
            self._add_plain(message, entry, kind, leaf, statuses)
        else:
            self._add(message, entry, kind, leaf, statuses)
        if task is not None:
            made_here = before is None or task.task_ref in self.rows.created
            (self.rows.created if made_here else self.rows.changed)[task.task_ref] = task

    def _add(self, message: Message, entry: Entry, kind: str, leaf: str, statuses: Sequence[str | None]) -> None:
        """The rows of an accepted entry, all of them or none; `statuses` are the task's after each event."""
        rows = self.rows
        events = _event_rows(message, entry, _texts(message.body), statuses)
        denials = _denial_rows(message, entry)
        row = entry_row(message, entry, kind, leaf)
        rows.entries.append(row)
        rows.events.extend(events)
        rows.denials.extend(denials)
        if not self._plainly:
            looked_for = list(notable(row, events))
            rows.notable.extend(looked_for)
            if kind in _OF_SERVICE:
                rows.service_events.extend(looked_for)

    def _add_plain(self, message: Message, entry: Entry, kind: str, leaf: str, statuses: Sequence[str | None]) -> None:
        """The same, with what DuckDB reads left out."""
        rows = self.rows
        row = plain_row(message, entry, kind, leaf)
        event = plain_event(message, entry, statuses[0] if statuses else None)
        if event is not None:
            rows.plain_events.append(event)
        else:
            events = _event_rows(message, entry, _texts(message.body), statuses)
            denials = _denial_rows(message, entry)
            rows.events.extend(events)
            rows.denials.extend(denials)
        rows.plain_entries.append(row)

    def _row_of(self, ref: str) -> TaskRow | None:
        return self.rows.changed.get(ref) or self.rows.created.get(ref) or self._known.get(ref)


def _event_rows(message: Message, entry: Entry, texts: Sequence[str], statuses: Sequence[str | None]) -> list[EventRow]:
    seq, ref = message.stream_seq, entry.task_ref
    return [
        event_row(seq, ordinal, ref, event, text, status)
        for ordinal, (event, text, status) in enumerate(zip(entry.events, texts, statuses, strict=True))
    ]


def _denial_rows(message: Message, entry: Entry) -> list[DenialRow]:
    return [
        row
        for ordinal, event in enumerate(entry.events)
        if type(event) is AccessDenied
        for row in _denied(message.stream_seq, ordinal, event)
    ]


_ALLOWED: dict[str, frozenset[type]] = {
    "task": frozenset({*TaskEvent.__args__, UnknownEvent}),
    "access": frozenset({*AccessEvent.__args__, UnknownEvent}),
    "denied": frozenset({AccessDenied, UnknownEvent}),
    "control": frozenset({*ControlEvent.__args__, UnknownEvent} - {AccessDenied}),
    "governance": frozenset({*GovernanceEvent.__args__, UnknownEvent}),
}


@lru_cache(maxsize=16_384)
def _place(subject: str) -> tuple[str, str, str]:
    """The kind of a subject, its tenant's token and its task's reference; a kind of '' for none of the trail's."""
    kind = kind_of(subject)
    parts = subject.split(".")
    if not kind or len(parts) != (_REF_TOKEN + 1 if kind in {"task", "access"} else _REF_TOKEN):
        return "", "", ""
    return kind, parts[3], parts[_REF_TOKEN] if len(parts) > _REF_TOKEN else ""


def _kind(subject: str, entry: Entry) -> str:
    """The subject's kind, when tenant, task and events of the entry belong on it."""
    kind, tenant, ref = _place(subject)
    if not kind:
        detail = f"{subject} is no subject of the trail"
        raise _Refused(Reason.SUBJECT, detail)
    if tenant != _tenant_token(entry.tenant):
        detail = f"the subject's tenant is {tenant}, the entry's {entry.tenant!r:.80}"
        raise _Refused(Reason.SUBJECT, detail)
    if ref != entry.task_ref:
        detail = f"the entry says task {entry.task_ref!r:.80}"
        raise _Refused(Reason.SUBJECT, detail)
    for event in entry.events:
        if type(event) not in _ALLOWED[kind]:
            detail = f"{type(event).__name__} does not belong on a {kind} subject"
            raise _Refused(Reason.SUBJECT, detail)
    if kind != "task" and (entry.task_seq or entry.prev):
        detail = f"an entry on a {kind} subject is in no chain, this one has task_seq {entry.task_seq}"
        raise _Refused(Reason.CHAIN, detail)
    return kind


def _continued(seq: int, entry: Entry, before: TaskRow | None, leaf: str) -> tuple[TaskRow, dict[str, Any]]:
    """The task's row, and what changes in it when its chain is one entry longer."""
    expected = (before.task_seq + 1, before.leaf_sha256) if before else (1, GENESIS)
    if (entry.task_seq, entry.prev) != expected:
        detail = (
            f"it has task_seq {entry.task_seq} and prev {entry.prev or 'none'}; "
            f"the chain continues with {expected[0]} and {expected[1] or 'none'}"
        )
        raise _Refused(Reason.CHAIN, detail)
    creations = [event for event in entry.events if isinstance(event, TaskCreated)]
    if before is None:
        if len(creations) != 1 or entry.events[0] is not creations[0]:
            detail = "a task begins with one TaskCreated"
            raise _Refused(Reason.CHAIN, detail)
        return created_row(seq, entry, creations[0], leaf), {}
    if creations or before.tenant != entry.tenant:
        detail = "this task was created before" + ("" if creations else f", for tenant {before.tenant!r:.80}")
        raise _Refused(Reason.CHAIN, detail)
    changes = {"last_seq": seq, "entries": before.entries + 1, "task_seq": entry.task_seq, "leaf_sha256": leaf}
    return before, changes


def _looked_at(seq: int, entry: Entry, before: TaskRow | None) -> tuple[TaskRow, dict[str, Any]]:
    """The task's row, and what changes in it by an access, which is in no chain."""
    if before is None or before.tenant != entry.tenant:
        detail = "no creation of this task is on the trail before it"
        raise _Refused(Reason.ORPHAN, detail)
    return before, {"last_seq": seq, "entries": before.entries + 1}


def _texts(body: bytes) -> list[str]:
    try:
        return [str(raw, "utf-8") for raw in _payloads.decode(body).events]
    except UnicodeDecodeError as error:
        message = f"an event of it is no UTF-8: {error}"
        raise MalformedEntry(message) from None


def _denied(seq: int, ordinal: int, event: AccessDenied) -> list[DenialRow]:
    reason = ", ".join(sorted(event.reasons))
    return [DenialRow(seq, ordinal, ref, reason, int64("refs", count)) for ref, count in sorted(event.refs.items())]
