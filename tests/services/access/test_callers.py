"""From what an adapter says to a recorded authority. Source: design section 6, features A1 A5 A6 R4."""

import msgspec
import pytest

from tasktrail.events.authority import (
    Actor,
    Authority,
    Binding,
    Client,
    Credential,
    Level,
    Method,
    Principal,
    PrincipalKind,
    Request,
    Trigger,
    Verification,
    identity,
)
from tasktrail.services.access.callers import (
    Callers,
    Channel,
    request,
    server_authority,
    service_authority,
)
from tasktrail.services.access.rules import Rule
from tasktrail.services.keyring import Keyring
from tasktrail.services.messages import ActorFacts, Call, Caller, CredentialFacts
from tasktrail.services.settings import Settings

CONNECTED, EMBEDDED = Channel(server="reports", in_process=False), Channel(server="reports", in_process=True)
HASH = "h" * 43
FACTS = CredentialFacts(
    method=Method.JWT,
    verified_by_tasktrail=True,
    verified_at_ms=5,
    token_hash=HASH,
    jti="j",
    aud=("a",),
    scope=("s",),
    iat=1,
    exp=4_000_000_000,
    auth_time=3,
    acr="acr",
    amr=("pwd",),
    kid="k",
    jwks_sha256="w",
)
CALLER = Caller(iss="https://id.example", sub="ana", client_id="desk", credential=FACTS)
CALL = Call(method="tasks/get")
KEYRING = Keyring(b"r" * 32, {1: b"s" * 32}, {1: b"w" * 32})
SETTINGS = Settings()
MAPPED = Settings(tenants={"https://id.example": "acme"}, default_tenant="public")


async def authority_of(
    caller: Caller, call: Call, channel: Channel, settings: Settings
) -> tuple[Authority, Rule | None]:
    """What is recorded of a caller in an installation with these settings, and the rule that denies it."""
    return await Callers(settings, KEYRING).authority(caller, call, channel)


@pytest.mark.requirement("A5")
@pytest.mark.parametrize(
    ("channel", "checked", "level"),
    [
        (CONNECTED, True, Level.ASSERTED),
        (CONNECTED, False, Level.ASSERTED),
        (EMBEDDED, False, Level.ASSERTED),
        (EMBEDDED, True, Level.VERIFIED),
    ],
)
async def test_verified_is_what_our_own_verifier_checked_in_this_process(
    channel: Channel, level: Level, *, checked: bool
) -> None:
    """Design section 6: what a connected adapter says is asserted at most, whatever it says of itself."""
    caller = msgspec.structs.replace(CALLER, credential=msgspec.structs.replace(FACTS, verified_by_tasktrail=checked))
    authority, refused = await authority_of(caller, CALL, channel, SETTINGS)
    assert refused is None
    assert authority.principal == Principal(iss="https://id.example", sub="ana", level=level)
    assert authority.client == Client(client_id="desk", level=level)
    assert authority.credential is not None
    assert authority.credential.level is level
    assert authority.trigger is Trigger.CALLER


@pytest.mark.requirement("A5", "R4")
async def test_the_credentials_facts_are_recorded_and_the_token_never() -> None:
    """Design section 6: `token_hash` (ath); never the token itself."""
    authority, _ = await authority_of(CALLER, CALL, EMBEDDED, SETTINGS)
    assert authority.credential == Credential(
        method=Method.JWT,
        verification=Verification.OK,
        verified_at_ms=5,
        token_hash=HASH,
        jti="j",
        aud=("a",),
        scope=("s",),
        iat=1,
        exp=4_000_000_000,
        auth_time=3,
        acr="acr",
        amr=("pwd",),
        kid="k",
        jwks_sha256="w",
        level=Level.VERIFIED,
    )
    assert not {"token", "access_token"} & set(Credential.__struct_fields__)


@pytest.mark.requirement("R4")
@pytest.mark.parametrize(
    "text", ["", "eyJhbGciOi.J9.x", "h" * 42, "h" * 44, "secret token", "h" * 42 + "=", HASH + "\n"]
)
async def test_a_token_sent_in_place_of_its_digest_is_not_recorded(text: str) -> None:
    """R4: no access token is stored, though an adapter were to send one."""
    caller = msgspec.structs.replace(CALLER, credential=msgspec.structs.replace(FACTS, token_hash=text))
    authority, _ = await authority_of(caller, CALL, CONNECTED, SETTINGS)
    assert authority.credential is not None
    assert authority.credential.token_hash == ""


@pytest.mark.requirement("A1", "A5")
@pytest.mark.parametrize("credential", [None, CredentialFacts(method=Method.NONE, verified_by_tasktrail=True)])
async def test_without_a_credential_what_is_said_is_claimed_and_decides_nothing(
    credential: CredentialFacts | None,
) -> None:
    """Design section 6: claimed facts never decide: neither the tenant nor the identity context."""
    nobody = msgspec.structs.replace(CALLER, credential=credential)
    authority, refused = await authority_of(nobody, CALL, EMBEDDED, MAPPED)
    assert refused is None
    assert authority.principal is not None
    assert authority.client is not None
    assert (authority.principal.level, authority.client.level) == (Level.CLAIMED, Level.CLAIMED)
    assert authority.principal.kind is PrincipalKind.ANONYMOUS
    assert authority.credential == Credential(
        method=Method.NONE, verification=Verification.MISSING, level=Level.CLAIMED
    )
    assert identity(authority) == Binding(tenant="public", iss="", sub="", client_id="")
    closed = msgspec.structs.replace(MAPPED, anonymous=False)
    assert (await authority_of(nobody, CALL, EMBEDDED, closed))[1] is Rule.ANONYMOUS


