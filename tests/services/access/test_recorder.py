"""Folding of polls, disclosures and denials: what is folded, what never is, and what the entries say. Source: T1.

On a memory trail; `test_gate_secrecy` and `test_recorder_flood` do it on a real server.
"""

from typing import Any, cast

import msgspec
import pytest
from tests.services.access.folding import ALLOWED, ANA_CALLS, DENIED, REF, RESULT, Desk, another, others

from tasktrail.events.authority import (
    BindingCheck,
    BindingMode,
)
from tasktrail.events.facts import AccessDenied, ResultDisclosed, Status, SubscriptionOpened, TaskPolled
from tasktrail.events.subjects import access_subject, denied_subject
from tasktrail.services.access import recorder as module
from tasktrail.services.access.recorder import QUIET_MS, REFS_MAX
from tasktrail.services.access.rules import Rule


@pytest.fixture
async def desk() -> Desk:
    """Give one."""
    return Desk()


@pytest.mark.requirement("T1")
async def test_status_polls_fold_with_their_count_and_times(desk: Desk) -> None:
    """Design section 5: `TaskPolled`, a folded run: count, first, last."""
    for _ in range(7):
        desk.poll()
        desk.clock.advance(10)
    assert desk.events() == []
    await desk.recorder.flush()
    (event,) = desk.events()
    begun = desk.clock.ms - 70
    assert event == TaskPolled(
        at_ms=begun + 60, method="tasks/get", status="working", count=7, first_ms=begun, last_ms=begun + 60
    )
    assert desk.trail.messages[-1].subject == access_subject("acme", REF)
    await desk.recorder.flush()
    assert len(desk.events()) == 1


@pytest.mark.requirement("T1", "A1")
async def test_no_run_spans_two_callers_methods_or_statuses(desk: Desk) -> None:
    """Design section 5: never folded across credential, address, outcome or status."""
    desk.poll()
    for who in others():
        desk.poll(who)
    desk.poll(method="subscriptions/listen")
    parked = msgspec.structs.replace(desk.state.task, status=Status.INPUT_REQUIRED)
    desk.recorder.polled(msgspec.structs.replace(desk.state, task=parked), ANA_CALLS, "tasks/get")
    await desk.recorder.flush()
    assert [event.count for event in desk.events()] == [1] * (len(others()) + 3)


@pytest.mark.requirement("T1", "A2")
@pytest.mark.parametrize("act", ["poll", "show"])
async def test_no_run_spans_two_outcomes(desk: Desk, act: str) -> None:
    """Design section 5: never folded across outcome: how the caller compared, by which grant, decided how."""
    replace = msgspec.structs.replace
    outcomes = [
        another(binding=BindingCheck(mode=BindingMode.EXACT)),
        another(binding=BindingCheck(mode=BindingMode.USER)),
        another(grant="g1"),
        another(grant="g2"),
        another(decision=ALLOWED),
        another(decision=replace(ALLOWED, policy_sha256="q" * 64)),
        another(decision=replace(ALLOWED, input_sha256="j" * 64)),
    ]
    for _ in range(2):
        for who in outcomes:
            if act == "poll":
                desk.poll(who)
            else:
                await desk.show(who)
    await desk.recorder.flush()
    entries = [message.entry for message in desk.trail.messages[1:]]
    counted = [(one.authority, cast("Any", event).count) for one in entries for event in one.events]
    for who in outcomes:
        assert sum(count for authority, count in counted if authority == who) == 2
    assert len(counted) == len(outcomes) * {"poll": 1, "show": 2}[act]


