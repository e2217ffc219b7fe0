"""A task's state: what decisions need, folded from its events.

Guarantees: `evolve` is total and pure; terminal statuses are never left; `last_updated_at_ms` moves with the state
only. `apply` also checks the chain: sequence and `prev`.

    task = replay(events)
    task.status
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, TypeAlias, assert_never

import msgspec

from tasktrail.events.authority import Binding, BindingMode, Record, Standing
from tasktrail.events.entry import GENESIS, Entry
from tasktrail.events.errors import ChainBroken
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
    OnWorkerLost,
    PayloadShredded,
    Status,
    StatusReported,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskEvent,
    TaskExpired,
    TaskFailed,
    TaskResumed,
    TaskSupport,
    ToolDriftSeen,
    UnknownEvent,
    WorkerLost,
    WorkTaken,
)

OnTask: TypeAlias = TaskEvent | UnknownEvent
"""What may be on a task's own subject."""
_ON_TASK: frozenset[type] = frozenset(OnTask.__args__)
"""The same for a look-up by type, which every replayed entry makes."""


class Outcome(StrEnum):
    """What became of a command; not a task's status."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    IGNORED = "ignored"
    UNCHANGED = "unchanged"


# Bound once: in Python 3.11 a look-up in an enumeration costs half of copying a state.
_ACCEPTED, _REFUSED = Outcome.ACCEPTED, Outcome.REFUSED
_IGNORED, _UNCHANGED = Outcome.IGNORED, Outcome.UNCHANGED
_WORKING, _INPUT_REQUIRED = Status.WORKING, Status.INPUT_REQUIRED
_COMPLETED, _FAILED, _CANCELLED = Status.COMPLETED, Status.FAILED, Status.CANCELLED
_LIVE = tuple(status for status in Status if not status.terminal)

COMMANDS_KEPT = 256
"""How many accepted commands of a task are remembered, newest last, so that a repeat returns the first outcome."""


class Input(Record, frozen=True, kw_only=True):
    """One request for input: its method, the commitment to its text, and whether it was answered."""

    method: str
    request: Commitment
    response: Commitment | None = None


class Accepted(Record, frozen=True, kw_only=True):
    """A command that is on the trail: its digest and what became of it (`outcome`, and `reason` when refused)."""

    sha256: str = ""
    outcome: Outcome
    reason: str = ""


class Grant(Record, frozen=True, kw_only=True):
    """Who else may use the handle, for what, until when (epoch milliseconds, 0: as long as the handle lives)."""

    to: Binding
    mode: BindingMode
    rights: tuple[str, ...]
    until_ms: int = 0


class Task(Record, frozen=True, kw_only=True):
    """The state of one task. `seq` counts its entries; `leaf` is the hash of the last one.

    `expires_at_ms` is when the handle ends: the granted time to live, or the retention of the status it ended in when
    that is sooner; `ttl_ms` is that from its creation. `until_s` is when the creator's latest credential ends (epoch
    seconds, 0 for no end), `token_hash` and `jti` are that one's; the creating one's are kept as `created_token_hash`
    and `created_jti` once a later one took its place. `standing_cause` is the revocation that `standing` is as it is
    for. `holds` maps a hold to the operator who placed it. `worker` names the process that runs the task under a lease,
    `attempt` how often it was started, `worker_lost_at_ms` when the last such process was lost and none took its place.
    `drift_sha256` is the tool's definition as last seen, where it is another than at creation.
    """

    created_by: str = ""
    binding: Binding
    binding_mode: BindingMode
    server: str
    tool: str
    tool_sha256: str = ""
    task_support: TaskSupport = TaskSupport.OPTIONAL
    status: Status
    created_at_ms: int
    last_updated_at_ms: int
    expires_at_ms: int
    ttl_ms: int
    poll_interval_ms: int
    retention_ms: dict[str, int] = {}
    until_s: int = 0
    token_hash: str = ""
    jti: str = ""
    created_token_hash: str = ""
    created_jti: str = ""
    standing: Standing = Standing.VALID
    standing_cause: str = ""
    grants: dict[str, Grant] = {}
    holds: dict[str, str] = {}
    handle: Commitment
    arguments: Commitment | None = None
    message: Commitment | None = None
    inputs: dict[str, Input] = {}
    result: Commitment | None = None
    is_error: bool = False
    error: Commitment | None = None
    cancel_requested_at_ms: int | None = None
    revoked_at_ms: int | None = None
    expired_at_ms: int | None = None
    shredded_at_ms: int | None = None
    on_worker_lost: OnWorkerLost = OnWorkerLost.FAIL
    worker: str = ""
    attempt: int = 1
    worker_lost_at_ms: int | None = None
    parent: str = ""
    drift_sha256: str = ""
    seq: int = 0
    leaf: str = GENESIS
    commands: dict[str, Accepted] = {}

    @property
    def outstanding(self) -> dict[str, Input]:
        """The requests that still wait for an answer, by key, in the order they were made."""
        return {key: one for key, one in self.inputs.items() if one.response is None}

    @property
    def live(self) -> bool:
        """Whether the task can still change."""
        return not self.status.terminal and self.expired_at_ms is None

    @property
    def leased(self) -> bool:
        """Whether only one worker, or none just now, may speak for the work."""
        return bool(self.worker) or self.worker_lost_at_ms is not None

    def lost_to(self, worker: str, attempt: int) -> bool:
        """Whether the work is not, or no longer, this worker's in this attempt (0: in any); nobody's while it waits."""
        return self.leased and (not self.worker or worker != self.worker or attempt not in {0, self.attempt})

    @property
    def waits_for_worker(self) -> bool:
        """Whether the work is to be started again by whoever takes it."""
        return self.worker_lost_at_ms is not None and self.live


def _created(event: TaskCreated) -> Task:
    return Task(
        binding=event.binding,
        binding_mode=event.binding_mode,
        server=event.server,
        tool=event.tool,
        tool_sha256=event.tool_sha256,
        task_support=event.task_support,
        status=Status.WORKING,
        created_at_ms=event.at_ms,
        last_updated_at_ms=event.at_ms,
        expires_at_ms=event.at_ms + event.granted_ttl_ms,
        ttl_ms=event.granted_ttl_ms,
        poll_interval_ms=event.poll_interval_ms,
        retention_ms=event.retention_ms,
        handle=event.handle,
        arguments=event.arguments,
        on_worker_lost=event.on_worker_lost,
        worker=event.worker,
        parent=event.parent,
    )


def evolve(task: Task | None, event: OnTask) -> Task:  # noqa: C901, PLR0911, PLR0912 - one arm per event
    """The state after one more event.

    Raises:
        ChainBroken: the first event is not `TaskCreated`, or a later one is; an event leaves a terminal status, or
            answers what was never asked.
    """
    if task is None:
        if isinstance(event, TaskCreated):
            return _created(event)
        message = f"a task begins with TaskCreated, not with {type(event).__name__}"
        raise ChainBroken(message)
    match event:
        case TaskCreated():
            message = "a task is created once; a second TaskCreated is on its subject"
            raise ChainBroken(message)
        case StatusReported(message=text):
            return _touched(task, event.at_ms, message=text) if text else task
        case InputRequested():
            asked = {**task.inputs, event.key: Input(method=event.method, request=event.request)}
            return _touched(task, event.at_ms, status=_INPUT_REQUIRED, inputs=asked)
        case InputResponded():
            if event.key not in task.inputs:
                message = f"an answer to {event.key!r}, which was never asked"
                raise ChainBroken(message)
            answered = msgspec.structs.replace(task.inputs[event.key], response=event.response)
            return _touched(task, event.at_ms, inputs={**task.inputs, event.key: answered})
        case TaskResumed():
            return _touched(task, event.at_ms, status=_WORKING)
        case TaskCompleted():
            return _ended(task, event.at_ms, _COMPLETED, result=event.result, is_error=event.is_error)
        case TaskFailed():
            return _ended(task, event.at_ms, _FAILED, error=event.error)
        case TaskCancelled():
            return _ended(task, event.at_ms, _CANCELLED)
        case CancelRequested():
            return msgspec.structs.replace(task, cancel_requested_at_ms=event.at_ms)
        case TaskExpired():
            return msgspec.structs.replace(task, expired_at_ms=event.at_ms)
        case AuthorityChanged() | HandleRevoked() | GrantGiven() | GrantWithdrawn():
            return _governed(task, event)
        case HoldPlaced():
            return msgspec.structs.replace(task, holds={**task.holds, event.hold: event.by})
        case HoldReleased():
            return msgspec.structs.replace(task, holds={k: by for k, by in task.holds.items() if k != event.hold})
        case PayloadShredded():
            return msgspec.structs.replace(task, shredded_at_ms=event.at_ms)
        case WorkerLost() | WorkTaken() | ToolDriftSeen():
            return _worked(task, event)
        case InputIgnored() | CommandRefused() | UnknownEvent():
            return task
        case _:
            assert_never(event)


def _worked(task: Task, event: WorkerLost | WorkTaken | ToolDriftSeen) -> Task:
    """The state after the work changed hands; its status and `last_updated_at_ms` do not."""
    match event:
        case WorkerLost():
            if not (event.worker or event.rerun):
                return task
            return msgspec.structs.replace(task, worker="", worker_lost_at_ms=event.at_ms)
        case WorkTaken():
            return msgspec.structs.replace(task, worker=event.worker, attempt=event.attempt, worker_lost_at_ms=None)
        case ToolDriftSeen():
            return msgspec.structs.replace(task, drift_sha256=event.tool_sha256)
        case _:
            assert_never(event)


def _governed(task: Task, event: AuthorityChanged | HandleRevoked | GrantGiven | GrantWithdrawn) -> Task:
    """The state after somebody's right to it changed; its status and `last_updated_at_ms` do not."""
    match event:
        case AuthorityChanged():
            changed = msgspec.structs.replace(
                task, standing=event.standing, standing_cause=event.cause, until_s=event.until_s
            )
            return _standing_on(changed, event.token_hash, event.jti)
        case HandleRevoked():
            return msgspec.structs.replace(task, revoked_at_ms=event.at_ms)
        case GrantGiven():
            grant = Grant(to=event.to, mode=event.mode, rights=event.rights, until_ms=event.until_ms)
            return msgspec.structs.replace(task, grants={**task.grants, event.grant: grant})
        case GrantWithdrawn():
            left = {name: grant for name, grant in task.grants.items() if name != event.grant}
            return msgspec.structs.replace(task, grants=left)
        case _:
            assert_never(event)


