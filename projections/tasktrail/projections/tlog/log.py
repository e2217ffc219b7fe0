"""One transparency log in one directory: tiles, committed heads and every checkpoint ever signed.

    tile/…                 hashes (tiles.py, tree.py)
    heads.sqlite           the committed heads, the position they reach and the newest checkpoint (heads.py)
    checkpoints/<size>     each checkpoint as it was committed, size in 20 digits; never replaced, never removed
    checkpoint             the newest one, as it was last committed
    lock                   held by the one process that writes

The leaf at index `stream_seq - 1` is that of the message with that sequence; a sequence the stream does not hold has
the leaf of its `gap_record`.

Guarantees: `append` is in memory, but for full tiles. `commit` is all or nothing: first every tile is durable, then one
SQLite transaction stores heads, position and note together. That transaction *is* the commit. The files `checkpoints/…`
and `checkpoint` are published after it, and if that was cut short, when the log is next opened for writing. A crash at
any point therefore leaves the last commit, of tree and heads alike; what came after it is read from the trail again.
Readers in other processes see one commit each, also while the log is being written; a reader may leave empty SQLite
files (`-wal`, `-shm`) beside the heads. Memory does not grow with the log. Any thread may call; no call awaits. When
the whole directory is lost, tree and heads can be built again from the trail, but checkpoints only be had from copies.

    with Log.open(folder) as log:
        log.append(messages)
        text = Checkpoint(origin, log.size, log.root(), log.heads.root()).text()
        log.commit(Note(text, (sign(text, origin, public, key.sign),)))
"""

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Callable, Generator, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from tasktrail.projections.tlog import heads as heads_file
from tasktrail.projections.tlog import merkle
from tasktrail.projections.tlog.errors import (
    LogBusy,
    LogDamaged,
    LogError,
    LogFailed,
    MalformedNote,
    NoLog,
    NotInLog,
)
from tasktrail.projections.tlog.heads import Heads
from tasktrail.projections.tlog.merkle import gap_record, leaf
from tasktrail.projections.tlog.note import Checkpoint, Note
from tasktrail.projections.tlog.tiles import Tiles, sync_path, write_whole
from tasktrail.projections.tlog.tree import Tree

__all__ = ["Log", "LogBusy", "LogDamaged", "LogError", "LogFailed", "Message", "NoLog", "NotInLog"]

CHECKPOINT: Final = "checkpoint"
CHECKPOINTS: Final = "checkpoints"
LOCK: Final = "lock"
_AT_ONCE: Final = 16_384
_NAME = re.compile(r"\d{20}", re.ASCII)


class Message(Protocol):
    """What the log needs of a message of the trail; `audit.columns.Message` is one."""

    @property
    def stream_seq(self) -> int:
        """Its sequence in the stream, from 1."""
        ...

    @property
    def subject(self) -> str:
        """The subject it was published to."""
        ...

    @property
    def body(self) -> bytes:
        """Its bytes."""
        ...


