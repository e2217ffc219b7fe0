"""The projector on a real server: the bucket of current states. Source: design sections 3 and 8, promise 8, T6."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError
from tests.services.orders import REF, TENANT, complete, do, ref_of, report, until_told

from tasktrail.events import commands
from tasktrail.events.entry import MSG_ID
from tasktrail.events.subjects import CURRENT, TRAIL, control_subject, task_subject
from tasktrail.projections import current
from tasktrail.projections.current import State
from tasktrail.services import projector as module
from tasktrail.services import trail
from tasktrail.services.bus import make_bus
from tasktrail.services.connection import Connection
from tasktrail.services.projector import Projector
from tasktrail.services.states import States
from tasktrail.testing.memory import folded
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Parts, parts, stored
from tasktrail.testing.scenario import authority, create, sealed
from tasktrail.testing.waiting import until

SOON_S = 20.0
POSITION = f"$KV.{CURRENT}._position"


@pytest.fixture(autouse=True)
def _attentive(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It looks after itself soon instead of every second, and its complaints stay out of the report."""
    monkeypatch.setattr(module, "WATCH_S", 0.1)
    monkeypatch.setattr(module, "STUCK_AFTER_S", 1.5)
    caplog.set_level(logging.CRITICAL, "tasktrail")


@pytest.fixture
async def one(fresh_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Parts]:
    """Give the process that writes."""
    async with parts(fresh_nats.url, tmp_path) as made:
        yield made


@asynccontextmanager
async def projecting(
    at: Parts, server: NatsServer, observe: Callable[[State], None] | None = None
) -> AsyncGenerator[Projector]:
    """A projector at work, with a cache and a bus of its own, as another process has them."""
    bus = make_bus(Connection.from_text(server.url))
    projector = Projector(at.js, States(at.nc, at.js, kept=4_096), bus, observe)
    await projector.start()
    await bus.start()
    projector.attach()
    try:
        yield projector
    finally:
        await bus.stop()
        await projector.stop()


async def caught_up(at: Parts, projector: Projector) -> None:
    last = (await at.js.stream_info(TRAIL)).state.last_seq
    await until(lambda: projector.position >= last, what=f"position {last}")


async def bucket(at: Parts) -> dict[str, bytes]:
    """What it holds, by reference; without the position."""
    try:
        info = await at.js.stream_info(trail.KV_STREAM, subjects_filter=f"$KV.{CURRENT}.*")
    except NotFoundError:
        return {}
    held: dict[str, bytes] = {}
    for subject in info.state.subjects or {}:
        if subject != POSITION:
            message = await at.js.get_last_msg(trail.KV_STREAM, subject)
            held[subject.removeprefix(f"$KV.{CURRENT}.")] = message.data or b""
    return held


async def rebuilt(at: Parts) -> dict[str, bytes]:
    """What it should hold: the whole trail folded by the pure code."""
    return {ref: current.encode(state) for ref, state in folded(await stored(at.js)).items()}


async def grow(at: Parts, name: str, tasks: int = 8) -> None:
    """Tasks in several states, and entries beside them."""

    async def life(number: int) -> None:
        ref = ref_of(f"{name} {number}")
        steps: list[commands.TaskCommand] = [
            create(),
            report("r1"),
            commands.CancelTask(id="c"),
            report("r2"),
            complete(),
        ]
        for command in steps[: 1 + number % len(steps)]:
            await until_told(at, command, ref)

    await asyncio.gather(*(life(number) for number in range(tasks)))
    await at.ledger.note(control_subject("_"), "_", authority(), ())


@pytest.mark.requirement("T6")
async def test_the_bucket_follows_the_trail(one: Parts, fresh_nats: NatsServer) -> None:
    """Each task's last state, byte for byte what the pure code folds; entries of no task move the position only."""
    await grow(one, "before")
    seen: list[State] = []
    async with projecting(one, fresh_nats, seen.append) as projector:
        assert not projector.ready, "it is behind what the trail held when it started"
        await caught_up(one, projector)
        assert projector.ready
        await grow(one, "after")
        await caught_up(one, projector)
        assert await bucket(one) == await rebuilt(one)
        assert projector.behind == 0
    assert {state.task_ref for state in seen} == (await rebuilt(one)).keys()


