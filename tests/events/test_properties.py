"""Random histories: what holds whatever commands come, in whatever order, at whatever time. Source: style 1, 10."""

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasktrail.events.authority import Standing
from tasktrail.events.commands import (
    Answer,
    Ask,
    CancelTask,
    ChangeAuthority,
    CompleteTask,
    ExpireTask,
    FailTask,
    GiveGrant,
    Governing,
    LoseWorker,
    OfWork,
    PlaceHold,
    ReleaseHold,
    ReportStatus,
    RequestInput,
    RespondToInput,
    RevokeHandle,
    SeeDefinition,
    ShredPayload,
    StopTask,
    TakeWork,
    TaskCommand,
    WithdrawGrant,
)
from tasktrail.events.decide import decide
from tasktrail.events.entry import decode, encode, leaf_hash
from tasktrail.events.errors import ChainBroken
from tasktrail.events.facts import (
    CommandRefused,
    HoldPlaced,
    HoldReleased,
    InputRequested,
    OnWorkerLost,
    PayloadShredded,
    TaskEvent,
    TaskExpired,
    WorkerLost,
    WorkTaken,
)
from tasktrail.events.subjects import task_ref
from tasktrail.events.task import OnTask, Task, apply, evolve, replay
from tasktrail.testing.memory import MemoryTrail
from tasktrail.testing.scenario import ANA, ELICITATION, NOW_MS, TTL_MS, authority, create, sealed

REF = task_ref(b"k" * 32, "a task")

keys = st.sampled_from(["a", "b", "c", ""])
payloads = st.builds(sealed, st.just("payload"), st.sampled_from(["one", "two"]))
answers = st.builds(
    Answer,
    key=keys,
    key_sha256=st.just("d" * 64),
    action=st.just("accept"),
    response=st.none() | payloads,
    fault=st.sampled_from(["", "", "", "wrong"]),
)
asks = st.builds(Ask, key=keys, method=st.just(ELICITATION), request=payloads)
RERUNS_MAX = 2
fixed = {"id": st.just("")}
workers = st.sampled_from(["w1", "w2"])
said = {"worker": st.none() | workers | st.just(""), "attempt": st.integers(0, 3)}
commands: st.SearchStrategy[TaskCommand] = st.one_of(
    st.builds(create, st.just("")),
    st.builds(ReportStatus, message=st.none() | payloads, **fixed),
    st.builds(RequestInput, asks=st.lists(asks, max_size=3).map(tuple), **fixed),
    st.builds(RespondToInput, answers=st.lists(answers, max_size=4).map(tuple), **fixed),
    st.builds(CompleteTask, result=payloads, is_error=st.booleans(), **said, **fixed),
    st.builds(FailTask, error=payloads, code=st.integers(-32999, -1), **said, **fixed),
    st.builds(CancelTask, **fixed),
    st.builds(StopTask, **said, **fixed),
    st.builds(ExpireTask, **fixed),
    st.builds(
        LoseWorker,
        cause=st.sampled_from(["lease", "shutdown"]),
        error=payloads,
        code=st.just(-1),
        reruns_max=st.just(RERUNS_MAX),
        **said,
        **fixed,
    ),
    st.builds(TakeWork, worker=workers, tool_sha256=st.sampled_from(["", "one", "two"]), **fixed),
    st.builds(SeeDefinition, tool_sha256=st.sampled_from(["", "one", "two"]), **fixed),
)
rules = {"reason": st.just("r"), **fixed}
names = st.sampled_from(["one", "two"])
people = st.sampled_from(["olga", "omar"])
governing: st.SearchStrategy[Governing] = st.one_of(
    st.builds(ChangeAuthority, standing=st.sampled_from(Standing), until_s=st.integers(0, 2**40), **fixed),
    st.builds(RevokeHandle, **rules),
    st.builds(GiveGrant, grant=names, to=st.just(ANA), rights=st.just(("get",)), **rules),
    st.builds(WithdrawGrant, grant=names, **rules),
    st.builds(PlaceHold, hold=names, by=people, **rules),
    st.builds(ReleaseHold, hold=names, by=people, **rules),
    st.builds(ShredPayload, **rules),
)
commands = commands | governing
steps = st.lists(st.tuples(commands, st.sampled_from([0, 1, 1_000, TTL_MS])), max_size=25)


RETENTION_MS = {"completed": 2_000, "failed": 0, "cancelled": TTL_MS * 2}


