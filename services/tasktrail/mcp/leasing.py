"""The lease of one process: while it is renewed, the work that runs here is nobody else's.

Guarantees: renewed three times within a lease, whatever goes wrong in between. Needs asyncio.

    leasing = Leasing(link, worker="9f2c…")
    renewing = asyncio.create_task(leasing.renew_for_ever())
"""

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

from tasktrail.events.errors import TasktrailError
from tasktrail.mcp.link import Link
from tasktrail.services import messages

_log = logging.getLogger(__name__)

LEASE_S = 30.0
"""The length of a lease until tasktrail has told its own."""

AGAIN_S = 1.0
"""At most so long after a renewal that failed comes the next."""


class Leasing:
    """One worker's."""

    def __init__(self, link: Link, worker: str) -> None:
        self._link, self._worker = link, worker
        self.lease_s = LEASE_S
        """The length of the lease, as last told."""

    async def renew_for_ever(self, defined: Callable[[], dict[str, str]] = dict) -> NoReturn:
        """Be known to be alive; `defined` are the tools to tell of, with the digests of their definitions."""
        why = ""
        while True:
            try:
                said = messages.RenewLease(worker=self._worker, tools=defined())
                lease: messages.Lease = await self._link.request("renew", said)
                self.lease_s, why, pause_s = lease.lease_ms / 1000, "", lease.lease_ms / 3000
            except TasktrailError as error:
                if error.reason != why:
                    _log.warning("the lease of worker %s could not be renewed: %s", self._worker, error.message)
                why, pause_s = error.reason, min(AGAIN_S, self.lease_s / 6)
            except Exception:  # noqa: BLE001 - whatever it was, what runs here must not become another's
                _log.exception("the lease of worker %s could not be renewed", self._worker)
                pause_s = min(AGAIN_S, self.lease_s / 6)
            await asyncio.sleep(pause_s)
