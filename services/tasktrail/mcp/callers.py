"""What the official SDK knows of a request, in tasktrail's words.

Guarantees: the token itself goes no further than its digest; connection and session ids are never used; JSON-RPC ids
that are text are replaced by their digest.

    caller(), call(ctx)
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, cast

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken, principal_components
from mcp.server.context import ServerRequestContext

from tasktrail.events.authority import Method, PrincipalKind
from tasktrail.services.clock import now_ms
from tasktrail.services.messages import HANDLE_MAX, ActorFacts, Call, Caller, CredentialFacts

WIRE = "mcp/2026-07-28"
TEXT_MAX = 512
_ACTORS_MAX = 8
_WORD_MAX = 128
_WORDS_MAX = 64
_WHOLE_MAX = 2**53 - 1
_DIGESTED = "sha256:"


def caller() -> Caller:
    """Who makes the current request, as the SDK's bearer check found; anonymous without one."""
    token = get_access_token()
    if token is None:
        return Caller()
    client_id, issuer, subject = principal_components(token)
    claims: Mapping[str, Any] = token.claims or {}
    return Caller(
        iss=_member(issuer),
        sub=_member(subject),
        client_id=_member(client_id),
        kind=PrincipalKind.MACHINE if subject in {None, client_id} else PrincipalKind.USER,
        credential=_credential(token, claims),
        actors=_actors(claims.get("act")),
    )


def _credential(token: AccessToken, claims: Mapping[str, Any]) -> CredentialFacts:
    ours = getattr(token, "jwks_sha256", None)
    return CredentialFacts(
        method=Method.JWT if token.token.count(".") == 2 else Method.OPAQUE,  # noqa: PLR2004 - header.claims.signature
        verified_by_tasktrail=ours is not None,
        verified_at_ms=_whole(getattr(token, "verified_at_ms", None)) or now_ms(),
        token_hash=digest(token.token),
        jti=_text(claims.get("jti")),
        aud=_texts(claims.get("aud")),
        scope=tuple(_text(scope) for scope in token.scopes[:64]),
        iat=_whole(claims.get("iat")),
        exp=_whole(token.expires_at or claims.get("exp")),
        auth_time=_whole(claims.get("auth_time")),
        acr=_text(claims.get("acr")),
        amr=_texts(claims.get("amr")),
        kid=_text(getattr(token, "kid", None)),
        jwks_sha256=_text(ours),
    )


def digest(token: str) -> str:
    """A token's `ath` (RFC 9449): base64url of its SHA-256, without padding."""
    raw = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _actors(act: object) -> tuple[ActorFacts, ...]:
    """The RFC 8693 `act` chain, outermost first."""
    chain: list[ActorFacts] = []
    while isinstance(act, Mapping) and len(chain) < _ACTORS_MAX:
        claims = cast("Mapping[str, object]", act)
        chain.append(ActorFacts(sub=_text(claims.get("sub")), iss=_text(claims.get("iss"))))
        act = claims.get("act")
    return tuple(chain)


def call(ctx: ServerRequestContext[Any, Any], method: str | None = None) -> Call:
    """The request at hand."""
    request: Any = ctx.request
    headers: Mapping[str, str] = getattr(request, "headers", None) or {}
    client = getattr(request, "client", None)
    meta: Mapping[str, Any] = cast("Mapping[str, Any]", ctx.meta or {})
    return Call(
        method=(method or ctx.method)[:TEXT_MAX],
        protocol_version=ctx.protocol_version[:TEXT_MAX],
        wire=WIRE,
        rpc_id=_rpc_id(ctx.request_id),
        traceparent=_text(meta.get("traceparent") or headers.get("traceparent")),
        address=_text(getattr(client, "host", None)),
        forwarded_for=_text(headers.get("x-forwarded-for")),
    )


def _rpc_id(request_id: object) -> str:
    if isinstance(request_id, int):
        return str(request_id)[:20]
    text = str(request_id or "")
    return f"{_DIGESTED}{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}" if text else ""


def _member(value: object) -> str:
    """A member of the identity, which is compared whole: what is not recorded as it is becomes its digest."""
    said = value if isinstance(value, str) else ""
    if said == _text(said) and not said.startswith(_DIGESTED):
        return said
    return _DIGESTED + hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def _text(value: object) -> str:
    return _clean(value)[:TEXT_MAX] if isinstance(value, str) else ""


def _clean(text: str) -> str:
    """The text without what JSON between services may not hold: lone surrogates and NUL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def handle_text(value: object) -> str:
    """A handle as it came, in a form that travels: what is no text, or no Unicode, names no task."""
    return _clean(value)[:HANDLE_MAX] if isinstance(value, str) else ""


def words(names: Iterable[object]) -> tuple[str, ...]:
    """Names that a client declared, as they are recorded."""
    return tuple(_text(name)[:_WORD_MAX] for name in list(names)[:_WORDS_MAX])


def _texts(value: object) -> tuple[str, ...]:
    many = cast("list[object]", value) if isinstance(value, list) else [value]
    return tuple(_text(one) for one in many[:64] if isinstance(one, str))


def _whole(value: object) -> int:
    """A number of the token as a whole one; 0 for what is none (NaN, infinite, past what JSON readers hold)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_WHOLE_MAX <= value <= _WHOLE_MAX:
        return 0
    return int(value)
