"""README is true: its commands are CI's, its server and client work when pasted, its timeline is really printed."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasktrail.testing.service import UpProcess, tasktrail, wait_for

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTENSION = "io.modelcontextprotocol/tasks"
FASTMCP_TASKS = "fastmcp-tasks==4.1.2"
"""The version of the client's package that was tried."""
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "readme", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}},
}


def snippets(language: str) -> list[str]:
    """README's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def rpc(url: str, method: str, params: dict[str, Any], name: str) -> dict[str, Any]:
    """One JSON-RPC request at protocol 2026-07-28; its result."""
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": method,
        "Mcp-Name": name,
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": META}}
    text = httpx.post(url, json=body, headers=headers, timeout=10, trust_env=False).text
    message = json.loads(text if text.startswith("{") else text.rpartition("data: ")[2])
    assert "result" in message, message
    result: dict[str, Any] = message["result"]
    return result


def printed(folder: Path, *words: str, said: str | None = None) -> Any:  # noqa: ANN401 - a document
    """What a command of tasktrail prints, in the directory where `up` was started."""
    command: list[str | Path] = [tasktrail(), *words]
    done = subprocess.run(command, input=said, capture_output=True, text=True, check=True, cwd=folder, timeout=60)
    return json.loads(done.stdout)


def client(folder: Path, server: str) -> str:
    """What README's client prints, run as README says in an environment of its own, at known versions."""
    code = snippets("python")[1]
    assert "http://127.0.0.1:8000" in code
    (folder / "client.py").write_text(code.replace("http://127.0.0.1:8000", server), encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    known = [*project["tool"]["uv"]["constraint-dependencies"], FASTMCP_TASKS]
    (folder / "known.txt").write_text("\n".join(known), encoding="utf-8")
    (command,) = re.findall(r"`(uvx [^`]* client\.py)`", README)
    uv = shutil.which("uv")
    assert uv is not None, "README's client is run by uv, which is not on the PATH"
    run = [uv, "tool", "run", *shlex.split(command)[1:]]
    environment = {**os.environ, "UV_CONSTRAINT": str(folder / "known.txt")}
    done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_two_commands_are_the_ones_that_are_promised() -> None:
    commands = [line for block in snippets("sh") for line in block.splitlines() if line.startswith("pip install uv")]
    assert commands == ["pip install uv && uv run tasktrail up --demo", "pip install uv && uv run pytest"]
    assert commands[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.requirement("O2")
def test_the_server_works_when_pasted_and_its_task_has_a_timeline(tmp_path: Path) -> None:
    """Issue: a complete MCP server of about ten lines that works when pasted."""
    code = snippets("python")[0]
    assert sum(1 for line in code.splitlines() if line.strip()) <= 14
    anywhere = code.replace('mcp.run("streamable-http")', 'mcp.run("streamable-http", port=0)')
    (tmp_path / "server.py").write_text(anywhere, encoding="utf-8")
    log = tmp_path / "server.log"
    with UpProcess(tmp_path / ".tasktrail"), log.open("wb") as sink:
        server = subprocess.Popen([sys.executable, "server.py"], cwd=tmp_path, stderr=sink)

        def listens() -> re.Match[str] | None:
            said = log.read_text(encoding="utf-8")
            assert server.poll() is None, said
            return re.search(r"running on (http://127\.0\.0\.1:\d+)", said)

        try:
            found = wait_for("the pasted server listens", listens)
            assert found is not None
            url = f"{found[1]}/mcp"
            call = {"name": "report", "arguments": {"quarter": "Q3"}}
            task = rpc(url, "tools/call", call, "report")
            assert task["resultType"] == "task", task
            handle = task["taskId"]

            def finished() -> dict[str, Any] | None:
                found = rpc(url, "tasks/get", {"taskId": handle}, handle)
                return found if found["status"] == "completed" else None

            done = wait_for("the task completes", finished)
            assert done is not None
            assert done["result"]["content"][0]["text"] == "Q3: up 4 %"
            assert client(tmp_path, found[1]) == "Q3: up 4 %\n"
        finally:
            server.terminate()
            server.wait(10)
        listed = printed(tmp_path, "tasks", "--json")
        told = printed(tmp_path, "timeline", "-", "--json", said=handle)
    assert [(one["tool"], one["status"]) for one in listed] == [("report", "completed")] * 2
    steps = [step["type"] for step in told["steps"]]
    assert steps[0] == "TaskCreated"
    assert "TaskCompleted" in steps
    assert "ResultDisclosed" in steps
