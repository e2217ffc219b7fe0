"""The policy decision: shipped rules, validity, what is recorded, deciding again. Source: the issue (Policy), P5."""

import logging
import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.services.access.steps import OTHER, SAME, TASK, caller, making, part, policies

from tasktrail.events.authority import (
    Authority,
    BindingCheck,
    Level,
    PolicyDecision,
    Principal,
    PrincipalKind,
    Request,
    Standing,
    Trigger,
)
from tasktrail.events.errors import InvalidRequest
from tasktrail.events.facts import Status, TaskSupport
from tasktrail.events.task import Task
from tasktrail.services.access import policy
from tasktrail.services.access.policy import Action, InvalidPolicy, Making, Policies, explain
from tasktrail.testing.scenario import NOW_MS

ANONYMOUS = caller(PrincipalKind.ANONYMOUS, level=Level.CLAIMED)
WORKER = part(Trigger.WORKER, "server:reports")
OPERATOR = part(Trigger.OPERATOR, "ops")
HANDLE = (Action.GET, Action.UPDATE, Action.CANCEL, Action.SUBSCRIBE)
RIGHTS = {
    Action.READ: "read",
    Action.UNSEAL: "unseal",
    Action.REVOKE: "revoke",
    Action.CANCEL: "revoke",
    Action.GRANT: "grant",
    Action.HOLD: "hold",
    Action.ACTIVATE: "policy",
}
ALL = '@id("all") permit (principal, action, resource);'
OVERFLOWING = (
    f'@id("too-big") forbid (principal, action, resource is Task)\nwhen {{ resource.age_minutes * {2**63 - 1} > 1 }};'
)


@pytest.mark.requirement("A1", "P5")
@pytest.mark.parametrize("who", [caller(), caller(PrincipalKind.MACHINE), ANONYMOUS], ids=["user", "machine", "nobody"])
@pytest.mark.parametrize("action", HANDLE)
def test_a_caller_uses_a_task_it_created_or_was_granted_and_no_other(action: Action, who: Authority) -> None:
    """A1; anonymous callers may do what creators may, where the configuration admits them."""
    decide = policies().decide
    granted = msgspec.structs.replace(who, grant="g1")
    assert decide(action, who, about=TASK, binding=SAME).reason == "creators-use"
    assert decide(action, granted, about=TASK, binding=OTHER).effect == "allow"
    foreign = decide(action, who, about=TASK, binding=OTHER)
    assert (foreign.effect, foreign.reason) == ("deny", policy.DENIED_BY_DEFAULT)
    assert decide(action, who, about=TASK).effect == "deny"


@pytest.mark.requirement("A10", "P3")
def test_creating_a_task_is_an_action_of_its_own() -> None:
    """A10: apart from calling the tool, and of a tool that may run as one."""
    decide = policies().decide
    assert decide(Action.CREATE, caller(), about=making()).reason == "callers-create"
    assert decide(Action.CREATE, caller(), about=making(task_support=TaskSupport.FORBIDDEN)).effect == "deny"
    assert decide(Action.CREATE, WORKER, about=making()).effect == "deny"


@pytest.mark.requirement("A2")
@pytest.mark.parametrize(
    ("standing", "continues"),
    [(Standing.VALID, True), (Standing.LAPSED, True), (Standing.UNKNOWN, True), (Standing.REVOKED, False)],
)
def test_work_goes_on_until_its_creator_is_revoked(standing: Standing, *, continues: bool) -> None:
    """Issue: the state of the creator's authority and the policy's consequence. Neither of both: cancel."""
    worker = msgspec.structs.replace(WORKER, standing=standing)
    decided = policies().decide(Action.CONTINUE, worker, about=TASK)
    assert (decided.effect == "allow") is continues
    assert decided.inputs["resource.standing"] == standing
    assert policies().decide(Action.PAUSE, worker, about=TASK).effect == "deny"
    stored = msgspec.structs.replace(TASK, standing=standing)
    assert policies().decide(Action.CONTINUE, WORKER, about=stored).inputs == decided.inputs


@pytest.mark.requirement("P5")
@pytest.mark.parametrize("action", RIGHTS)
def test_an_operator_does_what_its_rights_name_and_nothing_else(action: Action) -> None:
    """Configuration: rights are read, unseal, revoke, grant, hold, policy."""
    about = None if action is Action.ACTIVATE else TASK
    decide = policies().decide
    for right in set(RIGHTS.values()):
        effect = decide(action, OPERATOR, about=about, rights=(right,)).effect
        assert (effect == "allow") is (right == RIGHTS[action]), right
    assert decide(action, OPERATOR, about=about).effect == "deny"


