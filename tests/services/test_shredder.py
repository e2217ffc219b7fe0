"""Shredding: what a task held cannot be read any more, and everything about it still verifies.

Source: design section 7 (keys), features R2 R3, issue "Authority" (retention, legal holds).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from nats.js.errors import APIError, ObjectNotFoundError
from tests.services.orders import TENANT
from tests.services.placing import placed

from tasktrail.events import commands
from tasktrail.events import entry as entries
from tasktrail.events.authority import Trigger
from tasktrail.events.errors import Unavailable
from tasktrail.events.facts import CommandRefused, HoldReleased, PayloadShredded, TaskExpired
from tasktrail.events.subjects import CURRENT, KEYS, PAYLOADS, TIMERS, key_subject
from tasktrail.events.task import Outcome, Task, apply
from tasktrail.projections import current
from tasktrail.projections.current import State
from tasktrail.services import timekeeper as module
from tasktrail.services.clock import now_ms
from tasktrail.services.configuration import HOUR_MS, Retention
from tasktrail.services.ledger import Recorded
from tasktrail.services.sealing import SealError, Vault
from tasktrail.services.settings import Settings
from tasktrail.services.shredder import Shredder
from tasktrail.services.sweeper import Sweeper
from tasktrail.services.timekeeper import Timekeeper
from tasktrail.services.timers import TimerStream
from tasktrail.testing.nats import NatsCluster, NatsServer
from tasktrail.testing.parts import Clock, Parts, parts, stored
from tasktrail.testing.scenario import TTL_MS, authority, create
from tasktrail.testing.waiting import until

RETENTION_MS = 1_000
SOON_S = 20.0
CANARY = b'"a canary of 28 bytes or so"'


@pytest.fixture
def clock() -> Clock:
    """Give the time: an hour behind the broker's, which fires every timer at once; when it is due, this one says."""
    return Clock(now_ms() - HOUR_MS)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_MS", 5)
    monkeypatch.setattr(module, "LONGEST_NAP_MS", 20)


def settings_in(data: Path) -> Settings:
    return Settings(data=data, fold_ms=1_000, retention=Retention(payloads_ms=RETENTION_MS))


@pytest.fixture
async def one(fresh_nats: NatsServer, tmp_path: Path, clock: Clock) -> AsyncIterator[Parts]:
    """Give a process."""
    async with parts(fresh_nats.url, tmp_path, clock, settings_in(tmp_path)) as made:
        yield made


def shredder_of(at: Parts) -> Shredder:
    return Shredder(at.ledger, at.vault, at.settings)


@asynccontextmanager
async def keeping(at: Parts, *observed: State) -> AsyncGenerator[Timekeeper]:
    keeper = Timekeeper(at.nc, at.js, at.ledger, at.states, at.settings, shredder_of(at))
    for state in observed:
        keeper.observe(state)
    await keeper.start()
    try:
        yield keeper
    finally:
        await keeper.stop()


async def submit(at: Parts, ref: str, command: commands.TaskCommand, **sealed: bytes) -> Recorded:
    return await at.ledger.submit(TENANT, ref, command, authority(), sealed)


async def expired_task(at: Parts, clock: Clock, name: str = "a task", result: bytes = CANARY) -> State:
    """A task with sealed arguments and a sealed result, whose handle has ended."""
    ref = at.keyring.ref(name)
    key = await at.vault.make(ref)
    arguments, blob = key.seal("arguments", "create", CANARY)
    await submit(at, ref, create(arguments=arguments), arguments=blob)
    said, blob = key.seal("result", "done", result)
    if len(blob) <= at.settings.inline_max_bytes:
        await submit(at, ref, commands.CompleteTask(id="done", result=said), result=blob)
    else:
        await at.vault.put(said, ref, blob)
        await submit(at, ref, commands.CompleteTask(id="done", result=said))
    clock.advance(TTL_MS)
    return (await submit(at, ref, commands.ExpireTask(id="over"))).state


async def wrapped(at: Parts, ref: str) -> bytes:
    """The task's key as it is stored."""
    return (await at.js.get_last_msg(KEYS, key_subject(ref))).data or b""


def on_disk(server: NatsServer, needle: bytes) -> list[str]:
    """Files of the broker that hold these bytes."""
    paths = (path for path in server.store_dir.rglob("*") if path.is_file())
    return [path.name for path in paths if needle in path.read_bytes()]


async def task_once(at: Parts, ref: str, holds: Callable[[Task], bool]) -> State:
    """The task once this holds."""

    async def found() -> State | None:
        state = await at.states.of(TENANT, ref)
        return state if state is not None and holds(state.task) else None

    return await until(found, what="the task")


