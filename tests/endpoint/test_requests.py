"""Who may speak to the tasks endpoint at all, and what is no request. Sources: MCP (authorization, streamable HTTP),
RFC 6750, design section 6.
"""

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.endpoint.place import Place, opened, running

from tasktrail.events.facts import AccessDenied
from tasktrail.services.responder import read_token
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.requirement("O2")

HEADERS = {"Content-Type": "application/json", "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tasks/get"}
META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}


def body(task_id: str = "a" * 32, **changed: object) -> bytes:
    """A request; `changed` members of it."""
    said = {"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"taskId": task_id, "_meta": META}, **changed}
    return json.dumps(said).encode()


async def post(place: Place, content: bytes, headers: Any = HEADERS, path: str = "") -> httpx.Response:  # noqa: ANN401 - httpx's
    """One POST as it is."""
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        return await http.post(place.url + path, content=content, headers=headers)


def code(answer: httpx.Response) -> tuple[int, int]:
    """The HTTP status and the JSON-RPC code."""
    said = answer.json()
    assert said.keys() == {"jsonrpc", "id", "error"}
    return answer.status_code, said["error"]["code"]


@pytest.mark.parametrize("sub", ["", "ana"])
async def test_the_documented_request_runs(place: Place, sub: str) -> None:
    """docs/endpoint.md: the line for who has a token, and the one for who has none."""
    page = (Path(__file__).parents[2] / "docs" / "endpoint.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    *defined, without, with_token = script.splitlines()
    lines = {"": without, "ana": with_token}
    task = await place.made(sub)
    known = {"TASKTRAIL": place.base, "ACCESS_TOKEN": place.token(), "TASK": task["task_id"]}
    script = "\n".join([*defined, lines[sub]])
    shell = await asyncio.create_subprocess_exec(
        "sh", "-c", script, env={**os.environ, **known}, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await shell.communicate()
    assert shell.returncode == 0, said
    assert json.loads(said)["result"]["taskId"] == task["task_id"]


@pytest.mark.requirement("A4", "A3")
async def test_a_token_that_does_not_hold_gets_401_and_is_on_the_trail(place: Place) -> None:
    """RFC 6750, section 3: `invalid_token`; the true reason is recorded with the handle it was shown for."""
    task = await place.made()
    expired = {**HEADERS, "Authorization": f"Bearer {place.token(ttl_s=-600)}"}
    known, unknown = await post(place, body(task["task_id"]), expired), await post(place, body(), expired)
    assert (code(known), known.content) == ((401, -32001), unknown.content)
    assert known.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    listed = await post(place, body(method="tools/list", params={}), {**HEADERS, "Authorization": "Bearer nonsense"})
    assert listed.status_code == 401

    async def recorded() -> bool:
        denials = await place.trail.denied(place.trail.ref(task["task_id"]))
        return any("token-refused" in getattr(event, "reasons", ()) for one in denials for event in one.events)

    await until(recorded)
    found = [event for _, one in await place.trail.all() for event in one.events if isinstance(event, AccessDenied)]
    assert {"tools/list"} == {one.method for one in found if "token-refused" in one.reasons and not one.refs}


async def test_tokens_of_operators_and_of_callers_do_not_open_each_others_doors(place: Place) -> None:
    """Design, section 6: an operator is no caller, a caller no operator."""
    operators = {**HEADERS, "Authorization": f"Bearer {read_token(place.up.data)}"}
    assert (await post(place, body(), operators)).status_code == 401
    assert place.up.get("/api/v1/tasks", token=place.token())[0] == 401
    callers = {**HEADERS, "Authorization": f"Bearer {place.token()}"}
    assert (await post(place, body(), callers, "/../api/v1/tasks")).status_code == 401


async def test_a_page_of_elsewhere_and_a_foreign_host_are_refused_first(place: Place) -> None:
    """`edge.py`: as on every other path."""
    assert (await post(place, body(), {**HEADERS, "Origin": "https://evil.example"})).status_code == 403
    assert (await post(place, body(), {**HEADERS, "Host": "evil.example"})).status_code == 421


@pytest.mark.parametrize(
    ("content", "headers", "told"),
    [
        (b"{", {}, (400, -32700)),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"tasks/get"}', {}, (400, -32700)),
        (b"[" * 600 + b"]" * 600, {}, (400, -32700)),
        (b"[]", {}, (400, -32600)),
        (body(jsonrpc="1.0"), {}, (400, -32600)),
        (body(id=None), {}, (400, -32600)),
        (body(id=True), {}, (400, -32600)),
        (body(params=[]), {}, (400, -32600)),
        (body(params={}), {}, (400, -32602)),
        (body(result={}), {}, (400, -32600)),
        (body(), {"Content-Type": "text/plain"}, (415, -32600)),
        (body(), {"Accept": "text/html"}, (406, -32600)),
        (body(), {"Authorization": "Bearer"}, (400, -32600)),
        (body(params={"_meta": {**META, "io.modelcontextprotocol/protocolVersion": "2027-01-01"}}), {}, (400, -32021)),
        (body(params={}), {"MCP-Protocol-Version": "2024-11-05"}, (400, -32022)),
        (b" " * 1_200_000, {}, (413, -32600)),
    ],
)
async def test_what_is_no_request_is_answered_as_json_rpc_says(
    place: Place, content: bytes, headers: dict[str, str], told: tuple[int, int]
) -> None:
    """JSON-RPC 2.0, section 5.1; MCP 2026-07-28, streamable HTTP."""
    assert code(await post(place, content, {**HEADERS, **headers})) == told


async def test_routing_headers_and_credentials_come_once(place: Place) -> None:
    """SEP-2243: who reads the first of two would be told otherwise than who reads the last."""
    twice = [*HEADERS.items(), ("Mcp-Method", "tasks/cancel")]
    assert code(await post(place, body(), twice)) == (400, -32020)
    tokens = [*HEADERS.items(), ("Authorization", "Bearer a"), ("Authorization", "Bearer b")]
    assert code(await post(place, body(), tokens)) == (400, -32600)


async def test_only_posts_and_only_names_of_servers_are_taken(place: Place) -> None:
    """MCP, streamable HTTP: 405 where a server offers no stream of its own; notifications are accepted."""
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(place.url)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert (await post(place, body(), path="/a/b")).status_code == 404
    notification = json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}).encode()
    accepted = await post(place, notification)
    assert (accepted.status_code, accepted.content) == (202, b"")


@pytest.mark.requirement("A1")
async def test_without_a_token_401_where_anonymous_callers_may_hold_no_tasks(tmp_path: Path) -> None:
    """RFC 6750, section 3.1: no error code when nothing was presented."""
    with running(tmp_path, anonymous=False) as (up, issuer):
        async with opened(up, issuer) as place:
            refused = await post(place, body())
            assert (code(refused), refused.headers["www-authenticate"]) == ((401, -32001), "Bearer")
            task = await place.made()
            async with place.earlier() as ana, ana.waiting(task["task_id"]) as messages:
                up.stop()
                (told,) = [one async for one in messages]
            assert told["error"]["data"] == {"retriable": True, "written": "nothing"}
