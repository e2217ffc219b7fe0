"""The gate within its limits: who is over one is told so, uniformly, on the trail, and alone. Source: feature P4.

The process is a real one on a real server; its clock moves only when told to.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from tests.services.access.rig import ACTS, ANA, GLOBEX, SETTINGS, Rig, caller
from tests.services.access.watched import HOSTILE, Watched

from tasktrail.events.errors import RateLimited, TaskNotFound
from tasktrail.services.access import limits as module
from tasktrail.services.configuration import Limits
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Clock, parts

EVE = caller("eve")
FLOOD, IN_FLIGHT = 64, 8


@asynccontextmanager
async def limited(server: NatsServer, data: Path, **fields: int) -> AsyncGenerator[Rig]:
    """Give a process on an empty trail, with these limits."""
    settings = msgspec.structs.replace(SETTINGS, limits=Limits(**fields), answer_within_ms=10_000)
    clock = Clock()
    async with parts(server.url, data, clock, settings) as one:
        yield Rig(one, clock)


async def refusals(rig: Rig) -> dict[tuple[int, str], int]:
    """How many are on the trail, by the code that was told and the true reason."""
    counts: dict[tuple[int, str], int] = {}
    for _, _, event in await rig.denials():
        for reason, count in event.reasons.items():
            counts[event.code, reason] = counts.get((event.code, reason), 0) + count
    return counts


@pytest.mark.requirement("P4")
async def test_one_callers_flood_does_not_delay_anothers_poll(
    fresh_nats: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: of 64 requests that came before it, the poll waits for those being worked on at most."""
    monkeypatch.setattr(module, "TURN_WITHIN_S", 60)
    async with limited(fresh_nats, tmp_path, in_flight_per_principal=IN_FLIGHT, polls_early=1_000) as rig:
        mine, hers = await rig.create(), await rig.create(EVE, "hers")
        served = 0

        async def one() -> None:
            nonlocal served
            await rig.get(hers.task_id, EVE)
            served += 1

        flood = [asyncio.create_task(one()) for _ in range(FLOOD)]
        await asyncio.sleep(0)
        view = await rig.get(mine.task_id)
        before = served
        await asyncio.gather(*flood)
    assert view.task_id == mine.task_id
    assert before <= 3 * IN_FLIGHT, f"{before} of {FLOOD} were served first"
    assert served == FLOOD


@pytest.mark.requirement("P4", "A4")
@pytest.mark.parametrize("act", ["get", "update", "cancel"])
async def test_over_the_limit_of_look_ups_all_that_is_not_the_callers_is_still_one(
    fresh_nats: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """Promise 4 under the limit: same error, same I/O, at the same moment, and the caller's own tasks still open."""
    async with limited(fresh_nats, tmp_path, failed_lookups_per_minute_per_principal=2) as rig:
        mine, foreign = await rig.create(made="mine"), await rig.create(EVE, "foreign")
        elsewhere, over = await rig.create(caller(iss=GLOBEX), "elsewhere"), await rig.create(made="over", ttl_ms=5)
        rig.clock.advance(5)
        handles = [foreign.task_id, elsewhere.task_id, over.task_id, "a" * 32, *HOSTILE]
        for handle in handles[:2]:
            with pytest.raises(TaskNotFound):
                await ACTS[act](rig, handle, ANA)
        told: set[tuple[str, int]] = set()
        asked: set[tuple[str, ...]] = set()
        seen = Watched(rig.one, monkeypatch)
        for handle in [*handles, *handles]:
            seen.seen = []
            with pytest.raises(RateLimited) as error:
                await ACTS[act](rig, handle, ANA)
            told.add((error.value.message, error.value.retry_after_ms))
            asked.add(tuple(seen.seen))
        assert len(told) == 1
        assert {tuple(one for one in found if one != "trail denied") for found in asked} == {max(asked, key=len)[:-1]}
        assert len(asked) == 2, "but for the entry that begins the run"
        await ACTS[act](rig, mine.task_id, ANA)
        counts = await refusals(rig)
    assert counts == {
        (-32602, "other-identity-context"): 2,
        (-32029, "other-identity-context"): 4,
        (-32029, "handle-expired"): 2,
        (-32029, "no-such-task"): 2,
        (-32029, "malformed-handle"): 2 * len(HOSTILE),
    }


@pytest.mark.requirement("P4")
async def test_over_the_limit_of_look_ups_a_subscription_still_has_the_callers_own(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """What is not granted is left out, whatever the reason; a subscription that was opened is answered."""
    async with limited(fresh_nats, tmp_path, failed_lookups_per_minute_per_principal=1) as rig:
        first, last = await rig.create(made="first"), await rig.create(made="last")
        granted = await rig.watch(first.task_id, "a" * 32, "b" * 32, "c" * 32, last.task_id)
    assert [view.task_id for view in granted] == [first.task_id, last.task_id]


@pytest.mark.requirement("P4")
async def test_a_task_polled_too_often_too_early_is_told_when_to_come_again(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """P4, respecting `pollIntervalMs`; the refusals are on the trail, folded, and no poll is counted among them."""
    async with limited(fresh_nats, tmp_path, polls_early=3) as rig:
        made = await rig.create()
        for _ in range(4):
            await rig.get(made.task_id)
        for _ in range(5):
            with pytest.raises(RateLimited) as error:
                await rig.get(made.task_id)
            assert error.value.retry_after_ms == made.poll_interval_ms
        await rig.watch(made.task_id)
        for _ in range(5):
            rig.clock.advance(made.poll_interval_ms)
            await rig.get(made.task_id)
        counts = await refusals(rig)
        ((_, entry, _), *_) = await rig.denials()
    assert counts == {(-32029, "rate-limited"): 5}
    assert entry.authority.decision is not None
    assert entry.authority.decision.effect == "deny"


@pytest.mark.requirement("P4")
async def test_a_creation_over_the_limit_makes_nothing_and_a_repeated_one_is_none(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Promise 1: the same command id returns its outcome, also when there is no room for another task."""
    async with limited(fresh_nats, tmp_path, creations_per_minute_per_principal=2) as rig:
        made = [await rig.create(made=name) for name in ("one", "two")]
        with pytest.raises(RateLimited) as error:
            await rig.create(made="three")
        assert "limits.creations_per_minute_per_principal" in error.value.message
        again = await rig.create(made="one")
        await rig.create(EVE, "hers")
        tasks = {entry.task_ref for entry in await rig.entries("task")}
        counts = await refusals(rig)
        rig.clock.advance(error.value.retry_after_ms)
    assert again.task_id == made[0].task_id
    assert len(tasks) == 3
    assert counts == {(-32029, "rate-limited"): 1}
