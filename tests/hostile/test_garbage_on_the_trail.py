"""Garbage that somebody with the broker's own rights wrote on the trail: it is told, it stays, and all else goes on.

Design section 1, promise 2: only the Ledger appends; section 5: an unknown event is kept and shown; issue "main job":
hostile input at every edge, service alive. The words for what is wrong are those of `projections.audit.rows.Reason`.
"""

import asyncio
import base64
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import duckdb
import msgspec
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client
from nats.js import JetStreamContext

from tasktrail.events.entry import KEY_ID, MSG_ID, SIGNATURE
from tasktrail.events.subjects import TRAIL
from tasktrail.services.trail import KV_STREAM
from tasktrail.testing.feeding import Feeder, Json, Refused, asked, caller, creation
from tasktrail.testing.rebuild import Book, audit_differences, current_differences
from tasktrail.testing.service import UpProcess

from .bodies import MARK

pytestmark = pytest.mark.requirement("T1", "T3")

ANA = caller("ana")
AUDIT = "audit.duckdb"
WITHIN_S = 30.0
STRANGER_KEY = "f" * 16
UNKNOWN_REF = "c" * 32


class Garbage(NamedTuple):
    """What is written, and what must come of it.

    `body`: bytes, or members that replace those of the entry that would rightly continue the task's chain. `subject`:
    another one than the task's. `reason`: the audit store's, None when it takes the entry. `poll`: what a poll of the
    task comes to then.
    """

    body: bytes | Json
    reason: str | None
    poll: str = "working"
    subject: str = ""
    msg_id: str | None = None


CANCEL = {"type": "CancelRequested", "at_ms": 1_800_000_000_000}
SEALED = {"name": "response.x", "sha256": "0" * 64, "mac": "0" * 64, "size": 1}
ANSWER = {
    **CANCEL,
    "type": "InputResponded",
    "key": "x",
    "method": "roots/list",
    "action": "result",
    "response": SEALED,
}
POLLED = {"type": "TaskPolled", "at_ms": 1, "method": "x", "status": "x", "count": 1, "first_ms": 1, "last_ms": 1}
MALFORMED, BROKEN = "malformed_entry", "chain_broken"

ON_ITS_SUBJECT: dict[str, Garbage] = {
    "nothing": Garbage(b"", "undecodable", MALFORMED, msg_id="nothing"),
    "no JSON": Garbage(b"\x00\xff" + MARK.encode(), "undecodable", MALFORMED, msg_id="no JSON"),
    "other JSON": Garbage(b'{"%s": 1}' % MARK.encode(), "undecodable", MALFORMED, msg_id="other JSON"),
    "deep JSON": Garbage(b"[" * 1_000_000, "undecodable", MALFORMED, msg_id="deep JSON"),
    "another version": Garbage({"v": 99}, "undecodable", MALFORMED),
    "no such trigger": Garbage({"authority": {"trigger": MARK, "tenant": "x"}}, "undecodable", MALFORMED),
    "an id of another type": Garbage({"id": 7}, "undecodable", MALFORMED, msg_id="seven"),
    "another predecessor": Garbage({"prev": "0" * 64}, "chain", BROKEN),
    "no predecessor": Garbage({"prev": ""}, "chain", BROKEN),
    "a place left out": Garbage({"task_seq": 7}, "chain", BROKEN),
    "a place twice": Garbage({"task_seq": 1}, "chain", BROKEN),
    "another task": Garbage({"task_ref": UNKNOWN_REF}, "subject", BROKEN),
    "another tenant": Garbage({"tenant": MARK}, "subject", BROKEN),
    "an event of another kind": Garbage({"events": [POLLED]}, "subject", BROKEN),
    "an answer that was not asked for": Garbage({"events": [ANSWER]}, None, BROKEN),
    "an event of a later version": Garbage({"events": [{"type": "TaskAdmired", "by": MARK}]}, None),
    "a signature of a stranger": Garbage({"events": [CANCEL]}, None),
}
ELSEWHERE: dict[str, Garbage] = {
    "of no kind": Garbage({}, "subject", subject="trail.1.other.default"),
    "too short": Garbage({}, "subject", subject="trail.1.task.default"),
    "too long": Garbage({}, "subject", subject="trail.1.task.default.a.b"),
    "of a reserved key": Garbage({"task_ref": "_position"}, "chain", subject="trail.1.task.default._position"),
    "of no task": Garbage({"task_ref": "", "events": [POLLED]}, "subject", subject="trail.1.access.default.x"),
    "an access to no task": Garbage(
        {"task_ref": UNKNOWN_REF, "events": [POLLED], "task_seq": 0, "prev": ""},
        "orphan",
        subject=f"trail.1.access.default.{UNKNOWN_REF}",
    ),
    "among the denials": Garbage(b"{}", "undecodable", subject="trail.1.denied.default", msg_id="denied"),
    "among the controls": Garbage(MARK.encode() * 10_000, "undecodable", subject="trail.1.control._", msg_id="control"),
}


