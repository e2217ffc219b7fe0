"""Messages of the trail become rows of the audit store: pure, and the same whoever reads them and whenever.

Guarantees: every message gives rows. One that is no entry, whose message id is not its entry's, that stands on another
subject than it says, or that does not continue its task's chain becomes a rejected row and changes nothing else; a hole
in the stream's sequence becomes one too. Bytes are kept as they are and never decrypted. No clock is read: the rows of
a trail are a function of the trail alone. Signatures are kept, not verified.

    rows = read(messages, after=position, known={ref: task row})
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

import msgspec

from tasktrail.events.authority import Record, Standing
from tasktrail.events.entry import GENESIS, Entry, decode, leaf_hash
from tasktrail.events.errors import MalformedEntry
from tasktrail.events.facts import (
    AccessDenied,
    AccessEvent,
    AuthorityChanged,
    CancelRequested,
    ControlEvent,
    Event,
    GovernanceEvent,
    GrantGiven,
    GrantWithdrawn,
    HandleRevoked,
    HoldPlaced,
    HoldReleased,
    InputRequested,
    InputResponded,
    PayloadShredded,
    Status,
    StatusReported,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskEvent,
    TaskExpired,
    TaskFailed,
    TaskResumed,
    UnknownEvent,
)
from tasktrail.events.subjects import kind_of, tenant_token
from tasktrail.projections.audit.columns import (
    EPOCH,
    EntryRow,
    EventRow,
    Message,
    OutOfRange,
    claimed_time,
    entry_row,
    event_row,
    instant,
    int64,
)
from tasktrail.projections.audit.notable import NotableRow, notable

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


class TaskRow(Record, frozen=True, kw_only=True):
    """One row of `tasks`: the task as of its last entry. Times are UTC without zone, sequences the stream's.

    `retention` is JSON: status to milliseconds. `token_hash` and `jti` are the creating credential's; `authority_until`
    is when the creator's latest one ends. `grants` and `holds` count those in force. `trace_id` is that of the request
    that created it (W3C trace context), what other tasks of the same piece of work have too.
    """

    task_ref: str
    tenant: str
    iss: str | None
    sub: str | None
    client_id: str | None
    binding_mode: str
    server: str
    tool: str
    task_support: str
    wire: str
    protocol_version: str
    requested_ttl_ms: int | None
    granted_ttl_ms: int
    ttl_set_by: str | None
    retention: str | None
    poll_interval_ms: int
    token_hash: str | None
    jti: str | None
    created_at: datetime
    created_by: str
    first_seq: int
    last_seq: int
    entries: int
    task_seq: int
    leaf_sha256: str
    status: str
    is_error: bool
    last_updated_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    cancel_requested_at: datetime | None
    revoked_at: datetime | None
    expired_at: datetime | None
    shredded_at: datetime | None
    grants: int
    holds: int
    standing: str
    authority_until: datetime | None
    tool_sha256: str | None
    trace_id: str | None
    created_leaf_sha256: str


_FIELDS = TaskRow.__struct_fields__
CHANGING = _FIELDS[_FIELDS.index("last_seq") : _FIELDS.index("tool_sha256")]
"""The columns of `tasks` that later entries change."""


class Rows:
    """What some messages came to. `created` and `changed` hold the last row of each task they touched."""

    def __init__(self, last_seq: int) -> None:
        self.last_seq = last_seq
        self.entries: list[EntryRow] = []
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


def read(messages: Iterable[Message], *, after: int, known: Mapping[str, TaskRow]) -> Rows:
    """The rows of these messages, in the stream's order, of which those up to sequence `after` are known already.

    `known` holds the row of every task that a message's subject names (see `ref_of`) and that exists. `after` is 0 for
    a trail not yet begun: then whatever was archived before its first message is no hole.
    """
    reading = _Reading(after, known)
    for message in messages:
        reading.take(message)
    return reading.rows


class _Reading:
    def __init__(self, after: int, known: Mapping[str, TaskRow]) -> None:
        self.rows = Rows(after)
        self._known = known

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
        if kind == "task":
            task = _continued(message.stream_seq, entry, before, leaf)
        elif kind == "access":
            task = _looked_at(message.stream_seq, entry, before)
        else:
            task = None
        events: list[EventRow] = []
        denials: list[DenialRow] = []
        for ordinal, (event, payload) in enumerate(zip(entry.events, _texts(message.body), strict=True)):
            task = _evolved(task, event) if task else None
            status = task.status if task else None
            events.append(event_row(message.stream_seq, ordinal, entry.task_ref, event, payload, status))
            denials.extend(_denied(message.stream_seq, ordinal, event))
        row = entry_row(message, entry, kind, leaf)
        self.rows.entries.append(row)
        self.rows.events.extend(events)
        self.rows.denials.extend(denials)
        looked_for = list(notable(row, events))
        self.rows.notable.extend(looked_for)
        if kind in _OF_SERVICE:
            self.rows.service_events.extend(looked_for)
        if task is not None:
            made_here = before is None or task.task_ref in self.rows.created
            (self.rows.created if made_here else self.rows.changed)[task.task_ref] = task

    def _row_of(self, ref: str) -> TaskRow | None:
        return self.rows.changed.get(ref) or self.rows.created.get(ref) or self._known.get(ref)


_ALLOWED: dict[str, frozenset[type]] = {
    "task": frozenset({*TaskEvent.__args__, UnknownEvent}),
    "access": frozenset({*AccessEvent.__args__, UnknownEvent}),
    "denied": frozenset({AccessDenied, UnknownEvent}),
    "control": frozenset({*ControlEvent.__args__, UnknownEvent} - {AccessDenied}),
    "governance": frozenset({*GovernanceEvent.__args__, UnknownEvent}),
}


def _kind(subject: str, entry: Entry) -> str:
    """The subject's kind, when tenant, task and events of the entry belong on it."""
    kind = kind_of(subject)
    parts = subject.split(".")
    if not kind or len(parts) != (_REF_TOKEN + 1 if kind in {"task", "access"} else _REF_TOKEN):
        detail = f"{subject} is no subject of the trail"
        raise _Refused(Reason.SUBJECT, detail)
    if parts[3] != _tenant_token(entry.tenant):
        detail = f"the subject's tenant is {parts[3]}, the entry's {entry.tenant!r:.80}"
        raise _Refused(Reason.SUBJECT, detail)
    if (parts[_REF_TOKEN] if len(parts) > _REF_TOKEN else "") != entry.task_ref:
        detail = f"the entry says task {entry.task_ref!r:.80}"
        raise _Refused(Reason.SUBJECT, detail)
    for event in entry.events:
        if type(event) not in _ALLOWED[kind]:
            detail = f"{type(event).__name__} does not belong on a {kind} subject"
            raise _Refused(Reason.SUBJECT, detail)
    if kind != "task" and (entry.task_seq, entry.prev) != (0, GENESIS):
        detail = f"an entry on a {kind} subject is in no chain, this one has task_seq {entry.task_seq}"
        raise _Refused(Reason.CHAIN, detail)
    return kind


