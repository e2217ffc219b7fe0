"""The HTTP surface over real uvicorn and a real audit store. Issue "main job"; design, sections 1, 5 and 8."""

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from tests.services.http.store_surface import StoreSurface
from tests.services.scene import Scene, open_store, play

from tasktrail.events.errors import MaybeWritten, NothingWritten
from tasktrail.projections.audit.timeline import Step, Timeline
from tasktrail.services.http.app import BODY_BYTES_MAX, create_app
from tasktrail.services.http.edge import Hosts
from tasktrail.services.http.server import ListenError, Server
from tasktrail.services.http.surface import Batch
from tasktrail.services.http.tailing import Tails
from tasktrail.services.operators import Asker

TOKEN = "ttr_" + "t" * 43
JSON = {"Content-Type": "application/json"}
WITHIN_S = 20.0


@pytest.fixture(scope="module")
def scene() -> Scene:
    return play()


@pytest.fixture
async def surface(scene: Scene, tmp_path: Path) -> AsyncIterator[StoreSurface]:
    store = open_store(scene, tmp_path / "audit.duckdb")
    yield StoreSurface(store, scene)
    store.close()


@pytest.fixture
async def serve(surface: StoreSurface) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Start a server for the surface; give its URL."""
    running: list[Server] = []

    async def start(hosts: Hosts | None = None, tails: Tails | None = None) -> str:
        app = create_app(surface, token=TOKEN, hosts=hosts or Hosts("127.0.0.1"), tails=tails)
        running.append(await Server.start(app, host="127.0.0.1", port=0))
        return running[-1].url

    yield start
    for server in running:
        await server.stop()


@pytest.fixture
async def client(serve: Callable[..., Awaitable[str]]) -> AsyncIterator[httpx.AsyncClient]:
    url = await serve()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=WITHIN_S, trust_env=False) as opened:
        yield opened


def is_problem(answer: httpx.Response, status: int, reason: str) -> str:
    """Every refusal is problem+json in one form (RFC 9457); its detail."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    said = answer.json()
    assert set(said) == {"type", "title", "status", "detail", "reason", "retriable", "written"}
    assert (said["status"], said["reason"]) == (status, reason)
    assert said["type"] == f"urn:tasktrail:problem:{reason}"
    return str(said["detail"])


@pytest.mark.requirement("T3")
async def test_a_timeline_is_asked_for_by_reference_or_id_in_a_body(
    client: httpx.AsyncClient, surface: StoreSurface, scene: Scene
) -> None:
    """Design, section 1: a task id is never an argument of a URL."""
    by_ref = await client.post("/api/v1/timeline", json={"task": scene.ref})
    by_id = await client.post("/api/v1/timeline", json={"task": scene.task_id})
    assert by_ref.status_code == by_id.status_code == 200
    assert by_ref.content == by_id.content
    assert msgspec.json.decode(by_ref.content, type=Timeline) == surface.store.timeline(scene.ref)
    is_problem(await client.get("/api/v1/timeline", params={"task": scene.ref}), 405, "method_not_allowed")


async def test_a_task_that_is_not_on_the_trail_is_a_404(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/timeline", json={"task": "a" * 32})
    assert is_problem(answer, 404, "no_such_task") == "no task on this trail has this reference or id"


async def test_every_reading_says_who_asks(client: httpx.AsyncClient, surface: StoreSurface) -> None:
    """Feature T8 needs it; `ath` of the token as in RFC 9449, section 4.2."""
    await client.get("/api/v1/tasks")
    [(_, asker)] = surface.asked
    digest = base64.urlsafe_b64encode(hashlib.sha256(TOKEN.encode()).digest()).decode().rstrip("=")
    assert asker == Asker(token_hash=digest, address="127.0.0.1")


@pytest.mark.requirement("T8")
async def test_a_reading_says_for_which_case_or_is_refused(client: httpx.AsyncClient, surface: StoreSurface) -> None:
    """docs/responders.md: the header `Tasktrail-Case`, in UTF-8."""
    for case in ("INC-7", "Fall Ü 9", ""):
        await client.get("/api/v1/tasks", headers={b"Tasktrail-Case": case.encode()})
        assert surface.asked[-1][1].case_id == case
    for said in (b"x" * 201, b"a\x1b[31m", b"\xff", "\u202einc".encode()):
        is_problem(await client.get("/api/v1/tasks", headers={b"Tasktrail-Case": said}), 400, "invalid_request")
    twice = [(b"Tasktrail-Case", b"a"), (b"Tasktrail-Case", b"b")]
    is_problem(await client.get("/api/v1/tasks", headers=twice), 400, "invalid_request")
    assert (await client.get("/healthz", headers={b"Tasktrail-Case": b"\xff"})).status_code == 200


FILTERS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({}, (3, 2, 1, 0)),
    ({"status": "completed"}, (0,)),
    ({"status": ["input_required", "working"]}, (3, 2, 1)),
    ({"tenant": "globex"}, (3,)),
    ({"tool": "export", "sub": "ben"}, (1,)),
    ({"live": "false"}, (0,)),
    ({"limit": 1}, (3,)),
    ({"server": "elsewhere"}, ()),
    ({"sub": ""}, ()),
]


