"""A task while its tool runs: what it says, how it is stopped, how its time ends. Sources: SEP-2663 (Task
Cancellation), design section 5, features L2, L8, L9 and L10."""

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from mcp.server import MCPServer

from tasktrail.events.authority import Trigger
from tasktrail.events.facts import (
    AccessDenied,
    CancelRequested,
    CommandRefused,
    TaskCancelled,
    TaskCreated,
    TaskFailed,
    WorkerLost,
)
from tasktrail.mcp import running, voice
from tasktrail.mcp.extension import Tasks, ToolPolicy
from tasktrail.services.access.policy import shipped
from tasktrail.services.operators import Asker
from tasktrail.services.orders import PolicyOrder
from tasktrail.testing.waiting import until

from .place import Mode, Place, carrying, held, only, opened, reading, refused, running_service, settings, shown
from .workshop import SUPPORT, Workshop

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODES: list[Mode] = ["embedded", "connected"]


@pytest.mark.requirement("L1", "L2")
async def test_progress_is_the_status_message_and_moves_the_time(place: Place) -> None:
    """`ctx.report_progress` becomes `statusMessage`; lastUpdatedAt moves with the state and never by polling."""
    with place.bench() as label:
        async with place.client() as ana:
            made = await ana.start("reports", label=label)
            before = made["lastUpdatedAt"]
            for text in ("measuring", "2 of 3", "cutting"):
                task = await ana.until(made["taskId"], "working", statusMessage=text)
                assert task["lastUpdatedAt"] > before
                before = task["lastUpdatedAt"]
                for _ in range(3):
                    assert (await ana.get(made["taskId"])).result["lastUpdatedAt"] == before
                place.workshop.bench(label).go.set()
            done = await ana.until(made["taskId"], "completed")
            assert "statusMessage" not in done


@pytest.mark.requirement("L8")
async def test_a_cancel_reaches_the_tool_which_cleans_up_undisturbed(place: Place) -> None:
    """Feature L8: two facts; the work is really told to stop, once: a second time would break into its clean-up."""
    with place.bench() as label:
        bench = place.workshop.bench(label)
        async with place.client() as ana:
            made = await held(place, ana, "waits", label)
            acknowledged = await ana.cancel(made["taskId"])
            assert acknowledged.result["resultType"] == "complete"
            done = await ana.until(made["taskId"], "cancelled")
            assert done["lastUpdatedAt"] > made["lastUpdatedAt"]
        assert bench.log == ["started", "told to stop", "cleaned up"]
    found = await place.trail.of(made["taskId"])
    assert shown(found) == [["TaskCreated"], ["CancelRequested"], ["TaskCancelled"]]
    assert only(found, TaskCancelled).reason == "requested"
    assert carrying(found, CancelRequested).authority.trigger is Trigger.CALLER
    assert carrying(found, TaskCancelled).authority.trigger is Trigger.WORKER


@pytest.mark.requirement("L8")
@pytest.mark.parametrize("tool", ["asks", "asks_inside", "asks_from_a_thread"])
async def test_a_cancel_frees_a_task_that_waits_for_its_client(place: Place, tool: str) -> None:
    """From `input_required` too (SEP-2663 state diagram), at once: no thread is busy while its tool waits."""
    async with place.client() as ana:
        made = await ana.start(tool)
        await ana.until(made["taskId"], "input_required")
        await ana.cancel(made["taskId"])
        await ana.until(made["taskId"], "cancelled")
    assert only(await place.trail.of(made["taskId"]), TaskCancelled).reason == "requested"


@pytest.mark.requirement("L8")
async def test_a_tool_that_ignores_the_cancel_may_still_complete(place: Place) -> None:
    """SEP-2663: cancellation is cooperative; the task may end in another status if the work finished."""
    with place.bench() as label:
        async with place.client() as ana:
            made = await held(place, ana, "stubborn", label)
            await ana.cancel(made["taskId"])
            bench = place.workshop.bench(label)
            await until(lambda: bench.done("started", "told to stop"))
            assert (await ana.get(made["taskId"])).result["status"] == "working"
            bench.go.set()
            await ana.until(made["taskId"], "completed")
    assert await place.trail.names(made["taskId"]) == ["TaskCreated", "CancelRequested", "TaskCompleted"]


@pytest.mark.requirement("L8")
async def test_a_tool_in_a_thread_is_a_task_too_and_ends_as_it_ends(place: Place) -> None:
    """A `def` tool cannot be interrupted: nobody says that it was. Ended in time, it is completed after its cancel."""
    with place.bench() as label:
        async with place.client() as ana:
            made = await held(place, ana, "blocks", label)
            await ana.cancel(made["taskId"])
            assert (await ana.get(made["taskId"])).result["status"] == "working"
            place.workshop.bench(label).let_go.set()
            await ana.until(made["taskId"], "completed")
    assert await place.trail.names(made["taskId"]) == ["TaskCreated", "CancelRequested", "TaskCompleted"]


