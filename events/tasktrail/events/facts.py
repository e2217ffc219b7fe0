"""The facts of the trail: one frozen tagged struct per event, past tense.

Guarantees: a field is never re-typed or removed and a new one has a default, so every entry ever written decodes for
ever; an event whose `type` this version does not know is kept as `UnknownEvent`, never dropped. Times are epoch
milliseconds, durations milliseconds, sizes bytes. Payload text is never in an event: an event holds a `Commitment`.

    TaskCompleted(at_ms=1_763_800_000_000, result=commitment)
"""

from enum import StrEnum
from typing import TypeAlias

import msgspec

from tasktrail.events.authority import Binding, BindingMode, Level, Record, Standing


class Status(StrEnum):
    """A task's status on the wire (SEP-2663)."""

    WORKING = "working"
    INPUT_REQUIRED = "input_required"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """True for the statuses a task never leaves."""
        return self in _TERMINAL


_TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})


class TaskSupport(StrEnum):
    """Whether a tool may, must or must not run as a task."""

    FORBIDDEN = "forbidden"
    OPTIONAL = "optional"
    REQUIRED = "required"


class OnWorkerLost(StrEnum):
    """What becomes of a tool's task when the process that runs it is lost."""

    FAIL = "fail"
    RERUN = "rerun"


SCANNED_IN_PART = "scanned_in_part"
"""The flag of a payload of which only the beginning was looked through for secrets."""


class Commitment(Record, frozen=True, kw_only=True):
    """What an event says of a sealed payload.

    `sha256` is the hex digest of the ciphertext blob (nonce, ciphertext and tag) and its address in the object
    bucket; `mac` is HMAC-SHA256 of the plaintext under the task's own key, so that short texts cannot be guessed;
    `size` is the blob's length in bytes. `flags` are the kinds of secrets seen in the text before it was sealed, as
    words, never a part of one; and `SCANNED_IN_PART`. None seen does not prove that there is none.
    """

    name: str
    sha256: str
    mac: str
    size: int
    flags: tuple[str, ...] = ()


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag=True, gc=False):
    """Base of every event. `at_ms` is when the fact became true, by the Ledger's clock."""

    at_ms: int


class TaskCreated(Fact, frozen=True, kw_only=True):
    """A task handle was made for `binding`. `handle` commits to the sealed task id.

    `requested_ttl_ms` is the wish, `granted_ttl_ms` what was granted, `ttl_set_by` what decided it: `request` or `tool`
    (whose wish it was), `tool_rule` or `service` (whose default or cap). `retention_ms` is how long the handle opens a
    task that has ended, by status, never longer than its time to live; and, as `payloads`, how long after the handle's
    end its key is kept. `worker` names the process that runs the task, empty where none is watched over by a lease;
    `parent` is the task whose work made this call, by its reference, and `parent_level` how far that is proved:
    asserted, an MCP server named its handle; claimed, the caller's trace context did.
    """

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


class StatusReported(Fact, frozen=True, kw_only=True):
    """The running work said how far it is."""

    message: Commitment | None = None
    progress: float | None = None
    total: float | None = None


class InputRequested(Fact, frozen=True, kw_only=True):
    """The work asked its client for input; `key` is unique over the task's life."""

    key: str
    method: str
    request: Commitment


class InputResponded(Fact, frozen=True, kw_only=True):
    """An outstanding request was answered. `action` is what the client said, not a verified human approval."""

    key: str
    method: str
    action: str
    response: Commitment


class InputIgnored(Fact, frozen=True, kw_only=True):
    """An answer changed nothing. `key` is empty for a key the task never issued: then only its digest is kept."""

    reason: str
    key: str = ""
    key_sha256: str = ""


class TaskResumed(Fact, frozen=True, kw_only=True):
    """Nothing is outstanding any more: the work goes on."""


class TaskCompleted(Fact, frozen=True, kw_only=True):
    """The request finished with a result, which may itself say `isError`."""

    result: Commitment
    is_error: bool = False


class TaskFailed(Fact, frozen=True, kw_only=True):
    """The request finished with a JSON-RPC error of `code`."""

    error: Commitment
    code: int


