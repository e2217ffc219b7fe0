"""The commands a person types, over Typer. See `cli.py` for exit codes and what goes where.

Guarantees: every failure that can be foreseen is one line that says what to do, never a traceback; nothing is imported
before the command that needs it is run, but what reading a trail needs.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Generator, Iterable
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

import tasktrail.services.terminal_archive as archive
import tasktrail.services.terminal_bundle as bundle
import tasktrail.services.terminal_operations as operations
import tasktrail.services.terminal_proxy as proxy
import tasktrail.services.terminal_query as queries
import tasktrail.services.terminal_replay as replay
import tasktrail.services.terminal_setup as setup
import tasktrail.services.terminal_sql as sql
import tasktrail.services.terminal_unseal as unseal
import tasktrail.services.terminal_verify as verify
import tasktrail.services.terminal_witness as witness
from tasktrail.events.errors import TasktrailError, Unavailable
from tasktrail.events.facts import Status
from tasktrail.projections.audit.errors import StoreBusy
from tasktrail.projections.audit.store import TaskFilter
from tasktrail.projections.audit.timeline import Step
from tasktrail.services.cli import (
    EXIT_INTERRUPTED,
    EXIT_NOT_FOUND,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    complain,
    says_version,
)
from tasktrail.services.rendering import TailView, TasksView, TimelineView, show
from tasktrail.services.settings import load
from tasktrail.services.sources import Source, open_source
from tasktrail.services.terminal_service import As, Case, Data, Json, Url, one_of

TASK_BYTES_MAX = 4_096

app = typer.Typer(
    help="Who authorised each step of an MCP task.",
    epilog="Exit codes: 0 done, 1 not found or an expectation failed, 2 wrong command, directory or installation, "
    "3 the service or store cannot answer now.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration file; default TASKTRAIL_CONFIG, else none.", show_default=False),
]


@app.callback(invoke_without_command=True)
def _start(
    *,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if show_version:
        sys.stdout.write(f"tasktrail {says_version()}\n")
        raise typer.Exit


@app.command()
def up(  # noqa: PLR0913 - one for each option
    *,
    data: Data = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default 8420, 0 takes a free one.")] = None,
    nats: Annotated[str | None, typer.Option(help="External NATS servers instead of an embedded one.")] = None,
    nats_server: Annotated[Path | None, typer.Option(help="Your own nats-server for the embedded broker.")] = None,
    config: Config = None,
    demo: Annotated[bool, typer.Option("--demo", help="Also run a demo MCP server with traffic.")] = False,
) -> None:
    """Run the service until Ctrl-C."""
    if demo:
        import_module("mcp")  # the demo runs in a process of its own, whose words come too late
    with _told():
        settings = load(os.environ, config, data=data, host=host, port=port, nats_url=nats, nats_server=nats_server)
        raise typer.Exit(import_module("tasktrail.services.up").run(settings, demo=demo))


@app.command()
def init(
    *,
    nats: Annotated[str, typer.Option(help="NATS servers, comma-separated.")],
    replicas: Annotated[int | None, typer.Option(help="Copies of each stream; 3 on a cluster of three.")] = None,
    data: Data = None,
    config: Config = None,
) -> None:
    """Make the streams on an external NATS server, and the keys. Safe to repeat."""
    with _told():
        settings = load(os.environ, config, data=data, nats_url=nats, replicas=replicas)
        raise typer.Exit(import_module("tasktrail.services.up").init(settings))


@app.command()
def demo(
    *,
    data: Annotated[Path | None, typer.Option(help="Keep the trail in this directory; default: keep nothing.")] = None,
    as_json: Json = False,
) -> None:
    """Play the demonstration and check it against its trail."""
    import_module("mcp")  # the demo would call its absence an expectation that did not hold
    with _told():
        raise typer.Exit(import_module("tasktrail.demo.story").run(data, json=as_json))


@app.command()
def timeline(  # noqa: PLR0913 - one for each option
    task: Annotated[str, typer.Argument(help="A task's reference or id; - reads it from standard input.")],
    *,
    ids: Annotated[bool, typer.Option("--ids", help="With each entry's id, for `policy explain`.")] = False,
    as_json: Json = False,
    case: Case = "",
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Show one task's history: who authorised each step."""
    asked = _from_standard_input() if task == "-" else task
    with _told(), _source(data, url, as_file, case) as source:
        found = source.timeline(asked)
        _note(source)
        if found is None:
            complain("no task on this trail has this reference or id")
            raise typer.Exit(EXIT_NOT_FOUND)
        if asked == task and found.task_ref != task:
            complain(
                "a task id opens its task and is now in your shell's history; give it on standard input: timeline -"
            )
        if as_json:
            _print_json(found)
        else:
            show(_console(), TimelineView(found, now=datetime.now(UTC), ids=ids))


