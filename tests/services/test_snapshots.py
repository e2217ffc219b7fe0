"""Copies of the audit store: whole, of one tenant, while it is written. Source: issue "Forensics"; design section 8."""

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from tests.projections.audit.histories import Trail, mixed
from tests.services.scene import CREATED

from tasktrail.events.subjects import control_subject, tenant_token
from tasktrail.projections.audit.store import AuditStore
from tasktrail.services import snapshots
from tasktrail.services.snapshots import Lent, NoRoom, Snapshots, copy_closed, copy_rows
from tasktrail.testing.waiting import until

ENTRIES = 600
ZOE = "Zoë & co"


@pytest.fixture(scope="module")
def trail() -> Trail:
    made = mixed(ENTRIES)
    made.put(control_subject("acme"), b"no entry at all, of nobody knows whose: globex-secret", "x")
    return made


@pytest.fixture
def store(tmp_path: Path, trail: Trail) -> Iterator[AuditStore]:
    made = AuditStore.open(tmp_path / "audit.duckdb")
    made.bind("TRAIL", CREATED, 2**50)
    made.append(trail.messages)
    yield made
    made.close()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def part(path: Path, start: int, most: int) -> bytes:
    """By another process, as the copies are made."""
    code = "import sys; f = open(sys.argv[1], 'rb'); f.seek(int(sys.argv[2])); "
    code += "sys.stdout.buffer.write(f.read(int(sys.argv[3])))"
    command = [sys.executable, "-c", code, str(path), str(start), str(min(most, path.stat().st_size))]
    return subprocess.run(command, capture_output=True, check=True).stdout


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    with duckdb.connect(path, read_only=True) as copy:
        return copy.execute(sql).fetchall()


def tables(path: Path) -> dict[str, list[tuple[object, ...]]]:
    names = [str(row[0]) for row in rows(path, "SELECT table_name FROM duckdb_tables() ORDER BY 1")]
    return {name: sorted(rows(path, f"SELECT * FROM {name}"), key=repr) for name in names}  # noqa: S608 - our schema


def of_tenant(store: AuditStore, path: Path, tenant: str) -> int:
    cursor = store.cursor()
    try:
        return copy_rows(cursor, path, tenant)
    finally:
        cursor.close()


async def whole(store: AuditStore, folder: Path) -> Lent:
    return await Snapshots(store, folder).lend()


async def test_a_whole_copy_equals_the_store_row_for_row(store: AuditStore, tmp_path: Path) -> None:
    lent = await whole(store, tmp_path / "snapshots")
    assert lent.as_of == store.last_seq == ENTRIES + 1
    store.close()
    copy = Path(lent.path)
    assert tables(copy) == tables(tmp_path / "audit.duckdb")
    assert (mode(copy), mode(copy.parent)) == (0o600, 0o700)
    opened = AuditStore.open(copy, read_only=True)
    assert opened.counts().entries == ENTRIES
    opened.close()


async def test_the_store_stays_locked_against_other_processes_when_it_was_copied(
    store: AuditStore, tmp_path: Path
) -> None:
    """POSIX locks go when a process closes any descriptor of the file: the copy is made by another process."""
    await whole(store, tmp_path / "snapshots")
    code = "import duckdb, sys; duckdb.connect(sys.argv[1])"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(store.path), stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        _, said = await process.communicate()
    assert b"Could not set lock" in said, said


@pytest.mark.requirement("T5")
@pytest.mark.parametrize("tenant", ["acme", "globex", ZOE])
def test_a_tenants_copy_holds_its_rows_and_no_trace_of_another(
    store: AuditStore, tmp_path: Path, trail: Trail, tenant: str
) -> None:
    path = tmp_path / "copy.duckdb"
    of_tenant(store, path, tenant)
    assert rows(path, "SELECT DISTINCT tenant FROM entries UNION SELECT DISTINCT tenant FROM tasks") == [(tenant,)]
    mine = {ref for ref, whose in trail.tenants.items() if whose == tenant}
    assert {row[0] for row in rows(path, "SELECT task_ref FROM tasks")} <= mine
    counted = rows(path, "SELECT count(*) FROM entries")[0][0]
    source = store.cursor()
    asked = "SELECT count(*), (SELECT count(*) FROM events JOIN entries e USING (stream_seq) WHERE e.tenant = $t) "
    entries, events = source.execute(f"{asked} FROM entries WHERE tenant = $t", {"t": tenant}).fetchall()[0]
    source.close()
    assert (counted, rows(path, "SELECT count(*) FROM events")[0][0]) == (entries, events)
    assert rows(path, "SELECT count(*) FROM denials")[0][0]
    assert rows(path, "SELECT count(*) FROM rejected")[0][0] == 0
    held = path.read_bytes()
    others = [ref for ref, whose in trail.tenants.items() if whose != tenant]
    assert not [ref for ref in others if ref.encode() in held]
    assert b"globex-secret" not in held