async def test_tasks_are_filtered(client: httpx.AsyncClient, scene: Scene) -> None:
    known = (scene.ref, *scene.others)
    for parameters, refs in FILTERS:
        found = (await client.get("/api/v1/tasks", params=parameters)).json()
        assert [one["task_ref"] for one in found] == [known[at] for at in refs], parameters


async def test_pages_of_tasks_go_on_before_the_last_one_seen(client: httpx.AsyncClient) -> None:
    everything = (await client.get("/api/v1/tasks")).json()
    paged: list[Any] = []
    while page := (
        await client.get("/api/v1/tasks", params={"limit": 3} | ({"before": paged[-1]["first_seq"]} if paged else {}))
    ).json():
        paged += page
    assert paged == everything


MISASKED = [
    ("stauts=working", "unknown parameter 'stauts'; known: before, client_id,"),
    ("limit=1&limit=2", "parameter limit is given more than once"),
    ("limit=0", "limit: Expected `int` >= 1"),
    ("limit=1001", "limit: Expected `int` <= 1000"),
    ("limit=ten", "limit: Expected `int`"),
    ("before=-1", "before: Expected `int` >= 0"),
    ("before=9007199254740992", "before: Expected `int` <= 9007199254740991"),
    ("status=done", "status: Invalid enum value 'done'"),
    ("live=perhaps", "live: Expected `bool"),
    ("request=x", "unknown parameter 'request'"),
    ("task=" + "a" * 5000, "unknown parameter 'task'"),
]


async def test_a_parameter_that_is_not_as_documented_is_refused_by_name(client: httpx.AsyncClient) -> None:
    for query, says in MISASKED:
        detail = is_problem(await client.get(f"/api/v1/tasks?{query}"), 400, "invalid_request")
        assert detail.startswith(says)
        assert len(detail) < 300


HOSTILE: list[tuple[bytes, int, str, str]] = [
    (b"", 400, "invalid_request", "the body is empty"),
    (b"{", 400, "invalid_request", "the body is no JSON"),
    (b"[]", 400, "invalid_request", "Expected `object`, got `array`"),
    (b"{}", 400, "invalid_request", "Object missing required field `task`"),
    (b'{"task":1}', 400, "invalid_request", "Expected `str`, got `int` - at `$.task`"),
    (b'{"task":null}', 400, "invalid_request", "Expected `str`, got `null` - at `$.task`"),
    (b'{"task":""}', 400, "invalid_request", "Expected `str` of length >= 1 - at `$.task`"),
    (b'{"task":"' + b"a" * 300 + b'"}', 400, "invalid_request", "Expected `str` of length <= 256"),
    (b'{"task":"a","since":1}', 400, "invalid_request", "Object contains unknown field `since`"),
    (b'{"task":"a","task":"b"}', 400, "invalid_request", "$.task: repeated member name"),
    (b'{"task":"\\u0000"}', 400, "invalid_request", "$.task: NUL character"),
    (b'{"task":"\\ud800"}', 400, "invalid_request", "$.task: lone surrogate"),
    (b'{"task":"\xff"}', 400, "invalid_request", "the body is not UTF-8"),
    (b'{"task":NaN}', 400, "invalid_request", "$.task: NaN is no JSON number"),
    (b'{"task":9007199254740993}', 400, "invalid_request", "$.task: integer beyond"),
    (b"[" * 60_000, 400, "invalid_request", "the body is nested deeper"),
    (b'{"task":"a"}' + b" " * BODY_BYTES_MAX, 413, "too_large", "the body is too large"),
]


