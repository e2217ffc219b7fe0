"""One process's parts with what operators need beside them: inventory, enforcement, orders, fed by a real projector.

async with operation(server, tmp_path, clock) as one:
    await one.operating.revoke(RevokeOrder(…), OLGA)
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from tests.services.orders import TENANT

from tasktrail.events import entry as entries
from tasktrail.events.authority import Authority, Binding
from tasktrail.events.commands import TaskCommand
from tasktrail.events.entry import Entry
from tasktrail.events.facts import Event, UnknownEvent
from tasktrail.events.task import Task
from tasktrail.projections.current import State
from tasktrail.services.admission import Admission
from tasktrail.services.bus import make_bus
from tasktrail.services.configuration import RIGHTS
from tasktrail.services.connection import Connection
from tasktrail.services.enforcement import Enforcement, Tell
from tasktrail.services.inventory import Inventory, each_current
from tasktrail.services.operating import Operating
from tasktrail.services.operators import Asker
from tasktrail.services.policing import Policing
from tasktrail.services.projector import Projector
from tasktrail.services.settings import Settings
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Clock, Parts, parts, stored
from tasktrail.testing.scenario import ANA, authority, create
from tasktrail.testing.waiting import until

SOON_S = 20.0
OLGA = Asker(token_hash="o" * 43, address="203.0.113.5", operator="olga", rights=RIGHTS)
OMAR = Asker(token_hash="m" * 43, address="203.0.113.6", operator="omar", rights=RIGHTS)


class Operation(NamedTuple):
    """One process. `told` are the states that listeners were told of."""

    parts: Parts
    admission: Admission
    inventory: Inventory
    enforcement: Enforcement
    operating: Operating
    policing: Policing
    told: list[State]

    async def make(self, ref: str, who: Binding = ANA, by: Authority | None = None) -> State:
        """A task of `who`, known to the inventory when this returns."""
        command = create(f"create {ref}", binding=who)
        done = await self.parts.ledger.submit(who.tenant, ref, command, by or authority(who))
        await until(lambda: self.inventory.get(ref), what="the inventory")
        return done.state

    async def do(self, ref: str, command: TaskCommand, who: Binding = ANA) -> State:
        """A command of the creator's."""
        return (await self.parts.ledger.submit(who.tenant, ref, command, authority(who))).state

    async def task(self, ref: str, tenant: str = TENANT) -> Task:
        """As the trail has it."""
        state = await self.parts.states.of(tenant, ref)
        assert state is not None
        return state.task

    async def entries(self) -> list[Entry]:
        """The whole trail."""
        return [entries.decode(message.body) for message in await stored(self.parts.js)]

    async def events(self, kind: type[Event]) -> list[tuple[Entry, Event | UnknownEvent]]:
        """Events of one kind, each with its entry."""
        return [(entry, event) for entry in await self.entries() for event in entry.events if isinstance(event, kind)]


@asynccontextmanager
async def operation(
    server: NatsServer,
    data: Path,
    clock: Clock | None = None,
    settings: Settings | None = None,
    tell: Tell | None = None,
) -> AsyncGenerator[Operation]:
    """A process with everything at work."""
    async with parts(server.url, data, clock or Clock(), settings) as one:
        inventory, told = Inventory(one.keyring.pseudonym), list[State]()

        async def remember(state: State) -> None:
            told.append(state)

        async def entry(entry_id: str) -> bytes | None:
            found = [message.body for message in await stored(one.js) if entries.decode(message.body).id == entry_id]
            return found[0] if found else None

        enforcement = Enforcement(one.governance, inventory, one.ledger, one.states, one.policies, tell or remember)
        one.governance.on_change.append(enforcement.enforce)
        admission = Admission(one.ledger, one.policies, one.governance)
        privacy = one.settings.privacy
        operating = Operating(admission, one.governance, inventory, one.ledger, one.states, one.keyring, privacy)
        policing = Policing(admission, one.governance, one.policies, one.ledger, entry)
        bus = make_bus(Connection.from_text(server.url))
        projector = Projector(one.js, one.states, bus, enforcement.observe)
        await projector.start()
        await each_current(one.states, enforcement.observe)
        await enforcement.start()
        await bus.start()
        projector.attach()
        try:
            yield Operation(one, admission, inventory, enforcement, operating, policing, told)
        finally:
            await bus.stop()
            await enforcement.stop()
            await projector.stop()
