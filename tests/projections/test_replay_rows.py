"""Audit stores compared row by row. Source: feature T6, promise 8: the projections come back equal, row for row."""

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest
from tests.projections.audit.histories import mixed

from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.errors import AuditStoreError
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.replay_rows import attached, row_differences, rows_sha256

pytestmark = pytest.mark.requirement("T6")

ENTRIES = 200


def made(path: Path, messages: list[Message], size: int, *, created: int = 2026) -> Path:
    """A store of these messages, appended so many at a time."""
    store = AuditStore.open(path)
    store.bind("TRAIL", datetime(created, 1, 1, tzinfo=UTC), len(messages))
    for start in range(0, len(messages), size):
        store.append(messages[start : start + size])
    store.close()
    return path


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    """A trail with everything, also a message that is no entry and a hole."""
    found = mixed(ENTRIES).messages
    found[90] = found[90]._replace(body=b"garbage")
    del found[100]
    return found


@pytest.fixture(scope="module")
def rebuilt(messages: list[Message], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("rows") / "rebuilt.duckdb", messages, ENTRIES)


def tampered(rebuilt: Path, place: Path, *statements: str) -> Path:
    """A copy of a store in which somebody who owns the file ran these statements."""
    copy = place / "live.duckdb"
    copy.write_bytes(rebuilt.read_bytes())
    with duckdb.connect(copy) as owner:
        for statement in statements:
            owner.execute(statement)
    return copy


def test_stores_made_in_other_batches_of_another_stream_have_the_same_digest(
    messages: list[Message], rebuilt: Path, tmp_path: Path
) -> None:
    """T6: any two replays agree; which stream it was is no row."""
    other = made(tmp_path / "other.duckdb", messages, 7, created=2025)
    assert rows_sha256(other) == rows_sha256(rebuilt)
    assert [one.where for one in row_differences(other, rebuilt)] == ["position"]
    fewer = made(tmp_path / "fewer.duckdb", messages[:-1], 50)
    assert rows_sha256(fewer) != rows_sha256(rebuilt)


@pytest.mark.parametrize(
    ("statements", "wanted"),
    [
        (
            ("UPDATE tasks SET tool = 'harmless' WHERE first_seq = (SELECT min(first_seq) FROM tasks)",),
            [("tasks", "tool", '"harmless"', '"transfer"')],
        ),
        (
            ("DROP TRIGGER entries_unchanged ON entries", "UPDATE entries SET sub = 'nobody' WHERE stream_seq = 2"),
            [("entries", "sub", '"nobody"', '"eve"'), ("triggers", "entries_unchanged", "null", None)],
        ),
        (
            ("DROP TRIGGER events_kept ON events", "DELETE FROM events WHERE stream_seq = 3"),
            [("events", "", None, "a row"), ("triggers", "events_kept", "null", None)],
        ),
        (("INSERT INTO denials VALUES (7, 0, 'someone', 'made up', 1)",), [("denials", "", "a row", None)]),
        (("INSERT INTO rejected SELECT * FROM rejected LIMIT 1",), [("rejected", "", "2 rows", "a row")]),
        (
            ("CREATE OR REPLACE VIEW live_tasks AS SELECT * FROM tasks WHERE false",),
            [("views", "live_tasks", None, None)],
        ),
        (
            ("CREATE TABLE more (x INTEGER)",),
            [("columns", "more.x", '"INTEGER"', "null"), ("more", "", "a table", None)],
        ),
    ],
    ids=["column of a task", "column of an entry", "row gone", "row made up", "row doubled", "view", "table"],
)
def test_every_row_and_column_that_differs_is_named(
    statements: tuple[str, ...], wanted: list[tuple[str, str, str | None, str | None]], rebuilt: Path, tmp_path: Path
) -> None:
    """Issue 4: change derived DuckDB columns: found, with both values. A text is compared where the wish names one."""
    live = tampered(rebuilt, tmp_path, *statements)
    found = list(row_differences(live, rebuilt))
    assert sorted((one.where, one.field) for one in found) == sorted((where, field) for where, field, _, _ in wanted)
    for where, field, was, should in wanted:
        one = next(one for one in found if (one.where, one.field) == (where, field))
        assert (one.live if was is not None or not field else None) == was
        assert (one.replayed if should is not None or not field else None) == should
    if wanted[0][0] in {"tasks", "entries", "events", "denials"}:
        assert found[-1].stream_seq is not None
        assert rows_sha256(live) != rows_sha256(rebuilt)


def test_more_rows_than_are_named_are_said_to_be_there(rebuilt: Path, tmp_path: Path) -> None:
    """Bounded, and never silent about it."""
    live = tampered(rebuilt, tmp_path, "UPDATE tasks SET server = 'other'")
    found = list(row_differences(live, rebuilt, most=2))
    assert [(one.field, one.live) for one in found] == [
        ("server", '"other"'),
        ("server", '"other"'),
        ("", "more than 2 rows"),
    ]


def test_what_does_not_fit_in_memory_goes_to_a_folder_that_is_gone_afterwards(
    rebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself DuckDB would use `.tmp` where the command was run, with rows of the store in it."""
    monkeypatch.chdir(tmp_path)
    with attached(live=rebuilt) as both:
        place, limit = both.execute(
            "SELECT current_setting('temp_directory'), current_setting('memory_limit')"
        ).fetchall()[0]
        assert Path(place).is_dir()
        assert not Path(place).is_relative_to(tmp_path)
        assert limit == "488.2 MiB", "512 MB"
    assert not Path(place).exists()


def test_a_file_that_is_no_store_is_refused(rebuilt: Path, tmp_path: Path) -> None:
    (tmp_path / "live.duckdb").write_text("not a database")
    with pytest.raises(AuditStoreError, match="cannot be compared"):
        list(row_differences(tmp_path / "live.duckdb", rebuilt))
