"""Folding while the trail is slow, full or silent: first on the trail, nothing lost, bounded. Source: promise 1.

On a memory trail; `test_gate_secrecy` and `test_recorder_flood` do it on a real server.
"""

import asyncio
import contextlib
import random
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.services.access.folding import ANA_CALLS, Desk, Moody, another, others

from tasktrail.events.authority import Authority, Client
from tasktrail.events.errors import MaybeWritten, NothingWritten, TasktrailError
from tasktrail.events.facts import AccessDenied, ResultDisclosed, TaskPolled
from tasktrail.services.access import recorder as module
from tasktrail.services.access.recorder import QUIET_MS, Recorder
from tasktrail.services.ledger import Ledger
from tasktrail.testing.parts import Clock
from tasktrail.testing.waiting import until


@pytest.fixture
async def desk() -> Desk:
    """Give one."""
    return Desk()


@pytest.mark.requirement("A4")
async def test_beginning_a_run_takes_one_write_whatever_was_asked_for(desk: Desk) -> None:
    """Promise 4: nobody learns by time whether what else it asked for meanwhile was another tenant's."""
    desk.trail.free.clear()
    waiting = [asyncio.create_task(desk.deny(tenant=tenant)) for tenant in ("acme", "globex", "_", "acme")]
    while not desk.trail.tries:  # noqa: ASYNC110 - it is about to
        await asyncio.sleep(0)
    desk.trail.free.set()
    await asyncio.gather(*waiting)
    assert desk.trail.tries == 1
    await desk.recorder.flush()
    assert [
        (message.entry.tenant, cast("Any", message.entry.events[0]).count) for message in desk.trail.messages[1:]
    ] == [
        ("acme", 1),
        ("globex", 1),
        ("_", 1),
        ("acme", 1),
    ]


@pytest.mark.requirement("A4")
async def test_a_repeat_does_not_wait_for_what_is_being_written(desk: Desk) -> None:
    """Nor does it learn by time how much that is."""
    await desk.deny()
    await desk.deny(tenant="globex")
    desk.trail.free.clear()
    writing = asyncio.create_task(desk.recorder.flush())
    while desk.trail.tries < 2:  # noqa: ASYNC110 - it is about to
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await desk.deny()
    desk.trail.free.set()
    await writing
    await desk.recorder.flush()
    assert sum(event.count for event in desk.events()) == 3


@pytest.mark.requirement("T1")
async def test_a_run_whose_beginning_is_in_doubt_is_begun_by_that_entry(desk: Desk) -> None:
    """Promise 1: nobody is told before something of the run is known to be on the trail; and counted once."""
    desk.trail.mood = "doubt"
    for _ in range(5):
        with pytest.raises(MaybeWritten):
            await desk.deny()
    assert len(desk.events()) == 1, "the same entry, sent again"
    desk.trail.mood = ""
    await desk.deny()
    await desk.recorder.flush()
    assert [event.count for event in desk.events()] == [1, 5]


@pytest.mark.requirement("T1", "R1")
@pytest.mark.parametrize("act", ["show", "deny"])
async def test_nobody_overtakes_the_first_of_a_run(desk: Desk, act: str) -> None:
    """Promise 1: while the first is on its way to the trail, a second one of the same caller is not answered."""
    desk.trail.free.clear()
    both = [asyncio.create_task(getattr(desk, act)()) for _ in range(2)]
    done, _ = await asyncio.wait(both, timeout=0.05)
    assert not done
    assert desk.trail.tries == 1
    desk.trail.free.set()
    await asyncio.gather(*both)
    await desk.recorder.flush()
    assert sum(event.count for event in desk.events()) == 2


