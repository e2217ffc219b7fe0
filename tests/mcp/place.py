"""A whole installation: an MCP server on an embedded tasktrail, or on one it is connected to, and what the trail says.

async with opened("connected", tmp_path) as place, place.client("ana") as ana:
    task = await ana.start("echo", text="hello")
    await place.trail.of(task["taskId"])
"""

import contextlib
import json
import os
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
from mcp.server.auth.provider import TokenVerifier
from mcp.server.auth.settings import AuthSettings
from nats.aio.client import Client as Nats
from nats.js import JetStreamContext

from tasktrail.events import entry as entries
from tasktrail.events.entry import Entry
from tasktrail.events.facts import AccessDenied, Event
from tasktrail.events.subjects import TRAIL, kind_of
from tasktrail.mcp.extension import Tasks
from tasktrail.mcp.verifier import Issuer, JwtVerifier
from tasktrail.services.keyring import Keyring
from tasktrail.services.service import Service
from tasktrail.services.settings import ENV_PREFIX, load
from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.waiting import until

from .client import DECLARED, Client
from .serving import listening, served, url_of
from .workshop import SUPPORT, Workshop

Mode = Literal["embedded", "connected"]
Fact = TypeVar("Fact")


class Trail:
    """The trail as whoever holds the service's own login reads it."""

    def __init__(self, nc: Nats, js: JetStreamContext, keyring: Keyring) -> None:
        self.nc, self.js, self._keyring = nc, js, keyring
        self._read: list[tuple[str, Entry]] = []

    def ref(self, task_id: str) -> str:
        """The reference that stands for a task's id."""
        return self._keyring.ref(task_id)

    async def all(self) -> list[tuple[str, Entry]]:
        """Every entry with its subject, in order."""
        last = (await self.js.stream_info(TRAIL)).state.last_seq
        while len(self._read) < last:
            message = await self.js.get_msg(TRAIL, len(self._read) + 1)
            self._read.append((message.subject or "", entries.decode(message.data or b"")))
        return list(self._read)

    async def of(self, task_id: str, kind: str = "task") -> list[Entry]:
        """A task's entries of one kind: its own (`task`) or those of who looked (`access`)."""
        ref = self.ref(task_id)
        return [entry for subject, entry in await self.all() if entry.task_ref == ref and kind_of(subject) == kind]

    async def names(self, task_id: str) -> list[str]:
        """What happened to a task, by name."""
        return [type(event).__name__ for entry in await self.of(task_id) for event in entry.events]

    async def denied(self, ref: str) -> list[Entry]:
        """The denials in which this reference was claimed."""
        return [
            entry
            for subject, entry in await self.all()
            if kind_of(subject) == "denied" and any(ref in getattr(event, "refs", ()) for event in entry.events)
        ]


def only(found: list[Entry], fact: type[Fact]) -> Fact:
    """The one event of this type."""
    events = [event for entry in found for event in entry.events if isinstance(event, fact)]
    assert len(events) == 1, f"{len(events)} of {fact.__name__}: {shown(found)}"
    return events[0]


def carrying(found: list[Entry], fact: type[Event]) -> Entry:
    """The one entry with an event of this type."""
    holding = [entry for entry in found if any(isinstance(event, fact) for event in entry.events)]
    assert len(holding) == 1, f"{len(holding)} with {fact}: {shown(found)}"
    return holding[0]


def shown(found: list[Entry]) -> list[list[str]]:
    """The names of the events, entry by entry."""
    return [[type(event).__name__ for event in entry.events] for entry in found]


class Place:
    """One installation. Two issuers are known to it: `issuer`, and `other_issuer`, of another tenant."""

    trail: Trail

    def __init__(
        self, mode: Mode, data: Path, url: str, workshop: Workshop, issuers: tuple[LocalIssuer, LocalIssuer]
    ) -> None:
        self.mode, self.data, self.url, self.workshop = mode, data, url, workshop
        self.issuer, self.other_issuer = issuers
        self.service: Service | None = None
        """The service, when the MCP server is connected to one."""

    def token(self, sub: str = "ana", client_id: str | None = "cli", *, issuer: LocalIssuer | None = None) -> str:
        """A token of this issuer (`issuer` unless given) for this server; `client_id` None is left out."""
        claims: dict[str, Any] = {"client_id": client_id}
        return (issuer or self.issuer).issue(sub, scope="tasks", aud=self.url, **claims)

    def client(self, sub: str = "ana", client_id: str = "cli", *, capabilities: Mapping[str, Any] = DECLARED) -> Client:
        """A client with a fresh token."""
        return Client(self.url, self.token(sub, client_id), capabilities)

    @contextlib.contextmanager
    def bench(self) -> Generator[str]:
        """A label of its own for a tool that can be held; lets whatever is still held go in the end."""
        label = os.urandom(8).hex()
        try:
            yield label
        finally:
            bench = self.workshop.bench(label)
            bench.go.set()
            bench.let_go.set()

    async def stop_service(self) -> None:
        """Stop the service that the MCP server is connected to."""
        if self.service is not None:
            await self.service.stop()

    async def start_service(self) -> None:
        """Start it on its directory, on the port its broker had."""
        self.service = Service(load(os.environ, data=self.data))
        await self.service.start()

    def broker_pid(self) -> int:
        """The process id of the nats-server."""
        words = (self.data / "nats" / "nats.lock").read_text().split()
        return int(words[1])