def run(sequence: list[tuple[TaskCommand, int]], **of: Any) -> tuple[list[Task], list[TaskEvent]]:  # noqa: ANN401 - of a creation
    """Commands in order, each so many milliseconds after the one before: the states and the events."""
    made = decide(create(at_ms=NOW_MS, retention_ms=RETENTION_MS, **of), None)
    at_ms, tasks, events = NOW_MS, [replay(made)], [*made]
    for number, (command, later_ms) in enumerate(sequence):
        at_ms += later_ms
        task = tasks[-1]
        for event in decide(msgspec.structs.replace(command, id=f"c{number}", at_ms=at_ms), task):
            task = evolve(task, event)
            events.append(event)
        tasks.append(task)
    return tasks, events


def visible(task: Task) -> object:
    """What a client is shown, but the times."""
    return task.status, task.message, dict(task.inputs), task.result, task.error, task.is_error


@pytest.mark.requirement("L2")
@given(steps)
def test_a_terminal_status_is_never_left_and_last_updated_moves_with_what_is_shown_only(
    sequence: list[tuple[TaskCommand, int]],
) -> None:
    """Feature L2."""
    tasks, _ = run(sequence)
    for before, after in itertools.pairwise(tasks):
        assert not before.status.terminal or visible(after) == visible(before)
        if visible(after) == visible(before):
            assert after.last_updated_at_ms == before.last_updated_at_ms
        assert after.last_updated_at_ms >= before.last_updated_at_ms
        assert before.expired_at_ms is None or visible(after) == visible(before)
        assert (after.binding, after.handle, after.retention_ms) == (before.binding, before.handle, before.retention_ms)


@pytest.mark.requirement("P1", "P2")
@given(steps)
def test_no_time_to_live_is_ever_extended_and_only_the_end_of_the_task_shortens_it(
    sequence: list[tuple[TaskCommand, int]],
) -> None:
    """Features P1, P2: never extended; retention counts from the end."""
    tasks, _ = run(sequence)
    for before, after in itertools.pairwise(tasks):
        assert after.ttl_ms == after.expires_at_ms - after.created_at_ms
        assert after.expires_at_ms <= before.expires_at_ms
        if before.status.terminal or not after.status.terminal:
            assert after.expires_at_ms == before.expires_at_ms
        else:
            kept_ms = RETENTION_MS[after.status]
            assert after.expires_at_ms == min(before.expires_at_ms, after.last_updated_at_ms + kept_ms)


@pytest.mark.requirement("A2", "A9", "R3")
@given(steps)
def test_commands_that_govern_a_task_never_move_it(sequence: list[tuple[TaskCommand, int]]) -> None:
    """Who may use a task, and how long its payloads are kept, is no status of it."""
    tasks, _ = run(sequence)
    for (command, _), (before, after) in zip(sequence, itertools.pairwise(tasks), strict=True):
        if isinstance(command, Governing):
            assert visible(after) == visible(before)
            assert (after.last_updated_at_ms, after.expires_at_ms) == (before.last_updated_at_ms, before.expires_at_ms)
        else:
            governed = ("standing", "until_s", "grants", "holds", "revoked_at_ms", "shredded_at_ms")
            assert [getattr(after, name) for name in governed] == [getattr(before, name) for name in governed]


@pytest.mark.requirement("R2", "R3")
@given(steps)
def test_payloads_are_shredded_once_after_the_end_and_never_while_held(sequence: list[tuple[TaskCommand, int]]) -> None:
    """Feature R3: a hold wins, and whoever placed it does not release it."""
    _, events = run(sequence)
    held: dict[str, str] = {}
    gone, shredded = False, 0
    for event in events:
        if isinstance(event, HoldPlaced):
            held[event.hold] = event.by
        elif isinstance(event, HoldReleased):
            assert held.pop(event.hold) != event.by
        gone = gone or isinstance(event, TaskExpired)
        if isinstance(event, PayloadShredded):
            shredded += 1
            assert gone
            assert not held
    assert shredded <= 1


@pytest.mark.requirement("L7")
@given(steps)
def test_keys_are_asked_once_and_an_answer_is_never_changed(sequence: list[tuple[TaskCommand, int]]) -> None:
    """Feature L7: keys unique for life; repeated answers change nothing."""
    tasks, events = run(sequence)
    asked = [event.key for event in events if isinstance(event, InputRequested)]
    assert len(asked) == len(set(asked))
    for before, after in itertools.pairwise(tasks):
        for key, one in before.inputs.items():
            assert after.inputs[key].request == one.request
            assert one.response is None or after.inputs[key] == one
        if after.status == "working":
            assert not after.outstanding


