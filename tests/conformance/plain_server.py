"""The tools the official conformance suite asks for, on a server that knows nothing of tasks.

    uv run python tests/conformance/plain_server.py PORT        # as server.py beside it

Guarantees and needs: those of `server.py`, without tasktrail. Tools ask as protocol 2026-07-28 has it, by returning
`InputRequiredResult`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequests, InputRequiredResult
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.conformance.server import ASKING_BEFORE, Confirmation, Named, serve


def _asking(**questions: tuple[str, type[BaseModel]]) -> InputRequiredResult:
    requests: InputRequests = {
        key: ElicitRequest(params=ElicitRequestFormParams(message=text, requested_schema=model.model_json_schema()))
        for key, (text, model) in questions.items()
    }
    return InputRequiredResult(input_requests=requests)


def _answered(ctx: Context, *keys: str) -> Mapping[str, ElicitResult] | None:
    """The answers, once there are all of them."""
    given = {key: one for key, one in (ctx.input_responses or {}).items() if isinstance(one, ElicitResult)}
    return given if set(keys) <= set(given) else None


async def confirm_delete(filename: str, ctx: Context) -> str | InputRequiredResult:
    """Delete a file, if the user says so."""
    answers = _answered(ctx, "confirm")
    if answers is None:
        return _asking(confirm=(f"Delete {filename}?", Confirmation))
    confirmed = answers["confirm"].action == "accept" and (answers["confirm"].content or {}).get("confirm")
    return f"{filename} {'deleted' if confirmed else 'kept'}"


async def multi_input(ctx: Context) -> str | InputRequiredResult:
    """Ask two questions at the same time."""
    answers = _answered(ctx, "first", "second")
    if answers is None:
        return _asking(first=("First name?", Named), second=("Second name?", Named))
    return " and ".join(str((answers[key].content or {}).get("name")) for key in ("first", "second"))


def build(_data: Path) -> MCPServer:
    """Return the server."""
    mcp = MCPServer("conformance")
    for tool in (*ASKING_BEFORE, confirm_delete, multi_input):
        mcp.add_tool(tool)
    return mcp


if __name__ == "__main__":
    serve(int(sys.argv[1]), lambda data: build(data).streamable_http_app())
