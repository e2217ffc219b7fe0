"""An environment of its own with the official SDK v1, which cannot stand beside v2: made once, by exact versions.

It lies in `.cache/mcp-v1/<digest of what is in it>/` of the repository. The programs of this folder run in it, on the
checkout's own code. Needs uv, and the package registry at the first run only; failing to make it fails the tests.

    subprocess.Popen([python(), PROGRAMS / "server.py"], env=environment())
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = Path(__file__).parent / "programs"
SDK = "mcp==1.30.0"
_PACKAGES = (SDK, "msgspec", "nats-py", "httpx", "joserfc", "uvicorn")
_MAKE_S_MAX = 600


@functools.cache
def python() -> Path:
    """The environment's interpreter."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    known: list[str] = project["tool"]["uv"]["constraint-dependencies"]
    constraints = "\n".join(sorted(known))
    content = "\n".join([*_PACKAGES, constraints, sys.version])
    place = ROOT / ".cache" / "mcp-v1" / hashlib.sha256(content.encode()).hexdigest()[:16]
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as making:
            _make(Path(making), constraints)
            try:
                (Path(making) / "env").rename(place)
            except OSError:
                if not place.exists():  # else another run was faster
                    raise
    return place / "bin" / "python"


def _make(folder: Path, constraints: str) -> None:
    (folder / "constraints.txt").write_text(constraints, encoding="utf-8")
    made, interpreter = folder / "env", folder / "env" / "bin" / "python"
    _uv("venv", "--python", sys.executable, made)
    _uv("pip", "install", "--python", interpreter, "--constraints", folder / "constraints.txt", *_PACKAGES)


def _uv(*command: str | Path) -> None:
    program = shutil.which("uv")
    assert program is not None, "uv makes the environment of the SDK v1; it is not on the PATH"
    done = subprocess.run(
        [program, "--quiet", "--no-config", *command], check=False, capture_output=True, text=True, timeout=_MAKE_S_MAX
    )
    assert done.returncode == 0, f"uv {command[0]}: {done.stderr}"


def environment() -> dict[str, str]:
    """The variables with which programs find the checkout's code."""
    paths = os.pathsep.join(str(ROOT / portion) for portion in ("events", "projections", "services"))
    return {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
