"""Who makes a request of the SDK v1, and what it is, in tasktrail's words.

Guarantees: over HTTP the caller is whom that very request's credential names, never who opened the session it came on;
connection and session ids are never used. Needs mcp >= 1.28 (tokens with subject and claims).

    caller(ctx.request, forward=False), call(ctx, "tasks/get")
"""

from collections.abc import Mapping
from typing import Any

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.session import ServerSession
from mcp.shared.context import RequestContext

from tasktrail.mcp.credentials import rpc_id, traced, vouched_by_sdk, words
from tasktrail.services.access.claims import TEXT_MAX, text
from tasktrail.services.messages import Call, Caller
from tasktrail.services.wire_2025 import REVISION, WIRE

Context = RequestContext[ServerSession, Any, Any]


def caller(request: object, *, forward: bool) -> Caller:
    """Who makes a request; anonymous without a credential. `forward`: as in `TasktrailTasks.connect`.

    `request` is the transport's own, None where it has none (stdio). The SDK's `get_access_token()` will not do over
    HTTP: in a session's tasks it is that of the request that opened the session.
    """
    token = get_access_token() if request is None else _token(request)
    if token is None:
        return Caller()
    return Caller(token=token.token) if forward else vouched_by_sdk(token)


def _token(request: object) -> AccessToken | None:
    user = getattr(request, "scope", {}).get("user")
    return user.access_token if isinstance(user, AuthenticatedUser) else None


def call(ctx: Context, method: str) -> Call:
    """The request at hand."""
    meta: Mapping[str, Any] = (ctx.meta.model_extra if ctx.meta else None) or {}
    return described(ctx.request, method, ctx.request_id, protocol_version(ctx), meta)


def described(request: object, method: str, request_id: object, version: str, meta: Mapping[str, Any]) -> Call:
    """A message of a caller: a request, or the response to one of ours."""
    headers: Mapping[str, str] = getattr(request, "headers", None) or {}
    client = getattr(request, "client", None)
    return Call(
        method=method[:TEXT_MAX],
        protocol_version=text(version),
        wire=WIRE,
        rpc_id=rpc_id(request_id),
        **traced(meta, headers),
        address=text(getattr(client, "host", None)),
        forwarded_for=text(headers.get("x-forwarded-for")),
    )


def protocol_version(ctx: Context) -> str:
    """The revision in use: what the request's header says, else what was asked for at the beginning."""
    headers: Mapping[str, str] = getattr(ctx.request, "headers", None) or {}
    params = ctx.session.client_params
    return headers.get("mcp-protocol-version") or (str(params.protocolVersion) if params else "")


def speaks(ctx: Context) -> bool:
    """Whether the revision in use has tasks at all: this one is the first that does."""
    return protocol_version(ctx) >= REVISION


def declared(ctx: Context) -> tuple[str, ...]:
    """The names of what the client declared that it can do."""
    params = ctx.session.client_params
    return words(params.capabilities.model_dump(by_alias=True, exclude_none=True)) if params else ()
