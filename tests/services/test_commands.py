"""The command endpoint: whose request is answered when. Hostile requests are in tests/hostile/test_commands.py."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from tasktrail.testing.feeding import Feeder, asked, caller, creation
from tasktrail.testing.service import UpProcess

ANA, EVE = caller("ana"), caller("eve")
FLOOD = 400
ANSWER_S = 30.0


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """A running service."""
    with UpProcess(Path(tmp_path_factory.mktemp("commands")) / "data") as running:
        yield running


@pytest_asyncio.fixture
async def feeder(up: UpProcess) -> AsyncIterator[Feeder]:
    """An MCP server."""
    one = await Feeder.connect(up.adapter(), "busy")
    yield one
    await one.close()


@pytest.mark.requirement("P4")
async def test_one_principals_flood_delays_itself_and_not_another_principal(feeder: Feeder) -> None:
    """Issue: fair between principals. `limits.in_flight_per_principal` is 16: far fewer of the flood come first."""
    hers = await feeder.settled("create", creation(EVE, "flooded"))
    his = await feeder.settled("create", creation(ANA, "calm"))
    answered = 0

    async def flood() -> str:
        nonlocal answered
        body = msgspec.json.encode(asked(EVE, "tasks/get", task_id=hers["task_id"]))
        answer = msgspec.json.decode(await feeder.raw("get", body, ANSWER_S))
        answered += "ok" in answer
        return "ok" if "ok" in answer else str(answer["error"]["code"])

    flooding = [asyncio.create_task(flood()) for _ in range(FLOOD)]
    while feeder.nc.stats["out_msgs"] <= FLOOD:  # noqa: ASYNC110 - nats-py only counts what is on its way
        await asyncio.sleep(0)
    view = await feeder.request("get", asked(ANA, "tasks/get", task_id=his["task_id"]), ANSWER_S)
    before = answered
    outcomes = await asyncio.gather(*flooding)
    assert view["status"] == "working"
    assert before < FLOOD / 4, f"{before} of {FLOOD} came first"
    assert set(outcomes) <= {"ok", "-32029"}


@pytest.mark.requirement("O2")
async def test_a_subject_speaks_in_no_other_servers_name(up: UpProcess) -> None:
    """The token of "x-reports" is another than its name: who may not use that one must not use this one instead."""
    nc = await up.adapter().connect("somebody")
    try:
        for token in ("x-reports", "x-billing"):
            reply = await nc.request(
                f"tasktrail.cmd.{token}.collect", b'{"task_ref": "%s"}' % (b"a" * 32), timeout=ANSWER_S
            )
            assert msgspec.json.decode(reply.data)["error"]["reason"] == "invalid_request"
    finally:
        await nc.close()
