"""Work that survives the death of the process that does it, over real processes: MCP servers and tasktrail, two each.

Sources: issue "Adapters" (work that survives; what it must show), features L6, L8, L9.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
import pytest
import pytest_asyncio
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from tests.mcp.client import Client

from tasktrail.events.entry import Entry
from tasktrail.events.facts import (
    CommandRefused,
    Event,
    InputRequested,
    InputResponded,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskFailed,
    WorkerLost,
    WorkTaken,
)
from tasktrail.events.subjects import TIMERS
from tasktrail.services.clock import now_ms
from tasktrail.services.connection import Connection
from tasktrail.services.keyring import Keyring
from tasktrail.services.leases import RETURN_MS
from tasktrail.services.timers import Timer
from tasktrail.testing.feeding import Feeder
from tasktrail.testing.fleet import fleet
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.rebuild import Book
from tasktrail.testing.service import UpProcess, wait_for
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Fact = TypeVar("Fact", bound=Event)
PROGRAM = Path(__file__).with_name("replica.py")
LEASE_MS = 4_000
"""Long enough that a machine which is busy with something else renews in time: three times within it."""
ENVIRONMENT = {"TASKTRAIL_WORKER_LEASE_MS": str(LEASE_MS)}
READY_S = 60.0
LEASES = "timer.1.*.lease.>"


class Replica:
    """One process of the MCP server."""

    def __init__(self, connection: str, folder: Path) -> None:
        name = secrets.token_hex(4)
        self.log = folder / f"{name}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKTRAIL_")}
        with self.log.open("wb") as sink:
            self._child = subprocess.Popen(
                [sys.executable, PROGRAM, connection, folder, name],
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self._where = folder / f"{name}.url"

    def ready(self) -> Self:
        """Wait until it listens."""

        def listens() -> bool:
            assert self._child.poll() is None, self.log.read_text()
            return self._where.exists()

        wait_for(f"replica {self.pid}", listens, READY_S)
        return self

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def client(self) -> Client:
        """Somebody who uses this replica."""
        return Client(self._where.read_text())

    def send(self, number: int) -> None:
        """Send it a signal."""
        self._child.send_signal(number)

    def end(self, number: int = signal.SIGKILL) -> None:
        """End it, and wait until it has."""
        self._child.send_signal(number)
        self._child.wait(READY_S)


class Site:
    """Where replicas run, and what is on the trail."""

    def __init__(self, connection: str, folder: Path, keys: Path, feeder: Feeder) -> None:
        self._connection, self.folder, self._keys, self._feeder = connection, folder, keys, feeder
        self._book = Book()

    @contextlib.contextmanager
    def replicas(self, count: int = 2) -> Generator[tuple[Replica, ...]]:
        """Run so many."""
        started: list[Replica] = []
        try:
            started.extend(Replica(self._connection, self.folder) for _ in range(count))
            yield tuple(one.ready() for one in started)
        finally:
            for one in started:
                one.end()

    def ref(self, handle: str) -> str:
        """The reference that stands for a handle."""
        return Keyring.open(self._keys).ref(handle)

    def go(self, call: str) -> None:
        """Let a tool call go on."""
        (self.folder / f"{call}.go").touch()

    def has(self, call: str, replica: Replica, what: str) -> bool:
        """Whether the call came so far there."""
        return (self.folder / f"{call}.{replica.pid}.{what}").exists()

    async def begun(self, call: str, replica: Replica) -> None:
        """Wait until the call runs there."""
        await until(lambda: self.has(call, replica, "begun"), what=f"{call} at {replica.pid}")

    async def entries(self, handle: str) -> list[Entry]:
        """The entries of a task."""
        await self._book.read(self._feeder.nc)
        assert not self._book.faults
        ref = self.ref(handle)
        return [entry for _, entry in self._book.entries.values() if entry.task_ref == ref and entry.task_seq]

    async def facts(self, handle: str, kind: type[Fact]) -> list[Fact]:
        """A task's events of one kind."""
        return [event for entry in await self.entries(handle) for event in entry.events if isinstance(event, kind)]

    async def kinds(self, handle: str) -> Counter[str]:
        """How often each event is on the task's subject."""
        return Counter(type(event).__name__ for entry in await self.entries(handle) for event in entry.events)

    async def until_fact(self, handle: str, kind: type[Fact]) -> Fact:
        """The task's first event of this kind, once there is one."""

        async def look() -> list[Fact]:
            return await self.facts(handle, kind)

        return (await until(look, what=f"{kind.__name__} of {self.ref(handle)}"))[0]


