"""`tasktrail replay rebuild | compare | play`, over Typer. See `replaying.py`.

Guarantees: as `terminal.py`: a foreseen failure is one line on standard error and an exit code; with `--json`, standard
output holds documents and nothing else; progress is shown on a terminal only. A running service records who reads what
before anything is read; without one the reading is on no record, and that is said. `register` adds them to an app.

    register(app)
"""

import asyncio
import contextlib
import math
import os
import sys
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from tasktrail.events.errors import InvalidRequest
from tasktrail.events.subjects import is_task_ref
from tasktrail.projections.audit.timeline import Step, StepKind
from tasktrail.projections.replay import Difference, Pace, Paced, Point, point, speed
from tasktrail.services import replaying, responder
from tasktrail.services.cli import EXIT_NOT_FOUND, complain
from tasktrail.services.keyring import Keyring, KeyringError
from tasktrail.services.operators import case_of
from tasktrail.services.rendering import TailView, show
from tasktrail.services.replay_comparing import Comparison, audit_file
from tasktrail.services.replay_comparing import compare as compared
from tasktrail.services.replaying import Source, Told
from tasktrail.services.settings import Settings, load
from tasktrail.services.sources import NOT_RECORDED, open_service
from tasktrail.services.statements import Replayable, ReplayOrder
from tasktrail.services.terminal_service import (
    As,
    Case,
    Data,
    Json,
    Url,
    console,
    ordered,
    print_json,
    say,
    task_of,
    told,
)
from tasktrail.services.trail_reading import TrailReader, open_trail
from tasktrail.services.wording import lasted

T = TypeVar("T")
Reading: TypeAlias = contextlib.AbstractAsyncContextManager[Source]
replay = typer.Typer(
    help="Rebuild projections from the trail, compare the live ones with it, or watch it again.", no_args_is_help=True
)

Nats = Annotated[str | None, typer.Option("--nats", help="External NATS servers; default the configured ones.")]
From = Annotated[
    str, typer.Option("--from", help="From this sequence or time (2026-11-22T15:04:05Z) on.", show_default=False)
]
To = Annotated[str, typer.Option("--to", help="Up to this sequence or time.", show_default=False)]
Which = Literal["current", "audit", "tlog", "all"]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.add_typer(replay, name="replay")


