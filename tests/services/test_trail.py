"""What the streams must look like. Source: design sections 5, 7 and 8 (never created or changed on start)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.errors import Error as NatsError
from nats.js import api
from nats.js.errors import APIError

from tasktrail.events.subjects import CURRENT, KEYS, PAYLOADS, TIMERS, TRAIL, WORK, control_subject
from tasktrail.services import trail
from tasktrail.services.connection import Connection
from tasktrail.services.settings import Settings
from tasktrail.testing.nats import NatsCluster, NatsServer
from tasktrail.testing.parts import Parts, parts

NAMES = {TRAIL, KEYS, TIMERS, WORK, f"KV_{CURRENT}", f"OBJ_{PAYLOADS}"}


@pytest.fixture
async def one(fresh_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Parts]:
    """Give a process on streams as they should be."""
    async with parts(fresh_nats.url, tmp_path) as made:
        yield made


async def changed(at: Parts, name: str, **fields: object) -> None:
    """The stream as an operator might leave it."""
    config = (await at.js.stream_info(name)).config
    for field, value in fields.items():
        setattr(config, field, value)
    await at.js.update_stream(config)  # pyright: ignore[reportUnknownMemberType]  # nats-py's options have no types


@pytest.mark.requirement("T1")
async def test_what_is_created_is_as_it_should_be(fresh_nats: NatsServer) -> None:
    """One sentence for each stream that is missing, none afterwards; creating again touches nothing."""
    nc = await Connection.from_text(fresh_nats.url).connect("test")
    js = nc.jetstream()  # pyright: ignore[reportUnknownMemberType]  # nats-py's options have no types
    assert sorted(await trail.differences(js)) == sorted(f"stream {name} is missing" for name in NAMES)
    assert set(await trail.create(js, only=frozenset({TRAIL}))) == {TRAIL}
    assert set(await trail.create(js)) == NAMES - {TRAIL}
    assert await trail.differences(js) == []
    made = {name: (await js.stream_info(name)).created for name in NAMES}
    assert await trail.create(js) == []
    assert {name: (await js.stream_info(name)).created for name in NAMES} == made
    await nc.close()


@pytest.mark.requirement("T1", "O1")
async def test_streams_are_made_once_the_cluster_takes_them() -> None:
    """A cluster without most of its nodes takes none; whoever has time waits for it, whoever has not is told."""
    with NatsCluster() as cluster:
        nc = await Connection.from_text(cluster.urls[0]).connect("test")
        js = nc.jetstream()  # pyright: ignore[reportUnknownMemberType]  # nats-py's options have no types
        for node in cluster.nodes[1:]:
            cluster.kill(node)
        with pytest.raises(NatsError):
            await trail.create(js, replicas=3)
        creating = asyncio.create_task(trail.create(js, replicas=3, within_s=120))
        for node in cluster.nodes[1:]:
            cluster.restart(node)
        assert set(await creating) >= NAMES - {TRAIL}  # which may have been made by what was given up before
        assert await trail.differences(js, replicas=3) == []
        await nc.close()


@pytest.mark.requirement("T1")
async def test_the_trail_cannot_be_deleted_from_or_purged(one: Parts) -> None:
    """Promise 6 begins here: `deny_delete`, `deny_purge`, and fail closed when full."""
    await one.js.publish(control_subject("_"), b"x")
    with pytest.raises(APIError, match="message delete not permitted"):
        await one.js.delete_msg(TRAIL, 1)
    with pytest.raises(APIError, match="stream purge not permitted"):
        await one.js.purge_stream(TRAIL)
    config = (await one.js.stream_info(TRAIL)).config
    assert (config.storage, config.discard) == (api.StorageType.FILE, api.DiscardPolicy.NEW)
    assert (config.duplicate_window or 0) >= 2 * Settings().resolve_for_ms / 1000
    assert config.subjects == ["trail.1.>"]


@pytest.mark.requirement("R1")
async def test_keys_can_be_erased(one: Parts) -> None:
    """Design section 7: a plain stream without `deny_delete`."""
    await one.js.publish("keys.1.x", b"wrapped")
    assert await one.js.delete_msg(KEYS, 1)


@pytest.mark.requirement("P1")
async def test_the_stream_of_timers_keeps_the_last_of_each_until_it_is_dealt_with(one: Parts) -> None:
    """Facts that were tried: schedules in a stream of their own; publishing the same subject again moves the timer."""
    config = (await one.js.stream_info(TIMERS)).config
    assert (config.allow_msg_schedules, config.allow_msg_ttl, config.max_msgs_per_subject) == (True, True, 1)
    assert (config.retention, config.discard) == (api.RetentionPolicy.WORK_QUEUE, api.DiscardPolicy.OLD)
    assert await trail.differences(one.js) == []


@pytest.mark.requirement("T1")
@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        (TRAIL, {"max_age": 3600.0}, "stream TRAIL: max_age is 3600.0, which would lose entries"),
        (TRAIL, {"max_msgs": 10}, "stream TRAIL: max_msgs is 10, which would lose entries"),
        (TRAIL, {"max_bytes": 10_000}, "stream TRAIL: max_bytes is 10000, which would lose entries"),
        (TRAIL, {"max_msgs_per_subject": 1}, "stream TRAIL: max_msgs_per_subject is 1, should be"),
        (TRAIL, {"discard": api.DiscardPolicy.OLD}, "stream TRAIL: discard is old, should be new"),
        (TRAIL, {"duplicate_window": 1.0}, "stream TRAIL: duplicate_window is 1.0, should be 120.0"),
        (TRAIL, {"allow_direct": False}, "stream TRAIL: allow_direct is False, should be True"),
        (TRAIL, {"subjects": ["trail.1.task.>"]}, "stream TRAIL: subjects is ['trail.1.task.>'], should be"),
        (KEYS, {"max_msgs": 10}, "stream KEYS: max_msgs is 10, which would lose keys of tasks"),
        (TIMERS, {"max_age": 3600.0}, "stream TIMERS: max_age is 3600.0, which would lose timers"),
        (KEYS, {"deny_delete": True}, "stream KEYS: deny_delete is True, should be False"),
    ],
)
async def test_each_difference_is_one_sentence(one: Parts, name: str, fields: dict[str, object], said: str) -> None:
    """`up` refuses on them and says so (issue "main job")."""
    await changed(one, name, **fields)
    (found,) = await trail.differences(one.js)
    assert found.startswith(said)


async def test_a_cluster_gets_as_many_copies_as_it_is_asked_for(nats_cluster: NatsCluster, tmp_path: Path) -> None:
    """Design section 9: three nodes, R3."""
    async with parts(nats_cluster.urls, tmp_path, replicas=3) as made:
        copies = {name: (await made.js.stream_info(name)).config.num_replicas for name in NAMES}
        assert set(copies.values()) == {3}
        assert await trail.differences(made.js) == []


def test_every_stream_is_described() -> None:
    """What an operator sees in `nats stream ls`."""
    wanted = trail.desired()
    assert wanted.keys() == NAMES
    assert all(config.name == name and config.description for name, config in wanted.items())
    assert trail.current_bucket(3).num_replicas == trail.desired(3)[TRAIL].num_replicas == 3
