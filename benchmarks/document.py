"""What `python -m benchmarks --json` prints: one document of format 1.

Guarantees: rates are operations per second, times milliseconds, sizes bytes. A ratio compares two sides in the same
round; above 1 means faster than the baseline.

    json.loads(output)["cases"][0]["ratios"]["ledger"]["median"]
"""

import msgspec

FORMAT = 1


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how the figures were made. `fsync_ms`: median of writing 1 KiB and syncing it, where the data lay."""

    date: str
    machine: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    loop: str
    versions: dict[str, str]
    sync_interval: str
    filesystem: str
    fsync_ms: float
    load_average: float
    rounds: int
    round_s: float
    warnings: list[str]


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One side of a case.

    `ops_per_s` is the median of the rounds; the percentiles are over all operations. `cpu_ms_per_op` is processor time
    of the processes under test, with what they did afterwards on account of the operations; of it,
    `broker_cpu_ms_per_op` is the nats-server's.
    """

    ops: int
    ops_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms_per_op: float
    broker_cpu_ms_per_op: float


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """Rate divided by the baseline's rate of the same round."""

    median: float
    min: float
    max: float
    rounds: list[float]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison. `aims` are the ratios aimed at, by side; a side without an aim is for information."""

    name: str
    what: str
    in_flight: int
    baseline: str
    aims: dict[str, float]
    sides: dict[str, Figures]
    ratios: dict[str, Ratio]


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run."""

    format: int
    conditions: Conditions
    cases: list[Case]
