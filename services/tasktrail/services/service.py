"""The service in one process: broker, Ledger, access, projections, timers. What `up` runs and adapters embed.

Guarantees: starts in the order of the data's way and stops in reverse, writing what is folded; streams are created only
in a fresh directory (embedded) or by `init` (external); an unclean end before is recorded as a `GapFound`; the broker's
child is restarted when it dies. Start it from the main thread when embedded.

    service = Service(load(os.environ, data=Path(".tasktrail")))
    await service.start()
    await service.carry_out("get", messages.GetTask(…), server="reports")
    await service.stop()
"""

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from faststream.nats import NatsBroker
from nats.aio.client import Client
from nats.js import JetStreamContext

from tasktrail.events.authority import Standing, Trigger
from tasktrail.events.errors import TasktrailError
from tasktrail.events.facts import Event, GapFound, KeyActivated
from tasktrail.events.subjects import ANONYMOUS_TENANT, TIMERS, TRAIL, WORK, control_subject, tenant_token
from tasktrail.events.task import Task
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.current import State
from tasktrail.services import commands, trail
from tasktrail.services.access.asking import Checks
from tasktrail.services.access.callers import Callers, Channel, service_authority
from tasktrail.services.access.desk import Desk
from tasktrail.services.access.gate import Gate
from tasktrail.services.access.limits import Limits
from tasktrail.services.access.losing import Losing
from tasktrail.services.access.payloads import Payloads
from tasktrail.services.access.policy import Policies
from tasktrail.services.access.recorder import Recorder
from tasktrail.services.access.rules import Rule, decision
from tasktrail.services.access.work import Work
from tasktrail.services.admission import Admission
from tasktrail.services.auditor import Auditor
from tasktrail.services.broker import Broker, BrokerFailed, StoreBusy, require_api_level
from tasktrail.services.bus import make_bus
from tasktrail.services.clearing import without_task_ids
from tasktrail.services.clock import now_ms
from tasktrail.services.connection import Connection
from tasktrail.services.definitions import Definitions
from tasktrail.services.durable import replace
from tasktrail.services.ending import end
from tasktrail.services.enforcement import Enforcement
from tasktrail.services.governance import Governance
from tasktrail.services.inventory import Inventory, each_current
from tasktrail.services.keyring import Keyring, base64url, kid_of
from tasktrail.services.leases import Leases
from tasktrail.services.ledger import Ledger
from tasktrail.services.messages import Said, Signal, signal_subject
from tasktrail.services.notary import Notary
from tasktrail.services.operating import Operating
from tasktrail.services.policing import Policing
from tasktrail.services.projector import Projector
from tasktrail.services.sealing import Vault
from tasktrail.services.settings import Settings
from tasktrail.services.shredder import Shredder
from tasktrail.services.signals import signal_of
from tasktrail.services.states import States
from tasktrail.services.sweeper import Sweeper
from tasktrail.services.timekeeper import Timekeeper
from tasktrail.services.trail_reading import READER_FILE
from tasktrail.services.work_queue import WorkQueue

_log = logging.getLogger(__name__)

AUDIT_FILE = "audit.duckdb"
ADAPTER_FILE = "adapter.json"
SERVERS_DIRECTORY = "servers"
_MARKER = "streams-created"
_RUNNING = "running"
_ANNOUNCED = "signing-key-announced"
_CHECKPOINT_ANNOUNCED = "checkpoint-key-announced"
_PORT = "nats.port"
_BEAT_S = 1.0
RESTARTS_MAX = 5
_RESTARTS_WITHIN_S = 10.0
"""More restarts than this within this time are a broker that cannot live; fewer are accidents to get over."""

Told = Callable[[str, Signal], None]


class NotReady(TasktrailError):
    """The service cannot start on what it found; the message says what to do."""

    reason = "not_ready"


