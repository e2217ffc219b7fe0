"""What a revocation does to the tasks that are there. Source: issue "Authority", re-authorisation and revocation."""

import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
from tests.services.operation import OLGA, Operation, operation
from tests.services.orders import complete, ref_of

from tasktrail.events.authority import (
    Binding,
    BindingMode,
    Credential,
    Level,
    Method,
    Standing,
    Trigger,
    Verification,
)
from tasktrail.events.commands import CancelTask, ChangeAuthority, GiveGrant, RevokeHandle
from tasktrail.events.facts import AuthorityChanged, CancelRequested, PrincipalRevoked
from tasktrail.projections.current import State
from tasktrail.services import enforcement as module
from tasktrail.services import inventory
from tasktrail.services.access.callers import operator_authority
from tasktrail.services.access.policy import shipped
from tasktrail.services.inventory import Inventory
from tasktrail.services.orders import LiftOrder, PolicyOrder, RevokeOrder
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.scenario import ANA, NOW_MS, authority
from tasktrail.testing.waiting import until

A, B, C = ref_of("a"), ref_of("b"), ref_of("c")
BEN = Binding(tenant="acme", iss=ANA.iss, sub="ben", client_id="desk")
NO_ANA = RevokeOrder(kind="principal", iss=ANA.iss, sub=ANA.sub, reason="left the company")
PAUSE = '\n@id("work-waits") permit (principal, action == Action::"pause", resource);\n'
GO_ON = '\n@id("work-goes-on") permit (principal, action == Action::"continue", resource);\n'


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.1)
    caplog.set_level(logging.CRITICAL, "tasktrail")


@pytest.fixture
async def one(fresh_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Operation]:
    async with operation(fresh_nats, tmp_path) as made:
        yield made


async def enforced(one: Operation, *refs: str, standing: Standing = Standing.REVOKED) -> None:
    """Wait until these tasks stand so, and nothing is due."""
    for ref in refs:
        await until(partial(_stands, one, ref, standing), what=f"{ref} is {standing}")
    await one.enforcement.settled()


def _stands(one: Operation, ref: str, standing: Standing) -> bool:
    handle = one.inventory.get(ref)
    return handle is not None and handle.standing is standing


@pytest.mark.requirement("A9")
async def test_the_live_tasks_of_a_revoked_principal_are_marked_and_stopped(one: Operation) -> None:
    await one.make(A)
    await one.make(B, BEN)
    await one.make(C)
    await one.do(C, complete())
    revoked = await one.operating.revoke(NO_ANA, OLGA)
    await enforced(one, A)
    [(marked, changed)] = await one.events(AuthorityChanged)
    assert isinstance(changed, AuthorityChanged)
    assert (marked.task_ref, changed.standing, changed.cause) == (A, Standing.REVOKED, revoked.revocation)
    [(stopped, requested)] = await one.events(CancelRequested)
    assert isinstance(requested, CancelRequested)
    assert (stopped.task_ref, requested.cause) == (A, "authority_revoked")
    for entry in (marked, stopped):  # never shown as authorised by the user
        assert entry.authority.trigger is Trigger.OPERATOR
        assert entry.authority.standing is Standing.REVOKED
        assert entry.authority.principal is not None
        assert entry.authority.principal.iss == "tasktrail"
        assert entry.authority.decision is not None
    assert (await one.task(B)).standing is Standing.VALID
    assert {state.task_ref for state in one.told} >= {A}


@pytest.mark.parametrize("rule", [PAUSE, GO_ON])
async def test_work_is_not_stopped_where_the_policy_lets_it_wait_or_go_on(one: Operation, rule: str) -> None:
    """Issue "Authority": the policy's consequence is continue, pause or cancel."""
    await one.policing.activate(PolicyOrder(text=shipped() + rule, version="v2", reason="work waits"), OLGA)
    await one.make(A)
    await one.operating.revoke(NO_ANA, OLGA)
    await enforced(one, A)
    assert (await one.task(A)).cancel_requested_at_ms is None


