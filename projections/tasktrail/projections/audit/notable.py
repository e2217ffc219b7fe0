"""Rows of `notable`: the events that are looked for over the whole trail by what they are. Pure.

Guarantees: a row is what the view `activity` shows of the event. To find these among all events by a join of the two
large tables takes seconds at ten million entries; in a table of their own it takes a scan of two or three columns.

    rows.notable.extend(notable(entry_row, event_rows))
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from operator import itemgetter
from typing import NamedTuple

from tasktrail.events.facts import (
    AuthorityChanged,
    CancelRequested,
    ControlEvent,
    GovernanceEvent,
    GrantGiven,
    InputRequested,
    InputResponded,
    ResultDisclosed,
    SubscriptionOpened,
    TaskCreated,
    ToolDriftSeen,
)
from tasktrail.projections.audit.columns import EntryRow, EventRow


class NotableRow(NamedTuple):
    """One row of `notable`, and one of the view `activity`."""

    stream_seq: int
    ord: int
    at_time: datetime
    kind: str
    type: str
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
    binding_differs: str | None
    grant_id: str | None
    standing: str | None
    effect: str | None
    decision_reason: str | None
    policy_version: str | None
    policy_sha256: str | None
    policies: str | None
    server: str | None
    traceparent: str | None
    input_key: str | None
    method: str | None
    action: str | None
    reason: str | None
    code: int | None
    times: int | None
    first_at: datetime | None
    last_at: datetime | None
    payload_name: str | None
    payload_sha256: str | None
    recorded_at: datetime
    entry_id: str
    leaf_sha256: str
    payload: str


NOTABLE = frozenset(
    kind.__name__
    for kind in (
        *ControlEvent.__args__,
        *GovernanceEvent.__args__,
        AuthorityChanged,
        CancelRequested,
        GrantGiven,
        InputRequested,
        InputResponded,
        ResultDisclosed,
        SubscriptionOpened,
        ToolDriftSeen,
    )
)
"""The types of these events; beside them the creation of a task that has a parent."""
_CREATED = TaskCreated.__name__

_OF_EVENT = frozenset(EventRow._fields) - {"stream_seq", "task_ref"}
_both = itemgetter(
    *(
        len(EntryRow._fields) + EventRow._fields.index(name) if name in _OF_EVENT else EntryRow._fields.index(name)
        for name in NotableRow._fields
    )
)
_AT_TIME = NotableRow._fields.index("at_time")


def notable(entry: EntryRow, events: Iterable[EventRow]) -> Iterator[NotableRow]:
    """The rows of an entry with these events."""
    for event in events:
        if event.type in NOTABLE or (event.type == _CREATED and event.action):
            row = NotableRow._make(_both(entry + event))
            yield row if row[_AT_TIME] is not None else row._replace(at_time=entry.recorded_at)
