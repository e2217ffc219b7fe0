"""The work's side: what an MCP server may report of the tasks it runs. Source: design section 6, features L2 L8 A1."""

from typing import Any

import msgspec
import pytest
from tests.services.access.rig import ANA, CHANNEL, SCHEMA, Rig

from tasktrail.events.authority import Level, PrincipalKind, Standing, Trigger
from tasktrail.events.entry import Entry
from tasktrail.events.errors import InvalidRequest, TaskNotFound
from tasktrail.events.facts import AccessDenied, Status
from tasktrail.services import messages
from tasktrail.services.access.callers import Channel
from tasktrail.services.access.losing import LOST_CODE
from tasktrail.services.messages import WorkView
from tasktrail.testing.parts import Parts

OTHER_SERVER = Channel(server="mail", in_process=False)
EMBEDDED = Channel(server="reports", in_process=True)
ASK = messages.InputAsk(method="elicitation/create", params={"requestedSchema": SCHEMA})


def said(kind: type[messages.Said], ref: str, made: str = "", **fields: Any) -> Any:  # noqa: ANN401 - a request
    """A request of the work's about a task."""
    return kind(**{"task_ref": ref, "command_id": made or kind.__name__, **fields})


async def report(one: Parts, ref: str, text: str, made: str = "r", channel: Channel = CHANNEL) -> WorkView:
    return await one.work.report(said(messages.ReportStatus, ref, made, message=text), channel)


async def complete(one: Parts, ref: str, made: str = "done", result: object = 42) -> WorkView:
    return await one.work.complete(said(messages.CompleteTask, ref, made, result=result), CHANNEL)


async def last(rig: Rig) -> Entry:
    return (await rig.entries("task"))[-1]


@pytest.mark.requirement("L1", "L2")
async def test_the_work_moves_its_task_and_is_told_how_it_stands(rig: Rig) -> None:
    """Each step answers with what became of it, and whether to go on."""
    ref = (await rig.create()).task_ref
    first = await report(rig.one, ref, "half")
    assert (first.outcome, first.status, first.live, first.seq) == ("accepted", Status.WORKING, True, 2)
    same = await report(rig.one, ref, "half", "r2")
    assert (same.outcome, same.seq) == ("unchanged", 2)
    again = await report(rig.one, ref, "half")
    assert (again.outcome, again.seq) == ("accepted", 2)
    done = await complete(rig.one, ref)
    assert (done.outcome, done.status, done.live) == ("accepted", Status.COMPLETED, False)


@pytest.mark.requirement("L8")
async def test_a_late_report_changes_nothing_is_recorded_and_the_answer_says_so(rig: Rig) -> None:
    """L8: a finished task stays finished."""
    ref = (await rig.create()).task_ref
    await complete(rig.one, ref)
    late = [
        await complete(rig.one, ref, "again", 43),
        await report(rig.one, ref, "more"),
        await rig.one.work.stop(said(messages.StopTask, ref), CHANNEL),
        await rig.one.work.lose(said(messages.LoseWorker, ref, cause="shutdown"), CHANNEL),
    ]
    assert {(view.outcome, view.reason, view.status) for view in late} == {("refused", "terminal", Status.COMPLETED)}
    entries = await rig.entries("task")
    assert [entry.sealed for entry in entries[2:]] == [{}] * 4, "a late result's payload stays nowhere"


@pytest.mark.requirement("L7")
async def test_questions_are_asked_under_new_keys_and_answers_are_collected(rig: Rig) -> None:
    """The answers so far are the work's until the task is over."""
    made = await rig.create()
    asked = await rig.one.work.ask(said(messages.RequestInput, made.task_ref, asks={"a": ASK, "b": ASK}), CHANNEL)
    assert (asked.outcome, asked.status) == ("accepted", Status.INPUT_REQUIRED)
    used = await rig.one.work.ask(said(messages.RequestInput, made.task_ref, "again", asks={"b": ASK}), CHANNEL)
    assert (used.outcome, used.reason) == ("refused", "key_used")
    answer = {"action": "accept", "content": {"name": "Luca"}}
    await rig.update(made.task_id, {"a": answer})
    collect = messages.CollectInput(task_ref=made.task_ref)
    assert (await rig.one.work.collect(collect, CHANNEL)).answers == {"a": answer}
    await rig.update(made.task_id, {"b": {"action": "decline"}}, made="u2")
    view = await rig.one.work.collect(collect, CHANNEL)
    assert (view.answers, view.status) == ({"a": answer, "b": {"action": "decline"}}, Status.WORKING)
    assert (await complete(rig.one, made.task_ref)).answers == {}


@pytest.mark.requirement("L7")
async def test_only_requests_that_clients_know_are_asked(rig: Rig) -> None:
    """SEP-2663: elicitation, sampling, roots."""
    ref = (await rig.create()).task_ref
    odd = messages.InputAsk(method="tools/call")
    with pytest.raises(InvalidRequest, match="'tools/call' is no request for input; use one of elicitation/create"):
        await rig.one.work.ask(said(messages.RequestInput, ref, asks={"a": odd}), CHANNEL)
    assert len(await rig.entries("task")) == 1


