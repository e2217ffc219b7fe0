"""A proxy on its own listener, until it is told to stop.

Guarantees: prints its address once it takes requests; ends cleanly on SIGINT and SIGTERM. Needs the main thread.

    asyncio.run(serve(proxy(…).http_app(), host="127.0.0.1", port=8421))
"""

import asyncio
import signal
import sys

from tasktrail.services.http.edge import Application, Receive, Scope, Send
from tasktrail.services.http.server import Server


class _Proxying:
    """An application without streams that we would have to end: uvicorn ends those of MCP."""

    def __init__(self, app: Application) -> None:
        self._app = app

    def close(self) -> None:
        """Nothing is open but requests."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        await self._app(scope, receive, send)


async def serve(app: Application, host: str, port: int) -> None:
    """Serve the application of a proxy.

    Raises:
        ListenError: the address cannot be listened on; with what to do.
    """
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = await Server.start(_Proxying(app), host=host, port=port)
    sys.stdout.write(f"proxying at {server.url}/mcp\n")
    sys.stdout.flush()
    stopped, ended = asyncio.create_task(stopping.wait()), asyncio.create_task(server.wait())
    await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    await server.stop()
    await ended
