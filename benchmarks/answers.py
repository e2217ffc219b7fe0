"""Whether the time of an answer tells a stranger why a handle opens nothing: `python -m benchmarks answers`.

Guarantees: one real service in a process of its own, asked over NATS as a connected MCP server asks, by one caller, one
request at a time; in each round every kind of handle is asked for once, in an order drawn anew, so that what else the
machine does hits them alike. The MCP server's own time, which does not depend on the handle, is left out: it could only
hide a difference. Every answer is checked: the caller's own task opens, nothing else does.

    python -m benchmarks answers [--json] [--quick] [--data DIR]
"""

import argparse
import asyncio
import base64
import itertools
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.conditions import LIMITS_LIFTED, observe
from benchmarks.document import FORMAT, Conditions
from benchmarks.rounds import Plan, percentile
from tasktrail.testing.feeding import Feeder, Json, asked, caller, creation
from tasktrail.testing.service import UpProcess

ROUNDS, QUICK_ROUNDS = 3_000, 40
WARM_UP = 50
RESAMPLES, QUICK_RESAMPLES = 2_000, 50
BASELINE, OWN = "unknown", "own"

_CACHED = 64
_POOL = 512
"""Tasks asked for in turn, where a kind is to be out of the service's memory each time: more than it keeps."""

