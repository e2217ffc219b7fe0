"""What an export is made of: the steps of a scope, in the trail's order, each with the place that proves it.

Guarantees: the trail only grows, so a scope that was counted once gives the same rows however often and in whatever
portions it is read; every step has its `stream_seq`, `entry_id` and `leaf_sha256`, but for a message that was not
accepted (no entry id) and a hole in the stream's sequence (no bytes at all). With a tenant, nothing of another one is
among them. Every call blocks.

    extent = measure(store, Scope(tenant="acme"))
    for steps in portions(store, Scope(tenant="acme"), extent): …
"""

from collections.abc import Iterator
from datetime import datetime
from functools import cache
from importlib.resources import files
from operator import itemgetter
from typing import Any, NamedTuple, get_type_hints

import msgspec

from tasktrail.events.facts import Event, UnknownEvent
from tasktrail.projections.audit.found import StepRow, event_of
from tasktrail.projections.audit.named import Column, NamedQuery, Value, parse
from tasktrail.projections.audit.sentences import printable, sentence
from tasktrail.projections.audit.store import AuditStore

ANOMALY = "anomaly"
"""The kind of a row that is no accepted entry; its `type` is why."""
ROWS_MAX = 50_000
_SPAN_FIRST, _SPAN_MAX = 1_024, 1 << 20
_FEW, _MANY = 2_000, 20_000


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """Which steps. Sequences are inclusive; `since` is, `until` is not; times are UTC without zone, of the recording.

    `task_ref`: what concerns this task, refused callers who claimed it among them. None is no bound.
    """

    tenant: str | None = None
    task_ref: str | None = None
    from_seq: int | None = None
    to_seq: int | None = None
    since: datetime | None = None
    until: datetime | None = None


class Extent(NamedTuple):
    """How much a scope holds: `first` and `last` sequence, 0 when it is empty, and how many `rows`.

    `as_of`: the last sequence of the trail that was looked at.
    """

    first: int
    last: int
    rows: int
    as_of: int


class ExportedStep(NamedTuple):
    """One step: its row of the view `steps`, what happened in words, the event (None for an anomaly), and more.

    `rpc_method` to `signature` are the entry's, see the table `entries`.
    """

    row: StepRow
    what: str
    event: Event | UnknownEvent | None
    rpc_method: str | None
    server: str | None
    traceparent: str | None
    created_by: str | None
    key_id: str | None
    signature: str | None

    @property
    def is_anomaly(self) -> bool:
        """Whether it is no accepted entry."""
        return self.row.kind == ANOMALY


_FURTHER = ("rpc_method", "server", "traceparent", "created_by", "key_id", "signature")
_FIRST = (
    "stream_seq",
    "ord",
    "entry_id",
    "leaf_sha256",
    "kind",
    "type",
    "what",
    "at_time",
    "recorded_at",
    "tenant",
    "task_ref",
    "status_after",
)


def _column(name: str, kind: object) -> Column:
    if name in {"stream_seq", "ord"}:
        return Column(name=name, type="UBIGINT" if name == "stream_seq" else "UINTEGER")
    return Column(name=name, type="TIMESTAMP" if kind in {datetime, datetime | None} else "VARCHAR")


def _columns() -> tuple[Column, ...]:
    kinds = get_type_hints(StepRow)
    rest = [name for name in StepRow._fields if name not in _FIRST and name != "payload"]
    return tuple(_column(name, kinds.get(name, str)) for name in (*_FIRST, *rest, *_FURTHER, "event"))


COLUMNS = _columns()
"""The columns of an export as rows; `event` is the event's JSON as written."""
_SAID = [*StepRow._fields, *ExportedStep._fields[1:]]
_in_order = itemgetter(*(_SAID.index("payload" if one.name == "event" else one.name) for one in COLUMNS))


def flat(step: ExportedStep) -> tuple[Any, ...]:
    """A step as one row of `COLUMNS`."""
    values: tuple[Any, ...] = _in_order((*step.row, *step[1:]))
    return values


@cache
def _query(name: str) -> NamedQuery:
    return parse(name, (files("tasktrail.projections.audit") / "queries" / f"{name}.sql").read_text(encoding="utf-8"))


def measure(store: AuditStore, scope: Scope) -> Extent:
    """How much a scope holds now."""
    bounds: dict[str, Value] = {"first_wanted": scope.from_seq, "last_wanted": scope.to_seq, **_narrowing(scope)}
    found = store.ask(_query("exported_scope"), bounds, tenant=scope.tenant, most=1)
    first, last, rows = found.rows[0]
    return Extent(int(str(first)), int(str(last)), int(str(rows)), found.as_of)


def portions(store: AuditStore, scope: Scope, extent: Extent) -> Iterator[list[ExportedStep]]:
    """The steps of a scope, some thousands at a time, in order."""
    after, span = extent.first - 1, _SPAN_FIRST
    while after < extent.last:
        until = min(after + span, extent.last)
        bounds: dict[str, Value] = {"first_wanted": after + 1, "last_wanted": until, **_narrowing(scope)}
        count = 0
        while True:
            found = store.ask(_query("exported_steps"), bounds, tenant=scope.tenant, after=after, most=ROWS_MAX)
            count += len(found.rows)
            if found.rows:
                yield [_exported(row) for row in found.rows]
            if not found.more:
                break
            after = found.after
        after = until
        span = _next_span(span, count)


def _next_span(span: int, rows: int) -> int:
    """How many sequences to look at next: more where there is little of the scope in them."""
    if rows < _FEW:
        return min(span * 4, _SPAN_MAX)
    return max(span // 2, 1) if rows > _MANY else span


def _narrowing(scope: Scope) -> dict[str, Value]:
    return {"since": scope.since, "until": scope.until, "ref": scope.task_ref}


def _exported(values: tuple[Any, ...]) -> ExportedStep:
    width = len(StepRow._fields)
    row = StepRow(*values[:width])
    *further, detail = values[width:]
    event = None if row.kind == ANOMALY else event_of(row)
    if row.kind == ANOMALY:
        what = f"not accepted ({row.type}): {printable(detail or '')}"
    else:
        what = sentence(event) if event else "an entry without events"
    return ExportedStep(row, what, event, *further)
