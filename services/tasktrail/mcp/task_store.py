"""Tasks for the official MCP Python SDK v1 (`mcp.types.Task`, protocol 2025-11-25).

Guarantees: a task's id is returned only when every replica resolves it, and opens it only for the caller that made it,
whatever session or connection that caller comes by; whoever is turned away is on the trail. Tools that call `run_task`
work unchanged; plain tools, FastMCP's too, become tasks by being named in `tools`. Needs mcp >= 1.28, < 2, and asyncio;
connected, a running tasktrail reachable over NATS; embedded, the extra `service`.

    tasks = TasktrailTasks.connect("nats://127.0.0.1:4222", tools={"report": "optional"})
    app = tasks.around(mcp.streamable_http_app(), mcp)   # mcp: FastMCP, or a low-level Server
"""

import asyncio
import contextlib
import traceback
import warnings
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from tasktrail.mcp.extras import Needs

with Needs(__name__, "the official MCP SDK v1", extra="mcp-v1"):
    import mcp.types as mcp
    from mcp.server.fastmcp import FastMCP
    from mcp.server.lowlevel.server import Server

from tasktrail.events.errors import InvalidRequest, TasktrailError
from tasktrail.mcp.leasing import Leasing
from tasktrail.mcp.link import EmbeddedLink, Link, connected
from tasktrail.mcp.recording import App, Receive, Recording, Scope, Send
from tasktrail.mcp.v1.door import Door
from tasktrail.mcp.v1.handles import Handles, Serve
from tasktrail.mcp.v1.notices import Notices
from tasktrail.mcp.v1.requests import Context
from tasktrail.mcp.v1.results import Results
from tasktrail.mcp.v1.tools import Tools
from tasktrail.mcp.v1.work import Work
from tasktrail.services.ending import end
from tasktrail.services.messages import Signal
from tasktrail.services.wire_2025 import WIRE

__all__ = ["TasktrailTasks"]

AnyServer: TypeAlias = Server[Any, Any] | FastMCP[Any]


