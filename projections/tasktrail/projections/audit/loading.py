"""Loading many messages into an audit store at once: read on while the ones before are being written.

Guarantees: as `AuditStore.append`, with transactions of `SIZE` entries or `BYTES`, which DuckDB writes to the file
itself and not to the log before it. After one that fails none is made. What was handed over last is in the store when
the block ends, and nothing of the last transaction is when the block raises. Python reads (it decodes, checks chains,
folds tasks) while DuckDB, in a thread, reads the rest of plain entries, and compresses; a few batches wait in between.

    with store.loading() as load:
        load(messages)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, Queue
from typing import NamedTuple

from tasktrail.projections.audit.batch import Batch
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.rows import read, refs_of
from tasktrail.projections.audit.task_rows import TaskRow
from tasktrail.projections.uncollected import uncollected

SIZE = 122_880
"""Messages of a transaction: a row group of DuckDB's."""
BYTES = 192 * 1024 * 1024
"""Bytes of them after which a transaction ends earlier."""
BATCH = 40_960
"""Messages that are inserted at once: each batch waits dozens of times for Python to let go of its lock, 5 ms each."""
BATCH_BYTES = 64 * 1024 * 1024
_LOOK_S = 0.2
WAITING = 2
"""Batches that wait to be written, at most."""


class Tasks:
    """The last row of each task that a transaction touched, and the sequence it ends at."""

    def __init__(self) -> None:
        self.created: dict[str, TaskRow] = {}
        self.changed: dict[str, TaskRow] = {}
        self.last_seq = 0


class Transaction(NamedTuple):
    """What one is made of. `tasks` is whole only when there are no more `batches`."""

    batches: Iterator[Batch]
    tasks: Tasks


class _Abandoned(Exception):
    """The block that was loading has raised."""


Lookup = Callable[[Sequence[str]], Mapping[str, TaskRow]]
"""The rows that the store has of the tasks with these references."""


class Loading:
    """One load. `write` carries a transaction out; it is called in a thread, one call at a time."""

    def __init__(self, after: int, lookup: Lookup, write: Callable[[Transaction], None]) -> None:
        self._lookup, self._write = lookup, write
        self._last_seq = after
        self._batch = Batch(after)
        self._size = self._bytes = 0
        self._tasks, self._before = Tasks(), Tasks()
        self._queue: Queue[Batch | None] = Queue(WAITING)
        self._given_up = False
        self._open: Future[None] | None = None
        self._ending: Future[None] | None = None
        self._failed = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit-load")

    def take(self, messages: Sequence[Message]) -> None:
        """The next messages, in the stream's order.

        Raises:
            AuditStoreError: some that were given before were not written.
        """
        while messages:
            some = min(BATCH, SIZE - self._size)
            self._read(messages[:some])
            messages = messages[some:]
            if self._size >= SIZE or self._bytes >= BYTES:
                self._end()

    def _read(self, messages: Sequence[Message]) -> None:
        with uncollected():
            self._take(messages)
        if self._batch.size >= BATCH or self._batch.bytes >= BATCH_BYTES:
            self._hand_over()

    def _take(self, messages: Sequence[Message]) -> None:
        tasks, before = self._tasks, self._before
        held = (tasks.changed, tasks.created, before.changed, before.created)
        known: dict[str, TaskRow] = {}
        unknown: list[str] = []
        for ref in refs_of(messages):
            row = next((rows[ref] for rows in held if ref in rows), None)
            if row is None:
                unknown.append(ref)
            else:
                known[ref] = row
        known |= self._lookup(unknown)
        rows = read(messages, after=self._last_seq, known=known, plainly=True)
        taken, length = self._batch.take(rows)
        self._size += taken
        self._bytes += length
        tasks.created |= rows.created
        for ref, row in rows.changed.items():
            (tasks.created if ref in tasks.created else tasks.changed)[ref] = row
        self._last_seq = tasks.last_seq = rows.last_seq

    def _hand_over(self) -> None:
        """Have the batch written, in the transaction that is open, or in a new one."""
        if self._open is None:
            self._open = self._thread.submit(self._transact, Transaction(self._batches(), self._tasks))
        elif self._open.done():
            self._open.result()
        batch, self._batch = self._batch, Batch(self._last_seq)
        self._queue.put(batch)

    def _transact(self, transaction: Transaction) -> None:
        """In the thread: one transaction, unless one before it failed; what was meant for it is taken all the same."""
        try:
            if not self._failed:
                self._write(transaction)
        except BaseException:
            self._failed = True
            raise
        finally:
            with suppress(_Abandoned):
                for _ in transaction.batches:
                    pass

    def _batches(self) -> Iterator[Batch]:
        """What is handed over, until the transaction's end. Looks up now and then: an interrupt may leave no word."""
        while True:
            try:
                batch = self._queue.get(timeout=_LOOK_S)
            except Empty:
                batch = None
                if not self._given_up:
                    continue
            if self._given_up:
                raise _Abandoned
            if batch is None:
                return
            yield batch

    def _end(self) -> None:
        """End the transaction, and see that the one before is committed: its tasks are looked up from now on."""
        self._hand_over()
        self._queue.put(None)
        self._settle()
        self._open, self._ending = None, self._open
        self._tasks, self._before = Tasks(), self._tasks
        self._size = self._bytes = 0

    def _settle(self) -> None:
        """Wait for the transaction that is being committed."""
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.result()

    def finish(self) -> None:
        """Write what is left. Raises AuditStoreError: not all was written."""
        self._end()
        self._settle()

    def close(self) -> None:
        """End the thread; a transaction that is open is given up."""
        self._given_up = True
        self._thread.shutdown()