def _continued(seq: int, entry: Entry, before: TaskRow | None, leaf: str) -> TaskRow:
    """The task's row with its chain one entry longer."""
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
        return _created(seq, entry, creations[0], leaf)
    if creations or before.tenant != entry.tenant:
        detail = "this task was created before" + ("" if creations else f", for tenant {before.tenant!r:.80}")
        raise _Refused(Reason.CHAIN, detail)
    return msgspec.structs.replace(
        before, last_seq=seq, entries=before.entries + 1, task_seq=entry.task_seq, leaf_sha256=leaf
    )


def _looked_at(seq: int, entry: Entry, before: TaskRow | None) -> TaskRow:
    """The task's row after an access, which is in no chain."""
    if before is None or before.tenant != entry.tenant:
        detail = "no creation of this task is on the trail before it"
        raise _Refused(Reason.ORPHAN, detail)
    return msgspec.structs.replace(before, last_seq=seq, entries=before.entries + 1)


def _created(seq: int, entry: Entry, event: TaskCreated, leaf: str) -> TaskRow:
    at = instant("at_ms", event.at_ms)
    credential = entry.authority.credential
    return TaskRow(
        task_ref=entry.task_ref,
        tenant=entry.tenant,
        iss=event.binding.iss or None,
        sub=event.binding.sub or None,
        client_id=event.binding.client_id or None,
        binding_mode=event.binding_mode.value,
        server=event.server,
        tool=event.tool,
        task_support=event.task_support.value,
        wire=event.wire,
        protocol_version=event.protocol_version,
        requested_ttl_ms=None if event.requested_ttl_ms is None else int64("requested_ttl_ms", event.requested_ttl_ms),
        granted_ttl_ms=int64("granted_ttl_ms", event.granted_ttl_ms),
        ttl_set_by=event.ttl_set_by or None,
        retention=_sorted.encode(event.retention_ms).decode() if event.retention_ms else None,
        poll_interval_ms=int64("poll_interval_ms", event.poll_interval_ms),
        token_hash=(credential.token_hash or None) if credential else None,
        jti=(credential.jti or None) if credential else None,
        created_at=at,
        created_by=entry.id,
        first_seq=seq,
        last_seq=seq,
        entries=1,
        task_seq=1,
        leaf_sha256=leaf,
        status=Status.WORKING.value,
        is_error=False,
        last_updated_at=at,
        expires_at=instant("granted_ttl_ms after at_ms", event.at_ms + event.granted_ttl_ms),
        ended_at=None,
        cancel_requested_at=None,
        revoked_at=None,
        expired_at=None,
        shredded_at=None,
        grants=0,
        holds=0,
        standing=Standing.VALID.value,
        authority_until=claimed_time(credential.exp) if credential else None,
        tool_sha256=event.tool_sha256 or None,
        trace_id=_trace_id(entry),
        created_leaf_sha256=leaf,
    )


