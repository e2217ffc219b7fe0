"""`tasktrail archive`: the trail as Parquet files, over Typer.

Guarantees: as `terminal.py`; a running service is told first, and records who takes what; without one the reading is on
no record, and that is said. Nothing that exists is overwritten. `register` adds it to an app.

    tasktrail archive --out archive --case INC-7
"""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tasktrail.events.errors import InvalidRequest
from tasktrail.services import responder
from tasktrail.services.cli import complain
from tasktrail.services.settings import Settings, load
from tasktrail.services.sources import NOT_RECORDED, open_service
from tasktrail.services.statements import Archived, ArchiveOrder
from tasktrail.services.terminal_service import As, Case, Data, Json, Url, ordered, print_json, say, told


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(archive)


def archive(  # noqa: PLR0913 - one for each option
    *,
    out: Annotated[Path, typer.Option(help="Folder of the archive; one that is there is gone on with.")],
    first: Annotated[int, typer.Option("--from", min=1, help="From this stream sequence.")] = 1,
    last: Annotated[int, typer.Option("--to", min=0, help="To this one; default: to the end.")] = 0,
    nats: Annotated[str | None, typer.Option(help="External NATS servers that hold the trail.")] = None,
    as_json: Json = False,
    case: Case = "",
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Write the trail's messages as Parquet files of 100,000, with a manifest; recorded by a running service."""
    with told():
        settings = load(os.environ, data=data, nats_url=nats)
        order = ordered(ArchiveOrder, first=first, last=last)
        if last and last < first:
            message = f"nothing can be in this archive: --to {last} is before --from {first}"
            raise InvalidRequest(message)
        if out.exists() and not out.is_dir():
            message = f"{out} is a file, and an archive is a folder of several; name a folder with --out"
            raise InvalidRequest(message)
        if url or responder.find(settings.data) is not None:
            with open_service(settings.data, url, as_file, case) as service:
                last = service.order("/archives", order, Archived).last
        else:
            complain(NOT_RECORDED.format(data=settings.data).replace("its store", "its stream"))
        _write(settings, out, first, last, as_json=as_json)


def _write(settings: Settings, out: Path, first: int, last: int, *, as_json: bool) -> None:
    from tasktrail.services import archive as archives  # noqa: PLC0415 - the broker's side; half a second
    from tasktrail.services.trail_reading import open_trail  # noqa: PLC0415 - as above

    columns = (TextColumn("archiving"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())

    async def written() -> "archives.Manifest":
        credentials = settings.nats_credentials
        screen = Console(stderr=True)
        with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
            bar = progress.add_task("archiving", total=None)
            async with open_trail(settings.data, nats_url=settings.nats_url, nats_credentials=credentials) as trail:
                return await archives.write(
                    trail, out, first, last, progress=lambda at, end: progress.update(bar, completed=at, total=end)
                )

    made = asyncio.run(written())
    if as_json:
        print_json(made)
        return
    messages = sum(one.messages for one in made.segments)
    end = made.segments[-1].last if made.segments else 0
    say(f"{out} holds {messages} messages up to sequence {end}, in {len(made.segments)} files")
