"""`python -m benchmarks forensics` works; its figures are not judged."""

import json
import subprocess
import sys
from pathlib import Path

from tasktrail.projections.audit.named import catalogue

ROOT = Path(__file__).resolve().parents[2]
RATES = {"rebuild", "rebuild, Python", "tree", "replay", "digest", "verify", "verify, bare", "verify, signatures"}


def test_a_quick_run_tells_rates_and_how_long_every_named_query_takes(tmp_path: Path) -> None:
    """Issue: verification, rebuild, replay, timeline and any named query, over three sizes."""
    command = [sys.executable, "-m", "benchmarks", "forensics", "--quick", "--json", "--data", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr.decode()
    sizes = json.loads(done.stdout)["sizes"]
    assert [size["copied"] for size in sizes] == [False, False, True]
    for size in sizes:
        asked = {name.partition(",")[0] for name in size["questions"]}
        assert asked == {*catalogue(), "timeline of tasks", "timeline of slow tasks"}
        assert all(0 < one["p50_ms"] <= one["max_ms"] for one in size["questions"].values())
        rates = size["rates"]
        assert rates.keys() == (set() if size["copied"] else RATES)
        assert all(rate["per_s"] > 0 and rate["per_cpu_s"] > 0 for rate in rates.values())
    rows = [size["questions"]["changed_since, the middle"]["rows"] for size in sizes]
    assert 0 < rows[0] < rows[1] < rows[2], "a larger store has more to tell"
    assert not list(tmp_path.iterdir()), "a benchmark leaves nothing behind"
