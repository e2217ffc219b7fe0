"""Work that lost its worker, and who takes it. Source: issue "Adapters" (work that survives), features L6, L9, A2."""

import asyncio
import contextlib
from typing import Any

import msgspec
import pytest
from nats.js.errors import NotFoundError
from tests.services.access.changing import STOPS, WAITS, decides, lasting
from tests.services.access.rig import CANARY, CHANNEL, SETTINGS, Rig
from tests.services.access.taking import TOOLS, created, facts, lost, queued, take

from tasktrail.events.authority import Standing, Trigger
from tasktrail.events.facts import CommandRefused, Status, TaskCreated, TaskFailed, WorkerLost, WorkTaken
from tasktrail.events.subjects import WORK, work_subject
from tasktrail.services import messages
from tasktrail.services.access.policy import shipped
from tasktrail.services.messages import TaskView
from tasktrail.testing.parts import Parts
from tasktrail.testing.waiting import until

ASK = messages.InputAsk(method="elicitation/create", params={"message": "Who?", "requestedSchema": {"type": "object"}})
ANSWER = {"action": "accept", "content": {"name": "Luca"}}


@pytest.mark.requirement("L6", "L9")
async def test_whoever_takes_the_work_has_the_call_and_what_was_asked_and_answered(rig: Rig) -> None:
    """Brief of the issue: questions asked again take the earlier answer, so the worker must know them."""
    made = await created(rig, client_features=("elicitation", "elicitation.url"), client_extensions=("x",))
    asks = messages.RequestInput(task_ref=made.task_ref, command_id="a", asks={"a": ASK, "b": ASK}, worker="w1")
    await rig.one.work.ask(asks, CHANNEL)
    await rig.update(made.task_id, {"a": ANSWER})
    view = await lost(rig, made.task_ref)
    assert (view.status, view.live, view.lost) == (Status.INPUT_REQUIRED, True, True)
    async with queued(rig.one, made):
        order = await take(rig)
    assert order is not None
    assert (order.task_ref, order.tool, order.attempt, order.arguments) == (
        made.task_ref,
        "report",
        2,
        {"for": CANARY},
    )
    assert (order.client_features, order.client_extensions) == (("elicitation", "elicitation.url"), ("x",))
    assert (order.created_at_ms, order.ttl_ms, order.protocol_version) == (made.created_at_ms, 60_000, "2026-07-28")
    assert [(one.key, one.method, one.params, one.answered, one.answer) for one in order.asked] == [
        ("a", ASK.method, ASK.params, True, ANSWER),
        ("b", ASK.method, ASK.params, False, None),
    ]
    entry = (await rig.entries("task"))[-1]
    assert entry.events == (WorkTaken(at_ms=rig.clock.ms, worker="w2", attempt=2),)
    assert entry.authority.decision is not None
    assert (entry.authority.trigger, entry.authority.decision.reason) == (Trigger.WORKER, "work-continues")
    assert entry.sealed == {}


@pytest.mark.requirement("L9")
async def test_work_goes_to_one_of_those_who_ask_and_only_its_result_counts(rig: Rig) -> None:
    """Feature L9: never twice by surprise."""
    made = await created(rig)
    await lost(rig, made.task_ref)
    async with queued(rig.one, made):
        orders = await asyncio.gather(*(take(rig, f"w{number}") for number in range(2, 6)))
        assert len([order for order in orders if order]) == 1
        assert await take(rig, "w9", wait_ms=0) is None
    (event,) = await facts(rig, WorkTaken)
    done = messages.CompleteTask(task_ref=made.task_ref, command_id="old", result={"by": "w1"}, worker="w1")
    late = await rig.one.work.complete(done, CHANNEL)
    assert (late.outcome, late.reason, late.lost, late.live) == ("refused", "lost_worker", True, True)
    done = msgspec.structs.replace(done, command_id="new", worker=event.worker, attempt=2, result={"by": "new"})
    assert (await rig.one.work.complete(done, CHANNEL)).status is Status.COMPLETED
    assert (await rig.get(made.task_id)).result == {"by": "new"}
    (refused,) = await facts(rig, CommandRefused)
    assert (refused.command, refused.worker) == ("CompleteTask", "w1")
    assert all(not entry.sealed for entry in await rig.entries("task") if refused in entry.events)


@pytest.mark.requirement("L9")
async def test_an_order_whose_answer_was_lost_is_given_again_to_its_worker_alone(rig: Rig) -> None:
    """Otherwise the task would be the work of a process that never heard of it, for as long as that lives."""
    made = await created(rig)
    await lost(rig, made.task_ref)
    async with queued(rig.one, made):
        order = await take(rig)
        assert order is not None
        assert await take(rig, wait_ms=0) == order
        assert await take(rig, wait_ms=0, taken={made.task_ref: 2}) is None
        assert await take(rig, "w3", wait_ms=0) is None
    assert len(await facts(rig, WorkTaken)) == 1


@pytest.mark.requirement("L9", "P3")
async def test_work_of_a_tool_that_a_process_does_not_have_is_left_to_another(rig: Rig) -> None:
    """Brief: only tools registered in that server are taken. The one that has it knows it by another definition."""
    made = await created(rig)
    await lost(rig, made.task_ref)
    async with queued(rig.one, made):
        assert await take(rig, tools={"mail": ""}) is None
        assert not await facts(rig, WorkTaken)
        order = await until(lambda: take(rig, "w3", tools={"report": "u" * 64}))
    assert order.attempt == 2
    entry = (await rig.entries("task"))[-1]
    assert [type(event).__name__ for event in entry.events] == ["WorkTaken", "ToolDriftSeen"]


