"""Between an MCP server and tasktrail: how it is set up, what may be said, and what is taken for what. Sources: design
promises 1 to 3, sections 3 and 6, facts.md on least privilege."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from mcp.server import MCPServer
from nats.aio.client import Client as Nats

from tasktrail.events.authority import Level
from tasktrail.events.errors import (
    AuthorityPaused,
    InvalidRequest,
    NothingWritten,
    RateLimited,
    TaskNotFound,
    TasktrailError,
)
from tasktrail.events.facts import AccessDenied, TaskCreated
from tasktrail.events.subjects import kind_of
from tasktrail.mcp import link as module
from tasktrail.mcp import voice
from tasktrail.mcp.extension import Tasks
from tasktrail.mcp.link import ConnectedLink, EmbeddedLink, Listener, answered, patiently
from tasktrail.mcp.serving import warn_of_unknown
from tasktrail.services import connection, messages
from tasktrail.services.broker import Broker
from tasktrail.services.connection import Connection
from tasktrail.services.messages import ACTIONS, Said
from tasktrail.testing.waiting import until

from .place import Place, carrying, connect, held, only, opened, reading, refused
from .serving import WITHIN_S
from .workshop import SUPPORT

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def connected(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Place]:
    """Give a running installation whose MCP server is connected."""
    async with opened("connected", tmp_path_factory.mktemp("connected")) as place:
        yield place


@pytest_asyncio.fixture(loop_scope="module")
async def adapter(connected: Place) -> AsyncGenerator[Nats]:
    """Give a connection with an MCP server's login."""
    said = json.loads((connected.data / "adapter.json").read_text())
    options = {name: said[name] for name in ("servers", "user", "password", "inbox_prefix")}
    nc = await connect(**options)
    try:
        yield nc
    finally:
        await nc.close()


async def ask(nc: Nats, subject: str, body: bytes) -> dict[str, Any]:
    """The answer to a request; there is always one."""
    reply = await nc.request(f"tasktrail.cmd.{subject}", body, timeout=10)
    found: dict[str, Any] = json.loads(reply.data)
    return found


CALLER = {"iss": "https://id.example", "sub": "ana", "client_id": "cli"}
CALL = {"method": "tools/call", "wire": "mcp/2026-07-28"}
CREATE: dict[str, Any] = {"caller": CALLER, "call": CALL, "command_id": "1", "tool": "echo", "task_support": "optional"}


