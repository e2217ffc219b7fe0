"""Access tokens of configured issuers hold, or are refused for the true reason; keys come from the JWKS and only there.

Expectations come from RFC 7519 (claims), RFC 8725 (best practices), RFC 9068 (access tokens) and RFC 7517 (key sets).
"""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from tasktrail.events.authority import Verification
from tasktrail.events.errors import InvalidRequest
from tasktrail.services.access import tokens
from tasktrail.services.access.tokens import Issuer, Refusal, Tokens, Verified, judge, read_jwks
from tasktrail.services.configuration import ALGORITHMS
from tasktrail.testing.issuer import JWKS_PATH, LocalIssuer

AUDIENCE = "https://mcp.example/mcp"
NOW = 1_800_000_000
ISSUER = Issuer("https://id.example", "https://id.example/jwks.json", AUDIENCE)
KEY = ECKey.generate_key("P-256", {"use": "sig", "alg": "ES256", "kid": "one"})
JWKS = read_jwks(json.dumps({"keys": [KEY.as_dict(private=False)]}).encode())
CLAIMS = {"iss": ISSUER.url, "sub": "ana", "client_id": "cli", "aud": AUDIENCE, "iat": NOW, "exp": NOW + 300}
HEADER = {"alg": "ES256", "typ": "at+jwt", "kid": "one"}

LENIENT = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)


def signed(header: dict[str, Any] | None = None, key: Key = KEY, **claims: object) -> str:
    """A token with these members changed; those given as None are left out."""
    head = {name: value for name, value in {**HEADER, **(header or {})}.items() if value is not None}
    body = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(head, body, key, registry=LENIENT, default_type=None)


def raw(header: str, claims: str) -> str:
    """A token of exactly these texts, really signed."""
    signing = ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in (header, claims))
    signature = JWSRegistry.algorithms["ES256"].sign(signing.encode(), KEY)
    return f"{signing}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def verdict(token: str, issuer: Issuer = ISSUER, at: float = NOW) -> Verification:
    """What comes of it, `ok` when it holds."""
    found = judge(token, issuer, JWKS, at)
    return found.verification if isinstance(found, Refusal) else Verification.OK


def test_a_token_that_holds_says_who_by_which_key_from_which_key_set() -> None:
    """RFC 9068 section 4; design section 6: verified needs the key snapshot."""
    found = judge(signed(), ISSUER, JWKS, NOW + 0.5)
    assert isinstance(found, Verified)
    assert found.claims == CLAIMS
    assert (found.kid, found.jwks_sha256, found.verified_at_ms) == ("one", JWKS.sha256, NOW * 1000 + 500)


@pytest.mark.parametrize("kind", ["at+jwt", "AT+JWT", "application/at+jwt", "JWT"])
def test_both_types_of_access_token_are_taken(kind: str) -> None:
    """RFC 9068 section 2.1: at+jwt, with or without application/, in any case; JWT is what older issuers write."""
    assert verdict(signed({"typ": kind})) is Verification.OK


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"typ": None}, Verification.MALFORMED),
        ({"typ": "logout+jwt"}, Verification.MALFORMED),
        ({"typ": 7}, Verification.MALFORMED),
        ({"cty": "JWT"}, Verification.MALFORMED),
        ({"crit": ["exp"], "exp": 1}, Verification.MALFORMED),
        ({"b64": True}, Verification.MALFORMED),
        ({"kid": "two"}, Verification.BAD_SIGNATURE),
    ],
    ids=str,
)
def test_a_header_we_do_not_take_is_refused(changed: dict[str, Any], expected: Verification) -> None:
    """RFC 8725 sections 3.10 and 3.11; RFC 7515 section 4.1.11."""
    header = json.dumps({name: value for name, value in {**HEADER, **changed}.items() if value is not None})
    assert verdict(raw(header, json.dumps(CLAIMS))) is expected


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"iss": "https://evil.example"}, Verification.WRONG_ISSUER),
        ({"iss": "https://id.example/"}, Verification.WRONG_ISSUER),
        ({"iss": None}, Verification.WRONG_ISSUER),
        ({"iss": ["https://id.example"]}, Verification.WRONG_ISSUER),
        ({"aud": "https://other.example"}, Verification.WRONG_AUDIENCE),
        ({"aud": None}, Verification.WRONG_AUDIENCE),
        ({"aud": []}, Verification.WRONG_AUDIENCE),
        ({"aud": {"0": AUDIENCE}}, Verification.WRONG_AUDIENCE),
        ({"exp": None}, Verification.MALFORMED),
        ({"exp": "2100-01-01"}, Verification.MALFORMED),
        ({"exp": True}, Verification.MALFORMED),
        ({"exp": NOW}, Verification.EXPIRED),
        ({"exp": -1}, Verification.EXPIRED),
        ({"nbf": NOW + 61}, Verification.NOT_YET_VALID),
        ({"iat": NOW + 61}, Verification.NOT_YET_VALID),
        ({"nbf": "soon"}, Verification.MALFORMED),
        ({"sub": None}, Verification.MALFORMED),
        ({"sub": ""}, Verification.MALFORMED),
        ({"sub": "a" * 513}, Verification.MALFORMED),
        ({"sub": 5}, Verification.MALFORMED),
        ({"client_id": ["cli"]}, Verification.MALFORMED),
    ],
    ids=str,
)
def test_claims_that_do_not_hold_are_refused_for_the_true_reason(
    claims: dict[str, Any], expected: Verification
) -> None:
    """RFC 9068 section 4, RFC 7519 section 4.1."""
    assert verdict(signed(**claims)) is expected


