"""A server of the SDK v1 that cannot serve tasks does not start, and says why: run as the page says, by uvicorn."""

import subprocess
from pathlib import Path

import pytest
from tests.v1.environment import environment, python

SERVER = """
from mcp.server.fastmcp import FastMCP
from tasktrail.mcp.task_store import TasktrailTasks

mcp = FastMCP("reports")

@mcp.tool()
async def report() -> str:
    return "report"

@mcp.tool()
def plain() -> str:
    return "plain"

tasks = TasktrailTasks.connect({target!r}, tools={{{tool!r}: "optional"}})
app = tasks.around(mcp.streamable_http_app(), mcp)
"""
NOBODY = "nats://127.0.0.1:1"
STARTED_NOT = 3
"""uvicorn's exit status."""


def uvicorn(folder: Path, target: str, tool: str) -> subprocess.CompletedProcess[str]:
    """Run the server as the page says; it ends by itself."""
    (folder / "server.py").write_text(SERVER.format(target=target, tool=tool), encoding="utf-8")
    command: list[str | Path] = [python(), "-m", "uvicorn", "server:app", "--port", "0"]
    return subprocess.run(
        command, cwd=folder, env=environment(), check=False, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("tool", "why"),
    [
        ("report", f"ERROR:    tasktrail: no NATS server answers at {NOBODY}"),
        ("plain", "ERROR:    tasktrail: tool 'plain' is no `async def`"),
    ],
)
def test_a_server_that_cannot_serve_tasks_says_why_and_ends(tmp_path: Path, tool: str, why: str) -> None:
    """ASGI, lifespan.startup.failed; an exception alone means "no lifespan" to uvicorn, which then serves errors."""
    ran = uvicorn(tmp_path, NOBODY, tool)
    assert ran.returncode == STARTED_NOT, ran.stderr
    assert why in ran.stderr
    assert "Traceback" not in ran.stderr


def test_what_nobody_foresaw_is_shown_whole_and_ends_it_too(tmp_path: Path) -> None:
    """As above; where the sentence is not ours, the traceback says where it came from."""
    (tmp_path / "adapter.json").write_text('{"servers": ["nats://127.0.0.1:99999"]}', encoding="utf-8")
    ran = uvicorn(tmp_path, "adapter.json", "report")
    assert ran.returncode == STARTED_NOT, ran.stderr
    assert "ERROR:    Traceback" in ran.stderr
    assert "Application startup failed" in ran.stderr