@replay.command()
def rebuild(  # noqa: PLR0913 - one for each option
    *,
    into: Annotated[Path, typer.Option("--into", help="A directory that is not there yet, or is empty.")],
    projection: Annotated[Which, typer.Option("--projection", help="Only this one.")] = "all",
    to: To = "",
    archive: Annotated[
        Path | None, typer.Option("--archive", help="From this Parquet archive instead.", show_default=False)
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="From this evidence bundle instead.", show_default=False)
    ] = None,
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    nats: Nats = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Build projections from the trail alone, into a fresh place; a running service records it."""
    with told():
        end = _point(to)
        if archive and bundle:
            message = "give --archive or --bundle, not both"
            raise InvalidRequest(message)
        kept = replaying.ArchiveSource(archive) if archive else replaying.BundleSource(bundle) if bundle else None
        for left in replaying.unfinished(into):
            complain(f"a rebuild that was killed left {left}; remove it when none is under way")
        settings = _settings(data, nats)
        if kept is None:
            order = ordered(ReplayOrder, doing="rebuild", end=to, projection="" if projection == "all" else projection)
            recorded = _recorded(settings, order, url, as_file, case)
            reading: Reading = _source(settings, recorded.last if recorded else None)
        else:
            complain(f"read from {kept.what}: this reading is not recorded on the trail")
            reading = contextlib.nullcontext(kept)
        with _progress("replayed") as progress:
            done = _run(_rebuilt(reading, into, projection, end, progress))
        if as_json:
            print_json(done)
        else:
            _say_replayed(done, into)


async def _rebuilt(
    reading: Reading, into: Path, projection: Which, end: Point | None, progress: Told
) -> replaying.Replayed:
    async with reading as source:
        if projection != "all":
            wanted: tuple[str, ...] = (projection,)
        else:
            wanted = replaying.PROJECTIONS[:2] if source.partial else replaying.PROJECTIONS
        if source.partial:
            complain(
                f"{source.what} holds parts of a trail: no tree is built of it, and what it lacks counts as missing"
            )
        return await replaying.rebuild(source, into, projections=wanted, end=end, told=progress)


def _say_replayed(done: replaying.Replayed, into: Path) -> None:
    said = {
        "into": into,
        "from": done.source,
        "entries": f"{done.messages}, sequences {done.first_seq} to {done.last_seq}",
        "tasks": done.tasks,
        "left out": done.left_out or None,
        "states": done.states_sha256,
        "rows": done.rows_sha256,
        "tree": done.tree_root and f"{done.tree_root} of {done.tree_size}",
    }
    for name, value in said.items():
        if value is not None:
            say(f"{name:<8} {value}")


@replay.command("compare")
def compare_live(
    *,
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    nats: Nats = None,
    as_file: As = None,
) -> None:
    """Compare the live projections with the trail and name every difference. Exit code 1 when there is one."""
    with told():
        settings = _settings(data, nats)
        if responder.find(settings.data) is None:
            complain(_unrecorded(settings.data))
        with audit_file(settings.data, as_file, case) as audit, _progress("compared") as progress:
            found = _run(_compared(settings, audit, progress))
        if as_json:
            print_json(found)
        else:
            _say_compared(found)
        for part in found.parts:
            if part.not_compared:
                complain(f"{part.what} was not compared: {part.not_compared}")
        if not found.equal:
            raise typer.Exit(EXIT_NOT_FOUND)


async def _compared(settings: Settings, audit: Path | str, progress: Told) -> Comparison:
    async with _trail(settings) as trail:
        return await compared(trail, audit, progress)


def _say_compared(found: Comparison) -> None:
    for part in found.parts:
        for one in part.differences:
            say(f"{part.what:<8} DIFFERS {_where(one)}")
            say(f"{'':8}    live     {one.live or 'nothing'}")
            say(f"{'':8}    replayed {one.replayed or 'nothing'}")
        if part.more:
            say(f"{part.what:<8} there are more differences")
        if not part.not_compared:
            counted = "no difference" if not part.differences else f"{len(part.differences)} differences"
            unit = "tasks" if part.what == "current" else "entries"
            say(f"{part.what:<8} {counted}, {part.compared} {unit}, up to {part.position} of {found.trail_seq}")


def _where(one: Difference) -> str:
    place = f"#{one.stream_seq}" if one.stream_seq else ""
    return " ".join(filter(None, (one.where, one.task_ref, place, one.field)))


@replay.command()
def play(  # noqa: PLR0913 - one for each option
    *,
    task: Annotated[
        str, typer.Option("--task", help="Only this task's: its reference or id; - reads it from standard input.")
    ] = "",
    begin: From = "",
    to: To = "",
    speed_text: Annotated[
        str, typer.Option("--speed", metavar="SPEED", help="As many times faster, 10x, or max; default 1x.")
    ] = "",
    step: Annotated[bool, typer.Option("--step", help="Wait for Enter before each step.")] = False,
    case: Case = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document a line; no pauses.")] = False,
    data: Data = None,
    nats: Nats = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Watch the trail again as it was recorded, at its pace or faster; a running service records who does."""
    with told():
        times = speed(speed_text) if speed_text else math.inf if as_json or step else 1.0
        if step and not sys.stdin.isatty():
            message = "--step waits for Enter, and standard input is no terminal"
            raise InvalidRequest(message)
        asked = task_of(task) if task else ""
        settings = _settings(data, nats)
        first, last = _range(begin, to)
        player = _Player(times, step=step, as_json=as_json)
        order = ordered(ReplayOrder, doing="play", task=asked, begin=begin, end=to)
        recorded = _recorded(settings, order, url, as_file, case)
        reading = _source(settings, recorded.last if recorded else None)
        if asked:
            refs = [recorded.task_ref] if recorded else _references(settings.data, asked)
            found = _run(_play_task(reading, refs, first, last, player))
        else:
            found = _run(_play(reading, first, last, player))
        if asked and found is None:
            complain("no task on this trail has this reference or id")
            raise typer.Exit(EXIT_NOT_FOUND)
        if asked == task and found not in {None, task}:
            complain("a task id opens its task and is now in your shell's history; give it on standard input: --task -")
        complain(f"{player.steps} steps")


async def _play(reading: Reading, first: Point | None, last: Point | None, player: "_Player") -> None:
    with contextlib.ExitStack() as before:
        progress = before.enter_context(_progress("read"))
        async with (
            reading as source,
            aclosing(replaying.played(source, begin=first, end=last, told=progress)) as batches,
        ):
            async for steps in batches:
                before.close()
                await player.show(steps)


async def _play_task(
    reading: Reading, refs: Sequence[str], first: Point | None, last: Point | None, player: "_Player"
) -> str | None:
    """The reference that was played; None when nothing was ever recorded under any."""
    with _progress("read") as progress:
        async with reading as source:
            ref, steps = await replaying.played_of(source, refs, begin=first, end=last, told=progress)
    await player.show(steps)
    return ref or None


