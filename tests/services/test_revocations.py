"""Who a revocation names, by name and by pseudonym. Source: issue "Authority" (revocation, pseudonyms); A9."""

from pathlib import Path

import pytest

from tasktrail.events.authority import Binding
from tasktrail.services import revocations as module
from tasktrail.services.keyring import Keyring
from tasktrail.services.revocations import Revocation, Revocations

ISS = "https://id.example"


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    """Give a keyring."""
    return Keyring.create(tmp_path)


def who(sub: str, client_id: str = "desk", tenant: str = "acme", iss: str = ISS) -> Binding:
    return Binding(tenant=tenant, iss=iss, sub=sub, client_id=client_id)


def principal(sub: str, tenant: str = "", made: str = "r1") -> Revocation:
    return Revocation(id=made, kind="principal", tenant=tenant, iss=ISS, sub=sub)


def client(client_id: str, tenant: str = "", iss: str = "") -> Revocation:
    return Revocation(id="r1", kind="client", tenant=tenant, iss=iss, client_id=client_id)


@pytest.mark.requirement("A9")
@pytest.mark.parametrize("tenant", ["acme", ""])
@pytest.mark.parametrize("first", ["caller", "revocation"])
def test_who_was_revoked_by_name_is_refused_under_the_pseudonym(keyring: Keyring, tenant: str, first: str) -> None:
    """`[privacy]` may be switched on at any time: what holds goes on holding, known before or recorded after."""
    hidden, held = keyring.pseudonym("acme", "ana"), Revocations(keyring.pseudonym)
    if first == "caller":
        held.add(principal("somebody", made="r0"))
        assert held.naming(who(hidden)) is None
    held.add(principal("ana", tenant))
    assert held.naming(who(hidden)) == held.naming(who("ana")) == principal("ana", tenant)
    assert held.naming(who(keyring.pseudonym("acme", "ben"))) is None
    assert held.naming(who(hidden, iss="https://other.example")) is None
    assert held.naming(who(hidden, tenant="globex")) is None, "a pseudonym of another tenant is somebody else"
    elsewhere = held.naming(who(keyring.pseudonym("globex", "ana"), tenant="globex"))
    assert (elsewhere is not None) is (tenant == "")
    held.remove("r1")
    assert held.naming(who(hidden)) is None


@pytest.mark.requirement("A9")
@pytest.mark.parametrize("tenant", ["acme", ""])
def test_who_was_revoked_by_pseudonym_is_refused_under_the_name(keyring: Keyring, tenant: str) -> None:
    """`[privacy]` may be switched off."""
    held = Revocations(keyring.pseudonym)
    held.add(principal(keyring.pseudonym("acme", "ana"), tenant))
    assert held.naming(who("ana")) is not None
    assert held.naming(who("ben")) is None
    assert held.naming(who("ana", tenant="globex")) is None
    held.remove("r1")
    assert held.naming(who("ana")) is None


@pytest.mark.parametrize("iss", ["", ISS])
def test_a_client_that_is_its_own_subject_is_found_either_way(keyring: Keyring, iss: str) -> None:
    """`Pseudonyms`: a client id is replaced where it is the subject."""
    hidden, held = keyring.pseudonym("acme", "bot"), Revocations(keyring.pseudonym)
    held.add(client("bot", "acme", iss))
    assert held.naming(who(hidden, hidden)) is not None
    assert held.naming(who("ana", "bot")) is not None
    held.remove("r1")
    held.add(client(hidden, "acme", iss))
    assert held.naming(who("bot", "bot")) is not None
    assert held.naming(who("ana", "bot")) is not None
    assert held.naming(who("ana", "desk")) is None


def test_the_pseudonyms_kept_are_of_so_many_tenants(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded; those left out are made again."""
    monkeypatch.setattr(module, "TENANTS_KEPT", 2)
    held = Revocations(keyring.pseudonym)
    held.add(principal("ana"))
    for tenant in ("a", "b", "c", "a", "c", "b"):
        assert held.naming(who(keyring.pseudonym(tenant, "ana"), tenant=tenant)) is not None
        assert len(held._by_alias) <= 2  # noqa: SLF001 - its bound  # pyright: ignore[reportPrivateUsage]
