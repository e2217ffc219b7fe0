"""Replaying a trail: its projections rebuilt into a fresh place, compared with the live ones, and its steps played.

Guarantees: nothing of the trail or of a service is changed; a rebuilt directory appears under its name whole and on
disk, or not at all; what a rebuild says of itself (`replay.json`) names no time and no place but its source, so that
two of the same range of the same source are equal byte for byte. Memory is that of the states, not of the trail.

    async with open_trail(data) as trail:
        done = await rebuild(TrailSource(trail, "the trail of …"), Path("fresh"))
        done.states_sha256, done.rows_sha256, done.tree_root

A running service is told before anything is read from its broker (`handing_out.py`): what it counted is what
`TrailSource` gives, up to the `last` sequence it named.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import msgspec

from tasktrail.events.errors import InvalidRequest
from tasktrail.events.subjects import TRAIL
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.audit.timeline import Step
from tasktrail.projections.replay import (
    Point,
    Replay,
    Steps,
    TaskSteps,
    lines,
    reached,
    states_sha256,
    until,
)
from tasktrail.projections.replay_rows import rows_sha256
from tasktrail.projections.tlog.log import Log
from tasktrail.projections.tlog.merkle import Frontier, gap_record, leaf
from tasktrail.projections.tlog.note import Checkpoint, Note, Signature
from tasktrail.projections.tlog.offline import BUNDLE_BYTES_MAX
from tasktrail.projections.tlog.offline_checks import Bad, read_bounded, unpacked
from tasktrail.services import archive, durable
from tasktrail.services.cli import says_version
from tasktrail.services.trail_reading import TrailReader

PROJECTIONS = ("current", "audit", "tlog")
STATES_FILE, ROWS_FILE, TREE_FOLDER, REPORT_FILE = "current.jsonl", "audit.duckdb", "tlog", "replay.json"
BATCH = 4_000
_UNFINISHED = ".unfinished"
_REOPEN_S = 10.0
_EPOCH = datetime.fromtimestamp(0, UTC)
_ORIGIN = "tasktrail.replay.invalid"

Told = Callable[[int, int], None]
"""Progress: up to which sequence it was read, and the last one there is."""


def _untold(_position: int, _last: int) -> None:
    pass


class Source(Protocol):
    """Where messages come from. `partial`: not every sequence is in it, and what is missing is no gap of the trail.

    `what`: its kind and place in words. `created`: when the stream was made; None when it does not say.
    """

    what: str
    created: datetime | None
    last_seq: int
    partial: bool

    def messages(self, first: int = 1) -> AsyncGenerator[list[Message]]:
        """Messages from a sequence on, in order."""
        ...


class TrailSource:
    """A trail as it was when it was opened, at most up to sequence `last`; None: all of it."""

    partial = False

    def __init__(self, trail: TrailReader, what: str, last: int | None = None) -> None:
        self._trail, self.what = trail, what
        self.created: datetime | None = trail.created
        self.last_seq = trail.last_seq if last is None else min(last, trail.last_seq)

    async def messages(self, first: int = 1) -> AsyncGenerator[list[Message]]:
        """Messages from a sequence on, in order."""
        if first > self.last_seq:
            return
        async with aclosing(self._trail.messages(first, self.last_seq, batch=BATCH)) as batches:
            async for messages in batches:
                yield messages


class ArchiveSource:
    """A Parquet archive; `partial` when it does not begin with the trail or leaves a range of it out."""

    def __init__(self, folder: Path) -> None:
        """Raises NoArchive: there is none that this version reads."""
        held = archive.manifest(folder)
        self._folder, self.what = folder, f"the archive {folder}"
        self.created: datetime | None = datetime.fromisoformat(held.created)
        self.last_seq = held.segments[-1].last if held.segments else 0
        begins = [1, *(one.last + 1 for one in held.segments)]
        self.partial = any(one.first != begin for one, begin in zip(held.segments, begins, strict=False))

    async def messages(self, first: int = 1) -> AsyncGenerator[list[Message]]:
        """Messages from a sequence on, in order. Raises ArchiveDamaged: what came before was right."""
        for messages in archive.read(self._folder, first, batch=BATCH):
            yield messages


class BundleSource:
    """The entries in an evidence bundle, which is held in memory. Nothing of it is verified here."""

    partial = True
    created: datetime | None = None

    def __init__(self, file: Path) -> None:
        """Raises NoBundle: it is no bundle, or a damaged one."""
        self.what = f"the bundle {file}"
        try:
            files = unpacked(read_bounded(file, BUNDLE_BYTES_MAX))
            listed = msgspec.json.decode(files["messages.json"], type=_Listing).messages
            self._messages = [
                Message(one.stream_seq, one.subject, files[f"entries/{one.stream_seq}.json"], *one.headers)
                for one in sorted(listed, key=lambda one: one.stream_seq)
                if not one.gap
            ]
        except OSError as error:
            message = f"the bundle {file} cannot be read: {error.strerror or error}; bundle export writes one"
            raise NoBundle(message) from None
        except (Bad, KeyError, msgspec.DecodeError) as error:
            message = f"{file} is no evidence bundle, or a damaged one: {error}; tasktrail bundle verify says more"
            raise NoBundle(message) from None
        self.last_seq = self._messages[-1].stream_seq if self._messages else 0

    async def messages(self, first: int = 1) -> AsyncGenerator[list[Message]]:
        """Messages from a sequence on, in order."""
        wanted = [one for one in self._messages if one.stream_seq >= first]
        for start in range(0, len(wanted), BATCH):
            yield wanted[start : start + BATCH]


class _Listed(msgspec.Struct):
    """A message of a bundle, without its body."""

    stream_seq: int
    gap: bool = False
    subject: str = ""
    msg_id: str = ""
    key_id: str = ""
    signature: str = ""

    @property
    def headers(self) -> tuple[str, str, str]:
        """In the order of `Message`."""
        return self.msg_id, self.key_id, self.signature


class _Listing(msgspec.Struct):
    messages: list[_Listed]


class NoBundle(InvalidRequest):
    """The file is no evidence bundle."""

    reason = "no_bundle"


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild came to: the document `replay.json`.

    `first_seq`, `last_seq`: of the messages read, 0 when there were none. `left_out`: messages on a task's subject that
    are no acceptable entry of it; `tasks`: how many the states are of. `states_sha256`: hex, of the file of states;
    `rows_sha256` of the audit store's rows; `tree_root` of the tree of `tree_size` leaves (RFC 6962). None: not made.
    """

    version: int = 1
    tasktrail: str
    source: str
    partial: bool
    projections: tuple[str, ...]
    first_seq: int
    last_seq: int
    messages: int
    left_out: int | None
    tasks: int | None
    states_sha256: str | None
    rows_sha256: str | None
    tree_size: int | None
    tree_root: str | None


