"""The official SDK v1's client, whose tasks tasktrail answers while all else goes to an MCP server of the same SDK.

Its messages are routed by their bodies: at 2025-11-25 no header says the method. Sources: issue 5, MCP 2025-11-25.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from tests.mcp.serving import listening, served, url_of
from tests.v1.place import Place, opened, told_text
from tests.v1.running import Refused

from tasktrail.events.facts import InputResponded
from tasktrail.services.responder import find

_HOP = {"host", "connection", "content-length", "transfer-encoding"}


def of_tasks(body: bytes) -> bool:
    """Whether a message is for tasktrail: `tasks/*`, or the answer to a question that it put."""
    said = json.loads(body) if body else {}
    method = said.get("method")
    return method.startswith("tasks/") if method else isinstance(said.get("id"), str)


@contextlib.asynccontextmanager
async def routed(mcp: str, endpoint: str) -> AsyncGenerator[tuple[str, list[str]]]:
    """The address of a load balancer before both; and what it gave to tasktrail."""
    given: list[str] = []
    async with httpx.AsyncClient(timeout=120, trust_env=False) as http:

        async def route(request: Request) -> StreamingResponse:
            body = await request.body()
            if of_tasks(body):
                given.append(json.loads(body).get("method", "response"))
            target = endpoint if of_tasks(body) else mcp
            headers = {name: value for name, value in request.headers.items() if name not in _HOP}
            answer = await http.send(
                http.build_request(request.method, target, content=body, headers=headers), stream=True
            )
            kept = {name: value for name, value in answer.headers.items() if name not in _HOP}
            closing = BackgroundTask(answer.aclose)
            return StreamingResponse(answer.aiter_raw(), answer.status_code, kept, background=closing)

        sock = listening()
        app = Starlette(routes=[Route("/mcp", route, methods=["GET", "POST", "DELETE"])])
        async with served(app, sock):
            yield url_of(sock), given


@contextlib.asynccontextmanager
async def balanced(directory: Path) -> AsyncGenerator[tuple[Place, list[str]]]:
    """An installation whose clients reach both by one address."""
    async with opened("forwarded", directory) as place:
        running = find(place.up.data)
        assert running is not None
        async with routed(place.urls["tokens"], f"{running.url}/mcp") as (url, given):
            place.urls = {**place.urls, "tokens": url}
            yield place, given


@pytest.mark.requirement("L3", "L6", "L8", "O2")
async def test_the_sdk_v1_client_works_with_tasks_at_the_endpoint(tmp_path: Path) -> None:
    """Get, result with questions meanwhile, list, cancel: as with the MCP server itself."""
    async with balanced(tmp_path) as (place, given):
        ana, eve = await place.client(place.creator()), await place.client(place.creator())
        task = await ana.call("greet", questions=["First?", "Second?"])
        waiting = asyncio.create_task(ana.do("result", task_id=task["taskId"]))
        for number, name in enumerate(("Ana", "Anna")):
            question = await ana.question(number)
            assert question["params"]["message"] == ("First?", "Second?")[number]
            await ana.answer(question, action="accept", content={"name": name})
        assert told_text(await waiting) == "Ana Anna"
        assert (await ana.status(task, "completed"))["taskId"] == task["taskId"]
        assert [one["taskId"] for one in (await ana.do("list"))["tasks"]] == [task["taskId"]]
        assert (await eve.do("list"))["tasks"] == []
        with pytest.raises(Refused, match="Task not found"):
            await eve.do("get", task_id=task["taskId"])
        other = await ana.call("greet")
        await ana.status(other, "input_required")
        assert (await ana.do("cancel", task_id=other["taskId"]))["status"] == "cancelled"
        assert set(given) == {"tasks/get", "tasks/result", "tasks/list", "tasks/cancel", "response"}
        answered = [one for one in await place.trail.of(task["taskId"]) if isinstance(one.events[0], InputResponded)]
        assert {one.authority.request.wire for one in answered if one.authority.request} == {"mcp/2025-11-25"}
        assert len(answered) == 2
