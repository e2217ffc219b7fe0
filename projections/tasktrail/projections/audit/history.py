"""Rows of the audit store become a `Timeline`. Pure.

Guarantees: steps are in the stream's order, an entry's events in their own; every row found gives a step or a gap; what
an event of a newer version says is shown by its name.

    assemble(Found(task_ref="k5x…", as_of=41, task=row, steps=rows, steps_max=100, steps_total=7))
"""

from collections.abc import Iterable, Iterator
from datetime import timedelta

import msgspec

from tasktrail.events.entry import decode
from tasktrail.events.errors import MalformedEntry
from tasktrail.events.facts import (
    AccessDenied,
    AuthorityChanged,
    BundleExported,
    CancelRequested,
    CommandRefused,
    Commitment,
    EntryRejected,
    Event,
    GapFound,
    GovernanceEvent,
    GrantGiven,
    GrantWithdrawn,
    HandleRevoked,
    HoldPlaced,
    HoldReleased,
    InputIgnored,
    InputRequested,
    InputResponded,
    KeyActivated,
    PayloadShredded,
    PayloadUnsealed,
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
    ToolDriftSeen,
    UnknownEvent,
    WorkerLost,
    WorkTaken,
)
from tasktrail.projections.audit.found import Found, StepRow, event_of, stamp, stamp_ms, stamped
from tasktrail.projections.audit.gaps import gaps
from tasktrail.projections.audit.rows import RejectedRow
from tasktrail.projections.audit.sentences import printable, sentence
from tasktrail.projections.audit.standing import authority_shown
from tasktrail.projections.audit.task_rows import TaskRow, retention_of
from tasktrail.projections.audit.timeline import (
    Actor,
    AddressShown,
    BindingShown,
    Creator,
    CredentialShown,
    MessageShown,
    Payload,
    RuleShown,
    Step,
    StepKind,
    TaskShown,
    Timeline,
    Who,
)
from tasktrail.projections.audit.verdict import judged


def assemble(found: Found) -> Timeline:
    """The timeline of what was found."""
    denials = [_denial(row, times, found.task_ref) for row, times in found.denials]
    merged = [*map(_step, found.steps), *denials, *map(_anomaly, found.anomalies)]
    steps = tuple(_with_status(sorted(merged, key=_place)[: found.steps_max]))
    whole = Timeline(
        task_ref=found.task_ref,
        as_of=found.as_of,
        as_of_time=stamp(found.as_of_time),
        task=task_shown(found.task) if found.task else None,
        authority=authority_shown(found, steps),
        steps=steps,
        steps_omitted=max(0, found.steps_total - found.steps_max),
        gaps=tuple(gaps(found)),
        verdict=None,
    )
    return msgspec.structs.replace(whole, verdict=judged(whole))


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
        created_at=stamped(row.created_at),
        last_updated_at=stamped(row.last_updated_at),
        expires_at=stamped(row.expires_at),
        ended_at=stamp(row.ended_at),
        cancel_requested_at=stamp(row.cancel_requested_at),
        revoked_at=stamp(row.revoked_at),
        expired_at=stamp(row.expired_at),
        shredded_at=stamp(row.shredded_at),
        requested_ttl_ms=row.requested_ttl_ms,
        ttl_ms=row.granted_ttl_ms,
        effective_ttl_ms=(row.expires_at - row.created_at) // timedelta(milliseconds=1),
        ttl_set_by=row.ttl_set_by,
        retention_ms=retention_of(row),
        poll_interval_ms=row.poll_interval_ms,
        grants=row.grants,
        holds=row.holds,
        standing=row.standing,
        authority_until=stamp(row.authority_until),
        token_hash=row.token_hash,
        jti=row.jti,
        entries=row.entries,
        first_seq=row.first_seq,
        last_seq=row.last_seq,
    )


def _place(step: Step) -> tuple[int, int]:
    return step.stream_seq, step.ord


def _with_status(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps with the status each task had before; where a step does not change it, also after."""
    now: dict[str | None, str | None] = {}
    for step in steps:
        before = now.get(step.task_ref)
        after = step.status_after or before
        now[step.task_ref] = after
        yield msgspec.structs.replace(step, status_before=before, status_after=after)


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
        WorkTaken,
        ToolDriftSeen,
    ),
    StepKind.MESSAGE: (StatusReported, InputRequested, InputResponded, InputIgnored),
    StepKind.ACCESS: (TaskPolled, ResultDisclosed, SubscriptionOpened, SubscriptionClosed),
    StepKind.DENIAL: (AccessDenied,),
    StepKind.REFUSAL: (CommandRefused,),
    StepKind.GOVERNANCE: (
        AuthorityChanged,
        HandleRevoked,
        GrantGiven,
        GrantWithdrawn,
        HoldPlaced,
        HoldReleased,
        PayloadShredded,
        PayloadUnsealed,
        *GovernanceEvent.__args__,
    ),
    StepKind.CONTROL: (KeyActivated, GapFound, QueryRun, BundleExported, PayloadUnsealed, EntryRejected),
}
_KIND_OF = {event: kind for kind, events in _KINDS.items() for event in events}


def _step(row: StepRow) -> Step:
    event = event_of(row)
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
        grant=row.grant_id,
        standing=event.standing.value if isinstance(event, AuthorityChanged) else row.standing,
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
    event = event_of(row)
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
        acr=row.acr,
        amr=msgspec.json.decode(row.amr, type=tuple[str, ...]) if row.amr else (),
        auth_time=stamp(row.authenticated_at),
    )


def _rule(row: StepRow) -> RuleShown | None:
    if row.effect is None:
        return None
    return RuleShown(
        effect=row.effect,
        reason=row.decision_reason,
        policy_version=row.policy_version,
        policy_sha256=row.policy_sha256,
        policies=tuple(row.policies.split(", ")) if row.policies else (),
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
            return tuple(Payload(name=name, sha256=digest, size=None, flags=()) for name, digest in pairs)
        case _:
            return ()
    return tuple(_payload(one) for one in sealed if one is not None)


def _payload(sealed: Commitment) -> Payload:
    return Payload(name=sealed.name, sha256=sealed.sha256, size=sealed.size, flags=sealed.flags)


def _run(event: Event | UnknownEvent | None) -> tuple[int, str | None, str | None]:
    match event:
        case TaskPolled() | AccessDenied():
            return event.count, stamp_ms(event.first_ms), stamp_ms(event.last_ms)
        case ResultDisclosed():
            return event.count, None, None
        case _:
            return 1, None, None


def _reasons(event: Event | UnknownEvent | None) -> dict[str, int]:
    match event:
        case AccessDenied():
            return dict(event.reasons)
        case CommandRefused() | InputIgnored() | SubscriptionClosed() | TaskCancelled():
            return {event.reason: 1}
        case CancelRequested(cause=cause) if cause:
            return {cause: 1}
        case _:
            return {}


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
        grant=None,
        standing=None,
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
