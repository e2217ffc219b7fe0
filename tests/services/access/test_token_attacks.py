"""The classic attacks on bearer JWTs: each refused, for the true reason, without a request to any address in the token.

A stranger holds everything public (issuer, key set, key ids, an old token) and a real server of its own, whose address
it writes wherever a token has room for one. Sources: RFC 8725 (JWT best practices), RFC 7515 section 10, RFC 9068
section 4, issue 3 (refused without any outbound fetch).
"""

import base64
import hmac
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwe, jwt
from joserfc.jwk import ECKey, OctKey
from joserfc.jws import JWSRegistry

from tasktrail.events.authority import Level, Verification, identity
from tasktrail.services.access import tokens
from tasktrail.services.access.callers import Callers, Channel
from tasktrail.services.access.rules import Rule
from tasktrail.services.configuration import ALGORITHMS, Issuer
from tasktrail.services.keyring import Keyring
from tasktrail.services.messages import Call, Caller
from tasktrail.services.settings import Settings
from tasktrail.testing.issuer import JWKS_PATH, LocalIssuer

AUDIENCE = "https://mcp.example/mcp"
KEYRING = Keyring(b"r" * 32, {1: b"s" * 32}, {1: b"w" * 32})
CHANNEL = Channel(server="reports", in_process=False)
LENIENT = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)


class Stranger:
    """Who attacks: what it knows of the true issuer, and its own key and server."""

    def __init__(self, true: LocalIssuer, evil: LocalIssuer) -> None:
        self.true, self.evil = true, evil
        self.public = true.key.as_dict(private=False)

    def header(self, **changed: object) -> dict[str, Any]:
        return {"alg": "ES256", "typ": "at+jwt", "kid": self.true.key.kid, **changed}

    def claims(self, **changed: object) -> dict[str, Any]:
        now = int(time.time())
        said = {"iss": self.true.url, "sub": "ana", "client_id": "cli", "aud": AUDIENCE, "iat": now, "exp": now + 300}
        return {name: value for name, value in {**said, **changed}.items() if value is not None}

    def forged(self, header: dict[str, Any] | None = None, key: ECKey | None = None, **claims: object) -> str:
        """Signed with the stranger's own key."""
        return jwt.encode(
            header or self.header(), self.claims(**claims), key or self.evil.key, registry=LENIENT, default_type=None
        )

    def stolen(self, header: dict[str, Any] | None = None, **claims: object) -> str:
        """Signed by the true issuer, for something else."""
        return self.forged(header, self.true.key, **claims)

    def unsigned(self, algorithm: str) -> str:
        return f"{part(self.header(alg=algorithm))}.{part(self.claims())}."

    def hmac_signed(self, secret: bytes, **header: object) -> str:
        signing = f"{part(self.header(alg='HS256', **header))}.{part(self.claims())}"
        return f"{signing}.{encoded(hmac.digest(secret, signing.encode(), 'sha256'))}"


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def part(said: object) -> str:
    return encoded((said if isinstance(said, str) else json.dumps(said)).encode())


def resigned(stranger: Stranger, header: str, claims: str) -> str:
    """Exactly these texts, really signed by the true issuer's key."""
    signing = f"{part(header)}.{part(claims)}"
    return f"{signing}.{encoded(JWSRegistry.algorithms['ES256'].sign(signing.encode(), stranger.true.key))}"


def encrypted(stranger: Stranger) -> str:
    """A JWE to nobody in particular, in which a signed JWT is nested (RFC 7519 appendix A.2)."""
    header = {"alg": "dir", "enc": "A128CBC-HS256", "cty": "JWT", "typ": "JWT", "jku": stranger.evil.jwks_url}
    registry = jwe.JWERegistry(algorithms=["dir", "A128CBC-HS256"], strict_check_header=False)
    return jwe.encrypt_compact(header, stranger.forged().encode(), OctKey.import_key(b"k" * 32), registry=registry)


FORGED, MALFORMED = Verification.BAD_SIGNATURE, Verification.MALFORMED
WRONG_ISSUER, FUTURE = Verification.WRONG_ISSUER, Verification.NOT_YET_VALID

