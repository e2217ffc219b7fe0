"""The notary: the tree over the trail, and its signed checkpoints (C2SP tlog-checkpoint) while the service runs.

Guarantees: a checkpoint is signed at most `interval_ms` after an entry, or once 256 wait, and only of a tree that goes
on from the last checkpoint and from the newest one of every copy; it is on our disk, then in every copy, and is never
made again or overwritten. A sequence that the stream does not hold gets the leaf of a gap only after the stream's
leader said so, and is a `GapFound` on the trail. Nothing here makes the auditor or a command fail: what stops the
notary is in `state` and `detail`, loud in the log, and stops the signing. Fed by the auditor in its thread, after its
commit.

In `<data>/tlog`: the log's own files (`projections/tlog/log.py`), `origin`, `vkey`, `copies.json`, and `cosigned/`.

    notary = Notary(data, keyring, nc, settings.tlog, note=note, position=lambda: auditor.position)
    await notary.start()
    auditor = Auditor(nc, store, also=notary.take)
    note = await notary.checkpoint_now()
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from tasktrail.events.errors import TasktrailError, Unavailable
from tasktrail.events.facts import Event, GapFound
from tasktrail.events.subjects import TRAIL
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog.log import Log, LogDamaged, LogError
from tasktrail.projections.tlog.merkle import gap_record, leaf
from tasktrail.projections.tlog.note import Checkpoint, Note, Verifier, sign, vkey
from tasktrail.services.clock import now_ms
from tasktrail.services.configuration import Tlog
from tasktrail.services.durable import replace, write_once
from tasktrail.services.ending import end
from tasktrail.services.keyring import Keyring, KeyringError
from tasktrail.services.tlog_agreement import Copies, CopyShown, NotaryState, Stopped
from tasktrail.services.tlog_copies import copy_of
from tasktrail.services.trail_reading import TrailReader
from tasktrail.services.witnessing import Cosigned, WitnessClient, WitnessShown

_log = logging.getLogger(__name__)

FOLDER = "tlog"
MARKER = "checkpointed"
"""A file of the data directory: there was a checkpoint, so that a lost `tlog` is noticed."""
ENTRIES = 256
LEAST_S = 0.25
"""However many entries come, checkpoints are at least this far apart."""
NOW_S = 15.0
AGAIN_S = 2.0
REOPEN_S = 15.0
_STOP_S = 5.0
_API_S = 5.0
_LEVELS = {
    NotaryState.STARTING: logging.INFO,
    NotaryState.SIGNING: logging.INFO,
    NotaryState.WAITING: logging.WARNING,
}
_FINAL = frozenset({NotaryState.TRUNCATED, NotaryState.FORKED, NotaryState.FAILED})

Noted = Callable[[tuple[Event, ...]], Awaitable[None]]


class LogShown(msgspec.Struct, frozen=True, kw_only=True):
    """The log of checkpoints: its name and key, leaves held, the newest checkpoint as its note, who else keeps it."""

    origin: str
    vkey: str
    state: NotaryState
    detail: str
    size: int
    checkpoint_size: int
    checkpoint: str
    copies: list[CopyShown]
    witnesses: list[WitnessShown]


class _Hole(NamedTuple):
    first: int
    last: int
    since_ms: int
    until_ms: int


class Notary:
    """The one of a service. `position` tells the last sequence that the auditor's store holds."""

    def __init__(  # noqa: PLR0913 - what it is made of
        self, data: Path, keyring: Keyring, nc: Client, tlog: Tlog, *, note: Noted, position: Callable[[], int]
    ) -> None:
        self.folder = data / FOLDER
        self.origin = keyring.origin
        publics = keyring.checkpoint_publics
        self.vkey = vkey(self.origin, publics[0])
        self.state, self.detail = NotaryState.STARTING, ""
        self.cosigned = Cosigned(self.folder / "cosigned")
        self._marker, self._keyring, self._public = data / MARKER, keyring, publics[0]
        self._verifiers = [Verifier.of(vkey(self.origin, one)) for one in publics]
        self._nc, self._js = nc, JetStreamContext(nc, timeout=_API_S)
        self._interval_s = tlog.interval_ms / 1000
        self._note, self._position = note, position
        places = [copy_of(place, self.origin, tlog.nats_credentials) for place in tlog.copies]
        self._copies = Copies(places, self.origin, self._verifiers, self.folder / "copies.json")
        self._witnesses = [WitnessClient(one, self.cosigned, self._consistency) for one in tlog.witnesses]
        self._log: Log | None = None
        self._newest: Note | None = None
        self._lock = threading.Lock()
        self._behind, self._heard = True, 0
        self._broken: Exception | None = None
        self._caught_up = self._agreed = self._lost = False
        self._holes: list[_Hole] = []
        self._holes_told = 0
        """The last sequence of the holes that are on the trail by us."""
        self._waiting_since = self._signed_at = 0.0
        self._spread = 0
        self._hurried = 0
        self._wake, self._moved = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._running: asyncio.Task[None] | None = None

    @property
    def size(self) -> int:
        """Leaves held."""
        return self._log.size if self._log else 0

    @property
    def newest(self) -> Note | None:
        """The newest checkpoint that is in every copy, as it was signed."""
        return self._newest

    def newest_cosigned(self) -> Note | None:
        """The newest checkpoint that is in every copy, with the cosignatures it has. Blocks for the disk."""
        newest = self._newest
        return newest and self._with_cosignatures(newest)

    @property
    def ready(self) -> bool:
        """Whether the tree was level with the trail once, and nothing needs a person."""
        return self._caught_up and self.state not in _FINAL

    @property
    def behind(self) -> int:
        """Entries that the audit store holds and the tree does not."""
        return max(0, self._position() - self.size)

    def shown(self) -> LogShown:
        """All of it, for who asks. Blocks for the disk."""
        witnesses = [one.shown for one in self._witnesses]  # before the cosignatures, which it then says no less of
        newest = self.newest_cosigned()
        return LogShown(
            origin=self.origin,
            vkey=self.vkey,
            state=self.state,
            detail=self.detail,
            size=self.size,
            checkpoint_size=Checkpoint.parse(newest.text).size if newest else 0,
            checkpoint=newest.encode().decode() if newest else "",
            copies=self._copies.shown,
            witnesses=witnesses,
        )

    def checkpoint(self, size: int) -> Note | None:
        """The checkpoint of this size, with the cosignatures it has; None: there was none. Blocks for the disk."""
        signed = self._log.checkpoint(size) if self._log else None
        return self._with_cosignatures(signed) if signed else self.cosigned.at(size)

    def _with_cosignatures(self, note: Note) -> Note:
        cosigned = self.cosigned.at(Checkpoint.parse(note.text).size)
        return cosigned if cosigned is not None and cosigned.text == note.text else note

    async def start(self) -> None:
        """Begin to build and sign, in the background."""
        for witness in self._witnesses:
            witness.start()
        self._running = asyncio.create_task(self._run(), name="notary")

    async def stop(self) -> None:
        """Sign what is held, and stop. The auditor has been stopped before."""
        if self._running is not None:
            await end(self._running)
        level = self._log is not None and not self._behind and not self._holes
        if level and self.state in {NotaryState.STARTING, NotaryState.SIGNING}:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_STOP_S):
                    await self._checkpoint()
        for witness in self._witnesses:
            await witness.stop()
        await self._copies.close()
        await self._drop()

    def take(self, messages: Sequence[Message]) -> None:
        """Messages in the stream's order, right after the audit store has them. From the auditor's thread."""
        try:
            with self._lock:
                self._heard = messages[-1].stream_seq
                if self._log is None or self._behind or self._broken is not None:
                    return
                fresh = [one for one in messages if one.stream_seq > self._log.size]
                if fresh and fresh[-1].stream_seq - self._log.size != len(fresh):
                    self._behind = True  # a hole, or messages lost on the way: told apart with the stream's leader
                else:
                    self._log.append(fresh)
        except Exception as error:  # noqa: BLE001 - the auditor must not fail by us; the loop tells of it
            self._broken = error
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._wake.set)

    async def checkpoint_now(self, within_s: float = NOW_S) -> Note:
        """A checkpoint that covers everything the auditor holds.

        Raises:
            Stopped: none is signed now, or not within `within_s`; the message says why.
        """
        wanted = max(1, self._position())
        self._hurried += 1
        self._wake.set()
        try:
            async with asyncio.timeout(within_s):
                while True:
                    newest, moved = self.newest, self._moved
                    if newest is not None and self._spread >= wanted:
                        return newest
                    if self.state in _FINAL:
                        raise Stopped(self.state, self.detail)
                    await moved.wait()
        except TimeoutError:
            why = self.detail or f"the tree holds {self.size} of {wanted} entries"
            message = f"no checkpoint of all entries within {within_s:g} s: {why}"
            raise Stopped(self.state, message) from None
        finally:
            self._hurried -= 1

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            pause_s = AGAIN_S
            try:
                due_s = await self._advance()
            except Stopped as stopped:
                self._tell(stopped.state, stopped.message)
                pause_s = REOPEN_S if stopped.state in _FINAL else AGAIN_S
            except (Unavailable, NatsError, TimeoutError) as error:
                self._tell(NotaryState.WAITING, f"the trail cannot be read: {error or type(error).__name__}")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and only the notary stops
                foreseen = isinstance(error, TasktrailError | OSError)
                remedy = _REMEDY.format(self.folder) if isinstance(error, LogDamaged) else ""
                self._tell(NotaryState.FAILED, f"{error}{remedy}", None if foreseen else error)
                await self._drop()
                pause_s = REOPEN_S
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due_s):
                        await self._wake.wait()
                continue
            await asyncio.sleep(pause_s)  # whatever comes meanwhile: under load each batch would make us try again

    async def _advance(self) -> float | None:
        """Do what is due; in how many seconds to look again, None for when there is something new."""
        if self._broken is not None:
            raise self._broken
        log = self._log
        if log is None:
            log = await self._open()
        if self._behind:
            await self._catch_up(log)
        while self._holes:
            await self._note((_gap(self._holes[0]),))
            self._holes_told = self._holes.pop(0).last
        due_s = self._due_s(log)
        if due_s == 0:
            await self._checkpoint()
            due_s = self._due_s(log)
        return due_s

    def _due_s(self, log: Log) -> float | None:
        """In how many seconds a checkpoint is due; None: nothing waits for one."""
        waiting, now = log.size - self._spread, time.monotonic()
        if not self._agreed:
            return 0
        if waiting <= 0:
            self._waiting_since = 0.0
            return None
        if self._hurried:
            return 0
        self._waiting_since = self._waiting_since or now
        at = self._waiting_since + self._interval_s
        if waiting >= ENTRIES:
            at = min(at, self._signed_at + LEAST_S)
        return max(0, at - now)

    async def _checkpoint(self) -> None:
        log = self._log
        if log is None:
            return
        await self._agree(log)
        note = await asyncio.to_thread(self._sign, log)
        self._waiting_since, self._signed_at = 0.0, time.monotonic()
        if note is not None:
            size = Checkpoint.parse(note.text).size
            await self._copies.put(note)
            for witness in self._witnesses:
                if self._spread < size:
                    witness.offer(note)
            self._spread, self._newest = size, note
        self._tell(NotaryState.SIGNING, "")
        self._signal()

    async def _agree(self, log: Log) -> None:
        """See that the tree goes on from every copy; the first time, also what was lost."""
        most = await self._copies.check(log, self._trail_last)
        if self._lost:
            if most:
                _log.warning("the tree was rebuilt from the trail; it agrees with a copy's checkpoint of size %d", most)
            else:
                _log.error("all checkpoints were lost, and no copy holds any: begun anew at size %d", log.size)
                await self._note((_lost(now_ms(), self._marker.stat().st_mtime_ns // 1_000_000),))
            self._lost = False
        self._agreed = True

    def _sign(self, log: Log) -> Note | None:
        """Commit a checkpoint of the tree as it is; the newest one when it is of this size."""
        with self._lock:
            newest, size = log.checkpoint(), log.size
            if newest is not None:
                last = Checkpoint.parse(newest.text)
                if last.size == size:
                    return newest
                if log.root(last.size) != last.root:
                    message = (
                        f"the tree does not begin with its own checkpoint of size {last.size}: restore {self.folder}"
                    )
                    raise Stopped(NotaryState.FORKED, message)
            if not size:
                return None
            text = Checkpoint(self.origin, size, log.root(), log.heads.root()).text()
            note = Note(text, (sign(text, self.origin, self._public, self._keyring.sign_checkpoint),))
            log.commit(note)
            self._marker.touch(mode=0o600)
            return note

    async def _open(self) -> Log:
        """The log at its last commit, if it is of this trail."""
        log = await asyncio.to_thread(self._opened)
        try:
            await self._check_end(log)
        except BaseException:
            await asyncio.to_thread(log.close)
            raise
        self._lost = log.checkpoint() is None and self._marker.exists()
        self._log = log
        return log

    def _opened(self) -> Log:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        write_once(self.folder / "origin", f"{self.origin}\n".encode())
        kept = (self.folder / "origin").read_text(encoding="utf-8").strip()
        if kept != self.origin:
            message = (
                f"{self.folder} is the log {kept}, and the keys are those of {self.origin}: restore the right keys"
            )
            raise KeyringError(message)
        replace(self.folder / "vkey", f"{self.vkey}\n".encode())
        log = Log.open(self.folder)
        newest = log.checkpoint()
        if newest is not None and not any(newest.signed_by(one) for one in self._verifiers):
            log.close()
            message = f"the newest checkpoint in {self.folder} is signed by no checkpoint key that is here: restore it"
            raise KeyringError(message)
        return log

    async def _check_end(self, log: Log) -> None:
        """See that the trail still holds the last message of the committed tree."""
        size = log.size
        if not size:
            return
        last = await self._trail_last()
        if last < size:
            what = f"the trail ends at {last}, but its newest checkpoint is of {size} entries"
            raise Stopped(NotaryState.TRUNCATED, f"{what}: {_RESTORE}")
        try:
            body = (await self._js.get_msg(TRAIL, seq=size)).data or b""
        except NotFoundError:
            body = gap_record(size)
        if await asyncio.to_thread(log.leaf, size - 1) != leaf(body):
            what = f"entry {size} of the trail is not the one that was signed"
            raise Stopped(NotaryState.FORKED, f"{what}: {_RESTORE}")

    async def _catch_up(self, log: Log) -> None:
        """Read from the trail what the auditor has read already, until it can feed us again."""
        while self._behind:
            reader = await TrailReader.of(self._nc)
            async for messages in reader.messages(log.size + 1):
                for hole in await self._found_holes(log.size, messages):
                    self._holes.append(hole)
                await asyncio.to_thread(log.append, messages)
            await asyncio.to_thread(self._level, max(log.size, reader.last_seq))
        self._caught_up = True

    def _level(self, covered: int) -> None:
        with self._lock:
            self._behind = self._heard > covered

    async def _found_holes(self, after: int, messages: Sequence[Message]) -> list[_Hole]:
        """The holes before and between these messages, each as the stream's leader says it."""
        found: list[_Hole] = []
        for message in messages:
            if message.stream_seq > after + 1:
                following = await self._js.get_msg(TRAIL, seq=after + 1, subject=">", next=True)
                if following.seq != message.stream_seq:
                    told = f"messages went astray between {after} and {message.stream_seq}"
                    raise Unavailable(told)
                until = following.time
                at_ms = int(until.timestamp() * 1000) if until else now_ms()
                since = await self._time_of(after)
                if not self._lost and after >= self._holes_told:
                    found.append(_Hole(after + 1, message.stream_seq - 1, since, at_ms))
            after = message.stream_seq
        return found

    async def _time_of(self, stream_seq: int) -> int:
        with contextlib.suppress(NotFoundError):
            found = (await self._js.get_msg(TRAIL, seq=stream_seq)).time if stream_seq else None
            return int(found.timestamp() * 1000) if found else 0
        return 0

    async def _trail_last(self) -> int:
        return (await self._js.stream_info(TRAIL)).state.last_seq

    async def _consistency(self, old: int, new: int) -> Sequence[bytes]:
        if self._log is None:
            raise Stopped(self.state, self.detail)
        return await asyncio.to_thread(self._log.consistency, old, new)

    async def _drop(self) -> None:
        """Let go of the log; what was not committed is read from the trail again."""
        with self._lock:
            log, self._log = self._log, None
            self._behind, self._broken, self._agreed = True, None, False
        self._holes.clear()  # reading again finds them again
        if log is not None:
            with contextlib.suppress(LogError, OSError):
                await asyncio.to_thread(log.close)

    def _tell(self, state: NotaryState, detail: str, error: Exception | None = None) -> None:
        if (self.state, self.detail) != (state, detail):
            _log.log(_LEVELS.get(state, logging.ERROR), "checkpoints: %s %s", state, detail, exc_info=error)
        self.state, self.detail = state, detail
        self._signal()

    def _signal(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


_REMEDY = (
    ". Restore {} from a backup, or move it away: the tree is then built anew, and checkpoints go on if there is a "
    "copy that agrees"
)
_RESTORE = (
    "it was cut, rewritten, or replaced by an older one. Keep what is there, find out what happened (tasktrail "
    "verify), and restore the trail from its newest backup"
)


def _gap(hole: _Hole) -> GapFound:
    return GapFound(
        at_ms=now_ms(),
        what=f"messages {hole.first} to {hole.last} of the trail",
        since_ms=hole.since_ms,
        until_ms=hole.until_ms,
        cause="the stream does not hold them; their places in the tree say so",
    )


def _lost(at_ms: int, since_ms: int) -> GapFound:
    return GapFound(
        at_ms=at_ms,
        what="checkpoints of the trail before this entry",
        since_ms=since_ms,
        until_ms=at_ms,
        cause="the directory tlog was lost and no copy holds any; the tree was built anew from the trail",
    )
