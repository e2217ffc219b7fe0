"""What the trail holds of calls through an MCP server, and what it never holds. Sources: design sections 1, 5 and 6,
features A3, A5, A7 and R4."""

import base64
import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from tasktrail.events.authority import Authority, Level, Method, PrincipalKind, Trigger, Verification
from tasktrail.events.entry import Entry
from tasktrail.events.facts import InputResponded, ResultDisclosed, TaskCompleted, TaskCreated
from tasktrail.services.connection import settle
from tasktrail.services.messages import COMMANDS
from tasktrail.testing.waiting import until

from .answering import accept, asked
from .client import Client
from .place import Mode, Place, carrying, only, opened

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODES: list[Mode] = ["embedded", "connected"]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def claims_of(token: str) -> dict[str, Any]:
    """The claims in a JWT."""
    body = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return found


def digest(token: str) -> str:
    """RFC 9449 `ath`."""
    return base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).decode().rstrip("=")


@pytest.mark.requirement("A5", "A7")
async def test_each_step_says_who_by_what_credential_at_which_level(place: Place) -> None:
    """Design section 6: `verified` only where tasktrail's own verifier ran in this process, else `asserted`."""
    token = place.issuer.issue("ana", "cli", "tasks:run", aud=place.url, act={"sub": "agent", "act": {"sub": "tool"}})
    async with Client(place.url, token) as ana:
        made = await ana.start("echo", text="x")
        rpc_id = ana.last_id
    level = Level.VERIFIED if place.mode == "embedded" else Level.ASSERTED
    authority = carrying(await place.trail.of(made["taskId"]), TaskCreated).authority
    _check_caller(authority, place, token, level)
    assert authority.request is not None
    assert (authority.request.method, authority.request.wire) == ("tools/call", "mcp/2026-07-28")
    assert (authority.request.protocol_version, authority.request.server) == ("2026-07-28", "workshop")
    assert (authority.request.rpc_id, authority.request.address) == (str(rpc_id), "127.0.0.1")
    assert authority.decision is not None
    assert (authority.decision.effect, authority.decision.reason) == ("allow", "callers-create")


def _check_caller(authority: Authority, place: Place, token: str, level: Level) -> None:
    claims = claims_of(token)
    assert (authority.trigger, authority.tenant) == (Trigger.CALLER, "acme")
    assert authority.principal is not None
    principal = (authority.principal.iss, authority.principal.sub, authority.principal.kind, authority.principal.level)
    assert principal == (place.issuer.url, "ana", PrincipalKind.USER, level)
    assert authority.client is not None
    assert (authority.client.client_id, authority.client.level) == ("cli", level)
    assert [(actor.sub, actor.level) for actor in authority.actors] == [("agent", level), ("tool", level)]
    credential = authority.credential
    assert credential is not None
    assert (credential.method, credential.verification, credential.level) == (Method.JWT, Verification.OK, level)
    assert (credential.jti, credential.exp, credential.iat) == (claims["jti"], claims["exp"], claims["iat"])
    assert (credential.token_hash, credential.scope, credential.aud) == (digest(token), ("tasks:run",), (place.url,))
    assert credential.kid == place.issuer.key.kid
    assert len(credential.jwks_sha256) == 64
    assert credential.verified_at_ms > 0


@pytest.mark.requirement("A3", "A7")
async def test_every_later_step_names_the_creating_one(place: Place) -> None:
    """Feature A3: follow-ups, the work's own steps and every look are recorded against the creating authorisation."""
    first, second = place.token(), place.token()
    async with Client(place.url, first) as ana, Client(place.url, second) as again:
        made = await ana.start("asks")
        (key,) = await asked(ana, made["taskId"])
        await again.update(made["taskId"], {key: accept(age=41)})
        await again.until(made["taskId"], "completed")

    async def shown() -> bool:
        """The question, and then the result; what is folded between them may come later."""
        looks = [event for entry in await place.trail.of(made["taskId"], "access") for event in entry.events]
        return sum(isinstance(event, ResultDisclosed) for event in looks) >= 2

    await until(shown)
    steps = await place.trail.of(made["taskId"])
    looks = await place.trail.of(made["taskId"], "access")
    created = carrying(steps, TaskCreated)
    for entry in (*steps, *looks):
        authority = entry.authority
        assert authority.created_by == ("" if entry is created else created.id)
        assert authority.decision is not None
        assert authority.decision.effect == "allow"
        if authority.trigger is Trigger.CALLER and entry is not created:
            assert authority.binding is not None
            assert authority.binding.matches
    work = [entry.authority for entry in steps if entry.authority.trigger is Trigger.WORKER]
    level = Level.VOUCHED if place.mode == "embedded" else Level.ASSERTED
    assert {(one.principal.sub, one.principal.level) for one in work if one.principal} == {("server:workshop", level)}
    assert {one.request.method for one in work if one.request} == {"work/ask", "work/complete"}
    assert _token_hash(created) == digest(first)
    assert _token_hash(carrying(steps, InputResponded)) == digest(second)


def _token_hash(entry: Entry) -> str:
    return entry.authority.credential.token_hash if entry.authority.credential else ""


