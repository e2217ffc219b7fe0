"""Who may use a task, and how long its payloads are kept: every such command on every situation, as data.

Source: issue "Authority" (re-authorisation, revocation, retention), features A2 A9 R2 R3.
"""

from typing import get_args

import msgspec
import pytest

from tasktrail.events.authority import Binding, BindingMode, Standing
from tasktrail.events.commands import (
    CancelTask,
    ChangeAuthority,
    CompleteTask,
    ExpireTask,
    FailTask,
    GiveGrant,
    Governing,
    PlaceHold,
    ReleaseHold,
    ReportStatus,
    RevokeHandle,
    ShredPayload,
    StopTask,
    TaskCommand,
    WithdrawGrant,
)
from tasktrail.events.decide import GRANTS_MAX, decide
from tasktrail.events.facts import (
    AuthorityChanged,
    CancelRequested,
    CommandRefused,
    GrantGiven,
    GrantWithdrawn,
    HandleRevoked,
    HoldPlaced,
    HoldReleased,
    PayloadShredded,
    Status,
    TaskEvent,
)
from tasktrail.events.task import Grant, evolve, replay
from tasktrail.testing.scenario import (
    LATER_MS,
    NOW_MS,
    TTL_MS,
    asked,
    cancel_requested,
    cancelled,
    completed,
    created,
    expired,
    given,
    sealed,
)

AFTER_MS = NOW_MS + TTL_MS + 1
BO = Binding(tenant="acme", iss="https://id.example", sub="bo", client_id="desk")

REVOKED = AuthorityChanged(at_ms=NOW_MS + 1, standing=Standing.REVOKED, cause="r-1")
TAKEN = HandleRevoked(at_ms=NOW_MS + 5, reason="stolen")
GRANTED = GrantGiven(at_ms=NOW_MS + 1, grant="g", to=BO, rights=("get",), reason="on leave")
HELD = HoldPlaced(at_ms=NOW_MS + 1, hold="h", by="olga", reason="case 7")
SHREDDED = PayloadShredded(at_ms=AFTER_MS, reason="retention")

SITUATIONS: dict[str, tuple[TaskEvent, ...]] = {
    "none": (),
    "working": (created(),),
    "asked": (created(), asked("a")),
    "cancel requested": (created(), cancel_requested()),
    "authority revoked": (created(), REVOKED),
    "granted": (created(), GRANTED),
    "held": (created(), HELD),
    "completed": (created(), completed()),
    "completed, handle revoked": (created(), completed(), TAKEN),
    "cancelled": (created(), cancel_requested(), cancelled()),
    "expired": (created(), completed(), expired()),
    "granted, expired": (created(), GRANTED, completed(), expired()),
    "held, expired": (created(), HELD, completed(), expired()),
    "shredded": (created(), completed(), expired(), SHREDDED),
    "held, shredded": (created(), completed(), expired(), SHREDDED, HELD),
}

COMMANDS: dict[str, Governing] = {
    "change": ChangeAuthority(id="c", standing=Standing.REVOKED, cause="r-1"),
    "revoke": RevokeHandle(id="c", reason="stolen"),
    "grant": GiveGrant(id="c", grant="g", to=BO, rights=("get",), reason="on leave"),
    "withdraw": WithdrawGrant(id="c", grant="g", reason="back"),
    "hold": PlaceHold(id="c", hold="h", by="olga", reason="case 7"),
    "release": ReleaseHold(id="c", hold="h", by="omar", reason="case 7 closed"),
    "shred": ShredPayload(id="c", reason="retention"),
}