@pytest.mark.parametrize("claims", [{"nbf": NOW + 60}, {"iat": NOW + 60}, {"exp": NOW + 0.5}, {"aud": ["x", AUDIENCE]}])
def test_clocks_may_differ_a_little_and_audiences_be_several(claims: dict[str, Any]) -> None:
    """RFC 7519 sections 4.1.3 and 4.1.5: some small leeway, a list of audiences."""
    assert verdict(signed(**claims)) is Verification.OK


def test_a_token_ends_at_its_expiry_to_the_second() -> None:
    """RFC 7519 section 4.1.4: on or after which it must not be accepted; no leeway is taken."""
    token = signed(exp=NOW + 300)
    assert verdict(token, at=NOW + 299.9) is Verification.OK
    assert verdict(token, at=NOW + 300) is Verification.EXPIRED


@pytest.mark.parametrize("header", [{"alg": "none"}, {"alg": "None"}, {"alg": ""}, {"alg": "HS256"}, {"alg": "XX"}])
def test_unsigned_and_symmetric_tokens_are_refused(header: dict[str, str]) -> None:
    """RFC 8725 section 3.1 and 3.2."""
    assert verdict(raw(json.dumps(HEADER | header), json.dumps(CLAIMS))) is Verification.BAD_SIGNATURE
    unsigned = raw(json.dumps(HEADER | header), json.dumps(CLAIMS)).rpartition(".")[0]
    assert verdict(f"{unsigned}.") is Verification.BAD_SIGNATURE


def test_the_public_key_is_no_hmac_secret() -> None:
    """RFC 8725 section 2.1: the confusion of algorithms."""
    signing = raw(json.dumps(HEADER | {"alg": "HS256"}), json.dumps(CLAIMS)).rpartition(".")[0]
    mac = hmac.digest(KEY.as_pem(private=False), signing.encode(), "sha256")
    forged = f"{signing}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
    assert verdict(forged) is Verification.BAD_SIGNATURE


def test_a_key_serves_only_its_own_algorithm() -> None:
    """RFC 8725 section 3.1: each key is used with exactly one algorithm."""
    rsa = RSAKey.generate_key(2048, {"kid": "rsa", "alg": "RS256", "use": "sig"})
    jwks = read_jwks(json.dumps({"keys": [rsa.as_dict(private=False)]}).encode())
    unbound = RSAKey.import_key({**rsa.as_dict(private=True), "alg": "PS256"})
    assert isinstance(judge(signed({"alg": "RS256", "kid": "rsa"}, rsa), ISSUER, jwks, NOW), Verified)
    assert isinstance(judge(signed({"alg": "PS256", "kid": "rsa"}, unbound), ISSUER, jwks, NOW), Refusal)


