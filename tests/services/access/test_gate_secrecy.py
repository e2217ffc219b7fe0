"""The gate: nothing is told to strangers, everything to the trail, and to the trail first.

Source: promises 1 and 4, feature A4. The trail refuses to take more (`full`) where a test must see what happens when an
entry cannot be written while states can still be read.
"""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from tests.services.access.rig import ACTS, ANA, CHANNEL, GLOBEX, SETTINGS, Rig, call, caller, outcome
from tests.services.access.watched import HOSTILE, Watched
from tests.services.orders import IN_TIME_S

from tasktrail.events.errors import NOT_FOUND_TEXT, NothingWritten, Unavailable
from tasktrail.events.facts import ResultDisclosed, TaskPolled, TaskSupport
from tasktrail.services import messages
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import parts, stored
from tasktrail.testing.waiting import until


@pytest.mark.requirement("A4")
@pytest.mark.parametrize("act", ACTS)
async def test_no_handle_that_opens_nothing_differs_from_another(
    rig: Rig, fresh_nats: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """Promise 4: same bytes, same I/O; in a process that knows the tasks and in one that does not."""
    foreign = await rig.create(caller("eve"), "foreign")
    elsewhere = await rig.create(caller(iss=GLOBEX), "elsewhere")
    over = await rig.create(made="over", ttl_ms=5)
    done = await rig.create(caller("eve"), "finished")
    await rig.complete(done.task_ref, "x" * 20_000)
    rig.clock.advance(5)
    handles = [foreign.task_id, elsewhere.task_id, over.task_id, done.task_id, "a" * 32, *HOSTILE]
    async with parts(fresh_nats.url, tmp_path, rig.clock, SETTINGS) as cold:
        for one in (rig.one, cold):
            here, seen = Rig(one, rig.clock), Watched(one, monkeypatch)
            first = [await seen.during(ACTS[act](here, handle, ANA)) for handle in handles[:1]]
            again = [await seen.during(ACTS[act](here, handle, ANA)) for handle in handles]
            assert first[0][1] == [*again[0][1], "trail denied"], "the first denial of a run is on the trail first"
            assert {(text, tuple(asked)) for text, asked in again} == {(NOT_FOUND_TEXT, tuple(again[0][1]))}
            await one.recorder.flush()
            for handle in handles:  # each the first of a run of its own
                rig.clock.advance(20_000)
                assert await seen.during(ACTS[act](here, handle, ANA)) == first[0], handle


@pytest.mark.requirement("A4", "T1")
async def test_the_trail_says_which_it_was(rig: Rig) -> None:
    """Promise 4: the trail always tells the responder why; claimed handles appear as keyed references only."""
    foreign = await rig.create(caller("eve"), "foreign")
    elsewhere = await rig.create(caller(iss=GLOBEX), "elsewhere")
    over = await rig.create(made="over", ttl_ms=5)
    rig.clock.advance(5)
    unknown = "a" * 32
    for handle in (foreign.task_id, elsewhere.task_id, over.task_id, unknown, *HOSTILE):
        assert await outcome(rig.get(handle)) == NOT_FOUND_TEXT
    shown: dict[str, dict[str, int]] = {}
    refs: dict[str, int] = {}
    for tenant, _, event in await rig.denials():
        for reason, count in event.reasons.items():
            into = shown.setdefault(tenant, {})
            into[reason] = into.get(reason, 0) + count
        refs |= event.refs
    assert shown == {
        "acme": {
            "other-identity-context": 1,
            "handle-expired": 1,
            "no-such-task": 1,
            "malformed-handle": len(HOSTILE),
        },
        "globex": {"other-identity-context": 1},
    }
    assert {foreign.task_ref, elsewhere.task_ref, over.task_ref, rig.one.keyring.ref(unknown)} < refs.keys()
    assert len(refs) == 4 + len(HOSTILE)
    bodies = b"".join(message.body for message in await stored(rig.one.js))
    assert unknown.encode() not in bodies
    assert b"PUB x" not in bodies


@pytest.mark.requirement("A4")
async def test_a_subscription_leaves_out_what_is_not_the_callers(rig: Rig) -> None:
    """Uniformly; the others are granted, each on the trail, and each once."""
    mine, foreign = await rig.create(), await rig.create(caller("eve"), "foreign")
    granted = await rig.watch(foreign.task_id, mine.task_id, "x" * 32, mine.task_id)
    assert [view.task_id for view in granted] == [mine.task_id]
    names = [type(event).__name__ for entry in await rig.entries("access") for event in entry.events]
    assert names == ["SubscriptionOpened"]


@pytest.mark.requirement("T1", "A4")
async def test_a_denial_is_on_the_trail_before_it_is_answered(rig: Rig) -> None:
    """Promise 1: the first denial of a run; while it cannot be written, nobody is told that there is no such task."""
    await rig.create()
    async with rig.full():
        for _ in range(2):
            with pytest.raises(NothingWritten):
                await rig.get("a" * 32)
    assert await outcome(rig.get("a" * 32)) == NOT_FOUND_TEXT
    assert sum(event.count for _, _, event in await rig.denials()) == 3
    async with rig.full():
        assert await outcome(rig.get("b" * 32)) == NOT_FOUND_TEXT, "a repeat of the run folds"
    assert sum(event.count for _, _, event in await rig.denials()) == 4


@pytest.mark.requirement("T1", "R1")
async def test_a_result_is_disclosed_on_the_trail_before_it_is_shown(rig: Rig) -> None:
    """Promise 1: no result disclosure is shown before its entry is acknowledged; repeats fold, exactly counted."""
    made = await rig.create()
    await rig.complete(made.task_ref)
    async with rig.full():
        with pytest.raises(NothingWritten):
            await rig.get(made.task_id)
    shown = await asyncio.gather(*(rig.get(made.task_id) for _ in range(5)))
    assert {str(view.result) for view in shown} == {"{'text': 'done'}"}
    await rig.get(made.task_id, address="198.51.100.9")
    await rig.one.recorder.flush()
    events = [event for entry in await rig.entries("access") for event in entry.events]
    assert [(event.nth, event.count) for event in events if isinstance(event, ResultDisclosed)] == [
        (1, 1),
        (1, 1),
        (5, 4),
    ]


@pytest.mark.requirement("T1", "L7")
async def test_questions_are_disclosed_too(rig: Rig) -> None:
    """The text shown to a person is what they approve: who was shown it is on the trail."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a", "b")
    async with rig.full():
        with pytest.raises(NothingWritten):
            await rig.get(made.task_id)
    await rig.get(made.task_id)
    await rig.update(made.task_id, {"a": {"action": "decline"}})
    await rig.get(made.task_id)
    events = [event for entry in await rig.entries("access") for event in entry.events]
    assert [event.payloads for event in events if isinstance(event, ResultDisclosed)] == [
        ("request.a", "request.b"),
        ("request.b",),
    ]


@pytest.mark.requirement("T1")
async def test_status_polls_fold_and_lose_none_while_the_trail_is_full(rig: Rig) -> None:
    """Promise 1: they are on the trail within a second, exactly counted; a poll itself does not wait for it."""
    made = await rig.create()
    async with rig.full():
        for _ in range(4):
            await rig.get(made.task_id)
            rig.clock.advance(10)
        await rig.one.recorder.flush()
        assert rig.one.recorder.unwritten
        await rig.get(made.task_id)
    await rig.get(made.task_id, address="198.51.100.9")
    await rig.one.recorder.flush()
    assert not rig.one.recorder.unwritten
    events = [event for entry in await rig.entries("access") for event in entry.events]
    polls = [event for event in events if isinstance(event, TaskPolled)]
    assert sorted((event.count, event.last_ms - event.first_ms) for event in polls) == [(1, 0), (5, 40)]
    assert {(event.method, event.status) for event in polls} == {("tasks/get", "working")}


@pytest.mark.requirement("T1")
async def test_while_the_broker_is_silent_every_request_is_answered_in_time(rig: Rig, fresh_nats: NatsServer) -> None:
    """Promise 1: never a hang, one of our retriable errors; afterwards everything goes on."""
    made = await rig.create()
    await rig.complete(made.task_ref)

    async def told(action: str) -> tuple[str, float]:
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            await rig.one.desk.carry_out(action, said_for(action, made.task_id), CHANNEL)
        return action, time.monotonic() - begun

    os.kill(fresh_nats.broker.pid, signal.SIGSTOP)
    try:
        took = await asyncio.gather(*map(told, ("create", *ACTS)))
    finally:
        os.kill(fresh_nats.broker.pid, signal.SIGCONT)
    assert max(seconds for _, seconds in took) < IN_TIME_S, took
    await until(lambda: rig.one.governance.ready, what="what governs is read again")
    assert (await rig.get(made.task_id)).result


def said_for(action: str, handle: str) -> messages.Said:
    """A request of each kind, as the desk takes it."""
    return {
        "create": messages.CreateTask(
            caller=ANA,
            call=call("tools/call"),
            command_id="later",
            tool="report",
            task_support=TaskSupport.OPTIONAL,
        ),
        "get": messages.GetTask(caller=ANA, call=call("tasks/get"), task_id=handle),
        "update": messages.UpdateTask(
            caller=ANA, call=call("tasks/update"), command_id="u", task_id=handle, answers={}
        ),
        "cancel": messages.CancelTask(caller=ANA, call=call("tasks/cancel"), command_id="x", task_id=handle),
        "watch": messages.WatchTasks(caller=ANA, call=call("subscriptions/listen"), task_ids=(handle,)),
    }[action]