# As in `test_decide.py`: a refusal is its reason in brackets; `-` is nothing to record. Columns as in COMMANDS:
#   change revoke grant withdraw hold release shred
TABLE = {
    "none": """(no_such_task) (no_such_task) (no_such_task) (no_such_task)
        (no_such_task) (no_such_task) (no_such_task)""",
    "working": """AuthorityChanged HandleRevoked GrantGiven (no_such_grant)
        HoldPlaced (no_such_hold) (not_expired)""",
    "asked": """AuthorityChanged HandleRevoked GrantGiven (no_such_grant)
        HoldPlaced (no_such_hold) (not_expired)""",
    "cancel requested": """AuthorityChanged HandleRevoked GrantGiven (no_such_grant)
        HoldPlaced (no_such_hold) (not_expired)""",
    "authority revoked": """- HandleRevoked GrantGiven (no_such_grant)
        HoldPlaced (no_such_hold) (not_expired)""",
    "granted": """AuthorityChanged HandleRevoked (grant_exists) GrantWithdrawn
        HoldPlaced (no_such_hold) (not_expired)""",
    "held": """AuthorityChanged HandleRevoked GrantGiven (no_such_grant)
        (hold_exists) HoldReleased (held)""",
    "completed": """AuthorityChanged HandleRevoked GrantGiven (no_such_grant)
        HoldPlaced (no_such_hold) (not_expired)""",
    "completed, handle revoked": """AuthorityChanged - (revoked) (no_such_grant)
        HoldPlaced (no_such_hold) (not_expired)""",
    "cancelled": """AuthorityChanged HandleRevoked GrantGiven (no_such_grant)
        HoldPlaced (no_such_hold) (not_expired)""",
    "expired": """- (expired) (expired) (no_such_grant)
        HoldPlaced (no_such_hold) PayloadShredded""",
    "granted, expired": """- (expired) (expired) GrantWithdrawn
        HoldPlaced (no_such_hold) PayloadShredded""",
    "held, expired": """- (expired) (expired) (no_such_grant)
        (hold_exists) HoldReleased (held)""",
    "shredded": """- (expired) (expired) (no_such_grant)
        (shredded) (no_such_hold) -""",
    "held, shredded": """- (expired) (expired) (no_such_grant)
        (shredded) HoldReleased -""",
}


def told(events: tuple[TaskEvent, ...]) -> str:
    if len(events) == 1 and isinstance(events[0], CommandRefused):
        return f"({events[0].reason})"
    return "+".join(type(event).__name__ for event in events) or "-"


@pytest.mark.requirement("A9", "R3")
def test_the_table_is_whole() -> None:
    """Every kind of command and a cell for each pair."""
    assert {type(command) for command in COMMANDS.values()} == set(get_args(Governing))
    assert TABLE.keys() == SITUATIONS.keys()
    assert {len(row.split()) for row in TABLE.values()} == {len(COMMANDS)}


@pytest.mark.requirement("A2", "A9", "R2", "R3")
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("command", COMMANDS)
def test_each_governing_command_in_each_situation(situation: str, command: str) -> None:
    """The cell of the table; whatever it is, neither the status nor `lastUpdatedAt` moves, and no time gets longer."""
    before = given(*SITUATIONS[situation])
    done = before.when(msgspec.structs.replace(COMMANDS[command], at_ms=AFTER_MS))
    assert told(done.events) == dict(zip(COMMANDS, TABLE[situation].split(), strict=True))[command]
    assert {event.at_ms for event in done.events} <= {AFTER_MS}
    if before.task is not None:
        assert done.task is not None
        kept = ("status", "last_updated_at_ms", "expires_at_ms", "ttl_ms", "result", "error", "message", "inputs")
        assert [getattr(done.task, name) for name in kept] == [getattr(before.task, name) for name in kept]


@pytest.mark.requirement("R3")
def test_a_hold_is_released_by_another_person_than_the_one_who_placed_it() -> None:
    """Feature R3: releasing needs another person."""
    held = given(created(), HELD)
    held.when(ReleaseHold(id="c", hold="h", by="olga", reason="mine")).then_refused("same_person")
    free = held.when(ReleaseHold(id="c", hold="h", by="omar", reason="closed"))
    free.then(HoldReleased(at_ms=LATER_MS, hold="h", by="omar", reason="closed")).then_task(
        Status.WORKING, {"holds": {}}
    )


