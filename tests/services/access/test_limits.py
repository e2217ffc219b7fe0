"""What one principal and one tenant may have at once or in a minute. Source: feature P4, `[limits]` of the settings."""

import asyncio
import math
from collections import deque
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasktrail.events.authority import Binding
from tasktrail.events.errors import RateLimited
from tasktrail.events.facts import Status
from tasktrail.events.subjects import CURRENT, task_ref
from tasktrail.projections import current
from tasktrail.projections.current import State
from tasktrail.services import configuration, trail
from tasktrail.services.access import limits as module
from tasktrail.services.access.limits import CREATING_MS, LIVE_RETRY_MS, SWEEP_MS, Limits, Minute, Pace
from tasktrail.services.connection import Connection
from tasktrail.services.inventory import each_current
from tasktrail.services.states import States
from tasktrail.testing.memory import MemoryTrail
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Clock
from tasktrail.testing.scenario import ANA, TTL_MS, authority, create

EVE = msgspec.structs.replace(ANA, sub="eve")
ELSEWHERE = msgspec.structs.replace(ANA, tenant="globex")
INTERVAL_MS = 1_000


class Rig:
    """Limits with a clock that moves when told."""

    def __init__(self, **fields: int) -> None:
        self.clock = Clock()
        self.limits = Limits(configuration.Limits(**fields), self.clock)
        self.trail = MemoryTrail(self.clock)

    def state(self, number: int = 0, who: Binding = ANA, **changes: Any) -> State:  # noqa: ANN401 - fields of `Task`
        """A task's state, projected."""
        made = self.trail.record(who.tenant, ref(number), create(f"c{number}", binding=who), authority(who)).state
        return msgspec.structs.replace(made, task=msgspec.structs.replace(made.task, **changes))

    def create(self, number: int, who: Binding = ANA) -> RateLimited | None:
        """Make a task: what it was told."""
        return told(lambda: self.limits.create(who, ref(number)))

    def miss(self, who: Binding = ANA) -> RateLimited | None:
        """Look for a task that is not the caller's."""
        return told(lambda: self.limits.missed(who))


def ref(number: int) -> str:
    return task_ref(b"k" * 32, f"task {number}")


def told(act: Any) -> RateLimited | None:  # noqa: ANN401 - any call
    try:
        act()
    except RateLimited as error:
        return error
    return None


@pytest.mark.requirement("P4")
def test_a_principal_has_no_more_live_tasks_than_it_may_and_another_is_not_concerned() -> None:
    """`live_tasks_per_principal`; a task that ended counts no more."""
    rig = Rig(live_tasks_per_principal=2)
    for number in (1, 2):
        assert rig.create(number) is None
        rig.limits.observe(rig.state(number))
    refused = rig.create(3)
    assert refused is not None
    assert "2 tasks are live (limits.live_tasks_per_principal)" in refused.message
    assert refused.retry_after_ms == LIVE_RETRY_MS
    assert rig.create(4, EVE) is None
    rig.limits.observe(rig.state(1, status=Status.COMPLETED))
    assert rig.create(3) is None


@pytest.mark.requirement("P4")
def test_a_tenant_has_no_more_live_tasks_than_it_may() -> None:
    """`live_tasks_per_tenant`, over its principals; another tenant's are its own."""
    rig = Rig(live_tasks_per_tenant=2)
    assert [rig.create(1), rig.create(2, EVE)] == [None, None]
    refused = rig.create(3, EVE)
    assert refused is not None
    assert "limits.live_tasks_per_tenant" in refused.message
    assert rig.create(3, ELSEWHERE) is None


@pytest.mark.requirement("P4")
def test_tasks_made_by_other_processes_count() -> None:
    """The count is of projected states, so it is one for all processes, up to the projection's lag."""
    rig = Rig(live_tasks_per_principal=2)
    for _ in range(3):
        rig.limits.observe(rig.state(1))
    assert rig.create(2) is None
    assert rig.create(3) is not None


