"""Authority is found out anew at every step: lapsed, come back, revoked. Source: issue "Authority"; A2, A9, P2."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.services.access.changing import OPERATOR, STOPS, WAITS, decides, lasting
from tests.services.access.rig import ACTS, ANA, CHANNEL, SCHEMA, SETTINGS, Rig, call, outcome

from tasktrail.events.authority import BindingMode, Standing, Trigger, Verification
from tasktrail.events.entry import Entry
from tasktrail.events.errors import NOT_FOUND_TEXT, AuthorityPaused, NotAuthorised
from tasktrail.events.facts import AuthorityChanged, CancelRequested, Event, PrincipalRevoked, Status, TaskCancelled
from tasktrail.services import messages
from tasktrail.services.access.policy import shipped
from tasktrail.services.configuration import Tool
from tasktrail.services.messages import WorkView
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Clock, parts

LASTS_S = 10
ASK = messages.InputAsk(method="elicitation/create", params={"requestedSchema": SCHEMA})
ANSWER = {"action": "accept", "content": {"name": "Luca"}}


async def lapsed(rig: Rig, policy: str = "") -> messages.TaskView:
    """A task whose creator's credential has ended since, and the policy beside the shipped rules."""
    made = await rig.create(lasting(rig, LASTS_S))
    if policy:
        await decides(rig, shipped() + policy)
    rig.clock.advance(LASTS_S * 1000)
    return made


async def report(rig: Rig, ref: str, made: str = "r") -> WorkView:
    return await rig.one.work.report(messages.ReportStatus(task_ref=ref, command_id=made, message=made), CHANNEL)


async def ask(rig: Rig, ref: str) -> WorkView:
    return await rig.one.work.ask(messages.RequestInput(task_ref=ref, command_id="a", asks={"k": ASK}), CHANNEL)


async def complete(rig: Rig, ref: str) -> WorkView:
    return await rig.one.work.complete(messages.CompleteTask(task_ref=ref, command_id="d", result=42), CHANNEL)


async def collect(rig: Rig, ref: str) -> WorkView:
    return await rig.one.work.collect(messages.CollectInput(task_ref=ref), CHANNEL)


async def told(rig: Rig) -> list[list[Event]]:
    """The task's events, entry by entry."""
    return [list(entry.events) for entry in await rig.entries("task")]  # type: ignore[arg-type] # none is of a newer version


async def last(rig: Rig) -> Entry:
    return (await rig.entries("task"))[-1]


@pytest.mark.requirement("A2")
async def test_work_goes_on_under_the_shipped_policy_and_says_that_authority_has_lapsed(rig: Rig) -> None:
    """Never shown as authorised by the user: the entry holds the decision then, and what it was worth by now."""
    made = await lapsed(rig)
    created = await last(rig)
    assert (await report(rig, made.task_ref)).outcome == "accepted"
    assert (await complete(rig, made.task_ref)).status is Status.COMPLETED
    for entry in (await rig.entries("task"))[1:]:
        authority = entry.authority
        assert (authority.trigger, authority.standing) == (Trigger.WORKER, Standing.LAPSED)
        assert authority.created_by == created.id
        assert authority.principal is not None
        assert authority.principal.sub == "server:reports"
        assert authority.decision is not None
        assert (authority.decision.effect, authority.decision.reason) == ("allow", "work-continues")


STEPS: dict[str, Callable[[Rig, str], Awaitable[WorkView]]] = {"report": report, "ask": ask, "complete": complete}


@pytest.mark.requirement("A2")
@pytest.mark.parametrize("step", STEPS)
async def test_where_the_policy_makes_lapsed_work_wait_nothing_is_written_on_its_task(rig: Rig, step: str) -> None:
    """Issue: "pauses or cancels as its policy says". That it waits is on the trail, folded."""
    made = await lapsed(rig, WAITS)
    for _ in range(3):
        with pytest.raises(AuthorityPaused, match="lapsed"):
            await STEPS[step](rig, made.task_ref)
    assert len(await rig.entries("task")) == 1
    first, repeats = await rig.denials()
    assert (first[2].count, repeats[2].count) == (1, 2), "the first at once, the others folded"
    for tenant, entry, denied in (first, repeats):
        assert (tenant, denied.method, denied.code) == ("acme", f"work/{step}", AuthorityPaused.code)
        assert (list(denied.reasons), list(denied.refs)) == (["work-waits-for-authority"], [made.task_ref])
        assert entry.authority.standing is Standing.LAPSED


