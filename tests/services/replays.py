"""A trail that a real service recorded, and `tasktrail` as a person runs it on it: for the tests of `tasktrail replay`.

recorded = record(tmp_path)
ran = run("replay", "play", "--json", "--data", recorded.data)
"""

import asyncio
import hashlib
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from typer.testing import CliRunner

from tasktrail.projections.audit.timeline import Timeline
from tasktrail.services.terminal import app
from tasktrail.testing.feeding import Feeder, Refused, asked, caller, creation
from tasktrail.testing.service import UpProcess

CLI = (sys.executable, "-m", "tasktrail.services.cli")
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("TASKTRAIL_", "COLUMNS"))}
TASKS = 6
RITA = "rita-s-own-token"
CONFIGURATION = f"""
[[servers]]
name = "*"
asserts = true

[[operators]]
name = "rita"
sha256 = "{hashlib.sha256(RITA.encode()).hexdigest()}"
rights = ["revoke"]
"""


class Ran(NamedTuple):
    """What became of a command."""

    code: int
    out: str
    err: str

    def document(self) -> Any:  # noqa: ANN401 - JSON
        assert self.out, self.err
        return json.loads(self.out)


def run(*arguments: str | Path, said: str = "", **environment: str) -> Ran:
    """In this process, which is faster by a second, on the main thread: of a stopped service it starts a broker."""
    unset: dict[str, str | None] = dict.fromkeys(set(os.environ) - set(CLEAN))
    result = CliRunner().invoke(
        app, list(map(str, arguments)), said.encode(), prog_name="tasktrail", env={**unset, **environment}
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Ran(result.exit_code, result.stdout, result.stderr)


class Recorded(NamedTuple):
    """A data directory of a stopped service, what was said while it ran, and one task of it."""

    data: Path
    said: dict[str, Ran]
    timeline: Timeline
    ref: str
    task_id: str
    archive: Path
    bundle: Path
    events: list[dict[str, Any]]
    """What responders did, as the trail has it: `QueryRun` and `AccessDenied` of operators, oldest first."""


async def feed(up: UpProcess) -> tuple[str, str]:
    """Some tasks, followed and finished; the reference and id of one to which a stranger was refused."""
    feeder = await Feeder.connect(up.adapter(), "reports")
    made: dict[str, Any] = {}
    for number in range(TASKS):
        made = await feeder.settled("create", creation(caller("ana"), secrets.token_hex(8), arguments={"n": number}))
        for _ in range(2):
            await feeder.settled("get", asked(caller("ana"), "tasks/get", task_id=made["task_id"]))
        if number % 2:
            done = {"task_ref": made["task_ref"], "command_id": secrets.token_hex(8), "result": {"content": []}}
            await feeder.settled("complete", done)
    with pytest.raises(Refused, match="not_found"):
        await feeder.settled("get", asked(caller("eve"), "tasks/get", task_id=made["task_id"]))
    await feeder.close()
    return made["task_ref"], made["task_id"]


def record(place: Path) -> Recorded:
    """Everything that needs the running service is done here, once."""
    data, rita = place / "data", place / "rita.token"
    (place / "tasktrail.toml").write_text(CONFIGURATION)
    rita.touch(mode=0o600)
    rita.write_text(RITA)
    with UpProcess(data, "--config", str(place / "tasktrail.toml")) as up:
        ref, task_id = asyncio.run(feed(up))
        up.wait_until_level()
        at = ("--data", data)
        as_rita = ("--as", rita, *at)
        said = {
            "whole": run("replay", "play", "--json", "--case", "INC-7", *at),
            "task": run("replay", "play", "--json", "--task", task_id, "--from", "3", "--to", "2030-01-01", *at),
            "nobody": run("replay", "play", "--json", "--task", "x" * 32, *at),
            "no right": run("replay", "play", "--json", *as_rita),
            "no right to rebuild": run("replay", "rebuild", "--into", place / "refused", *as_rita),
            "no right to compare": run("replay", "compare", *as_rita),
            "rebuild": run("replay", "rebuild", "--into", place / "running", "--to", "12", "--json", *at),
            "compare": run("replay", "compare", "--json", *at),
            "play": run("replay", "play", "--json", "--to", "12", *at),
            "archive": run("archive", "--out", place / "archive", *at),
            "bundle": run("bundle", "export", "--task", ref, "--reason", "a rehearsal", "--out", place / "b.tar", *at),
        }
        timeline = msgspec.json.decode(run("timeline", ref, "--json", *at).out, type=Timeline)
        asked = (
            "SELECT v.type, v.payload, e.sub FROM events v JOIN entries e USING (stream_seq) "
            "WHERE v.type = 'QueryRun' OR v.payload LIKE '%operator/%' ORDER BY stream_seq"
        )
        rows = run("sql", asked, "--format", "json", *at).document()["rows"]
        up.wait_until_level()
        assert up.stop() == 0
    events = [json.loads(payload) | {"type": kind, "by": by} for kind, payload, by in rows]
    return Recorded(data, said, timeline, ref, task_id, place / "archive", place / "b.tar", events)