async def until_erased(at: Parts, server: NatsServer, key: bytes) -> None:
    try:
        await until(lambda: not on_disk(server, key), what="the key's bytes")
    except TimeoutError:
        pytest.fail(f"the key is in {on_disk(server, key)}; {await at.js.stream_info(TIMERS)}")


async def chain_of(at: Parts, ref: str) -> Task:
    """The task as its entries say, read anew from the trail: every link of its chain is checked."""
    task: Task | None = None
    for message in await stored(at.js):
        if message.entry.task_ref == ref:
            task = apply(task, message.entry, entries.leaf_hash(message.body))
    assert task is not None
    return task


@pytest.mark.requirement("R2")
async def test_when_the_retention_is_over_the_key_is_gone_from_every_file_and_the_chain_holds(
    one: Parts, clock: Clock, fresh_nats: NatsServer
) -> None:
    """Features R2, and not before its time: P7 (two clocks), `payloads_ms` after the handle's end."""
    state = await expired_task(one, clock)
    ref, key = state.task_ref, await wrapped(one, state.task_ref)
    kept = await wrapped(one, (await expired_task(one, clock, "a later one")).task_ref)
    assert on_disk(fresh_nats, key)
    clock.ms = (state.task.expired_at_ms or 0) + RETENTION_MS - 1
    async with keeping(one, state):
        info = await one.js.consumer_info(TIMERS, "timekeeper")
        async with asyncio.timeout(SOON_S):
            while not info.delivered or info.delivered.consumer_seq < 2:  # it fired, and was not due
                info = await one.js.consumer_info(TIMERS, "timekeeper")
        assert on_disk(fresh_nats, key)
        clock.advance(1)
        await task_once(one, ref, lambda task: task.shredded_at_ms is not None)
        await until_erased(one, fresh_nats, key)
    assert on_disk(fresh_nats, kept), "another task's key stays"
    task = await chain_of(one, ref)
    entry = (await stored(one.js))[-1].entry
    assert entry.events == (PayloadShredded(at_ms=clock.ms, reason="retention"),)
    assert (task.shredded_at_ms, task.leaf) == (clock.ms, entries.leaf_hash((await stored(one.js))[-1].body))
    assert (entry.authority.trigger, entry.authority.created_by) == (Trigger.TIMER, task.created_by)
    assert entry.authority.principal is not None
    assert entry.authority.principal.sub == "shredder"
    assert entry.authority.decision is not None
    assert (entry.authority.decision.effect, entry.authority.decision.reason) == ("allow", "retention-is-over")


