"""The processes under test: an MCP server on the bare extension or on tasktrail, or a tasktrail service alone.

Guarantees: one line `ready URL` (or `ready FILE` for the service: what to connect with) once it answers; it ends when
its standard input does, so that it never outlives the benchmark. uvloop in all of them.

    python -m benchmarks.server bare|embedded|service DIR
    python -m benchmarks.server connected FILE
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import uvicorn
import uvloop
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from pydantic import BaseModel
from starlette.applications import Starlette

from benchmarks.bare import BareTasks
from tasktrail.mcp.extension import Tasks
from tasktrail.services.service import ADAPTER_FILE, Service
from tasktrail.services.settings import load

TOOLS: tuple[str, ...] = ("park", "ask")
_READ_BYTES = 1024


class Choice(BaseModel):
    """What `ask` asks for."""

    part: int


class _Doors:
    """Where parked tools wait until the benchmark lets them go."""

    def __init__(self) -> None:
        self._open = asyncio.Event()

    async def park(self) -> str:
        """Work until released."""
        await self._open.wait()
        return "released"

    async def release(self) -> str:
        """Let every parked tool return."""
        self._open.set()
        self._open = asyncio.Event()
        return "done"


async def ask(ctx: Context) -> str:
    """Ask one question, and answer with its answer."""
    answer = await ctx.elicit("Which part?", Choice)
    return f"part {answer.data.part}" if answer.action == "accept" else answer.action


def _build(kind: str, place: Path) -> Starlette:
    tools: dict[str, str] = dict.fromkeys(TOOLS, "optional")
    tasks: BareTasks | Tasks
    if kind == "bare":
        tasks = BareTasks(set(TOOLS))
    else:
        tasks = Tasks.embed(place, tools=tools) if kind == "embedded" else Tasks.connect(place, tools=tools)
    mcp = MCPServer("benchmark", extensions=[tasks], lifespan=tasks.lifespan, log_level="WARNING")
    doors = _Doors()
    for tool in (doors.park, doors.release, ask):
        mcp.add_tool(tool)
    return mcp.streamable_http_app()


@contextlib.asynccontextmanager
async def _until_input_ends() -> AsyncGenerator[asyncio.Event]:
    """An event that is set when whoever started us is gone or closes our standard input."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(sys.stdin.fileno(), _READ_BYTES):
            loop.remove_reader(sys.stdin)
            ended.set()

    loop.add_reader(sys.stdin, readable)
    try:
        yield ended
    finally:
        loop.remove_reader(sys.stdin)


class _Server(uvicorn.Server):
    """uvicorn that says when it answers requests, and leaves signals to Python."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            _ready(f"http://127.0.0.1:{listening.getsockname()[1]}/mcp")


async def _serve(kind: str, place: Path) -> None:
    async with _until_input_ends() as ended:
        if kind == "service":
            service = Service(load(os.environ, data=place))
            await service.start()
            _ready(str(place / ADAPTER_FILE))
            await ended.wait()
            await service.stop()
            return
        with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
            server = _Server(uvicorn.Config(_build(kind, place), log_level="warning", access_log=False))
            serving = asyncio.create_task(server.serve([listening]))
            await asyncio.wait({serving, asyncio.create_task(ended.wait())}, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await serving


def _ready(where: str) -> None:
    print(f"ready {where}", flush=True)


def main(kind: str, place: Path) -> None:
    """Serve until standard input ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(kind, place))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
