"""Two audit stores held against each other, row for row: the one that is kept, and one built from the trail anew.

Guarantees: every table with every column, derived ones too, and the text of every view; each difference has its place.
Both files are read only. Neither may be open elsewhere.

    for one in differences(data / "audit.duckdb", scratch / "rebuilt.duckdb"):
        one.stream_seq, one.what
"""

from pathlib import Path
from typing import NamedTuple

import duckdb

from tasktrail.projections.replay_rows import attached

SHOWN_MAX = 100
_PLACES = ("stream_seq", "first_seq")
_VALUE_SHOWN = 60
_TABLES = "SELECT table_name FROM duckdb_tables() WHERE database_name = ? AND NOT internal ORDER BY ALL"
_COLUMNS = (
    "SELECT column_name FROM duckdb_columns() WHERE database_name = ? AND table_name = ? AND NOT internal "
    "ORDER BY column_index"
)
_TEXTS = "SELECT view_name, sql FROM duckdb_views() WHERE database_name = ? AND NOT internal ORDER BY ALL"
_KEPT, _REBUILT = "kept", "rebuilt"


class RowDifference(NamedTuple):
    """One row, or the shape of a table or view. `stream_seq`: its place in the trail; None: of no one place."""

    table: str
    stream_seq: int | None
    what: str


def differences(kept: Path, rebuilt: Path, *, most: int = SHOWN_MAX) -> list[RowDifference]:
    """Where the two differ, at most `most` for each table, by place.

    Raises:
        AuditStoreError: one of them cannot be read.
    """
    with attached(**{_KEPT: kept, _REBUILT: rebuilt}) as both:
        return _compared(both, most)


def _compared(both: duckdb.DuckDBPyConnection, most: int) -> list[RowDifference]:
    found: list[RowDifference] = []
    tables, again = (both.execute(_TABLES, [name]).fetchall() for name in (_KEPT, _REBUILT))
    if tables != again:
        told = (", ".join(str(row[0]) for row in rows) for rows in (tables, again))
        found.append(RowDifference("", None, "it has tables {}; built anew it has {}".format(*told)))
    for row in again:
        if row in tables:
            found += _rows(both, str(row[0]), most)
    views, views_again = (dict(both.execute(_TEXTS, [name]).fetchall()) for name in (_KEPT, _REBUILT))
    for name in sorted(views.keys() | views_again.keys()):
        if _plain(views.get(name, "")) != _plain(views_again.get(name, "")):
            found.append(RowDifference(str(name), None, f"view {name} is not the one of this schema"))
    return sorted(found, key=lambda one: (one.stream_seq is None, one.stream_seq or 0))


def _plain(sql: object) -> str:
    """A view's text without the name its database has just now."""
    return str(sql).replace(f"{_KEPT}.", "").replace(f"{_REBUILT}.", "")


def _rows(both: duckdb.DuckDBPyConnection, table: str, most: int) -> list[RowDifference]:
    columns, again = (
        [str(row[0]) for row in both.execute(_COLUMNS, [name, table]).fetchall()] for name in (_KEPT, _REBUILT)
    )
    if columns != again:
        return [RowDifference(table, None, f"table {table} has columns {columns}; built anew it has {again}")]
    place = next((columns.index(name) for name in _PLACES if name in columns), None)
    order = "" if place is None else f"ORDER BY {columns[place]}"
    sides: list[list[tuple[object, ...]]] = []
    for left, right in ((_KEPT, _REBUILT), (_REBUILT, _KEPT)):
        asked = f'FROM (FROM {left}."{table}" EXCEPT ALL FROM {right}."{table}") {order} LIMIT {most}'
        sides.append(both.execute(asked).fetchall())
    return _told(table, columns, place, *sides)


def _told(
    table: str,
    columns: list[str],
    place: int | None,
    kept: list[tuple[object, ...]],
    rebuilt: list[tuple[object, ...]],
) -> list[RowDifference]:
    """One difference for each row, and one for the two sides of a row that only has other values."""
    found: list[RowDifference] = []
    left = list(rebuilt)
    for row in kept:
        match = next((one for one in left if _key(columns, place, one) == _key(columns, place, row)), None)
        if match is None:
            found.append(RowDifference(table, _seq(row, place), f"{table} has a row that the trail does not give"))
            continue
        left.remove(match)
        wrong = [name for name, one, other in zip(columns, row, match, strict=True) if one != other]
        values = (
            f"{row[columns.index(wrong[0])]!r:.{_VALUE_SHOWN}}, not {match[columns.index(wrong[0])]!r:.{_VALUE_SHOWN}}"
        )
        more = f" ({len(wrong) - 1} more columns differ)" if len(wrong) > 1 else ""
        found.append(RowDifference(table, _seq(match, place), f"{table}.{wrong[0]} is {values}{more}"))
    found += [RowDifference(table, _seq(row, place), f"{table} lacks a row that the trail gives") for row in left]
    return found


def _key(columns: list[str], place: int | None, row: tuple[object, ...]) -> tuple[object, ...]:
    """What two versions of one row have in common."""
    if place is None:
        return ()
    return (row[place], row[columns.index("ord")] if "ord" in columns else None)


def _seq(row: tuple[object, ...], place: int | None) -> int | None:
    value = None if place is None else row[place]
    return value if isinstance(value, int) else None
