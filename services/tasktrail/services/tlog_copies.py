"""Copies of checkpoints with another owner: a directory, or a stream in another NATS account.

Guarantees: a checkpoint that a copy holds is never overwritten nor deleted; what `put` returned from is on that copy's
disk. What a copy holds is told as its bytes: whether it is ours and consistent is the notary's to judge.

A directory holds `<origin with - for />/<size, 20 digits>`, each file made once (O_EXCL), so it may be append-only
(`chattr +a`) or of a file system that keeps what it has; it must exist, its parent may not be made. A stream must exist
too, take the subject `checkpoints.<origin with - for />`, and should deny deleting and purging; our user there needs to
publish it, and `$JS.API.STREAM.MSG.GET.<stream>`; not more.

    copy = copy_of("/mnt/other/checkpoints", origin)
    newest = await copy.newest()
    await copy.put(size, note)
"""

import asyncio
import os
import re
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import APIError, NotFoundError

from tasktrail.events.errors import TasktrailError
from tasktrail.services.configuration_shown import without_passwords
from tasktrail.services.connection import Connection
from tasktrail.services.durable import sync

SUBJECT = "checkpoints"
NOTE_BYTES_MAX = 64 * 1024
_FILE = re.compile(r"\d{20}")
_WRONG_SEQUENCE = {10071, 10164}
_ANSWER_S = 5.0


class CopyUnreachable(TasktrailError):
    """The copy cannot be read or written now; the message says what happened. Checkpoints wait for it."""

    reason = "copy_unreachable"


class CopyDisagrees(TasktrailError):
    """The copy holds another checkpoint where this one should be put; nothing was overwritten."""

    reason = "copy_disagrees"


class Held(NamedTuple):
    """The newest checkpoint of a copy: its size as the copy files it (0: the copy does not say), and its note."""

    size: int
    note: bytes


class Copy(Protocol):
    """One place with another owner. `name`: as it may be shown."""

    name: str

    async def newest(self) -> Held | None:
        """The newest checkpoint there; None: there is none. Raises CopyUnreachable."""
        ...

    async def put(self, size: int, note: bytes) -> None:
        """Add a checkpoint; the same one again changes nothing. Raises CopyUnreachable, CopyDisagrees."""
        ...

    async def close(self) -> None:
        """Leave it."""
        ...


def copy_of(place: str, origin: str, credentials: Path | None = None) -> Copy:
    """The copy at a place as the configuration names it."""
    if "://" in place:
        return StreamCopy(place, slug(origin), credentials)
    return DirectoryCopy(Path(place), slug(origin))


def slug(origin: str) -> str:
    """An origin as a file's name and as one token of a subject."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", origin)


class DirectoryCopy:
    """Files in a directory."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = str(folder)
        self._parent, self._folder = folder, folder / name
        self._seen: tuple[int, Held | None] | None = None

    async def newest(self) -> Held | None:
        """The file with the highest number."""
        return await asyncio.to_thread(self._newest)

    async def put(self, size: int, note: bytes) -> None:
        """Make one file more."""
        await asyncio.to_thread(self._put, size, note)

    async def close(self) -> None:
        """Nothing is open."""

    def _newest(self) -> Held | None:
        try:
            if not self._parent.is_dir():
                message = f"{self._parent} is not there; mount or make it"
                raise CopyUnreachable(message)
            try:
                changed = self._folder.stat().st_mtime_ns
            except FileNotFoundError:
                return None
            if self._seen is None or self._seen[0] != changed:
                names = [entry.name for entry in os.scandir(self._folder) if _FILE.fullmatch(entry.name)]
                self._seen = (changed, self._read(max(names)) if names else None)
            return self._seen[1]
        except OSError as error:
            message = f"{self._folder} cannot be read: {error.strerror}"
            raise CopyUnreachable(message) from error

    def _read(self, name: str) -> Held:
        with (self._folder / name).open("rb") as file:
            return Held(int(name), file.read(NOTE_BYTES_MAX))

    def _put(self, size: int, note: bytes) -> None:
        try:
            if not self._parent.is_dir():
                message = f"{self._parent} is not there; mount or make it"
                raise CopyUnreachable(message)
            if not self._folder.exists():
                self._folder.mkdir(mode=0o755)
                sync(self._parent)
            self._write(self._folder / f"{size:020}", note)
            sync(self._folder)
            self._seen = (self._folder.stat().st_mtime_ns, Held(size, note))
        except OSError as error:
            message = f"{self._folder} cannot be written: {error.strerror}"
            raise CopyUnreachable(message) from error

    def _write(self, path: Path, note: bytes) -> None:
        """A new file; of one that a crash cut short, the rest."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            held = path.read_bytes()
            if held == note:
                return
            if not note.startswith(held):
                message = f"{path} is another checkpoint of this size"
                raise CopyDisagrees(message) from None
            descriptor, note = os.open(path, os.O_WRONLY | os.O_APPEND), note[len(held) :]
        with os.fdopen(descriptor, "wb") as file:
            file.write(note)
            file.flush()
            os.fsync(file.fileno())


class StreamCopy:
    """Messages of one subject in a stream of another account."""

    def __init__(self, place: str, name: str, credentials: Path | None) -> None:
        self.name = without_passwords(place)
        self._stream = urlsplit(place).path.strip("/")
        self._subject = f"{SUBJECT}.{name}"
        self._connection = Connection.from_text(place, credentials)
        self._nc: Client | None = None
        self._last = 0

    async def newest(self) -> Held | None:
        """The last message of the subject, from the stream's leader."""
        try:
            js = (await self._connected()).jetstream(timeout=_ANSWER_S)
            found = await js.get_last_msg(self._stream, self._subject)
        except NotFoundError as error:
            if "stream" in str(error.description or ""):
                message = f"{self.name}: there is no stream {self._stream}; its owner has to make it"
                raise CopyUnreachable(message) from error
            self._last = 0
            return None
        except (NatsError, TimeoutError, OSError, TasktrailError) as error:
            raise self._unreachable(error) from error
        self._last = found.seq or 0
        return Held(0, found.data or b"")

    async def put(self, size: int, note: bytes) -> None:
        """One message more, directly behind the one that `newest` told of."""
        headers = {
            "Nats-Expected-Last-Subject-Sequence": str(self._last),
            "Nats-Expected-Stream": self._stream,
            "Tasktrail-Size": str(size),
        }
        try:
            js = (await self._connected()).jetstream(timeout=_ANSWER_S)
            self._last = (await js.publish(self._subject, note, headers=headers)).seq
        except APIError as error:
            if error.err_code in _WRONG_SEQUENCE:
                message = f"{self.name}: somebody else added a checkpoint; it is read again"
                raise CopyUnreachable(message) from error
            raise self._unreachable(error) from error
        except (NatsError, TimeoutError, OSError, TasktrailError) as error:
            raise self._unreachable(error) from error

    async def close(self) -> None:
        """Disconnect."""
        if self._nc is not None:
            await self._nc.close()

    async def _connected(self) -> Client:
        if self._nc is None:
            self._nc = await self._connection.connect("tasktrail checkpoints", buffered=False)
        return self._nc

    def _unreachable(self, error: Exception) -> CopyUnreachable:
        return CopyUnreachable(f"{self.name} does not answer as it should: {error or type(error).__name__}")
