"""Exported steps as lines of each format. Pure; the rules of each are in docs/exports.md.

Guarantees: what is in a step never leaves its line; each line has the step's `stream_seq`, `entry_id` and
`leaf_sha256`; the lines of a scope are the same whenever they are made.

    shape = FORMATS["csv"](Origin(trail="urn:tasktrail:trail:…", version="0.3.0"))
    shape.head + b"".join(shape.line(step) for step in steps) + shape.tail
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from tasktrail.events.facts import AccessDenied, TaskPolled
from tasktrail.projections.audit.columns import EPOCH
from tasktrail.projections.audit.exported import COLUMNS, ExportedStep, flat
from tasktrail.projections.audit.history import in_order
from tasktrail.services import ocsf
from tasktrail.services.escaping import csv_line, json_line, rfc3339, visible
from tasktrail.services.wording import authority

PARQUET = "parquet"
"""The one format that is not made of lines."""

NAMES = tuple(column.name for column in COLUMNS)
_SPEC_VERSION = "1.0"


class Origin(NamedTuple):
    """Where steps come from: `trail`, a URN that names it; `version`, of this software."""

    trail: str
    version: str


class Format(ABC):
    """One format for one export: it remembers the time of the step before, for what has none of its own.

    `head` and `tail` go around the lines; they have `further_lines` ends of lines in them.
    """

    media_type = "application/jsonl"
    suffix = "jsonl"
    head, tail, further_lines = b"", b"", 0

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self._at = EPOCH

    @abstractmethod
    def line(self, step: ExportedStep) -> bytes:
        """A step."""

    def at(self, step: ExportedStep) -> tuple[datetime, bool]:
        """When a step happened, a folded run when it began; else the time of the step before, and False."""
        if step.is_anomaly:
            return self._at, False
        self._at = step.row.at_time or step.row.recorded_at
        match step.event:
            case TaskPolled(first_ms=first) | AccessDenied(first_ms=first):
                return EPOCH + timedelta(milliseconds=first), True
            case _:
                return self._at, True


def _document(step: ExportedStep) -> dict[str, Any]:
    """A step as one JSON object, `event` as the event's own."""
    said = dict(zip(NAMES, flat(step), strict=True))
    if step.row.payload is not None:
        said["event"] = msgspec.json.decode(step.row.payload)
    return said


class JsonLines(Format):
    """One JSON object a line, every member of `COLUMNS` in each."""

    def line(self, step: ExportedStep) -> bytes:
        """A step."""
        return json_line(_document(step))


class Csv(Format):
    """RFC 4180 with a header; text as `escaping` says."""

    media_type = "text/csv; charset=utf-8; header=present"
    suffix = "csv"
    head, further_lines = csv_line(NAMES), 1

    def line(self, step: ExportedStep) -> bytes:
        """A step."""
        return csv_line(flat(step))


class Ocsf(Format):
    """One OCSF event a line."""

    suffix = "ocsf.jsonl"

    def line(self, step: ExportedStep) -> bytes:
        """A step."""
        at, _ = self.at(step)
        return json_line(ocsf.event(step, at_ms=ocsf.epoch_ms(at), version=self.origin.version))


class CloudEvents(Format):
    """CloudEvents 1.0 in the JSON batch format: an array with one event on each line."""

    media_type = "application/cloudevents-batch+json"
    suffix = "cloudevents.json"
    head, tail, further_lines = b"[", b"\n]\n", 2

    def __init__(self, origin: Origin) -> None:
        super().__init__(origin)
        self._begun = False

    def line(self, step: ExportedStep) -> bytes:
        """A step, and what separates it from the one before."""
        separator, self._begun = b",\n" if self._begun else b"\n", True
        return separator + json_line(self._event(step)).rstrip(b"\n")

    def _event(self, step: ExportedStep) -> dict[str, Any]:
        row = step.row
        at, known = self.at(step)
        kind = f"anomaly.{row.type}" if step.is_anomaly else row.type or "Entry"
        said: dict[str, Any] = {
            "specversion": _SPEC_VERSION,
            "id": f"{row.stream_seq}:{row.ord or 0}",
            "source": self.origin.trail,
            "type": f"tasktrail.{visible(kind)}",
            "datacontenttype": "application/json",
            "sequence": f"{row.stream_seq:020d}.{row.ord or 0:06d}",
            "streamseq": str(row.stream_seq),
            "data": _document(step),
        }
        optional = {
            "subject": row.task_ref,
            "time": rfc3339(at) if known else None,
            "entryid": row.entry_id,
            "leafsha256": row.leaf_sha256,
            "tenant": row.tenant,
            "traceparent": step.traceparent,
        }
        return said | {name: visible(value) for name, value in optional.items() if value}


class Timesketch(Format):
    """One flat JSON object a line, with the three fields Timesketch asks for."""

    suffix = "timesketch.jsonl"

    def line(self, step: ExportedStep) -> bytes:
        """A step."""
        return json_line(self.fields(step))

    def fields(self, step: ExportedStep) -> dict[str, Any]:
        """Its fields, of which the first three are what Timesketch shows."""
        at, known = self.at(step)
        return {
            "message": f"{step.what} | {_by_whom(step)}" if known else step.what,
            "datetime": at.replace(tzinfo=UTC).isoformat(timespec="microseconds"),
            "timestamp_desc": _described(step) if known else "has no time of its own: that of the step before",
            **dict(zip(NAMES, flat(step), strict=True)),
        }


class TimesketchCsv(Timesketch):
    """The same as CSV."""

    media_type = Csv.media_type
    suffix = "timesketch.csv"
    head, further_lines = csv_line(("message", "datetime", "timestamp_desc", *NAMES)), 1

    def line(self, step: ExportedStep) -> bytes:
        """A step."""
        return csv_line(self.fields(step).values())


def _by_whom(step: ExportedStep) -> str:
    """Who caused it, how we know, by what credential and which rule: as the timeline says it."""
    return authority(in_order([step.row._replace(payload=None)], ())[0])


def _described(step: ExportedStep) -> str:
    run = isinstance(step.event, TaskPolled | AccessDenied) and step.event.count > 1
    return f"{visible(step.row.type or 'Entry')} (first of a run)" if run else visible(step.row.type or "Entry")


FORMATS: Mapping[str, Callable[[Origin], Format]] = MappingProxyType(
    {
        "jsonl": JsonLines,
        "csv": Csv,
        "ocsf": Ocsf,
        "cloudevents": CloudEvents,
        "timesketch": Timesketch,
        "timesketch-csv": TimesketchCsv,
    }
)
"""The formats that are made of lines."""
