"""The command line as a person runs it: a process, its two streams and its exit code. Issue "main job"."""

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from tests.services.http.store_surface import StoreSurface
from tests.services.scene import Scene, keep, open_store, play
from typer.testing import CliRunner

from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.audit.timeline import Step, TaskShown, Timeline
from tasktrail.services import responder
from tasktrail.services.http.app import create_app
from tasktrail.services.http.edge import Hosts
from tasktrail.services.http.server import Server
from tasktrail.services.http.surface import Batch
from tasktrail.services.terminal import app

WITHIN_S = 60.0
CLI = (sys.executable, "-m", "tasktrail.services.cli")
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("TASKTRAIL_", "COLUMNS"))}
NOT_RECORDED = "this reading is not recorded on the trail"


class Ran(NamedTuple):
    """What became of a run."""

    code: int
    out: str
    err: str


async def start(*arguments: str, environment: dict[str, str] | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *CLI,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=CLEAN | (environment or {}),
    )


async def run(*arguments: str, said: str = "", environment: dict[str, str] | None = None) -> Ran:
    """In this process, which is faster by a second; the loop goes on serving meanwhile."""
    unset: dict[str, str | None] = dict.fromkeys(set(os.environ) - set(CLEAN))
    invoked = asyncio.to_thread(
        CliRunner().invoke,
        app,
        list(arguments),
        said.encode(),
        prog_name="tasktrail",
        env={**unset, **(environment or {})},
    )
    async with asyncio.timeout(WITHIN_S):
        result = await invoked
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Ran(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return play()


@pytest.fixture(scope="module")
def stopped(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped service's data directory, for reading only."""
    return keep(scene, tmp_path_factory.mktemp("stopped"))


class Service(NamedTuple):
    """A running one: its data directory, URL, and the surface behind it."""

    data: str
    url: str
    surface: StoreSurface


@pytest.fixture
async def service(scene: Scene, tmp_path: Path) -> AsyncIterator[Service]:
    data = tmp_path / "running"
    responder.prepare(data)
    store = open_store(scene, tmp_path / "elsewhere.duckdb")
    surface = StoreSurface(store, scene)
    served = create_app(surface, token=responder.open_token(data), hosts=Hosts("127.0.0.1"))
    server = await Server.start(served, host="127.0.0.1", port=0)
    responder.publish(data, responder.Running(url=server.url, pid=os.getpid(), started_at="2026-11-22T10:00:00.000Z"))
    yield Service(str(data), server.url, surface)
    await server.stop()
    store.close()


def read_back(store_file: Path, scene: Scene) -> Timeline:
    store = AuditStore.open(store_file, read_only=True)
    with contextlib.closing(store):
        found = store.timeline(scene.ref)
    assert found is not None
    return found


@pytest.mark.requirement("T3")
async def test_a_running_service_tells_a_tasks_history(service: Service, scene: Scene) -> None:
    ran = await run("timeline", scene.ref, "--data", service.data, environment={"COLUMNS": "200"})
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"status +completed with a tool error", ran.out)
    assert "ana at id.example via desk · verified by tasktrail · jwt jti-ana, until 11:16:40" in ran.out
    assert "\x1b" not in ran.out
    assert [asked for asked, _ in service.surface.asked] == ["timeline"]


@pytest.mark.requirement("T3")
async def test_a_stopped_services_store_tells_it_too_and_says_that_nobody_will_know(
    stopped: Path, scene: Scene
) -> None:
    """Issue "main job": with `--data DIR`, on a stopped one (saying that this reading is not recorded)."""
    ran = await run("timeline", scene.ref, "--data", str(stopped), "--json")
    assert ran.code == 0
    assert msgspec.json.decode(ran.out, type=Timeline) == read_back(stopped / "audit.duckdb", scene)
    assert ran.err == f"tasktrail: no service runs on {stopped}: read from its store; {NOT_RECORDED}\n"


async def test_a_task_id_is_read_from_standard_input(service: Service, stopped: Path, scene: Scene) -> None:
    """Design, section 1: a task id is a bearer capability, and shells keep a history of arguments."""
    for data in (service.data, str(stopped)):
        ran = await run("timeline", "-", "--data", data, "--json", said=f"\n  {scene.task_id}\n")
        assert ran.code == 0
        assert json.loads(ran.out)["task_ref"] == scene.ref
        assert "history" not in ran.err


async def test_an_id_given_as_an_argument_is_found_and_warned_of(service: Service, stopped: Path, scene: Scene) -> None:
    for data in (service.data, str(stopped)):
        ran = await run("timeline", scene.task_id, "--data", data, "--json")
        assert ran.code == 0
        assert json.loads(ran.out)["task_ref"] == scene.ref
        assert "a task id opens its task and is now in your shell's history" in ran.err
        assert scene.task_id not in ran.err


@pytest.mark.parametrize("said", ["", "\n \n", "one\nother", "x" * 5_000])
async def test_standard_input_without_a_task_is_a_wrong_command(stopped: Path, said: str) -> None:
    ran = await run("timeline", "-", "--data", str(stopped), said=said)
    assert ran.code == 2
    assert ran.err == "tasktrail: standard input holds no task id or reference; give one, on one line\n"


async def test_an_unknown_task_is_not_found(service: Service, stopped: Path) -> None:
    for data in (service.data, str(stopped)):
        for task in ("a" * 32, "no-such-form", "\x1b[31m"):
            ran = await run("timeline", task, "--data", data)
            assert (ran.code, ran.out) == (1, "")
            assert ran.err.endswith("tasktrail: no task on this trail has this reference or id\n")


async def test_tasks_are_listed_and_filtered(service: Service, stopped: Path, scene: Scene) -> None:
    for data in (service.data, str(stopped)):
        ran = await run("tasks", "--data", data, "--json")
        assert ran.code == 0
        listed = msgspec.json.decode(ran.out, type=list[TaskShown])
        assert [one.task_ref for one in listed] == [*reversed(scene.others), scene.ref]
        filters = ("--tool", "transfer", "--status", "input_required", "--status", "completed", "--tenant", "acme")
        ran = await run("tasks", *filters, "--data", data, "--json")
        assert [one["task_ref"] for one in json.loads(ran.out)] == [scene.others[1], scene.ref]
        ran = await run("tasks", "--ended", "--data", data)
        assert scene.ref in ran.out
        ran = await run("tasks", "--sub", "nobody", "--data", data)
        assert (ran.code, ran.out) == (0, "")
        assert ran.err.endswith("tasktrail: no task matches\n")


async def test_a_full_page_says_how_to_see_the_next(service: Service) -> None:
    ran = await run("tasks", "--limit", "2", "--data", service.data)
    found = re.fullmatch(r"tasktrail: there may be more: --before (\d+)\n", ran.err)
    assert found
    ran = await run("tasks", "--limit", "3", "--before", found[1], "--data", service.data, "--json")
    assert len(json.loads(ran.out)) == 2


async def test_the_tail_follows_and_ends_quietly_when_interrupted(service: Service) -> None:
    steps, until = service.surface.store.since(0)
    service.surface.batches.put_nowait(Batch(steps=steps, until=until))
    process = await start("tail", "--since", "0", "--json", "--data", service.data)
    assert process.stdout is not None
    async with asyncio.timeout(WITHIN_S):
        lines = [await process.stdout.readline() for _ in steps]
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert [msgspec.json.decode(line, type=Step) for line in lines] == list(steps)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert service.surface.asked[0][0] == "tail 0"


async def test_the_tail_says_where_to_go_on_when_the_service_stops(service: Service) -> None:
    service.surface.batches.put_nowait(Batch(steps=service.surface.store.since(0, most=4)[0], until=17))
    process = await start("tail", "--data", service.data, environment={"COLUMNS": "80"})
    assert process.stdout is not None
    async with asyncio.timeout(WITHIN_S):
        first = await process.stdout.readline()
        service.surface.batches.put_nowait(None)
        _, err = await process.communicate()
    assert b"created for tool transfer" in first
    assert process.returncode == 3
    assert err.decode() == f"tasktrail: the service at {service.url} stopped; go on with --since 17\n"


async def test_a_reader_that_has_had_enough_is_no_error(service: Service) -> None:
    """`tasktrail tail | head -1`."""
    service.surface.batches.put_nowait(Batch(steps=service.surface.store.since(0)[0] * 200, until=17))
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *CLI, "tail", "--data", service.data, "--json", stdout=writing, stderr=asyncio.subprocess.PIPE, env=CLEAN
    )
    os.close(writing)
    await asyncio.to_thread(os.read, reading, 10)
    os.close(reading)
    async with asyncio.timeout(WITHIN_S):
        _, err = await process.communicate()
    assert process.returncode in {0, 1}  # rich ends with 1, as the Python documentation advises
    assert err == b""


