"""`tasktrail demo`: what a newcomer sees first really happens, is checked, and leaves nothing behind.

Expectations come from the issue's paragraph on `tasktrail demo`: the scenarios, the shape of `--json`, the exit code.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from tasktrail.demo import trail
from tasktrail.demo.checks import Checks
from tasktrail.demo.trail import Attacker
from tasktrail.events.subjects import is_task_id
from tasktrail.projections.audit.timeline import Step, StepKind, Timeline
from tasktrail.services.sources import open_source

DEMO = (sys.executable, "-m", "tasktrail.demo", "run")
SCENARIOS = ["completed", "tool_error", "failed", "elicitation", "sampling", "cancelled", "expired", "foreign"]
WITHIN_S = 120


class Ran(msgspec.Struct, kw_only=True):
    """A finished run: its document, what it printed beside, its exit code, seconds of CPU time, its trail."""

    document: Any
    stderr: str
    code: int
    cpu_s: float
    data: Path


def cpu_s() -> float:
    """CPU time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Run the demo once, as the command line does, on a clean directory that it keeps."""
    data, before = tmp_path_factory.mktemp("demo") / "trail", cpu_s()
    command = [sys.executable, "-m", "tasktrail.services.cli", "demo", "--data", str(data), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WITHIN_S)
    document = json.loads(done.stdout) if done.stdout else None
    return Ran(document=document, stderr=done.stderr, code=done.returncode, cpu_s=cpu_s() - before, data=data)


def timelines(ran: Ran) -> dict[str, Timeline]:
    """The kept timelines by scenario, read from the stopped store."""
    with open_source(ran.data) as source:
        found = {task["scenario"]: source.timeline(task["taskId"]) for task in ran.document["tasks"]}
    return {scenario: timeline for scenario, timeline in found.items() if timeline is not None}


@pytest.mark.requirement("A1", "A4", "L1", "L7", "L8", "R1", "R4", "T3")
def test_every_expectation_holds(ran: Ran) -> None:
    """Exit code 0 only if every expectation held."""
    assert [one["what"] for one in ran.document["expectations"] if not one["held"]] == [], ran.stderr
    assert len(ran.document["expectations"]) > 30
    assert ran.code == 0
    assert ran.stderr == ""


def test_the_document_has_the_shape_of_the_issue(ran: Ran) -> None:
    """One document: tasks with scenario, taskId, task_ref, status; expectations with what, held."""
    assert list(ran.document) == ["tasks", "expectations"]
    assert {tuple(task) for task in ran.document["tasks"]} == {("scenario", "taskId", "task_ref", "status")}
    assert {tuple(one) for one in ran.document["expectations"]} == {("what", "held")}
    assert [task["scenario"] for task in ran.document["tasks"]] == SCENARIOS
    assert all(is_task_id(task["taskId"]) and is_task_id(task["task_ref"]) for task in ran.document["tasks"])
    statuses = {task["scenario"]: task["status"] for task in ran.document["tasks"]}
    assert statuses["failed"] == "failed"
    assert statuses["cancelled"] == statuses["expired"] == "cancelled"
    assert {statuses[name] for name in SCENARIOS} == {"completed", "failed", "cancelled"}


def test_it_is_quick(ran: Ran) -> None:
    """Less than 20 s; CPU time of all its processes, which other work on this machine does not change."""
    assert ran.cpu_s < 20


def test_its_trail_stays_and_says_the_same(ran: Ran) -> None:
    """`--data DIR` keeps its trail there."""
    refs = {task["scenario"]: task["task_ref"] for task in ran.document["tasks"]}
    statuses = {task["scenario"]: task["status"] for task in ran.document["tasks"]}
    kept = timelines(ran)
    assert {name: timeline.task_ref for name, timeline in kept.items()} == refs
    assert {name: timeline.task.status for name, timeline in kept.items() if timeline.task} == statuses


def failed(check: Callable[[Checks], None]) -> list[str]:
    """What does not hold."""
    checks = Checks()
    check(checks)
    return [one.what for one in checks.expectations if not one.held]


def changed(timeline: Timeline, steps: Iterable[Step]) -> Timeline:
    """The same with other steps."""
    return msgspec.structs.replace(timeline, steps=tuple(steps))


@pytest.mark.requirement("A4")
def test_an_attempt_that_is_missing_or_unexplained_would_be_noticed(ran: Ran) -> None:
    """Each foreign attempt must be seen in the attacked task's timeline with its true reason: no vacuous check."""
    kept = timelines(ran)["foreign"]
    who = {(step.who.sub, step.who.iss) for step in kept.steps if step.kind is StepKind.DENIAL and step.who}
    issuers = {str(sub): str(iss) for sub, iss in who}
    attackers = [
        Attacker(name="bob", iss=issuers["bob"], differs=("sub",)),
        Attacker(name="eve", iss=issuers["eve"], differs=("tenant", "iss", "sub")),
    ]
    assert failed(lambda checks: trail.check_attacked(checks, kept, attackers)) == []
    denials = [step for step in kept.steps if step.kind is StepKind.DENIAL]
    assert len(denials) == 6
    for denial in denials:
        without = changed(kept, (step for step in kept.steps if step is not denial))
        silent = msgspec.structs.replace(denial, reasons={})
        unexplained = changed(kept, (silent if step is denial else step for step in kept.steps))
        for worse in (without, unexplained):
            checks = Checks()
            trail.check_attacked(checks, worse, attackers)
            assert [one.held for one in checks.expectations].count(False) == 1


