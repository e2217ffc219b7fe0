"""The trail as Parquet files: whole messages, for keeping, for replay and for whoever reads Parquet.

Guarantees: a segment holds every message that the stream held in its range of sequences, byte for byte, and is never
overwritten; the manifest names each with its SHA-256, and is replaced only once the segment is on disk; segments of one
archive do not overlap and are of one stream. The same messages give the same columns. `read` gives nothing of a segment
whose bytes are not the manifest's. The columns `stream_seq`, `subject`, `msg_id`, `key_id`, `signature` and `body` are
the message; the others are read from it, for people, and NULL where it is no entry.

    async with open_trail(data) as trail:
        await write(trail, folder)
    for messages in read(folder):
        …

What proves that an archive is the trail is a checkpoint, not the manifest: `tasktrail verify --archive`.
"""

import asyncio
import contextlib
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any

import duckdb
import msgspec

from tasktrail.events import entry as entries
from tasktrail.events.errors import InvalidRequest, MalformedEntry, TasktrailError, Unavailable
from tasktrail.events.subjects import TRAIL, kind_of
from tasktrail.projections.audit.columns import EntryRow, Message, OutOfRange, entry_row
from tasktrail.services import durable
from tasktrail.services.trail_reading import TrailReader
from tasktrail.services.whole_files import WillNotOverwrite, whole_path

SEGMENT = 100_000
"""Sequences of a segment; one ends where a multiple of it does."""
BATCH = 1_000
MANIFEST = "manifest.json"
FORMAT = "tasktrail-archive/v1"
_ROW_GROUP = 10_240
_NAME = re.compile(r"trail-(\d{20})-(\d{20})\.parquet")
_MESSAGE = {
    "stream_seq": "UBIGINT",
    "subject": "VARCHAR",
    "msg_id": "VARCHAR",
    "key_id": "VARCHAR",
    "signature": "VARCHAR",
    "body": "BLOB",
}
_DERIVED = {
    "leaf_sha256": "VARCHAR",
    "kind": "VARCHAR",
    "tenant": "VARCHAR",
    "task_ref": "VARCHAR",
    "task_seq": "UBIGINT",
    "entry_id": "VARCHAR",
    "recorded_at": "TIMESTAMP",
    "trigger": "VARCHAR",
    "iss": "VARCHAR",
    "sub": "VARCHAR",
    "principal_level": "VARCHAR",
    "client_id": "VARCHAR",
    "token_hash": "VARCHAR",
    "jti": "VARCHAR",
    "address": "VARCHAR",
    "effect": "VARCHAR",
    "decision_reason": "VARCHAR",
    "events": "VARCHAR",
}
_FROM_ROW = tuple(name for name in _DERIVED if name not in {"leaf_sha256", "events"})
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "memory_limit": "256MB",
    "threads": "1",
    "preserve_insertion_order": "true",
}
Progress = Callable[[int, int], None]


class NoArchive(InvalidRequest):
    """The folder holds no archive, or one of another trail."""

    reason = "no_archive"


MESSAGE_BYTES_MAX = 18 * 1024 * 1024
"""The longest message that a trail's broker takes."""
_AT_ONCE = 32
"""Messages that are fetched together: each may be as long as that."""


class ArchiveDamaged(TasktrailError):
    """A segment is not there, or is not the one that the manifest names."""

    reason = "archive_damaged"


class Segment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file: the sequences it covers, both inclusive, how many messages it holds, and its bytes by SHA-256 (hex)."""

    name: str
    first: Annotated[int, msgspec.Meta(ge=1)]
    last: Annotated[int, msgspec.Meta(ge=1)]
    messages: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an archive holds, in the order of the stream; `created` is when the stream was made (RFC 3339)."""

    format: str = FORMAT
    stream: str = TRAIL
    created: str
    segments: tuple[Segment, ...] = ()


