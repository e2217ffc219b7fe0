"""What forensics costs as a trail grows: `python -m benchmarks forensics`.

Guarantees: the product's own engines on a trail that is made, not recorded (`forensics_trail`); the same trail each
time. Up to `--built` entries it is taken up as messages, and rates are told; a larger store is grown from that
one by copying rows, and only questions are asked of it. Nothing is judged: aims stand beside the figures.

    python -m benchmarks forensics [--json] [--quick] [--sizes N …] [--built N] [--data DIR]
"""

import argparse
import os
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import forensics_questions, forensics_rates
from benchmarks.conditions import observe
from benchmarks.document import FORMAT, Conditions
from benchmarks.forensics_questions import Asked, Subject
from benchmarks.forensics_rates import Rate
from benchmarks.rounds import Plan
from tasktrail.projections.audit.store import AuditStore

SIZES, QUICK_SIZES = (100_000, 1_000_000, 10_000_000), (300, 600, 1_200)
BUILT, QUICK_BUILT = 1_000_000, 600
RUNS, QUICK_RUNS = 3, 1
_MB = 1_000_000
_LEAST = 100
_err = Console(stderr=True, highlight=False, soft_wrap=True)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """One size of trail. `rates` and `tlog_mb` are of what was taken up as messages, `copied`: more was copied.

    `peak_mb`: the most memory this process had held until then. Sizes are in millions of bytes.
    """

    entries: int
    copied: bool
    rates: dict[str, Rate]
    store_mb: float
    tlog_mb: float | None
    peak_mb: float
    load_average: float
    questions: dict[str, Asked]


class Forensics(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run."""

    format: int
    conditions: Conditions
    sizes: list[Size]


def measure(sizes: Sequence[int], built: int, runs: int, folder: Path) -> Iterator[Size]:
    """Every size, the smallest first."""
    path, tlog = folder / "audit.duckdb", folder / "tlog"
    about: Subject | None = None
    for entries in sorted(sizes):
        rates: dict[str, Rate] = {}
        if about is None or about.entries < min(entries, built):
            path.unlink(missing_ok=True)
            place = tlog / str(entries)
            place.mkdir(parents=True)
            begun = min(entries, built)
            _err.print(f"{begun:,} entries are taken up …", style="dim")
            rates, made = forensics_rates.measure(begun, path, place)
            about = forensics_questions.subject_of(made)
        store = AuditStore.open(path)
        copied = entries > about.entries
        if copied:
            _err.print(f"{entries:,} entries by copies …", style="dim")
            about = forensics_questions.grow(store, about, entries)
            store.close()
            store = AuditStore.open(path)
        _err.print(f"{entries:,} entries are asked …", style="dim")
        asked = dict(forensics_questions.ask(store, about, runs))
        store.close()
        yield Size(
            entries=entries,
            copied=copied,
            rates=rates,
            store_mb=round(path.stat().st_size / _MB, 1),
            tlog_mb=_bytes_of(tlog / str(entries)) if rates else None,
            peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MB, 1),
            load_average=round(os.getloadavg()[0], 2),
            questions=asked,
        )


def _bytes_of(folder: Path) -> float:
    return round(sum(one.stat().st_size for one in folder.rglob("*") if one.is_file()) / _MB, 1)


def _show(document: Forensics) -> None:
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    told = document.conditions
    out.print(f"{told.date} · {told.machine}, {told.cores} cores · {told.python} · load {told.load_average}")
    for size in document.sizes:
        how = "grown by copies" if size.copied else "taken up as messages"
        log = "" if size.tlog_mb is None else f", log {size.tlog_mb:,.0f} MB"
        out.print(
            f"\n{size.entries:,} entries, {how}: store {size.store_mb:,.0f} MB{log}, "
            f"memory at most {size.peak_mb:,.0f} MB, load {size.load_average}"
        )
        if size.rates:
            out.print(_rates(size.rates))
        out.print(_questions(size.questions))


def _rates(rates: dict[str, Rate]) -> Table:
    table = Table()
    table.add_column("rate")
    for heading in ("entries", "entries/s", "per CPU second", "aim"):
        table.add_column(heading, justify="right")
    table.add_column("what")
    for name, rate in rates.items():
        aim = f"{rate.aim:,.0f}" if rate.aim else ""
        table.add_row(name, f"{rate.entries:,}", f"{rate.per_s:,.0f}", f"{rate.per_cpu_s:,.0f}", aim, rate.what)
    return table


def _questions(questions: dict[str, Asked]) -> Table:
    table = Table()
    table.add_column("question")
    for heading in ("rows", "p50 ms", "max ms", "CPU ms", "next page ms", "aim ms"):
        table.add_column(heading, justify="right")
    for name, asked in questions.items():
        table.add_row(
            name,
            f"{asked.rows:,}",
            f"{asked.p50_ms:,.1f}",
            f"{asked.max_ms:,.1f}",
            f"{asked.cpu_ms:,.1f}",
            "" if asked.next_ms is None else f"{asked.next_ms:,.1f}",
            f"{asked.aim_ms:,.0f}",
        )
    return table


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks forensics", description="what forensics costs as a trail grows"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="see that everything works; the figures mean nothing")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="entries, by default 100,000 to 10,000,000")
    parser.add_argument(
        "--built", type=int, metavar="N", help="up to so many are taken up one by one, by default 1,000,000"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="where data lies: 2 kB for each entry")
    given = parser.parse_args(arguments)
    sizes, built, runs = (QUICK_SIZES, QUICK_BUILT, QUICK_RUNS) if given.quick else (SIZES, BUILT, RUNS)
    sizes, built = given.sizes or sizes, given.built or built
    if min(*sizes, built) < _LEAST or max(sizes) > built * (forensics_questions.COPIES_MAX + 1):
        parser.error(f"sizes go from {_LEAST} to {forensics_questions.COPIES_MAX + 1} times --built")
    with tempfile.TemporaryDirectory(prefix="tasktrail-benchmark-", dir=given.data) as directory:
        folder = Path(directory).resolve()
        conditions = observe(Plan(rounds=runs, round_s=0, warm_up_s=0), folder)
        for warning in conditions.warnings:
            _err.print(f"warning: {warning}", style="yellow")
        found = list(measure(sizes, built, runs, folder))
    document = Forensics(format=FORMAT, conditions=conditions, sizes=found)
    if given.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
    else:
        _show(document)
    return 0
