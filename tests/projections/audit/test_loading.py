"""Loading is appending in larger transactions: the same rows, whatever the cuts, and all of a batch or nothing."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import duckdb
import pytest
from tests.events.test_golden import RELEASES, bodies
from tests.projections.audit.histories import Trail, mixed
from tests.projections.audit.stores import contents, fed, opened
from tests.projections.audit.test_store import spoilt

from tasktrail.events.entry import decode
from tasktrail.events.subjects import access_subject, task_subject
from tasktrail.projections.audit import loading
from tasktrail.projections.audit.batch import Batch
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.errors import AuditStoreError
from tasktrail.projections.audit.store import AuditStore

STRANGE = (
    (b'"level":"verified"', b'"level":"claimed","level":"verified"'),
    (b'"sub":"', b'"sub":"\\u0000\\ud83d\\ude00'),
    (b'"sub":"', b'"sub":"\\ud800'),
    (b'"trigger":', b'"tr\\u0069gger":"timer","trigger":'),
    (b'"at_ms":', b'"at_ms":253402300799999,"other":'),
    (b'"at_ms":', b'"at_ms":253402300800000,"other":'),
    (b'"count":', b'"count":9223372036854775807,"other":'),
    (b'"size":', b'"size":18446744073709551616,"other":'),
    (b'"exp":', b'"exp":99999999999999999999999,"other":'),
    (b'"events":[{', b'"events":[{"type":"Newer","at_ms":7,"v":1.5e300},{'),
    (b'"events":[{', b'"events":[ {\n "other":"\xff", '),
    (b'"recorded_at":"20', b'"recorded_at":"19'),
)
"""What JSON allows, and what it does not, as changes of an entry's text."""


def strange(seed: int) -> Trail:
    """A spoilt trail, many entries of which were changed as text."""
    trail, draw = spoilt(160, seed=seed), random.Random(seed)  # noqa: S311 - the same changes each time
    for at, message in enumerate(trail.messages):
        if draw.random() < 0.3:
            wanted, given = draw.choice(STRANGE)
            trail.messages[at] = message._replace(body=message.body.replace(wanted, given, 1))
    return trail


def golden(release: str) -> Trail:
    trail = Trail()
    for seq, body in enumerate(bodies(release), 1):
        entry = decode(body)
        subject = (task_subject if entry.task_seq else access_subject)(entry.tenant, entry.task_ref)
        trail.messages.append(Message(seq, subject, body, entry.id, "key-1", "c2ln"))
    return trail


def load_on(store: AuditStore, messages: list[Message], batch: int = 25) -> None:
    with store.loading() as load:
        for start in range(0, len(messages), batch):
            load(messages[start : start + batch])


def loaded(path: Path, trail: Trail) -> AuditStore:
    store = opened(path)
    load_on(store, trail.messages)
    return store


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions of a few entries, so that there are many."""
    monkeypatch.setattr(loading, "SIZE", 37)
    monkeypatch.setattr(loading, "BATCH", 11)


@pytest.mark.requirement("T6")
@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("trail", [strange(1), strange(2), strange(3), *map(golden, RELEASES)])
def test_what_is_loaded_is_equal_row_for_row_to_what_is_appended(tmp_path: Path, trail: Trail) -> None:
    """Design promise 8, for golden histories and for entries that are strange or none."""
    fed(tmp_path / "one.duckdb", trail, batch=64).close()
    loaded(tmp_path / "two.duckdb", trail).close()
    assert contents(tmp_path / "one.duckdb") == contents(tmp_path / "two.duckdb")


@pytest.mark.usefixtures("_small")
def test_loading_goes_on_where_the_store_is_and_appending_where_the_load_ended(tmp_path: Path) -> None:
    trail = strange(4)
    fed(tmp_path / "one.duckdb", trail).close()
    store = opened(tmp_path / "two.duckdb")
    store.append(trail.messages[:40])
    with store.loading() as load:
        load(trail.messages[30:110])
    assert store.last_seq == trail.messages[109].stream_seq
    store.append(trail.messages[100:])
    store.close()
    assert contents(tmp_path / "one.duckdb") == contents(tmp_path / "two.duckdb")


@pytest.mark.usefixtures("_small")
def test_a_batch_that_cannot_be_written_ends_the_load_with_all_that_came_before(tmp_path: Path) -> None:
    trail, path = spoilt(200), tmp_path / "audit.duckdb"
    store = opened(path)
    store.append(trail.messages[:30])
    held = store.last_seq
    store.close()
    with duckdb.connect(path) as db:
        for trigger in ("denials_kept", "denials_unchanged"):
            db.execute(f"DROP TRIGGER {trigger} ON denials")
        db.execute("ALTER TABLE denials RENAME TO elsewhere")
    store = opened(path)
    with pytest.raises(AuditStoreError, match="nothing of this transaction was"):
        load_on(store, trail.messages[30:])
    assert held <= store.last_seq == store.position().last_seq < trail.messages[-1].stream_seq
    store.close()


def test_a_load_that_is_given_up_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    trail = spoilt(60)
    store = opened(tmp_path / "audit.duckdb")

    def give_up() -> None:
        with store.loading() as load:
            load(trail.messages)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give_up()
    assert store.position().last_seq == 0
    assert store.append(trail.messages).last_seq == trail.messages[-1].stream_seq
    store.close()


def test_an_unbound_store_loads_nothing(tmp_path: Path) -> None:
    store = AuditStore.open(tmp_path / "audit.duckdb")
    with pytest.raises(AuditStoreError, match="call bind first"), store.loading():
        pass
    store.close()


def test_what_is_rejected_counts_towards_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are held, too: a trail of forged messages must not be taken up in one piece."""
    handed = list[int]()
    insert = Batch.insert

    def counted(batch: Batch, cursor: duckdb.DuckDBPyConnection) -> None:
        handed.append(batch.size)
        insert(batch, cursor)

    monkeypatch.setattr(Batch, "insert", counted)
    monkeypatch.setattr(loading, "BATCH", 11)
    trail = mixed(60)
    trail.messages[:] = [message._replace(msg_id="forged") for message in trail.messages]
    loaded(tmp_path / "audit.duckdb", trail).close()
    assert max(handed) < 2 * 11 < len(trail.messages)


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "name"), [(loading, "read"), (Queue, "put"), (ThreadPoolExecutor, "submit"), (loading.Loading, "_settle")]
)
def test_a_load_that_is_interrupted_anywhere_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: object, name: str
) -> None:
    """Ctrl-C between any two steps: the thread ends, nothing stays of the last transaction, the store goes on."""
    trail = mixed(60)
    store = opened(tmp_path / "audit.duckdb")
    monkeypatch.setattr(loading, "BATCH", 11)

    def load_on_until() -> None:
        with store.loading() as load:
            if name != "submit":
                load(trail.messages[:25])
            monkeypatch.setattr(where, name, interrupted)
            load(trail.messages[25:])

    with pytest.raises(KeyboardInterrupt):
        load_on_until()
    monkeypatch.undo()
    assert not [one for one in threading.enumerate() if one.name.startswith("audit-load")]
    assert store.position().last_seq == 0
    assert store.append(trail.messages).last_seq == trail.messages[-1].stream_seq
    store.close()
