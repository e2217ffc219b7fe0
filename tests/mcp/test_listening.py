"""`subscriptions/listen` with `taskIds`. Sources: SEP-2663 (Task Status Notifications), SEP-2575."""

from pathlib import Path
from typing import Any

import pytest

from tasktrail.events.facts import SubscriptionClosed, SubscriptionOpened
from tasktrail.mcp.extension import ToolPolicy
from tasktrail.testing.waiting import until

from .client import UNDECLARED, Stream
from .place import Mode, Place, carrying, only, opened, refused
from .strangers import MALFORMED, UNKNOWN
from .workshop import SUPPORT

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODES: list[Mode] = ["embedded", "connected"]


async def acknowledged(stream: Stream) -> dict[str, Any]:
    """What the stream says it honours: its first message."""
    first = await stream.next()
    assert first["method"] == "notifications/subscriptions/acknowledged", first
    honoured: dict[str, Any] = first["params"]["notifications"]
    return honoured


def statuses(pushed: list[dict[str, Any]]) -> list[str]:
    """The statuses of the task notifications, and `result` for the end."""
    return [message["params"]["status"] if "method" in message else "result" for message in pushed]


@pytest.mark.requirement("L3", "L6")
async def test_every_state_is_pushed_as_tasks_get_would_tell_it_and_the_last_one_ends_the_stream(place: Place) -> None:
    """SEP-2663: each notification is a complete DetailedTask, identical to what tasks/get would have returned."""
    async with place.client() as ana:
        made = await ana.start("asks")
        waiting = await ana.until(made["taskId"], "input_required")
        async with ana.listening(taskIds=[made["taskId"]]) as stream:
            assert await acknowledged(stream) == {"taskIds": [made["taskId"]]}
            first = (await stream.next())["params"]
            assert {**first, "_meta": 0, "resultType": "complete"} == {**waiting, "_meta": 0}
            (key,) = waiting["inputRequests"]
            await ana.update(made["taskId"], {key: {"action": "accept", "content": {"age": 41}}})
            rest = await stream.rest()
        seen = statuses(rest)
        assert seen[-2:] == ["completed", "result"]
        assert set(seen[:-2]) <= {"working"}
        done = (await ana.get(made["taskId"])).result
        assert {**rest[-2]["params"], "_meta": 0, "resultType": "complete"} == {**done, "_meta": 0}

    async def closed() -> bool:
        return len(await place.trail.of(made["taskId"], "access")) > 2

    await until(closed)
    looks = await place.trail.of(made["taskId"], "access")
    assert carrying(looks, SubscriptionOpened).authority.decision is not None
    ended = only(looks, SubscriptionClosed)
    assert (ended.pushes, ended.reason) == (len(rest), "terminal")


async def test_a_status_message_is_pushed(place: Place) -> None:
    """A notification for every state the task is in, its words included."""
    with place.bench() as label:
        async with place.client() as ana:
            made = await ana.start("reports", label=label)
            async with ana.listening(taskIds=[made["taskId"]]) as stream:
                await acknowledged(stream)
                for text in ("measuring", "2 of 3", "cutting"):
                    while (await stream.next())["params"].get("statusMessage") != text:
                        pass
                    place.workshop.bench(label).go.set()
                assert statuses(await stream.rest()) == ["completed", "result"]


@pytest.mark.requirement("A1", "A4")
async def test_only_the_callers_own_tasks_are_granted(place: Place) -> None:
    """SEP-2663: the acknowledgement names the ids agreed to. Foreign, unknown and malformed ones are left out alike,
    and the trail says who was denied and why."""
    async with place.client() as ana, place.client("eve") as eve:
        mine = await ana.start("echo", text="1")
        also = await ana.start("asks")
        theirs = await eve.start("asks")
        odd = [text for text in MALFORMED.values() if isinstance(text, str)]
        async with ana.listening(
            taskIds=[theirs["taskId"], mine["taskId"], *odd, mine["taskId"], also["taskId"]]
        ) as all_:
            assert await acknowledged(all_) == {"taskIds": [mine["taskId"], also["taskId"]]}
        async with ana.listening(taskIds=[theirs["taskId"]]) as foreign:
            assert await acknowledged(foreign) == {"taskIds": []}
            assert statuses(await foreign.rest()) == ["result"]
        async with ana.listening(taskIds=[UNKNOWN]) as unknown:
            assert await acknowledged(unknown) == {"taskIds": []}
            assert statuses(await unknown.rest()) == ["result"]
        denial = await refused(place, place.trail.ref(theirs["taskId"]), "other-identity-context")
        assert denial.tenant == "acme"
        await ana.cancel(also["taskId"])
        await eve.cancel(theirs["taskId"])


