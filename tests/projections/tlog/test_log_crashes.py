"""The log after crashes and damage: its last commit is there, or the file that is wrong is named."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.projections.tlog.grown import (
    KEY,
    ORIGIN,
    PUBLIC,
    checkpoint,
    grow,
    grown,
    hashes,
    messages,
    states,
)

from tasktrail.projections.tlog import merkle
from tasktrail.projections.tlog.heads import FILE, Heads
from tasktrail.projections.tlog.log import Log, LogDamaged
from tasktrail.projections.tlog.merkle import verify_consistency
from tasktrail.projections.tlog.note import Checkpoint, Note, sign

pytestmark = pytest.mark.requirement("T2")


def expected(folder: Path, last: int) -> tuple[int, bytes, bytes]:
    """What a log of these messages holds, made in one go."""
    with Log.open(folder) as log:
        log.append(messages(last))
        assert log.root() == merkle.root(hashes(last))
        return states(log)


# -- crashes ----------------------------------------------------------------------------------------------------------


class Cut(BaseException):
    """The power went."""


class Disk:
    """Counts the steps that make things durable, cuts the power at one of them, and loses what was not."""

    def __init__(self, folder: Path, cut_at: int) -> None:
        self.folder, self.steps, self._cut_at = folder, 0, cut_at
        self._names = {
            path.stat().st_ino: {inner.name for inner in path.iterdir()}
            for path in [folder, *folder.rglob("*")]
            if path.is_dir()
        }
        self._files = {path.stat().st_ino for path in folder.rglob("*") if path.is_file()}

    def step(self) -> None:
        self.steps += 1
        if self.steps == self._cut_at:
            raise Cut

    def install(self, patch: pytest.MonkeyPatch) -> None:
        def counted(name: str) -> Callable[..., object]:
            real = getattr(os, name)

            def call(*args: object, **options: object) -> object:
                self.step()
                return real(*args, **options)

            return call

        fsync, commit = os.fsync, Heads.commit

        def synced(descriptor: int) -> None:
            self.step()
            fsync(descriptor)
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):
                self._names[found.st_ino] = set(os.listdir(descriptor))
            else:
                self._files.add(found.st_ino)

        def committed(heads: Heads, position: int, note: bytes) -> None:
            self.step()
            commit(heads, position, note)
            self.step()

        for name in ("replace", "link", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, counted(name))
        patch.setattr(os, "fsync", synced)
        patch.setattr(Heads, "commit", committed)

    def lose(self) -> None:
        """Take away names that no synced directory holds, and half of each file that was not synced."""
        for directory, names, files in os.walk(self.folder):
            held = self._names.get(Path(directory).stat().st_ino, set())
            for name in [*names, *files]:
                path = Path(directory, name)
                if name.startswith(FILE) or name == "lock":
                    continue  # SQLite's own durability is not in question
                if name not in held:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                elif path.is_file() and path.stat().st_ino not in self._files:
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            names[:] = [name for name in names if Path(directory, name).is_dir()]


@pytest.mark.parametrize("lose", [False, True], ids=["killed", "power lost"])
@pytest.mark.parametrize(("before", "after"), [(0, 5), (250, 600), (600, 600)])
def test_a_cut_at_any_step_of_a_commit_leaves_the_last_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int, *, lose: bool
) -> None:
    """Files and directories keep only what was synced: the model of a power loss; a kill keeps all."""
    base, known = tmp_path / "base", {size: expected(tmp_path / f"all{size}", size) for size in (before, after, 700)}
    grown(base, *([before] if before else []))
    committed_after, cut_at = 0, 0
    while True:
        cut_at += 1
        folder = tmp_path / f"cut{cut_at}"
        shutil.copytree(base, folder)
        log = Log.open(folder)
        disk = Disk(folder, cut_at)
        with monkeypatch.context() as patch:
            disk.install(patch)
            try:
                log.append(messages(after, before + 1))
                log.commit(checkpoint(log))
            except Cut:
                pass
        log.close()
        if disk.steps < cut_at:
            break
        if lose:
            disk.lose()
        with Log.open(folder) as opened:
            assert states(opened) in (known[before], known[after])
            committed_after += opened.size == after
            assert opened.committed == opened.size == opened.heads.position
            assert opened.check() == []
            grow(opened, messages(700, opened.size + 1))
            assert states(opened) == known[700]
        with Log.open(folder, read_only=True) as opened:
            assert states(opened) == known[700]
            assert opened.check() == []
        shutil.rmtree(folder)
    assert cut_at > 3
    assert committed_after >= 3


WRITER = """
import sys
from pathlib import Path
from tests.projections.tlog.grown import grow, messages
from tasktrail.projections.tlog.log import Log

with Log.open(Path(sys.argv[1])) as log:
    print(log.size, flush=True)
    while True:
        grow(log, messages(log.size + int(sys.argv[2]), log.size + 1))
        print(log.size, flush=True)
