"""Callers refused by the SDK's own bearer check are on the trail before they are told. Source: issue 3, RFC 6750.

A real MCP server over HTTP, with `JwtVerifier` and a required scope, on a real tasktrail.
"""

import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from mcp.server import MCPServer
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings

from tasktrail.events.authority import Level, Method, Verification
from tasktrail.events.entry import Entry
from tasktrail.events.errors import NotAuthorised
from tasktrail.events.facts import AccessDenied
from tasktrail.events.subjects import kind_of
from tasktrail.mcp.callers import digest
from tasktrail.mcp.extension import Tasks
from tasktrail.mcp.link import ConnectedLink
from tasktrail.mcp.recording import Receive, Recording, Scope, Send, refusal
from tasktrail.mcp.verifier import Checked, Issuer, JwtVerifier
from tasktrail.services.connection import Connection
from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.nats import NatsServer

from .place import Place, reading, settings
from .serving import listening, served, url_of
from .workshop import SUPPORT, Workshop


class Recorded:
    """An MCP server as its owner wraps it, in the form `served` takes."""

    def __init__(self, mcp: MCPServer[Any], tasks: Tasks) -> None:
        self._mcp, self._tasks = mcp, tasks

    def streamable_http_app(self) -> Recording:
        """The application around the server's own."""
        return self._tasks.recording(self._mcp.streamable_http_app())


class Words(TokenVerifier):
    """Somebody else's verifier, which knows one word."""

    async def verify_token(self, token: str) -> AccessToken | None:
        """The word's holder, or nobody."""
        return AccessToken(token=token, client_id="cli", scopes=["tasks"], subject="ana") if token == "word" else None


@contextlib.asynccontextmanager
async def recorded(data: Path, verifier: TokenVerifier | None = None) -> AsyncGenerator[Place]:
    """An installation whose connected MCP server wants the scope `tasks` and reports its refusals."""
    async with contextlib.AsyncExitStack() as stack:
        issuers = stack.enter_context(LocalIssuer()), stack.enter_context(LocalIssuer())
        stack.enter_context(settings({"tenants": {issuers[0].url: "acme"}}))
        sock = stack.enter_context(listening())
        place = Place("connected", data, url_of(sock), Workshop(), issuers)
        await place.start_service()
        stack.push_async_callback(place.stop_service)
        tasks = Tasks.connect(data / "adapter.json", tools=SUPPORT)
        auth = AuthSettings(
            issuer_url=issuers[0].url,  # type: ignore[arg-type] # pydantic takes text
            resource_server_url=place.url,  # type: ignore[arg-type] # see above
            required_scopes=["tasks"],
            validate_token_resource=verifier is None,
        )
        ours = Issuer(issuers[0].url, issuers[0].jwks_url, (place.url, "https://b.example"))
        mcp = place.workshop.server(tasks, auth=auth, token_verifier=verifier or JwtVerifier([ours]))
        await stack.enter_async_context(served(Recorded(mcp, tasks), sock))
        place.trail = await stack.enter_async_context(reading(data))
        yield place


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Place]:
    """Give a running installation; the tests of the module share it."""
    async with recorded(tmp_path_factory.mktemp("recorded")) as running:
        yield running


shared = pytest.mark.asyncio(loop_scope="module")
"""For tests that share the module's installation."""


async def denials(place: Place) -> list[tuple[Entry, AccessDenied]]:
    """Those on the trail right now: nothing is waited for."""
    return [
        (entry, event)
        for subject, entry in await place.trail.all()
        if kind_of(subject) == "denied"
        for event in entry.events
        if isinstance(event, AccessDenied)
    ]