@pytest.mark.requirement("A2", "A7")
async def test_work_goes_on_when_its_creator_comes_back_with_a_later_credential(rig: Rig) -> None:
    """The task stands on the later credential from then on, which is an entry of the creator's own."""
    made = await lapsed(rig, WAITS)
    with pytest.raises(AuthorityPaused):
        await report(rig, made.task_ref)
    back = lasting(rig, 40)
    assert back.credential is not None
    await rig.get(made.task_id, back)
    entry = await last(rig)
    [changed] = entry.events
    assert isinstance(changed, AuthorityChanged)
    assert (changed.standing, changed.until_s) == (Standing.VALID, back.credential.exp)
    assert entry.authority.trigger is Trigger.CALLER
    assert entry.authority.principal is not None
    assert entry.authority.principal.sub == "ana"
    assert (await report(rig, made.task_ref)).outcome == "accepted"
    assert (await last(rig)).authority.standing is Standing.VALID


@pytest.mark.requirement("A2")
@pytest.mark.parametrize("mode", [BindingMode.TENANT, BindingMode.CLIENT])
async def test_nobody_else_renews_the_creators_authority_whoever_the_handle_opens_for(
    fresh_nats: NatsServer, tmp_path: Path, mode: BindingMode
) -> None:
    """A colleague may look at the task; what it is worth is its creator's."""
    settings = msgspec.structs.replace(SETTINGS, tools=(Tool(binding=mode),))
    clock = Clock()
    async with parts(fresh_nats.url, tmp_path, clock, settings) as one:
        rig = Rig(one, clock)
        made = await lapsed(rig, WAITS)
        for act in ACTS:
            if act != "cancel":
                assert await outcome(ACTS[act](rig, made.task_id, lasting(rig, 40, "ben"))) is None, act
        assert not [event for events in await told(rig) for event in events if isinstance(event, AuthorityChanged)]
        with pytest.raises(AuthorityPaused):
            await report(rig, made.task_ref)
        await rig.get(made.task_id, lasting(rig, 40))
        assert (await report(rig, made.task_ref)).outcome == "accepted"


@pytest.mark.requirement("A2", "L8")
async def test_lapsed_work_that_may_neither_go_on_nor_wait_is_told_to_stop(rig: Rig) -> None:
    """The cancellation is the policy's, not the user's; complete work needs nobody who confirms that it stopped."""
    made = await lapsed(rig, STOPS)
    view = await report(rig, made.task_ref)
    assert (view.outcome, view.reason, view.cancel_requested, view.live) == ("refused", "authority_lapsed", True, True)
    assert (await report(rig, made.task_ref, "r2")).cancel_requested
    [_, [requested]] = await told(rig)
    assert isinstance(requested, CancelRequested)
    assert requested.cause == "authority_lapsed"
    stopped = await complete(rig, made.task_ref)
    assert (stopped.status, stopped.live) == (Status.CANCELLED, False)
    [_, _, [cancelled]] = await told(rig)
    assert isinstance(cancelled, TaskCancelled)
    for entry in (await rig.entries("task"))[1:]:
        authority = entry.authority
        assert (authority.trigger, authority.standing) == (Trigger.OPERATOR, Standing.LAPSED)
        assert authority.principal is not None
        assert (authority.principal.iss, authority.principal.sub) == ("tasktrail", "policy")
        assert authority.decision is not None
        assert (authority.decision.effect, authority.decision.reason) == ("deny", "lapsed-work-stops")
        assert not entry.sealed, "what the work came to is kept nowhere"


@pytest.mark.requirement("A2", "A9")
@pytest.mark.parametrize(
    "whom",
    [
        {"kind": "principal", "iss": ANA.iss, "sub": "ana"},
        {"kind": "client", "client_id": "desk"},
        {"kind": "token", "token_hash": "h" * 43},
    ],
    ids=lambda whom: str(whom["kind"]),
)
async def test_work_of_a_revoked_creator_is_cancelled_under_the_shipped_policy(rig: Rig, whom: dict[str, Any]) -> None:
    """A9 at the work's side: also where nobody has marked the task yet."""
    made = await rig.create(lasting(rig, LASTS_S))
    revoked = PrincipalRevoked(at_ms=rig.clock.ms, revocation="v", reason="left the company", **whom)
    await rig.one.governance.record(revoked, OPERATOR)
    view = await complete(rig, made.task_ref)
    assert (view.outcome, view.reason, view.status) == ("refused", "authority_revoked", Status.CANCELLED)
    [_, [requested], [cancelled]] = await told(rig)
    assert isinstance(requested, CancelRequested)
    assert isinstance(cancelled, TaskCancelled)
    assert requested.cause == "authority_revoked"
    assert {entry.authority.standing for entry in (await rig.entries("task"))[1:]} == {Standing.REVOKED}
    assert await outcome(rig.get(made.task_id, lasting(rig, 40))) == NOT_FOUND_TEXT


