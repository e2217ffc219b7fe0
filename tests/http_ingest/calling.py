"""An MCP server in "any language": plain HTTP, JSON in, JSON out, nothing of ours.

async with speaking(up, token=read_token(up.data, SERVER_TOKEN_FILE), server="reports") as http:
    made = await http.write("/tasks", creation("report"))
"""

import contextlib
import itertools
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator
from http import HTTPStatus
from typing import Any, NamedTuple

import httpx

from tasktrail.services.responder import SERVER_TOKEN_FILE, find, read_token
from tasktrail.testing.service import UpProcess

WITHIN_S = 60.0
Json = dict[str, Any]
_serial = itertools.count(1)

QUESTION: Json = {
    "method": "elicitation/create",
    "params": {
        "message": "Which quarter?",
        "requestedSchema": {"type": "object", "properties": {"quarter": {"type": "string"}}, "required": ["quarter"]},
    },
}
ANSWER: Json = {"action": "accept", "content": {"quarter": "Q3"}}
RESULT: Json = {"content": [{"type": "text", "text": "up 4 %"}]}


def asked(method: str, caller: Json | None = None, **fields: object) -> Json:
    """The body of what a caller asks through its server."""
    call = {"method": method, "wire": "2026-07-28", "protocol_version": "2026-07-28", "rpc_id": "7"}
    return {"caller": caller or {}, "call": call, **fields}


def creation(tool: str = "report", caller: Json | None = None, **fields: object) -> Json:
    """The body of a creation."""
    said = {"tool": tool, "task_support": "optional", "arguments": {"quarter": "Q3"}, **fields}
    return asked("tools/call", caller, **said)


class Event(NamedTuple):
    """One server-sent event."""

    name: str
    id: str
    data: Json


class Speaking:
    """One MCP server's connections."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def write(self, path: str, said: Json, key: str = "") -> httpx.Response:
        """A write, under a key of its own unless one is given."""
        headers = {"Idempotency-Key": f'"{key or f"key-{next(_serial)}"}"'}
        return await self.http.post(path, json=said, headers=headers)

    async def ask(self, path: str, said: Json) -> httpx.Response:
        """What needs no key."""
        return await self.http.post(path, json=said)

    async def made(self, tool: str = "report", **fields: object) -> Json:
        """A task of its own."""
        return done(await self.write("/tasks", creation(tool, **fields)), 201)  # type: ignore[arg-type] # a caller

    async def work(self, ref: str, action: str, **said: object) -> Json:
        """What the work says of its task."""
        return done(await self.write(f"/work/{ref}/{action}", said))

    async def view(self, ref: str, **parameters: int | str) -> Json:
        """What the worker has to know."""
        return done(await self.http.get(f"/work/{ref}", params=parameters))

    @contextlib.asynccontextmanager
    async def following(self, path: str, last: str = "") -> AsyncGenerator[AsyncIterator[Event]]:
        """The events of a stream."""
        headers = {"Last-Event-ID": last} if last else {}
        async with self.http.stream("GET", path, headers=headers) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"].startswith("text/event-stream")
            yield _events(response)


def done(answer: httpx.Response, status: int = 200) -> Json:
    """The answer, which is none of a refusal."""
    assert answer.status_code == status, answer.text
    said: Json = answer.json()
    return said


def refused(answer: httpx.Response, status: int, reason: str) -> Json:
    """A refusal as the documentation has it (RFC 9457): everything that an MCP server has to pass on."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    said: Json = answer.json()
    assert (said["status"], said["reason"]) == (status, reason), said
    assert {"type", "title", "detail", "retriable", "written"} <= said.keys()
    assert ("retry-after" in answer.headers) is said["retriable"]
    assert "code" in said or status in {HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_FOUND}
    return said


def variables(up: UpProcess) -> dict[str, str]:
    """What the page's examples are given."""
    running = find(up.data)
    assert running is not None
    return {**os.environ, "TASKTRAIL": running.url, "TOKEN": read_token(up.data, SERVER_TOKEN_FILE)}


def schema(up: UpProcess) -> Json:
    """The OpenAPI document, as whoever has a server's token reads it."""
    given = variables(up)
    headers = {"Authorization": f"Bearer {given['TOKEN']}"}
    document: Json = httpx.get(f"{given['TASKTRAIL']}/schema/openapi.json", headers=headers, trust_env=False).json()
    return document


@contextlib.asynccontextmanager
async def speaking(up: UpProcess, token: str = "", server: str = "") -> AsyncGenerator[Speaking]:
    """A server's connections: with the token of the data directory unless one is given."""
    running = find(up.data)
    assert running is not None
    bearer = f"Bearer {token or read_token(up.data, SERVER_TOKEN_FILE)}"
    headers = [(b"Authorization", bearer.encode()), *([(b"Tasktrail-Server", server.encode())] if server else [])]
    base = f"{running.url}/ingest/v1"
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=WITHIN_S, trust_env=False) as http:
        yield Speaking(http)


async def _events(response: httpx.Response) -> AsyncIterator[Event]:
    said: dict[str, str] = {}
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if not line and "data" in said:
            yield Event(said.get("event", ""), said.get("id", ""), json.loads(said["data"]))
            said = {}
        elif name:
            said[name] = value
