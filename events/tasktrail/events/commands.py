"""The commands: what a caller, the work, an operator or the service itself wants of a task, one struct each.

Guarantees: frozen, tagged by `type`; ids and time arrive in them. What they cause is `decide`'s to say.

    CancelTask(id="…", at_ms=now)
"""

from typing import TypeAlias

import msgspec

from tasktrail.events.authority import Binding, BindingMode, Level, Standing
from tasktrail.events.facts import Commitment, OnWorkerLost, TaskSupport


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
    on_worker_lost: OnWorkerLost = OnWorkerLost.FAIL
    worker: str = ""
    parent: str = ""
    parent_level: Level = Level.CLAIMED


class OfWork(Command, frozen=True, kw_only=True):
    """Base of what the work says. `worker` and `attempt` are who says it: None and 0 are no worker's word, but ours."""

    worker: str | None = None
    attempt: int = 0


class ReportStatus(OfWork, frozen=True, kw_only=True):
    """The work says how far it is."""

    message: Commitment | None = None
    progress: float | None = None
    total: float | None = None


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request for input under a key that the task has not used before."""

    key: str
    method: str
    request: Commitment


class RequestInput(OfWork, frozen=True, kw_only=True):
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


class CompleteTask(OfWork, frozen=True, kw_only=True):
    """The work is done."""

    result: Commitment
    is_error: bool = False


class FailTask(OfWork, frozen=True, kw_only=True):
    """The work ended in a JSON-RPC error."""

    error: Commitment
    code: int


class CancelTask(Command, frozen=True, kw_only=True):
    """The task is to stop: the client wants it, or, with a `cause`, somebody else (see `CancelRequested`)."""

    cause: str = ""
    reason: str = ""


class StopTask(OfWork, frozen=True, kw_only=True):
    """The work has stopped after a request to cancel; `reason`: requested, or unconfirmed by any worker in time."""

    reason: str = "requested"


class ExpireTask(Command, frozen=True, kw_only=True):
    """The handle's time is over."""


class LoseWorker(OfWork, frozen=True, kw_only=True):
    """The process doing the work went away; the task ends with this error, unless it is to be started again.

    That is for the tool to declare, and happens `reruns_max` times at most.
    """

    cause: str
    error: Commitment
    code: int
    reruns_max: int = 0


class TakeWork(Command, frozen=True, kw_only=True):
    """A process (`worker`) starts the work of a task again; it knows the tool as this definition (empty: not said)."""

    worker: str
    tool_sha256: str = ""


class SeeDefinition(Command, frozen=True, kw_only=True):
    """The tool of the task is defined like this now."""

    tool_sha256: str


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

WorkCommand: TypeAlias = ReportStatus | RequestInput | CompleteTask | FailTask | StopTask | LoseWorker
"""Commands of whoever does the work."""

MovingCommand: TypeAlias = WorkCommand | RespondToInput | CancelTask | TakeWork
"""Commands that move a task which is there and lives."""

TaskCommand: TypeAlias = CreateTask | MovingCommand | ExpireTask | SeeDefinition | Governing
"""Every command."""
