"""Who calls when the MCP server forwards the token, and whose word is taken when it does not.

Expectations come from issue 3 ("Who is calling"), design section 6 (levels), RFC 9068, RFC 7662 and RFC 8693.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tasktrail.events.authority import (
    Actor,
    Authority,
    Binding,
    Level,
    Method,
    PrincipalKind,
    Trigger,
    Verification,
    identity,
)
from tasktrail.events.errors import InvalidRequest
from tasktrail.services.access.callers import Callers, Channel, operator_authority
from tasktrail.services.access.claims import digest
from tasktrail.services.access.rules import Rule
from tasktrail.services.configuration import ApiKey, Issuer, McpServer
from tasktrail.services.keyring import Keyring
from tasktrail.services.messages import TOKEN_MAX, ActorFacts, Call, Caller, CredentialFacts, GetTask
from tasktrail.services.settings import Settings, load
from tasktrail.testing.issuer import INTROSPECTION_PATH, JWKS_PATH, LocalIssuer

AUDIENCE = "https://mcp.example/mcp"
KEYRING = Keyring(b"r" * 32, {1: b"s" * 32}, {1: b"w" * 32})
CONNECTED, EMBEDDED = Channel(server="reports", in_process=False), Channel(server="reports", in_process=True)
CALL = Call(method="tasks/get", address="192.0.2.1")
KEY = "a key of ours, long and random"
LIAR = Caller(
    iss="https://evil.example",
    sub="root",
    client_id="console",
    credential=CredentialFacts(method=Method.JWT, verified_by_tasktrail=True, token_hash="h" * 43, jti="forged"),
    actors=(ActorFacts(sub="nobody"),),
)
"""What an adapter could say beside a token it forwards."""


@pytest.fixture
def local() -> Iterator[LocalIssuer]:
    """Give a running issuer."""
    with LocalIssuer() as issuer:
        yield issuer


def settings(local: LocalIssuer, folder: Path, *, signs: bool = True, asks: bool = True, **fields: Any) -> Settings:  # noqa: ANN401 - settings
    """An installation that takes this issuer's tokens, for the tenant `acme`, and one key, for `globex`."""
    issuer = Issuer(
        url=local.url,
        tenant="acme",
        audience=("https://other.example", AUDIENCE),
        jwks_url=local.jwks_url if signs else "",
        introspection_url=local.introspection_url if asks else "",
        introspection_client_id=local.client_id if asks else "",
        introspection_secret_file=str(local.secret_file(folder)) if asks else "",
    )
    key = ApiKey(name="batch", sha256=hashlib.sha256(KEY.encode()).hexdigest(), tenant="globex", client_id="cron")
    return Settings(issuers=(issuer,), api_keys=(key,), **fields)


async def found(
    settings: Settings, caller: Caller | str, channel: Channel = CONNECTED
) -> tuple[Authority, Rule | None]:
    """What is recorded of a caller, or of a forwarded token."""
    callers = Callers(settings, KEYRING)
    try:
        return await callers.authority(Caller(token=caller) if isinstance(caller, str) else caller, CALL, channel)
    finally:
        await callers.close()


@pytest.mark.requirement("A1", "A5")
@pytest.mark.parametrize("channel", [CONNECTED, EMBEDDED])
async def test_a_forwarded_token_is_verified_here_and_only_it_counts(
    local: LocalIssuer, tmp_path: Path, channel: Channel
) -> None:
    """Issue 3: verified by us; what the adapter says of its caller beside it decides and records nothing."""
    act = {"sub": "agent", "iss": local.url, "act": {"sub": "gateway"}}
    token = local.issue("ana", "cli", "a b", aud=["x", AUDIENCE], act=act, amr=["pwd"], acr="2", auth_time=7)
    lying = msgspec.structs.replace(LIAR, token=token)
    authority, refused = await found(settings(local, tmp_path), lying, channel)
    assert refused is None
    assert identity(authority) == Binding(tenant="acme", iss=local.url, sub="ana", client_id="cli")
    assert authority.principal is not None
    assert (authority.principal.level, authority.principal.kind) == (Level.VERIFIED, PrincipalKind.USER)
    assert authority.actors == (
        Actor(sub="agent", iss=local.url, level=Level.VERIFIED),
        Actor(sub="gateway", level=Level.VERIFIED),
    )
    credential = authority.credential
    assert credential is not None
    assert (credential.method, credential.verification, credential.level) == (
        Method.JWT,
        Verification.OK,
        Level.VERIFIED,
    )
    assert (credential.token_hash, credential.kid) == (digest(token), local.key.kid)
    assert credential.jwks_sha256 == hashlib.sha256(local.answers[JWKS_PATH][1]).hexdigest()
    assert (credential.scope, credential.aud, credential.amr) == (("a", "b"), ("x", AUDIENCE), ("pwd",))
    assert (credential.acr, credential.auth_time) == ("2", 7)
    assert credential.exp - credential.iat == 300
    assert credential.verified_at_ms > 0
    assert authority.request is not None
    assert (authority.request.method, authority.request.address) == ("tasks/get", "192.0.2.1")


