"""The Ledger and the memory trail by one contract. Source: design sections 1 and 7, style 10.

Promise 1: durable before visible, one entry for a command; L2: refusals are recorded.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import pytest
from tests.services.orders import REF, TENANT, complete, report

from tasktrail.events import commands
from tasktrail.events.authority import Authority, Trigger
from tasktrail.events.errors import CommandReused, TaskNotFound
from tasktrail.events.facts import CommandRefused, Event, GapFound, Status, TaskCreated
from tasktrail.events.subjects import control_subject, task_subject
from tasktrail.events.task import Outcome
from tasktrail.projections.current import State
from tasktrail.services.ledger import Recorded
from tasktrail.testing.memory import MemoryTrail, Stored, folded
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Clock, parts, stored
from tasktrail.testing.scenario import NOW_MS, TTL_MS, authority, create, sealed


class Trail(Protocol):
    """What both implementations do."""

    on_recorded: Callable[[State], Awaitable[None]] | None

    async def submit(
        self,
        tenant: str,
        ref: str,
        command: commands.TaskCommand,
        authority: Authority,
        sealed: dict[str, bytes] | None = None,
    ) -> Recorded: ...

    async def note(
        self, subject: str, tenant: str, authority: Authority, events: tuple[Event, ...], ref: str = ""
    ) -> str: ...


class Contract(msgspec.Struct):
    """A trail under test, what answers polls of it, and all that is on it."""

    trail: Trail
    of: Callable[[str, str], Awaitable[State | None]]
    stored: Callable[[], Awaitable[Sequence[Stored]]]
    clock: Clock

    async def do(self, command: commands.TaskCommand, who: Authority | None = None, **blobs: bytes) -> Recorded:
        return await self.trail.submit(TENANT, REF, command, who or authority(), blobs)

    async def commands(self) -> list[str]:
        """Commands on the trail in order; fails when a chain is broken or an entry is there twice."""
        messages = await self.stored()
        folded(messages)
        return [message.entry.command for message in messages]


@pytest.fixture(params=["memory", "jetstream"])
async def contract(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Contract]:
    """Give each implementation."""
    clock = Clock()
    if request.param == "jetstream":
        server: NatsServer = request.getfixturevalue("fresh_nats")
        async with parts(server.url, tmp_path, clock) as one:
            yield Contract(one.ledger, one.states.of, lambda: stored(one.js), clock)
        return
    memory = MemoryTrail(clock)

    async def messages() -> Sequence[Stored]:
        return memory.messages

    yield Contract(memory, memory.of, messages, clock)


@pytest.mark.requirement("L1", "L5")
async def test_a_command_that_is_answered_can_be_read(contract: Contract) -> None:
    """L5: the handle is not returned before a poll would resolve it."""
    assert await contract.of(TENANT, REF) is None
    made = await contract.do(create())
    assert (made.outcome, made.repeated, made.state.task.status) == (Outcome.ACCEPTED, False, Status.WORKING)
    assert await contract.of(TENANT, REF) == made.state
    done = await contract.do(complete())
    assert await contract.of(TENANT, REF) == done.state
    assert done.state.task.created_by == made.entry_id
    assert await contract.of("globex", REF) is None


@pytest.mark.requirement("L2", "T1")
async def test_a_repeated_command_returns_the_first_outcome_and_writes_nothing(contract: Contract) -> None:
    """Design section 7: one command, one entry; a repeat returns the first outcome, also when that was a refusal."""
    first = await contract.do(create())
    ended = await contract.do(complete())
    refused = await contract.do(complete("late", "other"))
    for command, before in ((create(), first), (complete(), ended), (complete("late", "other"), refused)):
        again = await contract.do(command)
        assert again.repeated
        assert (again.outcome, again.reason, again.entry_id) == (before.outcome, before.reason, before.entry_id)
        assert again.state == refused.state
    assert await contract.commands() == ["CreateTask", "CompleteTask", "CompleteTask"]


@pytest.mark.requirement("L2", "R4")
async def test_a_repeat_is_one_whatever_secrets_another_version_sees_in_it(contract: Contract) -> None:
    """What is seen in a payload is no part of the command: a newer table of formats may see more."""
    await contract.do(create())
    await contract.do(complete())
    flagged = msgspec.structs.replace(complete().result, flags=("jwt", "private_key"))
    again = await contract.do(msgspec.structs.replace(complete(), result=flagged))
    assert again.repeated


@pytest.mark.requirement("T1")
async def test_a_part_of_ours_and_an_mcp_server_never_share_a_command_id(contract: Contract) -> None:
    """An MCP server chooses its ids: by none can it keep the service from marking or cancelling a task."""
    await contract.do(create())
    await contract.do(report("policy:authority_revoked"))
    for trigger in (Trigger.OPERATOR, Trigger.TIMER):
        ours = commands.CancelTask(id="policy:authority_revoked", cause="authority_revoked")
        done = await contract.do(ours, authority(trigger=trigger))
        assert not done.repeated


@pytest.mark.requirement("T1")
async def test_another_command_under_a_used_id_is_refused_and_not_written(contract: Contract) -> None:
    """`CommandReused`: two different wishes under one id are a fault of the caller's adapter."""
    await contract.do(create())
    await contract.do(report("r"))
    with pytest.raises(CommandReused, match="'r' was used before for another command"):
        await contract.do(commands.CancelTask(id="r"))
    with pytest.raises(CommandReused):
        await contract.do(commands.ReportStatus(id="r", message=sealed("message", "another text")))
    assert await contract.commands() == ["CreateTask", "ReportStatus"]


