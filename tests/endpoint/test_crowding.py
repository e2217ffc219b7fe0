"""Nobody takes what others need: places for large bodies, places for calls that wait, answers at a limit.

Sources: `turns.py`, `endpoint_results.py`, `ingest.py` (module docstrings); RFC 6750, section 3; design section 1
(promise 1); features P4 and A1.
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from tests.endpoint.place import SERVER, WITHIN_S, Place, configured

from tasktrail.services.http.ingest import OF_TOKEN_MAX
from tasktrail.services.turns import LARGE_BYTES, READ_OF_PEER
from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.service import UpProcess
from tasktrail.testing.waiting import until

MISSES = 3
SERVERS = {"slow": "the-token-of-the-slow-one", "quick": "the-token-of-the-quick-one", "many-*": "the-token-of-many"}
HEADERS = {"Content-Type": "application/json", "MCP-Protocol-Version": "2025-11-25"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[UpProcess, LocalIssuer]]:
    """A service at which few look-ups may fail, and to which MCP servers speak over HTTP."""
    folder = tmp_path_factory.mktemp("crowding")
    with configured(folder) as (environment, issuer):
        config = Path(environment["TASKTRAIL_CONFIG"])
        said = config.read_text(encoding="utf-8").replace(
            "failed_lookups_per_minute_per_principal = 1000000", f"failed_lookups_per_minute_per_principal = {MISSES}"
        )
        for name, token in SERVERS.items():
            said += f'\n[[servers]]\nname = "{name}"\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'
        config.write_text(said, encoding="utf-8")
        with UpProcess(folder / "data", environment=environment) as up:
            up.wait_until_ready()
            yield up, issuer


def asked(method: str, **params: object) -> bytes:
    """A request of the 2025-11-25 wire."""
    return json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).encode()


@pytest.mark.requirement("P4")
async def test_a_refused_token_gets_401_however_often_it_comes(place: Place) -> None:
    """RFC 6750: another token helps, coming again does not; as at every other door, there is no other answer."""
    refused = {**HEADERS, "Authorization": f"Bearer {place.token(ttl_s=-600)}"}
    async with httpx.AsyncClient(trust_env=False, headers=refused, timeout=WITHIN_S) as http:
        answers = [
            await http.post(place.url, content=asked("tasks/get", taskId=f"{number:032}"))
            for number in range(MISSES + 2)
        ]
    assert {(one.status_code, one.content) for one in answers} == {(401, answers[0].content)}
    assert {one.headers["www-authenticate"] for one in answers} == {'Bearer error="invalid_token"'}


@pytest.mark.requirement("P4")
async def test_new_tokens_are_no_new_places_for_calls_that_wait(place: Place) -> None:
    """At most 16 calls of one caller wait, with whatever tokens of its own; whoever has none counts by address."""
    url = f"{place.url}/{SERVER}"
    for sub in ("ana", ""):
        body = asked("tasks/result", taskId=(await place.made(sub))["task_id"])
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(16):
                one = await stack.enter_async_context(_calling(place, sub))
                waiting = await stack.enter_async_context(one.stream("POST", url, content=body))
                assert waiting.headers["content-type"] == "text/event-stream"
            one = await stack.enter_async_context(_calling(place, sub))
            more = await stack.enter_async_context(one.stream("POST", url, content=body))
            assert more.headers["content-type"] == "application/json"
            error = json.loads(await more.aread())["error"]
            assert (error["code"], error["data"]["retriable"]) == (-32029, True)


def _calling(place: Place, sub: str) -> httpx.AsyncClient:
    """Somebody with a new token, or nobody."""
    headers = {**HEADERS, **({"Authorization": f"Bearer {place.token(sub)}"} if sub else {})}
    return httpx.AsyncClient(trust_env=False, headers=headers, timeout=WITHIN_S)


@contextlib.asynccontextmanager
async def dawdling(url: str, headers: dict[str, str]) -> AsyncGenerator[None]:
    """Somebody who announces as many large bodies as one may bring in at a time, and sends nothing of them."""
    to = urlsplit(url)
    fields = {"Host": to.netloc, "Content-Length": str(2 * LARGE_BYTES), "Content-Type": "application/json", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(READ_OF_PEER):
            _, writer = await asyncio.open_connection(to.hostname, to.port)
            stack.callback(writer.close)
            writer.write(f"POST {to.path} HTTP/1.1\r\n{head}\r\n".encode())
            await writer.drain()
        yield


@pytest.mark.requirement("P4")
async def test_who_sends_a_large_body_slowly_holds_up_its_own_only(place: Place) -> None:
    """`turns.py`: another peer's large request is answered while the slow one's next has to wait for a place."""
    body = asked("tools/list", padding="x" * 2 * LARGE_BYTES)

    async def answered(address: str) -> int:
        transport = httpx.AsyncHTTPTransport(local_address=address)
        async with httpx.AsyncClient(transport=transport, headers=HEADERS, timeout=WITHIN_S) as http:
            return (await http.post(place.url, content=body)).status_code

    async with dawdling(place.url, {}):

        async def crowded() -> bool:
            return await answered("127.0.0.1") == 503

        await until(crowded)
        assert await answered("127.0.0.2") == 200


@pytest.mark.requirement("P4")
async def test_a_slow_mcp_server_holds_up_its_own_bodies_only(place: Place) -> None:
    """The same under `/ingest/v1`, where the peer is the MCP server."""
    url = f"{place.base}/ingest/v1/tasks/get"
    said = json.dumps({"caller": {}, "call": {"method": "tasks/get"}, "task_id": "a" * 32, "x": "x" * 2 * LARGE_BYTES})
    known = {name: {"Authorization": f"Bearer {token}"} for name, token in SERVERS.items()}

    async def answered(name: str) -> int:
        headers = {**known[name], "Content-Type": "application/json"}
        async with httpx.AsyncClient(trust_env=False, timeout=WITHIN_S) as http:
            return (await http.post(url, content=said, headers=headers)).status_code

    async with dawdling(url, known["slow"]):

        async def crowded() -> bool:
            return await answered("slow") == 503

        await until(crowded)
        assert await answered("quick") == 400


@pytest.mark.requirement("P4")
async def test_one_token_of_several_mcp_servers_does_not_take_every_place(place: Place) -> None:
    """Names are what the token's holder says: half of all places are the most that it gets by more of them."""
    url = f"{place.base}/ingest/v1/moves"
    limits = httpx.Limits(max_connections=None)
    async with contextlib.AsyncExitStack() as stack:
        http = httpx.AsyncClient(trust_env=False, timeout=WITHIN_S, limits=limits)
        await stack.enter_async_context(http)

        async def followed(name: str, token: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {token}", "Tasktrail-Server": name}
            return await stack.enter_async_context(http.stream("GET", url, headers=headers))

        for number in range(OF_TOKEN_MAX):
            assert (await followed(f"many-{number % 4}", SERVERS["many-*"])).status_code == 200
        assert (await followed("many-5", SERVERS["many-*"])).status_code == 503
        assert (await followed("quick", SERVERS["quick"])).status_code == 200
