"""The audit store: the trail in one DuckDB file.

Guarantees: rows and the position they bring the store to are one transaction, so that after a kill -9 nothing is there
twice and nothing is left out; entries, events, denials and rejected messages are append-only (statement triggers: a
defence in depth, who owns the file can drop them); the whole file is a function of the trail and may be deleted. A
second process is refused with the holder's name. Needs DuckDB 2; no extension is ever loaded from the network.

Every call blocks: from a coroutine use `asyncio.to_thread`. Any thread may call; reads are snapshots on cursors of
their own and do not wait for appends.

    store = AuditStore.open(path)
    store.bind("TRAIL", created, last_seq)
    store.append(messages)
    store.timeline(task_ref)
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import duckdb
import msgspec

from tasktrail.events.facts import GrantGiven
from tasktrail.projections.audit import asking
from tasktrail.projections.audit.columns import EntryRow, EventRow, Message, instant
from tasktrail.projections.audit.errors import AnotherTrail, AuditStoreError, NotAnAuditStore, StreamCut
from tasktrail.projections.audit.finding import find, one, rejected_rows, sql, step_rows, task_rows
from tasktrail.projections.audit.history import assemble, in_order, task_shown
from tasktrail.projections.audit.named import Answer, NamedQuery, Value
from tasktrail.projections.audit.notable import NotableRow
from tasktrail.projections.audit.opening import CHECKPOINT_THRESHOLD, KEEP, connect, prepare
from tasktrail.projections.audit.rows import DenialRow, RejectedRow, Rows, read, refs_of
from tasktrail.projections.audit.task_rows import CHANGING, TaskRow
from tasktrail.projections.audit.timeline import Step, TaskShown, Timeline

if TYPE_CHECKING:
    from tasktrail.projections.audit.loading import Transaction

STEPS_MAX = 100_000
TASKS_MAX = 10_000
RESTS_WITHIN_S = 30.0
_REST_LOOK_S = 0.02
_KNOWN_MAX = 20_000
_NEVER = "1TB"


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far a store has read which stream. `last_seq` is 0 and `stream` empty for a store that has read nothing."""

    stream: str = ""
    created: datetime | None = None
    last_seq: int = 0


class TaskFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tasks: a member left out does not filter. Times are epoch milliseconds, from inclusive, until exclusive.

    `live`: still able to change, or not. `opens`: the handle opens its task still (it was neither revoked nor did it
    expire), or not. `before`: created before this stream sequence (the `first_seq` of the last
    task of the page before).
    """

    tenant: str | None = None
    statuses: tuple[str, ...] | None = None
    server: str | None = None
    tool: str | None = None
    iss: str | None = None
    sub: str | None = None
    client_id: str | None = None
    created_from_ms: int | None = None
    created_until_ms: int | None = None
    live: bool | None = None
    opens: bool | None = None
    before: int | None = None


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How much is in the store; `denials` counts accesses refused, not runs of them."""

    entries: int
    events: int
    tasks: int
    live_tasks: int
    denials: int
    rejected: int


