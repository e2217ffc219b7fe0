"""The rules: a command and a task's state give events.

Guarantees: pure and total. Every command on every status gives at least one event or, where nothing would change, none;
what the status does not admit gives `CommandRefused`, so that refusals are on the trail too. Time and ids arrive in the
command.

    decide(CancelTask(id="…", at_ms=now), task)  ->  (CancelRequested(at_ms=now),)
"""

from typing import assert_never

from tasktrail.events.authority import Standing
from tasktrail.events.commands import (
    Answer,
    CancelTask,
    ChangeAuthority,
    CompleteTask,
    CreateTask,
    ExpireTask,
    FailTask,
    GiveGrant,
    Governing,
    LoseWorker,
    MovingCommand,
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
    WorkCommand,
)
from tasktrail.events.facts import (
    AuthorityChanged,
    CancelRequested,
    CommandRefused,
    GrantGiven,
    GrantWithdrawn,
    HandleRevoked,
    HoldPlaced,
    HoldReleased,
    InputIgnored,
    InputRequested,
    InputResponded,
    OnWorkerLost,
    PayloadShredded,
    StatusReported,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskEvent,
    TaskExpired,
    TaskFailed,
    TaskResumed,
    ToolDriftSeen,
    WorkerLost,
    WorkTaken,
)
from tasktrail.events.task import Task

INPUTS_MAX = 256
"""How many requests for input one task may make over its life."""

SHUTDOWN = "shutdown"
"""The cause of a worker lost that said goodbye: its work has stopped."""

GRANTS_MAX = 64
"""How many grants, and how many holds, a task may have at a time."""


def decide(command: TaskCommand, task: Task | None) -> tuple[TaskEvent, ...]:
    """The events that `command` causes in `task` (None: no such task yet)."""
    if isinstance(command, CreateTask):
        return (_create(command) if task is None else _refused(command, task.status, "already_created"),)
    if task is None:
        return (_refused(command, "none", "no_such_task"),)
    if isinstance(command, ExpireTask | SeeDefinition):
        return _expire(command, task) if isinstance(command, ExpireTask) else _see(command, task)
    if isinstance(command, Governing):
        return _govern(command, task)
    closed = _closed(command, task)
    if closed:
        return (_refused(command, task.status, closed),)
    return _on_live_task(command, task)


def _govern(command: Governing, task: Task) -> tuple[TaskEvent, ...]:  # noqa: PLR0911 - one arm per command
    at_ms, expired = command.at_ms, task.expired_at_ms is not None
    match command:
        case ChangeAuthority():
            later = (command.token_hash or command.jti) and (command.token_hash, command.jti) != (
                task.token_hash,
                task.jti,
            )
            same = not later and (task.standing, task.until_s) == (command.standing, command.until_s)
            unexplained = task.standing is Standing.REVOKED and not command.cause
            if same or expired or unexplained:
                return ()
            return (
                AuthorityChanged(
                    at_ms=at_ms,
                    standing=command.standing,
                    until_s=command.until_s,
                    cause=command.cause,
                    token_hash=command.token_hash,
                    jti=command.jti,
                ),
            )
        case RevokeHandle():
            if task.revoked_at_ms is not None:
                return ()
            return (
                _refused(command, task.status, "expired")
                if expired
                else HandleRevoked(at_ms=at_ms, reason=command.reason),
            )
        case GiveGrant() | WithdrawGrant():
            return _grant(command, task)
        case PlaceHold() | ReleaseHold():
            return _hold(command, task)
        case ShredPayload():
            if task.shredded_at_ms is not None:
                return ()
            if task.holds:
                return (_refused(command, task.status, "held"),)
            return (
                PayloadShredded(at_ms=at_ms, reason=command.reason)
                if expired
                else _refused(command, task.status, "not_expired"),
            )
        case _:
            assert_never(command)


def _grant(command: GiveGrant | WithdrawGrant, task: Task) -> tuple[TaskEvent, ...]:
    if isinstance(command, WithdrawGrant):
        if command.grant not in task.grants:
            return (_refused(command, task.status, "no_such_grant"),)
        return (GrantWithdrawn(at_ms=command.at_ms, grant=command.grant, reason=command.reason),)
    if task.expired_at_ms is not None or task.revoked_at_ms is not None:
        return (_refused(command, task.status, "expired" if task.expired_at_ms is not None else "revoked"),)
    if command.grant in task.grants or len(task.grants) >= GRANTS_MAX:
        return (_refused(command, task.status, "grant_exists" if command.grant in task.grants else "too_many_grants"),)
    return (
        GrantGiven(
            at_ms=command.at_ms,
            grant=command.grant,
            to=command.to,
            mode=command.mode,
            rights=command.rights,
            until_ms=command.until_ms,
            reason=command.reason,
        ),
    )