Attack = Callable[[Stranger], str]
ATTACKS: dict[str, tuple[Verification, Attack]] = {
    "none": (FORGED, lambda s: s.unsigned("none")),
    "nOnE": (FORGED, lambda s: s.unsigned("nOnE")),
    "no alg": (MALFORMED, lambda s: f"{part({'typ': 'at+jwt'})}.{part(s.claims())}."),
    "signature left out": (FORGED, lambda s: s.unsigned("ES256")),
    "signature of zeros": (FORGED, lambda s: s.unsigned("ES256") + encoded(bytes(64))),
    "public key as HMAC secret, PEM": (FORGED, lambda s: s.hmac_signed(s.true.key.as_pem(private=False))),
    "public key as HMAC secret, DER": (FORGED, lambda s: s.hmac_signed(s.true.key.as_der(private=False))),
    "public key as HMAC secret, JWK": (FORGED, lambda s: s.hmac_signed(json.dumps(s.public).encode())),
    "key set as HMAC secret": (FORGED, lambda s: s.hmac_signed(s.true.answers[JWKS_PATH][1])),
    "kid is a file": (FORGED, lambda s: s.hmac_signed(b"", kid="../../../../../../dev/null")),
    "kid is SQL": (FORGED, lambda s: s.hmac_signed(b"secret", kid="x' UNION SELECT 'secret' --")),
    "kid is a command": (FORGED, lambda s: s.forged(s.header(kid="x|curl " + s.evil.url))),
    "kid is an address": (FORGED, lambda s: s.forged(s.header(kid=s.evil.jwks_url))),
    "kid is a file's address": (FORGED, lambda s: s.forged(s.header(kid="file:///dev/null"))),
    "kid is a list": (
        MALFORMED,
        lambda s: resigned(s, json.dumps(s.header(kid=[s.true.key.kid])), json.dumps(s.claims())),
    ),
    "kid is empty": (FORGED, lambda s: s.forged(s.header(kid=""))),
    "jwk": (FORGED, lambda s: s.forged(s.header(jwk=s.evil.key.as_dict(private=False)))),
    "jwk with the true kid": (
        FORGED,
        lambda s: s.forged(s.header(jwk={**s.evil.key.as_dict(private=False), "kid": s.true.key.kid})),
    ),
    "jku": (FORGED, lambda s: s.forged(s.header(jku=s.evil.jwks_url, kid=s.evil.key.kid))),
    "jku behind the true host": (
        FORGED,
        lambda s: s.forged(s.header(jku=f"{s.true.url}@{s.evil.url.removeprefix('http://')}/jwks.json")),
    ),
    "x5u": (FORGED, lambda s: s.forged(s.header(x5u=s.evil.url + "/chain.pem"))),
    "x5c": (FORGED, lambda s: s.forged(s.header(x5c=["MIIB"]))),
    "its own issuer": (WRONG_ISSUER, lambda s: s.evil.issue("ana", "cli", aud=AUDIENCE)),
    "issuer of a look-alike digit": (WRONG_ISSUER, lambda s: s.forged(iss=s.true.url.replace("1", "\uff11", 1))),
    "issuer with an invisible character": (WRONG_ISSUER, lambda s: s.forged(iss=s.true.url + "\u200b")),
    "issuer look-alike, truly signed": (WRONG_ISSUER, lambda s: s.stolen(iss=s.true.url.replace("h", "\u04bb", 1))),
    "issuer in capitals": (WRONG_ISSUER, lambda s: s.stolen(iss=s.true.url.upper())),
    "issuer with a slash": (WRONG_ISSUER, lambda s: s.stolen(iss=s.true.url + "/")),
    "issuer with the other's host": (
        WRONG_ISSUER,
        lambda s: s.forged(iss=f"{s.true.url}@{s.evil.url.removeprefix('http://')}"),
    ),
    "two issuers": (WRONG_ISSUER, lambda s: s.stolen(iss=[s.true.url, s.evil.url])),
    "for another audience": (Verification.WRONG_AUDIENCE, lambda s: s.stolen(aud="https://other.example")),
    "for a longer audience": (Verification.WRONG_AUDIENCE, lambda s: s.stolen(aud=AUDIENCE + ".evil.example")),
    "for no audience": (Verification.WRONG_AUDIENCE, lambda s: s.stolen(aud=None)),
    "an id token": (MALFORMED, lambda s: s.stolen(s.header(typ="id_token+jwt"))),
    "a logout token": (MALFORMED, lambda s: s.stolen(s.header(typ="logout+jwt"))),
    "no type": (MALFORMED, lambda s: s.stolen({"alg": "ES256", "kid": s.true.key.kid})),
    "expired": (Verification.EXPIRED, lambda s: s.stolen(exp=int(time.time()) - 1)),
    "no expiry": (MALFORMED, lambda s: s.stolen(exp=None)),
    "expiry as text": (MALFORMED, lambda s: s.stolen(exp="9999999999")),
    "not yet": (FUTURE, lambda s: s.stolen(nbf=int(time.time()) + 3600)),
    "issued in the future": (FUTURE, lambda s: s.stolen(iat=int(time.time()) + 3600)),
    "oversized": (MALFORMED, lambda s: s.stolen(padding="x" * tokens.TOKEN_MAX_BYTES)),
    "oversized header": (MALFORMED, lambda s: s.stolen(s.header(x="x" * tokens.TOKEN_MAX_BYTES))),
    "long subject": (MALFORMED, lambda s: s.stolen(sub="a" * 513)),
    "encrypted": (MALFORMED, encrypted),
    "nested in a signed one": (MALFORMED, lambda s: s.stolen(s.header(cty="JWT"))),
    "critical header": (MALFORMED, lambda s: s.stolen(s.header(crit=["jku"], jku=s.evil.jwks_url))),
    "compressed": (MALFORMED, lambda s: s.stolen(s.header(zip="DEF"))),
    "a claim twice": (
        MALFORMED,
        lambda s: resigned(s, json.dumps(s.header()), json.dumps(s.claims())[:-1] + ', "sub": "root"}'),
    ),
    "a claim twice, escaped": (
        MALFORMED,
        lambda s: resigned(s, json.dumps(s.header()), json.dumps(s.claims())[:-1] + ', "s\\u0075b": "root"}'),
    ),
    "a header twice": (
        MALFORMED,
        lambda s: resigned(s, json.dumps(s.header())[:-1] + ', "alg": "none"}', json.dumps(s.claims())),
    ),
    "claims of another token": (
        FORGED,
        lambda s: ".".join([*s.stolen().split(".")[:1], part(s.claims(sub="root")), s.stolen().split(".")[2]]),
    ),
}


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    """Give a stranger, with a server of its own that counts what it is asked."""
    with LocalIssuer() as true, LocalIssuer() as evil:
        yield Stranger(true, evil)


