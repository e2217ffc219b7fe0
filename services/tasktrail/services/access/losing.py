"""What becomes of a task whose worker is lost: it ends, or waits to be started again, as its tool declared.

Guarantees: the same whether the worker said goodbye or its lease ended; a task is started again `reruns_max` times at
most, never when its creation was not answered, and never when it is to stop; a lease loses a task only while it still
is that worker's. Sealed and recorded like any other end of a task.

    done = await losing.lose(state, command_id, "shutdown", authority, worker="9f2c…", attempt=1)
"""

from collections.abc import Callable

import msgspec

from tasktrail.events import commands
from tasktrail.events.authority import Authority, Standing, Trigger
from tasktrail.events.facts import OnWorkerLost
from tasktrail.events.subjects import entry_id
from tasktrail.events.task import Task
from tasktrail.projections.current import State
from tasktrail.services.access.callers import service_authority
from tasktrail.services.access.payloads import Payloads
from tasktrail.services.access.rules import Rule, decision
from tasktrail.services.leases import Held, Worker
from tasktrail.services.ledger import Ledger, Recorded
from tasktrail.services.messages import RpcError
from tasktrail.services.states import States

LOST_CODE = -32603
"""JSON-RPC code of a task whose worker went away."""
UNANSWERED = "unanswered"
"""The cause where the adapter was never told that it made the task: its client has no handle."""
LEASE = "lease"


class Losing:
    """Records that workers are lost."""

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        ledger: Ledger,
        states: States,
        payloads: Payloads,
        *,
        reruns_max: int,
        standing: Callable[[Task], Standing],
        observe: Callable[[State], None],
    ) -> None:
        """`observe` is told the state after a lease lost it a task."""
        self._ledger, self._states, self._payloads, self._reruns_max = ledger, states, payloads, reruns_max
        self._standing, self._observe = standing, observe

    async def lose(  # noqa: PLR0913 - a loss and who says so
        self, state: State, command_id: str, cause: str, authority: Authority, *, worker: str | None, attempt: int = 0
    ) -> Recorded:
        """Record the loss of the process that does a task's work.

        Raises:
            TasktrailError: as `Ledger.submit`.
        """
        reruns = 0 if cause == UNANSWERED else self._reruns_max
        error = RpcError(code=LOST_CODE, message=_told(state.task))
        key = await self._payloads.vault.key(state.task_ref)
        # The timer's entry has another id: the scope only keeps nonces apart, as the command's id does.
        scope = entry_id(state.task_ref, command_id)
        sealed, blobs = await self._payloads.seal(key, "error", scope, msgspec.to_builtins(error))
        command = commands.LoseWorker(
            id=command_id,
            cause=cause,
            error=sealed,
            code=LOST_CODE,
            reruns_max=reruns,
            worker=worker,
            attempt=attempt,
        )
        return await self._ledger.submit(state.tenant, state.task_ref, command, authority, blobs)

    async def lapsed(self, held: Held, one: Worker) -> None:
        """A worker's lease ended while it ran this task."""
        state = await self._states.of(held.tenant, held.task_ref)
        if state is None:
            return
        task = state.task
        if (task.worker, task.live) == (one.worker, True) and self._ledger.now() < task.expires_at_ms:
            authority = msgspec.structs.replace(
                service_authority(Trigger.TIMER, state.tenant, "timekeeper"),
                created_by=task.created_by,
                standing=self._standing(task),
                decision=decision(Rule.LEASE_OVER, f"timer:{LEASE}", task.binding),
            )
            command_id = f"timer:{LEASE}:{task.attempt}"
            done = await self.lose(state, command_id, LEASE, authority, worker=one.worker, attempt=task.attempt)
            state = done.state
        self._observe(state)


def _told(task: Task) -> str:
    """What the client is told when the task ends by this."""
    if task.on_worker_lost is OnWorkerLost.RERUN and task.attempt > 1:
        return f"the work was started {task.attempt} times, and each time the server running it went away"
    return "the server running this task went away"