@pytest.mark.requirement("A3")
async def test_a_disclosed_result_is_on_the_trail_each_time_it_was_shown(place: Place) -> None:
    """Design section 5: `ResultDisclosed` says which payload and for the n-th time; repeats fold with exact counts."""
    async with place.client() as ana:
        made = await ana.start("echo", text="x")
        await ana.until(made["taskId"], "completed")
        for _ in range(4):
            await ana.get(made["taskId"])
    completed = only(await place.trail.of(made["taskId"]), TaskCompleted)

    async def all_five() -> bool:
        looks = await place.trail.of(made["taskId"], "access")
        return sum(event.count for entry in looks for event in entry.events if isinstance(event, ResultDisclosed)) == 5

    await until(all_five)
    looks = [event for entry in await place.trail.of(made["taskId"], "access") for event in entry.events]
    disclosed = [event for event in looks if isinstance(event, ResultDisclosed)]
    assert disclosed[0].nth == 1
    assert {event.sha256 for event in disclosed} == {(completed.result.sha256,)}
    assert {event.method for event in disclosed} == {"tasks/get"}


@pytest.mark.requirement("R4")
async def test_what_a_caller_writes_into_headers_and_ids_is_taken_for_no_more_than_it_is(place: Place) -> None:
    """Text JSON-RPC ids only as their digest; forwarded addresses only where they are addresses; W3C trace parents."""
    async with place.client() as ana:
        ana.extra_headers = {"X-Forwarded-For": "203.0.113.9, secret-header, ::1", "Mcp-Session-Id": "session-canary"}
        ana.extra_meta = {"traceparent": PARENT}
        ana.next_id = "id-canary"
        made = await ana.start("echo", text="x")
        ana.extra_meta = {"traceparent": "trace-canary"}
        await ana.cancel(made["taskId"])
    steps = await place.trail.of(made["taskId"])
    request = carrying(steps, TaskCreated).authority.request
    assert request is not None
    assert re.fullmatch("sha256:[0-9a-f]{16}", request.rpc_id)
    assert request.traceparent == PARENT
    assert (request.forwarded_for, request.session) == ("203.0.113.9, ::1", "")
    for canary in ("id-canary", "secret-header", "session-canary", "trace-canary"):
        assert canary not in repr(steps)


CANARIES = {
    "argument": "canary-argument-4d1f",
    "progress": "canary-progress-90ab",
    "answer": "canary-answer-77c2",
    "error": "canary-error-1b1e",
    "failure": "canary-failure-c0de",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.requirement("R1", "R4")
async def test_no_token_id_or_payload_is_in_any_file_log_or_stored_message(
    mode: Mode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Features R1 and R4, design promise 5: everything is searched as bytes. Between a connected server and the service
    a task id and payloads travel (they must), on command subjects and their replies only; a bearer token never does."""
    caplog.set_level(logging.DEBUG, "tasktrail")
    heard: list[tuple[str, bytes]] = []

    async def hear(msg: Msg) -> None:
        heard.append((msg.subject, msg.data + repr(msg.headers).encode()))

    async with opened(mode, tmp_path) as place, place.client() as eve:
        await place.trail.nc.subscribe(">", cb=hear)  # pyright: ignore[reportUnknownMemberType] # nats-py's futures
        await settle(place.trail.nc)
        token = place.token()
        async with Client(place.url, token) as ana:
            ids = await _busy(place, ana)
        for task_id in ids:
            await eve.get(task_id)
        await until(lambda: len(heard) > 20)
        await settle(place.trail.nc)
    secrets = {"token": token, "signature": token.rpartition(".")[2], **CANARIES}
    secrets |= {f"task id {number}": task_id for number, task_id in enumerate(ids)}
    found = _in_files(tmp_path, secrets)
    found |= {f"{what} in the log" for what, secret in secrets.items() if secret in caplog.text}
    on_its_way = re.compile(rf"{re.escape(COMMANDS)}\.|_INBOX_adapter\." if mode == "connected" else "$^")
    for subject, body in heard:
        held = {what for what, secret in secrets.items() if secret.encode() in body}
        never = held & {"token", "signature"} if on_its_way.match(subject) else held
        found |= {f"{what} on {subject}" for what in never}
    assert found == set()
    assert any(subject.startswith("trail.") for subject, _ in heard)


def _in_files(data: Path, secrets: dict[str, str]) -> set[str]:
    """Which of the secrets are in which file."""
    files = [path for path in data.rglob("*") if path.is_file()]
    assert {"audit.duckdb", "nats.log"} <= {path.name for path in files}
    return {
        f"{what} in {path.name}"
        for path in files
        for what, secret in secrets.items()
        if secret.encode() in path.read_bytes()
    }


async def _busy(place: Place, ana: Client) -> list[str]:
    """A task of every kind with a canary in each of its payloads; their ids."""
    echoed = await ana.start("echo", text=CANARIES["argument"])
    with place.bench() as label:
        said = await ana.start("says", text=CANARIES["progress"], label=label)
        await ana.until(said["taskId"], "working", statusMessage=CANARIES["progress"])
    asking = await ana.start("asks_twice")
    first, second = await asked(ana, asking["taskId"], 2)
    await ana.update(asking["taskId"], {first: accept(name=CANARIES["answer"]), second: accept(name="x")})
    (third,) = await asked(ana, asking["taskId"])
    await ana.update(asking["taskId"], {third: accept(name=CANARIES["answer"]), CANARIES["answer"]: 1})
    failing = await ana.start("fails_with", text=CANARIES["error"])
    breaking = await ana.start("breaks_with", text=CANARIES["failure"])
    tasks = (echoed, said, asking, failing, breaking)
    for task in tasks:
        await ana.until(task["taskId"], "completed", "failed")
    return [task["taskId"] for task in tasks]