@pytest.mark.requirement("R2", "R3")
def test_payloads_are_shredded_once_every_hold_is_released() -> None:
    """Feature R3: legal hold wins over shredding."""
    second = msgspec.structs.replace(HELD, hold="h2", by="omar")
    over = (created(), HELD, second, completed(), expired())
    shred = ShredPayload(id="s", reason="retention", at_ms=AFTER_MS)
    given(*over).when(shred).then_refused("held")
    one_left = (*over, HoldReleased(at_ms=AFTER_MS, hold="h", by="omar", reason="closed"))
    given(*one_left).when(shred).then_refused("held")
    free = (*one_left, HoldReleased(at_ms=AFTER_MS, hold="h2", by="olga", reason="closed"))
    given(*free).when(shred).then(SHREDDED).then_task(Status.COMPLETED, {"shredded_at_ms": AFTER_MS})


@pytest.mark.requirement("A9")
def test_a_revoked_handle_leaves_the_work_its_status() -> None:
    """`HandleRevoked` is not a status; the work is stopped by a command of its own."""
    taken = given(created(), TAKEN)
    taken.when(ReportStatus(id="r", message=sealed("message"))).then_task(
        Status.WORKING, {"revoked_at_ms": TAKEN.at_ms}
    )
    taken.when(CancelTask(id="c", cause="handle_revoked")).then(CancelRequested(at_ms=LATER_MS, cause="handle_revoked"))


@pytest.mark.requirement("A9")
def test_a_revoked_handle_still_expires_and_is_then_shredded() -> None:
    """Otherwise its payloads were kept for ever."""
    late = given(created(), completed(), TAKEN).when(ExpireTask(id="e", at_ms=AFTER_MS))
    gone = given(*late.before.history, *late.events).when(ShredPayload(id="s", reason="retention", at_ms=AFTER_MS))
    gone.then(SHREDDED)


@pytest.mark.requirement("A2")
def test_the_standing_of_the_creator_is_recorded_when_it_changes_and_only_then() -> None:
    """Issue: valid, lapsed, revoked, unknown; a later credential makes it valid again."""
    lapsed = ChangeAuthority(id="c", standing=Standing.LAPSED, until_s=7)
    first = given(created()).when(lapsed)
    first.then(AuthorityChanged(at_ms=LATER_MS, standing=Standing.LAPSED, until_s=7))
    again = given(created(), *first.events)
    again.when(lapsed).then_nothing()
    again.when(ChangeAuthority(id="c", standing=Standing.VALID, until_s=99)).then_task(
        Status.WORKING, {"standing": Standing.VALID, "until_s": 99}
    )


@pytest.mark.requirement("A9")
def test_a_task_stands_on_the_later_credential_and_remembers_the_creating_one() -> None:
    """Whichever of the two is revoked, the creator's authority ended."""
    again = given(created()).when(
        ChangeAuthority(id="c", standing=Standing.VALID, until_s=99, token_hash="h-2", jti="j-2")
    )
    made = msgspec.structs.replace(replay((created(),)), token_hash="h-1", jti="j-1")
    [changed] = again.events
    assert isinstance(changed, AuthorityChanged)
    second = evolve(made, changed)
    assert (second.token_hash, second.jti, second.created_token_hash, second.created_jti) == (
        "h-2",
        "j-2",
        "h-1",
        "j-1",
    )
    third = evolve(second, msgspec.structs.replace(changed, token_hash="h-3", jti=""))
    assert (third.token_hash, third.jti, third.created_token_hash, third.created_jti) == ("h-3", "", "h-1", "j-1")
    marked = evolve(third, AuthorityChanged(at_ms=LATER_MS, standing=Standing.REVOKED, cause="r-1"))
    assert (marked.token_hash, marked.created_token_hash) == ("h-3", "h-1")
    with_same_end = ChangeAuthority(id="c", at_ms=LATER_MS, standing=third.standing, until_s=99, token_hash="h-4")
    assert decide(with_same_end, third), "another credential that ends at the same time is another one to stand on"
    assert not decide(msgspec.structs.replace(with_same_end, token_hash="h-3"), third)


