"""The log in its directory: what it holds, what it proves, and what it commits."""

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.projections.tlog.grown import (
    KEY,
    ORIGIN,
    PUBLIC,
    checkpoint,
    grow,
    grown,
    hashes,
    message,
    messages,
    states,
)

from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog import merkle
from tasktrail.projections.tlog.heads import FILE, verify_head
from tasktrail.projections.tlog.log import Log, LogBusy, LogError, LogFailed, NoLog, NotInLog
from tasktrail.projections.tlog.merkle import leaf, verify_consistency, verify_inclusion
from tasktrail.projections.tlog.note import COSIGNATURE, Checkpoint, Note, Verifier, cosign, sign, vkey

pytestmark = pytest.mark.requirement("T2")


# -- what it holds ----------------------------------------------------------------------------------------------------


def test_the_leaf_of_a_message_is_at_its_sequence_less_one(tmp_path: Path) -> None:
    with Log.open(tmp_path) as log:
        log.append(messages(600, holes=(1, 2, 300, 599)))
        known = hashes(600, (1, 2, 300, 599))
        assert log.size == 600
        assert log.leaves(0, 599) == known
        assert log.leaves(250, 260) == known[250:261]
        assert log.leaves(512, 512) == known[512:513]
        assert log.leaves(600, 599) == log.leaves(5, 4) == []
        assert [log.leaf(index) for index in (0, 299, 511, 599)] == [known[index] for index in (0, 299, 511, 599)]
        assert log.root() == merkle.root(known)


def test_what_is_known_already_is_ignored(tmp_path: Path) -> None:
    with Log.open(tmp_path) as log:
        log.append(messages(10))
        before = states(log)
        log.append(messages(10, 3))
        log.append([])
        assert states(log) == before
        log.append([message(11), message(11), message(4), message(13), message(12)])
        assert log.leaves(0, 12) == hashes(13, (12,))
        head = verify_head(log.heads.root(), message(11).subject, log.heads.proof(message(11).subject))
        assert head is not None
        assert (head.count, head.last_seq) == (2, 11)