@pytest.mark.requirement("L9")
@given(steps, st.sampled_from(OnWorkerLost))
def test_only_the_worker_of_a_task_speaks_for_it_and_it_is_started_again_as_declared(
    sequence: list[tuple[TaskCommand, int]], on_worker_lost: OnWorkerLost
) -> None:
    """Feature L9: as its tool declares, never silently, never twice by surprise."""
    tasks, events = run(sequence, worker="w1", on_worker_lost=on_worker_lost)
    for (command, _), (before, after) in zip(sequence, itertools.pairwise(tasks), strict=True):
        if isinstance(command, OfWork) and command.worker is not None and command.worker != before.worker:
            assert visible(after) == visible(before)
            assert (after.worker, after.attempt) == (before.worker, before.attempt)
        assert not (after.waits_for_worker and after.worker)
        assert after.attempt - before.attempt in {0, 1}
        assert after.attempt == before.attempt or isinstance(command, TakeWork)
    lost = [event for event in events if isinstance(event, WorkerLost)]
    taken = [event for event in events if isinstance(event, WorkTaken)]
    assert len(taken) <= sum(event.rerun for event in lost) <= (RERUNS_MAX if on_worker_lost == "rerun" else 0)
    assert [event.attempt for event in taken] == list(range(2, len(taken) + 2))


@pytest.mark.requirement("L2")
@given(steps)
def test_the_state_is_the_replay_of_the_events_and_a_refusal_changes_nothing(
    sequence: list[tuple[TaskCommand, int]],
) -> None:
    """Style 1: `evolve` is all there is to a state."""
    tasks, events = run(sequence)
    assert replay(events) == tasks[-1]
    assert replay([event for event in events if not isinstance(event, CommandRefused)]) == tasks[-1]


def chained(sequence: list[tuple[TaskCommand, int]]) -> tuple[list[bytes], Task]:
    """The entries that the commands make, and the task's state after them."""
    now = NOW_MS
    trail = MemoryTrail(clock=lambda: now)
    done = trail.record(ANA.tenant, REF, create(), authority())
    for number, (command, later_ms) in enumerate(sequence):
        now += later_ms
        done = trail.record(ANA.tenant, REF, msgspec.structs.replace(command, id=f"c{number}"), authority())
    return [message.body for message in trail.messages], done.state.task


def folded(bodies: list[bytes]) -> Task | None:
    task: Task | None = None
    for body in bodies:
        task = apply(task, decode(body), leaf_hash(body))
    return task


@pytest.mark.requirement("T1", "L2")
@given(steps)
def test_a_chain_folds_to_the_state_it_was_written_from(sequence: list[tuple[TaskCommand, int]]) -> None:
    """Feature T6 begins here: any two replays agree."""
    bodies, task = chained(sequence)
    assert folded(bodies) == task
    assert [encode(decode(body)) for body in bodies] == bodies


@pytest.mark.requirement("T1")
@given(steps, st.data())
@settings(max_examples=50)
def test_a_break_in_the_chain_is_found(sequence: list[tuple[TaskCommand, int]], data: st.DataObject) -> None:
    """Design section 7: `task_seq` and `prev`. A change of the last entry is found by its signature, not here."""
    bodies, _ = chained([(ReportStatus(id="", message=sealed("message", "x")), 1), *sequence])
    at = data.draw(st.integers(0, len(bodies) - 2), label="at")
    changed = encode(msgspec.structs.replace(decode(bodies[at]), recorded_at="1999-01-01T00:00:00.000Z"))
    kind = data.draw(st.sampled_from(["removed", "repeated", "swapped", "changed"]), label="kind")
    broken = {
        "removed": [*bodies[:at], *bodies[at + 1 :]],
        "repeated": [*bodies[: at + 1], *bodies[at:]],
        "swapped": [*bodies[:at], bodies[at + 1], bodies[at], *bodies[at + 2 :]],
        "changed": [*bodies[:at], changed, *bodies[at + 1 :]],
    }[kind]
    with pytest.raises(ChainBroken):
        folded(broken)


events_anyhow: st.SearchStrategy[list[Any]] = steps.map(lambda sequence: run(sequence)[1])


@pytest.mark.requirement("L2")
@given(st.lists(events_anyhow, min_size=2, max_size=3), st.randoms(use_true_random=False))
def test_no_order_of_events_leaves_a_terminal_status(histories: list[list[OnTask]], order: Any) -> None:  # noqa: ANN401
    """`evolve` is total: an order that cannot be is `ChainBroken`, never another state and never another error."""
    events = [event for history in histories for event in history]
    order.shuffle(events)
    task = replay(decide(create(at_ms=NOW_MS), None))
    for event in events:
        before = task
        try:
            task = evolve(task, event)
        except ChainBroken:
            continue
        assert not before.status.terminal or visible(task) == visible(before)
