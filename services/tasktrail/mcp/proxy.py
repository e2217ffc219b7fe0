"""A proxy before an MCP server that nobody will change: its slow tools become tasks.

Guarantees: everything else of MCP passes as it is, in both directions, by FastMCP's proxy; a tool that is named runs as
a task for clients that can take one, and as ever for the others; what the upstream server asks meanwhile (elicitation,
sampling) are the task's own messages. A caller is who the bearer token says, which tasktrail verifies and the upstream
server gets as well; without a token callers are anonymous. Needs fastmcp, and an upstream server that can be reached.

    proxy(Upstream(url="http://127.0.0.1:9000/mcp"), "nats://…", {"slow_*": "optional"}, server="reports").http_app()
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

import msgspec
from fastmcp.client.logging import LogMessage
from fastmcp.client.transports import StdioTransport
from fastmcp.server.completions import CompletionHandler, CompletionReference
from fastmcp.server.dependencies import get_http_headers
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.server.providers.proxy import FastMCPProxy, ProxyClient
from fastmcp.tools.base import Tool as FastMCPTool
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, Completion, CompletionArgument, CompletionContext, ListToolsRequest

from tasktrail.events.errors import InvalidRequest
from tasktrail.mcp.fastmcp import TasktrailTasks, in_task
from tasktrail.mcp.link import connected
from tasktrail.mcp.serving import Serving, ToolPolicy, policy_of, warn_of_unknown
from tasktrail.services.messages import Caller

_log = logging.getLogger(__name__)

_BEARER = "bearer "

Connect = Callable[[], ProxyClient[Any]]


class Upstream(NamedTuple):
    """Where the server is: a URL of streamable HTTP, or a command that speaks stdio."""

    url: str = ""
    command: Sequence[str] = ()

    @property
    def name(self) -> str:
        """What it is called on the trail unless said otherwise."""
        return urlsplit(self.url).hostname or "" if self.url else Path(self.command[0]).name


class _Forwarding(Serving):
    """Callers by their own tokens: this server checks none."""

    def caller(self) -> Caller:
        """Who the request's bearer token names, for tasktrail to verify."""
        said = get_http_headers(include={"authorization"}).get("authorization", "")
        return Caller(token=said[len(_BEARER) :]) if said.lower().startswith(_BEARER) else Caller()


class ProxyTasks(TasktrailTasks):
    """The extension of a proxy: only the tools that are named become tasks."""

    _serving = _Forwarding
    _have: frozenset[str] | None = None

    async def _offered(self) -> list[FastMCPTool]:
        """None: the server behind need not be there yet, and what one process asked of it no other can go on with."""
        return []

    def listed(self, tools: Sequence[FastMCPTool]) -> None:
        """The server behind has these tools now: that one was changed is told with the lease."""
        have = frozenset(tool.name for tool in tools)
        if have != self._have:
            self._have = have
            warn_of_unknown(self._tools, have)
        self._note(self._able(tools))


class _Listening(Middleware):
    """Hears what the server behind says of its tools."""

    def __init__(self, tasks: ProxyTasks) -> None:
        self._tasks = tasks

    async def on_list_tools(
        self,
        context: MiddlewareContext[ListToolsRequest],
        call_next: CallNext[ListToolsRequest, Sequence[FastMCPTool]],
    ) -> Sequence[FastMCPTool]:
        """`tools/list` of a client."""
        tools = await call_next(context)
        self._tasks.listed(tools)
        return tools


def proxy(
    upstream: Upstream, target: str | Path | None, tools: Mapping[str, str | ToolPolicy], *, server: str = ""
) -> FastMCPProxy:
    """The proxy as a FastMCP server.

    `target` is the running tasktrail, as `TasktrailTasks.connect` takes it; `tools` say which tools become tasks, by
    name or pattern (`*`); `server` is the name on the trail.

    Raises:
        InvalidRequest: one of these is not of that form.
    """
    if bool(upstream.url) == bool(upstream.command):
        message = "name one upstream server: --upstream URL, or a command after --"
        raise InvalidRequest(message)
    if upstream.url and urlsplit(upstream.url).scheme not in {"http", "https"}:
        message = f"{upstream.url!r:.80} is no http or https URL"
        raise InvalidRequest(message)
    tasks = ProxyTasks(connected(target, server or upstream.name), tools)
    connect = _connecting(upstream)
    made = FastMCPProxy(
        client_factory=connect,
        name=server or upstream.name,
        identity="upstream",
        provider_error_strategy="raise",
        dereference_schemas=False,
    )
    made.add_completion_handler(_completing(connect))
    made.add_middleware(_Listening(tasks))
    made.add_extension(tasks)
    return made


def policies(said: Mapping[str, tuple[str, bool]]) -> dict[str, ToolPolicy]:
    """Tools with their support and whether they ask before there is a task.

    Raises:
        InvalidRequest: a support is neither optional nor required.
    """
    return {
        name: msgspec.structs.replace(policy_of(name, support), asks_first=first)
        for name, (support, first) in said.items()
    }


async def _nobody(*_: object) -> NoReturn:
    """A shared process asks for nobody in particular: its question is refused, and could be anybody's."""
    message = "no client can be asked outside of a task"
    raise MCPError(INTERNAL_ERROR, message)


async def _log_of_process(message: LogMessage) -> None:
    """A shared process logs for nobody in particular."""
    _log.info("%s: %s", message.level, message.data)


def _completing(connect: Connect) -> CompletionHandler:
    """Completions as the server behind gives them."""

    async def complete(
        ref: CompletionReference, argument: CompletionArgument, context: CompletionContext | None
    ) -> Completion:
        async with connect() as client:
            said: Completion = await client.complete(ref, argument.model_dump(), context.arguments if context else None)
        return said

    return complete


def _connecting(upstream: Upstream) -> Connect:
    """How each request reaches the upstream server: at the revision of MCP that it speaks, whatever the client's is.

    A process that speaks stdio is shared by all requests but those of tasks. What it asks its client does not say for
    which call, so those of the shared one are refused, and each task has a process of its own.
    """
    if upstream.url:
        over_http: ProxyClient[Any] = ProxyClient(upstream.url, mode="auto")
        return over_http.new
    command, *arguments = upstream.command
    shared: ProxyClient[Any] = ProxyClient(
        StdioTransport(command, arguments),
        mode="auto",
        roots=[],
        sampling_handler=_nobody,
        elicitation_handler=_nobody,
        log_handler=_log_of_process,
    )

    def connect() -> ProxyClient[Any]:
        if in_task.get():
            return ProxyClient(StdioTransport(command, arguments, keep_alive=False), mode="auto")
        return shared.new()

    return connect
