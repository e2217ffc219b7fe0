"""The timekeeper on a real server, with a clock that moves when told to. Source: design sections 3 and 5, L1 L8 P2."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.services.orders import REF, TENANT, complete, do, ref_of, until_told

from tasktrail.events import decide
from tasktrail.events.authority import Level, Trigger
from tasktrail.events.entry import Entry
from tasktrail.events.facts import Status, TaskCancelled, TaskExpired
from tasktrail.events.subjects import CURRENT, TRAIL
from tasktrail.projections import current
from tasktrail.projections.current import State
from tasktrail.services import timekeeper as module
from tasktrail.services import trail
from tasktrail.services.timekeeper import Timekeeper
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Clock, Parts, parts, stored
from tasktrail.testing.scenario import TTL_MS, create

GRACE_MS = 500
SOON_S = 20.0


@pytest.fixture
def clock() -> Clock:
    """Give the time."""
    return Clock()


@pytest.fixture
async def one(fresh_nats: NatsServer, tmp_path: Path, clock: Clock) -> AsyncIterator[Parts]:
    """Give a process."""
    async with parts(fresh_nats.url, tmp_path, clock) as made:
        yield made


@asynccontextmanager
async def keeping(at: Parts, *observed: State) -> AsyncGenerator[Timekeeper]:
    """A timekeeper at work, which heard of these states."""
    keeper = Timekeeper(at.ledger, at.states, at.js, cancel_grace_ms=GRACE_MS)
    for state in observed:
        keeper.observe(state)
    await keeper.start()
    try:
        yield keeper
    finally:
        await keeper.stop()


async def until(at: Parts, holds: Callable[[State], bool], ref: str = REF) -> State:
    """The task once this holds."""
    state = None
    try:
        async with asyncio.timeout(SOON_S):
            while True:
                state = await at.states.of(TENANT, ref)
                if state is not None and holds(state):
                    return state
    except TimeoutError:
        pytest.fail(f"not within {SOON_S:g} s; seen last: {state and state.task}")


def expired(state: State) -> bool:
    return state.task.expired_at_ms is not None


async def written(at: Parts) -> list[Entry]:
    return [message.entry for message in await stored(at.js)]


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
        state = await until(one, expired)
    assert (state.task.status, state.task.seq) == (Status.CANCELLED, 2)
    entry = (await written(one))[-1]
    assert entry.events == (TaskCancelled(at_ms=clock.ms, reason="ttl"), TaskExpired(at_ms=clock.ms))
    authority = entry.authority
    assert (authority.trigger, authority.created_by) == (Trigger.TIMER, made.entry_id)
    assert authority.principal is not None
    assert (authority.principal.sub, authority.principal.level) == ("timekeeper", Level.VOUCHED)
    assert authority.decision is not None
    assert (authority.decision.reason, authority.client, authority.credential) == ("time-is-up", None, None)


@pytest.mark.requirement("L1", "L8")
async def test_a_finished_task_only_expires(one: Parts, clock: Clock) -> None:
    """L8: a finished task stays finished."""
    await do(one, create())
    done = await do(one, complete())
    clock.advance(TTL_MS)
    async with keeping(one, done.state):
        state = await until(one, expired)
    assert state.task.status is Status.COMPLETED
    assert (await written(one))[-1].events == (TaskExpired(at_ms=clock.ms),)


@pytest.mark.requirement("L8")
async def test_a_cancellation_that_nobody_confirms_ends_the_task_after_its_grace(one: Parts, clock: Clock) -> None:
    """L8: what became of the request: unconfirmed by any worker in time."""
    await do(one, create())
    asked = await do(one, decide.CancelTask(id="c"))
    clock.advance(GRACE_MS)
    async with keeping(one, asked.state):
        state = await until(one, lambda state: state.task.status.terminal)
    assert state.task.status is Status.CANCELLED
    assert (await written(one))[-1].events == (TaskCancelled(at_ms=clock.ms, reason="unconfirmed"),)


@pytest.mark.requirement("L8")
async def test_a_confirmed_cancellation_is_left_alone(one: Parts, clock: Clock) -> None:
    """Its timer is still set when it is confirmed."""
    await do(one, create())
    asked = await do(one, decide.CancelTask(id="c"))
    await do(one, decide.StopTask(id="s"))
    clock.advance(GRACE_MS)
    other = await do(one, create(), ref_of("due"))
    async with keeping(one, asked.state) as keeper:
        clock.advance(TTL_MS)
        keeper.observe(other.state)
        await until(one, expired, ref_of("due"))
        await until(one, expired)
    reasons = [getattr(event, "reason", "") for entry in await written(one) for event in entry.events]
    assert [reason for reason in reasons if reason] == ["requested", "ttl"]


@pytest.mark.requirement("L10")
async def test_nothing_fires_before_its_time(one: Parts, clock: Clock) -> None:
    """L10: a task lives as long as its granted TTL, not less."""
    late = await do(one, create(granted_ttl_ms=TTL_MS + 1))
    due = await do(one, create(), ref_of("due"))
    clock.advance(TTL_MS)
    async with keeping(one, late.state, due.state) as keeper:
        await until(one, expired, ref_of("due"))
        assert len(await written(one)) == 3
        clock.advance(1)
        keeper.observe((await do(one, create(granted_ttl_ms=0), ref_of("now"))).state)  # wakes it
        await until(one, expired)
        await until(one, expired, ref_of("now"))
    assert len(await written(one)) == 6


@pytest.mark.requirement("L1")
async def test_a_change_of_a_task_does_not_set_its_timers_twice(one: Parts, clock: Clock) -> None:
    """Every queue has a bound (style 7): one timer of each kind for a task, however often it moves."""
    made = await do(one, create())
    async with keeping(one) as keeper:
        for _ in range(100):
            keeper.observe(made.state)
        keeper.observe((await do(one, decide.CancelTask(id="c"))).state)
        assert len(keeper._due) == 2  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]  # that is the point
        clock.advance(TTL_MS)
        keeper.observe((await do(one, create(granted_ttl_ms=0), ref_of("now"))).state)
        await until(one, expired)


@pytest.mark.requirement("L1", "L8")
async def test_after_a_restart_the_timers_are_read_back_from_the_bucket(
    one: Parts, clock: Clock, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Module docstring; what fell due meanwhile fires at once, and what the bucket says wrongly does no harm."""
    live = await do(one, create())
    await do(one, create(), ref_of("asked"))
    asked = await do(one, decide.CancelTask(id="c"), ref_of("asked"))
    await do(one, create(), ref_of("stale"))
    await do(one, complete(), ref_of("stale"))
    stale = await one.states.of(TENANT, ref_of("stale"))
    assert stale is not None
    await bucket(one, live.state, asked.state, stale)
    await one.js.publish(f"$KV.{CURRENT}._position", b"{}")
    await one.js.publish(f"$KV.{CURRENT}.{ref_of('garbage')}", b"\xc1")
    clock.advance(TTL_MS)
    async with parts(fresh_nats.url, tmp_path, clock) as again, keeping(again):
        for ref in (REF, ref_of("asked"), ref_of("stale")):
            await until(again, expired, ref)
    ends = [(entry.task_ref, type(event).__name__) for entry in await written(one) for event in entry.events]
    assert ends.count((ref_of("stale"), "TaskExpired")) == 1
    assert (ref_of("stale"), "TaskCancelled") not in ends


