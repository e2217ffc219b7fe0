"""Serves the application of a page of the documentation: arguments are its folder and how it connects."""

import asyncio
import importlib
import os
import socket
import sys

import uvicorn


async def serve() -> None:
    sys.path.insert(0, sys.argv[1])
    os.environ["TASKTRAIL_CONNECT"] = sys.argv[2]
    app = importlib.import_module("server_of_the_page").app
    sock = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{sock.getsockname()[1]}/mcp", flush=True)  # noqa: T201 - what it is run for
    config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1)
    await uvicorn.Server(config).serve([sock])


if __name__ == "__main__":
    asyncio.run(serve())
