"""States for polls: right on every replica at once, from cache, bucket or trail. Source: design 3, promise 8."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.services.orders import REF, TENANT, do, report

from tasktrail.events import commands
from tasktrail.events.entry import MSG_ID, Entry, encode
from tasktrail.events.errors import ChainBroken, MalformedEntry
from tasktrail.events.subjects import CURRENT, any_tenant_subject, task_ref, task_subject
from tasktrail.projections import current
from tasktrail.projections.current import FORMAT, State
from tasktrail.services import states as module
from tasktrail.services import trail
from tasktrail.services.states import States
from tasktrail.testing.memory import folded
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Parts, parts, stored
from tasktrail.testing.scenario import authority, create, created

OTHER = task_ref(b"k" * 32, "another task")


@pytest.fixture
async def one(fresh_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Parts]:
    """Give the process that writes."""
    async with parts(fresh_nats.url, tmp_path) as made:
        yield made


@pytest.fixture
async def other(one: Parts, fresh_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Parts]:
    """Give another replica: its own connection, an empty cache."""
    assert one.nc.is_connected
    async with parts(fresh_nats.url, tmp_path) as made:
        yield made


async def grown(at: Parts, entries: int) -> State:
    """A task of so many entries."""
    done = await do(at, create())
    for number in range(entries - 1):
        done = await do(at, report(f"r{number}"))
    return done.state


async def put(at: Parts, state: State | bytes, ref: str = REF) -> None:
    """Into the bucket, as the projector would."""
    body = state if isinstance(state, bytes) else current.encode(state)
    await at.js.publish(f"$KV.{CURRENT}.{ref}", body)


class Asked:
    """What a connection publishes: subjects and questions, with inboxes and references left out."""

    def __init__(self, at: Parts, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        publish = at.nc.publish

        async def noted(subject: str, payload: bytes = b"", *args: Any, **options: Any) -> None:  # noqa: ANN401
            self.seen.append(f"{subject} {payload.decode('latin-1')}".replace(REF, "?").replace(OTHER, "?"))
            await publish(subject, payload, *args, **options)

        patch.setattr(at.nc, "publish", noted)

    def take(self) -> list[str]:
        """Those since the last time."""
        seen, self.seen = self.seen, []
        return seen


@pytest.mark.requirement("L5")
async def test_another_replica_is_right_the_moment_a_change_is_acknowledged(one: Parts, other: Parts) -> None:
    """Design section 3: pollable the moment its creation was acknowledged, on any replica, without the projector."""
    for command in (create(), report("a"), commands.CancelTask(id="c"), commands.StopTask(id="s")):
        done = await do(one, command)
        assert await other.states.of(TENANT, REF) == done.state
        assert await other.states.by_handle(REF) == done.state
        assert await one.states.of(TENANT, REF) == done.state


@pytest.mark.requirement("A1")
async def test_a_task_is_found_by_its_handle_in_whichever_tenant(one: Parts) -> None:
    """A handle does not say whose it is; `of` is for those who know."""
    await do(one, create())
    found = await one.states.by_handle(REF)
    assert found is not None
    assert found.tenant == TENANT
    assert await one.states.of("globex", REF) is None
    assert await one.states.by_handle(OTHER) is None


@pytest.mark.requirement("L5")
async def test_a_task_longer_than_one_request_brings_is_folded_whole(
    one: Parts, other: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several batches, the last one not full; and again from the middle."""
    monkeypatch.setattr(module, "BATCH", 8)
    half = await grown(one, 20)
    assert await other.states.of(TENANT, REF) == half
    for number in range(19):
        await do(one, report(f"later {number}"))
    whole = folded(await stored(one.js))[REF]
    assert whole.task.seq == 39
    assert await other.states.of(TENANT, REF) == whole
    assert await States(other.nc, other.js, kept=16).by_handle(REF) == whole


async def test_a_task_of_more_entries_than_the_batch_is_folded(one: Parts, other: Parts) -> None:
    """With the real batch size."""
    state = await grown(one, module.BATCH + 5)
    assert await other.states.of(TENANT, REF) == state


