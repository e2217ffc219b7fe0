"""The Ledger on one real server that is silent, killed, full or gone. Source: design sections 1, 7 and 8.

Promise 1: one entry for a command, an answer in time that says what may have been written.
"""

import asyncio
import base64
import os
import signal
import time
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nats.js.errors import NotFoundError
from tests.services.orders import IN_TIME_S, REF, TENANT, complete, do, ref_of, report, unavailable, until_told

from tasktrail.events import commands
from tasktrail.events.entry import KEY_ID, MSG_ID, SIGNATURE
from tasktrail.events.errors import CommandReused, MaybeWritten, NothingWritten, TooLarge, Unavailable
from tasktrail.events.facts import Status
from tasktrail.events.subjects import TRAIL, control_subject
from tasktrail.events.task import COMMANDS_KEPT, Outcome
from tasktrail.projections.current import State
from tasktrail.services import trail
from tasktrail.services.ledger import Recorded
from tasktrail.services.settings import Settings
from tasktrail.testing.memory import folded
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Parts, parts, stored
from tasktrail.testing.scenario import ELICITATION, authority, create, sealed

QUICK = Settings(answer_within_ms=300, resolve_for_ms=5_000)


@contextmanager
def suspended(server: NatsServer) -> Generator[None]:
    """A server that does not answer: the process is stopped, its connections stay open."""
    os.kill(server.broker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.broker.pid, signal.SIGCONT)


@pytest.mark.requirement("T1")
async def test_an_entry_is_signed_over_its_exact_bytes(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """Design section 7, headers: `Nats-Msg-Id` is the entry's id; Ed25519 over the body; the key's id."""
    async with parts(fresh_nats.url, tmp_path) as one:
        await do(one, create())
        await one.ledger.note(control_subject("_"), "_", authority(), ())
        public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(one.keyring.public_key + "="))
        for message in await stored(one.js):
            public.verify(base64.b64decode(message.headers[SIGNATURE]), message.body)
            assert message.headers[MSG_ID] == message.entry.id
            assert message.headers[KEY_ID] == one.keyring.kid


