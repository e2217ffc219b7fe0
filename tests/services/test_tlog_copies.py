"""Copies of checkpoints, and whether a tree goes on from them. Source: issue 4, docs/checkpoints.md."""

import shutil
from pathlib import Path

import pytest
from nats.js import api

from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog.log import Log
from tasktrail.projections.tlog.note import Checkpoint, Note, Verifier, sign, vkey
from tasktrail.services.connection import Connection
from tasktrail.services.keyring import Keyring
from tasktrail.services.tlog_agreement import Copies, NotaryState, Stopped
from tasktrail.services.tlog_copies import copy_of
from tasktrail.testing.nats import NatsServer

pytestmark = pytest.mark.requirement("T2")


ORIGIN = "tasktrail/log"


@pytest.fixture(params=["directory", "stream"])
async def place(request: pytest.FixtureRequest, tmp_path: Path, fresh_nats: NatsServer) -> str:
    """A place of each kind, as its owner makes it."""
    if request.param == "directory":
        (tmp_path / "other").mkdir()
        return str(tmp_path / "other")
    nc = await Connection.from_text(fresh_nats.url).connect("owner")
    stream = api.StreamConfig(name="KEPT", subjects=["checkpoints.>"], deny_delete=True, deny_purge=True)
    await nc.jetstream().add_stream(stream)
    await nc.close()
    return f"{fresh_nats.url}/KEPT"


class Tree:
    """A log of `size` entries, those from `other_from` on of another history, and its copies."""

    def __init__(self, folder: Path, *places: str, size: int, other_from: int = 10**9) -> None:
        self.folder = folder
        self.keyring = Keyring.create(folder)
        self.log = Log.open(folder / "tlog")
        bodies = [b"%d%s" % (n, b"" if n < other_from else b"!") for n in range(1, size + 1)]
        self.log.append([Message(n, "trail.1.x", body) for n, body in enumerate(bodies, start=1)])
        self.look_anew(*places)
        self.ends_at = size

    def look_anew(self, *places: str) -> None:
        """As after a restart."""
        self.places = [copy_of(place, ORIGIN) for place in places]
        verifiers = [Verifier.of(vkey(ORIGIN, one)) for one in self.keyring.checkpoint_publics]
        self.copies = Copies(self.places, ORIGIN, verifiers, self.folder / "tlog" / "copies.json")

    def note(self) -> Note:
        """A checkpoint of it, committed."""
        text = Checkpoint(ORIGIN, self.log.size, self.log.root(), self.log.heads.root()).text()
        public = self.keyring.checkpoint_publics[0]
        note = Note(text, (sign(text, ORIGIN, public, self.keyring.sign_checkpoint),))
        self.log.commit(note)
        return note

    async def check(self) -> int:
        """What the copies say to this tree."""
        return await self.copies.check(self.log, self._last)

    async def _last(self) -> int:
        return self.ends_at

    async def close(self) -> None:
        await self.copies.close()
        self.log.close()


async def stopped(tree: Tree) -> Stopped:
    """Why the copies do not agree with it."""
    with pytest.raises(Stopped) as caught:
        await tree.check()
    await tree.close()
    return caught.value


def kept(folder: Path, tmp_path: Path) -> Path:
    """Another data directory with the same keys."""
    folder.mkdir()
    shutil.copytree(tmp_path / "first" / "keys", folder / "keys")
    return folder


async def test_a_tree_goes_on_from_what_every_copy_holds(place: str, tmp_path: Path) -> None:
    """An empty copy agrees with any tree, one that holds a checkpoint with those that begin with its tree."""
    first = Tree(tmp_path / "first", place, size=5)
    assert await first.check() == 0
    await first.copies.put(first.note())
    assert await first.check() == 5
    first.log.append([Message(n, "trail.1.x", b"%d" % n) for n in (6, 7)])
    assert await first.check() == 5
    await first.copies.put(first.note())
    assert [(one.agrees, one.size) for one in first.copies.shown] == [(True, 7)]
    await first.close()
    again = Tree(kept(tmp_path / "again", tmp_path), place, size=9)
    assert await again.check() == 7
    await again.close()


