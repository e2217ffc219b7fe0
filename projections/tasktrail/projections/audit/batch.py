# pyright: reportUnknownParameterType=false
# pyarrow has no annotations.
"""Rows of many messages by columns, and how they get into the audit store.

Guarantees: what is inserted is what `read` gave, table by table. `size` and `bytes` say when a batch is large enough.
Needs pyarrow, which only a load does: DuckDB takes its columns as they are.

    batch = Batch(after=position)
    batch.take(read(messages, after=position, known=known, plainly=True))
    batch.insert(cursor)
"""

from array import array
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import accumulate
from types import MappingProxyType, NoneType, UnionType
from typing import Any, get_args, get_type_hints

import duckdb
import msgspec
import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]

from tasktrail.projections.audit.columns import EntryRow, EventRow
from tasktrail.projections.audit.finding import sql
from tasktrail.projections.audit.notable import NOTABLE
from tasktrail.projections.audit.plain import PlainEvent, PlainRow
from tasktrail.projections.audit.rows import DenialRow, RejectedRow, Rows
from tasktrail.projections.audit.task_rows import TaskRow

_TYPES = {
    int: pa.int64(),
    str: pa.string(),
    bytes: pa.large_binary(),
    datetime: pa.timestamp("us"),
    bool: pa.bool_(),
}


def _schema(row: type) -> pa.Schema:
    """The fields of a row type, each as its annotation says."""
    fields: list[pa.Field] = []
    for name, hint in get_type_hints(row).items():
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        [kind] = (one for one in kinds if one is not NoneType)
        fields.append(pa.field(name, _TYPES[kind], nullable=NoneType in kinds))
    return pa.schema(fields)


_SCHEMAS = MappingProxyType(
    {
        "tasks": _schema(TaskRow),
        "entries": _schema(EntryRow),
        "plain_entries": _schema(PlainRow),
        "plain_events": _schema(PlainEvent),
        "events": _schema(EventRow),
        "denials": _schema(DenialRow),
        "rejected": _schema(RejectedRow),
    }
)


def _columns(table: str, rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
    schema = _SCHEMAS[table]
    columns = zip(*rows, strict=True)
    return pa.record_batch([_array(field, one) for field, one in zip(schema, columns, strict=True)], schema)


def _array(field: pa.Field, values: tuple[Any, ...]) -> pa.Array:
    if field.type != pa.large_binary() or field.nullable:
        return pa.array(values, type=field.type)
    ends = array("q", accumulate(map(len, values), initial=0))  # one copy of all, where Arrow would make one of each
    return pa.Array.from_buffers(field.type, len(values), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(values))])


_READ = frozenset({"plain_entries", "plain_events"})
"""What goes into `entries` and `events` with what DuckDB reads in it."""


class Batch:
    """Rows of the messages after a sequence, but for those of `tasks`."""

    def __init__(self, after: int) -> None:
        self._after = after
        self.size = 0
        """How many messages are in it, accepted or not."""
        self.bytes = 0
        """How many bytes these have."""
        self._tables: dict[str, list[pa.RecordBatch]] = {table: [] for table in _SCHEMAS if table != "tasks"}

    def take(self, rows: Rows) -> tuple[int, int]:
        """Add what the next messages came to; how many of them became rows, and their bytes."""
        for table, batches in self._tables.items():
            some = getattr(rows, table)
            if some:
                batches.append(_columns(table, some))
        size = len(rows.entries) + len(rows.plain_entries) + len(rows.rejected)
        length = sum(len(one.body) for one in rows.entries) + sum(len(one.body) for one in rows.plain_entries)
        length += sum(len(one.body) for one in rows.rejected if one.body is not None)
        self.size += size
        self.bytes += length
        return size, length

    def insert(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Insert all, within a transaction; the rows are gone from here then."""
        while self._tables:
            table, batches = self._tables.popitem()
            _insert(cursor, table, batches)
        cursor.execute(sql("notable_after"), {"after": self._after, "types": sorted(NOTABLE)})
        cursor.execute(sql("service_events_after"), {"after": self._after})
        cursor.execute(sql("grants_after"), {"after": self._after})


def insert_tasks(cursor: duckdb.DuckDBPyConnection, rows: Iterable[TaskRow]) -> None:
    """Insert tasks that are not there."""
    given = [msgspec.structs.astuple(row) for row in rows]
    _insert(cursor, "tasks", [_columns("tasks", given)] if given else [])


def _insert(cursor: duckdb.DuckDBPyConnection, table: str, batches: list[pa.RecordBatch]) -> None:
    if not batches:
        return
    cursor.register("given", pa.Table.from_batches(batches))
    try:
        cursor.execute(sql(table) if table in _READ else f"INSERT INTO {table} BY NAME FROM given")
    finally:
        cursor.unregister("given")