class CancelRequested(Fact, frozen=True, kw_only=True):
    """Somebody entitled to it asked for the task to stop. What became of that is another fact.

    `cause` is empty when the caller asked; otherwise why the task is stopped: authority_lapsed, authority_revoked,
    handle_revoked or operator; an operator's `reason` is in the operator's own words.
    """

    cause: str = ""
    reason: str = ""


class TaskCancelled(Fact, frozen=True, kw_only=True):
    """The task ended as cancelled. `reason`: requested, unconfirmed (no worker answered in time) or ttl."""

    reason: str


class TaskExpired(Fact, frozen=True, kw_only=True):
    """The handle's time ended: it opens nothing any more."""


class WorkerLost(Fact, frozen=True, kw_only=True):
    """The process doing the work went away. `cause`: shutdown, lease or unanswered.

    `worker` names it where it had a lease. `rerun`: the work waits for another one, which starts it again.
    """

    cause: str
    worker: str = ""
    rerun: bool = False


class WorkTaken(Fact, frozen=True, kw_only=True):
    """A process took the work of a task whose worker was lost, and starts it again: for the `attempt`-th time."""

    worker: str
    attempt: int


class ToolDriftSeen(Fact, frozen=True, kw_only=True):
    """A later step saw another definition of the tool than the creation did. `tool_sha256` is that definition's."""

    tool_sha256: str


class AuthorityChanged(Fact, frozen=True, kw_only=True):
    """The creator's authority over the task stands otherwise than it did.

    `until_s` is when the latest credential ends (epoch seconds, 0 for no end); `cause` is the id of the revocation, or
    empty when the creator came with a later credential: then `token_hash` and `jti` are that one's.
    """

    standing: Standing
    until_s: int = 0
    cause: str = ""
    token_hash: str = ""
    jti: str = ""


class HandleRevoked(Fact, frozen=True, kw_only=True):
    """An operator took the handle back: it opens nothing any more. Not a status; the work may still be running."""

    reason: str


class GrantGiven(Fact, frozen=True, kw_only=True):
    """Somebody else than the creator may use the handle.

    `to` is compared under `mode`; `rights` are of get, update, cancel and subscribe; `until_ms` 0 is the handle's own
    end.
    """

    grant: str
    to: Binding
    mode: BindingMode = BindingMode.EXACT
    rights: tuple[str, ...]
    until_ms: int = 0
    reason: str


class GrantWithdrawn(Fact, frozen=True, kw_only=True):
    """A grant opens nothing any more."""

    grant: str
    reason: str


class HoldPlaced(Fact, frozen=True, kw_only=True):
    """The task's payloads are kept, whatever their retention says. `by` names the operator, `case_id` the matter."""

    hold: str
    by: str
    reason: str
    case_id: str = ""


class HoldReleased(Fact, frozen=True, kw_only=True):
    """A hold ended. `by` is another operator than the one who placed it."""

    hold: str
    by: str
    reason: str


class PayloadShredded(Fact, frozen=True, kw_only=True):
    """The task's key was destroyed: nothing sealed under it can be read any more. `reason`: retention or operator."""

    reason: str


class CommandRefused(Fact, frozen=True, kw_only=True):
    """A command was refused in this status, for this reason, and changed nothing. `worker`: who said it, if known."""

    command: str
    status: str
    reason: str
    key: str = ""
    worker: str = ""


class UnknownEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a newer version: kept as written and shown, without effect on the state."""

    type: str
    raw: msgspec.Raw
    at_ms: int = 0


class TaskPolled(Fact, frozen=True, kw_only=True):
    """A run of identical accesses by one credential and address: `count` of them between the two times."""

    method: str
    status: str
    count: int
    first_ms: int
    last_ms: int


class ResultDisclosed(Fact, frozen=True, kw_only=True):
    """Payloads were shown.

    `nth`: how often this caller has now been shown them, as the process that showed them counts; `count`: folded ones.
    """

    payloads: tuple[str, ...]
    sha256: tuple[str, ...]
    nth: int
    count: int = 1
    method: str


class SubscriptionOpened(Fact, frozen=True, kw_only=True):
    """A subscription to this task's changes was granted."""


class SubscriptionClosed(Fact, frozen=True, kw_only=True):
    """A subscription ended. `pushes`: notifications sent. `reason`: client, terminal, denied or shutdown."""

    pushes: int
    reason: str


