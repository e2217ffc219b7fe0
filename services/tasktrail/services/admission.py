"""Whether an operator may do what they order, found out anew for every order, and recorded where they may not.

Guarantees: an order needs the operator's right and a policy that permits it; a refused one is an `AccessDenied` on the
trail before it is answered; what operators look at is on the trail too. Where no policy can be read, who has the right
`policy` may still activate one: by a rule of ours, so that a trail never locks everybody out.

    authority = await admission.admitted(asker, Action.REVOKE, "revoke", tenant="acme")
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec

from tasktrail.events.authority import Authority, PolicyDecision, Trigger
from tasktrail.events.errors import InvalidRequest, NotAuthorised, NothingWritten
from tasktrail.events.facts import AccessDenied, QueryRun
from tasktrail.events.subjects import ANONYMOUS_TENANT, control_subject, denied_subject
from tasktrail.projections.current import State
from tasktrail.services.access.callers import operator_authority
from tasktrail.services.access.policy import UNREADABLE, Action, Policies
from tasktrail.services.access.rules import Rule, decision
from tasktrail.services.governance import NOT_GOVERNED, Governance
from tasktrail.services.ledger import Ledger
from tasktrail.services.operators import RESPONDER, Asker

Clear: TypeAlias = Callable[[Mapping[str, str]], dict[str, str]]
"""`clearing.without_task_ids` of one trail."""

RIGHT_FOR: dict[Action, str] = {
    Action.READ: "read",
    Action.UNSEAL: "unseal",
    Action.REVOKE: "revoke",
    Action.CANCEL: "revoke",
    Action.GRANT: "grant",
    Action.HOLD: "hold",
    Action.ACTIVATE: "policy",
}
"""The right that each action of an operator needs."""


class Admission:
    """Decides on operators' orders."""

    def __init__(self, ledger: Ledger, policies: Policies, governance: Governance, clear: Clear = dict) -> None:
        """`clear` takes task ids out of texts that are to be recorded; it blocks."""
        self._ledger, self._policies, self._governance, self._clear = ledger, policies, governance, clear

    async def entitled(self, asker: Asker, action: Action, order: str) -> None:
        """See that an operator has the right for this at all, before anything is looked up: who has not learns nothing.

        Raises:
            NotAuthorised: they have not; on the trail.
        """
        if RIGHT_FOR[action] not in asker.rights or self._is_revoked(asker, _authority(asker, action, order, "", None)):
            await self.admitted(asker, action, order)

    async def admitted(
        self, asker: Asker, action: Action, order: str, *, tenant: str = "", state: State | None = None
    ) -> Authority:
        """The authority of an operator who may do this, with the decision that says so.

        `state` is the task it is about; else it is about the trail, or `tenant`'s part of it.

        Raises:
            NotAuthorised: they may not; on the trail.
            NothingWritten: what governs is being read again.
            InvalidRequest: a task id was given for a tenant, which would be recorded.
        """
        if tenant and (await self.cleared({"tenant": tenant}))["tenant"] != tenant:
            message = "this is no tenant but a task id, which opens its task: give it on standard input, as a task"
            raise InvalidRequest(message)
        if not self._governance.ready and action is not Action.ACTIVATE:
            raise NothingWritten(NOT_GOVERNED)
        authority = _authority(asker, action, order, tenant, state)
        decided = self._decided(asker, action, order, authority, state)
        authority = msgspec.structs.replace(authority, decision=decided)
        if decided.effect == "allow":
            return authority
        await self._deny(authority, order, decided.reason, state)
        message = f"operator {asker.operator} may not do this: {_why_not(action, decided)}; the refusal is on record"
        raise NotAuthorised(message)

    def permits(self, asker: Asker, action: Action, order: str, *, tenant: str) -> bool:
        """Whether `admitted` would admit this operator. Nothing is done by it, so nothing is recorded."""
        return (
            self._decided(asker, action, order, _authority(asker, action, order, tenant, None), None).effect == "allow"
        )

    async def read(self, asker: Asker, query: str, parameters: dict[str, str], rows: int, *, tenant: str = "") -> None:
        """Record what an operator is about to be shown: of the whole trail, or of `tenant`'s part of it.

        Raises:
            NotAuthorised: they may not see that; on the trail.
        """
        authority = await self.admitted(asker, Action.READ, query, tenant=tenant)
        await self.note_query(authority, query, parameters, rows, case_id=asker.case_id)

    async def note_query(
        self, authority: Authority, query: str, parameters: dict[str, str], rows: int, *, case_id: str
    ) -> None:
        """Record a query under an authority that was found before, in the case that the asker names."""
        parameters = await self.cleared(parameters)
        case_id = (await self.cleared({"case": case_id}))["case"]
        event = QueryRun(at_ms=self._ledger.now(), query=query, parameters=parameters, rows=rows, case_id=case_id)
        await self._ledger.note(control_subject(authority.tenant), authority.tenant, authority, (event,))

    async def cleared(self, texts: Mapping[str, str]) -> dict[str, str]:
        """These texts as they may be recorded: each task id in them replaced by its reference."""
        return await asyncio.to_thread(self._clear, texts)

    def _decided(
        self, asker: Asker, action: Action, order: str, authority: Authority, state: State | None
    ) -> PolicyDecision:
        if RIGHT_FOR[action] not in asker.rights:
            return decision(Rule.NO_RIGHT, order, asker.operator)
        if self._is_revoked(asker, authority):
            return decision(Rule.REVOKED, order, asker.operator)
        about = state.task if state else None
        decided = self._policies.decide(action, authority, about=about, rights=asker.rights)
        if decided.reason == UNREADABLE and action is Action.ACTIVATE:
            return decision(Rule.REPLACES_UNREADABLE, order, asker.operator)
        return decided

    def _is_revoked(self, asker: Asker, authority: Authority) -> bool:
        """Whether an operator was. The data directory's own token stays the way back in: it is replaced instead."""
        return asker.operator != RESPONDER and self._governance.revocation(authority) is not None

    async def _deny(self, authority: Authority, order: str, reason: str, state: State | None) -> None:
        now = self._ledger.now()
        event = AccessDenied(
            at_ms=now,
            method=f"operator/{order}",
            code=NotAuthorised.code,
            count=1,
            first_ms=now,
            last_ms=now,
            reasons={reason: 1},
            refs={state.task_ref: 1} if state else {},
        )
        await self._ledger.note(denied_subject(authority.tenant), authority.tenant, authority, (event,))


def _why_not(action: Action, decided: PolicyDecision) -> str:
    match decided.reason:
        case Rule.NO_RIGHT:
            return f"it needs `{RIGHT_FOR[action]}`"
        case Rule.REVOKED:
            return "they were revoked"
        case _:
            return f"the policy does not permit it ({decided.reason})"


def _authority(asker: Asker, action: Action, order: str, tenant: str, state: State | None) -> Authority:
    """An operator's authority: a responder's where they only look, whose request is named `api/…`."""
    whose = state.tenant if state else tenant or ANONYMOUS_TENANT
    authority = operator_authority(asker.operator, whose, order, asker.address, asker.token_hash)
    if action is Action.READ and authority.request is not None:
        request = msgspec.structs.replace(authority.request, method=f"api/{order}")
        authority = msgspec.structs.replace(authority, trigger=Trigger.RESPONDER, request=request)
    return msgspec.structs.replace(authority, created_by=state.task.created_by) if state else authority
