"""Append: `Ledger.submit` beside `js.publish` of nats-py with bodies and headers of the same size.

Guarantees: all sides use `sync_interval: always` and streams of the same configuration. `raw` and `ledger` share one
nats-server; `service` is a whole tasktrail in this process with a nats-server of its own, whose projections, audit
store and timers follow along. The raw side publishes the very bytes of an entry the Ledger wrote, with the same
headers, an expected sequence and a fresh message id each time. No key is made and nothing is sealed per command.

    async with append_cases(directory) as cases:
        for question, sides, in_flight in cases: ...
"""

import contextlib
import dataclasses
import secrets
import time
from base64 import b32encode
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
from nats.aio.client import Client
from nats.js import JetStreamContext

from benchmarks.conditions import SYNC_INTERVAL
from benchmarks.rounds import Planned, Question, Side
from tasktrail.events import authority, commands
from tasktrail.events.authority import (
    Authority,
    Binding,
    Credential,
    Level,
    Method,
    PolicyDecision,
    Principal,
    Request,
    Trigger,
    Verification,
    identity,
)
from tasktrail.events.entry import EXPECTED, MSG_ID
from tasktrail.events.facts import TaskSupport
from tasktrail.events.subjects import TRAIL, task_subject
from tasktrail.events.task import Outcome
from tasktrail.services import trail
from tasktrail.services.broker import Broker
from tasktrail.services.connection import Connection
from tasktrail.services.keyring import Keyring
from tasktrail.services.ledger import Ledger
from tasktrail.services.sealing import TaskKey
from tasktrail.services.service import Service
from tasktrail.services.settings import Settings
from tasktrail.services.states import States

TENANT = "default"
RAW = "RAW"
AIMED_AT, AIM = 64, 0.8
IN_FLIGHT = (1, AIMED_AT)
CHAIN = 8
"""Entries of one task, its creation among them, where commands go to chains."""

_ACK_S = 1.0
_TTL_MS = 3_600_000

NAMES = ("append.distinct", "append.chains")
_DISTINCT = Question(
    name="append.distinct",
    what="each command creates a task of its own",
    aims={"ledger": AIM},
)
_CHAINS = Question(
    name="append.chains",
    what=f"commands on chains: a creation and {CHAIN - 1} status reports on each task",
    aims={"ledger": AIM},
)


def new_ref() -> str:
    """A reference as tasks have them."""
    return b32encode(secrets.token_bytes(20)).decode().lower()


class _Commands:
    """Commands as a caller with a JWT causes them: a creation with arguments, and status reports with a text."""

    def __init__(self) -> None:
        self.authority = _authority()
        key = TaskKey(new_ref(), secrets.token_bytes(32))
        self._handle, handle = key.seal("handle", "benchmark", new_ref().encode())
        self._arguments, arguments = key.seal(
            "arguments", "benchmark", b'{"query":"' + bytes(100).hex().encode() + b'"}'
        )
        self._made = {"handle": handle, "arguments": arguments}
        self._texts = [key.seal("message", "benchmark", b"compiling part %d of 8" % part) for part in range(CHAIN)]

    def create(self) -> tuple[commands.TaskCommand, dict[str, bytes]]:
        """A new task, and what is sealed with it."""
        command = commands.CreateTask(
            id=secrets.token_hex(16),
            binding=identity(self.authority),
            server="benchmark",
            tool="report",
            tool_sha256=secrets.token_hex(32),
            task_support=TaskSupport.OPTIONAL,
            wire="mcp/2026-07-28",
            protocol_version="2026-07-28",
            client_extensions=("io.modelcontextprotocol/tasks",),
            granted_ttl_ms=_TTL_MS,
            poll_interval_ms=1_000,
            handle=self._handle,
            arguments=self._arguments,
        )

        return command, self._made

    def report(self, part: int) -> tuple[commands.TaskCommand, dict[str, bytes]]:
        """A text that the task does not show already."""
        message, blob = self._texts[part]
        command = commands.ReportStatus(id=secrets.token_hex(16), message=message, progress=part, total=CHAIN)
        return command, {"message": blob}


def _authority() -> Authority:
    level = Level.ASSERTED
    issuer, now_s = "https://id.example", int(time.time())
    credential = Credential(
        method=Method.JWT,
        verification=Verification.OK,
        verified_at_ms=now_s * 1000,
        token_hash=secrets.token_urlsafe(32),
        jti=secrets.token_hex(16),
        aud=("https://mcp.example/mcp",),
        scope=("tasks",),
        iat=now_s,
        exp=now_s + 300,
        kid=secrets.token_hex(8),
        level=level,
    )
    binding = Binding(tenant=TENANT, iss=issuer, sub="ana", client_id="cli")
    return Authority(
        trigger=Trigger.CALLER,
        tenant=TENANT,
        principal=Principal(iss=binding.iss, sub=binding.sub, level=level),
        client=authority.Client(client_id=binding.client_id, level=level),
        credential=credential,
        decision=PolicyDecision(effect="allow", reason="benchmark", input_sha256=secrets.token_hex(32)),
        request=Request(method="tools/call", server="benchmark", rpc_id="17", address="127.0.0.1"),
    )


