"""What leaves the service whole: copies of the audit store, the trail for an archive or a replay. On record before.

Guarantees: who takes it must be permitted to read the whole trail; what was taken, up to which sequence, by whom and in
which case is a `QueryRun` before the copy's place is told, or the archive or replay begun.

    handing_out = HandingOut(service, snapshots)
    await handing_out.snapshot(asker)
"""

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec

from tasktrail.events.errors import Unavailable
from tasktrail.projections.audit.exported import Scope, measure
from tasktrail.projections.replay import Point, point
from tasktrail.services.access.policy import Action
from tasktrail.services.operators import Asker
from tasktrail.services.questions import reference
from tasktrail.services.reading import catch_up
from tasktrail.services.service import Service
from tasktrail.services.snapshots import Lent, Snapshots
from tasktrail.services.statements import Archived, ArchiveOrder, Replayable, ReplayOrder

_INSTANT = timedelta(microseconds=1)
_LAST = datetime.max.replace(tzinfo=UTC) - _INSTANT


class HandingOut:
    """Tells where copies are, and records that the trail is taken."""

    def __init__(self, service: Service, snapshots: Snapshots) -> None:
        self._service, self._snapshots = service, snapshots

    async def snapshot(self, asker: Asker) -> Lent:
        """A copy of the whole audit store for a process on this machine, such as `tasktrail verify`.

        Raises:
            NotAuthorised: this operator may not read the whole trail; on the trail.
            Unavailable: the trail does not answer, or there is no room for a copy.
        """
        admission = self._service.admission
        authority = await admission.admitted(asker, Action.READ, "snapshot")
        await catch_up(self._service)
        lent = await self._snapshots.lend()
        await admission.note_query(authority, "snapshot", {"as_of": str(lent.as_of)}, lent.as_of, case_id=asker.case_id)
        return lent

    async def archive(self, order: ArchiveOrder, asker: Asker) -> Archived:
        """Record that these sequences are about to be archived by who reads them from the broker; raises as above."""
        admission = self._service.admission
        authority = await admission.admitted(asker, Action.READ, "archive")
        end = await self._service.last_sequence()
        last = min(order.last or end, end)
        asked = {"first": str(order.first), "last": str(last)}
        rows = max(0, last - order.first + 1)
        await admission.note_query(authority, "archive", asked, rows, case_id=asker.case_id)
        return Archived(first=order.first, last=last)

    async def replay(self, order: ReplayOrder, asker: Asker) -> Replayable:
        """Record that these steps are about to be played, or rebuilt from, by who reads them from the broker.

        Raises:
            NotAuthorised: this operator may not read the whole trail; on the trail.
            InvalidRequest: a bound is none.
            NoSuchTask: nothing was ever recorded under this reference or id.
            Unavailable: the trail does not answer, or the steps cannot be counted yet.
        """
        admission, service = self._service.admission, self._service
        authority = await admission.admitted(asker, Action.READ, order.doing)
        scope = _bounded(_point(order.begin), _point(order.end))
        await catch_up(service)
        store, last = service.auditor.store, await service.last_sequence()
        if service.auditor.position < last:
            message = "the audit store is behind the trail, and what is read is counted in it; try again in a moment"
            raise Unavailable(message)
        ref = await asyncio.to_thread(reference, store, service.keyring.ref, order.task) if order.task else ""
        found = await asyncio.to_thread(measure, store, msgspec.structs.replace(scope, task_ref=ref or None))
        asked = {"task_ref": ref, "from": order.begin, "to": order.end, "projection": order.projection}
        told = {name: value for name, value in asked.items() if value} | {"as_of": str(found.as_of)}
        await admission.note_query(authority, order.doing, told, found.rows, case_id=asker.case_id)
        return Replayable(task_ref=ref, rows=found.rows, last=found.as_of)


def _point(text: str) -> Point | None:
    return point(text) if text else None


def _bounded(begin: Point | None, end: Point | None) -> Scope:
    """The scope from `begin` to `end`, which is in it; a scope's `until` is not. Points that are times are in UTC."""
    return Scope(
        from_seq=begin if isinstance(begin, int) else None,
        to_seq=end if isinstance(end, int) else None,
        since=begin.replace(tzinfo=None) if isinstance(begin, datetime) else None,
        until=(min(end, _LAST) + _INSTANT).replace(tzinfo=None) if isinstance(end, datetime) else None,
    )
