"""Where the SDK v1 is tested: a real `tasktrail up`, two token issuers, the SDK v1's servers and clients.

async with opened("forwarded", tmp_path) as place:
    ana = await place.client(place.creator())
"""

import contextlib
import itertools
from collections.abc import AsyncGenerator
from pathlib import Path

from tests.binding.installation import Identity, Installation, Who, configuration
from tests.mcp.place import reading
from tests.v1.running import Client, Clients, Json, clients, served
from tests.v1.session_wire import SessionWire

from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.service import UpProcess

RELATED = "io.modelcontextprotocol/related-task"
LEASE = {"TASKTRAIL_WORKER_LEASE_MS": "9000"}
"""Renewed every 3 s, which is when definitions are told."""
_names = itertools.count(1)
_MORE = "".join(f'\n[[servers]]\nname = "{name}"\n' for name in ("fast", "reports"))


class Place(Installation):
    """One running installation; `urls` are the endpoints of its MCP servers."""

    wire: SessionWire
    urls: dict[str, str]
    clients: Clients
    folder: Path

    async def client(self, who: Who | None, endpoint: str = "tokens", **said: object) -> Client:
        """A client of the SDK v1 with a session of its own; with a new token."""
        token = who.token() if who else None
        return await self.clients.open(f"client-{next(_names)}", self.urls[endpoint], token, **said)

    def flag(self) -> Path:
        """A file that a tool waits for."""
        return self.folder / f"flag-{next(_names)}"


@contextlib.asynccontextmanager
async def opened(identity: Identity, directory: Path) -> AsyncGenerator[Place]:
    """Start everything; `identity` is how callers' identity reaches tasktrail."""
    async with contextlib.AsyncExitStack() as stack:
        issuers = (stack.enter_context(LocalIssuer()), stack.enter_context(LocalIssuer()))
        config = directory / "tasktrail.toml"
        config.write_text(configuration(issuers, identity) + _MORE, encoding="utf-8")
        up = stack.enter_context(UpProcess(directory / "data", environment={"TASKTRAIL_CONFIG": str(config), **LEASE}))
        urls = await stack.enter_async_context(served(up, identity, issuers, directory / "server.log"))
        wire = SessionWire(urls["tokens"], urls["open"])
        stack.push_async_callback(wire.close)
        place = Place(identity, up, wire, issuers, config)
        place.urls, place.folder = urls, directory
        place.clients = await stack.enter_async_context(clients(directory / "client.log"))
        place.trail = await stack.enter_async_context(reading(up.data))
        yield place


def told_text(result: Json) -> str:
    """The text of a tool's result."""
    said: str = result["content"][0]["text"]
    return said