@pytest.mark.requirement("A9")
@pytest.mark.parametrize("tenant", ["acme", ""])
@pytest.mark.parametrize("made_by", ["name", "pseudonym"])
async def test_the_tasks_of_who_is_revoked_are_found_by_name_and_by_pseudonym(
    one: Operation, made_by: str, tenant: str
) -> None:
    """`[privacy]` may have been switched on or off between the creation and the revocation."""
    hidden = one.parts.keyring.pseudonym("acme", ANA.sub)
    by, named = (ANA.sub, hidden) if made_by == "name" else (hidden, ANA.sub)
    await one.make(A, msgspec.structs.replace(ANA, sub=by))
    await one.make(B, BEN)
    order = RevokeOrder(kind="principal", tenant=tenant, iss=ANA.iss, sub=named, reason="left the company")
    revoked = await one.operating.revoke(order, OLGA)
    assert revoked.tasks == 1
    await enforced(one, A)
    assert (await one.task(B)).standing is Standing.VALID


@pytest.mark.requirement("A9")
@pytest.mark.parametrize("hashed", ["first", "later"])
@pytest.mark.parametrize("by", ["token_hash", "jti"])
async def test_a_task_stops_when_any_credential_it_stands_on_is_revoked(one: Operation, hashed: str, by: str) -> None:
    """The creating one and the latest: standing is the creator's, whichever it came with."""
    credential = Credential(
        method=Method.JWT,
        verification=Verification.OK,
        level=Level.VERIFIED,
        exp=NOW_MS // 1000 + 5,
        token_hash="first".ljust(43, "x"),
        jti="first",
    )
    made = await one.make(A, by=msgspec.structs.replace(authority(ANA), credential=credential))
    assert made.task.standing is Standing.VALID
    until_s = NOW_MS // 1000 + 600
    later = ChangeAuthority(
        id="later", standing=Standing.VALID, until_s=until_s, token_hash="later".ljust(43, "x"), jti="later"
    )
    await one.do(A, later)
    await until(lambda: (handle := one.inventory.get(A)) and handle.jti == "later", what="the later one")
    named = {"token_hash": hashed.ljust(43, "x")} if by == "token_hash" else {"iss": ANA.iss, "jti": hashed}
    revoked = await one.operating.revoke(RevokeOrder(kind="token", reason="leaked", **named), OLGA)
    assert revoked.tasks == 1
    await enforced(one, A)
    assert (await one.task(A)).cancel_requested_at_ms is not None


async def test_a_task_that_is_being_stopped_already_is_only_marked(one: Operation) -> None:
    await one.make(A)
    await one.do(A, CancelTask(id="mine"))
    await one.operating.revoke(NO_ANA, OLGA)
    await enforced(one, A)
    assert (await one.task(A)).seq == 3