@pytest.mark.parametrize(
    "target", ["", "http://127.0.0.1:4222", "nats://", "/no/such/adapter.json", "nats://a,ftp://b"]
)
async def test_an_address_that_is_none_is_refused_with_what_to_write(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Style 8: the message says what to do next."""
    monkeypatch.delenv("TASKTRAIL_CONNECT", raising=False)
    with pytest.raises(InvalidRequest, match="nats://"):
        Tasks.connect(target, tools=SUPPORT)


async def test_the_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One setting, TASKTRAIL_CONNECT, for a server that is deployed unchanged."""
    monkeypatch.setenv("TASKTRAIL_CONNECT", "nats://127.0.0.1:1")
    assert isinstance(Tasks.connect(tools=SUPPORT), Tasks)


async def test_a_tools_support_is_one_of_three_words() -> None:
    """`execution.taskSupport` of the 2025-11-25 specification has these three."""
    with pytest.raises(InvalidRequest, match="none of forbidden, optional, required"):
        Tasks.embed(tools={"echo": "sometimes"})


async def test_a_server_that_finds_no_broker_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a hang: it says where it looked, and what should be running there."""
    monkeypatch.setattr(connection, "CONNECT_S", 0.3)
    tasks = Tasks.connect("nats://127.0.0.1:1", tools=SUPPORT)
    mcp: MCPServer[Any] = MCPServer("lonely", extensions=[tasks], log_level="CRITICAL")
    with pytest.raises(NothingWritten, match=r"127\.0\.0\.1:1.*tasktrail up"):
        async with tasks.lifespan(mcp):
            pass


@pytest.mark.parametrize(("named", "told"), [("reprot", True), ("re*", False), ("report", False)])
async def test_a_tool_that_the_server_does_not_have_is_told(
    named: str, *, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A misspelt name would run without a task, and nobody would know why."""
    warn_of_unknown([named], {"report", "plain"})
    assert ("names 'reprot', which this server does not have (it has plain, report)" in caplog.text) is told


@pytest.mark.requirement("L9")
async def test_a_login_that_is_not_this_servers_is_refused_at_the_start(tmp_path: Path) -> None:
    """Not by time-outs later: the name and the login belong together (docs/nats.md)."""
    with Broker.start(tmp_path / "nats", servers=["reports"]) as broker:
        login = broker.servers["reports"]
        own = Connection(
            servers=[broker.url], user=login.user, password=login.password, inbox_prefix=login.inbox_prefix
        )
        link = ConnectedLink(own, "reports")
        await link.start()
        await link.stop()
        with pytest.raises(InvalidRequest, match=r"not for the MCP server 'other'.*servers/other\.json"):
            await ConnectedLink(own, "other").start()
        with pytest.raises(NothingWritten, match=r"refuses this login; give the adapter\.json"):
            await ConnectedLink(Connection(servers=[broker.url]), "reports").start()


async def test_a_link_that_was_not_started_says_so() -> None:
    """The lifespan was forgotten."""
    link = ConnectedLink(Connection(servers=["nats://127.0.0.1:1"]), "lonely")
    with pytest.raises(NothingWritten, match="lifespan"):
        await link.request("collect", messages.CollectInput(task_ref="a" * 32))


class Scripted:
    """A link to a service that fails as told, one error per request, and then answers. `tried`: when it was asked."""

    def __init__(self, *errors: TasktrailError) -> None:
        self.server = "scripted"
        self.tried: list[float] = []
        self._errors = list(errors)

    async def start(self) -> None:
        """Nothing to connect."""

    async def stop(self) -> None:
        """Nothing to disconnect."""

    async def request(self, action: str, said: Said) -> Any:  # noqa: ANN401 - as `Link` has it
        """The next error, or what was asked for."""
        self.tried.append(asyncio.get_running_loop().time())
        if self._errors:
            raise self._errors.pop(0)
        return action, said

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Nothing moves."""
        del listener
        return lambda: None


COLLECT = messages.CollectInput(task_ref="a" * 32)


async def test_what_may_be_sent_again_is_sent_when_the_service_said(caplog: pytest.LogCaptureFixture) -> None:
    """`TasktrailError.retry_after_ms`; the log says for what it waits, once, and never that the trail is away."""
    caplog.set_level(logging.WARNING, logger="tasktrail.mcp.link")
    link = Scripted(RateLimited("slow down", 600), RateLimited("slow down", 0))
    assert await patiently(link, "collect", COLLECT, until_ms=10_000, now_ms=lambda: 0) == ("collect", COLLECT)
    first, second, _ = link.tried
    assert second - first >= 0.6
    told = [record.getMessage() for record in caplog.records if record.name == "tasktrail.mcp.link"]
    assert told == ["collect of a task waits its turn: rate_limited"]


async def test_no_wait_outlasts_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the service says; and then it is tried once more."""
    began = time.monotonic()
    late = Scripted(RateLimited("slow down", 3_600_000), RateLimited("slow down", 3_600_000))
    with pytest.raises(RateLimited):
        await patiently(late, "collect", COLLECT, until_ms=100, now_ms=lambda: int((time.monotonic() - began) * 1000))
    assert len(late.tried) == 2
    monkeypatch.setattr(module, "RETRY_AFTER_MAX_S", 0.1)
    bounded = Scripted(RateLimited("slow down", 3_600_000))
    async with asyncio.timeout(WITHIN_S):
        await patiently(bounded, "collect", COLLECT, until_ms=10**9, now_ms=lambda: 0)


async def test_what_policy_makes_wait_is_given_up_when_nobody_wants_it_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At once, also in the middle of a wait; an outage is waited for all the same: then nobody could say."""
    caplog.set_level(logging.WARNING, logger="tasktrail.mcp.link")
    unwanted = asyncio.Event()
    link = Scripted(*(AuthorityPaused("it waits") for _ in range(3)))
    link._errors[0].retry_after_ms = 3_600_000  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]  # this file's own
    giving_up = asyncio.create_task(
        patiently(link, "complete", COLLECT, until_ms=10**9, now_ms=lambda: 0, unless=unwanted)
    )
    await until(lambda: link.tried)
    unwanted.set()
    async with asyncio.timeout(WITHIN_S):
        with pytest.raises(AuthorityPaused):
            await giving_up
    assert "complete of a task waits until the creator's authority stands: authority_paused" in caplog.text
    away = Scripted(NothingWritten("away"))
    assert await patiently(away, "complete", COLLECT, until_ms=10**9, now_ms=lambda: 0, unless=unwanted)
    assert len(away.tried) == 2


async def test_every_error_of_the_service_arrives_as_what_it_is() -> None:
    """The tree in `events/errors.py`; one of a later version keeps its code and whether to try again."""
    said = messages.Failed(reason="not_found", message="Task not found", code=-32602, retriable=False, written="denial")
    with pytest.raises(TaskNotFound, match="Task not found"):
        answered("get", msgspec.json.encode({"error": said}))
    newer = msgspec.structs.replace(said, reason="quota", code=-32099, retriable=True, message="slow down")
    with pytest.raises(TasktrailError, match="slow down") as raised:
        answered("get", msgspec.json.encode({"error": newer}))
    error = raised.value
    assert (error.code, error.retriable, error.reason, error.written) == (-32099, True, "quota", "denial")


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b'{"ok": {"later": 1}}', b"\xff", b"[" * 100_000])
async def test_an_answer_of_another_version_is_an_error_too(body: bytes) -> None:
    """`Link.request` ends in an answer or an error of the tree, whatever comes back."""
    with pytest.raises(TasktrailError, match="version"):
        answered("get", body)


BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"hello",
    "no UTF-8": b"\xff\xfe",
    "no object": b"[]",
    "null": b"null",
    "NaN": b'{"task_ref": NaN}',
    "cut off": b'{"task_ref": "',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "twice the same name": b'{"task_ref": "a", "task_ref": "b"}',
    "an unknown field": b'{"task_ref": "%s", "more": 1}' % (b"a" * 32),
    "a wrong type": b'{"task_ref": 5}',
    "a reference of another form": b'{"task_ref": "*"}',
    "a huge number": b'{"task_ref": 1e999}',
    "a lone surrogate": b'{"task_ref": "\\ud800"}',
    "NUL": b'{"task_ref": "\\u0000"}',
}


@pytest.mark.parametrize("action", sorted(ACTIONS))
async def test_hostile_requests_are_answered_and_change_nothing(connected: Place, adapter: Nats, action: str) -> None:
    """Every edge: a documented error, memory bounded, the service alive. Nothing of it reaches the trail."""
    before = len(await connected.trail.all())
    for what, body in BODIES.items():
        answer = await ask(adapter, f"workshop.{action}", body)
        assert answer["error"]["code"] == -32602, (what, answer)
        assert len(answer["error"]["message"]) < 1000, what
    assert len(await connected.trail.all()) == before


async def test_a_request_longer_than_any_payload_is_refused(adapter: Nats) -> None:
    """Setting `payload_max_bytes`, and what its envelope may add: beyond that nothing is even parsed."""
    answer = await ask(adapter, "workshop.complete", b'{"task_ref": "%s"}' % (b"a" * 17 * 1024 * 1024))
    assert answer["error"]["reason"] == "too_large"


@pytest.mark.parametrize("subject", ["workshop.destroy", "workshop.__init__", "workshop.carry_out", "x.GET"])
async def test_there_are_no_other_actions(adapter: Nats, subject: str) -> None:
    """The answer names those there are."""
    answer = await ask(adapter, subject, b"{}")
    assert answer["error"]["reason"] == "invalid_request"
    assert "create" in answer["error"]["message"]


@pytest.mark.requirement("A5")
async def test_a_connected_server_cannot_make_its_word_more_than_asserted(connected: Place, adapter: Nats) -> None:
    """Design section 6: no promotion anywhere. It may say that tasktrail verified the token; it was not seen to."""
    forged = {"method": "jwt", "verified_by_tasktrail": True, "jwks_sha256": "f" * 64, "kid": "k"}
    known = {**CALLER, "iss": connected.issuer.url}
    answer = await ask(
        adapter, "workshop.create", json.dumps({**CREATE, "caller": {**known, "credential": forged}}).encode()
    )
    authority = carrying(await connected.trail.of(answer["ok"]["task_id"]), TaskCreated).authority
    assert authority.principal is not None
    assert authority.credential is not None
    assert {authority.principal.level, authority.credential.level} == {Level.ASSERTED}
    bare = await ask(adapter, "workshop.create", json.dumps({**CREATE, "caller": known, "command_id": "2"}).encode())
    nobody = carrying(await connected.trail.of(bare["ok"]["task_id"]), TaskCreated).authority
    assert nobody.principal is not None
    assert (nobody.principal.level, nobody.principal.kind) == (Level.CLAIMED, "anonymous")


@pytest.mark.requirement("A1", "A5")
async def test_a_caller_without_a_credential_does_not_become_somebody(connected: Place, adapter: Nats) -> None:
    """Design section 6: claimed facts never decide. Without a credential the caller is nobody, whatever it claims."""
    known = {**CALLER, "iss": connected.issuer.url, "sub": "victim"}
    made = await ask(adapter, "workshop.create", json.dumps({**CREATE, "caller": known, "command_id": "3"}).encode())
    created = only(await connected.trail.of(made["ok"]["task_id"]), TaskCreated)
    assert (created.binding.iss, created.binding.sub, created.binding.client_id) == ("", "", "")


@pytest.mark.requirement("A1")
async def test_a_server_cannot_touch_the_work_of_another(connected: Place, adapter: Nats) -> None:
    """The server's name is the subject's; its report on somebody else's task is denied, and on the trail."""
    with connected.bench() as label:
        async with connected.client() as ana:
            made = await held(connected, ana, "waits", label)
            ref = connected.trail.ref(made["taskId"])
            common: dict[str, Any] = {"task_ref": ref, "command_id": "x"}
            stolen: dict[str, dict[str, Any]] = {
                "complete": {**common, "result": {}},
                "fail": {**common, "error": {"code": 1, "message": "m"}},
                "stop": common,
                "lose": {**common, "cause": "x"},
                "report": {**common, "message": "m"},
                "ask": {**common, "asks": {"k": {"method": "roots/list"}}},
                "collect": {"task_ref": ref},
            }
            for action, body in stolen.items():
                answer = await ask(adapter, f"another.{action}", json.dumps(body).encode())
                unknown = await ask(adapter, f"another.{action}", json.dumps({**body, "task_ref": "a" * 32}).encode())
                assert answer == unknown, action
                assert answer["error"]["reason"] == "not_found"
            assert (await ana.get(made["taskId"])).result["status"] == "working"
        denial = await refused(connected, ref, "other-server-runs-task")
        assert only([denial], AccessDenied).method.startswith("work/")
    assert "CommandRefused" not in await connected.trail.names(made["taskId"])


@pytest.mark.requirement("L8")
async def test_a_server_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MCP names are free text. Signals must arrive, not only what a run finds when it looks for itself."""
    monkeypatch.setattr(voice, "LOOK_EVERY_S", 3600)
    async with opened("connected", tmp_path, name="Reports & more, v2") as place, place.client() as ana:
        with place.bench() as label:
            made = await held(place, ana, "waits", label)
            await ana.cancel(made["taskId"])
            bench = place.workshop.bench(label)
            await until(lambda: "told to stop" in bench.log, within_s=20)


async def test_an_embedded_service_takes_what_a_connected_one_does(tmp_path: Path) -> None:
    """`messages.py`: a member of another type would be an entry that nobody can read, also the one after it."""
    link = EmbeddedLink(tmp_path, "reports")
    await link.start()
    try:
        said = msgspec.convert({**CREATE, "arguments": {"n": [1, None, "\0"]}}, messages.CreateTask)
        odd: Any
        for odd in (True, 10**30, "5", 1.5):
            with pytest.raises(InvalidRequest, match=r"create: .*ttl_ms"):
                await link.request("create", msgspec.structs.replace(said, command_id=f"odd {odd}", ttl_ms=odd))
        deep: Any = msgspec.structs.replace(said, call=messages.Call(method="x" * 513))
        with pytest.raises(InvalidRequest, match=r"create: .*call\.method"):
            await link.request("create", deep)
        with pytest.raises(InvalidRequest, match="not JSON"):
            await link.request("create", msgspec.structs.replace(said, arguments=object()))
        async with reading(tmp_path) as trail:
            assert not [entry for subject, entry in await trail.all() if kind_of(subject) == "task"]
            made = await link.request("create", said)
            assert only(await trail.of(made.task_id), TaskCreated).tool == "echo"
    finally:
        await link.stop()


@pytest.mark.parametrize("kind", ["nul", "integer", "deep"])
async def test_a_result_that_json_allows_is_recorded(place: Place, kind: str) -> None:
    """What a tool may answer directly it may answer as a task, embedded or connected."""
    async with place.client() as ana:
        made = await ana.start("odd", kind=kind)
        done = await ana.until(made["taskId"], "completed", "failed")
    assert done["status"] == "completed"
