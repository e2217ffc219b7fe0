"""An MCP server behind uvicorn, inside this event loop, on a port of its own.

Guarantees: the address is known before anything is served, because tokens are issued for it; signals stay ours; nothing
listens any more when the block ends.

    with listener() as sock:
        async with hosting(mcp, sock):
            ...  # url_of(sock) answers
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Generator
from typing import Any

import uvicorn
from mcp.server import MCPServer

_HOST = "127.0.0.1"
_STOP_S = 1
_POLL_S = 0.01


class _Server(uvicorn.Server):
    """Without signal handling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def listener(port: int = 0) -> socket.socket:
    """A listening socket on the loopback interface.

    Its protocol is given: asyncio switches Nagle's algorithm off only then, and without that answers take 40 ms.

    Raises:
        OSError: the port is taken.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((_HOST, port))
        sock.listen()
    except OSError:
        sock.close()
        raise
    return sock


def url_of(listening: socket.socket) -> str:
    """The MCP endpoint behind this socket."""
    return f"http://{_HOST}:{listening.getsockname()[1]}/mcp"


@contextlib.asynccontextmanager
async def hosting(mcp: MCPServer[Any], listening: socket.socket) -> AsyncGenerator[None]:
    """Serve `mcp` on this socket.

    Raises:
        RuntimeError: it did not start; the log says why.
    """
    config = uvicorn.Config(
        mcp.streamable_http_app(host=_HOST),
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=_STOP_S,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        while not server.started:
            await asyncio.wait({serving}, timeout=_POLL_S)
            if serving.done():
                serving.result()
                message = "the demo's MCP server did not start"
                raise RuntimeError(message)
        yield
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
