"""`config` and `doctor` as a person runs them. Source: issue 3, "Configuration"; feature O6."""

import json
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from typer.testing import CliRunner

from tasktrail.services.doctor.findings import Report, Severity
from tasktrail.services.terminal import app
from tasktrail.testing.service import UpProcess


class Ran(NamedTuple):
    """What became of a run."""

    code: int
    out: str
    err: str


def run(*arguments: str) -> Ran:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False, prog_name="tasktrail")
    return Ran(done.exit_code, done.stdout, done.stderr)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a configuration file, in a directory that is the working one."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tasktrail.toml"
    path.write_text("[service]\nport = 0\nanonymous = false\n")
    return path


def test_what_holds_is_shown_with_its_origin(file: Path) -> None:
    """Issue 3: `tasktrail config show` prints the effective one without secrets."""
    ran = run("config", "show", "--config", file.name)
    assert (ran.code, ran.err) == (0, "")
    assert "port = 0  # tasktrail.toml:2" in ran.out.splitlines()
    said = json.loads(run("config", "show", "--config", file.name, "--json").out)
    assert (said["service"]["port"], said["origin"]["port"]) == (0, "tasktrail.toml:2")


def test_every_problem_of_a_file_is_shown(file: Path) -> None:
    """Exit code 1: an expectation that did not hold; 2: no file at all."""
    assert run("config", "check", file.name) == Ran(0, "tasktrail.toml: no problem found\n", "")
    file.write_text("[service]\nport = -1\n[limits]\npolls_erly = 1\n")
    ran = run("config", "check", file.name)
    assert (ran.code, ran.err) == (1, "")
    assert ran.out.splitlines() == [
        "tasktrail.toml:2: port: -1 is less than 0; raise it",
        "tasktrail.toml:4: limits.polls_erly: no setting has this name; did you mean polls_early?",
    ]
    ran = run("config", "check", "none.toml")
    assert (ran.code, ran.out) == (2, "")


@pytest.mark.parametrize("command", [("config", "show"), ("doctor",), ("up",)])
def test_a_file_with_a_problem_stops_every_command(file: Path, command: tuple[str, ...]) -> None:
    """Never a service with half of its configuration."""
    file.write_text("[service]\nport = -1\n")
    ran = run(*command, "--config", file.name)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "tasktrail: tasktrail.toml:2: port: -1 is less than 0; raise it\n"


@pytest.mark.requirement("O6")
def test_a_running_service_is_examined_and_what_is_unsafe_fails(file: Path, tmp_path: Path) -> None:
    """Exit code 1 when something is unsafe; `--json` prints the document and nothing else; the trail is read only."""
    data = tmp_path / "data"
    with UpProcess(data, "--config", str(file)):
        ran = run("doctor", "--data", str(data), "--json")
        assert (ran.code, ran.err) == (1, "")
        report = msgspec.json.decode(ran.out, type=Report)
    found = {one.check: one.severity for one in report.findings}
    for check in ("audit store", "streams", "sync", "permissions of adapters", "connections without credentials"):
        assert found[check] is Severity.WELL, report
    assert (found["authentication"], found["anonymous callers"]) == (Severity.UNSAFE, Severity.UNSAFE)


def test_what_was_seen_is_told_to_a_person(file: Path) -> None:
    """The worst first, with the remedy."""
    ran = run("doctor", "--config", file.name)
    assert ran.code == 1
    assert ran.out.splitlines()[2].startswith("UNSAFE      authentication: ")
    assert "remedy: add [[issuers]]" in ran.out
    assert "WELL        anonymous callers" in ran.out
