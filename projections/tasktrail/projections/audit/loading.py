"""Loading many messages into an audit store at once: read on while the ones before are being written.

Guarantees: as `AuditStore.append`, with transactions of `SIZE` entries or `BYTES`, which DuckDB writes to the file
itself and not to the log before it; what was handed over last is in the store when the block ends. Memory is that of
two such transactions. Python reads (it decodes, checks chains, folds tasks) while DuckDB, in a thread, compresses.

    with store.loading() as load:
        load(messages)
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tasktrail.projections.audit.batch import Batch
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.rows import read, refs_of
from tasktrail.projections.audit.task_rows import TaskRow

SIZE = 122_880
"""Entries of a transaction: a row group of DuckDB's."""
BYTES = 192 * 1024 * 1024
"""Bytes of entries after which a transaction ends earlier."""
_CHUNK = 12_000

Lookup = Callable[[Sequence[str]], Mapping[str, TaskRow]]
"""The rows that the store has of the tasks with these references."""


class Loading:
    """One load. `write` makes a batch a transaction; it is called in a thread, one call at a time."""

    def __init__(self, after: int, lookup: Lookup, write: Callable[[Batch], None]) -> None:
        self._lookup, self._write = lookup, write
        self._batch = Batch(after)
        self._before = Batch(after)
        self._writing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit-load")

    def take(self, messages: Sequence[Message]) -> None:
        """The next messages, in the stream's order.

        Raises:
            AuditStoreError: some that were given before were not written.
        """
        while messages:
            some = min(_CHUNK, SIZE - self._batch.size)
            self._read(messages[:some])
            messages = messages[some:]
            if self._batch.size >= SIZE or self._batch.bytes >= BYTES:
                self._hand_over()

    def _read(self, messages: Sequence[Message]) -> None:
        """Read some messages. Nothing of them is in a cycle: looking for one among their rows took a seventh of it."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            self._take(messages)
        finally:
            if collecting:
                gc.enable()

    def _take(self, messages: Sequence[Message]) -> None:
        held = (self._batch.changed, self._batch.created, self._before.changed, self._before.created)
        known: dict[str, TaskRow] = {}
        unknown: list[str] = []
        for ref in refs_of(messages):
            row = next((rows[ref] for rows in held if ref in rows), None)
            if row is None:
                unknown.append(ref)
            else:
                known[ref] = row
        known |= self._lookup(unknown)
        self._batch.take(read(messages, after=self._batch.last_seq, known=known, plainly=True))

    def _hand_over(self) -> None:
        """Have the batch written, and begin the next."""
        self._settle()
        self._before, self._batch = self._batch, Batch(self._batch.last_seq)
        self._writing = self._thread.submit(self._write, self._before)

    def _settle(self) -> None:
        """Wait for what is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def finish(self) -> None:
        """Write what is left. Raises AuditStoreError: not all was written."""
        self._hand_over()
        self._settle()

    def close(self) -> None:
        """End the thread, after what it is at."""
        self._thread.shutdown()
