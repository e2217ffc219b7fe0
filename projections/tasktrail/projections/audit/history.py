"""Rows of the audit store become a `Timeline`. Pure.

Guarantees: steps are in the stream's order, an entry's events in their own; every row found gives a step or a gap; what
an event of a newer version says is shown by its name.

    assemble(Found(task_ref="k5x…", as_of=41, task=row, steps=rows, steps_max=100, steps_total=7))
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from tasktrail.events.entry import decode
from tasktrail.events.errors import MalformedEntry
from tasktrail.events.facts import (
    AccessDenied,
    CancelRequested,
    CommandRefused,
    Commitment,
    EntryRejected,
    Event,
    GapFound,
    InputIgnored,
    InputRequested,
    InputResponded,
    KeyActivated,
    QueryRun,
    ResultDisclosed,
    StatusReported,
    SubscriptionClosed,
    SubscriptionOpened,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskExpired,
    TaskFailed,
    TaskPolled,
    TaskResumed,
    UnknownEvent,
    WorkerLost,
)
from tasktrail.projections.audit.columns import instant
from tasktrail.projections.audit.rows import RejectedRow, TaskRow
from tasktrail.projections.audit.sentences import printable, sentence
from tasktrail.projections.audit.timeline import (
    Actor,
    AddressShown,
    BindingShown,
    Creator,
    CredentialShown,
    Gap,
    MessageShown,
    Payload,
    RuleShown,
    Step,
    StepKind,
    TaskShown,
    Timeline,
    Who,
)


class StepRow(NamedTuple):
    """One row of the view `steps`; an entry without events has no `ord`, `type` and `payload`."""

    stream_seq: int
    ord: int | None
    kind: str
    type: str | None
    at_time: datetime | None
    recorded_at: datetime
    entry_id: str
    leaf_sha256: str
    tenant: str
    task_ref: str | None
    status_after: str | None
    trigger: str
    iss: str | None
    sub: str | None
    principal_kind: str | None
    principal_level: str | None
    client_id: str | None
    client_level: str | None
    actor_iss: str | None
    actor_sub: str | None
    actor_level: str | None
    credential_method: str | None
    credential_verification: str | None
    credential_level: str | None
    revocation: str | None
    token_hash: str | None
    jti: str | None
    token_expires_at: datetime | None
    address: str | None
    address_level: str | None
    binding_mode: str | None
    binding_differs: str | None
    effect: str | None
    decision_reason: str | None
    policy_sha256: str | None
    policy_version: str | None
    payload: str | None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the store holds about one reference, read in one snapshot.

    `denials` pair a step with how often it claimed this reference. `steps_total` counts steps, denials and anomalies
    also beyond the `steps_max` that are to be shown.
    """

    task_ref: str
    as_of: int
    task: TaskRow | None
    steps: Sequence[StepRow] = ()
    denials: Sequence[tuple[StepRow, int]] = ()
    anomalies: Sequence[RejectedRow] = ()
    gaps: Sequence[StepRow] = ()
    holes: Sequence[RejectedRow] = ()
    steps_max: int
    steps_total: int


def stamp(at: datetime | None) -> str | None:
    """A time of the store as RFC 3339 in UTC with milliseconds."""
    return None if at is None else at.isoformat(timespec="milliseconds") + "Z"


def assemble(found: Found) -> Timeline:
    """The timeline of what was found."""
    denials = [_denial(row, times, found.task_ref) for row, times in found.denials]
    merged = [*map(_step, found.steps), *denials, *map(_anomaly, found.anomalies)]
    return Timeline(
        task_ref=found.task_ref,
        as_of=found.as_of,
        task=task_shown(found.task) if found.task else None,
        steps=tuple(_with_status(sorted(merged, key=_place)[: found.steps_max])),
        steps_omitted=max(0, found.steps_total - found.steps_max),
        gaps=tuple(_gaps(found)),
    )


def in_order(steps: Iterable[StepRow], anomalies: Iterable[RejectedRow]) -> tuple[Step, ...]:
    """Steps of many tasks in the stream's order; `status_before` is null where what came before is not among them."""
    merged = sorted([*map(_step, steps), *map(_anomaly, anomalies)], key=_place)
    return tuple(_with_status(merged))


