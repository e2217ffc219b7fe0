"""Replay: the same states, digests and steps whoever replays, in whatever batches. Source: feature T6, promise 8."""

import hashlib
import itertools
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.projections.audit.histories import NOW_MS, Trail, mixed, rfc3339

from tasktrail.events.commands import CompleteTask, ReportStatus
from tasktrail.events.entry import decode, leaf_hash
from tasktrail.events.errors import InvalidRequest
from tasktrail.events.facts import Status
from tasktrail.events.subjects import kind_of, task_subject
from tasktrail.projections import current
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.audit.timeline import Step, StepKind
from tasktrail.projections.current import State
from tasktrail.projections.replay import (
    PAUSE_MAX_MS,
    VALUE_MAX,
    Replay,
    Steps,
    TaskSteps,
    canonical,
    lines,
    paced,
    point,
    reached,
    speed,
    state_differences,
    states_sha256,
    until,
)

pytestmark = pytest.mark.requirement("T6")

ENTRIES = 400


@cache
def history() -> tuple[Message, ...]:
    return tuple(mixed(ENTRIES).messages)


def at_once(messages: tuple[Message, ...]) -> Replay:
    replay = Replay()
    replay.take(messages)
    return replay


def batches(messages: tuple[Message, ...], sizes: list[int]) -> Iterator[tuple[Message, ...]]:
    left, repeated = iter(messages), itertools.cycle(sizes)
    while some := tuple(itertools.islice(left, next(repeated))):
        yield some


def test_a_replay_leads_to_the_states_that_each_task_alone_leads_to() -> None:
    """What the projector does, entry by entry: `current.advance`."""
    wanted: dict[str, State] = {}
    for message in history():
        if kind_of(message.subject) == "task":
            entry = decode(message.body)
            before = wanted.get(entry.task_ref)
            wanted[entry.task_ref] = current.advance(before, entry, leaf_hash(message.body), message.stream_seq)
    replay = at_once(history())
    assert replay.states == wanted
    assert (replay.position, replay.messages, replay.left_out) == (ENTRIES, ENTRIES, 0)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
@settings(max_examples=30)
def test_replays_in_different_batches_agree(sizes: list[int]) -> None:
    """T6: any two replays agree."""
    replay = Replay()
    for some in batches(history(), sizes):
        replay.take(some)
    assert states_sha256(replay.states) == states_sha256(at_once(history()).states)


@given(st.integers(0, ENTRIES))
@settings(max_examples=30)
def test_a_replay_stopped_anywhere_and_continued_equals_one_made_at_once(stop: int) -> None:
    """T6. It is continued by another process: from states as they are kept, and from messages that overlap."""
    first = at_once(history()[:stop])
    kept = {ref: current.decode(current.encode(state)) for ref, state in first.states.items()}
    second = Replay({ref: state for ref, state in kept.items() if state is not None}, first.position)
    second.take(history()[max(0, stop - 10) :])
    assert states_sha256(second.states) == states_sha256(at_once(history()).states)
    assert first.messages + second.messages == ENTRIES


def test_the_digest_of_the_states_is_that_of_their_lines_and_changes_with_each_state() -> None:
    """docs/replay.md: `sha256sum current.jsonl` prints it."""
    states = at_once(history()).states
    text = b"".join(lines(states))
    assert hashlib.sha256(text).hexdigest() == states_sha256(states)
    assert [msgspec.json.decode(line)["task_ref"] for line in text.splitlines()] == sorted(states)
    assert states_sha256(dict(reversed(states.items()))) == states_sha256(states)
    for ref, state in states.items():
        other = msgspec.structs.replace(state, task=msgspec.structs.replace(state.task, poll_interval_ms=1))
        assert states_sha256({**states, ref: other}) != states_sha256(states)


def test_a_state_is_the_same_line_in_whichever_format_the_bucket_keeps_it() -> None:
    """The format is the bucket's affair, not the task's."""
    state = next(iter(at_once(history()).states.values()))
    assert canonical(msgspec.structs.replace(state, format=99)) == canonical(state)


def test_what_is_no_acceptable_entry_of_a_task_is_left_out_and_the_others_go_on() -> None:
    """As the projector: garbage on the trail stops nobody."""
    trail = Trail()
    ref, other = trail.create(), trail.create()
    before = at_once(tuple(trail.messages)).states
    own = task_subject("acme", ref)
    trail.put(own, b"no entry", "x")
    trail.put(own, trail.messages[1].body, "foreign")
    trail.put(own, trail.messages[0].body, "again")
    trail.put(task_subject("acme", "no reference"), trail.messages[0].body, "elsewhere")
    trail.put(task_subject("globex", ref), trail.messages[0].body, "other tenant")
    replay = at_once(tuple(trail.messages))
    assert (replay.states, replay.left_out) == (before, 5)
    trail.command(ref, CompleteTask(id="c", result=trail.sealed("result")))
    replay.take(trail.messages)
    assert replay.states[ref].task.status.value == "completed"
    assert replay.states[other] == before[other]