def manifest(folder: Path) -> Manifest:
    """The manifest of the archive in this folder.

    Raises:
        NoArchive: there is none that this version reads.
    """
    try:
        found = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        message = f"{folder} holds no archive: there is no {MANIFEST}"
        raise NoArchive(message) from None
    except (OSError, msgspec.DecodeError) as error:
        message = f"{folder / MANIFEST} cannot be read: {getattr(error, 'strerror', '') or error}"
        raise NoArchive(message) from None
    before = 0
    for one in found.segments:
        named = _NAME.fullmatch(one.name)
        if (
            named is None
            or (int(named[1]), int(named[2])) != (one.first, one.last)
            or not before < one.first <= one.last
        ):
            message = f"{folder / MANIFEST} is damaged: segment {one.name[:64]!r} does not stand where it says"
            raise NoArchive(message)
        before = one.last
    if found.format != FORMAT:
        message = f"{folder / MANIFEST} is of format {found.format[:64]!r}; this version reads {FORMAT}"
        raise NoArchive(message)
    return found


async def write(
    trail: TrailReader, folder: Path, first: int = 1, last: int = 0, *, progress: Progress | None = None
) -> Manifest:
    """Archive the messages from sequence `first` to `last` (0: the end) that the archive does not cover yet.

    `progress(position, last)` is called after each batch.

    Raises:
        NoArchive: what is in the folder is another trail's, or damaged.
        WillNotOverwrite: a file is in the way.
        Unavailable: the broker stopped answering; the segments of before are there.
    """
    last = min(last or trail.last_seq, trail.last_seq)
    created = trail.created.astimezone(UTC).isoformat()
    await asyncio.to_thread(lambda: folder.mkdir(mode=0o700, parents=True, exist_ok=True))
    known = manifest(folder) if (folder / MANIFEST).exists() else Manifest(created=created)
    if known.created != created:
        message = f"{folder} holds an archive of a stream created {known.created}, and this one was created {created}"
        raise NoArchive(message)
    for begin, end in _missing(known.segments, first, last):
        segment = await _segment(trail, folder, begin, end, lambda at: progress(at, last) if progress else None)
        segments = tuple(sorted((*known.segments, segment), key=lambda one: one.first))
        known = msgspec.structs.replace(known, segments=segments)
        text = msgspec.json.format(msgspec.json.encode(known), indent=1) + b"\n"
        await asyncio.to_thread(durable.replace, folder / MANIFEST, text)
    return known


def _missing(there: Sequence[Segment], first: int, last: int) -> Iterator[tuple[int, int]]:
    """What is not covered of these sequences, in ranges of which each ends by a multiple of `SEGMENT`."""
    at = first
    for bound in (*there, None):
        until = min(last, bound.first - 1) if bound else last
        while at <= until:
            end = min(until, (at - 1) // SEGMENT * SEGMENT + SEGMENT)
            yield at, end
            at = end + 1
        if bound:
            at = max(at, bound.last + 1)


async def _segment(trail: TrailReader, folder: Path, first: int, last: int, progress: Callable[[int], None]) -> Segment:
    path = folder / f"trail-{first:020}-{last:020}.parquet"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".archive-") as place:
        made = Path(place) / "segment.parquet"
        with duckdb.connect(Path(place) / "rows.duckdb", config=_CONFIG) as rows:
            columns = ", ".join(f"{name} {kind}" for name, kind in (_MESSAGE | _DERIVED).items())
            rows.execute(f"CREATE TABLE messages ({columns})")
            count = 0
            async for messages in trail.messages(first, last, batch=BATCH):
                await asyncio.to_thread(_append, rows, messages)
                count += len(messages)
                progress(messages[-1].stream_seq)
            await asyncio.to_thread(_written, rows, made)
        sha256 = await asyncio.to_thread(_sha256, made)
        await asyncio.to_thread(_named, made, path, sha256)
    return Segment(name=path.name, first=first, last=last, messages=count, sha256=sha256)


def _append(rows: duckdb.DuckDBPyConnection, messages: Sequence[Message]) -> None:
    with rows.appender("messages") as appender:
        appender.append_rows([_row(message) for message in messages])


def _written(rows: duckdb.DuckDBPyConnection, path: Path) -> None:
    try:
        rows.execute(
            f"COPY messages TO '{_quoted(path)}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP})"
        )
    except duckdb.Error as error:
        message = f"the segment cannot be written: {error}"
        raise Unavailable(message) from error


def _named(made: Path, path: Path, sha256: str) -> None:
    """Give a segment its name. One that a crash left there is taken for it when it is the same."""
    try:
        with whole_path(path) as part:
            made.replace(part)
    except WillNotOverwrite:
        if path.is_symlink() or _sha256(path) != sha256:
            raise


