"""The tasks endpoint on the 2026-07-28 wire. Sources: issue 5 ("the tasks endpoint"), SEP-2663, SEP-2243.

Every answer is held against `tests.mcp.shapes` by the client.
"""

import base64

import pytest
from tests.endpoint.place import ANSWER, QUESTION, RESULT, SERVER, Place
from tests.mcp.client import UNDECLARED

from tasktrail.events.facts import AccessDenied
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.requirement("O2")

UNKNOWN = "a" * 32


async def reasons(place: Place, task_id: str) -> set[str]:
    """The true reasons on the trail for which a handle was refused."""
    denials = await place.trail.denied(place.trail.ref(task_id))
    return {reason for one in denials for event in one.events for reason in getattr(event, "reasons", ())}


@pytest.mark.requirement("L1", "L3", "O2")
async def test_a_task_of_an_mcp_server_is_polled_and_answered_at_the_endpoint(place: Place) -> None:
    """Issue 5: `tasks/*` without the MCP server; SEP-2663 (Task Polling, Input)."""
    task = await place.made()
    async with place.client() as ana:
        assert (await ana.get(task["task_id"])).result["status"] == "working"
        await place.work(task, "ask", asks={"q": QUESTION})
        shown = (await ana.get(task["task_id"], name=task["task_id"])).result
        assert (shown["status"], shown["inputRequests"]) == ("input_required", {"q": QUESTION})
        refused = await ana.update(task["task_id"], {"q": {"action": "perhaps"}})
        assert (refused.status, refused.error["code"]) == (400, -32602)
        assert (await ana.update(task["task_id"], {"q": ANSWER})).result == {"resultType": "complete"}
        assert (await place.view(task))["answers"] == {"q": ANSWER}
        await place.work(task, "complete", result=RESULT)
        assert (await ana.get(task["task_id"])).result["result"] == RESULT


@pytest.mark.requirement("L8", "O2")
async def test_a_cancellation_at_the_endpoint_reaches_the_work(place: Place) -> None:
    """SEP-2663 (Task Cancellation): told to stop, then stopped."""
    task = await place.made()
    async with place.client() as ana:
        assert (await ana.cancel(task["task_id"])).result == {"resultType": "complete"}
        assert (await place.view(task))["cancel_requested"] is True
        await place.work(task, "stop")
        assert (await ana.get(task["task_id"])).result["status"] == "cancelled"


@pytest.mark.requirement("A1", "A4", "A5")
async def test_a_stranger_gets_the_bytes_of_an_id_that_never_was(place: Place) -> None:
    """Promise 4 of the design: the wire tells nothing, the trail the reason, with the identity as verified."""
    task = await place.made()
    async with place.client("eve") as eve:
        for ask in (eve.get, lambda handle: eve.update(handle, {"q": ANSWER}), eve.cancel):
            assert (await ask(task["task_id"])).refusal == (await ask(UNKNOWN)).refusal
        assert (await eve.get("*")).refusal == (await eve.get(UNKNOWN)).refusal
    await until(lambda: _counted(place, task["task_id"]))
    denials = await place.trail.denied(place.trail.ref(task["task_id"]))
    assert {one.authority.principal.level for one in denials if one.authority.principal} == {"verified"}
    assert {one.authority.request.wire for one in denials if one.authority.request} == {"mcp/2026-07-28"}


async def _counted(place: Place, task_id: str) -> bool:
    denials = await place.trail.denied(place.trail.ref(task_id))
    methods = {event.method for one in denials for event in one.events if isinstance(event, AccessDenied)}
    return await reasons(place, task_id) == {"other-identity-context"} and len(methods) == 3


@pytest.mark.requirement("L4", "A3")
async def test_refusals_come_in_order_and_are_on_the_trail(place: Place) -> None:
    """-32021 before -32020 before -32602, as at the MCP server (SEP-2663, Errors; SEP-2243)."""
    task = await place.made()
    async with place.client(capabilities=UNDECLARED) as plain:
        refused = await plain.get(task["task_id"], name=UNKNOWN)
        assert (refused.status, refused.error["code"]) == (400, -32021)
    async with place.client() as ana:
        for headers in ({"Mcp-Method": "tasks/cancel"}, {"MCP-Protocol-Version": "2025-11-25"}, {"Mcp-Name": UNKNOWN}):
            ana.extra_headers = headers
            refused = await ana.get(task["task_id"])
            assert (refused.status, refused.error["code"]) == (400, -32020), headers
        encoded = base64.b64encode(task["task_id"].encode()).decode()
        ana.extra_headers = {"Mcp-Name": f"=?base64?{encoded}?="}
        assert (await ana.get(task["task_id"])).result["status"] == "working"
    wanted = {"server:missing_capability", "server:header_mismatch"}

    async def recorded() -> bool:
        return wanted == await reasons(place, task["task_id"])

    await until(recorded)


async def test_what_is_no_method_of_tasks_is_not_found(place: Place) -> None:
    """JSON-RPC 2.0: -32601; the official SDK answers 404 with it."""
    async with place.client() as ana:
        for method in ("tools/list", "subscriptions/listen", "tasks/result", "tasks/list"):
            answer = await ana.send(method, {})
            assert (answer.status, answer.error["code"]) == (404, -32601)
        ana.extra_headers = {"Mcp-Method": "tasks/get"}
        answer = await ana.send("tools/call", {"name": "report"})
        assert (answer.status, answer.error["code"]) == (400, -32020), "a proxy was told another method"


@pytest.mark.requirement("A1")
async def test_who_shows_no_token_opens_what_nobody_made_at_that_server(place: Place) -> None:
    """Anonymous callers are bound to the MCP server they came by: the path names it."""
    task = await place.made("")
    async with place.client("") as anyone:
        assert (await anyone.get(task["task_id"])).error["message"] == "Task not found"
    place.url = f"{place.url}/{SERVER}"
    async with place.client("") as anyone, place.client() as ana:
        assert (await anyone.get(task["task_id"])).result["status"] == "working"
        assert (await ana.get(task["task_id"])).error["message"] == "Task not found"
