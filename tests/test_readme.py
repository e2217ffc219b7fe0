"""README is true: its commands are CI's, its server works when pasted, its timeline is one the command line prints."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasktrail.testing.service import UpProcess, tasktrail, wait_for

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTENSION = "io.modelcontextprotocol/tasks"
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
    with UpProcess(tmp_path / ".tasktrail") as up, log.open("wb") as sink:
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
        finally:
            server.terminate()
            server.wait(10)
        command: list[str | Path] = [tasktrail(), "timeline", "-", "--json", "--data", str(up.data)]
        told = subprocess.run(command, input=handle, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    steps = [step["type"] for step in json.loads(told)["steps"]]
    assert steps[0] == "TaskCreated"
    assert "TaskCompleted" in steps
    assert "ResultDisclosed" in steps
