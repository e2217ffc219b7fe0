"""Audit stores compared: the digest of one's rows, and every row and column in which two differ.

Guarantees: the files are opened for reading only; the digest is over every row of every table in the order of its key,
without the position (which names the stream, and not what is on it), so that two stores made of the same messages by
the same versions of tasktrail and DuckDB have the same; a difference names table, row, column and both values. Views,
triggers and columns are compared by their text. Memory is DuckDB's `MEMORY_LIMIT`; beyond it DuckDB uses a temporary
directory of the system, never the current one. Needs that nobody holds the files open for writing.

    rows_sha256(path)
    for difference in row_differences(live, replayed):
        in_words(difference)  # entries.sub is "eve", not "ana"
"""

import hashlib
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from tasktrail.projections.audit.errors import AuditStoreError
from tasktrail.projections.replay import Difference, value_text

MEMORY_LIMIT = "512MB"
ROWS_MAX = 1_000
"""Rows of one table that are named as different, at most; those beyond are said to be there."""
_FETCH = 20_000
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "memory_limit": MEMORY_LIMIT,
}
_UNCOUNTED = frozenset({"position", "schema_version"})
_KEYS = ("stream_seq", "ord", "task_ref")
_KEY_OF = {"tasks": ("task_ref",), "entries": ("stream_seq",), "events": _KEYS[:2], "denials": _KEYS}
_TOLD = {
    "columns": "SELECT table_name || '.' || column_name, data_type FROM duckdb_columns() "
    "WHERE database_name = ? AND NOT internal AND table_name NOT IN (SELECT view_name FROM duckdb_views())",
    "views": "SELECT view_name, sql FROM duckdb_views() WHERE database_name = ? AND NOT internal",
    "triggers": "SELECT trigger_name, sql FROM duckdb_triggers() WHERE database_name = ?",
}
_TABLE = "a table"


def rows_sha256(path: Path) -> str:
    """Hex SHA-256 over the rows of an audit store.

    Raises:
        AuditStoreError: it cannot be read, or somebody holds it.
    """
    digest = hashlib.sha256()
    with attached(store=path) as both:
        for table, columns in _tables(both, "store").items():
            if table in _UNCOUNTED:
                continue
            key = _key(table, columns)
            order = ", ".join([*key, "row_sha256"])
            digest.update(f"{table}\n".encode())
            cursor = both.execute(
                f"SELECT row_sha256 FROM (SELECT {', '.join([*key, _HASHED])} FROM store.{table} t) ORDER BY {order}"  # noqa: S608 - names of the store's own tables
            )
            while rows := cursor.fetchmany(_FETCH):
                digest.update("".join(row[0] + "\n" for row in rows).encode())
    return digest.hexdigest()


_HASHED = "sha256(to_json(t)::VARCHAR) AS row_sha256"


def row_differences(live: Path, replayed: Path, *, most: int = ROWS_MAX) -> Iterator[Difference]:
    """Where two audit stores differ, table by table, in the order of each one's key.

    Raises:
        AuditStoreError: one cannot be read, or somebody holds it.
    """
    with attached(live=live, replayed=replayed) as both:
        yield from _told_otherwise(both)
        found, wanted = _tables(both, "live"), _tables(both, "replayed")
        for table, columns in wanted.items():
            if table not in found:
                yield Difference(where=table, live=None, replayed=_TABLE)
            elif found[table] == columns:
                yield from _of_table(both, table, columns, most)
        for table in found.keys() - wanted.keys():
            yield Difference(where=table, live=_TABLE, replayed=None)


def in_words(one: Difference) -> str:
    """A difference of two audit stores in words: what the live one has, against what the trail gives."""
    if one.where in _TOLD:
        return f"{one.where[:-1]} {one.field} is not the one of this schema"
    if _TABLE in {one.live, one.replayed}:
        return f"table {one.where} is not of this schema" if one.live else f"table {one.where} is missing"
    if one.field:
        return f"{one.where}.{one.field} is {one.live}, not {one.replayed}"
    if one.live is None:
        return f"{one.where} lacks {one.replayed} that the trail gives"
    if one.replayed is None:
        return f"{one.where} has {one.live} that the trail does not give"
    return f"{one.where} has {one.live}, and the trail gives {one.replayed}"


@contextmanager
def attached(**paths: Path) -> Generator[duckdb.DuckDBPyConnection]:
    """One connection to several audit stores, for reading only, each by its name here.

    Raises:
        AuditStoreError: one cannot be read, or somebody holds it; also for whatever DuckDB says within.
    """
    try:
        with (
            tempfile.TemporaryDirectory(prefix="tasktrail-rows-") as scratch,
            duckdb.connect(config={**_CONFIG, "temp_directory": scratch}) as connection,
        ):
            for name, path in paths.items():
                quoted = str(path).replace("'", "''")
                connection.execute(f"ATTACH '{quoted}' AS {name} (READ_ONLY)")
            yield connection
    except duckdb.Error as error:
        message = f"{' and '.join(map(str, paths.values()))} cannot be compared: {error}"
        raise AuditStoreError(message) from error


