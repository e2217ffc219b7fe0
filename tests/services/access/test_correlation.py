"""Related requests find their task: parents by trace, tools defined otherwise, answers said again. Source: issue
"Adapters" (correlation), features L6, P3, A1, A5."""

import msgspec
import pytest
from tests.services.access.rig import ANA, CHANNEL, GLOBEX, Rig, call, caller, outcome
from tests.services.access.taking import created, facts, lost, queued, take

from tasktrail.events.authority import Level, Trigger
from tasktrail.events.facts import InputIgnored, InputResponded, TaskCreated, ToolDriftSeen
from tasktrail.events.tracing import TraceContext
from tasktrail.services import messages
from tasktrail.services.access.callers import Channel
from tasktrail.services.messages import TaskView
from tasktrail.testing.waiting import until

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OLD, NEW = "a" * 64, "b" * 64
ANSWER = {"a": {"action": "accept", "content": {"name": "Luca"}}}


def traced(context: TraceContext) -> messages.Call:
    return msgspec.structs.replace(call("tools/call"), traceparent=context.traceparent, tracestate=context.tracestate)


async def child(rig: Rig, made: str, context: TraceContext, who: messages.Caller = ANA) -> TaskView:
    return await rig.create(who, made, call=traced(context))


@pytest.mark.requirement("L6", "A5")
async def test_a_call_made_by_a_tasks_work_is_linked_to_that_task_as_claimed(rig: Rig) -> None:
    """W3C Trace Context: the run's span is the parent id of what it calls, or its member of the state is passed on."""
    parent = await child(rig, "parent", TraceContext(PARENT))
    sent = TraceContext.of_run(parent.task_ref, PARENT)
    hop = TraceContext(f"{sent.traceparent[:36]}{'7' * 16}-01", sent.tracestate)
    for made, context in (("direct", TraceContext(sent.traceparent)), ("by a proxy", hop)):
        await child(rig, made, context)
    await child(rig, "beside", TraceContext(PARENT))
    await child(rig, "elsewhere", sent, caller(iss=GLOBEX))
    await rig.create(made="named", parent_task=parent.task_id, call=traced(TraceContext(PARENT)))
    linked = [(event.parent, event.parent_level) for event in await facts(rig, TaskCreated)]
    none, claimed = ("", Level.CLAIMED), (parent.task_ref, Level.CLAIMED)
    assert linked == [none, claimed, claimed, none, none, (parent.task_ref, Level.ASSERTED)]
    recorded = b"".join(msgspec.json.encode(entry) for entry in await rig.entries())
    assert b"tracestate" not in recorded


@pytest.mark.requirement("L6")
async def test_work_started_again_goes_on_with_the_trace_of_its_creation(rig: Rig) -> None:
    """The other attempt's run has the same span: what it calls is linked to the same task."""
    made = await created(rig, call=traced(TraceContext(PARENT)))
    await lost(rig, made.task_ref)
    async with queued(rig.one, made):
        order = await take(rig)
    assert order is not None
    assert order.traceparent == PARENT


@pytest.mark.requirement("L6")
async def test_a_creation_said_again_is_the_same_one_also_when_its_parent_is_over(rig: Rig) -> None:
    """A retry with the same command id returns the first outcome; what is found out is not of the command."""
    parent = await rig.create(made="parent")
    sent = TraceContext.of_run(parent.task_ref)
    made = await child(rig, "child", sent)
    rig.one.gate.parents.of_run = lambda _span: None
    assert (await child(rig, "child", sent)).task_id == made.task_id
    assert len(await facts(rig, TaskCreated)) == 2


async def drifted(rig: Rig) -> list[tuple[str, str]]:
    return [
        (entry.task_ref, event.tool_sha256)
        for entry in await rig.entries("task")
        for event in entry.events
        if isinstance(event, ToolDriftSeen)
    ]


