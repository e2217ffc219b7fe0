"""The facts of the trail: one frozen tagged struct per event, past tense.

Guarantees: a field is never re-typed or removed and a new one has a default, so every entry ever written decodes for
ever; an event whose `type` this version does not know is kept as `UnknownEvent`, never dropped. Times are epoch
milliseconds, durations milliseconds, sizes bytes. Payload text is never in an event: an event holds a `Commitment`.

    TaskCompleted(at_ms=1_763_800_000_000, result=commitment)
"""

from enum import StrEnum
from typing import TypeAlias

import msgspec

from tasktrail.events.authority import Binding, BindingMode, Record


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


class Commitment(Record, frozen=True, kw_only=True):
    """What an event says of a sealed payload.

    `sha256` is the hex digest of the ciphertext blob (nonce, ciphertext and tag) and its address in the object
    bucket; `mac` is HMAC-SHA256 of the plaintext under the task's own key, so that short texts cannot be guessed;
    `size` is the blob's length in bytes.
    """

    name: str
    sha256: str
    mac: str
    size: int


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag=True):
    """Base of every event. `at_ms` is when the fact became true, by the Ledger's clock."""

    at_ms: int


class TaskCreated(Fact, frozen=True, kw_only=True):
    """A task handle was made for `binding`. `handle` commits to the sealed task id."""

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
    """Somebody entitled to it asked for the task to stop. What became of that is another fact."""


class TaskCancelled(Fact, frozen=True, kw_only=True):
    """The task ended as cancelled. `reason`: requested, unconfirmed (no worker answered in time) or ttl."""

    reason: str


class TaskExpired(Fact, frozen=True, kw_only=True):
    """The handle's time ended: it opens nothing any more."""


class WorkerLost(Fact, frozen=True, kw_only=True):
    """The process doing the work went away. `cause`: shutdown or lease."""

    cause: str


class CommandRefused(Fact, frozen=True, kw_only=True):
    """A command was refused in this status, for this reason, and changed nothing."""

    command: str
    status: str
    reason: str
    key: str = ""


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
    """Payloads were shown. `nth`: how often this caller has now been shown them; `count` folded showings."""

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
    """A responder read the trail's projections."""

    query: str
    parameters: dict[str, str]
    rows: int


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
    | CommandRefused
)
"""Events on a task's own subject: they carry the chain and decide the task's state."""

AccessEvent: TypeAlias = TaskPolled | ResultDisclosed | SubscriptionOpened | SubscriptionClosed
"""Events on a task's access subject: who looked, without contending with its transitions."""

ControlEvent: TypeAlias = AccessDenied | KeyActivated | GapFound | QueryRun | EntryRejected
"""Events of the service as a whole."""

Event: TypeAlias = TaskEvent | AccessEvent | ControlEvent
