"""What the official SDK knows of a request, in tasktrail's words.

Guarantees: the token goes no further than its digest, unless it is forwarded for tasktrail to verify; connection and
session ids are never used; JSON-RPC ids that are text are replaced by their digest.

    caller(), caller(forward=True), call(ctx)
"""

from collections.abc import Mapping
from typing import Any, cast

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.context import ServerRequestContext

from tasktrail.mcp.credentials import digest, handle_text, method_of, rpc_id, traced, vouched_by_sdk, words
from tasktrail.services.access.claims import TEXT_MAX, text
from tasktrail.services.messages import Call, Caller

__all__ = ["WIRE", "call", "caller", "digest", "handle_text", "method_of", "vouched_by_sdk", "words"]

WIRE = "mcp/2026-07-28"


def caller(*, forward: bool = False) -> Caller:
    """Who makes the current request, as the SDK's bearer check found; anonymous without one.

    `forward`: give tasktrail the token itself to verify, and nothing of what was found here.
    """
    token = get_access_token()
    if token is None:
        return Caller()
    return Caller(token=token.token) if forward else vouched_by_sdk(token)


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
        rpc_id=rpc_id(ctx.request_id),
        **traced(meta, headers),
        address=text(getattr(client, "host", None)),
        forwarded_for=text(headers.get("x-forwarded-for")),
    )
