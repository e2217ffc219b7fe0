"""Copies of the audit store for readers, made while it is written: whole, or with one tenant's rows alone.

Guarantees: a copy is of one moment, whatever is appended meanwhile; one for a tenant holds no row of another's, nor any
whose tenant nobody can tell; a table that the rule below does not cover is empty in it. Ingestion does not stop: a
tenant's copy is a reading like any other, and for a whole one it waits only for a checkpoint. The files are readable by
us alone and are deleted after use and at the next start.

A row is its tenant's by its column `tenant`, else by the entry at its `stream_seq`, else by its task's `task_ref`.

    snapshots = Snapshots(store, data / "snapshots")
    async with snapshots.open("acme") as snapshot:
        … snapshot.path, snapshot.as_of
    copy_closed(data / "audit.duckdb", Path("copy.duckdb"))

Needs room on the disk for another copy. A whole one takes as long as copying its file.
"""

import asyncio
import contextlib
import functools
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TypeVar

import duckdb
import msgspec

from tasktrail.events.errors import TasktrailError, Unavailable
from tasktrail.projections.audit.errors import AuditStoreError
from tasktrail.projections.audit.store import AuditStore
from tasktrail.services.clock import now_ms, rfc3339

T = TypeVar("T")

DEAR_S = 2.0
FRESH_FOR_COST = 10.0
"""A copy that took longer than `DEAR_S` serves others for this many times as long, so that not all time is copying."""
LENT_MAX = 4
LENT_S = 900.0
"""How long a copy lies for a process that was told its path."""
ROOM_FACTOR = 1.2
_COPY = "import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])"
SNAPSHOTS = "snapshots"
"""The folder for them in a data directory."""
_FILE = "trail.duckdb"
_BY_ENTRY = "stream_seq IN (SELECT stream_seq FROM entries WHERE tenant = $tenant)"
_BY_TASK = "task_ref IN (SELECT task_ref FROM tasks WHERE tenant = $tenant)"
_OF_THE_STORE = frozenset({"position"})
"""Tables that say nothing of any tenant. `schema_version` is the copy's own."""


class NoRoom(Unavailable):
    """A copy of the store would not fit on the disk."""

    reason = "no_room"


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One copy: its file, whose rows it holds (None: all), and the stream sequence it is as of."""

    path: Path
    tenant: str | None
    as_of: int


class Lent(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of the whole store on the service's machine; delete it after use, or it is deleted at `until`."""

    path: str
    as_of: int
    until: str


class _Held:
    """A copy in use, or one that may be used again until `until` (monotonic seconds)."""

    def __init__(self, snapshot: Snapshot, until: float) -> None:
        self.snapshot, self.until, self.users = snapshot, until, 0


class LentOut(TasktrailError):
    """As many copies as may are lent. Nothing was recorded."""

    code = -32029
    http_status = 429
    retriable = True
    reason = "busy"

    def __init__(self) -> None:
        super().__init__(f"{LENT_MAX} copies are lent, no more at once; who is done with one deletes it. Try again")


