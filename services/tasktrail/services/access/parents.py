"""The task whose work made a call that makes another task.

Guarantees: only a task of the same tenant; the id of the parent need not travel: the W3C trace context of its run names
it. What names it so is the caller's word, and is recorded as claimed; a handle that an MCP server named, as asserted,
and only when it opens its task for the caller.

    parents = Parents(states, keyring)
    parents.of_run = inventory.of_run
    await parents.of(said, "acme", opens)  ->  ("7k…", Level.CLAIMED)
"""

from collections.abc import Callable

from tasktrail.events.authority import Level
from tasktrail.events.subjects import is_task_id
from tasktrail.events.tracing import runs_named
from tasktrail.projections.current import State
from tasktrail.services.inventory import Handle
from tasktrail.services.keyring import Keyring
from tasktrail.services.messages import CreateTask
from tasktrail.services.states import States


class Parents:
    """Finds the parents of new tasks."""

    def __init__(self, states: States, keyring: Keyring) -> None:
        self._states, self._keyring = states, keyring
        self.of_run: Callable[[str], Handle | None] = lambda _span: None
        """The handle of the task whose work has this span (`Inventory.of_run`)."""

    async def of(self, said: CreateTask, tenant: str, opens: Callable[[State], bool]) -> tuple[str, Level]:
        """The reference of the parent, empty where there is none, and how far that is proved.

        `opens`: whether the handle opens this task for the caller.
        """
        if is_task_id(said.parent_task):
            state = await self._states.of(tenant, self._keyring.ref(said.parent_task))
            if state is not None and opens(state):
                return state.task_ref, Level.ASSERTED
        for span in runs_named(said.call.traceparent, said.call.tracestate):
            handle = self.of_run(span)
            if handle is not None and handle.tenant == tenant:
                return handle.task_ref, Level.CLAIMED
        return "", Level.CLAIMED
