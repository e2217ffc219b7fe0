"""What operators may order, and what becomes of it. Source: issue "Authority"; A1, A9, M7, P5, R3."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.services.operation import OLGA, OMAR, Operation, operation
from tests.services.orders import complete, ref_of

from tasktrail.events.authority import Binding, BindingMode, Level, Standing, Trigger
from tasktrail.events.commands import ExpireTask
from tasktrail.events.errors import CommandRefusedError, InvalidRequest, NotAuthorised
from tasktrail.events.facts import (
    AccessDenied,
    CancelRequested,
    GrantGiven,
    HandleRevoked,
    HoldPlaced,
    PrincipalRevoked,
    QueryRun,
)
from tasktrail.services.access.claims import digest
from tasktrail.services.access.judgement import judged
from tasktrail.services.access.policy import shipped
from tasktrail.services.access.rules import Rule
from tasktrail.services.configuration import Privacy
from tasktrail.services.operating import NoSuchRevocation, SamePerson
from tasktrail.services.operators import Asker
from tasktrail.services.orders import (
    CancelOrder,
    ExplainOrder,
    GrantOrder,
    HandleFilter,
    HoldOrder,
    LiftOrder,
    NoSuchTask,
    PolicyOrder,
    ReleaseOrder,
    RevokeOrder,
    WithdrawOrder,
)
from tasktrail.services.settings import Settings
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Clock, stored
from tasktrail.testing.scenario import ANA, NOW_MS, TTL_MS, authority
from tasktrail.testing.waiting import until

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


MISTAKEN: list[tuple[dict[str, Any], str]] = [
    ({"kind": "principal"}, "to revoke a principal give sub or iss, sub; given: none"),
    ({"kind": "principal", "sub": "ana"}, "without an issuer is one tenant's: name the tenant"),
    ({"kind": "principal", "iss": "i", "sub": "ana", "client_id": "desk"}, "given: client_id, iss, sub"),
    ({"kind": "client", "iss": "i"}, "give client_id or client_id, iss; given: iss"),
    ({"kind": "token", "jti": "j"}, "to revoke a token give token or token_hash or iss, jti; given: jti"),
    ({"kind": "token", "token": "t", "token_hash": "h" * 43}, "given: token, token_hash"),
    ({"kind": "handle", "sub": "ana"}, "to revoke a handle give task; given: sub"),
]


async def test_a_revocation_says_exactly_whom_it_is_of(one: Operation) -> None:
    for members, says in MISTAKEN:
        with pytest.raises(InvalidRequest) as caught:
            await one.operating.revoke(RevokeOrder(reason=WHY, **members), OLGA)
        assert says in str(caught.value), members
    assert not await one.entries()


async def test_the_trail_says_who_revoked_whom_and_why(one: Operation) -> None:
    order = RevokeOrder(kind="client", tenant="acme", client_id="desk", reason=WHY, case_id="C-7")
    revoked = await one.operating.revoke(order, OLGA)
    [(entry, event)] = await one.events(PrincipalRevoked)
    assert entry.id == revoked.entry
    assert isinstance(event, PrincipalRevoked)
    assert (event.revocation, event.client_id, event.tenant) == (revoked.revocation, "desk", "acme")
    assert event.reason == "an incident (case C-7)"
    who = entry.authority
    assert who.trigger is Trigger.OPERATOR
    assert who.principal is not None
    assert who.credential is not None
    assert who.request is not None
    assert who.decision is not None
    assert (who.principal.sub, who.credential.token_hash, who.request.address) == ("olga", "o" * 43, "203.0.113.5")
    assert (who.decision.effect, who.decision.reason) == ("allow", "operators-revoke")


@pytest.mark.requirement("R4")
async def test_of_a_revoked_token_only_its_digest_is_kept(one: Operation) -> None:
    revoked = await one.operating.revoke(RevokeOrder(kind="token", token=TOKEN, reason=WHY), OLGA)
    found = one.parts.governance.revocations.get(revoked.revocation)
    assert found is not None
    assert found.token_hash == digest(TOKEN)
    for message in await stored(one.parts.js):
        assert TOKEN.encode() not in message.body
    presented = authority(ANA, level=Level.VERIFIED)
    assert presented.credential is not None
    credential = msgspec.structs.replace(presented.credential, token_hash=digest(TOKEN))
    assert one.parts.governance.revocation(msgspec.structs.replace(presented, credential=credential)) == found


@pytest.mark.requirement("A9")
async def test_revoking_again_what_is_revoked_changes_nothing(one: Operation) -> None:
    """Two of the same would leave one in force when the other is lifted."""
    order = RevokeOrder(kind="client", tenant="acme", client_id="desk", reason=WHY)
    first = await one.operating.revoke(order, OLGA)
    again = await one.operating.revoke(msgspec.structs.replace(order, reason="again"), OLGA)
    assert (again.revocation, again.entry) == (first.revocation, "")
    with pytest.raises(NotAuthorised):
        await one.operating.revoke(order, without("revoke"))
    assert len(await one.events(PrincipalRevoked)) == 1
    await one.operating.lift(LiftOrder(revocation=first.revocation, reason=WHY), OLGA)
    assert len(one.parts.governance.revocations) == 0
    assert (await one.operating.revoke(order, OLGA)).entry


@pytest.mark.requirement("A9")
async def test_a_revoked_handle_opens_nothing_and_its_work_is_stopped(one: Operation) -> None:
    await one.make(A)
    revoked = await one.operating.revoke(RevokeOrder(kind="handle", task=A, reason=WHY), OLGA)
    [(entry, event)] = await one.events(HandleRevoked)
    assert revoked.became is not None
    assert (entry.id, entry.task_ref, event) == (revoked.entry, A, HandleRevoked(at_ms=NOW_MS, reason=WHY))
    [(_, requested)] = await until(lambda: one.events(CancelRequested), what="a request to cancel")
    assert msgspec.structs.asdict(requested)["cause"] == "handle_revoked"
    opened = judged("h", await one.task(A), ANA, refused=None, right="get", now_ms=NOW_MS)
    assert opened.rule is Rule.HANDLE_REVOKED
    again = await one.operating.revoke(RevokeOrder(kind="handle", task=A, reason=WHY), OLGA)
    assert again.became is not None
    assert (again.became.outcome, again.entry) == ("unchanged", "")


async def test_a_task_is_named_by_its_reference_or_its_id(one: Operation) -> None:
    handle = one.parts.keyring.task_id("a task")
    await one.make(one.parts.keyring.ref(handle))
    held = await one.operating.hold(HoldOrder(task=handle, reason=WHY), OLGA)
    assert held.task_ref == one.parts.keyring.ref(handle)
    for unknown in ("nonsense", ref_of("nobody's"), "*"):
        with pytest.raises(NoSuchTask):
            await one.operating.hold(HoldOrder(task=unknown, reason=WHY), OLGA)


async def test_only_a_revocation_that_holds_is_lifted(one: Operation) -> None:
    revoked = await one.operating.revoke(RevokeOrder(kind="client", tenant="acme", client_id="d", reason=WHY), OLGA)
    lifted = await one.operating.lift(LiftOrder(revocation=revoked.revocation, reason=WHY), OMAR)
    assert (await one.entries())[-1].id == lifted.entry
    assert (await one.entries())[-1].tenant == "acme"
    for unknown in (revoked.revocation, "never"):
        with pytest.raises(NoSuchRevocation):
            await one.operating.lift(LiftOrder(revocation=unknown, reason=WHY), OMAR)


async def test_revocations_that_hold_are_listed_with_what_they_concern(one: Operation) -> None:
    await one.make(A)
    await one.make(B, BEN)
    for order in (
        RevokeOrder(kind="client", client_id="desk", reason=WHY),
        RevokeOrder(kind="client", tenant="globex", client_id="desk", reason=WHY),
        RevokeOrder(kind="principal", iss=BEN.iss, sub="ben", reason=WHY),
    ):
        await one.operating.revoke(order, OLGA)
    found = await one.operating.revocations(OLGA)
    assert [(shown.kind, shown.handles) for shown in found] == [("client", 2), ("client", 0), ("principal", 1)]
    [(entry, _)] = await one.events(QueryRun)
    assert entry.authority.trigger is Trigger.RESPONDER


@pytest.mark.requirement("M7")
async def test_the_inventory_shows_owner_rights_age_end_and_standing(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """Issue "Authority": live handles, owner, rights, age, expiry, lapsed authority."""
    clock = Clock()
    async with operation(fresh_nats, tmp_path, clock) as two:
        by = authority(ANA)
        assert by.credential is not None
        short = msgspec.structs.replace(by.credential, exp=NOW_MS // 1000 + 5)
        await two.make(A, by=msgspec.structs.replace(by, credential=short))
        await two.make(B, BEN)
        grant = GrantOrder(task=A, iss=BEN.iss, sub="ben", mode=BindingMode.USER, rights=("get",), reason=WHY)
        granted = await two.operating.grant(grant, OLGA)
        await until(lambda: (handle := two.inventory.get(A)) and handle.grants, what="the grant")
        two.inventory.accessed(A, NOW_MS + 1)
        clock.advance(6_000)
        [shown] = await two.operating.handles(HandleFilter(lapsed=True), 10, OLGA)
        assert (shown.task_ref, shown.owner.sub, shown.age_ms, shown.ttl_ms) == (A, "ana", 6_000, TTL_MS)
        assert (shown.standing, shown.lapsed, shown.live, shown.revoked) == (Standing.LAPSED, True, True, False)
        assert (shown.entropy_bits, shown.entropy) == (160, "strong")
        assert shown.accessed_at == "2027-01-15T08:00:00.001Z"
        assert shown.authority_until == "2027-01-15T08:00:05.000Z"
        assert shown.expires_at == "2027-01-15T08:01:00.000Z"
        creator, grantee = shown.rights
        assert (creator.who.sub, creator.rights) == ("ana", ("get", "update", "cancel", "subscribe"))
        assert (grantee.who.sub, grantee.rights, grantee.grant) == ("ben", ("get",), granted.id)
        everything = await two.operating.handles(HandleFilter(), 10, OLGA)
        assert {(shown.task_ref, shown.lapsed) for shown in everything} == {(A, True), (B, False)}
        assert len(await two.operating.handles(HandleFilter(), 1, OLGA)) == 1
        for wanted, refs in (
            (HandleFilter(sub="ben"), {B}),
            (HandleFilter(tenant="globex"), set[str]()),
            (HandleFilter(server="reports", live=True), {A, B}),
            (HandleFilter(live=False), set[str]()),
        ):
            assert {shown.task_ref for shown in await two.operating.handles(wanted, 10, OLGA)} == refs, wanted
        clock.advance(TTL_MS)
        await two.do(A, ExpireTask(id="end"))
        await until(lambda: two.inventory.get(A) is None, what="the expired one is gone")


async def test_tasks_are_stopped_in_bulk_each_with_its_evidence(one: Operation) -> None:
    await one.make(A)
    await one.make(B)
    await one.do(B, complete())
    order = CancelOrder(tasks=(A, ref_of("nobody's"), B, A), reason=WHY, case_id="C-7")
    stopped, unknown, over, repeated = await one.operating.cancel(order, OLGA)
    assert (stopped.task, stopped.outcome) == (A, "accepted")
    assert (unknown.task, unknown.outcome, unknown.entry) == ("", "no_such_task", "")
    assert (over.task, over.outcome, over.reason) == (B, "refused", "terminal")
    assert repeated == stopped
    by_id = {entry.id: entry for entry in await one.entries()}
    why = f"{WHY} (case C-7)"
    assert by_id[stopped.entry].events == (CancelRequested(at_ms=NOW_MS, cause="operator", reason=why),)
    assert by_id[over.entry].task_ref == B


@pytest.mark.requirement("A1")
async def test_a_grant_opens_a_task_to_whom_it_says_for_what_it_says(one: Operation) -> None:
    await one.make(A)
    order = GrantOrder(
        task=A, iss=BEN.iss, sub="ben", client_id="desk", rights=("get", "get"), until_ms=NOW_MS + 9, reason=WHY
    )
    granted = await one.operating.grant(order, OLGA)
    [(entry, event)] = await one.events(GrantGiven)
    assert isinstance(event, GrantGiven)
    assert (entry.id, event.grant, event.to, event.rights) == (granted.entry, granted.id, BEN, ("get",))

    async def opens(right: str, now_ms: int = NOW_MS) -> str:
        return judged("h", await one.task(A), BEN, refused=None, right=right, now_ms=now_ms).grant

    assert await opens("get") == granted.id
    assert await opens("cancel") == ""
    assert await opens("get", NOW_MS + 9) == ""
    await one.operating.withdraw(WithdrawOrder(task=A, grant=granted.id, reason=WHY), OLGA)
    assert await opens("get") == ""
    with pytest.raises(CommandRefusedError, match="no_such_grant"):
        await one.operating.withdraw(WithdrawOrder(task=A, grant=granted.id, reason=WHY), OLGA)


async def test_a_grant_that_says_too_little_or_is_over_is_refused(one: Operation) -> None:
    await one.make(A)
    too_little: list[tuple[dict[str, Any], str]] = [
        ({"mode": BindingMode.EXACT, "sub": "ben"}, "compares iss"),
        ({"mode": BindingMode.USER}, "compares iss, sub"),
        ({"mode": BindingMode.CLIENT}, "compares client_id"),
        ({"mode": BindingMode.TENANT, "until_ms": NOW_MS}, "is over"),
    ]
    for members, says in too_little:
        with pytest.raises(InvalidRequest, match=says):
            await one.operating.grant(GrantOrder(task=A, rights=("get",), reason=WHY, **members), OLGA)
    assert not await one.events(GrantGiven)


@pytest.mark.requirement("R3")
async def test_a_hold_is_released_by_another_person_only(one: Operation) -> None:
    """R3: releasing needs another person."""
    await one.make(A)
    held = await one.operating.hold(HoldOrder(task=A, reason=WHY, case_id="C-7"), OLGA)
    [(_, event)] = await one.events(HoldPlaced)
    assert event == HoldPlaced(at_ms=NOW_MS, hold=held.id, by="olga", reason=WHY, case_id="C-7")
    with pytest.raises(SamePerson, match="another operator must release it"):
        await one.operating.release(ReleaseOrder(task=A, hold=held.id, reason=WHY), OLGA)
    assert (await one.task(A)).holds == {held.id: "olga"}
    await one.operating.release(ReleaseOrder(task=A, hold=held.id, reason=WHY), OMAR)
    assert (await one.task(A)).holds == {}
    with pytest.raises(CommandRefusedError, match="no_such_hold"):
        await one.operating.release(ReleaseOrder(task=A, hold=held.id, reason=WHY), OMAR)


async def test_an_order_needs_its_right_and_a_refusal_is_on_the_trail(one: Operation) -> None:
    """Issue "Authority": every step authorised, every denial known."""
    await one.make(A)
    orders: list[tuple[str, Callable[[Asker], Awaitable[object]], str, str]] = [
        (
            "revoke",
            lambda by: one.operating.revoke(RevokeOrder(kind="client", client_id="d", reason=WHY), by),
            "_",
            "revoke",
        ),
        (
            "revoke",
            lambda by: one.operating.revoke(RevokeOrder(kind="handle", task=A, reason=WHY), by),
            "_",
            "revoke",
        ),
        ("revoke", lambda by: one.operating.lift(LiftOrder(revocation="r", reason=WHY), by), "_", "lift"),
        (
            "grant",
            lambda by: one.operating.grant(GrantOrder(task=A, rights=("get",), reason=WHY), by),
            "_",
            "grant",
        ),
        (
            "grant",
            lambda by: one.operating.withdraw(WithdrawOrder(task=A, grant="g", reason=WHY), by),
            "_",
            "withdraw",
        ),
        ("hold", lambda by: one.operating.hold(HoldOrder(task=A, reason=WHY), by), "_", "hold"),
        ("hold", lambda by: one.operating.release(ReleaseOrder(task=A, hold="h", reason=WHY), by), "_", "release"),
        (
            "policy",
            lambda by: one.policing.activate(PolicyOrder(text=shipped(), version="v", reason=WHY), by),
            "_",
            "activate",
        ),
        ("revoke", lambda by: one.operating.cancel(CancelOrder(tasks=(A,), reason=WHY), by), "_", "cancel"),
        ("read", one.policing.show, "_", "policy"),
        ("read", lambda by: one.policing.explain(ExplainOrder(entry="e"), by), "_", "explain"),
        ("read", one.operating.revocations, "_", "revocations"),
        ("read", lambda by: one.operating.handles(HandleFilter(), 1, by), "_", "handles"),
    ]
    for right, order, tenant, name in orders:
        with pytest.raises(NotAuthorised, match=f"operator olga may not do this: it needs `{right}`"):
            await order(without(right))
        denied = (await one.entries())[-1]
        [event] = denied.events
        assert isinstance(event, AccessDenied), name
        assert (denied.tenant, event.method, event.reasons) == (tenant, f"operator/{name}", {"operator-lacks-right": 1})
    assert [entry.command for entry in await one.entries() if entry.task_ref] == ["CreateTask"]


@pytest.mark.requirement("A9")
async def test_an_operator_who_was_revoked_orders_nothing_any_more(one: Operation) -> None:
    """A leaked operator's token is revoked as any other; the data directory's own is the way back in."""
    by_name = RevokeOrder(kind="principal", iss="tasktrail", sub="omar", reason=WHY)
    revoked = await one.operating.revoke(by_name, OLGA)
    with pytest.raises(NotAuthorised, match="operator omar may not do this"):
        await one.operating.lift(LiftOrder(revocation=revoked.revocation, reason=WHY), OMAR)
    assert (await one.entries())[-1].events[0] == msgspec.structs.replace(
        (await one.events(AccessDenied))[-1][1], reasons={"caller-revoked": 1}
    )
    await one.operating.lift(LiftOrder(revocation=revoked.revocation, reason=WHY), OLGA)
    assert await one.operating.revocations(OMAR) == []


async def test_where_subjects_are_pseudonyms_they_are_revoked_and_granted_as_such(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Issue "Authority": subjects can be configured to be pseudonymised, keyed and per tenant."""
    settings = Settings(data=tmp_path, privacy=Privacy(tenants=("acme",)))
    async with operation(fresh_nats, tmp_path, settings=settings) as one:
        alias = one.parts.keyring.pseudonym("acme", "ana")
        hidden = Binding(tenant="acme", iss=ANA.iss, sub=alias, client_id="desk")
        with pytest.raises(InvalidRequest, match="name the tenant"):
            await one.operating.revoke(RevokeOrder(kind="principal", iss=ANA.iss, sub="ana", reason=WHY), OLGA)
        for sub in ("ana", alias):
            order = RevokeOrder(kind="principal", tenant="acme", iss=ANA.iss, sub=sub, reason=WHY)
            revoked = await one.operating.revoke(order, OLGA)
            found = one.parts.governance.revocations.naming(hidden)
            assert found is not None
            assert found.id == revoked.revocation
            await one.operating.lift(LiftOrder(revocation=revoked.revocation, reason=WHY), OLGA)
        machine = one.parts.keyring.pseudonym("acme", "cli-7")  # a client that is its own subject is hidden, too
        order = RevokeOrder(kind="client", tenant="acme", client_id="cli-7", reason=WHY)
        revoked = await one.operating.revoke(order, OLGA)
        for client_id in ("cli-7", machine):
            who = Binding(tenant="acme", iss=ANA.iss, sub="", client_id=client_id)
            assert one.parts.governance.revocations.naming(who) is not None
        await one.operating.lift(LiftOrder(revocation=revoked.revocation, reason=WHY), OLGA)
        assert len(one.parts.governance.revocations) == 0
        await one.make(A)
        grant = GrantOrder(task=A, iss=BEN.iss, sub="ben", mode=BindingMode.USER, rights=("get",), reason=WHY)
        await one.operating.grant(grant, OLGA)
        [given] = (await one.task(A)).grants.values()
        assert given.to.sub == one.parts.keyring.pseudonym("acme", "ben")
        plain = await one.operating.revoke(
            RevokeOrder(kind="principal", tenant="globex", iss=ANA.iss, sub="ana", reason=WHY), OLGA
        )
        assert (await one.entries())[-1].id == plain.entry
        assert one.parts.governance.revocations.naming(Binding(tenant="globex", iss=ANA.iss, sub="ana", client_id=""))
