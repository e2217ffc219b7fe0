"""Who works on a task, and what becomes of it when that process is lost, given, when, then.

Source: issue "Adapters" (work that survives), features L8 and L9.
"""

from typing import Any

import pytest

from tasktrail.events.commands import (
    Ask,
    CancelTask,
    CompleteTask,
    FailTask,
    LoseWorker,
    ReportStatus,
    RequestInput,
    SeeDefinition,
    StopTask,
    TakeWork,
    WorkCommand,
)
from tasktrail.events.facts import (
    CancelRequested,
    CommandRefused,
    OnWorkerLost,
    Status,
    TaskCancelled,
    TaskCreated,
    TaskFailed,
    ToolDriftSeen,
    WorkerLost,
    WorkTaken,
)
from tasktrail.testing.scenario import (
    ELICITATION,
    LATER_MS,
    asked,
    cancel_requested,
    completed,
    created,
    given,
    sealed,
    taken,
    worker_lost,
)

RERUNS_MAX = 3
FAILED = TaskFailed(at_ms=LATER_MS, error=sealed("error"), code=-32603)


def leased(on_worker_lost: OnWorkerLost = OnWorkerLost.RERUN, **fields: Any) -> TaskCreated:  # noqa: ANN401 - of a creation
    return created(worker="w1", on_worker_lost=on_worker_lost, **fields)


def lose(worker: str | None = "w1", cause: str = "lease", **fields: Any) -> LoseWorker:  # noqa: ANN401 - of the command
    said = {"reruns_max": RERUNS_MAX, **fields}
    return LoseWorker(id="l", cause=cause, error=sealed("error"), code=-32603, worker=worker, **said)


def lost(cause: str = "lease", *, rerun: bool, worker: str = "w1") -> WorkerLost:
    return WorkerLost(at_ms=LATER_MS, cause=cause, worker=worker, rerun=rerun)


@pytest.mark.requirement("L9")
@pytest.mark.parametrize("cause", ["lease", "shutdown"])
def test_a_task_ends_or_waits_for_another_worker_as_its_tool_declares(cause: str) -> None:
    """Issue: `on_worker_lost = fail | rerun`; the task ends or restarts exactly as declared, and it is an entry."""
    given(leased(OnWorkerLost.FAIL)).when(lose(cause=cause)).then(lost(cause, rerun=False), FAILED).then_task(
        Status.FAILED, {"worker": "", "waits_for_worker": False}
    )
    given(leased()).when(lose(cause=cause)).then(lost(cause, rerun=True)).then_task(
        Status.WORKING, {"worker": "", "attempt": 1, "waits_for_worker": True, "last_updated_at_ms": leased().at_ms}
    )


@pytest.mark.requirement("L9")
def test_waiting_work_is_taken_once() -> None:
    """Issue: a work queue lets another replica take over; features L9: never twice by surprise."""
    waits = given(leased(), worker_lost())
    took = waits.when(TakeWork(id="t", worker="w2"))
    took.then(WorkTaken(at_ms=LATER_MS, worker="w2", attempt=2)).then_task(
        Status.WORKING, {"worker": "w2", "attempt": 2, "waits_for_worker": False}
    )
    given(*waits.history, *took.events).when(TakeWork(id="u", worker="w3")).then_refused("not_waiting")
    given(leased()).when(TakeWork(id="t", worker="w2")).then_refused("not_waiting")


@pytest.mark.requirement("L9")
def test_a_task_is_started_again_so_often_and_no_oftener() -> None:
    """A tool that kills its process must not kill all of them, one after the other, for ever."""
    history: list[Any] = [leased()]
    for attempt in range(1, RERUNS_MAX + 1):
        history += [worker_lost(f"w{attempt}"), taken(f"w{attempt + 1}", attempt + 1)]
    last = f"w{RERUNS_MAX + 1}"
    given(*history).when(lose(last)).then(lost(rerun=False, worker=last), FAILED)
    given(leased()).when(lose(reruns_max=0)).then(lost(rerun=False), FAILED)


WORDS: tuple[WorkCommand, ...] = (
    ReportStatus(id="c", message=sealed("message"), worker="w1"),
    RequestInput(id="c", asks=(Ask(key="a", method=ELICITATION, request=sealed("request.a")),), worker="w1"),
    CompleteTask(id="c", result=sealed("result"), worker="w1"),
    FailTask(id="c", error=sealed("error"), code=-1, worker="w1"),
    StopTask(id="c", worker="w1"),
    lose(),
)


