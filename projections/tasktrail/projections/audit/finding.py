"""Finds what the audit store holds about one task: a few narrow reads of one snapshot, before anything is made of it.

Guarantees: as much of each kind as is asked for and one more, so that a cut is noticed; nothing outside of the task's
own sequences is read but small tables, so that the time does not grow with the store.

    with closing(store.cursor()) as cursor:
        found = find(cursor, task_ref, as_of=41, most=100)
"""

from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any

import duckdb
import msgspec

from tasktrail.events.subjects import ANONYMOUS_TENANT
from tasktrail.projections.audit.errors import AuditStoreError
from tasktrail.projections.audit.found import Found, ServiceEvent, StepRow
from tasktrail.projections.audit.rows import RejectedRow
from tasktrail.projections.audit.task_rows import TaskRow

_GAPS_MAX = 1_000


@cache
def sql(name: str) -> str:
    """The text of `queries/<name>.sql`."""
    return (files("tasktrail.projections.audit") / "queries" / f"{name}.sql").read_text(encoding="utf-8")


def find(cursor: duckdb.DuckDBPyConnection, ref: str, *, as_of: int, most: int) -> Found:
    """What a snapshot that ends at `as_of` holds about a reference: of each kind one more than `most` at most."""
    task = next(iter(task_rows(cursor.execute("SELECT * FROM tasks WHERE task_ref = ?", [ref]))), None)
    steps = _steps(cursor, task, most) if task else []
    denials = _denials(cursor, ref, most)
    anomalies = rejected_rows(cursor.execute(sql("anomalies_of_task"), {"ref": ref, "most": most + 1}))
    total = len(steps) + len(denials) + len(anomalies)
    if total > most:
        span = {"first": task.first_seq if task else 0, "last": task.last_seq if task else 0}
        total = one(cursor.execute(sql("count_of_task"), {"ref": ref} | span))[0]
    found = Found(
        task_ref=ref,
        as_of=as_of,
        as_of_time=_written(cursor, as_of),
        task=task,
        steps=steps,
        denials=denials,
        anomalies=anomalies,
        steps_max=most,
        steps_total=total,
    )
    return _of_service(cursor, found, task) if task else found


def _steps(cursor: duckdb.DuckDBPyConnection, task: TaskRow, most: int) -> list[StepRow]:
    """The steps on the task's own subjects."""
    asked = {"ref": task.task_ref, "first": task.first_seq, "last": task.last_seq}
    if task.entries > most:
        asked["last"] = one(cursor.execute(sql("end_of_task"), asked | {"most": most + 1}))[0]
    entries = cursor.execute(sql("entries_of_task"), asked).fetchall()
    events: dict[int, list[tuple[Any, ...]]] = {}
    for stream_seq, *event in cursor.execute(sql("events_of_task"), asked).fetchall():
        events.setdefault(stream_seq, []).append(tuple(event))
    return [_step(entry, event) for entry in entries for event in sorted(events.get(entry[0], [_NO_EVENT]))]


_NO_EVENT = (None, None, None, None, None)


def _step(entry: tuple[Any, ...], event: tuple[Any, ...]) -> StepRow:
    """The row of the view `steps` for rows of `entries_of_task` and `events_of_task`."""
    stream_seq, kind, recorded_at, entry_id, leaf_sha256, tenant, task_ref, *caused = entry
    ordinal, type_, at_time, status_after, payload = event
    made = (stream_seq, ordinal, kind, type_, at_time, recorded_at, entry_id, leaf_sha256, tenant, task_ref)
    return StepRow._make((*made, status_after, *caused, payload))


def _denials(cursor: duckdb.DuckDBPyConnection, ref: str, most: int) -> list[tuple[StepRow, int]]:
    """The denials in which the reference was claimed, and how often."""
    claims = cursor.execute(sql("denials_of_task"), {"ref": ref, "most": most + 1}).fetchall()
    if not claims:
        return []
    times = {(seq, ordinal): count for seq, ordinal, count in claims}
    sequences = [seq for seq, _, _ in claims]
    asked = {"sequences": sequences, "first": sequences[0], "last": sequences[-1]}
    rows = {(row.stream_seq, row.ord): row for row in step_rows(cursor.execute(sql("denied_steps"), asked))}
    return [(rows[place], count) for place, count in times.items()]


def _of_service(cursor: duckdb.DuckDBPyConnection, found: Found, task: TaskRow) -> Found:
    """The same with what concerns the task without being on its subjects."""
    tenants = {"tenants": [task.tenant, ANONYMOUS_TENANT]}
    lived = {"created_at": task.created_at, "expired_at": task.expired_at}
    events = sorted(_service_events(cursor.execute(sql("service_of_task"), tenants | lived)))
    policy = _service_events(cursor.execute(sql("policy_now"), tenants))
    holes = cursor.execute(sql("holes"), {"first": task.first_seq, "most": _GAPS_MAX})
    return msgspec.structs.replace(
        found,
        gaps=[event for event in events if event.type == "GapFound"][:_GAPS_MAX],
        holes=rejected_rows(holes),
        revocations=[event for event in events if event.type != "GapFound"],
        policy=policy[0] if policy else None,
    )


def _written(cursor: duckdb.DuckDBPyConnection, as_of: int) -> datetime | None:
    """When the last entry was made. The last message is no entry when it was not accepted."""
    row = cursor.execute("SELECT recorded_at FROM entries WHERE stream_seq = ?", [as_of]).fetchone()
    row = row or cursor.execute(sql("written_until")).fetchone()
    return row[0] if row else None


def one(cursor: duckdb.DuckDBPyConnection) -> tuple[Any, ...]:
    """The row of a query that always has one."""
    row = cursor.fetchone()
    if row is None:
        message = "a query that always has a row gave none"
        raise AuditStoreError(message)
    return row


def task_rows(cursor: duckdb.DuckDBPyConnection) -> list[TaskRow]:
    """Rows of `tasks`."""
    return [TaskRow(**dict(zip(TaskRow.__struct_fields__, row, strict=True))) for row in cursor.fetchall()]


def step_rows(cursor: duckdb.DuckDBPyConnection) -> list[StepRow]:
    """Rows of the view `steps`."""
    return [StepRow(*row) for row in cursor.fetchall()]


def rejected_rows(cursor: duckdb.DuckDBPyConnection) -> list[RejectedRow]:
    """Rows of `rejected`."""
    return [RejectedRow(*row) for row in cursor.fetchall()]


def _service_events(cursor: duckdb.DuckDBPyConnection) -> list[ServiceEvent]:
    return [ServiceEvent(*row) for row in cursor.fetchall()]
