"""The notary on a real broker, apart from the service. Source: issue 4 (gaps, checkpoints), docs/checkpoints.md."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client
from nats.js import JetStreamContext, api

from tasktrail.events.facts import Event, GapFound
from tasktrail.events.subjects import TRAIL
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog.log import Log
from tasktrail.projections.tlog.merkle import gap_record, leaf, root, verify_consistency
from tasktrail.projections.tlog.note import COSIGNATURE, Checkpoint, Note, Verifier, cosign, vkey
from tasktrail.services import notary as module
from tasktrail.services.configuration import Tlog
from tasktrail.services.connection import Connection
from tasktrail.services.keyring import Keyring
from tasktrail.services.notary import FOLDER, Notary
from tasktrail.services.tlog_agreement import Copies, NotaryState, Stopped
from tasktrail.services.trail_reading import TrailReader
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.requirement("T2")


class Stage:
    """A stream that may have holes, a data directory, and what the notary noted on the trail."""

    def __init__(self, nc: Client, data: Path) -> None:
        self.nc, self.js, self.data = nc, JetStreamContext(nc), data
        self.keyring = Keyring.create(data)
        self.noted: list[Event] = []
        self.stored = 0

    async def publish(self, count: int) -> None:
        for n in range(count):
            await self.js.publish(f"trail.1.task.acme.t{n % 3}", b"body %d" % n)

    async def messages(self, first: int = 1) -> list[Message]:
        reader = await TrailReader.of(self.nc)
        return [one async for batch in reader.messages(first) for one in batch]

    async def feed(self, notary: Notary, first: int = 1) -> None:
        """As the auditor does: everything from a sequence on, in one batch."""
        messages = await self.messages(first)
        self.stored = messages[-1].stream_seq
        notary.take(messages)

    async def note(self, events: tuple[Event, ...]) -> None:
        self.noted += events

    @contextlib.asynccontextmanager
    async def notary(self, tlog: Tlog | None = None) -> AsyncGenerator[Notary]:
        """One run of it."""
        notary = Notary(self.data, self.keyring, self.nc, tlog or Tlog(), note=self.note, position=lambda: self.stored)
        await notary.start()
        try:
            yield notary
        finally:
            await notary.stop()

    def said(self, note: Note) -> Checkpoint:
        """What a note says, once its signature is verified."""
        assert note.signed_by(Verifier.of((self.data / FOLDER / "vkey").read_text().strip()))
        return Checkpoint.parse(note.text)


@pytest.fixture
async def stage(fresh_nats: NatsServer, tmp_path: Path) -> AsyncGenerator[Stage]:
    """The stream is as the trail's but for the deletes it allows, by which it gets holes."""
    nc = await Connection.from_text(fresh_nats.url).connect("test")
    stage = Stage(nc, tmp_path / "data")
    await stage.js.add_stream(api.StreamConfig(name=TRAIL, subjects=["trail.1.>"]))
    yield stage
    await nc.close()


def leaves_of(messages: Sequence[Message], size: int) -> list[bytes]:
    """The leaves as the plan says them: body, or gap record, by stream sequence."""
    bodies = {one.stream_seq: one.body for one in messages}
    return [leaf(bodies.get(seq, gap_record(seq))) for seq in range(1, size + 1)]


async def test_the_tree_is_that_of_the_trail_however_it_came(stage: Stage) -> None:
    """Caught up with, fed, fed again, fed with messages missing on the way: RFC 6962 over the bodies in order."""
    await stage.publish(7)
    async with stage.notary() as notary:
        stage.stored = 7
        first = stage.said(await notary.checkpoint_now())
        await stage.publish(5)
        await stage.feed(notary, first=6)
        await stage.publish(300)
        await stage.feed(notary, first=200)
        second = stage.said(await notary.checkpoint_now())
        assert notary.state is NotaryState.SIGNING
        assert notary.shown().checkpoint_size == 312
    leaves = leaves_of(await stage.messages(), 312)
    assert (first.size, first.root) == (7, root(leaves[:7]))
    assert (second.size, second.root) == (312, root(leaves))
    assert stage.noted == []


