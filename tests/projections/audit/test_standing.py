"""The authority a task was created with, then and now: issue "Authority", features A2 A9 P1 P5 R2 R3."""

from collections.abc import Callable
from functools import partial

import msgspec
import pytest
from tests.projections.audit.histories import NOW_MS, Trail, ana, operator, timer, worker
from tests.projections.audit.stores import told

from tasktrail.events.authority import Authority, Standing
from tasktrail.events.commands import (
    ChangeAuthority,
    CompleteTask,
    ExpireTask,
    GiveGrant,
    PlaceHold,
    ReleaseHold,
    ReportStatus,
    RevokeHandle,
    ShredPayload,
    WithdrawGrant,
)
from tasktrail.events.facts import Event, HoldPlaced, PolicyActivated, PrincipalRevoked, RevocationLifted
from tasktrail.events.subjects import governance_subject
from tasktrail.projections.audit.store import AuditStore, TaskFilter
from tasktrail.projections.audit.timeline import AuthorityShown, StepKind

ISS = "https://id.example"
MADE = PrincipalRevoked(at_ms=NOW_MS, revocation="r-1", kind="principal", iss=ISS, sub="ana", reason="left")


def authority(store: AuditStore, trail: Trail, ref: str) -> AuthorityShown:
    shown = told(store, trail, ref).authority
    assert shown is not None
    return shown


def govern(trail: Trail, *events: Event, tenant: str = "_") -> None:
    trail.note(governance_subject(tenant), tenant, events, authority=operator(tenant=tenant))


@pytest.mark.requirement("A2")
def test_then_is_the_decision_and_the_evidence_of_the_creation(store: AuditStore) -> None:
    trail = Trail()
    ref = trail.create()
    then = authority(store, trail, ref).then
    assert (then.level, then.until) == ("verified", "2026-11-18T11:16:40.000Z")
    assert then.rule is not None
    assert (then.rule.effect, then.rule.reason, then.rule.policy_version) == (
        "allow",
        "same-identity-context",
        "builtin-1",
    )


@pytest.mark.requirement("A2")
def test_now_it_has_lapsed_once_the_trail_goes_on_after_the_end_of_the_credential(store: AuditStore) -> None:
    """The document is a function of the trail: "now" is when the trail was last written."""
    trail = Trail()
    ref = trail.create()
    assert authority(store, trail, ref).now.standing == "valid"
    trail.now_ms = NOW_MS + 600_000
    trail.create()
    now = authority(store, trail, ref).now
    assert (now.standing, now.until) == ("lapsed", "2026-11-18T11:16:40.000Z")


