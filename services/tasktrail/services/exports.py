"""An export: the steps of a scope in one of the formats, out of an audit store.

Guarantees: it holds exactly the steps that were counted: the trail only grows, and what comes later is not in it.
Memory stays bounded however much it is. A task id becomes its reference before anything is done with it.

    scope = scope_of(order, ref_of)
    extent = measure(store, scope)
    for chunk in chunks_of(store, order.format, scope, extent, spool): …
"""

import shutil
import tempfile
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeAlias

import msgspec

from tasktrail.events.errors import InvalidRequest
from tasktrail.projections.audit.exported import COLUMNS, Extent, Scope, flat, portions
from tasktrail.projections.audit.store import AuditStore
from tasktrail.services import parquet
from tasktrail.services.escaping import rfc3339
from tasktrail.services.export_formats import FORMATS, PARQUET, Origin

ROWS_HEADER, AS_OF_HEADER = "Tasktrail-Rows", "Tasktrail-As-Of"
"""Of an answer over HTTP: how many steps it holds, and up to which sequence the trail was looked at."""
CHUNK_BYTES = 256 * 1024
PARQUET_TYPE = "application/vnd.apache.parquet"
_SEQUENCE_MAX = 2**53 - 1
_SPOOLED = ".export-"

Name: TypeAlias = Literal["jsonl", "csv", "parquet", "ocsf", "cloudevents", "timesketch", "timesketch-csv"]
_Sequence: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=_SEQUENCE_MAX)] | None
_Text: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None


class ExportOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to export, without bounds where null. `task`: a reference or id; `to_seq` is inclusive, `until` is not."""

    format: Name
    task: _Text = None
    tenant: _Text = None
    from_seq: _Sequence = None
    to_seq: _Sequence = None
    since: datetime | None = None
    until: datetime | None = None


class Shape(NamedTuple):
    """What a format is called elsewhere, and how many of its lines are no steps."""

    media_type: str
    suffix: str
    further_lines: int


def shape_of(name: str) -> Shape:
    """Of one of the formats."""
    if name == PARQUET:
        return Shape(PARQUET_TYPE, PARQUET, 0)
    made = FORMATS[name](Origin("", ""))
    return Shape(made.media_type, made.suffix, made.further_lines)


def scope_of(order: ExportOrder, ref_of: Callable[[str], str]) -> Scope:
    """The scope of an order; `ref_of` gives a task's reference from its reference or id.

    Raises:
        InvalidRequest: its bounds exclude each other, or a time is none.
    """
    scope = Scope(
        tenant=order.tenant,
        task_ref=ref_of(order.task) if order.task else None,
        from_seq=order.from_seq,
        to_seq=order.to_seq,
        since=_utc(order.since),
        until=_utc(order.until),
    )
    backwards = scope.from_seq and scope.to_seq and scope.from_seq > scope.to_seq
    if backwards or (scope.since and scope.until and scope.since >= scope.until):
        message = "nothing can be in this export: it ends before it begins"
        raise InvalidRequest(message)
    return scope


def _utc(at: datetime | None) -> datetime | None:
    try:
        return None if at is None else at.replace(tzinfo=None) if at.tzinfo is None else _naive(at)
    except OverflowError:
        message = f"{at} is no time that the trail can hold"
        raise InvalidRequest(message) from None


def _naive(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(tzinfo=None)


def told(order: ExportOrder, scope: Scope) -> dict[str, str]:
    """What is recorded of an export: its format and every bound it has."""
    said = {"format": order.format, "task_ref": scope.task_ref, "tenant": scope.tenant}
    numbers = {"from_seq": scope.from_seq, "to_seq": scope.to_seq}
    times = {"since": scope.since, "until": scope.until}
    said |= {name: None if value is None else str(value) for name, value in numbers.items()}
    said |= {name: None if value is None else rfc3339(value) for name, value in times.items()}
    return {name: value for name, value in said.items() if value is not None}


def chunks_of(store: AuditStore, name: str, scope: Scope, extent: Extent, spool: Path) -> Generator[bytes]:
    """The bytes of an export. `spool`: a directory that may hold a whole one meanwhile; only Parquet needs it. Blocks.

    Raises:
        AuditStoreError, NotWritten: it cannot go on.
    """
    if name == PARQUET:
        yield from _parquet(store, scope, extent, spool)
        return
    shape = FORMATS[name](origin(store))
    yield shape.head
    for steps in portions(store, scope, extent):
        held: list[bytes] = []
        size = 0
        for step in steps:
            held.append(shape.line(step))
            size += len(held[-1])
            if size >= CHUNK_BYTES:
                yield b"".join(held)
                held, size = [], 0
        yield b"".join(held)
    yield shape.tail


def sweep(spool: Path) -> None:
    """Delete what exports that were killed left in `spool`, while none is under way there."""
    for left in spool.glob(f"{_SPOOLED}*"):
        shutil.rmtree(left, ignore_errors=True)


def _parquet(store: AuditStore, scope: Scope, extent: Extent, spool: Path) -> Generator[bytes]:
    with tempfile.TemporaryDirectory(dir=spool, prefix=_SPOOLED) as folder:
        path = Path(folder) / "export.parquet"
        rows = ([flat(step) for step in steps] for steps in portions(store, scope, extent))
        parquet.write(path, COLUMNS, rows)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def origin(store: AuditStore) -> Origin:
    """Names the trail a store was read from: by its stream and when that was made."""
    position = store.position()
    made = position.created.isoformat(timespec="milliseconds") + "Z" if position.created else "unknown"
    return Origin(trail=f"urn:tasktrail:trail:{position.stream or 'none'}:{made}", version=version("tasktrail"))