@pytest.mark.requirement("T1", "A4")
async def test_denials_fold_by_caller_method_and_code_with_their_true_reasons(desk: Desk) -> None:
    """Design section 5: runs keyed by credential, address, method and wire code, true reasons and refs counted."""
    await desk.deny(ref="one")
    assert [event.count for event in desk.events()] == [1], "the first is on the trail before it is answered"
    for number in range(10):
        await desk.deny(rule=(Rule.UNKNOWN, Rule.OTHER_CONTEXT)[number % 2], ref=("one", "two")[number % 2])
        desk.clock.advance(100)
    for who in others():
        await desk.deny(who)
    await desk.recorder.flush()
    begins, *rest = desk.events()
    (run,) = [event for event in rest if event.count > 1]
    assert (begins.count, len(rest)) == (1, 1 + len(others()))
    assert run.reasons == {"no-such-task": 5, "other-identity-context": 5}
    assert run.refs == {"one": 5, "two": 5}
    assert (run.count, run.last_ms - run.first_ms) == (10, 900)


@pytest.mark.requirement("A4")
async def test_a_run_is_shared_out_among_the_tenants_it_is_shown_to(desk: Desk) -> None:
    """Decisions: a run does not depend on whose task it was; each tenant sees its own part."""
    for tenant, ref in (("acme", "a"), ("globex", "b"), ("acme", "c"), ("_", "d")):
        await desk.deny(ref=ref, tenant=tenant)
    await desk.recorder.flush()
    found = [(message.subject, message.entry.events[0]) for message in desk.trail.messages[1:]]
    assert [(subject, event.refs) for subject, event in found if isinstance(event, AccessDenied)] == [
        (denied_subject("acme"), {"a": 1}),
        (denied_subject("globex"), {"b": 1}),
        (denied_subject("acme"), {"c": 1}),
        (denied_subject("_"), {"d": 1}),
    ]


@pytest.mark.requirement("T1", "A3", "A4")
async def test_an_entry_says_of_no_denial_that_it_compared_otherwise_than_it_did(desk: Desk) -> None:
    """Each result of comparing the caller with the creator has its own entry and exact counts, in one run."""
    by_sub, same = (BindingCheck(mode=BindingMode.EXACT, differs=differs) for differs in (("sub",), ()))
    await desk.deny()
    for number in range(12):
        binding, rule, tenant = (
            (by_sub, Rule.OTHER_CONTEXT, "acme"),
            (same, Rule.EXPIRED, "acme"),
            (by_sub, Rule.OTHER_CONTEXT, "globex"),
            (None, Rule.UNKNOWN, "acme"),
        )[number % 4]
        await desk.deny(another(binding=binding), rule, f"r{number % 4}", tenant)
    await desk.recorder.flush()
    found = [
        (one.tenant, one.authority.binding, event.count, event.reasons, event.refs)
        for one in [message.entry for message in desk.trail.messages[2:]]
        for event in one.events
        if isinstance(event, AccessDenied)
    ]
    assert found == [
        ("acme", by_sub, 3, {"other-identity-context": 3}, {"r0": 3}),
        ("acme", same, 3, {"handle-expired": 3}, {"r1": 3}),
        ("globex", by_sub, 3, {"other-identity-context": 3}, {"r2": 3}),
        ("acme", None, 3, {"no-such-task": 3}, {"r3": 3}),
    ]


