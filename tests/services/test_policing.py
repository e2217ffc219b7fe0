"""What operators may do with the policy, and what becomes of it. Source: issue "Authority"; P5."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.services.operation import OLGA, Operation, operation
from tests.services.orders import ref_of

from tasktrail.events.authority import Binding
from tasktrail.events.errors import InvalidRequest, NotAuthorised, TasktrailError
from tasktrail.events.facts import (
    AccessDenied,
    PolicyActivated,
)
from tasktrail.services.access.policy import InvalidPolicy, shipped
from tasktrail.services.operators import Asker
from tasktrail.services.orders import (
    CancelOrder,
    ExplainOrder,
    PolicyOrder,
)
from tasktrail.services.policing import NoSuchEntry, VersionTaken
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.scenario import ANA

A, B = ref_of("a"), ref_of("b")
BEN = Binding(tenant="acme", iss=ANA.iss, sub="ben", client_id="desk")
WHY = "an incident"
TOKEN = "a-bearer-token-nobody-may-see-4711"
NOBODY_CANCELS = '\n@id("nobody-cancels") forbid (principal, action == Action::"cancelTask", resource);\n'


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "tasktrail")


@pytest.fixture
async def one(fresh_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Operation]:
    async with operation(fresh_nats, tmp_path) as made:
        yield made


def without(*rights: str) -> Asker:
    """Olga, who lacks these rights."""
    return msgspec.structs.replace(OLGA, rights=tuple(right for right in OLGA.rights if right not in rights))


async def test_a_policy_may_deny_what_a_right_would_allow(one: Operation) -> None:
    await one.make(A)
    await one.policing.activate(PolicyOrder(text=shipped() + NOBODY_CANCELS, version="v2", reason=WHY), OLGA)
    [became] = await one.operating.cancel(CancelOrder(tasks=(A,), reason=WHY), OLGA)
    assert became.outcome == "refused"
    assert "the policy does not permit it (nobody-cancels)" in became.reason
    [(_, event)] = await one.events(AccessDenied)
    assert isinstance(event, AccessDenied)
    assert event.refs == {A: 1}


@pytest.mark.requirement("P5")
async def test_a_policy_that_is_invalid_or_locks_out_is_refused_and_changes_nothing(one: Operation) -> None:
    """Issue "Authority": a broken policy is refused at activation."""
    lockout = '@id("readers") permit (principal is Operator, action == Action::"readTrail", resource);'
    for text, says in (
        ("permit(", "no valid policy"),
        (
            shipped().replace('Action::"pause"', 'Action::"rest"')
            + '@id("x") permit (principal, action == Action::"r", resource);',
            "no valid policy",
        ),
        (lockout, "permit activatePolicy"),
    ):
        with pytest.raises(InvalidPolicy, match=says):
            await one.policing.activate(PolicyOrder(text=text, version="v2", reason=WHY), OLGA)
    assert not await one.events(PolicyActivated)
    assert (await one.policing.show(OLGA)).version == "shipped-1"


@pytest.mark.requirement("P5")
async def test_who_may_only_activate_policies_locks_nobody_out(one: Operation) -> None:
    """The right `policy` alone must not be every right: reading, revoking and activating stay with who had them."""
    mine = (
        '@id("a") permit (principal, action == Action::"activatePolicy", resource) when { principal.name == "olga" };'
    )
    only = Asker(token_hash="o" * 43, address="203.0.113.5", operator="olga", rights=("policy",))
    with pytest.raises(InvalidPolicy) as refused:
        await one.policing.activate(PolicyOrder(text=mine, version="v2", reason=WHY), only)
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [
        "it would not let responder activate another one",
        "it would not let responder revoke",
        "it would not let responder read the trail",
    ]
    against = shipped() + '@id("x") forbid (principal, action == Action::"revoke", resource) when {%s};'
    for who in ("responder", "olga"):
        text = against % f'principal has name && principal.name == "{who}"'
        with pytest.raises(InvalidPolicy, match=f"it would not let {who} revoke"):
            await one.policing.activate(PolicyOrder(text=text, version="v2", reason=WHY), OLGA)
    assert not await one.events(PolicyActivated)
    await one.policing.activate(PolicyOrder(text=text, version="v2", reason=WHY), only)  # olga has no right to revoke


@pytest.mark.requirement("P5")
async def test_activating_a_policy_is_an_entry_with_its_text(one: Operation) -> None:
    text = shipped() + NOBODY_CANCELS
    activated = await one.policing.activate(PolicyOrder(text=text, version="2026-11", reason=WHY, case_id="C"), OLGA)
    [(entry, event)] = await one.events(PolicyActivated)
    assert isinstance(event, PolicyActivated)
    assert (entry.id, event.text, event.version) == (activated.entry, text, "2026-11")
    assert event.reason == "an incident (case C)"
    shown = await one.policing.show(OLGA)
    assert (shown.version, shown.sha256, shown.text) == ("2026-11", activated.sha256, text)
    assert shown.schema_sha256 == event.schema_sha256


async def test_where_no_policy_can_be_read_one_can_still_be_activated(one: Operation) -> None:
    """A trail must not lock everybody out for ever; the right `policy` is still needed."""
    one.parts.policies.lose("a test")
    order = PolicyOrder(text=shipped(), version="v2", reason=WHY)
    with pytest.raises(NotAuthorised, match="no-readable-policy"):
        await one.policing.show(OLGA)
    with pytest.raises(NotAuthorised, match="it needs `policy`"):
        await one.policing.activate(order, without("policy"))
    activated = await one.policing.activate(order, OLGA)
    entry = (await one.entries())[-1]
    assert entry.id == activated.entry
    assert entry.authority.decision is not None
    assert entry.authority.decision.reason == "operator-replaces-unreadable-policy"
    assert (await one.policing.show(OLGA)).version == "v2"


@pytest.mark.requirement("P5")
async def test_a_past_decision_is_made_again_under_the_policy_of_then_and_of_today(one: Operation) -> None:
    """Issue "Authority": `policy explain` re-evaluates under then's or today's policy."""
    await one.make(A)
    [stopped] = await one.operating.cancel(CancelOrder(tasks=(A,), reason=WHY), OLGA)
    await one.policing.activate(PolicyOrder(text=shipped() + NOBODY_CANCELS, version="v2", reason=WHY), OLGA)
    then = await one.policing.explain(ExplainOrder(entry=stopped.entry), OLGA)
    assert then.same
    assert then.again == then.recorded
    today = await one.policing.explain(ExplainOrder(entry=stopped.entry, today=True), OLGA)
    assert not today.same
    assert (today.again.effect, today.again.reason) == ("deny", "nobody-cancels")
    activated = (await one.events(PolicyActivated))[0][0]
    await one.policing.activate(PolicyOrder(text=shipped(), version="v3", reason=WHY), OLGA)
    later = (await one.events(PolicyActivated))[1][0]
    assert (await one.policing.explain(ExplainOrder(entry=later.id), OLGA)).again.policy_version == "v2"
    assert (await one.policing.explain(ExplainOrder(entry=activated.id), OLGA)).again.policy_version == "shipped-1"


async def test_what_holds_no_decision_of_a_policy_is_not_explained(one: Operation) -> None:
    await one.make(A)
    [creation] = await one.entries()
    with pytest.raises(InvalidRequest, match="holds no decision"):
        await one.policing.explain(ExplainOrder(entry=creation.id), OLGA)
    with pytest.raises(NoSuchEntry):
        await one.policing.explain(ExplainOrder(entry="none"), OLGA)
    with pytest.raises(NotAuthorised):
        await one.policing.show(without("read"))
    refused = (await one.entries())[-1]
    for today, says in ((False, "made by a rule in code"), (True, "made by a rule in code")):
        with pytest.raises(TasktrailError, match=says):
            await one.policing.explain(ExplainOrder(entry=refused.id, today=today), OLGA)


@pytest.mark.requirement("P5")
async def test_a_version_names_one_policy(one: Operation) -> None:
    """Decisions name their policy by its version: the same name for another text would mislead who reads them."""
    await one.policing.activate(PolicyOrder(text=shipped(), version="v2", reason=WHY), OLGA)
    other = PolicyOrder(text=shipped() + NOBODY_CANCELS, version="v2", reason=WHY)
    with pytest.raises(VersionTaken, match=r"version v2 is another policy \([0-9a-f]{12}\); call this one otherwise"):
        await one.policing.activate(other, OLGA)
    assert len(await one.events(PolicyActivated)) == 1
    await one.policing.activate(PolicyOrder(text=shipped(), version="v2", reason="back to it"), OLGA)
