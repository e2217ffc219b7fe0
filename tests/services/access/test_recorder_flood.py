"""Exact counts under a flood on a real server: many at once, while runs are being written. Source: promise 1, T1."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tasktrail.events.authority import Authority, Binding, BindingCheck, BindingMode
from tasktrail.events.errors import NothingWritten
from tasktrail.events.facts import AccessDenied, Commitment, ResultDisclosed, TaskPolled
from tasktrail.events.subjects import task_ref
from tasktrail.projections.current import State
from tasktrail.services import trail
from tasktrail.services.access import recorder as module
from tasktrail.services.access.recorder import Recorder
from tasktrail.services.access.rules import Rule
from tasktrail.services.connection import Connection
from tasktrail.services.keyring import Keyring
from tasktrail.services.ledger import Ledger
from tasktrail.services.settings import Settings
from tasktrail.services.states import States
from tasktrail.testing.memory import MemoryTrail
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import stored
from tasktrail.testing.scenario import ANA, authority, create, sealed

AT_ONCE, EACH = 64, 40
RESULTS = ((sealed("result", "a"),), (sealed("result", "b"),))
STRANGER = BindingCheck(mode=BindingMode.EXACT, differs=("sub",))
OWN = BindingCheck(mode=BindingMode.EXACT)
DENIALS: tuple[tuple[BindingCheck | None, Rule, str], ...] = (
    (None, Rule.UNKNOWN, "acme"),
    (STRANGER, Rule.OTHER_CONTEXT, "acme"),
    (STRANGER, Rule.OTHER_CONTEXT, "globex"),
    (OWN, Rule.EXPIRED, "acme"),
)
Seen = tuple[str, str, str]
"""Kind of access, whose, and what."""


class Bench:
    """A recorder on a real trail, what was asked of it, and what the trail says."""

    def __init__(self, ledger: Ledger, connection: Connection) -> None:
        self.recorder = Recorder(ledger, fold_ms=10)
        self.connection = connection
        self.asked: Counter[Seen] = Counter()
        memory = MemoryTrail(lambda: 1)
        self.states: list[State] = [
            memory.record("acme", task_ref(b"k" * 32, str(n)), create(f"c{n}"), authority()).state for n in range(3)
        ]

    async def act(self, dice: random.Random, who: Authority) -> None:
        """Poll, be shown a result, or be denied."""
        sub = who.principal.sub if who.principal else ""
        state = dice.choice(self.states)
        kind = dice.choice(("poll", "show", "deny"))
        if kind == "poll":
            try:
                self.recorder.polled(state, who, "tasks/get")
            except NothingWritten:
                return  # no room: it was told so, and nothing else
            self.asked[kind, sub, state.task_ref] += 1
        elif kind == "show":
            payloads: tuple[Commitment, ...] = dice.choice(RESULTS)
            await self.recorder.disclosed(state, who, "tasks/get", payloads)
            self.asked[kind, sub, state.task_ref + payloads[0].sha256] += 1
        else:
            binding, rule, tenant = dice.choice(DENIALS)
            denied = msgspec.structs.replace(who, binding=binding)
            await self.recorder.denied(denied, "tasks/get", -32602, rule, state.task_ref, tenant)
            self.asked[kind, sub, f"{tenant} {rule.value} {binding and binding.differs} {state.task_ref}"] += 1

    async def recorded(self) -> Counter[Seen]:
        """What the trail holds, counted as `asked` is."""
        nc = await self.connection.connect("reader")
        found: Counter[Seen] = Counter()
        try:
            js = nc.jetstream()  # pyright: ignore[reportUnknownMemberType]  # nats-py's options have no types
            entries = [message.entry for message in await stored(js)]
        finally:
            await nc.close()
        assert len({entry.id for entry in entries}) == len(entries)
        for entry in entries:
            sub = entry.authority.principal.sub if entry.authority.principal else ""
            for event in entry.events:
                if isinstance(event, TaskPolled):
                    found["poll", sub, entry.task_ref] += event.count
                elif isinstance(event, ResultDisclosed):
                    found["show", sub, entry.task_ref + event.sha256[0]] += event.count
                elif isinstance(event, AccessDenied):
                    (reason,), binding = event.reasons, entry.authority.binding
                    assert event.reasons[reason] == sum(event.refs.values()) == event.count
                    for ref, count in event.refs.items():
                        found["deny", sub, f"{entry.tenant} {reason} {binding and binding.differs} {ref}"] += count
        return found


@pytest.fixture
async def bench(fresh_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """Give one on an empty trail."""
    connection = Connection.from_text(fresh_nats.url)
    nc = await connection.connect("recorder")
    try:
        js = nc.jetstream()  # pyright: ignore[reportUnknownMemberType]  # nats-py's options have no types
        await trail.create(js)
        settings = Settings(data=tmp_path, answer_within_ms=10_000)
        ledger = Ledger(nc, js, Keyring.create(tmp_path), States(nc, js, kept=16), settings)
        yield Bench(ledger, connection)
    finally:
        await nc.close()


def people(count: int) -> list[Authority]:
    return [authority(Binding(tenant="acme", iss=ANA.iss, sub=str(n), client_id="desk")) for n in range(count)]


@pytest.mark.requirement("T1", "P4")
@pytest.mark.parametrize(("callers", "runs_max"), [(4, module.RUNS_MAX), (AT_ONCE + 16, AT_ONCE + 2)])
async def test_every_access_of_a_flood_is_counted_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, callers: int, runs_max: int
) -> None:
    """64 at once, while folded runs are written every 10 ms: by a few callers, and by more than are remembered."""
    monkeypatch.setattr(module, "RUNS_MAX", runs_max)
    who = people(callers)
    await bench.recorder.start()

    async def one(number: int) -> None:
        dice = random.Random(number)  # noqa: S311 - the same flood each time
        for _ in range(EACH):
            await bench.act(dice, dice.choice(who))

    await asyncio.gather(*map(one, range(AT_ONCE)))
    await bench.recorder.stop()
    assert not bench.recorder.unwritten
    assert sum(bench.asked.values()) > AT_ONCE * EACH / 2
    assert await bench.recorded() == bench.asked
