"""Where the matrix is run: a real `tasktrail up` in a process of its own, two token issuers, one MCP server.

The MCP server has two endpoints: one that asks for tokens and one that asks for none, under one name. It either
forwards the callers' tokens unread, so that tasktrail alone decides what they are worth, or verifies them itself and
asserts who called. Guarantees: every creator of `creator()` is new, so that what is revoked for one test is nobody's
in another; what the MCP server's own bearer check lets through is everything when tokens are forwarded.

    async with installed("forwarded", tmp_path) as place:
        ana = place.creator()
        made = await place.wire.create(ana.token(), "exact")
"""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncGenerator, Generator
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import msgspec
import uvicorn
from mcp.server import MCPServer
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from tests.binding.mcp_wire import McpWire
from tests.binding.table import MODES
from tests.mcp.place import Trail, reading
from tests.mcp.serving import listening, url_of

from tasktrail.mcp.extension import Tasks
from tasktrail.mcp.verifier import Issuer, JwtVerifier
from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.service import UpProcess
from tasktrail.testing.waiting import until

Identity = Literal["forwarded", "asserted"]
TENANT, ELSEWHERE = "acme", "globex"
BRIEF_MS = 1_500
"""How long the handle of a brief task lives."""

AUDIENCE = "https://mcp.example/mcp"
_MANY = 1_000_000
_serial = itertools.count(1)


class Who(msgspec.Struct, frozen=True, kw_only=True):
    """An identity at an issuer, and how it gets tokens."""

    issuer: LocalIssuer
    sub: str
    client_id: str | None

    def token(self, ttl_s: float = 600) -> str:
        """A new token; one that has ended when `ttl_s` is negative."""
        claims: dict[str, Any] = {"client_id": self.client_id, "aud": AUDIENCE}
        return self.issuer.issue(self.sub, scope="tasks", ttl_s=ttl_s, **claims)

    def but(self, **other: object) -> "Who":
        """The same with some members exchanged."""
        return msgspec.structs.replace(self, **other)


class _Anything(TokenVerifier):
    """Lets every bearer token through: whoever forwards tokens need not read them."""

    async def verify_token(self, token: str) -> AccessToken | None:
        """The token, of which nothing is known."""
        return AccessToken(token=token, client_id="unread", scopes=[])


class Installation:
    """One running installation."""

    trail: Trail

    def __init__(
        self,
        identity: Identity,
        up: UpProcess,
        wire: McpWire,
        issuers: tuple[LocalIssuer, LocalIssuer],
        config: Path,
    ) -> None:
        self.up, self.wire = up, wire
        self.sees_refused_tokens = identity == "forwarded"
        """Whether a token that is worth nothing reaches tasktrail, or ends at the MCP server's own check."""
        self.issuer, self.other_issuer = issuers
        self._config = config

    def creator(self) -> Who:
        """Somebody new, with a client of its own."""
        number = next(_serial)
        return Who(issuer=self.issuer, sub=f"ana-{number}", client_id=f"cli-{number}")

    @contextlib.asynccontextmanager
    async def moved(self, tenant: str) -> AsyncGenerator[None]:
        """The service, restarted with both issuers in another tenant; afterwards they are back in theirs."""
        before = self._config.read_text(encoding="utf-8")
        try:
            await self._restart(before.replace(f'tenant = "{TENANT}"', f'tenant = "{tenant}"'))
            yield
        finally:
            await self._restart(before)

    async def _restart(self, config: str) -> None:
        self.up.stop()
        self._config.write_text(config, encoding="utf-8")
        self.up.start()
        await until(self._takes_tasks)

    async def _takes_tasks(self) -> bool:
        """Whether both endpoints have found the service again."""
        tokens = (self.creator().token(), None)
        return all([(await self.wire.create(token, "brief_exact")).allowed for token in tokens])

    async def revoke(self, kind: str, **named: str) -> None:
        """What an operator does; returns when the next call is refused."""
        await self.order("revocations", kind=kind, **named)

    async def order(self, path: str, **said: object) -> dict[str, Any]:
        """An operator's order over HTTP, and what it came to."""
        body = msgspec.json.encode({"reason": "for the matrix", **said})
        status, answer = await asyncio.to_thread(self.up.post, f"/api/v1/{path}", body)
        assert status == HTTPStatus.OK, (status, answer)
        done: dict[str, Any] = msgspec.json.decode(answer)
        return done