@pytest.mark.requirement("A1")
async def test_the_tenant_is_the_issuers_and_never_the_requests() -> None:
    """Design section 6: the tenant is a setting per issuer."""
    assert identity((await authority_of(CALLER, CALL, CONNECTED, SETTINGS))[0]).tenant == "default"
    authority, refused = await authority_of(CALLER, CALL, CONNECTED, MAPPED)
    assert (authority.tenant, refused) == ("acme", None)
    for iss in ("https://id.example/", "https://ID.example", "", "acme"):
        authority, refused = await authority_of(msgspec.structs.replace(CALLER, iss=iss), CALL, CONNECTED, MAPPED)
        assert (authority.tenant, refused) == ("public", Rule.ISSUER)
    assert "tenant" not in {*Caller.__struct_fields__, *Call.__struct_fields__}


@pytest.mark.requirement("A6")
async def test_nothing_of_a_connection_or_session_is_a_binding_input() -> None:
    """A6: two calls that differ in everything but the four members have one identity context."""
    one, _ = await authority_of(CALLER, CALL, CONNECTED, MAPPED)
    call = Call(method="tasks/cancel", address="192.0.2.1", rpc_id="7", wire="x", protocol_version="y")
    actors = (ActorFacts(sub="agent"),)
    other = Caller(
        iss=CALLER.iss,
        sub=CALLER.sub,
        client_id=CALLER.client_id,
        kind=PrincipalKind.MACHINE,
        credential=CredentialFacts(method=Method.OPAQUE),
        actors=actors,
    )
    two, _ = await authority_of(other, call, Channel(server="mail", in_process=True), MAPPED)
    assert identity(one) == identity(two)
    assert two.actors == (Actor(sub="agent", level=Level.ASSERTED),)


@pytest.mark.requirement("R4")
@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"address": "192.0.2.7"}, {"address": "192.0.2.7", "address_level": Level.ASSERTED}),
        ({"address": "2001:DB8::1"}, {"address": "2001:db8::1", "address_level": Level.ASSERTED}),
        ({"address": "evil.example"}, {}),
        ({"address": "192.0.2.7\r\nX: y"}, {}),
        ({"forwarded_for": "198.51.100.1, unknown,10.0.0.1"}, {"forwarded_for": "198.51.100.1, 10.0.0.1"}),
        ({"forwarded_for": ",".join(["10.0.0.1"] * 20)}, {"forwarded_for": ", ".join(["10.0.0.1"] * 8)}),
        ({"rpc_id": "-12"}, {"rpc_id": "-12"}),
        ({"rpc_id": "sha256:0123456789abcdef"}, {"rpc_id": "sha256:0123456789abcdef"}),
        ({"rpc_id": "my secret id"}, {}),
        ({"rpc_id": "7\n"}, {}),
        ({"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}, {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}),
        ({"traceparent": "00-x"}, {}),
        ({"traceparent": f"00-{'A' * 32}-{'b' * 16}-01"}, {}),
    ],
)
def test_text_that_is_not_of_its_form_is_left_out(said: dict[str, str], kept: dict[str, object]) -> None:
    """Module docstring: left out rather than recorded. Sources: RFC 4291, W3C trace context."""
    found = request(msgspec.structs.replace(CALL, **said), CONNECTED)
    assert found == msgspec.structs.replace(Request(method="tasks/get", server="reports"), **kept)


@pytest.mark.requirement("A5")
def test_the_services_parts_and_the_servers_are_callers_of_their_own() -> None:
    """Design section 3: timers re-enter as callers with their own identity."""
    timer = service_authority(Trigger.TIMER, "acme", "timekeeper")
    assert (timer.trigger, timer.tenant) == (Trigger.TIMER, "acme")
    assert timer.principal == Principal(
        iss="tasktrail", sub="timekeeper", kind=PrincipalKind.MACHINE, level=Level.VOUCHED
    )
    server = server_authority(CONNECTED, "acme", "report")
    assert server.principal == Principal(
        iss="tasktrail", sub="server:reports", kind=PrincipalKind.MACHINE, level=Level.ASSERTED
    )
    assert server.request == Request(method="work/report", server="reports")


@pytest.mark.requirement("A1")
async def test_a_credential_that_names_nobody_holds_no_task() -> None:
    """It would be bound as an anonymous caller is, and each could open the other's tasks."""
    for nobody in (Caller(credential=FACTS), Caller(iss="https://id.example", credential=FACTS)):
        _, refused = await authority_of(nobody, Call(method="tools/call"), CONNECTED, Settings())
        assert refused is Rule.NOBODY
    named = Caller(client_id="cli", credential=FACTS)
    assert (await authority_of(named, Call(method="tools/call"), CONNECTED, Settings()))[1] is None


@pytest.mark.requirement("A7")
def test_a_server_that_the_caller_names_is_claimed() -> None:
    """Design section 6, levels: at the tasks endpoint the path is the caller's word."""
    named = request(CALL, Channel(server="reports", in_process=False, claimed=True))
    assert (named.server, named.server_level, named.through) == ("reports", Level.CLAIMED, "")
    assert request(CALL, CONNECTED).through == "reports"
