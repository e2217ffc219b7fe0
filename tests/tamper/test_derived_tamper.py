"""Every column of every table of the audit store, and every view: a change is found, in its table and at its place.

Issue "Forensics": change derived DuckDB columns, swap the DuckDB file for an older one: 100 % found. A plain UPDATE by
the file's owner cannot be seen in the file itself (design section 8): it is held against the trail.
"""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest
from tests.projections.audit.histories import mixed
from tests.tamper.trails import numbered

from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.errors import AuditStoreError
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.replay import Difference
from tasktrail.projections.replay_rows import in_words, row_differences

pytestmark = pytest.mark.requirement("T2")

CREATED = datetime(2026, 11, 22, 11, 0, tzinfo=UTC)
ENTRIES = 400
KEYS = {
    "tasks": ("task_ref",),
    "denials": ("stream_seq", "ord", "task_ref"),
    "position": ("stream",),
    "schema_version": ("version",),
}
"""What tells the rows of a table apart; of others `stream_seq` and `ord`."""


def messages() -> list[Message]:
    """A mixture with a rejected message and a hole in it."""
    found = numbered(mixed(ENTRIES, seed=4).messages)
    found[50] = found[50]._replace(body=b"no entry")
    del found[60]
    return found


def store_of(path: Path, trail: list[Message], last_seq: int = ENTRIES) -> Path:
    """An audit store built from this trail."""
    store = AuditStore.open(path)
    store.bind("TRAIL", CREATED, last_seq)
    store.append(trail)
    store.close()
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store as it is kept, and the same built again."""
    folder = tmp_path_factory.mktemp("stores")
    return store_of(folder / "kept.duckdb", messages()), store_of(folder / "rebuilt.duckdb", messages())


def other(column: str, kind: str) -> str:
    """An expression for another value of the column, whatever it is."""
    return {
        "VARCHAR": f"coalesce({column}, '') || 'x'",
        "BLOB": f"{column} || 'x'::BLOB",
        "BOOLEAN": f"NOT coalesce({column}, false)",
        "TIMESTAMP": f"coalesce({column}, TIMESTAMP '2026-01-01') + INTERVAL 1 MINUTE",
    }.get(kind, f"coalesce({column}, 0) + {10 * ENTRIES}")


def open_to_changes(connection: duckdb.DuckDBPyConnection) -> None:
    """Drop the triggers that keep tables append-only, as the file's owner can."""
    triggers = connection.execute("SELECT trigger_name, table_name FROM duckdb_triggers()").fetchall()
    for trigger, table in triggers:
        connection.execute(f"DROP TRIGGER {trigger} ON {table}")


def columns_of(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Every table's columns with their types, places last."""
    asked = "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index"
    with duckdb.connect(path, read_only=True) as connection:
        tables = [str(row[0]) for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        return {table: connection.execute(asked, [table]).fetchall() for table in tables}


def differences(kept: Path, rebuilt: Path) -> list[Difference]:
    """Without the triggers, which whoever changes a row drops first: `test_replay_rows` has those."""
    return [one for one in row_differences(kept, rebuilt, most=100) if one.where != "triggers"]


def test_two_stores_of_one_trail_do_not_differ(stores: tuple[Path, Path]) -> None:
    """Design section 1, promise 8: equal row for row."""
    assert list(row_differences(*stores)) == []


def test_a_change_of_any_column_of_any_table_is_found(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """Every column, derived or not: each in a row of its own, all at once; of a table with fewer rows one by one."""
    kept, rebuilt = stores
    copy, tables = tmp_path / "audit.duckdb", set[str]()
    for table, columns in columns_of(kept).items():
        asked = f"SELECT rowid FROM {table} ORDER BY rowid"  # noqa: S608 - our names
        with duckdb.connect(kept, read_only=True) as connection:
            rows = [row[0] for row in connection.execute(asked).fetchall()]
        at_once = [columns] if len(rows) >= len(columns) else [[one] for one in columns if rows]
        for several in at_once:
            shutil.copy(kept, copy)
            with duckdb.connect(copy) as connection:
                open_to_changes(connection)
                for row, (column, kind) in zip(rows, several, strict=False):
                    said = f"UPDATE {table} SET {column} = {other(column, kind)} WHERE rowid = {row}"  # noqa: S608 - our names
                    connection.execute(said)
            found = differences(copy, rebuilt)
            assert {one.where for one in found} == {table}, found
            for column, _ in several:
                wanted = "lacks a row" if column in KEYS.get(table, ("stream_seq", "ord")) else f"{table}.{column} is "
                assert any(wanted in in_words(one) for one in found), (table, column, found)
            tables.add(table)
    assert tables >= {"entries", "events", "tasks", "denials", "rejected", "position"}


def test_a_change_is_told_with_its_place_and_both_values(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """The row's sequence in the stream; of a task's row, that of its last entry, and its reference."""
    kept, rebuilt = stores
    copy = tmp_path / "audit.duckdb"
    shutil.copy(kept, copy)
    with duckdb.connect(copy) as connection:
        open_to_changes(connection)
        connection.execute("UPDATE entries SET sub = 'eve' WHERE stream_seq = 33")
        connection.execute("UPDATE events SET reason = 'none' WHERE stream_seq = 44 AND ord = 0")
        ((ref, last_seq),) = connection.execute(
            "SELECT task_ref, last_seq FROM tasks ORDER BY first_seq DESC LIMIT 1"
        ).fetchall()
        connection.execute("UPDATE tasks SET standing = 'revoked' WHERE task_ref = ?", [ref])
    entry, event, task = differences(copy, rebuilt)
    assert [one.stream_seq for one in (entry, event, task)] == [33, 44, last_seq]
    assert in_words(entry).startswith('entries.sub is "eve", not "')
    assert (in_words(event)[:25], task.task_ref) == ('events.reason is "none", ', ref)


def test_rows_and_views_that_are_taken_out_or_put_in_are_found(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """Not only values."""
    kept, rebuilt = stores
    copy = tmp_path / "audit.duckdb"
    for said, what in (
        ("DELETE FROM tasks WHERE first_seq = (SELECT min(first_seq) FROM tasks)", "lacks a row"),
        ("INSERT INTO guard VALUES ('x')", "a row that the trail does not give"),
        ("CREATE OR REPLACE VIEW live_tasks AS SELECT * FROM tasks WHERE status = 'working'", "live_tasks"),
        ("CREATE TABLE more (a INTEGER)", "table more is not of this schema"),
        ("ALTER TABLE tasks ADD COLUMN more INTEGER", "column tasks.more"),
    ):
        shutil.copy(kept, copy)
        with duckdb.connect(copy) as connection:
            open_to_changes(connection)
            connection.execute(said)
        found = differences(copy, rebuilt)
        assert found, said
        assert any(what in in_words(one) for one in found), (said, found)


def test_an_older_store_differs(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """At its position, and in each row that it lacks."""
    older = store_of(tmp_path / "older.duckdb", messages()[:300])
    found = {one.where for one in differences(older, stores[1])}
    assert found >= {"position", "entries", "events"}


def test_a_file_that_is_no_database_is_an_error(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """It cannot be compared."""
    path = tmp_path / "audit.duckdb"
    path.write_bytes(b"no database" * 1_000)
    with pytest.raises(AuditStoreError):
        list(row_differences(path, stores[1]))