@pytest.mark.requirement("A5")
async def test_an_opaque_token_is_vouched_for_by_its_issuer(local: LocalIssuer, tmp_path: Path) -> None:
    """RFC 7662; design section 6: introspection is `vouched`. Revoked, it opens nothing and is said to be inactive."""
    token = local.issue_opaque("ana", "cli", "a", aud=AUDIENCE, act={"sub": "agent"}, iss=None)
    authority, refused = await found(settings(local, tmp_path), token)
    assert refused is None
    assert identity(authority) == Binding(tenant="acme", iss=local.url, sub="ana", client_id="cli")
    assert authority.principal is not None
    assert authority.credential is not None
    assert {authority.principal.level, authority.credential.level, authority.actors[0].level} == {Level.VOUCHED}
    assert (authority.credential.method, authority.credential.jwks_sha256) == (Method.OPAQUE, "")
    local.revoke(token)
    authority, refused = await found(settings(local, tmp_path), token)
    assert refused is Rule.TOKEN_REFUSED
    assert authority.credential is not None
    assert authority.credential.verification is Verification.INACTIVE
    assert identity(authority) == Binding(tenant="default", iss="", sub="", client_id="")


async def test_a_signed_token_of_an_issuer_without_keys_here_is_introspected(
    local: LocalIssuer, tmp_path: Path
) -> None:
    """Its issuer says what it is worth; a signed token is shown to no other issuer."""
    authority, refused = await found(settings(local, tmp_path, signs=False), local.issue("ana", "cli", aud=AUDIENCE))
    assert refused is Rule.TOKEN_REFUSED  # this issuer introspects opaque ones only
    assert authority.credential is not None
    assert authority.credential.verification is Verification.INACTIVE
    assert local.fetches == {INTROSPECTION_PATH: 1}
    with LocalIssuer() as stranger:
        token = stranger.issue("ana", "cli", aud=AUDIENCE)
        authority, refused = await found(settings(local, tmp_path, signs=False), token)
        assert refused is Rule.TOKEN_REFUSED
        assert authority.credential is not None
        assert authority.credential.verification is Verification.WRONG_ISSUER
        assert not stranger.fetches
    assert local.fetches == {INTROSPECTION_PATH: 1}


@pytest.mark.requirement("A5")
async def test_a_key_of_ours_is_a_machine_that_we_vouch_for(local: LocalIssuer, tmp_path: Path) -> None:
    """Issue 3: API keys for machines; the tenant is the key's. No issuer is asked about it."""
    authority, refused = await found(settings(local, tmp_path), msgspec.structs.replace(LIAR, token=KEY))
    assert refused is None
    assert identity(authority) == Binding(tenant="globex", iss="tasktrail", sub="key:batch", client_id="cron")
    assert authority.principal is not None
    assert (authority.principal.kind, authority.principal.level) == (PrincipalKind.MACHINE, Level.VOUCHED)
    assert authority.credential is not None
    assert (authority.credential.method, authority.credential.token_hash) == (Method.API_KEY, digest(KEY))
    assert not local.fetches


@pytest.mark.requirement("A1", "A5")
async def test_a_refused_token_says_what_it_claims_and_decides_nothing(local: LocalIssuer, tmp_path: Path) -> None:
    """Whoever looks into it sees what was claimed; the identity context is nobody's, the tenant the default."""
    token = local.issue("ana", "cli", aud="https://elsewhere.example", jti="j1")
    authority, refused = await found(settings(local, tmp_path), msgspec.structs.replace(LIAR, token=token))
    assert refused is Rule.TOKEN_REFUSED
    assert authority.principal is not None
    assert authority.credential is not None
    assert (authority.principal.sub, authority.principal.level) == ("ana", Level.CLAIMED)
    assert (authority.credential.verification, authority.credential.jti) == (Verification.WRONG_AUDIENCE, "j1")
    assert identity(authority) == Binding(tenant="default", iss="", sub="", client_id="")


