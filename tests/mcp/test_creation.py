"""A tool call that becomes a task, or not. Sources: SEP-2663 (Task Creation, Polling, Errors), design section 5."""

import asyncio
import contextlib
import json
from typing import Any

import httpx
import pytest

from tasktrail.events.facts import TaskCompleted, TaskCreated
from tasktrail.testing.waiting import until

from .client import EXTENSION, UNDECLARED
from .place import Place, only
from .workshop import CRASH, QUOTA

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.requirement("L1", "L5")
async def test_a_handle_resolves_at_once_and_then_holds_the_result(place: Place) -> None:
    """SEP-2663: no CreateTaskResult until a tasks/get would resolve; the result is the one the call would have had."""
    async with place.client() as ana, place.client(capabilities=UNDECLARED) as plain:
        made = await ana.start("echo", text="hello")
        assert made["status"] == "working"
        first = (await ana.get(made["taskId"])).result
        assert all(first[field] == made[field] for field in ("taskId", "createdAt", "ttlMs", "pollIntervalMs"))
        done = await ana.until(made["taskId"], "completed")
        direct = (await plain.call("echo", text="hello")).result
        direct.pop("_meta")
        assert done["result"] == direct
    assert await place.trail.names(made["taskId"]) == ["TaskCreated", "TaskCompleted"]


@pytest.mark.requirement("L1")
@pytest.mark.parametrize(
    ("tool", "text"),
    [
        ("fails", "Error executing tool fails: the printer is out of paper"),
        ("crashes", "Error executing tool crashes"),
        ("gives_up", "Error executing tool gives_up"),
    ],
)
async def test_a_tools_failure_completes_the_task_with_an_error_result(place: Place, tool: str, text: str) -> None:
    """SEP-2663: errors within a method's result are `completed`; the SDK hides the text of a crash, and so do we."""
    async with place.client() as ana:
        made = await ana.start(tool)
        done = await ana.until(made["taskId"], "completed")
    assert done["result"]["isError"] is True
    assert done["result"]["content"] == [{"type": "text", "text": text}]
    assert CRASH not in json.dumps(done)
    assert only(await place.trail.of(made["taskId"]), TaskCompleted).is_error


@pytest.mark.requirement("L1")
async def test_a_json_rpc_error_fails_the_task(place: Place) -> None:
    """SEP-2663: `failed` with the JSON-RPC error, a status message, and no result."""
    async with place.client() as ana:
        made = await ana.start("breaks")
        done = await ana.until(made["taskId"], "failed")
    assert done["error"] == {"code": QUOTA, "message": "quota exceeded", "data": {"limit": 3}}
    assert done["statusMessage"] == "quota exceeded"
    assert await place.trail.names(made["taskId"]) == ["TaskCreated", "TaskFailed"]


@pytest.mark.parametrize("kind", ["surrogate", "error"])
async def test_an_outcome_that_is_not_json_fails_the_task_instead_of_leaving_it(place: Place, kind: str) -> None:
    """RFC 7493 section 2.1 has no lone surrogates; a worker's end is never silent (L9)."""
    async with place.client() as ana:
        made = await ana.start("odd", kind=kind)
        done = await ana.until(made["taskId"], "failed")
    assert done["error"]["code"] == -32603
    assert "could not be recorded" in done["error"]["message"]


@pytest.mark.requirement("L4")
async def test_optional_tools_answer_directly_to_clients_without_the_extension(place: Place) -> None:
    """SEP-2663: never a CreateTaskResult to a client that did not declare the extension on its request."""
    async with place.client() as ana, place.client(capabilities=UNDECLARED) as plain:
        assert (await ana.call("echo", text="1")).result["resultType"] == "task"
        direct = (await plain.call("echo", text="2")).result
        assert (await ana.call("greet", name="Ana")).result["content"] == [{"type": "text", "text": "Hello, Ana!"}]
    assert direct["resultType"] == "complete"
    assert direct["content"] == [{"type": "text", "text": "2"}]


