"""Hostile requests on `tasktrail.cmd.>`: each gets a documented error in time, and the service goes on.

Issue "main job": hostile input at every edge: a documented error, bounded memory, service alive. The errors are those
of `tasktrail.events.errors`, the requests those of `tasktrail.services.messages`.
"""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from tasktrail.events.subjects import CURRENT
from tasktrail.services.connection import Connection, settle
from tasktrail.services.messages import ACTIONS, HANDLE_MAX
from tasktrail.services.trail import KV_STREAM
from tasktrail.services.turns import LARGE_BYTES
from tasktrail.testing.feeding import Feeder, Json, Refused, asked, caller, creation
from tasktrail.testing.rebuild import Book
from tasktrail.testing.service import UpProcess
from tasktrail.testing.waiting import until

from .bodies import MARK, NOT_JSON, NOT_OURS, ODD_TEXTS, STRANGER, honest, mutants
from .conftest import Watched

DOCUMENTED = {
    "invalid_request",
    "invalid_answer",
    "too_large",
    "not_found",
    "not_authorised",
    "not_listed",
    "command_reused",
}
ANSWER_WITHIN_S = 10.0
AT_ONCE = 32
MIB = 1024 * 1024
ANA = caller("ana")

pytestmark = pytest.mark.requirement("O1")
CALM = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.function_scoped_fixture,
]


@pytest_asyncio.fixture
async def task(feeder: Feeder) -> AsyncIterator[Json]:
    """A task that hostile requests may name."""
    yield await feeder.settled("create", creation(ANA, f"victim-{time.monotonic_ns()}"))


async def projected(js: JetStreamContext, ref: str) -> None:
    """Wait until the bucket holds the task's state."""

    async def held() -> bool:
        with contextlib.suppress(NotFoundError):
            return bool(await js.get_last_msg(KV_STREAM, f"$KV.{CURRENT}.{ref}"))
        return False

    await until(held, what="the task's state")


async def answers(feeder: Feeder, requests: Iterable[tuple[str, Json | bytes]]) -> list[tuple[Any, str]]:
    """What each request came to, with the request: a reason, or `ok`. More than a documented error fails the test."""
    at_once = asyncio.Semaphore(AT_ONCE)

    async def answer(action: str, body: Json | bytes) -> tuple[Any, str]:
        async with at_once:
            try:
                await feeder.request(action, body, ANSWER_WITHIN_S)
            except Refused as refused:
                error = refused.error
            else:
                return (action, body), "ok"
        assert set(error) == {"reason", "message", "code", "retriable", "written"}, error
        assert error["reason"] in DOCUMENTED, (error, action, body)
        assert len(error["message"]) < 1_000
        return (action, body), error["reason"]

    return await asyncio.gather(*(answer(action, body) for action, body in requests))


@pytest.mark.parametrize("action", sorted(ACTIONS))
async def test_each_member_of_each_request_may_be_anything(feeder: Feeder, task: Json, action: str) -> None:
    """Left out, unknown, of another type, or of the right type and odd: refused, or taken as the text that it is."""
    body = honest(task["task_id"], task["task_ref"])[action]
    assert await answers(feeder, [(action, body)])
    seen = await answers(feeder, ((action, mutant) for mutant in mutants(body)))
    unknown = [why for (_, mutant), why in seen if MARK in json.dumps(list(_names(mutant)))]
    assert "invalid_request" in unknown
    left_out = [why for (_, mutant), why in seen if len(mutant) < len(body)]
    assert "invalid_request" in left_out