def _tables(both: duckdb.DuckDBPyConnection, store: str) -> dict[str, list[str]]:
    """Columns by table, both in a fixed order."""
    rows = both.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = ? AND NOT internal "
        "AND table_name IN (SELECT table_name FROM duckdb_tables() WHERE database_name = ?) "
        "ORDER BY table_name, column_index",
        [store, store],
    ).fetchall()
    tables: dict[str, list[str]] = {}
    for table, column in rows:
        tables.setdefault(table, []).append(column)
    return tables


def _key(table: str, columns: Sequence[str]) -> tuple[str, ...]:
    """What tells a table's rows apart; of one not known here what it has of the usual, which may not be enough."""
    return _KEY_OF.get(table) or tuple(one for one in _KEYS[:2] if one in columns) or tuple(columns[:1])


def _told_otherwise(both: duckdb.DuckDBPyConnection) -> Iterator[Difference]:
    """Columns, views and triggers whose text is not the same."""
    for what, asked in _TOLD.items():
        # DuckDB may write a name in such a text with that of the database, which is ours for this comparison.
        found, wanted = (
            {name: text.replace(f"{store}.", "") for name, text in both.execute(asked, [store]).fetchall()}
            for store in ("live", "replayed")
        )
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                yield Difference(
                    where=what, field=name, live=value_text(found.get(name)), replayed=value_text(wanted.get(name))
                )


def _of_table(both: duckdb.DuckDBPyConnection, table: str, columns: list[str], most: int) -> Iterator[Difference]:
    key = _key(table, columns)
    named, same = ", ".join(key), " AND ".join(f"l.{one} IS NOT DISTINCT FROM r.{one}" for one in key)
    hashed = (
        f"SELECT {named}, string_agg(row_sha256, '' ORDER BY row_sha256) AS all_sha256 "  # noqa: S608 - as above
        f"FROM (SELECT {named}, {_HASHED} FROM {{store}}.{table} t) GROUP BY ALL"
    )
    picked = ", ".join(f"coalesce(l.{one}, r.{one}) AS {one}" for one in key)
    both.execute(
        f"CREATE OR REPLACE TEMP TABLE unlike AS SELECT {picked} FROM ({hashed.format(store='live')}) l "  # noqa: S608 - as above
        f"FULL JOIN ({hashed.format(store='replayed')}) r ON {same} "
        f"WHERE l.all_sha256 IS DISTINCT FROM r.all_sha256 ORDER BY ALL LIMIT {most + 1}"
    )
    unlike = both.execute(f"SELECT {named} FROM unlike ORDER BY ALL").fetchall()  # noqa: S608 - as above
    rows = {store: _rows_of(both, store, table, key) for store in ("live", "replayed")}
    for place in unlike[:most]:
        yield from _of_row(table, columns, rows["live"].get(place, []), rows["replayed"].get(place, []))
    if len(unlike) > most:
        yield Difference(where=table, live=f"more than {most} rows", replayed="other ones")


def _rows_of(
    both: duckdb.DuckDBPyConnection, store: str, table: str, key: tuple[str, ...]
) -> dict[tuple[Any, ...], list[tuple[Any, ...]]]:
    same = " AND ".join(f"t.{one} IS NOT DISTINCT FROM u.{one}" for one in key)
    keys = ", ".join(f"t.{one}" for one in key)
    rows: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for row in both.execute(
        f"SELECT {keys}, t.* FROM {store}.{table} t JOIN unlike u ON {same} ORDER BY ALL"  # noqa: S608 - as above
    ).fetchall():
        rows.setdefault(row[: len(key)], []).append(row[len(key) :])
    return rows


def _of_row(
    table: str, columns: list[str], live: list[tuple[Any, ...]], replayed: list[tuple[Any, ...]]
) -> Iterator[Difference]:
    """The columns in which one row differs; of rows that are not there as often, how many there are."""
    named = dict(zip(columns, (replayed or live)[0], strict=True))
    ref, seq = named.get("task_ref"), named.get("stream_seq", named.get("last_seq"))
    if len(live) != len(replayed):
        yield Difference(where=table, task_ref=ref, stream_seq=seq, live=_counted(live), replayed=_counted(replayed))
        return
    for one, other in zip(live, replayed, strict=True):
        for column, left, right in zip(columns, one, other, strict=True):
            if left != right:
                yield Difference(
                    where=table,
                    task_ref=ref,
                    stream_seq=seq,
                    field=column,
                    live=value_text(left),
                    replayed=value_text(right),
                )


def _counted(rows: list[tuple[Any, ...]]) -> str | None:
    return f"{len(rows)} rows" if len(rows) > 1 else "a row" if rows else None
