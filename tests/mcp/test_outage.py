"""The broker or the service goes away while a tool runs. Sources: design promise 1 (durable before visible, never a
hang, never a silent drop), feature L9."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tasktrail.events.entry import Entry
from tasktrail.events.errors import MaybeWritten
from tasktrail.events.facts import GapFound, TaskCompleted, TaskCreated, WorkerLost
from tasktrail.mcp.link import ConnectedLink, EmbeddedLink
from tasktrail.services.messages import Said
from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.waiting import until

from .answering import accept, asked
from .client import Client
from .place import Mode, Place, held, only, opened, reading, running_service, settings

MODES: list[Mode] = ["embedded", "connected"]


async def kill_broker(place: Place) -> None:
    """SIGKILL for the nats-server; returns when it is gone and before another one is there."""
    pid = place.broker_pid()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: place.trail.nc.is_reconnecting or not place.trail.nc.is_connected)


async def answering(client: Client) -> None:
    """Returns when the trail takes entries again."""

    async def one() -> bool:
        return "result" in (await client.call("echo", text="x")).message

    await until(one)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.requirement("L1", "L9")
async def test_a_result_that_comes_while_the_broker_is_dead_is_recorded_when_it_is_back(
    mode: Mode, tmp_path: Path
) -> None:
    """The tool ends, a question is asked and an answer given across a `kill -9` of the broker; nothing is lost or done
    twice. Callers meanwhile get an answer, or a retriable error, in time."""
    async with opened(mode, tmp_path) as place, place.client() as ana:
        with place.bench() as label, place.bench() as other:
            made = await held(place, ana, "waits", label)
            moving = await held(place, ana, "reports", other)
            asking = await ana.start("asks")
            (key,) = await asked(ana, asking["taskId"])
            await kill_broker(place)
            place.workshop.bench(label).go.set()
            place.workshop.bench(other).go.set()
            meanwhile = await asyncio.wait_for(ana.get(made["taskId"]), 6)
            assert "result" in meanwhile.message or meanwhile.error["data"]["retriable"] is True
            await answering(ana)
            done = await ana.until(made["taskId"], "completed")
            assert done["result"]["content"][0]["text"] == label
            await ana.update(asking["taskId"], {key: accept(age=41)})
            await ana.until(asking["taskId"], "completed")
            for _ in range(2):
                await until(lambda: len(place.workshop.bench(other).log) > 1)
                place.workshop.bench(other).go.set()
            await ana.cancel(moving["taskId"])
            await ana.until(moving["taskId"], "completed", "cancelled")
        assert await place.trail.names(made["taskId"]) == ["TaskCreated", "TaskCompleted"]
        only(await place.trail.of(asking["taskId"]), TaskCompleted)


@pytest.mark.requirement("L1", "L9")
async def test_a_result_that_comes_while_the_service_is_down_is_recorded_when_it_is_back(tmp_path: Path) -> None:
    """Connected: the service is stopped and started again while a tool runs; the server goes on as if nothing was."""
    async with opened("connected", tmp_path) as place, place.client() as ana:
        with place.bench() as label:
            made = await held(place, ana, "waits", label)
            asking = await ana.start("asks")
            (key,) = await asked(ana, asking["taskId"])
            await place.stop_service()
            refusal = await asyncio.wait_for(ana.get(made["taskId"]), 6)
            assert refusal.error["data"]["retriable"] is True
            place.workshop.bench(label).go.set()
            await place.start_service()
            await answering(ana)
            await ana.until(made["taskId"], "completed")
            await ana.update(asking["taskId"], {key: accept(age=41)})
            done = await ana.until(asking["taskId"], "completed")
            assert done["result"]["content"][0]["text"] == "accept 41"
        assert await place.trail.names(made["taskId"]) == ["TaskCreated", "TaskCompleted"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.requirement("L9")
async def test_a_task_whose_creation_was_never_confirmed_does_not_live_on_unknown(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design promise 1: "may have been written". Then nobody holds its handle and nothing works on it: it ends, and the
    trail says why; a caller that calls again gets a task of its own."""
    link = EmbeddedLink if mode == "embedded" else ConnectedLink
    carried_out, unconfirmed = link.request, [True]

    async def unsure(self: Any, action: str, said: Said) -> Any:  # noqa: ANN401 - as the link's own
        done = await carried_out(self, action, said)
        if action == "create" and unconfirmed:
            unconfirmed.clear()
            message = "the reply was lost on its way"
            raise MaybeWritten(message)
        return done

    monkeypatch.setattr(link, "request", unsure)
    async with opened(mode, tmp_path) as place, place.client() as ana:
        refusal = await ana.call("echo", text="x")
        assert refusal.error["data"] == {"retriable": True, "written": "maybe"}
        made = await ana.start("echo", text="x")
        await ana.until(made["taskId"], "completed")

        async def ended() -> bool:
            entries = [entry for _, entry in await place.trail.all()]
            lost = [event for entry in entries for event in entry.events if isinstance(event, WorkerLost)]
            created = [entry for entry in entries if any(isinstance(one, TaskCreated) for one in entry.events)]
            return [event.cause for event in lost] == ["unanswered"] and len(created) == 2

        await until(ended)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.requirement("L1", "L6")
async def test_a_server_that_was_restarted_still_answers_for_the_tasks_it_made(mode: Mode, tmp_path: Path) -> None:
    """Durable handles: another process on the same trail opens them for the same principal, and for nobody else."""
    with LocalIssuer() as one, LocalIssuer() as two:
        async with opened(mode, tmp_path, issuers=(one, two)) as place, place.client() as ana:
            made = await ana.start("echo", text="before")
            done = await ana.until(made["taskId"], "completed")
        async with (
            opened(mode, tmp_path, issuers=(one, two)) as place,
            place.client() as ana,
            place.client("eve") as eve,
        ):
            assert (await ana.get(made["taskId"])).result == done
            assert (await eve.get(made["taskId"])).error["code"] == -32602
        events = [event for _, entry in await _all(tmp_path) for event in entry.events]
        assert not any(isinstance(event, GapFound) for event in events)


async def _all(data: Path) -> list[tuple[str, Entry]]:
    with settings({}):
        async with running_service(data), reading(data) as trail:
            return await trail.all()