def _names(value: object) -> Iterable[str]:
    """The names of all members."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield name
            yield from _names(member)


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_what_is_no_json_object_of_ours_is_refused(feeder: Feeder, body: bytes) -> None:
    """RFC 8259 within RFC 7493; a refusal within the time limit also when it is deep or long."""
    seen = await answers(feeder, ((action, body) for action in ACTIONS))
    assert {why for _, why in seen} == {"invalid_request"}


@pytest.mark.parametrize("body", NOT_OURS.values(), ids=NOT_OURS.keys())
async def test_json_that_two_readers_would_read_differently_is_refused(feeder: Feeder, body: bytes) -> None:
    """Design section 8: duplicate keys, NaN, depth, huge integers and lone surrogates each need an explicit answer."""
    assert [why for _, why in await answers(feeder, [("create", body)])] == ["invalid_request"]


async def test_what_is_odd_in_a_payload_passes_as_it_is(feeder: Feeder) -> None:
    """Payloads are ours to keep and not to judge (strict_json.py): what comes back is what was sent."""
    odd = {"nul": "a\0b", "\0": [2**53, 2**63, 2**64 - 1, -(2**63)], "texts": list(ODD_TEXTS)}
    made = await feeder.settled("create", creation(ANA, "odd", arguments=odd))
    await feeder.settled("complete", {"task_ref": made["task_ref"], "command_id": "done", "result": odd})
    view = await feeder.settled("get", asked(ANA, "tasks/get", task_id=made["task_id"]))
    assert view["result"] == odd


async def test_ids_with_wildcards_and_line_ends_are_texts_like_others(feeder: Feeder, up: UpProcess) -> None:
    """Design section 7: subject tokens are never caller text. What was made with odd ids is found with them alone."""
    for number, odd in enumerate(text for text in ODD_TEXTS if text and len(text) < 128):
        who = caller(odd, iss=odd, client_id=odd)
        made = await feeder.settled("create", creation(who, odd, tool=odd, arguments={odd: odd}))
        again = await feeder.settled("create", creation(who, odd, tool=odd, arguments={odd: odd}))
        assert made["task_id"] == again["task_id"]
        view = await feeder.settled("get", asked(who, "tasks/get", task_id=made["task_id"]))
        assert view["status"] == "working"
        other = caller(f"{odd}{number}", iss=odd, client_id=odd)
        seen = await answers(
            feeder,
            [
                ("get", asked(other, "tasks/get", task_id=made["task_id"])),
                ("get", asked(who, "tasks/get", task_id=odd)),
                ("get", asked(who, "tasks/get", task_id=made["task_ref"])),
            ],
        )
        assert {why for _, why in seen} == {"not_found"}
    book = Book()
    nc = await up.admin().connect("reader")
    await book.read(nc)
    await nc.close()
    assert not book.faults


async def test_a_handle_of_any_form_is_the_same_unknown_handle(feeder: Feeder) -> None:
    """Feature A4, as far as the wire of this edge goes: one answer for all."""
    handles = [*(text for text in ODD_TEXTS if len(text) <= HANDLE_MAX), STRANGER, STRANGER.upper(), "a" * HANDLE_MAX]
    told: set[str] = set()
    for handle in handles:
        with pytest.raises(Refused) as refused:
            await feeder.request("get", asked(ANA, "tasks/get", task_id=handle))
        told.add(msgspec.json.encode(refused.value.error).decode())
    assert len(told) == 1, told


@pytest.mark.parametrize("action", ["", "nothing", "GET", "create.x", "__class__", "*", "a" * 1_000])
async def test_an_unknown_action_is_refused_or_heard_by_nobody(feeder: Feeder, action: str) -> None:
    """The actions are those of `messages.ACTIONS`; a subject of another shape has no responders."""
    try:
        seen = await answers(feeder, [(action or "x.y", {})])
    except NatsError:
        return
    assert [why for _, why in seen] == ["invalid_request"]


def raw(connection: Connection, sent: bytes) -> bytes:
    """What a NATS server says to these bytes of the adapter, up to the answer to a ping."""
    url = urlsplit(connection.servers[0])
    login = {"user": connection.user, "pass": connection.password, "verbose": False, "headers": True}
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=ANSWER_WITHIN_S) as peer:
        peer.sendall(b"CONNECT %s\r\n%s\r\nPING\r\n" % (json.dumps(login).encode(), sent))
        heard = b""
        while b"PONG" not in heard and (more := peer.recv(4_096)):
            heard += more
        return heard


NOT_UTF8 = (b"tasktrail.cmd.\xff\xfe.get _INBOX_adapter.x", b"tasktrail.cmd.hostile.get \xff\xfe")
ODD_SUBJECTS = (
    b"tasktrail.cmd.\x1b[31m.get",
    b"tasktrail.cmd.hostile.get\0",
    b"tasktrail.cmd.*.get",
    b"tasktrail.cmd.>",
    b"tasktrail.cmd..get",
    b"tasktrail.cmd." + b"s" * 3_000 + b".get",
)


@pytest.mark.parametrize("subjects", NOT_UTF8, ids=["subject", "reply"])
async def test_a_subject_that_is_no_utf8_does_not_deafen_the_service(
    up: UpProcess, feeder: Feeder, subjects: bytes
) -> None:
    """nats-server takes it, and nats-py stops reading at it: what is asked afterwards is answered all the same."""
    await asyncio.to_thread(raw, up.adapter(), b"PUB %s 2\r\n{}" % subjects)
    view = await feeder.settled("create", creation(ANA, f"after {subjects!r}"))
    assert view["status"] == "working"


@pytest.mark.usefixtures("feeder")
async def test_a_subject_of_odd_bytes_is_a_request_like_others(up: UpProcess) -> None:
    """The server's name is one token of any text; `feeder` sees that the service goes on."""
    for subject in ODD_SUBJECTS:
        heard = await asyncio.to_thread(raw, up.adapter(), b"PUB %s _INBOX_adapter.x 2\r\n{}" % subject)
        assert b"PONG" in heard


