"""The Ledger on three replicas, made of plain processes. Source: design section 8, measured facts.

With wildcard filters two writers both won on three replicas; a retry answers `duplicate` there, not a wrong sequence;
during an election nothing answers for seconds.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import pytest
from tests.services.orders import IN_TIME_S, do, ref_of, report, until_told

from tasktrail.events import commands
from tasktrail.events.errors import MaybeWritten, Unavailable
from tasktrail.events.subjects import TRAIL, control_subject
from tasktrail.events.task import Outcome
from tasktrail.services.ledger import Recorded
from tasktrail.testing.memory import Stored, folded
from tasktrail.testing.nats import NatsCluster
from tasktrail.testing.parts import Parts, parts, stored
from tasktrail.testing.scenario import authority, create


@asynccontextmanager
async def replicas(cluster: NatsCluster, data: Path, count: int) -> AsyncGenerator[list[Parts]]:
    """Several processes' parts; the trail on three nodes."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(parts(cluster.urls, data, replicas=3)) for _ in range(count)]


async def of_tasks(one: Parts, *refs: str) -> list[Stored]:
    """The trail's messages of these tasks; its chains hold."""
    messages = await stored(one.js)
    folded(messages)
    return [message for message in messages if message.entry.task_ref in refs]


def processes() -> dict[str, psutil.Process]:
    """The nodes' processes by name: each runs in a directory of its own."""
    children = [child for child in psutil.Process().children() if child.name() == "nats-server"]
    return {Path(child.cwd()).name: child for child in children}


@contextmanager
def suspended(*nodes: str) -> Generator[None]:
    """Nodes that do not answer, and do not know it."""
    pids = [processes()[node].pid for node in nodes]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.requirement("T1", "L2")
async def test_writers_on_one_task_are_ordered_and_lose_nothing(nats_cluster: NatsCluster, tmp_path: Path) -> None:
    """One subject per task: exactly one of two writers wins each place in the chain."""
    ref = ref_of("one")
    async with replicas(nats_cluster, tmp_path, 3) as several:
        made = await asyncio.gather(*(until_told(one, create(), ref) for one in several for _ in range(4)))
        assert len({done.entry_id for done in made}) == 1
        sent = [(one, report(f"{number}-{each}")) for number, one in enumerate(several) for each in range(10)]
        done = await asyncio.gather(*(until_told(one, command, ref) for one, command in sent))
        assert {one.outcome for one in done} == {Outcome.ACCEPTED}
        messages = await of_tasks(several[0], ref)
        assert len(messages) == 1 + len(sent)
        assert {one.entry_id for one in done} == {message.entry.id for message in messages[1:]}


@pytest.mark.requirement("T1")
@pytest.mark.parametrize("known", [True, False])
async def test_a_retry_that_the_stream_calls_a_duplicate_returns_the_outcome(
    nats_cluster: NatsCluster, tmp_path: Path, *, known: bool
) -> None:
    """On three replicas the message id is looked at before the sequence: `duplicate: true`."""
    ref = ref_of(f"duplicate {known}")
    async with replicas(nats_cluster, tmp_path, 2) as (one, other):
        await until_told(one, create(), ref)
        if known:
            await do(other, create(), ref)
        await until_told(one, report("r"), ref)
        late = await until_told(other, report("r"), ref)
        assert late.repeated
        assert late.outcome is Outcome.ACCEPTED
        assert len(await of_tasks(one, ref)) == 2


@pytest.mark.requirement("L5")
async def test_another_replica_sees_a_change_the_moment_it_is_acknowledged(
    nats_cluster: NatsCluster, tmp_path: Path
) -> None:
    """Polls ask the leader (design section 3): direct reads of a follower may be behind."""
    async with replicas(nats_cluster, tmp_path, 3) as several:
        for number in range(20):
            ref = ref_of(f"seen {number}")
            steps: tuple[commands.TaskCommand, ...] = (create(), report("r"))
            for step, command in enumerate(steps):
                done = await until_told(several[(number + step) % 3], command, ref)
                polled = await asyncio.gather(*(one.states.by_handle(ref) for one in several))
                assert polled == [done.state] * 3


@pytest.mark.requirement("T1")
async def test_without_a_quorum_callers_are_answered_in_time_and_learn_the_outcome_later(
    nats_cluster: NatsCluster, tmp_path: Path
) -> None:
    """The leader takes the message and cannot replicate it: it may yet be written, and a retry is "in process"."""
    ref = ref_of("quorum")
    async with replicas(nats_cluster, tmp_path, 1) as (one,):
        await until_told(one, create(), ref)
        leader = await nats_cluster.leader(TRAIL)
        with suspended(*(node for node in nats_cluster.nodes if node != leader)):
            begun = time.monotonic()
            with pytest.raises(MaybeWritten):
                await do(one, report("r"), ref)
            assert time.monotonic() - begun < IN_TIME_S
        done = await until_told(one, report("r"), ref)
        assert done.outcome is Outcome.ACCEPTED
        assert [message.entry.command for message in await of_tasks(one, ref)] == ["CreateTask", "ReportStatus"]


async def settled_note(one: Parts, name: str) -> None:
    """A note that is sent until it is acknowledged; each sending is a note of its own."""
    deadline = time.monotonic() + 60.0
    while True:
        try:
            await one.ledger.note(control_subject(name), name, authority(), ())
        except Unavailable:
            if time.monotonic() > deadline:
                raise
        else:
            return


@pytest.mark.requirement("T1", "L2")
async def test_the_leaders_death_under_traffic_loses_and_repeats_nothing(
    nats_cluster: NatsCluster, tmp_path: Path
) -> None:
    """64 commands in flight when the leader is killed: every acknowledged one is there exactly once, in its chain."""
    refs = [ref_of(f"death {number}") for number in range(16)]
    async with replicas(nats_cluster, tmp_path, 2) as several:
        await asyncio.gather(*(until_told(several[0], create(), ref) for ref in refs))
        sent = [(ref, report(f"r{number}")) for ref in refs for number in range(16)]
        free = asyncio.Semaphore(64)

        async def one_of(number: int, ref: str, command: commands.TaskCommand) -> Recorded:
            async with free:
                return await until_told(several[number % 2], command, ref)

        told = [asyncio.create_task(one_of(number, *each)) for number, each in enumerate(sent)]
        notes = asyncio.create_task(settled_note(several[0], "death"))
        while sum(task.done() for task in told) < 40:
            await asyncio.wait(told, return_when=asyncio.FIRST_COMPLETED, timeout=0.01)
        nats_cluster.kill(await nats_cluster.leader(TRAIL))
        done = await asyncio.gather(*told)
        await notes
        assert {one.outcome for one in done} == {Outcome.ACCEPTED}
        messages = await of_tasks(several[1], *refs)
        assert len(messages) == len(refs) * 17
        assert {one.entry_id for one in done} < {message.entry.id for message in messages}
