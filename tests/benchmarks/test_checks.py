"""`python -m benchmarks checks` works; its figures are not judged."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_quick_run_tells_what_each_check_costs() -> None:
    command = [sys.executable, "-m", "benchmarks", "checks", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    assert {name.partition(",")[0] for name in told["checks"]} == {"policy", "limit", "secrets", "revocation"}
    for check in told["checks"].values():
        assert 0 < check["least_us"] <= check["us"] <= check["greatest_us"]
