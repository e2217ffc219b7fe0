"""What leaves the service whole: copies of the audit store, and the trail for an archive. On record before it does.

Guarantees: who takes it must be permitted to read the whole trail; what was taken, up to which sequence, by whom and in
which case is a `QueryRun` before the copy's place is told, or the archive begun.

    handing_out = HandingOut(service, snapshots)
    await handing_out.snapshot(asker)
"""

from tasktrail.services.access.policy import Action
from tasktrail.services.operators import Asker
from tasktrail.services.reading import catch_up
from tasktrail.services.service import Service
from tasktrail.services.snapshots import Lent, Snapshots
from tasktrail.services.statements import Archived, ArchiveOrder


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
