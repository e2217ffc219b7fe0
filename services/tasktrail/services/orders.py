"""What operators order, and what they are told: the documents of HTTP and of the command line. No framework here.

Guarantees: an order says why; unknown members are refused; a token is only ever a member of a body, and only its digest
goes further. Times are RFC 3339 in UTC with milliseconds, `_ms` are epoch milliseconds.

    RevokeOrder(kind="principal", iss="https://id.example", sub="ana", reason="left the company")
"""

from typing import Annotated, Literal

import msgspec

from tasktrail.events.authority import BindingMode, PolicyDecision, Standing
from tasktrail.events.errors import TasktrailError
from tasktrail.events.facts import Status
from tasktrail.services.revocations import Revocation

TASKS_MAX = 1_000
POLICY_CHARACTERS_MAX = 60_000
ENTROPY_BITS = 160
"""What a guess at a handle has to hit (`subjects.task_id`)."""

Text = Annotated[str, msgspec.Meta(max_length=2_048)]
Task = Annotated[str, msgspec.Meta(description="a task's reference or its id", min_length=1, max_length=256)]
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Right = Literal["get", "update", "cancel", "subscribe"]
Kind = Literal["principal", "client", "token", "handle"]


class NoSuchTask(TasktrailError):
    """Nothing was ever recorded under this reference or id. For operators only: callers are told `TaskNotFound`."""

    http_status = 404
    reason = "no_such_task"

    def __init__(self) -> None:
        super().__init__("no task on this trail has this reference or id")


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why, in words for the trail, and the case it belongs to."""

    reason: Annotated[str, msgspec.Meta(min_length=3, max_length=500)]
    case_id: Annotated[str, msgspec.Meta(max_length=200)] = ""

    @property
    def why(self) -> str:
        """The reason as it is recorded; the case is part of it where an event has no member for it."""
        return f"{self.reason} (case {self.case_id})" if self.case_id else self.reason


class RevokeOrder(Order, frozen=True, kw_only=True):
    """Refuse whoever matches from now on. An empty `tenant` is every tenant.

    principal: `iss` and `sub`. client: `client_id`, and `iss` to limit it. token: the `token` itself, or its
    `token_hash` (base64url SHA-256), or `jti` with `iss`. handle: its `task`.
    """

    kind: Kind
    tenant: Text = ""
    iss: Text = ""
    sub: Text = ""
    client_id: Text = ""
    token: Annotated[str, msgspec.Meta(max_length=16_384)] = ""
    token_hash: Annotated[str, msgspec.Meta(pattern="^([A-Za-z0-9_-]{43})?$")] = ""
    jti: Text = ""
    task: Annotated[str, msgspec.Meta(max_length=256)] = ""


class LiftOrder(Order, frozen=True, kw_only=True):
    """End a revocation of a principal, client or token."""

    revocation: Id


class CancelOrder(Order, frozen=True, kw_only=True):
    """Stop these tasks."""

    tasks: Annotated[tuple[Task, ...], msgspec.Meta(min_length=1, max_length=TASKS_MAX)]


class GrantOrder(Order, frozen=True, kw_only=True):
    """Let somebody else use a handle. An empty `tenant` is the task's; `until_ms` 0 is the handle's own end."""

    task: Task
    tenant: Text = ""
    iss: Text = ""
    sub: Text = ""
    client_id: Text = ""
    mode: BindingMode = BindingMode.EXACT
    rights: Annotated[tuple[Right, ...], msgspec.Meta(min_length=1, max_length=4)]
    until_ms: Annotated[int, msgspec.Meta(ge=0)] = 0


class WithdrawOrder(Order, frozen=True, kw_only=True):
    """End a grant."""

    task: Task
    grant: Id


class HoldOrder(Order, frozen=True, kw_only=True):
    """Keep a task's payloads, whatever their retention says."""

    task: Task


class ReleaseOrder(Order, frozen=True, kw_only=True):
    """End a hold; another operator than the one who placed it."""

    task: Task
    hold: Id


class PolicyOrder(Order, frozen=True, kw_only=True):
    """Decide by this Cedar text from now on."""

    text: Annotated[str, msgspec.Meta(min_length=1, max_length=POLICY_CHARACTERS_MAX)]
    version: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class ExplainOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Make the decision of an entry again: under the policy of then, or of today."""

    entry: Id
    today: bool = False


class Became(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one task. `outcome`: accepted, unchanged, refused, no_such_task, unavailable; `entry` proves it.

    `task` is its reference; empty when it was not found.
    """

    task: str
    outcome: str
    reason: str = ""
    entry: str = ""


class Revoked(msgspec.Struct, frozen=True, kw_only=True):
    """A revocation that holds now; `tasks` it concerns at this moment. For a handle, `became` says what it came to.

    `entry` is empty when one that names the same held already: `revocation` is that one's, and nothing was recorded.
    """

    revocation: str = ""
    kind: str
    entry: str
    tasks: int = 0
    became: Became | None = None


class Lifted(msgspec.Struct, frozen=True, kw_only=True):
    """A revocation that no longer holds."""

    revocation: str
    entry: str


class Governed(msgspec.Struct, frozen=True, kw_only=True):
    """A grant or a hold (`id`) of a task, and the entry that made or ended it."""

    task_ref: str
    id: str
    entry: str


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Who created a task."""

    tenant: str
    iss: str
    sub: str
    client_id: str


class RightShown(msgspec.Struct, frozen=True, kw_only=True):
    """Who may use a handle, and for what. `grant` is empty for the creator; `until` is null for the handle's end."""

    who: Owner
    mode: BindingMode
    rights: tuple[str, ...]
    grant: str = ""
    until: str | None = None


class HandleShown(msgspec.Struct, frozen=True, kw_only=True):
    """A handle that still opens something, or whose work still runs.

    `age_ms` counts from its creation; `standing` is the creator's authority now, and `lapsed` says that it ended or was
    revoked; `accessed_at` is when it was last used through this process, null when it was not.
    """

    task_ref: str
    tenant: str
    server: str
    tool: str
    status: Status
    live: bool
    revoked: bool
    owner: Owner
    rights: tuple[RightShown, ...]
    created_at: str
    age_ms: int
    ttl_ms: int
    expires_at: str
    standing: Standing
    authority_until: str | None
    lapsed: bool
    accessed_at: str | None
    entropy_bits: int = ENTROPY_BITS
    entropy: str = "strong"


class HandleFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which handles; null is any. `lapsed`: only those whose creator's authority has, or has not, ended."""

    tenant: str | None = None
    server: str | None = None
    tool: str | None = None
    iss: str | None = None
    sub: str | None = None
    client_id: str | None = None
    live: bool | None = None
    lapsed: bool | None = None


class RevocationShown(Revocation, frozen=True, kw_only=True):
    """A revocation that holds, and how many handles it concerns now."""

    handles: int = 0


class PolicyShown(msgspec.Struct, frozen=True, kw_only=True):
    """The policy that decides now. All but `schema_sha256` are empty when none can be read: then all is denied."""

    version: str
    sha256: str
    schema_sha256: str
    text: str


class Activated(msgspec.Struct, frozen=True, kw_only=True):
    """A policy that decides from now on."""

    version: str
    sha256: str
    entry: str


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """A decision as it was recorded, and as it comes out `again`. `same`: whether the effect is the same."""

    entry: str
    recorded: PolicyDecision
    again: PolicyDecision
    same: bool
