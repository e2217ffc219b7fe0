"""What a stranger gets: the wheel, the declared dependencies, and nothing of this checkout's surroundings."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PORTIONS = ("events", "projections", "services")
PACKAGES = {"demo", "events", "projections", "services", "mcp", "testing"}
MARKER = "tasktrail/py.typed"
# Written so that the pattern does not match this file.
REGISTRY_HOST = re.compile(
    r"pypi[.]org|pythonhosted[.]org|(registry|www)[.]npmjs[.]|(deb|security)[.]debian[.]org|proxy[.]golang[.]org"
)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in the wheel, built as an installer builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(build, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    [path] = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def committed() -> list[str]:
    """Paths that are in the repository or would be with the next commit."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    return [path for path in listed.stdout.split("\0") if (ROOT / path).is_file()]


def test_the_wheel_holds_every_file_of_the_three_portions(wheel: set[str]) -> None:
    """Design section 4: one distribution of three portions; queries and schema files go with the code."""
    sources = {path.partition("/")[2] for path in committed() if path.split("/")[0] in PORTIONS}
    assert {name for name in wheel if ".dist-info/" not in name} == sources
    assert {name.split("/")[1] for name in sources - {MARKER}} == PACKAGES


def test_tasktrail_is_a_namespace_and_typed(wheel: set[str]) -> None:
    """PEP 420: no `__init__.py` at the top, or the portions hide one another. PEP 561: type checkers read us."""
    assert "tasktrail/__init__.py" not in wheel
    assert MARKER in wheel
    for portion in PORTIONS:
        assert (ROOT / portion / MARKER).is_file(), "an editable install has the portions apart: a marker in each"
        assert not (ROOT / portion / "tasktrail/__init__.py").exists()


def test_the_wheel_carries_its_licence(wheel: set[str], project: dict[str, Any]) -> None:
    """Apache-2.0, section 4(a)."""
    assert project["project"]["license"] == "Apache-2.0"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)


def test_every_dependency_says_why_it_is_there(project: dict[str, Any]) -> None:
    """Style: every dependency has its reason beside it."""
    declared = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
    ]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for requirement in {requirement for group in declared for requirement in group}:
        lines = [line for line in text.splitlines() if line.strip().startswith(f'"{requirement}"')]
        assert lines
        assert [line for line in lines if not re.search(r'",\s*# \w', line)] == []


def test_no_lock_file_is_committed() -> None:
    """Lock files hold download addresses; known-good versions are in pyproject.toml."""
    ignored = subprocess.run(
        ["git", "check-ignore", "uv.lock", "package-lock.json"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert ignored.stdout.split() == ["uv.lock", "package-lock.json"]
    assert [path for path in committed() if Path(path).name in {"uv.lock", "package-lock.json"}] == []


def test_no_committed_file_names_a_package_registry() -> None:
    """Where packages come from is the installer's setting, never ours."""
    texts = {path: (ROOT / path).read_text(encoding="utf-8", errors="replace") for path in committed()}
    assert [path for path, text in texts.items() if REGISTRY_HOST.search(text)] == []