@pytest.mark.requirement("L9", "L2")
@pytest.mark.parametrize("said", WORDS, ids=lambda said: type(said).__name__)
def test_what_a_lost_worker_says_is_refused_and_says_who(said: WorkCommand) -> None:
    """Issue: a late result of a lost worker is refused and recorded, whatever became of the task since."""
    ended = given(leased(OnWorkerLost.FAIL)).when(lose())
    refused = CommandRefused(
        at_ms=LATER_MS, command=type(said).__name__, status="working", reason="lost_worker", worker="w1"
    )
    given(leased(), worker_lost()).when(said).then(refused).then_refused("lost_worker")
    given(leased(), worker_lost(), taken()).when(said).then_refused("lost_worker")
    given(*ended.before.history, *ended.events).when(said).then_refused("lost_worker")


@pytest.mark.requirement("L9")
@pytest.mark.parametrize("worker", ["", "w1", "w2"])
def test_while_work_waits_nobody_speaks_for_it_not_even_without_a_name(worker: str) -> None:
    """A result that came in without its worker's name would end the task that another is about to start again."""
    done = CompleteTask(id="c", result=sealed("result"), worker=worker)
    given(leased(), worker_lost()).when(done).then_refused("lost_worker")


@pytest.mark.requirement("L9")
def test_a_worker_that_takes_its_own_work_again_is_another_attempt() -> None:
    """A process that was only paused may take it; what its first run then comes to is not the second's result."""
    again = given(leased(), worker_lost(), taken("w1"))
    again.when(CompleteTask(id="c", result=sealed("result"), worker="w1", attempt=1)).then_refused("lost_worker")
    again.when(CompleteTask(id="c", result=sealed("result"), worker="w1", attempt=2)).then_task(Status.COMPLETED)


@pytest.mark.requirement("L9")
def test_an_adapter_without_workers_is_believed_as_before() -> None:
    """Contract of the issue: without a worker there is no lease, and nothing else changes."""
    done = CompleteTask(id="c", result=sealed("result"), worker="")
    given(created()).when(done).then_task(Status.COMPLETED)
    given(leased()).when(done).then_refused("lost_worker")
    given(created()).when(lose("", "shutdown")).then(lost("shutdown", rerun=False, worker=""), FAILED)


@pytest.mark.requirement("L8", "L9")
@pytest.mark.parametrize(("cause", "reason"), [("lease", "unconfirmed"), ("shutdown", "requested")])
def test_a_task_that_is_to_stop_is_not_started_again(cause: str, reason: str) -> None:
    """Feature L8: what became of a cancellation. Only a worker that said goodbye has confirmed that it stopped."""
    given(leased(), cancel_requested()).when(lose(cause=cause)).then(
        lost(cause, rerun=False), TaskCancelled(at_ms=LATER_MS, reason=reason)
    )


@pytest.mark.requirement("L8")
def test_cancelling_work_that_nobody_does_ends_it_at_once() -> None:
    """Feature L8: a stopped task's work is really told to stop; here there is none."""
    given(leased(), asked("a"), worker_lost()).when(CancelTask(id="c")).then(
        CancelRequested(at_ms=LATER_MS), TaskCancelled(at_ms=LATER_MS, reason="requested")
    )


@pytest.mark.requirement("P3")
def test_a_tool_defined_otherwise_than_at_creation_is_noticed_once() -> None:
    """Issue: tool-definition drift between creation and later steps is noticed."""
    waits = given(leased(tool_sha256="one"), worker_lost())
    waits.when(TakeWork(id="t", worker="w2", tool_sha256="one")).then(WorkTaken(at_ms=LATER_MS, worker="w2", attempt=2))
    drifted = waits.when(TakeWork(id="t", worker="w2", tool_sha256="two"))
    drifted.then(
        WorkTaken(at_ms=LATER_MS, worker="w2", attempt=2), ToolDriftSeen(at_ms=LATER_MS, tool_sha256="two")
    ).then_task(Status.WORKING, {"tool_sha256": "one", "drift_sha256": "two"})
    later = given(*waits.history, *drifted.events, worker_lost("w2"))
    later.when(TakeWork(id="u", worker="w3", tool_sha256="two")).then(WorkTaken(at_ms=LATER_MS, worker="w3", attempt=3))


@pytest.mark.requirement("P3")
def test_a_definition_seen_while_a_task_lives_is_recorded_once_however_often_it_changes() -> None:
    """Issue: drift between creation and later steps is noticed; replicas of two versions must not fill the trail."""
    made = given(leased(tool_sha256="one"))
    made.when(SeeDefinition(id="s", tool_sha256="one")).then()
    made.when(SeeDefinition(id="s", tool_sha256="")).then()
    given(leased()).when(SeeDefinition(id="s", tool_sha256="two")).then()
    seen = made.when(SeeDefinition(id="s", tool_sha256="two"))
    seen.then(ToolDriftSeen(at_ms=LATER_MS, tool_sha256="two")).then_task(Status.WORKING, {"drift_sha256": "two"})
    given(*made.history, *seen.events).when(SeeDefinition(id="t", tool_sha256="three")).then()
    given(*made.history, completed()).when(SeeDefinition(id="t", tool_sha256="two")).then()