class Snapshots:
    """Makes, shares and deletes copies of `store` in `folder`, which is ours alone: what is left in it is deleted."""

    def __init__(self, store: AuditStore, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._held: dict[str | None, _Held] = {}
        self._making = asyncio.Lock()
        self._timers: set[asyncio.TimerHandle] = set()
        self._removals: set[asyncio.Future[None]] = set()
        self._clear()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.asynccontextmanager
    async def open(self, tenant: str | None = None) -> AsyncGenerator[Snapshot]:
        """A copy of this tenant's rows, or of all, as of now; of a large store it may be a little older.

        Raises:
            NoRoom: it would not fit on the disk.
            AuditStoreError: the store cannot be read.
        """
        now_at = self._store.last_seq
        async with self._making:
            held = self._held.get(tenant)
            if held is None or (held.snapshot.as_of < now_at and held.until < time.monotonic()):
                held = await self._make(tenant)
                self._held[tenant] = held
            held.users += 1
        try:
            yield held.snapshot
        finally:
            held.users -= 1
            if not held.users:
                self._later(held.until - time.monotonic(), tenant, held)

    async def lend(self) -> Lent:
        """A copy of the whole store for another process on this machine.

        Raises:
            LentOut: as many as may are lent.
            NoRoom, AuditStoreError: as `open`.
        """
        path = self._folder / f"lent-{secrets.token_hex(8)}" / _FILE
        async with self._making:
            if len(list(self._folder.glob(f"lent-*/{_FILE}"))) >= LENT_MAX:
                raise LentOut
            as_of = await self._copy(path, None)
        self._after(LENT_S, lambda: self._discard(path.parent))
        return Lent(path=str(path), as_of=as_of, until=rfc3339(now_ms() + int(LENT_S * 1000)))

    async def close(self) -> None:
        """Delete every copy."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._removals:
            await asyncio.wait(self._removals)
        await asyncio.to_thread(self._clear)

    async def _make(self, tenant: str | None) -> _Held:
        path = self._folder / secrets.token_hex(8) / _FILE
        began = time.monotonic()
        as_of = await self._copy(path, tenant)
        now = time.monotonic()
        keep_s = FRESH_FOR_COST * (now - began) if now - began > DEAR_S else 0.0
        return _Held(Snapshot(path=path, tenant=tenant, as_of=as_of), now + keep_s)

    async def _copy(self, path: Path, tenant: str | None) -> int:
        try:
            return await _to_its_end(functools.partial(self._copied, path, tenant))
        except BaseException:
            await _to_its_end(functools.partial(_remove, path.parent))
            raise

    def _copied(self, path: Path, tenant: str | None) -> int:
        require_room(self._store.path, self._folder)
        path.parent.mkdir(mode=0o700, parents=True)
        if tenant is None:
            with self._store.resting() as as_of:
                _copy_file(self._store.path, path)
            return as_of
        with contextlib.closing(self._store.cursor()) as cursor:
            return copy_rows(cursor, path, tenant)

    def _later(self, delay_s: float, tenant: str | None, held: _Held) -> None:
        """Delete a copy when nobody uses it and it is not fresh any more."""

        def discard() -> None:
            if held.users:
                return
            if (left_s := held.until - time.monotonic()) > 0:
                self._later(left_s, tenant, held)
                return
            if self._held.get(tenant) is held:
                del self._held[tenant]
            self._discard(held.snapshot.path.parent)

        self._after(max(0.0, delay_s) + 0.01, discard)

    def _after(self, delay_s: float, act: Callable[[], None]) -> None:
        def fire() -> None:
            self._timers.discard(timer)
            act()

        timer = asyncio.get_running_loop().call_later(delay_s, fire)
        self._timers.add(timer)

    def _discard(self, folder: Path) -> None:
        """Delete a copy, by a thread: it may be gigabytes."""
        removal = asyncio.get_running_loop().run_in_executor(None, _remove, folder)
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    def _clear(self) -> None:
        _remove(self._folder)


async def _to_its_end(work: Callable[[], T]) -> T:
    """What a thread makes of it. Who is cancelled meanwhile waits for the thread's end, which nothing can hasten."""
    running = asyncio.get_running_loop().run_in_executor(None, work)
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        running.exception()  # nobody is left who could be told
        raise cancelled
    return running.result()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def require_room(store: Path, folder: Path) -> None:
    """See that a copy of `store` fits into `folder`.

    Raises:
        NoRoom: it does not.
    """
    needed, free = int(store.stat().st_size * ROOM_FACTOR), shutil.disk_usage(folder).free
    if needed > free:
        message = (
            f"a copy of the audit store may take {needed // 2**20} MiB, and {free // 2**20} MiB are free in {folder}; "
            "make room there"
        )
        raise NoRoom(message)


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file that this process holds, by another one: closing it here would give up DuckDB's lock on it (POSIX).

    Raises:
        AuditStoreError: it cannot be copied.
    """
    target.touch(mode=0o600)
    command = [sys.executable, "-I", "-S", "-c", _COPY, str(source), str(target)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env={}, check=False)  # noqa: S603 - ours
    if done.returncode:
        why = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        message = f"the audit store cannot be copied to {target}: {why}"
        raise AuditStoreError(message)


def copy_rows(source: duckdb.DuckDBPyConnection, target: Path, tenant: str) -> int:
    """Copy a tenant's rows of the store open at `source` into the new file `target`; returns the sequence it is as of.

    The source may be open read-only.

    Raises:
        AuditStoreError: it cannot be copied; there is no target then.
    """
    AuditStore.open(target).close()
    target.chmod(0o600)
    name = f"copy_{secrets.token_hex(8)}"
    try:
        source.execute(f"ATTACH '{_quoted(target)}' AS {name} (READ_WRITE)")
        try:
            return _insert(source, name, tenant)
        finally:
            source.execute(f"DETACH {name}")
    except (duckdb.Error, OSError) as error:
        for left in (target, target.with_name(f"{target.name}.wal")):
            with contextlib.suppress(OSError):
                os.unlink(left)  # noqa: PTH108 - what is left of it, if anything
        message = f"the audit store cannot be copied to {target}: {error}"
        raise AuditStoreError(message) from error


def copy_closed(store: Path, target: Path, tenant: str | None = None) -> int:
    """Copy the store in the file `store`, which no service holds; returns the sequence it is as of.

    Raises:
        StoreMissing, StoreBusy, AuditStoreError, NoRoom: see there.
    """
    with contextlib.closing(AuditStore.open(store, read_only=True)) as held:
        require_room(store, target.parent)
        if tenant is not None:
            with contextlib.closing(held.cursor()) as cursor:
                return copy_rows(cursor, target, tenant)
        _copy_file(store, target)
        if (log := store.with_name(f"{store.name}.wal")).exists():
            _copy_file(log, target.with_name(f"{target.name}.wal"))
        return held.last_seq


def _insert(source: duckdb.DuckDBPyConnection, name: str, tenant: str) -> int:
    """All rows that may be seen, in one transaction: of one moment."""
    source.begin()
    try:
        for table, columns in _tables(source).items():
            where = whose(table, columns)
            named = ", ".join(columns)
            source.execute(
                f"INSERT INTO {name}.main.{table} ({named}) SELECT {named} FROM main.{table} {where}",  # noqa: S608 - our schema's names
                {"tenant": tenant} if "$tenant" in where else None,
            )
        found = source.execute("SELECT max(last_seq) FROM position").fetchone()
        source.commit()
    except BaseException:
        with contextlib.suppress(duckdb.Error):
            source.rollback()
        raise
    return int(found[0] or 0) if found else 0


def _tables(source: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """The tables of the store and their columns, in order."""
    rows = source.execute(
        "SELECT table_name, column_name FROM duckdb_columns() "
        "WHERE database_name = current_database() AND schema_name = 'main' "
        "AND table_name IN (SELECT table_name FROM duckdb_tables() WHERE database_name = current_database()) "
        "AND table_name <> 'schema_version' ORDER BY table_name, column_index"
    ).fetchall()
    found: dict[str, list[str]] = {}
    for table, column in rows:
        found.setdefault(str(table), []).append(str(column))
    return found


def whose(table: str, columns: list[str]) -> str:
    """Which rows of a table are a tenant's; none of one that does not say."""
    if table in _OF_THE_STORE:
        return ""
    if "tenant" in columns:
        return "WHERE tenant = $tenant"
    if "stream_seq" in columns:
        return f"WHERE {_BY_ENTRY}"
    return f"WHERE {_BY_TASK}" if "task_ref" in columns else "WHERE false"


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
