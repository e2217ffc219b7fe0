"""What is deleted comes back from the trail, and the service says what it is doing: ready, refused, stopped.

Issue "main job": deleting the KV bucket or the DuckDB file and starting again brings both back, equal row for row; a
second `up` on the same data is refused clearly; `/readyz` tells the truth. Design section 1, promise 8.
"""

import asyncio
import json
import shutil
import signal
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext

from tasktrail.events.commands import CompleteTask, ReportStatus, TaskCommand
from tasktrail.events.entry import EXPECTED, KEY_ID, MSG_ID, SIGNATURE, encode, leaf_hash
from tasktrail.events.facts import GapFound
from tasktrail.events.subjects import TRAIL, task_subject
from tasktrail.projections import current
from tasktrail.projections.current import State
from tasktrail.services.broker import Broker
from tasktrail.services.clock import now_ms
from tasktrail.services.connection import Connection
from tasktrail.services.keyring import Keyring
from tasktrail.services.ledger import Attempt, make_entry
from tasktrail.services.trail import KV_STREAM
from tasktrail.testing.feeding import Feeder, asked
from tasktrail.testing.rebuild import Book, audit_differences, current_differences
from tasktrail.testing.scenario import ANA, authority, create, sealed
from tasktrail.testing.service import UpProcess, is_gone, wait_for

from .stories import Teller

COMMANDS = 300
MANY_TASKS, STEPS = 2_500, 10
WITHIN_S = 60.0
AUDIT = "audit.duckdb"


@contextmanager
def running(data: Path, *options: str) -> Generator[UpProcess]:
    with UpProcess(data, *options, environment={"TASKTRAIL_CANCEL_GRACE_MS": "600000"}) as up:
        yield up


@asynccontextmanager
async def administering(up: UpProcess) -> AsyncGenerator[Client]:
    nc = await up.admin().connect("admin")
    try:
        yield nc
    finally:
        await nc.close()


@asynccontextmanager
async def stopped_broker(data: Path) -> AsyncGenerator[Client]:
    """The broker of a service that does not run."""
    with Broker.start(data / "nats", sync_interval="2m") as broker:
        nc = await Connection(**broker.connect_options()).connect("admin")
        try:
            yield nc
        finally:
            await nc.close()


async def fed(up: UpProcess) -> Teller:
    """Traffic of every kind, all of it acknowledged."""
    feeder = await Feeder.connect(up.adapter(), "campaign")
    try:
        teller = Teller(feeder, seed=3)
        await teller.tell(COMMANDS)
    finally:
        await feeder.close()
    assert not teller.wrong, teller.wrong
    return teller


async def level_bucket(nc: Client, book: Book) -> dict[str, bytes]:
    """The bucket, once it is what the trail folds to: what was compared, for a second read may meet a change."""
    deadline = time.monotonic() + WITHIN_S
    while True:
        await book.read(nc)
        found = [*book.faults, *await current_differences(nc, book)]
        if not found:
            return {ref: current.encode(state) for ref, state in book.states.items()}
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)


def stop_when_level(up: UpProcess) -> None:
    up.wait_until_level()
    assert up.stop() == 0, up.output()


async def book_of(data: Path) -> Book:
    book = Book()
    async with stopped_broker(data) as nc:
        await book.read(nc)
    assert not book.faults, book.faults
    return book


@pytest.mark.requirement("T1")
async def test_a_bucket_deleted_while_the_service_is_stopped_comes_back_equal(tmp_path: Path) -> None:
    """Issue "main job"; design section 1, promise 8."""
    data, book = tmp_path / "data", Book()
    with running(data) as up:
        await fed(up)
        async with administering(up) as nc:
            before = await level_bucket(nc, book)
        stop_when_level(up)
    async with stopped_broker(data) as nc:
        assert await JetStreamContext(nc).delete_stream(KV_STREAM)
    with running(data) as up:
        async with administering(up) as nc:
            assert await level_bucket(nc, book) == before


@pytest.mark.requirement("T1")
async def test_a_bucket_deleted_while_the_service_runs_comes_back_equal_and_polls_are_right_meanwhile(
    tmp_path: Path,
) -> None:
    """The same, without traffic to wake the projector; polls never depend on the bucket (design section 3)."""
    book = Book()
    with running(tmp_path / "data") as up:
        teller = await fed(up)
        async with administering(up) as nc:
            before = await level_bucket(nc, book)
            assert await JetStreamContext(nc).delete_stream(KV_STREAM)
            teller.feeder = await Feeder.connect(up.adapter(), "campaign")
            await asyncio.gather(*(life.get(life.status) for life in teller.lives))
            await teller.feeder.close()
            assert not teller.wrong, teller.wrong
            assert await level_bucket(nc, book) == before
        await asyncio.to_thread(up.wait_until_ready)


@pytest.mark.requirement("T1", "T3")
async def test_a_deleted_audit_store_comes_back_equal_row_for_row(tmp_path: Path) -> None:
    """Issue "main job"; the store that was deleted, the one that came back and our own are the same."""
    data = tmp_path / "data"
    with running(data) as up:
        await fed(up)
        await asyncio.to_thread(stop_when_level, up)
    assert not audit_differences(data / AUDIT, await book_of(data), tmp_path)
    for file in data.glob(f"{AUDIT}*"):
        file.unlink()
    with running(data) as up:
        await asyncio.to_thread(stop_when_level, up)
    assert not audit_differences(data / AUDIT, await book_of(data), tmp_path)


@pytest.mark.requirement("O1")
def test_a_second_up_on_the_same_data_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    """Issue "main job": a second `up` on the same data is refused clearly. Exit codes: cli.py."""
    with running(tmp_path / "data") as up:
        second = UpProcess(tmp_path / "data")
        second.log = tmp_path / "second.log"
        assert second.spawn().wait(WITHIN_S) == 3
        said = second.output()
        assert (f"process {up.pid} " in said, said.count("\n")) == (True, 1), said
        up.wait_until_ready()
        assert up.stop() == 0