class NotFresh(InvalidRequest):
    """The place to rebuild into is not fresh, or cannot be made."""

    reason = "not_fresh"


@contextlib.contextmanager
def whole_folder(into: Path) -> Generator[Path]:
    """A directory that becomes `into` when the block ends well; it is on disk then.

    Raises:
        NotFresh: there is something in `into`, or it cannot be made.
    """
    into = into.absolute()
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        message = f"{into} is not empty; a replay goes into a directory that is not there yet, or is empty"
        raise NotFresh(message)
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{into.name}.", suffix=_UNFINISHED, dir=into.parent))
    except OSError as error:
        message = f"{into} cannot be made: {error.strerror or error}"
        raise NotFresh(message) from None
    try:
        yield part
        for path in (*part.rglob("*"), part):
            durable.sync(path)
        _name(part, into)
        durable.sync(into.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _name(part: Path, into: Path) -> None:
    try:
        part.rename(into)
    except OSError as error:
        message = f"{into} is not empty any more, or cannot be made: {error.strerror or error}"
        raise NotFresh(message) from None


def unfinished(into: Path) -> list[Path]:
    """What rebuilds into this place that were killed left beside it."""
    into = into.absolute()
    return sorted(into.parent.glob(f".{into.name}.*{_UNFINISHED}"))


async def rebuild(
    source: Source,
    into: Path,
    *,
    projections: Sequence[str] = PROJECTIONS,
    end: Point | None = None,
    told: Told = _untold,
) -> Replayed:
    """Build these projections from `source`, up to `end`, into a directory that is not there yet or is empty.

    Raises:
        NotFresh: it is not.
        InvalidRequest: the tree is to be built from something that holds only parts of a trail.
        Unavailable, AuditStoreError, LogError: it cannot be read or written; nothing was left.
    """
    if source.partial and "tlog" in projections:
        message = f"{source.what} holds parts of a trail, which give no tree; rebuild current or audit of it"
        raise InvalidRequest(message)
    with whole_folder(into) as folder:
        with _Building(folder, source, projections) as building:
            async with aclosing(source.messages()) as batches:
                async for messages in batches:
                    taken, ended = until(messages, end)
                    building.take(taken)
                    told(building.last_seq, source.last_seq)
                    if ended:
                        break
        done = building.done()
        (folder / REPORT_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(done), indent=2) + b"\n")
    return done


