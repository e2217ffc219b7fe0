"""What the audit store holds about one task, as it was read: rows, and the events they were made of. Pure.

Guarantees: a row's fields are the columns of the view `steps`, in order; an event of a newer version is read by name.

    event_of(row)  ->  TaskCompleted(at_ms=1_763_800_000_000, result=commitment)
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from tasktrail.events.facts import Event, UnknownEvent
from tasktrail.projections.audit.columns import instant
from tasktrail.projections.audit.rows import RejectedRow
from tasktrail.projections.audit.task_rows import TaskRow


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
    acr: str | None
    amr: str | None
    authenticated_at: datetime | None
    address: str | None
    address_level: str | None
    binding_mode: str | None
    binding_differs: str | None
    grant_id: str | None
    standing: str | None
    effect: str | None
    decision_reason: str | None
    policy_sha256: str | None
    policy_version: str | None
    policies: str | None
    payload: str | None


class ServiceEvent(NamedTuple):
    """One event of the service as a whole, from `service_events`."""

    stream_seq: int
    ord: int
    at_time: datetime
    type: str
    payload: str


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the store holds about one reference, read in one snapshot.

    `denials` pair a step with how often it claimed this reference. `gaps` are what the service says is missing from the
    task's time, `revocations` all that were made or lifted, in order; `policy` is the last activation. `steps_total`
    counts steps, denials and anomalies also beyond the `steps_max` that are to be shown.
    """

    task_ref: str
    as_of: int
    as_of_time: datetime | None = None
    task: TaskRow | None
    steps: Sequence[StepRow] = ()
    denials: Sequence[tuple[StepRow, int]] = ()
    anomalies: Sequence[RejectedRow] = ()
    gaps: Sequence[ServiceEvent] = ()
    holes: Sequence[RejectedRow] = ()
    revocations: Sequence[ServiceEvent] = ()
    policy: ServiceEvent | None = None
    steps_max: int
    steps_total: int


def stamp(at: datetime | None) -> str | None:
    """A time of the store as RFC 3339 in UTC with milliseconds."""
    return None if at is None else stamped(at)


def stamped(at: datetime) -> str:
    """The same of a time there always is."""
    return at.isoformat(timespec="milliseconds") + "Z"


def stamp_ms(at_ms: int) -> str:
    """Epoch milliseconds as RFC 3339."""
    return stamped(instant("time", at_ms))


_event = msgspec.json.Decoder(Event)
_KNOWN = frozenset(kind.__name__ for kind in Event.__args__)


def event_of(row: StepRow | ServiceEvent) -> Event | UnknownEvent | None:
    """The event a row was made of; None for an entry without events."""
    if row.type is None or row.payload is None:
        return None
    if row.type not in _KNOWN:
        return UnknownEvent(type=row.type, raw=msgspec.Raw(row.payload.encode()))
    event: Event = _event.decode(row.payload)
    return event