"""


def writer(folder: Path, step: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(step)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )


def test_a_killed_writer_loses_nothing_that_it_committed(tmp_path: Path) -> None:
    """A real process, killed with SIGKILL in the midst of its work, again and again on the same log."""
    folder, size = tmp_path / "log", 0
    for lines in (1, 2, 4, 7):
        with writer(folder, 97) as process:
            assert process.stdout is not None
            for _ in range(lines):
                size = int(process.stdout.readline())
            process.kill()
            process.wait(60)
        with Log.open(folder, read_only=True) as log:
            assert log.size >= size
            assert states(log) == expected(tmp_path / f"all{lines}", log.size)
            assert log.check() == []


def test_readers_see_one_commit_each_while_another_process_writes(tmp_path: Path) -> None:
    with writer(tmp_path, 37) as process:
        assert process.stdout is not None
        try:
            sizes, root = [0], merkle.EMPTY_ROOT
            for _ in range(15):
                process.stdout.readline()
                with Log.open(tmp_path, read_only=True) as log:
                    note = log.checkpoint()
                    if note is None:
                        continue
                    said = Checkpoint.parse(note.text)
                    assert (said.size, said.root, said.heads) == states(log)
                    assert verify_consistency(
                        sizes[-1], log.size, root, log.root(), log.consistency(sizes[-1], log.size)
                    )
                    assert log.check() == []
                    sizes.append(log.size)
                    root = log.root()
            assert sizes == sorted(sizes)
            assert sizes[-1] > 37
        finally:
            process.kill()
            process.wait(60)


def test_a_published_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    """A file in its place that is not of the commit is named, and left as it is."""
    grown(tmp_path, 10)
    place = tmp_path / "checkpoints" / f"{20:020}"
    with Log.open(tmp_path) as log:
        place.write_bytes(b"something")
        grow(log, messages(20, 11))
        assert place.read_bytes() == b"something"
    with pytest.raises(LogDamaged) as raised:
        Log.open(tmp_path)
    assert raised.value.path == f"checkpoints/{20:020}"


# -- damage -----------------------------------------------------------------------------------------------------------


def changed(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def removed(file: Path) -> None:
    file.unlink()


DAMAGE: dict[str, Callable[[Path], None]] = {"changed": changed, "cut": cut, "removed": removed}
AT_OPENING = ["tile/0/002.p/188", "tile/1/000.p/2", f"checkpoints/{700:020}", "checkpoint"]


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("name", AT_OPENING)
def test_a_damaged_file_at_the_edge_is_named_when_the_log_is_opened(tmp_path: Path, name: str, what: str) -> None:
    grown(tmp_path, 300, 700)
    DAMAGE[what](tmp_path / name)
    if "checkpoint" in name and what == "removed":  # as after a crash: the heads still hold it, and it is put back
        with Log.open(tmp_path) as log:
            assert log.check() == []
        assert (tmp_path / name).exists()
        return
    for read_only in (True, False):
        with pytest.raises(LogDamaged) as raised:
            Log.open(tmp_path, read_only)
        assert raised.value.path == name


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_tile_within_is_named_when_it_is_used(tmp_path: Path, what: str) -> None:
    grown(tmp_path, 300, 700)
    DAMAGE[what](tmp_path / "tile/0/001")
    with Log.open(tmp_path) as log:
        assert [wrong.path for wrong in log.check()] == ["tile/0/001"]
        assert log.leaf(3) == hashes(4)[3]
        for refused in (lambda: log.leaf(300), lambda: log.inclusion(300, 700), lambda: log.root(300)):
            with pytest.raises(LogDamaged, match="tile/0/001"):
                refused()


def test_below_a_damaged_tile_no_other_is_accused(tmp_path: Path) -> None:
    """A log of three levels of tiles, whose one full tile of the second is wrong."""
    grown(tmp_path, 66_000)
    for damage in DAMAGE.values():
        damage(tmp_path / "tile/1/000")
        with Log.open(tmp_path, read_only=True) as log:
            assert [wrong.path for wrong in log.check()] == ["tile/1/000"]


def test_a_wrong_root_in_every_copy_of_the_checkpoint_is_named(tmp_path: Path) -> None:
    """Somebody who re-signs a checkpoint and puts it everywhere still cannot make the tiles fit it."""
    grown(tmp_path, 512)
    with Log.open(tmp_path) as log:
        text = Checkpoint(ORIGIN, 512, merkle.leaf(b"other"), log.heads.root()).text()
    note = Note(text, (sign(text, ORIGIN, PUBLIC, KEY.sign),)).encode()
    (tmp_path / "checkpoint").write_bytes(note)
    (tmp_path / "checkpoints" / f"{512:020}").write_bytes(note)
    heads = Heads(tmp_path)
    heads.commit(512, note)
    heads.close()
    with pytest.raises(LogDamaged, match="though they fit each other") as raised:
        Log.open(tmp_path)
    assert raised.value.path == "checkpoint"


def test_a_wrong_checkpoint_of_earlier_is_found_by_the_check(tmp_path: Path) -> None:
    grown(tmp_path, 300, 500, 700)
    text = Checkpoint(ORIGIN, 300, merkle.leaf(b"other")).text()
    note = Note(text, (sign(text, ORIGIN, PUBLIC, KEY.sign),)).encode()
    (tmp_path / "checkpoints" / f"{300:020}").write_bytes(note)
    (tmp_path / "checkpoints" / f"{500:020}").write_bytes(note)
    with Log.open(tmp_path, read_only=True) as log:
        assert [wrong.path for wrong in log.check()] == [f"checkpoints/{300:020}", f"checkpoints/{500:020}"]


def test_heads_that_are_missing_or_older_than_the_checkpoints_are_named(tmp_path: Path) -> None:
    grown(tmp_path, 300)
    old = (tmp_path / FILE).read_bytes()
    grown(tmp_path, 700)
    (tmp_path / FILE).write_bytes(old)
    for _ in range(2):
        for read_only in (True, False):
            with pytest.raises(LogDamaged) as raised:
                Log.open(tmp_path, read_only)
            assert raised.value.path == FILE
        (tmp_path / FILE).unlink(missing_ok=True)
    assert not (tmp_path / FILE).exists()
