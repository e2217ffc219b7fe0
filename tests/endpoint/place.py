"""A running tasktrail whose tasks endpoint is asked, an MCP server that feeds it over NATS, and callers with tokens.

async with opened(up, issuer) as place, place.client("ana") as ana:
    made = await place.made("ana")
    await ana.get(made["task_id"])
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping
from pathlib import Path
from typing import Any

import httpx
from tests.mcp.client import DECLARED, Client
from tests.mcp.place import Trail, reading

from tasktrail.services.responder import find
from tasktrail.testing.feeding import Feeder, Json, creation
from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.service import UpProcess

SERVER = "reports"
AUDIENCE = "https://mcp.example/mcp"
WITHIN_S = 60.0
QUESTION: Json = {
    "method": "elicitation/create",
    "params": {
        "message": "Which quarter?",
        "requestedSchema": {"type": "object", "properties": {"quarter": {"type": "string"}}, "required": ["quarter"]},
    },
}
ANSWER: Json = {"action": "accept", "content": {"quarter": "Q3"}}
RESULT: Json = {"content": [{"type": "text", "text": "up 4 %"}], "isError": False, "resultType": "complete"}
_serial = itertools.count(1)


class Place:
    """One installation, for one test."""

    def __init__(self, up: UpProcess, issuer: LocalIssuer, feeder: Feeder, trail: Trail) -> None:
        self.up, self.issuer, self.feeder, self.trail = up, issuer, feeder, trail
        self.base = address(up)
        self.url = f"{self.base}/mcp"

    def token(self, sub: str = "ana", ttl_s: float = 600) -> str:
        """A token of somebody's."""
        return self.issuer.issue(sub, "cli", "tasks", ttl_s=ttl_s, aud=AUDIENCE)

    def client(self, sub: str = "ana", *, capabilities: Mapping[str, Any] = DECLARED) -> Client:
        """Somebody's client of the 2026-07-28 wire; nobody's when `sub` is empty."""
        return Client(self.url, self.token(sub) if sub else None, capabilities)

    @contextlib.asynccontextmanager
    async def earlier(self, sub: str = "ana") -> AsyncGenerator["Earlier"]:
        """Somebody's client of the 2025-11-25 wire."""
        async with earlier(self.url, self.token(sub)) as client:
            yield client

    async def made(self, sub: str = "ana") -> Json:
        """A task that the MCP server made for somebody; for nobody in particular when `sub` is empty."""
        caller = {"token": self.token(sub)} if sub else {}
        return await self.feeder.request("create", creation(caller, f"create-{next(_serial)}"))

    async def work(self, task: Json, action: str, **said: object) -> Json:
        """What the MCP server says of its task."""
        body = {"task_ref": task["task_ref"], "command_id": f"work-{next(_serial)}", **said}
        return await self.feeder.request(action, body)

    async def view(self, task: Json) -> Json:
        """What the MCP server has to know of its task."""
        return await self.feeder.request("collect", {"task_ref": task["task_ref"]})


class Earlier:
    """A client of the 2025-11-25 wire, byte by byte."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url, self.http = url, http

    def request(self, message: Json) -> httpx.Request:
        """The POST of a message."""
        headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}
        return self.http.build_request("POST", self.url, json={"jsonrpc": "2.0", **message}, headers=headers)

    async def ask(self, method: str, **params: object) -> Json:
        """A request's answer, which is not a stream."""
        response = await self.http.send(self.request({"id": 7, "method": method, "params": params}))
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json"), response.text
        said: Json = response.json()
        assert (said["jsonrpc"], said["id"]) == ("2.0", 7)
        return said

    async def answer(self, rpc_id: object, **outcome: object) -> httpx.Response:
        """A response of the client's."""
        return await self.http.send(self.request({"id": rpc_id, **outcome}))

    @contextlib.asynccontextmanager
    async def waiting(self, task_id: str) -> AsyncGenerator[AsyncIterator[Json]]:
        """tasks/result of a task that has not ended: the messages of its stream."""
        request = self.request({"id": 7, "method": "tasks/result", "params": {"taskId": task_id}})
        response = await self.http.send(request, stream=True)
        try:
            assert response.headers["content-type"] == "text/event-stream", await response.aread()
            yield _messages(response)
        finally:
            await response.aclose()


@contextlib.asynccontextmanager
async def earlier(url: str, token: str) -> AsyncGenerator[Earlier]:
    """A client of the 2025-11-25 wire with this token, and a session that is the MCP server's."""
    headers = {"Authorization": f"Bearer {token}", "Mcp-Session-Id": "of-the-mcp-server"}
    async with httpx.AsyncClient(headers=headers, timeout=WITHIN_S, trust_env=False) as http:
        yield Earlier(url, http)


async def _messages(response: httpx.Response) -> AsyncIterator[Json]:
    lines = response.aiter_lines()
    while True:
        async with asyncio.timeout(WITHIN_S):
            line = await anext(lines, None)
        if line is None:
            return
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


@contextlib.contextmanager
def configured(folder: Path, **service: object) -> Generator[tuple[Mapping[str, str], LocalIssuer]]:
    """The environment of services that verify the tokens of one issuer; `service` are settings of their own."""
    with LocalIssuer() as issuer:
        said = {"poll_interval_ms": 50, "payload_max_bytes": 1_048_576, **service}
        lines = [f"{name} = {json.dumps(value)}" for name, value in said.items()]
        config = folder / "tasktrail.toml"
        config.write_text(
            "[service]\n" + "\n".join(lines) + f'\n\n[[issuers]]\nurl = "{issuer.url}"\ntenant = "acme"\n'
            f'audience = ["{AUDIENCE}"]\njwks_url = "{issuer.jwks_url}"\n\n[limits]\npolls_early = 1000000\n'
            "failed_lookups_per_minute_per_principal = 1000000\nfailed_lookups_per_minute_per_tenant = 1000000\n",
            encoding="utf-8",
        )
        yield {"TASKTRAIL_CONFIG": str(config)}, issuer


@contextlib.contextmanager
def running(folder: Path, **service: object) -> Generator[tuple[UpProcess, LocalIssuer]]:
    """One such service."""
    with (
        configured(folder, **service) as (environment, issuer),
        UpProcess(folder / "data", environment=environment) as up,
    ):
        up.wait_until_ready()
        yield up, issuer


def address(up: UpProcess) -> str:
    """Where a service answers."""
    running = find(up.data)
    assert running is not None
    return running.url


@contextlib.asynccontextmanager
async def opened(up: UpProcess, issuer: LocalIssuer) -> AsyncGenerator[Place]:
    """The installation as one test uses it."""
    async with reading(up.data) as trail:
        feeder = await Feeder.connect(up.adapter(), SERVER)
        try:
            yield Place(up, issuer, feeder, trail)
        finally:
            await feeder.close()