def _standing_on(task: Task, token_hash: str, jti: str) -> Task:
    """The state with the credential it stands on from here on, unless that is not said; the creating one is kept."""
    if not (token_hash or jti) or (token_hash, jti) == (task.token_hash, task.jti):
        return task
    first = (task.token_hash, task.jti)
    if task.created_token_hash or task.created_jti:
        first = (task.created_token_hash, task.created_jti)
    return msgspec.structs.replace(
        task, token_hash=token_hash, jti=jti, created_token_hash=first[0], created_jti=first[1]
    )


def _ended(task: Task, at_ms: int, status: Status, **changes: object) -> Task:
    """The state after the task ended: its handle opens it for the retention of that status, if that is sooner."""
    kept_ms = task.retention_ms.get(status.value) if task.retention_ms else None
    expires_at_ms = task.expires_at_ms if kept_ms is None else min(task.expires_at_ms, at_ms + kept_ms)
    return _touched(
        task,
        at_ms,
        status=status,
        message=None,
        expires_at_ms=expires_at_ms,
        ttl_ms=expires_at_ms - task.created_at_ms,
        **changes,
    )


def _touched(task: Task, at_ms: int, **changes: object) -> Task:
    if task.status not in _LIVE:
        message = f"the task is {task.status}, which is final; an event after that changes it"
        raise ChainBroken(message)
    return msgspec.structs.replace(task, last_updated_at_ms=at_ms, **changes)


