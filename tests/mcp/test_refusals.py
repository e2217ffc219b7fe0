"""Who is turned away, in which order, and with which bytes. Sources: SEP-2663 (Errors, Routing Headers), feature A4."""

import base64
import json

import pytest

from tasktrail.events.facts import AccessDenied
from tasktrail.testing.waiting import until

from .client import UNDECLARED
from .place import Place, only, refused
from .strangers import MALFORMED, METHODS, UNKNOWN, ask

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.requirement("A4")
@pytest.mark.parametrize("method", METHODS)
async def test_every_malformed_id_is_answered_as_an_unknown_one(place: Place, method: str) -> None:
    """Feature A4: same bytes and status. -32602 is SEP-2663's code for an id that is invalid or does not exist."""
    async with place.client() as ana:
        unknown = await ask(ana, method, UNKNOWN)
        answers = {what: await ask(ana, method, task_id) for what, task_id in MALFORMED.items()}
        missing = (await ana.send(method, {"inputResponses": {}})).refusal
    assert unknown[0] == 400
    assert json.loads(unknown[1])["error"] == {"code": -32602, "message": "Task not found"}
    assert {what for what, answer in answers.items() if answer != unknown} == set()
    assert missing == unknown


@pytest.mark.requirement("A4")
async def test_the_three_methods_answer_alike(place: Place) -> None:
    """An id that opens nothing gets the same bytes whatever is asked of it."""
    async with place.client() as ana:
        assert len({await ask(ana, method, UNKNOWN) for method in METHODS}) == 1


@pytest.mark.requirement("A4")
async def test_the_trail_tells_apart_what_the_wire_does_not(place: Place) -> None:
    """Feature A4: distinguished in the trail; the claimed id itself is not there, only its reference."""
    unknown, odd = "b" * 32, "not an id of ours"
    async with place.client("prober") as prober:
        await prober.get(unknown)
        await prober.get(odd)
    await refused(place, place.trail.ref(unknown), "no-such-task")
    denial = only([await refused(place, place.trail.ref(odd), "malformed-handle")], AccessDenied)
    assert (denial.method, denial.code) == ("tasks/get", -32602)


@pytest.mark.requirement("L4")
@pytest.mark.parametrize("method", METHODS)
async def test_undeclared_clients_are_told_so_before_anything_else(place: Place, method: str) -> None:
    """SEP-2663: -32021 to clients that did not declare the extension, whatever id and header they send."""
    async with place.client(capabilities=UNDECLARED) as plain:
        for task_id in (UNKNOWN, *MALFORMED.values()):
            status, body = await ask(plain, method, task_id, name="another")
            assert (status, json.loads(body)["error"]["code"]) == (400, -32021), task_id


@pytest.mark.requirement("L4")
async def test_a_wrong_name_header_is_told_before_the_id_is_looked_at(place: Place) -> None:
    """SEP-2243 and SEP-2663: Mcp-Name must be the taskId, -32020 with HTTP 400; a missing one is tolerated."""
    async with place.client() as ana:
        made = await ana.start("echo", text="x")
        for method in METHODS:
            for task_id in (made["taskId"], UNKNOWN, 5, None):
                status, body = await ask(ana, method, task_id, name="another")
                assert (status, json.loads(body)["error"]["code"]) == (400, -32020), (method, task_id)
        encoded = f"=?base64?{base64.b64encode(made['taskId'].encode()).decode()}?="
        for name in (made["taskId"], encoded):
            assert "result" in (await ana.get(made["taskId"], name=name)).message
        for name in (encoded[:-3] + "?=", f"{made['taskId']} ,x", made["taskId"].upper()):
            assert (await ana.get(made["taskId"], name=name)).error["code"] == -32020
        assert "result" in (await ana.get(made["taskId"])).message


@pytest.mark.requirement("A4")
async def test_what_the_server_itself_refuses_is_on_the_trail(place: Place) -> None:
    """Design section 5: `AccessDenied` with the code the caller saw; the id only as its reference."""
    claimed = "c" * 32
    async with place.client(capabilities=UNDECLARED) as plain, place.client() as ana:
        await plain.get(claimed)
        await ana.get(claimed, name="another")

    async def codes() -> bool:
        found = await place.trail.denied(place.trail.ref(claimed))
        return {event.code for entry in found for event in entry.events if isinstance(event, AccessDenied)} == {
            -32021,
            -32020,
        }

    await until(codes)
    for entry in await place.trail.denied(place.trail.ref(claimed)):
        assert entry.authority.decision is not None
        assert (entry.authority.decision.effect, entry.authority.decision.reason) == ("deny", "refused-by-mcp-server")


@pytest.mark.parametrize("responses", [None, 5, "x", [], [{"action": "accept"}], True])
async def test_input_responses_must_be_an_object(place: Place, responses: object) -> None:
    """SEP-2663 UpdateTaskRequest. What is refused for its form says nothing of the task."""
    async with place.client() as ana:
        made = await ana.start("asks")
        mine = await ana.update(made["taskId"], responses)
        assert mine.refusal == (await ana.update(UNKNOWN, responses)).refusal
        assert mine.error == {"code": -32602, "message": "inputResponses is not an object"}
        await ana.cancel(made["taskId"])


async def test_too_many_answers_at_once_are_refused(place: Place) -> None:
    """Every loop has a bound: 64 answers in one request."""
    async with place.client() as ana:
        made = await ana.start("asks")
        refusal = await ana.update(made["taskId"], dict.fromkeys(map(str, range(65)), 0))
        assert refusal.error["code"] == -32602
        assert "64" in refusal.error["message"]
        await ana.cancel(made["taskId"])
