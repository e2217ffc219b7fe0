"""The columns of the tables `entries` and `events`: an entry and its events, flattened. Pure.

Guarantees: the fields of the row types are the tables' columns, in order. What an entry leaves out is NULL. A value no
column can hold raises `OutOfRange` and is never cut. A level is copied, never raised.

    entry_row(message, entry, "task", leaf)
    event_row(message.stream_seq, 0, entry.task_ref, event, payload, "working")
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple, assert_never

import msgspec

from tasktrail.events.authority import Authority
from tasktrail.events.entry import Entry
from tasktrail.events.facts import (
    AccessDenied,
    AuthorityChanged,
    BundleExported,
    CancelRequested,
    CommandRefused,
    Commitment,
    EntryRejected,
    Event,
    GapFound,
    GrantGiven,
    GrantWithdrawn,
    HandleRevoked,
    HoldPlaced,
    HoldReleased,
    InputIgnored,
    InputRequested,
    InputResponded,
    KeyActivated,
    PayloadShredded,
    PayloadUnsealed,
    PolicyActivated,
    PrincipalRevoked,
    QueryRun,
    ResultDisclosed,
    RevocationLifted,
    StatusReported,
    SubscriptionClosed,
    SubscriptionOpened,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskExpired,
    TaskFailed,
    TaskPolled,
    TaskResumed,
    ToolDriftSeen,
    UnknownEvent,
    WorkerLost,
    WorkTaken,
)

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the store keeps UTC in TIMESTAMP, which has no zone
_INT64 = 2**63
FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999
"""Epoch milliseconds of the years 1 to 9999, the times that a column holds."""


class OutOfRange(ValueError):
    """A value of an entry that no column can hold; the message names the field."""


class Message(NamedTuple):
    """One message of the stream TRAIL as it was delivered; absent headers are empty text."""

    stream_seq: int
    subject: str
    body: bytes
    msg_id: str = ""
    key_id: str = ""
    signature: str = ""


class EntryRow(NamedTuple):
    """One row of `entries`."""

    stream_seq: int
    subject: str
    kind: str
    tenant: str
    task_ref: str | None
    task_seq: int | None
    entry_id: str
    recorded_at: datetime
    leaf_sha256: str
    prev_sha256: str | None
    key_id: str | None
    signature: str | None
    command: str | None
    trigger: str
    iss: str | None
    sub: str | None
    principal_kind: str | None
    principal_level: str | None
    client_id: str | None
    client_level: str | None
    actor_iss: str | None
    actor_sub: str | None
    actor_level: str | None
    credential_method: str | None
    credential_verification: str | None
    credential_level: str | None
    revocation: str | None
    token_hash: str | None
    jti: str | None
    token_expires_at: datetime | None
    acr: str | None
    amr: str | None
    authenticated_at: datetime | None
    address: str | None
    address_level: str | None
    binding_mode: str | None
    binding_differs: str | None
    grant_id: str | None
    standing: str | None
    effect: str | None
    decision_reason: str | None
    policy_sha256: str | None
    policy_version: str | None
    policies: str | None
    rpc_method: str | None
    server: str | None
    wire: str | None
    protocol_version: str | None
    traceparent: str | None
    created_by: str | None
    body: bytes


class EventRow(NamedTuple):
    """One row of `events`."""

    stream_seq: int
    ord: int
    type: str
    at_time: datetime | None
    task_ref: str | None
    status_after: str | None
    input_key: str | None
    method: str | None
    action: str | None
    reason: str | None
    code: int | None
    times: int | None
    first_at: datetime | None
    last_at: datetime | None
    payload_name: str | None
    payload_sha256: str | None
    payload_size: int | None
    payload_flags: str | None
    payload: str


def int64(name: str, value: int) -> int:
    """`value` when a BIGINT holds it.

    Raises:
        OutOfRange: it does not fit; the message names `name`.
    """
    if not -_INT64 <= value < _INT64:
        message = f"{name} is {value}, which 64 bits do not hold"
        raise OutOfRange(message)
    return value


def instant(name: str, at_ms: int) -> datetime:
    """The UTC time, without zone, of epoch milliseconds.

    Raises:
        OutOfRange: not within the years 1 to 9999; the message names `name`.
    """
    try:
        return _since_epoch(at_ms)
    except OverflowError:
        message = f"{name} is {at_ms} ms, which is no time in the years 1 to 9999"
        raise OutOfRange(message) from None


@lru_cache(maxsize=4096)
def _since_epoch(at_ms: int) -> datetime:
    """An entry names the same time, and a token the same end, many times."""
    return EPOCH + timedelta(milliseconds=at_ms)


def recorded(text: str) -> datetime:
    """The UTC time, without zone, that an entry says it was recorded at.

    Raises:
        OutOfRange: it is no RFC 3339 time.
    """
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is UTC:
            return at.replace(tzinfo=None)
        if at.tzinfo is not None:
            return at.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        pass
    message = f"recorded_at is {text!r:.60}, which is no RFC 3339 time"
    raise OutOfRange(message)


def claimed_time(epoch_s: int) -> datetime | None:
    """A time that a credential names (`exp`, `auth_time`), of epoch seconds; None for 0, which is none.

    A claim of somebody else's: one that is no time is left to the entry's bytes, it makes the entry no worse.
    """
    try:
        return instant("claim", epoch_s * 1000) if epoch_s else None
    except OutOfRange:
        return None


_Head = tuple[
    int,
    str,
    str,
    str,
    str | None,
    int | None,
    str,
    datetime,
    str,
    str | None,
    str | None,
    str | None,
    str | None,
]


def entry_head(message: Message, entry: Entry, kind: str, leaf: str) -> _Head:
    """What every row of an accepted entry begins with, `stream_seq` to `command`.

    Raises:
        OutOfRange: a value does not fit its column.
    """
    seq, subject, _, _, key_id, signature = message
    return (
        seq,
        subject,
        kind,
        entry.tenant,
        entry.task_ref or None,
        int64("task_seq", entry.task_seq) or None,
        entry.id,
        recorded(entry.recorded_at),
        leaf,
        entry.prev or None,
        key_id or None,
        signature or None,
        entry.command or None,
    )


def entry_row(message: Message, entry: Entry, kind: str, leaf: str) -> EntryRow:
    """The row of an accepted entry.

    Raises:
        OutOfRange: a value does not fit its column.
    """
    authority = entry.authority
    binding, decision, request = authority.binding, authority.decision, authority.request
    credential = authority.credential
    return EntryRow(
        *entry_head(message, entry, kind, leaf),
        authority.trigger,
        *_who(authority),
        *_credential(authority),
        (credential.acr or None) if credential else None,
        msgspec.json.encode(credential.amr).decode() if credential and credential.amr else None,
        claimed_time(credential.auth_time) if credential else None,
        (request.address or None) if request else None,
        request.address_level if request and request.address else None,
        binding.mode if binding else None,
        ", ".join(binding.differs) if binding else None,
        authority.grant or None,
        authority.standing,
        decision.effect if decision else None,
        decision.reason if decision else None,
        (decision.policy_sha256 or None) if decision else None,
        (decision.policy_version or None) if decision else None,
        (", ".join(decision.policies) or None) if decision else None,
        request.method if request else None,
        (request.server or None) if request else None,
        (request.wire or None) if request else None,
        (request.protocol_version or None) if request else None,
        (request.traceparent or None) if request else None,
        authority.created_by or None,
        message.body,
    )


_Who = tuple[
    str | None,
    str | None,
    str | None,
    str | None,
    str | None,
    str | None,
    str | None,
    str | None,
    str | None,
]


def _who(authority: Authority) -> _Who:
    principal, client = authority.principal, authority.client
    actor = authority.actors[0] if authority.actors else None
    return (
        principal.iss if principal else None,
        principal.sub if principal else None,
        principal.kind if principal else None,
        principal.level if principal else None,
        client.client_id if client else None,
        client.level if client else None,
        (actor.iss or None) if actor else None,
        actor.sub if actor else None,
        actor.level if actor else None,
    )


_Credential = tuple[str | None, str | None, str | None, str | None, str | None, str | None, datetime | None]


def _credential(authority: Authority) -> _Credential:
    credential = authority.credential
    if credential is None:
        return (None, None, None, None, None, None, None)
    return (
        credential.method,
        credential.verification,
        credential.level,
        credential.revocation,
        credential.token_hash or None,
        credential.jti or None,
        claimed_time(credential.exp),
    )


class _Flat(NamedTuple):
    """What the events have in common once flattened."""

    input_key: str | None = None
    method: str | None = None
    action: str | None = None
    reason: str | None = None
    code: int | None = None
    times: int | None = None
    first_ms: int | None = None
    last_ms: int | None = None
    payload: Commitment | None = None


def _flat(event: Event) -> _Flat:  # noqa: C901, PLR0911, PLR0912 - one arm per event
    match event:
        case TaskCreated():
            return _Flat(action=event.parent or None, payload=event.arguments)
        case StatusReported():
            return _Flat(payload=event.message)
        case InputRequested():
            return _Flat(input_key=event.key, method=event.method, payload=event.request)
        case InputResponded():
            return _Flat(input_key=event.key, method=event.method, action=event.action, payload=event.response)
        case InputIgnored():
            return _Flat(input_key=event.key or None, reason=event.reason)
        case TaskCompleted():
            return _Flat(payload=event.result)
        case TaskFailed():
            return _Flat(code=event.code, payload=event.error)
        case TaskCancelled() | HandleRevoked() | PayloadShredded():
            return _Flat(reason=event.reason)
        case CancelRequested():
            return _Flat(reason=event.cause or None)
        case WorkerLost():
            return _Flat(action=event.worker or None, reason=event.cause)
        case WorkTaken():
            return _Flat(action=event.worker, times=event.attempt)
        case ToolDriftSeen():
            return _Flat(action=event.tool_sha256)
        case CommandRefused():
            return _Flat(input_key=event.key or None, action=event.command, reason=event.reason)
        case TaskPolled():
            return _Flat(method=event.method, times=event.count, first_ms=event.first_ms, last_ms=event.last_ms)
        case ResultDisclosed():
            return _Flat(method=event.method, times=event.count)
        case SubscriptionClosed():
            return _Flat(reason=event.reason, times=event.pushes)
        case AccessDenied():
            return _Flat(
                method=event.method,
                reason=", ".join(sorted(event.reasons)),
                code=event.code,
                times=event.count,
                first_ms=event.first_ms,
                last_ms=event.last_ms,
            )
        case GapFound():
            return _Flat(action=event.what, reason=event.cause, first_ms=event.since_ms, last_ms=event.until_ms)
        case QueryRun():
            return _Flat(action=event.query, times=event.rows)
        case BundleExported():
            return _Flat(action=event.scope, reason=event.reason, times=event.entries)
        case PayloadUnsealed():
            return _Flat(action=", ".join(event.payloads), reason=event.reason)
        case EntryRejected():
            return _Flat(reason=event.reason)
        case KeyActivated():
            return _Flat(action=event.purpose)
        case TaskResumed() | TaskExpired() | SubscriptionOpened():
            return _Flat()
        case _:
            return _flat_of_governance(event)


_Governance = (
    AuthorityChanged
    | GrantGiven
    | GrantWithdrawn
    | HoldPlaced
    | HoldReleased
    | PolicyActivated
    | PrincipalRevoked
    | RevocationLifted
)


def _flat_of_governance(event: _Governance) -> _Flat:
    """`action` is the id, or the word, of what changed."""
    match event:
        case AuthorityChanged():
            return _Flat(action=event.standing, reason=event.cause or None)
        case GrantGiven() | GrantWithdrawn():
            return _Flat(action=event.grant, reason=event.reason)
        case HoldPlaced() | HoldReleased():
            return _Flat(action=event.hold, reason=event.reason)
        case PolicyActivated():
            return _Flat(action=event.version, reason=event.reason)
        case PrincipalRevoked():
            return _Flat(action=event.revocation, method=event.kind, reason=event.reason)
        case RevocationLifted():
            return _Flat(action=event.revocation, reason=event.reason)
        case _:
            assert_never(event)


def event_row(  # noqa: PLR0913, PLR0917 - an event and its place
    stream_seq: int, ordinal: int, ref: str, event: Event | UnknownEvent, payload: str, status: str | None
) -> EventRow:
    """The row of one event of an accepted entry; `payload` is its JSON as written, `status` the task's after it.

    Raises:
        OutOfRange: a value does not fit its column.
    """
    if isinstance(event, UnknownEvent):
        name, flat = event.type, _Flat()
        at = instant("at_ms", event.at_ms) if event.at_ms else None
    else:
        name, flat = type(event).__name__, _flat(event)
        at = instant("at_ms", event.at_ms)
    sealed = flat.payload
    return EventRow(
        stream_seq,
        ordinal,
        name,
        at,
        ref or None,
        status,
        flat.input_key,
        flat.method,
        flat.action,
        flat.reason,
        None if flat.code is None else int64("code", flat.code),
        None if flat.times is None else int64("times", flat.times),
        None if flat.first_ms is None else instant("first_ms", flat.first_ms),
        None if flat.last_ms is None else instant("last_ms", flat.last_ms),
        sealed.name if sealed else None,
        sealed.sha256 if sealed else None,
        int64("size", sealed.size) if sealed else None,
        ", ".join(sealed.flags) or None if sealed else None,
        payload,
    )
