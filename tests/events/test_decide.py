"""Every command that moves a task, on every status: the whole table, as data. Source: design section 5, SEP-2663.

The commands that govern it are in `test_governing.py`.
"""

from typing import get_args

import msgspec
import pytest

from tasktrail.events.commands import (
    Answer,
    Ask,
    CancelTask,
    CompleteTask,
    ExpireTask,
    FailTask,
    Governing,
    LoseWorker,
    ReportStatus,
    RequestInput,
    RespondToInput,
    SeeDefinition,
    StopTask,
    TakeWork,
    TaskCommand,
)
from tasktrail.events.facts import CommandRefused, OnWorkerLost, Status, TaskEvent
from tasktrail.events.task import Task
from tasktrail.testing.scenario import (
    ELICITATION,
    LATER_MS,
    NOW_MS,
    TTL_MS,
    answered,
    asked,
    cancel_requested,
    cancelled,
    completed,
    create,
    created,
    expired,
    failed,
    given,
    resumed,
    sealed,
    worker_lost,
)

ENDED_MS = NOW_MS + TTL_MS

# A situation: what happened before, and when the command comes.
SITUATIONS: dict[str, tuple[tuple[TaskEvent, ...], int]] = {
    "none": ((), LATER_MS),
    "working": ((created(),), LATER_MS),
    "one asked": ((created(), asked("a")), LATER_MS),
    "two asked": ((created(), asked("a"), asked("b")), LATER_MS),
    "part answered": ((created(), asked("a"), asked("b"), answered("b")), LATER_MS),
    "all answered": ((created(), asked("a"), answered("a"), resumed()), LATER_MS),
    "cancel requested": ((created(), cancel_requested()), LATER_MS),
    "asked, cancel requested": ((created(), asked("a"), cancel_requested()), LATER_MS),
    "completed": ((created(), completed()), LATER_MS),
    "failed": ((created(), failed()), LATER_MS),
    "cancelled": ((created(), cancel_requested(), cancelled()), LATER_MS),
    "completed, then expired": ((created(), completed(), expired()), ENDED_MS + 1),
    "expired alive": ((created(), cancelled("ttl"), expired()), ENDED_MS + 1),
    "time over": ((created(),), ENDED_MS),
    "asked, time over": ((created(), asked("a")), ENDED_MS),
    "completed, time over": ((created(), completed()), ENDED_MS),
    "no worker": ((created(worker="w1", on_worker_lost=OnWorkerLost.RERUN), worker_lost()), LATER_MS),
}

COMMANDS: dict[str, TaskCommand] = {
    "create": create("c"),
    "report": ReportStatus(id="c", message=sealed("message", "half")),
    "ask": RequestInput(id="c", asks=(Ask(key="new", method=ELICITATION, request=sealed("request.new")),)),
    "answer": RespondToInput(id="c", answers=(Answer(key="a", action="accept", response=sealed("response.a")),)),
    "complete": CompleteTask(id="c", result=sealed("result")),
    "fail": FailTask(id="c", error=sealed("error"), code=-32000),
    "cancel": CancelTask(id="c"),
    "stop": StopTask(id="c"),
    "expire": ExpireTask(id="c"),
    "lose": LoseWorker(id="c", cause="lease", error=sealed("error"), code=-32603),
    "take": TakeWork(id="c", worker="w2"),
    "see": SeeDefinition(id="c", tool_sha256="two"),
}

