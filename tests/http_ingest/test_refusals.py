"""What is refused over HTTP, and how it is told; who may speak in whose name.

Sources: issue 5 ("any language over HTTP"), design sections 1 (promise 5), 6 and 8 (JSON from strangers), RFC 9457,
RFC 6750, RFC 9110 (Retry-After).
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from tests.http_ingest.calling import Json, Speaking, asked, creation, done, refused, speaking

from tasktrail.services.ingesting import WAITING_MAX
from tasktrail.services.responder import SERVER_TOKEN_FILE, find, read_token
from tasktrail.testing.service import UpProcess
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.requirement("O2")

TOKENS = {name: f"a-token-of-{name}" for name in ("reports", "batch-*", "operator")}
"""By the name that each is configured for."""
CREATIONS_MAX, PAYLOAD_MAX = 3, 4_096


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


CONFIGURATION = f"""
[service]
payload_max_bytes = {PAYLOAD_MAX}

[[servers]]
name = "batch-special"
asserts = true

[[servers]]
name = "reports"
asserts = true
sha256 = "{digest(TOKENS["reports"])}"

[[servers]]
name = "batch-*"
sha256 = "{digest(TOKENS["batch-*"])}"

[[operators]]
name = "olga"
sha256 = "{digest(TOKENS["operator"])}"

[limits]
creations_per_minute_per_principal = {CREATIONS_MAX}
"""


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """A service that knows its MCP servers."""
    place = tmp_path_factory.mktemp("configured")
    (place / "tasktrail.toml").write_text(CONFIGURATION, encoding="utf-8")
    with UpProcess(place / "data", environment={"TASKTRAIL_CONFIG": str(place / "tasktrail.toml")}) as up:
        up.wait_until_ready()
        yield up


@pytest.mark.parametrize(
    ("token", "named", "status", "reason"),
    [
        ("reports", "", 404, "not_found"),
        ("reports", "reports", 404, "not_found"),
        ("reports", "batch-1", 403, "another_server"),
        ("batch-*", "batch-1", 404, "not_found"),
        ("batch-*", "", 400, "invalid_request"),
        ("batch-*", "reports", 403, "another_server"),
        ("batch-*", "batch-special", 403, "another_server"),
        ("batch-*", "x" * 129, 400, "invalid_request"),
        ("operator", "reports", 401, "unauthorised"),
        ("nobody", "reports", 401, "unauthorised"),
    ],
)
async def test_a_token_speaks_for_the_servers_that_it_is_configured_for(
    configured: UpProcess, token: str, named: str, status: int, reason: str
) -> None:
    """The first entry that fits a name says whose token counts, as it says what the server's word is worth."""
    async with speaking(configured, TOKENS.get(token, token), named) as http:
        said = refused(await http.http.get(f"/work/{'a' * 32}"), status, reason)
    assert token not in said["detail"]


@pytest.mark.parametrize("path", ["/api/v1/tasks", "/api/v1/policy", "/tlog/checkpoint"])
async def test_a_servers_token_does_not_open_what_operators_may(configured: UpProcess, path: str) -> None:
    """And the other way round: see the operator's token above, and the responder's here."""
    running = find(configured.data)
    assert running is not None
    for token in (TOKENS["reports"], TOKENS["batch-*"]):
        async with speaking(configured, token, "reports") as http:
            answer = await http.http.get(running.url + path)
        assert answer.status_code == HTTPStatus.UNAUTHORIZED
        assert answer.headers["www-authenticate"].startswith("Bearer ")
    async with speaking(configured, read_token(configured.data), "reports") as http:
        refused(await http.http.get("/moves"), 401, "unauthorised")