@pytest.mark.requirement("T1", "R1")
@pytest.mark.parametrize("act", ["show", "deny"])
async def test_when_the_first_of_a_run_cannot_be_written_the_next_is_the_first(desk: Desk, act: str) -> None:
    """Promise 1: never answered before something of the run is on the trail."""
    desk.trail.mood = "refuse"
    for _ in range(3):
        with pytest.raises(NothingWritten):
            await getattr(desk, act)()
    assert desk.events() == []
    desk.trail.mood = ""
    await getattr(desk, act)()
    await desk.recorder.flush()
    shown = {"show": [(1)], "deny": [(4)]}[act]
    assert [event.count for event in desk.events()] == shown, "what was refused was not shown, but was attempted"


@pytest.mark.requirement("T1")
@pytest.mark.parametrize("mood", ["refuse", "doubt"])
async def test_what_cannot_be_written_stays_and_is_written_once(desk: Desk, mood: str) -> None:
    """Exact counts, also when the trail was away and nobody knows what it took."""
    await desk.show()
    await desk.deny()
    before = len(desk.events())
    desk.trail.mood = mood
    for _ in range(5):
        desk.poll()
        await desk.show()
        await desk.deny()
        await desk.recorder.flush()
        assert desk.recorder.unwritten
    desk.trail.mood = ""
    desk.poll()
    await desk.recorder.flush()
    await desk.recorder.flush()
    assert not desk.recorder.unwritten
    counts: dict[str, int] = {}
    for event in desk.events()[before:]:
        counts[type(event).__name__] = counts.get(type(event).__name__, 0) + event.count
    assert counts == {"TaskPolled": 6, "ResultDisclosed": 5, "AccessDenied": 5}
    polls = [event for event in desk.events() if isinstance(event, TaskPolled)]
    assert len(polls) == {"refuse": 1, "doubt": 6}[mood]


@pytest.mark.requirement("T1")
async def test_a_trail_that_is_away_is_not_asked_for_every_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer takes its time; a stop must not take all of them."""
    monkeypatch.setattr(module, "AT_ONCE", 4)
    for number in range(40):
        desk.poll(method=str(number))
    desk.trail.mood = "refuse"
    await desk.recorder.flush()
    assert desk.trail.tries == 4
    desk.trail.mood = ""
    await desk.recorder.flush()
    assert len(desk.events()) == 40


@pytest.mark.requirement("T1")
async def test_memory_is_bounded_and_older_runs_are_written_at_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every queue has a bound (style 7); nothing is lost by it."""
    monkeypatch.setattr(module, "RUNS_MAX", 3)
    callers = [
        another(client=Client(client_id=str(number), level=cast("Client", ANA_CALLS.client).level))
        for number in range(12)
    ]
    for _ in range(3):
        for who in callers:
            await desk.show(who)
            await desk.deny(who)
    await desk.recorder.flush()
    shown = [event.count for event in desk.events() if isinstance(event, ResultDisclosed)]
    denied = [event.count for event in desk.events() if isinstance(event, AccessDenied)]
    assert (sum(shown), sum(denied)) == (36, 36)


@pytest.mark.requirement("T1")
async def test_when_nothing_can_be_written_and_there_is_no_room_nothing_new_is_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 1: never a silent drop. What has a run already goes on; what is refused is not counted."""
    monkeypatch.setattr(module, "RUNS_MAX", 2)
    first, second, third = ANA_CALLS, *others()[:2]
    for who in (first, second):
        desk.poll(who)
        await desk.show(who)
        await desk.show(who)
        await desk.deny(who)
        await desk.deny(who)
    desk.trail.mood = "refuse"
    for _ in range(3):
        with pytest.raises(NothingWritten):
            desk.poll(third)
        with pytest.raises(NothingWritten):
            await desk.show(third)
        with pytest.raises(NothingWritten):
            await desk.deny(third)
    desk.poll(first)
    await desk.show(first)
    await desk.deny(first)
    desk.trail.mood = ""
    await desk.show(third)
    await desk.deny(third)
    await desk.recorder.flush()
    desk.poll(third)
    await desk.recorder.flush()
    counts: dict[str, int] = {}
    for event in desk.events():
        counts[type(event).__name__] = counts.get(type(event).__name__, 0) + event.count
    assert counts == {"TaskPolled": 4, "ResultDisclosed": 6, "AccessDenied": 6}
    assert len(vars(desk.recorder)["_shown"]) == len(vars(desk.recorder)["_denials"]) == 2


@pytest.mark.requirement("T1")
async def test_entries_in_doubt_are_kept_up_to_a_bound(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody knows what the trail took, memory stays bounded, too, and no count is lost."""
    monkeypatch.setattr(module, "RUNS_MAX", 3)
    desk.trail.mood = "doubt"
    for number in range(3):
        desk.poll(method=f"m{number}")
    await desk.recorder.flush()
    for number in range(3):
        desk.poll(method=f"m{number}")
    await desk.recorder.flush()
    with pytest.raises(NothingWritten):
        desk.poll(method="another")
    assert len(vars(desk.recorder)["_unsure"]) == 3
    desk.trail.mood = ""
    await desk.recorder.flush()
    await desk.recorder.flush()
    assert [event.count for event in desk.events()] == [1] * 6


