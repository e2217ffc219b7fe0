"""Rows of the table `tasks`: a task as of its last entry, and what an event changes in it. Pure.

Guarantees: a row is the part of a task's state (`tasktrail.events.task.evolve` is the law) that people ask for. A value
no column can hold raises `OutOfRange`.

    row = created_row(stream_seq, entry, event, leaf)
    row = msgspec.structs.replace(row, **changes_of(row, next_event))
"""

from datetime import datetime, timedelta
from typing import Any

import msgspec

from tasktrail.events.authority import Record, Standing
from tasktrail.events.entry import Entry
from tasktrail.events.facts import (
    AuthorityChanged,
    CancelRequested,
    Event,
    GrantGiven,
    GrantWithdrawn,
    HandleRevoked,
    HoldPlaced,
    HoldReleased,
    InputRequested,
    InputResponded,
    PayloadShredded,
    ResultDisclosed,
    Status,
    StatusReported,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskExpired,
    TaskFailed,
    TaskPolled,
    TaskResumed,
    UnknownEvent,
)
from tasktrail.projections.audit.columns import EPOCH, claimed_time, instant, int64


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


def created_row(seq: int, entry: Entry, event: TaskCreated, leaf: str) -> TaskRow:
    """The row of a task that this entry, at this sequence and with this digest, creates.

    Raises:
        OutOfRange: a value does not fit its column.
    """
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
"""The status an event leads to."""


_SHOWING = frozenset({TaskPolled, ResultDisclosed, TaskCreated})
"""Events that change nothing, and are most of all."""


def changes_of(task: TaskRow, event: Event | UnknownEvent) -> dict[str, Any]:
    """What an event changes in its task's row, by column.

    Raises:
        OutOfRange: a time of it does not fit its column.
    """
    if type(event) in _SHOWING:
        return {}
    status = _MOVES.get(type(event))
    return _changes(task, event) if status is None else _moved(task, status, event)


def _changes(task: TaskRow, event: Event | UnknownEvent) -> dict[str, Any]:
    match event:
        case InputResponded():
            return {"last_updated_at": instant("at_ms", event.at_ms)}
        case StatusReported(message=text) if text is not None:
            return {"last_updated_at": instant("at_ms", event.at_ms)}
        case CancelRequested():
            return {"cancel_requested_at": instant("at_ms", event.at_ms)}
        case TaskExpired():
            return {"expired_at": instant("at_ms", event.at_ms)}
        case _:
            return _governed(task, event)


def _moved(task: TaskRow, status: Status, event: Event | UnknownEvent) -> dict[str, Any]:
    """What changes by an event that leads to `status`; an ended task's handle opens it for that status's retention."""
    at = instant("at_ms", event.at_ms)
    moved: dict[str, Any] = {"status": status.value, "last_updated_at": at}
    if not status.terminal:
        return moved
    kept_ms = retention_of(task).get(status.value)
    if kept_ms is not None and event.at_ms + kept_ms < _epoch_ms(task.expires_at):
        moved["expires_at"] = instant("retention after at_ms", event.at_ms + kept_ms)
    if isinstance(event, TaskCompleted):
        moved["is_error"] = event.is_error
    return moved | {"ended_at": at}


def retention_of(task: TaskRow) -> dict[str, int]:
    """For how many milliseconds an ended task's handle opens it, by status."""
    return _retention.decode(task.retention) if task.retention else {}


def _epoch_ms(at: datetime) -> int:
    return (at - EPOCH) // timedelta(milliseconds=1)


def _governed(task: TaskRow, event: Event | UnknownEvent) -> dict[str, Any]:  # noqa: PLR0911 - one arm per event
    """What changes when somebody's right to the task, or how long its payloads are kept, changed."""
    match event:
        case AuthorityChanged():
            return {"standing": event.standing.value, "authority_until": claimed_time(event.until_s)}
        case HandleRevoked():
            return {"revoked_at": instant("at_ms", event.at_ms)}
        case PayloadShredded():
            return {"shredded_at": instant("at_ms", event.at_ms)}
        case GrantGiven():
            return {"grants": task.grants + 1}
        case GrantWithdrawn():
            return {"grants": max(0, task.grants - 1)}
        case HoldPlaced():
            return {"holds": task.holds + 1}
        case HoldReleased():
            return {"holds": max(0, task.holds - 1)}
        case _:
            return {}
