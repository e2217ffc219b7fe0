"""After shredding, nothing on the disk opens what a task held: every byte under the data directory is looked through.

Issue "Authority": at the end of retention the task's key is destroyed (`PayloadShredded`), proved by a scan of every
store; legal holds stop that, and releasing one needs another person; entries, chains and proofs stay valid. R2, R3.
"""

import asyncio
import hashlib
import http.client
import json
import secrets
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from tasktrail.events.subjects import KEYS, PAYLOADS, key_subject
from tasktrail.services.keyring import Keyring, KeyringError
from tasktrail.testing.feeding import Feeder, Json, asked, caller, creation
from tasktrail.testing.rebuild import Book
from tasktrail.testing.service import UpProcess
from tasktrail.testing.waiting import until

from .searching import Secrets, files, rows

RETENTION_MS = 3_000
LARGE_BYTES = 300_000
ANA = caller("ana")
TOKENS = {"olga": secrets.token_urlsafe(32), "omar": secrets.token_urlsafe(32)}
FORM: Json = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


class Task(NamedTuple):
    """A task that was fed, and its key as it is stored."""

    handle: str
    ref: str
    wrapped: bytes


@pytest.mark.requirement("R2", "R3")
async def test_nothing_on_the_disk_opens_what_a_shredded_task_held_and_a_hold_keeps_the_other(tmp_path: Path) -> None:
    """While it runs, after kill -9, after a restart, and after a clean stop; the trail still verifies and reads."""
    data, planted = tmp_path / "data", Secrets()
    with UpProcess(data, environment={"TASKTRAIL_CONFIG": str(configuration(tmp_path))}) as up:
        feeder = await Feeder.connect(up.adapter(), "reports")
        gone, held = await fed(up, feeder, planted), await fed(up, feeder, planted)
        status, hold = order(up, "olga", "holds", task=held.ref, reason="litigation")
        assert status == 200, hold
        assert {opens(data, task) for task in (gone, held)} == {True}
        for task in (gone, held):
            await finished(feeder, planted, task)
        await feeder.close()
        await until_destroyed(up, gone)
        keys = Secrets()
        keys.add("wrapped key", gone.wrapped)
        keys.add("key", Keyring.open(data).unwrap(gone.wrapped, gone.ref))

        def look(when: str) -> None:
            seen = files(data, up.log)
            assert not planted.found(seen), (when, planted.found(seen))
            assert not keys.found(seen), (when, keys.found(seen))
            assert not opens(data, gone), when
            assert gone.ref.encode() in b"".join(seen.values()), when

        look("while it ran")
        assert opens(data, held), "the search finds a key that is there"
        await asyncio.to_thread(up.kill)
        look("after kill -9")
        await asyncio.to_thread(up.start)
        await asyncio.to_thread(up.wait_until_level)
        look("after a restart")
        assert opens(data, held), "held"
        await verified(up, gone)
        status, told = order(up, "olga", "holds/release", task=held.ref, hold=hold["id"], reason="settled")
        assert status == 403, told
        status, told = order(up, "omar", "holds/release", task=held.ref, hold=hold["id"], reason="settled")
        assert status == 200, told
        await until_destroyed(up, held)
        assert not opens(data, held)
        await asyncio.to_thread(up.wait_until_level)
        assert await asyncio.to_thread(up.stop) == 0, up.output()
        look("after a clean stop")
    assert not planted.found(dict(rows(data / "audit.duckdb")))
    assert not keys.found(dict(rows(data / "audit.duckdb")))


def configuration(folder: Path) -> Path:
    """A short retention, and two operators who may hold."""
    lines = ["[retention]", "completed_ms = 1", f"payloads_ms = {RETENTION_MS}"]
    for name, token in TOKENS.items():
        digest = hashlib.sha256(token.encode()).hexdigest()
        lines += ["[[operators]]", f'name = "{name}"', f'sha256 = "{digest}"', 'rights = ["read", "hold"]']
    path = folder / "tasktrail.toml"
    path.write_text("\n".join(lines))
    return path