@pytest.mark.requirement("L2", "T1")
async def test_a_refusal_is_on_the_trail_and_returned(contract: Contract) -> None:
    """L2: illegal transitions are refused and recorded."""
    await contract.do(create())
    await contract.do(complete())
    refused = await contract.do(commands.CancelTask(id="c"))
    assert (refused.outcome, refused.reason) == (Outcome.REFUSED, "terminal")
    (event,) = (await contract.stored())[-1].entry.events
    assert isinstance(event, CommandRefused)
    assert (event.command, event.status, event.reason) == ("CancelTask", "completed", "terminal")


@pytest.mark.requirement("T1")
async def test_a_command_without_a_task_writes_nothing_that_could_stand_in_its_way(contract: Contract) -> None:
    """A chain begins with a creation or not at all."""
    for command in (report("r"), commands.CancelTask(id="c"), commands.ExpireTask(id="e")):
        with pytest.raises(TaskNotFound):
            await contract.do(command)
    assert await contract.stored() == []
    assert (await contract.do(create())).outcome is Outcome.ACCEPTED


@pytest.mark.requirement("L2")
async def test_what_changes_nothing_is_not_written(contract: Contract) -> None:
    """Design section 5: the same status text again."""
    await contract.do(create())
    await contract.do(report("r"))
    same = await contract.do(commands.ReportStatus(id="r2", message=sealed("message", "r")))
    assert (same.outcome, same.events) == (Outcome.UNCHANGED, ())
    assert await contract.commands() == ["CreateTask", "ReportStatus"]


@pytest.mark.requirement("R1")
async def test_only_what_the_events_commit_to_travels(contract: Contract) -> None:
    """A refused command leaves no payload on the trail."""
    await contract.do(create(), handle=b"h", arguments=b"a", stray=b"s")
    await contract.do(complete(), result=b"42")
    await contract.do(complete("late"), result=b"43")
    entries = [message.entry for message in await contract.stored()]
    assert [entry.sealed for entry in entries] == [{"handle": b"h", "arguments": b"a"}, {"result": b"42"}, {}]


@pytest.mark.requirement("T1")
async def test_an_entry_says_who_and_what(contract: Contract) -> None:
    """Design section 7: v, id, tenant, task_ref, task_seq, prev, recorded_at, authority, events, sealed."""
    done = await contract.do(create())
    (message,) = await contract.stored()
    entry = message.entry
    assert message.subject == task_subject(TENANT, REF)
    assert (entry.v, entry.id, entry.tenant, entry.task_ref) == (1, done.entry_id, TENANT, REF)
    assert (entry.task_seq, entry.prev, entry.command) == (1, "", "CreateTask")
    assert entry.recorded_at == "2027-01-15T08:00:00.000Z"
    assert entry.authority == authority()
    assert isinstance(entry.events[0], TaskCreated)


async def test_the_clock_of_a_task_does_not_go_back(contract: Contract) -> None:
    """`lastUpdatedAt` would otherwise move backwards when the wall clock does."""
    await contract.do(create())
    contract.clock.advance(-5_000)
    done = await contract.do(report("r"))
    assert done.state.task.last_updated_at_ms == NOW_MS


@pytest.mark.requirement("L1")
async def test_a_timers_command_id_is_nobody_elses(contract: Contract) -> None:
    """Timers' ids are fixed: an adapter that used one could keep a task from ever ending."""
    await contract.do(create())
    await contract.do(report("timer:expire"))
    contract.clock.advance(TTL_MS)
    timer = Authority(trigger=Trigger.TIMER, tenant=TENANT)
    ended = await contract.do(commands.ExpireTask(id="timer:expire"), timer)
    assert (ended.outcome, ended.state.task.status) == (Outcome.ACCEPTED, Status.CANCELLED)


async def test_listeners_hear_of_each_entry_once_and_cannot_spoil_it(contract: Contract) -> None:
    """What is on the trail is on it, whatever becomes of telling it."""
    heard: list[int] = []

    async def listen(state: State) -> None:
        heard.append(state.task.seq)
        if state.task.status is Status.COMPLETED and isinstance(contract.trail, MemoryTrail):
            return
        if state.task.status is Status.COMPLETED:
            message = "a listener's own fault"
            raise ValueError(message)

    contract.trail.on_recorded = listen
    await contract.do(create())
    await contract.do(create())
    await contract.do(report("r"))
    await contract.do(commands.ReportStatus(id="again", message=sealed("message", "r")))
    assert (await contract.do(complete())).outcome is Outcome.ACCEPTED
    assert heard == [1, 2, 3]


@pytest.mark.requirement("T1")
async def test_notes_stand_beside_the_chains(contract: Contract) -> None:
    """Design section 7: access, denied and control entries carry no expected sequence."""
    await contract.do(create())
    gap = GapFound(at_ms=NOW_MS, what="polls", since_ms=1, until_ms=2, cause="test")
    ids = [await contract.trail.note(control_subject("_"), "_", authority(), (gap,)) for _ in range(2)]
    await contract.do(complete())
    entries = [message.entry for message in await contract.stored()]
    assert [entry.task_seq for entry in entries] == [1, 0, 0, 2]
    assert [entry.id for entry in entries[1:3]] == ids
    assert len(set(ids)) == 2
    assert await contract.commands() == ["CreateTask", "", "", "CompleteTask"]
