"""Pseudonyms in place of subjects and addresses. Source: issue 3 (keyed, per tenant), `configuration.Privacy`."""

import msgspec
import pytest

from tasktrail.events.authority import Authority, Level, Method, Verification, identity
from tasktrail.services.access.callers import Callers, Channel
from tasktrail.services.configuration import Privacy
from tasktrail.services.keyring import Keyring
from tasktrail.services.messages import ActorFacts, Call, Caller, CredentialFacts
from tasktrail.services.settings import Settings

KEYRING = Keyring(b"r" * 32, {1: b"s" * 32}, {1: b"w" * 32})
ACME, GLOBEX = "https://id.example", "https://id.globex.example"
TENANTS = {ACME: "acme", GLOBEX: "globex"}
CHANNEL = Channel(server="reports", in_process=False)
FACTS = CredentialFacts(method=Method.JWT, token_hash="h" * 43, jti="j")
ANA = Caller(iss=ACME, sub="ana@acme.example", client_id="desk", credential=FACTS, actors=(ActorFacts(sub="bot-7"),))
CALL = Call(method="tasks/get", address="192.0.2.7", forwarded_for="198.51.100.1, 10.0.0.1")


async def authority_of(privacy: Privacy, caller: Caller = ANA) -> Authority:
    """What is recorded of a call where this is configured."""
    settings = Settings(tenants=TENANTS, privacy=privacy)
    return (await Callers(settings, KEYRING).authority(caller, CALL, CHANNEL))[0]


def text(authority: Authority) -> str:
    return msgspec.json.encode(authority).decode()


PERSONAL = ("ana@acme.example", "bot-7", "192.0.2.7", "198.51.100.1", "10.0.0.1")


@pytest.mark.parametrize("tenants", [("acme",), ("*",)])
async def test_subjects_and_addresses_are_nowhere_in_what_is_recorded(tenants: tuple[str, ...]) -> None:
    """Everything behind the callers sees this authority only: its binding, the trail, the audit store."""
    authority = await authority_of(Privacy(tenants=tenants))
    assert not [one for one in PERSONAL if one in text(authority)]
    mine, named = identity(authority), KEYRING.pseudonym("acme", "ana@acme.example")
    assert (mine.tenant, mine.iss, mine.sub, mine.client_id) == ("acme", ACME, named, "desk")
    assert authority.request is not None
    assert authority.request.address == KEYRING.pseudonym("acme", "192.0.2.7")
    assert authority.request.address_level is Level.ASSERTED
    assert authority.credential is not None
    assert (authority.credential.token_hash, authority.credential.jti) == ("h" * 43, "j")


async def test_what_is_not_covered_is_recorded_as_it_is() -> None:
    """`[privacy]`: the tenants that must, and what of them."""
    assert [one for one in PERSONAL if one in text(await authority_of(Privacy()))] == list(PERSONAL)
    assert "ana@acme.example" in text(await authority_of(Privacy(tenants=("globex",))))
    subjects = text(await authority_of(Privacy(tenants=("acme",), addresses=False)))
    assert [one for one in PERSONAL if one in subjects] == list(PERSONAL[2:])
    addresses = text(await authority_of(Privacy(tenants=("acme",), subjects=False)))
    assert [one for one in PERSONAL if one in addresses] == list(PERSONAL[:2])


async def test_a_client_that_is_the_subject_is_no_way_around() -> None:
    """RFC 9068 section 2.2: without a resource owner `sub` is the client; then `client_id` says the same."""
    machine = msgspec.structs.replace(ANA, client_id=ANA.sub)
    authority = await authority_of(Privacy(tenants=("acme",)), machine)
    assert "ana@acme.example" not in text(authority)
    assert identity(authority).client_id == identity(authority).sub


async def test_nobody_stays_nobody() -> None:
    """An empty member stays empty: a pseudonym for it would name somebody."""
    authority = await authority_of(Privacy(tenants=("*",)), Caller())
    assert authority.principal is not None
    assert authority.principal.sub == ""
    assert "192.0.2.7" not in text(authority)


async def test_who_is_refused_is_as_private_as_if_the_claim_were_true() -> None:
    """A refused credential is shown to the default tenant: what it claims is still its issuer's tenant's to hide."""
    facts = msgspec.structs.replace(FACTS, verification=Verification.EXPIRED)
    authority = await authority_of(Privacy(tenants=("acme",)), msgspec.structs.replace(ANA, credential=facts))
    assert authority.tenant == "default"
    assert not [one for one in PERSONAL if one in text(authority)]


def test_a_pseudonym_is_the_same_within_a_tenant_and_different_in_another() -> None:
    """`configuration.Privacy`; without the reference key nobody can compute it."""
    named = KEYRING.pseudonym("acme", "ana")
    assert named == KEYRING.pseudonym("acme", "ana")
    assert named.startswith("p-")
    assert len(named) == 34
    others = [KEYRING.pseudonym("globex", "ana"), KEYRING.pseudonym("acme", "anb"), KEYRING.pseudonym("acmea", "na")]
    others.append(Keyring(b"q" * 32, {1: b"s" * 32}, {1: b"w" * 32}).pseudonym("acme", "ana"))
    assert len({named, *others}) == 5