def test_a_table_that_does_not_say_whose_its_rows_are_is_empty_in_a_tenants_copy() -> None:
    """Fail closed: a later schema's table is covered by the rule, or not there to be read."""
    assert snapshots.whose("other", ["x", "y"]) == "WHERE false"
    assert "entries" in snapshots.whose("other", ["stream_seq"])


def test_a_tenant_of_whom_nothing_is_known_has_an_empty_copy(store: AuditStore, tmp_path: Path) -> None:
    of_tenant(store, tmp_path / "copy.duckdb", "'; DROP TABLE entries --")
    found = tables(tmp_path / "copy.duckdb")
    assert {name for name, held in found.items() if held} == {"position", "schema_version"}


def test_a_resting_file_is_one_moments_store_while_appending_goes_on(tmp_path: Path) -> None:
    """Half of it is read before and half after thousands of messages, which would otherwise be checkpointed into it."""
    trail = mixed(3_000, seed=3)
    store = AuditStore.open(tmp_path / "audit.duckdb")
    store.bind("TRAIL", CREATED, 2**50)
    store.append(trail.messages[:1_000])
    store.cursor().execute("SET checkpoint_threshold = '10KB'")
    with store.resting() as as_of:
        half = (tmp_path / "audit.duckdb").stat().st_size // 2
        held = part(tmp_path / "audit.duckdb", 0, half)
        for start in range(1_000, 3_000, 50):
            store.append(trail.messages[start : start + 50])
        held += part(tmp_path / "audit.duckdb", half, 2**40)
    (tmp_path / "copy.duckdb").write_bytes(held)
    assert as_of == 1_000
    looked = "SELECT count(*), max(stream_seq), (SELECT last_seq FROM position) FROM entries"
    assert rows(tmp_path / "copy.duckdb", looked) == [(as_of, as_of, as_of)]
    assert store.last_seq == 3_000
    assert store.counts().entries == 3_000
    store.close()


async def test_a_copy_waits_for_readings_that_began_before_the_last_appends(tmp_path: Path) -> None:
    """DuckDB makes no checkpoint while a transaction may still need what an update replaced."""
    trail = mixed(200, seed=3)
    store = AuditStore.open(tmp_path / "audit.duckdb")
    store.bind("TRAIL", CREATED, 2**50)
    store.append(trail.messages[:100])
    reading = store.cursor()
    reading.begin()
    reading.execute("SELECT count(*) FROM tasks").fetchall()
    store.append(trail.messages[100:])

    def rested() -> int:
        with store.resting() as as_of:
            return as_of

    resting = asyncio.create_task(asyncio.to_thread(rested))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(resting), 0.2)
    reading.rollback()
    reading.close()
    assert await asyncio.wait_for(resting, 60) == 200
    store.close()


async def test_copies_are_whole_while_another_thread_appends(tmp_path: Path) -> None:
    trail = mixed(2_000, seed=3)
    store = AuditStore.open(tmp_path / "audit.duckdb")
    store.bind("TRAIL", CREATED, 2**50)
    store.append(trail.messages[:100])

    def append() -> None:
        for start in range(100, 2_000, 50):
            store.append(trail.messages[start : start + 50])

    writing = asyncio.create_task(asyncio.to_thread(append))
    for number in range(3):
        lent = await whole(store, tmp_path / f"snapshots-{number}")
        counted = rows(Path(lent.path), "SELECT count(*), max(stream_seq) FROM entries")
        assert counted == [(lent.as_of, lent.as_of)]
        mine = tmp_path / f"acme-{number}.duckdb"
        at = of_tenant(store, mine, "acme")
        expected = sum(1 for one in trail.messages[:at] if f".{tenant_token('acme')}" in one.subject)
        assert rows(mine, "SELECT count(*) FROM entries") == [(expected,)]
    await writing
    store.close()


def test_the_store_of_a_stopped_service_is_copied_as_it_lies(store: AuditStore, tmp_path: Path) -> None:
    store.close()
    before = (tmp_path / "audit.duckdb").read_bytes()
    assert copy_closed(tmp_path / "audit.duckdb", tmp_path / "it's a copy.duckdb") == ENTRIES + 1
    assert (tmp_path / "audit.duckdb").read_bytes() == before