class AuditStore:
    """One open audit store. `path` is its file."""

    def __init__(self, path: Path, root: duckdb.DuckDBPyConnection, *, read_only: bool) -> None:
        self.path, self.read_only = path, read_only
        self._root, self._writer = root, root.cursor()
        self._lock = threading.Lock()
        self._known: OrderedDict[str, TaskRow] = OrderedDict()
        self._appenders: dict[tuple[str, str], duckdb.Appender] = {}
        self._position = self.position()

    @classmethod
    def open(cls, path: Path | str, *, read_only: bool = False) -> Self:
        """The store in this file, which is made when it is not there and may be written.

        Raises:
            StoreMissing, StoreBusy, NotAnAuditStore, StoreTooNew, StoreTooOld: see there; the message says what to do.
        """
        path = Path(path)
        root = connect(path, read_only=read_only)
        try:
            prepare(root, path, read_only=read_only)
            return cls(path, root, read_only=read_only)
        except BaseException as error:
            root.close()
            if isinstance(error, duckdb.Error):
                message = f"{path} cannot be used: {error}. {KEEP}"
                raise NotAnAuditStore(message) from error
            raise

    def close(self) -> None:
        """Close the file; calls that are under way end first or fail."""
        with self._lock:
            self._appenders.clear()
            self._writer.close()
            self._root.close()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of one's own to the open database, for who copies rows of it; to be closed."""
        return self._root.cursor()

    @contextmanager
    def resting(self) -> Generator[int]:
        """While the block runs, a copy of the file alone is the store as of the sequence this gives.

        Appends go on, into the log beside it. DuckDB writes what its header leads to at a checkpoint only, and none is
        made meanwhile. One at a time.

        Raises:
            AuditStoreError: readings went on for `RESTS_WITHIN_S`; while there is one, DuckDB makes no checkpoint.
        """
        try:
            yield self._checkpointed()
        except duckdb.Error as error:
            message = f"{self.path} cannot be checkpointed: {error}"
            raise AuditStoreError(message) from error
        finally:
            with self._lock, suppress(duckdb.Error):
                self._writer.execute(f"SET checkpoint_threshold = '{CHECKPOINT_THRESHOLD}'")

    def _checkpointed(self) -> int:
        """Have the file hold all that was appended; appending goes on between the tries."""
        deadline = time.monotonic() + RESTS_WITHIN_S
        while True:
            with self._lock:
                self._writer.execute(f"SET checkpoint_threshold = '{_NEVER}'")
                try:
                    self._writer.execute("CHECKPOINT")
                except duckdb.TransactionException:
                    if time.monotonic() > deadline:
                        raise
                else:
                    return self._position.last_seq
            time.sleep(_REST_LOOK_S)

    @contextmanager
    def _reading(self) -> Generator[duckdb.DuckDBPyConnection]:
        """A cursor on one snapshot."""
        try:
            cursor = self._root.cursor()
            with closing(cursor):
                cursor.begin()
                yield cursor
        except duckdb.Error as error:
            message = f"{self.path} cannot be read: {error}"
            raise AuditStoreError(message) from error

    @property
    def last_seq(self) -> int:
        """The last stream sequence in it; does not block."""
        return self._position.last_seq

    def position(self) -> Position:
        """How far the store has read which stream."""
        with self._reading() as cursor:
            return _position(cursor)

    def bind(self, stream: str, created: datetime, last_seq: int) -> None:
        """Say which stream is read: its name, when it was created (an aware time) and its last sequence.

        Raises:
            AnotherTrail: the store was read from another stream.
            StreamCut: it was read further than this stream goes.
        """
        made = created.astimezone(UTC).replace(tzinfo=None)
        held = self._position
        if not held.stream:
            with self._lock, self._writing() as writer:
                writer.execute("INSERT INTO position VALUES (?, ?, 0)", [stream, made])
            self._position = Position(stream=stream, created=made, last_seq=0)
            return
        if (held.stream, held.created) != (stream, made):
            message = (
                f"{self.path} was read from stream {held.stream} created {held.created} UTC, and this is stream "
                f"{stream} created {made} UTC. {KEEP}"
            )
            raise AnotherTrail(message)
        if last_seq < held.last_seq:
            message = (
                f"{self.path} has read stream {stream} up to {held.last_seq}, and the stream ends at {last_seq}: it "
                f"was cut, or restored from an older copy. {KEEP}"
            )
            raise StreamCut(message)

    def append(self, messages: Sequence[Message]) -> Position:
        """Add the rows of these messages, in the stream's order, and move the position: all of it or nothing.

        Messages up to the position are left out. A transaction costs milliseconds: give hundreds or thousands of them.

        Raises:
            AuditStoreError: nothing of them was written; the message says why.
        """
        self._see_bound()
        with self._lock:
            known = self._lookup(refs_of(messages))
            rows = read(messages, after=self._position.last_seq, known=known)
            if rows.last_seq > self._position.last_seq:
                with self._writing():
                    self._insert_all(rows)
                    self._finish(rows.changed.values(), rows.last_seq)
            self._settle(rows.last_seq, rows.created, rows.changed)
            return self._position

    def _see_bound(self) -> None:
        if not self._position.stream:
            message = f"{self.path} is bound to no stream yet: call bind first"
            raise AuditStoreError(message)

    @contextmanager
    def loading(self) -> Generator[Callable[[Sequence[Message]], None]]:
        """Add many messages, as `append` does, in transactions that are as large as DuckDB likes them.

        What the block's function was given is in the store when the block has ended well; within it `last_seq` lags
        behind, and nobody else can append. Needs pyarrow.

        Raises:
            AuditStoreError: not all of them were written; what was is all that came before some sequence.
        """
        from tasktrail.projections.audit.loading import Loading  # noqa: PLC0415 - pyarrow is slow to import

        self._see_bound()
        with self._lock, self._alone():
            load = Loading(self._position.last_seq, self._lookup, self._load)
            with closing(load):
                yield load.take
                load.finish()

    @contextmanager
    def _alone(self) -> Generator[None]:
        """One thread of DuckDB's: two begin a row group each, and a checkpoint compresses both anew."""
        self._writer.execute("SET threads = 1")
        try:
            yield
        finally:
            with suppress(duckdb.Error):
                self._writer.execute("RESET threads")

    def _load(self, transaction: "Transaction") -> None:
        """One transaction of a load; nothing when it holds no message."""
        from tasktrail.projections.audit.batch import insert_tasks  # noqa: PLC0415 - as above

        tasks = transaction.tasks
        with self._writing() as writer:
            for batch in transaction.batches:
                batch.insert(writer)
            if tasks.last_seq > self._position.last_seq:
                insert_tasks(writer, tasks.created.values())
                self._finish(tasks.changed.values(), tasks.last_seq)
        self._settle(max(tasks.last_seq, self._position.last_seq), tasks.created, tasks.changed)

    @contextmanager
    def _writing(self) -> Generator[duckdb.DuckDBPyConnection]:
        """One transaction."""
        try:
            self._writer.begin()
            yield self._writer
            self._writer.commit()
        except BaseException as error:
            self._roll_back()
            if not isinstance(error, duckdb.Error):
                raise
            raise self._unwritten(error) from error

    def _roll_back(self) -> None:
        for appender in self._appenders.values():
            appender.clear()
        self._appenders.clear()
        with suppress(duckdb.Error):  # none was begun, or the database is lost
            self._writer.rollback()
        with suppress(AuditStoreError):  # what failed may have been what comes after the commit
            self._position = self.position()

    def _insert_all(self, rows: Rows) -> None:
        """The rows of some messages, within a transaction."""
        created = [msgspec.structs.astuple(row) for row in rows.created.values()]
        self._insert("tasks", TaskRow.__struct_fields__, created)
        self._insert("entries", EntryRow._fields, rows.entries)
        self._insert("events", EventRow._fields, rows.events)
        self._insert("denials", DenialRow._fields, rows.denials)
        self._insert("notable", NotableRow._fields, rows.notable)
        self._insert("service_events", NotableRow._fields, rows.service_events)
        self._insert("rejected", RejectedRow._fields, rows.rejected)
        if any(row.type == GrantGiven.__name__ for row in rows.notable):
            self._writer.execute(sql("grants_after"), {"after": self._position.last_seq})

    def _finish(self, changed: Collection[TaskRow], last_seq: int) -> None:
        """The last of a transaction: what changed in tasks that were there, and the position."""
        # By first_seq and not by task_ref: zone maps find the few row groups of recent tasks.
        columns = ("first_seq", *CHANGING)
        given = [tuple(getattr(row, name) for name in columns) for row in changed]
        self._insert("tasks", columns, given, action="update")
        self._writer.execute("UPDATE position SET last_seq = ?", [last_seq])

    def _settle(self, last_seq: int, *touched: Mapping[str, TaskRow]) -> None:
        """Remember what a transaction that is committed led to."""
        for rows in touched:
            for ref, row in rows.items():
                self._known[ref] = row
                self._known.move_to_end(ref)
        while len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)
        self._position = msgspec.structs.replace(self._position, last_seq=last_seq)

    def _insert(
        self,
        table: str,
        columns: Sequence[str],
        rows: Sequence[tuple[Any, ...]],
        action: Literal["insert", "update"] = "insert",
    ) -> None:
        """Append rows; an update finds its row by the first column. Appenders are kept: planning one costs 0.7 ms."""
        if not rows:
            return
        appender = self._appenders.get((table, action))
        if appender is None:
            key = [columns[0]] if action == "update" else None
            appender = self._writer.appender(table, columns=list(columns), action=action, key=key)
            self._appenders[table, action] = appender
        appender.append_rows(rows)
        appender.flush()

    def _lookup(self, refs: Iterable[str]) -> dict[str, TaskRow]:
        """The rows of these tasks, as far as there are any."""
        known: dict[str, TaskRow] = {}
        unknown: list[str] = []
        for ref in refs:
            row = self._known.get(ref)
            if row is None:
                unknown.append(ref)
            else:
                known[ref] = row
        if unknown:
            marks = ", ".join("?" * len(unknown))
            try:
                with closing(self._root.cursor()) as cursor:
                    cursor.execute(f"SELECT * FROM tasks WHERE task_ref IN ({marks})", unknown)  # noqa: S608 - marks
                    known |= {row.task_ref: row for row in task_rows(cursor)}
            except duckdb.Error as error:
                raise self._unwritten(error) from error
        return known

    def _unwritten(self, error: duckdb.Error) -> AuditStoreError:
        return AuditStoreError(f"{self.path} cannot be written, and nothing of this transaction was: {error}")

    def timeline(self, ref: str, *, steps_max: int = STEPS_MAX) -> Timeline | None:
        """The history of the task with this reference; None when nothing was ever recorded under it."""
        with self._reading() as cursor:
            found = find(cursor, ref, as_of=_position(cursor).last_seq, most=steps_max)
        return assemble(found) if found.task or found.denials or found.anomalies else None

    def tasks(self, wanted: TaskFilter | None = None, *, most: int = 100) -> tuple[TaskShown, ...]:
        """Tasks, the newest first, at most `most` of them (and never above `TASKS_MAX`)."""
        wanted = wanted or TaskFilter()
        parameters: dict[str, Any] = msgspec.structs.asdict(wanted)
        parameters["statuses"] = None if wanted.statuses is None else list(wanted.statuses)
        for name in ("created_from", "created_until"):
            at_ms = parameters.pop(f"{name}_ms")
            parameters[name] = None if at_ms is None else instant(name, at_ms)
        with self._reading() as cursor:
            cursor.execute(sql("tasks"), parameters | {"most": min(most, TASKS_MAX)})
            return tuple(task_shown(row) for row in task_rows(cursor))

    def since(self, stream_seq: int, *, most: int = 1_000, tenant: str | None = None) -> tuple[tuple[Step, ...], int]:
        """What `most` messages at most after a sequence came to, in order, and the sequence to go on from.

        Messages that were not accepted are among them whatever `tenant` is: whose they are, nobody can tell.
        """
        with self._reading() as cursor:
            until = _position(cursor).last_seq
            asked = {"after": stream_seq, "tenant": tenant}
            count, last = one(cursor.execute(sql("page_since"), asked | {"most": most}))
            until = last if count == most else until
            steps = step_rows(cursor.execute(sql("steps_since"), asked | {"until": until}))
            rejected = rejected_rows(cursor.execute(sql("rejected_since"), {"after": stream_seq, "until": until}))
        return in_order(steps, rejected), until

    def entry(self, entry_id: str) -> bytes | None:
        """The bytes of the entry with this id, as they are on the trail; None when there is none. Reads every id."""
        with self._reading() as cursor:
            row = cursor.execute(sql("entry_body"), {"entry_id": entry_id}).fetchone()
        return None if row is None else bytes(row[0])

    def ask(
        self,
        query: NamedQuery,
        parameters: Mapping[str, Value],
        *,
        tenant: str | None,
        after: int = 0,
        most: int = asking.PAGE,
    ) -> Answer:
        """A page of a named query's answer; `parameters` as `named.read_parameters` gives them, `tenant` None: all."""
        with self._reading() as cursor:
            as_of = _position(cursor).last_seq
            return asking.ask(cursor, query, parameters, tenant=tenant, after=after, most=most, as_of=as_of)

    def ask_batches(
        self, query: NamedQuery, parameters: Mapping[str, Value], *, tenant: str | None, most: int = asking.PAGE
    ) -> Iterator[Answer]:
        """A named query's whole answer, page by page, of what was recorded when it began; at least one page.

        Rows that stand for entries are those of that moment; what is told of a task or a revocation is as of its page.
        """
        answer = self.ask(query, parameters, tenant=tenant, most=most)
        yield answer
        while answer.more:
            with self._reading() as cursor:
                answer = asking.ask(
                    cursor, query, parameters, tenant=tenant, after=answer.after, most=most, as_of=answer.as_of
                )
            yield answer

    def counts(self) -> Counts:
        """How much is in the store."""
        with self._reading() as cursor:
            row = one(cursor.execute(sql("counts")))
        return Counts(**dict(zip(Counts.__struct_fields__, row, strict=True)))


def _position(cursor: duckdb.DuckDBPyConnection) -> Position:
    row = cursor.execute("SELECT stream, stream_created, last_seq FROM position").fetchone()
    return Position() if row is None else Position(stream=row[0], created=row[1], last_seq=row[2])
