"""What one MCP server, or one caller, may make the service remember or read is bounded.

Sources: `leases.py`, `listing.py`, `parents.py` (module docstrings); features L9, P4, A5.
"""

import asyncio

import msgspec
import pytest
from tests.services.access.rig import ANA, CHANNEL, Rig, call, caller

from tasktrail.events.authority import Level
from tasktrail.events.errors import RateLimited
from tasktrail.events.facts import TaskCreated
from tasktrail.services import leases, messages
from tasktrail.services.access import listing
from tasktrail.services.access.callers import Channel
from tasktrail.services.access.policy import shipped

UNSEEN = '@id("unseen") forbid (principal, action == Action::"getTask", resource);'


async def renew(rig: Rig, worker: str, server: str = CHANNEL.server) -> messages.Lease:
    return await rig.one.work.renew(messages.RenewLease(worker=worker), Channel(server=server, in_process=False))


@pytest.mark.requirement("L9", "P4")
async def test_a_server_has_so_many_leases_and_no_more_while_its_work_keeps_its_own(rig: Rig) -> None:
    """Names of processes can be made up: a thousand idle ones; what does a task's work is never turned away."""
    many = (renew(rig, f"w{number}") for number in range(leases.WORKERS_MAX + 5))
    refusals = [one for one in await asyncio.gather(*many, return_exceptions=True) if isinstance(one, RateLimited)]
    assert len(refusals) == 5, "also of those that come at once"
    with pytest.raises(RateLimited, match="a process has one name for as long as it lives") as refused:
        await renew(rig, "one-more")
    assert refused.value.retry_after_ms == rig.one.leases.lease_ms
    seen = {(one.method, one.code, *one.reasons) for _, _, one in await rig.denials()}
    assert seen == {("work/renew", RateLimited.code, "rate-limited")}
    assert (await renew(rig, "w0")).lease_ms
    assert (await renew(rig, "one-more", "another")).lease_ms
    made = await rig.create(worker="at-work")
    state = rig.one.states.kept(made.task_ref)
    assert state is not None
    rig.one.leases.observe(state)
    assert (await renew(rig, "at-work")).lease_ms


@pytest.mark.requirement("P4", "L3")
async def test_a_page_of_a_list_looks_at_so_many_tasks_and_no_more(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look is a read and, where policy denies it, on the trail: a page may hold fewer, and not be the last."""
    monkeypatch.setattr(listing, "LOOKED_MAX", 2)
    for number in range(3):
        await rig.create(made=f"c{number}")
    rig.one.policies.activate(shipped() + UNSEEN, "none")
    said = messages.ListTasks(caller=ANA, call=call("tasks/list"))
    first = await rig.one.gate.list(said, CHANNEL)
    assert first.tasks == ()
    assert first.next_cursor
    assert sum(denied.count for _, _, denied in await rig.denials()) == 2
    rig.one.policies.activate(shipped(), "all")
    second = await rig.one.gate.list(msgspec.structs.replace(said, cursor=first.next_cursor), CHANNEL)
    assert (len(second.tasks), second.next_cursor) == (1, "")


@pytest.mark.requirement("A5", "L6")
async def test_a_parent_is_linked_only_for_whom_its_handle_opens_it(rig: Rig) -> None:
    """Asserted is more than claimed: nobody hangs a task of its own under a task that it may not see."""
    parent = await rig.create(made="parent")
    await rig.create(caller("eve"), "foreign", parent_task=parent.task_id)
    await rig.create(made="own", parent_task=parent.task_id)
    created = [event for entry in await rig.entries("task") for event in entry.events if isinstance(event, TaskCreated)]
    linked = [(one.parent, one.parent_level) for one in created]
    assert linked == [("", Level.CLAIMED), ("", Level.CLAIMED), (parent.task_ref, Level.ASSERTED)]