class Log:
    """A log, from `Log.open`. `folder` is its directory, `read_only` how it was opened."""

    def __init__(self, folder: Path, *, read_only: bool) -> None:
        self.folder, self.read_only = folder, read_only
        self._lock = threading.RLock()
        self._tree = Tree(Tiles(folder))
        self._failed = False
        self._descriptor = -1
        self._newest: Note | None = None
        self._heads = self._opened()

    @classmethod
    def open(cls, folder: Path, read_only: bool = False) -> "Log":  # noqa: FBT001, FBT002 - the one way to say it
        """The log in this directory, at its last commit; for writing it is made when there is none.

        Raises:
            NoLog: nothing to read here.
            LogBusy: another process writes this log.
            LogDamaged: tiles, heads and the last checkpoint do not fit; `path` names the file.
        """
        return cls(folder, read_only=read_only)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory; what was not committed is gone."""
        with self._lock:
            self._heads.close()
            self._release()

    def _release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def size(self) -> int:
        """Leaves held, which is the last sequence appended."""
        return self._tree.size

    @property
    def committed(self) -> int:
        """Leaves of the last commit."""
        return self._heads.position

    @property
    def heads(self) -> Heads:
        """The committed heads, with what was appended since."""
        return self._heads

    # -- growing ------------------------------------------------------------------------------------------------------

    def append(self, messages: Sequence[Message]) -> None:
        """Take messages in the stream's order. Sequences up to `size` are ignored, holes get the leaves of gaps.

        Raises:
            LogError: the log is open for reading, or failed before.
        """
        with self._writing():
            size, leaves = self.size, list[bytes]()
            for message in messages:
                stream_seq = message.stream_seq
                while size < stream_seq - 1:
                    size += 1
                    leaves.append(leaf(gap_record(size)))
                    if len(leaves) >= _AT_ONCE:
                        self._grow(leaves)
                if stream_seq <= size:
                    continue
                size = stream_seq
                hash_ = sha256(b"\x00" + message.body).digest()
                leaves.append(hash_)
                self._heads.move(message.subject, stream_seq, hash_)
                if len(leaves) >= _AT_ONCE:
                    self._grow(leaves)
            self._grow(leaves)

    def _grow(self, leaves: list[bytes]) -> None:
        self._tree.grow(leaves)
        leaves.clear()
        self._heads.spill()

    def commit(self, note: Note) -> None:
        """Make everything appended durable, under a checkpoint of exactly this tree and these heads.

        A note with the text of the last checkpoint, for instance with cosignatures, only takes its place in the file
        `checkpoint`, whatever was appended since; `checkpoints/<size>` stays as it was.

        Raises:
            LogError: the note is not a checkpoint of this log as it stands; nothing was written.
            LogFailed, OSError: it could not be written; open the log again to see whether it was.
        """
        data = note.encode()
        with self._lock:
            again = self._newest is not None and note.text == self._newest.text
            with self._writing(lambda: None if again else self._check_note(note)):
                if not again:
                    before = self.committed
                    self._tree.settle()
                    self._heads.commit(self.size, data)
                    self._publish(data)
                    self._tree.prune(before)
                self._newest = note
                self._show(data)

    def _check_note(self, note: Note) -> None:
        try:
            said = Checkpoint.parse(note.text)
        except MalformedNote as error:
            message = f"The note to commit is no checkpoint: {error}"
            raise LogError(message) from error
        held = (self.size, self.root(), self._heads.root())
        if (said.size, said.root, said.heads) != held:
            message = (
                f"The checkpoint to commit says size {said.size}, root {said.root.hex()} and heads {said.heads.hex()}; "
                f"the log has size {held[0]}, root {held[1].hex()} and heads {held[2].hex()}. Nothing was written."
            )
            raise LogError(message)
        if self._newest is None:
            return
        last = Checkpoint.parse(self._newest.text)
        if said.origin != last.origin or said.size == last.size:
            message = (
                f"The checkpoint to commit, of {said.origin} at size {said.size}, cannot follow the last one, of "
                f"{last.origin} at size {last.size}. Nothing was written."
            )
            raise LogError(message)

    @contextlib.contextmanager
    def _writing(self, check: Callable[[], None] | None = None) -> Generator[None]:
        """One change of the log; if it fails midway the log in memory is good for nothing more."""
        with self._lock:
            if self.read_only:
                message = f"The log in {self.folder} is open for reading only."
                raise LogError(message)
            if self._failed:
                message = f"An earlier write to the log in {self.folder} failed; open the log again."
                raise LogFailed(message)
            if check is not None:
                check()
            try:
                yield
            except BaseException:
                self._failed = True
                raise

    def _publish(self, data: bytes) -> None:
        """Put the last commit's checkpoint among the others, unless it is there."""
        name = self._named(self.size)
        new = name.with_name(f".{name.name}.new")
        if name.exists():
            new.unlink(missing_ok=True)
            return
        write_whole(new, data)
        os.link(new, name)  # unlike a rename it can never replace a checkpoint
        new.unlink()
        sync_path(name.parent)

    def _show(self, data: bytes) -> None:
        write_whole(self.folder / CHECKPOINT, data)
        sync_path(self.folder)

    # -- reading ------------------------------------------------------------------------------------------------------

    def root(self, size: int | None = None) -> bytes:
        """The root of the first `size` leaves, or of all.

        Raises:
            NotInLog: the log has not that many.
        """
        with self._lock:
            if size is None or size == self.size:
                return self._tree.root()
            self._check_within(size)
            return merkle.root_at(size, self._tree.nodes)

    def _check_within(self, size: int) -> None:
        if not 0 <= size <= self.size:
            message = f"The log has {self.size} leaves; it has no size {size}."
            raise NotInLog(message)

    def leaf(self, index: int) -> bytes:
        """The hash of the leaf at an index, from 0.

        Raises:
            NotInLog: there is none.
            LogDamaged: its tile does not fit the tree.
        """
        return self.nodes(0, index)

    def leaves(self, first: int, last: int) -> list[bytes]:
        """The leaf hashes from index `first` to `last`, both included, as the tiles have them.

        For comparing many with what they should be: unlike `leaf`, the tiles are not held against the tree.

        Raises:
            NotInLog: one of them is not there.
            LogDamaged: a tile is missing or has another length.
        """
        with self._lock:
            return self._tree.leaves(first, last)

    def nodes(self, level: int, index: int) -> bytes:
        """The hash of a complete subtree: a `merkle.Nodes`.

        Raises:
            NotInLog: it is not complete.
            LogDamaged: a tile it is read from does not fit the tree.
        """
        with self._lock:
            return self._tree.nodes(level, index)

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """The proof that the leaf at `index` is in the tree of `size` leaves.

        Raises:
            NotInLog: there is no such leaf, or the log is not of that size.
        """
        with self._lock:
            self._check_within(size)
            if not 0 <= index < size:
                message = f"A tree of {size} leaves has no leaf {index}."
                raise NotInLog(message)
            return merkle.inclusion_proof(index, size, self._tree.nodes)

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of `new` leaves begins with the tree of `old` leaves.

        Raises:
            NotInLog: the log has not these sizes, or they are the wrong way round.
        """
        with self._lock:
            self._check_within(new)
            if not 0 <= old <= new:
                message = f"A tree of {new} leaves cannot begin with one of {old}."
                raise NotInLog(message)
            return merkle.consistency_proof(old, new, self._tree.nodes)

    def checkpoints(self) -> list[int]:
        """The sizes of all checkpoints, smallest first."""
        sizes = {int(name) for name in _names(self.folder / CHECKPOINTS) if _NAME.fullmatch(name)}
        if self._newest is not None:
            sizes.add(self.committed)
        return sorted(sizes)

    def checkpoint(self, size: int | None = None) -> Note | None:
        """The newest checkpoint, or the one of this size as it was committed; None: there is none.

        Raises:
            LogDamaged: the file is not a checkpoint of this size.
        """
        with self._lock:
            if size is None:
                return self._newest
            found = self._stored(self._named(size), size) if size >= 0 else None
            return self._newest if found is None and size == self.committed else found

    def _named(self, size: int) -> Path:
        return self.folder / CHECKPOINTS / f"{size:020}"

    def _stored(self, file: Path, size: int | None = None) -> Note | None:
        name = str(file.relative_to(self.folder))
        try:
            note = Note.parse(file.read_bytes())
            said = Checkpoint.parse(note.text)
        except FileNotFoundError:
            return None
        except MalformedNote as error:
            raise LogDamaged(name, f"this is no checkpoint: {error}") from error
        if size is not None and said.size != size:
            raise LogDamaged(name, f"this is a checkpoint of size {said.size}")
        return note

    def check(self, told: Callable[[int], None] = lambda _: None) -> list[LogDamaged]:
        """Read every tile, every head and every checkpoint; what does not fit, nothing when all does.

        A tile is held against the node above it, from the top; below a wrong tile nothing can be told. `told` is called
        with the number of hashes read since it was last called.
        """
        with self._lock:
            found = self._tree.check(told)
            try:
                self._heads.check()
            except LogDamaged as error:
                found.append(error)
            return found + [wrong for size in self.checkpoints() for wrong in self._check_checkpoint(size)]

    def _check_checkpoint(self, size: int) -> list[LogDamaged]:
        """What is wrong with the checkpoint of this size; a tile that is wrong is not told again."""
        name = f"{CHECKPOINTS}/{size:020}"
        try:
            note = self.checkpoint(size)
        except LogDamaged as error:
            return [error]
        if note is None or size > self.size:
            return []  # of a commit after this log was opened for reading
        try:
            root = self.root(size)
        except LogDamaged:
            return []
        said = Checkpoint.parse(note.text)
        return (
            [] if said.root == root else [LogDamaged(name, f"its root is {said.root.hex()}, the tree's {root.hex()}")]
        )

    # -- opening ------------------------------------------------------------------------------------------------------

    def _opened(self) -> Heads:
        """Bring the log to its last commit: see the module's guarantees."""
        if not self.read_only:
            self._take()
        with contextlib.ExitStack() as undo:
            undo.callback(self._release)
            sizes = [int(name) for name in _names(self.folder / CHECKPOINTS) if _NAME.fullmatch(name)]
            self._check_there(sizes)
            heads = Heads(self.folder, read_only=self.read_only, lock=self._lock)
            undo.callback(heads.close)
            self._heads = heads
            self._load(max(sizes, default=0))
            if not self.read_only and self._newest is not None:
                self._publish(heads.note)
                self._show(self._newest.encode())
                self._tree.prune(max((size for size in sizes if size < self.size), default=0))
            undo.pop_all()
        return heads

    def _check_there(self, sizes: list[int]) -> None:
        """There is a log here, or one may be made."""
        if (self.folder / heads_file.FILE).exists():
            return
        if sizes:
            raise LogDamaged(heads_file.FILE, f"the file is missing, and there is a checkpoint of size {max(sizes)}")
        if self.read_only:
            message = f"There is no log in {self.folder}."
            raise NoLog(message)

    def _take(self) -> None:
        (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        sync_path(self.folder.parent)
        self._descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._release()
            message = f"Another process has the log in {self.folder} open for writing; only one can."
            raise LogBusy(message) from error

    def _load(self, newest: int) -> None:
        heads = self._heads
        if newest > heads.position:
            what = f"the heads reach size {heads.position}, but there is a checkpoint of {newest}"
            raise LogDamaged(heads_file.FILE, what)
        if not heads.note and heads.position == 0:
            return
        try:
            self._newest = Note.parse(heads.note)
            said = Checkpoint.parse(self._newest.text)
        except MalformedNote as error:
            raise LogDamaged(heads_file.FILE, f"the note in it is no checkpoint: {error}") from error
        if said.size != heads.position:
            what = f"the heads reach size {heads.position}, but the note beside them says {said.size}"
            raise LogDamaged(heads_file.FILE, what)
        self._check_published(heads.position)
        self._tree.load(said.size, said.root)
        if heads.root() != said.heads:
            raise LogDamaged(heads_file.FILE, f"the heads give the root {heads.root().hex()}, not the checkpoint's")

    def _check_published(self, size: int) -> None:
        """The files of the last checkpoint are of it; they may be behind, after a crash or while another one writes."""
        stored = self._stored(self._named(size), size)
        if stored is not None and self._newest is not None and stored.text != self._newest.text:
            name = f"{CHECKPOINTS}/{size:020}"
            raise LogDamaged(name, f"this is not the checkpoint that {heads_file.FILE} was committed with")
        shown = self._stored(self.folder / CHECKPOINT)
        if shown is None:
            return
        at = Checkpoint.parse(shown.text).size
        if at > size and self.read_only:
            return
        same = self._newest if at == size else self._stored(self._named(at), at)
        if same is None or same.text != shown.text:
            raise LogDamaged(CHECKPOINT, f"this checkpoint of size {at} is not the one that was committed")
        if at == size:
            self._newest = shown


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - names only, of what may be very many
    except FileNotFoundError:
        return []
