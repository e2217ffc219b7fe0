"""Elicitation and sampling as messages of the task: by task and principal, never by connection.

Source: MCP 2025-11-25, tasks (Input Required Status, Associating Task-Related Messages). Features L6, L7, A8.
"""

import asyncio
from http import HTTPStatus

import pytest
from tests.mcp.place import carrying, only
from tests.v1.place import RELATED, Place, told_text
from tests.v1.running import Refused

from tasktrail.events.facts import CommandRefused, InputRequested, InputResponded
from tasktrail.mcp.credentials import digest
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.requirement("L3", "L6")
async def test_questions_come_by_the_result_and_their_answers_are_recorded_with_who_gave_them(place: Place) -> None:
    """One after the other; each names its task; the answer's entry holds the credential that brought it."""
    creator = place.creator()
    ana = await place.client(creator)
    task = await ana.call("greet", questions=["First?", "Second?"])
    await ana.status(task, "input_required")
    assert ana.asked == []
    waiting = asyncio.create_task(ana.do("result", task_id=task["taskId"]))
    for number, name in enumerate(("Ana", "Anna")):
        question = await ana.question(number)
        assert question["method"] == "elicitation/create"
        assert question["params"]["message"] == ("First?", "Second?")[number]
        assert question["params"]["_meta"][RELATED] == {"taskId": task["taskId"]}
        await ana.answer(question, action="accept", content={"name": name})
    assert told_text(await waiting) == "Ana Anna"
    assert len(ana.asked) == 2
    answered = [one for one in await place.trail.of(task["taskId"]) if isinstance(one.events[0], InputResponded)]
    for entry in answered:
        assert entry.authority.principal is not None
        assert entry.authority.principal.sub == creator.sub
        assert entry.authority.request is not None
        assert entry.authority.request.method == "elicitation/create"
    statuses = [one["params"]["status"] for one in ana.told]
    assert "working" in statuses, "tasks/result tells how the task goes on while it waits"


@pytest.mark.requirement("L6")
async def test_sampling_is_a_message_of_the_task_too(place: Place) -> None:
    """`sampling/createMessage`, with the parameters that the tool gave."""
    ana = await place.client(place.creator())
    task = await ana.call("think", about="pears")
    waiting = asyncio.create_task(ana.do("result", task_id=task["taskId"]))
    question = await ana.question()
    assert question["method"] == "sampling/createMessage"
    assert question["params"]["messages"][0]["content"]["text"] == "pears"
    assert question["params"]["_meta"] == {RELATED: {"taskId": task["taskId"]}}
    await ana.answer(question, role="assistant", model="m-1", content={"type": "text", "text": "sweet"})
    assert told_text(await waiting) == "m-1: sweet"
    asked = only(await place.trail.of(task["taskId"]), InputRequested)
    assert asked.method == "sampling/createMessage"


@pytest.mark.requirement("L6")
async def test_whoever_comes_again_is_asked_again_until_it_is_answered_and_then_no_more(place: Place) -> None:
    """A client that vanishes: another session, another connection, a new token of the same principal."""
    creator = place.creator()
    first = await place.client(creator)
    task = await first.call("greet")
    gone = asyncio.create_task(first.do("result", task_id=task["taskId"]))
    asked = await first.question()
    await first.do("vanish")
    gone.cancel()
    second = await place.client(creator)
    waiting = asyncio.create_task(second.do("result", task_id=task["taskId"]))
    question = await second.question()
    assert question["params"] == asked["params"]
    await second.answer(question, action="accept", content={"name": "Ana"})
    assert told_text(await waiting) == "Ana"
    third = await place.client(creator)
    assert told_text(await third.do("result", task_id=task["taskId"])) == "Ana"
    assert third.asked == []
    assert (await place.trail.names(task["taskId"])).count("InputRequested") == 1