def _hold(command: PlaceHold | ReleaseHold, task: Task) -> tuple[TaskEvent, ...]:
    placed_by = task.holds.get(command.hold)
    if isinstance(command, ReleaseHold):
        if placed_by is None or placed_by == command.by:
            return (_refused(command, task.status, "no_such_hold" if placed_by is None else "same_person"),)
        return (HoldReleased(at_ms=command.at_ms, hold=command.hold, by=command.by, reason=command.reason),)
    if task.shredded_at_ms is not None:
        return (_refused(command, task.status, "shredded"),)
    if placed_by is not None or len(task.holds) >= GRANTS_MAX:
        return (_refused(command, task.status, "hold_exists" if placed_by is not None else "too_many_holds"),)
    return (
        HoldPlaced(
            at_ms=command.at_ms, hold=command.hold, by=command.by, reason=command.reason, case_id=command.case_id
        ),
    )


def _closed(command: MovingCommand, task: Task) -> str:
    worker = command.worker if isinstance(command, WorkCommand) else None
    if isinstance(command, WorkCommand) and worker is not None and task.lost_to(worker, command.attempt):
        return "lost_worker"
    if task.expired_at_ms is not None:
        return "expired"
    if task.status.terminal:
        return "terminal"
    return "ttl_elapsed" if command.at_ms >= task.expires_at_ms else ""


def _on_live_task(command: MovingCommand, task: Task) -> tuple[TaskEvent, ...]:  # noqa: PLR0911 - one arm per command
    match command:
        case ReportStatus():
            return _report(command, task)
        case RequestInput():
            return _ask(command, task)
        case RespondToInput():
            return _respond(command, task)
        case CompleteTask():
            return (TaskCompleted(at_ms=command.at_ms, result=command.result, is_error=command.is_error),)
        case FailTask():
            return (TaskFailed(at_ms=command.at_ms, error=command.error, code=command.code),)
        case CancelTask():
            return _cancel(command, task)
        case StopTask():
            return (_stop(command, task),)
        case LoseWorker():
            return _lose(command, task)
        case TakeWork():
            return _take(command, task)
        case _:
            assert_never(command)


def _cancel(command: CancelTask, task: Task) -> tuple[TaskEvent, ...]:
    if task.cancel_requested_at_ms is not None:
        return (_refused(command, task.status, "already_requested"),)
    requested = CancelRequested(at_ms=command.at_ms, cause=command.cause, reason=command.reason)
    if task.waits_for_worker:  # nobody works on it, so nobody has to stop
        return (requested, TaskCancelled(at_ms=command.at_ms, reason="requested"))
    return (requested,)


def _stop(command: StopTask, task: Task) -> TaskEvent:
    if task.cancel_requested_at_ms is None:
        return _refused(command, task.status, "no_cancel_requested")
    return TaskCancelled(at_ms=command.at_ms, reason=command.reason)


def _lose(command: LoseWorker, task: Task) -> tuple[TaskEvent, ...]:
    at_ms, again = command.at_ms, task.on_worker_lost is OnWorkerLost.RERUN
    cancelled, worker = task.cancel_requested_at_ms is not None, task.worker
    if task.waits_for_worker:
        return (_refused(command, task.status, "no_worker"),)
    if again and not cancelled and task.attempt <= command.reruns_max:
        return (WorkerLost(at_ms=at_ms, cause=command.cause, worker=worker, rerun=True),)
    lost = WorkerLost(at_ms=at_ms, cause=command.cause, worker=worker)
    if again and cancelled:
        reason = "requested" if command.cause == SHUTDOWN else "unconfirmed"
        return (lost, TaskCancelled(at_ms=at_ms, reason=reason))
    return (lost, TaskFailed(at_ms=at_ms, error=command.error, code=command.code))


def _take(command: TakeWork, task: Task) -> tuple[TaskEvent, ...]:
    if not task.waits_for_worker:
        return (_refused(command, task.status, "not_waiting"),)
    taken = WorkTaken(at_ms=command.at_ms, worker=command.worker, attempt=task.attempt + 1)
    known = {task.tool_sha256, task.drift_sha256}
    if not (command.tool_sha256 and task.tool_sha256) or command.tool_sha256 in known:
        return (taken,)
    return (taken, ToolDriftSeen(at_ms=command.at_ms, tool_sha256=command.tool_sha256))


