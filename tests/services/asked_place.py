"""A running service with traffic to be asked about: what the tests of queries and exports share.

Four callers, one of whom names itself as hostile text and is refused a task that is not its own; two tenants; an
operator who may only hold, and one who may only read one tenant.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from typer.testing import CliRunner

from tasktrail.services.terminal import app
from tasktrail.testing.feeding import Feeder, Refused, asked, caller, creation
from tasktrail.testing.service import UpProcess

HOLDER = "a-token-that-may-only-hold"
SUBJECT = '=cmd|"/c calc"!A1\n\u202eeve\\'
"""What a caller calls itself."""
ANA, BEN = (caller(name, client_id=f"{name}-cli") for name in ("ana", "ben"))
EVE = caller(SUBJECT, client_id="@eve")
CLEAN: dict[str, str | None] = {name: None for name in os.environ if name.startswith(("TASKTRAIL_", "COLUMNS"))}
CONFIGURATION = f"""
[[servers]]
name = "*"
asserts = true

[[operators]]
name = "olaf"
sha256 = "{hashlib.sha256(HOLDER.encode()).hexdigest()}"
rights = ["hold"]
"""


class Ran(NamedTuple):
    """What became of a run."""

    code: int
    out: str
    err: str

    def json(self) -> Any:  # noqa: ANN401 - any JSON
        assert self.code == 0, self
        return json.loads(self.out)


def run(*arguments: str, said: str = "", width: int | None = None) -> Ran:
    """The command in this process."""
    environment = CLEAN | ({"COLUMNS": str(width)} if width else {})
    result = CliRunner().invoke(app, list(arguments), said.encode(), prog_name="tasktrail", env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Ran(result.exit_code, result.stdout, result.stderr)


class Place(NamedTuple):
    """The service, and the ids of its tasks: ana's, which was completed; ben's, who may not see ana's; eve's."""

    up: UpProcess
    ana: str
    ben: str
    eve: str

    def run(self, *arguments: str, said: str = "", width: int | None = None) -> Ran:
        """A command on its data directory."""
        return run(*arguments, "--data", str(self.up.data), said=said, width=width)

    def post(self, path: str, said: object, *, token: str | bool = True) -> tuple[int, bytes]:
        """A request."""
        return self.up.post(f"/api/v1/{path}", json.dumps(said).encode(), token=token)

    def steps(self) -> list[dict[str, Any]]:
        """Everything on the trail by now, as exported."""
        status, body = self.post("exports", {"format": "jsonl"})
        assert status == 200, body
        return [json.loads(line) for line in body.splitlines()]

    def queries(self, name: str) -> list[dict[str, Any]]:
        """What is recorded of readings by this name, the last first."""
        found = [step["event"] for step in self.steps() if step["type"] == "QueryRun"]
        return [event for event in reversed(found) if event["query"] == name]


async def _feed(up: UpProcess) -> tuple[str, str, str]:
    feeder = await Feeder.connect(up.adapter(), "reports")
    try:
        made = [
            str((await feeder.settled("create", creation(who, f"c-{number}", arguments={"n": number})))["task_id"])
            for number, who in enumerate((ANA, BEN, EVE))
        ]
        for task in made[:2]:
            await feeder.settled("get", asked(ANA if task == made[0] else BEN, "tasks/get", task_id=task))
        for _ in range(3):
            try:
                await feeder.settled("get", asked(EVE, "tasks/get", task_id=made[0]))
            except Refused as refused:
                assert refused.reason == "not_found"  # noqa: PT017 - that it is refused is what is wanted
        await feeder.settled("cancel", asked(ANA, "tasks/cancel", task_id=made[0], command_id="x-1"))
    finally:
        await feeder.close()
    return made[0], made[1], made[2]


@contextmanager
def asked_place(folder: Path) -> Generator[Place]:
    """The service on a directory in `folder`, fed."""
    configuration = folder / "tasktrail.toml"
    configuration.write_text(CONFIGURATION)
    with UpProcess(folder / "data", "--config", str(configuration)) as up:
        yield Place(up, *asyncio.run(_feed(up)))
