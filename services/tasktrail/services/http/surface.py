"""What the HTTP surface needs of the service, and the shapes it speaks. Free of any framework.

Guarantees: no shape here holds a task id but the argument of `timeline`; every reading says who asks (`authority`), so
that it can be recorded. The composition root's service implements `Surface`.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from tasktrail.events.authority import Authority
from tasktrail.projections.audit.rows import TaskRow
from tasktrail.projections.audit.store import TaskFilter
from tasktrail.projections.audit.timeline import Timeline


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the process does its work at all; `detail` says what it cannot do."""

    alive: bool
    detail: str = ""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the service: the stream sequence it has reached, and how many entries it has still to read."""

    ready: bool
    position: int = 0
    behind: int = 0
    detail: str = ""


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether every part has read the trail up to where it ended when the service started; by part."""

    ready: bool
    parts: dict[str, Part]


class TailLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry as it was appended. `kind`: task, access, denied or control; `recorded_at` is RFC 3339 in UTC."""

    seq: int
    recorded_at: str
    kind: str
    tenant: str


class Surface(Protocol):
    """The service as seen from HTTP. Errors are `TasktrailError`s."""

    async def health(self) -> Health:
        """Liveness. Answers without waiting for anything outside of the process."""
        ...

    async def readiness(self) -> Readiness:
        """Readiness, part by part."""
        ...

    async def timeline(self, task: str, *, authority: Authority) -> Timeline:
        """The timeline of the task with this reference or id.

        Raises:
            TaskNotFound: neither a reference nor an id of a task on the trail.
        """
        ...

    async def tasks(self, wanted: TaskFilter, *, authority: Authority) -> Sequence[TaskRow]:
        """Tasks, newest first."""
        ...

    def tail(self, since: int | None, *, authority: Authority) -> AsyncIterator[TailLine]:
        """Entries after stream sequence `since` (None: from now on), as they are appended, until the service stops."""
        ...
