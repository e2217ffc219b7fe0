"""Requests that an MCP server turns away before tasktrail hears of them: its 401s and 403s, put on the trail.

Guarantees: the denial is on the trail before the answer goes out, or the log says that it could not be put there; the
answer itself is never changed, and delayed by `REPORT_S` at most; the credential is recorded by its digest only, with
what `JwtVerifier` found wrong with it; who was refused is claimed, unless the server had accepted the credential and
refused for its scope. Any ASGI application; needs a link that is started by the time of the first request.

    app = Recording(mcp.streamable_http_app(), link)
    uvicorn.run(app)
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any, cast

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser

from tasktrail.events.authority import Method, Verification
from tasktrail.events.errors import NotAuthorised, TasktrailError
from tasktrail.mcp.credentials import digest, method_of, vouched_by_sdk
from tasktrail.mcp.link import Link
from tasktrail.mcp.verifier import Checked, checking
from tasktrail.services.access.claims import text
from tasktrail.services.messages import Call, Caller, CredentialFacts, ReportRefusal

_log = logging.getLogger(__name__)

WIRE = "mcp/2026-07-28"
REPORT_S = 2.5
AT_ONCE = 64
_REFUSALS = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_SAID_METHOD = re.compile(r"[a-z][A-Za-z]{0,23}(/[A-Za-z_]{1,23}){0,2}")
_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}")
_SCHEME = "bearer "

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Recording:
    """An ASGI application around another, whose refusals it reports.

    `forward`: of a credential that the server accepted and refused for its scope, tasktrail gets the token to verify.
    `wire`: what the server speaks, by the name it has on the trail.
    """

    def __init__(self, app: App, link: Link, *, forward: bool = False, wire: str = WIRE) -> None:
        self._app, self._link, self._forward, self._wire = app, link, forward, wire
        self._free = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        checked = Checked()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in _REFUSALS:
                await self._report(refusal(scope, checked, message, forward=self._forward, wire=self._wire))
            await send(message)

        token = checking.set(checked)
        try:
            await self._app(scope, receive, sending)
        finally:
            checking.reset(token)

    async def _report(self, said: ReportRefusal) -> None:
        try:
            async with asyncio.timeout(REPORT_S), self._free:
                await self._link.request("refusal", said)
        except Exception as error:  # noqa: BLE001 - whatever it was, the caller is told what the server decided
            why = error.reason if isinstance(error, TasktrailError) else type(error).__name__
            _log.warning("a refusal (%s) goes out without being on the trail: %s", said.reason, why)


def refusal(
    scope: Scope, checked: Checked, answer: Message, *, forward: bool = False, wire: str = WIRE
) -> ReportRefusal:
    """What is reported of a refused request, from its ASGI scope and the start of its answer."""
    headers = _headers(scope)
    said, version = headers.get("mcp-method", ""), headers.get("mcp-protocol-version", "")
    peer = cast("tuple[object, ...]", scope.get("client") or ("",))
    caller, presented = _caller(scope, headers, checked, forward=forward)
    return ReportRefusal(
        caller=caller,
        call=Call(
            method=said if _SAID_METHOD.fullmatch(said) else "http",
            protocol_version=version if _VERSION.fullmatch(version) else "",
            wire=wire,
            traceparent=text(headers.get("traceparent")),
            address=text(peer[0]),
            forwarded_for=text(headers.get("x-forwarded-for")),
        ),
        code=NotAuthorised.code,
        reason=_reason(answer, presented=presented),
    )


def _reason(answer: Message, *, presented: bool) -> str:
    """The word for why (`rules.reported`)."""
    if answer["status"] == HTTPStatus.UNAUTHORIZED:
        return "credential-refused-by-mcp-server" if presented else "mcp-server-saw-no-credential"
    scope = 'error="insufficient_scope"' in _headers(answer).get("www-authenticate", "")  # RFC 6750 section 3.1
    return "scope-refused-by-mcp-server" if scope else "refused-by-mcp-server"


def _caller(scope: Scope, headers: dict[str, str], checked: Checked, *, forward: bool) -> tuple[Caller, bool]:
    """Who was refused, and whether a bearer token was presented at all."""
    user: object = scope.get("user")
    if isinstance(user, AuthenticatedUser):
        return Caller(token=user.access_token.token) if forward else vouched_by_sdk(user.access_token), True
    presented = headers.get("authorization", "")
    if not presented.lower().startswith(_SCHEME):
        return Caller(), False
    token = presented[len(_SCHEME) :]
    verification = checked.verification or Verification.NOT_CHECKED
    if verification is Verification.OK:  # it holds, and still the server did not take it: it is not for this server
        verification = Verification.WRONG_AUDIENCE
    method = method_of(token) if token else Method.NONE
    facts = CredentialFacts(method=method, verification=verification, token_hash=digest(token))
    return Caller(credential=facts), True


def _headers(said: MutableMapping[str, Any]) -> dict[str, str]:
    """The first value of each header of a request or an answer, as the server's own bearer check reads them."""
    found: dict[str, str] = {}
    for name, value in cast("Iterable[tuple[bytes, bytes]]", said.get("headers") or ()):
        found.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return found
