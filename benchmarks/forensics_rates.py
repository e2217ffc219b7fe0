"""How fast a trail is taken up, folded and verified: rates in entries per second, one thread of ours at a time.

Guarantees: the product's own engines, fed from memory in batches of `BATCH`, the audit store in those of `LOADED`;
making the entries is not in any figure.
DuckDB may use every core while rows go in, and its processor time counts.

    rates = measure(Made(100_000), Path("audit.duckdb"), Path("tlog"))
"""

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path

import msgspec

from benchmarks.forensics_trail import BATCH, BEGAN_MS, Made
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.loading import Loading, Transaction
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.audit.task_rows import TaskRow
from tasktrail.projections.replay import Replay, states_sha256
from tasktrail.projections.tlog.log import Log
from tasktrail.projections.tlog.merkle import Frontier
from tasktrail.projections.tlog.note import Checkpoint
from tasktrail.projections.tlog.verification import Known, Tree, Verification

SIGNED_MAX = 20_000
"""Entries whose signatures are verified: signing more of them would take longer than all the rest."""
LOADED = 4 * 122_880 // BATCH * BATCH
"""Entries that are made and held in memory before they are loaded, the last row group of which is written alone."""
AIMS = {"verify": 200_000.0, "rebuild": 60_000.0, "replay": 100_000.0}


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """`per_s`: entries in a second by the clock; `per_cpu_s`: in a second of processor time, of all threads.

    `aim`: the entries per second aimed at on one core; None: there is no aim.
    """

    entries: int
    per_s: float
    per_cpu_s: float
    aim: float | None = None
    what: str


class _Stopwatch:
    def __init__(self, name: str, what: str) -> None:
        self.name, self._what = name, what
        self._wall_s = self._cpu_s = 0.0

    @contextmanager
    def running(self) -> Generator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self._wall_s += time.perf_counter() - wall
        self._cpu_s += time.process_time() - cpu

    def rate(self, entries: int) -> Rate:
        return Rate(
            entries=entries,
            per_s=round(entries / self._wall_s, 1),
            per_cpu_s=round(entries / self._cpu_s, 1),
            aim=AIMS.get(self.name),
            what=self._what,
        )


def measure(size: int, store: Path, tlog: Path) -> tuple[dict[str, Rate], Made]:
    """Every rate over a trail of this size, which is in `store` and in the log in `tlog` afterwards; and the trail."""
    made, log = Made(size), Log.open(tlog)
    with log:
        rates = _taken_up(made, size, store, log)
        verified = _Stopwatch("verify", "ids, subjects, task chains, every leaf against the tree, the heads")
        checkpoint = Checkpoint(origin="benchmark", size=size, root=log.root(), heads=log.heads.root())
        known = Known(checkpoint, "the benchmark's own", own=True)
        tree = Tree(log.size, lambda first, end: log.leaves(first, end - 1))
        rates["verify"] = _verified(Made(size), Verification([known], tree, quick=True), verified, size)
    rates["verify, bare"] = _bare(size)
    signed = min(size, SIGNED_MAX)
    watch = _Stopwatch("verify, signatures", "the same with Ed25519 signatures, without a tree")
    rates[watch.name] = _verified(Made(signed, signed=True), Verification([]), watch, signed)
    return rates, made


class _Place(msgspec.Struct, gc=False):
    """The least of an entry that says where it belongs."""

    id: str
    task_ref: str = ""
    prev: str = ""


def _bare(size: int) -> Rate:
    """What no verification in Python can leave out: the calls that hash and read, with nothing compared."""
    watch = _Stopwatch("bare", "as verify, hashes and JSON alone: nothing is compared")
    read, frontier = msgspec.json.Decoder(_Place).decode, Frontier()
    for messages in Made(size).batches():
        with watch.running():
            bodies = [message.body for message in messages]
            frontier.extend([sha256(b"\x00" + body).digest() for body in bodies])
            chained = [body for body in bodies if read(body).prev]
            for body in chained:
                sha256(body).hexdigest()
    return watch.rate(size)


def _read(size: int) -> Rate:
    """Python's share of a rebuild."""
    watch, known = _Stopwatch("read", "Python's share of it: reading, and columns for DuckDB"), dict[str, TaskRow]()

    def forget(transaction: Transaction) -> None:
        for _ in transaction.batches:
            pass
        known.update(transaction.tasks.created)
        known.update(transaction.tasks.changed)

    loading = Loading(0, lambda refs: {ref: known[ref] for ref in refs if ref in known}, forget)
    for messages in Made(size).batches():
        with watch.running():
            loading.take(messages)
    with watch.running():
        loading.finish()
    loading.close()
    return watch.rate(size)


def _taken_up(made: Made, size: int, path: Path, log: Log) -> dict[str, Rate]:
    """The audit store, the log and the states of one trail."""
    rebuilt = _Stopwatch("rebuild", "the audit store from nothing")
    grown = _Stopwatch("tree", "leaf hashes, tiles and heads of the log, without checkpoints")
    replayed = _Stopwatch("replay", "entries folded to current states")
    digested = _Stopwatch("digest", "the SHA-256 over all states after the replay")
    replay, store = Replay(), AuditStore.open(path)
    store.bind("TRAIL", datetime.fromtimestamp(BEGAN_MS / 1000, UTC), size)
    for messages in _together(Made(size).batches()):
        with rebuilt.running(), store.loading() as load:
            load(messages)
    with rebuilt.running():
        store.close()
    for messages in Made(size).batches():
        with grown.running():
            log.append(messages)
    for messages in made.batches():
        with replayed.running():
            replay.take(messages)
    with digested.running():
        states_sha256(replay.states)
    if replay.left_out or replay.position != size:
        message = f"{replay.left_out} of {replay.position} entries were not folded"
        raise AssertionError(message)
    rates = {watch.name: watch.rate(size) for watch in (rebuilt, grown, replayed, digested)}
    return {"rebuild": rates.pop("rebuild"), "rebuild, Python": _read(size), **rates}


def _together(batches: Iterator[list[Message]]) -> Iterator[list[Message]]:
    """Batches of `LOADED`: what a load does in its thread must not go on, unseen, while entries are made."""
    while some := list(chain.from_iterable(islice(batches, LOADED // BATCH))):
        yield some


def _verified(made: Made, verification: Verification, watch: _Stopwatch, size: int) -> Rate:
    for messages in made.batches():
        with watch.running():
            verification.take(messages)
    with watch.running():
        verdict = verification.finish()
    wrong = [one for one in verdict.findings if one.index is not None or verdict.checkpoints]
    if wrong or verdict.entries != size:
        message = f"an honest trail was found wanting: {wrong[:3]}"
        raise AssertionError(message)
    return watch.rate(size)