@pytest.mark.requirement("T1", "L2")
async def test_one_command_sent_at_once_by_many_is_one_entry(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """From one process and from several, each with a connection and a memory of its own."""
    async with AsyncExitStack() as stack:
        several = [await stack.enter_async_context(parts(fresh_nats.url, tmp_path)) for _ in range(4)]
        made = await asyncio.gather(*(do(one, create()) for one in several for _ in range(8)))
        ended = await asyncio.gather(*(until_told(one, complete()) for one in several for _ in range(8)))
        assert {done.outcome for done in (*made, *ended)} == {Outcome.ACCEPTED}
        assert len({done.entry_id for done in made}) == len({done.entry_id for done in ended}) == 1
        messages = await stored(several[0].js)
    assert [message.entry.command for message in messages] == ["CreateTask", "CompleteTask"]


@pytest.mark.requirement("T1")
async def test_two_commands_at_once_under_one_id_are_not_one(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """Also while the first is still under way: neither is given the other's outcome."""
    async with parts(fresh_nats.url, tmp_path) as one:
        await do(one, create())
        both = await asyncio.gather(
            do(one, complete("x")), do(one, commands.CancelTask(id="x")), return_exceptions=True
        )
        assert isinstance(both[0], Recorded)
        assert both[0].state.task.status is Status.COMPLETED
        assert isinstance(both[1], CommandReused)
        assert len(await stored(one.js)) == 2


@pytest.mark.requirement("T1", "L2")
async def test_writers_on_one_task_are_ordered_and_lose_nothing(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """Optimistic concurrency on the task's subject (design section 8); conflicts are retried, then told."""
    async with AsyncExitStack() as stack:
        several = [await stack.enter_async_context(parts(fresh_nats.url, tmp_path)) for _ in range(4)]
        await do(several[0], create())
        sent = [(one, report(f"{number}-{each}")) for number, one in enumerate(several) for each in range(15)]
        done = await asyncio.gather(*(until_told(one, command) for one, command in sent))
        states = folded(await stored(several[0].js))
        assert {one.outcome for one in done} == {Outcome.ACCEPTED}
        assert states[REF].task.seq == 1 + len(sent)
        assert {one.entry_id for one in done} < set(states[REF].task.commands)
        polled = await asyncio.gather(*(one.states.of(TENANT, REF) for one in several))
        assert polled == [states[REF]] * 4


@pytest.mark.requirement("T1")
async def test_writers_on_many_tasks_do_not_hinder_each_other(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """Each task has its own subject; every acknowledged command is there exactly once."""
    async with AsyncExitStack() as stack:
        several = [await stack.enter_async_context(parts(fresh_nats.url, tmp_path)) for _ in range(3)]

        async def life(number: int) -> None:
            steps: list[commands.TaskCommand] = [
                create(),
                report("r"),
                commands.CancelTask(id="c"),
                commands.StopTask(id="s"),
            ]
            for step, command in enumerate(steps):
                done = await do(several[(number + step) % 3], command, ref_of(str(number)))
                assert (done.outcome, done.repeated) == (Outcome.ACCEPTED, False)

        await asyncio.gather(*(life(number) for number in range(40)))
        states = folded(await stored(several[0].js))
        assert len(states) == 40
        assert {(state.task.seq, state.task.status) for state in states.values()} == {(4, Status.CANCELLED)}


@pytest.mark.requirement("T1")
async def test_a_process_that_begins_anew_knows_the_commands_of_the_one_before(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Accepted command ids live in the task's state (design section 7), also over a restart of the broker."""
    async with parts(fresh_nats.url, tmp_path) as one:
        first = await do(one, create())
        await do(one, complete())
    fresh_nats.kill()
    fresh_nats.restart()
    async with parts(fresh_nats.url, tmp_path) as one:
        again = await do(one, create())
        assert again.repeated
        assert again.entry_id == first.entry_id
        assert again.state.task.status is Status.COMPLETED
        with pytest.raises(CommandReused):
            await do(one, commands.CancelTask(id="done"))
        assert len(await stored(one.js)) == 2


@pytest.mark.requirement("T1")
@pytest.mark.parametrize("known", [True, False])
async def test_a_command_that_another_process_recorded_meanwhile_is_found(
    fresh_nats: NatsServer, tmp_path: Path, *, known: bool
) -> None:
    """On one replica a retry answers 10071, or `duplicate` when its state is the latest (design section 8)."""
    async with parts(fresh_nats.url, tmp_path) as one, parts(fresh_nats.url, tmp_path) as other:
        await do(one, create())
        if known:
            await do(other, create())
        await do(one, complete())
        late = await do(other, complete())
        assert late.repeated
        assert late.state.task.status is Status.COMPLETED
        assert len(await stored(one.js)) == 2


@pytest.mark.requirement("T1")
async def test_a_repeat_of_long_ago_is_found_by_the_stream(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """A task remembers its last commands; within JetStream's window the stream knows the others."""
    async with parts(fresh_nats.url, tmp_path) as one:
        await do(one, create())
        for number in range(COMMANDS_KEPT + 1):
            await do(one, report(f"r{number}"))
        before = len(await stored(one.js))
        again = await do(one, report("r0"))
        assert again.repeated
        assert again.outcome is Outcome.ACCEPTED
        with pytest.raises(CommandReused):
            await do(one, commands.CancelTask(id="r0"))
        assert len(await stored(one.js)) == before


@pytest.mark.requirement("T1")
async def test_a_silent_broker_is_answered_in_time_and_the_outcome_is_found_later(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Promise 1: never a hang; "may have been written", and the same command id returns the outcome."""
    heard: list[int] = []

    async def listen(state: State) -> None:
        heard.append(state.task.seq)

    async with parts(fresh_nats.url, tmp_path) as one:
        await do(one, create())
        one.ledger.on_recorded = listen
        with suspended(fresh_nats):
            before = time.monotonic()
            with pytest.raises(MaybeWritten, match="same command id"):
                await do(one, complete())
            took_s = time.monotonic() - before
        assert took_s < IN_TIME_S
        done = await until_told(one, complete())
        assert (done.outcome, done.state.task.status) == (Outcome.ACCEPTED, Status.COMPLETED)
        assert [message.entry.command for message in await stored(one.js)] == ["CreateTask", "CompleteTask"]
        assert 2 in heard


@pytest.mark.requirement("T1")
async def test_two_callers_of_one_command_are_told_the_same_of_it(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """The second must not hear "nothing was written" of what the first sent."""
    async with parts(fresh_nats.url, tmp_path, settings=QUICK) as one:
        await do(one, create())
        with suspended(fresh_nats):
            both = await asyncio.gather(do(one, complete()), do(one, complete()), return_exceptions=True)
        assert [type(error) for error in both] == [MaybeWritten, MaybeWritten]
        assert (await until_told(one, complete())).outcome is Outcome.ACCEPTED


@pytest.mark.requirement("T1")
async def test_what_was_not_written_is_not_written_later(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """`NothingWritten` is a promise: the caller may turn away, and nothing of it happens behind their back."""
    async with parts(fresh_nats.url, tmp_path, settings=QUICK) as one, parts(fresh_nats.url, tmp_path) as other:
        await do(other, create())
        with suspended(fresh_nats):
            error = await unavailable(do(one, complete("never")))
        assert isinstance(error, NothingWritten)
        assert "nothing was written" in error.message
        assert (await until_told(one, report("r"))).state.task.seq == 2  # took its turn after the one given up
        assert [message.entry.command for message in await stored(one.js)] == ["CreateTask", "ReportStatus"]


@pytest.mark.requirement("T1")
async def test_the_ledger_stops_resolving_at_the_end_of_its_budget(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """Every retry has a bound (style 7); what came of it is known when the command comes again."""
    settings = Settings(answer_within_ms=200, resolve_for_ms=1_000)
    async with parts(fresh_nats.url, tmp_path, settings=settings) as one:
        await do(one, create())
        with suspended(fresh_nats):
            begun = time.monotonic()
            while time.monotonic() < begun + 2.5:
                assert isinstance(await unavailable(do(one, complete())), MaybeWritten)
        done = await until_told(one, complete())
        assert done.outcome is Outcome.ACCEPTED
        assert len(await stored(one.js)) == 2


@pytest.mark.requirement("T1")
async def test_every_acknowledged_command_survives_a_killed_broker_once(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """kill -9 with 64 commands in flight; the same ids are sent until each has its outcome."""
    async with parts(fresh_nats.url, tmp_path) as one:
        refs = [ref_of(str(number)) for number in range(16)]
        await asyncio.gather(*(do(one, create(), ref) for ref in refs))
        sent = [(ref, report(f"r{number}")) for ref in refs for number in range(4)]
        told = [asyncio.create_task(until_told(one, command, ref)) for ref, command in sent]
        await asyncio.wait(told, return_when=asyncio.FIRST_COMPLETED)
        fresh_nats.kill()
        fresh_nats.restart()
        done = await asyncio.gather(*told)
        assert {one.outcome for one in done} == {Outcome.ACCEPTED}
        messages = await stored(one.js)
        states = folded(messages)
        assert {state.task.seq for state in states.values()} == {5}
        assert len(messages) == 16 * 5


async def limited(one: Parts, most: int) -> None:
    """Let the trail take no more than so many messages."""
    info = await one.js.stream_info(TRAIL)
    info.config.max_msgs = most
    await one.js.update_stream(info.config)  # pyright: ignore[reportUnknownMemberType]  # nats-py's options have no types


@pytest.mark.requirement("T1")
async def test_a_full_trail_fails_closed_and_says_that_nothing_was_written(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Design section 8: `discard: new` fails closed. It is one of our errors, for commands and for notes."""
    async with parts(fresh_nats.url, tmp_path) as one:
        await do(one, create())
        await limited(one, 1)
        with pytest.raises(NothingWritten, match=r"maximum messages exceeded.*nothing was written"):
            await do(one, complete())
        with pytest.raises(NothingWritten, match="maximum messages exceeded"):
            await one.ledger.note(control_subject("_"), "_", authority(), ())
        await limited(one, -1)
        assert (await do(one, complete())).outcome is Outcome.ACCEPTED


@pytest.mark.requirement("T1")
async def test_a_missing_trail_is_no_missing_task(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """Nobody may take a broker without the stream for a trail without the task."""
    async with parts(fresh_nats.url, tmp_path, settings=QUICK) as one:
        await do(one, create())
        await one.js.delete_stream(TRAIL)
        with pytest.raises(NotFoundError, match="stream not found"):
            await one.states.by_handle(REF)
        with pytest.raises(Unavailable):
            await do(one, complete())
        await trail.create(one.js)
        assert await one.states.by_handle(REF) is None


async def test_an_entry_larger_than_the_broker_takes_is_too_large(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """Not "unavailable", which the caller would repeat for ever."""
    async with parts(fresh_nats.url, tmp_path) as one:
        await do(one, create())
        huge = {"result": bytes(one.nc.max_payload)}
        with pytest.raises(TooLarge, match="larger than the broker takes"):
            await one.ledger.submit(TENANT, REF, complete(), authority(), huge)
        assert (await do(one, complete())).outcome is Outcome.ACCEPTED


@pytest.mark.requirement("T1")
async def test_a_note_is_written_once_though_its_acknowledgement_was_lost(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """It is published again under its own id until it is acknowledged, or the caller is told."""
    async with parts(fresh_nats.url, tmp_path) as one, parts(fresh_nats.url, tmp_path, settings=QUICK) as quick:
        with suspended(fresh_nats):
            lost = asyncio.create_task(one.ledger.note(control_subject("_"), "_", authority(), ()))
            done, _ = await asyncio.wait([lost], timeout=1.3)
            assert not done
        made = await lost
        assert [message.entry.id for message in await stored(one.js)] == [made]
        with suspended(fresh_nats):
            error = await unavailable(quick.ledger.note(control_subject("_"), "_", authority(), ()))
        assert isinstance(error, MaybeWritten)


@pytest.mark.requirement("L7")
async def test_one_command_is_one_entry_however_many_events_it_causes(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """Design section 7: a crash never leaves half a command."""
    async with parts(fresh_nats.url, tmp_path) as one:
        await do(one, create())
        asks = tuple(commands.Ask(key=key, method=ELICITATION, request=sealed(f"request.{key}")) for key in "ab")
        await do(one, commands.RequestInput(id="ask", asks=asks))
        said = tuple(commands.Answer(key=key, action="accept", response=sealed(f"response.{key}")) for key in "ab")
        await do(one, commands.RespondToInput(id="answer", answers=said))
        entries = [message.entry for message in await stored(one.js)]
        assert [len(entry.events) for entry in entries] == [1, 2, 3]
