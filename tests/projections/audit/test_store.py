"""The audit store on a real DuckDB: design.md section 8 (DuckDB), issue "main job" (rebuilds, clear errors)."""

import re
import shutil
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import duckdb
import msgspec
import pytest
from tests.projections.audit.histories import NOW_MS, Trail, mixed
from tests.projections.audit.stores import CREATED, PACKAGE, contents, fed, opened

from tasktrail.events.authority import Authority
from tasktrail.events.commands import CancelTask, CompleteTask, ReportStatus
from tasktrail.events.facts import GapFound
from tasktrail.events.subjects import control_subject, task_subject
from tasktrail.projections.audit.columns import EntryRow, EventRow
from tasktrail.projections.audit.errors import (
    AnotherTrail,
    AuditStoreError,
    NotAnAuditStore,
    StoreBusy,
    StoreMissing,
    StoreTooNew,
    StoreTooOld,
    StreamCut,
)
from tasktrail.projections.audit.found import StepRow
from tasktrail.projections.audit.named import IMPLICIT
from tasktrail.projections.audit.notable import NotableRow
from tasktrail.projections.audit.opening import SCHEMA_VERSION
from tasktrail.projections.audit.rows import DenialRow, RejectedRow
from tasktrail.projections.audit.store import AuditStore, TaskFilter
from tasktrail.projections.audit.task_rows import TaskRow
from tasktrail.projections.audit.timeline import Step

GIVEN = {f"${name}" for name in IMPLICIT}


