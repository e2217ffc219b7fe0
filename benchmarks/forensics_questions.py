"""How long a responder waits: timelines and every named query, of a principal, token or address seen often and once.

Guarantees: the store's own calls, which hand over whole rows; a page is as long as it is when nobody says how long.
Every query of the catalogue is asked. The runs of one question follow each other, so that the first finds the system's
cache as it is and the others find it warm.

    for name, figures in ask(store, subject_of(made), runs=5): …
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial

import msgspec

from benchmarks.forensics_people import BOT, ISSUER, VISITOR
from benchmarks.forensics_trail import BEGAN_MS, Made
from tasktrail.projections.audit.named import catalogue, read_parameters
from tasktrail.projections.audit.store import AuditStore

TIMELINE_AIM_MS, QUERY_AIM_MS = 20.0, 500.0
TIMELINES = 40
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
COPIES_MAX = len(_ALPHABET) - 1


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One question's times in ms: the median run's and the longest; `cpu_ms`: the median's processor time.

    `rows` of its first page, `next_ms` the time of the page after it, if there is one.
    """

    rows: int
    p50_ms: float
    max_ms: float
    cpu_ms: float
    next_ms: float | None = None
    aim_ms: float


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked about: a trail of `entries` of which the first `base` are no copies, and ended at `end_ms`.

    References of tasks in it: the entries of `refs` lie near each other, those of `slow` far apart.
    """

    entries: int
    base: int
    end_ms: int
    refs: list[str]
    slow: list[str]


def subject_of(made: Made) -> Subject:
    """What there is to ask about a trail."""
    return Subject(entries=made.size, base=made.size, end_ms=made.end_ms, refs=made.refs, slow=made.slow)


# -- copies ------------------------------------------------------------------------------------------------------------

_SEQUENCES = frozenset({"stream_seq", "first_seq", "last_seq"})
_OF_ITS_OWN = frozenset(
    {
        "task_ref",
        "entry_id",
        "leaf_sha256",
        "prev_sha256",
        "created_by",
        "created_leaf_sha256",
        "payload_sha256",
        "digests",
        "trace_id",
        "token_hash",
        "jti",
    }
)
_ONLY_ONCE = {"sub": VISITOR.sub, "client_id": VISITOR.client_id, "address": VISITOR.address}
_TABLES = {
    "tasks": "first_seq",
    "entries": "stream_seq",
    "events": "stream_seq",
    "denials": "stream_seq",
    "notable": "stream_seq",
    "service_events": "stream_seq",
    "grants": "stream_seq",
}
_COLUMNS = "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index"
_RANGE = 250_000


def grow(store: AuditStore, about: Subject, size: int) -> Subject:
    """Bring the store to `size` entries by copies of the first ones, each after the one before.

    Sequences and times go on, tasks, entries, tokens and revocations are new ones, principals are the same, but for the
    visitor. Bodies stay as they are: no query reads more from them than who acts for whom.

    Raises:
        ValueError: that would be too many copies.
    """
    base, span_ms = about.base, (about.end_ms - BEGAN_MS) * about.base // about.entries
    if size > base * (COPIES_MAX + 1):
        message = f"{size} is more than {COPIES_MAX + 1} times {base}"
        raise ValueError(message)
    with closing(store.cursor()) as cursor:
        for copy in range(about.entries // base, -(-size // base)):
            there, until = max(0, about.entries - copy * base), min(base, size - copy * base)
            for table, key in _TABLES.items():
                columns = cursor.execute(_COLUMNS, [table]).fetchall()
                told = ", ".join(_copy(name, type_, copy, copy * base, copy * span_ms) for name, type_ in columns)
                statement = f"INSERT INTO {table} SELECT {told} FROM {table} WHERE {key} BETWEEN ? AND ?"  # noqa: S608 - names of our own
                for first in range(there + 1, until + 1, _RANGE):
                    cursor.execute(statement, [first, min(until, first + _RANGE - 1)])
        cursor.execute("UPDATE position SET last_seq = ?", [size])
    last = size // base - 1
    return Subject(
        entries=size,
        base=base,
        end_ms=BEGAN_MS + span_ms * size // base,
        refs=[*about.refs, *(_copied(ref, last) for ref in about.refs)],
        slow=[*about.slow, *(_copied(ref, last) for ref in about.slow)],
    )


def _copied(ref: str, copy: int) -> str:
    """A reference as that copy has it: its first character so much further in the alphabet."""
    return _ALPHABET[(_ALPHABET.index(ref[0]) + copy) % len(_ALPHABET)] + ref[1:]


def _copy(name: str, type_: str, copy: int, sequences: int, ms: int) -> str:
    """What a copy has in a column."""
    letter = _ALPHABET[copy]
    further = (
        f"substr('{_ALPHABET}', (strpos('{_ALPHABET}', substr({name}, 1, 1)) + {copy - 1}) % {len(_ALPHABET)} + 1, 1)"
        f" || substr({name}, 2)"
    )
    of_revocation = "type IN ('PrincipalRevoked', 'RevocationLifted')"
    if name in _SEQUENCES:
        told = f"{name} + {sequences}"
    elif type_ == "TIMESTAMP":
        told = f"{name} + INTERVAL {ms} MILLISECONDS"
    elif name in {"token_hash", "jti"}:
        told = f"CASE WHEN {name} IN ('{BOT.token_hash}', '{BOT.jti}') THEN {name} ELSE {further} END"
    elif name in _OF_ITS_OWN:
        told = further
    elif name in _ONLY_ONCE:
        told = f"CASE WHEN {name} = '{_ONLY_ONCE[name]}' THEN {name} || '-{copy}' ELSE {name} END"
    elif name == "action":
        told = f"CASE WHEN {of_revocation} THEN '{letter}' || action ELSE action END"
    elif name == "payload":
        moved = f"""replace(payload, '"revocation":"', '"revocation":"{letter}')"""
        told = f"CASE WHEN {of_revocation} THEN {moved} ELSE payload END"
    else:
        told = name
    return told


# -- questions ---------------------------------------------------------------------------------------------------------


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def questions(store: AuditStore, about: Subject) -> dict[str, tuple[str, dict[str, str]]]:
    """Every question by what is asked, as the query's name and its parameters."""
    ref, slow = about.refs[len(about.refs) // 2], (about.slow or about.refs)[-1]
    middle, end = str(about.entries // 2), _time(about.end_ms)
    half = _time((BEGAN_MS + about.end_ms) // 2)
    asked: dict[str, tuple[str, dict[str, str]]] = {}

    def add(query: str, *some: tuple[str, dict[str, str]]) -> None:
        for what, parameters in some:
            asked[f"{query}, {what}"] = (query, parameters)

    bot, visitor = {"sub": BOT.sub, "iss": ISSUER}, {"sub": VISITOR.sub, "iss": ISSUER}
    one, apart = ("a task", {"task": ref}), ("a slow task", {"task": slow})
    everything: tuple[str, dict[str, str]] = ("everything", {})
    often, once = ("often", bot), ("once", visitor)
    tokens = ("often", {"token": BOT.token_hash}), ("once", {"token": VISITOR.jti})
    add("timeline", one, apart)
    add("owners", one, apart)
    add("children", one)
    add("orphans", everything, one)
    add("definitions", everything, ("a tool", {"tool": "tool-7"}))
    add("by_principal", often, once)
    add("by_token", *tokens)
    add("by_client", ("often", {"client_id": BOT.client_id}), ("once", {"client_id": VISITOR.client_id}))
    add("by_address", ("often", {"address": BOT.address}), ("once", {"address": VISITOR.address}))
    add("by_tool", ("a tool", {"tool": "tool-7"}), ("a definition", {"tool_sha256": f"{7:064x}"}))
    add("approvals", everything, often, once, one)
    add("disclosures", everything, often, once, one, ("a payload", {"payload_sha256": _payload(store)}))
    add("denied_by_source", everything, ("an address", {"address": BOT.address}), one)
    add("changed_since", ("the middle", {"sequence": middle}), ("half the time", {"time": half}))
    add("state_as_of", ("the middle", {"sequence": middle}), ("half the time", {"time": half}))
    add("state_as_of", ("a task at the end", {"time": end, "task": ref}))
    add("lapsed_handles", ("now", {}), ("the end", {"time": end}))
    add("authority_then_and_now", everything, one)
    add("blast_radius", ("a handle", {"task": ref}), often, once)
    add("blast_radius", *((f"token {what}", parameters) for what, parameters in tokens))
    for query in ("gaps", "policies", "responders", "revocations"):
        add(query, everything)
    return asked


def _payload(store: AuditStore) -> str:
    """The digest of a payload that was disclosed."""
    with closing(store.cursor()) as cursor:
        row = cursor.execute("SELECT payload FROM events WHERE type = 'ResultDisclosed' LIMIT 1").fetchone()
    return str(msgspec.json.decode(row[0])["sha256"][0]) if row else "0" * 64


def ask(store: AuditStore, about: Subject, runs: int) -> Iterator[tuple[str, Asked]]:
    """Ask everything, `runs` times each."""
    for what, refs in (("tasks", about.refs), ("slow tasks", about.slow)):
        # Spread over the trail; not the same one again.
        chosen = refs[:: max(1, len(refs) // TIMELINES)]
        if chosen:
            yield f"timeline of {what}", _timelines(store, chosen)
    known = catalogue()
    for name, (query, given) in questions(store, about).items():
        yield name, _asked(store, query, given, runs)
    left_out = known.keys() - {query for query, _ in questions(store, about).values()}
    if left_out:
        message = f"nothing asks {', '.join(sorted(left_out))}"
        raise AssertionError(message)


def _timelines(store: AuditStore, refs: list[str]) -> Asked:
    wall, cpu, steps = list[float](), list[float](), 0
    for ref in refs:
        took = _took(partial(store.timeline, ref))
        timeline = store.timeline(ref)
        steps = max(steps, len(timeline.steps) if timeline else 0)
        wall.append(took[0])
        cpu.append(took[1])
    return Asked(rows=steps, **_times(wall, cpu), aim_ms=TIMELINE_AIM_MS)


def _asked(store: AuditStore, name: str, given: dict[str, str], runs: int) -> Asked:
    query = catalogue()[name]
    parameters = read_parameters(query, given)
    answer = store.ask(query, parameters, tenant=None)
    first = [_took(lambda: store.ask(query, parameters, tenant=None)) for _ in range(runs)]
    following: list[float] = []
    if answer.more:
        after = answer.after
        following = [_took(lambda: store.ask(query, parameters, tenant=None, after=after))[0] for _ in range(runs)]
    return Asked(
        rows=len(answer.rows),
        **_times([took[0] for took in first], [took[1] for took in first]),
        next_ms=round(statistics.median(following), 1) if following else None,
        aim_ms=QUERY_AIM_MS,
    )


def _took(call: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds by the clock, and of processor time."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return (time.perf_counter() - wall) * 1000, (time.process_time() - cpu) * 1000


def _times(wall: list[float], cpu: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(statistics.median(wall), 1),
        "max_ms": round(max(wall), 1),
        "cpu_ms": round(statistics.median(cpu), 1),
    }
