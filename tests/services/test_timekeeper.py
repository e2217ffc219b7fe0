"""The timekeeper on a real server, with a clock that moves when told to. Source: design sections 3 and 5, L1 L8 P2.

The Ledger's clock starts an hour behind the broker's, so that the broker fires every timer at once: what then happens,
and when, is the Ledger's clock to say. Where the broker's own time is the point, both have the same.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError
from tests.services.orders import REF, TENANT, complete, do, ref_of, until_told
from tests.services.placing import placed

from tasktrail.events import commands
from tasktrail.events.authority import Level, Standing, Trigger
from tasktrail.events.entry import Entry
from tasktrail.events.facts import Status, TaskCancelled, TaskExpired
from tasktrail.events.subjects import CURRENT, TIMERS, TRAIL
from tasktrail.events.task import Task
from tasktrail.projections import current
from tasktrail.projections.current import State
from tasktrail.services import timekeeper as module
from tasktrail.services import trail
from tasktrail.services.clock import now_ms
from tasktrail.services.configuration import HOUR_MS
from tasktrail.services.settings import Settings
from tasktrail.services.shredder import Shredder
from tasktrail.services.timekeeper import Timekeeper
from tasktrail.testing.nats import NatsCluster, NatsServer
from tasktrail.testing.parts import Clock, Parts, parts, stored
from tasktrail.testing.scenario import TTL_MS, create
from tasktrail.testing.waiting import until

GRACE_MS = 500
SOON_S = 20.0


@pytest.fixture
def clock() -> Clock:
    """Give the time."""
    return Clock(now_ms() - HOUR_MS)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_MS", 5)
    monkeypatch.setattr(module, "LONGEST_NAP_MS", 20)


def settings_in(data: Path) -> Settings:
    return Settings(data=data, fold_ms=1_000, cancel_grace_ms=GRACE_MS)


@pytest.fixture
async def one(fresh_nats: NatsServer, tmp_path: Path, clock: Clock) -> AsyncIterator[Parts]:
    """Give a process."""
    async with parts(fresh_nats.url, tmp_path, clock, settings_in(tmp_path)) as made:
        yield made


@asynccontextmanager
async def keeping(at: Parts, *observed: State) -> AsyncGenerator[Timekeeper]:
    """A timekeeper at work, which heard of these states."""
    shredder = Shredder(at.ledger, at.vault, at.settings)
    keeper = Timekeeper(at.nc, at.js, at.ledger, at.states, at.settings, shredder, standing=lapsed)
    for state in observed:
        keeper.observe(state)
    await keeper.start()
    try:
        yield keeper
    finally:
        await keeper.stop()


def lapsed(_task: Task) -> Standing:
    return Standing.LAPSED


async def task_once(at: Parts, holds: Callable[[State], bool], ref: str = REF) -> State:
    """The task once this holds."""

    async def found() -> State | None:
        state = await at.states.of(TENANT, ref)
        return state if state is not None and holds(state) else None

    return await until(found, what="the task")


async def until_ready(keeper: Timekeeper) -> None:
    await until(lambda: keeper.ready, what="the timekeeper")


async def set_so_far(at: Parts) -> int:
    """How many messages the stream of timers was ever given."""
    return (await at.js.stream_info(TIMERS)).state.last_seq


async def tried_since(at: Parts, seen: int) -> int:
    """Return when timers that fired were taken into hand more often than `seen` times; and how often."""
    taken = 0
    async with asyncio.timeout(SOON_S):
        while taken <= seen:
            delivered = (await at.js.consumer_info(TIMERS, "timekeeper")).delivered
            taken = (delivered and delivered.consumer_seq) or 0
    return taken


def expired(state: State) -> bool:
    return state.task.expired_at_ms is not None


async def written(at: Parts) -> list[Entry]:
    return [message.entry for message in await stored(at.js) if message.entry.task_ref]


async def bucket(at: Parts, *states: State) -> None:
    """What the projector left there."""
    for state in states:
        await at.js.publish(f"$KV.{CURRENT}.{state.task_ref}", current.encode(state))


@pytest.mark.requirement("L1", "L8")
async def test_a_live_task_ends_and_expires_in_one_entry_by_the_timers_own_authority(one: Parts, clock: Clock) -> None:
    """Design sections 5 (`TaskCancelled{ttl}`, `TaskExpired`) and 3: timers never borrow the requestor's identity."""
    made = await do(one, create())
    clock.advance(TTL_MS)
    async with keeping(one, made.state):
        state = await task_once(one, expired)
    assert (state.task.status, state.task.seq) == (Status.CANCELLED, 2)
    entry = (await written(one))[-1]
    assert entry.events == (TaskCancelled(at_ms=clock.ms, reason="ttl"), TaskExpired(at_ms=clock.ms))
    authority = entry.authority
    assert (authority.trigger, authority.created_by) == (Trigger.TIMER, made.entry_id)
    assert authority.principal is not None
    assert (authority.principal.sub, authority.principal.level) == ("timekeeper", Level.VOUCHED)
    assert authority.standing is Standing.LAPSED, "as it was told: the creator's, never the timer's"
    assert authority.decision is not None
    assert (authority.decision.reason, authority.client, authority.credential) == ("time-is-up", None, None)