@pytest.mark.requirement("T1")
async def test_an_answer_goes_to_no_subject_that_the_asker_may_not_publish_on(up: UpProcess, feeder: Feeder) -> None:
    """Design section 1, promise 2: the service may publish everywhere; no reply subject must make it do so."""
    made = await feeder.settled("create", creation(ANA, "deputy"))
    nc = await up.admin().connect("reader")
    await projected(nc.jetstream(), made["task_ref"])  # afterwards nothing but a wrong answer comes on these subjects
    book = Book()
    targets = (
        f"trail.1.task.default.{made['task_ref']}",
        f"keys.1.{made['task_ref']}",
        f"$KV.CURRENT.{made['task_ref']}",
        "$JS.API.STREAM.PURGE.KEYS",
        "tasktrail.signal.a.b",
        "_INBOX_adapter",
        "_INBOX_adapter.a.*",
    )
    heard: list[str] = []

    async def hear(msg: Msg) -> None:
        heard.append(msg.subject)

    for target in targets:
        await nc.subscribe(target if "*" not in target else "_INBOX_adapter.a.x", cb=hear)
    await settle(nc)
    for target in targets:
        await asyncio.to_thread(raw, up.adapter(), f"PUB tasktrail.cmd.hostile.get {target} 2\r\n{{}}".encode())
    # The endpoint takes requests in turn: when this is answered, the others have been looked at.
    view = await feeder.settled("get", asked(ANA, "tasks/get", task_id=made["task_id"]))
    await settle(nc)
    await book.read(nc)
    await nc.close()
    assert (view["status"], heard, book.faults) == ("working", [], [])


@pytest.mark.usefixtures("feeder")
@pytest.mark.parametrize(
    "headers",
    [b"NATS/1.0\r\n\r\n", b"NATS/1.0\r\n\xff\xfe: \xff\r\n:\r\n: :\r\n\r\n", b"\xff" * 40, b"NATS/1.0 999\r\n\r\n"],
)
async def test_headers_of_any_bytes_do_not_end_the_service(up: UpProcess, headers: bytes) -> None:
    """The endpoint reads none; nats-py parses them all."""
    total = len(headers) + 2
    sent = b"HPUB tasktrail.cmd.hostile.get _INBOX_adapter.x %d %d\r\n%s{}" % (len(headers), total, headers)
    await asyncio.to_thread(raw, up.adapter(), sent)


@pytest.mark.usefixtures("feeder")
async def test_an_adapter_may_not_publish_on_anything_but_commands(up: UpProcess) -> None:
    """Design section 1, promise 2: connected MCP servers hold no right to publish on the trail."""
    for subject in ("trail.1.task.default.x", "$JS.API.STREAM.INFO.TRAIL", "$KV.CURRENT.x", "tasktrail.signal.a.b"):
        heard = await asyncio.to_thread(raw, up.adapter(), f"PUB {subject} 0\r\n".encode())
        assert b"Permissions Violation" in heard, (subject, heard)


