"""What the HTTP surface needs of the service, and the shapes it speaks. Free of any framework.

Guarantees: no shape here holds a task id but the argument of `timeline`; every reading says who asks, so that it can be
recorded. The composition root's service implements `Surface`.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from tasktrail.projections.audit.store import TaskFilter
from tasktrail.projections.audit.timeline import Step, TaskShown, Timeline
from tasktrail.services.operators import Asker


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


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Some steps in the stream's order, of whole entries, and the sequence after which to go on."""

    steps: Sequence[Step]
    until: int


class Surface(Protocol):
    """The service as seen from HTTP. Errors are `TasktrailError`s."""

    async def health(self) -> Health:
        """Liveness. Waits for nothing outside of the process."""
        ...

    async def readiness(self) -> Readiness:
        """Readiness, part by part."""
        ...

    async def timeline(self, task: str, asker: Asker) -> Timeline | None:
        """The timeline of the task with this reference or id; None when nothing was ever recorded under either."""
        ...

    async def tasks(self, wanted: TaskFilter, most: int, asker: Asker) -> Sequence[TaskShown]:
        """Tasks, the newest first, at most `most`."""
        ...

    async def tail(self, since: int | None, asker: Asker) -> AsyncIterator[Batch]:
        """What is recorded after stream sequence `since` (None: from now on), until the service stops.

        Whether this operator may see that is said before the first batch.
        """
        ...