def _see(command: SeeDefinition, task: Task) -> tuple[TaskEvent, ...]:
    """Once for a task, and while it lives: definitions may go to and fro between the replicas of a server."""
    known = not (command.tool_sha256 and task.tool_sha256) or command.tool_sha256 == task.tool_sha256
    if known or task.drift_sha256 or not task.live:
        return ()
    return (ToolDriftSeen(at_ms=command.at_ms, tool_sha256=command.tool_sha256),)


def _create(command: CreateTask) -> TaskCreated:
    return TaskCreated(
        at_ms=command.at_ms,
        binding=command.binding,
        binding_mode=command.binding_mode,
        server=command.server,
        tool=command.tool,
        tool_sha256=command.tool_sha256,
        task_support=command.task_support,
        wire=command.wire,
        protocol_version=command.protocol_version,
        client_extensions=command.client_extensions,
        client_features=command.client_features,
        requested_ttl_ms=command.requested_ttl_ms,
        granted_ttl_ms=command.granted_ttl_ms,
        ttl_set_by=command.ttl_set_by,
        retention_ms=command.retention_ms,
        poll_interval_ms=command.poll_interval_ms,
        handle=command.handle,
        arguments=command.arguments,
        on_worker_lost=command.on_worker_lost,
        worker=command.worker,
        parent=command.parent,
        parent_level=command.parent_level,
    )


def _refused(command: TaskCommand, status: str, reason: str, key: str = "") -> CommandRefused:
    worker = command.worker if isinstance(command, WorkCommand | TakeWork) else None
    return CommandRefused(
        at_ms=command.at_ms,
        command=type(command).__name__,
        status=str(status),
        reason=reason,
        key=key,
        worker=worker or "",
    )


def _report(command: ReportStatus, task: Task) -> tuple[TaskEvent, ...]:
    shown = task.message.mac if task.message else None
    said = command.message.mac if command.message else None
    if said is None or said == shown:
        return ()
    return (
        StatusReported(at_ms=command.at_ms, message=command.message, progress=command.progress, total=command.total),
    )


def _ask(command: RequestInput, task: Task) -> tuple[TaskEvent, ...]:
    if task.cancel_requested_at_ms is not None:
        return (_refused(command, task.status, "cancel_requested"),)
    if len(task.inputs) + len(command.asks) > INPUTS_MAX:
        return (_refused(command, task.status, "too_many_inputs"),)
    used = set(task.inputs)
    for ask in command.asks:
        if ask.key in used:
            return (_refused(command, task.status, "key_used", ask.key),)
        used.add(ask.key)
    return tuple(
        InputRequested(at_ms=command.at_ms, key=ask.key, method=ask.method, request=ask.request) for ask in command.asks
    )


def _respond(command: RespondToInput, task: Task) -> tuple[TaskEvent, ...]:
    outstanding = task.outstanding
    for answer in command.answers:
        if answer.key in outstanding and answer.fault:
            return (_refused(command, task.status, "invalid_answer", answer.key),)
    events: list[TaskEvent] = []
    taken: set[str] = set()
    for answer in command.answers:
        if answer.key in outstanding and answer.key not in taken and answer.response is not None:
            taken.add(answer.key)
            events.append(
                InputResponded(
                    at_ms=command.at_ms,
                    key=answer.key,
                    method=outstanding[answer.key].method,
                    action=answer.action,
                    response=answer.response,
                )
            )
        else:
            events.append(_ignored(command, answer, task))
    if taken and taken == set(outstanding):
        events.append(TaskResumed(at_ms=command.at_ms))
    return tuple(events)


def _ignored(command: RespondToInput, answer: Answer, task: Task) -> InputIgnored:
    if answer.key in task.inputs:
        return InputIgnored(at_ms=command.at_ms, reason="already_answered", key=answer.key)
    return InputIgnored(at_ms=command.at_ms, reason="never_asked", key_sha256=answer.key_sha256)


def _expire(command: ExpireTask, task: Task) -> tuple[TaskEvent, ...]:
    if task.expired_at_ms is not None:
        return ()
    if command.at_ms < task.expires_at_ms:
        return (_refused(command, task.status, "not_due"),)
    expired = TaskExpired(at_ms=command.at_ms)
    if task.status.terminal:
        return (expired,)
    return (TaskCancelled(at_ms=command.at_ms, reason="ttl"), expired)