class LedgerSide:
    """Commands through a Ledger: `chain` of them on each task."""

    def __init__(self, name: str, ledger: Ledger, broker: Broker, chain: int) -> None:
        self.name = name
        self._ledger, self._chain = ledger, chain
        self._commands = _Commands()
        self._tasks: dict[int, tuple[str, int]] = {}
        self._processes = (psutil.Process(), psutil.Process(broker.pid))

    async def one(self, worker: int) -> None:
        """Record one command."""
        ref, made = self._tasks.get(worker, ("", self._chain))
        if made >= self._chain:
            ref, made = new_ref(), 0
        command, sealed = self._commands.report(made) if made else self._commands.create()
        done = await self._ledger.submit(TENANT, ref, command, self._commands.authority, sealed)
        if done.outcome is not Outcome.ACCEPTED or done.repeated:
            message = f"a command of the benchmark was {done.outcome} ({done.reason})"
            raise AssertionError(message)
        self._tasks[worker] = (ref, made + 1)

    async def begin(self) -> None:
        """Nothing is needed."""

    async def settle(self) -> None:
        """Nothing is left: every command was answered."""

    def processes(self) -> Sequence[psutil.Process]:
        """This process and its nats-server."""
        return self._processes


class _Sample(msgspec.Struct, frozen=True):
    """One entry as the Ledger wrote it."""

    body: bytes
    headers: dict[str, str]


class RawSide:
    """The same bytes and headers through `js.publish`."""

    def __init__(self, js: JetStreamContext, broker: Broker, samples: tuple[_Sample, _Sample], chain: int) -> None:
        self.name = "raw"
        self._js, self._samples, self._chain = js, samples, chain
        self._tasks: dict[int, tuple[str, int, int]] = {}
        self._processes = (psutil.Process(), psutil.Process(broker.pid))

    async def one(self, worker: int) -> None:
        """Publish one message and await its acknowledgement."""
        subject, made, last = self._tasks.get(worker, ("", self._chain, 0))
        if made >= self._chain:
            subject, made, last = f"raw.{task_subject(TENANT, new_ref())}", 0, 0
        sample = self._samples[min(made, 1)]
        headers = {**sample.headers, MSG_ID: secrets.token_hex(16), EXPECTED: str(last)}
        ack = await self._js.publish(subject, sample.body, headers=headers, timeout=_ACK_S)
        self._tasks[worker] = (subject, made + 1, ack.seq)

    async def begin(self) -> None:
        """Nothing is needed."""

    async def settle(self) -> None:
        """Nothing is left: every message was acknowledged."""

    def processes(self) -> Sequence[psutil.Process]:
        """This process and its nats-server."""
        return self._processes


@contextlib.asynccontextmanager
async def append_cases(directory: Path) -> AsyncGenerator[list[Planned]]:
    """The cases, with everything they need started."""
    async with contextlib.AsyncExitStack() as stack:
        broker = stack.enter_context(Broker.start(directory / "nats", sync_interval=SYNC_INTERVAL))
        nc, js = await _connected(stack, broker)
        await trail.create(js)
        states = States(nc, js, kept=Settings().tasks_cached)
        ledger = Ledger(nc, js, Keyring.create(directory), states, Settings())
        samples = await _samples(ledger, broker, js)
        _, raw = await _connected(stack, broker)
        stream = dataclasses.replace(trail.desired()[TRAIL], name=RAW, subjects=["raw.>"])
        await raw.add_stream(stream)  # pyright: ignore[reportUnknownMemberType] # nats-py's options have no types
        service = Service(Settings(data=directory / "service"))
        await service.start()
        stack.push_async_callback(service.stop)
        if service.broker is None:
            message = "an embedded service has a broker"
            raise AssertionError(message)
        planned: list[Planned] = []
        for question, chain in ((_DISTINCT, 1), (_CHAINS, CHAIN)):
            sides: list[Side] = [
                RawSide(raw, broker, samples, chain),
                LedgerSide("ledger", ledger, broker, chain),
                LedgerSide("service", service.ledger, service.broker, chain),
            ]
            planned += [
                (question if in_flight == AIMED_AT else msgspec.structs.replace(question, aims={}), sides, in_flight)
                for in_flight in IN_FLIGHT
            ]
        yield planned


async def _connected(stack: contextlib.AsyncExitStack, broker: Broker) -> tuple[Client, JetStreamContext]:
    nc = await Connection(**broker.connect_options()).connect("benchmark")
    stack.push_async_callback(nc.close)
    return nc, nc.jetstream()  # pyright: ignore[reportUnknownMemberType] # nats-py's options have no types


async def _samples(ledger: Ledger, broker: Broker, js: JetStreamContext) -> tuple[_Sample, _Sample]:
    """A creation and a status report as the Ledger writes them."""
    side = LedgerSide("sample", ledger, broker, 2)
    found: list[_Sample] = []
    for sequence in (1, 2):
        await side.one(0)
        stored: Any = await js.get_msg(TRAIL, seq=sequence)
        found.append(_Sample(body=stored.data, headers=dict(stored.headers)))
    return found[0], found[1]
