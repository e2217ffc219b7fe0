"""One replica of an MCP server, a process of its own: `python replica.py CONNECTION FOLDER NAME`.

What its tools come to lies in FOLDER, by tool call and process: `<call>.<pid>.begun`, `.stopped`; they go on once there
is `<call>.go`, or `<call>.<pid>.go`. `NAME.url` says where it listens.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from pydantic import BaseModel

from tasktrail.mcp.extension import Tasks, ToolPolicy
from tasktrail.testing.service import wait_for
from tasktrail.testing.waiting import until

WITHIN_S = 120.0
CONNECTION, FOLDER, NAME = sys.argv[1], Path(sys.argv[2]), sys.argv[3]

tasks = Tasks.connect(
    CONNECTION,
    server="reports",
    tools={
        "once": "optional",
        "again": ToolPolicy(support="optional", on_worker_lost="rerun"),
        "asks": ToolPolicy(support="optional", on_worker_lost="rerun"),
        "stubborn": ToolPolicy(support="optional", on_worker_lost="rerun"),
    },
)
mcp: MCPServer[Any] = MCPServer("reports", extensions=[tasks], lifespan=tasks.lifespan)


class Name(BaseModel):
    """What is asked for."""

    name: str


def note(call: str, what: str) -> None:
    """Show that this process came so far."""
    (FOLDER / f"{call}.{os.getpid()}.{what}").touch()


def may_go(call: str) -> bool:
    """Whether this process may go on."""
    return (FOLDER / f"{call}.go").exists() or (FOLDER / f"{call}.{os.getpid()}.go").exists()


async def work(call: str) -> str:
    """Wait for the test's word."""
    note(call, "begun")
    try:
        await until(lambda: may_go(call), within_s=WITHIN_S)
    except asyncio.CancelledError:
        note(call, "stopped")
        raise
    return f"{call} by {os.getpid()}"


@mcp.tool()
async def once(call: str) -> str:
    """Work that must not be done twice."""
    return await work(call)


@mcp.tool()
async def again(call: str) -> str:
    """Work that may be done again."""
    return await work(call)


@mcp.tool()
async def asks(call: str, ctx: Context[Any, Any]) -> str:
    """Ask two questions, the same text twice, and work."""
    names: list[str] = []
    for _ in range(2):
        answer = await ctx.elicit("Who?", Name)
        names.append(answer.data.name if answer.action == "accept" else answer.action)
    return f"{await work(call)} for {' and '.join(names)}"


@mcp.tool()
def stubborn(call: str) -> str:
    """Work that nothing can stop: it runs in a thread."""
    note(call, "begun")
    wait_for("the test's word", lambda: may_go(call), WITHIN_S)
    return f"{call} by {os.getpid()}"


class _Server(uvicorn.Server):
    """Says where it listens once it does."""

    async def startup(self, sockets: Any = None) -> None:  # noqa: ANN401 - uvicorn's
        """Start, and say so."""
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        unready = FOLDER / f"{NAME}.url.new"
        unready.write_text(f"http://127.0.0.1:{port}/mcp")
        unready.rename(FOLDER / f"{NAME}.url")


if __name__ == "__main__":
    config = uvicorn.Config(
        mcp.streamable_http_app(), port=0, log_level="error", ws="none", lifespan="on", timeout_graceful_shutdown=1
    )
    _Server(config).run()
