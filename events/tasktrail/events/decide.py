"""The rules: a command and a task's state give events.

Guarantees: pure and total. Every command on every status gives at least one event or, where nothing would change, none;
what the status does not admit gives `CommandRefused`, so that refusals are on the trail too. Time and ids arrive in the
command.

    decide(CancelTask(id="…", at_ms=now), task)  ->  (CancelRequested(at_ms=now),)
"""

from typing import TypeAlias, assert_never

import msgspec

from tasktrail.events.authority import Binding, BindingMode, Standing
from tasktrail.events.facts import (
    AuthorityChanged,
    CancelRequested,
    CommandRefused,
    Commitment,
    GrantGiven,
    GrantWithdrawn,
    HandleRevoked,
    HoldPlaced,
    HoldReleased,
    InputIgnored,
    InputRequested,
    InputResponded,
    PayloadShredded,
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

GRANTS_MAX = 64
"""How many grants, and how many holds, a task may have at a time."""


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
    ttl_set_by: str = ""
    retention_ms: dict[str, int] = {}
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
    """The task is to stop: the client wants it, or, with a `cause`, somebody else (see `CancelRequested`)."""

    cause: str = ""
    reason: str = ""


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


class ChangeAuthority(Command, frozen=True, kw_only=True):
    """The creator's authority stands otherwise than the state says; what was revoked, for a `cause` only.

    `token_hash` and `jti` are those of the later credential that it stands on, if the creator came with one.
    """

    standing: Standing
    until_s: int = 0
    cause: str = ""
    token_hash: str = ""
    jti: str = ""


class RevokeHandle(Command, frozen=True, kw_only=True):
    """An operator takes the handle back."""

    reason: str


class GiveGrant(Command, frozen=True, kw_only=True):
    """An operator lets somebody else use the handle."""

    grant: str
    to: Binding
    mode: BindingMode = BindingMode.EXACT
    rights: tuple[str, ...]
    until_ms: int = 0
    reason: str


class WithdrawGrant(Command, frozen=True, kw_only=True):
    """An operator ends a grant."""

    grant: str
    reason: str


class PlaceHold(Command, frozen=True, kw_only=True):
    """An operator (`by`) has the payloads kept."""

    hold: str
    by: str
    reason: str
    case_id: str = ""


class ReleaseHold(Command, frozen=True, kw_only=True):
    """Another operator (`by`) ends a hold."""

    hold: str
    by: str
    reason: str


class ShredPayload(Command, frozen=True, kw_only=True):
    """The retention is over: from the entry on, the task's key is to be destroyed."""

    reason: str


Governing: TypeAlias = (
    ChangeAuthority | RevokeHandle | GiveGrant | WithdrawGrant | PlaceHold | ReleaseHold | ShredPayload
)
"""Commands about who may use a task and how long its payloads are kept: they never move its status."""

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
    | Governing
)


def decide(command: TaskCommand, task: Task | None) -> tuple[TaskEvent, ...]:
    """The events that `command` causes in `task` (None: no such task yet)."""
    if task is None:
        if isinstance(command, CreateTask):
            return (_create(command),)
        return (_refused(command, "none", "no_such_task"),)
    if isinstance(command, ExpireTask):
        return _expire(command, task)
    if isinstance(command, Governing):
        return _govern(command, task)
    closed = _closed(command, task)
    if closed:
        return (_refused(command, task.status, closed),)
    return _on_live_task(command, task)


_Moving: TypeAlias = (
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


def _closed(command: "_Moving", task: Task) -> str:
    if isinstance(command, CreateTask):
        return "already_created"
    if task.expired_at_ms is not None:
        return "expired"
    if task.status.terminal:
        return "terminal"
    return "ttl_elapsed" if command.at_ms >= task.expires_at_ms else ""


def _on_live_task(command: "_Moving", task: Task) -> tuple[TaskEvent, ...]:  # noqa: C901, PLR0911 - one arm per command
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
            return (CancelRequested(at_ms=command.at_ms, cause=command.cause, reason=command.reason),)
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
        ttl_set_by=command.ttl_set_by,
        retention_ms=command.retention_ms,
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
