"""Plain entries: those of which DuckDB can read the rows itself, at a fraction of what Python takes. Pure.

Guarantees: what is plain comes to the same rows, whoever reads it (`plain_entries.sql` and `plain_events.sql`, or
`columns`). An entry is plain when its bytes are what we would write ourselves, without an escape: no member is there
twice, none is unknown, none holds its default, `events` comes last. All others are read by `columns`.

    if is_plain(body, entry): rows.append(plain_row(message, entry, "task", leaf))
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from tasktrail.events.entry import Entry, encode
from tasktrail.events.facts import (
    CancelRequested,
    Commitment,
    Event,
    InputRequested,
    InputResponded,
    ResultDisclosed,
    StatusReported,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskPolled,
)
from tasktrail.projections.audit.columns import FIRST_MS, LAST_MS, Message, entry_head


class PlainRow(NamedTuple):
    """An accepted entry of which DuckDB can read the other columns of `entries` itself, see `is_plain`."""

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
    body: bytes


class PlainEvent(NamedTuple):
    """The only event of an entry, of which DuckDB can read the other columns of `events` itself."""

    stream_seq: int
    task_ref: str | None
    status_after: str | None
    payload: str


def is_plain(body: bytes, entry: Entry) -> bool:
    """Whether these bytes of this entry are plain."""
    return b"\\" not in body and encode(entry) == body


def plain_row(message: Message, entry: Entry, kind: str, leaf: str) -> PlainRow:
    """The row of a plain entry.

    Raises:
        OutOfRange: a value does not fit its column.
    """
    return PlainRow(*entry_head(message, entry, kind, leaf), message.body)


def plain_event(message: Message, entry: Entry, status: str | None) -> PlainEvent | None:
    """The row of the only event of a plain entry; None when it has more, or one that only Python reads.

    `status`: the task's after it.
    """
    if len(entry.events) != 1:
        return None
    [event] = entry.events
    fits = READ.get(type(event))
    if fits is None or not fits(event):
        return None
    body = message.body
    text = str(body[body.index(_EVENTS) + len(_EVENTS) : -2], "utf-8")
    return PlainEvent(message.stream_seq, entry.task_ref or None, status, text)


def _in_time(event: Event) -> bool:
    return FIRST_MS <= event.at_ms <= LAST_MS


def _with(name: str) -> Callable[[Any], bool]:
    """Whether time and size fit of an event whose commitment is `name`."""

    def fits(event: Any) -> bool:  # noqa: ANN401 - an event of any type that has this member
        sealed: Commitment | None = getattr(event, name)
        return FIRST_MS <= event.at_ms <= LAST_MS and (sealed is None or 0 <= sealed.size <= _FITS)

    return fits


def _polled(event: TaskPolled) -> bool:
    return (
        _in_time(event)
        and 0 <= event.count <= _FITS
        and FIRST_MS <= event.first_ms <= LAST_MS
        and FIRST_MS <= event.last_ms <= LAST_MS
    )


def _disclosed(event: ResultDisclosed) -> bool:
    return _in_time(event) and 0 <= event.count <= _FITS


_FITS = 2**53
_EVENTS = b'"events":['
READ: dict[type, Callable[[Any], bool]] = {
    TaskCreated: _with("arguments"),
    StatusReported: _with("message"),
    InputRequested: _with("request"),
    InputResponded: _with("response"),
    TaskCompleted: _with("result"),
    TaskCancelled: _in_time,
    CancelRequested: _in_time,
    TaskPolled: _polled,
    ResultDisclosed: _disclosed,
}
"""The events that are read by DuckDB, those that nearly all are of, when what they hold fits its columns."""