def defended(stranger: Stranger, folder: Path) -> Callers:
    """An installation that takes the true issuer's tokens: signed ones by its keys, opaque ones by introspection."""
    issuer = Issuer(
        url=stranger.true.url,
        audience=(AUDIENCE,),
        jwks_url=stranger.true.jwks_url,
        introspection_url=stranger.true.introspection_url,
        introspection_client_id=stranger.true.client_id,
        introspection_secret_file=str(stranger.true.secret_file(folder)),
        tenant="acme",
    )
    return Callers(Settings(issuers=(issuer,)), KEYRING)


@pytest.mark.requirement("A1", "A5")
@pytest.mark.parametrize("attack", ATTACKS)
async def test_it_is_refused_and_nobody_it_names_is_asked(stranger: Stranger, tmp_path: Path, attack: str) -> None:
    """Issue 3, what it must show: refused without any outbound fetch; what it claimed is recorded as claimed."""
    expected, forge = ATTACKS[attack]
    callers = defended(stranger, tmp_path)
    token = forge(stranger)
    authority, refused = await callers.authority(Caller(token=token), Call(method="tasks/get"), CHANNEL)
    await callers.close()
    assert refused is Rule.TOKEN_REFUSED
    assert authority.credential is not None
    assert authority.credential.verification is expected
    assert not stranger.evil.fetches, "an address from the token was contacted"
    assert set(stranger.true.fetches) <= {JWKS_PATH}, "a signed token was sent somewhere"
    assert authority.tenant == "default"
    mine = identity(authority)
    assert (mine.iss, mine.sub, mine.client_id) == ("", "", "")
    assert authority.credential.level is Level.CLAIMED


async def test_the_true_tokens_hold(stranger: Stranger, tmp_path: Path) -> None:
    """Without this the rest would prove nothing."""
    callers = defended(stranger, tmp_path)
    for token in (stranger.stolen(), stranger.true.issue_opaque("ana", "cli", aud=AUDIENCE)):
        authority, refused = await callers.authority(Caller(token=token), Call(method="tasks/get"), CHANNEL)
        assert refused is None
        assert identity(authority).sub == "ana"
    await callers.close()
    assert not stranger.evil.fetches
