"""The authority a task was created with, then and now. Pure: "now" is when the trail was last written, not a clock's.

Guarantees: a revocation names whom its own members name and nobody else; what the trail does not say is unknown, never
valid; a level is copied, never raised.

    authority_shown(found, steps).now.standing  ->  "lapsed"
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

from tasktrail.events.authority import Standing
from tasktrail.events.facts import PolicyActivated, PrincipalRevoked, RevocationLifted
from tasktrail.projections.audit.found import Found, ServiceEvent, event_of, stamp
from tasktrail.projections.audit.task_rows import TaskRow
from tasktrail.projections.audit.timeline import (
    AuthorityNow,
    AuthorityShown,
    AuthorityThen,
    RevocationShown,
    Step,
)


def authority_shown(found: Found, steps: Sequence[Step]) -> AuthorityShown | None:
    """The creator's authority when it made the task, and as of the end of the trail; None where there is no task."""
    task = found.task
    if task is None:
        return None
    made = next((step for step in steps if step.entry_id == task.created_by), None)
    then = AuthorityThen(
        level=made.who.level if made and made.who else None,
        until=made.credential.exp if made and made.credential else None,
        rule=made.rule if made else None,
    )
    against = tuple(_shown(row, event) for row, event in in_force(found.revocations) if names(event, task))
    policy = event_of(found.policy) if found.policy else None
    now = AuthorityNow(
        standing=standing(task, revoked=bool(against), at=found.as_of_time).value,
        until=stamp(task.authority_until),
        revocations=against,
        policy_version=policy.version if isinstance(policy, PolicyActivated) else None,
        policy_sha256=policy.sha256 if isinstance(policy, PolicyActivated) else None,
    )
    return AuthorityShown(then=then, now=now)


def in_force(rows: Iterable[ServiceEvent]) -> list[tuple[ServiceEvent, PrincipalRevoked]]:
    """The revocations that were made and not lifted, in order."""
    made: dict[str, tuple[ServiceEvent, PrincipalRevoked]] = {}
    for row in rows:
        event = event_of(row)
        if isinstance(event, PrincipalRevoked):
            made[event.revocation] = (row, event)
        elif isinstance(event, RevocationLifted):
            made.pop(event.revocation, None)
    return list(made.values())


def names(revoked: PrincipalRevoked, task: TaskRow) -> bool:
    """Whether a revocation names the creator of `task`, its client or its creating credential."""
    if revoked.tenant not in {"", task.tenant}:
        return False
    iss = task.iss or ""
    match revoked.kind:
        case "principal":
            return bool(revoked.sub) and (revoked.iss, revoked.sub) == (iss, task.sub or "")
        case "client":
            return bool(revoked.client_id) and revoked.client_id == task.client_id and revoked.iss in {"", iss}
        case "token" if revoked.token_hash:
            return revoked.token_hash == task.token_hash
        case "token":
            return bool(revoked.jti) and (revoked.iss, revoked.jti) == (iss, task.jti)
        case _:
            return False


def standing(task: TaskRow, *, revoked: bool, at: datetime | None) -> Standing:
    """What the creator's authority is worth at `at`."""
    if revoked or task.standing == Standing.REVOKED:
        return Standing.REVOKED
    if task.standing == Standing.LAPSED:
        return Standing.LAPSED
    if task.authority_until is None:
        return Standing.UNKNOWN
    return Standing.LAPSED if at is not None and at >= task.authority_until else Standing.VALID


def _shown(row: ServiceEvent, event: PrincipalRevoked) -> RevocationShown:
    return RevocationShown(
        revocation=event.revocation,
        kind=event.kind,
        reason=event.reason,
        stream_seq=row.stream_seq,
        time=stamp(row.at_time),
    )
