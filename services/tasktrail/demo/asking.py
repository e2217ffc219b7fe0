"""Who authorised each step? Asked as a responder asks: of the service, and by the command line itself.

Guarantees: a task id is never an argument of a program; a failure says what the program said.

    [timeline] = await timelines(data, [task_id])
    await show(data, task_id, columns=100)
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from tasktrail.demo.child import COMMAND, DemoFailed, environment
from tasktrail.projections.audit.timeline import Timeline
from tasktrail.services.sources import open_source

COMMAND_S = 30.0


async def timelines(data: Path, task_ids: Iterable[str]) -> list[Timeline]:
    """The timelines of these tasks.

    Raises:
        DemoFailed: one of them is not on the trail.
        TasktrailError: the service does not answer.
    """
    return await asyncio.to_thread(_timelines, data, list(task_ids))


def _timelines(data: Path, task_ids: Sequence[str]) -> list[Timeline]:
    with open_source(data) as source:
        found = [source.timeline(task_id) for task_id in task_ids]
    if None in found:
        message = f"{found.count(None)} of {len(found)} tasks are not on the trail"
        raise DemoFailed(message)
    return [timeline for timeline in found if timeline is not None]


async def printed(data: Path, task_id: str) -> Timeline:
    """What `tasktrail timeline - --json` prints for this task.

    Raises:
        DemoFailed: it fails; with what it said.
    """
    asked = await asyncio.to_thread(_command, data, task_id, "--json", output=subprocess.PIPE)
    try:
        return msgspec.json.decode(asked.stdout, type=Timeline)
    except msgspec.DecodeError as error:
        said = asked.stderr.decode(errors="replace")[-500:]
        message = f"tasktrail timeline --json: exit code {asked.returncode}: {error}: {said}"
        raise DemoFailed(message) from None


async def show(data: Path, task_id: str, *, columns: int) -> int:
    """Let `tasktrail timeline -` print this task on our own standard output; its exit code."""
    sys.stdout.flush()
    return (await asyncio.to_thread(_command, data, task_id, columns=columns)).returncode


def _command(
    data: Path, task_id: str, *options: str, output: int | None = None, columns: int = 0
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(  # noqa: S603 - our own program
        [*COMMAND, "timeline", "-", "--data", str(data), *options],
        input=task_id.encode(),
        stdout=output,
        stderr=output,
        env=environment() | ({"COLUMNS": str(columns)} if columns else {}),
        check=False,
        timeout=COMMAND_S,
    )
