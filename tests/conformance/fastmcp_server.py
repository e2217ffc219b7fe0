"""The tools the official conformance suite asks for on FastMCP, with an embedded tasktrail.

    uv run python tests/conformance/fastmcp_server.py PORT        # as server.py beside it

Guarantees and needs: those of `server.py`, and fastmcp. Its tools are those of FastMCP's own users: `task=True`.
"""

import asyncio
import sys
from pathlib import Path

from fastmcp import Context, FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.utilities.tasks import TaskConfig
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult

from tasktrail.mcp.fastmcp import TasktrailTasks

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.conformance.server import Confirmation, Named, serve

_REQUIRED = TaskConfig(mode="required")


def build(data: Path) -> FastMCP:
    """Return the server, its trail in the directory `data`."""
    mcp: FastMCP = FastMCP("conformance")
    mcp.add_extension(TasktrailTasks.embed(data))

    @mcp.tool
    def greet(name: str) -> str:
        """Greet somebody. Never a task."""
        return f"Hello, {name}!"

    @mcp.tool(task=True)
    async def slow_compute(seconds: float, label: str = "") -> str:
        """Take `seconds`, then answer."""
        await asyncio.sleep(seconds)
        return f"computed {label} in {seconds} s"

    @mcp.tool(task=_REQUIRED)
    async def failing_job() -> str:
        """Fail as a tool fails, after a second."""
        await asyncio.sleep(1)
        message = "this job always fails"
        raise ToolError(message)

    @mcp.tool(task=True)
    async def protocol_error_job() -> str:
        """Fail as a JSON-RPC request fails."""
        raise MCPError(INTERNAL_ERROR, "this job always breaks the protocol")

    @mcp.tool(task=True)
    async def confirm_delete(filename: str, ctx: Context) -> str:
        """Delete a file, if the user says so."""
        answer = await ctx.elicit(f"Delete {filename}?", Confirmation)
        confirmed = answer.action == "accept" and answer.data.confirm
        return f"{filename} {'deleted' if confirmed else 'kept'}"

    @mcp.tool(task=True)
    async def multi_input(ctx: Context) -> str:
        """Ask two questions at the same time."""
        answers = await asyncio.gather(ctx.elicit("First name?", Named), ctx.elicit("Second name?", Named))
        return " and ".join(one.data.name if one.action == "accept" else one.action for one in answers)

    @mcp.tool(task=_REQUIRED)
    async def test_tool_with_task(ctx: Context) -> str | InputRequiredResult:
        """Ask for a name before there is a task, then answer as one."""
        answer = (ctx.input_responses or {}).get("user_name")
        if not isinstance(answer, ElicitResult):
            question = ElicitRequestFormParams(message="Who are you?", requested_schema=Named.model_json_schema())
            return InputRequiredResult(input_requests={"user_name": ElicitRequest(params=question)})
        return f"Hello, {(answer.content or {}).get('name', answer.action)}!"

    return mcp


if __name__ == "__main__":
    serve(int(sys.argv[1]), lambda data: build(data).http_app())
