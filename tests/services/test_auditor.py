"""The auditor on a real nats-server and a real DuckDB: design.md sections 3 and 8, promise 8, issue "main job"."""

import asyncio
import contextlib
import random
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import NotFoundError
from tests.projections.audit.histories import Trail, mixed
from tests.projections.audit.stores import contents

from tasktrail.events.entry import KEY_ID, MSG_ID, SIGNATURE
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.errors import AnotherTrail, AuditStoreError
from tasktrail.projections.audit.store import AuditStore
from tasktrail.services import auditor as auditor_module
from tasktrail.services.auditor import Auditor
from tasktrail.services.connection import Connection
from tasktrail.testing.nats import NatsCluster, NatsServer
from tasktrail.testing.waiting import until

SOON_S = 20.0


async def make_stream(js: JetStreamContext, replicas: int = 1) -> None:
    await js.add_stream(StreamConfig(name="TRAIL", subjects=["trail.1.>"], num_replicas=replicas))  # pyright: ignore[reportUnknownMemberType]  # nats-py's options have no types


async def publish(js: JetStreamContext, messages: Sequence[Message]) -> None:
    """As the Ledger does, one after the other; again after an outage, under the same message id."""
    for message in messages:
        await until(partial(taken, js, message), what=f"message {message.stream_seq} is taken")


async def taken(js: JetStreamContext, message: Message) -> bool:
    """Whether the stream acknowledges it."""
    headers = {MSG_ID: message.msg_id, KEY_ID: message.key_id, SIGNATURE: message.signature}
    with contextlib.suppress(NatsError, TimeoutError):
        await js.publish(message.subject, message.body, headers=headers, timeout=1)
        return True
    return False


async def connect(url: str) -> Client:
    """A connection that comes back by itself, as the service has it."""
    return await Connection.from_text(url).connect("test")


@pytest.fixture
async def nc(fresh_nats: NatsServer) -> AsyncIterator[Client]:
    client = await connect(fresh_nats.url)
    yield client
    await client.close()


@pytest.fixture
async def js(nc: Client) -> JetStreamContext:
    context = JetStreamContext(nc)
    await make_stream(context)
    return context


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.duckdb"


@contextlib.asynccontextmanager
async def auditing(
    nc: Client, path: Path, progress: Callable[[int, int], None] | None = None, batch: int = 100
) -> AsyncGenerator[Auditor]:
    store = AuditStore.open(path)
    auditor = Auditor(nc, store, progress=progress, batch=batch)
    try:
        await auditor.start()
        yield auditor
    finally:
        await auditor.stop()
        store.close()


async def assert_equal_to_a_rebuild(js: JetStreamContext, path: Path, trail: Trail, tmp_path: Path) -> None:
    created = (await js.stream_info("TRAIL")).created
    assert created is not None
    rebuilt = AuditStore.open(tmp_path / "rebuilt.duckdb")
    rebuilt.bind("TRAIL", created, len(trail.messages))
    rebuilt.append(trail.messages)
    assert rebuilt.counts().rejected == 0
    rebuilt.close()
    found, wanted = contents(path), contents(tmp_path / "rebuilt.duckdb")
    for table, rows in wanted.items():
        assert found[table] == rows, table


@pytest.mark.requirement("T1", "T6")
async def test_it_catches_up_follows_and_equals_a_rebuild_from_the_trail(
    nc: Client, js: JetStreamContext, path: Path, tmp_path: Path
) -> None:
    """Design promise 8."""
    trail = mixed(500)
    await publish(js, trail.messages[:350])
    seen: list[tuple[int, int]] = []

    def progress(position: int, target: int) -> None:
        seen.append((position, target))

    async with auditing(nc, path, progress) as auditor:
        assert auditor.target == 350
        assert await auditor.wait_for(350, SOON_S)
        assert auditor.ready
        await publish(js, trail.messages[350:])
        assert await auditor.wait_for(500, SOON_S), auditor.position
        assert (auditor.position, await auditor.lag()) == (500, 0)
        assert not await auditor.wait_for(501, 0.05)
    assert seen[-1][0] >= 350
    assert seen == sorted(seen)
    assert {target for _, target in seen} == {350}
    assert len(seen) <= 5, "progress is told while it catches up, not afterwards"
    await assert_equal_to_a_rebuild(js, path, trail, tmp_path)


async def test_it_goes_on_from_the_stores_position_and_rebuilds_a_missing_file(
    nc: Client, js: JetStreamContext, path: Path, tmp_path: Path
) -> None:
    trail = mixed(300)
    for start in range(0, 300, 100):
        await publish(js, trail.messages[start : start + 100])
        async with auditing(nc, path) as auditor:
            assert await auditor.wait_for(start + 100, SOON_S)
    await assert_equal_to_a_rebuild(js, path, trail, tmp_path)
    before = contents(path)
    await asyncio.to_thread(path.unlink)
    async with auditing(nc, path) as auditor:
        assert await auditor.wait_for(300, SOON_S)
    assert contents(path) == before