@pytest.mark.requirement("P5")
def test_a_step_that_the_schema_does_not_know_is_denied_by_the_widest_policy() -> None:
    """A policy is valid for the steps of the schema; any other is a mistake of ours, and is denied."""
    open_to_all = Policies()
    open_to_all.activate(ALL, "open")
    assert open_to_all.decide(Action.GET, caller(), about=TASK).reason == "all"
    assert open_to_all.decide(Action.GET, WORKER, about=TASK).reason == policy.FAILED
    assert open_to_all.decide(Action.GET, caller(), about=None).reason == policy.FAILED


@pytest.mark.requirement("P5")
def test_a_decision_says_what_decided_and_from_what() -> None:
    """P5: policies are hashed into every decision."""
    two = '@id("b-rule") forbid (principal, action, resource);\n@id("a-rule") forbid (principal, action, resource);'
    some = policies(two)
    decided = some.decide(Action.GET, caller(), about=TASK, binding=SAME)
    assert (decided.effect, decided.reason, decided.policies) == ("deny", "a-rule", ("a-rule", "b-rule"))
    assert (decided.policy_sha256, decided.policy_version) == (some.sha256, "test")
    assert re.fullmatch("[0-9a-f]{64}", decided.input_sha256)
    again = some.decide(Action.GET, caller(scope=("x",)), about=TASK, binding=SAME)
    assert again.input_sha256 != decided.input_sha256


@pytest.mark.requirement("P5")
def test_a_policy_that_fails_while_it_is_evaluated_denies_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Cedar leaves out what fails, a `forbid` too: then nothing may be allowed."""
    failing = policies(OVERFLOWING)
    with caplog.at_level(logging.ERROR):
        for scope in ("a", "b"):
            decided = failing.decide(Action.GET, caller(scope=(scope,)), about=TASK, binding=SAME)
            assert (decided.effect, decided.reason, decided.policies) == ("deny", policy.FAILED, ("too-big",))
    assert len(caplog.records) == 1
    assert "too-big" in caplog.text
    assert "overflow" in caplog.text


def test_text_that_is_none_is_denied() -> None:
    """A lone surrogate has no UTF-8: nothing can be decided about it, and no entry can hold it."""
    decided = policies().decide(Action.CREATE, caller(), about=making(tool="\ud800"))
    assert (decided.effect, decided.reason, decided.input_sha256) == ("deny", policy.FAILED, "")


@pytest.mark.requirement("P5")
def test_a_broken_policy_is_refused_and_the_old_one_stays() -> None:
    """Issue: a broken policy is refused at activation."""
    some = policies()
    before = (some.text, some.version, some.sha256)
    with pytest.raises(InvalidPolicy, match=r"line 1: attribute `nope`") as refused:
        some.activate('@id("x") permit (principal, action, resource) when { principal.nope };', "2")
    assert refused.value.problems
    assert (some.text, some.version, some.sha256) == before
    assert some.decide(Action.GET, caller(), about=TASK, binding=SAME).effect == "allow"


@pytest.mark.requirement("P5")
def test_without_a_readable_policy_everything_is_denied_loudly(caplog: pytest.LogCaptureFixture) -> None:
    """Issue: with no readable policy everything is denied, loudly."""
    some = policies()
    with caplog.at_level(logging.ERROR):
        some.lose("the text on the trail is of a later version")
    assert "everything is denied" in caplog.text
    assert (some.text, some.version, some.sha256) == ("", "", "")
    for action in Action:
        decided = some.decide(action, caller(), about=TASK, binding=SAME)
        assert (decided.effect, decided.reason, decided.policy_sha256) == ("deny", policy.UNREADABLE, "")
    with pytest.raises(InvalidPolicy):
        some.activate("no policy", "2")
    assert some.decide(Action.GET, caller(), about=TASK, binding=SAME).reason == policy.UNREADABLE
    some.activate(policy.shipped(), "3")
    assert some.decide(Action.GET, caller(), about=TASK, binding=SAME).effect == "allow"


def test_decisions_are_kept_until_another_policy_decides_and_not_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hot path: by policy, action and attributes, bounded."""
    monkeypatch.setattr(policy, "DECISIONS_KEPT", 2)
    some = policies()

    def decide(scope: str) -> PolicyDecision:
        return some.decide(Action.GET, caller(scope=(scope,)), about=TASK, binding=SAME)

    first = decide("a")
    assert decide("a") is first
    decide("b")
    decide("c")
    assert decide("a") is not first
    last = decide("c")
    some.activate(some.text + "\n" + '@id("no") forbid (principal, action, resource);', "2")
    assert last.effect == "allow"
    assert decide("c").reason == "no"