@pytest.mark.requirement("L4")
async def test_required_tools_tell_other_clients_what_is_missing(place: Place) -> None:
    """SEP-2663: -32021 with the required extension as data, HTTP 400."""
    async with place.client() as ana, place.client(capabilities=UNDECLARED) as plain:
        refusal = await plain.call("must", text="x")
        assert (await ana.call("must", text="x")).result["resultType"] == "task"
    assert refusal.status == 400
    assert refusal.error["code"] == -32021
    assert refusal.error["data"] == {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}


@pytest.mark.requirement("L4")
async def test_the_server_says_that_it_speaks_the_extension_and_nothing_of_the_older_one(place: Place) -> None:
    """SEP-2663 Capability Negotiation: `capabilities.extensions`, not `capabilities.tasks`."""
    async with place.client() as ana:
        found = (await ana.send("server/discover", {})).result["capabilities"]
        assert found["extensions"] == {EXTENSION: {}}
        assert "tasks" not in found
        for method in ("tasks/list", "tasks/result"):
            gone = await ana.send(method, {"taskId": "x"})
            assert (gone.status, gone.error["code"]) == (404, -32601)


async def test_a_tool_that_does_not_exist_makes_no_task(place: Place) -> None:
    """The SDK answers it with an error result, as without tasks; arguments that do not fit are the task's result."""
    async with place.client() as ana:
        assert (await ana.call("no_such_tool")).result["isError"] is True
        made = await ana.start("echo", wrong="x")
        done = await ana.until(made["taskId"], "completed")
    assert done["result"]["isError"] is True


@pytest.mark.requirement("L4")
async def test_the_creation_records_what_was_negotiated(place: Place) -> None:
    """Feature L4: the negotiated capabilities are recorded with the creation, also under names that are no Unicode."""
    odd: dict[str, Any] = {"extensions": {EXTENSION: {}, "x/\ud800\0": {}}, "sampling": {}}
    async with place.client(capabilities=odd) as ana:
        made = await ana.start("must", text="x")
    created = only(await place.trail.of(made["taskId"]), TaskCreated)
    assert (created.server, created.tool, created.task_support) == ("workshop", "must", "required")
    assert (created.wire, created.protocol_version) == ("mcp/2026-07-28", "2026-07-28")
    assert created.client_extensions == (EXTENSION, "x/??")
    assert created.client_features == ("sampling",)
    assert len(created.tool_sha256) == 64


async def test_the_tool_knows_its_caller_as_it_does_in_a_request(place: Place) -> None:
    """The running tool's context: client, capabilities, protocol version, token and lifespan state."""
    async with place.client("rosa") as rosa:
        made = await rosa.start("remembers")
        done = await rosa.until(made["taskId"], "completed")
    assert done["result"]["structuredContent"] == {
        "client": "tests",
        "extensions": [EXTENSION],
        "version": "2026-07-28",
        "subject": "rosa",
        "lifespan": {},
    }


@pytest.mark.requirement("L5")
async def test_a_client_that_hangs_up_leaves_its_task_running(place: Place) -> None:
    """A closed connection cancels the request in the SDK; what was begun durably is not left without its work."""
    ended = 0
    async with place.client("quitter") as quitter:
        body = quitter.body("tools/call", {"name": "echo", "arguments": {"text": "x"}})
        headers = quitter.headers("tools/call", "echo") | {"Authorization": f"Bearer {place.token('quitter')}"}
    for patience_s in (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064):
        async with httpx.AsyncClient(trust_env=False) as http:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(http.post(place.url, json=body, headers=headers), patience_s)

    async def all_ended() -> bool:
        nonlocal ended
        mine = [
            entry.task_ref
            for _, entry in await place.trail.all()
            if any(isinstance(event, TaskCreated) and event.binding.sub == "quitter" for event in entry.events)
        ]
        done = {
            entry.task_ref
            for _, entry in await place.trail.all()
            if any(isinstance(event, TaskCompleted) for event in entry.events)
        }
        ended = len(mine)
        return set(mine) <= done

    await until(all_ended)
    assert ended, "no call came as far as its creation: give them more patience"