@pytest.mark.requirement("L6", "L8")
async def test_answers_and_cancellations_reach_the_work_whichever_replica_takes_them(place: Place) -> None:
    """Asked on one replica, answered through another; cancelled through another, and the work hears of it."""
    creator, stopped = place.creator(), place.flag()
    here, there = await place.client(creator), await place.client(creator, "second")
    task = await here.call("greet")
    waiting = asyncio.create_task(there.do("result", task_id=task["taskId"]))
    await there.answer(await there.question(), action="accept", content={"name": "Ana"})
    assert told_text(await waiting) == "Ana"
    parked = await here.call("exact", stopped=str(stopped))
    assert (await there.do("cancel", task_id=parked["taskId"]))["status"] == "cancelled"
    await until(stopped.exists, what="the work's end")


@pytest.mark.requirement("L6", "A1")
async def test_another_principal_is_not_asked(place: Place) -> None:
    """Promise 4: the questions are as closed as the handle."""
    ana, eve = await place.client(place.creator()), await place.client(place.creator())
    task = await ana.call("greet")
    await ana.status(task, "input_required")
    with pytest.raises(Refused, match="Task not found"):
        await eve.do("result", task_id=task["taskId"])
    assert eve.asked == []


@pytest.mark.requirement("L7")
async def test_an_answer_that_does_not_fit_is_recorded_and_asked_for_again(place: Place) -> None:
    """L7: it changes nothing; the client is asked again in the same call."""
    ana = await place.client(place.creator())
    task = await ana.call("greet")
    waiting = asyncio.create_task(ana.do("result", task_id=task["taskId"]))
    await ana.answer(await ana.question(0), action="accept", content={"name": 7})
    await ana.answer(await ana.question(1), action="accept", content={"name": "Ana"})
    assert told_text(await waiting) == "Ana"
    refused = only(await place.trail.of(task["taskId"]), CommandRefused)
    assert refused.reason == "invalid_answer"


@pytest.mark.requirement("L6")
async def test_a_clients_error_is_the_tools_to_handle_and_on_the_trail(place: Place) -> None:
    """What the SDK's own queue does with it: the tool gets it as an exception."""
    ana = await place.client(place.creator())
    task = await ana.call("greet")
    waiting = asyncio.create_task(ana.do("result", task_id=task["taskId"]))
    question = await ana.question()
    await ana.do("answer", question=question["asked"], error={"code": -1, "message": "not now"})
    result = await waiting
    assert (result["isError"], told_text(result)) == (True, "not now")
    assert only(await place.trail.of(task["taskId"]), CommandRefused).reason == "invalid_answer"


@pytest.mark.requirement("L6", "A6")
async def test_an_answer_is_its_senders_whose_session_it_came_on_says_nothing(place: Place) -> None:
    """A6: where the SDK lets everybody use a session (it knows nobody), a stranger's answer on it is a stranger's."""
    creator, eve = place.creator(), place.creator()
    await place.wire.reconnect()
    token = creator.token()
    if not place.sees_refused_tokens:  # the SDK knows who is who here, and a session is its opener's
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        response, _ = await place.wire.send(eve.token(), ping, await place.wire.session(token))
        assert response.status_code == HTTPStatus.NOT_FOUND
        return
    made = await place.wire.create(token, "greet")
    questions = asyncio.Queue[int]()
    waiting = asyncio.create_task(place.wire.result_of(token, made.task_id, questions))
    number = await asyncio.wait_for(questions.get(), 60)
    forged = {"jsonrpc": "2.0", "id": number, "result": {"action": "accept", "content": {"name": "eve"}}}
    session = await place.wire.session(token)
    await place.wire.send(eve.token(), forged, session)
    again = await asyncio.wait_for(questions.get(), 60)
    assert again != number, "asked again: nothing was answered"
    honest = {"jsonrpc": "2.0", "id": again, "result": {"action": "accept", "content": {"name": "Ana"}}}
    later = creator.token()
    await place.wire.send(later, honest, session)
    result = await waiting
    assert told_text(result) == "Ana"
    answered = carrying(await place.trail.of(made.task_id), InputResponded)
    assert answered.authority.credential is not None
    assert answered.authority.credential.token_hash == digest(later)
    ref = place.trail.ref(made.task_id)
    denied = await until(lambda: place.trail.denied(ref))
    assert {one.authority.principal.sub for one in denied if one.authority.principal} == {eve.sub}