async def test_it_survives_a_broker_killed_in_the_middle(
    fresh_nats: NatsServer, nc: Client, js: JetStreamContext, path: Path, tmp_path: Path
) -> None:
    """Issue "main job": kill -9 of the nats-server; the service goes on by itself."""
    trail = mixed(600)
    async with auditing(nc, path) as auditor:
        publishing = asyncio.create_task(publish(js, trail.messages))
        for at in (100, 300):
            assert await auditor.wait_for(at, SOON_S), auditor.position
            fresh_nats.kill()
            fresh_nats.restart()
        await publishing
        assert await auditor.wait_for(600, SOON_S), (auditor.position, auditor.failed)
    await assert_equal_to_a_rebuild(js, path, trail, tmp_path)


async def test_it_survives_an_election(nats_cluster: NatsCluster, path: Path, tmp_path: Path) -> None:
    """Three replicas: the node that leads the stream is killed while it is read."""

    nc = await connect(",".join(nats_cluster.urls))
    js = JetStreamContext(nc)
    await make_stream(js, replicas=3)
    trail = mixed(400)
    async with auditing(nc, path) as auditor:
        await publish(js, trail.messages[:100])
        assert await auditor.wait_for(100, SOON_S), auditor.position
        publishing = asyncio.create_task(publish(js, trail.messages[100:]))
        assert await auditor.wait_for(150, SOON_S), auditor.position
        nats_cluster.kill(await nats_cluster.leader("TRAIL"))
        await publishing
        assert await auditor.wait_for(400, 2 * SOON_S), (auditor.position, auditor.failed)
    await assert_equal_to_a_rebuild(js, path, trail, tmp_path)
    await nc.close()


INGEST = """
import asyncio, sys, nats
from tasktrail.projections.audit.store import AuditStore
from tasktrail.services.auditor import Auditor

async def main():
    auditor = Auditor(await nats.connect(sys.argv[1]), AuditStore.open(sys.argv[2]), batch=int(sys.argv[3]))
    await auditor.start()
    for position in range(auditor.target + 1):
        if auditor.position < position:
            await auditor.wait_for(position, 60)
            print(auditor.position, flush=True)
    await auditor.stop()

asyncio.run(main())
"""


@pytest.mark.requirement("T6")
async def test_a_process_killed_while_it_reads_leaves_nothing_out_and_nothing_twice(
    fresh_nats: NatsServer, js: JetStreamContext, path: Path, tmp_path: Path
) -> None:
    """Design section 8: seven kill -9s, 0 gaps, 0 duplicates."""
    trail, draw = mixed(3_000), random.Random(7)  # noqa: S311 - the same moments every time
    await publish(js, trail.messages)
    killed, position = 0, 0
    for _ in range(60):
        reading = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", INGEST, fresh_nats.url, str(path), str(draw.choice((20, 50, 100)))),
            stdout=asyncio.subprocess.PIPE,
        )
        assert reading.stdout is not None
        for _ in range(draw.randrange(1, 6)):
            line = await asyncio.wait_for(reading.stdout.readline(), SOON_S)
            position = int(line or position)
        await asyncio.sleep(draw.random() * 0.02)  # anywhere within a transaction, not just after one
        with contextlib.suppress(ProcessLookupError):
            reading.send_signal(signal.SIGKILL)
        rest = await reading.stdout.read()
        killed += await reading.wait() == -signal.SIGKILL
        if b"3000" in rest.split() or position == 3_000:
            break
    assert killed >= 7, f"only {killed} of the processes were still reading when killed"
    store = AuditStore.open(path)
    counts, last = store.counts(), store.last_seq
    store.close()
    assert (counts.entries, counts.rejected, last) == (3_000, 0, 3_000)
    await assert_equal_to_a_rebuild(js, path, trail, tmp_path)


class Proxy:
    """A way to the broker that can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self._pipes: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def cut(self) -> None:
        """Drop every connection, and what was on its way."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, before = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, before]
        for one, other in ((reader, before), (behind, writer)):
            pipe = asyncio.create_task(self._pipe(one, other))
            self._pipes.add(pipe)

    @staticmethod
    async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4_096):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


async def test_messages_lost_with_a_connection_are_read_again(
    fresh_nats: NatsServer, js: JetStreamContext, path: Path, tmp_path: Path
) -> None:
    trail = mixed(4_000)
    await publish(js, trail.messages)
    async with Proxy(fresh_nats.broker.port) as proxy:
        nc = await connect(fresh_nats.url.rsplit(":", 1)[0] + f":{proxy.port}")
        async with auditing(nc, path, batch=200) as auditor:
            for at in (100, 1_000, 2_500):
                assert await auditor.wait_for(at, SOON_S), (auditor.position, auditor.failed)
                proxy.cut()
            assert await auditor.wait_for(4_000, SOON_S), (auditor.position, auditor.failed)
        await nc.close()
    await assert_equal_to_a_rebuild(js, path, trail, tmp_path)