async def test_a_stopped_service_has_no_tail(stopped: Path) -> None:
    ran = await run("tail", "--data", str(stopped))
    assert ran.code == 3
    assert f"no service runs on {stopped}; start it: tasktrail up --data {stopped}" in ran.err


async def test_a_directory_without_a_trail_says_how_to_start_one(tmp_path: Path) -> None:
    for data in (tmp_path, tmp_path / "nothing"):
        for command in (("tasks",), ("timeline", "a" * 32), ("tail",)):
            ran = await run(*command, "--data", str(data))
            assert (ran.code, ran.out) == (2, "")
            said = f"tasktrail: no tasktrail data in {data}; start one with: tasktrail up --data {data}\n"
            assert ran.err == said


async def test_a_missing_store_beside_keys_is_rebuilt_not_lost(scene: Scene, tmp_path: Path) -> None:
    """Design, section 1: the projections are disposable."""
    data = keep(scene, tmp_path)
    (data / "audit.duckdb").unlink()
    ran = await run("tasks", "--data", str(data))
    assert ran.code == 2
    assert "the service rebuilds it: tasktrail up" in ran.err


async def test_a_store_without_its_keys_is_still_read_by_reference(scene: Scene, tmp_path: Path) -> None:
    data = keep(scene, tmp_path)
    (data / "keys" / "reference.key").unlink()
    assert (await run("timeline", scene.ref, "--data", str(data))).code == 0
    ran = await run("timeline", scene.task_id, "--data", str(data))
    assert ran.code == 2
    assert "whether it is an id cannot be told: cannot read the key" in ran.err


