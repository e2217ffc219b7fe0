"""A task's whole life over HTTP, what is waited for, and that the trail cannot tell it from one over NATS.

Sources: issue 5 ("any language over HTTP"), features L1, L6, L8, O2, draft-ietf-httpapi-idempotency-key-header-07,
HTML Living Standard 9.2 (server-sent events).
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.http_ingest.calling import ANSWER, QUESTION, RESULT, Json, Speaking, asked, creation, done, refused, speaking
from tests.mcp.place import reading

from tasktrail.events.entry import Entry
from tasktrail.testing.feeding import Feeder
from tasktrail.testing.fleet import fleet
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.service import UpProcess
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.requirement("O2")

ANA: Json = {
    "iss": "https://id.example",
    "sub": "ana",
    "client_id": "cli",
    "credential": {"method": "jwt", "token_hash": "h" * 43, "jti": "jti-ana"},
}


@pytest.mark.requirement("L1", "L8", "O2")
async def test_a_task_lives_its_whole_life_over_http(http: Speaking) -> None:
    """Create, report, ask, answer, collect, complete, get: the statuses of SEP-2663 in their order."""
    task = await http.made(caller=ANA)
    ref, handle = task["task_ref"], task["task_id"]
    assert (task["status"], task["seq"]) == ("working", 1)
    assert (await http.work(ref, "report", message="half way", progress=1, total=2))["outcome"] == "accepted"
    assert (await http.work(ref, "ask", asks={"q": QUESTION}))["status"] == "input_required"
    shown = done(await http.ask("/tasks/get", asked("tasks/get", ANA, task_id=handle)))
    assert shown["input_requests"] == {"q": QUESTION}
    assert shown["status_message"] == "half way"
    wrong = await http.write(
        "/tasks/update", asked("tasks/update", ANA, task_id=handle, answers={"q": {"action": "yes"}})
    )
    assert refused(wrong, 400, "invalid_answer")["written"] == "refusal"
    assert (
        done(await http.write("/tasks/update", asked("tasks/update", ANA, task_id=handle, answers={"q": ANSWER}))) == {}
    )
    assert (await http.view(ref))["answers"] == {"q": ANSWER}
    assert (await http.work(ref, "complete", result=RESULT))["status"] == "completed"
    assert done(await http.ask("/tasks/get", asked("tasks/get", ANA, task_id=handle)))["result"] == RESULT
    late = await http.work(ref, "complete", result={"content": []})
    assert (late["outcome"], late["status"]) == ("refused", "completed")


async def test_a_caller_lists_what_it_may_read(http: Speaking) -> None:
    """The caller's own tasks, as `tasks/list` of MCP 2025-11-25 needs them."""
    task = await http.made(caller=ANA)
    listed = done(await http.ask("/tasks/list", asked("tasks/list", ANA)))
    assert task["task_id"] in [one["task_id"] for one in listed["tasks"]]
    assert done(await http.ask("/tasks/list", asked("tasks/list", {**ANA, "sub": "eve"}))) == {}


async def test_a_cancelled_task_ends_when_its_work_says_so(http: Speaking) -> None:
    """Feature L8: that it is to stop and that it stopped are two facts."""
    task = await http.made()
    done(await http.write("/tasks/cancel", asked("tasks/cancel", task_id=task["task_id"])))
    seen = await http.view(task["task_ref"])
    assert (seen["cancel_requested"], seen["live"]) == (True, True)
    assert (await http.work(task["task_ref"], "stop"))["status"] == "cancelled"


async def test_work_may_fail_and_workers_may_go_away(http: Speaking) -> None:
    """A JSON-RPC error, and a process that says it is going: both are how a task ends."""
    failed, lost = await http.made(), await http.made()
    error = {"code": -32000, "message": "no such quarter", "data": {"quarter": "Q5"}}
    assert (await http.work(failed["task_ref"], "fail", error=error))["status"] == "failed"
    shown = done(await http.ask("/tasks/get", asked("tasks/get", task_id=failed["task_id"])))
    assert shown["error"] == error
    assert (await http.work(lost["task_ref"], "lose", cause="shutdown"))["status"] == "failed"