@pytest.mark.requirement("T1")
async def test_when_many_polls_are_folded_they_are_written_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when the time to fold is over."""
    monkeypatch.setattr(module, "RUNS_MAX", 8)
    recorder = desk.recorder = Recorder(cast("Ledger", desk.trail), fold_ms=3_600_000)
    await recorder.start()
    for number in range(5):
        desk.poll(method=str(number))
    await until(lambda: len(desk.events()) == 5, what="five entries")
    await recorder.stop()


@pytest.mark.requirement("T1")
async def test_folded_runs_are_written_by_themselves_and_at_the_stop(desk: Desk) -> None:
    """Promise 1: on the trail within a second; a stop writes what is left, also what is just being written."""
    await desk.recorder.start()
    desk.poll()
    await until(desk.events, what="the first entry")
    desk.trail.free.clear()
    desk.poll()
    await until(lambda: desk.trail.tries == 2, what="the second try")
    desk.poll()
    stopping = asyncio.create_task(desk.recorder.stop())
    await asyncio.sleep(0)
    desk.trail.free.set()
    await stopping
    assert not desk.recorder.unwritten
    assert sum(event.count for event in desk.events()) == 3


@pytest.mark.requirement("T1")
async def test_a_caller_that_goes_away_takes_nothing_with_it(desk: Desk) -> None:
    """A cancelled request is a denied one all the same, counted once."""
    desk.trail.free.clear()
    gone = asyncio.create_task(desk.deny())
    while not desk.trail.tries:  # noqa: ASYNC110 - it is about to
        await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    desk.trail.free.set()
    await desk.recorder.flush()
    assert [event.count for event in desk.events()] == [1]


acts = st.lists(
    st.tuples(st.sampled_from(["poll", "show", "deny", "flush", "wait"]), st.integers(0, 2), st.integers(0, 1)),
    max_size=30,
)
moods = st.lists(st.sampled_from(["", "", "refuse", "doubt"]), min_size=1, max_size=30)


@pytest.mark.requirement("T1")
@given(acts, moods)
@settings(deadline=None)
def test_counts_are_exact_whatever_happens_in_whatever_order(
    acts: list[tuple[str, int, int]], moods: list[str]
) -> None:
    """Every attempt is on the trail once in the end; nothing was answered while its run had nothing on the trail."""

    async def story() -> None:
        desk = Desk()
        callers = [ANA_CALLS, *others()[:2]]
        wanted = {"TaskPolled": 0, "AccessDenied": 0}
        answered = 0
        for number, (act, who, other) in enumerate(acts):
            desk.trail.mood = moods[number % len(moods)]
            desk.clock.advance(QUIET_MS // 2 if act == "wait" else 1)
            try:
                if act == "poll":
                    desk.poll(callers[who])
                    wanted["TaskPolled"] += 1
                elif act == "deny":
                    wanted["AccessDenied"] += 1
                    await desk.deny(callers[who], tenant=("acme", "globex")[other])
                elif act == "show":
                    await desk.show(callers[who])
                    answered += 1
                elif act == "flush":
                    await desk.recorder.flush()
            except TasktrailError:
                assert desk.trail.mood
        desk.trail.mood = ""
        await desk.recorder.flush()
        await desk.recorder.flush()
        assert not desk.recorder.unwritten
        counts = dict.fromkeys((*wanted, "ResultDisclosed"), 0)
        for event in desk.events():
            counts[type(event).__name__] += event.count
        assert {name: counts[name] for name in wanted} == wanted
        assert counts["ResultDisclosed"] >= answered

    asyncio.run(story())


class Weather(Moody):
    """A trail whose every note has a mood, and takes a moment, of its own."""

    def __init__(self, clock: Clock, dice: random.Random) -> None:
        super().__init__(clock)
        self.dice: random.Random | None = dice

    async def note(self, *args: Any, **options: Any) -> str:  # noqa: ANN401 - as the Ledger takes it
        if self.dice is not None:
            for _ in range(self.dice.randrange(6)):
                await asyncio.sleep(0)
            self.mood = self.dice.choice(("", "", "", "refuse", "doubt"))
        return await super().note(*args, **options)


class Crowd:
    """Many callers at once on such a trail, and how often each thing was attempted, or answered."""

    def __init__(self, dice: random.Random) -> None:
        self.dice, self.desk = dice, Desk()
        self.trail = self.desk.trail = Weather(self.desk.clock, dice)
        self.desk.recorder = Recorder(cast("Ledger", self.trail), fold_ms=10)
        self.callers = [ANA_CALLS, *others()[:2]]
        self.polls = self.denials = self.shown = 0

    async def come(self) -> None:
        """One of them."""
        for _ in range(6):
            act, who = self.dice.choice((self.poll, self.show, self.deny, self.deny)), self.dice.choice(self.callers)
            self.desk.clock.advance(self.dice.choice((1, 1, QUIET_MS)))
            with contextlib.suppress(TasktrailError):
                await act(who)
            if not self.dice.randrange(5):
                await self.desk.recorder.flush()

    async def poll(self, who: Authority) -> None:
        self.desk.poll(who)
        self.polls += 1
        await asyncio.sleep(0)

    async def show(self, who: Authority) -> None:
        await self.desk.show(who)
        self.shown += 1

    async def deny(self, who: Authority) -> None:
        self.denials += 1
        await self.desk.deny(who, tenant=self.dice.choice(("acme", "globex")))
        entries = [message.entry for message in self.trail.messages]
        denied = [entry for entry in entries if isinstance(entry.events[0], AccessDenied)]
        assert any(entry.authority.principal == who.principal for entry in denied)

    def counted(self) -> dict[str, int]:
        """What the trail holds."""
        counts: dict[str, int] = {"TaskPolled": 0, "AccessDenied": 0, "ResultDisclosed": 0}
        for message in self.trail.messages:
            for event in message.entry.events:
                counts[type(event).__name__] += cast("Any", event).count
        return counts


@pytest.mark.requirement("T1")
@given(seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_counts_are_exact_whoever_comes_at_once_and_goes_away(seed: int) -> None:
    """Many at once, some cancelled, while the trail does what it likes: each attempt once, none answered unwritten."""

    async def story() -> None:
        crowd = Crowd(random.Random(seed))  # noqa: S311 - the same story for the same seed
        running = [asyncio.create_task(crowd.come()) for _ in range(8)]
        for _ in range(10):
            await asyncio.sleep(0)
        for gone in crowd.dice.sample(running, 2):
            gone.cancel()
        for ended in await asyncio.gather(*running, return_exceptions=True):
            assert ended is None or isinstance(ended, asyncio.CancelledError), ended
        crowd.trail.dice, crowd.trail.mood = None, ""
        for _ in range(2):
            await crowd.desk.recorder.flush()
        assert not crowd.desk.recorder.unwritten
        counts = crowd.counted()
        assert (counts["TaskPolled"], counts["AccessDenied"]) == (crowd.polls, crowd.denials)
        assert counts["ResultDisclosed"] >= crowd.shown

    asyncio.run(story())
