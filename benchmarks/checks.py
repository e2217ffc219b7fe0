"""What each check of an access costs: `python -m benchmarks checks`.

Guarantees: the product's own code, alone on one core; every check is timed in batches, and what is told is the median
batch, beside the least and the greatest. Nothing is compared with anything.

    python -m benchmarks checks [--json] [--quick]
"""

import argparse
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.conditions import observe
from benchmarks.document import FORMAT, Conditions
from benchmarks.rounds import Plan
from tasktrail.events.authority import Binding, BindingCheck, BindingMode
from tasktrail.events.task import evolve
from tasktrail.services.access import secrets as looking
from tasktrail.services.access.limits import Minute, Pace
from tasktrail.services.access.policy import Action, Policies
from tasktrail.services.keyring import Keyring
from tasktrail.services.revocations import Revocation, Revocations
from tasktrail.testing.scenario import NOW_MS, authority, created

REVOCATIONS, QUICK_REVOCATIONS = 100_000, 100
BATCHES, QUICK_BATCHES = 30, 2
BATCH_S, QUICK_BATCH_S = 0.05, 0.001
MIB = 2**20
"""What is looked through for secrets."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check's time in us: the median batch's, the least and the greatest."""

    us: float
    least_us: float
    greatest_us: float
    what: str


class Checks(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run."""

    format: int
    conditions: Conditions
    revocations: int
    checks: dict[str, Check]


class _Timing:
    """Batches of about `batch_s` seconds."""

    def __init__(self, batches: int, batch_s: float) -> None:
        self._batches, self._batch_s = batches, batch_s

    def of(self, what: str, one: Callable[[], object], *, once: bool = False) -> Check:
        """The time of one call; `once`: it can be made only once."""
        if once:
            took = [_took(one, 1)]
        else:
            calls = 1
            while _took(one, calls) < self._batch_s:
                calls *= 2
            took = [_took(one, calls) / calls for _ in range(self._batches)]
        us = [round(seconds * 1e6, 2) for seconds in took]
        return Check(us=round(statistics.median(us), 2), least_us=min(us), greatest_us=max(us), what=what)


def _took(one: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        one()
    return time.perf_counter() - began


def _deciding(timing: _Timing) -> Iterator[tuple[str, Check]]:
    who, task, same, minute = authority(), evolve(None, created()), BindingCheck(mode=BindingMode.EXACT), count()
    kept, fresh = Policies(lambda: NOW_MS), Policies(lambda: NOW_MS + next(minute) * 60_000)
    for policies in (kept, fresh):
        if policies.decide(Action.GET, who, about=task, binding=same).effect != "allow":
            message = "the shipped policy denies a creator"
            raise AssertionError(message)
    yield (
        "policy, kept",
        timing.of("a decision made before", lambda: kept.decide(Action.GET, who, about=task, binding=same)),
    )
    yield (
        "policy, made",
        timing.of(
            "one that Cedar makes: the task is a minute older each time",
            lambda: fresh.decide(Action.GET, who, about=task, binding=same),
        ),
    )


def _limiting(timing: _Timing) -> Iterator[tuple[str, Check]]:
    clock, keys = count(0, 1_000), [f"p{number}" for number in range(100)]
    pace, minute, turn = Pace(3), Minute(10**9), count()
    yield "limit, poll", timing.of("the pace of one task's polls", lambda: pace.wait_ms("task", 1_000, next(clock)))

    def counted() -> None:
        now, key = next(clock), keys[next(turn) % len(keys)]
        minute.wait_ms(key, now)
        minute.add(key, now)

    yield "limit, minute", timing.of("one more within a minute, by 100 principals in turn", counted)


def _looking(timing: _Timing) -> Iterator[tuple[str, Check]]:
    record = {"id": 17, "name": "a name as people have them", "tags": ["one", "two"], "text": "words " * 20}
    ordinary = msgspec.json.encode([record] * (MIB // len(msgspec.json.encode(record)) + 1))[:MIB]
    yield "secrets, 1 MiB", timing.of("a MiB of ordinary JSON", lambda: looking.kinds(ordinary))
    yield "secrets, 1 KiB", timing.of("a KiB of it", lambda: looking.kinds(ordinary[:1024]))


def _revoked(timing: _Timing, many: int, folder: Path) -> Iterator[tuple[str, Check]]:
    keyring = Keyring.create(folder)
    names = Revocations(keyring.pseudonym)
    for number in range(many):
        one = Revocation(
            id=f"r{number}", kind="principal", iss="https://id.example", sub=f"s{number}", reason="left", at_ms=0
        )
        names.add(one)
    who = Binding(tenant="default", iss="https://id.example", sub="ana", client_id="desk")
    hash_, jti = secrets.token_urlsafe(32), "jti"
    yield "revocation, not", timing.of("nothing names the caller", lambda: names.naming(who, hash_, jti))
    found = msgspec.structs.replace(who, sub=f"s{many // 2}")
    yield "revocation, yes", timing.of("one does", lambda: names.naming(found, hash_, jti))
    veiled = msgspec.structs.replace(who, sub=keyring.pseudonym("default", "ana"))
    first = timing.of(
        "the first caller by pseudonym: all names become pseudonyms", lambda: names.naming(veiled), once=True
    )
    yield "revocation, first by pseudonym", first
    yield "revocation, by pseudonym", timing.of("the next ones", lambda: names.naming(veiled))


def measure(batches: int, batch_s: float, many: int) -> dict[str, Check]:
    """Every check."""
    timing = _Timing(batches, batch_s)
    with tempfile.TemporaryDirectory(prefix="tasktrail-benchmark-") as folder:
        return {
            name: check
            for some in (
                _deciding(timing),
                _limiting(timing),
                _looking(timing),
                _revoked(timing, many, Path(folder)),
            )
            for name, check in some
        }


def _show(document: Checks) -> None:
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    told = document.conditions
    out.print(f"{told.date} · {told.machine}, {told.cores} cores · {told.python} · load {told.load_average}")
    out.print(f"{document.revocations:,} revocations", style="dim")
    table = Table()
    table.add_column("check")
    for heading in ("us", "least", "greatest"):
        table.add_column(heading, justify="right")
    table.add_column("what")
    for name, check in document.checks.items():
        table.add_row(name, f"{check.us:,.2f}", f"{check.least_us:,.2f}", f"{check.greatest_us:,.2f}", check.what)
    out.print(table)


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks checks", description="what each check costs")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="see that everything works; the figures mean nothing")
    given = parser.parse_args(arguments)
    quick = (QUICK_BATCHES, QUICK_BATCH_S, QUICK_REVOCATIONS)
    batches, batch_s, many = quick if given.quick else (BATCHES, BATCH_S, REVOCATIONS)
    conditions = observe(Plan(rounds=batches, round_s=batch_s, warm_up_s=0), Path.cwd())
    checks = measure(batches, batch_s, many)
    document = Checks(format=FORMAT, conditions=conditions, revocations=many, checks=checks)
    if given.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
    else:
        _show(document)
    return 0
