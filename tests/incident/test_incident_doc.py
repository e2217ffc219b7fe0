"""docs/incident.md is true: its commands, run in order by a shell, say what the page says. Source: issue, style 13.

Times, ages, digests and counts that grow with the reading are compared by their form; references and entry ids by which
is which: one that the page shows twice must be one twice, and a command gets the real one.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.incident.people import LEAKED
from tests.incident.seeded import Story

from tasktrail.testing.service import UpProcess, tasktrail

PAGE = (Path(__file__).parents[2] / "docs" / "incident.md").read_text(encoding="utf-8")
WITHIN_S = 120.0
_ID = re.compile(r"\b(?:[0-9a-f]{40}|[0-9a-f]{64}|[a-z2-7]{32})\b")
_FORMS = (
    (re.compile(r"(\d{4}-\d\d-\d\dT)?\d\d:\d\d:\d\d(\.\d+)?Z?"), "TIME"),
    (re.compile(r"\b\d+ (d|h|m|s)( \d+ (m|s))? (left|ago)"), "AGE"),
    (re.compile(r"\b\d+ entries|\b\d+ checkpoints|size \d+"), "COUNT"),
)


class Shown(NamedTuple):
    """A command of the page, and the lines it shows."""

    command: str
    lines: list[str]


def shown() -> list[Shown]:
    """Every command, in order."""
    lines = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    found: list[Shown] = []
    for line in lines:
        if line.startswith("$ "):
            found.append(Shown(line.removeprefix("$ "), []))
        else:
            found[-1].lines.append(line)
    return found


class Reader:
    """Who follows the page, in a directory with the token. `known`: the page's ids, and the real ones."""

    def __init__(self, folder: Path, data: Path) -> None:
        self._folder = folder
        self.known: dict[str, str] = {}
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("TASKTRAIL_", "PYTHON"))}
        here = {"TASKTRAIL_DATA": str(data), "TASKTRAIL_CASE": "INC-7", "COLUMNS": "100"}
        self._environment = clean | here | {"PATH": f"{tasktrail().parent}:{clean['PATH']}"}

    def follow(self, step: Shown) -> None:
        """Run a command and compare what it says, standard error aside."""
        command = _ID.sub(lambda found: self.known.get(found[0], found[0]), step.command)
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout[-2_000:], done.stderr[-2_000:])
        lines = [line.rstrip() for line in done.stdout.splitlines()]
        assert self._is_same(step.lines, lines), f"$ {command}\n{done.stdout}\n--- the page:\n" + "\n".join(step.lines)

    def _is_same(self, page: list[str], real: list[str]) -> bool:
        """Whether the lines of the page are there, in order, with others only where it leaves some out."""
        at, elided = 0, False
        for line in page:
            if line == "…":
                elided = True
                continue
            reach = range(at, len(real)) if elided else range(at, min(at + 1, len(real)))
            found = next((number for number in reach if self._is_line(line, real[number])), None)
            if found is None:
                return False
            at, elided = found + 1, False
        return elided or at == len(real)

    def _is_line(self, page: str, real: str) -> bool:
        if _formed(page) != _formed(real):
            return False
        pairs = dict(zip(_ID.findall(page), _ID.findall(real), strict=True))
        if any(self.known.get(one, other) != other for one, other in pairs.items()):
            return False
        self.known |= pairs
        return True


def _formed(line: str) -> str:
    line = _ID.sub("ID", line)
    for form, name in _FORMS:
        line = form.sub(name, line)
    return " ".join(line.split())


@pytest.fixture(scope="module")
def served(copied: Callable[[Path], Story], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Story]]:
    data = tmp_path_factory.mktemp("page") / "data"
    story = copied(data)
    with UpProcess(data) as up:
        up.wait_until_ready()
        yield data, story


@pytest.mark.requirement("T4", "T5", "T6", "T7", "T8", "A7", "A8", "A9")
def test_the_page_leads_from_a_leaked_token_to_evidence(served: tuple[Path, Story], tmp_path: Path) -> None:
    """Issue: a leak, from start to evidence, with the real commands and outputs."""
    data, story = served
    (tmp_path / "leaked").touch(mode=0o600)
    (tmp_path / "leaked").write_text(f"{LEAKED}\n")
    reader = Reader(tmp_path, data)
    for step in shown():
        reader.follow(step)
    named = {reader.known[ref] for ref in re.findall(r"\b[a-z2-7]{32}\b", PAGE)}
    assert story.refs("A1", "A2", "A5", "B1") <= named
    assert not (tmp_path / "leaked").exists()


def test_the_page_never_puts_a_token_or_a_task_id_on_a_command_line() -> None:
    """Design 1.5: a task id is a bearer capability; T8: parameters are recorded."""
    assert LEAKED not in PAGE
    for step in shown():
        assert "token=" not in step.command.replace("token=-", ""), step.command
