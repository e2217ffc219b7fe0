"""Rounds: the sides of a comparison take turns, A B A B …, so that what else the machine does hits them alike.

Guarantees: only one side works at a time; after each round its side is waited for until its processes are quiet, so
that no side pays for another's rest; the ratio is of two neighbouring rounds, and its median is what counts.

    case = await compare("append", sides, plan, in_flight=64)
"""

import asyncio
import math
import statistics
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec
import psutil

from benchmarks.document import Case, Figures, Ratio

QUIET_SHARE = 0.1
"""A process below this share of one core is quiet."""

_BROKER = "nats-server"
_LOOK_S = 0.1
_QUIET_WITHIN_S = 30.0


class Side(Protocol):
    """One of the things compared. The first side of a comparison is the baseline."""

    name: str

    async def begin(self) -> None:
        """Make what the operations need."""
        ...

    async def one(self, worker: int) -> None:
        """One operation by one of the workers; raises when it did not do what it should."""
        ...

    async def settle(self) -> None:
        """End what the round left unfinished."""
        ...

    def processes(self) -> Sequence[psutil.Process]:
        """The processes under test."""
        ...


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How long to measure."""

    rounds: int
    round_s: float
    warm_up_s: float


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared."""

    name: str
    what: str
    aims: dict[str, float] = {}


Planned = tuple[Question, Sequence[Side], int]
"""A question, who answers it, and how many operations are in flight."""


class _Tally:
    """What one side did, over all rounds."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.latencies_s: list[float] = []
        self.cpu_s = self.broker_cpu_s = 0.0

    def figures(self) -> Figures:
        done = sorted(self.latencies_s)
        return Figures(
            ops=len(done),
            ops_per_s=round(statistics.median(self.rates), 1),
            p50_ms=round(percentile(done, 0.50) * 1000, 3),
            p99_ms=round(percentile(done, 0.99) * 1000, 3),
            cpu_ms_per_op=round((self.cpu_s + self.broker_cpu_s) / len(done) * 1000, 3),
            broker_cpu_ms_per_op=round(self.broker_cpu_s / len(done) * 1000, 3),
        )


async def compare(question: Question, sides: Sequence[Side], plan: Plan, in_flight: int) -> Case:
    """Measure the sides in turns."""
    tallies = {side.name: _Tally() for side in sides}
    for side in sides:
        await side.begin()
        await _round(side, in_flight, plan.warm_up_s, _Tally())
    for _ in range(plan.rounds):
        for side in sides:
            await _round(side, in_flight, plan.round_s, tallies[side.name])
    baseline, *others = tallies
    return Case(
        name=question.name,
        what=question.what,
        in_flight=in_flight,
        baseline=baseline,
        aims=question.aims,
        sides={name: tally.figures() for name, tally in tallies.items()},
        ratios={name: _ratio(tallies[name].rates, tallies[baseline].rates) for name in others},
    )


async def _round(side: Side, in_flight: int, round_s: float, tally: _Tally) -> None:
    before = [_used_s(process) for process in side.processes()]
    latencies: list[float] = []
    started = time.perf_counter()
    deadline = started + round_s

    async def work(worker: int) -> None:
        began = time.perf_counter()
        while began < deadline:
            await side.one(worker)
            ended = time.perf_counter()
            latencies.append(ended - began)
            began = ended

    await asyncio.gather(*(work(worker) for worker in range(in_flight)))
    tally.rates.append(len(latencies) / (time.perf_counter() - started))
    tally.latencies_s += latencies
    await side.settle()
    await quiet(side.processes())
    for process, before_s in zip(side.processes(), before, strict=True):
        used_s = _used_s(process) - before_s
        if process.name() == _BROKER:
            tally.broker_cpu_s += used_s
        else:
            tally.cpu_s += used_s


def _used_s(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


async def quiet(processes: Sequence[psutil.Process]) -> None:
    """Wait until all of them together use little of one core; at most 30 s."""
    deadline = time.monotonic() + _QUIET_WITHIN_S
    used = sum(_used_s(process) for process in processes)
    while time.monotonic() < deadline:
        await asyncio.sleep(_LOOK_S)
        before, used = used, sum(_used_s(process) for process in processes)
        if used - before < QUIET_SHARE * _LOOK_S:
            return


def _ratio(rates: Sequence[float], baseline: Sequence[float]) -> Ratio:
    pairs = [rate / base for rate, base in zip(rates, baseline, strict=True)]
    return Ratio(
        median=round(statistics.median(pairs), 3),
        min=round(min(pairs), 3),
        max=round(max(pairs), 3),
        rounds=[round(pair, 3) for pair in pairs],
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