@contextlib.asynccontextmanager
async def site(connection: str, keys: Path, folder: Path, reader: Connection) -> AsyncGenerator[Site]:
    """A place for replicas beside a running tasktrail; `folder` is there."""
    feeder = await Feeder.connect(reader, "reader")
    try:
        yield Site(connection, folder, keys, feeder)
    finally:
        await feeder.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """Give two tasktrails on one nats-server."""
    directory = tmp_path_factory.mktemp("workers")
    with NatsServer() as server, fleet(server.url, directory, environment=ENVIRONMENT) as (first, _):
        (directory / "calls").mkdir()
        async with site(server.url, first.data, directory / "calls", Connection.from_text(server.url)) as place:
            yield place


async def started(at: Client, tool: str, call: str) -> str:
    """The handle of a new task."""
    handle: str = (await at.start(tool, call=call))["taskId"]
    return handle


async def question(at: Client, handle: str) -> str:
    """The key of the one question that waits."""
    [key] = (await at.until(handle, "input_required"))["inputRequests"]
    return str(key)


def accepted(name: str) -> dict[str, Any]:
    """An answer."""
    return {"action": "accept", "content": {"name": name}}


def text_of(task: dict[str, Any]) -> str:
    """What a tool returned."""
    return str(task["result"]["content"][0]["text"])


@pytest.mark.requirement("L6", "L8", "L9")
async def test_a_task_is_used_through_any_replica_and_outlives_the_one_that_runs_it(two: Site) -> None:
    """Issue, what it must show: create on one, answer on the other, cancel through the first, kill -9 the worker."""
    with two.replicas() as (one, other):
        async with one.client() as ana, other.client() as there:
            asked = await started(ana, "asks", "asked")
            key = await question(there, asked)
            await there.update(asked, {key: accepted("Luca")})
            cancelled = await started(there, "once", "cancelled")
            await two.begun("cancelled", other)
            await ana.cancel(cancelled)
            await ana.until(cancelled, "cancelled")
            assert two.has("cancelled", other, "stopped")
            lost, rerun = await started(ana, "once", "lost"), await started(ana, "again", "rerun")
            await two.begun("lost", one)
            await two.begun("rerun", one)
            second = await question(there, asked)
            one.end(signal.SIGKILL)

            failed = await there.until(lost, "failed")
            assert failed["error"]["message"] == "the server running this task went away"
            await two.begun("rerun", other)
            two.go("rerun")
            assert text_of(await there.until(rerun, "completed")) == f"rerun by {other.pid}"
            await there.update(asked, {second: accepted("Mia")})
            two.go("asked")
            assert text_of(await there.until(asked, "completed")) == f"asked by {other.pid} for Luca and Mia"
    (created,) = await two.facts(rerun, TaskCreated)
    (gone,) = await two.facts(rerun, WorkerLost)
    (taken,) = await two.facts(rerun, WorkTaken)
    assert (gone.cause, gone.worker, gone.rerun) == ("lease", created.worker, True)
    assert taken.attempt == 2
    assert taken.worker not in {"", created.worker}
    assert [gone.rerun for gone in await two.facts(lost, WorkerLost)] == [False]
    assert await two.kinds(lost) == Counter(["TaskCreated", "WorkerLost", "TaskFailed"])
    assert await two.kinds(rerun) == Counter(["TaskCreated", "WorkerLost", "WorkTaken", "TaskCompleted"])
    assert [event.key for event in await two.facts(asked, InputRequested)] == [key, second]
    assert [event.key for event in await two.facts(asked, InputResponded)] == [key, second]
    assert (await two.kinds(asked))["TaskCompleted"] == 1