@app.command()
def tasks(  # noqa: PLR0913 - one for each filter
    *,
    status: Annotated[
        list[str] | None, typer.Option(help=f"Only tasks in this status: {', '.join(Status)}; may be repeated.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    server: Annotated[str | None, typer.Option(help="Only of this MCP server.")] = None,
    tool: Annotated[str | None, typer.Option(help="Only of this tool.")] = None,
    iss: Annotated[str | None, typer.Option(help="Only of subjects of this issuer.")] = None,
    sub: Annotated[str | None, typer.Option(help="Only of this subject.")] = None,
    client_id: Annotated[str | None, typer.Option(help="Only through this OAuth client.")] = None,
    live: Annotated[
        bool | None, typer.Option("--live/--ended", help="Only those that can still change, or not.")
    ] = None,
    before: Annotated[int | None, typer.Option(min=0, help="The next page: the last task's first_seq.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000)] = 100,
    as_json: Json = False,
    case: Case = "",
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """List tasks, the newest first."""
    with _told():
        statuses = tuple(Status(one_of("--status", one, Status)) for one in status) if status else None
    wanted = TaskFilter(
        statuses=statuses,
        tenant=tenant,
        server=server,
        tool=tool,
        iss=iss,
        sub=sub,
        client_id=client_id,
        live=live,
        before=before,
    )
    with _told(), _source(data, url, as_file, case) as source:
        found = source.tasks(wanted, limit)
        _note(source)
        if as_json:
            _print_json(found)
            return
        if not found:
            complain("no task matches" if wanted != TaskFilter() else "the trail holds no task yet")
            return
        show(_console(), TasksView(found, now=datetime.now(UTC)))
        if len(found) == limit:
            complain(f"there may be more: --before {found[-1].first_seq}")


@app.command()
def tail(  # noqa: PLR0913 - one for each option
    *,
    since: Annotated[int | None, typer.Option(min=0, help="After this sequence; default: from now on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document a line.")] = False,
    case: Case = "",
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Follow what is recorded, as it is recorded, until Ctrl-C."""
    with contextlib.suppress(ValueError):  # only the main thread hears signals
        signal.signal(signal.SIGINT, _interrupted)
    with _told(), _source(data, url, as_file, case) as source:
        _follow(source.tail(since), as_json=as_json)


def _interrupted(_number: int, _frame: object) -> None:
    """End at once: an exception may be lost where Python does not let one out, and there is nothing to clean up."""
    os._exit(EXIT_INTERRUPTED)


def _follow(steps: Iterable[Step], *, as_json: bool) -> None:
    console = _console()
    for step in steps:
        if as_json:
            sys.stdout.buffer.write(msgspec.json.encode(step) + b"\n")
            sys.stdout.buffer.flush()
        else:
            show(console, TailView(step))


def _from_standard_input() -> str:
    source = sys.stdin.buffer
    said = (source.readline if source.isatty() else source.read)(TASK_BYTES_MAX + 1)
    task = said.decode("utf-8", "replace").strip()
    if not task or len(said) > TASK_BYTES_MAX or len(task.splitlines()) > 1:
        complain("standard input holds no task id or reference; give one, on one line")
        raise typer.Exit(EXIT_USAGE)
    return task


@contextlib.contextmanager
def _source(data: Path | None, url: str, as_file: Path | None, case: str) -> Generator[Source]:
    with open_source(load(os.environ, data=data).data, url, as_file, case) as source:
        yield source


def _note(source: Source) -> None:
    if source.note:
        complain(source.note)


@contextlib.contextmanager
def _told() -> Generator[None]:
    """Foreseen failures as one line and an exit code."""
    try:
        yield
    except (Unavailable, StoreBusy) as error:
        complain(error.message)
        raise typer.Exit(EXIT_UNAVAILABLE) from None
    except TasktrailError as error:
        complain(error.message)
        raise typer.Exit(EXIT_USAGE) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _console() -> Console:
    """Standard output. Colours follow NO_COLOR and FORCE_COLOR, and are left out where it is no terminal."""
    return Console(highlight=False, markup=False, emoji=False)


def _print_json(document: Any) -> None:  # noqa: ANN401 - any document
    body = msgspec.json.encode(document)
    sys.stdout.buffer.write(msgspec.json.format(body, indent=2) + b"\n")
    sys.stdout.buffer.flush()


operations.register(app)
queries.register(app)
archive.register(app)
sql.register(app)
unseal.register(app)
bundle.register(app)
setup.register(app)
verify.register(app)
replay.register(app)
witness.register(app)
proxy.register(app)
