"""The rules: a command and a task's state give events.

Guarantees: pure and total. Every command on every status gives at least one event or, where nothing would change, none;
what the status does not admit gives `CommandRefused`, so that refusals are on the trail too. Time and ids arrive in the
command.

    decide(CancelTask(id="…", at_ms=now), task)  ->  (CancelRequested(at_ms=now),)
"""

from typing import TypeAlias, assert_never

import msgspec

from tasktrail.events.authority import Binding, BindingMode
from tasktrail.events.facts import (
    CancelRequested,
    CommandRefused,
    Commitment,
    InputIgnored,
    InputRequested,
    InputResponded,
    StatusReported,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskEvent,
    TaskExpired,
    TaskFailed,
    TaskResumed,
    TaskSupport,
    WorkerLost,
)
from tasktrail.events.task import Task

INPUTS_MAX = 256
"""How many requests for input one task may make over its life."""


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=True):
    """Base of every command. `id` is minted by the caller's adapter; `at_ms` is the Ledger's clock."""

    id: str
    at_ms: int = 0


class CreateTask(Command, frozen=True, kw_only=True):
    """Make a handle for one call of one tool."""

    binding: Binding
    binding_mode: BindingMode = BindingMode.EXACT
    server: str
    tool: str
    tool_sha256: str = ""
    task_support: TaskSupport
    wire: str
    protocol_version: str
    client_extensions: tuple[str, ...] = ()
    client_features: tuple[str, ...] = ()
    requested_ttl_ms: int | None = None
    granted_ttl_ms: int
    poll_interval_ms: int
    handle: Commitment
    arguments: Commitment | None = None


class ReportStatus(Command, frozen=True, kw_only=True):
    """The work says how far it is."""

    message: Commitment | None = None
    progress: float | None = None
    total: float | None = None


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request for input under a key that the task has not used before."""

    key: str
    method: str
    request: Commitment


class RequestInput(Command, frozen=True, kw_only=True):
    """The work asks its client for input: all of these, or none."""

    asks: tuple[Ask, ...]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer as the shell found it. `fault` is why it does not satisfy its request's schema, empty when it does.

    `key` is empty for a key the task never issued; then `key_sha256` says which.
    """

    key: str = ""
    key_sha256: str = ""
    action: str = ""
    response: Commitment | None = None
    fault: str = ""


class RespondToInput(Command, frozen=True, kw_only=True):
    """The client answers some of the outstanding requests.

    `said` stands for the answers as they came (a keyed digest): `answers` is how they looked in the task's state then,
    so a repeat of the command is known by `said` alone.
    """

    answers: tuple[Answer, ...]
    said: str = ""


class CompleteTask(Command, frozen=True, kw_only=True):
    """The work is done."""

    result: Commitment
    is_error: bool = False


class FailTask(Command, frozen=True, kw_only=True):
    """The work ended in a JSON-RPC error."""

    error: Commitment
    code: int


class CancelTask(Command, frozen=True, kw_only=True):
    """The client wants the task to stop."""


class StopTask(Command, frozen=True, kw_only=True):
    """The work has stopped after a request to cancel; `reason`: requested, or unconfirmed by any worker in time."""

    reason: str = "requested"


class ExpireTask(Command, frozen=True, kw_only=True):
    """The handle's time is over."""


class LoseWorker(Command, frozen=True, kw_only=True):
    """The process doing the work went away; the task ends with this error."""

    cause: str
    error: Commitment
    code: int


TaskCommand: TypeAlias = (
    CreateTask
    | ReportStatus
    | RequestInput
    | RespondToInput
    | CompleteTask
    | FailTask
    | CancelTask
    | StopTask
    | ExpireTask
    | LoseWorker
)


def decide(command: TaskCommand, task: Task | None) -> tuple[TaskEvent, ...]:
    """The events that `command` causes in `task` (None: no such task yet)."""
    if task is None:
        if isinstance(command, CreateTask):
            return (_create(command),)
        return (_refused(command, "none", "no_such_task"),)
    if isinstance(command, ExpireTask):
        return _expire(command, task)
    closed = _closed(command, task)
    if closed:
        return (_refused(command, task.status, closed),)
    return _on_live_task(command, task)


def _closed(command: TaskCommand, task: Task) -> str:
    if isinstance(command, CreateTask):
        return "already_created"
    if task.expired_at_ms is not None:
        return "expired"
    if task.status.terminal:
        return "terminal"
    return "ttl_elapsed" if command.at_ms >= task.expires_at_ms else ""


def _on_live_task(command: TaskCommand, task: Task) -> tuple[TaskEvent, ...]:  # noqa: C901, PLR0911 - one arm per command
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
            if task.cancel_requested_at_ms is not None:
                return (_refused(command, task.status, "already_requested"),)
            return (CancelRequested(at_ms=command.at_ms),)
        case StopTask():
            if task.cancel_requested_at_ms is None:
                return (_refused(command, task.status, "no_cancel_requested"),)
            return (TaskCancelled(at_ms=command.at_ms, reason=command.reason),)
        case LoseWorker():
            lost = WorkerLost(at_ms=command.at_ms, cause=command.cause)
            return (lost, TaskFailed(at_ms=command.at_ms, error=command.error, code=command.code))
        case CreateTask() | ExpireTask():
            message = f"{type(command).__name__} is decided before"
            raise AssertionError(message)
        case _:
            assert_never(command)


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
        poll_interval_ms=command.poll_interval_ms,
        handle=command.handle,
        arguments=command.arguments,
    )


def _refused(command: TaskCommand, status: str, reason: str, key: str = "") -> CommandRefused:
    return CommandRefused(
        at_ms=command.at_ms, command=type(command).__name__, status=str(status), reason=reason, key=key
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