def test_an_issuer_can_be_held_to_fewer_algorithms() -> None:
    """RFC 8725 section 3.1: the caller says which algorithms it takes."""
    narrow = Issuer(ISSUER.url, ISSUER.jwks_url, AUDIENCE, ("RS256",))
    assert verdict(signed(), narrow) is Verification.BAD_SIGNATURE


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512", "Ed25519", "PS256", "RS256", "RS512"])
def test_every_family_of_algorithms_verifies(algorithm: str) -> None:
    """RFC 7518 section 3.1, RFC 9864."""
    curves = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
    key: Key
    if algorithm in curves:
        key = ECKey.generate_key(curves[algorithm], {"kid": "k"})
    elif algorithm == "Ed25519":
        key = OKPKey.generate_key("Ed25519", {"kid": "k"})
    else:
        key = RSAKey.generate_key(2048, {"kid": "k"})
    jwks = read_jwks(json.dumps({"keys": [key.as_dict(private=False)]}).encode())
    assert isinstance(judge(signed({"alg": algorithm, "kid": "k"}, key), ISSUER, jwks, NOW), Verified)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a",
        "..",
        "a.b.c",
        "e30.e30.",
        "é.é.é",
        "\ud800.a.b",
        f"{signed()}.{signed()}",
        f"{signed()}.x.y",
        f" {signed()}",
        f"{signed()}\n",
        f"{signed()}=",
        signed(padding="x" * tokens.TOKEN_MAX_BYTES),
        raw('{"alg":"ES256","typ":"JWT","kid":"one","kid":"one"}', json.dumps(CLAIMS)),
        raw(json.dumps(HEADER), json.dumps(CLAIMS)[:-1] + ',"sub":"bob"}'),
        raw(json.dumps(HEADER), '{"exp":NaN}'),
        raw(json.dumps(HEADER), "[" * 2000 + "]" * 2000),
        raw(json.dumps(HEADER), "[]"),
        raw(json.dumps(HEADER), '"text"'),
        raw("null", json.dumps(CLAIMS)),
    ],
    ids=lambda token: repr(token[:24]),
)
def test_what_is_no_signed_jwt_is_refused_and_never_quoted(token: str) -> None:
    """RFC 7519 section 7.2, with one meaning per text (no repeated members, no NaN), bounded in size and depth."""
    found = judge(token, ISSUER, JWKS, NOW)
    assert isinstance(found, Refusal)
    assert found.verification is not Verification.OK
    assert all(part not in found.why for part in token.split(".") if len(part) > 8)


@pytest.mark.parametrize("at", range(3))
def test_a_changed_part_breaks_the_signature(at: int) -> None:
    """RFC 7515 section 5.2: header, claims and signature belong together."""
    parts, others = signed().split("."), signed({"x": 1}, sub="bob").split(".")
    parts[at] = others[at]
    assert verdict(".".join(parts)) is Verification.BAD_SIGNATURE


TOKEN = signed()


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.tuples(st.integers(0, len(TOKEN)), st.characters()).map(lambda c: _replaced(*c)))
def test_no_other_text_verifies_and_none_breaks_the_verifier(token: str) -> None:
    """RFC 8725 section 3.3: every failure is a refusal, and one token has one spelling."""
    assert isinstance(judge(token, ISSUER, JWKS, NOW), Refusal) == (token != TOKEN)


def _replaced(at: int, character: str) -> str:
    return TOKEN[:at] + character + TOKEN[at + 1 :]


def test_keys_that_cannot_or_must_not_verify_are_left_out() -> None:
    """RFC 7517 section 5: ignore what is not understood; RFC 8725 section 3.5: no weak keys."""
    with pytest.warns(match="2048"):
        weak = RSAKey.generate_key(1024, {"kid": "weak"})
    listed = [
        KEY.as_dict(private=False),
        weak.as_dict(private=False),
        KEY.as_dict(private=True, kid="private"),
        {**KEY.as_dict(private=False), "kid": "enc", "use": "enc"},
        OctKey.import_key("a secret of some length").as_dict(private=True, kid="oct"),
        {"kty": "AKP", "kid": "post-quantum"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "no point"},
        {"kty": "RSA", "n": "!", "e": "AQAB", "kid": "no number"},
        {"kty": "EC"},
        {},
        None,
    ]
    found = read_jwks(json.dumps({"keys": listed}).encode())
    assert [key.kid for key in found.keys] == ["one"]


