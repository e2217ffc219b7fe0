"""JWT access tokens of configured issuers: verified (RFC 7519, 8725, 9068), or refused with what was wrong.

Guarantees: only issuers named in the configuration, only their allow-listed asymmetric algorithms, only keys from their
configured JWKS address: `jku`, `x5u`, `x5c` and `jwk` of a token are never used. `iss`, `aud`, `exp` and `sub` are
required; a token counts until `exp` and not a second longer, `nbf` and `iat` may be `skew_s` ahead of our clock. A
refusal never quotes the token. Memory and requests are bounded: `TOKENS_MAX` verified tokens are kept, a key set for
`FRESH_S`, and unknown key ids ask an issuer at most once in `AGAIN_S`, however many tokens name one.

`judge`, `read_jwks` and `reading` are pure; `Tokens` adds the fetching. Needs joserfc, httpx and a running event loop.

    tokens = Tokens([Issuer("https://id.example", "https://id.example/jwks.json", "https://mcp.example/mcp")])
    verdict = await tokens.verify(token)  # Verified | Refusal
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.util import urlsafe_b64decode

from tasktrail.events.authority import Verification
from tasktrail.events.errors import InvalidRequest
from tasktrail.services import strict_json
from tasktrail.services.addresses import is_loopback
from tasktrail.services.configuration import ALGORITHMS

_log = logging.getLogger(__name__)

TYPES = frozenset({"at+jwt", "application/at+jwt", "jwt"})
"""Accepted `typ` headers (RFC 9068 section 2.1), in lower case."""

TOKEN_MAX_BYTES = 16 * 1024
JWKS_MAX_BYTES = 256 * 1024
KEYS_MAX = 100
TOKENS_MAX = 4096
TEXT_MAX = 512
"""The longest `iss`, `sub` and `client_id` taken: they are compared whole, never cut."""

SKEW_S = 60.0
FETCH_S = 5.0
FRESH_S = 600.0
AGAIN_S = 30.0
RETRY_S = 5.0
STALE_S = 3600.0
"""How long the last key set serves while its issuer cannot be reached."""

_HEADER_MAX_BYTES = 8 * 1024
_RSA_BITS = range(2048, 6145)
_DEPTH_MAX = 16


class Issuer(msgspec.Struct, frozen=True):
    """An issuer whose tokens are accepted: its `iss`, where its keys are, and the audience that is us, or several.

    `skew_s` None: the verifier's own.

    Raises:
        InvalidRequest: the JWKS address is neither https nor http on the loopback interface, or an algorithm is none of
            `ALGORITHMS`.
    """

    url: str
    jwks_url: str
    audience: str | tuple[str, ...]
    algorithms: tuple[str, ...] = ALGORITHMS
    skew_s: float | None = None

    def __post_init__(self) -> None:
        if not self.url or not self.audiences or not all(self.audiences):
            message = f"issuer {self.url!r} with audience {self.audience!r}: both must be given"
            raise InvalidRequest(message)
        check_address(self.jwks_url, f"JWKS address of {self.url}")
        wrong = sorted(set(self.algorithms) - set(ALGORITHMS))
        if wrong or not self.algorithms:
            message = f"algorithms {wrong or 'none'} of {self.url}: choose among {', '.join(ALGORITHMS)}"
            raise InvalidRequest(message)

    @property
    def audiences(self) -> tuple[str, ...]:
        """Each `aud` that is us."""
        return (self.audience,) if isinstance(self.audience, str) else self.audience


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """A token that holds: its claims, the key that signed it, and the digest of the key set that key came from."""

    claims: dict[str, Any]
    kid: str
    jwks_sha256: str
    verified_at_ms: int


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A token that does not hold. `why` is for people and never quotes it."""

    verification: Verification
    why: str


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a token says before anything of it is proved."""

    algorithm: str
    kid: str
    claims: dict[str, Any]


class Jwks(msgspec.Struct, frozen=True, kw_only=True):
    """The usable public keys of one fetched document, in its order, and its SHA-256."""

    sha256: str
    keys: tuple[Key, ...]

    def matching(self, kid: str) -> tuple[Key, ...]:
        """The keys with this id; without an id the only key there is."""
        if kid:
            return tuple(key for key in self.keys if key.kid == kid)
        return self.keys if len(self.keys) == 1 else ()


def check_address(url: str, what: str) -> None:
    """Refuse an address that others could read or answer along the way.

    Raises:
        InvalidRequest: it is neither https nor http on the loopback interface.
    """
    try:
        address = urlsplit(url)
        host, scheme = address.hostname, address.scheme
    except ValueError:
        host = scheme = ""
    if not host or scheme not in ({"http", "https"} if is_loopback(host) else {"https"}):
        message = f"{what}: {url!r}: give https, or http on the loopback interface"
        raise InvalidRequest(message)


def _refusal(verification: Verification, why: str) -> Refusal:
    return Refusal(verification=verification, why=why)


def is_jwt(token: str) -> bool:
    """Whether a token is of the JOSE family: then it is judged as a signed JWT, whatever is wrong with it."""
    head, dot, _ = token[:TOKEN_MAX_BYTES].partition(".")
    try:
        return bool(dot) and urlsafe_b64decode(head.encode()).lstrip()[:1] == b"{"
    except ValueError:
        return False


_REGISTRY = jws.JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
_REGISTRY.max_header_length = _HEADER_MAX_BYTES


def reading(token: str) -> Reading | Refusal:  # noqa: PLR0911 - one return per refusal
    """What a token of the one accepted form (a signed JWT in compact form) says, unproved."""
    if not token:
        return _refusal(Verification.MISSING, "there is no token")
    if len(token) > TOKEN_MAX_BYTES or not token.isascii():
        return _refusal(Verification.MALFORMED, f"a token is ASCII of at most {TOKEN_MAX_BYTES} bytes")
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - header.claims.signature
        return _refusal(Verification.MALFORMED, "a signed JWT has three parts; encrypted ones are not taken")
    header, claims = (_object(part) for part in parts[:2])
    if header is None or claims is None:
        return _refusal(Verification.MALFORMED, "header and claims are base64url of one JSON object each")
    kind, algorithm, kid = header.get("typ"), header.get("alg"), header.get("kid", "")
    if not isinstance(kind, str) or kind.lower() not in TYPES:
        return _refusal(Verification.MALFORMED, "typ is neither at+jwt nor JWT")
    if not header.keys().isdisjoint({"crit", "b64", "cty", "enc", "zip"}):
        return _refusal(Verification.MALFORMED, "nested, detached and critical-header tokens are not taken")
    if not isinstance(algorithm, str) or not isinstance(kid, str):
        return _refusal(Verification.MALFORMED, "alg and kid are texts")
    return Reading(algorithm=algorithm, kid=kid, claims=claims)


def _object(part: str) -> dict[str, Any] | None:
    """A part as the JSON object it is, or None."""
    try:
        value = strict_json.decode(urlsafe_b64decode(part.encode()), bytes_max=TOKEN_MAX_BYTES, depth_max=_DEPTH_MAX)
    except (ValueError, InvalidRequest):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def read_jwks(document: bytes) -> Jwks:
    """The keys of a JWKS (RFC 7517) that can verify: those of unknown kinds, secret or too weak ones are left out.

    Raises:
        InvalidRequest: it is no JWKS.
    """
    said = strict_json.decode(document, bytes_max=JWKS_MAX_BYTES, depth_max=_DEPTH_MAX)
    listed = cast("dict[str, object]", said).get("keys") if isinstance(said, dict) else None
    if not isinstance(listed, list):
        message = "a JWKS is an object with the array `keys`"
        raise InvalidRequest(message)
    found = (_key(one) for one in cast("list[object]", listed)[:KEYS_MAX])
    return Jwks(sha256=hashlib.sha256(document).hexdigest(), keys=tuple(key for key in found if key is not None))


def _key(said: object) -> Key | None:
    members = cast("dict[str, Any]", said) if isinstance(said, dict) else {}
    if "d" in members or members.get("use", "sig") != "sig":
        return None
    try:
        match members.get("kty"):
            case "EC":
                return ECKey.import_key(members)
            case "OKP":
                return OKPKey.import_key(members)
            case "RSA" if _rsa_bits(members) in _RSA_BITS:
                return RSAKey.import_key(members)
            case _:
                return None
    except (JoseError, ValueError, TypeError, KeyError):
        return None


def _rsa_bits(members: Mapping[str, Any]) -> int:
    return int.from_bytes(urlsafe_b64decode(str(members.get("n")).encode())).bit_length()


def judge(token: str, issuer: Issuer, jwks: Jwks, now_s: float, skew_s: float = SKEW_S) -> Verified | Refusal:
    """Whether a token of this issuer holds at `now_s` (epoch seconds): signature first, then its claims.

    `skew_s` counts for issuers without one of their own.
    """
    said = reading(token)
    if isinstance(said, Refusal):
        return said
    if said.claims.get("iss") != issuer.url:
        return _refusal(Verification.WRONG_ISSUER, "the issuer is not the one whose keys these are")
    if said.algorithm not in issuer.algorithms:
        return _refusal(Verification.BAD_SIGNATURE, "the algorithm is not one this issuer signs with")
    key = next((key for key in jwks.matching(said.kid) if _signed_by(token, key)), None)
    if key is None:
        return _refusal(Verification.BAD_SIGNATURE, "no key of the issuer made this signature")
    fault = claims_fault(said.claims, issuer.audiences, now_s, skew_s if issuer.skew_s is None else issuer.skew_s)
    if fault is not None:
        return fault
    return Verified(
        claims=said.claims, kid=said.kid or key.kid or "", jwks_sha256=jwks.sha256, verified_at_ms=int(now_s * 1000)
    )


def _signed_by(token: str, key: Key) -> bool:
    try:
        jws.deserialize_compact(token, key, registry=_REGISTRY)
    except (JoseError, ValueError, TypeError):
        return False
    return True


def claims_fault(
    claims: Mapping[str, Any], audiences: tuple[str, ...], now_s: float, skew_s: float, *, opaque: bool = False
) -> Refusal | None:
    """What is wrong with the claims at `now_s`, if anything is.

    `opaque`: they are an introspection's answer (RFC 7662 section 2.2), in which `sub` and `exp` may be missing.
    """
    names = [claims.get(name, "-") for name in ("client_id", "azp")]
    names.append(claims.get("sub", "-" if opaque else None))
    if not all(_is_name(name) for name in names):
        return _refusal(Verification.MALFORMED, f"sub and client_id are texts of 1 to {TEXT_MAX} characters")
    audience = claims.get("aud")
    said = cast("list[object]", audience) if isinstance(audience, list) else [audience]
    if not any(one in said for one in audiences):
        return _refusal(Verification.WRONG_AUDIENCE, "the token is for another audience")
    times = {name: claims.get(name) for name in ("exp", "nbf", "iat")}
    if (times["exp"] is None and not opaque) or any(not _is_date(value) for value in times.values()):
        return _refusal(Verification.MALFORMED, "exp, nbf and iat are numbers, and exp is there")
    if times["exp"] is not None and now_s >= times["exp"]:
        return _refusal(Verification.EXPIRED, "the token has expired")
    if max(times["nbf"] or 0, times["iat"] or 0) > now_s + skew_s:
        return _refusal(Verification.NOT_YET_VALID, "the token is from the future; compare the clocks")
    return None


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= TEXT_MAX


def _is_date(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


class _Keys:
    """One issuer's key set: fetched when needed, by one request at a time."""

    def __init__(self, issuer: Issuer, monotonic: Callable[[], float]) -> None:
        self.issuer = issuer
        self._monotonic = monotonic
        self._jwks: Jwks | None = None
        self._fetched = self._asked = self._sought = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    async def current(self, kid: str = "") -> Jwks | None:
        """The issuer's keys, refreshed when old, or when none has this id; None when they cannot be had."""
        if self._must_ask(kid):
            if self._fetching is None:
                self._fetching = asyncio.create_task(self._refresh(), name="jwks")
            await asyncio.shield(self._fetching)  # one caller going away leaves the others their answer
        return self._jwks if self._monotonic() - self._fetched < STALE_S else None

    def _must_ask(self, kid: str) -> bool:
        now = self._monotonic()
        if self._jwks is None or now - self._fetched >= FRESH_S:
            return self._fetching is not None or now - self._asked >= RETRY_S
        if not kid or self._jwks.matching(kid):
            return False
        if self._fetching is None and now - self._sought < AGAIN_S:
            return False
        self._sought = now
        return True

    async def _refresh(self) -> None:
        self._asked = self._monotonic()
        try:
            self._jwks = read_jwks(await _fetched(self.issuer.jwks_url))
            self._fetched = self._monotonic()
        except (httpx.HTTPError, httpx.InvalidURL, InvalidRequest, TimeoutError) as error:
            _log.warning("no keys from %s: %s", self.issuer.jwks_url, str(error) or type(error).__name__)
        finally:
            self._fetching = None


