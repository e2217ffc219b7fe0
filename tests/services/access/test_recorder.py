"""Folding of polls, disclosures and denials: exact, first on the trail, never across callers. Source: promise 1.

On the memory trail, which a test can make refuse, or leave in doubt, what is written; `test_gate_secrecy` does it on a
real server.
"""

import asyncio
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasktrail.events.authority import Authority, Client, Credential, Principal, Request
from tasktrail.events.errors import MaybeWritten, NothingWritten, TasktrailError
from tasktrail.events.facts import AccessDenied, ResultDisclosed, Status, SubscriptionOpened, TaskPolled
from tasktrail.events.subjects import access_subject, denied_subject, task_ref
from tasktrail.projections.current import State
from tasktrail.services.access import recorder as module
from tasktrail.services.access.recorder import QUIET_MS, REFS_MAX, Recorder
from tasktrail.services.access.rules import Rule
from tasktrail.services.ledger import Ledger
from tasktrail.testing.memory import MemoryTrail
from tasktrail.testing.parts import Clock
from tasktrail.testing.scenario import ANA, authority, create, sealed

REF = task_ref(b"k" * 32, "a task")
RESULT = (sealed("result"),)
ANA_CALLS = authority()


class Moody(MemoryTrail):
    """A memory trail that can refuse, take without saying so, or wait."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.mood = ""
        self.free = asyncio.Event()
        self.free.set()
        self.tries = 0

    async def note(self, *args: Any, **options: Any) -> str:  # noqa: ANN401
        self.tries += 1
        await self.free.wait()
        if self.mood == "refuse":
            raise NothingWritten
        made = await super().note(*args, **options)
        if self.mood == "doubt":
            raise MaybeWritten
        return made


class Desk:
    """A recorder on such a trail, and one task."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.trail = Moody(self.clock)
        self.recorder = Recorder(cast("Ledger", self.trail), fold_ms=10)
        self.state: State = self.trail.record(ANA.tenant, REF, create(), authority()).state

    def poll(self, who: Authority = ANA_CALLS, method: str = "tasks/get") -> None:
        self.recorder.polled(self.state, who, method)

    async def show(self, who: Authority = ANA_CALLS, method: str = "tasks/get") -> None:
        await self.recorder.disclosed(self.state, who, method, RESULT)

    async def deny(
        self, who: Authority = ANA_CALLS, rule: Rule = Rule.UNKNOWN, ref: str = REF, tenant: str = "acme"
    ) -> None:
        await self.recorder.denied(who, "tasks/get", -32602, rule, ref, tenant)

    def events(self) -> list[Any]:
        """On the trail, but the creation."""
        return [event for message in self.trail.messages[1:] for event in message.entry.events]


@pytest.fixture
async def desk() -> Desk:
    """Give one."""
    return Desk()


def another(**changes: Any) -> Authority:  # noqa: ANN401 - fields of `Authority`
    return msgspec.structs.replace(ANA_CALLS, **changes)


def others() -> list[Authority]:
    """Callers that a run is not folded across."""
    principal, client, credential = ANA_CALLS.principal, ANA_CALLS.client, ANA_CALLS.credential
    assert isinstance(principal, Principal)
    assert isinstance(client, Client)
    assert isinstance(credential, Credential)
    replace = msgspec.structs.replace
    return [
        another(principal=replace(principal, sub="eve")),
        another(principal=replace(principal, iss="https://other.example")),
        another(client=replace(client, client_id="cli")),
        another(credential=replace(credential, token_hash="n" * 43)),
        another(request=Request(method="tools/call", server="reports", address="192.0.2.7")),
        another(request=Request(method="tools/call", server="mail")),
    ]


@pytest.mark.requirement("T1")
async def test_status_polls_fold_with_their_count_and_times(desk: Desk) -> None:
    """Design section 5: `TaskPolled`, a folded run: count, first, last."""
    for _ in range(7):
        desk.poll()
        desk.clock.advance(10)
    assert desk.events() == []
    await desk.recorder.flush()
    (event,) = desk.events()
    begun = desk.clock.ms - 70
    assert event == TaskPolled(
        at_ms=desk.clock.ms, method="tasks/get", status="working", count=7, first_ms=begun, last_ms=begun + 60
    )
    assert desk.trail.messages[-1].subject == access_subject("acme", REF)
    await desk.recorder.flush()
    assert len(desk.events()) == 1


@pytest.mark.requirement("T1", "A1")
async def test_no_run_spans_two_callers_methods_or_statuses(desk: Desk) -> None:
    """Design section 5: never folded across credential, address, outcome or status."""
    desk.poll()
    for who in others():
        desk.poll(who)
    desk.poll(method="subscriptions/listen")
    parked = msgspec.structs.replace(desk.state.task, status=Status.INPUT_REQUIRED)
    desk.recorder.polled(msgspec.structs.replace(desk.state, task=parked), ANA_CALLS, "tasks/get")
    await desk.recorder.flush()
    assert [event.count for event in desk.events()] == [1] * (len(others()) + 3)