async def test_a_replica_that_does_not_answer_directly_is_passed_over(
    one: Parts, other: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A direct read that is behind is repeated at the leader: here it never answers anything."""

    async def nothing(*_: object) -> list[tuple[bytes, int]]:
        return []

    state = await grown(one, 5)
    monkeypatch.setattr(other.states, "_batch", nothing)
    assert await other.states.of(TENANT, REF) == state


@pytest.mark.requirement("T6")
async def test_the_bucket_spares_the_fold_and_is_never_trusted_over_the_trail(
    one: Parts, other: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right with a bucket that is current, behind, gone, garbage, of another format, or of another history."""
    early = await grown(one, 3)
    late = early
    for number in range(4):
        late = (await do(one, report(f"more {number}"))).state
    wrong = msgspec.structs.replace(late, task=msgspec.structs.replace(late.task, leaf="f" * 64, tool="other"))
    ahead = msgspec.structs.replace(late, stream_seq=late.stream_seq + 9)
    held: list[State | bytes] = [
        late,
        early,
        b"\xc1garbage",
        msgspec.structs.replace(late, format=FORMAT + 1),
        wrong,
        ahead,
    ]
    asked = Asked(other, monkeypatch)
    for state in held:
        await put(one, state)
        asked.take()
        assert await States(other.nc, other.js, kept=16).of(TENANT, REF) == late, state
        folds = [question for question in asked.take() if "next_by_subj" in question]
        assert bool(folds) == (state is not late), state
        assert await States(other.nc, other.js, kept=16).by_handle(REF) == late, state
    await one.js.delete_stream(trail.KV_STREAM)
    assert await States(other.nc, other.js, kept=16).of(TENANT, REF) == late
    assert await States(other.nc, other.js, kept=16).by_handle(REF) == late


@pytest.mark.requirement("A4")
async def test_looking_up_a_handle_takes_the_same_requests_whatever_there_is(
    one: Parts, other: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 4: the same I/O for an unknown task, a known one, a remembered one, one in the bucket and one not."""
    asked = Asked(other, monkeypatch)
    state = await grown(one, 3)

    async def kinds(ref: str) -> list[str]:
        asked.take()
        await other.states.by_handle(ref)
        return [question.split()[0] for question in asked.take()]

    unknown = await kinds(OTHER)
    assert len(unknown) == 3
    assert await kinds(REF) == unknown, "not remembered, not in the bucket"
    assert await kinds(REF) == unknown, "remembered"
    await put(one, state)
    assert await kinds(REF) == unknown, "remembered, and in the bucket"
    await do(one, report("r"))
    assert await kinds(REF) == unknown, "remembered, but behind"
    monkeypatch.setattr(other, "states", States(other.nc, other.js, kept=16))
    assert await kinds(REF) == unknown, "behind in the bucket, not remembered"


async def test_an_owners_look_up_of_what_is_remembered_is_one_request(
    one: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design section 3: each poll asks the leader for the last sequence, and no more when nothing moved."""
    await do(one, create())
    asked = Asked(one, monkeypatch)
    await one.states.of(TENANT, REF)
    (question,) = asked.take()
    assert "STREAM.MSG.GET" in question
    assert "last_by_subj" in question


async def forged(at: Parts, **changes: Any) -> None:  # noqa: ANN401 - fields of `Entry`
    """A message on the task's subject that the Ledger would not write."""
    entry = Entry(
        v=1,
        id="f" * 32,
        tenant=TENANT,
        task_ref=REF,
        task_seq=3,
        recorded_at="2026-11-22T11:00:00.000Z",
        authority=authority(),
        events=(created(),),
    )
    body = encode(msgspec.structs.replace(entry, **changes))
    await at.js.publish(task_subject(TENANT, REF), body, headers={MSG_ID: "f" * 32})


@pytest.mark.requirement("T1")
@pytest.mark.parametrize("remembered", [True, False])
@pytest.mark.parametrize("changes", [{"task_seq": 3}, {"task_seq": 9}, {"task_seq": 1}, {"task_seq": 2}])
async def test_a_chain_that_does_not_hold_is_an_error_and_never_a_guess(
    one: Parts, other: Parts, changes: dict[str, Any], *, remembered: bool
) -> None:
    """Module docstring."""
    await grown(one, 2)
    if remembered:
        await other.states.of(TENANT, REF)
    await forged(one, **changes)
    with pytest.raises(ChainBroken):
        await other.states.of(TENANT, REF)
    with pytest.raises(ChainBroken):
        await other.states.by_handle(REF)


@pytest.mark.requirement("T1")
async def test_what_is_no_entry_on_a_tasks_subject_is_an_error(one: Parts, other: Parts) -> None:
    """As above."""
    await grown(one, 2)
    await one.js.publish(task_subject(TENANT, REF), b"not an entry")
    with pytest.raises(MalformedEntry):
        await other.states.of(TENANT, REF)
    with pytest.raises(MalformedEntry):
        await other.states.by_handle(REF)


@pytest.mark.requirement("T1")
async def test_every_state_is_read_also_one_of_an_earlier_format(
    one: Parts, other: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    """After an upgrade the bucket holds what this code cannot read: nothing that is told of every task may miss one."""
    known = await grown(one, 3)
    await put(one, known)
    older = (await do(one, create(), OTHER)).state
    await put(one, msgspec.structs.replace(older, format=FORMAT - 1), OTHER)
    broken = task_ref(b"k" * 32, "a broken task")
    await one.js.publish(task_subject(TENANT, broken), b"no entry")
    for key in (broken, task_ref(b"k" * 32, "no task"), "_position"):
        await put(one, b"\xc1", key)
    async with contextlib.aclosing(other.states.each()) as batches:
        found = [state async for some in batches for state in some]
    assert sorted(found, key=lambda state: state.stream_seq) == [known, older]
    assert f"the state of task {broken} cannot be read: malformed_entry" in caplog.text


async def test_memory_is_bounded_and_what_is_forgotten_is_read_again(one: Parts) -> None:
    """Every queue has a bound (style 7)."""
    small = States(one.nc, one.js, kept=2)
    refs = [task_ref(b"k" * 32, str(number)) for number in range(4)]
    for ref in refs:
        await do(one, create(), ref)
        assert await small.of(TENANT, ref) is not None
    assert [ref for ref in refs if small.kept(ref)] == refs[-2:]
    assert await small.of(TENANT, refs[0]) is not None


async def test_what_is_remembered_never_goes_back(one: Parts) -> None:
    """A late answer of an earlier read must not hide a later change."""
    early = (await do(one, create())).state
    late = (await do(one, report("r"))).state
    one.states.remember(early)
    assert one.states.kept(REF) == late


def test_the_wildcard_stands_for_the_tenant_only() -> None:
    """The look-up by handle cannot be widened by a handle: references are keyed."""
    assert any_tenant_subject(REF) == f"trail.1.task.*.{REF}"