async def test_a_finished_task_is_pushed_once(place: Place) -> None:
    """The stream has nothing more to say after it."""
    async with place.client() as ana:
        made = await ana.start("breaks")
        await ana.until(made["taskId"], "failed")
        async with ana.listening(taskIds=[made["taskId"]]) as stream:
            await acknowledged(stream)
            assert statuses(await stream.rest()) == ["failed", "result"]


@pytest.mark.requirement("L3")
async def test_task_notifications_travel_beside_those_of_the_sdk(place: Place) -> None:
    """SEP-2575: one stream for everything asked for; one acknowledgement; it stays open when its tasks have ended."""
    with place.bench() as label:
        async with place.client() as ana:
            made = await ana.start("waits", label=label)
            async with ana.listening(taskIds=[made["taskId"]], toolsListChanged=True) as stream:
                assert await acknowledged(stream) == {"taskIds": [made["taskId"]], "toolsListChanged": True}
                assert (await stream.next())["params"]["status"] == "working"
                await ana.start("announces")
                assert (await stream.next())["method"] == "notifications/tools/list_changed"
                place.workshop.bench(label).go.set()
                assert (await stream.next())["params"]["status"] == "completed"
                await ana.start("announces")
                assert (await stream.next())["method"] == "notifications/tools/list_changed"
            async with ana.listening(toolsListChanged=True) as plain:
                honoured = await plain.next_unchecked()
                assert honoured["params"]["notifications"] == {"toolsListChanged": True}


@pytest.mark.requirement("L4")
async def test_undeclared_clients_cannot_listen_to_tasks(place: Place) -> None:
    """SEP-2663: -32021 with the missing capability, before anything is said about the ids."""
    async with place.client(capabilities=UNDECLARED) as plain:
        for ids in ([UNKNOWN], [], "no array", [5]):
            answer = await plain.send("subscriptions/listen", {"notifications": {"taskIds": ids}})
            assert (answer.status, answer.error["code"]) == (400, -32021)
        async with plain.listening(toolsListChanged=True) as stream:
            assert (await stream.next_unchecked())["params"]["notifications"] == {"toolsListChanged": True}


@pytest.mark.parametrize("ids", ["x", 5, None, {"0": UNKNOWN}, [5], [None], [[UNKNOWN]], [UNKNOWN] * 257], ids=repr)
async def test_task_ids_are_an_array_of_strings(place: Place, ids: object) -> None:
    """SEP-2663: `taskIds?: string[]`; at most 256 on a stream."""
    async with place.client() as ana:
        answer = await ana.send("subscriptions/listen", {"notifications": {"taskIds": ids}})
    assert (answer.status, answer.error["code"]) == (400, -32602)


async def test_a_client_that_hangs_up_closes_every_one_of_its_subscriptions(place: Place) -> None:
    """Design section 5: `SubscriptionClosed` says how often it was pushed and why it ended, for each task."""
    async with place.client() as ana:
        made = [await ana.start("asks") for _ in range(3)]
        async with ana.listening(taskIds=[task["taskId"] for task in made]) as stream:
            await acknowledged(stream)
            await stream.next()

    async def closed() -> bool:
        looks = [await place.trail.of(task["taskId"], "access") for task in made]
        ended = [event for found in looks for entry in found for event in entry.events]
        return sum(isinstance(event, SubscriptionClosed) and event.reason == "client" for event in ended) == 3

    await until(closed)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.requirement("A4")
async def test_expiry_ends_the_stream(mode: Mode, tmp_path: Path) -> None:
    """A push is authorised anew like any poll: once the time to live is over there is nothing more to hear."""
    tools = {**SUPPORT, "asks": ToolPolicy(support="optional", ttl_ms=700)}
    async with opened(mode, tmp_path, tools=tools) as place, place.client() as ana:
        made = await ana.start("asks")
        await ana.until(made["taskId"], "input_required")
        async with ana.listening(taskIds=[made["taskId"]]) as stream:
            await acknowledged(stream)
            assert statuses(await stream.rest()) == ["input_required", "result"]
        assert (await ana.get(made["taskId"])).refusal == (await ana.get(UNKNOWN)).refusal

        async def closed() -> bool:
            looks = await place.trail.of(made["taskId"], "access")
            return any(isinstance(event, SubscriptionClosed) for entry in looks for event in entry.events)

        await until(closed)
        assert only(await place.trail.of(made["taskId"], "access"), SubscriptionClosed).reason == "denied"