async def test_readers_of_the_same_rows_share_a_copy_and_it_goes_after_use(store: AuditStore, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    folder.mkdir()
    (folder / "left-by-a-crash").mkdir()
    shared = Snapshots(store, folder)
    assert not (folder / "left-by-a-crash").exists()
    async with shared.open() as one, shared.open() as two, shared.open("acme") as acme:
        assert one.path == two.path != acme.path
        assert (one.as_of, one.tenant, acme.tenant) == (ENTRIES + 1, None, "acme")
        assert await asyncio.to_thread(one.path.exists)
    gone = await until(lambda: list(folder.iterdir()) == [] or None, what="the copies' end")
    assert gone
    async with shared.open() as three:
        assert three.path != one.path
    await shared.close()
    assert not folder.exists()


async def test_a_lent_copy_lies_where_it_is_told_until_the_service_stops(store: AuditStore, tmp_path: Path) -> None:
    shared = Snapshots(store, tmp_path / "snapshots")
    lent = await shared.lend()
    assert rows(Path(lent.path), "SELECT max(last_seq) FROM position") == [(lent.as_of,)]
    await shared.close()
    assert not (tmp_path / "snapshots").exists()


async def test_who_gives_up_a_copy_gives_way_only_when_its_thread_has_ended(
    store: AuditStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store rests for one copy at a time (`AuditStore.resting`), and no thread can be stopped."""
    running: list[Path] = []
    most: list[int] = []
    go_on = threading.Event()
    copy = snapshots._copy_file  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001 - held up in its midst

    def slow(source: Path, target: Path) -> None:
        running.append(target)
        most.append(len(running))
        assert go_on.wait(60)
        copy(source, target)
        running.remove(target)

    monkeypatch.setattr(snapshots, "_copy_file", slow)
    shared = Snapshots(store, tmp_path / "snapshots")
    given_up = asyncio.create_task(shared.lend())
    await until(lambda: running, what="the copying")
    waiting = asyncio.create_task(shared.lend())
    for _ in range(2):  # the second one is as of a server that stops
        given_up.cancel()
        done, _ = await asyncio.wait({given_up, waiting}, timeout=0.2)
        assert not done
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(given_up, 60)
    lent = await asyncio.wait_for(waiting, 60)
    assert most == [1, 1]
    assert [one.name for one in (tmp_path / "snapshots").iterdir()] == [Path(lent.path).parent.name]
    await shared.close()


async def test_lent_copies_go_at_their_time_and_not_by_the_thread_that_serves(
    store: AuditStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept of them: a service lends for months. To delete gigabytes takes longer than anyone may wait."""
    by: list[threading.Thread] = []
    remove = shutil.rmtree

    def removed(folder: Path, *, ignore_errors: bool) -> None:
        by.append(threading.current_thread())
        remove(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(snapshots, "LENT_S", 0.01)
    shared = Snapshots(store, tmp_path / "snapshots")
    monkeypatch.setattr("tasktrail.services.snapshots.shutil.rmtree", removed)
    for _ in range(2):
        await shared.lend()
    await until(lambda: list((tmp_path / "snapshots").iterdir()) == [] or None, what="the copies' end")
    left = [shared._timers, shared._removals]  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001 - what would grow
    await until(lambda: not any(left), what="nothing left to do")
    assert len(by) == 2
    assert threading.main_thread() not in by
    await shared.close()


async def test_a_copy_that_does_not_fit_is_refused_before_it_is_begun(
    store: AuditStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "ROOM_FACTOR", 10**12)
    shared = Snapshots(store, tmp_path / "snapshots")
    with pytest.raises(NoRoom, match="make room"):
        async with shared.open():
            pass
    assert list((tmp_path / "snapshots").iterdir()) == []


async def test_so_many_copies_are_lent_and_no_more(store: AuditStore, tmp_path: Path) -> None:
    """Each is as large as the store, and the broker writes to the same disk; a copy given back makes room."""
    lending = snapshots.Snapshots(store, tmp_path / "snapshots")
    lent = [await lending.lend() for _ in range(snapshots.LENT_MAX)]
    with pytest.raises(snapshots.LentOut, match="copies are lent"):
        await lending.lend()
    await asyncio.to_thread(Path(lent[0].path).unlink)
    assert (await lending.lend()).as_of == store.last_seq
    await lending.close()