@pytest.mark.requirement("O1", "L1")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_cleanly_and_the_next_start_goes_on_where_it_was(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Issue "main job": SIGINT and SIGTERM stop it cleanly; starting again on the same data continues where it was."""
    data, book = tmp_path / "data", Book()
    with running(data) as up:
        teller = await fed(up)
        child = up.broker_pid()
        assert await asyncio.to_thread(up.stop, number) == 0, up.output()
        assert is_gone(child)
    assert not (data / "service.json").exists()
    with running(data) as up:
        teller.feeder = await Feeder.connect(up.adapter(), "campaign")
        await asyncio.gather(*(life.get(life.status) for life in teller.lives))
        await teller.tell(teller.commands + COMMANDS)
        await teller.feeder.close()
        assert not teller.wrong, teller.wrong
        async with administering(up) as nc:
            await level_bucket(nc, book)
    assert not [entry for _, entry in book.entries.values() if any(isinstance(one, GapFound) for one in entry.events)]


def history(ref: str, number: int) -> Iterator[tuple[str, bytes]]:
    """One task's `STEPS` entries from its creation to its end, as the Ledger makes them: id and bytes of each."""
    commands: list[TaskCommand] = [create(f"create-{number}", granted_ttl_ms=86_400_000)]
    commands += [ReportStatus(id=f"report-{at}", message=sealed("message", str(at))) for at in range(STEPS - 2)]
    commands.append(CompleteTask(id="done", result=sealed("result", str(number))))
    state: State | None = None
    for place, command in enumerate(commands, start=1):
        entry = make_entry(Attempt(ANA.tenant, ref, command, authority()), state, {}, now_ms())
        body = encode(entry)
        yield entry.id, body
        state = current.advance(state, entry, leaf_hash(body), stream_seq=place)  # which sequence, no entry says


async def fill(nc: Client, keyring: Keyring, tasks: int) -> int:
    """Publish the histories of so many tasks as the Ledger does. Returns the trail's last sequence."""
    js = JetStreamContext(nc)
    at_once = asyncio.Semaphore(32)

    async def publish(number: int) -> None:
        ref = keyring.ref(f"task {number}")
        last = 0
        async with at_once:
            for made, body in history(ref, number):
                headers = {MSG_ID: made, SIGNATURE: keyring.sign(body), KEY_ID: keyring.kid, EXPECTED: str(last)}
                last = (await js.publish(task_subject(ANA.tenant, ref), body, headers=headers, timeout=WITHIN_S)).seq

    await asyncio.gather(*(publish(number) for number in range(tasks)))
    return (await js.stream_info(TRAIL)).state.last_seq


@pytest.mark.requirement("O1", "T3")
async def test_it_is_not_ready_before_both_projections_have_caught_up_with_a_large_trail(tmp_path: Path) -> None:
    """Issue "main job": `/readyz` is not ready while a projection is behind its start position; progress is shown."""
    data = tmp_path / "data"
    with running(data) as up:
        assert up.stop() == 0
    async with stopped_broker(data) as nc:
        target = await fill(nc, Keyring.open(data), MANY_TASKS)
        assert await JetStreamContext(nc).delete_stream(KV_STREAM)
    (data / AUDIT).unlink()
    with running(data) as up:
        seen = await asyncio.to_thread(readiness, up)
        codes = [code for code, _ in seen]
        assert codes == [503] * (len(codes) - 1) + [200], codes
        assert len(codes) > 1
        behind = {name for _, parts in seen for name, part in parts.items() if part.get("behind")}
        assert behind >= {"projector", "auditor"}
        assert min(seen[-1][1][name]["position"] for name in ("projector", "auditor")) >= target
        await asyncio.to_thread(wait_for, "the word", lambda: f"ready: {target} entries on the trail" in up.output())


def readiness(up: UpProcess) -> list[tuple[int, dict[str, dict[str, int]]]]:
    """What `/readyz` says until it says yes, while `/healthz` says yes all the time and polls are answered."""
    seen: list[tuple[int, dict[str, dict[str, int]]]] = []
    deadline = time.monotonic() + WITHIN_S
    while not seen or seen[-1][0] != 200:
        assert time.monotonic() < deadline, seen[-1]
        status, body = up.get("/readyz", token=False)
        seen.append((status, json.loads(body)["parts"]))
        assert up.get("/healthz", token=False)[0] == 200
    return seen


async def test_polls_and_commands_are_served_while_the_projections_catch_up(tmp_path: Path) -> None:
    """Design section 3: a task is pollable the moment its creation was acknowledged, whatever the projections do."""
    data = tmp_path / "data"
    with running(data) as up:
        assert up.stop() == 0
    async with stopped_broker(data) as nc:
        await fill(nc, Keyring.open(data), MANY_TASKS // 2)
    with running(data) as up:
        teller = await fed(up)
        assert teller.commands >= COMMANDS
        feeder = await Feeder.connect(up.adapter(), "campaign")
        life = teller.lives[0]
        view = await feeder.request("get", asked(life.who, "tasks/get", task_id=life.handle))
        await feeder.close()
        assert view["status"] == life.status
        async with administering(up) as nc:
            await level_bucket(nc, Book())


def test_a_data_directory_copied_whole_goes_on_elsewhere(tmp_path: Path) -> None:
    """The data directory is everything: a stopped service's copy starts."""
    with running(tmp_path / "data") as up:
        assert up.stop() == 0
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    with running(tmp_path / "copy") as up:
        up.wait_until_ready()
        assert up.stop() == 0
