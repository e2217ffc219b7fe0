"""Replay: the messages of a trail become states, or steps a person can watch, as of any point. Pure.

Guarantees: what comes out is a function of the messages alone: whoever replays them, in whatever batches, at once or
stopped and continued, comes to the same states and the same digest. What is no acceptable entry of a task is left out,
as the bucket of current states leaves it out, and counted. No clock is read, and nothing waits: how long a step lasts
before the next is computed.

    replay = Replay()
    replay.take(messages)
    states_sha256(replay.states)         # sha256sum of the file that `canonical` lines make
    for step, wait_ms, idle_ms in paced(Steps().take(messages), 10.0): …
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias, cast

import msgspec

from tasktrail.events.entry import decode, leaf_hash
from tasktrail.events.errors import ChainBroken, InvalidRequest, TasktrailError
from tasktrail.events.subjects import is_task_ref, kind_of, task_subject
from tasktrail.projections import current
from tasktrail.projections.audit.columns import EntryRow, EventRow, Message
from tasktrail.projections.audit.found import Found, StepRow
from tasktrail.projections.audit.history import assemble, in_order
from tasktrail.projections.audit.rows import RejectedRow, Rows, read
from tasktrail.projections.audit.task_rows import TaskRow
from tasktrail.projections.audit.timeline import Step
from tasktrail.projections.current import State
from tasktrail.projections.uncollected import uncollected

PAUSE_MAX_MS = 5_000
"""The longest that a step keeps the next one waiting, however long nothing happened."""
IDLE_MS = 60_000
"""From so long on it is said that nothing happened, also when the pause was not cut short."""
VALUE_MAX = 200
_SPEED = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)x?")
_SEQUENCE = re.compile(r"\d{1,18}")

Point: TypeAlias = int | datetime
"""Where a replay ends or begins: a stream sequence, or a time (aware, in UTC) by which entries were recorded."""


class Replay:
    """The states of a trail's tasks by reference, as of stream sequence `position`; may be continued from there.

    `messages` counts what was read, `left_out` those of a task's subject that are no acceptable entry of it.
    """

    def __init__(self, states: Mapping[str, State] | None = None, position: int = 0) -> None:
        self.states = dict(states or {})
        self.position = position
        self.messages = 0
        self.left_out = 0
        self._refs = {task_subject(state.tenant, ref): ref for ref, state in self.states.items()}

    def take(self, messages: Iterable[Message]) -> None:
        """Read on; messages up to `position` are passed over."""
        with uncollected():
            self._take(messages)

    def _take(self, messages: Iterable[Message]) -> None:
        for message in messages:
            seq, subject = message.stream_seq, message.subject
            if seq <= self.position:
                continue
            self.position = seq
            self.messages += 1
            ref = self._refs.get(subject)
            if ref is not None or (".task." in subject and kind_of(subject) == "task"):
                try:
                    self._fold(message, ref)
                except TasktrailError:
                    self.left_out += 1
                except Exception:  # noqa: BLE001 - as the projector: whatever is wrong with one entry, others go on
                    self.left_out += 1

    def _fold(self, message: Message, ref: str | None) -> None:
        """Raises TasktrailError: no acceptable entry of this task."""
        entry = decode(message.body)
        if ref is None:
            ref = entry.task_ref
            if not is_task_ref(ref) or message.subject != task_subject(entry.tenant, ref):
                text = f"an entry of task {ref!r:.80} stands on {message.subject}"
                raise ChainBroken(text)
        state = self.states.get(ref)
        if state is not None and (entry.task_ref != ref or entry.tenant != state.tenant):
            text = f"an entry of task {entry.task_ref!r:.80} stands on {message.subject}"
            raise ChainBroken(text)
        self.states[ref] = current.advance(state, entry, leaf_hash(message.body), message.stream_seq)
        self._refs[message.subject] = ref


class _Canonical(msgspec.Struct, frozen=True):
    """A state without what belongs to the bucket: in which format it is kept there."""

    tenant: str
    task_ref: str
    stream_seq: int
    task: Any
    sealed: dict[str, bytes]


_canonical = msgspec.json.Encoder(order="sorted")


def canonical(state: State) -> bytes:
    """One state as a line of `current.jsonl`, without its end: JSON, members sorted by name, defaults left out."""
    shown = _Canonical(state.tenant, state.task_ref, state.stream_seq, state.task, state.sealed)
    return _canonical.encode(shown)


def lines(states: Mapping[str, State]) -> Iterator[bytes]:
    """The lines of `current.jsonl`, in the order of task references."""
    for ref in sorted(states):
        yield canonical(states[ref]) + b"\n"


def states_sha256(states: Mapping[str, State]) -> str:
    """Hex SHA-256 of `lines`: the same for any two replays of the same messages."""
    digest = hashlib.sha256()
    for line in lines(states):
        digest.update(line)
    return digest.hexdigest()


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One value that is not what the trail gives.

    `where`: `current`, or a table of the audit store (also `columns`, `views`, `triggers`: how it is made). `field`: a
    member or column, then `live` and `replayed` are JSON texts, cut at `VALUE_MAX` characters; empty for the whole,
    then they are words. None: there is nothing.
    """

    where: str
    task_ref: str | None = None
    stream_seq: int | None = None
    field: str = ""
    live: str | None
    replayed: str | None


