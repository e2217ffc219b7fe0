"""How long two services go on accepting a principal that one of them has revoked: `python -m benchmarks revocation`.

Guarantees: two real `tasktrail up` on one nats-server; each principal is revoked over HTTP at one of them, in turn,
while its handle is asked for over NATS, eight requests at a time and without a pause, by whichever of the two takes a
request. An answer that opened the task counts when it has come, so what was under way when the revocation was answered
counts too.

    python -m benchmarks revocation [--json] [--quick] [--data DIR]
"""

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.conditions import observe
from benchmarks.document import FORMAT, Conditions
from benchmarks.rounds import Plan, percentile
from tasktrail.services.broker import Broker
from tasktrail.services.connection import Connection
from tasktrail.testing.feeding import Feeder, Refused, asked, caller, creation
from tasktrail.testing.fleet import fleet, last_true
from tasktrail.testing.service import UpProcess

REVOCATIONS, QUICK_REVOCATIONS = 300, 5
WARM_UP = 5
ANSWERED, AFTER_ANSWER, AFTER_ORDER = "the order was answered", "accepted after the answer", "accepted after the order"

_ISSUER = "https://id.example"
_GIVE_UP_S = 60.0
_MANY = 1_000_000
_CONFIGURATION = f"""[limits]
creations_per_minute_per_principal = {_MANY}
polls_early = {_MANY}
failed_lookups_per_minute_per_principal = {_MANY}
failed_lookups_per_minute_per_tenant = {_MANY}
"""
"""What would turn the caller of a benchmark away is out of the way; everything else is as shipped."""


class Took(msgspec.Struct, frozen=True, kw_only=True):
    """How long something took, in ms; 0 where nothing was accepted any more."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run."""

    format: int
    conditions: Conditions
    took: dict[str, Took]


def summed_up(seconds: Sequence[float]) -> Took:
    """The figures of these times; percentiles by nearest rank."""
    ordered = sorted(seconds)
    p50, p95, p99 = (round(percentile(ordered, share) * 1000, 3) for share in (0.5, 0.95, 0.99))
    return Took(count=len(ordered), p50_ms=p50, p95_ms=p95, p99_ms=p99, max_ms=round(ordered[-1] * 1000, 3))


async def _opens(feeder: Feeder, sub: str, handle: str) -> bool:
    try:
        await feeder.request("get", asked(caller(sub, _ISSUER), "tasks/get", task_id=handle))
    except Refused as refused:
        if refused.reason != "not_found":
            raise
        return False
    return True


async def _one(feeder: Feeder, by: UpProcess, sub: str) -> dict[str, float]:
    """Make a task, revoke its creator, and see when that took effect; in seconds."""
    made = await feeder.settled("create", creation(caller(sub, _ISSUER), secrets.token_hex(16)))
    asking = asyncio.create_task(last_true(partial(_opens, feeder, sub, made["task_id"]), within_s=_GIVE_UP_S))
    order = partial(by.order, "revocations", kind="principal", iss=_ISSUER, sub=sub, reason="benchmark")
    began = time.perf_counter()
    await asyncio.to_thread(order)
    answered = time.perf_counter()
    last = await asking
    return {
        ANSWERED: answered - began,
        AFTER_ANSWER: max(0.0, last - answered),
        AFTER_ORDER: max(0.0, last - began),
    }


async def _measure(url: str, ups: Sequence[UpProcess], revocations: int) -> dict[str, Took]:
    took: dict[str, list[float]] = {ANSWERED: [], AFTER_ANSWER: [], AFTER_ORDER: []}
    feeder = await Feeder.connect(Connection.from_text(url), "benchmark")
    try:
        for number in range(-WARM_UP, revocations):
            seen = await _one(feeder, ups[number % len(ups)], f"leaver-{number}")
            for name, seconds in seen.items() if number >= 0 else ():
                took[name].append(seconds)
    finally:
        await feeder.close()
    return {name: summed_up(seconds) for name, seconds in took.items()}


def measure(place: Path, revocations: int) -> dict[str, Took]:
    """Start everything in `place`, revoke, and stop it."""
    config = place / "tasktrail.toml"
    config.write_text(_CONFIGURATION, encoding="utf-8")
    with Broker.start(place / "nats") as broker:
        url = f"nats://{broker.user}:{broker.password}@127.0.0.1:{broker.port}"
        with (
            fleet(url, place, environment={"TASKTRAIL_CONFIG": str(config)}) as ups,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            return runner.run(_measure(url, ups, revocations))


def _show(document: Revocation) -> None:
    told = document.conditions
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    out.print(f"{told.date} · {told.machine}, {told.cores} cores · {told.system} · load {told.load_average}")
    table = Table("two services, one broker", *("n", "p50 ms", "p95 ms", "p99 ms", "max ms"))
    for name, took in document.took.items():
        figures = (took.p50_ms, took.p95_ms, took.p99_ms, took.max_ms)
        table.add_row(name, str(took.count), *(f"{figure:.1f}" for figure in figures))
    out.print(table)


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks revocation", description="how soon a revocation holds")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="see that everything works; the figures mean nothing")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where data lies")
    given = parser.parse_args(arguments)
    revocations = QUICK_REVOCATIONS if given.quick else REVOCATIONS
    with tempfile.TemporaryDirectory(prefix="tasktrail-benchmark-", dir=given.data) as directory:
        place = Path(directory).resolve()
        conditions = observe(Plan(rounds=revocations, round_s=0, warm_up_s=0), place)
        document = Revocation(format=FORMAT, conditions=conditions, took=measure(place, revocations))
    if given.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
    else:
        _show(document)
    return 0