@pytest.mark.requirement("A2", "L7")
async def test_work_that_may_not_go_on_gets_no_answers(rig: Rig) -> None:
    """An answer given while authority stood is passed on when it stands again."""
    made = await rig.create(lasting(rig, LASTS_S))
    await ask(rig, made.task_ref)
    await rig.update(made.task_id, {"k": ANSWER}, lasting(rig, LASTS_S))
    assert (await collect(rig, made.task_ref)).answers == {"k": ANSWER}
    await decides(rig, shipped() + WAITS)
    rig.clock.advance(LASTS_S * 1000)
    withheld = await collect(rig, made.task_ref)
    assert (withheld.answers, withheld.live, withheld.cancel_requested) == ({}, True, False)
    await rig.get(made.task_id, lasting(rig, 40))
    assert (await collect(rig, made.task_ref)).answers == {"k": ANSWER}


@pytest.mark.requirement("A2")
@pytest.mark.parametrize("act", [*ACTS, "push"])
async def test_a_credential_that_has_ended_opens_nothing_whoever_vouches_for_it(rig: Rig, act: str) -> None:
    """Also on a stream that was opened while it lasted: a push is a disclosure, decided when it is made."""
    who = lasting(rig, LASTS_S)
    made = await rig.create(who)
    await ask(rig, made.task_ref)
    asked = messages.GetTask(caller=who, call=call("notifications/tasks"), task_id=made.task_id)

    async def push(rig: Rig, _handle: str, _who: messages.Caller) -> object:
        return await rig.one.gate.get(asked, CHANNEL)

    acting = {**ACTS, "push": push}[act]
    if act == "push":
        await acting(rig, made.task_id, who)
    before = len(await rig.entries("task"))
    rig.clock.advance(LASTS_S * 1000)
    assert await outcome(acting(rig, made.task_id, who)) == NOT_FOUND_TEXT
    assert len(await rig.entries("task")) == before
    [(tenant, entry, denied)] = await rig.denials()
    assert (tenant, denied.reasons, denied.refs) == ("acme", {"token-refused": 1}, {made.task_ref: 1})
    assert entry.authority.credential is not None
    assert entry.authority.credential.verification is Verification.EXPIRED


@pytest.mark.requirement("A2", "A10")
async def test_a_credential_that_has_ended_makes_no_task(rig: Rig) -> None:
    who = lasting(rig, LASTS_S)
    rig.clock.advance(LASTS_S * 1000)
    with pytest.raises(NotAuthorised, match="token-refused"):
        await rig.create(who)
    [(_, entry, _)] = await rig.denials()
    assert entry.authority.credential is not None
    assert entry.authority.credential.verification is Verification.EXPIRED
    assert not await rig.entries("task")


@pytest.mark.requirement("P2", "A4")
@pytest.mark.parametrize("act", ACTS)
async def test_a_handle_whose_time_is_over_is_denied_like_an_unknown_one_and_that_is_an_entry(
    rig: Rig, act: str
) -> None:
    """Features P2: whether or not a timer has fired; the credential is still good."""
    made = await rig.create()
    await complete(rig, made.task_ref)
    rig.clock.advance(SETTINGS.ttl_default_ms)
    unknown = await outcome(ACTS[act](rig, "a" * 32, ANA))
    assert await outcome(ACTS[act](rig, made.task_id, ANA)) == unknown == NOT_FOUND_TEXT
    expired = [denied for _, _, denied in await rig.denials() if made.task_ref in denied.refs]
    assert [sorted(denied.reasons) for denied in expired] == [["handle-expired"]]
    assert [type(event).__name__ for events in await told(rig) for event in events] == ["TaskCreated", "TaskCompleted"]