async def test_the_token_of_the_data_directory_is_for_one_developer_on_one_machine(
    configured: UpProcess, up: UpProcess
) -> None:
    """It is there while no server is configured, mode 0600, good for any name; afterwards it is good for none."""
    file = up.data / SERVER_TOKEN_FILE
    assert file.stat().st_mode & 0o777 == 0o600
    assert not (configured.data / SERVER_TOKEN_FILE).exists()
    token = read_token(up.data, SERVER_TOKEN_FILE)
    async with speaking(up, token, "any name, even one with a \u00fc") as http:
        assert refused(await http.ask("/tasks/list", asked("tasks/list")), 403, "not_listed")["code"] == -32601
    async with speaking(up, token) as http:
        assert "Tasktrail-Server" in refused(await http.http.get("/moves"), 400, "invalid_request")["detail"]
    async with speaking(configured, token, "reports") as http:
        refused(await http.http.get("/moves"), 401, "unauthorised")


async def test_a_task_is_its_servers_own(configured: UpProcess) -> None:
    """Another server's reference opens as little as one that never was; the same bytes (feature A4)."""
    async with (
        speaking(configured, TOKENS["reports"]) as reports,
        speaking(configured, TOKENS["batch-*"], "batch-1") as batch,
    ):
        task = await reports.made()
        foreign = await batch.write(f"/work/{task['task_ref']}/stop", {})
        unknown = await batch.write(f"/work/{'b' * 32}/stop", {})
        assert refused(foreign, 404, "not_found")
        assert foreign.content == unknown.content


async def test_what_a_servers_word_is_worth_is_as_over_nats(configured: UpProcess) -> None:
    """`asserts` of `[[servers]]`: whose word is not taken, gets no task for a caller that it vouches for."""
    ana = {"iss": "https://id.example", "sub": "ana", "client_id": "cli", "credential": {"method": "jwt"}}
    async with (
        speaking(configured, TOKENS["reports"]) as reports,
        speaking(configured, TOKENS["batch-*"], "batch-1") as batch,
    ):
        done(await reports.write("/tasks", creation(caller=ana)), 201)
        assert refused(await batch.write("/tasks", creation(caller=ana)), 403, "not_authorised")["code"] == -32001


async def test_who_has_enough_is_told_when_to_come_again(configured: UpProcess) -> None:
    """RFC 9110, section 10.2.3: seconds, not before the limit lets anyone in."""
    bea = {"iss": "https://id.example", "sub": "bea", "client_id": "cli", "credential": {"method": "jwt"}}
    async with speaking(configured, TOKENS["reports"]) as reports:
        for _ in range(CREATIONS_MAX):
            done(await reports.write("/tasks", creation(caller=bea)), 201)
        answer = await reports.write("/tasks", creation(caller=bea))
    said = refused(answer, 429, "rate_limited")
    assert (said["code"], said["written"]) == (-32029, "denial")
    assert 1_000 * int(answer.headers["retry-after"]) >= said["retry_after_ms"] > 0


