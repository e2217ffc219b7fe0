"""Requirements are data: `requirements.toml` and the markers in the tests say the same thing.

Markers are read from the source text, so the answer does not depend on which tests were selected to run.
"""

import ast
import json
import tomllib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import pytest

TESTS = Path(__file__).parent


class Row(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One requirement; the head of requirements.toml explains the fields."""

    section: str
    must: str
    status: Literal["planned", "partial", "shown"]
    tests: list[str] = []
    note: str = ""


def marked_ids(source: str) -> set[str]:
    """Ids of the `requirement(...)` calls in a module; an argument that is not a literal stands as its own text."""
    ids: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="mark"), attr="requirement"), args=args):
                ids |= {str(arg.value) if isinstance(arg, ast.Constant) else ast.unparse(arg) for arg in args}
            case _:
                pass
    return ids


def files_by_id() -> dict[str, set[str]]:
    """Id to the test files (paths from the repository's root) that hold a test marked with it."""
    marked: defaultdict[str, set[str]] = defaultdict(set)
    for path in TESTS.rglob("test_*.py"):
        for requirement in marked_ids(path.read_text(encoding="utf-8")):
            marked[requirement].add(path.relative_to(TESTS.parent).as_posix())
    return marked


def differences(rows: Mapping[str, Row], marked: Mapping[str, set[str]]) -> list[str]:
    """Each place where the rows and the markers differ, with what to write instead."""
    found = [f"{key} is no row, and is marked in {sorted(marked[key])}" for key in sorted(marked.keys() - rows.keys())]
    for key, row in rows.items():
        files = sorted(marked.get(key, ()))
        if row.status == "planned" and files:
            found.append(f"{key} is planned and has tests: make it partial or shown")
        if row.status != "planned" and not files:
            found.append(f"{key} is {row.status} and no test is marked with it")
        if row.tests != files:
            found.append(f"{key} should say: tests = {json.dumps(files)}")
        if (row.status == "partial") != bool(row.note):
            found.append(f"{key}: a partial row, and no other, has a note of what is still planned")
    return found


def test_requirements_and_markers_say_the_same() -> None:
    """Style: a requirement that is not planned names its tests, and a requirement test has an id."""
    text = (TESTS / "requirements.toml").read_text(encoding="utf-8")
    rows = msgspec.convert(tomllib.loads(text), dict[str, Row])
    found = differences(rows, files_by_id())
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("row", "marked", "said"),
    [
        ({"status": "planned"}, {"X1": {"tests/test_a.py"}}, "X1 is planned and has tests"),
        ({"status": "shown"}, {}, "X1 is shown and no test is marked"),
        (
            {"status": "shown", "tests": ["tests/test_gone.py"]},
            {"X1": {"tests/test_a.py"}},
            'tests = ["tests/test_a.py"]',
        ),
        ({"status": "partial", "tests": ["tests/test_a.py"]}, {"X1": {"tests/test_a.py"}}, "has a note"),
        ({"status": "planned"}, {"X2": {"tests/test_a.py"}}, "X2 is no row"),
    ],
)
def test_each_kind_of_difference_is_found(row: dict[str, object], marked: dict[str, set[str]], said: str) -> None:
    """The check itself: one planted difference of each kind."""
    rows = {"X1": msgspec.convert({"section": "S", "must": "M", **row}, Row)}
    assert any(said in difference for difference in differences(rows, marked))


def test_markers_are_found_wherever_they_stand() -> None:
    """pytest allows a marker on a function, a class, a parameter and a module."""
    source = """
pytestmark = [pytest.mark.requirement("X1")]

@pytest.mark.requirement("X2", "X3")
class TestThing:
    @pytest.mark.parametrize("a", [pytest.param(1, marks=pytest.mark.requirement("X4"))])
    def test_it(self, a): ...

@pytest.mark.requirement(SOME)
def test_other(): ...
"""
    assert marked_ids(source) == {"X1", "X2", "X3", "X4", "SOME"}