@pytest.mark.parametrize("document", [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": [], "keys": []}', b"\xff"])
def test_what_is_no_key_set_is_refused(document: bytes) -> None:
    """RFC 7517 section 5."""
    with pytest.raises(InvalidRequest):
        read_jwks(document)


def test_a_token_without_key_id_needs_the_only_key() -> None:
    """RFC 7515 section 4.1.4: kid is a hint; with one key none is needed, with several we do not guess."""
    other = ECKey.generate_key("P-256", {"kid": "two"})
    both = read_jwks(json.dumps({"keys": [KEY.as_dict(private=False), other.as_dict(private=False)]}).encode())
    token = signed({"kid": None})
    assert isinstance(judge(token, ISSUER, JWKS, NOW), Verified)
    assert isinstance(judge(token, ISSUER, both, NOW), Refusal)


@pytest.mark.parametrize(
    ("url", "algorithms"),
    [
        ("http://id.example/jwks.json", ("ES256",)),
        ("file:///etc/passwd", ("ES256",)),
        ("https://", ("ES256",)),
        ("jwks.json", ("ES256",)),
        ("https://id.example/jwks.json", ("HS256",)),
        ("https://id.example/jwks.json", ("none",)),
        ("https://id.example/jwks.json", ()),
    ],
)
def test_an_unsafe_configuration_is_refused(url: str, algorithms: tuple[str, ...]) -> None:
    """RFC 8414 section 2: keys come over TLS; RFC 8725 section 3.1: algorithms are chosen."""
    with pytest.raises(InvalidRequest):
        Issuer("https://id.example", url, AUDIENCE, algorithms)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def local() -> Iterator[LocalIssuer]:
    """Give a running issuer."""
    with LocalIssuer() as issuer:
        yield issuer


def configured(local: LocalIssuer, clock: Clock | None = None) -> Tokens:
    """A verifier of its tokens."""
    return Tokens([Issuer(local.url, local.jwks_url, AUDIENCE)], monotonic=clock or time.monotonic)


def held(found: Verified | Refusal) -> str:
    """`ok`, or why not."""
    return found.verification.value if isinstance(found, Refusal) else "ok"


async def test_keys_are_fetched_once_for_many_tokens_at_once(local: LocalIssuer) -> None:
    """RFC 9068 section 4: keys from the issuer's JWKS; one fetch at a time."""
    checking = configured(local)
    presented = [local.issue(f"user{n}", "cli", aud=AUDIENCE) for n in range(20)]
    found = await asyncio.gather(*(checking.verify(token) for token in presented))
    assert {held(one) for one in found} == {"ok"}
    assert local.fetches == {JWKS_PATH: 1}
    served = hashlib.sha256(local.answers[JWKS_PATH][1]).hexdigest()
    assert {one.jwks_sha256 for one in found if isinstance(one, Verified)} == {served}


async def test_keys_are_fetched_again_when_old(local: LocalIssuer) -> None:
    """A key that its issuer withdrew stops counting within the time a key set is kept."""
    clock = Clock()
    checking = configured(local, clock)
    token = local.issue("ana", "cli", aud=AUDIENCE)
    assert held(await checking.verify(token)) == "ok"
    local.rotate(keep=0)
    clock.s += tokens.FRESH_S - 1
    assert held(await checking.verify(token)) == "ok"
    clock.s += 1
    assert held(await checking.verify(token)) == "bad_signature"


async def test_a_new_key_is_found_at_once_and_unknown_ones_ask_rarely(local: LocalIssuer) -> None:
    """Rotation needs no restart; a stranger's invented key ids cost the issuer one request in thirty seconds."""
    clock = Clock()
    checking = configured(local, clock)
    assert held(await checking.verify(local.issue("ana", "cli", aud=AUDIENCE))) == "ok"
    local.rotate()
    assert held(await checking.verify(local.issue("ana", "cli", aud=AUDIENCE))) == "ok"
    assert local.fetches[JWKS_PATH] == 2
    for n in range(50):
        made_up = signed({"kid": f"made up {n}"}, iss=local.url)
        assert held(await checking.verify(made_up)) == "bad_signature"
    assert local.fetches[JWKS_PATH] == 2
    clock.s += tokens.AGAIN_S
    await asyncio.gather(*(checking.verify(signed({"kid": f"again {n}"}, iss=local.url)) for n in range(50)))
    assert local.fetches[JWKS_PATH] == 3


async def test_an_unreachable_issuer_is_forgiven_for_a_while(local: LocalIssuer) -> None:
    """Known keys serve through an outage, but not for ever; without any the token is not checked, so not accepted."""
    clock = Clock()
    checking = configured(local, clock)
    token = local.issue("ana", "cli", aud=AUDIENCE)
    assert held(await checking.verify(token)) == "ok"
    local.answers[JWKS_PATH] = (503, b"")
    clock.s += tokens.FRESH_S
    assert held(await checking.verify(token)) == "ok"
    clock.s += tokens.STALE_S
    assert held(await checking.verify(token)) == "not_checked"
    asked = local.fetches[JWKS_PATH]
    assert held(await checking.verify(token)) == "not_checked"
    assert local.fetches[JWKS_PATH] == asked, "asked again within five seconds"


@pytest.mark.parametrize(
    "answer",
    [
        (302, b"/elsewhere.json"),
        (500, b"{}"),
        (200, b"<html>"),
        (200, b"[" * 100_000),
        (200, b" " * (tokens.JWKS_MAX_BYTES + 1)),
    ],
    ids=["redirect", "error", "html", "deep", "large"],
)
async def test_an_issuer_that_answers_something_else_gives_no_keys(
    local: LocalIssuer, answer: tuple[int, bytes]
) -> None:
    """No redirect is followed, nothing large is read, nothing but a key set is taken."""
    local.answers["/elsewhere.json"] = local.answers[JWKS_PATH]
    local.answers[JWKS_PATH] = answer
    assert held(await configured(local).verify(local.issue("ana", "cli", aud=AUDIENCE))) == "not_checked"
    assert local.fetches == {JWKS_PATH: 1}


async def test_an_issuer_that_says_nothing_is_waited_for_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging issuer costs a caller `FETCH_S`, for all of its answer."""
    monkeypatch.setattr(tokens, "FETCH_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        checking = Tokens([Issuer(url, f"{url}/jwks.json", AUDIENCE)])
        began = time.monotonic()
        assert held(await checking.verify(signed(iss=url))) == "not_checked"
        assert time.monotonic() - began < 3


async def test_one_caller_who_leaves_takes_nobody_elses_answer(local: LocalIssuer) -> None:
    """Keys are fetched once for all who wait."""
    checking = configured(local)
    waiting = [asyncio.create_task(checking.verify(local.issue(who, "cli", aud=AUDIENCE))) for who in ("ana", "bob")]
    await asyncio.sleep(0)
    waiting[0].cancel()
    assert held(await waiting[1]) == "ok"
    assert local.fetches[JWKS_PATH] == 1


async def test_keys_that_a_token_brings_along_are_never_used(local: LocalIssuer) -> None:
    """RFC 8725 section 3.10: jku, x5u and jwk are claims of whoever made the token."""
    with LocalIssuer() as evil:
        header = {"jwk": evil.key.as_dict(private=False), "jku": evil.jwks_url, "x5u": evil.url, "kid": local.key.kid}
        token = signed(header, evil.key, iss=local.url, exp=int(time.time()) + 300, iat=None)
        assert held(await configured(local).verify(token)) == "bad_signature"
        assert held(await configured(local).verify(evil.issue("ana", "cli", aud=AUDIENCE))) == "wrong_issuer"
        assert not evil.fetches


async def test_a_held_token_is_taken_again_until_it_expires(local: LocalIssuer) -> None:
    """Design section 8: verification costs 57 µs, so verified tokens are kept by their digest until `exp`."""
    now = Clock()
    now.s = time.time()
    checking = Tokens([Issuer(local.url, local.jwks_url, AUDIENCE)], now=now)
    token = local.issue("ana", "cli", aud=AUDIENCE, ttl_s=100)
    first = await checking.verify(token)
    now.s += 90
    assert await checking.verify(token) is first
    now.s += 20
    assert held(await checking.verify(token)) == "expired"


async def test_few_verified_tokens_are_held(local: LocalIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, whoever presents how many tokens; the one used last stays."""
    monkeypatch.setattr(tokens, "TOKENS_MAX", 2)
    checking = configured(local)
    presented = [local.issue(f"user{n}", "cli", aud=AUDIENCE) for n in range(3)]
    first = await checking.verify(presented[0])
    await checking.verify(presented[1])
    assert await checking.verify(presented[0]) is first
    await checking.verify(presented[2])
    assert await checking.verify(presented[0]) is first


def test_an_issuer_is_configured_once() -> None:
    """Two answers to one question would be none."""
    with pytest.raises(InvalidRequest, match="twice"):
        Tokens([ISSUER, ISSUER])