@pytest.mark.requirement("P4")
def test_a_creation_counts_before_it_is_observed_and_is_forgotten_when_nothing_came_of_it() -> None:
    """A flood must not overtake the projection; a creation that failed must not count for ever."""
    rig = Rig(live_tasks_per_principal=1)
    assert rig.create(1) is None
    assert rig.create(2) is not None
    rig.clock.advance(max(CREATING_MS, SWEEP_MS))
    assert rig.create(2) is None
    rig.limits.observe(rig.state(2))
    rig.clock.advance(CREATING_MS + SWEEP_MS)
    assert rig.create(3) is not None, "this one is a task"


@pytest.mark.requirement("P4")
def test_a_task_whose_time_is_over_counts_no_more_though_nobody_said_so() -> None:
    """The timer that says so may be late; its tasks must not lock their principal out."""
    rig = Rig(live_tasks_per_principal=1)
    rig.limits.observe(rig.state(1))
    assert rig.create(2) is not None
    rig.clock.advance(TTL_MS)
    assert rig.create(2) is None


@pytest.mark.requirement("P4")
def test_the_same_creation_sent_again_counts_once() -> None:
    """Promise 1: the same command id returns the outcome, also when there is no room for another task."""
    rig = Rig(live_tasks_per_principal=1, creations_per_minute_per_principal=1)
    for _ in range(3):
        assert rig.create(1) is None
    rig.limits.observe(rig.state(1))
    assert rig.create(1) is None
    assert rig.create(2) is not None


@pytest.mark.requirement("P4")
def test_creations_within_a_minute_are_limited_by_principal_and_by_tenant() -> None:
    """`creations_per_minute_per_*`; what is refused for one reason does not count for the other."""
    rig = Rig(creations_per_minute_per_principal=3, creations_per_minute_per_tenant=5)
    assert [rig.create(number) for number in range(3)] == [None] * 3
    mine = rig.create(3)
    assert mine is not None
    assert "3 tasks were made within a minute (limits.creations_per_minute_per_principal)" in mine.message
    assert f"come again in {mine.retry_after_ms} ms" in mine.message
    assert [rig.create(number, EVE) for number in (4, 5)] == [None] * 2
    ours = rig.create(6, EVE)
    assert ours is not None
    assert "limits.creations_per_minute_per_tenant" in ours.message
    assert rig.create(7, ELSEWHERE) is None
    rig.clock.advance(mine.retry_after_ms)
    assert rig.create(3) is None


@pytest.mark.requirement("P4", "A4")
def test_failed_look_ups_are_limited_and_say_when_to_come_again() -> None:
    """`failed_lookups_per_minute_per_*`; the limit knows nothing of what was looked for."""
    rig = Rig(failed_lookups_per_minute_per_principal=2, failed_lookups_per_minute_per_tenant=3)
    assert [rig.miss(), rig.miss()] == [None, None]
    refused = rig.miss()
    assert refused is not None
    assert "2 look-ups found nothing within a minute (limits.failed_lookups_per_minute_per_principal)" in (
        refused.message
    )
    assert rig.miss(EVE) is None
    assert "limits.failed_lookups_per_minute_per_tenant" in str(rig.miss(EVE))
    rig.clock.advance(refused.retry_after_ms)
    assert [rig.miss(), rig.miss()] == [None, None], "refused ones did not count"


@pytest.mark.requirement("P4")
@given(
    most=st.integers(1, 5),
    comings=st.lists(st.tuples(st.one_of(st.integers(0, 3_000), st.integers(0, 70_000)), st.booleans()), max_size=60),
)
def test_never_more_than_so_many_in_any_minute(most: int, comings: list[tuple[int, bool]]) -> None:
    """Over any 60 s, not over the minutes of the clock; and who waits as told is let through."""
    minute, now = Minute(most), 1_800_000_000_123
    counted: deque[int] = deque()
    for gap, obeys in comings:
        now += gap
        wait_ms = minute.wait_ms("who", now)
        assert 0 <= wait_ms <= 61_000
        if wait_ms and not obeys:
            continue
        now += wait_ms
        assert minute.wait_ms("who", now) == 0
        minute.add("who", now)
        counted.append(now)
        while counted[0] <= now - 60_000:
            counted.popleft()
        assert len(counted) <= most


