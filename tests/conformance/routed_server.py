"""A load balancer before the server of `server.py` that has tasktrail answer `tasks/*`, for the conformance suite.

    uv run python tests/conformance/routed_server.py PORT        # as server.py beside it

Guarantees and needs: those of `server.py`, and httpx. It routes by the header Mcp-Method (SEP-2243), by nothing else.
`tasktrail up` is a process of its own, which ends with this one.
"""

import sys
import tempfile
from pathlib import Path

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tasktrail.mcp.extension import Tasks
from tasktrail.services.responder import find
from tasktrail.testing.service import UpProcess

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.conformance.server import SUPPORT, build, serve

_AT_TASKTRAIL = {"tasks/get", "tasks/update", "tasks/cancel"}
_HOP = {"host", "connection", "content-length", "transfer-encoding"}


def routed(mcp: ASGIApp, endpoint: str) -> ASGIApp:
    """The MCP server's application, without the polling."""

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or Request(scope).headers.get("mcp-method") not in _AT_TASKTRAIL:
            await mcp(scope, receive, send)
            return
        request = Request(scope, receive)
        headers = {name: value for name, value in request.headers.items() if name not in _HOP}
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.post(endpoint, content=await request.body(), headers=headers)
        kind = answer.headers.get("content-type")
        await Response(answer.content, answer.status_code, media_type=kind)(scope, receive, send)

    return route


def main(port: int) -> None:
    """Serve until interrupted."""
    with (
        tempfile.TemporaryDirectory(prefix="tasktrail-conformance-") as directory,
        UpProcess(Path(directory, "data")) as up,
    ):
        running = find(up.data)
        if running is None:
            raise SystemExit(up.output())
        tasks = Tasks.connect(up.data / "adapter.json", tools=SUPPORT)
        app = routed(build(tasks).streamable_http_app(), f"{running.url}/mcp/conformance")
        serve(port, lambda _data: app)


if __name__ == "__main__":
    main(int(sys.argv[1]))