def _trace_id(entry: Entry) -> str | None:
    """The second member of `traceparent`, where there is one."""
    request = entry.authority.request
    parts = request.traceparent.split("-") if request else []
    return (parts[1] or None) if len(parts) > 1 else None


_sorted = msgspec.json.Encoder(order="sorted")
_retention = msgspec.json.Decoder(dict[str, int])


_MOVES: dict[type, Status] = {
    InputRequested: Status.INPUT_REQUIRED,
    TaskResumed: Status.WORKING,
    TaskCompleted: Status.COMPLETED,
    TaskFailed: Status.FAILED,
    TaskCancelled: Status.CANCELLED,
}
"""The status an event leads to; `tasktrail.events.task.evolve` is the law, a test compares them."""


def _evolved(task: TaskRow, event: Event | UnknownEvent) -> TaskRow:
    """The part of `evolve` that a row shows."""
    if type(event) in _MOVES:
        return _moved(task, _MOVES[type(event)], event)
    match event:
        case InputResponded():
            return msgspec.structs.replace(task, last_updated_at=instant("at_ms", event.at_ms))
        case StatusReported(message=text) if text is not None:
            return msgspec.structs.replace(task, last_updated_at=instant("at_ms", event.at_ms))
        case CancelRequested():
            return msgspec.structs.replace(task, cancel_requested_at=instant("at_ms", event.at_ms))
        case TaskExpired():
            return msgspec.structs.replace(task, expired_at=instant("at_ms", event.at_ms))
        case _:
            return _governed(task, event)


def _moved(task: TaskRow, status: Status, event: Event | UnknownEvent) -> TaskRow:
    """The row after an event that leads to `status`; an ended task's handle opens it for that status's retention."""
    at = instant("at_ms", event.at_ms)
    moved = msgspec.structs.replace(task, status=status.value, last_updated_at=at)
    if not status.terminal:
        return moved
    kept_ms = retention_of(task).get(status.value)
    expires_at = task.expires_at
    if kept_ms is not None and event.at_ms + kept_ms < _epoch_ms(expires_at):
        expires_at = instant("retention after at_ms", event.at_ms + kept_ms)
    is_error = event.is_error if isinstance(event, TaskCompleted) else task.is_error
    return msgspec.structs.replace(moved, ended_at=at, expires_at=expires_at, is_error=is_error)


def retention_of(task: TaskRow) -> dict[str, int]:
    """For how many milliseconds an ended task's handle opens it, by status."""
    return _retention.decode(task.retention) if task.retention else {}


def _epoch_ms(at: datetime) -> int:
    return (at - EPOCH) // timedelta(milliseconds=1)


def _governed(task: TaskRow, event: Event | UnknownEvent) -> TaskRow:  # noqa: PLR0911 - one arm per event
    """The row after somebody's right to the task, or how long its payloads are kept, changed."""
    match event:
        case AuthorityChanged():
            until = claimed_time(event.until_s)
            return msgspec.structs.replace(task, standing=event.standing.value, authority_until=until)
        case HandleRevoked():
            return msgspec.structs.replace(task, revoked_at=instant("at_ms", event.at_ms))
        case PayloadShredded():
            return msgspec.structs.replace(task, shredded_at=instant("at_ms", event.at_ms))
        case GrantGiven():
            return msgspec.structs.replace(task, grants=task.grants + 1)
        case GrantWithdrawn():
            return msgspec.structs.replace(task, grants=max(0, task.grants - 1))
        case HoldPlaced():
            return msgspec.structs.replace(task, holds=task.holds + 1)
        case HoldReleased():
            return msgspec.structs.replace(task, holds=max(0, task.holds - 1))
        case _:
            return task


def _texts(body: bytes) -> list[str]:
    try:
        return [str(raw, "utf-8") for raw in _payloads.decode(body).events]
    except UnicodeDecodeError as error:
        message = f"an event of it is no UTF-8: {error}"
        raise MalformedEntry(message) from None


def _denied(seq: int, ordinal: int, event: Event | UnknownEvent) -> list[DenialRow]:
    if not isinstance(event, AccessDenied):
        return []
    reason = ", ".join(sorted(event.reasons))
    return [DenialRow(seq, ordinal, ref, reason, int64("refs", count)) for ref, count in sorted(event.refs.items())]