def task_shown(row: TaskRow) -> TaskShown:
    """A task's row as it is printed."""
    return TaskShown(
        task_ref=row.task_ref,
        tenant=row.tenant,
        server=row.server,
        tool=row.tool,
        task_support=row.task_support,
        wire=row.wire,
        protocol_version=row.protocol_version,
        creator=Creator(iss=row.iss, sub=row.sub, client_id=row.client_id, binding_mode=row.binding_mode),
        created_by=row.created_by,
        status=row.status,
        is_error=row.is_error,
        created_at=_stamp(row.created_at),
        last_updated_at=_stamp(row.last_updated_at),
        expires_at=_stamp(row.expires_at),
        cancel_requested_at=stamp(row.cancel_requested_at),
        expired_at=stamp(row.expired_at),
        requested_ttl_ms=row.requested_ttl_ms,
        ttl_ms=row.granted_ttl_ms,
        poll_interval_ms=row.poll_interval_ms,
        entries=row.entries,
        first_seq=row.first_seq,
        last_seq=row.last_seq,
    )


def _place(step: Step) -> tuple[int, int]:
    return step.stream_seq, step.ord


def _stamp(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds") + "Z"


def _with_status(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps with the status each task had before; where a step does not change it, also after."""
    now: dict[str | None, str | None] = {}
    for step in steps:
        before = now.get(step.task_ref)
        after = step.status_after or before
        now[step.task_ref] = after
        yield msgspec.structs.replace(step, status_before=before, status_after=after)


_event = msgspec.json.Decoder(Event)
_KNOWN = frozenset(kind.__name__ for kind in Event.__args__)


def _read(row: StepRow) -> Event | UnknownEvent | None:
    if row.type is None or row.payload is None:
        return None
    if row.type not in _KNOWN:
        return UnknownEvent(type=row.type, raw=msgspec.Raw(row.payload.encode()))
    event: Event = _event.decode(row.payload)
    return event


_KINDS: dict[StepKind, tuple[type, ...]] = {
    StepKind.TRANSITION: (
        TaskCreated,
        TaskResumed,
        TaskCompleted,
        TaskFailed,
        CancelRequested,
        TaskCancelled,
        TaskExpired,
        WorkerLost,
    ),
    StepKind.MESSAGE: (StatusReported, InputRequested, InputResponded, InputIgnored),
    StepKind.ACCESS: (TaskPolled, ResultDisclosed, SubscriptionOpened, SubscriptionClosed),
    StepKind.DENIAL: (AccessDenied,),
    StepKind.REFUSAL: (CommandRefused,),
    StepKind.CONTROL: (KeyActivated, GapFound, QueryRun, EntryRejected),
}
_KIND_OF = {event: kind for kind, events in _KINDS.items() for event in events}


def _step(row: StepRow) -> Step:
    event = _read(row)
    count, first, last = _run(event)
    return Step(
        stream_seq=row.stream_seq,
        ord=row.ord or 0,
        task_ref=row.task_ref,
        tenant=row.tenant,
        entry_id=row.entry_id,
        leaf_sha256=row.leaf_sha256,
        time=stamp(row.at_time or row.recorded_at),
        recorded_at=stamp(row.recorded_at),
        kind=_KIND_OF.get(type(event), StepKind.UNKNOWN),
        type=row.type or "",
        what=sentence(event) if event else "an entry without events",
        status_before=None,
        status_after=row.status_after,
        who=_who(row),
        credential=_credential(row),
        rule=_rule(row),
        binding=_binding(row),
        address=AddressShown(address=row.address, level=row.address_level) if row.address else None,
        message=_message(event),
        payloads=_payloads(event),
        count=count,
        first=first,
        last=last,
        code=event.code if isinstance(event, AccessDenied | TaskFailed) else None,
        reasons=_reasons(event),
    )


def _denial(row: StepRow, times: int, ref: str) -> Step:
    """A denial as one task's timeline shows it: counted for that task alone."""
    event = _read(row)
    what = sentence(msgspec.structs.replace(event, count=times)) if isinstance(event, AccessDenied) else ""
    return msgspec.structs.replace(_step(row), task_ref=ref, count=times, what=what)


def _who(row: StepRow) -> Who:
    acts = row.actor_sub is not None and row.actor_level is not None
    return Who(
        trigger=row.trigger,
        iss=row.iss,
        sub=row.sub,
        kind=row.principal_kind,
        level=row.principal_level,
        client_id=row.client_id,
        client_level=row.client_level,
        actor=Actor(iss=row.actor_iss, sub=row.actor_sub or "", level=row.actor_level or "") if acts else None,
    )


def _credential(row: StepRow) -> CredentialShown | None:
    if row.credential_method is None:
        return None
    return CredentialShown(
        method=row.credential_method,
        verification=row.credential_verification,
        level=row.credential_level,
        revocation=row.revocation,
        jti=row.jti,
        token_hash=row.token_hash,
        exp=stamp(row.token_expires_at),
    )


def _rule(row: StepRow) -> RuleShown | None:
    if row.effect is None:
        return None
    return RuleShown(
        effect=row.effect,
        reason=row.decision_reason,
        policy_version=row.policy_version,
        policy_sha256=row.policy_sha256,
    )


def _binding(row: StepRow) -> BindingShown | None:
    if row.binding_mode is None:
        return None
    differs = tuple(row.binding_differs.split(", ")) if row.binding_differs else ()
    return BindingShown(mode=row.binding_mode, matches=not differs, differs=differs)


def _message(event: Event | UnknownEvent | None) -> MessageShown | None:
    match event:
        case InputRequested():
            return MessageShown(key=event.key, method=event.method, action=None)
        case InputResponded():
            return MessageShown(key=event.key, method=event.method, action=event.action)
        case InputIgnored():
            return MessageShown(key=event.key or None, method=None, action=None)
        case TaskPolled() | ResultDisclosed() | AccessDenied():
            return MessageShown(key=None, method=event.method, action=None)
        case _:
            return None


def _payloads(event: Event | UnknownEvent | None) -> tuple[Payload, ...]:
    sealed: tuple[Commitment | None, ...]
    match event:
        case TaskCreated():
            sealed = (event.handle, event.arguments)
        case StatusReported():
            sealed = (event.message,)
        case InputRequested():
            sealed = (event.request,)
        case InputResponded():
            sealed = (event.response,)
        case TaskCompleted():
            sealed = (event.result,)
        case TaskFailed():
            sealed = (event.error,)
        case ResultDisclosed():
            pairs = zip(event.payloads, event.sha256, strict=False)
            return tuple(Payload(name=name, sha256=digest, size=None) for name, digest in pairs)
        case _:
            return ()
    return tuple(_payload(one) for one in sealed if one is not None)


def _payload(sealed: Commitment) -> Payload:
    return Payload(name=sealed.name, sha256=sealed.sha256, size=sealed.size)


def _run(event: Event | UnknownEvent | None) -> tuple[int, str | None, str | None]:
    match event:
        case TaskPolled() | AccessDenied():
            return event.count, _of_ms(event.first_ms), _of_ms(event.last_ms)
        case ResultDisclosed():
            return event.count, None, None
        case _:
            return 1, None, None


def _reasons(event: Event | UnknownEvent | None) -> dict[str, int]:
    match event:
        case AccessDenied():
            return dict(event.reasons)
        case CommandRefused() | InputIgnored() | SubscriptionClosed():
            return {event.reason: 1}
        case _:
            return {}


def _of_ms(at_ms: int) -> str:
    return _stamp(instant("time", at_ms))


def _anomaly(row: RejectedRow) -> Step:
    return Step(
        stream_seq=row.stream_seq,
        ord=0,
        task_ref=row.task_ref,
        tenant=None,
        entry_id=None,
        leaf_sha256=row.leaf_sha256,
        time=None,
        recorded_at=None,
        kind=StepKind.ANOMALY,
        type=row.reason,
        what=f"not accepted ({row.reason}): {printable(row.detail)}{_claims(row.body)}",
        status_before=None,
        status_after=None,
        who=None,
        credential=None,
        rule=None,
        binding=None,
        address=None,
        message=None,
        payloads=(),
        count=row.sequences,
        first=None,
        last=None,
        code=None,
        reasons={},
    )


def _claims(body: bytes | None) -> str:
    """What a message that was not accepted says happened, when it can be read."""
    if body is None:
        return ""
    try:
        events = decode(body).events
    except MalformedEntry:
        return ""
    names = [event.type if isinstance(event, UnknownEvent) else type(event).__name__ for event in events]
    return f"; it says {printable(', '.join(names))}" if names else ""


def _gaps(found: Found) -> Iterator[Gap]:
    """What the service, or the stream itself, lacks in the time between the task's creation and its expiry."""
    if found.task is None:
        return
    for row in found.gaps:
        event = _read(row)
        if isinstance(event, GapFound) and _overlaps(event, found.task):
            yield Gap(
                source="control",
                stream_seq=row.stream_seq,
                sequences=0,
                what=printable(event.what),
                cause=printable(event.cause),
                since=_of_ms(event.since_ms),
                until=_of_ms(event.until_ms),
            )
    for hole in found.holes:
        yield Gap(
            source="stream",
            stream_seq=hole.stream_seq,
            sequences=hole.sequences,
            what="messages of the trail, which may have been of this task",
            cause=printable(hole.detail),
            since=None,
            until=None,
        )


def _overlaps(gap: GapFound, task: TaskRow) -> bool:
    ended = task.expired_at
    return instant("until_ms", gap.until_ms) >= task.created_at and (
        ended is None or instant("since_ms", gap.since_ms) <= ended
    )
