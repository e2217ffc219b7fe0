"""An MCP server under uvicorn in this event loop, and waiting for what should happen.

Guarantees: the socket listens before the server is built, so its address is known; signals stay pytest's; the server
and its lifespan have ended when the block ends.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Generator
from typing import Any, Protocol, runtime_checkable

import uvicorn
from starlette.types import ASGIApp

from tasktrail.testing.waiting import until

WITHIN_S = 20.0
_LOOK_S = 0.01
_STOP_S = 1


class _Server(uvicorn.Server):
    """Without signal handling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def listening() -> socket.socket:
    """A listening socket on the loopback interface.

    Of protocol TCP by name: asyncio sets TCP_NODELAY only then, and without it every answer takes 40 ms.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def url_of(sock: socket.socket) -> str:
    """The MCP endpoint behind the socket."""
    return f"http://127.0.0.1:{sock.getsockname()[1]}/mcp"


@runtime_checkable
class MadeOf(Protocol):
    """What an application is made of: the official SDK's server, or what stands for one."""

    def streamable_http_app(self) -> Any:  # noqa: ANN401 - an ASGI application
        """The application."""
        ...


@contextlib.asynccontextmanager
async def served(mcp: MadeOf | ASGIApp, sock: socket.socket) -> AsyncGenerator[None]:
    """Serve `mcp`, or an application, on the socket until the block ends."""
    app = mcp.streamable_http_app() if isinstance(mcp, MadeOf) else mcp
    config = uvicorn.Config(app, log_level="error", ws="none", lifespan="on", timeout_graceful_shutdown=_STOP_S)
    server = _Server(config)
    serving = asyncio.create_task(server.serve([sock]))
    try:
        await until(lambda: server.started or serving.done())
        assert server.started, "the server did not start: see the log"
        yield
    finally:
        server.should_exit = True
        await serving