@contextlib.contextmanager
def settings(values: Mapping[str, object]) -> Generator[None]:
    """The environment with these settings of the service."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(ENV_PREFIX):
                patch.delenv(name)
        for name, value in values.items():
            patch.setenv(ENV_PREFIX + name.upper(), value if isinstance(value, str) else json.dumps(value))
        yield


@contextlib.asynccontextmanager
async def running_service(data: Path) -> AsyncGenerator[Service]:
    """A service on this directory, in this process."""
    service = Service(load(os.environ, data=data))
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


@contextlib.asynccontextmanager
async def reading(data: Path) -> AsyncGenerator[Trail]:
    """The trail of a running service's directory."""
    password = json.loads((data / "nats" / "credentials.json").read_text())["tasktrail"]
    (server,) = json.loads((data / "adapter.json").read_text())["servers"]
    nc = await connect(
        [server],
        user="tasktrail",
        password=password,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.1,
        error_cb=_quiet,
    )
    try:
        yield Trail(nc, JetStreamContext(nc), Keyring.open(data))
    finally:
        await nc.close()


async def connect(servers: list[str], **options: Any) -> Nats:  # noqa: ANN401 - nats-py's options
    """A connection to these servers."""
    nc = Nats()
    await nc.connect(servers, **options)
    return nc


async def _quiet(_error: Exception) -> None:
    """Some of the tests break the connection on purpose."""


@contextlib.asynccontextmanager
async def opened(  # noqa: PLR0913 - settings of a test's installation, all with defaults
    mode: Mode,
    data: Path,
    *,
    name: str = "workshop",
    tools: Mapping[str, Any] = SUPPORT,
    tokens: bool = True,
    verifier: TokenVerifier | None = None,
    around: Callable[[Tasks, Workshop], Any] | None = None,
    issuers: tuple[LocalIssuer, LocalIssuer] | None = None,
    **values: object,
) -> AsyncGenerator[Place]:
    """An installation on the directory `data`; `values` are settings of the service.

    Without `tokens` callers need none; `verifier` takes the place of the one for the issuers' JWTs; `around` gives
    the MCP server's lifespan.
    """
    async with contextlib.AsyncExitStack() as stack:
        issuers = issuers or (stack.enter_context(LocalIssuer()), stack.enter_context(LocalIssuer()))
        tenants = {issuers[0].url: "acme", issuers[1].url: "globex"}
        stack.enter_context(settings({"tenants": {} if verifier else tenants, **values}))
        sock = stack.enter_context(listening())
        place = Place(mode, data, url_of(sock), Workshop(), issuers)
        url, workshop = place.url, place.workshop
        if mode == "connected":
            await place.start_service()
            stack.push_async_callback(place.stop_service)
            tasks = Tasks.connect(data / "adapter.json", tools=tools)
        else:
            tasks = Tasks.embed(data, tools=tools)
        checked = verifier or JwtVerifier([Issuer(one.url, one.jwks_url, url) for one in issuers])
        auth = AuthSettings(issuer_url=issuers[0].url, resource_server_url=url, validate_token_resource=False)  # type: ignore[arg-type] # pydantic takes text
        mcp = workshop.server(
            tasks,
            name=name,
            lifespan=around(tasks, workshop) if around else None,
            auth=auth if tokens else None,
            token_verifier=checked if tokens else None,
        )
        await stack.enter_async_context(served(mcp, sock))
        place.trail = await stack.enter_async_context(reading(data))
        yield place


async def refused(place: Place, ref: str, *reasons: str) -> Entry:
    """The first denial of a look-up of `ref` in which all of these true reasons are counted, once it is there."""
    found: list[Entry] = []

    async def look() -> bool:
        denials = await place.trail.denied(ref)
        found.extend(entry for entry in denials if set(reasons) <= _reasons(entry))
        return bool(found)

    await until(look)
    return found[0]


def _reasons(entry: Entry) -> set[str]:
    return {reason for event in entry.events if isinstance(event, AccessDenied) for reason in event.reasons}


async def held(place: Place, client: Client, tool: str, label: str) -> dict[str, Any]:
    """A task whose tool has started and waits for its test."""
    made = await client.start(tool, label=label)
    await until(lambda: place.workshop.bench(label).log)
    return made