@pytest.mark.requirement("L1", "L8")
async def test_a_finished_task_only_expires(one: Parts, clock: Clock) -> None:
    """L8: a finished task stays finished."""
    await do(one, create())
    done = await do(one, complete())
    clock.advance(TTL_MS)
    async with keeping(one, done.state):
        state = await task_once(one, expired)
    assert state.task.status is Status.COMPLETED
    assert (await written(one))[-1].events == (TaskExpired(at_ms=clock.ms),)


@pytest.mark.requirement("L8")
async def test_a_cancellation_that_nobody_confirms_ends_the_task_after_its_grace(one: Parts, clock: Clock) -> None:
    """L8: what became of the request: unconfirmed by any worker in time."""
    await do(one, create())
    asked = await do(one, commands.CancelTask(id="c"))
    clock.advance(GRACE_MS)
    async with keeping(one, asked.state):
        state = await task_once(one, lambda state: state.task.status.terminal)
    assert state.task.status is Status.CANCELLED
    assert (await written(one))[-1].events == (TaskCancelled(at_ms=clock.ms, reason="unconfirmed"),)


@pytest.mark.requirement("L8")
async def test_a_confirmed_cancellation_is_left_alone(one: Parts, clock: Clock) -> None:
    """Its timer is still set when it is confirmed."""
    await do(one, create())
    asked = await do(one, commands.CancelTask(id="c"))
    await do(one, commands.StopTask(id="s"))
    clock.advance(GRACE_MS)
    other = await do(one, create(), ref_of("due"))
    async with keeping(one, asked.state) as keeper:
        clock.advance(TTL_MS)
        keeper.observe(other.state)
        await task_once(one, expired, ref_of("due"))
        await task_once(one, expired)
    reasons = [getattr(event, "reason", "") for entry in await written(one) for event in entry.events]
    assert [reason for reason in reasons if reason] == ["requested", "ttl"]


@pytest.mark.requirement("L10")
async def test_nothing_happens_before_its_time_whatever_the_brokers_clock_says(one: Parts, clock: Clock) -> None:
    """L10: a task lives as long as its granted TTL, not less."""
    late = await do(one, create(granted_ttl_ms=TTL_MS + 1))
    due = await do(one, create(), ref_of("due"))
    clock.advance(TTL_MS)
    async with keeping(one, late.state, due.state):
        await task_once(one, expired, ref_of("due"))
        await tried_since(one, await tried_since(one, 0))
        assert len(await written(one)) == 3
        clock.advance(1)
        await task_once(one, expired)
    assert len(await written(one)) == 4


@pytest.mark.requirement("L1")
async def test_a_change_of_a_task_does_not_set_its_timers_again(one: Parts) -> None:
    """One timer of each kind for a task, however often it moves."""
    made = await do(one, create())
    async with keeping(one) as keeper:
        for _ in range(100):
            keeper.observe(made.state)
        asked = await do(one, commands.CancelTask(id="c"))
        for _ in range(100):
            keeper.observe(asked.state)
        await until_ready(keeper)
        assert keeper._known.keys() == {  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]  # that is the point
            f"timer.1.pending.expire.{REF}",
            f"timer.1.pending.unconfirmed.{REF}",
        }
        assert await set_so_far(one) <= 4, "two were set, two fired"