async def test_a_store_that_another_process_holds_is_busy(scene: Scene, tmp_path: Path) -> None:
    data = keep(scene, tmp_path)
    with contextlib.closing(AuditStore.open(data / "audit.duckdb")):
        process = await start("tasks", "--data", str(data))
        async with asyncio.timeout(WITHIN_S):
            out, err = await process.communicate()
    assert (process.returncode, out) == (3, b"")
    assert f"held by process {os.getpid()}" in err.decode()


async def test_a_service_that_does_not_answer_is_unreachable(service: Service) -> None:
    gone = responder.Running(url="http://127.0.0.1:9", pid=os.getpid(), started_at="")
    responder.publish(Path(service.data), gone)
    ran = await run("tasks", "--data", service.data)
    assert ran.code == 3
    assert ran.err.startswith("tasktrail: no service answers at http://127.0.0.1:9 (")


async def test_a_given_address_is_asked_with_the_directorys_token(service: Service, stopped: Path) -> None:
    assert (await run("tasks", "--url", service.url, "--data", service.data)).code == 0
    responder.open_token(stopped)
    ran = await run("tasks", "--url", service.url, "--data", str(stopped))
    assert ran.code == 2
    assert "has another responder token; name its data directory" in ran.err
    ran = await run("tasks", "--url", "ftp://x", "--data", service.data)
    assert ran.code == 2


async def test_something_else_at_the_address_is_no_tasktrail(service: Service) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        await writer.drain()
        writer.close()

    other = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    async with other:
        ran = await run("tasks", "--url", f"http://127.0.0.1:{port}", "--data", service.data)
    assert ran.code == 3
    assert "is no tasktrail" in ran.err