class Scene:
    """A service, an adapter of it, and somebody with the broker's own rights."""

    def __init__(self, up: UpProcess, feeder: Feeder, nc: Client) -> None:
        self.up, self.feeder, self.nc = up, feeder, nc
        self.js = JetStreamContext(nc)

    async def task(self) -> Json:
        """A new task."""
        return await self.feeder.settled("create", creation(ANA, secrets.token_hex(8)))

    async def poll(self, task: Json) -> str:
        """Its status, or the reason why there is none."""
        try:
            view = await self.feeder.settled("get", asked(ANA, "tasks/get", task_id=task["task_id"]))
        except Refused as refused:
            return refused.reason
        return str(view["status"])

    async def write(self, task: Json, garbage: Garbage) -> int:
        """Publish it, signed by a key of no installation. Returns its sequence in the stream."""
        subject = f"trail.1.task.default.{task['task_ref']}"
        last = (await self.js.get_last_msg(TRAIL, subject)).data or b""
        entry: Json = json.loads(last)
        entry |= {"id": secrets.token_hex(16), "task_seq": entry["task_seq"] + 1, "events": [CANCEL]}
        entry["prev"] = hashlib.sha256(last).hexdigest()
        body = garbage.body if isinstance(garbage.body, bytes) else json.dumps(entry | garbage.body).encode()
        headers = {
            MSG_ID: entry["id"] if garbage.msg_id is None else garbage.msg_id + secrets.token_hex(8),
            SIGNATURE: base64.b64encode(Ed25519PrivateKey.generate().sign(body)).decode(),
            KEY_ID: STRANGER_KEY,
        }
        return (await self.js.publish(garbage.subject or subject, body, headers=headers)).seq

    async def goes_on(self) -> None:
        """A new task can be made, worked on, and polled."""
        task = await self.task()
        await self.feeder.settled("complete", {"task_ref": task["task_ref"], "command_id": "done", "result": 1})
        assert await self.poll(task) == "completed"

    async def told(self, task: Json) -> list[Json]:
        """What responders are told is wrong with a task: the steps of its timeline that are anomalies."""
        deadline = time.monotonic() + WITHIN_S
        body = json.dumps({"task": task["task_ref"]}).encode()
        while True:
            status, content = await asyncio.to_thread(self.up.post, "/api/v1/timeline", body)
            steps: list[Json] = msgspec.json.decode(content)["steps"] if status == 200 else []
            found = [step for step in steps if step["kind"] == "anomaly"]
            if found or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """One service for all of it."""
    with UpProcess(tmp_path_factory.mktemp("garbage") / "data") as running:
        yield running


@pytest_asyncio.fixture
async def scene(up: UpProcess) -> AsyncIterator[Scene]:
    """The scene; in the end the service goes on."""
    feeder = await Feeder.connect(up.adapter(), "hostile")
    nc = await up.admin().connect("stranger")
    try:
        this = Scene(up, feeder, nc)
        yield this
        await this.goes_on()
    finally:
        await feeder.close()
        await nc.close()


@pytest.mark.parametrize("garbage", ON_ITS_SUBJECT.values(), ids=ON_ITS_SUBJECT.keys())
async def test_garbage_on_a_tasks_subject_is_told_and_harms_no_other_task(scene: Scene, garbage: Garbage) -> None:
    """A chain that does not hold is an error and never a guess (states.py); the timeline shows what is wrong."""
    victim, other = await scene.task(), await scene.task()
    assert await scene.poll(victim) == "working"
    await scene.write(victim, garbage)
    assert await scene.poll(victim) == garbage.poll
    assert await scene.poll(other) == "working"
    if garbage.reason is not None:
        told = await scene.told(victim)
        assert [step["type"] for step in told] == [garbage.reason], told


@pytest.mark.parametrize("garbage", ELSEWHERE.values(), ids=ELSEWHERE.keys())
async def test_garbage_on_other_subjects_harms_no_task(scene: Scene, garbage: Garbage) -> None:
    """Subjects of the trail that are none of ours, and entries that do not belong where they stand."""
    other = await scene.task()
    await scene.write(other, garbage)
    assert await scene.poll(other) == "working"


async def test_an_entry_on_the_subject_of_another_task_changes_neither(scene: Scene) -> None:
    """Its own task has not moved, by a poll and in the bucket."""
    here, there = await scene.task(), await scene.task()
    subject = f"trail.1.task.default.{there['task_ref']}"
    await scene.write(here, Garbage({}, "subject", subject=subject))
    assert await scene.poll(here) == "working"
    assert await scene.poll(there) == BROKEN
    await scene.feeder.settled("complete", {"task_ref": here["task_ref"], "command_id": "done", "result": 1})
    assert await scene.poll(here) == "completed"


async def test_it_survives_a_crash_and_a_rebuild_and_nothing_of_it_is_in_the_log(up: UpProcess) -> None:
    """Design section 1, promise 8, garbage and all. Runs last."""
    expected = [one for one in (*ON_ITS_SUBJECT.values(), *ELSEWHERE.values()) if one.reason is not None]
    await asyncio.to_thread(up.wait_until_level)
    await asyncio.to_thread(up.kill)
    await asyncio.to_thread(up.start)
    nc = await up.admin().connect("reader")
    book = Book()
    await book.read(nc)
    assert book.faults
    assert await JetStreamContext(nc).delete_stream(KV_STREAM)
    await nc.close()
    await asyncio.to_thread(stop_level, up)
    assert rejected(up) >= len(expected)
    for file in up.data.glob(f"{AUDIT}*"):
        file.unlink()
    await asyncio.to_thread(up.start)
    await asyncio.to_thread(up.wait_until_level)
    nc = await up.admin().connect("reader")
    await book.read(nc)
    assert not await current_differences(nc, book)
    await nc.close()
    assert await asyncio.to_thread(up.stop) == 0, up.output()
    assert not audit_differences(up.data / AUDIT, book, up.data.parent)
    said = up.output()
    assert "is left out of the current states" in said
    assert MARK not in said


def stop_level(up: UpProcess) -> None:
    up.wait_until_level()
    assert up.stop() == 0, up.output()


def rejected(up: UpProcess) -> int:
    """How many messages the audit store did not take for entries."""
    with duckdb.connect(up.data / AUDIT, read_only=True) as store:
        (count,) = store.execute("SELECT count(*) FROM rejected").fetchone() or (0,)
    return int(count)