async def _fetched(url: str) -> bytes:
    """The document at `url`: one request, no redirect, `FETCH_S` for all of it, `JWKS_MAX_BYTES` at most.

    Raises:
        httpx.HTTPError, httpx.InvalidURL, TimeoutError: it does not answer.
        InvalidRequest: it answers something else than a document of that size.
    """
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    proxied = not is_loopback(urlsplit(url).hostname)
    document = bytearray()
    async with (
        asyncio.timeout(FETCH_S),
        httpx.AsyncClient(timeout=FETCH_S, trust_env=proxied) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        if response.status_code != HTTPStatus.OK:
            message = f"it answered {response.status_code}"
            raise InvalidRequest(message)
        async for chunk in response.aiter_raw():  # raw: nothing is decompressed
            document += chunk
            if len(document) > JWKS_MAX_BYTES:
                message = f"it answered more than {JWKS_MAX_BYTES} bytes"
                raise InvalidRequest(message)
    return bytes(document)


class Tokens:
    """Verifies tokens of the configured issuers, with their current keys."""

    def __init__(
        self,
        issuers: Iterable[Issuer],
        *,
        skew_s: float = SKEW_S,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._skew_s, self._now = skew_s, now
        self._keys: dict[str, _Keys] = {}
        for issuer in issuers:
            if issuer.url in self._keys:
                message = f"issuer {issuer.url} is configured twice"
                raise InvalidRequest(message)
            self._keys[issuer.url] = _Keys(issuer, monotonic)
        self._held: OrderedDict[bytes, Verified] = OrderedDict()

    async def verify(self, token: str) -> Verified | Refusal:
        """What this token proves now. One that held before is taken again, until it expires or its key set changes."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        held = self._held.get(digest)
        if held is not None:
            jwks = await self._keys[held.claims["iss"]].current()
            if jwks is not None and jwks.sha256 == held.jwks_sha256 and self._now() < held.claims["exp"]:
                self._held.move_to_end(digest)
                return held
            self._held.pop(digest, None)
        verdict = await self._judged(token)
        if isinstance(verdict, Verified):
            self._held[digest] = verdict
            while len(self._held) > TOKENS_MAX:
                self._held.popitem(last=False)
        return verdict

    async def _judged(self, token: str) -> Verified | Refusal:
        said = reading(token)
        if isinstance(said, Refusal):
            return said
        iss = said.claims.get("iss")
        keys = self._keys.get(iss) if isinstance(iss, str) else None
        if keys is None:
            return _refusal(Verification.WRONG_ISSUER, "the issuer is not one of those configured")
        jwks = await keys.current(said.kid)
        if jwks is None:
            return _refusal(Verification.NOT_CHECKED, "the issuer's keys cannot be had; try again later")
        return judge(token, keys.issuer, jwks, self._now(), self._skew_s)