async def test_checkpoints_come_by_themselves_and_the_next_run_goes_on(stage: Stage) -> None:
    """At most every interval while there is work; what was held when it stopped is signed; consistent over runs."""
    async with stage.notary() as notary:
        for first in (1, 21):
            await stage.publish(20)
            await stage.feed(notary, first)
            await until(lambda: notary.shown().checkpoint_size == stage.stored, what="a checkpoint of all")
    await stage.publish(20)
    async with stage.notary() as notary:
        await until(lambda: notary.ready, what="readiness")
        await stage.publish(20)
        await stage.feed(notary, 41)
        await until(lambda: notary.size == 80, what="80 leaves")
    log = Log.open(stage.data / FOLDER, read_only=True)
    sizes = log.checkpoints()
    assert {20, 40, 80} <= set(sizes)
    for old, new in pairwise(sizes):
        a, b = (stage.said(note) for note in map(log.checkpoint, (old, new)) if note)
        assert verify_consistency(old, new, a.root, b.root, log.consistency(old, new))
    log.close()


async def test_a_hole_in_the_stream_is_a_leaf_of_its_own_and_told_once(stage: Stage) -> None:
    """Issue 4: gaps in the stream become explicit entries. In what was there at the start, and while running."""
    await stage.publish(9)
    for seq in (1, 4, 5):
        await stage.js.delete_msg(TRAIL, seq)
    async with stage.notary() as notary:
        stage.stored = 9
        await notary.checkpoint_now()
        await stage.publish(6)
        await stage.js.delete_msg(TRAIL, 12)
        await stage.feed(notary, 10)
        newest = stage.said(await notary.checkpoint_now())
    assert newest.root == root(leaves_of(await stage.messages(), 15))
    told = [one.what for one in stage.noted if isinstance(one, GapFound)]
    assert told == [f"messages {a} to {b} of the trail" for a, b in ((1, 1), (4, 5), (12, 12))]
    async with stage.notary() as notary:
        await until(lambda: notary.ready, what="readiness")
    assert len(stage.noted) == 3


async def test_what_goes_wrong_with_its_files_is_told_and_hurts_nobody_else(stage: Stage) -> None:
    """Issue 4, plan: it never lets the auditor fail; its failure is loud and stops the signing."""
    await stage.publish(5)
    async with stage.notary() as notary:
        stage.stored = 5
        await notary.checkpoint_now()
    checkpoint = stage.data / FOLDER / "checkpoints" / f"{5:020}"
    before = checkpoint.read_bytes()
    checkpoint.write_bytes(before.replace(b"\n5\n", b"\n4\n"))
    async with stage.notary() as notary:
        await until(lambda: notary.state is NotaryState.FAILED, what="the failure")
        assert f"{5:020}" in notary.detail
        assert not notary.ready
        await stage.publish(3)
        await stage.feed(notary)
        with pytest.raises(Stopped) as caught:
            await notary.checkpoint_now()
        assert caught.value.http_status == 503
    assert sorted(one.name for one in checkpoint.parent.iterdir()) == [checkpoint.name]


async def test_it_begins_anew_by_itself_when_its_files_are_right_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, say: nothing needs a restart."""
    monkeypatch.setattr(module, "REOPEN_S", 0.05)
    await stage.publish(5)
    async with stage.notary() as notary:
        stage.stored = 5
        await notary.checkpoint_now()

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(Log, "commit", full)
            await stage.publish(3)
            await stage.feed(notary, 6)
            await until(lambda: notary.state is NotaryState.FAILED, what="the failure")
            assert "No space left" in notary.detail
        await until(lambda: notary.state is NotaryState.SIGNING, what="signing again")
        assert stage.said(await notary.checkpoint_now()).size == 8


async def test_a_hole_is_told_once_also_when_the_log_is_opened_anew(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 4: a `GapFound` once. The log is opened anew before the hole is told, and after, before it is signed."""
    monkeypatch.setattr(module, "REOPEN_S", 0.05)
    await stage.publish(9)
    await stage.js.delete_msg(TRAIL, 4)
    stage.stored = 9
    note, commit, failed = stage.note, Log.commit, list[str]()

    def fail_once(what: str) -> None:
        if what not in failed:
            failed.append(what)
            raise OSError(28, "No space left on device")

    async def noted(events: tuple[Event, ...]) -> None:
        fail_once("telling")
        await note(events)

    def committed(log: Log, note: Note) -> None:
        fail_once("signing")
        commit(log, note)

    monkeypatch.setattr(stage, "note", noted)
    monkeypatch.setattr(Log, "commit", committed)
    async with stage.notary() as notary:
        await until(lambda: notary.state is NotaryState.SIGNING, what="signing")
    assert failed == ["telling", "signing"]
    assert [one.what for one in stage.noted if isinstance(one, GapFound)] == ["messages 4 to 4 of the trail"]


