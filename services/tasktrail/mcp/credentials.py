"""What an SDK's bearer check found, in tasktrail's words: the same for the official SDK's v1 and v2.

Guarantees: the token goes no further than its digest; JSON-RPC ids that are text are replaced by their digest. Needs
`mcp.server.auth` of either version.

    vouched_by_sdk(get_access_token())
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from mcp.server.auth.provider import AccessToken

from tasktrail.events.authority import Method
from tasktrail.events.tracing import stated
from tasktrail.services.access.claims import (
    WORDS_MAX,
    Who,
    actors,
    credential,
    digest,
    member,
    text,
    whole,
)
from tasktrail.services.clock import now_ms
from tasktrail.services.messages import Caller, CredentialFacts
from tasktrail.services.wire import handle_text, rpc_id

__all__ = ["digest", "handle_text", "method_of", "rpc_id", "traced", "vouched_by_sdk", "words"]

_WORD_MAX = 128


def vouched_by_sdk(token: AccessToken) -> Caller:
    """Who an access token that the server's verifier accepted names."""
    claims: Mapping[str, Any] = token.claims or {}
    issuer = claims.get("iss")
    who = Who(member(None if issuer is None else str(issuer)), member(token.subject), member(token.client_id))
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


def traced(meta: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, str]:
    """A request's W3C trace context as `Call` has it: of its `_meta`, else of its headers; never some of each."""
    said: Mapping[str, Any] = meta if meta.get("traceparent") else headers
    state = said.get("tracestate")
    return {
        "traceparent": text(said.get("traceparent")),
        "tracestate": stated(state) if isinstance(state, str) else "",
    }


def words(names: Iterable[object]) -> tuple[str, ...]:
    """Names that a client declared, as they are recorded."""
    return tuple(text(name)[:_WORD_MAX] for name in list(names)[:WORDS_MAX])
