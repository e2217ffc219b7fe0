"""What a revocation does to the tasks that are there: they are marked, and stop or wait as the policy says.

Guarantees: every live task whose creator, client, first or latest credential is revoked gets `AuthorityChanged` on its
trail, then `CancelRequested` unless the policy lets its work continue or wait; whoever listens to it is told to look
again, and of other tasks those first that the credential in question opened here; lifting the revocation marks it back.
Every process does all of it: the commands have fixed ids, so each happens once. What cannot be written is tried again
until it is; what was under way when a process ended is found by the next, as is a task that was created while its
creator was being revoked.

    enforcement = Enforcement(governance, inventory, ledger, states, policies, tell)
    governance.on_change.append(enforcement.enforce)
    await each_current(states, enforcement.observe)     # before the projector feeds it
    await enforcement.start()
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec
from nats.errors import Error as NatsError

from tasktrail.events.authority import Authority, PolicyDecision, Standing, Trigger
from tasktrail.events.commands import CancelTask, ChangeAuthority
from tasktrail.events.errors import CommandReused, TasktrailError
from tasktrail.events.facts import GovernanceEvent, PolicyActivated, PrincipalRevoked
from tasktrail.events.task import Task
from tasktrail.projections.current import State
from tasktrail.services.access.callers import Channel, server_authority, service_authority
from tasktrail.services.access.policy import Action, Policies
from tasktrail.services.access.rules import Rule, decision
from tasktrail.services.ending import end
from tasktrail.services.governance import Governance
from tasktrail.services.inventory import Inventory
from tasktrail.services.ledger import Ledger
from tasktrail.services.revocations import revocation_of
from tasktrail.services.states import States

_log = logging.getLogger(__name__)

AT_ONCE = 16
RETRY_S = 0.5
CAUSE = "authority_revoked"

Tell = Callable[[State], Awaitable[None]]


class Enforcement:
    """Sees to it that no live task goes on as if its creator had not been revoked."""

    def __init__(  # noqa: PLR0913, PLR0917 - its collaborators
        self,
        governance: Governance,
        inventory: Inventory,
        ledger: Ledger,
        states: States,
        policies: Policies,
        tell: Tell,
    ) -> None:
        """`tell(state)`: have whoever runs or watches the task look again."""
        self._governance, self._inventory, self._ledger = governance, inventory, ledger
        self._states, self._policies, self._tell = states, policies, tell
        self._due: dict[str, tuple[str, str]] = {}
        self._to_look: dict[str, str] = {}
        self._more = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin. The states that the bucket holds are to have been observed, so that what is due is known."""
        self._running = asyncio.create_task(self._run(), name="enforcement")

    async def stop(self) -> None:
        """Stop; what is due is found by the next start."""
        if self._running is not None:
            await end(self._running)
            self._running = None

    async def settled(self) -> None:
        """Return when nothing is due any more."""
        await self._idle.wait()

    def observe(self, state: State) -> None:
        """A task moved: keep its handle, and see whether it stands as its creator does now."""
        self._inventory.observe(state)
        if self._is_due(state.task):
            self._add(state.task_ref, state.tenant, "")

    def _is_due(self, task: Task) -> bool:
        """Whether something is still to be done: to mark the task, to mark it back, or to see whether it is to stop."""
        to_stop = task.cancel_requested_at_ms is None
        if self._governance.creator_revoked(task) is not None:
            return task.live and (task.standing is not Standing.REVOKED or to_stop)
        return task.live and (self._is_lifted(task) or (task.revoked_at_ms is not None and to_stop))

    def _is_lifted(self, task: Task) -> bool:
        """Whether what the trail says the creator was revoked by is known to hold no more; not known yet is no."""
        return task.standing is Standing.REVOKED and self._governance.revocations.is_lifted(task.standing_cause)

    async def enforce(self, event: GovernanceEvent) -> None:
        """Something governs otherwise from here on: see to the tasks it concerns."""
        if isinstance(event, PolicyActivated):
            return  # asked anew at every step
        if isinstance(event, PrincipalRevoked):
            one = revocation_of(event)
            for handle in self._inventory.named(one):
                self._add(handle.task_ref, handle.tenant, "")
            # Others than the creator may be listening: by a grant, in another mode, or with a later credential.
            others = self._inventory if one.kind == "token" else self._inventory.wider()
            first = {handle.task_ref: handle.tenant for handle in self._inventory.opened_by(one)}
            self._to_look = first | self._to_look | {handle.task_ref: handle.tenant for handle in others}
            self._more.set()
        else:
            for handle in self._inventory:
                if handle.live and handle.standing is Standing.REVOKED:
                    self._add(handle.task_ref, handle.tenant, event.revocation)

    def _add(self, ref: str, tenant: str, lifted: str) -> None:
        if lifted or ref not in self._due:
            self._due[ref] = (tenant, lifted)
        self._idle.clear()
        self._more.set()

    async def _run(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            due, self._due = self._due, {}
            failed = 0
            for start in range(0, len(due), AT_ONCE):
                batch = [(ref, *due[ref]) for ref in list(due)[start : start + AT_ONCE]]
                failed += (await asyncio.gather(*(self._settle(*one) for one in batch))).count(False)
            await self._have_looked()
            if failed:
                await asyncio.sleep(RETRY_S)
            if self._due or self._to_look:
                self._more.set()
            if not self._due:
                self._idle.set()

    async def _have_looked(self) -> None:
        """Tell who listens to tasks that are otherwise not concerned, some at least, as long as nothing else comes.

        Subscriptions are looked at again anyway after a while: what is not remembered here is worth one try.
        """
        looked = 0
        while self._to_look and (looked < AT_ONCE or not self._more.is_set()):
            looked += 1
            ref = next(iter(self._to_look))
            tenant = self._to_look.pop(ref)
            try:
                state = self._states.kept(ref) or await self._states.of(tenant, ref)
                if state is not None:
                    await self._tell(state)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others have their turn
                _log.warning("who listens to task %s is not told to look again: %s", ref, error)

    async def _settle(self, ref: str, tenant: str, lifted: str) -> bool:
        """Bring one task to what governs now. False: it has to be tried again, and is due."""
        try:
            state = await self._states.of(tenant, ref)
            if state is not None:
                state = await self._marked(state, lifted)
                await self._stopped(state)
                await self._tell(state)
        except CommandReused:
            pass  # another process was first, at another moment: what it wrote holds
        except (TasktrailError, NatsError, OSError) as error:
            _log.warning("task %s is not brought to what governs now yet: %s", ref, error)
            self._due.setdefault(ref, (tenant, lifted))
            return False
        except Exception:  # noqa: BLE001 - whatever is wrong with one task, the others have their turn
            _log.exception("task %s cannot be brought to what governs now", ref)
        return True

    async def _marked(self, state: State, lifted: str) -> State:
        """The state with the creator's standing on its trail: as revoked, or not any more."""
        task = state.task
        revocation = self._governance.creator_revoked(task)
        is_marked = task.standing is Standing.REVOKED
        if not task.live or (is_marked if revocation else not self._is_lifted(task)):
            return state
        standing = self._governance.standing(task, self._ledger.now())
        command = ChangeAuthority(
            id=f"standing:{task.seq}",
            standing=standing,
            until_s=task.until_s,
            cause=revocation.id if revocation else lifted or task.standing_cause,
        )
        authority = self._authority(state, standing)
        return (await self._ledger.submit(state.tenant, state.task_ref, command, authority)).state

    async def _stopped(self, state: State) -> None:
        """Cancel a task whose handle was revoked, or whose creator was, unless a policy lets its work go on or wait."""
        task = state.task
        if not task.live or task.cancel_requested_at_ms is not None:
            return
        if task.revoked_at_ms is not None:
            await self._cancel(state, "handle_revoked", decision(Rule.SERVICE_ITSELF, "revocation", task.binding))
            return
        if task.standing is not Standing.REVOKED:
            return
        asked = msgspec.structs.replace(
            server_authority(Channel(server=task.server, in_process=False), state.tenant, "continue"),
            created_by=task.created_by,
            standing=task.standing,
        )
        decided = self._policies.decide(Action.CONTINUE, asked, about=task)
        if "allow" in {decided.effect, self._policies.decide(Action.PAUSE, asked, about=task).effect}:
            return
        await self._cancel(state, CAUSE, decided)

    async def _cancel(self, state: State, cause: str, decided: PolicyDecision) -> None:
        # The id that the work's own step has in `access.work`, whichever comes first.
        cancel = CancelTask(id=f"policy:{cause}", cause=cause)
        enforced = msgspec.structs.replace(
            service_authority(Trigger.OPERATOR, state.tenant, "policy"),
            created_by=state.task.created_by,
            standing=state.task.standing,
            decision=decided,
        )
        await self._ledger.submit(state.tenant, state.task_ref, cancel, enforced)

    @staticmethod
    def _authority(state: State, standing: Standing) -> Authority:
        return msgspec.structs.replace(
            service_authority(Trigger.OPERATOR, state.tenant, "governance"),
            created_by=state.task.created_by,
            standing=standing,
            decision=decision(Rule.SERVICE_ITSELF, "revocation", state.task.binding),
        )