async def test_a_hostile_body_is_a_documented_error_and_the_service_lives(client: httpx.AsyncClient) -> None:
    """Issue "main job": hostile input at every edge."""
    for body, status, reason, says in HOSTILE:
        answer = await client.post("/api/v1/timeline", content=body, headers=JSON)
        assert is_problem(answer, status, reason).startswith(says)
        assert (await client.get("/healthz")).status_code == 200


async def test_a_body_of_unknown_length_is_bounded_too(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 4_096

    answer = await client.post("/api/v1/timeline", content=endless(), headers=JSON)
    is_problem(answer, 413, "too_large")


RAW = [
    (b"\x00\xff" * 100 + b"\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.0\r\n\r\n", 421),
    (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000, 0),
    (b"GET http://evil.example/healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
    (b"POST /api/v1/timeline HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
    (b"POST /api/v1/timeline HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n", 401),
    (b"GET /api/v1/tail HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 401),
]


async def test_hostile_bytes_are_answered_or_cut_off_and_the_service_lives(client: httpx.AsyncClient) -> None:
    """Issue "main job": hostile input at every edge; RFC 9112, section 3.2: a request has one Host."""
    for sent, status in RAW:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        writer.write(sent)
        first = b"HTTP/1.1 0 cut off"
        async with asyncio.timeout(WITHIN_S):
            with contextlib.suppress(ConnectionError):
                first = await reader.readline()
        writer.close()
        assert first.startswith((b"HTTP/1.1 %d " % status, b"HTTP/1.1 400 ")), (sent[:80], first)
        assert (await client.get("/healthz")).status_code == 200


async def test_a_body_that_is_not_declared_as_json_is_refused(client: httpx.AsyncClient) -> None:
    """A form of another page could be sent without a preflight (Fetch standard)."""
    answer = await client.post("/api/v1/timeline", content=b'{"task":"a"}', headers={"Content-Type": "text/plain"})
    is_problem(answer, 415, "unsupported_media_type")


PATHS = ["/api/v1/tasks", "/api/v1/tail", "/api/v1/nothing", "/schema/openapi.json", "/", "/healthz/"]
WRONG = [None, "Bearer", "Bearer ttr_wrong", f"Basic {TOKEN}", f"bearer{TOKEN}", TOKEN, f"Bearer {TOKEN}x"]


@pytest.mark.parametrize("credential", WRONG)
async def test_without_the_responder_token_there_is_nothing_but_health(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, credential: str | None
) -> None:
    """RFC 6750, section 3; the log names the failure, never what was presented."""
    caplog.set_level(logging.WARNING, logger="tasktrail.http")
    for path in PATHS:
        request = client.build_request("GET", path)
        del request.headers["Authorization"]
        if credential is not None:
            request.headers["Authorization"] = credential
        answer = await client.send(request)
        is_problem(answer, 401, "unauthorised")
        expected = 'Bearer realm="tasktrail"' + ("" if credential is None else ', error="invalid_token"')
        assert answer.headers["WWW-Authenticate"] == expected
    assert caplog.text.count("http_refused reason=unauthorised status=401 method=GET address=127.0.0.1") == len(PATHS)
    assert "ttr_" not in caplog.text


async def test_the_schema_says_that_a_servers_token_is_good_for_it_too(client: httpx.AsyncClient) -> None:
    """docs/typescript.md: the document is read with the token of an MCP server, which opens nothing else here."""
    async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as bare:
        answers = [await bare.get(path) for path in ("/schema/openapi.json", "/api/v1/tasks")]
    said = [is_problem(answer, 401, "unauthorised") for answer in answers]
    assert ["the token of an MCP server" in one for one in said] == [True, False], said


async def test_two_credentials_are_none(client: httpx.AsyncClient) -> None:
    headers = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer other")]
    async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as bare:
        is_problem(await bare.get("/api/v1/tasks", headers=headers), 401, "unauthorised")


async def test_health_needs_no_token(client: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as bare:
        for path in ("/healthz", "/readyz"):
            assert (await bare.get(path)).status_code == 200


async def test_not_ready_says_which_part_is_behind_and_by_how_much(
    client: httpx.AsyncClient, surface: StoreSurface
) -> None:
    """Issue "main job": `/healthz` and `/readyz` tell the truth."""
    surface.behind = 41
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    part = {"ready": False, "position": 7, "behind": 41, "detail": ""}
    assert answer.json() == {"ready": False, "parts": {"auditor": part}}
    surface.alive = False
    answer = await client.get("/healthz")
    assert answer.status_code == 503
    assert answer.json() == {"alive": False, "detail": "the auditor ended"}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", "192.0.2.1", "a b", ""]
)
async def test_another_host_is_refused_even_for_health(client: httpx.AsyncClient, host: str) -> None:
    """A page may rebind its own name to this address; RFC 9110, section 15.5.20."""
    is_problem(await client.get("/healthz", headers={"Host": host}), 421, "wrong_host")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:8420", "[::1]:8420", "127.1.2.3", "localhost."]
)
async def test_loopback_names_are_ours_whatever_the_port(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/healthz", headers={"Host": host})).status_code == 200


async def test_bound_and_configured_hosts_are_ours(serve: Callable[..., Awaitable[str]]) -> None:
    """Bound to every address, any number is: only a name can be rebound."""
    everywhere = Hosts("0.0.0.0", ["trail.example"])  # noqa: S104 - what is tested
    url = await serve(hosts=everywhere)
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        for host in ("192.0.2.1", "[2001:db8::1]:80", "trail.example:443", "Trail.Example"):
            assert (await client.get("/healthz", headers={"Host": host})).status_code == 200
        assert (await client.get("/healthz", headers={"Host": "evil.example"})).status_code == 421
    assert Hosts("192.0.2.1").admits("192.0.2.1:8420")
    assert not Hosts("192.0.2.1").admits("192.0.2.2")


async def test_a_page_of_another_origin_is_refused(client: httpx.AsyncClient) -> None:
    for origin in ("http://evil.example", "null", "http://localhost:1", "https://127.0.0.1:1", "file://", "127.0.0.1"):
        is_problem(await client.get("/api/v1/tasks", headers={"Origin": origin}), 403, "foreign_origin")


async def test_a_page_of_this_very_origin_is_not_refused(client: httpx.AsyncClient) -> None:
    same = {"Origin": str(client.base_url).rstrip("/")}
    assert (await client.get("/api/v1/tasks", headers=same)).status_code == 200
    behind_proxy = {"Host": "localhost", "Origin": "https://localhost"}
    assert (await client.get("/api/v1/tasks", headers=behind_proxy)).status_code == 200


async def test_no_answer_may_be_stored_and_none_names_the_server(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/api/v1/tasks", "/nothing", "/schema/openapi.json", "/api/v1/tasks?x"):
        answer = await client.get(path)
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Server" not in answer.headers


async def test_there_is_nothing_elsewhere(client: httpx.AsyncClient) -> None:
    for path in ("/nothing", "/schema/nothing", "/api/v1/", "/api/v1/timeline/x", "/%00", "/..%2f"):
        is_problem(await client.get(path), 404, "not_found")


async def test_failures_say_whether_something_was_written_and_whether_to_try_again(
    client: httpx.AsyncClient, surface: StoreSurface, caplog: pytest.LogCaptureFixture
) -> None:
    """`events/errors.py` has the table."""
    for error, status, reason in (
        (NothingWritten("later"), 503, "nothing_written"),
        (MaybeWritten("?"), 504, "maybe_written"),
    ):
        surface.fails = error
        answer = await client.post("/api/v1/timeline", json={"task": "a"})
        is_problem(answer, status, reason)
        assert answer.json()["written"] == error.written
        assert answer.json()["retriable"] is True
        assert answer.headers["Retry-After"] == "1"
    surface.fails = RuntimeError("a secret of the inside")
    answer = await client.post("/api/v1/timeline", json={"task": "a"})
    assert "secret" not in is_problem(answer, 500, "internal")
    assert "a secret of the inside" in caplog.text


async def test_the_openapi_document_describes_the_surface_and_loads_nothing(client: httpx.AsyncClient) -> None:
    """OpenAPI 3.1.0; feature O2."""
    document = (await client.get("/schema/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {"/healthz", "/readyz", "/api/v1/tasks", "/api/v1/timeline", "/api/v1/tail"}
    question = document["paths"]["/api/v1/timeline"]["post"]
    assert question["security"] == [{"responder": []}]
    assert {"200", "400", "401", "403", "404", "413", "415", "421", "503"} <= set(question["responses"])
    assert "application/problem+json" in question["responses"]["400"]["content"]
    assert {"Timeline", "Step", "Problem", "TaskShown"} <= set(document["components"]["schemas"])
    listed = {one["name"] for one in document["paths"]["/api/v1/tasks"]["get"]["parameters"]}
    assert listed == {"status", "tenant", "server", "tool", "iss", "sub", "client_id", "live", "before", "limit"}
    assert (await client.get("/schema/openapi.yaml")).status_code == 200
    for path in ("/schema", "/schema/redoc", "/schema/swagger", "/schema/elements"):
        assert "<script" not in (await client.get(path)).text


async def read_events(lines: AsyncIterator[str], until: str) -> list[str]:
    """Lines of a stream up to one that begins with `until`."""
    seen: list[str] = []
    async with asyncio.timeout(WITHIN_S):
        async for line in lines:
            seen.append(line)
            if line.startswith(until):
                return seen
    pytest.fail(f"the stream ended after {seen}")


async def test_the_tail_sends_steps_as_they_come_and_where_to_go_on(
    client: httpx.AsyncClient, surface: StoreSurface
) -> None:
    """Server-sent events: HTML standard, section 9.2."""
    steps, until = surface.store.since(0, most=6)
    async with client.stream("GET", "/api/v1/tail?since=0") as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        await read_events(lines, ": following")
        surface.batches.put_nowait(Batch(steps=steps, until=until))
        seen = await read_events(lines, "id: ")
    sent = [msgspec.json.decode(line[6:], type=Step) for line in seen if line.startswith("data: ")]
    assert sent == list(steps)
    assert seen[-1] == f"id: {until}"
    assert surface.asked[0][0] == "tail 0"


async def test_a_reader_that_comes_back_goes_on_after_what_it_saw_last(
    client: httpx.AsyncClient, surface: StoreSurface
) -> None:
    """`Last-Event-ID` is what an event source sends back; it knows better than the address it was opened with."""
    surface.batches.put_nowait(Batch(steps=(), until=18))
    async with client.stream("GET", "/api/v1/tail?since=3", headers={"Last-Event-ID": "17"}) as answer:
        await read_events(answer.aiter_lines(), "id: 18")
    assert [asked for asked, _ in surface.asked] == ["tail 17"]


async def test_a_fault_ends_the_tail_with_a_problem(client: httpx.AsyncClient, surface: StoreSurface) -> None:
    for error, reason in ((NothingWritten("not now"), "nothing_written"), (RuntimeError("inside"), "internal")):
        async with client.stream("GET", "/api/v1/tail") as answer:
            lines = answer.aiter_lines()
            surface.batches.put_nowait(error)
            await read_events(lines, "event: problem")
            [data] = [line async for line in lines if line]
        assert json.loads(data.removeprefix("data: "))["reason"] == reason
        assert "inside" not in data


async def test_a_quiet_tail_shows_that_it_is_alive_and_too_many_are_refused(
    serve: Callable[..., Awaitable[str]],
) -> None:
    url = await serve(tails=Tails(beat_s=0.05, tails_max=1))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=WITHIN_S, trust_env=False) as client:
        async with client.stream("GET", "/api/v1/tail") as answer:
            await read_events(answer.aiter_lines(), ": still here")
            is_problem(await client.get("/api/v1/tail"), 503, "unavailable")
        async with asyncio.timeout(WITHIN_S):
            while True:
                async with client.stream("GET", "/api/v1/tail") as again:
                    if again.status_code == 200:
                        break


async def test_stopping_ends_open_tails_at_once(surface: StoreSurface) -> None:
    server = await Server.start(create_app(surface, token=TOKEN, hosts=Hosts("127.0.0.1")), host="127.0.0.1", port=0)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=WITHIN_S, trust_env=False) as client:
        async with client.stream("GET", "/api/v1/tail") as answer:
            lines = answer.aiter_lines()
            await read_events(lines, ": following")
            began = asyncio.get_running_loop().time()
            stopping = asyncio.create_task(server.stop())
            assert [line async for line in lines if line] == []
        await stopping
    assert asyncio.get_running_loop().time() - began < 3


async def test_a_port_in_use_is_refused_by_name(surface: StoreSurface, serve: Callable[..., Awaitable[str]]) -> None:
    port = int((await serve()).rpartition(":")[2])
    app = create_app(surface, token=TOKEN, hosts=Hosts("127.0.0.1"))
    with pytest.raises(ListenError, match=rf"cannot listen on 127.0.0.1 port {port}: .*choose another --port"):
        await Server.start(app, host="127.0.0.1", port=port)
    with pytest.raises(ListenError, match=r"cannot listen on no.such.host.invalid"):
        await Server.start(app, host="no.such.host.invalid", port=0)