HOSTILE = {
    "no JSON": (b"[", 400, "invalid_request"),
    "repeated member": (b'{"caller": {}, "caller": {}}', 400, "invalid_request"),
    "NaN": (b'{"ttl_ms": NaN}', 400, "invalid_request"),
    "too deep": (b"[" * 1_000 + b"]" * 1_000, 400, "invalid_request"),
    "a lone surrogate": (b'{"tool": "\\ud800"}', 400, "invalid_request"),
    "an integer beyond 64 bits": (b'{"ttl_ms": 99999999999999999999}', 400, "invalid_request"),
    "not UTF-8": (b'{"tool": "\xff"}', 400, "invalid_request"),
    "nothing": (b"", 400, "invalid_request"),
    "a payload too large": (json.dumps(creation(arguments="x" * (PAYLOAD_MAX + 1))).encode(), 413, "too_large"),
    "a body too large": (b'"' + b"x" * (PAYLOAD_MAX + 64 * 1024) + b'"', 413, "too_large"),
    "a member that is none": (json.dumps(creation(task_id="a")).encode(), 400, "invalid_request"),
    "the key in the body": (json.dumps(creation(command_id="a")).encode(), 400, "invalid_request"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_is_no_request_is_refused_by_name(configured: UpProcess, name: str) -> None:
    """Design, section 8: each needs an explicit answer at the edge."""
    body, status, reason = HOSTILE[name]
    headers = {"Idempotency-Key": '"k"', "Content-Type": "application/json"}
    async with speaking(configured, TOKENS["reports"]) as http:
        said = refused(await http.http.post("/tasks", content=body, headers=headers), status, reason)
        assert said["code"] == -32602


async def test_a_body_is_declared_as_json(configured: UpProcess) -> None:
    """Whatever it holds: a page's form cannot be sent in a server's name."""
    headers = {"Idempotency-Key": '"k"', "Content-Type": "text/plain"}
    async with speaking(configured, TOKENS["reports"]) as http:
        text = await http.http.post("/tasks", content=json.dumps(creation()).encode(), headers=headers)
        refused(text, 415, "unsupported_media_type")


async def test_a_body_of_unsaid_length_is_bounded_too(configured: UpProcess) -> None:
    """Chunked: read up to the maximum, and no further."""

    async def endless() -> AsyncIterator[bytes]:
        yield b'"'
        for _ in range(100):
            yield b"x" * 1_024

    headers = {"Idempotency-Key": '"k"', "Content-Type": "application/json"}
    async with speaking(configured, TOKENS["reports"]) as http:
        refused(await http.http.post("/tasks", content=endless(), headers=headers), 413, "too_large")


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("POST", f"/tasks/get?task_id={'a' * 32}", 400, "invalid_request"),
        ("GET", f"/work/{'a' * 31}", 400, "invalid_request"),
        ("GET", f"/work/{'a' * 32}?wait=61", 400, "invalid_request"),
        ("GET", f"/work/{'a' * 32}?wait=1&wait=2", 400, "invalid_request"),
        ("GET", f"/work/{'a' * 32}?until=1", 400, "invalid_request"),
        ("GET", "/tasks", 405, "method_not_allowed"),
        ("GET", "/nothing", 404, "not_found"),
    ],
)
async def test_a_path_is_as_documented_or_refused(
    configured: UpProcess, method: str, path: str, status: int, reason: str
) -> None:
    """A task's id has no place in a URL (design, promise 5); an unknown parameter would ask another question."""
    async with speaking(configured, TOKENS["reports"]) as http:
        refused(await http.http.request(method, path, json={}), status, reason)


@contextlib.asynccontextmanager
async def waiting(http: Speaking, ref: str, count: int) -> AsyncGenerator[None]:
    """So many streams of one server."""
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(http.following(f"/work/{ref}/events")) for _ in range(count)]
        for events in streams:
            await anext(events)
        yield


async def test_one_server_does_not_take_all_connections(up: UpProcess) -> None:
    """So many wait at once; one more is told so, another server is not, and who left makes room."""
    async with speaking(up, server="greedy") as http, speaking(up, server="modest") as other:
        task, modest = await http.made(), await other.made()
        path = f"/work/{task['task_ref']}"
        async with asyncio.timeout(60), waiting(http, task["task_ref"], WAITING_MAX):
            said = refused(await http.http.get(f"{path}/events"), 503, "unavailable")
            assert said["written"] == "nothing"
            refused(await http.http.get(path, params={"after": 9, "wait": 9}), 503, "unavailable")
            done(await http.http.get(path))
            async with waiting(other, modest["task_ref"], 1):
                pass

        async def let_in() -> bool:
            return (await http.http.get(path, params={"after": 9, "wait": 1})).status_code == HTTPStatus.OK

        await until(let_in)


async def test_whoever_waits_is_let_go_when_the_service_stops(tmp_path: Path) -> None:
    """A long poll ends with the view as it is, a stream ends; the service does not wait for either."""
    with UpProcess(tmp_path / "data") as up:
        async with speaking(up, server="reports") as http:
            task = await http.made()
            ref: str = task["task_ref"]
            polling = asyncio.create_task(http.view(ref, after=1, wait=60))
            async with http.following(f"/work/{ref}/events") as events, http.following("/moves") as moves:
                first: Json = (await anext(events)).data
                assert first["seq"] == 1
                code = await asyncio.to_thread(up.stop)
                async with asyncio.timeout(60):
                    assert [event async for event in events] == []
                    assert {event.data["task_ref"] async for event in moves} <= {ref}
            assert (await polling)["seq"] == 1
        assert code == 0, up.output()