@pytest.mark.requirement("P2")
async def test_a_task_that_ends_has_its_expiry_moved_to_the_end_of_its_retention(one: Parts, clock: Clock) -> None:
    """Features P2: retention per terminal status is enforced; setting a timer again moves it."""
    clock.advance(HOUR_MS)
    long_ms = 1000 * HOUR_MS
    made = await do(one, create(granted_ttl_ms=long_ms, retention_ms={"completed": 0}))
    async with keeping(one, made.state) as keeper:
        await until_ready(keeper)
        pending = await one.js.get_last_msg(TIMERS, f"timer.1.pending.expire.{REF}")
        assert str(made.state.task.created_at_ms + long_ms).encode() in (pending.data or b"")
        done = await do(one, complete())
        keeper.observe(done.state)
        state = await task_once(one, expired)
        with pytest.raises(NotFoundError):
            await one.js.get_last_msg(TIMERS, f"timer.1.pending.expire.{REF}")
    assert (state.task.status, state.task.expires_at_ms) == (Status.COMPLETED, done.state.task.last_updated_at_ms)


@pytest.mark.requirement("L1", "L10", "T1")
async def test_a_timer_fires_at_its_time_by_the_broker_also_after_both_were_killed(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Issue "Authority": expiry by JetStream message schedules, surviving restarts."""
    async with parts(fresh_nats.url, tmp_path) as before, keeping(before) as keeper:
        made = await do(before, create(granted_ttl_ms=1_500))
        keeper.observe(made.state)
        await until_ready(keeper)
        fresh_nats.kill()
    fresh_nats.restart()
    async with parts(fresh_nats.url, tmp_path) as after, keeping(after):
        state = await task_once(after, expired)
        assert state.task.expired_at_ms is not None
        assert state.task.expired_at_ms >= made.state.task.expires_at_ms
        assert len(await written(after)) == 2


@pytest.mark.requirement("L1", "T1")
async def test_a_timer_fires_after_the_node_that_led_its_stream_was_killed(
    nats_cluster: NatsCluster, tmp_path: Path
) -> None:
    """Design section 9: three nodes, R3."""
    await placed(nats_cluster)
    async with parts(nats_cluster.urls, tmp_path, replicas=3) as one, keeping(one) as keeper:
        made = await until_told(one, create(granted_ttl_ms=3_000))
        keeper.observe(made.state)
        await until_ready(keeper)
        nats_cluster.kill(await nats_cluster.leader(TIMERS))
        state: State | None = None
        async with asyncio.timeout(3 * SOON_S):
            while state is None or not expired(state):
                with contextlib.suppress(NatsError, TimeoutError):  # an election
                    state = await one.states.of(TENANT, REF)
        assert (state.task.expired_at_ms or 0) >= made.state.task.expires_at_ms


@pytest.mark.requirement("L1", "T1")
async def test_timers_that_are_set_are_not_set_again_by_a_restart_and_lost_ones_are(
    one: Parts, clock: Clock, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Module docstring: the stream is disposable, and what it has stays as it is."""
    clock.advance(HOUR_MS)
    refs = [ref_of(str(number)) for number in range(5)]
    states = [(await do(one, create(granted_ttl_ms=HOUR_MS), ref)).state for ref in refs]
    await bucket(one, *states)
    async with keeping(one, *states) as keeper:
        await until_ready(keeper)
        before = await set_so_far(one)
    async with parts(fresh_nats.url, tmp_path, clock) as again, keeping(again) as keeper:
        await until_ready(keeper)
        assert await set_so_far(again) == before == len(refs)
    await one.js.purge_stream(TIMERS, subject=f"timer.1.pending.expire.{refs[0]}")
    async with parts(fresh_nats.url, tmp_path, clock) as again, keeping(again) as keeper:
        await until_ready(keeper)
        assert await set_so_far(again) == before + 1


@pytest.mark.requirement("L1", "T1")
async def test_a_stream_of_timers_deleted_at_run_time_comes_back_with_its_timers(one: Parts, clock: Clock) -> None:
    """Embedded: the broker is ours."""
    made = await do(one, create())
    await bucket(one, made.state)
    async with keeping(one, made.state) as keeper:
        await until_ready(keeper)
        await one.js.delete_stream(TIMERS)
        clock.advance(TTL_MS)
        await task_once(one, expired)


@pytest.mark.requirement("T1")
async def test_no_stream_of_timers_is_made_on_somebody_elses_broker(one: Parts) -> None:
    """Design section 8: streams are made by `tasktrail init` only."""
    await one.js.delete_stream(TIMERS)
    external = Settings(data=one.settings.data, nats_url="nats://127.0.0.1:4222")
    shredder = Shredder(one.ledger, one.vault, external)
    keeper = Timekeeper(one.nc, one.js, one.ledger, one.states, external, shredder)
    with pytest.raises(NotFoundError):
        await keeper.start()
    with pytest.raises(NotFoundError):
        await one.js.stream_info(TIMERS)


@pytest.mark.requirement("L1")
async def test_more_timers_than_may_wait_are_read_back_from_the_bucket(
    one: Parts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every queue has a bound (style 7), and nothing is lost by it."""
    monkeypatch.setattr(module, "WAITING_MAX", 2)
    refs = [ref_of(str(number)) for number in range(9)]
    states = [(await do(one, create(), ref)).state for ref in refs]
    await bucket(one, *states)
    clock.advance(TTL_MS)
    async with keeping(one) as keeper:
        await until_ready(keeper)
        for state in states:
            keeper.observe(state)
        for ref in refs:
            await task_once(one, expired, ref)


@pytest.mark.requirement("L1")
async def test_what_is_no_timer_is_dropped(one: Parts, clock: Clock) -> None:
    """Whatever lies in the stream."""
    known = b'"tenant":"acme","task_ref":"%s","due_ms":0}'
    for body in (
        b"",
        b"\xff",
        b"{}",
        b'{"what":"dance",' + known % REF.encode(),
        b'{"what":"expire",' + known % b"*",
        b'{"what":"expire","tenant":"\xff","task_ref":"","due_ms":0}',
    ):
        await one.js.publish(f"timer.1.fired.expire.{ref_of(body.hex())}", body)
    made = await do(one, create())
    clock.advance(TTL_MS)
    async with keeping(one, made.state) as keeper:
        await task_once(one, expired)

        async def only_one_is_left() -> bool:
            return keeper.ready and (await one.js.stream_info(TIMERS)).state.messages <= 1

        await until(only_one_is_left, what="the timers")


@pytest.mark.requirement("L1", "L8")
async def test_after_a_restart_the_timers_are_read_back_from_the_bucket(
    one: Parts, clock: Clock, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Module docstring; what fell due meanwhile fires at once, and what the bucket says wrongly does no harm."""
    live = await do(one, create())
    await do(one, create(), ref_of("asked"))
    asked = await do(one, commands.CancelTask(id="c"), ref_of("asked"))
    await do(one, create(), ref_of("stale"))
    await do(one, complete(), ref_of("stale"))
    stale = await one.states.of(TENANT, ref_of("stale"))
    assert stale is not None
    await bucket(one, live.state, asked.state, stale)
    await one.js.publish(f"$KV.{CURRENT}._position", b"{}")
    await one.js.publish(f"$KV.{CURRENT}.{ref_of('garbage')}", b"\xc1")
    clock.advance(TTL_MS)
    async with parts(fresh_nats.url, tmp_path, clock, one.settings) as again, keeping(again):
        for ref in (REF, ref_of("asked"), ref_of("stale")):
            await task_once(again, expired, ref)
    ends = [(entry.task_ref, type(event).__name__) for entry in await written(one) for event in entry.events]
    assert ends.count((ref_of("stale"), "TaskExpired")) == 1
    assert (ref_of("stale"), "TaskCancelled") not in ends


@pytest.mark.requirement("L1", "T1")
async def test_states_of_an_earlier_format_are_folded_from_the_trail(
    one: Parts, clock: Clock, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """After an upgrade the bucket may hold what this code cannot read."""
    made = await do(one, create())
    await bucket(one, msgspec.structs.replace(made.state, format=current.FORMAT - 1))
    clock.advance(TTL_MS)
    async with parts(fresh_nats.url, tmp_path, clock, one.settings) as again, keeping(again):
        await task_once(again, expired)


@pytest.mark.requirement("L1", "T1")
async def test_several_timekeepers_end_a_task_once(
    one: Parts, clock: Clock, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Module docstring: commands with fixed ids; each process with a connection of its own."""
    refs = [ref_of(str(number)) for number in range(12)]
    states = [(await do(one, create(), ref)).state for ref in refs]
    states += [(await do(one, commands.CancelTask(id="c"), ref)).state for ref in refs[:6]]
    clock.advance(TTL_MS)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            other = await stack.enter_async_context(parts(fresh_nats.url, tmp_path, clock, one.settings))
            await stack.enter_async_context(keeping(other, *states))
        for ref in refs:
            await task_once(one, expired, ref)
    entries = await written(one)
    for ref in refs:
        mine = [type(event).__name__ for entry in entries if entry.task_ref == ref for event in entry.events]
        assert mine.count("TaskExpired") == mine.count("TaskCancelled") == 1


@pytest.mark.requirement("L1")
async def test_many_that_fall_due_together_all_end(one: Parts, clock: Clock) -> None:
    """More than are ended at once."""
    refs = [ref_of(str(number)) for number in range(module.AT_ONCE + 20)]
    states = [done.state for done in await asyncio.gather(*(until_told(one, create(), ref) for ref in refs))]
    clock.advance(TTL_MS)
    async with keeping(one, *states):
        for ref in refs:
            await task_once(one, expired, ref)
    assert len(await written(one)) == 2 * len(refs)


@pytest.mark.requirement("L1")
async def test_a_timer_that_the_trail_does_not_take_is_tried_again(one: Parts, clock: Clock) -> None:
    """Never a silent drop (promise 1)."""
    made = await do(one, create())
    await full(one, (await one.js.stream_info(TRAIL)).state.messages)
    clock.advance(TTL_MS)
    async with keeping(one, made.state):
        await tried_since(one, await tried_since(one, 0))
        assert len(await written(one)) == 1
        await full(one, -1)
        await task_once(one, expired)


async def full(at: Parts, most: int) -> None:
    """Let the trail take so many messages and no more."""
    info = await at.js.stream_info(TRAIL)
    info.config.max_msgs = most
    update: Any = at.js.update_stream  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # nats-py's options have no types
    await update(info.config)


@pytest.mark.requirement("L1")
@pytest.mark.parametrize("during", ["the look", "the decision"])
async def test_a_clock_that_goes_back_does_not_keep_a_task_for_ever(
    one: Parts, clock: Clock, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    """The outcome of a try that came too early is not that of every later one."""
    made = await do(one, create())
    clock.advance(TTL_MS)
    at, name = (one.states, "of") if during == "the look" else (one.ledger, "submit")
    before = getattr(at, name)

    async def back(*said: Any) -> Any:  # noqa: ANN401 - of either
        monkeypatch.setattr(at, name, before)
        clock.advance(-50)
        return await before(*said)

    monkeypatch.setattr(at, name, back)
    async with keeping(one, made.state):
        await tried_since(one, await tried_since(one, 0))
        assert clock.ms < made.state.task.expires_at_ms
        assert not expired(await task_once(one, lambda _: True))
        clock.advance(100)
        await task_once(one, expired)


async def test_a_task_of_no_trail_is_passed_over(one: Parts, clock: Clock) -> None:
    """A bucket of another history: nothing to end."""
    gone = (await do(one, create(), ref_of("gone"))).state
    await one.js.delete_stream(TRAIL)
    await trail.create(one.js)
    made = await do(one, create())
    clock.advance(TTL_MS)
    async with keeping(one, gone, made.state):
        await task_once(one, expired)
    assert [entry.task_ref for entry in await written(one)] == [REF, REF]
