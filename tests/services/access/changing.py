"""Policies and credentials that change while a task lives: for the tests of authority that is found out anew."""

import hashlib

import msgspec
from tests.services.access.rig import Rig, caller

from tasktrail.events.facts import PolicyActivated
from tasktrail.services import messages
from tasktrail.services.access.callers import operator_authority
from tasktrail.services.access.policy import schema_sha256

STOPS = """
@id("lapsed-work-stops") forbid (principal, action == Action::"continue", resource)
when { resource.standing == "lapsed" };
"""
WAITS = (
    STOPS
    + """
@id("lapsed-work-waits") permit (principal, action == Action::"pause", resource)
when { resource.standing == "lapsed" };
"""
)
OPERATOR = operator_authority("olga", "_", "activate", "203.0.113.5", "o" * 43)


def lasting(rig: Rig, seconds: int, sub: str = "ana") -> messages.Caller:
    """A caller whose credential ends in so many seconds."""
    who = caller(sub)
    assert who.credential is not None
    facts = msgspec.structs.replace(who.credential, exp=rig.clock.ms // 1000 + seconds)
    return msgspec.structs.replace(who, credential=facts)


async def decides(rig: Rig, text: str) -> None:
    """From now on this policy."""
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    event = PolicyActivated(
        at_ms=rig.clock.ms, version="v2", sha256=sha256, schema_sha256=schema_sha256(), text=text, reason="the test's"
    )
    await rig.one.governance.record(event, OPERATOR)