async def test_every_process_enforces_and_each_step_happens_once(
    one: Operation, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    refs = [ref_of(f"task {number}") for number in range(40)]
    async with operation(fresh_nats, tmp_path) as two, operation(fresh_nats, tmp_path) as three:
        for ref in refs:
            await one.make(ref)
        await until(lambda: len(two.inventory) == len(three.inventory) == len(refs), what="the others know them")
        await two.operating.revoke(NO_ANA, OLGA)
        for process in (one, two, three):
            await enforced(process, *refs)
        assert len(await one.events(AuthorityChanged)) == len(refs)
        assert len(await one.events(CancelRequested)) == len(refs)


async def test_what_an_ended_process_left_is_done_by_the_next_one(
    one: Operation, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    await one.make(A)
    await one.enforcement.stop()
    await one.operating.revoke(NO_ANA, OLGA)
    assert (await one.task(A)).standing is Standing.VALID
    async with operation(fresh_nats, tmp_path) as two:
        await enforced(two, A)


async def test_a_task_that_was_marked_but_not_stopped_yet_is_stopped_by_the_next_process(
    one: Operation, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """A process may end between the two."""
    await one.make(A)
    await one.enforcement.stop()
    revoked = await one.operating.revoke(NO_ANA, OLGA)
    marked = ChangeAuthority(id="marked", standing=Standing.REVOKED, cause=revoked.revocation)
    await one.parts.ledger.submit(ANA.tenant, A, marked, authority(ANA, trigger=Trigger.OPERATOR))
    assert (await one.task(A)).cancel_requested_at_ms is None
    async with operation(fresh_nats, tmp_path) as two:
        await until(
            lambda: (state := two.parts.states.kept(A)) and state.task.cancel_requested_at_ms, what="it is stopped"
        )


async def test_a_revocation_that_is_not_known_here_is_not_undone(one: Operation) -> None:
    """A process may see what another wrote of a task before it sees what governs: not known is not lifted."""
    await one.make(A)
    elsewhere = ChangeAuthority(id="marked", standing=Standing.REVOKED, cause="a revocation of another process")
    await one.parts.ledger.submit(ANA.tenant, A, elsewhere, authority(ANA, trigger=Trigger.OPERATOR))
    await enforced(one, A)
    assert len(await one.events(AuthorityChanged)) == 1


async def test_a_handle_that_was_revoked_has_its_work_stopped_by_whoever_sees_it(one: Operation) -> None:
    """Whoever took it back may have ended before the work was stopped."""
    await one.make(A)
    taken = RevokeHandle(id="taken back", reason="leaked")
    await one.parts.ledger.submit(ANA.tenant, A, taken, authority(ANA, trigger=Trigger.OPERATOR))
    await until(
        lambda: (state := one.parts.states.kept(A)) and state.task.cancel_requested_at_ms, what="it is not to go on"
    )
    [(_, requested)] = await one.events(CancelRequested)
    assert msgspec.structs.asdict(requested)["cause"] == "handle_revoked"


async def test_a_lift_that_an_ended_process_left_is_done_by_the_next_one(
    one: Operation, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    await one.policing.activate(PolicyOrder(text=shipped() + PAUSE, version="v2", reason="work waits"), OLGA)
    await one.make(A)
    revoked = await one.operating.revoke(NO_ANA, OLGA)
    await enforced(one, A)
    await one.enforcement.stop()
    await one.operating.lift(LiftOrder(revocation=revoked.revocation, reason="mistaken"), OLGA)
    async with operation(fresh_nats, tmp_path) as two:
        await enforced(two, A, standing=Standing.UNKNOWN)


async def test_a_listener_that_fails_keeps_no_task_from_its_turn(fresh_nats: NatsServer, tmp_path: Path) -> None:
    async def tell(_: State) -> None:
        raise RuntimeError

    async with operation(fresh_nats, tmp_path, tell=tell) as one:
        for ref in (A, B, C):
            await one.make(ref)
        await one.operating.revoke(RevokeOrder(kind="token", token_hash="t" * 43, reason="leaked"), OLGA)
        await one.operating.revoke(NO_ANA, OLGA)
        await enforced(one, A, B, C)


async def test_a_task_that_was_created_meanwhile_is_found(one: Operation) -> None:
    """Between a revocation and its arrival another process may admit the revoked."""
    await one.operating.revoke(NO_ANA, OLGA)
    await one.make(A)
    await enforced(one, A)
    assert (await one.task(A)).cancel_requested_at_ms is not None


async def test_lifting_a_revocation_marks_its_tasks_back_unless_another_one_holds(one: Operation) -> None:
    await one.policing.activate(PolicyOrder(text=shipped() + PAUSE, version="v2", reason="work waits"), OLGA)
    await one.make(A)
    first = await one.operating.revoke(NO_ANA, OLGA)
    second = await one.operating.revoke(RevokeOrder(kind="client", client_id="desk", reason="key leaked"), OLGA)
    await enforced(one, A)
    await one.operating.lift(LiftOrder(revocation=first.revocation, reason="mistaken"), OLGA)
    await one.enforcement.settled()
    assert (await one.task(A)).standing is Standing.REVOKED
    await one.operating.lift(LiftOrder(revocation=second.revocation, reason="new key"), OLGA)
    await enforced(one, A, standing=Standing.UNKNOWN)
    changes = await one.events(AuthorityChanged)
    assert [msgspec.structs.asdict(event)["cause"] for _, event in changes] == [first.revocation, second.revocation]


async def test_whoever_may_listen_beside_the_creator_is_told_to_look_again(one: Operation) -> None:
    """A subscription may be of a grantee, or under another token of the creator's."""
    await one.make(A)
    await one.make(B, BEN)
    grant = GiveGrant(id="g", grant="g1", to=BEN, mode=BindingMode.USER, rights=("subscribe",), reason="stand-in")
    await one.do(A, grant)
    await until(lambda: (handle := one.inventory.get(A)) and handle.grants, what="the grant")
    one.told.clear()
    await one.operating.revoke(RevokeOrder(kind="principal", iss=BEN.iss, sub="ben", reason="left"), OLGA)
    await until(lambda: {state.task_ref for state in one.told} == {A, B}, what="the grantor's task too")
    one.told.clear()
    await one.operating.revoke(RevokeOrder(kind="token", token_hash="t" * 43, reason="leaked"), OLGA)
    await until(lambda: {state.task_ref for state in one.told} == {A, B}, what="every handle")


async def test_who_watches_with_a_revoked_token_is_told_before_all_others(one: Operation) -> None:
    """A token revocation names no principal; what the token opened is remembered, whoever created it."""
    refs = [ref_of(f"task {number}") for number in range(60)]
    for ref in refs:
        await one.make(ref)
    for by, named in (
        (refs[7], {"token_hash": "t" * 43}),
        (refs[31], {"iss": ANA.iss, "jti": "j-1"}),
    ):
        credential = Credential(
            method=Method.JWT,
            verification=Verification.OK,
            level=Level.VERIFIED,
            token_hash=named.get("token_hash", ""),
            jti=named.get("jti", ""),
        )
        one.inventory.accessed(by, NOW_MS, msgspec.structs.replace(authority(ANA), credential=credential))
        one.told.clear()
        await one.operating.revoke(RevokeOrder(kind="token", reason="leaked", **named), OLGA)
        await until(lambda: {state.task_ref for state in one.told} == set(refs), what="every handle")
        assert one.told[0].task_ref == by


def test_what_credentials_opened_is_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "CREDENTIALS_MAX", 3)
    monkeypatch.setattr(inventory, "OPENED_MAX", 2)
    kept = Inventory()
    for number in range(10):
        credential = Credential(
            method=Method.JWT, verification=Verification.OK, level=Level.VERIFIED, token_hash=f"{number // 2}"
        )
        for ref in (A, B, C):
            kept.accessed(ref, NOW_MS, msgspec.structs.replace(authority(ANA), credential=credential))
    assert {name: list(refs) for name, refs in kept._opened_by.items()} == {  # noqa: SLF001 - its bound  # pyright: ignore[reportPrivateUsage]
        ("hash", made): [B, C] for made in ("2", "3", "4")
    }


async def test_what_cannot_be_written_now_is_written_later(one: Operation, fresh_nats: NatsServer) -> None:
    await one.make(A)
    event = PrincipalRevoked(at_ms=1, revocation="r1", kind="principal", iss=ANA.iss, sub=ANA.sub, reason="left")
    await one.parts.governance.record(event, operator_authority("olga", "_", "revoke", "", ""))
    fresh_nats.kill()
    await one.enforcement.enforce(event)
    fresh_nats.restart()
    await enforced(one, A)
    assert len(await one.events(CancelRequested)) == 1


async def test_an_ended_task_leaves_the_inventory_when_its_handle_has(one: Operation) -> None:
    """M7: the inventory holds what still opens something."""
    await one.make(A, by=authority(ANA))
    await one.do(A, complete())
    await until(lambda: (handle := one.inventory.get(A)) and not handle.live, what="ended")
    await one.operating.revoke(RevokeOrder(kind="handle", task=A, reason="not needed"), OLGA)
    await until(lambda: one.inventory.get(A) is None, what="gone")
    assert one.inventory.wider() == []
