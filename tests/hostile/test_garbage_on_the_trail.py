"""Garbage that somebody with the broker's own rights wrote on the trail: it is told, it stays, and all else goes on.

Design section 1, promise 2: only the Ledger appends; section 4: an unknown event is kept and shown; issue "main job":
hostile input at every edge: service alive. The words for what is wrong are those of `projections.audit.rows.Reason`.
"""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

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
from tasktrail.testing.rebuild import Book, audit_differences, current_bucket, current_differences
from tasktrail.testing.service import UpProcess

pytestmark = pytest.mark.requirement("T1", "T3")

ANA = caller("ana")
AUDIT = "audit.duckdb"
WITHIN_S = 30.0


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

    async def last_entry(self, task: Json) -> tuple[str, dict[str, Any]]:
        """The task's subject, and its last entry as JSON."""
        subject = f"trail.1.task.default.{task['task_ref']}"
        message = await self.js.get_last_msg(TRAIL, subject)
        return subject, json.loads(message.data or b"")

    async def following(self, task: Json, *events: Json, **changes: object) -> tuple[str, dict[str, Any]]:
        """The subject, and an entry that would continue the task's chain with these events."""
        subject, entry = await self.last_entry(task)
        message = await self.js.get_last_msg(TRAIL, subject)
        entry |= {"id": secrets.token_hex(16), "task_seq": entry["task_seq"] + 1, "events": list(events)}
        entry["prev"] = msgspec.json.decode(_sha256(message.data or b""))
        return subject, entry | changes

    async def write(self, subject: str, body: bytes | dict[str, Any], msg_id: str | None = None) -> int:
        """Publish it, signed by a key of no installation. Returns its sequence."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        signature = base64.b64encode(Ed25519PrivateKey.generate().sign(raw)).decode()
        made = body["id"] if isinstance(body, dict) and msg_id is None else msg_id
        headers = {SIGNATURE: signature, KEY_ID: "f" * 16} | ({MSG_ID: made} if made else {})
        return (await self.js.publish(subject, raw, headers=headers)).seq

    async def goes_on(self) -> None:
        """A new task can be made, worked on, and polled."""
        task = await self.task()
        await self.feeder.settled("complete", {"task_ref": task["task_ref"], "command_id": "done", "result": 1})
        assert await self.poll(task) == "completed"


def _sha256(body: bytes) -> bytes:
    import hashlib

    return b'"' + hashlib.sha256(body).hexdigest().encode() + b'"'
