"""Leases of workers: who is alive, and who is lost. Source: issue "Adapters" (work that survives), feature L9."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import msgspec
import pytest
from nats.js.errors import NotFoundError
from tests.services.access.rig import CHANNEL, SETTINGS, Rig

from tasktrail.events.authority import Standing, Trigger
from tasktrail.events.facts import OnWorkerLost, TaskFailed, WorkerLost
from tasktrail.events.subjects import TIMERS
from tasktrail.projections.current import State
from tasktrail.services import messages
from tasktrail.services.leases import RETURN_MS
from tasktrail.services.shredder import Shredder
from tasktrail.services.timekeeper import Timekeeper
from tasktrail.services.timers import Timer, What
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Clock, Parts, parts
from tasktrail.testing.waiting import until

LEASE_MS = 1_000
SHORT = msgspec.structs.replace(SETTINGS, worker_lease_ms=LEASE_MS)


@pytest.fixture
async def one(fresh_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Parts]:
    """Give a process on the real clock, with short leases."""
    async with parts(fresh_nats.url, tmp_path, settings=SHORT) as made:
        yield made


@contextlib.asynccontextmanager
async def watching(at: Parts) -> AsyncGenerator[None]:
    """While leases are looked after."""
    shredder = Shredder(at.ledger, at.vault, at.settings)
    keeper = Timekeeper(at.nc, at.js, at.ledger, at.states, at.settings, shredder, lapsed=at.leases.lapsed)
    await at.leases.start()
    await keeper.start()
    try:
        yield
    finally:
        await keeper.stop()
        await at.leases.stop()


async def working(at: Parts, worker: str, on_worker_lost: OnWorkerLost = OnWorkerLost.FAIL) -> State:
    """A task that this worker runs, as the projector would tell of it."""
    made = await Rig(at, Clock()).create(made=worker, worker=worker, on_worker_lost=on_worker_lost)
    state = at.states.kept(made.task_ref)
    assert state is not None
    at.leases.observe(state)
    return state


def lease(worker: str, due_ms: int) -> Timer:
    return Timer(what=What.LEASE, tenant="", task_ref="", server="reports", worker=worker, due_ms=due_ms)


async def pending(at: Parts, worker: str) -> Timer | None:
    """The lease as it is set."""
    try:
        message = await at.js.get_last_msg(TIMERS, f"timer.1.pending.lease.reports.{worker}")
    except NotFoundError:
        return None
    return msgspec.json.decode(message.data or b"", type=Timer)


@pytest.mark.requirement("L9")
async def test_a_silent_worker_is_lost_within_its_lease_and_one_that_renews_is_not(one: Parts) -> None:
    """Issue: a lost worker is noticed within its lease, the task ends exactly as declared, and it is an entry."""
    silent, alive = await working(one, "silent"), await working(one, "alive")
    async with watching(one):

        async def lost() -> bool:
            assert (await one.work.renew(messages.RenewLease(worker="alive"), CHANNEL)).lease_ms == LEASE_MS
            state = await one.states.of(silent.tenant, silent.task_ref)
            return state is not None and not state.task.live

        await until(lost, what="the loss of the silent worker")
    entry = (await Rig(one, Clock()).entries("task"))[-1]
    assert [type(event) for event in entry.events] == [WorkerLost, TaskFailed]
    assert entry.events[0] == WorkerLost(at_ms=entry.events[0].at_ms, cause="lease", worker="silent")
    assert entry.authority.trigger is Trigger.TIMER
    assert entry.authority.decision is not None
    assert (entry.authority.decision.reason, entry.authority.standing) == ("lease-over", Standing.UNKNOWN)
    still = await one.states.of(alive.tenant, alive.task_ref)
    assert still is not None
    assert (still.task.live, still.task.worker) == (True, "alive")
    assert one.leases.tasks_of("reports", "silent") == []


@pytest.mark.requirement("L9")
async def test_whatever_task_names_a_worker_has_a_lease_that_will_end(one: Parts) -> None:
    """Module docstring: a worker that died before its first renewal, a stream of timers that was lost."""
    await working(one, "early")
    async with watching(one):
        first = await until(lambda: pending(one, "early"), what="a lease")
        assert first.due_ms > one.ledger.now()
        await one.js.purge_stream(TIMERS, subject=first.pending)
        second = await until(lambda: pending(one, "early"), what="a lease set again")
        assert second.due_ms >= first.due_ms


@pytest.mark.requirement("L9")
async def test_a_lease_that_fired_is_lost_only_when_it_could_have_been_renewed_and_was_not(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Module docstring: by the Ledger's clock; not when renewed meanwhile; another whole lease after a pause."""
    clock = Clock()
    async with parts(fresh_nats.url, tmp_path, clock, SHORT) as at:
        state = await working(at, "w1")
        early = lease("w1", clock.ms + LEASE_MS)
        assert await at.leases.lapsed(early) == LEASE_MS
        fired = lease("w1", clock.ms)
        assert await at.leases.lapsed(fired) == 0
        again = await pending(at, "w1")
        assert again is not None
        assert again.due_ms == clock.ms + LEASE_MS + RETURN_MS, "the process has only just started"
        clock.advance(LEASE_MS + RETURN_MS)
        await at.leases.renew("reports", "w1")
        assert await at.leases.lapsed(again) == 0
        await at.js.purge_stream(TIMERS, subject=fired.pending)
        assert await at.leases.lapsed(again) > 0, "nobody knows whether the broker was there all the time"
        assert (await at.states.of(state.tenant, state.task_ref)) == state
