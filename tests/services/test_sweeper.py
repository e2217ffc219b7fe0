"""The object bucket keeps what entries commit to, and nothing else for more than a day."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from nats.js.errors import ObjectNotFoundError

from tasktrail.events.authority import Authority, Binding, Trigger
from tasktrail.events.commands import CompleteTask, CreateTask, ReportStatus
from tasktrail.events.facts import Commitment, TaskSupport
from tasktrail.events.subjects import entry_id
from tasktrail.services import trail
from tasktrail.services.connection import Connection
from tasktrail.services.keyring import Keyring
from tasktrail.services.ledger import Ledger
from tasktrail.services.sealing import Vault
from tasktrail.services.settings import load
from tasktrail.services.states import States
from tasktrail.services.sweeper import Sweeper
from tasktrail.testing.nats import NatsServer


@pytest.mark.requirement("R1")
async def test_only_payloads_that_no_entry_commits_to_are_swept(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """Design section 7: larger payloads go to an object bucket before the entry; orphans are swept after a day."""
    nc = await Connection.from_text(fresh_nats.url).connect("test")
    try:
        js = nc.jetstream()
        await trail.create(js)
        keyring = Keyring.create(tmp_path)
        states, vault = States(nc, js, kept=16), Vault(js, keyring)
        ledger = Ledger(nc, js, keyring, states, load({}, data=tmp_path))
        ref = keyring.ref("task")
        key = await vault.make(ref)

        async def stored(scope: str, content: bytes) -> Commitment:
            commitment, blob = key.seal("result", entry_id(ref, scope), content)
            await vault.put(commitment, ref, blob)
            return commitment

        orphan, kept = await asyncio.gather(stored("lost", b"never committed to"), stored("done", b"committed to"))
        early, late = await asyncio.gather(stored("said", b"a status text"), stored("said later", b"another"))
        handle, blob = key.seal("handle", entry_id(ref, "create"), b"task")
        who = Binding(tenant="acme", iss="https://id.example", sub="ana", client_id="cli")
        authority = Authority(trigger=Trigger.CALLER, tenant="acme")
        create = CreateTask(
            id="create",
            binding=who,
            server="reports",
            tool="report",
            task_support=TaskSupport.OPTIONAL,
            wire="test",
            protocol_version="2026-07-28",
            granted_ttl_ms=60_000,
            poll_interval_ms=1_000,
            handle=handle,
        )
        await ledger.submit("acme", ref, create, authority, {"handle": blob})
        await ledger.submit("acme", ref, ReportStatus(id="said", message=early), authority)
        await ledger.submit("acme", ref, ReportStatus(id="said later", message=late), authority)
        await ledger.submit("acme", ref, CompleteTask(id="done", result=kept), authority)

        sweeper = Sweeper(js, states)
        assert await sweeper.sweep(datetime.now(UTC) - timedelta(days=1)) == 0, "nothing is a day old"
        assert await sweeper.sweep(datetime.now(UTC) + timedelta(days=1)) == 1
        assert key.open(kept, await vault.get(kept)) == b"committed to"
        assert key.open(early, await vault.get(early)) == b"a status text", "overwritten, and still committed to"
        bucket = await js.object_store("PAYLOADS")
        with pytest.raises(ObjectNotFoundError):
            await bucket.get_info(orphan.sha256)
    finally:
        await nc.close()
