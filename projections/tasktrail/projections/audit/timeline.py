"""The ordered history of one task as a responder reads it: the documented shape of `tasktrail timeline --json`.

Guarantees: `msgspec.json.encode(timeline)` is that document. Within one `version` fields are added, never renamed,
re-typed or removed; every field is always there, null (or empty) where the trail does not say. Levels are copied, never
raised. Times are RFC 3339 in UTC with milliseconds, durations milliseconds, sizes bytes, sequences those of the stream.
Text is as it was recorded and may hold anything: only `what` and `cause` are made safe to print.

    timeline = store.timeline(task_ref)
    [step.what for step in timeline.steps]
"""

from enum import StrEnum

import msgspec

VERSION = 1


class StepKind(StrEnum):
    """What a step is to a responder."""

    TRANSITION = "transition"  # the task's life: created, resumed, ended, cancel requested, worker lost
    MESSAGE = "message"  # a status message, a request for input, an answer
    ACCESS = "access"  # a poll, a disclosure, a subscription
    DENIAL = "denial"  # somebody was turned away
    REFUSAL = "refusal"  # a command the status did not admit
    ANOMALY = "anomaly"  # a message on the task's subject that is no acceptable entry
    CONTROL = "control"  # the service about itself
    UNKNOWN = "unknown"  # an event of a newer version


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what is printed: every field is always there."""


class Actor(Shown, frozen=True, kw_only=True):
    """Who acts for the subject (RFC 8693 `act`, the outermost)."""

    iss: str | None
    sub: str
    level: str


class Who(Shown, frozen=True, kw_only=True):
    """Who caused a step.

    `trigger`: caller, mcp_server, worker, timer, operator or responder. `iss`, `sub`: the subject as the issuer wrote
    it; `kind`: user, machine or anonymous. `level` is the evidence for the subject, `client_level` for the OAuth
    client: bound, verified, vouched, asserted or claimed, strongest first.
    """

    trigger: str
    iss: str | None
    sub: str | None
    kind: str | None
    level: str | None
    client_id: str | None
    client_level: str | None
    actor: Actor | None


class CredentialShown(Shown, frozen=True, kw_only=True):
    """What was presented. `token_hash`: base64url SHA-256 of it (RFC 9449 `ath`); `exp`: when it ends, a time."""

    method: str
    verification: str | None
    level: str | None
    revocation: str | None
    jti: str | None
    token_hash: str | None
    exp: str | None


class RuleShown(Shown, frozen=True, kw_only=True):
    """The decision: `effect` is allow or deny, `reason` the rule that made it, the rest the rules it is one of."""

    effect: str
    reason: str | None
    policy_version: str | None
    policy_sha256: str | None


class BindingShown(Shown, frozen=True, kw_only=True):
    """The comparison with the creating identity context: `differs` names the members in which the caller differed."""

    mode: str
    matches: bool
    differs: tuple[str, ...]


class AddressShown(Shown, frozen=True, kw_only=True):
    """The peer's network address and the evidence for it."""

    address: str
    level: str | None


class Payload(Shown, frozen=True, kw_only=True):
    """A sealed payload: its name, hex SHA-256 of its ciphertext, ciphertext bytes (null when not recorded there)."""

    name: str
    sha256: str
    size: int | None


class MessageShown(Shown, frozen=True, kw_only=True):
    """The message a step is: `key` of the request for input, JSON-RPC `method`, and the answer's `action`.

    An action is what the client said; it is no proof that a person said it.
    """

    key: str | None
    method: str | None
    action: str | None


class Step(Shown, frozen=True, kw_only=True):
    """One event.

    Its place: `stream_seq`, `ord` within the entry, `entry_id`, `leaf_sha256` (hex, of the entry's bytes). `time`: when
    it became true; `recorded_at`: when the entry was made; both null for an anomaly. `kind`: see `StepKind`; `type`:
    the event's, of an anomaly why it was not accepted; `what`: a sentence, safe to print. `status_before`,
    `status_after`: the task's, null before its creation. `count`: how many a folded run holds, from `first` to `last`
    (times); of a denial, those that claimed this task. `code`: the JSON-RPC code the caller was told, or the task
    failed with. `reasons`: of a denial, true reason to count, over the whole run; of a refusal, an ignored answer or an
    ended subscription its one reason, count 1.
    """

    stream_seq: int
    ord: int
    task_ref: str | None
    tenant: str | None
    entry_id: str | None
    leaf_sha256: str | None
    time: str | None
    recorded_at: str | None
    kind: StepKind
    type: str
    what: str
    status_before: str | None
    status_after: str | None
    who: Who | None
    credential: CredentialShown | None
    rule: RuleShown | None
    binding: BindingShown | None
    address: AddressShown | None
    message: MessageShown | None
    payloads: tuple[Payload, ...]
    count: int
    first: str | None
    last: str | None
    code: int | None
    reasons: dict[str, int]


class Creator(Shown, frozen=True, kw_only=True):
    """The identity context a handle is bound to, and by which comparison: exact, user, client or tenant."""

    iss: str | None
    sub: str | None
    client_id: str | None
    binding_mode: str


class TaskShown(Shown, frozen=True, kw_only=True):
    """A task as of its last entry. `created_by`: id of the creating entry; `entries`: how many it has by now."""

    task_ref: str
    tenant: str
    server: str
    tool: str
    task_support: str
    wire: str
    protocol_version: str
    creator: Creator
    created_by: str
    status: str
    is_error: bool
    created_at: str
    last_updated_at: str
    expires_at: str
    cancel_requested_at: str | None
    expired_at: str | None
    requested_ttl_ms: int | None
    ttl_ms: int
    poll_interval_ms: int
    entries: int
    first_seq: int
    last_seq: int


class Gap(Shown, frozen=True, kw_only=True):
    """Something that may be missing here.

    `source` is `control` (the service said so: `since` and `until` are times, `stream_seq` is where it said it) or
    `stream` (`sequences` messages are not in the stream, from `stream_seq` on).
    """

    source: str
    stream_seq: int
    sequences: int
    what: str
    cause: str
    since: str | None
    until: str | None


class Timeline(Shown, frozen=True, kw_only=True):
    """One task's history up to stream sequence `as_of`.

    `task` is null when no creation of it is on the trail: then the steps are what was denied or not accepted under this
    reference. `steps_omitted`: how many later steps a bound left out.
    """

    version: int = VERSION
    task_ref: str
    as_of: int
    task: TaskShown | None
    steps: tuple[Step, ...]
    steps_omitted: int
    gaps: tuple[Gap, ...]