@pytest.mark.requirement("P3")
async def test_a_new_definition_is_noticed_on_the_live_tasks_of_the_old_one_once(rig: Rig) -> None:
    """Issue: tool-definition drift between creation and later steps is noticed; feature P3."""
    one, ended = [await rig.create(made=made, tool_sha256=OLD) for made in ("one", "ended")]
    other = await rig.create(made="other tool", tool_sha256=OLD, tool="transfer")
    plain = await rig.create(made="no definition")
    await rig.complete(ended.task_ref)
    two = await rig.create(made="two", tool_sha256=NEW)

    async def noticed() -> bool:
        return len(await drifted(rig)) == 1

    await until(noticed)
    await rig.create(made="three", tool_sha256="c" * 64)

    async def both() -> bool:
        return len(await drifted(rig)) == 2

    await until(both)
    assert await drifted(rig) == [(one.task_ref, NEW), (two.task_ref, "c" * 64)]
    assert {other.task_ref, plain.task_ref, ended.task_ref}.isdisjoint(ref for ref, _ in await drifted(rig))
    entry = next(entry for entry in await rig.entries("task") if isinstance(entry.events[0], ToolDriftSeen))
    authority = entry.authority
    assert authority.principal is not None
    assert (authority.trigger, authority.principal.level) == (Trigger.MCP_SERVER, Level.ASSERTED)
    assert authority.created_by == (await rig.entries("task"))[0].id
    assert authority.decision is not None
    assert (authority.decision.effect, authority.decision.reason) == ("allow", "server-runs-task")


@pytest.mark.requirement("P3")
async def test_a_server_that_starts_with_another_definition_says_so_with_its_lease(rig: Rig) -> None:
    """No new task need be made for it; another server's tool of the same name is another tool."""
    made = await rig.create(tool_sha256=OLD, worker="w1")
    renewal = messages.RenewLease(worker="w2", tools={"report": NEW, "unknown": NEW})
    await rig.one.work.renew(renewal, Channel(server="others", in_process=False))
    await rig.one.work.renew(messages.RenewLease(worker="w1", tools={"report": OLD}), CHANNEL)
    for _ in range(3):
        await rig.one.work.renew(renewal, CHANNEL)

    async def noticed() -> bool:
        return bool(await drifted(rig))

    await until(noticed)
    await rig.one.work.renew(renewal, CHANNEL)
    await rig.create(made="last", tool_sha256=NEW)
    assert await drifted(rig) == [(made.task_ref, NEW)]


@pytest.mark.requirement("P3")
async def test_what_could_not_be_recorded_of_a_definition_is_the_next_time_it_is_seen(rig: Rig) -> None:
    """Nothing is lost to an outage: the task still differs when the server next renews its lease."""
    made = await rig.create(tool_sha256=OLD, worker="w1")
    renewal = messages.RenewLease(worker="w2", tools={"report": NEW})
    async with rig.full():
        await rig.one.work.renew(renewal, CHANNEL)

    async def noticed() -> bool:
        await rig.one.work.renew(renewal, CHANNEL)
        return bool(await drifted(rig))

    await until(noticed)
    assert await drifted(rig) == [(made.task_ref, NEW)]


@pytest.mark.requirement("L6", "L7", "A1")
async def test_an_answer_said_again_counts_once_and_anothers_not_at_all(rig: Rig) -> None:
    """By task and principal, never by connection: a new token, another replica of the server, a lost reply."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a")
    again = msgspec.structs.replace(
        ANA,
        credential=messages.CredentialFacts(method=ANA.credential.method, token_hash="n" * 43),  # type: ignore[union-attr]
    )
    assert await outcome(rig.update(made.task_id, ANSWER, caller("eve"), "eve")) is not None
    await rig.update(made.task_id, ANSWER, again)
    await rig.update(made.task_id, ANSWER, again)  # the reply was lost: the same command
    await rig.update(made.task_id, ANSWER, ANA, "by another replica")
    responded = [entry for entry in await rig.entries("task") if isinstance(entry.events[0], InputResponded)]
    assert len(responded) == 1
    credential = responded[0].authority.credential
    assert credential is not None
    assert credential.token_hash == "n" * 43
    assert [event.reason for event in await facts(rig, InputIgnored)] == ["already_answered"]
    ((tenant, _, denied),) = await rig.denials()
    assert (tenant, denied.refs) == ("acme", {made.task_ref: 1})