@pytest.mark.requirement("R2")
async def test_what_is_left_in_the_trail_opens_with_nothing_that_is_on_the_disk(
    one: Parts, clock: Clock, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """The ciphertext stays, for the chain; this process, another that had the key and a new one have lost it."""
    state = await expired_task(one, clock)
    async with parts(fresh_nats.url, tmp_path, clock) as other:
        await other.vault.key(state.task_ref)
        assert await shredder_of(one).shred(state)
        shredded = await one.states.of(TENANT, state.task_ref)
        assert shredded is not None
        async with keeping(other, shredded):
            pass
        for vault in (one.vault, other.vault, Vault(one.js, one.keyring)):
            with pytest.raises(SealError, match="its key was destroyed; its payloads cannot be read"):
                await vault.key(state.task_ref)
    blobs = [blob for message in await stored(one.js) for blob in message.entry.sealed.values()]
    assert blobs
    assert not any(CANARY in message.body for message in await stored(one.js))


@pytest.mark.requirement("R2")
async def test_no_new_key_is_made_for_a_task_whose_key_was_destroyed(one: Parts, clock: Clock) -> None:
    """A repeated creation has the same task id (decisions): it must not begin to seal again."""
    state = await expired_task(one, clock)
    await shredder_of(one).shred(state)
    for vault in (one.vault, Vault(one.js, one.keyring)):
        with pytest.raises(SealError, match="destroyed"):
            await vault.make(state.task_ref)


@pytest.mark.requirement("R2")
async def test_shredding_again_or_from_several_processes_writes_one_entry(
    one: Parts, clock: Clock, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Module docstring: calling it again does no harm."""
    state = await expired_task(one, clock)
    async with parts(fresh_nats.url, tmp_path, clock) as other:
        both = (shredder_of(one), shredder_of(other))
        assert all(await asyncio.gather(*(shredder.shred(state) for shredder in both for _ in range(3))))
        assert await both[1].shred(state)
    events = [type(event).__name__ for message in await stored(one.js) for event in message.entry.events]
    assert events.count("PayloadShredded") == 1
    assert "CommandRefused" not in events


@pytest.mark.requirement("R2")
async def test_the_entry_is_on_the_trail_before_the_key_goes(one: Parts, clock: Clock, fresh_nats: NatsServer) -> None:
    """Promise 1, durable before visible: no entry, no destruction."""
    state = await expired_task(one, clock)
    key = await wrapped(one, state.task_ref)
    info = await one.js.stream_info("TRAIL")
    info.config.max_msgs = info.state.messages
    await one.js.update_stream(info.config)  # pyright: ignore[reportUnknownMemberType]  # nats-py's options have no types
    with pytest.raises(Unavailable):
        await shredder_of(one).shred(state)
    assert on_disk(fresh_nats, key)
    await one.vault.key(state.task_ref)


@pytest.mark.requirement("R2")
@pytest.mark.parametrize("stream", ["with its timer", "lost"])
async def test_a_crash_between_the_entry_and_the_destruction_is_repaired(
    one: Parts, clock: Clock, fresh_nats: NatsServer, stream: str
) -> None:
    """The fired timer was not acknowledged; without it, a new stream of timers is reason to look."""
    state = await expired_task(one, clock)
    key = await wrapped(one, state.task_ref)
    async with keeping(one, state) as keeper:
        await until(lambda: keeper.ready, what="the timekeeper")
    clock.advance(RETENTION_MS)
    half = await submit(one, state.task_ref, commands.ShredPayload(id="half", reason="retention"))
    assert on_disk(fresh_nats, key)
    if stream == "lost":
        await one.js.publish(f"$KV.{CURRENT}.{state.task_ref}", current.encode(half.state))
        await one.js.delete_stream(TIMERS)
    async with keeping(one):
        await until_erased(one, fresh_nats, key)
    events = [type(event).__name__ for message in await stored(one.js) for event in message.entry.events]
    assert events.count("PayloadShredded") == 1


# --- holds --------------------------------------------------------------------------------------------------------


async def until_none_is_set(at: Parts, keeper: Timekeeper) -> None:
    """What was set has fired, and was dealt with."""

    async def none_is_set() -> bool:
        return keeper.ready and not (await at.js.stream_info(TIMERS)).state.messages

    await until(none_is_set, what="the timers")


def hold(made: str, by: str, name: str = "case 7") -> commands.PlaceHold:
    return commands.PlaceHold(id=made, hold=name, by=by, reason="litigation")


def release(made: str, by: str, name: str = "case 7") -> commands.ReleaseHold:
    return commands.ReleaseHold(id=made, hold=name, by=by, reason="settled")


@pytest.mark.requirement("R3")
async def test_a_hold_stops_it_and_only_another_person_ends_the_hold(
    one: Parts, clock: Clock, fresh_nats: NatsServer
) -> None:
    """Features R3."""
    state = await expired_task(one, clock)
    ref, key = state.task_ref, await wrapped(one, state.task_ref)
    held = await submit(one, ref, hold("h", "ana"))
    clock.advance(RETENTION_MS)
    async with keeping(one, state, held.state) as keeper:
        await until_none_is_set(one, keeper)
        same = await submit(one, ref, release("r", "ana"))
        assert (same.outcome, same.reason) == (Outcome.REFUSED, "same_person")
        keeper.observe(same.state)
        assert on_disk(fresh_nats, key)
        await one.vault.key(ref)
        keeper.observe((await submit(one, ref, release("r2", "ben"))).state)
        await task_once(one, ref, lambda task: task.shredded_at_ms is not None)
        await until_erased(one, fresh_nats, key)
    kinds = [type(event) for message in await stored(one.js) for event in message.entry.events]
    assert kinds.index(HoldReleased) < kinds.index(PayloadShredded)
    late = await submit(one, ref, hold("h2", "ana"))
    assert (late.outcome, late.reason) == (Outcome.REFUSED, "shredded")
    await chain_of(one, ref)


@pytest.mark.requirement("R3")
async def test_a_timer_that_another_timekeeper_dropped_under_a_hold_is_set_again_after_it(
    one: Parts, clock: Clock
) -> None:
    """What fires under a hold is for nothing, whoever takes it; the one that hears of the release sets it again."""
    state = await expired_task(one, clock)
    ref = state.task_ref
    await TimerStream(one.nc, one.js).place()
    async with keeping(one, state) as first:
        await until(lambda: first.ready, what="the timekeeper")
    held = (await submit(one, ref, hold("h", "ana"))).state
    clock.advance(RETENTION_MS)
    async with keeping(one, held) as second:
        await until_none_is_set(one, second)
    first.observe(held)
    first.observe((await submit(one, ref, release("r", "ben"))).state)
    await first.start()
    try:
        await task_once(one, ref, lambda task: task.shredded_at_ms is not None)
    finally:
        await first.stop()


@pytest.mark.requirement("R3")
async def test_a_hold_that_comes_just_before_the_entry_wins_and_does_not_stop_it_for_ever(
    one: Parts, clock: Clock
) -> None:
    """The Ledger decides on the task's own chain, whatever was read before; a refusal's id is not used again."""
    state = await expired_task(one, clock)
    held = await submit(one, state.task_ref, hold("h", "ana"))
    assert not await shredder_of(one).shred(state), "it was read before the hold"
    assert not await shredder_of(one).shred(held.state)
    refusals = [event for m in await stored(one.js) for event in m.entry.events if isinstance(event, CommandRefused)]
    assert [(refusal.command, refusal.reason) for refusal in refusals] == [("ShredPayload", "held")]
    await one.vault.key(state.task_ref)
    released = await submit(one, state.task_ref, release("r", "ben"))
    assert await shredder_of(one).shred(released.state)


@pytest.mark.requirement("R3")
async def test_a_task_held_twice_is_kept_until_both_holds_end(one: Parts, clock: Clock) -> None:
    """Each hold is somebody's own matter."""
    state = await expired_task(one, clock)
    await submit(one, state.task_ref, hold("h1", "ana", "one"))
    await submit(one, state.task_ref, hold("h2", "ben", "two"))
    first = await submit(one, state.task_ref, release("r1", "ben", "one"))
    assert not await shredder_of(one).shred(first.state)
    second = await submit(one, state.task_ref, release("r2", "ana", "two"))
    assert await shredder_of(one).shred(second.state)


# --- payloads in the bucket, and a broker that does not do as it is told --------------------------------------------


@pytest.mark.requirement("R2")
async def test_large_payloads_leave_the_bucket_too(one: Parts, clock: Clock) -> None:
    """At once those the state knows; the sweeper finds what an earlier crash, or an overwritten status text, left."""
    state = await expired_task(one, clock, result=bytes(100_000))
    kept = await expired_task(one, clock, "another", result=bytes(100_000))
    key = await one.vault.key(state.task_ref)
    forgotten, blob = key.seal("message", "early", bytes(100_000))
    await one.vault.put(forgotten, state.task_ref, blob)
    await shredder_of(one).shred(state)
    bucket = await one.js.object_store(PAYLOADS)
    assert state.task.result is not None
    assert kept.task.result is not None
    with pytest.raises(ObjectNotFoundError):
        await bucket.get_info(state.task.result.sha256)
    assert await Sweeper(one.js, one.states).sweep(datetime.now(UTC) + timedelta(days=1)) == 1
    with pytest.raises(ObjectNotFoundError):
        await bucket.get_info(forgotten.sha256)
    assert await one.vault.get(kept.task.result)


@pytest.mark.requirement("R2")
async def test_a_stream_of_keys_that_refuses_is_an_error_and_the_key_is_destroyed_later(
    one: Parts, clock: Clock
) -> None:
    """An operator may have set `deny_delete`; it is told, and it is tried again."""
    state = await expired_task(one, clock)
    key = await wrapped(one, state.task_ref)
    await one.js.delete_stream(KEYS)
    refusing = (await one.js.stream_info("TRAIL")).config
    refusing.name, refusing.subjects, refusing.description = KEYS, ["keys.1.>"], "refuses"
    await one.js.add_stream(refusing)
    await one.js.publish(key_subject(state.task_ref), key)
    with pytest.raises(SealError, match=r"its key is still in the stream KEYS \(message delete not permitted"):
        await shredder_of(one).shred(state)
    with pytest.raises(APIError):
        await one.js.delete_msg(KEYS, 1)


async def test_a_replicated_key_is_erased_on_every_node(nats_cluster: NatsCluster, tmp_path: Path) -> None:
    """R3: the stream's own files at once; the servers' replication log when it is next compacted (see decisions)."""
    clock = Clock()
    await placed(nats_cluster)
    async with parts(nats_cluster.urls, tmp_path, clock, settings_in(tmp_path), replicas=3) as one:
        state = await expired_task(one, clock)
        key = await wrapped(one, state.task_ref)

        def kept() -> list[str]:
            root = nats_cluster._directory  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]  # the files are the point
            return [
                str(path) for path in root.glob(f"*/jetstream/*/streams/{KEYS}/**/*.blk") if key in path.read_bytes()
            ]

        await until(lambda: len(kept()) >= 3, what="three copies")
        assert await shredder_of(one).shred(state)
        await until(lambda: not kept(), what="the copies are erased")
        with pytest.raises(SealError, match="destroyed"):
            await Vault(one.js, one.keyring).key(state.task_ref)
        assert TaskExpired in [type(event) for message in await stored(one.js) for event in message.entry.events]