def state_differences(live: Mapping[str, State | None], replayed: Mapping[str, State]) -> Iterator[Difference]:
    """Where live states differ from replayed ones, member by member; a live None is bytes that are no state."""
    for ref in sorted({*live, *replayed}):
        found, wanted = live.get(ref), replayed.get(ref)
        seq = wanted.stream_seq if wanted else None
        if found is not None and wanted is not None:
            for field, one, other in _unlike("", found, wanted):
                yield Difference(
                    where="current",
                    task_ref=ref,
                    stream_seq=seq,
                    field=field,
                    live=value_text(one),
                    replayed=value_text(other),
                )
        else:
            kept = "a state" if found else "bytes that are no state" if ref in live else None
            replayed_as = "a state" if wanted else None
            yield Difference(where="current", task_ref=ref, stream_seq=seq, live=kept, replayed=replayed_as)


def _unlike(path: str, live: object, replayed: object) -> Iterator[tuple[str, object, object]]:
    """Every innermost member in which two values differ, by its path."""
    if live == replayed:
        return
    if type(live) is type(replayed) and isinstance(live, msgspec.Struct):
        for name in live.__struct_fields__:
            yield from _unlike(f"{path}.{name}" if path else name, getattr(live, name), getattr(replayed, name))
    elif isinstance(live, dict) and isinstance(replayed, dict):
        one, other = cast("dict[str, object]", live), cast("dict[str, object]", replayed)
        for name in sorted({*one, *other}):
            yield from _unlike(f"{path}.{name}", one.get(name), other.get(name))
    else:
        yield path, live, replayed


def value_text(value: object) -> str:
    """A value as JSON for a person; bytes by their length and digest, what is long cut."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes, SHA-256 {hashlib.sha256(value).hexdigest()}"
    text = _canonical.encode(value).decode()
    return text if len(text) <= VALUE_MAX else f"{text[: VALUE_MAX - 1]}…"


def point(text: str) -> Point:
    """A stream sequence, or an RFC 3339 time, in UTC when it names no zone.

    Raises:
        InvalidRequest: it is neither.
    """
    if _SEQUENCE.fullmatch(text):
        return int(text)
    try:
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        message = f"{text!r:.60} is neither a stream sequence nor a time such as 2026-11-22T15:04:05Z"
        raise InvalidRequest(message) from None


class _Recorded(msgspec.Struct):
    recorded_at: str


_recorded = msgspec.json.Decoder(_Recorded)


def recorded_at(body: bytes) -> datetime | None:
    """When an entry says it was recorded, in UTC; None for bytes that do not say."""
    try:
        return datetime.fromisoformat(_recorded.decode(body).recorded_at).astimezone(UTC)
    except (msgspec.DecodeError, ValueError, OverflowError):  # a UnicodeDecodeError is a ValueError
        return None


def beyond(message: Message, end: Point | None) -> bool:
    """Whether a replay up to `end` stops before this message: its sequence, or when it was recorded, is after it."""
    if end is None:
        return False
    if isinstance(end, int):
        return message.stream_seq > end
    at = recorded_at(message.body)
    return at is not None and at > end


def reached(message: Message, begin: Point | None) -> bool:
    """Whether what begins at `begin` has begun with this message: its sequence, or when it was recorded."""
    if begin is None:
        return True
    if isinstance(begin, int):
        return message.stream_seq >= begin
    at = recorded_at(message.body)
    return at is not None and at >= begin


def until(messages: Sequence[Message], end: Point | None) -> tuple[Sequence[Message], bool]:
    """The messages before the first one that is beyond `end`, and whether there was one: then nothing more counts."""
    for number, message in enumerate(messages):
        if beyond(message, end):
            return messages[:number], True
    return messages, False


_OF_EVENT = {"ord", "type", "at_time", "status_after", "payload"}


def _joined(entry: EntryRow, event: EventRow | None) -> StepRow:
    """A row of the view `steps`: an entry with one of its events, or with none."""
    values: list[Any] = [
        (getattr(event, name) if event else None) if name in _OF_EVENT else getattr(entry, name)
        for name in StepRow._fields
    ]
    return StepRow(*values)


class Steps:
    """The trail as steps, as the live tail and the timelines tell it; every message from the first on must be taken."""

    def __init__(self) -> None:
        self.position = 0
        self._tasks: dict[str, TaskRow] = {}
        self._status: dict[str | None, str | None] = {}

    def take(self, messages: Sequence[Message]) -> tuple[Step, ...]:
        """What these messages came to, in order, each with its task's status before and after."""
        rows = self._read(messages)
        steps = in_order(_rows(rows), rows.rejected)
        return tuple(self._followed(step) for step in steps)

    def skip(self, messages: Sequence[Message]) -> None:
        """The same without making steps: for what comes before those that are wanted."""
        rows = self._read(messages)
        self._status.update({row.task_ref: row.status_after for row in rows.events if row.status_after})

    def _read(self, messages: Sequence[Message]) -> Rows:
        rows = read(messages, after=self.position, known=self._tasks)
        self.position = rows.last_seq
        self._tasks |= rows.created
        self._tasks |= rows.changed
        return rows

    def _followed(self, step: Step) -> Step:
        before = step.status_before or self._status.get(step.task_ref)
        after = step.status_after or before
        if step.task_ref is not None:
            self._status[step.task_ref] = after
        return msgspec.structs.replace(step, status_before=before, status_after=after)


