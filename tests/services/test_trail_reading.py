"""The trail read from outside of the service, while it runs and when it has stopped; nothing is written that way."""

import asyncio
import secrets
from pathlib import Path

import pytest
from nats.errors import Error as NatsError

from tasktrail.events.errors import TasktrailError
from tasktrail.events.subjects import TRAIL
from tasktrail.projections.audit.columns import Message
from tasktrail.services.connection import Connection
from tasktrail.services.trail_reading import NoTrailHere, TrailReader, open_trail
from tasktrail.testing.feeding import Feeder, caller, creation
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.service import UpProcess


async def whole(data: Path, *, batch: int = 3) -> list[Message]:
    async with open_trail(data) as trail:
        return [message async for some in trail.messages(batch=batch) for message in some]


async def test_the_trail_reads_the_same_from_a_running_and_from_a_stopped_service(tmp_path: Path) -> None:
    """Every message in order, as signed and chained; what the reader may not do is refused by the broker."""
    data = tmp_path / "data"
    with UpProcess(data) as up:
        feeder = await Feeder.connect(up.adapter(), "reports")
        for _ in range(4):
            await feeder.settled("create", creation(caller("ana"), secrets.token_hex(8)))
        await feeder.close()
        running = await whole(data)
        assert [message.stream_seq for message in running] == list(range(1, len(running) + 1))
        assert len(running) > 4
        assert all(message.signature and message.key_id and message.msg_id for message in running)
        async with open_trail(data) as trail:
            part = [one.stream_seq async for some in trail.messages(2, 3) for one in some]
            assert part == [2, 3]
            with pytest.raises((NatsError, TimeoutError)):
                await trail.nc.jetstream().publish(running[-1].subject, b"forged", timeout=1)
        assert await asyncio.to_thread(up.stop) == 0
    stopped = await whole(data)
    assert stopped == running


async def test_a_trail_whose_tail_was_deleted_simply_ends_before_it(fresh_nats: NatsServer) -> None:
    """What the stream does not hold is not among the messages; nobody waits for it, and the broker is not blamed."""
    nc = await Connection.from_text(fresh_nats.url).connect("tail")
    try:
        js = nc.jetstream()
        await js.add_stream(name=TRAIL, subjects=["trail"])  # the service's own allows no deletion
        for number in range(4):
            await js.publish("trail", b"%d" % number)
        for deleted in (3, 4):
            await js.delete_msg(TRAIL, deleted)
        reader = await TrailReader.of(nc)
        assert reader.last_seq == 4
        assert [one.stream_seq async for some in reader.messages() for one in some] == [1, 2]
        assert [some async for some in reader.messages(3)] == []
    finally:
        await nc.close()


async def test_a_directory_without_a_trail_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoTrailHere, match="is this the right data directory"):
        await whole(tmp_path / "nothing")


async def test_a_broker_without_a_trail_is_refused(fresh_nats: NatsServer) -> None:
    with pytest.raises(TasktrailError, match="no stream TRAIL"):
        async with open_trail(Path("unused"), nats_url=fresh_nats.url):
            pass