@pytest.mark.requirement("L1", "T1")
async def test_several_timekeepers_end_a_task_once(
    one: Parts, clock: Clock, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Module docstring: commands with fixed ids; each process with a connection of its own."""
    refs = [ref_of(str(number)) for number in range(12)]
    states = [(await do(one, create(), ref)).state for ref in refs]
    states += [(await do(one, decide.CancelTask(id="c"), ref)).state for ref in refs[:6]]
    clock.advance(TTL_MS)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            other = await stack.enter_async_context(parts(fresh_nats.url, tmp_path, clock))
            await stack.enter_async_context(keeping(other, *states))
        for ref in refs:
            await until(one, expired, ref)
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
            await until(one, expired, ref)
    assert len(await written(one)) == 2 * len(refs)


@pytest.mark.requirement("L1")
async def test_a_timer_that_the_trail_does_not_take_fires_again(
    one: Parts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a silent drop (promise 1)."""
    monkeypatch.setattr(module, "RETRY_MS", 10)
    made = await do(one, create())
    await full(one, 1)
    clock.advance(TTL_MS)
    async with keeping(one, made.state) as keeper:
        async with asyncio.timeout(SOON_S):
            while not keeper._due or keeper._due[0][0] <= clock.ms:  # noqa: SLF001, ASYNC110 # pyright: ignore[reportPrivateUsage]  # it failed and is set again
                await asyncio.sleep(0.001)
        assert len(await written(one)) == 1
        await full(one, -1)
        clock.advance(10)
        await until(one, expired)


async def full(at: Parts, most: int) -> None:
    """Let the trail take so many messages and no more."""
    info = await at.js.stream_info(TRAIL)
    info.config.max_msgs = most
    update: Any = at.js.update_stream  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # nats-py's options have no types
    await update(info.config)


@pytest.mark.requirement("L1")
async def test_a_clock_that_goes_back_does_not_keep_a_task_for_ever(
    one: Parts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal under the timer's fixed id would be the outcome of every later try."""
    monkeypatch.setattr(module, "RETRY_MS", 10)
    made = await do(one, create())
    clock.advance(TTL_MS)
    of = one.states.of

    async def back(tenant: str, ref: str) -> State | None:
        monkeypatch.setattr(one.states, "of", of)
        clock.advance(-50)
        return await of(tenant, ref)

    monkeypatch.setattr(one.states, "of", back)
    async with keeping(one, made.state) as keeper:
        async with asyncio.timeout(SOON_S):
            while clock.ms >= made.state.task.expires_at_ms or not keeper._due:  # noqa: SLF001, ASYNC110 # pyright: ignore[reportPrivateUsage]  # it failed and is set again
                await asyncio.sleep(0.001)
        assert len(await written(one)) == 1
        clock.advance(100)
        await until(one, expired)
    assert len(await written(one)) == 2


async def test_a_task_of_no_trail_is_passed_over(one: Parts, clock: Clock) -> None:
    """A bucket of another history: nothing to end."""
    gone = (await do(one, create(), ref_of("gone"))).state
    await one.js.delete_stream(TRAIL)
    await trail.create(one.js)
    made = await do(one, create())
    clock.advance(TTL_MS)
    async with keeping(one, gone, made.state):
        await until(one, expired)
    assert [entry.task_ref for entry in await written(one)] == [REF, REF]
