"""The gate's list: the tasks that `get` opens for a caller, page by page.

Source: MCP 2025-11-25, tasks (Task Listing); features A1 A3 A4 P4.
"""

import msgspec
import pytest
from tests.services.access.rig import ANA, ANONYMOUS, CHANNEL, Rig, call, caller

from tasktrail.events.authority import Method
from tasktrail.events.errors import InvalidRequest, RateLimited
from tasktrail.events.facts import AccessDenied, Status, TaskPolled
from tasktrail.services import messages
from tasktrail.services.access.listing import NotListed
from tasktrail.services.access.policy import shipped
from tasktrail.services.messages import Listed

NOT_LISTED = '@id("unseen") forbid (principal, action == Action::"getTask", resource);'


async def listed(rig: Rig, who: messages.Caller = ANA, cursor: str = "", limit: int = 50) -> Listed:
    rig.clock.advance(10_000)
    said = messages.ListTasks(caller=who, call=call("tasks/list"), cursor=cursor, limit=limit)
    return await rig.one.gate.list(said, CHANNEL)


@pytest.mark.requirement("L3", "A1")
async def test_everybody_lists_what_get_opens_for_them_the_newest_first(rig: Rig) -> None:
    """Nobody sees another's."""
    made = []
    for number in range(3):
        rig.clock.advance(1)
        made.append((await rig.create(made=f"c{number}")).task_id)
    theirs = await rig.create(who=caller("eve"), made="e")
    assert [one.task_id for one in (await listed(rig)).tasks] == made[::-1]
    assert [one.task_id for one in (await listed(rig, caller("eve"))).tasks] == [theirs.task_id]
    assert await listed(rig, caller("ana", client_id="other")) == Listed()


@pytest.mark.requirement("A1", "A2")
@pytest.mark.parametrize("who", [ANONYMOUS, caller(method=Method.NONE)])
async def test_nothing_is_listed_for_callers_who_cannot_be_told_apart(rig: Rig, who: messages.Caller) -> None:
    """Task Listing: without a credential everybody would see everybody's. Their tasks open by their ids as ever."""
    nobodys = await rig.create(who=who, made="a")
    with pytest.raises(NotListed) as refused:
        await listed(rig, who)
    assert (refused.value.code, refused.value.retriable) == (-32601, False)
    ((_, _, denied),) = await rig.denials()
    assert (denied.method, denied.code, set(denied.reasons)) == ("tasks/list", -32601, {"anonymous-not-allowed"})
    assert (await rig.get(nobodys.task_id, who)).task_id == nobodys.task_id


@pytest.mark.requirement("L3")
async def test_pages_hold_each_task_once_while_others_are_made(rig: Rig) -> None:
    """Pagination: a new task is on the first page, and moves nothing from one page to another."""
    made = []
    for number in range(5):
        rig.clock.advance(number % 2)  # some at one time: told apart all the same
        made.append((await rig.create(made=f"c{number}")).task_id)
    first = await listed(rig, limit=2)
    rig.clock.advance(1)
    await rig.create(made="new")
    second = await listed(rig, cursor=first.next_cursor, limit=2)
    third = await listed(rig, cursor=second.next_cursor, limit=2)
    assert third.next_cursor == ""
    found = [one.task_id for page in (first, second, third) for one in page.tasks]
    assert sorted(found) == sorted(made)
    assert len(set(found)) == len(made)


@pytest.mark.requirement("L3")
@pytest.mark.parametrize("cursor", ["!", "AAAA", "WzEsICJ4Il0", "é"])
async def test_a_cursor_that_is_none_is_refused(rig: Rig, cursor: str) -> None:
    """Protocol Errors: -32602."""
    with pytest.raises(InvalidRequest, match="this cursor is none"):
        await listed(rig, cursor=cursor)


@pytest.mark.requirement("R1")
async def test_a_list_and_a_status_show_no_payload_and_record_no_disclosure(rig: Rig) -> None:
    """R1, T1: what is not shown is not said to have been."""
    made = await rig.create()
    await rig.complete(made.task_ref)
    (one,) = (await listed(rig)).tasks
    assert (one.status, one.result) == (Status.COMPLETED, None)
    said = messages.GetTask(caller=ANA, call=call("tasks/get"), task_id=made.task_id, status_only=True)
    assert (await rig.one.gate.get(said, CHANNEL)).result is None
    await rig.one.recorder.flush()
    events = [event for entry in await rig.entries("access") for event in entry.events]
    assert {type(event) for event in events} == {TaskPolled}
    assert {event.method for event in events if isinstance(event, TaskPolled)} == {"tasks/list", "tasks/get"}


@pytest.mark.requirement("A2")
async def test_what_the_policy_hides_is_not_listed_and_that_is_on_the_trail(rig: Rig) -> None:
    """A2: each task is authorised anew, as if it had been asked for."""
    made = await rig.create()
    rig.one.policies.activate(shipped() + NOT_LISTED, "none")
    assert await listed(rig) == Listed()
    ((_, entry, denied),) = await rig.denials()
    assert (denied.method, denied.refs) == ("tasks/list", {made.task_ref: 1})
    assert entry.authority.decision is not None
    assert entry.authority.decision.reason == "unseen"
    assert isinstance(denied, AccessDenied)


@pytest.mark.requirement("P4")
async def test_lists_are_paced_as_polls_are(rig: Rig) -> None:
    """P4: one in each polling interval, and `polls_early` more."""
    said = messages.ListTasks(caller=ANA, call=call("tasks/list"))
    early = rig.one.settings.limits.polls_early
    for _ in range(early + 1):
        await rig.one.gate.list(said, CHANNEL)
    with pytest.raises(RateLimited):
        await rig.one.gate.list(said, CHANNEL)
    await rig.one.gate.list(msgspec.structs.replace(said, caller=caller("eve")), CHANNEL)
