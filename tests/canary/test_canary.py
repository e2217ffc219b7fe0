"""Nothing secret is on the disk or in the log: a service is fed canaries, and every byte it leaves is looked through.

Issue "main job": after a run, searching every file under the data directory for a task id, a bearer token or a canary
placed in arguments, answers, results, status messages and errors finds nothing. Design section 1, promise 5; section 7.
"""

import asyncio
import contextlib
import http.client
import json
import secrets
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from mcp.server.auth.settings import AuthSettings
from nats.js import JetStreamContext

from tasktrail.mcp.extension import Tasks
from tasktrail.mcp.verifier import Issuer, JwtVerifier
from tasktrail.services.responder import read_token
from tasktrail.testing.feeding import Feeder, Json, Refused, asked, caller, creation
from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.service import UpProcess

from ..mcp.client import Client  # noqa: TID252 - tests are no package that is installed
from ..mcp.serving import listening, served, url_of  # noqa: TID252 - tests are no package that is installed
from ..mcp.workshop import CRASH, SUPPORT, Workshop  # noqa: TID252 - tests are no package that is installed
from .searching import Secrets, files, rows, spelled

LARGE_BYTES = 3 * 1024 * 1024
FORM: Json = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
ANA = caller("ana")


class Planted(Secrets):
    """Canaries as they are planted."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.add("crash", CRASH)

    def canary(self, name: str) -> str:
        """A new one, of letters and digits only, so that no escaping hides it."""
        made = f"canary{secrets.token_hex(12)}"
        self.add(name, made)
        return made

    def task(self, name: str, handle: str, ref: str = "") -> str:
        """The id of a task that was made; its reference is what may be found."""
        self.add_handle(name, handle)
        self.references += [ref] if ref else []
        return handle


def test_the_search_finds_a_canary_however_it_is_spelled() -> None:
    """A search that finds nothing proves nothing unless it would have."""
    planted = Planted()
    canary = planted.canary("it")
    assert planted.found(dict(spelled(canary))) == [f"it in {how}" for how, _ in spelled(canary)]
    assert not planted.found({"nothing": b"canary" * 1_000})


@pytest.mark.requirement("R1", "R4")
async def test_no_canary_no_task_id_and_no_token_is_on_the_disk_or_in_the_log(tmp_path: Path) -> None:
    """While it runs, after kill -9, after a restart with more traffic, and after a clean stop."""
    data, planted = tmp_path / "data", Planted()
    with UpProcess(data) as up:
        await everything(up, planted)
        await uncompressed(up)
        look(up, planted, "while it ran")
        await asyncio.to_thread(up.kill)
        look(up, planted, "after kill -9")
        await asyncio.to_thread(up.start)
        await everything(up, planted)
        await asyncio.to_thread(up.wait_until_level)
        look(up, planted, "after a restart")
        assert await asyncio.to_thread(up.stop) == 0, up.output()
        look(up, planted, "after a clean stop")
    assert not planted.found(dict(rows(data / "audit.duckdb")))


def look(up: UpProcess, planted: Planted, when: str) -> None:
    """Find none of the secrets; and find the references, so that the right bytes were looked through."""
    seen = files(up.data, up.log)
    assert not planted.found(seen), (when, planted.found(seen), up.output()[-4_000:])
    store = b"".join(content for name, content in seen.items() if name.startswith("nats/"))
    audit = b"".join(content for name, content in seen.items() if name.startswith("audit.duckdb"))
    missing = [ref for ref in planted.references if ref.encode() not in store]
    assert not missing, (when, missing)
    assert planted.references[0].encode() in audit, when
    assert sum(len(content) for content in seen.values()) > LARGE_BYTES


async def uncompressed(up: UpProcess) -> None:
    """What is stored is stored as it is, so that looking at bytes is looking at all there is."""
    nc = await up.admin().connect("admin")
    try:
        made = await JetStreamContext(nc).streams_info()
    finally:
        await nc.close()
    assert len(made) == 6
    assert {str(info.config.compression or "none").rpartition(".")[2].lower() for info in made} == {"none"}


async def everything(up: UpProcess, planted: Planted) -> None:
    """Traffic with a canary in every place a secret may come in by."""
    async with workshop(up) as (url, issuer):
        await by_mcp(url, issuer, planted)
    feeder = await Feeder.connect(up.adapter(), "reports")
    try:
        await by_nats(feeder, planted)
        await by_bad_requests(feeder, planted)
    finally:
        await feeder.close()
    await asyncio.to_thread(by_http, up, planted)


@contextlib.asynccontextmanager
async def workshop(up: UpProcess) -> AsyncGenerator[tuple[str, LocalIssuer]]:
    """A real MCP server with bearer authentication, connected to the service."""
    with LocalIssuer() as issuer, listening() as sock:
        url = url_of(sock)
        tasks = Tasks.connect(up.data / "adapter.json", tools=SUPPORT)
        mcp = Workshop().server(
            tasks,
            auth=AuthSettings(issuer_url=issuer.url, resource_server_url=url, validate_token_resource=False),  # type: ignore[arg-type] # pydantic takes text
            token_verifier=JwtVerifier([Issuer(issuer.url, issuer.jwks_url, url)]),
        )
        async with served(mcp, sock):
            yield url, issuer


async def by_mcp(url: str, issuer: LocalIssuer, planted: Planted) -> None:
    """Through the official SDK: tokens, arguments, results, status messages, errors, answers, request ids."""
    token = issuer.issue("ana", "cli", aud=url, note=planted.canary("claim of a token"))
    other = issuer.issue("ben", "cli", aud=url)
    for name, text in (("ana's token", token), ("ben's token", other)):
        planted.add(name, text)
        for part in text.split(".")[1:]:
            planted.add(name, part)
    forged = f"{token.rpartition('.')[0]}.{secrets.token_urlsafe(64)}"
    planted.add("forged token", forged.rpartition(".")[2])
    async with Client(url, token) as ana, Client(url, other) as ben:
        done = await ana.start("echo", text=planted.canary("argument and result"))
        handle = planted.task("task id", done["taskId"])
        await ana.until(handle, "completed")
        for tool in ("says", "fails_with", "breaks_with"):
            task = await ana.start(tool, text=planted.canary(tool))
            await ana.until(planted.task(f"task id of {tool}", task["taskId"]), "completed", "failed")
        crashed = await ana.start("crashes")
        await ana.until(planted.task("task id of a crash", crashed["taskId"]), "completed", "failed")
        asks = await ana.start("asks_twice")
        waiting = await ana.until(planted.task("task id of a question", asks["taskId"]), "input_required")
        key = next(iter(waiting["inputRequests"]))
        said = {"action": "accept", "content": {"name": planted.canary("answer")}}
        wrong = {"action": "accept", "content": {"name": [planted.canary("invalid answer")]}}
        await ana.update(asks["taskId"], {key: wrong})
        ana.next_id = handle
        await ana.update(asks["taskId"], {key: said, handle: said})
        await ben.get(handle)
        await ben.get(planted.canary("malformed handle"))
        ana.next_id = planted.canary("request id")
        await ana.cancel(asks["taskId"])
    async with Client(url, forged) as nobody:
        assert await nobody.status("tasks/get", {"taskId": handle}) == 401


async def by_nats(feeder: Feeder, planted: Planted) -> None:
    """As any NATS client: the same, and payloads that travel in the object bucket."""
    large = (planted.canary("large result") + " ") * (LARGE_BYTES // 31)
    view = await feeder.settled(
        "create", creation(ANA, planted.canary("command id"), arguments={"a": planted.canary("argument")})
    )
    handle, ref = planted.task("task id by NATS", view["task_id"], view["task_ref"]), view["task_ref"]
    planted.references.append(ref)
    ask = {"message": planted.canary("question"), "requestedSchema": FORM}
    asks = {"who": {"method": "elicitation/create", "params": ask}}
    await feeder.settled("report", work(ref, message=planted.canary("status message")))
    await feeder.settled("ask", work(ref, asks=asks))
    answer = {"action": "accept", "content": {"name": planted.canary("answer by NATS")}}
    answers = {"who": answer, handle: answer, planted.canary("unknown key"): answer}
    await feeder.settled("update", asked(ANA, "tasks/update", command_id="u", task_id=handle, answers=answers))
    await feeder.settled("complete", work(ref, result={"text": large, "handle": handle}))
    shown = await feeder.settled("get", asked(ANA, "tasks/get", task_id=handle))
    assert shown["result"]["text"] == large
    view = await feeder.settled("create", creation(ANA, planted.canary("command id of a failure")))
    planted.task("task id of a failure", view["task_id"], view["task_ref"])
    error = {"code": -32050, "message": planted.canary("error"), "data": [planted.canary("error data")]}
    await feeder.settled("fail", work(view["task_ref"], error=error))
    await refused(feeder, "report", work(view["task_ref"], message=planted.canary("late status message")))


def work(ref: str, **fields: object) -> Json:
    return {"task_ref": ref, "command_id": secrets.token_hex(8), **fields}


async def refused(feeder: Feeder, action: str, said: Json | bytes) -> None:
    with contextlib.suppress(Refused):
        await feeder.request(action, said)


async def by_bad_requests(feeder: Feeder, planted: Planted) -> None:
    """Requests that are refused leave nothing of themselves either."""
    who = caller(planted.references[0], token_hash="h" * 43)
    bad: list[tuple[str, Json | bytes]] = [
        ("get", asked(ANA, "tasks/get", task_id=planted.canary("malformed handle by NATS"))),
        ("get", asked(ANA, "tasks/get", task_id=[planted.canary("handle of a wrong type")])),
        ("get", {planted.canary("unknown field"): 1}),
        ("get", asked(ANA, "tasks/get", task_id="x") | {"call": {"method": "tasks/get", planted.canary("member"): 1}}),
        ("get", f'{{"{planted.canary("no JSON")}'.encode()),
        ("get", planted.canary("no UTF-8").encode() + b"\xff"),
        ("get", f'{{"a": NaN, "b": "{planted.canary("not a number")}"}}'.encode()),
        ("collect", {"task_ref": planted.canary("malformed reference")}),
        ("ask", work(planted.references[0], asks={"k": {"method": planted.canary("method"), "params": {}}})),
        (planted.canary("unknown action"), asked(who, "tasks/get", task_id="x")),
        ("watch", asked(ANA, "subscriptions/listen", task_ids=[planted.canary("watched handle")])),
    ]
    for action, said in bad:
        await refused(feeder, action, said)
    call = asked(ANA, "tasks/get", task_id="x")
    call["call"] |= {
        name: planted.canary(name) for name in ("rpc_id", "traceparent", "tracestate", "address", "forwarded_for")
    }
    await refused(feeder, "get", call)


def by_http(up: UpProcess, planted: Planted) -> None:
    """The responders' surface: what is asked, and with what token."""
    url = urlsplit(json.loads((up.data / "service.json").read_text())["url"])
    right = {"Authorization": f"Bearer {read_token(up.data)}"}
    body = {"Content-Type": "application/json"}
    handle = planted.canary("asked for")
    requests: list[tuple[str, str, dict[str, str], bytes]] = [
        ("GET", "/api/v1/tasks", {"Authorization": f"Bearer {planted.canary('responder token')}"}, b""),
        ("GET", f"/api/v1/tasks?{planted.canary('parameter')}=1", right, b""),
        ("GET", f"/{planted.canary('path')}", right, b""),
        ("GET", "/api/v1/tasks", right | {"Origin": f"http://{planted.canary('origin')}"}, b""),
        ("GET", "/api/v1/tasks", right | {"Host": planted.canary("host")}, b""),
        ("GET", "/api/v1/tasks", right | {"Cookie": planted.canary("cookie"), "User-Agent": "canary"}, b""),
        ("POST", "/api/v1/timeline", right | body, json.dumps({"task": handle}).encode()),
        ("POST", "/api/v1/timeline", right | body, json.dumps({planted.canary("field"): 1}).encode()),
        ("POST", "/api/v1/timeline", right | body, planted.canary("body").encode()),
    ]
    seen: list[Any] = []
    for method, path, headers, content in requests:
        connection = http.client.HTTPConnection(url.netloc, timeout=10)
        connection.request(method, path, body=content or None, headers=headers)
        seen.append(connection.getresponse().status)
        connection.close()
    assert seen == [401, 400, 404, 403, 421, 200, 404, 400, 400]
