"""Whether the tree at hand goes on from what every copy of its checkpoints holds.

Guarantees: `check` returns only if the newest checkpoint of every copy is of a tree that ours begins with, signed by a
key of ours; else it raises `Stopped`, which says what is wrong and what to do. A copy that held something and is empty
now, as a directory that is not mounted, is no agreement. Nothing of a copy is ever overwritten; a file that a crash of
ours cut short is completed.

    copies = Copies(places, origin, verifiers, record=Path("tlog/copies.json"))
    most = await copies.check(log, trail_last)
    await copies.put(note)
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from tasktrail.events.errors import TasktrailError
from tasktrail.projections.tlog.log import Log
from tasktrail.projections.tlog.note import Checkpoint, MalformedNote, Note, Verifier
from tasktrail.services.durable import replace
from tasktrail.services.tlog_copies import Copy, CopyDisagrees, CopyUnreachable, Held

_log = logging.getLogger(__name__)


class NotaryState(StrEnum):
    """Whether checkpoints are signed."""

    STARTING = "starting"
    """Not yet: the tree is not level with the trail."""
    SIGNING = "signing"
    WAITING = "waiting"
    """Not now: something cannot be reached; it is tried again."""
    TRUNCATED = "truncated"
    """Not until a person has looked: the trail is shorter than a checkpoint of it."""
    FORKED = "forked"
    """Not until a person has looked: the trail is another one than a checkpoint says."""
    FAILED = "failed"
    """Not: the log's own files or keys are not right."""


class Stopped(TasktrailError):
    """No checkpoint is signed; the message says why, and what to do."""

    http_status = 503
    reason = "no_checkpoint"

    def __init__(self, state: NotaryState, message: str) -> None:
        super().__init__(message)
        self.state = state


class CopyShown(msgspec.Struct, frozen=True, kw_only=True):
    """One copy: where, whether it agrees with our tree as far as we know, its newest size, and what is wrong."""

    name: str
    agrees: bool = False
    size: int = 0
    detail: str = ""


class Copies:
    """All copies of one log's checkpoints."""

    def __init__(self, copies: Sequence[Copy], origin: str, verifiers: Sequence[Verifier], record: Path) -> None:
        """`record` is a file of ours that remembers which copies held something."""
        self._copies, self._origin, self._verifiers, self._record = copies, origin, verifiers, record
        self._shown = {copy.name: CopyShown(name=copy.name) for copy in copies}
        self._held: dict[str, int] = {}

    @property
    def shown(self) -> list[CopyShown]:
        """The state of each, as of the last look."""
        return list(self._shown.values())

    async def check(self, log: Log, trail_last: Callable[[], Awaitable[int]]) -> int:
        """The largest size that a copy holds; 0 when none holds anything.

        Raises:
            Stopped: a copy cannot be read, is ahead of the tree, or is not of it.
        """
        most = 0
        for copy in self._copies:
            try:
                size = await self._checked(copy, log, trail_last)
            except CopyUnreachable as error:
                raise self._stopped(copy, NotaryState.WAITING, error.message) from error
            self._shown[copy.name] = CopyShown(name=copy.name, agrees=True, size=size)
            most = max(most, size)
        return most

    async def put(self, note: Note) -> None:
        """Add this checkpoint to every copy.

        Raises:
            Stopped: a copy did not take it.
        """
        size, data = Checkpoint.parse(note.text).size, note.encode()
        for copy in self._copies:
            if self._shown[copy.name].size >= size:
                continue
            try:
                await copy.put(size, data)
            except CopyUnreachable as error:
                raise self._stopped(copy, NotaryState.WAITING, error.message) from error
            except CopyDisagrees as error:
                raise self._stopped(copy, NotaryState.FORKED, error.message) from error
            self._shown[copy.name] = CopyShown(name=copy.name, agrees=True, size=size)
            await asyncio.to_thread(self._remember, copy.name, size)

    async def close(self) -> None:
        """Leave all."""
        for copy in self._copies:
            await copy.close()

    async def _checked(self, copy: Copy, log: Log, trail_last: Callable[[], Awaitable[int]]) -> int:
        held = await copy.newest()
        if held is None:
            return self._empty(copy)
        checkpoint = await self._read(copy, held, log)
        size = checkpoint.size
        if size > log.size:
            last = await trail_last()
            if size <= last:
                raise self._stopped(copy, NotaryState.STARTING, f"the tree has not reached its size, {size}, yet")
            what = f"the trail ends at {last}, but {copy.name} holds a checkpoint of {size} entries: {_KEEP}"
            raise self._stopped(copy, NotaryState.TRUNCATED, what)
        if await asyncio.to_thread(log.root, size) != checkpoint.root:
            what = f"the first {size} entries are not those of the checkpoint in {copy.name}: {_KEEP}"
            raise self._stopped(copy, NotaryState.FORKED, what)
        return size

    def _empty(self, copy: Copy) -> int:
        known = self._remembered().get(copy.name, 0)
        if not known:
            return 0
        what = (
            f"{copy.name} held checkpoints up to size {known} or beyond, and holds none now: mount or restore it; if "
            f"it was emptied on purpose, remove {self._record}"
        )
        raise self._stopped(copy, NotaryState.WAITING, what)

    async def _read(self, copy: Copy, held: Held, log: Log) -> Checkpoint:
        """The checkpoint in a copy's newest note, once it is sure that it is one of this log."""
        try:
            note = Note.parse(held.note)
            checkpoint = Checkpoint.parse(note.text)
            whole = held.size in {0, checkpoint.size}
        except MalformedNote:
            own = await asyncio.to_thread(log.checkpoint, held.size) if held.size else None
            if own is None or not own.encode().startswith(held.note):
                what = f"{copy.name}: its newest checkpoint is damaged; have its owner look at it"
                raise self._stopped(copy, NotaryState.FORKED, what) from None
            await copy.put(held.size, own.encode())
            note, checkpoint, whole = own, Checkpoint.parse(own.text), True
        if not whole or checkpoint.origin != self._origin or not any(note.signed_by(one) for one in self._verifiers):
            what = f"{copy.name}: its newest checkpoint is not signed by a key of ours; have its owner look at it"
            raise self._stopped(copy, NotaryState.FORKED, what)
        return checkpoint

    def _stopped(self, copy: Copy, state: NotaryState, what: str) -> Stopped:
        before = self._shown[copy.name]
        self._shown[copy.name] = CopyShown(name=copy.name, agrees=False, size=before.size, detail=what)
        return Stopped(state, what)

    def _remembered(self) -> dict[str, int]:
        if not self._held:
            try:
                self._held = msgspec.json.decode(self._record.read_bytes(), type=dict[str, int])
            except (FileNotFoundError, msgspec.DecodeError):
                self._held = {}
        return self._held

    def _remember(self, name: str, size: int) -> None:
        """Once per copy is enough: what counts is that it held something."""
        if name not in self._remembered():
            self._held[name] = size
            replace(self._record, msgspec.json.encode(self._held))


_KEEP = (
    "it was cut, rewritten, or replaced by an older one. Keep both, find out which is right (tasktrail verify), and "
    "restore the trail from its newest backup"
)