def test_every_member_in_which_a_live_state_differs_is_named() -> None:
    """Issue 4: name every difference."""
    trail = Trail()
    ref, gone, more = trail.create(), trail.create(), trail.create()
    replayed = at_once(tuple(trail.messages)).states
    task = msgspec.structs.replace(
        replayed[ref].task,
        status=Status.COMPLETED,
        retention_ms={"failed": 7},
        tool="x" * 500,
    )
    live: dict[str, State | None] = {
        **replayed,
        ref: msgspec.structs.replace(replayed[ref], task=task, sealed={"d": b"!"}),
    }
    del live[gone]
    live[more] = None
    unknown = "u" * 32
    live[unknown] = replayed[ref]
    found = list(state_differences(live, replayed))
    named = {(one.task_ref, one.field): (one.live, one.replayed) for one in found}
    assert len(named) == len(found) == 7
    assert named[ref, "task.status"] == ('"completed"', '"working"')
    assert named[ref, "task.retention_ms.failed"] == ("7", "null")
    assert named[ref, "sealed.d"] == (f"1 bytes, SHA-256 {hashlib.sha256(b'!').hexdigest()}", "null")
    assert len(named[ref, "task.tool"][0] or "") == VALUE_MAX
    assert named[gone, ""] == (None, "a state")
    assert named[more, ""] == ("bytes that are no state", "a state")
    assert named[unknown, ""] == ("a state", None)
    assert list(state_differences(replayed, replayed)) == []


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditStore]:
    """The audit store of the same messages: what timelines and the tail are read from."""
    kept = AuditStore.open(tmp_path_factory.mktemp("replay") / "audit.duckdb")
    kept.bind("TRAIL", datetime(2026, 1, 1, tzinfo=UTC), ENTRIES)
    kept.append(history())
    yield kept
    kept.close()


@pytest.mark.parametrize("size", [1, 7, ENTRIES])
def test_the_steps_of_a_replay_are_those_of_the_audit_store(size: int, store: AuditStore) -> None:
    """The live tail's own steps, with the status before and after each, in whatever batches."""
    steps, played = Steps(), list[Step]()
    for some in batches(history(), [size]):
        played += steps.take(some)
    assert tuple(played) == store.since(0)[0]


def test_steps_that_were_skipped_are_known_to_those_that_follow(store: AuditStore) -> None:
    """Watching from the middle: how each task stood is known."""
    steps = Steps()
    steps.skip(history()[:150])
    assert steps.take(history()[150:]) == tuple(step for step in store.since(0)[0] if step.stream_seq > 150)


def test_one_tasks_steps_are_those_of_its_timeline(store: AuditStore) -> None:
    """With its denials, which stand on another subject."""
    kinds: set[StepKind] = set()
    for ref in list(at_once(history()).states)[::3]:
        task = TaskSteps(ref)
        for some in batches(history(), [37]):
            task.take(some)
        told = store.timeline(ref)
        assert told is not None
        assert task.steps() == told.steps
        kinds |= {step.kind for step in told.steps}
    assert kinds >= {StepKind.DENIAL, StepKind.ACCESS, StepKind.REFUSAL, StepKind.GOVERNANCE}


def test_a_replay_ends_and_begins_at_a_sequence_or_a_time() -> None:
    """Up to the last message before the first one recorded later; an entry that says no time ends nothing."""
    trail = Trail()
    ref = trail.create()
    trail.put("trail.1.task.acme.x", b"garbage", "x")
    for number in range(3):
        trail.command(ref, ReportStatus(id=f"s{number}", message=trail.sealed("message")))
    messages = trail.messages
    assert [one.stream_seq for one in until(messages, 3)[0]] == [1, 2, 3]
    assert until(messages, 99) == (messages, False)
    second = point(rfc3339(NOW_MS + 20))
    assert [one.stream_seq for one in until(messages, second)[0]] == [1, 2, 3]
    assert [one.stream_seq for one in messages if reached(one, second)] == [3, 4, 5]
    assert [one.stream_seq for one in messages if reached(one, 4)] == [4, 5]
    assert until(messages, None) == (messages, False)


def test_points_and_speeds_are_read_or_refused_with_what_they_should_be() -> None:
    """docs/cli.md: a sequence or a time; 10x or max."""
    assert point("17") == 17
    assert (
        point("2026-11-22T15:04:05")
        == point("2026-11-22T16:04:05+01:00")
        == datetime(2026, 11, 22, 15, 4, 5, tzinfo=UTC)
    )
    assert (speed("10x"), speed("0.5"), speed("max")) == (10.0, 0.5, math.inf)
    for text in ("", "yesterday", "-3", "9" * 30):
        with pytest.raises(InvalidRequest, match="neither a stream sequence nor a time"):
            point(text)
    for text in ("0", "0x", "fast", "-1", "x", "1e3"):
        with pytest.raises(InvalidRequest, match="neither a number above 0"):
            speed(text)


def test_pauses_follow_the_recording_and_are_bounded_and_a_long_idleness_is_said() -> None:
    """Issue 4: as a person would watch it; no pause is longer than five seconds."""
    trail = Trail()
    ref = trail.create()
    for later_ms in (190, 3_990, 20_000, 3 * 3_600_000, 0):
        trail.now_ms += later_ms
        trail.command(ref, ReportStatus(id=f"s{later_ms}", message=trail.sealed("message")))
    steps = list(Steps().take(trail.messages))
    steps.insert(2, msgspec.structs.replace(steps[0], recorded_at=None))
    steps.append(msgspec.structs.replace(steps[0]))  # recorded before the last one: clocks of two machines
    waits = [(one.wait_ms, one.idle_ms) for one in paced(steps, 1.0)]
    assert waits == [(0, 0), (200, 0), (0, 0), (4_000, 0), (5_000, 20_010), (5_000, 10_800_010), (10, 0), (0, 0)]
    assert max(wait for wait, _ in waits) == PAUSE_MAX_MS
    faster = [(one.wait_ms, one.idle_ms) for one in paced(steps, 100.0)]
    assert faster == [(0, 0), (2, 0), (0, 0), (40, 0), (200, 0), (5_000, 10_800_010), (0, 0), (0, 0)]
    assert [one.wait_ms for one in paced(steps, math.inf)] == [0] * len(steps)
    assert sum(one.idle_ms for one in paced(steps, math.inf)) == timedelta(hours=3, milliseconds=10) / timedelta(
        milliseconds=1
    )