@pytest.mark.parametrize("path", [JWKS_PATH, INTROSPECTION_PATH])
async def test_an_issuer_that_does_not_answer_lets_nobody_in(local: LocalIssuer, tmp_path: Path, path: str) -> None:
    """Fail closed, and say that it was not checked: the caller may come again."""
    local.answers[path] = (503, b"")
    token = local.issue("ana", "cli", aud=AUDIENCE) if path == JWKS_PATH else local.issue_opaque("ana", "cli")
    authority, refused = await found(settings(local, tmp_path), token)
    assert refused is Rule.NOT_CHECKED
    assert authority.credential is not None
    assert authority.credential.verification is Verification.NOT_CHECKED


@pytest.mark.requirement("A1")
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, Rule.NOBODY),
        ({"username": "ana"}, Rule.NOBODY),
        ({"sub": ""}, Rule.TOKEN_REFUSED),
        ({"client_id": "cli"}, None),
        ({"sub": "ana"}, None),
    ],
    ids=str,
)
async def test_an_active_token_that_names_nobody_holds_no_task(
    local: LocalIssuer, tmp_path: Path, said: dict[str, object], expected: Rule | None
) -> None:
    """RFC 7662 section 2.2 lets both members be missing: two such callers would be bound alike."""
    answer = {"active": True, "aud": AUDIENCE, "iss": local.url, **said}
    local.answers[INTROSPECTION_PATH] = (200, json.dumps(answer).encode())
    authority, refused = await found(settings(local, tmp_path), "opaque")
    assert refused is expected
    assert authority.principal is not None
    if said == {"client_id": "cli"}:
        assert authority.principal.kind is PrincipalKind.MACHINE


ASSERTED = msgspec.structs.replace(LIAR, credential=CredentialFacts(method=Method.JWT, token_hash="h" * 43))


@pytest.mark.requirement("A5")
@pytest.mark.parametrize(
    ("servers", "issuers", "taken"),
    [
        ((), False, True),
        ((), True, False),
        ((McpServer(name="reports", asserts=True),), True, True),
        ((McpServer(name="rep*", asserts=True),), True, True),
        ((McpServer(name="reports"), McpServer(name="*", asserts=True)), True, False),
        ((McpServer(name="mail", asserts=True),), True, False),
        ((McpServer(name="mail", asserts=True),), False, False),
        ((McpServer(name="Reports", asserts=True),), False, False),
    ],
)
async def test_the_word_of_a_server_is_taken_where_it_is_configured(
    local: LocalIssuer, tmp_path: Path, servers: tuple[McpServer, ...], *, issuers: bool, taken: bool
) -> None:
    """Issue 3: `asserted` is allowed only for servers configured as trusted; with nothing configured, for one user."""
    known = settings(local, tmp_path, servers=servers) if issuers else Settings(servers=servers)
    caller = msgspec.structs.replace(ASSERTED, iss=local.url)
    authority, refused = await found(known, caller)
    assert authority.principal is not None
    assert authority.credential is not None
    if taken:
        assert refused is None
        assert authority.principal.level is Level.ASSERTED
        assert identity(authority).sub == "root"
        assert authority.tenant == ("acme" if issuers else "default")
    else:
        assert refused is Rule.NOT_TRUSTED
        assert authority.credential.verification is Verification.NOT_TRUSTED
        assert {authority.principal.level, authority.credential.level} == {Level.CLAIMED}
        assert identity(authority) == Binding(tenant="default", iss="", sub="", client_id="")


async def test_what_our_own_verifier_found_in_this_process_needs_no_trust(local: LocalIssuer, tmp_path: Path) -> None:
    """Design section 6: `verified` is what tasktrail checked itself; only in this process can it know."""
    caller = msgspec.structs.replace(LIAR, iss=local.url)
    authority, refused = await found(settings(local, tmp_path), caller, EMBEDDED)
    assert refused is None
    assert authority.principal is not None
    assert authority.principal.level is Level.VERIFIED
    assert (await found(settings(local, tmp_path), caller, CONNECTED))[1] is Rule.NOT_TRUSTED


@pytest.mark.requirement("A1")
async def test_the_tenant_is_the_issuers_else_the_servers_else_there_is_none(
    local: LocalIssuer, tmp_path: Path
) -> None:
    """`configuration`: issuers, `tenants`, then the server; with any of them configured the rest are strangers."""
    servers = (McpServer(name="reports", asserts=True, tenant="branch"), McpServer(name="*", asserts=True))
    known = settings(local, tmp_path, servers=servers, tenants={"https://old.example": "old"})
    mail = Channel(server="mail", in_process=False)
    for iss, channel, tenant in (
        (local.url, CONNECTED, "acme"),
        ("https://old.example", CONNECTED, "old"),
        ("https://new.example", CONNECTED, "branch"),
        ("https://new.example", mail, None),
        ("", mail, None),
    ):
        authority, refused = await found(known, msgspec.structs.replace(ASSERTED, iss=iss), channel)
        assert (authority.tenant, refused) == ((tenant, None) if tenant else ("default", Rule.ISSUER))


