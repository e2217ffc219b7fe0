"""`python -m benchmarks answers` works and its statistics are right; its figures are not judged."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESAMPLES = 200
BASELINE, OWN = "unknown", "own"

Compared = Callable[[dict[str, list[float]], int], dict[str, Any]]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Compared:
    """The statistics of the benchmark, which is not installed: `python -m benchmarks` runs in the project's folder."""
    monkeypatch.syspath_prepend(ROOT)
    found: Compared = importlib.import_module("benchmarks.answers").compared
    return found


def test_answers_that_take_the_same_time_tell_nothing(compared: Compared) -> None:
    """By definition: no difference of medians, and each is slower in half of all pairs, ties counted as halves."""
    times = [0.001, 0.002, 0.002, 0.003] * 10
    kind = compared({BASELINE: times, "foreign": list(times)}, RESAMPLES)["foreign"]
    assert (kind.count, kind.difference_ms, kind.low_ms, kind.high_ms, kind.slower) == (40, 0, 0, 0, 0.5)


def test_answers_that_always_take_longer_tell_everything(compared: Compared) -> None:
    """By hand: every time is 5 ms longer, which is more than all of them differ among themselves."""
    times = [number / 10_000 for number in range(20)]
    kind = compared({BASELINE: times, "foreign": [one + 0.005 for one in times]}, RESAMPLES)["foreign"]
    assert kind.slower == 1
    assert kind.low_ms == kind.difference_ms == kind.high_ms == pytest.approx(5)


def test_the_interval_holds_the_difference_and_the_percentiles_are_ranks(compared: Compared) -> None:
    """Nearest rank: of 100 values 1 to 100 the 95th and the 99th."""
    base = [number / 1000 for number in range(1, 101)]
    kind = compared({BASELINE: base, "foreign": [one * 1.1 for one in base]}, RESAMPLES)["foreign"]
    assert kind.low_ms < kind.difference_ms < kind.high_ms
    assert compared({BASELINE: base}, RESAMPLES)[BASELINE].p95_ms == pytest.approx(95)
    assert compared({BASELINE: base}, RESAMPLES)[BASELINE].p99_ms == pytest.approx(99)


def test_a_quick_run_asks_for_every_kind_of_handle_equally_often(tmp_path: Path) -> None:
    """Issue: answer times for unknown, foreign, expired and malformed ids; the caller's own for comparison."""
    command = [sys.executable, "-m", "benchmarks", "answers", "--json", "--quick", "--data", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    assert told["kinds"].keys() >= {BASELINE, "malformed", "foreign", "expired", OWN}
    assert len({kind["count"] for kind in told["kinds"].values()}) == 1
    for kind in told["kinds"].values():
        assert 0 < kind["p50_ms"] <= kind["p95_ms"] <= kind["p99_ms"]
        assert kind["low_ms"] <= kind["high_ms"]
        assert 0 <= kind["slower"] <= 1
    assert told["conditions"]["rounds"] == told["kinds"][OWN]["count"]
    assert not list(tmp_path.iterdir()), "a benchmark leaves nothing behind"
