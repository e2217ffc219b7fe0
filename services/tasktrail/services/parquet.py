"""Rows as a Parquet file, by DuckDB.

Guarantees: columns keep their names and types; whatever type or name an answer claims, no SQL is made of it; rows are
on disk meanwhile, beside the file, so that memory stays bounded. Blocks.

    with whole_path(out) as part:
        write(part, answer.columns, pages)
"""

import tempfile
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from tasktrail.events.errors import Unavailable
from tasktrail.projections.audit.named import Column
from tasktrail.services.escaping import json_line, plain

TYPES = frozenset(
    {
        *("VARCHAR", "BOOLEAN", "DOUBLE", "TIMESTAMP"),
        *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"),
    }
)
"""The types that columns keep; every other one becomes text."""
MEMORY_LIMIT = "256MB"


class NotWritten(Unavailable):
    """The file could not be written; the message says why."""

    reason = "not_written"


def write(path: Path, columns: Sequence[Column], portions: Iterable[Sequence[Sequence[Any]]]) -> int:
    """Write rows to a file, which is replaced; gives how many. Times may be `datetime`s or RFC 3339 text.

    Raises:
        NotWritten: the rows do not fit their columns, or the disk is full.
    """
    kinds = [column.type if column.type in TYPES else "VARCHAR" for column in columns]
    told = ", ".join(f"{_identifier(column.name)} {kind}" for column, kind in zip(columns, kinds, strict=True))
    rows = 0
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tasktrail-parquet-") as folder:
        place = Path(folder)
        try:
            with duckdb.connect(place / "rows.duckdb", config=_CONFIG) as connection:
                connection.execute(f"CREATE TABLE answer ({told})")
                for portion in portions:
                    with connection.appender("answer") as appender:
                        appender.append_rows([_fitting(row, kinds) for row in portion])
                    rows += len(portion)
                made = place / "answer.parquet"
                connection.table("answer").write_parquet(str(made), compression="zstd")
            made.replace(path)
        except (duckdb.Error, ValueError) as error:
            message = f"the Parquet file cannot be written: {error}"
            raise NotWritten(message) from error
    return rows


_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "memory_limit": MEMORY_LIMIT,
    "threads": "1",
    "preserve_insertion_order": "true",
}


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _fitting(row: Sequence[Any], kinds: Sequence[str]) -> tuple[Any, ...]:
    return tuple(_value(value, kind) for value, kind in zip(row, kinds, strict=True))


def _value(value: object, kind: str) -> object:
    if value is None:
        return None
    if kind == "TIMESTAMP" and isinstance(value, str):
        return datetime.fromisoformat(value).replace(tzinfo=None)
    if kind != "VARCHAR":
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode() if _has_surrogates(value) else value
    if isinstance(value, list | tuple | dict):
        return json_line(value).decode("ascii").rstrip("\n")
    return str(plain(value))


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= one <= "\udfff" for one in text) if not text.isascii() else False