async def test_the_same_key_is_the_same_command(http: Speaking) -> None:
    """Draft, sections 2.6 and 2.7: a repeat gets the first outcome, another body under the same key 422."""
    first = done(await http.write("/tasks", creation(), "once"), 201)
    assert done(await http.write("/tasks", creation(), "once"), 201) == first
    assert refused(await http.write("/tasks", creation(tool="other"), "once"), 422, "command_reused")["code"] == -32600
    bare = await http.http.post("/tasks", json=creation(), headers={"Idempotency-Key": "once"})
    assert done(bare, 201) == first
    path, ref = f"/work/{first['task_ref']}/complete", first["task_ref"]
    ended = done(await http.write(path, {"result": RESULT}, "end"))
    again = done(await http.write(path, {"result": RESULT}, "end"))
    assert (again["outcome"], again["seq"]) == (ended["outcome"], ended["seq"])
    assert refused(await http.write(path, {"result": {}}, "end"), 422, "command_reused")
    assert (await http.view(ref))["seq"] == ended["seq"]


@pytest.mark.parametrize("key", ["", '""', "x" * 129, '"' + "x" * 129 + '"', "caf\u00e9"])
async def test_a_write_needs_a_key_that_is_one(http: Speaking, key: str) -> None:
    """Draft, section 2.7: 400 where it is missing."""
    headers = {"Idempotency-Key": key.encode("latin-1")} if key else {}
    answer = await http.http.post("/tasks", json=creation(), headers=headers)  # type: ignore[arg-type] # bytes
    assert "Idempotency-Key" in refused(answer, 400, "invalid_request")["detail"]


async def answered_after(act: Callable[[], Awaitable[None]], wait: Coroutine[Any, Any, Json]) -> Json:
    """What somebody who waits gets, `act` being done meanwhile."""
    waiting = asyncio.create_task(wait)
    await act()
    async with asyncio.timeout(60):
        return await waiting


@pytest.mark.requirement("L6", "O2")
async def test_a_long_poll_ends_with_the_answer_or_the_cancellation(http: Speaking) -> None:
    """`after` is the `seq` that is known; what moved before the poll came is given at once."""
    task = await http.made()
    ref, handle = task["task_ref"], task["task_id"]
    asking = await http.work(ref, "ask", asks={"q": QUESTION})

    async def answer() -> None:
        done(await http.write("/tasks/update", asked("tasks/update", task_id=handle, answers={"q": ANSWER})))

    async def cancel() -> None:
        done(await http.write("/tasks/cancel", asked("tasks/cancel", task_id=handle)))

    seen = await answered_after(answer, http.view(ref, after=asking["seq"], wait=60))
    assert seen["answers"] == {"q": ANSWER}
    assert await http.view(ref, after=asking["seq"], wait=60) == seen
    stop = await answered_after(cancel, http.view(ref, after=seen["seq"], wait=60))
    assert stop["cancel_requested"] is True
    assert await http.view(ref, after=stop["seq"], wait=1) == stop
    ended = await http.work(ref, "stop")
    assert (await http.view(ref, after=ended["seq"], wait=60))["live"] is False


@pytest.mark.requirement("L6", "O2")
async def test_a_stream_shows_what_long_polls_do_and_goes_on_where_it_ended(http: Speaking) -> None:
    """The view first, then each change, the last one when no work is wanted any more; then 204, which ends it."""
    task = await http.made()
    ref, handle = task["task_ref"], task["task_id"]
    path = f"/work/{ref}/events"
    async with http.following(path) as events:
        first = await anext(events)
        assert (first.name, first.id, first.data) == ("work", "1", await http.view(ref))
        await http.work(ref, "ask", asks={"q": QUESTION})
        assert (await anext(events)).data == await http.view(ref)
    done(await http.write("/tasks/update", asked("tasks/update", task_id=handle, answers={"q": ANSWER})))
    async with http.following(path, last="2") as events:
        missed = await anext(events)
        assert (missed.id, missed.data["answers"]) == ("3", {"q": ANSWER})
        await http.work(ref, "complete", result=RESULT)
        assert [(one.id, one.data["live"]) async for one in events] == [("4", False)]
    assert (await http.http.get(path, headers={"Last-Event-ID": "4"})).status_code == 204


async def test_one_stream_tells_of_all_tasks_of_a_server_and_of_no_other(up: UpProcess, http: Speaking) -> None:
    """The nudges that an adapter hears over NATS, as server-sent events."""
    async with speaking(up, server="others") as others, http.following("/moves") as moves:
        foreign = await others.made()
        tasks = [await http.made() for _ in range(3)]
        await http.work(tasks[0]["task_ref"], "complete", result=RESULT)
        seen: dict[str, str] = {}
        wanted = {task["task_ref"]: "working" for task in tasks} | {tasks[0]["task_ref"]: "completed"}
        async with asyncio.timeout(60):
            async for one in moves:
                assert one.name == "move"
                seen[one.data["task_ref"]] = one.data["status"]
                if wanted.items() <= seen.items():  # beside those of tasks that other tests made
                    break
    assert foreign["task_ref"] not in seen


