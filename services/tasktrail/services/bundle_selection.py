"""Which entries go into a bundle: those of its scope, and those it takes to judge them. From the audit store.

Guarantees: nothing beyond the size of the tree that is to prove it; one snapshot of the store; a task that is called
whole is so as far as the store knows, and the verifier sees whether it is by the tree. Every call blocks.

    with Selector.open(store, size) as selector:
        selection = selector.of_tasks([ref])
        messages = selector.messages(selection)
"""

import contextlib
import hashlib
from collections.abc import Generator, Iterable
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, Self

import duckdb
import msgspec

from tasktrail.events.errors import InvalidRequest
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.tlog.bundle import BYTES_MAX, ENTRIES_MAX, NothingToProve, Task

PREFIX_MAX = 1_000
"""Entries before the first announced key, at most: there are none, or a few."""
FOUND_MAX = ENTRIES_MAX + 1
"""Rows of one search, at most: one more than a bundle holds is enough to know."""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Sequences of a scope and related ones; the tasks that are there whole; the range that is. See `Contents`."""

    sequences: frozenset[int]
    related: frozenset[int] = frozenset()
    tasks: tuple[Task, ...] = ()
    range: tuple[int, int] | None = None
    policies: dict[str, str] = {}


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The messages of a selection, why some were refused as entries, and `absent`: those that the store has not."""

    messages: list[Message]
    refused: dict[int, str]
    absent: frozenset[int]


@cache
def _sql(name: str) -> str:
    return (files("tasktrail.projections.audit") / "queries" / "evidence" / f"{name}.sql").read_text(encoding="utf-8")


class Selector:
    """Reads one snapshot of an audit store, up to the size of a tree."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, size: int) -> None:
        self._cursor, self._size = cursor, size

    @classmethod
    @contextlib.contextmanager
    def open(cls, store: AuditStore, size: int) -> Generator[Self]:
        """On a cursor of its own."""
        with contextlib.closing(store.cursor()) as cursor:
            cursor.begin()
            yield cls(cursor, size)

    def tasks(self, refs: Iterable[str]) -> list[Task]:
        """Those of these tasks that there are."""
        found = self._cursor.execute(_sql("tasks"), {"refs": list(refs), "size": self._size})
        return [Task(tenant=tenant, task_ref=ref) for tenant, ref in found.fetchall()]

    def of_tasks(self, tasks: Iterable[Task]) -> Selection:
        """Everything of these tasks."""
        known = tuple(tasks)
        return self._judgeable(self._of(known), tasks=known)

    def of_principal(self, sub: str, iss: str, client_id: str, tenant: str) -> Selection:
        """Everything that a principal did, also for others, and everything of the tasks that it made."""
        who = {"sub": sub, "iss": iss or None, "client_id": client_id or None, "tenant": tenant or None}
        own = self._sequences("by_principal", **who)
        made = self._rows("tasks_of_principal", **who)
        tasks = tuple(Task(tenant=one, task_ref=ref) for one, ref in made)
        return self._judgeable(own | self._of(tasks), tasks=tasks)

    def within(self, first: int, last: int) -> Selection:
        """Every sequence from the first to the last, as far as the tree goes."""
        last = min(last, self._size)
        if first > last:
            message = f"the trail's tree ends at sequence {self._size}: nothing from {first} on can be proved"
            raise InvalidRequest(message)
        if last - first >= ENTRIES_MAX:
            message = f"{last - first + 1} sequences are more than the {ENTRIES_MAX} of a bundle; ask for parts"
            raise NothingToProve(message)
        return self._judgeable(frozenset(range(first, last + 1)), range=(first, last))

    def between(self, since: datetime, until: datetime) -> Selection:
        """Every sequence from the first to the last that was recorded between these times."""
        first, last = _utc(since), _utc(until)
        times = {"since": first, "until": last, "size": self._size}
        row = self._cursor.execute(_sql("within_times"), times).fetchone()
        if row is None or row[0] is None:
            message = "nothing was recorded between these times"
            raise InvalidRequest(message)
        return self.within(row[0], row[1])

    def of_rows(self, sequences: Iterable[int]) -> Selection:
        """These sequences, as a query named them; it may name one several times."""
        found: set[int] = set()
        for one in sequences:
            if one <= self._size:
                found.add(one)
            if len(found) > ENTRIES_MAX:
                raise _too_many()
        return self._judgeable(frozenset(found))

    def messages(self, selection: Selection) -> Found:
        """The messages of a selection in the order of the stream.

        Raises:
            NothingToProve: together they are larger than a bundle.
        """
        wanted = selection.sequences | selection.related
        size = self._cursor.execute(_sql("size"), {"sequences": sorted(wanted)}).fetchone()
        if size and size[0] > BYTES_MAX:
            message = f"these entries have {size[0]} bytes, a bundle at most {BYTES_MAX}; ask for less, or for parts"
            raise NothingToProve(message)
        rows: list[tuple[Any, ...]] = self._cursor.execute(_sql("messages"), {"sequences": sorted(wanted)}).fetchall()
        messages = [Message(row[0], row[1], bytes(row[2]), *row[3:6]) for row in rows]
        held = {message.stream_seq for message in messages}
        refused = {row[0]: row[6] for row in rows if row[6]}
        return Found(messages=messages, refused=refused, absent=frozenset(wanted - held))

    def _of(self, tasks: Iterable[Task]) -> frozenset[int]:
        refs = [task.task_ref for task in tasks]
        return self._sequences("of_tasks", refs=refs) if refs else frozenset()

    def _sequences(self, name: str, **parameters: object) -> frozenset[int]:
        found = self._rows(name, **parameters)
        return frozenset(int(row[0]) for row in found if row[0] is not None and row[0] <= self._size)

    def _rows(self, name: str, **parameters: object) -> list[tuple[Any, ...]]:
        asked = {**parameters, "size": self._size, "most": FOUND_MAX}
        rows: list[tuple[Any, ...]] = self._cursor.execute(_sql(name), asked).fetchall()
        if len(rows) > ENTRIES_MAX:
            raise _too_many()
        return rows

    def _judgeable(
        self,
        sequences: frozenset[int],
        tasks: tuple[Task, ...] = (),
        range: tuple[int, int] | None = None,  # noqa: A002 - the manifest's word
    ) -> Selection:
        """With the entries that it takes to judge these: keys, policies, revocations, refused accesses."""
        if len(sequences) > ENTRIES_MAX:
            raise _too_many()
        related = self._sequences("keys", prefix=PREFIX_MAX)
        refs = [task.task_ref for task in tasks]
        related |= self._sequences("about_tasks", refs=refs) if refs else frozenset()
        policies = self._rows("policies", sequences=sorted(sequences | related))
        texts = {sha256: text for _, sha256, text in policies if hashlib.sha256(text.encode()).hexdigest() == sha256}
        related |= frozenset(int(row[0]) for row in policies)
        return Selection(sequences=sequences, related=related - sequences, tasks=tasks, range=range, policies=texts)


def _too_many() -> NothingToProve:
    return NothingToProve(f"these are more than the {ENTRIES_MAX} entries of a bundle; ask for less, or for parts")


def _utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        message = f"{at} is no time that the trail can hold"
        raise InvalidRequest(message) from None
