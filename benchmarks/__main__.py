"""`python -m benchmarks`: every comparison in one run; `answers`, `checks`, `forensics`, `revocation` are of their own.

python -m benchmarks [--json] [--quick] [--only NAME] [--data DIR]
python -m benchmarks answers|revocation [--json] [--quick] [--data DIR]
python -m benchmarks checks [--json] [--quick]
python -m benchmarks forensics [--json] [--quick] [--sizes N ...] [--built N] [--data DIR]
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import answers, append, checks, forensics, over_http, revocation
from benchmarks.conditions import observe
from benchmarks.document import FORMAT, Case, Document
from benchmarks.rounds import Plan, Planned, compare

FULL = Plan(rounds=7, round_s=2.0, warm_up_s=0.5)
QUICK = Plan(rounds=2, round_s=0.1, warm_up_s=0.05)

_Cases = Callable[[Path], AbstractAsyncContextManager[list[Planned]]]
_GROUPS: tuple[tuple[tuple[str, ...], _Cases], ...] = (
    (append.NAMES, append.append_cases),
    (over_http.NAMES, over_http.mcp_cases),
)
"""What each group's questions are called, and how they are set up."""

_OWN = {"answers": answers.main, "checks": checks.main, "forensics": forensics.main, "revocation": revocation.main}
"""Measurements that are no comparison of sides."""

_WIDTH = 140
_err = Console(stderr=True, highlight=False, soft_wrap=True)


async def _measure(only: str, plan: Plan, directory: Path) -> Document:
    conditions = observe(plan, directory)
    for warning in conditions.warnings:
        _err.print(f"warning: {warning}", style="yellow")
    cases: list[Case] = []
    for number, (names, setting_up) in enumerate(_GROUPS):
        if not any(name.startswith(only) for name in names):
            continue
        place = directory / str(number)
        place.mkdir(mode=0o700)
        async with setting_up(place) as planned:
            for question, sides, in_flight in planned:
                if question.name.startswith(only):
                    _err.print(f"{question.name}, {in_flight} in flight …", style="dim")
                    cases.append(await compare(question, sides, plan, in_flight))
    return Document(format=FORMAT, conditions=conditions, cases=cases)


def _show(document: Document) -> None:
    told = document.conditions
    out = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    out.print(
        f"{told.date} · {told.machine}, {told.cores} cores · {told.system} · {told.python}, {told.loop} · "
        f"sync_interval {told.sync_interval} on {told.filesystem}, fsync {told.fsync_ms} ms · "
        f"load {told.load_average} · {told.rounds} rounds of {told.round_s:g} s"
    )
    out.print(" ".join(f"{name} {number}" for name, number in told.versions.items()), style="dim")
    table = Table()
    for heading in ("case", "in flight", "side"):
        table.add_column(heading)
    for heading in ("ops/s", "p50 ms", "p99 ms", "CPU ms/op", "of it broker", "ratio", "min … max", "aim"):
        table.add_column(heading, justify="right")
    for case in document.cases:
        for name, figures in case.sides.items():
            ratio = case.ratios.get(name)
            first = name == case.baseline
            table.add_row(
                case.name if first else "",
                str(case.in_flight) if first else "",
                name,
                f"{figures.ops_per_s:,.0f}",
                f"{figures.p50_ms:.2f}",
                f"{figures.p99_ms:.2f}",
                f"{figures.cpu_ms_per_op:.2f}",
                f"{figures.broker_cpu_ms_per_op:.2f}",
                f"{ratio.median:.2f}" if ratio else "",
                f"{ratio.min:.2f} … {ratio.max:.2f}" if ratio else "",
                f"{case.aims[name]:.2f}" if name in case.aims else "",
                end_section=name == list(case.sides)[-1],
            )
    out.print(table)


def main() -> int:
    """Measure and print."""
    own = _OWN.get(sys.argv[1] if len(sys.argv) > 1 else "")
    if own is not None:
        return own(sys.argv[2:])
    names = ", ".join(name for group, _ in _GROUPS for name in group)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="tasktrail beside what it stands on",
        epilog="of their own: `answers`, times by kind of handle; `checks`, costs; `forensics`, a growing "
        "trail; `revocation`, how soon one holds",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document (docs/performance.md)")
    parser.add_argument("--quick", action="store_true", help="see that everything works; the figures mean nothing")
    parser.add_argument("--only", default="", metavar="NAME", help=f"cases whose name begins so: {names}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where data lies, on the disk to be measured")
    given = parser.parse_args()
    if not any(name.startswith(given.only) for group, _ in _GROUPS for name in group):
        parser.error(f"no case is called {given.only!r}: {names}")
    with (
        tempfile.TemporaryDirectory(prefix="tasktrail-benchmark-", dir=given.data) as directory,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        document = runner.run(_measure(given.only, QUICK if given.quick else FULL, Path(directory).resolve()))
    if given.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
    else:
        _show(document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