@pytest.mark.requirement("P4")
@given(
    early=st.integers(1, 5),
    gaps=st.lists(st.one_of(st.integers(0, 1_500), st.just(INTERVAL_MS)), max_size=80),
)
def test_a_poll_an_interval_after_the_last_answered_is_never_limited(early: int, gaps: list[int]) -> None:
    """MCP `pollIntervalMs` is a suggestion: who keeps to it is served, whatever it did before."""
    pace, now, last = Pace(early), 1_800_000_000_000, -math.inf
    for gap in gaps:
        now += gap
        wait_ms = pace.wait_ms("key", INTERVAL_MS, now)
        assert 0 <= wait_ms <= INTERVAL_MS
        if now - last >= INTERVAL_MS:
            assert not wait_ms
        if not wait_ms:
            last = now


@pytest.mark.requirement("P4")
@given(early=st.integers(1, 5), gaps=st.lists(st.integers(0, 1_500), max_size=80))
def test_answered_polls_are_one_in_each_interval_and_so_many_early_ones(early: int, gaps: list[int]) -> None:
    """`polls_early`, however the polls are spread; who waits as told is answered."""
    pace, now = Pace(early), 1_800_000_000_000
    answered: list[int] = []
    for gap in gaps:
        now += gap
        wait_ms = pace.wait_ms("key", INTERVAL_MS, now)
        if wait_ms:
            now += wait_ms
            assert not pace.wait_ms("key", INTERVAL_MS, now)
        answered.append(now)
        for index, first in enumerate(answered):
            assert len(answered) - index <= 1 + early + (now - first) / INTERVAL_MS


@pytest.mark.requirement("P4")
def test_polls_that_keep_to_the_interval_are_never_limited_and_early_ones_are_told_the_rest_of_it() -> None:
    """P4: polls respect `pollIntervalMs`, with a clear error."""
    rig = Rig(polls_early=3)
    state, other = rig.state(1), rig.state(2)
    for _ in range(1_000):
        rig.limits.poll(state, ANA)
        rig.clock.advance(INTERVAL_MS)
    for _ in range(4):
        rig.limits.poll(state, ANA)
        rig.clock.advance(100)
    refused = told(lambda: rig.limits.poll(state, ANA))
    assert refused is not None
    assert refused.retry_after_ms == INTERVAL_MS - 400
    assert "polled every 1000 ms" in refused.message
    assert "limits.polls_early" in refused.message
    rig.limits.poll(state, EVE)
    rig.limits.poll(other, ANA)
    rig.clock.advance(refused.retry_after_ms)
    rig.limits.poll(state, ANA)


@pytest.mark.requirement("P4")
def test_a_clock_that_is_set_back_holds_nobody_up() -> None:
    """An operator's correction of the clock is not the callers' doing."""
    rig = Rig(polls_early=1, failed_lookups_per_minute_per_principal=1, live_tasks_per_principal=1)
    state = rig.state(1)
    for _ in range(2):
        rig.limits.poll(state, ANA)
    assert rig.miss() is None
    rig.limits.observe(state)
    assert rig.create(2) is not None
    rig.clock.advance(-3_600_000)
    rig.limits.poll(state, ANA)
    assert rig.miss() is None
    rig.limits.observe(rig.state(1, status=Status.CANCELLED))
    assert rig.create(2) is None