@pytest.mark.requirement("A5")
def test_a_level_that_was_raised_would_be_noticed(ran: Ran) -> None:
    """Nobody's word is taken for more than it is: no vacuous check either."""
    kept = timelines(ran)
    assert failed(lambda checks: trail.check_all(checks, list(kept.values()))) == []
    first, *others = kept["completed"].steps
    assert first.who is not None
    raised = msgspec.structs.replace(first, who=msgspec.structs.replace(first.who, level="verified"))
    worse = changed(kept["completed"], (raised, *others))
    assert len(failed(lambda checks: trail.check_all(checks, [worse]))) == 1
    two_parts = changed(kept["elicitation"], kept["elicitation"].steps[:-3])
    assert failed(lambda checks: trail.check_two_parts(checks, two_parts, "bob")) != []
    assert len(failed(lambda checks: trail.check_ended(checks, kept["expired"], kept["cancelled"]))) == 2


def test_nothing_expected_is_nothing_held() -> None:
    """A demo that looked at nothing has shown nothing."""
    assert not Checks().held


@pytest.fixture
def temporary(tmp_path: Path) -> Generator[dict[str, str]]:
    """Give an environment whose temporary files go to a directory of this test; it must be empty in the end."""
    place = tmp_path / "tmp"
    place.mkdir()
    yield os.environ | {"TMPDIR": str(place), "COLUMNS": "100"}
    assert list(place.iterdir()) == []


def processes(marker: str) -> list[list[str]]:
    """Command lines of all processes that name `marker`."""
    found: list[list[str]] = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if any(marker in part for part in line):
            found.append(line)
    return found


def test_a_person_is_told_a_story(temporary: dict[str, str]) -> None:
    """What a newcomer sees first: each scenario with its outcome, timelines, expectations with marks, where to go."""
    done = subprocess.run(DEMO, env=temporary, capture_output=True, text=True, check=False, timeout=WITHIN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    told = [line.split()[1] for line in lines if line.split()[:1] == ["✓"] and line.split()[1] in SCENARIOS]
    assert told == SCENARIOS
    positions = [done.stdout.index(part) for part in ("Eight things", "tasktrail timeline -", "What had to hold")]
    assert positions == sorted(positions)
    assert "other-identity-context" in done.stdout
    assert "✗" not in done.stdout.partition("What had to hold")[2]
    assert "tasktrail up --demo" in lines[-2]
    assert processes(temporary["TMPDIR"]) == []


def test_what_cannot_start_is_said_and_fails(tmp_path: Path) -> None:
    """Exit code 0 only if every expectation held: a directory that cannot be one is an expectation that did not."""
    (tmp_path / "file").write_text("not a directory")
    command = [*DEMO, "--data", str(tmp_path / "file"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WITHIN_S)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "tasks": [],
        "expectations": [{"what": "the demo runs to its end", "held": False}],
    }
    assert "tasktrail up ended with exit code" in done.stderr


def test_interrupted_it_takes_everything_with_it(temporary: dict[str, str]) -> None:
    """SIGTERM in the middle: no process and no file is left."""
    marker = temporary["TMPDIR"]
    running = subprocess.Popen(DEMO, env=temporary, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + WITHIN_S
    while not list(Path(marker).glob("*/trail/service.json")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline, list(Path(marker).rglob("*"))
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=WITHIN_S)
    assert running.returncode == 130, said
    assert said == b""
    assert processes(marker) == []
