"""What is written for the SDK v1, checked in its own environment: types, and what an import of it brings along."""

import subprocess
import sys
from pathlib import Path

from tests.v1.environment import ROOT, environment, python

MCP = ROOT / "services" / "tasktrail" / "mcp"
MODULES = (MCP / "task_store.py", *sorted((MCP / "v1").glob("*.py")))
LOADED = "import sys, tasktrail.mcp.task_store; print(*sys.modules)"


def test_the_adapter_is_strictly_typed_against_the_sdk_v1() -> None:
    """docs/style.md: mypy strict. The other modules are checked with everything else."""
    command: list[str | Path] = ["mypy", "--python-executable", python(), "--follow-imports", "silent", *MODULES]
    checked = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, check=False, capture_output=True, text=True, timeout=300
    )
    assert checked.returncode == 0, checked.stdout


def test_the_adapter_imports_neither_v2_nor_the_services_machinery() -> None:
    """Design section 4: an MCP server that imports an adapter gets no DuckDB and no web framework of ours with it."""
    ran = subprocess.run(
        [python(), "-c", LOADED], env=environment(), check=False, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert {"mcp_types", "duckdb", "faststream", "litestar", "cedarpy"} & set(ran.stdout.split()) == set()


def test_the_adapter_for_v2_names_its_extra_beside_v1() -> None:
    """`cannot import name 'MCPServer'` alone would not say that another SDK is wanted."""
    command: list[str | Path] = [python(), "-c", "import tasktrail.mcp.extension"]
    ran = subprocess.run(command, env=environment(), check=False, capture_output=True, text=True, timeout=120)
    assert "tasktrail.mcp.extension needs the official MCP SDK v2: install tasktrail[mcp] (" in ran.stderr