_BRIEF_MS = 1
_LEVEL = 0.95
_CONFIGURATION = f"""[service]
tasks_cached = {_CACHED}

{LIMITS_LIFTED}"""
"""What would turn the caller of a benchmark away is out of the way; everything else is as shipped."""


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """How long the answers to one kind of handle took, in ms, beside those to unknown ones.

    `difference_ms`: median minus the unknown one's; `low_ms`, `high_ms`: its 95 % bootstrap interval, over whole
    rounds. `slower`: how probable it is that an answer of this kind takes longer than one to an unknown id (the
    Mann-Whitney statistic); 0.5 tells nothing.
    """

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    difference_ms: float
    low_ms: float
    high_ms: float
    slower: float


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run."""

    format: int
    conditions: Conditions
    kinds: dict[str, Kind]


def compared(took: dict[str, list[float]], resamples: int) -> dict[str, Kind]:
    """The figures of each kind; the lists hold seconds, the n-th of each from the n-th round."""
    base = took[BASELINE]
    return {name: _kind(times, base, resamples) for name, times in took.items()}


def _kind(times: Sequence[float], base: Sequence[float], resamples: int) -> Kind:
    ordered = sorted(times)
    low, high = _interval(times, base, resamples)
    return Kind(
        count=len(times),
        p50_ms=_ms(statistics.median(times)),
        p95_ms=_ms(percentile(ordered, 0.95)),
        p99_ms=_ms(percentile(ordered, 0.99)),
        difference_ms=_ms(statistics.median(times) - statistics.median(base)),
        low_ms=_ms(low),
        high_ms=_ms(high),
        slower=round(_superiority(times, base), 4),
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 4)


def _interval(times: Sequence[float], base: Sequence[float], resamples: int) -> tuple[float, float]:
    """The bootstrap interval of the difference of medians; rounds are drawn, so that pairs stay together."""
    draw = random.Random(1)  # noqa: S311 - statistics, and the same ones each time
    rounds = range(len(times))
    found: list[float] = []
    for _ in range(resamples):
        drawn = draw.choices(rounds, k=len(times))
        ours = statistics.median([times[one] for one in drawn])
        found.append(ours - statistics.median([base[one] for one in drawn]))
    found.sort()
    return percentile(found, (1 - _LEVEL) / 2), percentile(found, (1 + _LEVEL) / 2)


def _superiority(times: Sequence[float], base: Sequence[float]) -> float:
    """The share of pairs in which the first is greater; ties count half."""
    ranked = sorted([(value, 1) for value in times] + [(value, 0) for value in base])
    below, wins = 0, 0.0
    for _, group in itertools.groupby(ranked, key=lambda one: one[0]):
        sides = [side for _, side in group]
        ours, theirs = sum(sides), len(sides) - sum(sides)
        wins += ours * (below + theirs / 2)
        below += theirs
    return wins / (len(times) * len(base))


_Handles = Callable[[], str]


def _random_id() -> str:
    return base64.b32encode(secrets.token_bytes(20)).decode().lower()


def _random_text() -> str:
    """Of the same length, and of no form of ours."""
    return secrets.token_hex(15) + "-0"


def _in_turn(made: Sequence[str]) -> _Handles:
    turn: Iterator[str] = itertools.cycle(made)
    return lambda: next(turn)


class _Asking:
    """One caller of one service. `kinds` gives the next handle of each kind."""

    def __init__(self, feeder: Feeder) -> None:
        self._feeder = feeder
        self._ana, self._eve = caller("ana"), caller("eve")
        self.kinds: dict[str, _Handles] = {}

    async def prepare(self, pool: int) -> None:
        """Make the tasks."""
        own = await self._make(self._ana, 1)
        foreign, cold = await self._make(self._eve, 1), await self._make(self._eve, pool)
        expired = await self._make(self._ana, pool, _BRIEF_MS)
        self.kinds = {
            BASELINE: _random_id,
            "malformed": _random_text,
            "foreign": _in_turn(foreign),
            "foreign, out of memory": _in_turn(cold),
            "expired": _in_turn(expired),
            OWN: _in_turn(own),
        }

    async def _make(self, who: Json, count: int, ttl_ms: int | None = None) -> list[str]:
        made = [creation(who, secrets.token_hex(16), ttl_ms=ttl_ms) for _ in range(count)]
        return [str((await self._feeder.settled("create", said))["task_id"]) for said in made]

    async def time(self, kind: str) -> float:
        """How long one answer took, in seconds; it was the right one."""
        body = msgspec.json.encode(asked(self._ana, "tasks/get", task_id=self.kinds[kind]()))
        began = time.perf_counter()
        answer = await self._feeder.raw("get", body)
        took = time.perf_counter() - began
        error = msgspec.json.decode(answer).get("error")
        if (error is None) is not (kind == OWN) or (error and error["reason"] != "not_found"):
            message = f"{kind}: answered {error}"
            raise AssertionError(message)
        return took


async def measure(data: Path, rounds: int, resamples: int, pool: int = _POOL) -> dict[str, Kind]:
    """Start a service in `data`, ask, and stop it."""
    config = data / "tasktrail.toml"
    config.write_text(_CONFIGURATION, encoding="utf-8")
    took: dict[str, list[float]] = {}
    order = random.Random(2)  # noqa: S311 - the order of the questions
    with UpProcess(data / "service", environment={"TASKTRAIL_CONFIG": str(config)}) as up:
        feeder = await Feeder.connect(up.adapter(), "benchmark")
        try:
            asking = _Asking(feeder)
            await asking.prepare(pool)
            await asyncio.to_thread(up.wait_until_level)
            for number in range(-min(WARM_UP, rounds), rounds):
                for kind in order.sample(list(asking.kinds), k=len(asking.kinds)):
                    seconds = await asking.time(kind)
                    if number >= 0:
                        took.setdefault(kind, []).append(seconds)
        finally:
            await feeder.close()
    return compared({name: took[name] for name in asking.kinds}, resamples)


def _show(document: Answers) -> None:
    told = document.conditions
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    out.print(f"{told.date} · {told.machine}, {told.cores} cores · {told.system} · load {told.load_average}")
    table = Table("handle", *("n", "p50 ms", "p95 ms", "p99 ms", "p50 less unknown's, ms (95 %)", "slower"))
    for name, kind in document.kinds.items():
        table.add_row(
            name,
            f"{kind.count:,}",
            f"{kind.p50_ms:.3f}",
            f"{kind.p95_ms:.3f}",
            f"{kind.p99_ms:.3f}",
            "" if name == BASELINE else f"{kind.difference_ms:+.4f} ({kind.low_ms:+.4f} … {kind.high_ms:+.4f})",
            "" if name == BASELINE else f"{kind.slower:.3f}",
        )
    out.print(table)


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks answers", description="answer times by kind of handle")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="see that everything works; the figures mean nothing")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where data lies")
    given = parser.parse_args(arguments)
    rounds, resamples = (QUICK_ROUNDS, QUICK_RESAMPLES) if given.quick else (ROUNDS, RESAMPLES)
    with (
        tempfile.TemporaryDirectory(prefix="tasktrail-benchmark-", dir=given.data) as directory,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        place = Path(directory).resolve()
        conditions = observe(Plan(rounds=rounds, round_s=0, warm_up_s=0), place)
        pool = _POOL if not given.quick else _CACHED // 4
        document = Answers(
            format=FORMAT, conditions=conditions, kinds=runner.run(measure(place, rounds, resamples, pool))
        )
    if given.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
    else:
        _show(document)
    return 0