async def test_messages_the_client_dropped_are_read_again(
    nc: Client, js: JetStreamContext, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deliveries are not acknowledged: what a slow client drops must be seen in the consumer's own count."""
    monkeypatch.setattr(auditor_module, "REQUEST_BYTES_MAX", 2_000)  # and so what may wait in the client, in bytes
    monkeypatch.setattr(auditor_module, "PAUSE_S", 0.001)
    trail = mixed(200)
    await publish(js, trail.messages)
    attached: list[str] = []
    created = "$JS.EVENT.ADVISORY.CONSUMER.CREATED.TRAIL.>"
    watcher = await nc.subscribe(created, cb=_noting(attached))  # pyright: ignore[reportUnknownMemberType]  # nats-py's futures
    async with auditing(nc, path) as auditor:
        assert await auditor.wait_for(200, SOON_S), (auditor.position, auditor.failed)
    await watcher.unsubscribe()
    assert len(attached) > 1, "nothing was dropped"
    await assert_equal_to_a_rebuild(js, path, trail, tmp_path)


def _noting(seen: list[str]) -> Callable[[Msg], Awaitable[None]]:
    async def note(msg: Msg) -> None:
        seen.append(msg.subject)

    return note


async def test_a_replaced_stream_is_refused_at_the_start(nc: Client, js: JetStreamContext, path: Path) -> None:
    await publish(js, mixed(20).messages)
    async with auditing(nc, path) as auditor:
        assert await auditor.wait_for(20, SOON_S)
    before = contents(path)
    await js.delete_stream("TRAIL")
    await make_stream(js)
    await publish(js, mixed(40, seed=2).messages)
    with pytest.raises(AnotherTrail, match="move it away"):
        async with auditing(nc, path):
            pass
    assert contents(path) == before


async def test_a_stream_replaced_while_it_reads_ends_it_and_says_so(
    nc: Client, js: JetStreamContext, path: Path
) -> None:
    await publish(js, mixed(20).messages)
    async with auditing(nc, path) as auditor:
        assert await auditor.wait_for(20, SOON_S)
        await js.delete_stream("TRAIL")
        await make_stream(js)
        await publish(js, mixed(40, seed=2).messages)
        with pytest.raises(AnotherTrail):
            await asyncio.wait_for(asyncio.shield(auditor.ended), SOON_S)
        assert isinstance(auditor.failed, AnotherTrail)
        with pytest.raises(AnotherTrail):
            await auditor.wait_for(21, SOON_S)
        assert auditor.position == 20


async def test_a_store_that_cannot_be_written_ends_it_and_says_so(nc: Client, js: JetStreamContext, path: Path) -> None:
    async with auditing(nc, path) as auditor:
        auditor.store.close()
        waiting = asyncio.create_task(auditor.wait_for(1, SOON_S))
        await publish(js, mixed(1).messages)
        with pytest.raises(AuditStoreError, match="cannot be written"):
            await waiting
        assert auditor.ended.done()


async def test_a_missing_stream_is_an_error_at_the_start(nc: Client, path: Path) -> None:
    with pytest.raises(NotFoundError):
        async with auditing(nc, path):
            pass


async def test_a_hole_in_the_middle_is_recorded_and_an_archived_beginning_is_none(
    nc: Client, js: JetStreamContext, path: Path
) -> None:
    trail = Trail()
    for _ in range(10):
        trail.create()
    await publish(js, trail.messages)
    for seq in (1, 2, 6, 7):
        await js.delete_msg("TRAIL", seq)
    async with auditing(nc, path) as auditor:
        assert await auditor.wait_for(10, SOON_S)
        assert auditor.store.counts().tasks == 6
    assert [row[:2] + row[5:6] for row in contents(path)["rejected"]] == [(6, 2, "missing")]


async def test_messages_that_are_no_entries_do_not_stop_it(nc: Client, js: JetStreamContext, path: Path) -> None:
    trail = Trail()
    ref = trail.create()
    await publish(js, trail.messages)
    await js.publish(trail.messages[0].subject, b"\x00\xff")
    await js.publish("trail.1.nonsense", b"{}", headers={MSG_ID: "x"})
    await js.publish("trail.1.denied.acme", trail.messages[0].body)
    async with auditing(nc, path) as auditor:
        assert await auditor.wait_for(4, SOON_S)
        timeline = await asyncio.to_thread(auditor.store.timeline, ref)
        assert timeline is not None
        assert [step.kind for step in timeline.steps] == ["transition", "anomaly"]
        assert auditor.store.counts().rejected == 3


async def test_stopping_is_quick_and_leaves_no_consumer_behind(nc: Client, js: JetStreamContext, path: Path) -> None:
    await publish(js, mixed(50).messages)
    async with auditing(nc, path) as auditor:
        assert await auditor.wait_for(50, SOON_S)
        (consumer,) = await js.consumers_info("TRAIL")
        assert consumer.name.startswith("auditor-")
        async with asyncio.timeout(10):
            await auditor.stop()
        assert await js.consumers_info("TRAIL") == []
        assert auditor.ended.done()
        assert auditor.failed is None
        assert not await auditor.wait_for(51, SOON_S)