class TasktrailTasks:
    """Tasks of one MCP server."""

    def __init__(
        self,
        link: Link,
        tools: Mapping[str, str] | None = None,
        *,
        forward_tokens: bool = False,
        require_tasks: bool = False,
    ) -> None:
        self._link, self._forward = link, forward_tokens
        self._server: Server[Any, Any] | None = None
        self._named = tuple(tools or ())
        door = Door(link, forward=forward_tokens)
        self._notices = Notices(link)
        self._results = Results(link, forward=forward_tokens, find=self._work_of)
        self._tools = Tools(
            link,
            door,
            tools or {},
            attend=self._results.attend,
            made=self._notices.watch,
            context=self._context,
            require_tasks=require_tasks,
        )
        self._handles = Handles(link, door, self._results, self._context)

    @classmethod
    def connect(
        cls,
        target: str | Path | None = None,
        *,
        server: str = "",
        tools: Mapping[str, str] | None = None,
        forward_tokens: bool = False,
        require_tasks: bool = False,
    ) -> "TasktrailTasks":
        """Connect to a running tasktrail.

        `target` is a `nats://` URL (several with commas) or the `adapter.json` that `tasktrail up` wrote; default: the
        environment's TASKTRAIL_CONNECT. `server` names this MCP server on the trail; default: its own name. `tools`
        names plain tools that are run as tasks, `optional` or `required`; tools that call `run_task` declare their own
        `execution.taskSupport`. `forward_tokens`: give tasktrail each caller's bearer token to verify for itself,
        instead of this server's word on who calls (docs/identity.md). `require_tasks`: a `tools/call` that is none is
        answered -32600, save for tools that cannot be tasks.

        Raises:
            InvalidRequest: the target or a tool's support is not of this form.
        """
        link = connected(target, server, by="TasktrailTasks")
        return cls(link, tools, forward_tokens=forward_tokens, require_tasks=require_tasks)

    @classmethod
    def embed(
        cls,
        data: str | Path = ".tasktrail",
        *,
        server: str = "",
        tools: Mapping[str, str] | None = None,
        forward_tokens: bool = False,
        require_tasks: bool = False,
    ) -> "TasktrailTasks":
        """Run a whole tasktrail in this process, its data in the directory `data`. The others: as `connect`."""
        link = EmbeddedLink(Path(data), server)
        return cls(link, tools, forward_tokens=forward_tokens, require_tasks=require_tasks)

    def around(self, app: App, server: AnyServer) -> App:
        """The server's ASGI application, with tasks. Requests that it turns away itself (401, 403) are on the trail.

        Where tasks cannot be served, the ASGI server is told why as its lifespan begins, and does not start.
        """
        recording = Recording(app, self._link, forward=self._forward, wire=WIRE)

        async def served(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan":
                await recording(scope, receive, send)
                return
            async with contextlib.AsyncExitStack() as stack:
                try:
                    await stack.enter_async_context(self.serving(server))
                except Exception as error:
                    await _not_started(receive, send, error)
                    if isinstance(error, TasktrailError):
                        return  # its message is all that there is to say
                    raise
                await app(scope, receive, send)

        return served

    @contextlib.asynccontextmanager
    async def serving(self, server: AnyServer) -> AsyncGenerator[None]:
        """Serve tasks on this server while the block lasts: around `server.run(…)`, for what is no ASGI application.

        Once for a server's whole life, not for each session. Work that runs at the end ends as failed, on the trail.
        """
        low = server._mcp_server if isinstance(server, FastMCP) else server  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # FastMCP has no public way to the server that it is made of
        if isinstance(server, FastMCP):
            self._see_async(server)
        listing, calling = _tools_of(low)
        self._link.server = self._link.server or low.name
        await self._link.start()
        stop = self._link.listen(self._signalled)
        self._enable(low, listing, calling)
        self._notices.start()
        renewing = asyncio.create_task(Leasing(self._link, self._tools.worker).renew_for_ever(self._tools.defined))
        try:
            yield
        finally:
            stop()
            await self._tools.lose()
            await end(renewing)
            await self._notices.stop()
            await self._results.stop()
            await self._link.stop()

    def _see_async(self, server: FastMCP[Any]) -> None:
        """See that no tool that runs as a task is a plain function: the SDK would run it in the way of everything else.

        Raises:
            InvalidRequest: one is.
        """
        for name in self._named:
            tool = server._tool_manager.get_tool(name)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # FastMCP has no public way to a tool's function
            if tool is not None and not tool.is_async:
                message = f"tool {name!r} is no `async def`: SDK v1 would run it on the event loop, in everybody's way"
                raise InvalidRequest(message)

    def _enable(self, server: Server[Any, Any], listing: Serve, calling: Serve) -> None:
        """Take the place of what the SDK itself has for tasks, and stand before its tools."""
        self._server = server
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that v2 has no such tasks is why this module exists
            experimental = server.experimental  # pyright: ignore[reportDeprecated] # see above
        experimental._task_support = self._tools.support  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # `enable_tasks` takes a store and a queue, but ties work to sessions
        server.request_handlers |= {
            mcp.ListToolsRequest: self._tools.listing(listing),
            mcp.CallToolRequest: self._tools.calling(calling),
            **self._handles.served(),
        }

    def _work_of(self, ref: str) -> Work | None:
        return self._tools.work_of(ref)

    def _context(self) -> Context:
        """The request at hand."""
        if self._server is None:
            message = "tasks are served within `around` or `serving` only"
            raise RuntimeError(message)
        return self._server.request_context

    def _signalled(self, ref: str, signal: Signal) -> None:
        work = self._work_of(ref)
        if work is not None:
            work.signalled(signal)
        self._results.signalled(ref, signal)
        self._notices.signalled(ref, signal)


def _tools_of(server: Server[Any, Any]) -> tuple[Serve, Serve]:
    """How the server itself lists its tools and calls them.

    Raises:
        InvalidRequest: it has none.
    """
    listing = server.request_handlers.get(mcp.ListToolsRequest)
    calling = server.request_handlers.get(mcp.CallToolRequest)
    if listing is None or calling is None:
        message = f"the MCP server {server.name!r} has no tools; register them before it is served"
        raise InvalidRequest(message)
    return listing, calling


async def _not_started(receive: Receive, send: Send, error: Exception) -> None:
    """Answer the lifespan's beginning with why it fails. Only raised, uvicorn takes it for "no lifespan" and serves."""
    ours = f"tasktrail: {error.message}" if isinstance(error, TasktrailError) else ""
    why = ours or "".join(traceback.format_exception(error))
    await receive()
    await send({"type": "lifespan.startup.failed", "message": why})
