"""The servers that tests run on: `tasktrail.testing.nats` and its fixtures."""

import asyncio
import time
from pathlib import Path

import nats
import psutil
import pytest
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from tasktrail.testing.nats import NatsCluster, NatsServer


async def quiet(_: Exception) -> None:
    """Disconnections are what these tests cause."""


async def publish_until_acknowledged(js: JetStreamContext, subject: str, name: str, within_s: float = 30.0) -> int:
    """Publish as the Ledger must during an election: the same message id until it is acknowledged."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return (await js.publish(subject, name.encode(), headers={"Nats-Msg-Id": name}, timeout=1)).seq
        except (NatsError, TimeoutError) as error:
            if time.monotonic() > deadline:
                pytest.fail(f"not acknowledged within {within_s} s; seen last: {error!r}")
            await asyncio.sleep(0.02)


async def test_a_fresh_server_is_empty_and_keeps_its_store_through_kill_and_restart(fresh_nats: NatsServer) -> None:
    """Its url carries the credentials and stays the same."""
    url = fresh_nats.url
    nc = await nats.connect(url)
    js = nc.jetstream()
    assert (await js.account_info()).streams == 0
    await js.add_stream(name="S", subjects=["s.>"])
    await js.publish("s.a", b"kept")
    await nc.close()
    fresh_nats.kill()
    assert not fresh_nats.broker.is_alive()
    fresh_nats.restart()
    assert fresh_nats.url == url
    nc = await nats.connect(url)
    assert (await nc.jetstream().get_last_msg("S", "s.a")).data == b"kept"
    await nc.close()


async def test_the_sessions_server_is_shared(nats_server: NatsServer) -> None:
    """One real server per session (style 12)."""
    nc = await nats.connect(nats_server.url)
    assert nc.is_connected
    await nc.close()


def test_a_server_leaves_nothing_behind() -> None:
    """Neither process nor directory."""
    with NatsServer() as server:
        directory, process = server.store_dir.parent, psutil.Process(server.broker.pid)
    assert not directory.exists()
    assert not process.is_running()


async def test_publishing_resumes_after_the_leaders_death_without_loss_or_duplicate(nats_cluster: NatsCluster) -> None:
    """Measured facts: after kill -9 of the leader publishing resumed in 4.3-6.9 s, nothing lost, nothing twice."""
    nc = await nats.connect(nats_cluster.urls, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=quiet)
    js = nc.jetstream()
    await js.add_stream(StreamConfig(name="R3", subjects=["r3.>"], num_replicas=3))
    names = [f"event-{number}" for number in range(200)]
    for name in names[:100]:
        await publish_until_acknowledged(js, "r3.a", name)
    dead = await nats_cluster.leader("R3")
    nats_cluster.kill(dead)
    assert not nats_cluster.is_alive(dead)
    for name in names[100:]:
        await publish_until_acknowledged(js, "r3.a", name)
    assert await nats_cluster.leader("R3") != dead
    bodies = [(await js.get_msg("R3", seq=seq)).data for seq in range(1, len(names) + 1)]
    assert bodies == [name.encode() for name in names]
    assert (await js.stream_info("R3")).state.messages == len(names)
    await nc.close()


async def test_a_killed_node_comes_back_under_its_address(nats_cluster: NatsCluster) -> None:
    """Runs on the same cluster as the test above, which killed a node: the fixture healed it."""
    assert all(nats_cluster.is_alive(node) for node in nats_cluster.nodes)
    nats_cluster.kill("n1")
    nats_cluster.restart("n1")
    nc = await nats.connect(nats_cluster.url("n1"))
    assert (await nc.jetstream().account_info()).api.errors >= 0
    await nc.close()


async def test_a_leader_that_does_not_exist_is_a_timeout_that_says_what_was_seen(nats_cluster: NatsCluster) -> None:
    """Bounded waits print what was seen (style 12)."""
    with pytest.raises(TimeoutError, match=r"no leader of ABSENT within 0.5 s; seen last: .*NotFound"):
        await nats_cluster.leader("ABSENT", within_s=0.5)


def test_a_cluster_leaves_nothing_behind() -> None:
    """Neither processes nor directories; the processes of other clusters are not its own."""
    others = set(psutil.Process().children())
    with NatsCluster() as cluster:
        processes = set(psutil.Process().children()) - others
        directories = {Path(process.cwd()) for process in processes}
        assert {directory.name for directory in directories} == set(cluster.nodes)
    assert not [process for process in processes if process.is_running()]
    assert not [directory for directory in directories if directory.parent.exists()]
