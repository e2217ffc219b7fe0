"""A task's life on the 2025-11-25 wire, with the real SDK v1 on both sides.

Source: MCP 2025-11-25, tasks. Features L1, L3, L4, L8, O2.
"""

import asyncio
import json
from pathlib import Path

import pytest
from tests.mcp.place import only
from tests.v1.place import RELATED, Place, told_text
from tests.v1.running import Json, Refused

from tasktrail.events.facts import TaskCompleted, TaskCreated, ToolDriftSeen
from tasktrail.events.tracing import TraceContext
from tasktrail.services.waiting_results import CALLER_MAX
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.requirement("L3", "L4", "O2")
async def test_both_sides_say_what_they_can_and_the_creation_records_it(place: Place) -> None:
    """Capabilities, Tool-Level Negotiation: `tasks` of the server, `execution.taskSupport` of each tool."""
    ana = await place.client(place.creator())
    assert ana.server["capabilities"]["tasks"] == {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}
    tools = {tool["name"]: tool.get("execution", {}).get("taskSupport") for tool in (await ana.do("tools"))["tools"]}
    assert (tools["steps"], tools["greet"], tools["plain"], tools["named"]) == (
        "required",
        "optional",
        None,
        "optional",
    )
    task = await ana.call("complains")
    created = only(await place.trail.of(task["taskId"]), TaskCreated)
    assert (created.wire, created.protocol_version, created.tool) == ("mcp/2025-11-25", "2025-11-25", "complains")
    assert set(created.client_features) == {"elicitation", "sampling"}
    assert created.requested_ttl_ms == task["ttl"] == 600_000
    assert created.worker
    assert created.tool_sha256


@pytest.mark.requirement("L3")
async def test_the_result_waits_for_the_work_and_names_its_task(place: Place) -> None:
    """Result Retrieval: blocks until the task has ended; related-task in the result, not in `tasks/get`."""
    ana, flag = await place.client(place.creator()), place.flag()
    task = await ana.call("steps", until=str(flag))
    assert (task["status"], set(task)) == (
        "working",
        {"taskId", "status", "createdAt", "lastUpdatedAt", "ttl", "pollInterval"},
    )
    waiting = asyncio.create_task(ana.do("result", task_id=task["taskId"]))
    seen = await until(lambda: _with_message(ana.do("get", task_id=task["taskId"])))
    assert (seen["status"], seen["statusMessage"], "_meta" in seen) == ("working", "half way", False)
    assert not waiting.done()
    flag.touch()
    result = await waiting
    assert told_text(result) == "all the way"
    assert result["_meta"] == {RELATED: {"taskId": task["taskId"]}}
    assert (await ana.do("get", task_id=task["taskId"]))["status"] == "completed"
    assert await ana.do("result", task_id=task["taskId"]) == result


async def _with_message(getting: object) -> Json | None:
    seen: Json = await getting  # type: ignore[misc] # a coroutine
    return seen if "statusMessage" in seen else None


@pytest.mark.requirement("L3")
async def test_the_session_that_made_a_task_is_told_of_its_status(place: Place) -> None:
    """Task Status Notification: the whole task; SHOULD NOT carry related-task. Only what is on the trail is told."""
    ana, eve, flag = await place.client(place.creator()), await place.client(place.creator()), place.flag()
    task = await ana.call("steps", until=str(flag))
    flag.touch()
    told = await until(lambda: [one for one in ana.told if one["params"]["status"] == "completed"])
    assert {one["told"] for one in ana.told} == {"notifications/tasks/status"}
    assert told[0]["params"]["taskId"] == task["taskId"]
    assert {"createdAt", "lastUpdatedAt", "ttl", "pollInterval"} <= set(told[0]["params"])
    assert "_meta" not in told[0]["params"]
    assert eve.told == []


@pytest.mark.requirement("L3")
async def test_a_tool_that_errs_has_failed_and_its_result_is_what_a_plain_call_would_have_got(place: Place) -> None:
    """Task Status: `failed` includes `isError`; Result Retrieval: exactly what the request would have returned."""
    ana = await place.client(place.creator())
    for tool, text in (("complains", "not like this"), ("fails", "no luck")):
        task = await ana.call(tool)
        result = await ana.do("result", task_id=task["taskId"])
        assert (result["isError"], told_text(result)) == (True, text)
        assert (await ana.do("get", task_id=task["taskId"]))["status"] == "failed"
        assert only(await place.trail.of(task["taskId"]), TaskCompleted).is_error


@pytest.mark.requirement("P3")
async def test_a_tool_that_changes_while_its_task_lives_is_noticed(place: Place) -> None:
    """docs/mcp-sdk-v1.md: within a lease of a client's being told of the change."""
    ana, flag = await place.client(place.creator()), place.flag()
    task = await ana.call("drifts", until=str(flag))
    await ana.do("tools")

    async def seen() -> bool:
        return "ToolDriftSeen" in await place.trail.names(task["taskId"])

    await until(seen, what="the drift")
    flag.touch()
    await ana.status(task, "completed")
    found = await place.trail.of(task["taskId"])
    assert only(found, ToolDriftSeen).tool_sha256 != only(found, TaskCreated).tool_sha256


@pytest.mark.requirement("L6", "O4")
async def test_what_the_work_calls_is_of_its_tasks_own_span(place: Place) -> None:
    """W3C Trace Context: so that a task made by such a call is linked to this one."""
    ana = await place.client(place.creator())
    task = await ana.call("traces")
    carried = json.loads(told_text(await ana.do("result", task_id=task["taskId"])))
    assert carried == TraceContext.of_run(place.trail.ref(task["taskId"])).carried()


