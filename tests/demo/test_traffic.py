"""`tasktrail up --demo`: an MCP server with traffic that goes on, and ends when it should.

Expectations come from the issue: `--demo` also starts a demo MCP server with traffic so that there is something to look
at. It is a process of its own, so it must neither outlive the service nor need restarting with it.
"""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tasktrail.demo.child import OwnService
from tasktrail.projections.audit.store import TaskFilter
from tasktrail.services.sources import open_source

WITHIN_S = 60.0
STARTER = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:])
print(child.pid, flush=True)
child.wait()
"""


def serving(target: str) -> list[str]:
    """The command `up --demo` runs, with traffic that is less gentle."""
    return [sys.executable, "-m", "tasktrail.demo", "serve", "--connect", target, "--every", "0.3"]


@contextmanager
def service(data: Path) -> Generator[OwnService]:
    """Give a running tasktrail on `data`."""
    with OwnService(data, tenants={}) as running:
        asyncio.run(running.ready())
        yield running


@contextmanager
def started(command: list[str]) -> Generator["subprocess.Popen[str]"]:
    """Give a running process, ended with the block."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def until(seen: Callable[[], object], what: str) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + WITHIN_S
    while not seen():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def tools(data: Path) -> set[str]:
    """The tools that have made tasks."""
    with open_source(data) as source:
        return {task.tool for task in source.tasks(TaskFilter(), 1000)}


def count(data: Path) -> int:
    """How many tasks there are."""
    with open_source(data) as source:
        return len(source.tasks(TaskFilter(), 1000))


def first_line(process: "subprocess.Popen[str]") -> str:
    """What it says first."""
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_kind_of_task_comes_by_until_it_is_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    """Something to look at: eight tools; SIGTERM and SIGINT end it promptly and without complaint."""
    data = tmp_path / "trail"
    with service(data) as running, started(serving(running.target)) as process:
        assert "an MCP server at http://127.0.0.1:" in first_line(process)
        until(lambda: len(tools(data)) == 8, f"tools seen: {tools(data)}")
        process.send_signal(number)
        began = time.monotonic()
        said, _ = process.communicate(timeout=WITHIN_S)
        assert (process.returncode, time.monotonic() - began < 10) == (0, True)
        assert "in spite of" not in said


def test_it_goes_on_when_the_service_was_restarted(tmp_path: Path) -> None:
    """A service that is updated must not need its MCP servers restarted."""
    data = tmp_path / "trail"
    with service(data) as running, started(serving(running.target)) as process:
        until(lambda: count(data) > 2, "no tasks")
        assert asyncio.run(running.stop()) == 0
        before = count(data)
        with service(data):
            until(lambda: count(data) > before + 5, f"{count(data)} tasks, {before} before the restart")
            assert process.poll() is None


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """`kill -9` of `up` must not leave its demo behind."""
    with (
        service(tmp_path / "trail") as running,
        started([sys.executable, "-c", STARTER, *serving(running.target)]) as process,
    ):
        child = psutil.Process(int(first_line(process)))
        assert "an MCP server at" in first_line(process)
        process.kill()
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, f"{child} runs on")


def test_without_a_tasktrail_it_says_so(tmp_path: Path) -> None:
    """A clear error, not a trace."""
    (tmp_path / "adapter.json").write_text('{"servers": ["nats://127.0.0.1:1"]}')
    for target in (str(tmp_path / "adapter.json"), str(tmp_path / "nothing.json")):
        done = subprocess.run(serving(target), capture_output=True, text=True, check=False, timeout=WITHIN_S)
        assert done.returncode == 3
        assert "is `tasktrail up` running?" in done.stderr
        assert "Traceback" not in done.stderr
