"""What may import what: the contracts of pyproject.toml hold, and would notice if they did not.

A contract sees what our modules name. What a process really loads is tested by importing: the core beside msgspec
alone, the adapters' package in a base install, the adapters without the service's machinery.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PORTIONS = ("events", "projections", "services")
# uvicorn is not here: the official SDK imports it itself. That our adapters do not is a contract.
SERVICE_MACHINERY = {"duckdb", "faststream", "litestar"}
IMPORT_ALL = r"""
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.startswith(("tasktrail.mcp.v1", "tasktrail.mcp.task_store")):  # see tests/v1/test_types.py
        importlib.import_module(module.name)
print(*sorted(name for name in sys.modules if "." not in name), sep="\n")
"""


def run(*command: str | Path, path: Iterable[Path], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program that ends by itself, with these folders before everything it has installed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(command, cwd=cwd, env=environment, check=False, capture_output=True, text=True, timeout=120)


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of the checkout, or the copy of it, at `root`."""
    program = Path(sysconfig.get_path("scripts"), "lint-imports")
    return run(program, "--no-cache", path=(root / portion for portion in PORTIONS), cwd=root)


def only(folder: Path, *packages: str) -> tuple[Path, ...]:
    """A path with our portions and these third-party packages, for an interpreter started without site-packages."""
    for package in packages:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        (folder / package).symlink_to(Path(spec.origin).parent, target_is_directory=True)
    return (*(ROOT / portion for portion in PORTIONS), folder)


def test_the_contracts_hold() -> None:
    """Design section 4: adapters, services, projections, events; and a pure core."""
    checked = lint_imports(ROOT)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("events/tasktrail/events", "import asyncio", "The core is pure"),
        ("events/tasktrail/events", "from time import time", "The core is pure"),
        ("projections/tasktrail/projections", "from tasktrail.services import access", "One direction"),
        ("services/tasktrail/mcp", "import uvicorn.config", "Adapters bring no service machinery"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, module: str, line: str, broken: str) -> None:
    """A contract that saw nothing would be kept: each portion is shown to be read."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for portion in PORTIONS:
        shutil.copytree(ROOT / portion, tmp_path / portion, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / module / "planted_violation.py").write_text(f'"""Planted."""\n\n{line}\n', encoding="utf-8")
    checked = lint_imports(tmp_path)
    assert checked.returncode == 1, checked.stdout
    assert any(broken in text and text.endswith("BROKEN") for text in checked.stdout.splitlines()), checked.stdout


def test_the_core_needs_msgspec_and_nothing_else(tmp_path: Path) -> None:
    """Design section 4: the standard library and msgspec only."""
    ran = run(sys.executable, "-S", "-c", IMPORT_ALL, "tasktrail.events", path=only(tmp_path, "msgspec"))
    assert ran.returncode == 0, ran.stderr


def test_a_base_install_can_import_what_a_connected_server_needs(tmp_path: Path) -> None:
    """Design section 4: the base install is what a connected MCP server needs."""
    base = [name for name in requires("tasktrail") or () if "extra ==" not in name]
    assert sorted(re.split("[<>=]", name)[0] for name in base) == ["msgspec", "nats-py"]
    imports = "import tasktrail.events, tasktrail.mcp"
    ran = run(sys.executable, "-S", "-c", imports, path=only(tmp_path, "msgspec", "nats"))
    assert ran.returncode == 0, ran.stderr


def test_the_adapters_load_no_service_machinery() -> None:
    """Design section 4: an MCP server that imports an adapter gets neither DuckDB nor a web framework with it."""
    ran = run(sys.executable, "-c", IMPORT_ALL, "tasktrail.mcp", path=())
    assert ran.returncode == 0, ran.stderr
    assert SERVICE_MACHINERY & set(ran.stdout.split()) == set()


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("extension", "the official MCP SDK v2: install tasktrail[mcp] (No module named 'mcp')"),
        ("fastmcp", "FastMCP 4: install tasktrail[fastmcp] (No module named 'fastmcp')"),
        ("task_store", "the official MCP SDK v1: install tasktrail[mcp-v1] (No module named 'mcp')"),
    ],
)
def test_an_adapter_without_its_extra_names_it(tmp_path: Path, module: str, said: str) -> None:
    """Design section 4: each adapter is an extra of its own, so whoever imports one in a base install lacks it."""
    ran = run(sys.executable, "-S", "-c", f"import tasktrail.mcp.{module}", path=only(tmp_path, "msgspec", "nats"))
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == f"ModuleNotFoundError: tasktrail.mcp.{module} needs {said}"


def test_an_adapter_beside_another_version_of_its_sdk_names_its_extra() -> None:
    """The environment of the tests has the SDK v2."""
    ran = run(sys.executable, "-c", "import tasktrail.mcp.task_store", path=())
    assert "tasktrail.mcp.task_store needs the official MCP SDK v1: install tasktrail[mcp-v1] (" in ran.stderr