@pytest.mark.requirement("A9")
def test_what_was_revoked_stands_again_for_a_cause_only() -> None:
    """A creator who comes with a later credential lifts no revocation."""
    gone = given(created()).when(ChangeAuthority(id="c", standing=Standing.REVOKED, cause="r-1"))
    back = given(created(), *gone.events)
    back.when(ChangeAuthority(id="d", standing=Standing.VALID, until_s=99)).then_nothing()
    back.when(ChangeAuthority(id="e", standing=Standing.VALID, cause="r-1")).then_task(
        Status.WORKING, {"standing": Standing.VALID, "standing_cause": "r-1"}
    )


@pytest.mark.requirement("A1")
def test_a_grant_is_in_the_state_until_it_is_withdrawn() -> None:
    """Feature A1: an explicit recorded grant."""
    to_user = GiveGrant(id="c", grant="g", to=BO, mode=BindingMode.USER, rights=("get",), until_ms=9, reason="leave")
    given_away = given(created()).when(to_user)
    given_away.then_task(
        Status.WORKING, {"grants": {"g": Grant(to=BO, mode=BindingMode.USER, rights=("get",), until_ms=9)}}
    )
    given(created(), *given_away.events).when(WithdrawGrant(id="c", grant="g", reason="back")).then(
        GrantWithdrawn(at_ms=LATER_MS, grant="g", reason="back")
    ).then_task(Status.WORKING, {"grants": {}})


@pytest.mark.requirement("A1", "R3")
def test_grants_and_holds_are_bounded() -> None:
    """Every loop has a bound (style 7)."""
    grants = [msgspec.structs.replace(GRANTED, grant=f"g{number}") for number in range(GRANTS_MAX)]
    given(created(), *grants).when(COMMANDS["grant"]).then_refused("too_many_grants")
    holds = [msgspec.structs.replace(HELD, hold=f"h{number}") for number in range(GRANTS_MAX)]
    given(created(), *holds).when(COMMANDS["hold"]).then_refused("too_many_holds")


ENDINGS: dict[str, tuple[tuple[TaskEvent, ...], TaskCommand]] = {
    "completed": ((), CompleteTask(id="e", result=sealed("result"))),
    "failed": ((), FailTask(id="e", error=sealed("error"), code=-1)),
    "cancelled": ((cancel_requested(),), StopTask(id="e")),
}


@pytest.mark.requirement("P2")
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_ended_task_is_opened_for_the_retention_of_its_status_and_never_longer_than_it_lives(ending: str) -> None:
    """Feature P2: retention per terminal status; P1: the granted time to live is never extended."""
    history, command = ENDINGS[ending]
    for kept_ms, ends_ms in ((5_000, LATER_MS + 5_000), (0, LATER_MS), (TTL_MS * 9, NOW_MS + TTL_MS)):
        given(created(retention_ms={ending: kept_ms}), *history).when(command).then_task(
            Status(ending), {"expires_at_ms": ends_ms, "ttl_ms": ends_ms - NOW_MS}
        )
    given(created(retention_ms={}), *history).when(command).then_task(Status(ending), {"ttl_ms": TTL_MS})


@pytest.mark.requirement("P2")
def test_a_task_expires_when_its_retention_is_over_and_not_before() -> None:
    """Feature P2: enforced at access, and recorded."""
    done = given(created(retention_ms={"completed": 5_000}), completed())
    ends_ms = completed().at_ms + 5_000
    done.when(ExpireTask(id="e", at_ms=ends_ms - 1)).then_refused("not_due")
    done.when(ExpireTask(id="e", at_ms=ends_ms)).then_task(Status.COMPLETED, {"expired_at_ms": ends_ms})
