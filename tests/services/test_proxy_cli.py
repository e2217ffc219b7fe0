"""`tasktrail proxy` on the command line: what keeps it from starting, and what is odd but does not.

Sources: docs/proxy.md; the conventions of the command line (`tasktrail.services.cli`). What a proxy does once it runs
is in tests/mcp/test_proxy.py.
"""

import asyncio
import signal
import subprocess
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from tasktrail.mcp.proxy import Upstream, proxy
from tasktrail.services.proxy_server import Behind, look
from tasktrail.testing.service import UpProcess, tasktrail, wait_for

pytestmark = pytest.mark.requirement("O2")

NOWHERE = "http://127.0.0.1:1/mcp"
SERVER = """
from fastmcp import FastMCP
mcp = FastMCP("behind")
@mcp.tool
def report() -> str: return "up"
mcp.run(show_banner=False, log_level="ERROR")
"""


def refused(directory: Path, *arguments: str | Path) -> tuple[int, str]:
    """The exit code and standard error of a proxy that does not start; it says nothing on standard output."""
    command = [tasktrail(), "proxy", "--port", "0", "--task", "x", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory, timeout=60, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_without_tasktrail_the_proxy_ends_with_one_line(tmp_path: Path) -> None:
    """The report of a new user: the sentence stood in 112 lines with three tracebacks."""
    code, said = refused(tmp_path, "--connect", "nats://127.0.0.1:1", "--upstream", NOWHERE)
    assert (code, said.count("\n")) == (3, 1), said
    assert said.startswith("tasktrail: no NATS server answers at nats://127.0.0.1:1: ")
    assert "is `tasktrail up` running?" in said


def test_a_command_that_there_is_not_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    """docs/proxy.md: a command after `--`."""
    code, said = refused(tmp_path, "--connect", "nats://127.0.0.1:1", "--", "no-such-server", "stdio")
    assert (code, said) == (
        2,
        "tasktrail: 'no-such-server' is no command that can be run here: install it, or give its path\n",
    )


def test_a_wrong_login_is_one_line_and_a_server_behind_that_is_not_there_yet_stops_nothing(tmp_path: Path) -> None:
    """docs/proxy.md: the broker of `tasktrail up` wants its login; the server behind need not be there yet."""
    with UpProcess(tmp_path / "data") as up:
        (url,) = up.adapter().servers
        code, said = refused(tmp_path, "--connect", url, "--upstream", NOWHERE)
        assert (code, said.count("\n"), said.startswith("tasktrail: "), url in said) == (3, 1, True, True), said
        log = tmp_path / "proxy.log"
        running: list[str | Path] = ["--connect", up.data / "adapter.json", "--task", "x", "--upstream", NOWHERE]
        with log.open("wb") as errors:
            child = subprocess.Popen([tasktrail(), "proxy", "--port", "0", *running], stdout=-1, stderr=errors)
        try:
            wait_for("the warning", lambda: log.read_text() or child.poll() is not None, within_s=60)
            child.send_signal(signal.SIGTERM)
            out, _ = child.communicate(timeout=60)
        finally:
            child.kill()
    assert (child.returncode, out[:13]) == (0, b"proxying at h")
    assert log.read_text() == (
        "tasktrail: the server behind, 127.0.0.1:1, does not answer: All connection attempts failed; "
        "calls fail until it does\n"
    )


def seen(name: str, upstream: Upstream) -> Behind:
    """This server, as the proxy looks at it."""
    connect: Any = proxy(upstream, "nats://127.0.0.1:1", {}).client_factory
    return Behind(name, connect, spawned=not upstream.url)


async def test_a_server_behind_that_answers_is_no_warning(capfd: pytest.CaptureFixture[str]) -> None:
    """docs/proxy.md: a command that speaks stdio."""
    async with asyncio.timeout(60):
        await look(seen("python", Upstream(command=(sys.executable, "-c", SERVER))))
    assert capfd.readouterr().err == ""


async def test_a_command_that_does_not_speak_mcp_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    """`npx no-such-package` ends at once; that was seen at the first call only."""
    async with asyncio.timeout(60):
        await look(seen("false", Upstream(command=("false",))))
    assert capfd.readouterr().err == (
        "tasktrail: the server behind, false, does not answer: Connection closed; calls fail until it does\n"
    )


async def test_a_server_behind_that_wants_its_callers_tokens_is_no_warning(capfd: pytest.CaptureFixture[str]) -> None:
    """docs/proxy.md: the caller's token goes to the server behind; the proxy has none of its own."""
    asked: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n"))
        status = HTTPStatus.UNAUTHORIZED
        writer.write(f"HTTP/1.1 {status} {status.phrase}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener, asyncio.timeout(60):
        await look(seen("here", Upstream(url=f"http://127.0.0.1:{port}/mcp")))
    assert asked
    assert capfd.readouterr().err == ""