class Service:
    """Everything but HTTP."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keyring: Keyring
        self.ledger: Ledger
        self.projector: Projector
        self.auditor: Auditor
        self.notary: Notary
        self.nc: Client
        self.js: JetStreamContext
        self.broker: Broker | None = None
        self.failed: asyncio.Future[None]
        self.moved: list[Callable[[State], None]] = []
        """Called whenever a task moved, here or in another process; a move seen here may come twice."""
        self._told: dict[str, Told] = {}
        self._stack = contextlib.AsyncExitStack()
        self._restarts: list[float] = []
        self._marked = False

    def announce(self, server: str, told: Told) -> None:
        """Tell an embedded adapter of its server's tasks directly."""
        self._told[server] = told

    async def start(self) -> None:
        """Start everything; when this returns, commands are taken.

        Raises:
            NotReady, KeyringError, BrokerError, TasktrailError: with what to do.
        """
        self.failed = asyncio.get_running_loop().create_future()
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> None:
        self.settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        connection = self._own_broker() if self.settings.embedded else self._external()
        self.nc = await connection.connect("tasktrail")
        self._stack.push_async_callback(self.nc.close)
        await require_api_level(self.nc, trail.API_LEVEL)
        self.js = self.nc.jetstream()
        await self._streams()
        Keyring.complete(self.settings.data)
        self.keyring = Keyring.open(self.settings.data)
        self._build()
        self._stack.callback(self._stopped)
        bus = make_bus(connection)
        await self._start_parts(bus)
        await self._record_start()
        beat = asyncio.create_task(self._beat())
        self._stack.push_async_callback(end, beat)

    def _own_broker(self) -> Connection:
        data = self.settings.data
        kept = data / _PORT
        port = int(kept.read_text()) if kept.exists() and kept.read_text().strip().isdigit() else 0
        self.broker = _start_broker(data / "nats", self.settings, port)
        self._stack.callback(self._stop_broker)
        replace(kept, str(self.broker.port).encode())
        for name, options in (
            (ADAPTER_FILE, self.broker.adapter_connect_options()),
            (READER_FILE, self.broker.reader_connect_options()),
        ):
            replace(data / name, msgspec.json.encode(Connection(**options)))
        self._write_logins_of_servers(self.broker)
        return Connection(**self.broker.connect_options())

    def _write_logins_of_servers(self, broker: Broker) -> None:
        """`servers/<name>.json` for each MCP server with a login of its own, and for no other."""
        folder = self.settings.data / SERVERS_DIRECTORY
        current = {f"{tenant_token(name)}.json": broker.server_connect_options(name) for name in broker.servers}
        if current:
            folder.mkdir(mode=0o700, exist_ok=True)
        for stale in set(folder.glob("*.json")) - {folder / name for name in current}:
            stale.unlink()
        for name, options in current.items():
            replace(folder / name, msgspec.json.encode(Connection(**options)))

    def _stop_broker(self) -> None:
        if self.broker is not None:
            self.broker.stop()

    def _external(self) -> Connection:
        return Connection.from_text(self.settings.nats_url, self.settings.nats_credentials)

    async def _streams(self) -> None:
        """Make streams and keys in a fresh embedded directory; everywhere else they must be there and right."""
        marker = self.settings.data / _MARKER
        if self.settings.embedded and not marker.exists():
            await trail.create(self.js)
            make_keys(self.settings.data, await self.last_sequence())
            marker.touch(mode=0o600)
            return
        problems = await trail.differences(self.js)
        disposable = {trail.KV_STREAM, TIMERS, WORK} if self.settings.embedded else {trail.KV_STREAM}
        serious = [problem for problem in problems if not any(name in problem for name in disposable)]
        if serious:
            told = "\n  ".join(serious)
            remedy = (
                "restore the directory from a backup; tasktrail never makes a missing trail anew"
                if self.settings.embedded
                else f"run: tasktrail init --nats {shown(self.settings.nats_url)} --data {self.settings.data}"
            )
            message = f"the streams are not as they should be:\n  {told}\n{remedy}"
            raise NotReady(message)

    def _build(self) -> None:
        settings = self.settings
        self.states = States(self.nc, self.js, kept=settings.tasks_cached)
        self.ledger = Ledger(self.nc, self.js, self.keyring, self.states, settings)
        self.ledger.on_recorded = self._announce
        self.vault = Vault(self.js, self.keyring)
        payloads = Payloads(self.vault, settings)
        self.recorder = Recorder(self.ledger, fold_ms=settings.fold_ms)
        self.policies = Policies(self.ledger.now)
        keys, alias = self.keyring.public_keys, self.keyring.pseudonym
        self.governance = Governance(self.nc, self.js, self.ledger, self.policies, keys, alias)
        self.limits = Limits(settings.limits, self.ledger.now)
        self.callers = Callers(settings, self.keyring, self.ledger.now)
        self._stack.push_async_callback(self.callers.close)
        checks = Checks(self.callers, self.governance, self.policies, self.limits)
        gate = Gate(self.ledger, self.states, self.keyring, payloads, self.recorder, checks, settings)
        work = self._work(payloads)
        self.desk = Desk(gate, work)
        self.inventory = Inventory(alias)
        self.enforcement = Enforcement(
            self.governance, self.inventory, self.ledger, self.states, self.policies, self._announce
        )
        self.governance.on_change.append(self.enforcement.enforce)
        gate.on_opened = lambda ref, by: self.inventory.accessed(ref, self.ledger.now(), by)
        gate.on_created, gate.owned = self._made, self.inventory.open_to
        gate.parents.of_run = self.inventory.of_run
        self.definitions = Definitions(self.ledger, self.states)
        self._stack.push_async_callback(self.definitions.stop)
        gate.on_defined = work.on_defined = self.definitions.seen
        shredder = Shredder(self.ledger, self.vault, settings, standing=self._standing)
        self.timekeeper = Timekeeper(
            self.nc,
            self.js,
            self.ledger,
            self.states,
            settings,
            shredder,
            standing=self._standing,
            lapsed=self.leases.lapsed,
        )
        self.admission = Admission(self.ledger, self.policies, self.governance, self._cleared)
        self.operating = Operating(
            self.admission,
            self.governance,
            self.inventory,
            self.ledger,
            self.states,
            self.keyring,
            settings.privacy,
        )
        self.policing = Policing(self.admission, self.governance, self.policies, self.ledger, self._entry)

    def _made(self, state: State) -> None:
        self.inventory.observe(state)
        self.definitions.observe(state)

    def _work(self, payloads: Payloads) -> Work:
        """The work's side, and what watches over workers."""
        losing = Losing(
            self.ledger,
            self.states,
            payloads,
            reruns_max=self.settings.reruns_max,
            standing=self._standing,
            observe=self._worked,
        )
        self.leases = Leases(
            self.nc, self.js, self.ledger.now, lease_ms=self.settings.worker_lease_ms, lose=losing.lapsed
        )
        self.work_queue = WorkQueue(self.nc, self.js, embedded=self.settings.embedded)
        return Work(
            self.ledger,
            self.states,
            payloads,
            self.recorder,
            self.governance,
            self.policies,
            losing,
            self.leases,
            self.work_queue,
        )

    def _standing(self, task: Task) -> Standing:
        return self.governance.standing(task, self.ledger.now())

    def _cleared(self, texts: Mapping[str, str]) -> dict[str, str]:
        return without_task_ids(texts, self.keyring.ref, self.auditor.store)

    async def _entry(self, entry_id: str) -> bytes | None:
        return await asyncio.to_thread(self.auditor.store.entry, entry_id)

    def _observed(self, state: State) -> None:
        """A task moved, here or in another process."""
        self.timekeeper.observe(state)
        self._recalled(state)
        self._say_moved(state)

    def _recalled(self, state: State) -> None:
        """A task as the bucket had it at the start; the timekeeper reads the bucket itself, and more than once."""
        self.limits.observe(state)
        self.enforcement.observe(state)
        self.definitions.observe(state)
        self._worked(state)

    def _worked(self, state: State) -> None:
        """A task's work may have changed hands."""
        self.leases.observe(state)
        self.work_queue.observe(state)

    async def _start_parts(self, bus: NatsBroker) -> None:
        await self.governance.start()
        self._stack.push_async_callback(self.governance.stop)
        self.projector = Projector(self.js, self.states, bus, self._observed)
        await self.projector.start()
        self._stack.push_async_callback(self.projector.stop)
        await each_current(self.states, self._recalled)
        await self.enforcement.start()
        self._stack.push_async_callback(self.enforcement.stop)
        endpoint = commands.serve(bus, self.desk, self.nc.publish, self.settings)
        store = await asyncio.to_thread(AuditStore.open, self.settings.data / AUDIT_FILE)
        self._stack.push_async_callback(asyncio.to_thread, store.close)
        self.notary = Notary(
            self.settings.data,
            self.keyring,
            self.nc,
            self.settings.tlog,
            note=self._note,
            position=lambda: store.last_seq,
        )
        self._stack.push_async_callback(self.notary.stop)
        await self.notary.start()
        self.auditor = Auditor(self.nc, store, also=self.notary.take)
        await self.auditor.start()
        self._stack.push_async_callback(self.auditor.stop)
        await self.leases.start()
        self._stack.push_async_callback(self.leases.stop)
        await self.timekeeper.start()
        self._stack.push_async_callback(self.timekeeper.stop)
        await self.work_queue.start()
        self._stack.push_async_callback(self.work_queue.stop)
        sweeper = Sweeper(self.js, self.states)
        await sweeper.start()
        self._stack.push_async_callback(sweeper.stop)
        await self.recorder.start()
        self._stack.push_async_callback(self.recorder.stop)
        await bus.start()
        self._stack.push_async_callback(bus.stop)
        self._stack.push_async_callback(endpoint.drain)
        self.projector.attach()

    async def _record_start(self) -> None:
        """What the trail should know of this start: a key not seen on it yet, and a crash before it."""
        running = self.settings.data / _RUNNING
        at_ms = now_ms()
        announced, checkpoint = self.settings.data / _ANNOUNCED, self.settings.data / _CHECKPOINT_ANNOUNCED
        oldest = self.keyring.oldest()
        keys = {announced: _key(at_ms, "signing", self.keyring.public)}
        keys[checkpoint] = _key(at_ms, "checkpoint", self.keyring.checkpoint_publics[0])
        new = {file: key for file, key in keys.items() if not file.exists() or file.read_text() != key.kid}
        events: list[Event] = [*new.values()]
        if not announced.exists() and oldest.kid != self.keyring.kid:  # it signs the announcement: who is it?
            events.insert(0, _key(at_ms, "signing", oldest.public))
        if running.exists():
            gap = GapFound(
                at_ms=at_ms,
                what="folded polls and denials",
                since_ms=running.stat().st_mtime_ns // 1_000_000,
                until_ms=at_ms,
                cause="it ended without stopping: repeats of its last second may be missing",
            )
            events.append(gap)
        if events:
            await self._note(tuple(events))
        for file, key in new.items():
            replace(file, key.kid.encode())
        running.touch(mode=0o600)
        self._marked = True

    def _stopped(self) -> None:
        """Everything has stopped: unless something folded could not be written, the next start need not wonder."""
        if self._marked and not self.recorder.unwritten:
            (self.settings.data / _RUNNING).unlink(missing_ok=True)

    async def _note(self, events: tuple[Event, ...]) -> None:
        authority = msgspec.structs.replace(
            service_authority(Trigger.OPERATOR, ANONYMOUS_TENANT, "service"),
            decision=decision(Rule.SERVICE_ITSELF, "start"),
        )
        # Signed by the oldest key, so that processes which do not hold the newest yet take its word for it.
        ledger = Ledger(self.nc, self.js, self.keyring.oldest(), self.states, self.settings)
        await ledger.note(control_subject(ANONYMOUS_TENANT), ANONYMOUS_TENANT, authority, events)

    async def stop(self) -> None:
        """Stop everything in reverse; what is folded is written first."""
        await self._stack.aclose()

    async def carry_out(self, action: str, said: Said, server: str) -> msgspec.Struct:
        """An embedded adapter's request; it raises what `Desk.carry_out` does."""
        return await self.desk.carry_out(action, said, Channel(server=server, in_process=True))

    def _say_moved(self, state: State) -> None:
        for moved in self.moved:
            moved(state)

    async def _announce(self, state: State) -> None:
        """Nudge whoever runs or watches the task."""
        self._say_moved(state)
        task, signal = state.task, signal_of(state.task)
        told = self._told.get(task.server)
        if told is not None:
            told(state.task_ref, signal)
        with contextlib.suppress(Exception):
            await self.nc.publish(signal_subject(task.server, state.task_ref), msgspec.json.encode(signal))

    async def last_sequence(self) -> int:
        """The trail's last sequence, from its leader."""
        return (await self.js.stream_info(TRAIL)).state.last_seq

    async def _beat(self) -> None:
        """Show that we run, and see that the broker does."""
        while True:
            await asyncio.sleep(_BEAT_S)
            with contextlib.suppress(OSError):
                os.utime(self.settings.data / _RUNNING)
            if self.broker is not None and not self.broker.is_alive():
                try:
                    self._restart_broker(self.broker)
                except Exception as error:  # noqa: BLE001 - whatever it was, the process must say so and end
                    if not self.failed.done():
                        self.failed.set_exception(error)
                    return

    def _restart_broker(self, dead: Broker) -> None:
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if now - at < _RESTARTS_WITHIN_S] + [now]
        _log.error("the broker ended (%s); starting it again", dead.exit_code())
        if len(self._restarts) > RESTARTS_MAX:
            message = (
                f"the broker ended {len(self._restarts)} times within {_RESTARTS_WITHIN_S:g} s; "
                f"see {self.settings.data}/nats/nats.log"
            )
            raise NotReady(message)
        dead.stop()
        # On the same port or not at all: everything that is connected looks for it there.
        self.broker = Broker.start(
            self.settings.data / "nats", binary=self.settings.nats_server, port=dead.port, servers=dead.servers
        )