@pytest.mark.requirement("A4")
async def test_what_differs_too_often_is_counted_without_saying_how(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded memory, exact counts, and nothing said that is not so."""
    monkeypatch.setattr(module, "GROUPS_MAX", 2)
    await desk.deny()
    for number in range(6):
        denied = msgspec.structs.replace(DENIED, input_sha256=str(number))
        await desk.deny(another(decision=denied, created_by=str(number), grant=str(number)), Rule.POLICY)
    await desk.recorder.flush()
    *exact, coarse = [message.entry for message in desk.trail.messages[2:]]
    assert [one.authority.created_by for one in exact] == ["0", "1"]
    authority = coarse.authority
    assert (authority.created_by, authority.grant, authority.binding) == ("", "", None)
    assert authority.decision is not None
    assert (authority.decision.reason, authority.decision.inputs) == ("policy-denies", {})
    assert desk.events()[-1].count == 4


@pytest.mark.requirement("A2", "P5")
async def test_a_decision_that_denied_is_recorded_as_it_was_made(desk: Desk) -> None:
    """And one that allowed the caller as far as a limit is not recorded as what denied it."""
    await desk.deny(another(decision=DENIED), Rule.POLICY)
    await desk.deny(another(decision=msgspec.structs.replace(DENIED, policies=("p1",), input_sha256="j")), Rule.POLICY)
    await desk.deny(another(decision=ALLOWED), Rule.RATE_LIMITED)
    await desk.recorder.flush()
    decisions = [message.entry.authority.decision for message in desk.trail.messages[1:]]
    assert [(one.effect, one.reason, one.policies) for one in decisions if one] == [
        ("deny", "policy-denies", ()),
        ("deny", "policy-denies", ("p1",)),
        ("deny", "rate-limited", ()),
    ]


@pytest.mark.requirement("T1", "L4")
async def test_a_servers_own_reason_is_recorded_as_its_word(desk: Desk) -> None:
    """What an MCP server says of its refusal is told apart from our rules, and bounded."""
    said = ["missing_capability", "header_mismatch", "missing_capability", "no-such-task", "X", "a\n", "", "w" * 65]
    for word in [*said, *(f"w{number}" for number in range(module.REASONS_MAX))]:
        await desk.deny(rule=word)
    await desk.recorder.flush()
    (begun, rest) = desk.events()
    assert begun.reasons == {"server:missing_capability": 1}
    assert rest.reasons.items() >= {"server:header_mismatch": 1, "server:no-such-task": 1}.items()
    assert rest.reasons["server:other"] >= 4
    assert len(rest.reasons) <= module.REASONS_MAX + 1
    assert sum(rest.reasons.values()) == rest.count == len(said) + module.REASONS_MAX - 1
    decision = desk.trail.messages[1].entry.authority.decision
    assert decision is not None
    assert (decision.effect, decision.reason) == ("deny", "refused-by-mcp-server")


@pytest.mark.requirement("T1")
async def test_after_a_quiet_time_a_denial_begins_a_run_again(desk: Desk) -> None:
    """And is on the trail first again."""
    await desk.deny()
    desk.clock.advance(QUIET_MS)
    await desk.deny()
    assert len(desk.events()) == 1
    desk.clock.advance(QUIET_MS + 1)
    await desk.deny()
    assert sum(event.count for event in desk.events()) == 3


@pytest.mark.requirement("T1")
async def test_claimed_references_are_counted_up_to_a_bound(desk: Desk) -> None:
    """Who enumerates a million handles must not fill the memory, nor an entry."""
    for number in range(REFS_MAX + 50):
        await desk.deny(ref=str(number))
    await desk.recorder.flush()
    assert [len(event.refs) for event in desk.events()] == [1, REFS_MAX]
    assert sum(event.count for event in desk.events()) == REFS_MAX + 50


@pytest.mark.requirement("T1", "R1")
async def test_showings_after_the_first_fold_and_say_which_they_were(desk: Desk) -> None:
    """Design section 5: `ResultDisclosed`, which payload, n-th time."""
    await desk.show()
    for _ in range(4):
        await desk.show()
    await desk.show(method="subscriptions/listen")
    await desk.recorder.flush()
    await desk.show()
    await desk.recorder.flush()
    said = [(event.method, event.nth, event.count) for event in desk.events()]
    assert said == [
        ("tasks/get", 1, 1),
        ("subscriptions/listen", 1, 1),
        ("tasks/get", 5, 4),
        ("tasks/get", 6, 1),
    ]
    first = desk.events()[0]
    assert isinstance(first, ResultDisclosed)
    assert (first.payloads, first.sha256) == (("result",), (RESULT[0].sha256,))


@pytest.mark.requirement("T1")
async def test_a_single_access_is_written_at_once(desk: Desk) -> None:
    """Subscriptions opened and closed are not folded."""
    await desk.recorder.note(desk.state, ANA_CALLS, SubscriptionOpened(at_ms=1))
    assert [message.subject for message in desk.trail.messages[1:]] == [access_subject("acme", REF)]