@pytest.mark.requirement("P5")
def test_a_past_decision_is_made_again_under_another_policy() -> None:
    """Issue: `explain` re-evaluates a past decision under then's or today's policy."""
    then = policies()
    decided = then.decide(Action.GET, caller(amr=("pwd",)), about=TASK, binding=SAME)
    today = (
        then.text
        + '@id("needs-mfa") forbid (principal is User, action, resource) unless { principal.amr.contains("mfa") };'
    )
    now = explain(decided, "", today)
    assert (now.effect, now.reason, now.policy_version) == ("deny", "needs-mfa", "")
    assert now.inputs == decided.inputs
    other = explain(
        decided,
        Action.CANCEL,
        today.replace("action, resource) unless", 'action == Action::"getTask", resource) unless'),
    )
    assert other.effect == "allow"


@pytest.mark.parametrize(
    ("decision", "action", "text", "error"),
    [
        (PolicyDecision(effect="deny", reason="no-such-task"), "getTask", ALL, "recorded no inputs"),
        (PolicyDecision(effect="deny", reason="x", inputs={"action": "getTask"}), "fly", ALL, "'fly' is no action"),
        (PolicyDecision(effect="deny", reason="x", inputs={"action": "getTask"}), "", "permit (", "no valid policy"),
    ],
)
def test_what_cannot_be_made_again_is_said(decision: PolicyDecision, action: str, text: str, error: str) -> None:
    """Issue: `policy explain ENTRY`."""
    with pytest.raises(InvalidRequest, match=error):
        explain(decision, action, text)


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
sets = st.lists(words, max_size=3).map(tuple)
abouts = st.one_of(
    st.none(),
    st.builds(
        lambda status, standing, at_ms, digest: msgspec.structs.replace(
            TASK, status=status, standing=standing, created_at_ms=at_ms, tool_sha256=digest
        ),
        st.sampled_from(Status),
        st.sampled_from(Standing),
        st.integers(0, 2 * NOW_MS),
        words,
    ),
    st.builds(
        Making, server=words, tool=words, tool_sha256=words, task_support=st.sampled_from(TaskSupport), tenant=words
    ),
)
principals = st.builds(
    Principal, iss=words, sub=words, kind=st.sampled_from(PrincipalKind), level=st.sampled_from(Level)
)


@st.composite
def authorities(draw: st.DrawFn) -> Authority:
    """Whoever it is, with whatever in its credential."""
    who = caller(scope=draw(sets), acr=draw(words), amr=draw(sets), level=draw(st.sampled_from(Level)))
    request = Request(
        method="tasks/get",
        server=draw(words),
        address=draw(st.ip_addresses().map(str) | words),
        address_level=draw(st.sampled_from(Level)),
    )
    return msgspec.structs.replace(
        who,
        trigger=draw(st.sampled_from([one for one in Trigger if one is not Trigger.TIMER])),  # a timer asks nobody
        tenant=draw(words),
        principal=draw(st.none() | principals),
        grant=draw(st.sampled_from(["", "g1"])),
        standing=draw(st.none() | st.sampled_from(Standing)),
        request=request,
    )


@pytest.mark.requirement("P5")
@settings(deadline=None, max_examples=200)
@given(
    action=st.sampled_from(Action),
    who=authorities(),
    about=abouts,
    binding=st.sampled_from([None, SAME, OTHER]),
    rights=sets | st.just(("read", "policy")),
    text=st.sampled_from(["", OVERFLOWING, '@id("few") forbid (principal is User, action, resource);']),
)
def test_what_is_recorded_is_enough_to_decide_again(  # noqa: PLR0913, PLR0917 - what a decision is made from
    action: Action,
    who: Authority,
    about: Task | Making | None,
    binding: BindingCheck | None,
    rights: tuple[str, ...],
    text: str,
) -> None:
    """Issue: decisions are recorded with the inputs that decided. As they are after a way through the trail's bytes."""
    some = policies(text)
    decided = some.decide(action, who, about=about, binding=binding, rights=rights)
    read = msgspec.json.decode(msgspec.json.encode(decided), type=PolicyDecision)
    assert read == decided
    assert all(decided.inputs.values())
    assert explain(read, "", some.text) == decided
