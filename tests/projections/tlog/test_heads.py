"""The committed heads: what is proved present or absent, and what is not believed (plan of issue 4, "tlog")."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.projections.tlog.grown import grow, grown, message, messages

from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog.errors import LogDamaged
from tasktrail.projections.tlog.heads import (
    BUCKETS,
    DEPTH,
    EMPTY,
    FILE,
    BadProof,
    Head,
    HeadProof,
    Heads,
    bucket_hash,
    bucket_of,
    key_of,
    map_root,
    record,
    verify_head,
)
from tasktrail.projections.tlog.log import Log
from tasktrail.projections.tlog.merkle import leaf

pytestmark = pytest.mark.requirement("T2")

SUBJECT = "trail.1.task.acme.3"


def root_of(messages_: list[Message]) -> bytes:
    """The root of the map by its definition, over the buckets that hold something."""
    last: dict[bytes, tuple[int, int, bytes]] = {}
    for one in messages_:
        key = sha256(one.subject.encode()).digest()
        last[key] = (last.get(key, (0, 0, b""))[0] + 1, one.stream_seq, leaf(one.body))
    level: dict[int, bytes] = {}
    for bucket in {int.from_bytes(key[:2]) for key in last}:
        members = sorted(key for key in last if int.from_bytes(key[:2]) == bucket)
        level[bucket] = sha256(
            b"\0" + b"".join(key + n.to_bytes(8) + s.to_bytes(8) + h for key in members for n, s, h in [last[key]])
        ).digest()
    empty = sha256(b"\0").digest()
    for _ in range(16):
        above = {number // 2 for number in level}
        level = {
            number: sha256(b"\1" + level.get(2 * number, empty) + level.get(2 * number + 1, empty)).digest()
            for number in above
        }
        empty = sha256(b"\1" + empty + empty).digest()
    return level.get(0, empty)


def sharing_bucket(subject: str) -> str:
    """Another subject of the same bucket."""
    bucket = bucket_of(key_of(subject))
    return next(name for name in (f"other.{n}" for n in range(2_000_000)) if bucket_of(key_of(name)) == bucket)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with Log.open(tmp_path) as opened:
        grow(opened, messages(40))
        yield opened


def test_a_head_is_proved_with_its_count_its_last_sequence_and_leaf(log: Log) -> None:
    head = verify_head(log.heads.root(), SUBJECT, log.heads.proof(SUBJECT))
    assert head == Head(SUBJECT, 6, 38, leaf(message(38).body))


def test_a_subject_that_never_was_is_proved_absent(log: Log) -> None:
    for subject in ("trail.1.task.acme.none", "", "trail.1.task.ACME.3"):
        assert verify_head(log.heads.root(), subject, log.heads.proof(subject)) is None


def test_a_subject_is_proved_absent_beside_others_of_its_bucket(log: Log) -> None:
    stranger = sharing_bucket(SUBJECT)
    proof = log.heads.proof(stranger)
    assert len(proof.records) == 1
    assert verify_head(log.heads.root(), stranger, proof) is None
    log.append([Message(41, stranger, b"here now")])
    proof = log.heads.proof(stranger)
    assert len(proof.records) == 2
    assert verify_head(log.heads.root(), stranger, proof) == Head(stranger, 1, 41, leaf(b"here now"))
    assert verify_head(log.heads.root(), SUBJECT, proof) == Head(SUBJECT, 6, 38, leaf(message(38).body))


def test_the_root_is_that_of_the_definition(log: Log) -> None:
    assert log.heads.root() == root_of(messages(40))
    with Log.open(log.folder / "empty") as empty:
        assert empty.heads.root() == root_of([]) == EMPTY[DEPTH]


def test_the_root_is_the_same_without_a_store() -> None:
    """Of records in any order, several of them in one bucket, as a verification has them."""
    messages_ = [Message(seq, f"trail.1.task.acme.{seq * 7 % 900}", b"%d" % seq) for seq in range(1, 1_500)]
    last: dict[str, tuple[int, int, bytes]] = {}
    for one in messages_:
        last[one.subject] = (last.get(one.subject, (0,))[0] + 1, one.stream_seq, leaf(one.body))
    records = [record(key_of(subject), *head) for subject, head in last.items()]
    assert len({bucket_of(one) for one in records}) < len(records)
    assert map_root(records) == map_root(records[::-1]) == root_of(messages_)
    assert map_root([]) == EMPTY[DEPTH]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=60), st.lists(st.integers(1, 20), max_size=6))
def test_the_root_depends_on_the_trail_alone(
    tmp_path_factory: pytest.TempPathFactory, subjects: list[int], batches: list[int]
) -> None:
    """However it was cut into commits, closed and opened again, or rebuilt."""
    trail = [Message(at, f"s.{subject}", b"%d" % at) for at, subject in enumerate(subjects, 1)]
    folder = tmp_path_factory.mktemp("log")
    rest = list(trail)
    for size in batches:
        with Log.open(folder) as opened:
            assert opened.heads.root() == root_of(trail[: opened.size])
            if rest:
                grow(opened, rest[:size])
            rest = rest[size:]
    with Log.open(folder) as opened:
        opened.append(trail)
        assert opened.heads.root() == root_of(trail)


def wrong_proofs(log: Log) -> dict[str, HeadProof]:
    stranger = sharing_bucket(SUBJECT)
    log.append([Message(41, stranger, b"here now")])
    good = log.heads.proof(SUBJECT)
    mine, other = sorted(good.records, key=lambda one: one[:32] != key_of(SUBJECT))
    older = record(key_of(SUBJECT), 5, 31, leaf(message(31).body))
    flipped = bytes([good.path[7][0] ^ 1]) + good.path[7][1:]
    return {
        "without its record": replace(good, records=[other]),
        "without the other record": replace(good, records=[mine]),
        "without any record": replace(good, records=[]),
        "an older head": replace(good, records=sorted([older, other])),
        "both heads": replace(good, records=sorted([older, mine, other])),
        "not sorted": replace(good, records=good.records[::-1]),
        "a record twice": replace(good, records=[good.records[0], *good.records]),
        "a cut record": replace(good, records=[good.records[0], good.records[1][:-1]]),
        "records in one": replace(good, records=[b"".join(good.records)]),
        "a changed sibling": replace(good, path=[*good.path[:7], flipped, *good.path[8:]]),
        "a short path": replace(good, path=good.path[:-1]),
        "a long path": replace(good, path=[*good.path, good.path[-1]]),
        "a short hash": replace(good, path=[*good.path[:-1], good.path[-1][:31]]),
        "of another bucket": log.heads.proof("trail.1.task.acme.4"),
        "of an empty bucket": HeadProof([], log.heads.proof("trail.1.task.acme.none").path),
        "made up": HeadProof([older], [EMPTY[height] for height in range(DEPTH)]),
    }


@pytest.mark.parametrize(
    "name",
    [
        "without its record",
        "without the other record",
        "without any record",
        "an older head",
        "both heads",
        "not sorted",
        "a record twice",
        "a cut record",
        "records in one",
        "a changed sibling",
        "a short path",
        "a long path",
        "a short hash",
        "of another bucket",
        "of an empty bucket",
        "made up",
    ],
)
def test_no_other_proof_of_a_head_is_believed(log: Log, name: str) -> None:
    wrong = wrong_proofs(log)[name]
    with pytest.raises(BadProof):
        verify_head(log.heads.root(), SUBJECT, wrong)


def test_a_proof_holds_for_its_own_root_only(log: Log) -> None:
    root, proof = log.heads.root(), log.heads.proof(SUBJECT)
    log.append(messages(50, 41))
    with pytest.raises(BadProof):
        verify_head(log.heads.root(), SUBJECT, proof)
    assert verify_head(root, SUBJECT, proof) is not None
    with pytest.raises(BadProof):
        verify_head(b"", SUBJECT, proof)


def test_a_proof_for_a_checkpoint_comes_from_the_log_opened_for_reading(log: Log) -> None:
    """Whatever the writer appends and commits meanwhile."""
    with Log.open(log.folder, read_only=True) as reader:
        root = reader.heads.root()
        grow(log, messages(50, 41))
        head = verify_head(root, SUBJECT, reader.heads.proof(SUBJECT))
        assert head == Head(SUBJECT, 6, 38, leaf(message(38).body))
        assert reader.heads.root() == root
        assert reader.heads.position == 40


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE records SET last_seq = 3, count = 1 WHERE last_seq = 38",
        "DELETE FROM records WHERE last_seq = 38",
        "UPDATE records SET count = 'many' WHERE last_seq = 38",
        "UPDATE records SET leaf = x'00' WHERE last_seq = 38",
        "UPDATE records SET count = -1 WHERE last_seq = 38",
    ],
)
def test_records_changed_in_the_file_are_found_before_they_are_given_out(tmp_path: Path, change: str) -> None:
    grown(tmp_path, 40)
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute(change)
    db.close()
    with Log.open(tmp_path, read_only=True) as log:
        with pytest.raises(LogDamaged, match=r"heads\.sqlite"):
            log.heads.proof(SUBJECT)
        assert [wrong.path for wrong in log.check()] == [FILE]
        assert verify_head(log.heads.root(), "trail.1.task.acme.4", log.heads.proof("trail.1.task.acme.4"))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE buckets SET hash = zeroblob(32)",
        "UPDATE buckets SET hash = zeroblob(33)",
        "UPDATE buckets SET bucket = 70000 WHERE bucket = (SELECT min(bucket) FROM buckets)",
        "DELETE FROM buckets",
        "UPDATE state SET position = 20",
        "UPDATE state SET position = 41",
        "UPDATE state SET position = 'x'",
        "UPDATE state SET note = x'00'",
        "DELETE FROM state",
        "DROP TABLE buckets",
        "DROP TABLE state",
    ],
)
def test_a_file_that_does_not_fit_the_checkpoint_is_named_at_once(tmp_path: Path, change: str) -> None:
    grown(tmp_path, 40)
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute(change)
    db.close()
    with pytest.raises(LogDamaged) as raised:
        Log.open(tmp_path, read_only=True)
    assert raised.value.path == FILE


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    grown(tmp_path, 40)
    (tmp_path / FILE).write_bytes(b"no database" * 1_000)
    for read_only in (True, False):
        with pytest.raises(LogDamaged) as raised:
            Log.open(tmp_path, read_only)
        assert raised.value.path == FILE


def test_many_subjects_between_two_commits_are_counted_once_each(tmp_path: Path) -> None:
    """More than are held in memory, and than are looked up bucket by bucket."""
    subjects = 60_000
    trail = [Message(at, f"s.{at % subjects}", b"") for at in range(1, subjects + 5_001)]
    heads = Heads(tmp_path)
    for one in trail:
        heads.move(one.subject, one.stream_seq, leaf(one.body))
        heads.spill()
    heads.commit(len(trail), b"")
    root = heads.root()
    assert root == root_of_all(trail)
    assert verify_head(root, "s.7", heads.proof("s.7")) == Head("s.7", 2, subjects + 7, leaf(b""))
    assert verify_head(root, "s.59999", heads.proof("s.59999")) == Head("s.59999", 1, 59_999, leaf(b""))
    heads.check()
    heads.close()


def root_of_all(trail: list[Message]) -> bytes:
    """Like `root_of`, for many subjects."""
    buckets: list[dict[bytes, bytes]] = [{} for _ in range(BUCKETS)]
    counts: dict[bytes, int] = {}
    empty_leaf = leaf(b"")
    for one in trail:
        key = key_of(one.subject)
        counts[key] = counts.get(key, 0) + 1
        buckets[bucket_of(key)][key] = record(key, counts[key], one.stream_seq, empty_leaf)
    level = [bucket_hash([held[key] for key in sorted(held)]) for held in buckets]
    while len(level) > 1:
        rest = iter(level)
        level = [sha256(b"\1" + left + right).digest() for left, right in zip(rest, rest, strict=True)]
    return level[0]
