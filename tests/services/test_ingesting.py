"""Who waits over HTTP: nudges, lost ones too, outages of the trail, room, and the end.

The desk here is one that answers as it is told: what the real one answers is tested in tests/http_ingest. Source:
docs/http.md.
"""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from tasktrail.events.errors import NothingWritten, TaskNotFound, TasktrailError, Unavailable
from tasktrail.events.facts import Status
from tasktrail.services import ingesting as module
from tasktrail.services.access.callers import Channel
from tasktrail.services.access.desk import Desk
from tasktrail.services.ingesting import ALL_WAITING_MAX, WAITING_MAX, Ingesting
from tasktrail.services.messages import CollectInput, Said, WorkView
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.requirement("O2")

REF = "a" * 32
SAID = CollectInput(task_ref=REF)
WITHIN_S = 60.0


def channel(server: str = "reports") -> Channel:
    return Channel(server=server, in_process=False)


class Told(Desk):
    """A desk that shows what it is told to."""

    def __init__(self) -> None:
        self.view = WorkView(task_ref=REF, status=Status.WORKING, live=True, cancel_requested=False, seq=1)
        self.errors: list[TasktrailError] = []
        self.looked = 0

    async def carry_out(self, action: str, said: Said, channel: Channel) -> msgspec.Struct:  # noqa: ARG002 - a desk's
        """The view, after the errors."""
        self.looked += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.view

    def move(self, **changed: object) -> None:
        """Show something else from now on."""
        self.view = msgspec.structs.replace(self.view, **changed)


async def next_of(views: AsyncIterator[WorkView]) -> WorkView:
    async with asyncio.timeout(WITHIN_S):
        return await anext(views)


async def test_a_lost_nudge_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says that the task moved: whoever waits looks by itself."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    desk = Told()
    ingesting = Ingesting(desk, [])
    views = ingesting.views(SAID, channel())
    assert (await next_of(views)).seq == 1
    desk.move(seq=2, cancel_requested=True)
    assert (await next_of(views)).cancel_requested
    desk.move(seq=3)
    assert (await ingesting.collected(SAID, channel(), after=2, wait_s=WITHIN_S)).seq == 3


async def test_an_outage_of_the_trail_ends_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be tried again is; what may not, ends it."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    desk = Told()
    views = Ingesting(desk, []).views(SAID, channel())
    await next_of(views)
    desk.errors = [NothingWritten("away"), NothingWritten("away")]
    desk.move(seq=2)
    assert (await next_of(views)).seq == 2
    desk.errors = [TaskNotFound()]
    with pytest.raises(TaskNotFound):
        await next_of(views)


async def test_there_is_room_for_each_server_and_for_all_of_them() -> None:
    """Bounds: one server's, and everyone's; whoever leaves makes room."""
    ingesting = Ingesting(Told(), [])
    servers = [f"server-{number}" for number in range(ALL_WAITING_MAX // WAITING_MAX)]
    streams = {server: [ingesting.views(SAID, channel(server)) for _ in range(WAITING_MAX)] for server in servers}
    for server, mine in streams.items():
        for views in mine:
            await next_of(views)
        with pytest.raises(Unavailable):
            await next_of(ingesting.views(SAID, channel(server)))
    with pytest.raises(Unavailable):
        await next_of(ingesting.views(SAID, channel("one more")))
    await streams[servers[0]][0].aclose()
    await next_of(ingesting.views(SAID, channel("one more")))


async def test_everyone_is_let_go_when_it_closes() -> None:
    """Streams end; a long poll ends with the view as it is."""
    desk = Told()
    ingesting = Ingesting(desk, [])
    views = ingesting.views(SAID, channel())
    await next_of(views)
    following = asyncio.ensure_future(anext(views, None))
    polling = asyncio.create_task(ingesting.collected(SAID, channel(), after=1, wait_s=WITHIN_S))
    await until(lambda: desk.looked > 1)
    ingesting.close()
    async with asyncio.timeout(WITHIN_S):
        assert await following is None
        assert (await polling).seq == 1