def _references(data: Path, task: str) -> list[str]:
    """What a text may stand for: a reference, or an id, which only the keys tell."""
    refs = [task] if is_task_ref(task) else []
    try:
        return [*refs, Keyring.open(data).ref(task)]
    except KeyringError as error:
        if refs:
            return refs
        message = f"this is no task's reference, and without keys an id cannot be found: {error}"
        raise InvalidRequest(message) from None


class _Player:
    """Shows steps, each in its time. `steps` counts them."""

    def __init__(self, times: float, *, step: bool, as_json: bool) -> None:
        self.steps = 0
        self._pace = Pace(times)
        self._step, self._as_json = step, as_json
        self._console = console()

    async def show(self, steps: Iterable[Step]) -> None:
        """All of these."""
        for step in steps:
            paced = self._pace.of(step)
            if self._step and self.steps:
                await _enter()
            elif paced.wait_ms:
                await asyncio.sleep(paced.wait_ms / 1000)
            self._print(paced)
            self.steps += 1

    def _print(self, paced: Paced) -> None:
        if self._as_json:
            sys.stdout.buffer.write(msgspec.json.encode(paced.step) + b"\n")
            sys.stdout.buffer.flush()
            return
        if paced.idle_ms:
            show(self._console, _Later(paced.idle_ms))
        show(self._console, TailView(_with_status(paced.step)))


def _with_status(step: Step) -> Step:
    """A step that also says the status it left as it was: the view shows only a change."""
    after = step.status_after
    if after is None or (after != step.status_before and step.kind is not StepKind.ACCESS):
        return step
    return msgspec.structs.replace(step, what=f"{step.what} · {after}")


class _Later:
    """That nothing happened for a while."""

    def __init__(self, idle_ms: int) -> None:
        self._said = f"{'…':>12}   {lasted(timedelta(milliseconds=idle_ms), precise=False)} later"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One line."""
        yield Text(self._said, style="dim")


async def _enter() -> None:
    """Until a line is there on the terminal; Ctrl-C ends it as it ends everything.

    Raises:
        KeyboardInterrupt: the terminal is gone, or was told that nothing more comes (Ctrl-D).
    """
    loop, pressed = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), pressed.set)
    try:
        await pressed.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    if not os.read(sys.stdin.fileno(), 4_096):
        raise KeyboardInterrupt


def _recorded(settings: Settings, order: ReplayOrder, url: str, as_file: Path | None, case: str) -> Replayable | None:
    """What the running service recorded of what is about to be read; None, and it is said, when none runs."""
    case_of(case)
    if url or responder.find(settings.data) is not None:
        with open_service(settings.data, url, as_file, case) as service:
            return service.order("/replays", order, Replayable)
    complain(_unrecorded(settings.data))
    return None


def _unrecorded(data: Path) -> str:
    return NOT_RECORDED.format(data=data).replace("its store", "its stream")


@contextlib.asynccontextmanager
async def _source(settings: Settings, last: int | None) -> AsyncGenerator[Source]:
    from tasktrail.services.service import shown  # noqa: PLC0415 - the whole service; half a second

    async with _trail(settings) as trail:
        yield replaying.TrailSource(trail, f"the trail of {shown(settings.nats_url) or settings.data}", last)


def _trail(settings: Settings) -> contextlib.AbstractAsyncContextManager[TrailReader]:
    return open_trail(settings.data, nats_url=settings.nats_url, nats_credentials=settings.nats_credentials)


def _settings(data: Path | None, nats: str | None) -> Settings:
    return load(os.environ, data=data, nats_url=nats)


def _range(begin: str, to: str) -> tuple[Point | None, Point | None]:
    """Where to begin and where to end. A sequence and a time cannot be compared before the trail is read."""
    first, last = _point(begin), _point(to)
    if (isinstance(first, int) and isinstance(last, int) and last < first) or (
        isinstance(first, datetime) and isinstance(last, datetime) and last < first
    ):
        message = f"nothing lies between: --to {to[:60]} is before --from {begin[:60]}"
        raise InvalidRequest(message)
    return first, last


def _point(text: str) -> Point | None:
    return point(text) if text else None


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


class _Rate(ProgressColumn):
    """Entries a second."""

    def render(self, task: Task) -> Text:
        """Of the last while; nothing at the start."""
        return Text(f"{task.speed:,.0f} entries/s" if task.speed else "")


@contextlib.contextmanager
def _progress(what: str) -> Generator[Told]:
    """Progress on standard error, when that is a terminal."""
    screen = Console(stderr=True, highlight=False)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda position, last: progress.update(bar, completed=position, total=last)