@pytest.mark.requirement("T1", "A4")
async def test_denials_fold_by_caller_method_and_code_with_their_true_reasons(desk: Desk) -> None:
    """Design section 5: runs keyed by credential, address, method and wire code, true reasons and refs counted."""
    await desk.deny(ref="one")
    assert [event.count for event in desk.events()] == [1], "the first is on the trail before it is answered"
    for number in range(10):
        await desk.deny(rule=(Rule.UNKNOWN, Rule.OTHER_CONTEXT)[number % 2], ref=("one", "two")[number % 2])
        desk.clock.advance(100)
    for who in others():
        await desk.deny(who)
    await desk.recorder.flush()
    begins, *rest = desk.events()
    (run,) = [event for event in rest if event.count > 1]
    assert (begins.count, len(rest)) == (1, 1 + len(others()))
    assert run.reasons == {"no-such-task": 5, "other-identity-context": 5}
    assert run.refs == {"one": 5, "two": 5}
    assert (run.count, run.last_ms - run.first_ms) == (10, 900)


@pytest.mark.requirement("A4")
async def test_a_run_is_shared_out_among_the_tenants_it_is_shown_to(desk: Desk) -> None:
    """Decisions: a run does not depend on whose task it was; each tenant sees its own part."""
    for tenant, ref in (("acme", "a"), ("globex", "b"), ("acme", "c"), ("_", "d")):
        await desk.deny(ref=ref, tenant=tenant)
    await desk.recorder.flush()
    found = [(message.subject, message.entry.events[0]) for message in desk.trail.messages[1:]]
    assert [(subject, event.refs) for subject, event in found if isinstance(event, AccessDenied)] == [
        (denied_subject("acme"), {"a": 1}),
        (denied_subject("globex"), {"b": 1}),
        (denied_subject("acme"), {"c": 1}),
        (denied_subject("_"), {"d": 1}),
    ]


@pytest.mark.requirement("T1")
async def test_after_a_quiet_time_a_denial_begins_a_run_again(desk: Desk) -> None:
    """And is on the trail first again."""
    await desk.deny()
    desk.clock.advance(QUIET_MS)
    await desk.deny()
    assert len(desk.events()) == 1
    desk.clock.advance(QUIET_MS + 1)
    await desk.deny()
    assert sum(event.count for event in desk.events()) == 3


@pytest.mark.requirement("T1")
async def test_claimed_references_are_counted_up_to_a_bound(desk: Desk) -> None:
    """Who enumerates a million handles must not fill the memory, nor an entry."""
    for number in range(REFS_MAX + 50):
        await desk.deny(ref=str(number))
    await desk.recorder.flush()
    assert [len(event.refs) for event in desk.events()] == [1, REFS_MAX]
    assert sum(event.count for event in desk.events()) == REFS_MAX + 50


@pytest.mark.requirement("T1", "R1")
async def test_showings_after_the_first_fold_and_say_which_they_were(desk: Desk) -> None:
    """Design section 5: `ResultDisclosed`, which payload, n-th time."""
    await desk.show()
    for _ in range(4):
        await desk.show()
    await desk.show(method="subscriptions/listen")
    await desk.recorder.flush()
    await desk.show()
    await desk.recorder.flush()
    said = [(event.method, event.nth, event.count) for event in desk.events()]
    assert said == [
        ("tasks/get", 1, 1),
        ("subscriptions/listen", 1, 1),
        ("tasks/get", 5, 4),
        ("tasks/get", 6, 1),
    ]
    first = desk.events()[0]
    assert isinstance(first, ResultDisclosed)
    assert (first.payloads, first.sha256) == (("result",), (RESULT[0].sha256,))


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
async def test_folded_runs_are_written_by_themselves_and_at_the_stop(desk: Desk) -> None:
    """Promise 1: on the trail within a second; a stop writes what is left, also what is just being written."""
    await desk.recorder.start()
    desk.poll()
    async with asyncio.timeout(5):
        while not desk.events():  # noqa: ASYNC110 - a condition with a bound
            await asyncio.sleep(0.001)
    desk.trail.free.clear()
    desk.poll()
    async with asyncio.timeout(5):
        while desk.trail.tries < 2:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.001)
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


@pytest.mark.requirement("T1")
async def test_a_single_access_is_written_at_once(desk: Desk) -> None:
    """Subscriptions opened and closed are not folded."""
    await desk.recorder.note(desk.state, ANA_CALLS, SubscriptionOpened(at_ms=1))
    assert [message.subject for message in desk.trail.messages[1:]] == [access_subject("acme", REF)]


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