class _Building:
    """The projections that are built in one directory."""

    def __init__(self, folder: Path, source: Source, projections: Sequence[str]) -> None:
        self._folder, self._source = folder, source
        self._projections = tuple(one for one in PROJECTIONS if one in projections)
        self._states = Replay() if "current" in projections else None
        self._open = contextlib.ExitStack()
        self._load: Callable[[Sequence[Message]], None] | None = None
        self._log = Log.open(folder / TREE_FOLDER) if "tlog" in projections else None
        if "audit" in projections:
            store = self._open.enter_context(contextlib.closing(AuditStore.open(folder / ROWS_FILE)))
            store.bind(TRAIL, source.created or _EPOCH, source.last_seq)
            self._load = self._open.enter_context(store.loading())
        self._frontier = None if source.partial or self._log else Frontier()
        self.first_seq = self.last_seq = self.messages = 0

    def take(self, messages: Sequence[Message]) -> None:
        """Add some messages to each of them."""
        if not messages:
            return
        if self._states is not None:
            self._states.take(messages)
        if self._load is not None:
            self._load(messages)
        if self._log is not None:
            self._log.append(messages)
        elif self._frontier is not None:
            _extend(self._frontier, messages)
        self.first_seq = self.first_seq or messages[0].stream_seq
        self.last_seq = messages[-1].stream_seq
        self.messages += len(messages)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what is left, unless something was raised, and close the files."""
        try:
            if self._log is not None:
                if self._log.size:
                    _commit(self._log)
                self._log.close()
        finally:
            self._open.__exit__(kind, error, traceback)

    def done(self) -> Replayed:
        """Write the states, and say what all came to."""
        states = self._states
        if states is not None:
            with (self._folder / STATES_FILE).open("wb") as file:
                file.writelines(lines(states.states))
        tree = self._log or self._frontier
        return Replayed(
            tasktrail=says_version(),
            source=self._source.what,
            partial=self._source.partial,
            projections=self._projections,
            first_seq=self.first_seq,
            last_seq=self.last_seq,
            messages=self.messages,
            left_out=states.left_out if states else None,
            tasks=len(states.states) if states else None,
            states_sha256=states_sha256(states.states) if states else None,
            rows_sha256=rows_sha256(self._folder / ROWS_FILE) if self._load else None,
            tree_size=tree.size if tree else None,
            tree_root=tree.root().hex() if tree else None,
        )


def _extend(frontier: Frontier, messages: Sequence[Message]) -> None:
    """The leaves of these messages, and those of the sequences that are missing before them."""
    leaves: list[bytes] = []
    size = frontier.size
    for message in messages:
        leaves += [leaf(gap_record(seq)) for seq in range(size + 1, message.stream_seq)]
        leaves.append(leaf(message.body))
        size = message.stream_seq
    frontier.extend(leaves)


def _commit(log: Log) -> None:
    """Make a rebuilt log durable. It needs a note for that: one that nobody signed, and no checkpoint is left of it."""
    text = Checkpoint(_ORIGIN, log.size, log.root(), log.heads.root()).text()
    log.commit(Note(text, (Signature(_ORIGIN, bytes(4), bytes(64)),)))
    (log.folder / "checkpoint").unlink()
    for one in (log.folder / "checkpoints").iterdir():
        one.unlink()


async def played(
    source: Source, *, begin: Point | None = None, end: Point | None = None, told: Told = _untold
) -> AsyncGenerator[tuple[Step, ...]]:
    """The steps of all tasks from `begin` to `end`; what comes before is read too: it says how things stood then."""
    steps, begun = Steps(), False
    async with aclosing(_steadily(source)) as batches:
        async for messages in batches:
            taken, ended = until(messages, end)
            at = 0 if begun else next((n for n, one in enumerate(taken) if reached(one, begin)), len(taken))
            steps.skip(taken[:at])
            begun = begun or at < len(taken)
            found = steps.take(taken[at:])
            if found:
                yield found
            else:
                told(steps.position, source.last_seq)
            if ended:
                return


async def played_of(
    source: Source, refs: Sequence[str], *, begin: Point | None = None, end: Point | None = None, told: Told = _untold
) -> tuple[str, tuple[Step, ...]]:
    """The first of these references under which anything was recorded, and its steps from `begin` to `end`.

    The reference is empty when there is none.
    """
    tasks = [TaskSteps(ref) for ref in refs]
    first = 0
    async with aclosing(source.messages()) as batches:
        async for messages in batches:
            taken, ended = until(messages, end)
            first = first or next((one.stream_seq for one in taken if reached(one, begin)), 0)
            for task in tasks:
                task.take(taken)
            told(taken[-1].stream_seq if taken else 0, source.last_seq)
            if ended:
                break
    for task in tasks:
        if steps := task.steps():
            return task.ref, tuple(step for step in steps if first and step.stream_seq >= first)
    return "", ()


async def _steadily(source: Source) -> AsyncGenerator[list[Message]]:
    """The messages of a source for who takes his time: it is opened again where it may have forgotten us."""
    position = 0
    while True:
        async with aclosing(source.messages(position + 1)) as batches:
            async for messages in batches:
                position, since = messages[-1].stream_seq, time.monotonic()
                yield messages
                if time.monotonic() - since > _REOPEN_S:
                    break
            else:
                return
