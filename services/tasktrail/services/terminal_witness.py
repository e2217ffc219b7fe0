"""`tasktrail witness`: cosigns the checkpoints of others' logs. See `witness.py`.

Guarantees: prints its verifier key and address before it takes requests; a foreseen failure is one line on standard
error and an exit code; ends cleanly on SIGINT and SIGTERM. `register` adds the command to an app.

    register(app)
"""

import asyncio
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from tasktrail.events.errors import TasktrailError
from tasktrail.services.cli import EXIT_USAGE, complain

PORT = 8430


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(witness)


def witness(
    *,
    data: Annotated[Path, typer.Option("--data", help="The witness's own directory; made at its first start.")],
    log: Annotated[list[str], typer.Option("--log", help="Verifier key of a log to cosign; may be given repeatedly.")],
    name: Annotated[str, typer.Option("--name", help="Its name, at the first start; default one from its key.")] = "",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes a free one.")] = PORT,
) -> None:
    """Cosign others' checkpoints as long as each extends the one before, until Ctrl-C."""
    try:
        asyncio.run(import_module("tasktrail.services.witness_server").serve(data, log, name, host, port))
    except TasktrailError as error:
        complain(error.message)
        raise typer.Exit(EXIT_USAGE) from None
    except OSError as error:
        complain(f"{data}: {error.strerror or error}")
        raise typer.Exit(EXIT_USAGE) from None