async def refused(
    place: Place, authorization: str | None, **headers: str
) -> tuple[int, list[tuple[Entry, AccessDenied]]]:
    """The status of a request with this header, and the denials it added to the trail by the time it was answered."""
    before = len(await denials(place))
    sent = {"Accept": "application/json, text/event-stream", "Mcp-Method": "tasks/get", **headers}
    if authorization is not None:
        sent["Authorization"] = authorization
    body = {"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {}}
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        answer = await client.post(place.url, json=body, headers=sent)
    return answer.status_code, (await denials(place))[before:]


TOKENS: dict[str, tuple[Verification, Callable[[Place], str]]] = {
    "expired": (Verification.EXPIRED, lambda p: p.issuer.issue("ana", "cli", "tasks", aud=p.url, ttl_s=-1)),
    "for another server": (Verification.WRONG_AUDIENCE, lambda p: p.issuer.issue("ana", "cli", "tasks", aud="x")),
    "for a sister server": (
        Verification.WRONG_AUDIENCE,
        lambda p: p.issuer.issue("ana", "cli", "tasks", aud="https://b.example"),
    ),
    "of a stranger": (Verification.WRONG_ISSUER, lambda p: p.other_issuer.issue("ana", "cli", "tasks", aud=p.url)),
    "not yet valid": (
        Verification.NOT_YET_VALID,
        lambda p: p.issuer.issue("ana", "cli", "tasks", aud=p.url, nbf=int(time.time()) + 3600),
    ),
    "no token at all": (Verification.MALFORMED, lambda _: "opaque"),
}


@shared
@pytest.mark.requirement("A3", "A4", "R4")
@pytest.mark.parametrize("kind", TOKENS)
async def test_a_refused_token_is_on_the_trail_before_the_401(place: Place, kind: str) -> None:
    """By its digest, with the true reason; what it says of its bearer is not taken."""
    expected, make = TOKENS[kind]
    token = make(place)
    status, found = await refused(place, f"Bearer {token}")
    assert status == 401
    ((entry, denied),) = found
    assert (denied.method, denied.code, denied.count) == ("tasks/get", NotAuthorised.code, 1)
    assert denied.reasons == {"credential-refused-by-mcp-server": 1}
    authority = entry.authority
    assert authority.credential is not None
    assert authority.credential.token_hash == digest(token)
    assert (authority.credential.verification, authority.credential.level) == (expected, Level.CLAIMED)
    assert authority.principal is not None
    assert (authority.principal.sub, authority.principal.level) == ("", Level.CLAIMED)
    assert authority.request is not None
    assert (authority.request.server, authority.request.address) == ("workshop", "127.0.0.1")


@shared
@pytest.mark.requirement("A3")
@pytest.mark.parametrize(
    ("authorization", "method"), [(None, "ping"), ("Basic YW5hOnB3", "tools/call"), ("Bearer", "tools/list")]
)
async def test_a_request_without_a_bearer_token_is_on_the_trail_too(
    place: Place, authorization: str | None, method: str
) -> None:
    """Nothing of another scheme's credential is kept: a password's digest can be guessed."""
    status, found = await refused(place, authorization, **{"Mcp-Method": method})
    assert status == 401
    ((entry, denied),) = found
    assert (denied.method, denied.reasons) == (method, {"mcp-server-saw-no-credential": 1})
    assert entry.authority.credential is not None
    assert entry.authority.credential.method is Method.NONE
    assert entry.authority.credential.token_hash == ""


@shared
@pytest.mark.requirement("A3")
async def test_a_token_without_the_scope_is_refused_in_its_holders_name(place: Place) -> None:
    """RFC 6750 section 3.1: insufficient_scope. The server accepted the credential, so it says whose it is."""
    token = place.issuer.issue("ana", "cli", "mail", aud=place.url)
    status, found = await refused(place, f"Bearer {token}")
    assert status == 403
    ((entry, denied),) = found
    assert denied.reasons == {"scope-refused-by-mcp-server": 1}
    principal = entry.authority.principal
    assert principal is not None
    assert (principal.iss, principal.sub, principal.level) == (place.issuer.url, "ana", Level.ASSERTED)
    assert entry.tenant == "acme"


@shared
async def test_what_is_answered_is_not_recorded_as_refused(place: Place) -> None:
    """Only 401 and 403 are; the wrapper changes nothing for everybody else."""
    before = len(await denials(place))
    async with place.client() as ana:
        task = await ana.start("echo", text="hello")
        await ana.until(task["taskId"], "completed")
    assert len(await denials(place)) == before


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("tasks/cancel", "tasks/cancel"),
        ("ping", "ping"),
        ("tasks/get\u00e9", "http"),
        ("x" * 200, "http"),
        ("<script>", "http"),
        ("", "http"),
    ],
)
def test_the_method_is_what_the_header_says_if_that_is_sane(said: str, kept: str) -> None:
    """SEP-2243; the body was not read when the request was refused."""
    scope = {"type": "http", "headers": [(b"mcp-method", said.encode("latin-1"))], "client": None}
    found = refusal(scope, Checked(), {"type": "http.response.start", "status": 401})
    assert (found.call.method, found.call.address) == (kept, "")


def test_a_403_for_another_reason_says_nothing_of_scope() -> None:
    """A server refuses foreign origins with 403 as well (MCP transport security)."""
    scope = {"type": "http", "headers": [(b"Authorization", b"bearer token")], "client": ("192.0.2.1", 5)}
    found = refusal(scope, Checked(), {"type": "http.response.start", "status": 403, "headers": []})
    assert found.reason == "refused-by-mcp-server"
    assert found.caller.credential is not None
    assert found.caller.credential.verification is Verification.NOT_CHECKED
    assert found.caller.credential.token_hash == digest("token")


async def test_another_verifiers_refusals_are_recorded_as_not_checked_by_us(tmp_path: Path) -> None:
    """What a stranger's verifier found wrong nobody says."""
    async with recorded(tmp_path, verifier=Words()) as place:
        status, found = await refused(place, "Bearer secret-canary-5c1d")
        assert status == 401
        ((entry, _denied),) = found
        assert entry.authority.credential is not None
        assert entry.authority.credential.verification is Verification.NOT_CHECKED
        assert "canary" not in json.dumps([repr(one) for one in await place.trail.all()])


async def test_while_tasktrail_is_away_the_401_still_goes_out(
    fresh_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A trail that cannot be written never lets anybody in, and never keeps a refusal back; the log says so."""
    caplog.set_level(logging.WARNING, "tasktrail")
    link = ConnectedLink(Connection.from_text(fresh_nats.url), "workshop")
    await link.start()

    async def refusing(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    transport = httpx.ASGITransport(Recording(refusing, link))
    async with httpx.AsyncClient(transport=transport, base_url="http://mcp.example") as client:
        answer = await client.get("/mcp", headers={"Authorization": "Bearer secret-canary-5c1d"})
    await link.stop()
    assert (answer.status_code, answer.content) == (401, b"no")
    assert "goes out without being on the trail" in caplog.text
    assert "canary" not in caplog.text