@pytest.mark.requirement("A2", "L9")
async def test_the_policy_says_whether_work_is_started_again(rig: Rig) -> None:
    """Feature A2: every server-side transition is authorised anew; what has to wait is not taken, not lost either."""
    made = await created(rig, who=lasting(rig, 10))
    await lost(rig, made.task_ref)
    rig.clock.advance(11_000)
    await decides(rig, shipped() + WAITS)
    async with queued(rig.one, made):
        assert await take(rig) is None
        assert not await facts(rig, WorkTaken)
        await decides(rig, shipped() + STOPS)
        state = await until(lambda: _stopped(rig, made))
    assert state.task.status is Status.CANCELLED
    assert not await facts(rig, WorkTaken)


async def _stopped(rig: Rig, made: TaskView) -> Any:  # noqa: ANN401 - a state
    assert await take(rig, wait_ms=0) is None
    state = rig.one.states.kept(made.task_ref)
    return state if state is not None and not state.task.live else None


@pytest.mark.requirement("L9")
async def test_a_task_that_loses_every_worker_fails_and_says_how_often_it_was_tried(rig: Rig) -> None:
    """Brief: at most `reruns_max` attempts more, then it fails with a clear error."""
    made = await created(rig)
    for attempt in range(1, SETTINGS.reruns_max + 1):
        assert (await lost(rig, made.task_ref, f"w{attempt}", attempt)).status is Status.WORKING
        async with queued(rig.one, made):
            order = await take(rig, f"w{attempt + 1}")
        assert order is not None
        assert order.attempt == attempt + 1
    last = SETTINGS.reruns_max + 1
    assert (await lost(rig, made.task_ref, f"w{last}", last)).status is Status.FAILED
    error = (await rig.get(made.task_id)).error
    assert error is not None
    assert error.message == f"the work was started {last} times, and each time the server running it went away"


@pytest.mark.requirement("L9")
async def test_a_creation_that_nobody_was_told_of_is_not_run_again(rig: Rig) -> None:
    """Its client has no handle, and would have called again."""
    made = await created(rig)
    assert (await lost(rig, made.task_ref, cause="unanswered")).status is Status.FAILED
    assert [type(event) for event in (await rig.entries("task"))[-1].events] == [WorkerLost, TaskFailed]


@pytest.mark.requirement("L9")
async def test_a_lost_worker_is_told_so_and_not_what_the_client_answered(rig: Rig) -> None:
    """Brief: the view tells the worker that it is no longer the worker. Answers are its successor's."""
    made = await created(rig)
    asks = messages.RequestInput(task_ref=made.task_ref, command_id="a", asks={"a": ASK, "b": ASK}, worker="w1")
    await rig.one.work.ask(asks, CHANNEL)
    await rig.update(made.task_id, {"a": ANSWER})
    collect = messages.CollectInput(task_ref=made.task_ref, worker="w1", attempt=1)
    before = await rig.one.work.collect(collect, CHANNEL)
    assert (before.lost, before.answers) == (False, {"a": ANSWER})
    await lost(rig, made.task_ref)
    after = await rig.one.work.collect(collect, CHANNEL)
    assert (after.lost, after.live, after.answers) == (True, True, {})


@pytest.mark.requirement("L9")
async def test_the_queue_is_disposable_and_what_is_no_work_is_dropped(rig: Rig) -> None:
    """Design section 1.8: what waits is in the states; the queue only hands it out."""
    made = await created(rig)
    await lost(rig, made.task_ref)
    async with queued(rig.one, made):
        await until(lambda: _held(rig.one))
        await rig.one.js.delete_stream(WORK)
        await until(lambda: _held(rig.one), what="the queue filled anew")
        await rig.one.js.publish(work_subject("reports", "x"), b"nonsense")
        order = await until(lambda: take(rig))
        assert order.attempt == 2
        await until(lambda: _empty(rig.one), what="an empty queue")


async def _held(at: Parts) -> bool:
    with contextlib.suppress(NotFoundError):
        return bool((await at.js.stream_info(WORK)).state.messages)
    return False


async def _empty(at: Parts) -> bool:
    await at.work.take(messages.TakeWork(worker="w9", tools=TOOLS), CHANNEL)
    return not (await at.js.stream_info(WORK)).state.messages


@pytest.mark.requirement("L6")
async def test_a_creation_names_the_task_whose_work_made_it(rig: Rig) -> None:
    """Issue: parent and child tasks are linked; a handle that names no task of the tenant links nothing."""
    parent = await rig.create()
    await rig.create(made="child", parent_task=parent.task_id)
    await rig.create(made="orphan", parent_task="a" * 32)
    await rig.create(made="odd", parent_task="no handle")
    assert [event.parent for event in await facts(rig, TaskCreated)] == ["", parent.task_ref, "", ""]


@pytest.mark.requirement("A2")
async def test_a_lost_worker_is_refused_before_the_policy_is_asked(rig: Rig) -> None:
    """Whoever is no longer the worker ends nothing, also where its creator's authority lapsed meanwhile."""
    made = await created(rig, who=lasting(rig, 10))
    await lost(rig, made.task_ref)
    rig.clock.advance(11_000)
    await decides(rig, shipped() + STOPS)
    done = messages.CompleteTask(task_ref=made.task_ref, command_id="old", result=1, worker="w1")
    late = await rig.one.work.complete(done, CHANNEL)
    assert (late.outcome, late.reason, late.status) == ("refused", "lost_worker", Status.WORKING)
    entry = (await rig.entries("task"))[-1]
    assert entry.authority.standing is Standing.LAPSED