@pytest.mark.requirement("T6")
async def test_a_deleted_bucket_comes_back_equal_at_the_next_start(one: Parts, fresh_nats: NatsServer) -> None:
    """Promise 8: delete the KV bucket and it comes back from the log, equal."""
    await grow(one, "a")
    async with projecting(one, fresh_nats) as projector:
        await caught_up(one, projector)
    before = await bucket(one)
    await one.js.delete_stream(trail.KV_STREAM)
    async with projecting(one, fresh_nats) as projector:
        await caught_up(one, projector)
    assert await bucket(one) == before == await rebuilt(one)
    assert before


@pytest.mark.requirement("T6")
@pytest.mark.parametrize("traffic", [False, True])
async def test_a_bucket_deleted_while_it_runs_comes_back(one: Parts, fresh_nats: NatsServer, *, traffic: bool) -> None:
    """Module docstring: at any time; also when nothing more is written, and when something is just being written."""
    await grow(one, "a")
    async with projecting(one, fresh_nats) as projector:
        await caught_up(one, projector)
        writing = asyncio.create_task(grow(one, "b")) if traffic else None
        await one.js.delete_stream(trail.KV_STREAM)
        if writing is not None:
            await writing
        wanted = await rebuilt(one)

        async def is_rebuilt() -> bool:
            return await bucket(one) == wanted

        await until(is_rebuilt, what="the bucket")
        await grow(one, "c")
        await caught_up(one, projector)
        assert await bucket(one) == await rebuilt(one)


@pytest.mark.requirement("T6")
async def test_a_start_goes_on_from_where_the_bucket_ends(one: Parts, fresh_nats: NatsServer) -> None:
    """Its position is kept in the bucket itself; what is there is not written again."""
    await grow(one, "a")
    async with projecting(one, fresh_nats) as projector:
        await caught_up(one, projector)
        position = projector.position
    before = (await one.js.stream_info(trail.KV_STREAM)).state.last_seq
    async with projecting(one, fresh_nats) as projector:
        assert projector.position == position
        assert projector.ready
        await do(one, create())
        await caught_up(one, projector)
    written = (await one.js.stream_info(trail.KV_STREAM)).state.last_seq - before
    assert written == 2, "the task's state, and the position"
    assert await bucket(one) == await rebuilt(one)


@pytest.mark.requirement("T6")
@pytest.mark.parametrize("body", [b"garbage", b'{"stream":"2020-01-01","seq":3}', b"future"])
async def test_a_position_of_another_trail_is_not_believed(one: Parts, fresh_nats: NatsServer, body: bytes) -> None:
    """It is kept with the stream it is of, and cannot be after its end."""
    await grow(one, "a")
    if body == b"future":
        created = str((await one.js.stream_info(TRAIL)).created)
        body = msgspec.json.encode({"stream": created, "seq": 10_000})
    await one.js.publish(POSITION, body)
    async with projecting(one, fresh_nats) as projector:
        assert projector.position == 0
        await caught_up(one, projector)
    assert await bucket(one) == await rebuilt(one)


@pytest.mark.requirement("T6")
async def test_two_projectors_at_once_never_let_a_state_go_back(one: Parts, fresh_nats: NatsServer) -> None:
    """Module docstring: with one projector or several. What comes into the bucket is watched while it comes."""
    written: list[Msg] = []

    async def seen(msg: Msg) -> None:
        written.append(msg)

    subscribe: Any = one.js.subscribe  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # nats-py's options have no types
    await subscribe(
        f"$KV.{CURRENT}.>", stream=trail.KV_STREAM, cb=seen, config=ConsumerConfig(ack_policy=AckPolicy.NONE)
    )
    async with projecting(one, fresh_nats) as first, projecting(one, fresh_nats) as second:
        await do(one, create())
        for number in range(60):
            await do(one, report(f"r{number}"))
        await grow(one, "others", 20)
        await caught_up(one, first)
        await caught_up(one, second)
        assert await bucket(one) == await rebuilt(one)
    last = (await one.js.stream_info(trail.KV_STREAM)).state.last_seq
    await until(lambda: written and written[-1].metadata.sequence.stream >= last, what=f"message {last}")
    highest: dict[str, int] = {}
    for message in written:
        if message.subject != POSITION:
            state = current.decode(message.data)
            assert state is not None
            assert state.stream_seq > highest.get(state.task_ref, 0), "a state went back, or was written twice"
            highest[state.task_ref] = state.stream_seq
    assert len(highest) == 21


