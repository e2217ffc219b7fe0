"""The audit store's file: opened, or refused with what to do; its schema brought up to date.

Guarantees: refusing makes no file and changes none; a migration happens whole or not at all.

    root = connect(path, read_only=False)
    prepare(root, path, read_only=False)
"""

import os
import re
from importlib.resources import files
from pathlib import Path

import duckdb

from tasktrail.projections.audit.errors import (
    AuditStoreError,
    NotAnAuditStore,
    StoreBusy,
    StoreMissing,
    StoreTooNew,
    StoreTooOld,
)

SCHEMA_VERSION = 6
MEMORY_LIMIT = "512MB"
CHECKPOINT_THRESHOLD = "128MB"
"""Log kept before it is folded into the file: at 16MB that took a third of all time; 128MB is replayed in 0.5 s."""
_RANGE = 500_000
"""Sequences that are migrated at once: ten million in one statement need more memory than there may be."""
_BY_RANGE = "-- From here on for each range of sequences"
_HOLDER = re.compile(r"lock is held in (.*) \(PID (\d+)\)")
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "memory_limit": MEMORY_LIMIT,
    "checkpoint_threshold": CHECKPOINT_THRESHOLD,
}
KEEP = "Keep the file, it may be evidence: move it away and start again, then it is rebuilt from the trail"


def _migrations() -> list[tuple[int, str, str]]:
    """Every schema file as (version, name, text), in order; what is older than the first is rebuilt, not migrated."""
    folder = files("tasktrail.projections.audit") / "schema"
    found = sorted(one.name for one in folder.iterdir() if one.name.endswith(".sql"))
    return [(int(name.split("_")[0]), name, (folder / name).read_text(encoding="utf-8")) for name in found]


def connect(path: Path, *, read_only: bool) -> duckdb.DuckDBPyConnection:
    """The open file.

    Raises:
        StoreMissing, StoreBusy, NotAnAuditStore, StoreTooNew: see there; the message says what to do.
    """
    if path.is_dir():
        message = f"{path} is a directory; name the audit store's file in it"
        raise StoreMissing(message)
    if read_only and not path.exists():
        message = f"there is no audit store {path}; is this the right data directory? The service makes it at its start"
        raise StoreMissing(message)
    if not path.parent.is_dir():
        message = f"there is no directory {path.parent} to make the audit store {path.name} in"
        raise StoreMissing(message)
    try:
        return duckdb.connect(path, read_only=read_only, config=_CONFIG)
    except duckdb.Error as error:
        raise _unopened(path, str(error)) from error


def _unopened(path: Path, said: str) -> AuditStoreError:
    holder = _HOLDER.search(said)
    if holder:
        pid = int(holder[2])
        message = f"{path} is held by process {pid} ({holder[1]}); ask the running service, or stop it first"
        return StoreBusy(message, pid)
    if "different configuration" in said:
        return StoreBusy(f"{path} is already open in this process, in another mode; use that store", os.getpid())
    if "not a valid DuckDB" in said:
        return NotAnAuditStore(f"{path} is no DuckDB database. {KEEP}")
    if "version number" in said:
        return StoreTooNew(f"{path} was written by a newer DuckDB ({said}). Use a newer tasktrail. {KEEP}")
    return AuditStoreError(f"{path} cannot be opened: {said}")


def prepare(root: duckdb.DuckDBPyConnection, path: Path, *, read_only: bool) -> None:
    """Bring the schema to `SCHEMA_VERSION`, or say why not.

    Raises:
        NotAnAuditStore, StoreTooNew, StoreTooOld: see there; the message says what to do.
    """
    tables = {str(row[0]) for row in root.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if tables and "schema_version" not in tables:
        message = f"{path} is a DuckDB database of something else, it has tables {', '.join(sorted(tables)[:5])}"
        raise NotAnAuditStore(message)
    version = _version(root) if tables else 0
    if version > SCHEMA_VERSION:
        message = (
            f"{path} has schema {version}, this tasktrail knows up to {SCHEMA_VERSION}: use a newer tasktrail. {KEEP}"
        )
        raise StoreTooNew(message)
    if version == SCHEMA_VERSION:
        return
    if read_only:
        message = f"{path} has schema {version}, {SCHEMA_VERSION} is needed: start the service on it once"
        raise StoreTooOld(message)
    migrations = _migrations()
    if 0 < version < migrations[0][0]:
        message = f"{path} has schema {version}, which this tasktrail cannot bring up to date. {KEEP}"
        raise StoreTooOld(message)
    for number, name, text in migrations:
        if number > version:
            _migrate(root, number, name, text)


def _version(root: duckdb.DuckDBPyConnection) -> int:
    # All of it: a result that is not read to its end keeps a transaction open, and with it every checkpoint away.
    [row] = root.execute("SELECT max(version) FROM schema_version").fetchall()
    return int(row[0] or 0)


def _migrate(root: duckdb.DuckDBPyConnection, number: int, name: str, text: str) -> None:
    """One schema file. What follows its line `_BY_RANGE` is repeated for each range from `$first` to `$last`."""
    root.begin()
    root.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL, name VARCHAR NOT NULL)")
    at_once, _, by_range = text.partition(_BY_RANGE)
    root.execute(at_once)
    last_seq = root.execute("SELECT coalesce(max(last_seq), 0) FROM position").fetchall()[0][0]
    statements = [one.query for one in root.extract_statements(f"{_BY_RANGE}{by_range}")] if by_range else []
    for first in range(1, last_seq + 1, _RANGE):
        for statement in statements:
            root.execute(statement, {"first": first, "last": first + _RANGE - 1})
    root.execute("INSERT INTO schema_version VALUES (?, ?)", [number, name])
    root.commit()
