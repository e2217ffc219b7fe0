"""Who a caller says it is, anywhere but in its token: changes no decision, and is nothing but a claim on the trail.

Sources: design sections 1 (promise 3) and 6 (levels; claimed facts never decide), features A1, A5 and A6, the issue:
"forged identity in body, headers, `_meta` or clientInfo changes no decision and appears only as `claimed`".
"""

import contextlib
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.binding.installation import Installation, Who, installed
from tests.binding.wire import METHODS, asking

from tasktrail.events.authority import Level
from tasktrail.events.entry import Entry
from tasktrail.events.facts import AccessDenied, TaskCreated
from tasktrail.testing.feeding import Feeder, Refused, asked, caller, creation
from tasktrail.testing.waiting import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.requirement("A1", "A5")]

UNKNOWN = "a" * 32
FAR = "203.0.113.77"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["forwarded", "asserted"])
async def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Installation]:
    """Give a running installation, which trusts its MCP server's word on callers or asks for their tokens."""
    async with installed(request.param, tmp_path_factory.mktemp("identity")) as running:
        yield running


def in_headers(who: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What proxies and sessions say in headers."""
    said = {
        "X-Forwarded-User": who["sub"],
        "X-Forwarded-Email": who["sub"],
        "X-Forwarded-Preferred-Username": who["sub"],
        "X-Forwarded-Access-Token": who["sub"],
        "X-User": who["sub"],
        "X-Auth-Request-User": who["sub"],
        "X-Remote-User": who["sub"],
        "X-Client-Id": who["client_id"],
        "X-Tenant": who["tenant"],
        "X-Tenant-Id": who["tenant"],
        "Forwarded": f"for={FAR};by={who['tenant']};host={who['iss']}",
        "X-Forwarded-For": f"{FAR}, {who['sub']}",
        "X-Real-Ip": FAR,
        "Mcp-Session-Id": who["sub"],
        "Cookie": f"session={who['sub']}",
    }
    return {"extra_headers": said}


def in_meta(who: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What a client says of itself in `_meta`, under names of its own and of the protocol."""
    return {
        "extra_meta": {
            **who,
            "principal": dict(who),
            "authority": {"trigger": "operator", "tenant": who["tenant"], "principal": dict(who)},
            "credential": {"method": "jwt", "verified_by_tasktrail": True},
            "caller": dict(who),
            "io.modelcontextprotocol/principal": dict(who),
        }
    }


def in_client_info(who: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The client's name for itself."""
    info = {"name": who["client_id"], "title": who["sub"], "version": who["tenant"]}
    return {"extra_meta": {"io.modelcontextprotocol/clientInfo": info}}


def in_arguments(who: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Arguments of the tool with the names of an identity's members."""
    return {"arguments": dict(who)}


FORGERIES = {"headers": in_headers, "_meta": in_meta, "clientInfo": in_client_info, "arguments": in_arguments}


@contextlib.contextmanager
def saying(place: Installation, claims: Mapping[str, dict[str, Any]]) -> Generator[None]:
    """Every request of the wire with these claims in it."""
    before = {name: getattr(place.wire, name) for name in claims}
    try:
        for name, said in claims.items():
            setattr(place.wire, name, said)
        yield
    finally:
        for name, said in before.items():
            setattr(place.wire, name, said)


def members(who: Who) -> dict[str, str]:
    """An identity as one would forge it."""
    return {"sub": who.sub, "iss": who.issuer.url, "client_id": str(who.client_id), "tenant": "globex"}


@pytest.mark.requirement("A6")
@pytest.mark.parametrize("where", FORGERIES)
async def test_a_stranger_who_says_it_is_the_owner_is_a_stranger(place: Installation, where: str) -> None:
    """The answer is that of an id that never was, to the byte, and the task does not move."""
    ana, eve = place.creator(), place.creator().token()
    made = await place.wire.create(ana.token(), "exact")
    for presented in (eve, None):
        unknown = {method: await asking(place.wire, method)(presented, UNKNOWN) for method in METHODS}
        with saying(place, FORGERIES[where](members(ana))):
            for method in METHODS:
                answer = await asking(place.wire, method)(presented, made.task_id)
                assert answer == unknown[method], (method, presented)
    assert await place.trail.names(made.task_id) == ["TaskCreated"]


@pytest.mark.requirement("A6")
@pytest.mark.parametrize("where", FORGERIES)
async def test_an_owner_who_says_it_is_somebody_else_is_the_owner(place: Installation, where: str) -> None:
    """Nothing that is only said takes a right away either."""
    ana, eve = place.creator(), place.creator()
    with saying(place, FORGERIES[where](members(eve))):
        made = await place.wire.create(ana.token(), "exact")
        assert made.allowed, made
    for method in METHODS:
        with saying(place, FORGERIES[where](members(eve))):
            assert (await asking(place.wire, method)(ana.token(), made.task_id)).allowed, method
        assert not (await asking(place.wire, method)(eve.token(), made.task_id)).allowed, method


@pytest.mark.parametrize("where", FORGERIES)
async def test_what_is_only_said_is_on_the_trail_as_a_claim_or_not_at_all(place: Installation, where: str) -> None:
    """The creating entry names who the token names; a forwarded address is the one claim that is kept, as such."""
    ana = place.creator()
    forged = {name: f"forged-{name}-{ana.sub}" for name in ("sub", "iss", "client_id", "tenant")}
    with saying(place, FORGERIES[where](forged)):
        made = await place.wire.create(ana.token(), "exact")
        assert not (await place.wire.get(place.creator().token(), made.task_id)).allowed
    (created,) = await place.trail.of(made.task_id)
    (event,) = created.events
    assert isinstance(event, TaskCreated)
    assert event.binding.sub == ana.sub
    assert (event.binding.tenant, event.binding.client_id) == ("acme", ana.client_id)
    assert created.authority.principal is not None
    assert created.authority.principal.sub == ana.sub
    ref = place.trail.ref(made.task_id)

    async def denied() -> list[Entry]:
        return await place.trail.denied(ref)

    await until(denied)
    for entry in (created, *await denied()):
        request = entry.authority.request
        assert request is not None
        assert request.address == "127.0.0.1"
        assert request.forwarded_for in {"", FAR}
        silent = msgspec.structs.replace(request, forwarded_for="")
        shown = msgspec.json.encode(msgspec.structs.replace(entry.authority, request=silent))
        shown += msgspec.json.encode(entry.events)
        assert b"forged-" not in shown
        assert FAR.encode() not in shown


@pytest_asyncio.fixture(loop_scope="module")
async def feeder(place: Installation) -> AsyncGenerator[Feeder]:
    """A connection with an MCP server's own login, under another server's name."""
    made = await Feeder.connect(place.up.adapter(), "never-heard-of")
    try:
        yield made
    finally:
        await made.close()


async def test_a_server_that_is_not_trusted_for_it_asserts_nobody(place: Installation, feeder: Feeder) -> None:
    """Issue: asserted identity is allowed only for servers configured as trusted for that; the rest must forward."""
    ana = place.creator()
    made = await place.wire.create(ana.token(), "exact")
    said = caller(ana.sub, iss=ana.issuer.url, client_id=str(ana.client_id))
    with pytest.raises(Refused) as creating:
        await feeder.request("create", creation(said, "forged"))
    assert creating.value.reason == "not_authorised"
    with pytest.raises(Refused) as foreign:
        await feeder.request("get", asked(said, "tasks/get", task_id=made.task_id))
    with pytest.raises(Refused) as unknown:
        await feeder.request("get", asked(said, "tasks/get", task_id=UNKNOWN))
    assert foreign.value.error == unknown.value.error
    ref = place.trail.ref(made.task_id)

    async def denied() -> list[Entry]:
        return await place.trail.denied(ref)

    await until(denied)
    (entry,) = await denied()
    (event,) = entry.events
    assert isinstance(event, AccessDenied)
    assert "server-not-trusted-to-assert" in event.reasons
    levels = {one.level for one in (entry.authority.principal, entry.authority.client) if one is not None}
    assert levels <= {Level.CLAIMED}


async def test_nobody_says_of_itself_that_tasktrail_verified_it(place: Installation, feeder: Feeder) -> None:
    """Design section 6: levels are assigned, never taken: what a peer says of a level counts for nothing."""
    said = caller("ana", iss=place.issuer.url)
    said["credential"] |= {"verified_by_tasktrail": True, "verified_at_ms": 1, "jwks_sha256": "0" * 64}
    with pytest.raises(Refused) as refused:
        await feeder.request("create", creation(said, "self-verified"))
    assert refused.value.reason == "not_authorised"
    for level in ("verified", "bound", "vouched"):
        with pytest.raises(Refused) as unheard:
            await feeder.request("create", creation({**said, "level": level}, f"self-{level}"))
        assert unheard.value.reason == "invalid_request"
