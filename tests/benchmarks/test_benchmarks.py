"""`python -m benchmarks` works and prints what docs/performance.md describes. Its figures are not judged."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIDES = {
    "append.distinct": {"raw", "ledger", "service"},
    "append.chains": {"raw", "ledger", "service"},
    "create": {"bare", "embedded", "connected"},
    "get": {"bare", "embedded", "connected"},
    "life": {"bare", "embedded", "connected"},
}
BY_NAME = {"versions", "aims", "sides", "ratios"}
"""Members whose own members are named by what they hold."""


def run(*options: str) -> subprocess.CompletedProcess[bytes]:
    """The command as documented, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=600)


def documented() -> dict[str, Any]:
    """The example in docs/performance.md."""
    (block,) = re.findall(
        r"```json\n(.*?)```", (ROOT / "docs" / "performance.md").read_text(encoding="utf-8"), re.DOTALL
    )
    example: dict[str, Any] = json.loads(block)
    return example


def shape(value: Any, name: str = "") -> object:  # noqa: ANN401 - any JSON value
    """Which members there are, and of which type each is."""
    if isinstance(value, dict):
        shapes = {key: shape(one, key) for key, one in value.items()}
        return next(iter(shapes.values()), {}) if name in BY_NAME else shapes
    if isinstance(value, list):
        return [shape(one) for one in value[:1]]
    return "number" if isinstance(value, int | float) else type(value).__name__


def test_a_quick_run_compares_everything_in_one_documented_json_document(tmp_path: Path) -> None:
    """Issue: side by side in one run, with its conditions. Shape: the example in docs/performance.md."""
    done = run("--json", "--quick", "--data", str(tmp_path))
    assert done.returncode == 0, done.stderr.decode()
    told, example = json.loads(done.stdout), documented()
    for conditions in (told["conditions"], example["conditions"]):
        conditions["warnings"] = []  # there may be none
    cases = told["cases"]
    assert shape(told | {"cases": []}) == shape(example | {"cases": []})
    (wanted,) = example["cases"]
    for case in cases:
        assert shape(case | {"aims": {}}) == shape(wanted | {"aims": {}})
        assert case["sides"].keys() == SIDES[case["name"]]
        assert case["ratios"].keys() == SIDES[case["name"]] - {case["baseline"]}
        assert all(side["ops"] > 0 and side["p50_ms"] <= side["p99_ms"] for side in case["sides"].values())
        assert all(len(ratio["rounds"]) == told["conditions"]["rounds"] for ratio in case["ratios"].values())
    assert {case["name"] for case in cases} == SIDES.keys()
    assert not list(tmp_path.iterdir()), "a benchmark leaves nothing behind"


def test_an_unknown_case_is_refused_with_the_names_there_are() -> None:
    """The command's own help: `--only NAME`."""
    done = run("--only", "nothing")
    assert done.returncode == 2
    assert all(name in done.stderr.decode() for name in SIDES)
