"""What an MCP server waits for over HTTP: its tasks, as they move. Free of any framework.

Guarantees: a task's view comes first and then again whenever it changed, whichever replica changed it; what is shown is
what `collect` answers, decided anew each time; whoever waits is one of at most `WAITING_MAX` of its server, so that no
server takes all connections; everyone is let go when the service stops. A nudge may be lost: everyone looks by itself,
too.

    ingesting = Ingesting(service.desk, service.moved)
    view = await ingesting.collected(messages.CollectInput(task_ref=…), channel, after=3, wait_s=30)
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator
from typing import cast

import msgspec

from tasktrail.events.errors import TasktrailError, Unavailable
from tasktrail.projections.current import State
from tasktrail.services.access.callers import Channel
from tasktrail.services.access.desk import Desk
from tasktrail.services.counting import Counting
from tasktrail.services.messages import CollectInput, Said, Signal, WorkView
from tasktrail.services.signals import signal_of

WAITING_MAX = 64
"""Long polls and event streams of one MCP server at a time."""
ALL_WAITING_MAX = 384
"""The same of all servers: operators find a connection, too."""
LOOK_EVERY_S = 5.0
"""How often one who waits looks by itself: a nudge may be lost."""
PAUSE_S = 0.5
"""Between two tries while the trail does not answer."""
MOVES_KEPT = 10_000


class Move(Signal, frozen=True, kw_only=True, omit_defaults=True):
    """One of the server's tasks moved: a reason to look, without any payload."""

    task_ref: str


class Ingesting:
    """Requests of MCP servers, and their waiting."""

    def __init__(self, desk: Desk, moved: list[Callable[[State], None]]) -> None:
        """`moved`: what is called whenever a task moved, here or in another process; it gains one member."""
        self._desk = desk
        self._nudged: dict[str, set[asyncio.Event]] = {}
        self._following: dict[str, set[_Moves]] = {}
        self._waiting: Counting[str] = Counting()
        self._closing = False
        self.ending: list[Callable[[], None]] = []
        """What ends with it: the streams that are open."""
        moved.append(self._moved)

    def close(self) -> None:
        """Let everyone go."""
        self._closing = True
        for end in self.ending:
            end()
        for nudged in self._nudged.values():
            for event in nudged:
                event.set()
        for following in self._following.values():
            for moves in following:
                moves.nudged.set()

    async def carry_out(self, action: str, said: Said, channel: Channel) -> msgspec.Struct:
        """One request, as over NATS.

        Raises:
            TasktrailError: as `Desk.carry_out`.
        """
        return await self._desk.carry_out(action, said, channel)

    async def collected(self, said: CollectInput, channel: Channel, *, after: int, wait_s: float) -> WorkView:
        """The task once it has more than `after` entries, or no work is wanted any more; as it is after `wait_s`.

        Raises:
            Unavailable: too many of this server wait already.
        """
        with self._told(said.task_ref) as nudged:
            view = await self._collect(said, channel)
            if view.seq > after or not view.live or not wait_s:
                return view
            with contextlib.suppress(TimeoutError), self._counted(channel.server):
                async with asyncio.timeout(wait_s):
                    while view.seq <= after and view.live and not self._closing:
                        view = await self._looked(said, channel, nudged)
        return view

    async def views(self, said: CollectInput, channel: Channel) -> AsyncGenerator[WorkView]:
        """The task, now and whenever it changed, until no work is wanted any more.

        Raises:
            Unavailable: too many of this server wait already.
        """
        with self._told(said.task_ref) as nudged, self._counted(channel.server):
            view = await self._collect(said, channel)
            yield view
            while view.live:
                before, view = view, await self._looked(said, channel, nudged)
                if self._closing:
                    return
                if view != before:
                    yield view

    async def moves(self, channel: Channel) -> AsyncGenerator[tuple[Move, ...]]:
        """Whenever tasks of the server move: the newest move of each. The first, of none, says that one is heard.

        Raises:
            Unavailable: too many of this server wait already.
        """
        mine = _Moves()
        following = self._following.setdefault(channel.server, set())
        following.add(mine)
        try:
            with self._counted(channel.server):
                while not self._closing:
                    yield mine.taken()
                    await mine.nudged.wait()
                    mine.nudged.clear()
        finally:
            following.discard(mine)
            if not following:
                self._following.pop(channel.server, None)

    async def _collect(self, said: CollectInput, channel: Channel) -> WorkView:
        return cast("WorkView", await self._desk.carry_out("collect", said, channel))

    async def _looked(self, said: CollectInput, channel: Channel, nudged: asyncio.Event) -> WorkView:
        """The task after the next nudge, or after a while without one; the trail's outages are waited out."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await nudged.wait()
            if not self._closing:
                nudged.clear()
            try:
                return await self._collect(said, channel)
            except TasktrailError as error:
                if not error.retriable or self._closing:
                    raise
            await asyncio.sleep(PAUSE_S)
            nudged.set()

    @contextlib.contextmanager
    def _told(self, ref: str) -> Generator[asyncio.Event]:
        """An event that is set whenever the task moves."""
        event = asyncio.Event()
        nudged = self._nudged.setdefault(ref, set())
        nudged.add(event)
        try:
            yield event
        finally:
            nudged.discard(event)
            if not nudged:
                self._nudged.pop(ref, None)

    @contextlib.contextmanager
    def _counted(self, server: str) -> Generator[None]:
        if self._closing or self._waiting.of(server) >= WAITING_MAX or self._waiting.total() >= ALL_WAITING_MAX:
            message = f"{WAITING_MAX} requests of this MCP server wait already; end one, or follow all tasks by one"
            raise Unavailable(message)
        with self._waiting.one(server):
            yield

    def _moved(self, state: State) -> None:
        for event in self._nudged.get(state.task_ref, ()):
            event.set()
        for moves in self._following.get(state.task.server, ()):
            moves.add(state)


class _Moves:
    """The moves that one stream has yet to tell."""

    def __init__(self) -> None:
        self.nudged = asyncio.Event()
        self._newest: dict[str, Move] = {}

    def add(self, state: State) -> None:
        known = self._newest.pop(state.task_ref, None)
        if known is None or known.seq <= state.task.seq:
            known = Move(task_ref=state.task_ref, **msgspec.structs.asdict(signal_of(state.task)))
        self._newest[state.task_ref] = known
        while len(self._newest) > MOVES_KEPT:
            del self._newest[next(iter(self._newest))]
        self.nudged.set()

    def taken(self) -> tuple[Move, ...]:
        newest, self._newest = self._newest, {}
        return tuple(newest.values())