@pytest.mark.requirement("L3", "L8")
async def test_a_cancelled_task_is_cancelled_when_the_answer_comes_and_its_work_was_told(place: Place) -> None:
    """Task Cancellation: cancelled before the response; a second time -32602; the work really stops."""
    ana, stopped = await place.client(place.creator()), place.flag()
    task = await ana.call("exact", stopped=str(stopped))
    waiting = asyncio.create_task(ana.do("result", task_id=task["taskId"]))
    cancelled = await ana.do("cancel", task_id=task["taskId"])
    assert (cancelled["status"], cancelled["taskId"]) == ("cancelled", task["taskId"])
    await until(stopped.exists, what="the work's end")
    with pytest.raises(Refused, match="Request cancelled"):
        await waiting
    assert (await place.trail.names(task["taskId"]))[-2:] == ["CancelRequested", "TaskCancelled"]
    with pytest.raises(Refused, match="cancelled any more") as again:
        await ana.do("cancel", task_id=task["taskId"])
    assert again.value.code == -32602


@pytest.mark.requirement("L3")
async def test_a_finished_task_cannot_be_cancelled(place: Place) -> None:
    """Task Cancellation: MUST reject for terminal status with -32602."""
    ana = await place.client(place.creator())
    task = await ana.call("complains")
    await ana.status(task, "failed")
    with pytest.raises(Refused) as refused:
        await ana.do("cancel", task_id=task["taskId"])
    assert refused.value.code == -32602
    assert "CancelRequested" not in await place.trail.names(task["taskId"])


@pytest.mark.requirement("L3", "L4")
async def test_tools_are_called_as_they_say(place: Place) -> None:
    """Tool-Level Negotiation: -32601 both ways; an optional tool runs at once without `task`; there are no others."""
    ana = await place.client(place.creator())
    for op, tool in (("call", "plain"), ("plain", "steps"), ("call", "there is none")):
        with pytest.raises(Refused) as refused:
            await ana.do(op, name=tool)
        assert refused.value.code == -32601, tool
    assert told_text(await ana.do("plain", name="plain")) == "plain at once"
    assert told_text(await ana.do("plain", name="greet")) == "greet at once"
    with pytest.raises(Refused, match="did not call run_task") as forgot:
        await ana.call("forgets")
    assert forgot.value.code == -32603


@pytest.mark.requirement("L3")
async def test_a_server_may_require_every_call_to_be_a_task(place: Place) -> None:
    """Protocol Errors: -32600 where the receiver requires task augmentation; not for tools that cannot be tasks."""
    anybody = await place.client(None, "strict")
    with pytest.raises(Refused) as refused:
        await anybody.do("plain", name="greet")
    assert refused.value.code == -32600
    assert told_text(await anybody.do("plain", name="plain")) == "plain at once"
    task = await anybody.call("complains")
    await anybody.status(task, "failed")


@pytest.mark.requirement("O2")
async def test_a_plain_low_level_tool_runs_as_a_task_when_it_is_named(place: Place) -> None:
    """docs/mcp-sdk-v1.md: tools that know nothing of tasks."""
    ana = await place.client(place.creator())
    task = await ana.call("named")
    assert told_text(await ana.do("result", task_id=task["taskId"])) == "named at once"


@pytest.mark.requirement("O2", "L6")
async def test_fastmcps_tools_run_as_tasks_unchanged(place: Place) -> None:
    """docs/mcp-sdk-v1.md: `ctx.elicit`, `ctx.report_progress` and `ctx.info` of a plain FastMCP tool."""
    anybody, flag = await place.client(None, "fast"), place.flag()
    tools = {tool["name"]: tool["execution"]["taskSupport"] for tool in (await anybody.do("tools"))["tools"]}
    assert tools == {"welcome": "required", "breaks": "optional"}
    task = await anybody.call("welcome", until=str(flag))
    seen = await until(lambda: _with_message(anybody.do("get", task_id=task["taskId"])))
    assert seen["statusMessage"] == "asking"
    waiting = asyncio.create_task(anybody.do("result", task_id=task["taskId"]))
    flag.touch()
    question = await anybody.question()
    assert question["params"]["_meta"] == {RELATED: {"taskId": task["taskId"]}}
    await anybody.answer(question, action="accept", content={"name": "Ana"})
    assert told_text(await waiting) == "hello Ana"
    logged = [one for one in anybody.told if one["told"] == "notifications/message"]
    assert [one["params"]["data"] for one in logged] == ["about to ask"]
    assert logged[0]["params"]["_meta"] == {RELATED: {"taskId": task["taskId"]}}
    failing = await anybody.call("breaks")
    result = await anybody.do("result", task_id=failing["taskId"])
    assert result["isError"]
    assert "on purpose" in told_text(result)


@pytest.mark.requirement("L3", "P4")
async def test_few_calls_of_a_caller_wait_for_results(place: Place, tmp_path: Path) -> None:
    """One call too many is told when to come again; the others get their answers, and then there is room."""
    flag = tmp_path / "go on"
    ana = await place.client(place.creator())
    tasks = [await ana.call("steps", until=str(flag)) for _ in range(CALLER_MAX + 1)]
    calls = {asyncio.create_task(ana.do("result", task_id=task["taskId"])): task for task in tasks}
    [refused], waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    error = refused.exception()
    assert isinstance(error, Refused)
    assert error.code == -32029
    assert error.error["data"] == {"retriable": True, "written": "nothing", "retryAfterMs": 5000}
    flag.touch()
    assert {told_text(told) for told in await asyncio.gather(*waiting)} == {"all the way"}
    assert told_text(await ana.do("result", task_id=calls[refused]["taskId"])) == "all the way"