@pytest.mark.requirement("P4")
def test_memory_is_bounded_and_what_is_forgotten_is_the_longest_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every queue has a bound (style 7); what is forgotten can only make a limit come later."""
    for name in ("KEYS_MAX", "POLLS_MAX", "LIVE_MAX"):
        monkeypatch.setattr(module, name, 4)
    rig = Rig(polls_early=1, failed_lookups_per_minute_per_principal=1, live_tasks_per_principal=1)
    people = [msgspec.structs.replace(ANA, sub=str(number)) for number in range(5)]
    state = rig.state(0)
    for number, who in enumerate(people):
        assert rig.miss(who) is None
        rig.limits.poll(state, who)
        rig.limits.poll(state, who)
        rig.limits.observe(rig.state(1 + number, who))
    for number, who in reversed(list(enumerate(people))):
        forgotten = number == 0
        assert (told(lambda who=who: rig.limits.poll(state, who)) is None) == forgotten
        assert (rig.create(100 + number, who) is None) == forgotten
        assert (rig.miss(who) is None) == forgotten


async def flood(rig: Rig, who: Binding, count: int, done: list[int], go: asyncio.Event) -> list[asyncio.Task[None]]:
    """So many requests of one principal at once; each one that is worked on ends when `go` is set."""

    async def one(number: int) -> None:
        async with rig.limits.turn(who):
            await go.wait()
            done.append(number)

    asked = [asyncio.create_task(one(number)) for number in range(count)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return asked


@pytest.mark.requirement("P4")
async def test_a_flood_delays_the_principal_that_makes_it_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """P4, fair between principals: another one's request is worked on before any of the flood is done."""
    monkeypatch.setattr(module, "TURN_WITHIN_S", 60)
    rig, done, go = Rig(in_flight_per_principal=8), list[int](), asyncio.Event()
    asked = await flood(rig, ANA, 64, done, go)
    async with rig.limits.turn(EVE):
        assert done == []
    go.set()
    await asyncio.gather(*asked)
    assert done == list(range(64)), "in the order they came"


@pytest.mark.requirement("P4")
async def test_no_more_requests_of_a_principal_are_worked_on_at_once_than_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`in_flight_per_principal`; more than wait already are refused at once, and nothing is left behind."""
    monkeypatch.setattr(module, "TURN_WITHIN_S", 60)
    monkeypatch.setattr(module, "WAITING_PER_TURN", 2)
    rig, done, go = Rig(in_flight_per_principal=3), list[int](), asyncio.Event()
    asked = await flood(rig, ANA, 10, done, go)
    (refused,) = [one for one in asked if one.done()]
    error = refused.exception()
    assert isinstance(error, RateLimited)
    assert "3 requests of this caller are being worked on (limits.in_flight_per_principal)" in error.message
    assert error.retry_after_ms > 0
    gone = [one for one in asked if not one.done()]
    for one in gone[::2]:
        one.cancel()
    go.set()
    await asyncio.gather(*asked, return_exceptions=True)
    again = await flood(rig, ANA, 9, done, go)
    await asyncio.gather(*again)
    assert not vars(rig.limits)["_turns"]


@pytest.mark.requirement("P4")
async def test_who_waits_too_long_for_its_turn_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 1: never a hang."""
    monkeypatch.setattr(module, "TURN_WITHIN_S", 0)
    rig, done, go = Rig(in_flight_per_principal=1), list[int](), asyncio.Event()
    (first, second) = await flood(rig, ANA, 2, done, go)
    with pytest.raises(RateLimited):
        await second
    go.set()
    await first
    async with rig.limits.turn(ANA):
        assert done == [0]


@pytest.mark.requirement("P4")
async def test_live_tasks_of_before_the_start_are_known_from_the_bucket(fresh_nats: NatsServer) -> None:
    """A restart must not give everybody a second allowance."""
    nc = await Connection.from_text(fresh_nats.url).connect("limits")
    try:
        js = nc.jetstream()  # pyright: ignore[reportUnknownMemberType]  # nats-py's options have no types
        await trail.create(js, only=frozenset({trail.KV_STREAM}))
        before = Rig()
        for number in range(3):
            status = Status.COMPLETED if number == 2 else Status.WORKING
            state = before.state(number, status=status)
            await js.publish(f"$KV.{CURRENT}.{state.task_ref}", current.encode(state))
        await js.publish(f"$KV.{CURRENT}._position", b"{}")
        rig = Rig(live_tasks_per_principal=3)
        await each_current(States(nc, js, kept=10), rig.limits.observe)
        assert rig.create(10) is None
        assert rig.create(11) is not None
    finally:
        await nc.close()