def spoilt(entries: int, seed: int = 1) -> Trail:
    """A mixed trail with a hole, a forged message, bytes that are no entry, and what the service says of itself."""
    trail = mixed(entries, seed=seed)
    del trail.messages[entries // 2]
    trail.messages[entries // 3] = trail.messages[entries // 3]._replace(msg_id="forged")
    trail.put(trail.messages[0].subject, b"\xff not json", "x")
    gap = GapFound(at_ms=NOW_MS, what="folded polls", since_ms=NOW_MS, until_ms=NOW_MS, cause="crash")
    trail.note(control_subject("_"), "_", (gap,))
    return trail


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.duckdb"


@pytest.mark.parametrize(
    ("table", "fields"),
    [
        ("entries", EntryRow._fields),
        ("events", EventRow._fields),
        ("denials", DenialRow._fields),
        ("notable", NotableRow._fields),
        ("service_events", NotableRow._fields),
        ("rejected", RejectedRow._fields),
        ("tasks", TaskRow.__struct_fields__),
        ("steps", StepRow._fields),
        ("activity", NotableRow._fields),
    ],
)
def test_columns_are_the_row_types_fields_in_order(
    store: AuditStore, path: Path, table: str, fields: list[str]
) -> None:
    store.close()
    with duckdb.connect(path, read_only=True) as db:
        found = db.execute(
            "SELECT column_name FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index", [table]
        ).fetchall()
    assert [name for (name,) in found] == list(fields)


@pytest.mark.requirement("T6")
@pytest.mark.parametrize("batch", [1, 7, 1_000])
def test_a_rebuild_from_the_trail_is_equal_row_for_row(tmp_path: Path, batch: int) -> None:
    """Design promise 8."""
    trail = spoilt(300)
    fed(tmp_path / "one.duckdb", trail, batch=64).close()
    fed(tmp_path / "two.duckdb", trail, batch=batch).close()
    one, two = contents(tmp_path / "one.duckdb"), contents(tmp_path / "two.duckdb")
    assert one == two
    assert {name for name, rows in one.items() if not rows} == {"guard"}


def test_going_on_after_closing_is_as_if_never_closed(tmp_path: Path) -> None:
    trail = spoilt(200, seed=2)
    fed(tmp_path / "one.duckdb", trail).close()
    for start in range(0, len(trail.messages), 23):
        store = opened(tmp_path / "two.duckdb")
        store.append(trail.messages[max(0, start - 5) : start + 23])  # some of them again
        store.close()
    assert contents(tmp_path / "one.duckdb") == contents(tmp_path / "two.duckdb")


@pytest.mark.requirement("T1")
@pytest.mark.parametrize("table", ["entries", "events", "denials", "notable", "service_events", "grants", "rejected"])
@pytest.mark.parametrize("change", ["DELETE FROM {0}", "TRUNCATE {0}", "UPDATE {0} SET stream_seq = stream_seq + 1"])
def test_what_was_recorded_can_be_neither_changed_nor_deleted(path: Path, table: str, change: str) -> None:
    fed(path, spoilt(60)).close()
    before = contents(path)
    with duckdb.connect(path) as db, pytest.raises(duckdb.Error, match=f"{table} is append-only"):
        db.execute(change.format(table))
    assert contents(path) == before


def test_a_transaction_that_fails_leaves_nothing_and_the_store_goes_on(path: Path) -> None:
    trail = mixed(60)
    fed(path, Trail()).close()
    with duckdb.connect(path) as db:
        for trigger in ("denials_kept", "denials_unchanged"):
            db.execute(f"DROP TRIGGER {trigger} ON denials")
        db.execute("ALTER TABLE denials RENAME TO elsewhere")
    store = opened(path)
    for _ in range(2):
        with pytest.raises(AuditStoreError, match="nothing of this transaction was"):
            store.append(trail.messages)
    assert store.last_seq == store.position().last_seq == 0
    store.close()
    with duckdb.connect(path) as db:
        assert db.execute("SELECT count(*) FROM entries").fetchall() == [(0,)]
        db.execute("ALTER TABLE elsewhere RENAME TO denials")
    store = opened(path)
    assert store.append(trail.messages).last_seq == trail.messages[-1].stream_seq
    store.close()


def test_what_was_not_closed_is_read_all_the_same(tmp_path: Path, path: Path) -> None:
    """A killed process leaves a write-ahead log; a stopped service's store is read without changing it."""
    trail = mixed(200)
    store = fed(path, trail)
    left = tmp_path / "left"
    left.mkdir()
    for name in ("audit.duckdb", "audit.duckdb.wal"):
        shutil.copy(tmp_path / name, left / name)
    counts = store.counts()
    store.close()
    again = AuditStore.open(left / "audit.duckdb", read_only=True)
    assert (again.counts(), again.last_seq) == (counts, trail.messages[-1].stream_seq)
    again.close()


HOLD = """
import sys, signal
from tasktrail.projections.audit.store import AuditStore
store = AuditStore.open(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("read_only", [True, False])
def test_a_busy_store_names_its_holder(path: Path, *, read_only: bool) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreBusy, match=f"held by process {holder.pid}") as caught:
            AuditStore.open(path, read_only=read_only)
        holder.communicate()
    assert caught.value.pid == holder.pid
    AuditStore.open(path).close()


def test_a_store_open_in_this_process_is_busy_too(store: AuditStore, path: Path) -> None:
    with pytest.raises(StoreBusy, match="already open in this process"):
        AuditStore.open(path, read_only=True)
    assert store.last_seq == 0


def test_a_store_of_a_newer_schema_is_refused_with_what_to_do(path: Path) -> None:
    opened(path).close()
    with duckdb.connect(path) as db:
        db.execute("INSERT INTO schema_version VALUES (?, '999_future.sql')", [SCHEMA_VERSION + 1])
    for read_only in (True, False):
        with pytest.raises(StoreTooNew, match="use a newer tasktrail") as caught:
            AuditStore.open(path, read_only=read_only)
        assert str(path) in str(caught.value)


def test_a_store_of_an_older_schema_is_brought_up_to_date_unless_it_is_only_read(path: Path) -> None:
    with duckdb.connect(path) as db:
        db.execute("CREATE TABLE schema_version (version INTEGER NOT NULL, name VARCHAR NOT NULL)")
    with pytest.raises(StoreTooOld, match="start the service on it once"):
        AuditStore.open(path, read_only=True)
    fed(path, mixed(20)).close()
    assert len(contents(path)["entries"]) == 20


def test_schema_files_are_numbered_without_a_gap_up_to_the_version_of_the_code() -> None:
    names = sorted(one.name for one in (PACKAGE / "schema").iterdir())
    assert all(re.fullmatch(r"\d{3}_[a-z_]+\.sql", name) for name in names), names
    assert [int(name[:3]) for name in names] == list(range(int(names[0][:3]), SCHEMA_VERSION + 1))


def test_a_store_older_than_every_schema_file_is_rebuilt_not_migrated(path: Path) -> None:
    """It is a function of the trail; what a column added since would hold is in the entries, not in the old rows."""
    with duckdb.connect(path) as db:
        db.execute("CREATE TABLE schema_version (version INTEGER NOT NULL, name VARCHAR NOT NULL)")
        db.execute("INSERT INTO schema_version VALUES (1, '001_audit.sql')")
    with pytest.raises(StoreTooOld, match=r"cannot bring up to date.*then it is rebuilt from the trail"):
        AuditStore.open(path)


def test_every_query_says_what_it_answers_and_names_its_parameters() -> None:
    for one in (file for file in (PACKAGE / "queries").iterdir() if file.is_file()):
        comment, _, query = one.read_text(encoding="utf-8").partition("\nSELECT")
        assert comment.startswith("-- "), one.name
        for name in set(re.findall(r"\$[a-z_]+", query)) - {"$statuses", "$server", "$tool"} - GIVEN:
            assert name in comment or one.name == "tasks.sql", f"{one.name} does not explain {name}"


def test_wrong_places_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="right data directory"):
        AuditStore.open(tmp_path / "audit.duckdb", read_only=True)
    with pytest.raises(StoreMissing, match="is a directory"):
        AuditStore.open(tmp_path)
    with pytest.raises(StoreMissing, match="there is no directory"):
        AuditStore.open(tmp_path / "nowhere" / "audit.duckdb")
    junk = tmp_path / "junk"
    junk.write_bytes(b"x" * 10_000)
    with pytest.raises(NotAnAuditStore, match="no DuckDB database"):
        AuditStore.open(junk)
    other = tmp_path / "other.duckdb"
    with duckdb.connect(other) as db:
        db.execute("CREATE TABLE sales (amount INTEGER)")
    for read_only in (True, False):
        with pytest.raises(NotAnAuditStore, match="sales"):
            AuditStore.open(other, read_only=read_only)
    assert not (tmp_path / "audit.duckdb").exists(), "refusing made no file"


def test_another_stream_or_a_cut_one_is_refused_never_mixed_in(path: Path) -> None:
    store = fed(path, mixed(50))
    last = store.last_seq
    store.bind("TRAIL", CREATED, last)
    with pytest.raises(AnotherTrail, match="created 2026-11-22 11:00:01 UTC"):
        store.bind("TRAIL", CREATED + timedelta(seconds=1), last)
    with pytest.raises(AnotherTrail, match="stream OTHER"):
        store.bind("OTHER", CREATED, last)
    with pytest.raises(StreamCut, match=f"up to {last}, and the stream ends at {last - 1}"):
        store.bind("TRAIL", CREATED, last - 1)
    store.close()


def test_an_unbound_store_takes_nothing(path: Path) -> None:
    store = AuditStore.open(path)
    with pytest.raises(AuditStoreError, match="call bind first"):
        store.append(mixed(2).messages)
    store.close()


def test_readers_see_snapshots_while_appends_go_on(store: AuditStore) -> None:
    trail = Trail()
    ref = trail.create()
    for number in range(400):
        trail.command(ref, ReportStatus(id=str(number), message=trail.sealed("message")))
        trail.poll(ref)
    store.append(trail.messages[:1])
    done = threading.Event()
    wrong: list[tuple[int, int, int]] = []
    readings: list[int] = []

    def look() -> None:
        while not done.is_set():
            seen = store.timeline(ref)
            assert seen is not None
            assert seen.task is not None
            readings.append(seen.as_of)
            if not (len(seen.steps) == seen.task.entries == seen.as_of):
                wrong.append((len(seen.steps), seen.task.entries, seen.as_of))

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    for start in range(1, len(trail.messages), 40):
        store.append(trail.messages[start : start + 40])
    done.set()
    for reader in readers:
        reader.join(30)
    assert not wrong
    assert len(set(readings)) > 1, "nobody read while it grew"


def test_tasks_are_found_by_each_filter_newest_first(store: AuditStore) -> None:
    trail = Trail()
    first = trail.create(tool="transfer", sub="ana")
    second = trail.create(tool="report", sub="bo")
    third = trail.create(tenant="globex", tool="report", sub="cy")
    trail.command(second, CompleteTask(id="c", result=trail.sealed("result")))
    store.append(trail.messages)

    def refs(**wanted: object) -> list[str]:
        return [task.task_ref for task in store.tasks(msgspec.convert(wanted, TaskFilter))]

    assert refs() == [third, second, first]
    assert refs(tenant="acme") == [second, first]
    assert refs(statuses=["completed"]) == [second]
    assert refs(statuses=["completed", "working"]) == [third, second, first]
    assert refs(tool="report") == [third, second]
    assert refs(sub="ana") == [first]
    assert refs(iss="https://id.example", client_id="desk", server="bank") == [third, second, first]
    assert refs(server="'; DROP TABLE tasks; --") == []
    assert refs(live=True) == [third, first]
    assert refs(live=False) == [second]
    assert refs(created_until_ms=NOW_MS) == []
    assert refs(created_from_ms=NOW_MS + 15, created_until_ms=NOW_MS + 25) == [second]
    page = store.tasks(most=2)
    assert [task.task_ref for task in store.tasks(TaskFilter(before=page[-1].first_seq))] == [first]


def test_what_follows_a_sequence_is_read_page_by_page_and_complete(path: Path) -> None:
    trail = spoilt(150)
    store = fed(path, trail)
    at = 0
    steps: list[Step] = []
    while at < store.last_seq:
        page, at = store.since(at, most=20)
        steps += page
    whole, until = store.since(0, most=10_000)
    store.close()
    assert until == trail.messages[-1].stream_seq
    assert [(one.stream_seq, one.ord) for one in steps] == [(one.stream_seq, one.ord) for one in whole]
    assert {one.stream_seq for one in whole} == set(range(1, until + 1))


def test_what_follows_a_sequence_can_be_one_tenants(store: AuditStore) -> None:
    trail = Trail()
    trail.create()
    trail.create(tenant="globex")
    store.append(trail.messages)
    steps, until = store.since(0, tenant="globex")
    assert [(step.tenant, step.stream_seq) for step in steps] == [("globex", 2)]
    assert until == 2
    assert store.since(2) == ((), 2)


def test_counts_say_how_much_is_there(path: Path) -> None:
    trail = Trail()
    ref = trail.create()
    other = trail.create()
    trail.command(other, CancelTask(id="c"))
    trail.command(other, CompleteTask(id="d", result=trail.sealed("result")))
    trail.deny(ref, count=7)
    trail.put(task_subject("acme", ref), b"?", "?")
    store = fed(path, trail)
    counts = store.counts()
    store.close()
    assert msgspec.structs.asdict(counts) == {
        "entries": 5,
        "events": 5,
        "tasks": 2,
        "live_tasks": 1,
        "denials": 7,
        "rejected": 1,
    }


def test_no_byte_of_a_sealed_payload_is_opened_and_every_entry_is_kept_whole(path: Path) -> None:
    trail = mixed(40)
    fed(path, trail).close()
    with duckdb.connect(path, read_only=True) as db:
        held = db.execute("SELECT body, leaf_sha256 FROM entries ORDER BY stream_seq").fetchall()
        hashes = db.execute("SELECT sha256(body) FROM entries ORDER BY stream_seq").fetchall()
    assert [body for body, _ in held] == [message.body for message in trail.messages]
    assert [(leaf,) for _, leaf in held] == hashes


def test_text_with_nul_quotes_and_emoji_comes_back_as_it_went(store: AuditStore) -> None:
    odd = "a\x00b'\"\\;--\u202e\U0001f600"
    trail = Trail()
    ref = trail.create(tool=odd, sub=odd, tenant="Zoë & co")
    trail.command(ref, ReportStatus(id="r", message=trail.sealed("message")), Authority(trigger="worker", tenant=odd))  # type: ignore[arg-type]
    store.append(trail.messages)
    (task,) = store.tasks(TaskFilter(tool=odd))
    assert (task.tool, task.creator.sub, task.tenant) == (odd, odd, "Zoë & co")


def test_a_task_is_found_by_its_place_and_not_by_reading_everything(path: Path) -> None:
    """Design section 8: random ids go through the small table first."""
    store = fed(path, mixed(20))
    store.close()
    with duckdb.connect(path, read_only=True) as db:
        for name in ("entries_of_task", "events_of_task"):
            text = (PACKAGE / "queries" / f"{name}.sql").read_text(encoding="utf-8")
            plan = db.execute(f"EXPLAIN {text}", {"ref": "r", "first": 3, "last": 5}).fetchall()[0][1]
            assert plan.count("stream_seq >= 3") == 1, plan


def test_a_store_that_was_opened_again_can_be_checkpointed(tmp_path: Path) -> None:
    """A result that nobody read to its end would keep DuckDB from it: the log beside the file would grow for ever."""
    trail, path = mixed(200, seed=3), tmp_path / "audit.duckdb"
    store = AuditStore.open(path)
    store.bind("TRAIL", CREATED, 2**50)
    store.append(trail.messages[:100])
    store.close()
    store = AuditStore.open(path)
    store.append(trail.messages[100:])
    with store.resting() as as_of:
        assert as_of == store.last_seq
    log = path.with_name(f"{path.name}.wal")
    assert not log.exists() or log.stat().st_size == 0
    store.close()