def test_a_long_hole_is_filled_in_bounded_pieces(tmp_path: Path) -> None:
    with Log.open(tmp_path) as log:
        log.append([message(50_001)])
        assert log.size == 50_001
        assert log.leaf(40_000) == leaf(b"tasktrail/gap/v1\n40001\n")
        assert log.leaf(50_000) == leaf(message(50_001).body)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of three levels of tiles, committed at several sizes."""
    folder = tmp_path_factory.mktemp("long")
    grown(folder, 1, 255, 256, 257, 65_535, 66_000)
    return folder


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_proofs_between_any_sizes_verify(long: Path, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 66_000) | st.sampled_from([1, 2, 255, 256, 257, 512, 65_535, 65_536, 65_537]))
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    with Log.open(long, read_only=True) as log:
        root = log.root(size)
        assert verify_inclusion(leaf(message(index + 1).body), index, size, log.inclusion(index, size), root)
        assert verify_consistency(old, size, log.root(old), root, log.consistency(old, size))


def test_roots_of_earlier_sizes_are_those_of_their_checkpoints(long: Path) -> None:
    with Log.open(long, read_only=True) as log:
        assert log.checkpoints() == [1, 255, 256, 257, 65_535, 66_000]
        for size in log.checkpoints():
            note = log.checkpoint(size)
            assert note is not None
            assert note.signed_by(Verifier.of(vkey(ORIGIN, PUBLIC)))
            assert Checkpoint.parse(note.text).root == log.root(size) == merkle.root(hashes(size))
        assert log.root(0) == merkle.EMPTY_ROOT
        assert log.checkpoint() == log.checkpoint(66_000)
        assert log.checkpoint(2) is log.checkpoint(-1) is None
        told: list[int] = []
        assert log.check(told.append) == []
        assert sum(told) == 256 * (66_000 // 256 + 1)


def test_what_the_log_has_not_is_refused(long: Path) -> None:
    with Log.open(long, read_only=True) as log:
        for refused in (
            lambda: log.root(66_001),
            lambda: log.root(-1),
            lambda: log.leaf(66_000),
            lambda: log.leaf(-1),
            lambda: log.leaves(0, 66_000),
            lambda: log.leaves(-1, 5),
            lambda: log.leaves(7, 5),
            lambda: log.nodes(17, 0),
            lambda: log.nodes(-1, 0),
            lambda: log.inclusion(5, 5),
            lambda: log.inclusion(-1, 5),
            lambda: log.inclusion(0, 66_001),
            lambda: log.consistency(6, 5),
            lambda: log.consistency(-1, 5),
            lambda: log.consistency(5, 66_001),
        ):
            with pytest.raises(NotInLog):
                refused()


# -- committing -------------------------------------------------------------------------------------------------------


def test_only_a_checkpoint_of_exactly_this_log_is_committed(tmp_path: Path) -> None:
    with Log.open(tmp_path) as log:
        log.append(messages(300))
        good = Checkpoint(ORIGIN, log.size, log.root(), log.heads.root())
        for wrong in (
            Checkpoint(ORIGIN, 299, good.root, good.heads).text(),
            Checkpoint(ORIGIN, 300, log.root(299), good.heads).text(),
            Checkpoint(ORIGIN, 300, good.root, good.root).text(),
            Checkpoint(ORIGIN, 300, good.root).text(),
            "no checkpoint\n",
        ):
            with pytest.raises(LogError, match="checkpoint"):
                log.commit(Note(wrong, (sign(wrong, ORIGIN, PUBLIC, KEY.sign),)))
        assert log.committed == 0
        assert log.checkpoint() is None
        log.commit(checkpoint(log))
        assert log.committed == 300
        moved = Checkpoint("example.com/other", 300, good.root, good.heads).text()
        with pytest.raises(LogError, match=r"example\.com/other"):
            log.commit(Note(moved, (sign(moved, ORIGIN, PUBLIC, KEY.sign),)))


def test_the_empty_log_can_be_committed(tmp_path: Path) -> None:
    with Log.open(tmp_path) as log:
        log.commit(checkpoint(log))
        assert log.checkpoints() == [0]
    with Log.open(tmp_path) as log:
        note = log.checkpoint()
        assert note is not None
        assert Checkpoint.parse(note.text).root == merkle.EMPTY_ROOT
        grow(log, messages(1))
        assert log.checkpoints() == [0, 1]


def test_cosignatures_join_the_newest_checkpoint_and_never_change_what_was_committed(tmp_path: Path) -> None:
    """Also after more was appended; they are there when the log is opened again (plan of issue 4, "notary")."""
    with Log.open(tmp_path) as log:
        first = grow(log, messages(5))
        log.append(messages(9, 6))
        seal = cosign(first.text, "w.example", PUBLIC, KEY.sign, 1_700_000_000)
        log.commit(Note(first.text, (*first.signatures, seal)))
        assert (log.committed, log.size) == (5, 9)
    for read_only in (True, False, True):
        with Log.open(tmp_path, read_only) as log:
            assert log.size == 5
            note = log.checkpoint()
            assert note is not None
            assert note.cosigned_at(Verifier.of(vkey("w.example", PUBLIC, COSIGNATURE))) == 1_700_000_000
            assert log.checkpoint(5) == first
            assert (tmp_path / "checkpoint").read_bytes() == note.encode()


def test_partial_tiles_go_once_the_full_tile_is_committed(tmp_path: Path) -> None:
    """C2SP tlog-tiles, "Partial Tiles": those of every checkpoint are kept until then."""
    with Log.open(tmp_path) as log:
        for size in (100, 200, 256, 300):
            grow(log, messages(size, log.size + 1))
            partial = sorted(path.name for path in (tmp_path / "tile/0/000.p").glob("*"))
            assert partial == {100: ["100"], 200: ["100", "200"]}.get(size, [])
        assert (tmp_path / "tile/0/001.p/44").exists()
        assert sorted(path.name for path in (tmp_path / "tile/1/000.p").iterdir()) == ["1"]


def test_a_log_open_for_reading_is_not_written(long: Path) -> None:
    with Log.open(long, read_only=True) as log:
        with pytest.raises(LogError, match="reading only"):
            log.append([message(66_001)])
        with pytest.raises(LogError, match="reading only"):
            log.commit(checkpoint(log))


def test_one_process_writes(tmp_path: Path) -> None:
    with Log.open(tmp_path), pytest.raises(LogBusy, match="Another process"):
        Log.open(tmp_path)
    Log.open(tmp_path).close()


def test_a_copy_that_cannot_be_written_is_read_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evidence on a medium for reading only, where SQLite could not put the files it keeps beside a database."""
    grown(tmp_path, 300)
    before = sorted(tmp_path.rglob("*"))

    def unwritable(path: Path, mode: int) -> bool:
        return path != tmp_path or mode != os.W_OK

    monkeypatch.setattr(os, "access", unwritable)
    with Log.open(tmp_path, read_only=True) as log:
        assert states(log) == (300, merkle.root(hashes(300)), log.heads.root())
        assert log.check() == []
    assert sorted(tmp_path.rglob("*")) == before


def test_there_is_nothing_to_read_before_something_was_written(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(NoLog):
            Log.open(folder, read_only=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / FILE).touch()  # as it is for a moment when a log is made
    with pytest.raises(NoLog):
        Log.open(tmp_path, read_only=True)


def test_after_a_failed_write_the_log_has_to_be_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), descriptor)

    with Log.open(tmp_path) as log:
        grow(log, messages(10))
        log.append(messages(20, 11))
        note = checkpoint(log)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                log.commit(note)
        with pytest.raises(LogFailed, match="open the log again"):
            log.append(messages(30, 21))
        with pytest.raises(LogFailed, match="open the log again"):
            log.commit(note)
    with Log.open(tmp_path) as log:
        assert log.size == 10
        grow(log, messages(20, 11))


def test_any_thread_may_ask_while_the_log_grows(tmp_path: Path) -> None:
    wrong: list[BaseException] = []
    done = threading.Event()
    with Log.open(tmp_path) as log:
        grow(log, messages(300))
        root = log.root()

        def ask() -> None:
            try:
                while not done.is_set():
                    assert verify_inclusion(leaf(message(7).body), 6, 300, log.inclusion(6, 300), root)
                    log.heads.proof("trail.1.task.acme.3")
            except BaseException as error:  # noqa: BLE001 - shown by the test
                wrong.append(error)

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        for size in range(350, 1_600, 50):
            grow(log, messages(size, log.size + 1))
        done.set()
        for thread in asking:
            thread.join(60)
    assert wrong == []


def test_a_log_without_messages_of_its_own_type_takes_any_message(tmp_path: Path) -> None:
    """The log needs a sequence, a subject and a body; headers and signatures are not part of a leaf."""
    with Log.open(tmp_path) as log:
        log.append([Message(1, "s", b"body", msg_id="x", key_id="k", signature="s")])
        assert log.leaf(0) == leaf(b"body")