@pytest.mark.requirement("L2", "L8")
async def test_a_finished_task_stays_finished(place: Place) -> None:
    """SEP-2663: the cancel of a finished task is acknowledged the same way; nothing moves, the refusal is recorded."""
    async with place.client() as ana:
        made = await ana.start("echo", text="x")
        done = await ana.until(made["taskId"], "completed")
        for _ in range(2):
            acknowledged = await ana.cancel(made["taskId"])
            assert acknowledged.result.keys() == {"resultType", "_meta"}
        assert (await ana.get(made["taskId"])).result == done
    found = await place.trail.of(made["taskId"])
    assert shown(found) == [["TaskCreated"], ["TaskCompleted"], ["CommandRefused"], ["CommandRefused"]]
    events = [event for entry in found for event in entry.events if isinstance(event, CommandRefused)]
    assert {(event.command, event.status, event.reason) for event in events} == {
        ("CancelTask", "completed", "terminal")
    }


WAITS = """
@id("work-stands-still") forbid (principal, action == Action::"continue", resource);
@id("it-waits") permit (principal, action == Action::"pause", resource);
"""


async def decides(place: Place, text: str, version: str) -> None:
    """This policy decides from now on."""
    assert place.service is not None
    order = PolicyOrder(text=text, version=version, reason="the test's")
    await place.service.policing.activate(order, Asker(token_hash="o" * 43, address="203.0.113.5", operator="olga"))


async def paused(place: Place, task_id: str, action: str) -> None:
    """Wait until this step of the work was made to wait; that is on the trail."""
    denial = await refused(place, place.trail.ref(task_id), "work-waits-for-authority")
    assert only([denial], AccessDenied).method == f"work/{action}"


@pytest.mark.requirement("A2", "L8")
async def test_work_that_policy_makes_wait_hears_of_its_cancellation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A progress report that waits keeps nobody from being told to stop, also when the signal was lost."""
    monkeypatch.setattr(voice, "LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(running.Run, "signalled", lambda _run, _signal: None)
    async with opened("connected", tmp_path) as place, place.client() as ana:
        with place.bench() as label:
            bench = place.workshop.bench(label)
            made = await ana.start("reports", label=label)
            await ana.until(made["taskId"], "working", statusMessage="measuring")
            await decides(place, shipped() + WAITS, "waits")
            bench.go.set()
            await paused(place, made["taskId"], "report")
            await ana.cancel(made["taskId"])
            await ana.until(made["taskId"], "cancelled")
        assert only(await place.trail.of(made["taskId"]), TaskCancelled).reason == "requested"


@pytest.mark.requirement("A2")
async def test_a_report_and_a_result_that_had_to_wait_are_recorded_when_they_may_be(tmp_path: Path) -> None:
    """Nothing the work said last is lost: of what waited, the newest status message and the outcome."""
    async with opened("connected", tmp_path) as place, place.client() as ana:
        with place.bench() as label:
            bench = place.workshop.bench(label)
            made = await ana.start("reports", label=label)
            await ana.until(made["taskId"], "working", statusMessage="measuring")
            await decides(place, shipped() + WAITS, "waits")
            bench.go.set()
            await paused(place, made["taskId"], "report")
            await decides(place, shipped(), "goes-on")
            await ana.until(made["taskId"], "working", statusMessage="2 of 3")
            bench.go.set()
            await ana.until(made["taskId"], "working", statusMessage="cutting")
            await decides(place, shipped() + WAITS, "waits-again")
            bench.go.set()

            async def complete_waits() -> bool:
                denials = await place.trail.denied(place.trail.ref(made["taskId"]))
                return any(only([entry], AccessDenied).method == "work/complete" for entry in denials)

            await until(complete_waits)
            assert (await ana.get(made["taskId"])).result["status"] == "working"
            await decides(place, shipped(), "goes-on-again")
            await ana.until(made["taskId"], "completed")


@pytest.mark.requirement("A2", "L8")
async def test_a_result_that_waits_gives_way_to_a_cancellation(tmp_path: Path) -> None:
    """The work is over and may not say so; asked to stop, it has stopped: that needs nobody's authority."""
    async with opened("connected", tmp_path) as place, place.client() as ana:
        with place.bench() as label:
            made = await held(place, ana, "waits", label)
            await decides(place, shipped() + WAITS, "waits")
            place.workshop.bench(label).go.set()
            await paused(place, made["taskId"], "complete")
            await ana.cancel(made["taskId"])
            await ana.until(made["taskId"], "cancelled")
        found = await place.trail.of(made["taskId"])
        assert shown(found) == [["TaskCreated"], ["CancelRequested"], ["TaskCancelled"]]
        assert only(found, TaskCancelled).reason == "requested"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tool", ["stubborn", "blocks"])
