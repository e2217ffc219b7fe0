"""A subscription lasts as long as the right to it: what is taken back ends the streams that are open.

Sources: feature A9, the issue ("open subscriptions stop, live tasks are marked and handled as policy says").
"""

from functools import partial

import pytest
from tests.binding.installation import TENANT, Installation
from tests.mcp.place import only

from tasktrail.events.authority import Standing
from tasktrail.events.facts import AccessDenied, AuthorityChanged, CancelRequested, SubscriptionClosed
from tasktrail.testing.waiting import until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.requirement("A2", "A9")]


@pytest.mark.parametrize("kind", ["principal", "client", "token", "handle"])
async def test_what_is_revoked_ends_the_streams_that_are_open(place: Installation, kind: str) -> None:
    """The stream is complete without the client's doing, and the trail says that it was denied."""
    ana = place.creator()
    token = ana.token()
    made = await place.wire.create(token, "exact")
    named = {
        "principal": {"tenant": TENANT, "iss": ana.issuer.url, "sub": ana.sub},
        "client": {"tenant": TENANT, "iss": ana.issuer.url, "client_id": str(ana.client_id)},
        "token": {"tenant": TENANT, "token": token},
        "handle": {"task": place.trail.ref(made.task_id)},
    }
    stream = await place.wire.listen_while(token, made.task_id, partial(place.revoke, kind, **named[kind]))
    assert stream.allowed, stream
    assert b'"status":"completed"' not in stream.raw

    revoked = "handle-revoked" if kind == "handle" else "caller-revoked"

    async def ended() -> list[str]:
        entries = await place.trail.of(made.task_id, "access") + await place.trail.denied(place.trail.ref(made.task_id))
        return [_ended(event) for entry in entries for event in entry.events if _ended(event)]

    assert await until(ended) == [
        f"tasks/result: {revoked}" if "tasks/result" in place.wire.ways else "subscription: denied"
    ]


def _ended(event: object) -> str:
    """What an event says to have ended, and why: a subscription, or a call that waited."""
    match event:
        case SubscriptionClosed():
            return f"subscription: {event.reason}"
        case AccessDenied(method="tasks/result"):
            return f"tasks/result: {' '.join(event.reasons)}"
        case _:
            return ""


async def test_the_live_tasks_of_a_revoked_principal_are_marked_and_stopped(place: Installation) -> None:
    """The shipped policy lets the work of a revoked creator neither continue nor wait: it is cancelled, and why."""
    ana = place.creator()
    tasks = [(await place.wire.create(ana.token(), "exact")).task_id for _ in range(3)]
    await place.revoke("principal", tenant=TENANT, iss=ana.issuer.url, sub=ana.sub)

    async def stopped() -> bool:
        return all(["TaskCancelled" in await place.trail.names(task_id) for task_id in tasks])

    await until(stopped)
    for task_id in tasks:
        entries = await place.trail.of(task_id)
        assert only(entries, AuthorityChanged).standing is Standing.REVOKED
        assert only(entries, CancelRequested).cause == "authority_revoked"
        for entry in entries[1:]:
            assert entry.authority.principal is None or entry.authority.principal.sub != ana.sub
