"""The commands for whoever runs tasktrail: `config show`, `config check`, `doctor` and `asyncapi`, over Typer.

Guarantees: as `terminal.py`: a foreseen failure is one line on standard error and an exit code; with `--json`, standard
output holds the document and nothing else. Nothing is started, written or changed. `register` adds them to an app.

    register(app)
"""

import contextlib
import os
import sys
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from tasktrail.events.errors import TasktrailError
from tasktrail.services.cli import EXIT_NOT_FOUND, EXIT_USAGE, complain, says_version
from tasktrail.services.settings import check as problems
from tasktrail.services.settings import effective

Config = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration file; default TASKTRAIL_CONFIG, else none.", show_default=False),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Data directory; default TASKTRAIL_DATA or .tasktrail.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the document and nothing else.")]

config = typer.Typer(help="Show the effective configuration, or check a file.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.add_typer(config, name="config")
    app.command()(doctor)
    app.command()(asyncapi)


def asyncapi() -> None:
    """Print what goes over NATS as an AsyncAPI 3.0 document: every command with its answer, and the signals."""
    document = import_module("tasktrail.services.asyncapi").document
    _print_json(document(says_version()))


@config.command()
def show(*, config: Config = None, as_json: Json = False) -> None:
    """Print what holds, and where each value comes from; without secrets."""
    with _told():
        found = effective(os.environ, config)
        shown = import_module("tasktrail.services.configuration_shown")
        if as_json:
            _print_json(shown.configuration(found))
        else:
            sys.stdout.write(shown.text(found))


@config.command()
def check(file: Annotated[Path, typer.Argument(help="The configuration file.", show_default=False)]) -> None:
    """Print every problem of a configuration file; the environment does not count."""
    with _told():
        found = problems(file)
    for problem in found:
        sys.stdout.write(problem + "\n")
    if found:
        raise typer.Exit(EXIT_NOT_FOUND)
    sys.stdout.write(f"{file}: no problem found\n")


def doctor(
    *,
    config: Config = None,
    data: Data = None,
    nats: Annotated[
        str | None, typer.Option("--nats", help="External NATS servers; default the configured ones.")
    ] = None,
    monitor: Annotated[
        str, typer.Option("--monitor", help="A NATS server's monitoring address: http://host:8222.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Say what is unsafe about this deployment, and the remedy; changes nothing."""
    with _told():
        found = effective(os.environ, config, data=data, nats_url=nats)
        doctoring = import_module("tasktrail.services.doctor")
        report = doctoring.run(found, monitor=monitor)
        if as_json:
            _print_json(report)
        else:
            sys.stdout.write(doctoring.text(report))
        if report.unsafe:
            raise typer.Exit(EXIT_NOT_FOUND)


@contextlib.contextmanager
def _told() -> Generator[None]:
    try:
        yield
    except TasktrailError as error:
        complain(error.message)
        raise typer.Exit(EXIT_USAGE) from None


def _print_json(document: Any) -> None:  # noqa: ANN401 - any document
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    sys.stdout.buffer.flush()
