"""The service as far as the HTTP surface needs it: a real audit store, and what a test sets."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from tests.services.scene import Scene

from tasktrail.projections.audit.store import AuditStore, TaskFilter
from tasktrail.projections.audit.timeline import TaskShown, Timeline
from tasktrail.services.access.policy import Action
from tasktrail.services.admission import Admission
from tasktrail.services.http.surface import Batch, Health, Part, Readiness
from tasktrail.services.operators import Asker


class StoreSurface:
    """Implements `Surface`. `asked` holds what was asked by whom; the tail gives `batches` until None.

    With an `admission`, it is asked before anything is answered.
    """

    def __init__(self, store: AuditStore, scene: Scene, admission: Admission | None = None) -> None:
        self.store, self.scene, self._admission = store, scene, admission
        self.alive, self.behind = True, 0
        self.fails: Exception | None = None
        self.asked: list[tuple[str, Asker]] = []
        self.batches: asyncio.Queue[Batch | Exception | None] = asyncio.Queue()

    async def health(self) -> Health:
        return Health(alive=self.alive, detail="" if self.alive else "the auditor ended")

    async def readiness(self) -> Readiness:
        part = Part(ready=not self.behind, position=7, behind=self.behind)
        return Readiness(ready=part.ready, parts={"auditor": part})

    async def timeline(self, task: str, asker: Asker) -> Timeline | None:
        await self._admit(asker, "timeline")
        if self.fails:
            raise self.fails
        return self.store.timeline(self.scene.ref if task == self.scene.task_id else task)

    async def tasks(self, wanted: TaskFilter, most: int, asker: Asker) -> Sequence[TaskShown]:
        await self._admit(asker, "tasks")
        return self.store.tasks(wanted, most=most)

    async def tail(self, since: int | None, asker: Asker) -> AsyncIterator[Batch]:
        await self._admit(asker, f"tail {since}")
        return self._batches()

    async def _admit(self, asker: Asker, what: str) -> None:
        if self._admission:
            await self._admission.admitted(asker, Action.READ, what)
        self.asked.append((what, asker))

    async def _batches(self) -> AsyncIterator[Batch]:
        while True:
            batch = await self.batches.get()
            if batch is None:
                return
            if isinstance(batch, Exception):
                raise batch
            yield batch