# Events joined by `+`; a refusal is its reason in brackets; `-` is nothing to record. Columns as in COMMANDS:
#   create report ask answer complete
#   fail cancel stop expire lose take see
TABLE = {
    "none": """
        TaskCreated (no_such_task) (no_such_task) (no_such_task) (no_such_task)
        (no_such_task) (no_such_task) (no_such_task) (no_such_task) (no_such_task) (no_such_task) (no_such_task)""",
    "working": """
        (already_created) StatusReported InputRequested InputIgnored TaskCompleted
        TaskFailed CancelRequested (no_cancel_requested) (not_due) WorkerLost+TaskFailed (not_waiting) -""",
    "one asked": """
        (already_created) StatusReported InputRequested InputResponded+TaskResumed TaskCompleted
        TaskFailed CancelRequested (no_cancel_requested) (not_due) WorkerLost+TaskFailed (not_waiting) -""",
    "two asked": """
        (already_created) StatusReported InputRequested InputResponded TaskCompleted
        TaskFailed CancelRequested (no_cancel_requested) (not_due) WorkerLost+TaskFailed (not_waiting) -""",
    "part answered": """
        (already_created) StatusReported InputRequested InputResponded+TaskResumed TaskCompleted
        TaskFailed CancelRequested (no_cancel_requested) (not_due) WorkerLost+TaskFailed (not_waiting) -""",
    "all answered": """
        (already_created) StatusReported InputRequested InputIgnored TaskCompleted
        TaskFailed CancelRequested (no_cancel_requested) (not_due) WorkerLost+TaskFailed (not_waiting) -""",
    "cancel requested": """
        (already_created) StatusReported (cancel_requested) InputIgnored TaskCompleted
        TaskFailed (already_requested) TaskCancelled (not_due) WorkerLost+TaskFailed (not_waiting) -""",
    "asked, cancel requested": """
        (already_created) StatusReported (cancel_requested) InputResponded+TaskResumed TaskCompleted
        TaskFailed (already_requested) TaskCancelled (not_due) WorkerLost+TaskFailed (not_waiting) -""",
    "completed": """
        (already_created) (terminal) (terminal) (terminal) (terminal)
        (terminal) (terminal) (terminal) (not_due) (terminal) (terminal) -""",
    "failed": """
        (already_created) (terminal) (terminal) (terminal) (terminal)
        (terminal) (terminal) (terminal) (not_due) (terminal) (terminal) -""",
    "cancelled": """
        (already_created) (terminal) (terminal) (terminal) (terminal)
        (terminal) (terminal) (terminal) (not_due) (terminal) (terminal) -""",
    "completed, then expired": """
        (already_created) (expired) (expired) (expired) (expired)
        (expired) (expired) (expired) - (expired) (expired) -""",
    "expired alive": """
        (already_created) (expired) (expired) (expired) (expired)
        (expired) (expired) (expired) - (expired) (expired) -""",
    "time over": """
        (already_created) (ttl_elapsed) (ttl_elapsed) (ttl_elapsed) (ttl_elapsed)
        (ttl_elapsed) (ttl_elapsed) (ttl_elapsed) TaskCancelled+TaskExpired (ttl_elapsed) (ttl_elapsed) -""",
    "asked, time over": """
        (already_created) (ttl_elapsed) (ttl_elapsed) (ttl_elapsed) (ttl_elapsed)
        (ttl_elapsed) (ttl_elapsed) (ttl_elapsed) TaskCancelled+TaskExpired (ttl_elapsed) (ttl_elapsed) -""",
    "completed, time over": """
        (already_created) (terminal) (terminal) (terminal) (terminal)
        (terminal) (terminal) (terminal) TaskExpired (terminal) (terminal) -""",
    "no worker": """
        (already_created) StatusReported InputRequested InputIgnored TaskCompleted
        TaskFailed CancelRequested+TaskCancelled (no_cancel_requested) (not_due) (no_worker) WorkTaken -""",
}


def told(events: tuple[TaskEvent, ...]) -> str:
    """Events as the table writes them."""
    if len(events) == 1 and isinstance(events[0], CommandRefused):
        return f"({events[0].reason})"
    return "+".join(type(event).__name__ for event in events) or "-"


def shown(task: Task | None) -> object:
    """What a client is shown of a task, but its times."""
    return task and (task.status, task.message, dict(task.inputs), task.result, task.error)


@pytest.mark.requirement("L2")
def test_the_table_is_whole() -> None:
    """Every kind of command, every status, and a cell for each pair."""
    assert {type(command) for command in COMMANDS.values()} == set(get_args(TaskCommand)) - set(get_args(Governing))
    tasks = [given(*history).task for history, _ in SITUATIONS.values()]
    assert {task.status for task in tasks if task} == set(Status)
    assert TABLE.keys() == SITUATIONS.keys()
    assert {len(row.split()) for row in TABLE.values()} == {len(COMMANDS)}


@pytest.mark.requirement("L2", "L8", "L10")
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_on_each_status(situation: str, command: str) -> None:
    """The cell of the table; `lastUpdatedAt` moves with what is shown and only then; a refusal names itself."""
    history, at_ms = SITUATIONS[situation]
    before = given(*history)
    done = before.when(msgspec.structs.replace(COMMANDS[command], at_ms=at_ms))
    cell = dict(zip(COMMANDS, TABLE[situation].split(), strict=True))[command]
    assert told(done.events) == cell
    assert {event.at_ms for event in done.events} <= {at_ms}
    for event in done.events:
        if isinstance(event, CommandRefused):
            status = before.task.status if before.task else "none"
            assert (event.command, event.status) == (type(COMMANDS[command]).__name__, status)
    if before.task and done.task:
        moved = done.task.last_updated_at_ms != before.task.last_updated_at_ms
        assert moved == (shown(done.task) != shown(before.task))
        assert not before.task.status.terminal or shown(done.task) == shown(before.task)
