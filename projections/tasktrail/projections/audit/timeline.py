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

from tasktrail.events.facts import SCANNED_IN_PART

VERSION = 1


class StepKind(StrEnum):
    """What a step is to a responder."""

    TRANSITION = "transition"  # the task's life: created, resumed, ended, cancel requested, worker lost
    MESSAGE = "message"  # a status message, a request for input, an answer
    ACCESS = "access"  # a poll, a disclosure, a subscription
    DENIAL = "denial"  # somebody was turned away
    REFUSAL = "refusal"  # a command the status did not admit
    ANOMALY = "anomaly"  # a message on the task's subject that is no acceptable entry
    GOVERNANCE = "governance"  # who may use the task, how long its payloads are kept; policies and revocations
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
    """What was presented. `token_hash`: base64url SHA-256 of it (RFC 9449 `ath`); `exp`: when it ends, a time.

    How and when its subject was authenticated, in the issuer's words: `acr`, `amr` (RFC 8176) and `auth_time`, a time;
    null and empty where it does not say. All of it is proved as far as `level` says.
    """

    method: str
    verification: str | None
    level: str | None
    revocation: str | None
    jti: str | None
    token_hash: str | None
    exp: str | None
    acr: str | None
    amr: tuple[str, ...]
    auth_time: str | None


class RuleShown(Shown, frozen=True, kw_only=True):
    """The decision then: `effect` is allow or deny, `reason` the rule that made it.

    `policies` are those that determined it, `policy_version` and `policy_sha256` of the whole text they are part of.
    """

    effect: str
    reason: str | None
    policy_version: str | None
    policy_sha256: str | None
    policies: tuple[str, ...]


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
    """A sealed payload: its name, hex SHA-256 of its ciphertext, ciphertext bytes (null when not recorded there).

    `flags`: the kinds of secrets seen in it before it was sealed, and `scanned_in_part` when only its beginning was
    looked through. None seen does not prove that there is none.
    """

    name: str
    sha256: str
    size: int | None
    flags: tuple[str, ...]

    @property
    def secrets(self) -> tuple[str, ...]:
        """The kinds of secrets among the flags."""
        return tuple(flag for flag in self.flags if flag != SCANNED_IN_PART)


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
    failed with. `reasons`: of a denial, true reason to count, over the whole run; of a refusal, an ignored answer, a
    cancellation or an ended subscription its one reason, count 1. `standing`: on steps of a worker, a timer or an
    operator, what the creator's authority was worth then (valid, lapsed, revoked or unknown); such a step is never the
    creator's own. `grant`: the id of the grant by which somebody else than the creator made the step.
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
    grant: str | None
    standing: str | None
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
    """A task as of its last entry. `created_by`: id of the creating entry; `entries`: how many it has by now.

    Its time to live: `requested_ttl_ms` is the wish, `ttl_ms` what was granted, `ttl_set_by` what decided it (request,
    tool, tool_rule: a rule of the operator's for this tool, or service), `effective_ttl_ms` what it came to: from the
    creation to `expires_at`, which the retention of the status it ended in (`retention_ms`) brings forward. `grants`,
    `holds`: how many are in force. `standing` is that of the creator's authority as last recorded on the task,
    `authority_until` when its latest credential ends, `token_hash` and `jti` are the creating one's.
    """

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
    ended_at: str | None
    cancel_requested_at: str | None
    revoked_at: str | None
    expired_at: str | None
    shredded_at: str | None
    requested_ttl_ms: int | None
    ttl_ms: int
    effective_ttl_ms: int
    ttl_set_by: str | None
    retention_ms: dict[str, int]
    poll_interval_ms: int
    grants: int
    holds: int
    standing: str
    authority_until: str | None
    token_hash: str | None
    jti: str | None
    entries: int
    first_seq: int
    last_seq: int


class Gap(Shown, frozen=True, kw_only=True):
    """Something that may be missing here.

    `source` is `control` (the service said so: `since` and `until` are times, `stream_seq` is where it said it) or
    `stream` (`sequences` messages are not in the stream, from `stream_seq` on). `after_end`: it began after the task
    had ended, so that only accesses of it can be missing.
    """

    source: str
    stream_seq: int
    sequences: int
    what: str
    cause: str
    since: str | None
    until: str | None
    after_end: bool


class AuthorityThen(Shown, frozen=True, kw_only=True):
    """The creator's authority when it made the task: how far it is proved, until when it stood, the decision then."""

    level: str | None
    until: str | None
    rule: RuleShown | None


class RevocationShown(Shown, frozen=True, kw_only=True):
    """A revocation in force that names the creator: `kind` is principal, client or token."""

    revocation: str
    kind: str
    reason: str
    stream_seq: int
    time: str | None


class AuthorityNow(Shown, frozen=True, kw_only=True):
    """What the creator's authority is worth as of `as_of`, at `as_of_time`.

    `standing`: valid, lapsed, revoked, or unknown when its credential says no end; `until`: when its latest credential
    ends. `policy_version`, `policy_sha256`: the policy that decides now; null when none was ever activated.
    """

    standing: str
    until: str | None
    revocations: tuple[RevocationShown, ...]
    policy_version: str | None
    policy_sha256: str | None


class AuthorityShown(Shown, frozen=True, kw_only=True):
    """The creator's authority then and now."""

    then: AuthorityThen
    now: AuthorityNow


class Finding(Shown, frozen=True, kw_only=True):
    """Why a verdict is not clean.

    `code` is a stable word, `what` a sentence about the first step that shows it, safe to print, `stream_seq` that
    step, `count` how many there are. `open`: it is not wrong, it may still be settled.
    """

    code: str
    what: str
    stream_seq: int
    count: int
    open: bool


class Verdict(Shown, frozen=True, kw_only=True):
    """Whether the task was created, queried and closed in one authorised context, with nothing reusable left.

    `verdict`: clean, open (nothing is wrong, and something is not over yet) or not clean; `clean`: it is clean.
    """

    verdict: str
    clean: bool
    what: str
    findings: tuple[Finding, ...]


class Timeline(Shown, frozen=True, kw_only=True):
    """One task's history up to stream sequence `as_of`, which was recorded at `as_of_time`.

    `task` is null when no creation of it is on the trail: then the steps are what was denied or not accepted under this
    reference, and `authority` and `verdict` are null too. `steps_omitted`: how many later steps a bound left out.
    """

    version: int = VERSION
    task_ref: str
    as_of: int
    as_of_time: str | None
    task: TaskShown | None
    authority: AuthorityShown | None
    steps: tuple[Step, ...]
    steps_omitted: int
    gaps: tuple[Gap, ...]
    verdict: Verdict | None
