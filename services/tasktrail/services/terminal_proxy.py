"""`tasktrail proxy`: turns slow tools of an MCP server that nobody will change into tasks. See `tasktrail.mcp.proxy`.

Guarantees: says where it listens once it answers; a foreseen failure is one line on standard error and
an exit code; what is odd about the server behind is a line there too, but stops nothing, for it need not be there yet;
ends cleanly on SIGINT and SIGTERM. Needs fastmcp. `register` adds the command to an app.

    register(app)
"""

import asyncio
import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from tasktrail.events.errors import InvalidRequest, TasktrailError
from tasktrail.services.cli import EXIT_UNAVAILABLE, EXIT_USAGE, complain

PORT = 8421
_CONNECTION_FILE = "adapter.json"
_ASKS_FIRST = "asks-first"


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(proxy)


def proxy(  # noqa: PLR0913 - one for each option
    command: Annotated[
        list[str] | None,
        typer.Argument(help="After --: the command of a server that speaks stdio.", show_default=False),
    ] = None,
    *,
    upstream: Annotated[str, typer.Option("--upstream", help="URL of a server that speaks streamable HTTP.")] = "",
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            help="Tool that becomes a task, by name or pattern (*): TOOL, TOOL=required, TOOL=optional,asks-first; may "
            "be given repeatedly.",
            show_default=False,
        ),
    ] = None,
    connect: Annotated[
        str,
        typer.Option(
            "--connect",
            help="The running tasktrail: nats:// URL or connection file; default TASKTRAIL_CONNECT, or the data's.",
        ),
    ] = "",
    server: Annotated[
        str, typer.Option("--server", help="Name on the trail; default the upstream's host or command.")
    ] = "",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes a free one.")] = PORT,
) -> None:
    """Forward MCP to a server, and turn the tools that are named into tasks, until Ctrl-C."""
    engine = import_module("tasktrail.mcp.proxy")
    try:
        behind = engine.Upstream(url=upstream, command=tuple(command or ()))
        tools = engine.policies(_supports(task or []))
        made = engine.proxy(behind, _target(connect), tools, server=server)
        served = import_module("tasktrail.services.proxy_server")
        seen = served.Behind(_shown(upstream, command or []), made.client_factory, spawned=not upstream)
        asyncio.run(served.serve(made.http_app(), host, port, seen))
    except InvalidRequest as error:
        complain(error.message)
        raise typer.Exit(EXIT_USAGE) from None
    except TasktrailError as error:
        complain(error.message)
        raise typer.Exit(EXIT_UNAVAILABLE) from None


def _shown(upstream: str, command: list[str]) -> str:
    """The server behind, for people: a URL's host and port, for the rest of it may be secret; or a command.

    Raises:
        InvalidRequest: there is no such command.
    """
    if upstream:
        return urlsplit(upstream).netloc.rpartition("@")[2]
    if shutil.which(command[0]) is None:
        message = f"{command[0]!r:.80} is no command that can be run here: install it, or give its path"
        raise InvalidRequest(message)
    return Path(command[0]).name


def _supports(said: list[str]) -> dict[str, tuple[str, bool]]:
    """Which tools become tasks, how, and whether they ask before there is one."""
    if not said:
        message = "no tool becomes a task: name some, --task TOOL or --task '*'"
        raise InvalidRequest(message)
    found: dict[str, tuple[str, bool]] = {}
    for one in said:
        tool, _, words = one.partition("=")
        support, _, first = words.partition(",")
        if not tool or first not in {"", _ASKS_FIRST}:
            message = f"--task {one!r:.80}: say TOOL, TOOL=optional, TOOL=required, or with ,{_ASKS_FIRST} after that"
            raise InvalidRequest(message)
        found[tool] = (support or "optional", bool(first))
    return found


def _target(connect: str) -> str:
    """What is said, the environment, or what a service running on the data directory wrote."""
    data = Path(os.environ.get("TASKTRAIL_DATA") or ".tasktrail")
    return connect or os.environ.get("TASKTRAIL_CONNECT", "") or str(data / _CONNECTION_FILE)