@pytest.mark.requirement("L8")
async def test_a_wish_to_cancel_reaches_the_work_and_its_stop_is_the_second_fact(rig: Rig) -> None:
    """L8: a stopped task's work is really told to stop; asking for more input is refused meanwhile."""
    made = await rig.create()
    early = await rig.one.work.stop(said(messages.StopTask, made.task_ref, "early"), CHANNEL)
    assert (early.outcome, early.reason) == ("refused", "no_cancel_requested")
    await rig.cancel(made.task_id)
    told = await rig.one.work.collect(messages.CollectInput(task_ref=made.task_ref), CHANNEL)
    assert (told.cancel_requested, told.live) == (True, True)
    refused = await rig.one.work.ask(said(messages.RequestInput, made.task_ref, asks={"a": ASK}), CHANNEL)
    assert refused.reason == "cancel_requested"
    stopped = await rig.one.work.stop(said(messages.StopTask, made.task_ref), CHANNEL)
    assert (stopped.status, stopped.live) == (Status.CANCELLED, False)
    (event,) = (await last(rig)).events
    assert getattr(event, "reason", "") == "requested"


@pytest.mark.requirement("L2")
async def test_a_server_that_goes_away_fails_its_tasks(rig: Rig) -> None:
    """L9 begins here: never silently; the client sees a JSON-RPC error."""
    made = await rig.create()
    lost = await rig.one.work.lose(said(messages.LoseWorker, made.task_ref, cause="shutdown"), CHANNEL)
    assert (lost.status, lost.outcome) == (Status.FAILED, "accepted")
    assert [type(event).__name__ for event in (await last(rig)).events] == ["WorkerLost", "TaskFailed"]
    view = await rig.get(made.task_id)
    assert view.error is not None
    assert view.error.code == LOST_CODE


@pytest.mark.requirement("L1")
async def test_when_its_time_is_over_the_work_is_told_not_to_go_on(rig: Rig) -> None:
    """Whether or not a timer has fired."""
    made = await rig.create()
    rig.clock.advance(60_000)
    view = await rig.one.work.collect(messages.CollectInput(task_ref=made.task_ref), CHANNEL)
    assert not view.live
    assert (await complete(rig.one, made.task_ref)).reason == "ttl_elapsed"


@pytest.mark.requirement("A1", "A4")
@pytest.mark.parametrize("in_process", [False, True])
async def test_a_server_reports_on_its_own_tasks_only(rig: Rig, *, in_process: bool) -> None:
    """Module docstring. The denial says what the server was told, and why."""
    ref = (await rig.create()).task_ref
    unknown = rig.one.keyring.ref("unknown")
    other = Channel(server="mail", in_process=in_process)
    for target in (ref, unknown):
        with pytest.raises(TaskNotFound):
            await report(rig.one, target, "x", channel=other)
        with pytest.raises(TaskNotFound):
            await rig.one.work.collect(messages.CollectInput(task_ref=target), other)
    assert len(await rig.entries("task")) == 1
    denials = await rig.denials()
    assert {event.code for _, _, event in denials} == {-32602}
    counted: dict[tuple[str, str, str], int] = {}
    for tenant, _, event in denials:
        for reason, count in event.reasons.items():
            counted[event.method, tenant, reason] = counted.get((event.method, tenant, reason), 0) + count
    assert counted == {
        ("work/report", "acme", "other-server-runs-task"): 1,
        ("work/report", "_", "no-such-task"): 1,
        ("work/collect", "acme", "other-server-runs-task"): 1,
        ("work/collect", "_", "no-such-task"): 1,
    }
    assert all(
        isinstance(event, AccessDenied) and "mail" in str(entry.authority.principal) for _, entry, event in denials
    )


@pytest.mark.requirement("A5")
@pytest.mark.parametrize("channel", [CHANNEL, EMBEDDED])
async def test_a_step_of_the_work_is_its_own_and_never_the_callers(rig: Rig, channel: Channel) -> None:
    """Promise 3: a connected server is asserted, an embedded one vouched for; never the requestor's identity."""
    ref = (await rig.create()).task_ref
    await report(rig.one, ref, "half", channel=channel)
    authority = (await last(rig)).authority
    assert authority.principal is not None
    assert (authority.trigger, authority.principal.sub) == (Trigger.WORKER, "server:reports")
    assert authority.principal.kind is PrincipalKind.MACHINE
    assert authority.principal.level is (Level.VOUCHED if channel.in_process else Level.ASSERTED)
    assert (authority.client, authority.credential) == (None, None)
    assert authority.decision is not None
    assert (authority.decision.reason, authority.standing) == ("work-continues", Standing.UNKNOWN)
    undecided = msgspec.structs.replace(authority, decision=None)  # whose task it is was among what decided
    assert ANA.sub not in str(undecided)


@pytest.mark.requirement("R1")
async def test_what_the_work_says_is_sealed(rig: Rig) -> None:
    """R1: status messages, questions, results and errors."""
    made = await rig.create()
    await report(rig.one, made.task_ref, "canary one")
    ask = msgspec.structs.replace(ASK, params={"message": "canary two"})
    await rig.one.work.ask(said(messages.RequestInput, made.task_ref, asks={"a": ask}), CHANNEL)
    error = messages.RpcError(code=-1, message="canary three")
    await rig.one.work.fail(said(messages.FailTask, made.task_ref, error=error), CHANNEL)
    entries = await rig.entries("task")
    assert [sorted(entry.sealed) for entry in entries] == [
        ["arguments", "handle"],
        ["message"],
        ["request.a"],
        ["error"],
    ]
    assert "canary" not in str(msgspec.to_builtins(entries))
    assert all(b"canary" not in blob for entry in entries for blob in entry.sealed.values())
