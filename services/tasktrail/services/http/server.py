"""The listener: uvicorn inside the service's own event loop.

Guarantees: the socket is bound before anything is served, so a port in use is an error of ours that names it and port 0
gives a real one; signals stay the composition root's; header size, connections and the time to stop are bounded;
neither server name nor access log (a path is a stranger's text). Needs a running event loop.

    server = await Server.start(app, host="127.0.0.1", port=0)
    server.url
    await server.stop()
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Generator
from typing import Protocol, Self

import uvicorn

from tasktrail.events.errors import TasktrailError
from tasktrail.services.http.edge import Receive, Scope, Send

CONNECTIONS_MAX = 512
HEADER_BYTES_MAX = 16 * 1024
STOP_WITHIN_S = 5
IDLE_S = 30
_BACKLOG = 128


class ListenError(TasktrailError):
    """The address cannot be listened on; the message says why and what to do."""

    reason = "listen"


class _Uvicorn(uvicorn.Server):
    """Without signal handling: that belongs to whoever runs the whole process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class Served(Protocol):
    """An ASGI application that can end what it keeps open."""

    def close(self) -> None:
        """End streams, so that the server can stop."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        ...


class Server:
    """One listening socket and the application behind it."""

    def __init__(self, app: Served, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            loop="none",
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS_MAX,
            h11_max_incomplete_event_size=HEADER_BYTES_MAX,
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=STOP_WITHIN_S,
        )
        self._app = app
        self._listener = listener
        self._uvicorn = _Uvicorn(config)
        self._serving: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, app: Served, *, host: str, port: int) -> Self:
        """Listen and serve. Returns when requests are taken.

        Raises:
            ListenError: the address is not ours or in use.
        """
        server = cls(app, _bind(host, port))
        serving = asyncio.create_task(server._uvicorn.serve(sockets=[server._listener]), name="http")
        server._serving = serving
        while not server._uvicorn.started:
            await asyncio.wait({serving}, timeout=0.01)
            if serving.done():
                serving.result()
                message = "the HTTP surface ended while starting; the log says why"
                raise ListenError(message)
        return server

    @property
    def url(self) -> str:
        """The base URL under which this machine reaches it."""
        host, port = self._listener.getsockname()[:2]
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")  # noqa: PLR2004
        return f"http://{address}:{port}" if address.version == 4 else f"http://[{address}]:{port}"  # noqa: PLR2004

    async def wait(self) -> None:
        """Until it ends, by `stop` or by itself."""
        if self._serving is not None:
            await self._serving

    async def stop(self) -> None:
        """End streams, finish running requests within `STOP_WITHIN_S`, and close."""
        self._app.close()
        self._uvicorn.should_exit = True
        await self.wait()


def _bind(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        message = f"cannot listen on {host}: {error.strerror or error}; choose another --host"
        raise ListenError(message) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        message = f"cannot listen on {host} port {port}: {error.strerror}; choose another --port, or 0 for a free one"
        raise ListenError(message) from None
    return listener
