"""What the official SDK knows of a request, in tasktrail's words.

Guarantees: the token goes no further than its digest, unless it is forwarded for tasktrail to verify; connection and
session ids are never used; JSON-RPC ids that are text are replaced by their digest.

    caller(), caller(forward=True), call(ctx)
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken, principal_components
from mcp.server.context import ServerRequestContext

from tasktrail.events.authority import Method
from tasktrail.services.access.claims import (
    DIGESTED,
    TEXT_MAX,
    WORDS_MAX,
    Who,
    actors,
    clean,
    credential,
    digest,
    member,
    text,
    whole,
)
from tasktrail.services.clock import now_ms
from tasktrail.services.messages import HANDLE_MAX, Call, Caller, CredentialFacts

__all__ = ["WIRE", "call", "caller", "digest", "handle_text", "method_of", "vouched_by_sdk", "words"]

WIRE = "mcp/2026-07-28"
_WORD_MAX = 128


def caller(*, forward: bool = False) -> Caller:
    """Who makes the current request, as the SDK's bearer check found; anonymous without one.

    `forward`: give tasktrail the token itself to verify, and nothing of what was found here.
    """
    token = get_access_token()
    if token is None:
        return Caller()
    return Caller(token=token.token) if forward else vouched_by_sdk(token)


def vouched_by_sdk(token: AccessToken) -> Caller:
    """Who an access token that the server's verifier accepted names."""
    client_id, issuer, subject = principal_components(token)
    who = Who(member(issuer), member(subject), member(client_id))
    claims: Mapping[str, Any] = token.claims or {}
    return Caller(
        iss=who.iss,
        sub=who.sub,
        client_id=who.client_id,
        kind=who.kind,
        credential=_credential(token, claims),
        actors=actors(claims.get("act")),
    )


def method_of(token: str) -> Method:
    """What kind of bearer token this looks like."""
    return Method.JWT if token.count(".") == 2 else Method.OPAQUE  # noqa: PLR2004 - header.claims.signature


def _credential(token: AccessToken, claims: Mapping[str, Any]) -> CredentialFacts:
    ours = getattr(token, "jwks_sha256", None)
    return msgspec.structs.replace(
        credential(token.token, claims, method_of(token.token)),
        verified_by_tasktrail=ours is not None,
        verified_at_ms=whole(getattr(token, "verified_at_ms", None)) or now_ms(),
        scope=tuple(text(scope) for scope in token.scopes[:WORDS_MAX]),
        exp=whole(token.expires_at or claims.get("exp")),
        kid=text(getattr(token, "kid", None)),
        jwks_sha256=text(ours),
    )


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
        traceparent=text(meta.get("traceparent") or headers.get("traceparent")),
        address=text(getattr(client, "host", None)),
        forwarded_for=text(headers.get("x-forwarded-for")),
    )


def _rpc_id(request_id: object) -> str:
    if isinstance(request_id, int):
        return str(request_id)[:20]
    said = str(request_id or "")
    return f"{DIGESTED}{hashlib.sha256(said.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}" if said else ""


def handle_text(value: object) -> str:
    """A handle as it came, in a form that travels: what is no text, or no Unicode, names no task."""
    return clean(value)[:HANDLE_MAX] if isinstance(value, str) else ""


def words(names: Iterable[object]) -> tuple[str, ...]:
    """Names that a client declared, as they are recorded."""
    return tuple(text(name)[:_WORD_MAX] for name in list(names)[:WORDS_MAX])