async def test_under_load_a_copy_that_is_away_is_not_asked_at_every_batch(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every `AGAIN_S`, here longer than the test; entries are taken meanwhile."""
    monkeypatch.setattr(module, "AGAIN_S", 3_600.0)
    asked: list[int] = []
    check = Copies.check

    async def counted(self: Copies, log: Log, trail_last: Callable[[], Awaitable[int]]) -> int:
        asked.append(log.size)
        return await check(self, log, trail_last)

    monkeypatch.setattr(Copies, "check", counted)
    await stage.publish(5)
    async with stage.notary(Tlog(copies=(str(tmp_path / "away"),))) as notary:
        await until(lambda: notary.state is NotaryState.WAITING, what="that the copy is waited for")
        assert "away is not there" in notary.detail
        for size in (10, 15, 20):
            await stage.publish(5)
            await stage.feed(notary, size - 4)
            assert notary.size == size
        with pytest.raises(Stopped, match="away is not there"):
            await notary.checkpoint_now(0.2)
    assert asked == [5]


async def test_a_checkpoint_is_had_with_its_cosignatures(stage: Stage) -> None:
    """C2SP tlog-witness: they are lines of the same note. A file that is of another tree is not served for ours."""
    witness = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
    public = witness.public_key().public_bytes_raw()
    verifier = Verifier.of(vkey("w", public, COSIGNATURE))
    await stage.publish(5)
    async with stage.notary() as notary:
        stage.stored = 5
        note = await notary.checkpoint_now()
        assert notary.newest_cosigned() == notary.checkpoint(5) == note
        other = Checkpoint(notary.origin, 5, b"o" * 32).text()
        for text in (other, note.text):
            plain = note if text == note.text else Note(text, ())
            notary.cosigned.add(plain, cosign(text, "w", public, witness.sign, 7))
            for had in (notary.newest_cosigned(), notary.checkpoint(5)):
                assert had is not None
                stage.said(had)
                assert had.cosigned_at(verifier) == (7 if text == note.text else None)
        assert "\n— w " in notary.shown().checkpoint


async def test_a_trail_that_does_not_hold_what_was_signed_is_not_signed(stage: Stage) -> None:
    """Without any copy: our own last checkpoint is held against the trail's end at the start."""
    await stage.publish(9)
    async with stage.notary() as notary:
        stage.stored = 9
        await notary.checkpoint_now()
    await stage.js.delete_stream(TRAIL)
    await stage.js.add_stream(api.StreamConfig(name=TRAIL, subjects=["trail.1.>"]))
    await stage.publish(4)
    async with stage.notary() as notary:
        await until(lambda: notary.state is NotaryState.TRUNCATED, what="truncation")
        assert "the trail ends at 4, but its newest checkpoint is of 9 entries" in notary.detail
    for _ in range(6):
        await stage.js.publish("trail.1.x", b"another")
    async with stage.notary() as notary:
        await until(lambda: notary.state is NotaryState.FORKED, what="the fork")
        assert "entry 9 of the trail is not the one that was signed" in notary.detail


async def test_other_keys_do_not_continue_a_log(stage: Stage) -> None:
    """A directory of keys from somewhere else, or without the newest checkpoint key."""
    await stage.publish(2)
    async with stage.notary() as notary:
        stage.stored = 2
        await notary.checkpoint_now()
    own = stage.keyring
    stage.keyring = Keyring.create(stage.data.with_name("other"))
    async with stage.notary() as notary:
        await until(lambda: notary.state is NotaryState.FAILED, what="the failure")
        assert "restore the right keys" in notary.detail
    stage.keyring = own
    async with stage.notary() as notary:
        await until(lambda: notary.state is NotaryState.SIGNING, what="signing")
