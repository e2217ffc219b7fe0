"""The SDK's bearer check with tasktrail's verification behind it. Sources: RFC 9068, RFC 8707, the SDK itself.

`None` is what the SDK turns into 401.
"""

import hashlib
import logging
from collections.abc import Iterator

import pytest
from mcp.server.auth.provider import TokenVerifier, principal_components

from tasktrail.mcp.verifier import Issuer, JwtVerifier, VerifiedToken
from tasktrail.testing.issuer import JWKS_PATH, LocalIssuer

AUDIENCE = "http://127.0.0.1:8000/mcp"


@pytest.fixture
def issuer() -> Iterator[LocalIssuer]:
    """Give a running issuer."""
    with LocalIssuer() as running:
        yield running


def verifier(issuer: LocalIssuer) -> TokenVerifier:
    """A verifier of its tokens, as the SDK sees it."""
    return JwtVerifier([Issuer(issuer.url, issuer.jwks_url, AUDIENCE)])


@pytest.mark.requirement("A5")
async def test_a_verified_token_carries_its_evidence(issuer: LocalIssuer) -> None:
    """Design section 6: verified means signature verified, key snapshot held."""
    token = issuer.issue("ana", "cli", "tasks:read tasks:write", aud=["x", AUDIENCE], act={"sub": "agent"})
    found = await verifier(issuer).verify_token(token)
    assert isinstance(found, VerifiedToken)
    assert principal_components(found) == ("cli", issuer.url, "ana")
    assert (found.scopes, found.resource) == (["tasks:read", "tasks:write"], AUDIENCE)
    assert found.kid == issuer.key.kid
    assert found.jwks_sha256 == hashlib.sha256(issuer.answers[JWKS_PATH][1]).hexdigest()
    assert found.verified_at_ms > 0
    assert found.claims is not None
    assert found.claims["act"] == {"sub": "agent"}
    assert found.expires_at == found.claims["exp"]


@pytest.mark.parametrize(
    ("claims", "client_id", "scopes"),
    [
        ({"client_id": None, "azp": "portal"}, "portal", []),
        ({"client_id": None}, "", []),
        ({"scope": None, "scp": ["a", "b"]}, "cli", ["a", "b"]),
        ({"scope": None, "scp": "a b"}, "cli", ["a", "b"]),
        ({"scope": 5}, "cli", []),
    ],
    ids=str,
)
async def test_the_spellings_of_other_issuers_are_read(
    issuer: LocalIssuer, claims: dict[str, object], client_id: str, scopes: list[str]
) -> None:
    """OpenID Connect Core section 2 (`azp`); a list `scp` is what some issuers write for `scope`."""
    given: dict[str, object] = {"client_id": "cli", "scope": "", **claims}
    token = issuer.issue("ana", aud=AUDIENCE, **given)  # type: ignore[arg-type]  # None leaves a claim out
    found = await verifier(issuer).verify_token(token)
    assert found is not None
    assert (found.client_id, found.scopes) == (client_id, scopes)


async def test_a_refused_token_is_none_and_its_text_in_no_log(
    issuer: LocalIssuer, caplog: pytest.LogCaptureFixture
) -> None:
    """The SDK answers 401 to None; R4: no token is stored, a log included."""
    caplog.set_level(logging.DEBUG, "tasktrail")
    token = issuer.issue("ana", "cli", aud="https://elsewhere.example")
    assert await verifier(issuer).verify_token(token) is None
    assert "wrong_audience" in caplog.text
    assert all(part not in caplog.text for part in token.split("."))
