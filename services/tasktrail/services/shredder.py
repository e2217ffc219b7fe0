"""The shredder: ends what a task held, by destroying the task's key once its retention is over.

Guarantees: the entry `PayloadShredded` is on the trail before the key goes, so a key is never gone without a reason on
record; what a crash left between the two is done when it is called again, and calling it again does no harm. A task
under a hold is not shredded: the Ledger decides that on the task's own chain, whatever was read before. Entries keep
their ciphertext and commitments: chains and proofs stay as they were.

    shredder = Shredder(ledger, vault, settings)
    await shredder.shred(state)
"""

from collections.abc import Callable

import msgspec

from tasktrail.events import commands
from tasktrail.events.authority import Standing, Trigger
from tasktrail.events.task import Task
from tasktrail.projections.current import State
from tasktrail.services.access.callers import service_authority
from tasktrail.services.access.rules import Rule, decision
from tasktrail.services.ledger import Ledger
from tasktrail.services.sealing import Vault
from tasktrail.services.settings import Settings
from tasktrail.services.sweeper import committed

SHRED = "timer:shred"


def _unsaid(_task: Task) -> Standing | None:
    return None


class Shredder:
    """Shreds tasks as the part `shredder` of the service; `standing` is the creator's, as recorded with the step."""

    def __init__(
        self,
        ledger: Ledger,
        vault: Vault,
        settings: Settings,
        *,
        standing: Callable[[Task], Standing | None] = _unsaid,
    ) -> None:
        self._ledger, self._vault, self._settings, self._standing = ledger, vault, settings, standing

    async def shred(self, state: State, reason: str = "retention") -> bool:
        """Record that the task's key is destroyed, then destroy it. Returns whether it is: False under a hold.

        Raises:
            tasktrail.events.errors.Unavailable: the trail does not take the entry.
            nats.errors.Error, TimeoutError: the key or a payload may still be there; call it again.
        """
        task = state.task
        if task.shredded_at_ms is None:
            if task.holds:
                return False
            # The entry's number is part of the id: a refusal on account of a hold is not the outcome of the next try.
            command = commands.ShredPayload(id=f"{SHRED}:{task.seq}", reason=reason)
            authority = msgspec.structs.replace(
                service_authority(Trigger.TIMER, state.tenant, "shredder"),
                created_by=task.created_by,
                standing=self._standing(task),
                decision=decision(Rule.RETENTION_OVER, "shred", task.binding),
            )
            done = await self._ledger.submit(state.tenant, state.task_ref, command, authority)
            task = done.state.task
            if task.shredded_at_ms is None:
                return False
        await self._vault.destroy(state.task_ref)
        for commitment in committed(task):  # what this misses, the sweeper finds
            if commitment.size > self._settings.inline_max_bytes:
                await self._vault.remove(commitment.sha256)
        return True

    def forget(self, ref: str) -> None:
        """Another process shredded this task."""
        self._vault.forget(ref)