class AccessDenied(Fact, frozen=True, kw_only=True):
    """A run of refused accesses. `reasons` and `refs` (claimed task references) are counted; the caller saw `code`."""

    method: str
    code: int
    count: int
    first_ms: int
    last_ms: int
    reasons: dict[str, int]
    refs: dict[str, int] = {}


class KeyActivated(Fact, frozen=True, kw_only=True):
    """From here on entries are signed by (or payload keys wrapped by) this key. `public_key` is base64url, raw."""

    purpose: str
    kid: str
    algorithm: str
    public_key: str = ""


class GapFound(Fact, frozen=True, kw_only=True):
    """Something that should be on the trail may be missing, and why we think so."""

    what: str
    since_ms: int
    until_ms: int
    cause: str


class QueryRun(Fact, frozen=True, kw_only=True):
    """A responder read the trail's projections: by a named query, in SQL (`query` is `sql`) or as an export.

    `rows` is how many were about to be shown. `parameters` never hold a task id. `case_id` names the matter.
    """

    query: str
    parameters: dict[str, str]
    rows: int
    case_id: str = ""


class BundleExported(Fact, frozen=True, kw_only=True):
    """Evidence was handed out: a bundle of `entries` entries, whose bytes have this hex SHA-256.

    `scope` says what was asked for, in `parameters`; `tree_size` is the checkpoint's that it is proved by.
    """

    bundle_sha256: str
    scope: str
    parameters: dict[str, str]
    entries: int
    tree_size: int
    case_id: str = ""
    reason: str


class PayloadUnsealed(Fact, frozen=True, kw_only=True):
    """A responder was shown what is sealed: these payloads of a task, by name and by the hex SHA-256 of the blob."""

    task_ref: str
    payloads: tuple[str, ...]
    sha256: tuple[str, ...]
    case_id: str = ""
    reason: str


class PolicyActivated(Fact, frozen=True, kw_only=True):
    """From here on decisions are made by this policy. `text` is its Cedar source, `sha256` the hex digest of it."""

    version: str
    sha256: str
    schema_sha256: str
    text: str
    reason: str


class PrincipalRevoked(Fact, frozen=True, kw_only=True):
    """From here on whoever matches is refused. `kind` says which of the members are compared.

    principal: `iss` and `sub`; client: `client_id`, and `iss` when given; token: `token_hash` or `jti` (with `iss`).
    An empty `tenant` is every tenant.
    """

    revocation: str
    kind: str
    tenant: str = ""
    iss: str = ""
    sub: str = ""
    client_id: str = ""
    token_hash: str = ""
    jti: str = ""
    reason: str


class RevocationLifted(Fact, frozen=True, kw_only=True):
    """A revocation no longer holds. Handles revoked in its wake stay revoked."""

    revocation: str
    reason: str


class EntryRejected(Fact, frozen=True, kw_only=True):
    """A message in the trail's stream that is no entry of ours, or breaks its task's chain."""

    stream_seq: int
    sha256: str
    reason: str


TaskEvent: TypeAlias = (
    TaskCreated
    | StatusReported
    | InputRequested
    | InputResponded
    | InputIgnored
    | TaskResumed
    | TaskCompleted
    | TaskFailed
    | CancelRequested
    | TaskCancelled
    | TaskExpired
    | WorkerLost
    | WorkTaken
    | ToolDriftSeen
    | AuthorityChanged
    | HandleRevoked
    | GrantGiven
    | GrantWithdrawn
    | HoldPlaced
    | HoldReleased
    | PayloadShredded
    | CommandRefused
)
"""Events on a task's own subject: they carry the chain and decide the task's state."""

AccessEvent: TypeAlias = TaskPolled | ResultDisclosed | SubscriptionOpened | SubscriptionClosed
"""Events on a task's access subject: who looked, without contending with its transitions."""

ControlEvent: TypeAlias = (
    AccessDenied | KeyActivated | GapFound | QueryRun | BundleExported | PayloadUnsealed | EntryRejected
)
"""Events of the service as a whole."""

GovernanceEvent: TypeAlias = PolicyActivated | PrincipalRevoked | RevocationLifted
"""Events that every process knows before it decides anything: on subjects of their own, read whole at each start."""

Event: TypeAlias = TaskEvent | AccessEvent | ControlEvent | GovernanceEvent
