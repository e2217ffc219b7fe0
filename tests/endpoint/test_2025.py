"""The tasks endpoint on the 2025-11-25 wire. Sources: issue 5, MCP 2025-11-25 (tasks, streamable HTTP)."""

import asyncio
import contextlib

import httpx
import pytest
from tests.endpoint.place import ANSWER, QUESTION, RESULT, Place

from tasktrail.testing.waiting import until

pytestmark = pytest.mark.requirement("L3", "O2")

RELATED = "io.modelcontextprotocol/related-task"
NOT_FOUND = {"code": -32602, "message": "Task not found"}


async def test_a_task_is_read_and_listed_by_its_creator_alone(place: Place) -> None:
    """Tasks (Data Types, Task Listing): flat, `ttl`, `pollInterval`, no payload."""
    task = await place.made()
    async with place.earlier() as ana, place.earlier("eve") as eve:
        shown = (await ana.ask("tasks/get", taskId=task["task_id"]))["result"]
        members = {"taskId", "status", "createdAt", "lastUpdatedAt", "ttl", "pollInterval"}
        assert (shown.keys(), shown["taskId"], shown["status"]) == (members, task["task_id"], "working")
        assert shown in (await ana.ask("tasks/list"))["result"]["tasks"]
        assert (await eve.ask("tasks/list"))["result"] == {"tasks": []}
        assert (await ana.ask("tasks/list", cursor=5))["error"]["code"] == -32602
        for method in ("tasks/get", "tasks/cancel", "tasks/result"):
            assert (await eve.ask(method, taskId=task["task_id"]))["error"] == NOT_FOUND
            assert (await eve.ask(method, taskId="a" * 32))["error"] == NOT_FOUND
        assert (await ana.ask("tools/list"))["error"]["code"] == -32601
        assert (await ana.ask("tasks/update", taskId=task["task_id"]))["error"]["code"] == -32601


@pytest.mark.requirement("A4")
async def test_who_cannot_be_told_apart_has_no_list(place: Place) -> None:
    """Tasks (security considerations): it would show everybody's handles to anybody."""
    await place.made("")
    headers = {"MCP-Protocol-Version": "2025-11-25", "Accept": "application/json, text/event-stream"}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tasks/list", "params": {}}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as nobody:
        answer = (await nobody.post(place.url, json=body)).json()
    assert answer["error"]["code"] == -32601


@pytest.mark.requirement("L6", "L7")
async def test_the_result_waits_and_delivers_questions_meanwhile(place: Place) -> None:
    """Tasks (Input Required Status, Result Retrieval): each message names its task; an answer is a POST of its own."""
    task = await place.made()
    async with place.earlier() as ana, ana.waiting(task["task_id"]) as messages:
        await place.work(task, "ask", asks={"which.quarter": QUESTION})
        changed, question = await anext(messages), await anext(messages)
        assert (changed["method"], changed["params"]["status"]) == ("notifications/tasks/status", "input_required")
        assert question["method"] == QUESTION["method"]
        related = {"_meta": {RELATED: {"taskId": task["task_id"]}}}
        assert question["params"] == {**QUESTION["params"], **related}
        async with place.earlier("eve") as eve:
            assert (await eve.answer(question["id"], result=ANSWER)).json()["error"] == NOT_FOUND
        refused = await ana.answer(question["id"], result={"action": "perhaps"})
        assert (refused.status_code, refused.json()["id"], refused.json()["error"]["code"]) == (400, None, -32602)
        again = await anext(messages)
        assert (again["params"], again["id"] != question["id"]) == (question["params"], True)
        async with place.earlier() as elsewhere:
            accepted = await elsewhere.answer(again["id"], result={**ANSWER, **related})
        assert (accepted.status_code, accepted.content) == (202, b"")
        assert (await place.view(task))["answers"] == {"which.quarter": ANSWER}
        await place.work(task, "complete", result=RESULT)
        *_, last = [one async for one in messages]
        assert last == {"jsonrpc": "2.0", "id": 7, "result": {**RESULT, **related}}
        assert (await ana.ask("tasks/result", taskId=task["task_id"]))["result"] == last["result"]