async def test_a_proxy_is_not_asked_for_this_machines_service(service: Service) -> None:
    """It would be handed the token."""
    proxies = {
        "HTTP_PROXY": "http://127.0.0.1:9",
        "ALL_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    assert (await run("tasks", "--data", service.data, environment=proxies)).code == 0


async def test_a_token_that_others_can_read_is_not_used(service: Service) -> None:
    (Path(service.data) / "responder.token").chmod(0o644)
    ran = await run("tasks", "--data", service.data)
    assert ran.code == 2
    assert "can be read by others (mode 644); run: chmod 600" in ran.err


async def test_the_data_directory_comes_from_the_environment_too(service: Service, tmp_path: Path) -> None:
    ran = await run("tasks", environment={"TASKTRAIL_DATA": service.data})
    assert ran.code == 0
    ran = await run("tasks", "--data", str(tmp_path), environment={"TASKTRAIL_DATA": service.data})
    assert ran.code == 2


async def test_a_setting_out_of_range_is_refused_by_name(tmp_path: Path) -> None:
    ran = await run("up", "--data", str(tmp_path), "--port", "70000")
    assert ran.code == 2
    assert "port (TASKTRAIL_PORT)" in ran.err


@pytest.mark.parametrize(
    "arguments", [("nothing",), ("timeline",), ("tasks", "--before", "-1"), ("tasks", "--limit", "0"), ("init",)]
)
async def test_a_wrong_command_is_told_on_standard_error(arguments: tuple[str, ...]) -> None:
    ran = await run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "Try 'tasktrail" in ran.err


async def test_the_version_and_the_exit_codes_are_told() -> None:
    assert await run("--version") == Ran(0, f"tasktrail {version('tasktrail')}\n", "")
    told = await run("--help")
    assert "Exit codes: 0 done, 1 not found" in told.out
    for command in ("up", "init", "demo", "timeline", "tasks", "tail"):
        assert re.search(rf"^  {command} +\S", told.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("missing", "command", "extra"),
    [
        *((name, ("up",), "service") for name in ("typer", "rich", "duckdb", "litestar")),
        ("mcp", ("demo",), "service,mcp"),
        ("mcp", ("up", "--demo"), "service,mcp"),
        ("fastmcp", ("proxy", "--task", "x", "--", "true"), "service,fastmcp"),
    ],
)
async def test_a_missing_part_says_what_to_install(
    missing: str, command: tuple[str, ...], extra: str, tmp_path: Path
) -> None:
    """Design, section 4: `tasktrail up` needs `[service]`, and says so when it is missing; docs/proxy.md: its extra."""
    code = (
        "import sys; name, *sys.argv[1:] = sys.argv[1:]; sys.modules[name] = None\n"
        "from tasktrail.services.cli import main; main()"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, missing, *command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=CLEAN | {"TASKTRAIL_DATA": str(tmp_path)},
    )
    async with asyncio.timeout(WITHIN_S):
        out, err = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert err.decode() == f"tasktrail: {missing} is not installed; run: pip install 'tasktrail[{extra}]'\n"


async def on_a_terminal(*arguments: str, environment: dict[str, str]) -> str:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *CLI, *arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=CLEAN | {"TERM": "xterm"} | environment
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the other side is closed
        while piece := await asyncio.to_thread(os.read, ours, 65_536):
            seen += piece
    os.close(ours)
    async with asyncio.timeout(WITHIN_S):
        assert await process.wait() == 0
    return seen.decode()


async def test_colours_are_for_terminals_and_only_when_wanted(service: Service, scene: Scene) -> None:
    """https://no-color.org; what is said is the same with and without."""
    arguments = ("timeline", scene.ref, "--data", service.data)
    coloured = await on_a_terminal(*arguments, environment={"COLUMNS": "100"})
    plain = await on_a_terminal(*arguments, environment={"COLUMNS": "100", "NO_COLOR": "1"})
    assert "\x1b[1;31m" in coloured
    assert not re.search(r"\x1b\[[0-9;]*3\dm", plain)
    bare = re.compile(r"\x1b\[[0-9;]*m")
    assert bare.sub("", coloured) == bare.sub("", plain)
