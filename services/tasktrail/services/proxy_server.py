"""A proxy on its own listener, until it is told to stop.

Guarantees: prints its address once it takes requests; what keeps it from starting is an error of ours, with nothing
logged besides; a server behind that does not answer is one warning, for it need not be there yet; ends cleanly on
SIGINT and SIGTERM. Needs the main thread.

    made = proxy(…)
    behind = Behind("127.0.0.1:9000", made.client_factory, spawned=False)
    asyncio.run(serve(made.http_app(), "127.0.0.1", 8421, behind))
"""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from tasktrail.services.cli import complain
from tasktrail.services.http.edge import Receive, Scope, Send
from tasktrail.services.http.server import Server

_connecting = logging.getLogger("tasktrail.services.connection")


class Proxied(Protocol):
    """The ASGI application of a proxy."""

    @property
    def lifespan(self) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
        """What it starts and stops with, given the application."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        ...


class Behind(NamedTuple):
    """The server behind: its name for people, and how it is reached."""

    name: str
    connect: Callable[[], AbstractAsyncContextManager[Any]]
    spawned: bool
    """Whether reaching it starts its process."""


class _Proxying:
    """An application without streams that we would have to end: uvicorn ends those of MCP. It is started already."""

    def __init__(self, app: Proxied) -> None:
        self._app = app

    def close(self) -> None:
        """Nothing is open but requests."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        for said in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{said}.complete"})


async def serve(app: Proxied, host: str, port: int, behind: Behind) -> None:
    """Serve the application of a proxy.

    Raises:
        ListenError: the address cannot be listened on; with what to do.
        TasktrailError: tasktrail cannot be reached.
    """
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with contextlib.AsyncExitStack() as stack:
        with _untold():
            await stack.enter_async_context(app.lifespan(app))
        server = await Server.start(_Proxying(app), host=host, port=port)
        looking = asyncio.create_task(look(behind))
        sys.stdout.write(f"proxying at {server.url}/mcp\n")
        sys.stdout.flush()
        stopped, ended = asyncio.create_task(stopping.wait()), asyncio.create_task(server.wait())
        await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
        for one in (stopped, looking):
            one.cancel()
        await server.stop()
        await ended
        await asyncio.gather(looking, return_exceptions=True)


@contextlib.contextmanager
def _untold() -> Generator[None]:
    """Without the log of each try to connect: the error says what was seen last."""
    before = _connecting.level
    _connecting.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _connecting.setLevel(before)


async def look(behind: Behind) -> None:
    """Warn of a server behind that does not answer."""
    try:
        async with behind.connect():
            return
    except Exception as error:  # noqa: BLE001 - whatever a stranger's server does
        # Over HTTP one that refuses us answers: it may want its callers' tokens, of which this has none.
        if behind.spawned or isinstance(error, RuntimeError):
            why = str(error).removeprefix("Client failed to connect: ") or type(error).__name__
            complain(f"the server behind, {behind.name}, does not answer: {why}; calls fail until it does")