async def test_an_answer_to_nothing_is_refused(place: Place) -> None:
    """Streamable HTTP: a response that cannot be accepted gets an HTTP error without an id."""
    async with place.earlier() as ana:
        for rpc_id in (7, "ping", "a.b"):
            assert (await ana.answer(rpc_id, result={})).json()["error"]["code"] == -32600
        unknown = await ana.answer(f"{'a' * 32}.s.key", result=ANSWER)
        assert (unknown.status_code, unknown.json()["error"]) == (400, NOT_FOUND)


@pytest.mark.requirement("L8")
async def test_a_cancelled_task_is_told_once_it_has_stopped(place: Place) -> None:
    """Tasks (Task Cancellation): the answer is the cancelled task; -32602 for one that has ended."""
    task = await place.made()
    async with place.earlier() as ana:
        cancelling = asyncio.create_task(ana.ask("tasks/cancel", taskId=task["task_id"]))

        async def told() -> bool:
            return bool((await place.view(task))["cancel_requested"])

        await until(told)
        await place.work(task, "stop")
        assert (await cancelling)["result"]["status"] == "cancelled"
        assert (await ana.ask("tasks/cancel", taskId=task["task_id"]))["error"]["code"] == -32602
        ended = (await ana.ask("tasks/result", taskId=task["task_id"]))["error"]
        assert ended == {"code": 0, "message": "Request cancelled"}


async def test_errors_of_tools_and_of_requests_are_failures(place: Place) -> None:
    """Tasks (Tool execution errors): `failed` for `isError`; the result is what the request would have got."""
    tool, request = await place.made(), await place.made()
    result = {"content": [], "isError": True}
    await place.work(tool, "complete", result=result, is_error=True)
    await place.work(request, "fail", error={"code": -32050, "message": "no such quarter"})
    async with place.earlier() as ana:
        for task in (tool, request):
            assert (await ana.ask("tasks/get", taskId=task["task_id"]))["result"]["status"] == "failed"
        told = (await ana.ask("tasks/result", taskId=tool["task_id"]))["result"]
        assert told == {**result, "_meta": {RELATED: {"taskId": tool["task_id"]}}}
        failed = (await ana.ask("tasks/result", taskId=request["task_id"]))["error"]
        assert failed == {"code": -32050, "message": "no such quarter"}


@pytest.mark.requirement("A4")
async def test_who_waits_is_let_go_when_the_handle_is_taken_back(place: Place) -> None:
    """What is shown is decided anew at each look: a revoked handle opens nothing any more."""
    task = await place.made()
    async with place.earlier() as ana, ana.waiting(task["task_id"]) as messages:
        order = {"kind": "handle", "task": task["task_ref"], "reason": "test"}
        await asyncio.to_thread(place.up.order, "revocations", **order)
        told = [one async for one in messages][-1]
        assert (told["id"], told["error"]) == (7, NOT_FOUND)


WAIT = {"retriable": True, "written": "nothing", "retryAfterMs": 5_000}


async def test_one_caller_does_not_take_every_place(place: Place) -> None:
    """At most 16 calls of one caller wait; another one's finds a place still."""
    task = await place.made()
    async with contextlib.AsyncExitStack() as stack:
        ana, eve = [await stack.enter_async_context(place.earlier(sub)) for sub in ("ana", "eve")]
        other = await place.made("eve")
        for _ in range(16):
            await stack.enter_async_context(ana.waiting(task["task_id"]))
        refused = (await ana.ask("tasks/result", taskId=task["task_id"]))["error"]
        assert (refused["code"], refused["data"]) == (-32029, WAIT)
        await stack.enter_async_context(eve.waiting(other["task_id"]))
