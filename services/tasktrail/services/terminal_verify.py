"""`tasktrail verify`, over Typer.

Guarantees: as `terminal.py`: a foreseen failure is one line on standard error and an exit code; with `--json`, standard
output holds the document and nothing else. Nothing is written but the record that a running service lent a copy of its
audit store. `register` adds the command to an app.

    register(app)
"""

import asyncio
import os
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from tasktrail.projections.tlog.findings import Finding, Verdict
from tasktrail.services.cli import EXIT_NOT_FOUND
from tasktrail.services.settings import load
from tasktrail.services.terminal_service import As, Case, Data, Json, print_json, say, told


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(verify)


def verify(  # noqa: PLR0913 - one for each option
    *,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", help="The log's or a witness's verifier key, or a file with it; may be repeated."),
    ] = None,
    entry_key: Annotated[
        str, typer.Option("--entry-key", help="The first key that signed entries, base64url; default as announced.")
    ] = "",
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option("--checkpoint", help="A checkpoint that was kept elsewhere; may be repeated."),
    ] = None,
    archive: Annotated[
        Path | None, typer.Option("--archive", help="Read the entries from this archive instead of the stream.")
    ] = None,
    nats: Annotated[
        str | None, typer.Option("--nats", help="External NATS servers; default the configured ones.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the signatures of entries.")] = False,
    case: Case = "",
    as_file: As = None,
    as_json: Json = False,
    data: Data = None,
) -> None:
    """Hold the trail against its log, and the projections against the trail; exit code 1 when something is wrong."""
    with told():
        settings = load(os.environ, data=data, nats_url=nats)
        verifying = import_module("tasktrail.services.verifying")
        order = verifying.Order(
            data=settings.data,
            nats_url=settings.nats_url or "",
            nats_credentials=settings.nats_credentials,
            keys=tuple(key or ()),
            entry_key=entry_key,
            checkpoints=tuple(checkpoint or ()),
            archive=archive,
            quick=quick,
            token_file=as_file,
            case=case,
        )
        with _progress() as report:
            verdict: Verdict = asyncio.run(verifying.verify(order, report))
    if as_json:
        print_json(verdict)
    else:
        _tell(verdict)
    if not verdict.ok:
        raise typer.Exit(EXIT_NOT_FOUND)


@contextmanager
def _progress() -> Generator["_Report"]:
    """Bars on standard error, where that is a terminal; one a phase."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield _Report(bars)


class _Report:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, int] = {}

    def __call__(self, doing: str, done: int, of: int) -> None:
        """Show how far a phase has come."""
        if doing not in self._tasks:
            self._tasks[doing] = self._bars.add_task(doing, total=of or None)
        self._bars.update(self._bars.tasks[self._tasks[doing]].id, completed=done)


def _tell(verdict: Verdict) -> None:
    for finding in verdict.findings:
        say(_line(finding))
    if verdict.found > len(verdict.findings):
        say(f"and {verdict.found - len(verdict.findings)} more")
    for one in verdict.not_checked:
        say(f"not checked: {one}")
    say(f"key: {verdict.key}")
    say(f"checkpoint: {verdict.size} entries, root {verdict.root[:16] or 'none'} ({verdict.checkpoint or 'none'})")
    if verdict.ok:
        many = "checkpoint" if verdict.checkpoints == 1 else "checkpoints"
        say(f"VERIFIED: {verdict.entries} entries, held against {verdict.checkpoints} {many}")
        return
    first = verdict.findings[0]
    where = "" if first.index is None else f", first at index {first.index} (sequence {first.stream_seq})"
    say(f"NOT VERIFIED: {verdict.found} found in {verdict.entries} entries: {first.kind}{where}")


def _line(one: Finding) -> str:
    where = "" if one.index is None else f" index {one.index} (sequence {one.stream_seq})"
    task = f" task {one.task_ref}" if one.task_ref else ""
    return f"{one.kind}{where}{task}: {one.what}"
