"""What operators do to tasks and to callers: revoke, lift, list handles, cancel, grant, hold. Free of any framework.

Guarantees: each order is decided anew (`admission.py`), says why, and is an entry with the operator's name before it is
answered; nothing of a token but its digest is kept; one person cannot release the hold they placed; subjects of tenants
under `[privacy]` are revoked and granted by their pseudonyms, whichever of the two an operator gives.

    operating = Operating(admission, governance, inventory, ledger, states, keyring, settings.privacy)
    await operating.revoke(RevokeOrder(kind="client", client_id="cli-7", reason="key leaked"), asker)
"""

import asyncio
import heapq
import re

import msgspec
from nats.errors import Error as NatsError

from tasktrail.events.authority import Authority, Binding, BindingMode, Standing
from tasktrail.events.commands import (
    CancelTask,
    GiveGrant,
    PlaceHold,
    ReleaseHold,
    RevokeHandle,
    TaskCommand,
    WithdrawGrant,
)
from tasktrail.events.errors import CommandRefusedError, InvalidRequest, NotAuthorised, TasktrailError, Unavailable
from tasktrail.events.facts import PrincipalRevoked, RevocationLifted
from tasktrail.events.subjects import is_task_ref
from tasktrail.events.task import Outcome
from tasktrail.projections.current import State
from tasktrail.services.access.claims import digest
from tasktrail.services.access.policy import Action
from tasktrail.services.access.pseudonyms import OURS
from tasktrail.services.admission import Admission
from tasktrail.services.clock import rfc3339
from tasktrail.services.configuration import Privacy
from tasktrail.services.governance import Governance
from tasktrail.services.inventory import Handle, Inventory
from tasktrail.services.keyring import Keyring
from tasktrail.services.ledger import Ledger, Recorded, note_id
from tasktrail.services.operators import RESPONDER, Asker
from tasktrail.services.orders import (
    Became,
    CancelOrder,
    Governed,
    GrantOrder,
    HandleFilter,
    HandleShown,
    HoldOrder,
    Lifted,
    LiftOrder,
    NoSuchTask,
    Owner,
    ReleaseOrder,
    RevocationShown,
    Revoked,
    RevokeOrder,
    RightShown,
    WithdrawOrder,
)
from tasktrail.services.revocations import revocation_of
from tasktrail.services.states import States

AT_ONCE = 16
LAPSED = frozenset({Standing.LAPSED, Standing.REVOKED})
EVERY_RIGHT = ("get", "update", "cancel", "subscribe")
_PSEUDONYM = re.compile(r"p-[a-z2-7]{32}")
_MEMBERS = ("iss", "sub", "client_id", "token", "token_hash", "jti", "task")
_TAKES: dict[str, tuple[frozenset[str], ...]] = {
    "principal": (frozenset({"sub"}), frozenset({"iss", "sub"})),
    "client": (frozenset({"client_id"}), frozenset({"client_id", "iss"})),
    "token": (frozenset({"token"}), frozenset({"token_hash"}), frozenset({"jti", "iss"})),
    "handle": (frozenset({"task"}),),
}


class NoSuchRevocation(TasktrailError):
    """No revocation that holds has this id."""

    http_status = 404
    reason = "no_such_revocation"

    def __init__(self) -> None:
        super().__init__("no revocation that holds has this id; `tasktrail revoke list` shows those that do")


class SamePerson(NotAuthorised):
    """A hold is released by another person than the one who placed it."""

    written = "refusal"
    reason = "same_person"

    def __init__(self, operator: str) -> None:
        super().__init__(
            f"a hold takes two people: {operator} placed this one, so another operator must release it; "
            "the refusal is on record"
        )


