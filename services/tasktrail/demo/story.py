"""`tasktrail demo`: everything once, from an empty directory to the timelines, and whether it was as it must be.

Guarantees: exit code 0 only if every expectation held; every process it starts has ended when it returns; without
`--data` nothing stays on disk; with `json` standard output holds exactly one document, nothing else.

    {"tasks": [{"scenario", "taskId", "task_ref", "status"}, …], "expectations": [{"what", "held"}, …]}
"""

import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from rich.console import Console

from tasktrail.demo import telling
from tasktrail.demo.checks import Record
from tasktrail.demo.child import OwnService
from tasktrail.demo.traces import found_in
from tasktrail.testing.issuer import LocalIssuer

EXIT_HELD, EXIT_NOT, EXIT_INTERRUPTED = 0, 1, 130


class TaskTold(msgspec.Struct, frozen=True, rename={"task_id": "taskId"}):
    """One task of the document."""

    scenario: str
    task_id: str
    task_ref: str
    status: str


class ExpectationTold(msgspec.Struct, frozen=True):
    """One expectation of the document."""

    what: str
    held: bool


class Document(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    tasks: list[TaskTold]
    expectations: list[ExpectationTold]


def run(data: Path | None, *, json: bool) -> int:
    """Run the demo on `data`, or on a directory that is gone afterwards. Returns the exit code."""
    began, record, out = time.monotonic(), Record(), telling.console(quiet=json)
    with contextlib.ExitStack() as stack:
        place = data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tasktrail-demo-")), "trail")
        telling.title(out)
        try:
            asyncio.run(_run(place.absolute(), record, out))
        except (KeyboardInterrupt, asyncio.CancelledError):
            return EXIT_INTERRUPTED
    if json:
        sys.stdout.write(msgspec.json.encode(_document(record)).decode() + "\n")
        _complain(record)
    else:
        telling.closing(out, record.checks.expectations, took_s=time.monotonic() - began, data=data)
    return EXIT_HELD if record.checks.held else EXIT_NOT


async def _run(data: Path, record: Record, out: Console) -> None:
    running = asyncio.current_task()
    if running is not None:  # SIGTERM ends it as Ctrl-C does: with everything it started
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    try:
        with LocalIssuer() as acme, LocalIssuer() as globex:
            await _play(data, record, out, {"ana": acme, "bob": acme, "eve": globex})
        _search(data, record)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is told and the exit code says so
        record.checks.hold("the demo runs to its end", held=False, seen=f"{type(error).__name__}: {error}")


async def _play(data: Path, record: Record, out: Console, issuers: dict[str, LocalIssuer]) -> None:
    tenants = {issuers["ana"].url: "acme", issuers["eve"].url: "globex"}
    with OwnService(data, tenants) as service:
        from tasktrail.demo import acts  # noqa: PLC0415 - takes as long as the service's start: side by side

        await service.ready()
        await acts.play(record, out, service=service, issuers=issuers)
        await acts.question(record, out, service=service, issuers=issuers)
        code = await service.stop()
        record.checks.hold("the service stops cleanly", code == 0, seen=f"exit code {code}: {service.said()}")


def _search(data: Path, record: Record) -> None:
    """Nothing of what must stay secret is in any file."""
    texts = {"the text of an argument, answer, result, message or error": record.secret}
    for name, token in record.tokens.items():
        texts |= {f"{name}'s token": token, f"the signature of {name}'s token": token.rpartition(".")[2]}
    texts |= {f"the id of task {scenario}": task_id for scenario, task_id in record.ids.items()}
    files, hits = found_in(data, texts)
    record.checks.hold(
        f"none of the {files} files on disk holds a task id, a token or a text of anybody's",
        files > 0 and not hits,
        seen=hits or "no files at all",
    )


def _document(record: Record) -> Document:
    tasks = [
        TaskTold(one.scenario, one.task_id, record.refs.get(one.scenario, ""), one.status) for one in record.played
    ]
    return Document(tasks, [ExpectationTold(one.what, one.held) for one in record.checks.expectations])


def _complain(record: Record) -> None:
    """What did not hold, for whoever reads standard error."""
    for one in record.checks.expectations:
        if not one.held:
            sys.stderr.write(f"did not hold: {one.what}; seen: {one.seen}\n")