@pytest.mark.requirement("L9", "L2")
async def test_the_late_result_of_a_lost_worker_is_refused_and_recorded(two: Site) -> None:
    """Issue: a late result of a lost worker is refused and recorded. A process that was paused finds itself lost."""
    with two.replicas() as (one, other):
        async with one.client() as ana, other.client() as there:
            late, told = await started(ana, "stubborn", "late"), await started(ana, "again", "told")
            await two.begun("late", one)
            await two.begun("told", one)
            one.send(signal.SIGSTOP)
            for call in ("late", "told"):
                await two.begun(call, other)
            one.send(signal.SIGCONT)
            await until(lambda: two.has("told", one, "stopped"), what="the run of the lost worker stops")
            two.go(f"late.{one.pid}")
            refused = await two.until_fact(late, CommandRefused)
            two.go(f"late.{other.pid}")
            two.go(f"told.{other.pid}")
            assert text_of(await there.until(late, "completed")) == f"late by {other.pid}"
            assert text_of(await there.until(told, "completed")) == f"told by {other.pid}"
    (created,) = await two.facts(late, TaskCreated)
    assert (refused.command, refused.reason, refused.worker) == ("CompleteTask", "lost_worker", created.worker)
    assert await two.kinds(late) == Counter(
        ["TaskCreated", "WorkerLost", "WorkTaken", "CommandRefused", "TaskCompleted"]
    )
    assert not await two.facts(told, TaskCancelled)
    assert len(await two.facts(told, TaskCompleted)) == 1


@pytest.mark.requirement("L9")
async def test_a_process_that_says_goodbye_leaves_its_work_to_another(two: Site) -> None:
    """Issue: exactly as declared. A rerun needs nobody's lease to end when its process stops in order."""
    with two.replicas() as (one, other):
        async with one.client() as ana, other.client() as there:
            lost, rerun = await started(ana, "once", "ended"), await started(ana, "again", "handed-on")
            await two.begun("ended", one)
            await two.begun("handed-on", one)
            one.end(signal.SIGTERM)
            await there.until(lost, "failed")
            await two.begun("handed-on", other)
            await there.cancel(rerun)
            await there.until(rerun, "cancelled")
    for handle in (lost, rerun):
        assert [gone.cause for gone in await two.facts(handle, WorkerLost)] == ["shutdown"]
    assert not await two.facts(rerun, TaskFailed)


@pytest.mark.requirement("L9")
async def test_no_worker_is_lost_by_an_outage_of_the_service_or_its_broker(tmp_path: Path) -> None:
    """Design section 1.1; a worker is lost for what it does not do, not for what tasktrail could not hear."""
    with UpProcess(tmp_path / "data", environment=ENVIRONMENT) as up:
        connection = str(up.data / "adapter.json")
        async with site(connection, up.data, tmp_path, up.admin()) as place:
            with place.replicas(1) as (one,):
                async with one.client() as ana:
                    handle = await started(ana, "once", "steady")
                    await place.begun("steady", one)
                    up.kill()
                    up.start()
                    await _until_renewed(up)
                    up.kill_broker()
                    await _until_renewed(up)
                    place.go("steady")
                    done = await ana.until(handle, "completed")
            assert text_of(done) == f"steady by {one.pid}"
            assert await place.kinds(handle) == Counter(["TaskCreated", "TaskCompleted"])


async def _until_renewed(up: UpProcess) -> None:
    """Wait until the broker answers again, and the worker renewed its lease long after any of before had ended."""
    began_ms = now_ms()
    feeder = await until(lambda: _connected(up.admin()), what="the broker")

    async def renewed() -> bool:
        info = await JetStreamContext(feeder.nc).stream_info(TIMERS, subjects_filter=LEASES)
        leases = [subject for subject in info.state.subjects or {} if ".pending." in subject]
        found = [await JetStreamContext(feeder.nc).get_last_msg(TIMERS, subject) for subject in leases]
        due = [msgspec.json.decode(message.data or b"", type=Timer).due_ms for message in found]
        return bool(due) and min(due) > began_ms + RETURN_MS + 2 * LEASE_MS

    try:
        await until(renewed, what="a lease that was renewed")
    finally:
        await feeder.close()


async def _connected(to: Connection) -> Feeder | None:
    try:
        return await Feeder.connect(to, "reader")
    except (NatsError, OSError):
        return None