@pytest.mark.requirement("A2")
def test_a_later_credential_of_the_creator_makes_it_stand_again(store: AuditStore) -> None:
    trail = Trail()
    ref = trail.create(ttl_ms=9_000_000)
    trail.command(ref, ChangeAuthority(id="l", standing=Standing.LAPSED, until_s=NOW_MS // 1000), worker())
    assert authority(store, trail, ref).now.standing == "lapsed"
    trail.command(ref, ChangeAuthority(id="v", standing=Standing.VALID, until_s=NOW_MS // 1000 + 7_200))
    now = authority(store, trail, ref).now
    assert (now.standing, now.until) == ("valid", "2026-11-18T13:06:40.000Z")


@pytest.mark.requirement("A2")
def test_a_credential_without_an_end_leaves_it_unknown_never_valid(store: AuditStore) -> None:
    trail = Trail()
    credential = ana().credential
    assert credential is not None
    for_ever = msgspec.structs.replace(ana(), credential=msgspec.structs.replace(credential, exp=0))
    ref = trail.create(authority=for_ever)
    now = authority(store, trail, ref).now
    assert (now.standing, now.until) == ("unknown", None)


NAMED: dict[str, tuple[PrincipalRevoked, bool]] = {
    "the principal": (MADE, True),
    "another subject": (msgspec.structs.replace(MADE, sub="bo"), False),
    "a subject of another issuer": (msgspec.structs.replace(MADE, iss="https://other.example"), False),
    "the principal in its tenant": (msgspec.structs.replace(MADE, tenant="acme"), True),
    "the principal in another tenant": (msgspec.structs.replace(MADE, tenant="globex"), False),
    "its client": (msgspec.structs.replace(MADE, kind="client", iss="", sub="", client_id="desk"), True),
    "its client at its issuer": (msgspec.structs.replace(MADE, kind="client", sub="", client_id="desk"), True),
    "its client at another issuer": (
        msgspec.structs.replace(MADE, kind="client", iss="https://other.example", sub="", client_id="desk"),
        False,
    ),
    "another client": (msgspec.structs.replace(MADE, kind="client", iss="", sub="", client_id="phone"), False),
    "its token by hash": (msgspec.structs.replace(MADE, kind="token", iss="", sub="", token_hash="h" * 43), True),
    "another token by hash": (msgspec.structs.replace(MADE, kind="token", token_hash="i" * 43, jti="jti-ana"), False),
    "its token by jti": (msgspec.structs.replace(MADE, kind="token", sub="", jti="jti-ana"), True),
    "the same jti of another issuer": (
        msgspec.structs.replace(MADE, kind="token", iss="https://other.example", sub="", jti="jti-ana"),
        False,
    ),
    "nobody": (msgspec.structs.replace(MADE, kind="client", iss="", sub=""), False),
    "something of a newer version": (msgspec.structs.replace(MADE, kind="device"), False),
}


@pytest.mark.requirement("A9")
@pytest.mark.parametrize("case", NAMED)
def test_a_revocation_names_whom_its_members_name_and_nobody_else(store: AuditStore, case: str) -> None:
    """`PrincipalRevoked`: `kind` says which of the members are compared."""
    event, named = NAMED[case]
    trail = Trail()
    ref = trail.create()
    govern(trail, event)
    now = authority(store, trail, ref).now
    assert [one.revocation for one in now.revocations] == (["r-1"] if named else [])
    assert now.standing == ("revoked" if named else "valid")


@pytest.mark.requirement("A9")
def test_a_revocation_made_before_and_one_that_was_lifted(store: AuditStore) -> None:
    trail = Trail()
    govern(trail, MADE, tenant="acme")
    ref = trail.create()
    govern(trail, msgspec.structs.replace(MADE, revocation="r-2", reason="again"))
    govern(trail, RevocationLifted(at_ms=NOW_MS, revocation="r-1", reason="back"), tenant="acme")
    (left,) = authority(store, trail, ref).now.revocations
    assert msgspec.to_builtins(left) == {
        "revocation": "r-2",
        "kind": "principal",
        "reason": "again",
        "stream_seq": 3,
        "time": "2026-11-18T11:06:40.000Z",
    }
    govern(trail, RevocationLifted(at_ms=NOW_MS, revocation="r-2", reason="back"))
    assert authority(store, trail, ref).now.standing == "valid"


@pytest.mark.requirement("A9")
def test_what_was_recorded_on_the_task_as_revoked_stays_so(store: AuditStore) -> None:
    """Lifting a revocation gives no authority back: its creator has to come again."""
    trail = Trail()
    ref = trail.create()
    govern(trail, MADE)
    trail.command(ref, ChangeAuthority(id="r", standing=Standing.REVOKED, cause="r-1"), operator())
    govern(trail, RevocationLifted(at_ms=NOW_MS, revocation="r-1", reason="back"))
    now = authority(store, trail, ref).now
    assert (now.standing, now.revocations) == ("revoked", ())


@pytest.mark.requirement("P5")
def test_the_policy_that_decides_now_is_the_last_one_activated_for_this_tenant_or_for_all(store: AuditStore) -> None:
    trail = Trail()
    ref = trail.create()
    assert authority(store, trail, ref).now.policy_version is None
    for version, tenant in (("one", "_"), ("two", "acme"), ("three", "globex")):
        policy = PolicyActivated(
            at_ms=NOW_MS, version=version, sha256=version[0] * 64, schema_sha256="", text="permit", reason="r"
        )
        govern(trail, policy, tenant=tenant)
    now = authority(store, trail, ref).now
    assert (now.policy_version, now.policy_sha256) == ("two", "t" * 64)


@pytest.mark.requirement("A2")
@pytest.mark.parametrize("standing", list(Standing))
@pytest.mark.parametrize("who", [worker, partial(timer, "acme")])
def test_a_step_of_a_worker_or_timer_says_what_the_creators_authority_was_worth(
    store: AuditStore, who: Callable[[Standing], Authority], standing: Standing
) -> None:
    """Issue: a transition by a worker or timer is recorded as theirs, with the state of the creator's authority."""
    trail = Trail()
    ref = trail.create()
    trail.command(ref, ReportStatus(id="r", message=trail.sealed("message")), who(standing))
    made, step = told(store, trail, ref).steps
    assert (made.standing, step.standing) == (None, standing.value)
    assert step.who is not None
    assert (step.who.trigger, step.who.sub) != ("caller", "ana")


@pytest.mark.requirement("A1", "A2")
def test_a_step_says_by_which_grant_and_by_which_policies(store: AuditStore) -> None:
    trail = Trail()
    ref = trail.create()
    decided = operator().decision
    trail.command(
        ref,
        ReportStatus(id="r", message=trail.sealed("message")),
        msgspec.structs.replace(ana(sub="bo"), grant="g-1", decision=decided),
    )
    step = told(store, trail, ref).steps[-1]
    assert step.grant == "g-1"
    assert step.rule is not None
    assert (step.rule.policies, step.rule.policy_version) == (("ops", "all"), "v-2")


@pytest.mark.requirement("P1", "P2")
def test_the_time_to_live_is_told_as_asked_granted_and_come_to_and_by_whom(store: AuditStore) -> None:
    trail = Trail()
    ref = trail.create(ttl_set_by="tool_rule", retention_ms={"failed": 1, "completed": 5_000})
    trail.now_ms += 990
    trail.command(ref, CompleteTask(id="c", result=trail.sealed("result")), worker())
    task = told(store, trail, ref).task
    assert task is not None
    assert (task.requested_ttl_ms, task.ttl_ms, task.effective_ttl_ms, task.ttl_set_by) == (
        120_000,
        60_000,
        6_000,
        "tool_rule",
    )
    assert task.retention_ms == {"completed": 5_000, "failed": 1}
    assert task.expires_at == "2026-11-18T11:06:46.010Z"


@pytest.mark.requirement("A9", "R2", "R3")
def test_a_task_shows_its_grants_holds_revocation_and_shredding(store: AuditStore) -> None:
    trail = Trail()
    ref, other = trail.create(), trail.create()
    binding = trail.tasks[other].binding
    for number in "123":
        trail.command(
            ref, GiveGrant(id=f"g{number}", grant=number, to=binding, rights=("get",), reason="r"), operator()
        )
    trail.command(ref, WithdrawGrant(id="w", grant="2", reason="r"), operator())
    trail.command(ref, PlaceHold(id="h", hold="h", by="olga", reason="r", case_id="7"), operator())
    trail.command(ref, RevokeHandle(id="v", reason="stolen"), operator())
    held = told(store, trail, ref).task
    assert held is not None
    assert (held.grants, held.holds, held.revoked_at, held.shredded_at) == (2, 1, "2026-11-18T11:06:40.080Z", None)
    assert [task.task_ref for task in store.tasks(TaskFilter(opens=True))] == [other]
    assert [task.task_ref for task in store.tasks(TaskFilter(opens=False))] == [ref]
    trail.command(ref, ReleaseHold(id="l", hold="h", by="omar", reason="r"), operator("omar"))
    trail.now_ms += 60_000
    trail.command(ref, ExpireTask(id="e"), timer())
    trail.command(ref, ShredPayload(id="s", reason="retention"), timer())
    timeline = told(store, trail, ref)
    assert timeline.task is not None
    assert (timeline.task.holds, timeline.task.shredded_at) == (0, "2026-11-18T11:07:40.110Z")
    governing = [step for step in timeline.steps if step.kind is StepKind.GOVERNANCE]
    assert [step.what for step in governing] == [
        "granted to ana for get (grant 1): r",
        "granted to ana for get (grant 2): r",
        "granted to ana for get (grant 3): r",
        "grant 2 was withdrawn: r",
        "hold h was placed by olga, case 7, the payloads are kept: r",
        "the handle was revoked, it opens nothing any more: stolen",
        "hold h was released by omar: r",
        "the payloads' key was destroyed, nothing sealed here can be read any more: retention",
    ]
    assert {(step.status_before, step.status_after) for step in governing[:-1]} == {("working", "working")}


EVERYBODY: list[tuple[Event, str]] = [
    (
        PolicyActivated(at_ms=1, version="v-2", sha256="ab" * 32, schema_sha256="", text="permit", reason="tighter"),
        "policy v-2 (abababababab…) decides from here on: tighter",
    ),
    (MADE, "revoked principal ana at https://id.example (revocation r-1): left"),
    (
        msgspec.structs.replace(MADE, kind="client", iss="", sub="", client_id="desk", tenant="acme"),
        "revoked client desk, in tenant acme (revocation r-1): left",
    ),
    (
        msgspec.structs.replace(MADE, kind="token", sub="", jti="jti-ana"),
        "revoked token jti jti-ana at https://id.example (revocation r-1): left",
    ),
    (
        msgspec.structs.replace(MADE, kind="token", iss="", sub="", token_hash="hash"),
        "revoked token hash hash (revocation r-1): left",
    ),
    (RevocationLifted(at_ms=1, revocation="r-1", reason="back"), "revocation r-1 was lifted: back"),
]


@pytest.mark.requirement("A9", "P5")
@pytest.mark.parametrize(("event", "what"), EVERYBODY)
def test_the_tail_tells_policies_and_revocations(store: AuditStore, event: Event, what: str) -> None:
    trail = Trail()
    govern(trail, event)
    store.append(trail.messages)
    ((step,), _) = store.since(0)
    assert (step.kind, step.what) == (StepKind.GOVERNANCE, what)


CHANGES = [
    (Standing.VALID, "", "the creator's authority stands again, it came with a later credential"),
    (Standing.LAPSED, "", "the creator's authority lapsed, its credential has ended"),
    (Standing.REVOKED, "r-1", "the creator's authority was revoked, by revocation r-1"),
    (Standing.UNKNOWN, "", "whether the creator's authority stands is unknown, its credential says no end"),
]


@pytest.mark.requirement("A2")
@pytest.mark.parametrize(("standing", "cause", "what"), CHANGES)
def test_a_change_of_the_creators_authority_is_told_in_words(
    store: AuditStore, standing: Standing, cause: str, what: str
) -> None:
    trail = Trail()
    ref = trail.create()
    trail.command(ref, ChangeAuthority(id="c", standing=standing, until_s=9, cause=cause), operator())
    step = told(store, trail, ref).steps[-1]
    assert (step.kind, step.what, step.standing) == (StepKind.GOVERNANCE, what, standing.value)


@pytest.mark.requirement("T1")
def test_an_entry_is_found_by_its_id_byte_for_byte(store: AuditStore) -> None:
    trail = Trail()
    ref = trail.create()
    govern(trail, MADE)
    store.append(trail.messages)
    assert trail.tasks[ref]
    assert [store.entry(message.msg_id) for message in trail.messages] == [one.body for one in trail.messages]
    assert store.entry("z" * 32) is None
    assert store.entry("' OR 1=1 --") is None


def test_an_event_of_a_task_does_not_belong_among_the_governance(store: AuditStore) -> None:
    trail = Trail()
    govern(trail, HoldPlaced(at_ms=1, hold="h", by="olga", reason="r"))
    store.append(trail.messages)
    ((step,), _) = store.since(0)
    assert (step.kind, step.type) == (StepKind.ANOMALY, "subject")
