"""A witness on its own listener, until it is told to stop.

Guarantees: prints name, verifier key, address and the logs it cosigns once it takes requests; ends cleanly on SIGINT
and SIGTERM. Needs the main thread.

    asyncio.run(serve(Path("witness"), [vkey_of_the_log], name="", host="127.0.0.1", port=8430))
"""

import asyncio
import signal
import sys
from pathlib import Path

from tasktrail.services.http.server import Server
from tasktrail.services.witness import Witness


async def serve(data: Path, logs: list[str], name: str, host: str, port: int) -> None:
    """Run the witness of this directory.

    Raises:
        WitnessError, ListenError: with what to do.
    """
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    app = Witness.open(data, logs, name=name)
    try:
        server = await Server.start(app, host=host, port=port)
        lines = [f"witness  {app.name}", f"vkey     {app.vkey}", f"url      {server.url}"]
        lines += [f"log      {origin}" for origin in app.origins]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
        await stopping.wait()
        await server.stop()
    finally:
        app.release()
