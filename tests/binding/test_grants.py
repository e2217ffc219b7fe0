"""A grant opens a handle to somebody else, for what it says and no more, and on the record.

Sources: feature A1 ("or a recorded grant"), design section 5 (`GrantGiven`, `GrantWithdrawn`).
"""

import pytest
from tests.binding.installation import TENANT, Installation
from tests.binding.test_matrix import UNKNOWN
from tests.mcp.place import carrying, only

from tasktrail.events.facts import GrantGiven, GrantWithdrawn, TaskPolled
from tasktrail.testing.waiting import until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.requirement("A1")]

GRANTED = {"tasks/get": "get", "tasks/result": "get", "subscriptions/listen": "subscribe"}


async def test_a_grant_opens_what_it_names_until_it_is_withdrawn(place: Installation) -> None:
    """Rights of get and subscribe; everything else, and everybody else, gets the answer of an id that never was."""
    ana, eve = place.creator(), place.creator()
    made = await place.wire.create(ana.token(), "exact")
    to = {"tenant": TENANT, "iss": eve.issuer.url, "sub": eve.sub, "client_id": str(eve.client_id)}
    ways = place.wire.ways
    unknown = {method: await ask(eve.token(), UNKNOWN) for method, ask in ways.items()}
    given = await place.order("grants", task=made.task_id, rights=sorted(set(GRANTED.values())), **to)
    for method, ask in ways.items():
        answer = await ask(eve.token(), made.task_id)
        assert answer.allowed is (method in GRANTED), method
        assert answer.allowed or answer == unknown[method], method
        for stranger in (eve.but(sub="mallory"), eve.but(client_id="portal"), eve.but(issuer=place.other_issuer)):
            assert not (await ask(stranger.token(), made.task_id)).allowed, method
    assert await place.wire.listed(eve.token()) in (None, [made.task_id])
    await place.order("grants/withdraw", task=made.task_id, grant=given["id"])
    assert await place.wire.listed(eve.token()) in (None, [])
    for method, ask in ways.items():
        assert await ask(eve.token(), made.task_id) == unknown[method], method
        assert (await ask(ana.token(), made.task_id)).allowed, method


async def test_what_a_grantee_does_is_recorded_as_by_the_grant(place: Installation) -> None:
    """The entry names the caller, the grant, and in what the caller differs from the creator."""
    ana, eve = place.creator(), place.creator()
    made = await place.wire.create(ana.token(), "exact")
    to = {"tenant": TENANT, "iss": eve.issuer.url, "sub": eve.sub, "client_id": str(eve.client_id)}
    given = await place.order("grants", task=made.task_id, rights=["get"], **to)
    assert (await place.wire.get(eve.token(), made.task_id)).allowed

    async def polled() -> bool:
        return bool(await place.trail.of(made.task_id, "access"))

    await until(polled)
    entry = carrying(await place.trail.of(made.task_id, "access"), TaskPolled)
    assert entry.authority.grant == given["id"]
    assert entry.authority.principal is not None
    assert entry.authority.principal.sub == eve.sub
    assert entry.authority.binding is not None
    assert entry.authority.binding.differs == ("sub", "client_id")
    await place.order("grants/withdraw", task=made.task_id, grant=given["id"])
    entries = await place.trail.of(made.task_id)
    assert only(entries, GrantGiven).grant == only(entries, GrantWithdrawn).grant == given["id"]
    assert carrying(entries, GrantGiven).authority.trigger.value == "operator"
