"""The OpenAPI document, from which clients are generated (see `test_typescript.py`), and a client that is a shell.

Sources: issue 5 ("OpenAPI 3.1 that generates working clients", "tested examples"), docs/http.md, which is run here.
Where the machine has no curl, a stand-in takes the options that the page uses, so that the test command needs nothing
but Python; a machine that builds has the real one (`.ci/run`).
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.http_ingest.calling import Json, Speaking, asked, done, schema, speaking, variables
from tests.mcp.place import reading

from tasktrail.services.messages import ACTIONS
from tasktrail.testing.service import UpProcess
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.requirement("O2")

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")
SHELL, ANSWERING = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)


def test_every_action_is_in_the_document_with_its_members(up: UpProcess) -> None:
    """Whatever can be said over NATS can be said over HTTP; the names are those of `messages.py`."""
    document = schema(up)
    assert document["openapi"].startswith("3.1")
    found: dict[str, Json] = {}
    for path, item in document["paths"].items():
        for operation in item.values() if path.startswith("/ingest/v1/") else ():
            assert operation["security"] == [{"server": []}]
            found[operation["operationId"]] = operation
    assert found.keys() - {"follow", "moves"} == ACTIONS.keys()
    for action, (kind, _) in ACTIONS.items():
        headers = {one["name"] for one in found[action].get("parameters", ()) if one["in"] == "header"}
        assert ("Idempotency-Key" in headers) is ("command_id" in kind.__struct_fields__), action
        if action != "collect":
            named = found[action]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            members = set(document["components"]["schemas"][named]["properties"])
            assert members == set(kind.__struct_fields__) - {"command_id", "task_ref"}, action


def test_no_array_in_the_document_is_one_of_anything(up: UpProcess) -> None:
    """A generated client would otherwise know nothing of its members."""
    arrays = re.findall(r'"items": ?{"oneOf": ?\[{[^}]*}, ?{}\]}', json.dumps(schema(up)))
    assert arrays == []


STAND_IN = f"""#!{sys.executable}
import sys, httpx
url, headers, body, words = "", {{}}, None, iter(sys.argv[1:])
for word in words:
    if word == "-H":
        name, _, value = next(words).partition(": ")
        headers[name] = value
    elif word == "-d":
        body = next(words)
    elif not word.startswith("-"):
        url = word
answer = httpx.request("GET" if body is None else "POST", url, headers=headers, content=body, timeout=90)
sys.stdout.write(answer.text)
sys.exit(0 if answer.is_success else 22)
"""


RECORDING = """#!/bin/sh
{curl} "$@"
ended=$?
echo "$@" >> {log}
exit $ended
"""
"""A curl that says, once it has its answer, what it was asked."""


def log(folder: Path) -> Path:
    """Where it says so."""
    return folder / "asked"


@contextlib.contextmanager
def shell(up: UpProcess, folder: Path, script: str, **known: str) -> Generator["subprocess.Popen[bytes]"]:
    """An example of the page's, running; each needs a folder of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "stand_in").write_text(STAND_IN)
    curl = shutil.which("curl") or folder / "stand_in"
    (folder / "curl").write_text(RECORDING.format(curl=curl, log=log(folder)))
    for program in ("stand_in", "curl"):
        (folder / program).chmod(0o755)
    environment = {**variables(up), **known}
    environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
    command = ["sh", "-euc", script]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize(
    ("answer", "events"),
    [
        ({"wait": True}, ["StatusReported", "InputResponded", "TaskResumed", "TaskCompleted"]),
        ({"wait": False}, ["InputResponded", "TaskResumed", "TaskFailed"]),
        (None, ["CancelRequested", "TaskCancelled"]),
    ],
)
async def test_a_shell_feeds_it_with_curl(
    up: UpProcess, tmp_path: Path, answer: Json | None, events: list[str]
) -> None:
    """docs/http.md: reports, asks, waits, and ends as the client answers, by the page's own command too, or cancels.

    One whose task has moved without an answer, here by a report, waits on.
    """
    async with speaking(up, server="backups") as http, reading(up.data) as trail:
        with shell(up, tmp_path, SHELL) as running:
            assert running.stdout is not None
            task_id = (await asyncio.to_thread(running.stdout.readline)).decode().split()[-1]

            async def parked() -> bool:
                return "InputRequested" in await trail.names(task_id)

            await until(parked)
            if answer == {"wait": True}:
                ref = trail.ref(task_id)
                done(await http.write(f"/work/{ref}/report", {"message": "still busy"}))
                await until(lambda: "&wait=30" in log(tmp_path).read_text())
                with shell(up, tmp_path / "client", ANSWERING, TASK=task_id) as answering:
                    said, error = await asyncio.to_thread(answering.communicate)
                assert (answering.returncode, "result" in json.loads(said)) == (0, True), (said, error)
            else:
                await _answered(http, task_id, answer)
            out, error = await asyncio.to_thread(running.communicate)
        assert running.returncode == 0, (out, error)
        assert await trail.names(task_id) == ["TaskCreated", "StatusReported", "InputRequested", *events]


async def _answered(http: Speaking, task_id: str, answer: Json | None) -> None:
    """What the task's client does."""
    if answer is None:
        done(await http.write("/tasks/cancel", asked("tasks/cancel", task_id=task_id)))
        return
    answers = {"go_on": {"action": "accept", "content": answer}}
    done(await http.write("/tasks/update", asked("tasks/update", task_id=task_id, answers=answers)))