async def test_a_body_above_the_limit_is_refused_and_one_at_it_is_taken(feeder: Feeder) -> None:
    """Settings: payloads of 16 MiB at most; the broker takes 18 MiB."""
    kept = "k" * (16 * MIB - 2)
    made = await feeder.settled("create", creation(ANA, "at the limit", arguments=kept))
    assert made["status"] == "working"
    seen = await answers(
        feeder,
        [
            ("create", creation(ANA, "above", arguments=f"{kept}x")),
            ("create", creation(ANA, "far above", arguments=kept + "x" * MIB)),
            ("get", asked(ANA, "tasks/get", task_id="a" * (17 * MIB))),
        ],
    )
    assert [why for _, why in seen] == ["too_large"] * 3


@pytest.mark.parametrize("inner", ["[]", "{}", '{"a":0}', "0.5", '"\\u0041"'])
async def test_large_bodies_one_after_another_are_taken_within_bounded_memory(
    feeder: Feeder, watched: Watched, inner: str
) -> None:
    """Arrays and objects take many times their size in memory: `conftest` holds the bound."""
    text = f"[{inner}{f',{inner}' * (12 * MIB // (len(inner) + 1))}]"
    body = msgspec.json.encode(creation(ANA, f"large {inner}", arguments="@")).replace(b'"@"', text.encode())
    assert [why for _, why in await answers(feeder, [("create", body)] * 2)] == ["ok"] * 2
    assert watched.rss_bytes > 0


async def test_many_large_bodies_at_once_are_taken_or_told_to_come_again(feeder: Feeder, watched: Watched) -> None:
    """Within bounded memory; what the broker does not hand over is a request without an answer, to be sent again."""
    text = b"[" + b"[]," * (8 * MIB // 3) + b"[]]"
    bodies = [
        msgspec.json.encode(creation(ANA, f"flood {number}", arguments="@")).replace(b'"@"', text)
        for number in range(12)
    ]
    assert len(bodies[0]) > LARGE_BYTES
    told: list[str] = []
    for done in await asyncio.gather(
        *(feeder.request("create", body, ANSWER_WITHIN_S) for body in bodies), return_exceptions=True
    ):
        match done:
            case Refused():
                assert done.error["retriable"], done.error
                told.append(done.reason)
            case NatsError() | TimeoutError():
                told.append("unanswered")
            case BaseException():
                raise done
            case _:
                told.append("ok")
    assert "ok" in told, told
    assert set(told) <= {"ok", "nothing_written", "unanswered"}
    assert watched.rss_bytes > 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def test_random_bytes_and_random_json_are_refused(up: UpProcess) -> None:
    """Bounded examples; the seed of a failure is printed by hypothesis."""
    with asyncio.Runner() as runner:
        feeder = runner.run(Feeder.connect(up.adapter(), "hostile"))

        @settings(
            max_examples=300,
            deadline=None,
            database=None,
            suppress_health_check=[
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
                HealthCheck.filter_too_much,
                HealthCheck.function_scoped_fixture,
            ],
        )
        @given(action=st.sampled_from(sorted(ACTIONS)), body=st.binary(max_size=400) | JSON.map(_spelled))
        def refused(action: str, body: bytes) -> None:
            seen = runner.run(answers(feeder, [(action, body)]))
            assert [why for _, why in seen] == ["invalid_request"]

        @settings(
            max_examples=200,
            deadline=None,
            database=None,
            suppress_health_check=[
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
                HealthCheck.filter_too_much,
                HealthCheck.function_scoped_fixture,
            ],
        )
        @given(action=st.sampled_from(sorted(ACTIONS)), member=JSON, data=st.data())
        def answered(action: str, member: object, data: st.DataObject) -> None:
            body = dict(honest(STRANGER, STRANGER)[action])
            body[data.draw(st.sampled_from(sorted(body)))] = member
            runner.run(answers(feeder, [(action, _spelled(body))]))

        try:
            refused()
            answered()
        finally:
            runner.run(feeder.close())


def _spelled(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def test_nothing_of_it_is_in_the_log(up: UpProcess) -> None:
    """Feature O4: logs without what strangers sent. Runs last."""
    logs = up.output() + "".join(path.read_text(errors="replace") for path in (up.data / "nats").glob("nats.log*"))
    assert MARK not in logs
    assert "\x1b" not in logs
