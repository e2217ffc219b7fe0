"""A recorder on a memory trail that a test can make refuse what is written, or leave it in doubt, or let it wait.

desk = Desk()
await desk.deny()
assert [event.count for event in desk.events()] == [1]
"""

import asyncio
from typing import Any, cast

import msgspec

from tasktrail.events.authority import (
    Authority,
    Client,
    Credential,
    Level,
    PolicyDecision,
    Principal,
    Request,
    Trigger,
)
from tasktrail.events.errors import MaybeWritten, NothingWritten
from tasktrail.events.subjects import task_ref
from tasktrail.projections.current import State
from tasktrail.services.access.recorder import Recorder
from tasktrail.services.access.rules import Rule
from tasktrail.services.ledger import Ledger
from tasktrail.testing.memory import MemoryTrail
from tasktrail.testing.parts import Clock
from tasktrail.testing.scenario import ANA, authority, create, sealed

REF = task_ref(b"k" * 32, "a task")
RESULT = (sealed("result"),)
ANA_CALLS = authority()


class Moody(MemoryTrail):
    """A memory trail that can refuse, take without saying so, or wait."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.mood = ""
        self.free = asyncio.Event()
        self.free.set()
        self.tries = 0

    async def note(self, *args: Any, **options: Any) -> str:  # noqa: ANN401
        self.tries += 1
        await self.free.wait()
        if self.mood == "refuse":
            raise NothingWritten
        made = await super().note(*args, **options)
        if self.mood == "doubt":
            raise MaybeWritten
        return made


class Desk:
    """A recorder on such a trail, and one task."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.trail = Moody(self.clock)
        self.recorder = Recorder(cast("Ledger", self.trail), fold_ms=10)
        self.state: State = self.trail.record(ANA.tenant, REF, create(), authority()).state

    def poll(self, who: Authority = ANA_CALLS, method: str = "tasks/get") -> None:
        self.recorder.polled(self.state, who, method)

    async def show(self, who: Authority = ANA_CALLS, method: str = "tasks/get") -> None:
        await self.recorder.disclosed(self.state, who, method, RESULT)

    async def deny(
        self, who: Authority = ANA_CALLS, rule: Rule | str = Rule.UNKNOWN, ref: str = REF, tenant: str = "acme"
    ) -> None:
        await self.recorder.denied(who, "tasks/get", -32602, rule, ref, tenant)

    def events(self) -> list[Any]:
        """On the trail, but the creation."""
        return [event for message in self.trail.messages[1:] for event in message.entry.events]


def another(**changes: Any) -> Authority:  # noqa: ANN401 - fields of `Authority`
    return msgspec.structs.replace(ANA_CALLS, **changes)


def others() -> list[Authority]:
    """Callers that a run is not folded across."""
    principal, client, credential = ANA_CALLS.principal, ANA_CALLS.client, ANA_CALLS.credential
    assert isinstance(principal, Principal)
    assert isinstance(client, Client)
    assert isinstance(credential, Credential)
    replace = msgspec.structs.replace
    return [
        another(principal=replace(principal, sub="eve")),
        another(principal=replace(principal, iss="https://other.example")),
        another(client=replace(client, client_id="cli")),
        another(credential=replace(credential, token_hash="n" * 43)),
        another(request=Request(method="tools/call", server="reports", address="192.0.2.7")),
        another(request=Request(method="tools/call", server="mail")),
        another(tenant="globex"),
        another(trigger=Trigger.OPERATOR),
        another(principal=replace(principal, level=Level.VERIFIED)),
        another(credential=replace(credential, jti="another")),
    ]


DENIED = PolicyDecision(effect="deny", reason="policy-denies", policy_sha256="p" * 64, input_sha256="i" * 64)
ALLOWED = PolicyDecision(effect="allow", reason="owner", policy_sha256="p" * 64, input_sha256="i" * 64)