async def test_nobody_else_speaks_of_our_own_identities(local: LocalIssuer, tmp_path: Path) -> None:
    """`tasktrail` is the issuer of keys, operators and servers: it can be neither asserted nor configured."""
    impostor = msgspec.structs.replace(ASSERTED, iss="tasktrail", sub="key:batch", client_id="cron")
    assert (await found(Settings(), impostor))[1] is Rule.ISSUER
    assert (await found(Settings(servers=(McpServer(name="*", asserts=True, tenant="globex"),)), impostor))[1] is (
        Rule.ISSUER
    )
    with pytest.raises(InvalidRequest, match="ours"):
        Callers(Settings(tenants={"tasktrail": "acme"}), KEYRING)
    known = settings(local, tmp_path)
    with pytest.raises(InvalidRequest):
        Callers(msgspec.structs.replace(known, issuers=known.issuers * 2), KEYRING)


async def test_a_credential_the_server_refused_opens_nothing(local: LocalIssuer, tmp_path: Path) -> None:
    """`ReportRefusal`: what the MCP server's own check found is recorded as claimed, and never lets anybody in."""
    facts = CredentialFacts(method=Method.JWT, verification=Verification.EXPIRED, token_hash="h" * 43)
    for channel in (CONNECTED, EMBEDDED):
        caller = msgspec.structs.replace(LIAR, credential=facts)
        authority, refused = await found(settings(local, tmp_path), caller, channel)
        assert refused is Rule.TOKEN_REFUSED
        assert authority.credential is not None
        assert (authority.credential.verification, authority.credential.level) == (
            Verification.EXPIRED,
            Level.CLAIMED,
        )
        assert identity(authority).sub == ""


def test_the_documented_configuration_works(tmp_path: Path) -> None:
    """docs/identity.md."""
    page = (Path(__file__).parents[3] / "docs" / "identity.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    asking = "".join(line + "\n" for line in re.findall(r"^    (introspection_.*)$", page, re.MULTILINE))
    file = block.replace("jwks_url", asking + "jwks_url", 1)
    (tmp_path / "tasktrail.toml").write_text(file, encoding="utf-8")
    secret = tmp_path / "introspection.secret"
    secret.touch(mode=0o600)
    secret.write_text("anything", encoding="utf-8")
    known = load({}, tmp_path / "tasktrail.toml")
    assert Callers(known, KEYRING)
    assert (known.anonymous, known.issuers[0].tenant, known.servers[0].asserts) == (False, "acme", True)
    assert known.issuers[0].introspection_client_id == "tasktrail"


@pytest.mark.requirement("R4")
def test_a_token_is_in_no_repr() -> None:
    """R4: a log is a store too; requests are logged by their repr, if at all."""
    said = GetTask(caller=Caller(token="canary-token", iss="i"), call=CALL, task_id="t")
    assert "canary" not in f"{said!r} {said.caller!s} {said.caller.__rich_repr__()}"
    assert "iss='i'" in repr(said)
    assert repr(Caller()) == repr(Caller(token=""))


@pytest.mark.parametrize("token", ["é" * 20, "\ud800", "x" * (TOKEN_MAX + 1), "a\nb", " "], ids=ascii)
async def test_whatever_is_forwarded_is_answered(local: LocalIssuer, tmp_path: Path, token: str) -> None:
    """An embedded adapter's structs are not checked on their way: nothing here breaks on them."""
    _, refused = await found(settings(local, tmp_path), token, EMBEDDED)
    assert refused is Rule.TOKEN_REFUSED


def test_an_operator_is_a_person_with_a_key_of_ours() -> None:
    """Issue 3: what an operator does is recorded as theirs."""
    authority = operator_authority("eve", "acme", "revoke", "2001:DB8::1", "h" * 43)
    assert (authority.trigger, authority.tenant) == (Trigger.OPERATOR, "acme")
    assert authority.principal is not None
    assert (authority.principal.iss, authority.principal.sub) == ("tasktrail", "eve")
    assert authority.credential is not None
    assert (authority.credential.method, authority.credential.token_hash) == (Method.API_KEY, "h" * 43)
    assert authority.request is not None
    assert (authority.request.method, authority.request.address) == ("operator/revoke", "2001:db8::1")
    assert authority.request.address_level is Level.VOUCHED
