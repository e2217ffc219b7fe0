"""The responders' side: health, tasks, timelines and the live tail, from the audit store, every reading on the trail.

Guarantees: an answer holds everything the trail held when it was asked for, or says as of which sequence it is; what is
folded is written first; a reading by a responder is an entry before it is answered; a task id is turned into its
reference at once and recorded nowhere.

    reading = Reading(service)
    await reading.timeline(task, asker)
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from tasktrail.events.errors import Unavailable
from tasktrail.events.subjects import is_task_ref
from tasktrail.projections.audit.store import TaskFilter
from tasktrail.projections.audit.timeline import TaskShown, Timeline
from tasktrail.services.http.surface import Batch, Health, Part, Readiness
from tasktrail.services.operators import Asker
from tasktrail.services.service import Service

FRESH_WITHIN_S = 2.0
TAIL_BATCH = 500
TAIL_WAIT_S = 30.0


class Reading:
    """Implements `http.surface.Surface` over a running service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self) -> Health:
        """Alive unless a part has ended that cannot be started again."""
        failed = self._service.failed
        if failed.done() and failed.exception() is not None:
            return Health(alive=False, detail=str(failed.exception()))
        if self._service.auditor.failed is not None:
            return Health(alive=False, detail=f"the auditor ended: {self._service.auditor.failed}")
        return Health(alive=True)

    async def readiness(self) -> Readiness:
        """Ready when the broker answers and both projections have what the trail held at the start."""
        service = self._service
        connected = service.nc.is_connected
        projector, auditor = service.projector, service.auditor
        parts = {
            "broker": Part(ready=connected, detail="" if connected else "not connected; reconnecting"),
            "projector": Part(
                ready=projector.ready, position=projector.position, behind=projector.behind, detail=projector.failure
            ),
            "auditor": Part(
                ready=auditor.ready,
                position=auditor.position,
                behind=max(0, projector.last - auditor.position),
                detail=str(auditor.failed or ""),
            ),
            "governance": Part(ready=service.governance.ready, position=service.governance.position),
            "timekeeper": Part(ready=service.timekeeper.ready),
            "notary": Part(
                ready=service.notary.ready,
                position=service.notary.size,
                behind=service.notary.behind,
                detail=service.notary.detail,
            ),
        }
        return Readiness(ready=all(part.ready for part in parts.values()), parts=parts)

    async def timeline(self, task: str, asker: Asker) -> Timeline | None:
        """The timeline of the task with this reference or id."""
        await catch_up(self._service)
        store = self._service.auditor.store
        ref = task if is_task_ref(task) else ""
        found = await asyncio.to_thread(store.timeline, ref) if ref else None
        if found is None:
            ref = self._service.keyring.ref(task)
            found = await asyncio.to_thread(store.timeline, ref)
        rows = len(found.steps) if found else 0
        tenant = found.task.tenant if found and found.task else ""
        await self._service.admission.read(asker, "timeline", {"task_ref": ref}, rows, tenant=tenant)
        return found

    async def tasks(self, wanted: TaskFilter, most: int, asker: Asker) -> Sequence[TaskShown]:
        """Tasks, the newest first."""
        sub = self._service.operating.recorded_subject(wanted.tenant, wanted.iss, wanted.sub)
        wanted = msgspec.structs.replace(wanted, sub=sub)
        await catch_up(self._service)
        found: Sequence[TaskShown] = await asyncio.to_thread(self._service.auditor.store.tasks, wanted, most=most)
        asked = {name: str(value) for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
        await self._service.admission.read(asker, "tasks", asked, len(found), tenant=wanted.tenant or "")
        return found

    async def tail(self, since: int | None, asker: Asker) -> AsyncIterator[Batch]:
        """What is recorded after `since`, as it comes."""
        at = await self._service.last_sequence() if since is None else since
        await self._service.admission.read(asker, "tail", {"since": str(at)}, 0)
        return self._batches(at)

    async def _batches(self, at: int) -> AsyncIterator[Batch]:
        auditor = self._service.auditor
        while True:
            if auditor.position <= at:
                await auditor.wait_for(at + 1, TAIL_WAIT_S)
                continue
            steps, until = await asyncio.to_thread(auditor.store.since, at, most=TAIL_BATCH)
            at = max(at, until)
            yield Batch(steps=steps, until=at)


async def catch_up(service: Service) -> None:
    """Bring the audit store to what the trail holds now, or as near as `FRESH_WITHIN_S` allows; folded runs too.

    Raises:
        Unavailable: the broker is away.
    """
    try:
        async with asyncio.timeout(FRESH_WITHIN_S):
            await service.recorder.flush()
            last = await service.last_sequence()
    except (TimeoutError, NatsError, APIError, OSError) as error:
        message = (
            "the broker is away, so this reading cannot be recorded; try again. "
            "With the service stopped, the same command reads the store without recording it"
        )
        raise Unavailable(message) from error
    await service.auditor.wait_for(last, FRESH_WITHIN_S)
