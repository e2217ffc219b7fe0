"""What DuckDB reads of plain entries is what Python reads of them: for any entry of ours, member by member."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import duckdb
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.projections.audit.stores import opened

from tasktrail.events.authority import Authority
from tasktrail.events.entry import VERSION, Entry, encode, leaf_hash
from tasktrail.events.facts import Event
from tasktrail.projections.audit import plain
from tasktrail.projections.audit.batch import Batch
from tasktrail.projections.audit.columns import Message, entry_row, event_row
from tasktrail.projections.audit.plain import is_plain, plain_event, plain_row
from tasktrail.projections.audit.rows import Rows

TEXTS = st.text("aZ0 ,.:-_/'é漢😀\x7f[]{}", max_size=6) | st.sampled_from(["null", "true", "0", ""])
NUMBERS = st.sampled_from([0, 1, -1, 1_795_000_000, 1_795_000_000_000, 253_402_300_799, 253_402_300_800, -(10**11)])


def valued(hint: Any) -> st.SearchStrategy[Any]:  # noqa: ANN401, PLR0911 - an annotation of any kind
    """Values of a member with this annotation."""
    if isinstance(hint, UnionType):
        return st.one_of([st.none() if one is NoneType else valued(one) for one in get_args(hint)])
    match get_origin(hint) or hint:
        case origin if origin is tuple:
            return st.lists(valued(get_args(hint)[0]), max_size=3).map(tuple)
        case origin if origin is dict:
            return st.dictionaries(TEXTS, valued(get_args(hint)[1]), max_size=2)
        case origin if origin is str:
            return TEXTS
        case origin if origin is bool:
            return st.booleans()
        case origin if origin is int:
            return NUMBERS
        case origin if origin is float:
            return st.floats(allow_nan=False, allow_infinity=False)
        case origin if issubclass(origin, Enum):
            return st.sampled_from(list(origin))
        case _:
            return made(hint)


def made(type_: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Structures of a type, any of their optional members left out."""
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for field in msgspec.structs.fields(type_):
        (required if field.required else optional)[field.name] = valued(field.type)
    return st.fixed_dictionaries(required, optional=optional).map(lambda members: type_(**members))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    event: Event = draw(st.one_of([made(one) for one in plain.READ]))
    return Entry(
        v=VERSION,
        id=draw(st.sampled_from([*"abcdefgh", '"', "\\", "\n"])),
        tenant=draw(TEXTS),
        task_ref=draw(TEXTS),
        task_seq=draw(st.integers(0, 9)),
        prev=draw(TEXTS),
        recorded_at="2026-11-22T11:00:00.123Z",
        command=draw(TEXTS),
        authority=draw(made(Authority)),
        events=(event,),
    )


@dataclass(frozen=True)
class Tables:
    db: duckdb.DuckDBPyConnection

    def read(self, rows: Rows) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """What `entries` and `events` hold after these rows; nothing stays."""
        batch = Batch(0)
        batch.take(rows)
        self.db.begin()
        try:
            batch.insert(self.db)
            tables = [self.db.execute(f"FROM {name} ORDER BY stream_seq").fetchall() for name in ("entries", "events")]
        finally:
            self.db.rollback()
        return tables[0], tables[1]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tables]:
    path: Path = tmp_path_factory.mktemp("plain") / "audit.duckdb"
    store = opened(path)
    cursor = store.cursor()
    yield Tables(cursor)
    cursor.close()
    store.close()


@pytest.mark.requirement("T6")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate])
@given(some=st.lists(entries(), min_size=8, max_size=24))
def test_duckdb_reads_of_a_plain_entry_what_python_reads(tables: Tables, some: list[Entry]) -> None:
    """Design promise 8: the rows are the same, whoever makes them."""
    rows, wanted, wanted_events = Rows(0), list[tuple[Any, ...]](), list[tuple[Any, ...]]()
    for seq, entry in enumerate(some, 1):
        body = encode(entry)
        message, leaf = Message(seq, "trail.1.task.x.y", body, entry.id, "key-1", "c2ln"), leaf_hash(body)
        if not is_plain(body, entry):
            assert b"\\" in body
            continue
        rows.plain_entries.append(plain_row(message, entry, "task", leaf))
        wanted.append(tuple(entry_row(message, entry, "task", leaf)))
        event = plain_event(message, entry, "working")
        if event is not None:
            rows.plain_events.append(event)
            wanted_events.append(tuple(event_row(seq, 0, entry.task_ref, entry.events[0], event.payload, "working")))
    assert tables.read(rows) == (wanted, wanted_events)
