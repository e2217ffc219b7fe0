"""MCP servers of the SDK v1: one of the low-level kind, whose tools call `run_task`, and one of FastMCP's.

Runs in the environment of `tests/v1/environment.py`. Reads what it is to be as one JSON object from its arguments;
prints one JSON object with the endpoints, then serves until it is ended. Names of the low-level server's endpoints:
`tokens` asks for tokens and `second` is another replica of it, `open` asks for none; `strict` requires every call to be
a task; `fast` is FastMCP.
"""
# ruff: noqa: ANN401, ARG001 - ASGI's and the SDK's shapes
# ruff: noqa: ASYNC110, ASYNC240 - files are how whoever runs this program speaks to its tools

import asyncio
import contextlib
import itertools
import json
import socket
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import mcp.types as mcp
import uvicorn
from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend, RequireAuthMiddleware
from mcp.server.auth.provider import AccessToken
from mcp.server.experimental.task_context import ServerTaskContext
from mcp.server.fastmcp import Context, FastMCP
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.routing import Route

from tasktrail.mcp import tracing
from tasktrail.mcp.task_store import TasktrailTasks
from tasktrail.mcp.verifier import Issuer, JwtVerifier

LOOK_S = 0.02
NAME_SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
MODES = ("exact", "user", "client", "tenant")


class Anything:
    """Lets every bearer token through: whoever forwards tokens need not read them. So sessions are anybody's."""

    async def verify_token(self, token: str) -> AccessToken | None:
        """The token, of which nothing is known."""
        return AccessToken(token=token, client_id="unread", scopes=[])


async def exists(path: str) -> None:
    """Wait for whoever runs this program to say so."""
    while not Path(path).exists():
        await asyncio.sleep(LOOK_S)


def text(said: str, *, error: bool = False) -> mcp.CallToolResult:
    return mcp.CallToolResult(content=[mcp.TextContent(type="text", text=said)], isError=error)


async def greet(task: ServerTaskContext, arguments: dict[str, Any]) -> mcp.CallToolResult:
    """Asks twice."""
    said = []
    for question in arguments.get("questions", ["Who are you?"]):
        answer = await task.elicit(question, NAME_SCHEMA)
        said.append(str((answer.content or {}).get("name")) if answer.action == "accept" else answer.action)
    return text(" ".join(said))


async def think(task: ServerTaskContext, arguments: dict[str, Any]) -> mcp.CallToolResult:
    message = mcp.SamplingMessage(role="user", content=mcp.TextContent(type="text", text=arguments["about"]))
    answer = await task.create_message([message], max_tokens=9)
    return text(f"{answer.model}: {getattr(answer.content, 'text', '')}")


async def steps(task: ServerTaskContext, arguments: dict[str, Any]) -> mcp.CallToolResult:
    await task.update_status("half way")
    await exists(arguments["until"])
    return text("all the way")


async def fails(task: ServerTaskContext, arguments: dict[str, Any]) -> mcp.CallToolResult:
    message = f"no {arguments.get('what', 'luck')}"
    raise RuntimeError(message)


async def complains(task: ServerTaskContext, arguments: dict[str, Any]) -> mcp.CallToolResult:
    return text("not like this", error=True)


async def traces(task: ServerTaskContext, arguments: dict[str, Any]) -> mcp.CallToolResult:
    """What a call of another server would carry."""
    return text(json.dumps(tracing.current().carried()))


async def parks(task: ServerTaskContext, arguments: dict[str, Any]) -> mcp.CallToolResult:
    """Works until it is told to stop, and leaves a note of that."""
    try:
        await asyncio.Event().wait()
    finally:
        if "stopped" in arguments:
            Path(arguments["stopped"]).touch()
    return text("never")


WORK = {
    "greet": greet,
    "think": think,
    "steps": steps,
    "drifts": steps,
    "fails": fails,
    "complains": complains,
    "traces": traces,
    **{f"{brief}{mode}": parks for mode in MODES for brief in ("", "brief_")},
}
listings = itertools.count(1)
SUPPORT = {"plain": None, "named": None, "steps": "required", "forgets": "optional"}