def canary(planted: Secrets, name: str) -> str:
    made = f"canary{secrets.token_hex(12)}"
    planted.add(name, made)
    return made


async def fed(up: UpProcess, feeder: Feeder, planted: Secrets) -> Task:
    """A task with something in every place that is sealed, still at work."""
    made = creation(ANA, secrets.token_hex(8), arguments={"a": canary(planted, "argument")})
    view = await feeder.settled("create", made)
    ref = view["task_ref"]
    await feeder.settled("report", work(ref, message=canary(planted, "status message")))
    params = {"message": canary(planted, "question"), "requestedSchema": FORM}
    await feeder.settled("ask", work(ref, asks={"who": {"method": "elicitation/create", "params": params}}))
    answer = {"action": "accept", "content": {"name": canary(planted, "answer")}}
    said = asked(ANA, "tasks/update", command_id="u", task_id=view["task_id"], answers={"who": answer})
    await feeder.settled("update", said)
    planted.add_handle("task id", view["task_id"])
    nc = await up.admin().connect("admin")
    try:
        message = await JetStreamContext(nc).get_last_msg(KEYS, key_subject(ref))
    finally:
        await nc.close()
    return Task(view["task_id"], ref, message.data or b"")


async def finished(feeder: Feeder, planted: Secrets, task: Task) -> None:
    """Its result is large enough for the object bucket."""
    text = (canary(planted, "large result") + " ") * (LARGE_BYTES // 31)
    await feeder.settled("complete", work(task.ref, result={"text": text}))


def work(ref: str, **fields: object) -> Json:
    return {"task_ref": ref, "command_id": secrets.token_hex(8), **fields}


def order(up: UpProcess, operator: str, what: str, **said: str) -> tuple[int, Any]:
    """What an operator is answered."""
    url = urlsplit(json.loads((up.data / "service.json").read_text())["url"])
    headers = {"Authorization": f"Bearer {TOKENS[operator]}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(url.netloc, timeout=30)
    try:
        connection.request("POST", f"/api/v1/{what}", body=json.dumps(said), headers=headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


async def until_destroyed(up: UpProcess, task: Task) -> None:
    """Return when the broker has no copy of the task's key, nor of its large result, any more."""
    nc = await up.admin().connect("admin")
    js = JetStreamContext(nc)

    async def is_destroyed() -> bool:
        key = await stored_key(js, task)
        kept = [one for one in await (await js.object_store(PAYLOADS)).list() if one.description == task.ref]
        return key not in {None, task.wrapped} and all(one.deleted for one in kept)

    try:
        await until(is_destroyed, what=f"the end of the key and the blobs of {task.ref}")
    finally:
        await nc.close()


async def stored_key(js: JetStreamContext, task: Task) -> bytes | None:
    """What KEYS holds first for the task: its key, or what says that it is destroyed; nothing between the two."""
    try:
        return (await js.get_msg(KEYS, seq=1, subject=key_subject(task.ref), next=True)).data
    except NotFoundError:
        return None


def opens(data: Path, task: Task) -> bool:
    """Whether anything on the disk is the task's key: each place that may begin one is tried with our own keys."""
    keyring, length = Keyring.open(data), len(task.wrapped)
    version = task.wrapped.partition(b"\n")[0] + b"\n"
    for content in files(data).values():
        at = content.find(version)
        while at >= 0:
            try:
                keyring.unwrap(content[at : at + length], task.ref)
            except KeyringError:
                at = content.find(version, at + 1)
            else:
                return True
    return False


async def verified(up: UpProcess, task: Task) -> None:
    """Every chain of the trail holds, read from its first entry; and a responder reads the task's timeline."""
    book = Book()
    nc = await up.admin().connect("reader")
    try:
        await book.read(nc)
    finally:
        await nc.close()
    assert book.faults == []
    assert book.states[task.ref].task.shredded_at_ms is not None
    status, body = await asyncio.to_thread(up.post, "/api/v1/timeline", json.dumps({"task": task.ref}).encode())
    assert status == 200, body
    assert b"PayloadShredded" in body