@pytest.mark.requirement("L8")
async def test_a_cancel_that_no_worker_confirms_is_ended_by_the_timer(mode: Mode, tool: str, tmp_path: Path) -> None:
    """Setting `cancel_grace_ms`: then the task is cancelled as unconfirmed, and the work's late end changes nothing."""
    async with opened(mode, tmp_path, cancel_grace_ms=100) as place, place.client() as ana:
        with place.bench() as label:
            made = await held(place, ana, tool, label)
            await ana.cancel(made["taskId"])
            await ana.until(made["taskId"], "cancelled")
            place.workshop.bench(label).go.set()
            place.workshop.bench(label).let_go.set()

            async def refusal() -> bool:
                return "CommandRefused" in await place.trail.names(made["taskId"])

            await until(refusal)
            assert (await ana.get(made["taskId"])).result["status"] == "cancelled"
        found = await place.trail.of(made["taskId"])
        assert only(found, TaskCancelled).reason == "unconfirmed"
        assert carrying(found, TaskCancelled).authority.trigger is Trigger.TIMER
        assert only(found, CommandRefused).command == "CompleteTask"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.requirement("L1", "L8", "L10", "A4")
async def test_the_time_to_live_ends_the_task_and_tells_its_work(mode: Mode, tmp_path: Path) -> None:
    """Design section 5: TTL elapsing on a live task is `TaskCancelled` by a timer, its work is told to stop, and the
    handle opens nothing from then on, with the bytes of an unknown one. Polling does not extend it."""
    tools = {**SUPPORT, "waits": ToolPolicy(support="optional", ttl_ms=700)}
    async with opened(mode, tmp_path, tools=tools) as place, place.client() as ana:
        with place.bench() as label:
            made = await held(place, ana, "waits", label)
            assert made["ttlMs"] == 700
            unknown = (await ana.get("a" * 32)).refusal

            async def ended() -> bool:
                return "error" in (await ana.get(made["taskId"])).message

            await until(ended)
            for answer in (await ana.get(made["taskId"]), await ana.cancel(made["taskId"])):
                assert answer.refusal == unknown
            assert (await ana.update(made["taskId"], {})).refusal == unknown
            bench = place.workshop.bench(label)
            await until(lambda: bench.done("started", "told to stop", "cleaned up"))
        await refused(place, place.trail.ref(made["taskId"]), "handle-expired")

        async def expired() -> bool:
            return (await place.trail.names(made["taskId"]))[:3] == ["TaskCreated", "TaskCancelled", "TaskExpired"]

        await until(expired)
        found = await place.trail.of(made["taskId"])
        assert only(found, TaskCancelled).reason == "ttl"
        entry = carrying(found, TaskCancelled)
        assert entry.authority.trigger is Trigger.TIMER
        assert only(found, TaskCancelled).at_ms >= only(found, TaskCreated).at_ms + 700


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.requirement("L9")
async def test_a_server_that_stops_ends_its_running_tasks_on_the_trail(mode: Mode, tmp_path: Path) -> None:
    """Feature L9: never silently. Also where a tool will not stop, which must not keep the others from being told."""
    running = {"first": "waits", "second": "stubborn", "third": "waits"}
    async with opened(mode, tmp_path) as place, place.client() as ana:
        ids = [(await held(place, ana, tool, label))["taskId"] for label, tool in running.items()]
    place.workshop.bench("second").go.set()
    with settings({}):
        async with running_service(tmp_path), reading(tmp_path) as trail:
            for task_id in ids:
                found = await trail.of(task_id)
                assert shown(found)[:2] == [["TaskCreated"], ["WorkerLost", "TaskFailed"]]
                assert only(found, WorkerLost).cause == "shutdown"
                assert only(found, TaskFailed).code == -32603


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.requirement("L9")
async def test_tools_have_stopped_before_what_they_use_is_closed(mode: Mode, tmp_path: Path) -> None:
    """`tasks.around(mine)`: the server's own resources outlive the tools that use them, so no tool fails for want of
    them on the way down and has that recorded as its result."""
    seen: list[str] = []

    def around(tasks: Tasks, workshop: Workshop) -> Any:  # noqa: ANN401 - as `opened` wants it
        @contextlib.asynccontextmanager
        async def mine(_server: MCPServer[Any]) -> AsyncGenerator[dict[str, str]]:
            yield {"pool": "open"}
            seen.extend(workshop.bench("held").log)

        return tasks.around(mine)

    async with opened(mode, tmp_path, around=around) as place, place.client() as ana:
        remembered = await ana.start("remembers")
        done = await ana.until(remembered["taskId"], "completed")
        assert done["result"]["structuredContent"]["lifespan"] == {"pool": "open"}
        await held(place, ana, "waits", "held")
    assert seen == ["started", "told to stop", "cleaned up"]
