"""What operators do with the policy: put another in its place, look at it, and have a past decision made again.

Guarantees: a text that is not valid is refused and nothing changes, and so is one under which the operator who
activates it, or the holder of the data directory's own token, could not read the trail, revoke or activate another one
as before: whoever has the right `policy` alone locks nobody out. A policy that was activated is an entry with its whole
text, so that any decision on the trail can be made again under the policy of then.

    await policing.activate(PolicyOrder(text=text, version="2026-11", reason="answers need a human"), asker)
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterator

from tasktrail.events import entry as entries
from tasktrail.events.errors import InvalidRequest, TasktrailError
from tasktrail.events.facts import PolicyActivated
from tasktrail.events.subjects import ANONYMOUS_TENANT
from tasktrail.services.access import policy as cedar
from tasktrail.services.access.callers import operator_authority
from tasktrail.services.access.policy import Action, InvalidPolicy, Policies
from tasktrail.services.access.rules import VERSION as BUILTIN
from tasktrail.services.admission import RIGHT_FOR, Admission
from tasktrail.services.governance import Governance
from tasktrail.services.ledger import Ledger
from tasktrail.services.operators import Asker
from tasktrail.services.orders import Activated, Explained, ExplainOrder, PolicyOrder, PolicyShown

KEPT = {
    Action.ACTIVATE: "activate another one: permit activatePolicy",
    Action.REVOKE: "revoke: permit revoke",
    Action.READ: "read the trail: permit readTrail",
}
"""What operators with the right for it can do under every policy, in words for those whose text forgets it."""


class NoSuchEntry(TasktrailError):
    """Nothing on the trail has this entry id."""

    http_status = 404
    reason = "no_such_entry"

    def __init__(self) -> None:
        super().__init__("no entry on this trail has this id; a timeline shows the ids of a task's entries")


class VersionTaken(TasktrailError):
    """Another text was activated under this name: decisions that name it would be told apart by their digest only."""

    http_status = 409
    reason = "version_taken"

    def __init__(self, known: PolicyActivated) -> None:
        super().__init__(
            f"version {known.version} is another policy ({known.sha256[:12]}); call this one otherwise. "
            "Nothing was activated"
        )


class Policing:
    """Carries out operators' orders about the policy. `entry(id)` gives an entry's bytes, None when there is none."""

    def __init__(
        self,
        admission: Admission,
        governance: Governance,
        policies: Policies,
        ledger: Ledger,
        entry: Callable[[str], Awaitable[bytes | None]],
    ) -> None:
        self._admission, self._governance, self._policies = admission, governance, policies
        self._ledger, self._entry = ledger, entry

    async def activate(self, order: PolicyOrder, asker: Asker) -> Activated:
        """Decide by this policy from now on: here when this returns, elsewhere within a second.

        Raises:
            VersionTaken: another text was activated under this name.
            InvalidPolicy: the text is not valid, or would lock this operator or "responder" out; nothing was activated.
        """
        authority = await self._admission.admitted(asker, Action.ACTIVATE, "activate")
        candidate = Policies()
        candidate.activate(order.text, order.version)
        if problems := [
            *_locked_out(candidate, asker),
            *_locked_out(candidate, Asker(token_hash="", address=asker.address)),
        ]:
            raise InvalidPolicy(list(dict.fromkeys(problems)))
        sha256 = hashlib.sha256(order.text.encode()).hexdigest()
        known = self._governance.policy_called(order.version)
        if known is not None and known.sha256 != sha256:
            raise VersionTaken(known)
        event = PolicyActivated(
            at_ms=self._ledger.now(),
            version=order.version,
            sha256=sha256,
            schema_sha256=cedar.schema_sha256(),
            text=order.text,
            reason=order.why,
        )
        entry = await self._governance.record(event, authority)
        return Activated(version=order.version, sha256=sha256, entry=entry)

    async def show(self, asker: Asker) -> PolicyShown:
        """The policy that decides now."""
        await self._admission.read(asker, "policy", {}, 1)
        now = self._policies
        return PolicyShown(version=now.version, sha256=now.sha256, schema_sha256=cedar.schema_sha256(), text=now.text)

    async def explain(self, order: ExplainOrder, asker: Asker) -> Explained:
        """The decision of an entry made again, from the inputs it recorded.

        Raises:
            NoSuchEntry: there is none with this id.
            InvalidRequest: it holds no decision of a policy, or the policy of then is not known here.
        """
        await self._admission.read(asker, "explain", {"entry": order.entry, "today": str(order.today)}, 1)
        body = await self._entry(order.entry)
        if body is None:
            raise NoSuchEntry
        recorded = entries.decode(body).authority.decision
        if recorded is None:
            message = "this entry holds no decision"
            raise InvalidRequest(message)
        if recorded.policy_version == BUILTIN:
            message = f"this decision ({recorded.reason}) was made by a rule in code, not by a policy"
            raise InvalidRequest(message)
        text = self._policies.text if order.today else self._text_of(recorded.policy_sha256)
        if not text:
            message = (
                "no policy can be read today: everything is denied"
                if order.today
                else f"policy {recorded.policy_version} ({recorded.policy_sha256[:12]}) is not on this trail: it was "
                "shipped with another version of tasktrail; ask for today's"
            )
            raise InvalidRequest(message)
        again = cedar.explain(recorded, "", text)
        return Explained(entry=order.entry, recorded=recorded, again=again, same=again.effect == recorded.effect)

    def _text_of(self, sha256: str) -> str:
        """The policy with this digest: an activated one, or the shipped one; empty when it is neither."""
        activated = self._governance.policy(sha256)
        if activated is not None:
            return activated.text
        shipped = cedar.shipped()
        return shipped if hashlib.sha256(shipped.encode()).hexdigest() == sha256 else ""


def _locked_out(candidate: Policies, who: Asker) -> Iterator[str]:
    """What an operator could not do any more under this policy, of that which must stay possible."""
    authority = operator_authority(who.operator, ANONYMOUS_TENANT, "activate", who.address, who.token_hash)
    for action, permit in KEPT.items():
        decided = candidate.decide(action, authority, about=None, rights=who.rights)
        if RIGHT_FOR[action] in who.rights and decided.effect != "allow":
            yield f"it would not let {who.operator} {permit} where {who.operator} has the right"
