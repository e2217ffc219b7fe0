"""The parts of one service process on a broker of your own, with a clock that you set: no HTTP, no projections.

Guarantees: each `parts` has a connection and an empty memory of its own, as another replica has; streams and keys are
made when they are missing. Nothing runs by itself: what is folded is written by `recorder.flush()`.

    clock = Clock()
    async with parts(server.url, tmp_path, clock) as one:
        view = await one.gate.create(…)
        clock.advance(60_000)
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext, api

from tasktrail.events.subjects import TRAIL
from tasktrail.projections.current import State
from tasktrail.services import trail
from tasktrail.services.access.asking import Checks
from tasktrail.services.access.callers import Callers
from tasktrail.services.access.desk import Desk
from tasktrail.services.access.gate import Gate
from tasktrail.services.access.limits import Limits
from tasktrail.services.access.losing import Losing
from tasktrail.services.access.payloads import Payloads
from tasktrail.services.access.policy import Policies
from tasktrail.services.access.recorder import Recorder
from tasktrail.services.access.work import Work
from tasktrail.services.connection import Connection
from tasktrail.services.definitions import Definitions
from tasktrail.services.fetching import fetch
from tasktrail.services.governance import Governance
from tasktrail.services.inventory import Inventory
from tasktrail.services.keyring import Keyring
from tasktrail.services.leases import Leases
from tasktrail.services.ledger import Ledger
from tasktrail.services.sealing import Vault
from tasktrail.services.settings import Settings
from tasktrail.services.states import States
from tasktrail.services.work_queue import WorkQueue
from tasktrail.testing.memory import Stored
from tasktrail.testing.scenario import NOW_MS

READ_WITHIN_S = 30.0
_FETCH = 500
_FETCH_S = 10.0
_PAUSE_S = 0.1


class Clock:
    """Epoch milliseconds that move only when told to."""

    def __init__(self, ms: int = NOW_MS) -> None:
        self.ms = ms

    def __call__(self) -> int:
        """The time."""
        return self.ms

    def advance(self, ms: int) -> None:
        """Move on."""
        self.ms += ms


class Parts(msgspec.Struct, kw_only=True):
    """One process's parts."""

    nc: Client
    js: JetStreamContext
    settings: Settings
    keyring: Keyring
    states: States
    ledger: Ledger
    vault: Vault
    recorder: Recorder
    gate: Gate
    work: Work
    desk: Desk
    governance: Governance
    policies: Policies
    leases: Leases
    queue: WorkQueue


@contextlib.asynccontextmanager
async def parts(
    url: str | Sequence[str],
    data: Path,
    clock: Clock | None = None,
    settings: Settings | None = None,
    *,
    replicas: int = 1,
) -> AsyncGenerator[Parts]:
    """Connect and build; the connection is closed at the end."""
    settings = settings or Settings(data=data, fold_ms=1_000)
    servers = url if isinstance(url, str) else ",".join(url)
    async with contextlib.AsyncExitStack() as stack:
        nc = await Connection.from_text(servers).connect("parts")
        stack.push_async_callback(nc.close)
        js = nc.jetstream()  # pyright: ignore[reportUnknownMemberType]  # nats-py's options have no types
        await trail.create(js, replicas=replicas, within_s=trail.CLUSTER_WITHIN_S)
        yield await _built(nc, js, Keyring.create(data), settings=settings, clock=clock, stack=stack)


async def _built(  # noqa: PLR0913 - what everything else is made of
    nc: Client,
    js: JetStreamContext,
    keyring: Keyring,
    *,
    settings: Settings,
    clock: Clock | None,
    stack: contextlib.AsyncExitStack,
) -> Parts:
    """The parts on this connection; `stack` ends those that have begun something."""
    states = States(nc, js, kept=settings.tasks_cached)
    ledger = Ledger(nc, js, keyring, states, settings, clock) if clock else Ledger(nc, js, keyring, states, settings)
    vault = Vault(js, keyring)
    payloads = Payloads(vault, settings)
    recorder = Recorder(ledger, fold_ms=settings.fold_ms)
    policies = Policies(ledger.now)
    governance = Governance(nc, js, ledger, policies, keyring.public_keys, keyring.pseudonym)
    await governance.start()
    stack.push_async_callback(governance.stop)
    callers = Callers(settings, keyring, ledger.now)
    stack.push_async_callback(callers.close)
    checks = Checks(callers, governance, policies, Limits(settings.limits, ledger.now))
    gate = Gate(ledger, states, keyring, payloads, recorder, checks, settings)
    inventory = Inventory(keyring.pseudonym)
    definitions = Definitions(ledger, states)
    stack.push_async_callback(definitions.stop)

    def made(state: State) -> None:
        inventory.observe(state)
        definitions.observe(state)

    gate.on_created, gate.owned, gate.parents.of_run = made, inventory.open_to, inventory.of_run
    queue = WorkQueue(nc, js, embedded=True)

    def observe(state: State) -> None:
        leases.observe(state)
        queue.observe(state)

    losing = Losing(
        ledger,
        states,
        payloads,
        reruns_max=settings.reruns_max,
        standing=lambda task: governance.standing(task, ledger.now()),
        observe=observe,
    )
    leases = Leases(nc, js, ledger.now, lease_ms=settings.worker_lease_ms, lose=losing.lapsed)
    work = Work(ledger, states, payloads, recorder, governance, policies, losing, leases, queue)
    gate.on_defined = work.on_defined = definitions.seen
    return Parts(
        nc=nc,
        js=js,
        settings=settings,
        keyring=keyring,
        states=states,
        ledger=ledger,
        vault=vault,
        recorder=recorder,
        gate=gate,
        work=work,
        desk=Desk(gate, work),
        governance=governance,
        policies=policies,
        leases=leases,
        queue=queue,
    )


async def stored(js: JetStreamContext, first: int = 1) -> list[Stored]:
    """Every message of the trail, from sequence `first` to what is its end now; begun again during an election.

    Raises:
        nats.errors.Error: the trail cannot be read for `READ_WITHIN_S`.
    """
    deadline = time.monotonic() + READ_WITHIN_S
    while True:
        try:
            return await _stored(js, first)
        except NatsError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_PAUSE_S)


async def _stored(js: JetStreamContext, first: int) -> list[Stored]:
    last = (await js.stream_info(TRAIL)).state.last_seq
    found: list[Stored] = []
    if first > last:
        return found
    config = api.ConsumerConfig(
        deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=first,
        ack_policy=api.AckPolicy.NONE,
        inactive_threshold=_FETCH_S,
    )
    subscription = await js.pull_subscribe(">", stream=TRAIL, config=config)
    try:
        while not found or found[-1].stream_seq < last:
            found += [
                Stored(
                    stream_seq=one.metadata.sequence.stream,
                    subject=one.subject,
                    body=one.data,
                    headers=dict(one.headers or {}),
                )
                for one in await fetch(subscription, min(_FETCH, last), timeout_s=_FETCH_S)
            ]
    finally:
        await subscription.unsubscribe()
    return [message for message in found if message.stream_seq <= last]