def replay(events: Iterable[OnTask]) -> Task:
    """The state after these events, the first of which is `TaskCreated`.

    Raises:
        ChainBroken: there are none, or they do not begin (or begin twice) with `TaskCreated`.
    """
    task: Task | None = None
    for event in events:
        task = evolve(task, event)
    if task is None:
        message = "no events: a task begins with TaskCreated"
        raise ChainBroken(message)
    return task


def apply(task: Task | None, entry: Entry, leaf: str) -> Task:
    """The state after one more entry, whose bytes hash to `leaf`.

    Raises:
        ChainBroken: the entry does not follow the last one applied (the message names both sides), or its events
            are not those of a task.
    """
    expected = (task.seq + 1, task.leaf) if task else (1, GENESIS)
    if (entry.task_seq, entry.prev) != expected:
        message = (
            f"entry {entry.id} of task {entry.task_ref} has task_seq {entry.task_seq} and prev "
            f"{entry.prev or 'none'}; its chain continues with {expected[0]} and {expected[1] or 'none'}"
        )
        raise ChainBroken(message)
    state = task
    events: tuple[Any, ...] = entry.events
    for event in events:
        if type(event) not in _ON_TASK:
            kind = type(event).__name__
            message = f"entry {entry.id} of task {entry.task_ref} holds {kind}, which is no event of a task"
            raise ChainBroken(message)
        state = evolve(state, event)
    if state is None:
        message = f"entry {entry.id} of task {entry.task_ref} holds no event"
        raise ChainBroken(message)
    commands = dict(state.commands)
    outcome, reason = outcome_of(entry.events)
    commands[entry.id] = Accepted(sha256=entry.command_sha256, outcome=outcome, reason=reason)
    while len(commands) > COMMANDS_KEPT:
        del commands[next(iter(commands))]
    if task is None:
        state = _with_credential(state, entry)
    return msgspec.structs.replace(state, seq=entry.task_seq, leaf=leaf, commands=commands)


def _with_credential(task: Task, entry: Entry) -> Task:
    """A new task with what its creating entry says of the creator's credential."""
    credential = entry.authority.credential
    if credential is None:
        return msgspec.structs.replace(task, created_by=entry.id)
    return msgspec.structs.replace(
        task, created_by=entry.id, until_s=credential.exp, token_hash=credential.token_hash, jti=credential.jti
    )


def outcome_of(events: Iterable[object]) -> tuple[Outcome, str]:
    """What became of the command that made these events, and why it was refused if it was."""
    outcome = _UNCHANGED
    for event in events:
        if type(event) is CommandRefused:
            return _REFUSED, event.reason
        if type(event) is not InputIgnored:
            outcome = _ACCEPTED
        elif outcome is _UNCHANGED:
            outcome = _IGNORED
    return outcome, ""