class TaskSteps:
    """One task's steps, its denials and anomalies among them; every message from the first on must be taken."""

    def __init__(self, ref: str) -> None:
        self.ref, self.position = ref, 0
        self._tasks: dict[str, TaskRow] = {}
        self._steps: list[StepRow] = []
        self._denials: list[tuple[StepRow, int]] = []
        self._anomalies: list[RejectedRow] = []

    def take(self, messages: Sequence[Message]) -> None:
        """Read on."""
        rows = read(messages, after=self.position, known=self._tasks)
        self.position = rows.last_seq
        self._tasks |= rows.created
        self._tasks |= rows.changed
        self._anomalies += [row for row in rows.rejected if row.task_ref == self.ref]
        claims = {(row.stream_seq, row.ord): row.times for row in rows.denials if row.task_ref == self.ref}
        named = {place for place, _ in claims}
        for row in _rows(rows, lambda entry: entry.task_ref == self.ref or entry.stream_seq in named):
            if row.task_ref == self.ref:
                self._steps.append(row)
            elif times := claims.get((row.stream_seq, row.ord or 0)):
                self._denials.append((row, times))

    def steps(self) -> tuple[Step, ...]:
        """What was found so far, in order."""
        total = len(self._steps) + len(self._denials) + len(self._anomalies)
        found = Found(
            task_ref=self.ref,
            as_of=self.position,
            task=self._tasks.get(self.ref),
            steps=self._steps,
            denials=self._denials,
            anomalies=self._anomalies,
            steps_max=total,
            steps_total=total,
        )
        return assemble(found).steps


def _rows(rows: Rows, wanted: Callable[[EntryRow], bool] | None = None) -> Iterator[StepRow]:
    """The rows of the view `steps` of some messages."""
    events: dict[int, list[EventRow]] = {}
    for event in rows.events:
        events.setdefault(event.stream_seq, []).append(event)
    for entry in rows.entries:
        if wanted is None or wanted(entry):
            for one in events.get(entry.stream_seq) or (None,):
                yield _joined(entry, one)


class Paced(NamedTuple):
    """A step, how long to wait before it (milliseconds), and how long nothing happened (0 when that goes unsaid)."""

    step: Step
    wait_ms: int
    idle_ms: int


def speed(text: str) -> float:
    """How many times faster than recorded: `10x`, `0.5`, `max` (infinite).

    Raises:
        InvalidRequest: it is none of these, or not more than 0.
    """
    found = _SPEED.fullmatch(text)
    times = math.inf if text == "max" else float(found[1]) if found else 0.0
    if times <= 0:
        message = f"the speed {text!r:.40} is neither a number above 0, such as 10x, nor max"
        raise InvalidRequest(message)
    return times


class Pace:
    """The pace at which steps were recorded, `times` faster; no pause is longer than `PAUSE_MAX_MS`."""

    def __init__(self, times: float) -> None:
        self._times = times
        self._last: datetime | None = None

    def of(self, step: Step) -> Paced:
        """The next step, in the stream's order. One that says no time waits for nothing."""
        at = datetime.fromisoformat(step.recorded_at) if step.recorded_at else None
        if at is None:
            return Paced(step, 0, 0)
        gap_ms = max(0.0, (at - self._last).total_seconds() * 1000) if self._last else 0.0
        self._last = max(at, self._last) if self._last else at
        wanted_ms = gap_ms / self._times
        said = gap_ms >= IDLE_MS or wanted_ms > PAUSE_MAX_MS
        return Paced(step, round(min(wanted_ms, PAUSE_MAX_MS)), round(gap_ms) if said else 0)


def paced(steps: Iterable[Step], times: float) -> list[Paced]:
    """All of some steps at their pace."""
    pace = Pace(times)
    return [pace.of(step) for step in steps]
