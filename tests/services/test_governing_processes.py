"""What governs, in real `tasktrail up` processes: over a new signing key, and over `[privacy]` switched on and off."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from tasktrail.services.connection import Connection
from tasktrail.testing.feeding import Feeder, Refused, caller, creation
from tasktrail.testing.fleet import fleet
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.service import UpProcess, wait_for

TRUSTING = '[service]\ndefault_tenant = "acme"\n[[servers]]\nname = "*"\nasserts = true\n'
PRIVATE = TRUSTING + '[privacy]\ntenants = ["acme"]\n'


def is_admitted(server: NatsServer, sub: str, made: str) -> bool:
    """Whether this subject may create a task."""

    async def ask() -> bool:
        feeder = await Feeder.connect(Connection.from_text(server.url), "reports")
        try:
            await feeder.settled("create", creation(caller(sub, client_id=sub), made))
        except Refused as refused:
            if refused.reason != "not_authorised":
                raise
            return False
        finally:
            await feeder.close()
        return True

    return asyncio.run(ask())


def revoke(up: UpProcess, sub: str) -> str:
    members = {"kind": "principal", "tenant": "acme", "iss": "https://id.example", "sub": sub}
    return str(up.order("revocations", **members, reason="left the company")["revocation"])


@pytest.mark.requirement("A9")
def test_a_process_with_a_new_signing_key_is_believed_by_those_that_do_not_hold_it(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """docs/security.md: whoever holds none of the newer keys takes the oldest one's word for them."""
    with fleet(fresh_nats.url, tmp_path) as (one, two):
        two.stop()
        key = two.data / "keys" / "signing-2.key"
        key.touch(mode=0o600)
        key.write_text(os.urandom(32).hex())
        two.start()
        made = revoke(two, "ana")
        held = wait_for("the other process", lambda: json.loads(one.get("/api/v1/revocations")[1]))
        assert [revocation["id"] for revocation in held] == [made]
        key.rename(two.data / "keys" / "signing-3.key")
        two.stop()
        with pytest.raises(RuntimeError, match=r"holds signing-3\.key, but not signing-2\.key"):
            two.start()


@pytest.mark.requirement("A9")
def test_who_was_revoked_stays_so_whichever_way_privacy_is_switched(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """docs/identity.md, pseudonyms."""
    configuration = tmp_path / "tasktrail.toml"
    configuration.write_text(TRUSTING)
    environment = {"TASKTRAIL_CONFIG": str(configuration)}
    with fleet(fresh_nats.url, tmp_path, count=1, environment=environment) as (up,):
        revoke(up, "ana")
        assert not is_admitted(fresh_nats, "ana", "named")
        up.stop()
        configuration.write_text(PRIVATE)
        up.start()
        revoke(up, "zoe")
        assert [is_admitted(fresh_nats, sub, "hidden") for sub in ("ana", "zoe", "ben")] == [False, False, True]
        up.stop()
        configuration.write_text(TRUSTING)
        up.start()
        assert [is_admitted(fresh_nats, sub, "named again") for sub in ("ana", "zoe", "ben")] == [False, False, True]