async def test_a_worker_renews_its_lease_and_asks_for_work(http: Speaking) -> None:
    """Feature L9: over HTTP as over NATS."""
    assert done(await http.ask("/workers/renew", {"worker": "w-1"}))["lease_ms"] >= 1_000
    assert done(await http.ask("/workers/take", {"worker": "w-1", "tools": {"nothing-of-this-name": ""}})) == {}


DIFFERENT = {"id", "prev", "recorded_at", "task_ref", "at_ms", "created_by", "sealed", "task_seq", "command_sha256"}
"""What two commands with other ids differ in."""


def alike(entry: Entry) -> Any:  # noqa: ANN401 - JSON
    """An entry without what two of the same kind differ in: ids, times, hashes, sealed texts."""

    def without(value: Any) -> Any:  # noqa: ANN401 - JSON
        if isinstance(value, dict):
            return {key: without(one) for key, one in value.items() if key not in DIFFERENT and "sha256" not in key}
        if isinstance(value, list):
            return [without(one) for one in value]
        return "…" if isinstance(value, str) and len(value) > 30 else value

    return without(msgspec.json.decode(msgspec.json.encode(entry)))


@pytest.mark.requirement("T1", "O2")
async def test_the_trail_cannot_tell_http_from_nats(up: UpProcess, http: Speaking) -> None:
    """The same requests by both ways: the same entries but for ids, times and ciphertext; denials of references too."""
    feeder = await Feeder.connect(up.adapter(), "reports")
    told: dict[str, list[Any]] = {}
    async with reading(up.data) as trail:
        over_http = done(await http.write("/tasks", creation(caller=ANA), "way-http"), 201)
        over_nats = await feeder.request("create", {**creation(caller=ANA), "command_id": "way-nats"})
        assert (over_http.keys(), over_http["status"]) == (over_nats.keys(), over_nats["status"])
        for way, task in (("http", over_http), ("nats", over_nats)):
            ref, handle = task["task_ref"], task["task_id"]
            steps: list[tuple[str, str, Json]] = [
                ("report", f"/work/{ref}/report", {"message": "half way"}),
                ("ask", f"/work/{ref}/ask", {"asks": {"q": QUESTION}}),
                ("update", "/tasks/update", asked("tasks/update", ANA, task_id=handle, answers={"q": ANSWER})),
                ("complete", f"/work/{ref}/complete", {"result": RESULT}),
            ]
            for action, path, said in steps:
                if way == "http":
                    done(await http.write(path, said, f"{way}-{action}"))
                else:
                    of_work = {"task_ref": ref} if path.startswith("/work") else {}
                    await feeder.request(action, {**said, **of_work, "command_id": f"{way}-{action}"})
            told[way] = [alike(entry) for entry in await trail.of(handle)]
        await feeder.close()
        nowhere = "a" * 32
        assert refused(await http.write(f"/work/{nowhere}/stop", {}), 404, "not_found")["code"] == -32602

        async def recorded() -> list[Entry]:
            return await trail.denied(nowhere)

        denied = await until(recorded, what="the denial of a reference that opens nothing")
        assert denied[0].authority.principal is not None
        assert denied[0].authority.principal.sub == "server:reports"
    assert len(told["http"]) == 5
    for by_http, by_nats in zip(told["http"], told["nats"], strict=True):
        assert by_http == by_nats


@pytest.mark.requirement("L6", "O2")
async def test_who_waits_hears_what_another_replica_did(tmp_path: Path) -> None:
    """Two processes on one broker: a long poll and a stream at one, the answer and the end through the other."""
    with NatsServer() as server, fleet(server.url, tmp_path) as (one, two):
        async with speaking(one, server="reports") as here, speaking(two, server="reports") as there:
            task = await here.made()
            ref, handle = task["task_ref"], task["task_id"]
            asking = await there.work(ref, "ask", asks={"q": QUESTION})

            async def answer() -> None:
                done(await there.write("/tasks/update", asked("tasks/update", task_id=handle, answers={"q": ANSWER})))

            seen = await answered_after(answer, here.view(ref, after=asking["seq"], wait=60))
            assert seen["answers"] == {"q": ANSWER}
            async with here.following(f"/work/{ref}/events") as events:
                assert (await anext(events)).data == seen
                await there.work(ref, "complete", result=RESULT)
                assert [event.data["live"] async for event in events] == [False]