def _row(message: Message) -> tuple[Any, ...]:
    """A message, and what can be read from it. A surrogate in a header, which no column can hold, becomes U+FFFD."""
    leaf = hashlib.sha256(message.body).hexdigest()
    derived: tuple[Any, ...] = (leaf, *(None for _ in _FROM_ROW), None)
    with contextlib.suppress(MalformedEntry, OutOfRange):
        entry = entries.decode(message.body)
        read: EntryRow = entry_row(message, entry, kind_of(message.subject), leaf)
        told = ",".join(str(getattr(event, "type", type(event).__name__)) for event in entry.events)
        derived = (leaf, *(_clean(getattr(read, name)) for name in _FROM_ROW), _clean(told))
    headers = (_clean(message.msg_id), _clean(message.key_id), _clean(message.signature))
    return (message.stream_seq, _clean(message.subject), *headers, message.body, *derived)


def _clean(value: Any) -> Any:  # noqa: ANN401 - any column's
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) and not value.isascii() else value


def read(folder: Path, first: int = 1, last: int = 0, *, batch: int = BATCH) -> Iterator[list[Message]]:
    """The archived messages from sequence `first` to `last` (0: the end), in order, at most `batch` at a time. Blocks.

    Raises:
        NoArchive: the folder holds none.
        ArchiveDamaged: a segment is missing or is not the manifest's; what came before was right.
    """
    for segment in manifest(folder).segments:
        if segment.last >= first and (not last or segment.first <= last):
            yield from _read(folder / segment.name, segment, first, last or segment.last, batch)


def _read(path: Path, segment: Segment, first: int, last: int, batch: int) -> Iterator[list[Message]]:
    if not path.is_file():
        message = f"segment {path} is not there"
        raise ArchiveDamaged(message)
    if (found := _sha256(path)) != segment.sha256:
        message = f"segment {path} has SHA-256 {found}, and the manifest says {segment.sha256}"
        raise ArchiveDamaged(message)
    count, before = 0, segment.first - 1
    try:
        with duckdb.connect(config=_CONFIG) as connection:
            connection.execute(_SELECT, {"path": _pattern(path), "most": MESSAGE_BYTES_MAX})
            while rows := connection.fetchmany(min(batch, _AT_ONCE)):
                messages = [Message(*row) for row in rows]
                count += len(messages)
                for one in messages:
                    if not before < one.stream_seq <= segment.last:
                        text = f"segment {path} holds sequence {one.stream_seq} after {before}"
                        raise ArchiveDamaged(text)
                    before = one.stream_seq
                if wanted := [one for one in messages if first <= one.stream_seq <= last]:
                    yield wanted
    except duckdb.Error as error:
        text = f"segment {path} cannot be read: {error}"
        raise ArchiveDamaged(text) from error
    if count != segment.messages:
        text = f"segment {path} holds {count} messages, and the manifest says {segment.messages}"
        raise ArchiveDamaged(text)


_SELECT = """
SELECT
    CASE WHEN stream_seq IS NULL THEN error('a sequence is missing') ELSE CAST(stream_seq AS BIGINT) END,
    CASE WHEN typeof(subject) <> 'VARCHAR' OR subject IS NULL THEN error('a subject is no text') ELSE subject END,
    CASE
        WHEN typeof(body) <> 'BLOB' OR body IS NULL THEN error('a body is no bytes')
        WHEN octet_length(body) > $most THEN error('a body is longer than a message can be')
        ELSE body
    END,
    CASE WHEN typeof(msg_id) <> 'VARCHAR' THEN error('an id is no text') ELSE coalesce(msg_id, '') END,
    CASE WHEN typeof(key_id) <> 'VARCHAR' THEN error('a key id is no text') ELSE coalesce(key_id, '') END,
    CASE WHEN typeof(signature) <> 'VARCHAR' THEN error('a signature is no text') ELSE coalesce(signature, '') END
FROM read_parquet($path)
"""
"""Of an archive that may come from anybody: what is no message of a trail is an error, before it is fetched."""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _pattern(path: Path) -> str:
    """A path as a pattern that fits it alone."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))