class Operating:
    """Carries out operators' orders."""

    def __init__(  # noqa: PLR0913, PLR0917 - its collaborators
        self,
        admission: Admission,
        governance: Governance,
        inventory: Inventory,
        ledger: Ledger,
        states: States,
        keyring: Keyring,
        privacy: Privacy,
    ) -> None:
        self._admission, self._governance, self._inventory = admission, governance, inventory
        self._ledger, self._states, self._keyring, self._privacy = ledger, states, keyring, privacy

    async def revoke(self, order: RevokeOrder, asker: Asker) -> Revoked:
        """Refuse whoever matches from now on; when this returns, it holds in this process, elsewhere within a second.

        Raises:
            InvalidRequest: the members are not those of the kind.
            NotAuthorised, NoSuchTask, Unavailable: as everywhere.
        """
        given = frozenset(name for name in _MEMBERS if getattr(order, name))
        if given not in _TAKES[order.kind]:
            wants = " or ".join(", ".join(sorted(one)) for one in _TAKES[order.kind])
            message = f"to revoke a {order.kind} give {wants}; given: {', '.join(sorted(given)) or 'none'}"
            raise InvalidRequest(message)
        if order.kind == "principal" and not order.iss and not order.tenant:
            message = "a principal without an issuer is one tenant's: name the tenant, or give its issuer"
            raise InvalidRequest(message)
        if order.kind == "handle":
            return await self._revoke_handle(order, asker)
        self._refuse_the_responders_own(order, asker)
        events = self._revocations(order)
        authority = await self._admission.admitted(asker, Action.REVOKE, "revoke", tenant=order.tenant)
        tasks = sum(len(self._inventory.named(revocation_of(event))) for event in events)
        if held := self._governance.revocations.same_as(revocation_of(events[0])):
            return Revoked(revocation=held.id, kind=order.kind, entry="", tasks=tasks)
        entry = ""
        for event in events:
            entry = await self._governance.record(event, authority)
        return Revoked(revocation=events[0].revocation, kind=order.kind, entry=entry, tasks=tasks)

    @staticmethod
    def _refuse_the_responders_own(order: RevokeOrder, asker: Asker) -> None:
        """The data directory's token is replaced where it lies: revoking it would be recorded and change nothing."""
        by_token = digest(order.token.strip()) if order.token else order.token_hash
        by_name = (order.iss, order.sub) == (OURS, RESPONDER)
        if by_name or (asker.operator == RESPONDER and by_token == asker.token_hash):
            message = "the data directory's own token is not revoked: remove responder.token and start again"
            raise InvalidRequest(message)

    def _revocations(self, order: RevokeOrder) -> list[PrincipalRevoked]:
        """What to record: one event, or two where a client may also be known by its pseudonym."""
        personal = order.kind in {"principal", "client"} and order.iss != OURS
        if personal and not order.tenant and self._privacy.subjects and self._privacy.tenants:
            message = "name the tenant: the subjects of some tenants are recorded as pseudonyms, another one in each"
            raise InvalidRequest(message)
        event = PrincipalRevoked(
            at_ms=self._ledger.now(),
            revocation=note_id(),
            kind=order.kind,
            tenant=order.tenant,
            iss=order.iss,
            sub=self._subject(order.tenant, order.iss, order.sub),
            client_id=order.client_id,
            token_hash=digest(order.token.strip()) if order.token else order.token_hash,
            jti=order.jti,
            reason=order.why,
        )
        other = self._subject(order.tenant, order.iss, order.client_id)
        if other == order.client_id:
            return [event]
        return [event, msgspec.structs.replace(event, client_id=other)]

    def recorded_subject(self, tenant: str | None, iss: str | None, sub: str | None) -> str | None:
        """A subject that is looked for, as it is recorded: a name stands on no trail that keeps pseudonyms.

        Raises:
            InvalidRequest: it has another pseudonym in each tenant, and none is named.
        """
        if not sub:
            return sub
        if not tenant and self._privacy.subjects and self._privacy.tenants and not _PSEUDONYM.fullmatch(sub):
            message = "name the tenant: the subjects of some tenants are recorded as pseudonyms, another one in each"
            raise InvalidRequest(message)
        return self._subject(tenant or "", iss or "", sub)

    def _subject(self, tenant: str, iss: str, text: str) -> str:
        """A subject as this tenant's trail knows it."""
        plain = not text or iss == OURS or not (self._privacy.subjects and self._privacy.covers(tenant))
        return text if plain or _PSEUDONYM.fullmatch(text) else self._keyring.pseudonym(tenant, text)

    async def _revoke_handle(self, order: RevokeOrder, asker: Asker) -> Revoked:
        await self._admission.entitled(asker, Action.REVOKE, "revoke")
        state = await self._state(order.task)
        authority = await self._admission.admitted(asker, Action.REVOKE, "revoke", state=state)
        done = await self._submit(state, RevokeHandle(id=note_id(), reason=order.why), authority)
        _accepted(done, "RevokeHandle")
        became = _became(state, done)
        return Revoked(kind=order.kind, entry=became.entry, tasks=1, became=became)

    async def lift(self, order: LiftOrder, asker: Asker) -> Lifted:
        """End a revocation. Handles revoked and tasks cancelled in its wake stay so.

        Raises:
            NoSuchRevocation: none that holds has this id.
        """
        known = self._governance.revocations.get(order.revocation)
        tenant = known.tenant if known else ""
        authority = await self._admission.admitted(asker, Action.REVOKE, "lift", tenant=tenant)
        if known is None:
            raise NoSuchRevocation
        event = RevocationLifted(at_ms=self._ledger.now(), revocation=order.revocation, reason=order.why)
        return Lifted(revocation=order.revocation, entry=await self._governance.record(event, authority))

    async def revocations(self, asker: Asker) -> list[RevocationShown]:
        """Those that hold, in the order in which they were recorded."""
        authority = await self._admission.admitted(asker, Action.READ, "revocations")
        shown = [
            RevocationShown(**msgspec.structs.asdict(one), handles=len(self._inventory.named(one)))
            for one in self._governance.revocations.all()
        ]
        await self._admission.note_query(authority, "revocations", {}, len(shown), case_id=asker.case_id)
        return shown

    async def handles(self, wanted: HandleFilter, most: int, asker: Asker) -> list[HandleShown]:
        """Handles that still open something, or whose work still runs, the newest first."""
        wanted = msgspec.structs.replace(wanted, sub=self.recorded_subject(wanted.tenant, wanted.iss, wanted.sub))
        authority = await self._admission.admitted(asker, Action.READ, "handles", tenant=wanted.tenant or "")
        now = self._ledger.now()
        matching = [one for one in self._inventory if _matches(one, wanted)]
        if wanted.lapsed is not None:
            matching = [one for one in matching if (self._governance.standing(one, now) in LAPSED) is wanted.lapsed]
        newest = heapq.nlargest(most, matching, key=lambda one: (one.created_at_ms, one.task_ref))
        shown = [self._shown(one, now) for one in newest]
        asked = {name: str(value) for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
        await self._admission.note_query(authority, "handles", asked, len(shown), case_id=asker.case_id)
        return shown

    def _shown(self, handle: Handle, now: int) -> HandleShown:
        standing = self._governance.standing(handle, now)
        return HandleShown(
            task_ref=handle.task_ref,
            tenant=handle.tenant,
            server=handle.server,
            tool=handle.tool,
            status=handle.status,
            live=handle.live,
            revoked=handle.revoked,
            owner=_owner(handle.binding),
            rights=() if handle.revoked else tuple(_rights(handle, now)),
            created_at=rfc3339(handle.created_at_ms),
            age_ms=max(0, now - handle.created_at_ms),
            ttl_ms=handle.ttl_ms,
            expires_at=rfc3339(handle.expires_at_ms),
            standing=standing,
            authority_until=rfc3339(handle.until_s * 1000) if handle.until_s else None,
            lapsed=standing in LAPSED,
            accessed_at=rfc3339(handle.accessed_at_ms) if handle.accessed_at_ms else None,
        )

    async def cancel(self, order: CancelOrder, asker: Asker) -> list[Became]:
        """Stop these tasks; what became of each, in the order given. One that is named twice is stopped once."""
        await self._admission.entitled(asker, Action.CANCEL, "cancel")
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(task: str) -> Became:
            async with turns:
                return await self._cancel(task, order, asker)

        each = list(dict.fromkeys(order.tasks))
        became = dict(zip(each, await asyncio.gather(*(one(task) for task in each)), strict=True))
        return [became[task] for task in order.tasks]

    async def _cancel(self, task: str, order: CancelOrder, asker: Asker) -> Became:
        ref = ""
        try:
            state = await self._state(task)
            ref = state.task_ref
            authority = await self._admission.admitted(asker, Action.CANCEL, "cancel", state=state)
            done = await self._submit(state, CancelTask(id=note_id(), cause="operator", reason=order.why), authority)
        except NoSuchTask as error:
            return Became(task="", outcome=error.reason)
        except TasktrailError as error:
            outcome = "unavailable" if isinstance(error, Unavailable) else "refused"
            return Became(task=ref, outcome=outcome, reason=error.message)
        return _became(state, done)

    async def grant(self, order: GrantOrder, asker: Asker) -> Governed:
        """Let somebody else use a handle.

        Raises:
            InvalidRequest: it says too little of whom, or ends before it begins.
            CommandRefusedError: the handle has ended, or has as many grants as it may.
        """
        await self._admission.entitled(asker, Action.GRANT, "grant")
        state = await self._state(order.task)
        authority = await self._admission.admitted(asker, Action.GRANT, "grant", state=state)
        if order.until_ms and order.until_ms <= self._ledger.now():
            message = f"until_ms ({order.until_ms}) is over; give a later one, or 0 for the handle's own end"
            raise InvalidRequest(message)
        command = GiveGrant(
            id=note_id(),
            grant=note_id(),
            to=self._grantee(order, state),
            mode=order.mode,
            rights=tuple(dict.fromkeys(order.rights)),
            until_ms=order.until_ms,
            reason=order.why,
        )
        done = await self._submit(state, command, authority)
        _accepted(done, "GiveGrant")
        return Governed(task_ref=state.task_ref, id=command.grant, entry=done.entry_id)

    def _grantee(self, order: GrantOrder, state: State) -> Binding:
        tenant = order.tenant or state.tenant
        needs = {
            BindingMode.EXACT: ("iss", "sub"),
            BindingMode.USER: ("iss", "sub"),
            BindingMode.CLIENT: ("client_id",),
            BindingMode.TENANT: (),
        }
        missing = [name for name in needs[order.mode] if not getattr(order, name)]
        if missing:
            message = f"a grant in mode {order.mode} compares {', '.join(missing)} too: give it"
            raise InvalidRequest(message)
        sub = self._subject(tenant, order.iss, order.sub)
        client_id = sub if order.client_id and order.client_id == order.sub else order.client_id
        return Binding(tenant=tenant, iss=order.iss, sub=sub, client_id=client_id)

    async def withdraw(self, order: WithdrawOrder, asker: Asker) -> Governed:
        """End a grant.

        Raises:
            CommandRefusedError: the task has no such grant.
        """
        await self._admission.entitled(asker, Action.GRANT, "withdraw")
        state = await self._state(order.task)
        authority = await self._admission.admitted(asker, Action.GRANT, "withdraw", state=state)
        command = WithdrawGrant(id=note_id(), grant=order.grant, reason=order.why)
        done = await self._submit(state, command, authority)
        _accepted(done, "WithdrawGrant")
        return Governed(task_ref=state.task_ref, id=order.grant, entry=done.entry_id)

    async def hold(self, order: HoldOrder, asker: Asker) -> Governed:
        """Keep a task's payloads until another operator releases the hold.

        Raises:
            CommandRefusedError: they are destroyed already, or the task has as many holds as it may.
        """
        await self._admission.entitled(asker, Action.HOLD, "hold")
        state = await self._state(order.task)
        authority = await self._admission.admitted(asker, Action.HOLD, "hold", state=state)
        command = PlaceHold(id=note_id(), hold=note_id(), by=asker.operator, reason=order.reason, case_id=order.case_id)
        done = await self._submit(state, command, authority)
        _accepted(done, "PlaceHold")
        return Governed(task_ref=state.task_ref, id=command.hold, entry=done.entry_id)

    async def release(self, order: ReleaseOrder, asker: Asker) -> Governed:
        """End a hold that another operator placed.

        Raises:
            SamePerson: this operator placed it.
            CommandRefusedError: the task has no such hold.
        """
        await self._admission.entitled(asker, Action.HOLD, "release")
        state = await self._state(order.task)
        authority = await self._admission.admitted(asker, Action.HOLD, "release", state=state)
        command = ReleaseHold(id=note_id(), hold=order.hold, by=asker.operator, reason=order.why)
        done = await self._submit(state, command, authority)
        if done.reason == "same_person":
            raise SamePerson(asker.operator)
        _accepted(done, "ReleaseHold")
        return Governed(task_ref=state.task_ref, id=order.hold, entry=done.entry_id)

    async def _state(self, task: str) -> State:
        """The task with this reference or id.

        Raises:
            NoSuchTask: there is none.
            Unavailable: the trail does not answer.
        """
        try:
            state = await self._states.by_handle(task) if is_task_ref(task) else None
            state = state or await self._states.by_handle(self._keyring.ref(task))
        except (NatsError, OSError) as error:
            message = "the trail does not answer; nothing was written. Try again"
            raise Unavailable(message) from error
        if state is None:
            raise NoSuchTask
        return state

    async def _submit(self, state: State, command: TaskCommand, authority: Authority) -> Recorded:
        return await self._ledger.submit(state.tenant, state.task_ref, command, authority)


def _accepted(done: Recorded, command: str) -> None:
    if done.outcome is Outcome.REFUSED:
        raise CommandRefusedError(command, done.state.task.status, done.reason)


def _became(state: State, done: Recorded) -> Became:
    entry = "" if done.outcome is Outcome.UNCHANGED else done.entry_id
    return Became(task=state.task_ref, outcome=done.outcome.value, reason=done.reason, entry=entry)


def _owner(who: Binding) -> Owner:
    return Owner(tenant=who.tenant, iss=who.iss, sub=who.sub, client_id=who.client_id)


def _rights(handle: Handle, now: int) -> list[RightShown]:
    """The creator's, then the grants that still open something."""
    creator = RightShown(who=_owner(handle.binding), mode=handle.binding_mode, rights=EVERY_RIGHT)
    granted = [
        RightShown(
            who=_owner(grant.to),
            mode=grant.mode,
            rights=grant.rights,
            grant=name,
            until=rfc3339(grant.until_ms) if grant.until_ms else None,
        )
        for name, grant in handle.grants.items()
        if not grant.until_ms or now < grant.until_ms
    ]
    return [creator, *granted]


def _matches(handle: Handle, wanted: HandleFilter) -> bool:
    """Whether a handle is of those wanted, leaving `lapsed` aside."""
    who = handle.binding
    pairs = (
        (wanted.tenant, handle.tenant),
        (wanted.server, handle.server),
        (wanted.tool, handle.tool),
        (wanted.iss, who.iss),
        (wanted.sub, who.sub),
        (wanted.client_id, who.client_id),
        (wanted.live, handle.live),
    )
    return all(want is None or want == have for want, have in pairs)