async def test_a_trail_that_is_shorter_than_a_copy_says_is_truncated(place: str, tmp_path: Path) -> None:
    """An older backup of everything here: only the copy remembers. A tree that only lags behind has to catch up."""
    first = Tree(tmp_path / "first", place, size=9)
    await first.check()
    await first.copies.put(first.note())
    await first.close()
    older = await stopped(Tree(kept(tmp_path / "older", tmp_path), place, size=5))
    assert older.state is NotaryState.TRUNCATED
    assert "the trail ends at 5, but" in older.message
    late = Tree(kept(tmp_path / "late", tmp_path), place, size=5)
    late.ends_at = 9
    assert (await stopped(late)).state is NotaryState.STARTING


async def test_another_history_is_forked(place: str, tmp_path: Path) -> None:
    """Rewritten from its third entry on, and grown beyond the copy."""
    first = Tree(tmp_path / "first", place, size=9)
    await first.check()
    await first.copies.put(first.note())
    await first.close()
    rewritten = Tree(kept(tmp_path / "rewritten", tmp_path), place, size=20, other_from=3)
    told = await stopped(rewritten)
    assert told.state is NotaryState.FORKED
    assert "the first 9 entries are not those of the checkpoint" in told.message
    assert [one.agrees for one in rewritten.copies.shown] == [False]


async def test_a_checkpoint_of_another_key_is_no_agreement(place: str, tmp_path: Path) -> None:
    """A stranger's note under our name, even of our own tree."""
    stranger = Tree(tmp_path / "first", place, size=5)
    await stranger.check()
    await stranger.copies.put(stranger.note())
    await stranger.close()
    told = await stopped(Tree(tmp_path / "ours", place, size=5))
    assert told.state is NotaryState.FORKED
    assert "not signed by a key of ours" in told.message


async def test_what_a_copy_holds_is_never_overwritten(place: str, tmp_path: Path) -> None:
    """Two writers with different trees of one size: the second is told, and the first's checkpoint stays."""
    first = Tree(tmp_path / "first", place, size=5)
    second = Tree(kept(tmp_path / "second", tmp_path), place, size=5, other_from=2)
    await first.check()
    await second.check()
    note = first.note()
    await first.copies.put(note)
    with pytest.raises(Stopped):
        await second.copies.put(second.note())
    held = await first.places[0].newest()
    assert held is not None
    assert held.note == note.encode()
    assert (await stopped(second)).state is NotaryState.FORKED
    await first.close()


async def test_a_copy_that_is_empty_though_it_held_something_makes_checkpoints_wait(tmp_path: Path) -> None:
    """A mount point without its mount, or a copy that somebody emptied."""
    other = tmp_path / "other"
    other.mkdir()
    tree = Tree(tmp_path / "first", str(other), size=5)
    await tree.check()
    await tree.copies.put(tree.note())
    shutil.rmtree(other)
    with pytest.raises(Stopped, match="is not there; mount or make it") as caught:
        await tree.check()
    assert caught.value.state is NotaryState.WAITING
    other.mkdir()
    told = await stopped(tree)
    assert told.state is NotaryState.WAITING
    assert "held checkpoints up to size 5 or beyond, and holds none now" in told.message


@pytest.mark.parametrize("left", [0, 1, 100])
async def test_a_file_that_a_crash_cut_short_is_completed(tmp_path: Path, left: int) -> None:
    """A crash between the making of the file and its writing; our own log still has the checkpoint."""
    other = tmp_path / "other"
    other.mkdir()
    tree = Tree(tmp_path / "first", str(other), size=5)
    await tree.check()
    note = tree.note()
    await tree.copies.put(note)
    file = other / "tasktrail-log" / f"{5:020}"
    file.write_bytes(note.encode()[:left])
    tree.look_anew(str(other))
    assert await tree.check() == 5
    assert file.read_bytes() == note.encode()
    file.write_bytes(b"something else")
    tree.look_anew(str(other))
    assert "is damaged" in (await stopped(tree)).message


async def test_a_stream_that_is_not_there_is_said_so(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """tasktrail never makes a stream by itself."""
    told = await stopped(Tree(tmp_path / "first", f"{fresh_nats.url}/NONE", size=5))
    assert told.state is NotaryState.WAITING
    assert "there is no stream NONE; its owner has to make it" in told.message
    assert fresh_nats.broker.password not in told.message
