"""Audit stores for tests: opened, fed with a trail, and read table by table.

store = fed(tmp_path / "audit.duckdb", trail)
contents(tmp_path / "audit.duckdb")
"""

from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import duckdb
from tests.projections.audit.histories import Trail

from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.audit.timeline import Timeline

CREATED = datetime(2026, 11, 22, 11, 0, tzinfo=UTC)
ENOUGH = 2**53
TABLES = (
    "entries",
    "events",
    "tasks",
    "denials",
    "notable",
    "service_events",
    "grants",
    "rejected",
    "position",
    "schema_version",
    "guard",
)
PACKAGE = files("tasktrail.projections.audit")


def opened(path: Path) -> AuditStore:
    store = AuditStore.open(path)
    store.bind("TRAIL", CREATED, ENOUGH)
    return store


def fed(path: Path, trail: Trail, batch: int = 100) -> AuditStore:
    store = opened(path)
    for start in range(0, len(trail.messages), batch):
        store.append(trail.messages[start : start + batch])
    return store


def contents(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every table, in the order of its rows' text."""
    with duckdb.connect(path, read_only=True) as db:
        held = {name for (name,) in db.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        assert held == set(TABLES)
        return {name: sorted(db.execute(f"FROM {name}").fetchall(), key=repr) for name in TABLES}


def told(store: AuditStore, trail: Trail, ref: str) -> Timeline:
    """The timeline of a task once the store has the trail."""
    store.append(trail.messages)
    timeline = store.timeline(ref)
    assert timeline is not None
    return timeline