def shown(urls: str) -> str:
    """NATS URLs as they may be printed: with `***` for each password."""
    return re.sub(r"(//[^/@:,]*):[^/@,]*@", r"\1:***@", urls)


def make_keys(data: Path, entries: int) -> None:
    """Make the keys of a trail that has none yet.

    Raises:
        NotReady: the trail has entries already, made with keys that are not here.
    """
    if not Keyring.exists(data) and entries:
        message = (
            f"the trail holds {entries} entries, but {data} holds no keys: copy the directory `keys` of the "
            "installation that wrote them; new keys could not open or continue it"
        )
        raise NotReady(message)
    Keyring.create(data)


def _start_broker(store: Path, settings: Settings, port: int) -> Broker:
    """The broker on the port it had, so that adapters find it again; on another one when that is taken."""
    binary, servers = settings.nats_server, [one.name for one in settings.servers if one.named]
    try:
        return Broker.start(store, binary=binary, port=port, servers=servers)
    except StoreBusy:
        raise
    except BrokerFailed:
        if not port:
            raise
        _log.warning("the broker cannot have port %d again; taking another one", port)
        return Broker.start(store, binary=binary, servers=servers)


def _key(at_ms: int, purpose: str, public: bytes) -> KeyActivated:
    return KeyActivated(
        at_ms=at_ms, purpose=purpose, kid=kid_of(public), algorithm="Ed25519", public_key=base64url(public)
    )