@pytest.mark.requirement("T6")
async def test_a_projector_that_fell_behind_does_not_take_a_state_back(one: Parts, fresh_nats: NatsServer) -> None:
    """As above, with the late write made certain."""
    early = (await do(one, create())).state
    await do(one, report("r"))
    async with projecting(one, fresh_nats) as projector:
        await caught_up(one, projector)
        late = Projector(one.js, States(one.nc, one.js, kept=16), make_bus(Connection.from_text(fresh_nats.url)))
        await late._put(early)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]  # a write that was under way for long
        assert await bucket(one) == await rebuilt(one)


@pytest.mark.requirement("T6")
async def test_a_consumer_deleted_while_it_runs_is_made_again(one: Parts, fresh_nats: NatsServer) -> None:
    """Design section 8: a deleted consumer stops a pull subscriber silently: it is watched."""
    async with projecting(one, fresh_nats) as projector:
        await grow(one, "a")
        await caught_up(one, projector)
        for consumer in await one.js.consumers_info(TRAIL):
            await one.js.delete_consumer(TRAIL, consumer.name)
        await grow(one, "b")
        await caught_up(one, projector)
        assert await bucket(one) == await rebuilt(one)


@pytest.mark.requirement("T6")
async def test_what_is_no_entry_or_breaks_its_chain_is_left_out_and_the_others_go_on(
    one: Parts, fresh_nats: NatsServer
) -> None:
    """One bad message must not stop the bucket for everybody."""
    await do(one, create())
    await do(one, create(), ref_of("healthy"))
    await one.js.publish(task_subject(TENANT, REF), b"not an entry")
    copy = (await stored(one.js))[0]
    await one.js.publish(task_subject(TENANT, ref_of("healthy")), copy.body, headers={MSG_ID: "x"})
    await one.js.publish(task_subject(TENANT, ref_of("third")), copy.body, headers={MSG_ID: "y"})
    await one.js.publish("trail.1.nonsense", b"")
    await do(one, create(), ref_of("later"))
    async with projecting(one, fresh_nats) as projector:
        await caught_up(one, projector)
        held = await bucket(one)
    assert {REF, ref_of("healthy"), ref_of("later")} <= held.keys()
    assert ref_of("third") not in held
    state = current.decode(held[ref_of("later")])
    assert state is not None
    assert state.task.seq == 1


@pytest.mark.requirement("T6")
async def test_garbage_in_the_bucket_is_replaced(one: Parts, fresh_nats: NatsServer) -> None:
    """The bucket is disposable, key by key."""
    await do(one, create())
    await one.js.publish(f"$KV.{CURRENT}.{REF}", b"\xc1garbage")
    async with projecting(one, fresh_nats) as projector:
        await caught_up(one, projector)
        assert await bucket(one) == await rebuilt(one)


@pytest.mark.requirement("T6")
async def test_nothing_is_skipped_while_the_bucket_takes_nothing(one: Parts, fresh_nats: NatsServer) -> None:
    """The position moves over entries that are in the bucket only; no later batch carries it over a failed one."""

    async def limit(most: int) -> None:
        info = await one.js.stream_info(trail.KV_STREAM)
        info.config.max_msgs = most
        update: Any = one.js.update_stream  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # nats-py's options have no types
        await update(info.config)

    await grow(one, "a")
    async with projecting(one, fresh_nats) as projector:
        await caught_up(one, projector)
        position = projector.position
        await limit((await one.js.stream_info(trail.KV_STREAM)).state.messages)
        await do(one, create())
        await until(lambda: projector.failure, what="a failure")
        await do(one, commands.ReportStatus(id="r", message=sealed("message")))
        await do(one, create(), ref_of("another"))
        assert projector.position == position
        await limit(-1)
        await caught_up(one, projector)
        assert await bucket(one) == await rebuilt(one)
        assert projector.failure == ""


@pytest.mark.requirement("T6")
async def test_it_goes_on_after_the_broker_was_killed(one: Parts, fresh_nats: NatsServer) -> None:
    """As the embedded broker is restarted under a running service."""
    async with projecting(one, fresh_nats) as projector:
        await grow(one, "a")
        fresh_nats.kill()
        fresh_nats.restart()
        await until_told(one, create())
        await grow(one, "b")
        await caught_up(one, projector)
        assert await bucket(one) == await rebuilt(one)