def low_level() -> Server[Any, Any]:
    """Tools that call `run_task`, one that cannot, and one that forgets to."""
    server: Server[Any, Any] = Server("workshop")

    @server.list_tools()
    async def tools() -> list[mcp.Tool]:
        names, version = [*WORK, "plain", "named", "forgets"], next(listings)
        return [
            mcp.Tool(
                name=name,
                description=f"Version {version}." if name == "drifts" else None,
                inputSchema={"type": "object"},
                execution=mcp.ToolExecution(taskSupport=SUPPORT.get(name, "optional"))
                if SUPPORT.get(name, "optional")
                else None,
            )
            for name in names
        ]

    @server.call_tool()
    async def call(name: str, arguments: dict[str, Any]) -> Any:
        work, ctx = WORK.get(name), server.request_context
        if work is None or not ctx.experimental.is_task:
            return text(f"{name} at once")
        return await ctx.experimental.run_task(lambda task: work(task, arguments))

    return server


class Name(BaseModel):
    name: str


def fast() -> FastMCP[Any]:
    """Plain tools, which know nothing of tasks."""
    server: FastMCP[Any] = FastMCP("fast")

    @server.tool()
    async def welcome(ctx: Context[Any, Any, Any], until: str = "") -> str:
        """Says how far it is, logs, asks, and greets."""
        await ctx.report_progress(1, 2, "asking")
        await ctx.info("about to ask")
        if until:
            await exists(until)
        answer = await ctx.elicit("Who are you?", Name)
        return f"hello {answer.data.name}" if answer.action == "accept" else answer.action

    @server.tool()
    async def breaks() -> str:
        """Fails."""
        message = "on purpose"
        raise ValueError(message)

    return server


def app_of(server: Server[Any, Any], verifier: Any | None) -> Starlette:
    """A low-level server's application, as the SDK's examples put it together."""
    manager = StreamableHTTPSessionManager(server)

    class Endpoint:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await manager.handle_request(scope, receive, send)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with manager.run():
            yield

    if verifier is None:
        return Starlette(routes=[Route("/mcp", Endpoint())], lifespan=lifespan)
    middleware = [
        Middleware(AuthenticationMiddleware, backend=BearerAuthBackend(verifier)),
        Middleware(AuthContextMiddleware),
    ]
    return Starlette(
        routes=[Route("/mcp", RequireAuthMiddleware(Endpoint(), []))], middleware=middleware, lifespan=lifespan
    )


async def serve(said: dict[str, Any]) -> None:
    forward = said["identity"] == "forwarded"
    issuers = [Issuer(one["url"], one["jwks_url"], said["audience"]) for one in said["issuers"]]
    checks: Any = Anything() if forward else JwtVerifier(issuers, skew_s=0)
    tools, logins = {"named": "optional"}, Path(said["logins"])
    workshop = logins / "workshop.json"
    apps: dict[str, Any] = {}
    kinds = (("tokens", checks, False), ("second", checks, False), ("open", None, False), ("strict", None, True))
    for name, verifier, strict in kinds:
        server = low_level()
        tasks = TasktrailTasks.connect(workshop, tools=tools, forward_tokens=forward, require_tasks=strict)
        apps[name] = tasks.around(app_of(server, verifier), server)
    mcp_server = fast()
    tasks = TasktrailTasks.connect(logins / "fast.json", tools={"welcome": "required", "breaks": "optional"})
    apps["fast"] = tasks.around(mcp_server.streamable_http_app(), mcp_server)
    urls: dict[str, str] = {}
    serving = []
    for name, app in apps.items():
        sock = socket.create_server(("127.0.0.1", 0))
        urls[name] = f"http://127.0.0.1:{sock.getsockname()[1]}/mcp"
        config = uvicorn.Config(app, log_level="warning", ws="none", proxy_headers=False, timeout_graceful_shutdown=1)
        one = uvicorn.Server(config)
        serving.append((one, asyncio.create_task(one.serve([sock]))))
    while not all(one.started or task.done() for one, task in serving):
        await asyncio.sleep(LOOK_S)
    print(json.dumps(urls), flush=True)  # noqa: T201 - what it is run for
    await asyncio.gather(*(task for _, task in serving))


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
