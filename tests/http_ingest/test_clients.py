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
(SHELL,) = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)


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


@contextlib.contextmanager
def shell(up: UpProcess, tmp_path: Path) -> Generator["subprocess.Popen[bytes]"]:
    """The page's shell example, running."""
    environment = variables(up)
    if shutil.which("curl") is None:
        curl = tmp_path / "curl"
        curl.write_text(STAND_IN)
        curl.chmod(0o755)
        environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    command = ["sh", "-euc", SHELL]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize(
    ("answer", "events"),
    [
        ({"wait": True}, ["InputResponded", "TaskResumed", "TaskCompleted"]),
        ({"wait": False}, ["InputResponded", "TaskResumed", "TaskFailed"]),
        (None, ["CancelRequested", "TaskCancelled"]),
    ],
)
async def test_a_shell_feeds_it_with_curl(
    up: UpProcess, tmp_path: Path, answer: Json | None, events: list[str]
) -> None:
    """docs/http.md: reports, asks, waits, and ends as the client answers, or cancels."""
    async with speaking(up, server="backups") as http, reading(up.data) as trail:
        with shell(up, tmp_path) as running:
            assert running.stdout is not None
            task_id = (await asyncio.to_thread(running.stdout.readline)).decode().split()[-1]

            async def parked() -> bool:
                return "InputRequested" in await trail.names(task_id)

            await until(parked)
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
