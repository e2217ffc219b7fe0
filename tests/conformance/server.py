"""An MCP server with the tools the official conformance suite asks for, on an embedded tasktrail.

    uv run python tests/conformance/server.py PORT        # 0: a free port, printed

Guarantees: MCP over streamable HTTP at http://127.0.0.1:PORT/mcp; the line "ready URL" on standard output once
requests are answered; its data lives in a temporary directory that SIGINT and SIGTERM remove.

Needs: tasktrail[service,mcp]. What each tool does is the suite's text (`conformance list`, the descriptions of the
`tasks-*` scenarios), not ours.
"""

import asyncio
import contextlib
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequiredResult,
)
from pydantic import BaseModel
from starlette.types import ASGIApp

from tasktrail.mcp.extension import Tasks


class Confirmation(BaseModel):
    """What `confirm_delete` asks for."""

    confirm: bool


class Named(BaseModel):
    """What `multi_input` and `test_tool_with_task` ask for."""

    name: str


def greet(name: str) -> str:
    """Greet somebody. Never a task."""
    return f"Hello, {name}!"


async def slow_compute(seconds: float, label: str = "") -> str:
    """Take `seconds`, then answer."""
    await asyncio.sleep(seconds)
    return f"computed {label} in {seconds} s"


async def failing_job() -> str:
    """Fail as a tool fails, after a second."""
    await asyncio.sleep(1)
    message = "this job always fails"
    raise ToolError(message)


async def protocol_error_job() -> str:
    """Fail as a JSON-RPC request fails."""
    raise MCPError(INTERNAL_ERROR, "this job always breaks the protocol")


async def confirm_delete(filename: str, ctx: Context) -> str:
    """Delete a file, if the user says so."""
    answer = await ctx.elicit(f"Delete {filename}?", Confirmation)
    confirmed = answer.action == "accept" and answer.data.confirm
    return f"{filename} {'deleted' if confirmed else 'kept'}"


async def multi_input(ctx: Context) -> str:
    """Ask two questions at the same time."""
    answers = await asyncio.gather(ctx.elicit("First name?", Named), ctx.elicit("Second name?", Named))
    return " and ".join(answer.data.name if answer.action == "accept" else answer.action for answer in answers)


async def test_tool_with_task(ctx: Context) -> str | InputRequiredResult:
    """Ask for a name before there is a task, then answer as one."""
    answer = (ctx.input_responses or {}).get("user_name")
    if not isinstance(answer, ElicitResult):
        question = ElicitRequestFormParams(message="Who are you?", requested_schema=Named.model_json_schema())
        return InputRequiredResult(input_requests={"user_name": ElicitRequest(params=question)})
    return f"Hello, {(answer.content or {}).get('name', answer.action)}!"


ASKING_BEFORE = (greet, slow_compute, failing_job, protocol_error_job, test_tool_with_task)
"""Tools that ask nothing while they run: also those of a server that knows nothing of tasks."""

SUPPORT = {
    "slow_compute": "optional",
    "failing_job": "required",
    "protocol_error_job": "optional",
    "confirm_delete": "optional",
    "multi_input": "optional",
    "test_tool_with_task": "required",
}


def build(tasks: Tasks) -> MCPServer:
    """Return the server, its tasks at this tasktrail."""
    mcp = MCPServer("conformance", extensions=[tasks], lifespan=tasks.lifespan)
    for tool in (*ASKING_BEFORE, confirm_delete, multi_input):
        mcp.add_tool(tool)
    return mcp


class _AnnouncingServer(uvicorn.Server):
    """uvicorn that says when it answers requests, and where."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            host, port = listening.getsockname()
            print(f"ready http://{host}:{port}/mcp", flush=True)  # noqa: T201 - the line whoever started us waits for


def serve(port: int, app: Callable[[Path], ASGIApp]) -> None:
    """Serve what `app` makes on the loopback interface until interrupted; it gets a directory for its data."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the directory is removed on SIGTERM too
    with (
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="tasktrail-conformance-") as directory,
        socket.create_server(("127.0.0.1", port)) as listening,
    ):
        config = uvicorn.Config(app(Path(directory)), log_level="warning")
        asyncio.run(_AnnouncingServer(config).serve([listening]))


if __name__ == "__main__":
    serve(int(sys.argv[1]), lambda data: build(Tasks.embed(data, tools=SUPPORT)).streamable_http_app())