def configuration(issuers: tuple[LocalIssuer, LocalIssuer], identity: Identity) -> str:
    """The service's configuration, with a tool for each binding mode."""
    parts = [f'[service]\ndefault_tenant = "{TENANT}"\npoll_interval_ms = 50']
    parts += [
        f'[[issuers]]\nurl = "{one.url}"\ntenant = "{TENANT}"\naudience = ["{AUDIENCE}"]\n'
        f'jwks_url = "{one.jwks_url}"\nskew_ms = 0'
        for one in issuers
    ]
    parts.append(f'[[servers]]\nname = "workshop"\nasserts = {str(identity == "asserted").lower()}')
    for mode in MODES:
        parts.append(f'[[tools]]\ntool = "{mode}"\nbinding = "{mode}"')
        parts.append(f'[[tools]]\ntool = "brief_{mode}"\nbinding = "{mode}"\nttl_default_ms = {BRIEF_MS}')
    parts.append(
        f"[limits]\nfailed_lookups_per_minute_per_principal = {_MANY}\nfailed_lookups_per_minute_per_tenant = {_MANY}\n"
        f"creations_per_minute_per_principal = {_MANY}\npolls_early = {_MANY}"
    )
    return "\n\n".join(parts) + "\n"


async def _parks(sub: str = "", tenant: str = "", iss: str = "", client_id: str = "") -> str:  # noqa: ARG001 - what a caller may try
    """A tool that works until it is told to stop, and whose arguments have the names of an identity's members."""
    await asyncio.Event().wait()
    return "never"


def _server(adapter: Path, identity: Identity, verifier: TokenVerifier | None, issuer: str, url: str) -> Any:  # noqa: ANN401 - an ASGI application
    tools: dict[str, Any] = dict.fromkeys([*MODES, *(f"brief_{mode}" for mode in MODES)], "optional")
    tasks = Tasks.connect(adapter, server="workshop", tools=tools, forward_tokens=identity == "forwarded")
    auth = AuthSettings(issuer_url=issuer, resource_server_url=url, validate_token_resource=False)  # type: ignore[arg-type] # pydantic takes text
    server: MCPServer[Any] = MCPServer(
        "workshop",
        extensions=[tasks],
        lifespan=tasks.lifespan,
        log_level="CRITICAL",
        auth=auth if verifier else None,
        token_verifier=verifier,
    )
    for name in tools:
        server.add_tool(_parks, name=name)
    return tasks.recording(server.streamable_http_app())


class _Server(uvicorn.Server):
    """Without signal handling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@contextlib.asynccontextmanager
async def _served(app: Any, sock: socket.socket) -> AsyncGenerator[None]:  # noqa: ANN401 - an ASGI application
    """Serve on the socket. No proxy is in front of it, so none is believed."""
    config = uvicorn.Config(
        app, log_level="error", ws="none", lifespan="on", proxy_headers=False, timeout_graceful_shutdown=1
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve([sock]))
    try:
        await until(lambda: server.started or serving.done())
        assert server.started, "the server did not start: see the log"
        yield
    finally:
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def installed(identity: Identity, directory: Path) -> AsyncGenerator[Installation]:
    """Start everything; `identity` is how callers' identity reaches tasktrail."""
    async with contextlib.AsyncExitStack() as stack:
        issuers = (stack.enter_context(LocalIssuer()), stack.enter_context(LocalIssuer()))
        config = directory / "tasktrail.toml"
        config.write_text(configuration(issuers, identity), encoding="utf-8")
        up = stack.enter_context(UpProcess(directory / "data", environment={"TASKTRAIL_CONFIG": str(config)}))
        checks: TokenVerifier = _Anything()
        if identity == "asserted":
            checks = JwtVerifier([Issuer(one.url, one.jwks_url, AUDIENCE) for one in issuers], skew_s=0)
        urls: list[str] = []
        for verifier in (checks, None):
            sock = stack.enter_context(listening())
            urls.append(url_of(sock))
            app = _server(up.data / "servers" / "workshop.json", identity, verifier, issuers[0].url, urls[-1])
            await stack.enter_async_context(_served(app, sock))
        wire = McpWire(*urls)
        stack.push_async_callback(wire.close)
        place = Installation(identity, up, wire, issuers, config)
        place.trail = await stack.enter_async_context(reading(up.data))
        yield place
