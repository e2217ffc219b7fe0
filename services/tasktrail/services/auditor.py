"""The auditor: the trail into the audit store.

Guarantees: every message of the stream is read once, in order, from the store's own position, whatever dies meanwhile:
position and rows are one transaction. A stream that was replaced or cut is refused, never mixed in. A lost connection,
a restarted broker and an election are got over; what cannot be is in `failed`, and `ended` says so. Nothing of the
trail is changed, and memory is bounded. DuckDB is called in a thread.

Needs the stream TRAIL and the right to read it: `$JS.API.STREAM.INFO.TRAIL`, `$JS.API.CONSUMER.CREATE.TRAIL.auditor-*`,
`.MSG.NEXT.` and `.DELETE.` of the same.

    auditor = Auditor(nc, store)
    await auditor.start()
    await auditor.wait_for(stream_seq, timeout_s=2.0)
"""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import cast

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError

from tasktrail.events.entry import KEY_ID, MSG_ID, SIGNATURE
from tasktrail.events.subjects import TRAIL
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.errors import AuditStoreError, StreamCut
from tasktrail.projections.audit.store import AuditStore
from tasktrail.services.ending import end

_log = logging.getLogger(__name__)

BATCH = 4_000
"""Messages of one transaction at most: behind, 4,000 are a fifth faster than 1,000."""
LINGER_S = 0.25
HURRIED_LINGER_S = 0.02
"""A transaction costs the same whatever its size: wait a little for more, less when somebody waits for it."""
REQUEST_S = 30.0
REQUEST_BYTES_MAX = 16 * 1024 * 1024
HEARTBEAT_S = 1.0
SILENCE_S = 3.0
SETTLE_S = 10.0
"""How long a stream may be away or short, as in an election, before that is final."""
INACTIVE_S = 30.0
PAUSE_S = 0.2
_API_S = 5.0
_LEAVE_S = 1.0
_LOOK_S = 0.25
_NS = 1_000_000_000
_ACK_PREFIX = "$JS.ACK."
_TOKENS_V1, _STREAM_SEQ_V1, _STREAM_SEQ_V2 = 9, 5, 7  # where an acknowledgement's subject holds the stream's sequence


class _Lost(Exception):
    """The flow of messages has to be begun anew."""


class Auditor:
    """Feeds one audit store from one stream. `store` may be read by anybody meanwhile; it is not closed here."""

    def __init__(  # noqa: PLR0913 - all but two have a default
        self,
        nc: Client,
        store: AuditStore,
        *,
        stream: str = TRAIL,
        batch: int = BATCH,
        progress: Callable[[int, int], None] | None = None,
        also: Callable[[list[Message]], None] | None = None,
    ) -> None:
        """`progress(position, target)` is called on the loop after each batch, until `target` is reached.

        `also` is called with each batch in the auditor's thread, once it is in the store; it must not raise.
        """
        self.store = store
        self.target = 0
        """The stream's last sequence when the auditor started."""
        self.failed: Exception | None = None
        """Why it ended, if it did not end by `stop`."""
        self._nc, self._stream, self._batch = nc, stream, batch
        self._js = JetStreamContext(nc, timeout=_API_S)
        self._progress, self._also = progress, also
        self._moved = asyncio.Event()
        self._waiting, self._current = 0, cast("_Flow | None", None)
        self._ended: asyncio.Future[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="auditor")

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done when the auditor has ended; raises what it failed with. There is none before `start`."""
        if self._ended is None:
            message = "the auditor has not been started"
            raise RuntimeError(message)
        return self._ended

    @property
    def position(self) -> int:
        """The last stream sequence in the store."""
        return self.store.last_seq

    @property
    def ready(self) -> bool:
        """Whether the store holds what the trail held when the auditor started."""
        return self._running is not None and self.position >= self.target

    async def start(self) -> None:
        """Begin to read.

        Raises:
            AnotherTrail: the store belongs to another stream than this.
            nats.errors.Error: the stream is not there, or nobody answers.
        """
        self.target = await self._bind()
        self._ended = asyncio.get_running_loop().create_future()
        self._ended.add_done_callback(_seen)
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop reading; a transaction under way is finished first."""
        if self._running is not None:
            await end(self._running, again_s=2 * _LEAVE_S)
        await asyncio.to_thread(self._thread.shutdown)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        self._moved.set()

    async def wait_for(self, stream_seq: int, timeout_s: float) -> bool:
        """Whether the store holds this sequence within `timeout_s`; False also when the auditor is stopped meanwhile.

        Raises:
            Exception: what the auditor failed with.
        """
        self._waiting += 1
        if self._current is not None and self.position < stream_seq:
            self._current.hurry()
        try:
            async with asyncio.timeout(timeout_s):
                while self.position < stream_seq and not self.ended.done():
                    await self._moved.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1
        if self.failed is not None:
            raise self.failed
        return self.position >= stream_seq

    async def lag(self) -> int:
        """How many messages of the stream are not in the store, by the stream's leader."""
        info = await self._js.stream_info(self._stream)
        return max(0, info.state.last_seq - self.position)

    async def _bind(self) -> int:
        """See that the store belongs to the stream; its last sequence."""
        info = await self._js.stream_info(self._stream)
        if info.created is None:
            message = f"the broker does not say when stream {self._stream} was created"
            raise AuditStoreError(message)
        last = info.state.last_seq
        await self._loop().run_in_executor(self._thread, self.store.bind, self._stream, info.created, last)
        return last

    @staticmethod
    def _loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def _run(self) -> None:
        try:
            await self._follow()
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody must hear of it
            _log.error("the auditor ended at %d: %s", self.position, error)
            self.failed = error
            self.ended.set_exception(error)
            self._moved.set()

    async def _follow(self) -> None:
        """Read for ever, over whatever passes."""
        lost_since: float | None = None
        told = ""
        while True:
            before = self.position
            try:
                if lost_since is not None:
                    await self._bind()
                async with self._flow() as flow:
                    lost_since = None
                    while True:
                        await self._append(await flow.take())
            except (_Lost, NatsError, StreamCut, TimeoutError, OSError) as error:
                now = self._loop().time()
                lost_since = now if lost_since is None else lost_since
                self._give_up(error, now - lost_since)
                said, told = told, str(error) or type(error).__name__
                if told != said or self.position > before:
                    _log.warning("the trail is read anew from %d: %s", self.position + 1, told)
                await asyncio.sleep(PAUSE_S)

    def _give_up(self, error: Exception, lost_s: float) -> None:
        """Raise what does not pass: a closed connection; a stream that stays away or short longer than an election."""
        if self._nc.is_closed or (lost_s > SETTLE_S and isinstance(error, NotFoundError | StreamCut)):
            raise error

    async def _append(self, messages: list[Message]) -> None:
        await self._loop().run_in_executor(self._thread, self._stored, messages)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        if self._progress is not None and messages[0].stream_seq <= self.target:
            self._progress(self.position, self.target)

    def _stored(self, messages: list[Message]) -> None:
        self.store.append(messages)
        if self._also is not None:
            self._also(messages)

    @asynccontextmanager
    async def _flow(self) -> AsyncGenerator["_Flow"]:
        """The messages after the store's position, by a consumer which the server forgets when we are gone."""
        name = f"auditor-{secrets.token_hex(6)}"
        config = api.ConsumerConfig(
            name=name,
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self.position + 1,
            ack_policy=api.AckPolicy.NONE,
            inactive_threshold=INACTIVE_S,
            mem_storage=True,
            num_replicas=1,
        )
        await self._js.add_consumer(self._stream, config)  # pyright: ignore[reportUnknownMemberType]  # nats-py's options have no types
        flow = _Flow(
            self._nc, f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{name}", self._batch, lambda: self._waiting > 0
        )
        self._current = flow
        try:
            await flow.open()
            yield flow
        finally:
            await flow.close()
            with suppress(NatsError, TimeoutError, OSError):
                async with asyncio.timeout(_LEAVE_S):
                    await self._js.delete_consumer(self._stream, name)


def _seen(ended: asyncio.Future[None]) -> None:
    """A failure is in `failed` too: nobody has to await `ended`."""
    if not ended.cancelled():
        ended.exception()


class _Flow:
    """Messages of one consumer, in batches, without a gap: at most two requests' worth of them wait here."""

    def __init__(self, nc: Client, next_subject: str, batch: int, hurried: Callable[[], bool]) -> None:
        self._hurried = hurried
        self._nc, self._next_subject, self._batch = nc, next_subject, batch
        self._inbox, self._reconnects = nc.new_inbox(), nc.stats["reconnects"]
        self._subscription: Subscription | None = None
        self._arrived: list[Message] = []
        self._asked = 0
        self._consumer_seq = 0
        self._lost = ""
        self._heard, self._full = asyncio.Event(), asyncio.Event()
        asked = {
            "batch": batch,
            "expires": int(REQUEST_S * _NS),
            "idle_heartbeat": int(HEARTBEAT_S * _NS),
            "max_bytes": max(REQUEST_BYTES_MAX, 2 * nc.max_payload),
        }
        self._request = json.dumps(asked).encode()

    async def open(self) -> None:
        """Subscribe."""
        self._subscription = await self._nc.subscribe(  # pyright: ignore[reportUnknownMemberType]  # nats-py's futures
            self._inbox,
            cb=self._received,
            pending_msgs_limit=4 * self._batch,
            pending_bytes_limit=8 * REQUEST_BYTES_MAX,
        )

    async def close(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            with suppress(NatsError):
                await self._subscription.unsubscribe()

    async def take(self) -> list[Message]:
        """The next messages, at least one: a full batch, or what came within `LINGER_S` of the first.

        Raises:
            _Lost: messages went astray, the consumer is gone, or not even a heartbeat came for `SILENCE_S`.
        """
        while not self._arrived:
            if self._lost:
                raise _Lost(self._lost)
            self._heard.clear()
            await self._ask()
            await self._listen()
        if len(self._arrived) < self._batch and not self._lost:
            self._full.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(HURRIED_LINGER_S if self._hurried() else LINGER_S):
                    await self._full.wait()
        taken, self._arrived = self._arrived[: self._batch], self._arrived[self._batch :]
        await self._ask()
        return taken

    def hurry(self) -> None:
        """Somebody waits: end the linger that may be under way."""
        self._full.set()

    async def _listen(self) -> None:
        """Until anything comes. What was asked for over a connection that is no more never does."""
        for _ in range(round(SILENCE_S / _LOOK_S)):
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._heard.wait()
                return
            if self._nc.stats["reconnects"] != self._reconnects:
                message = "the connection to the broker was made anew"
                raise _Lost(message)
        message = f"nothing was heard from the broker for {SILENCE_S:g} s"
        raise _Lost(message)

    async def _ask(self) -> None:
        """Have one more batch on its way than is being worked on."""
        if self._asked + len(self._arrived) <= self._batch:
            self._asked += self._batch
            await self._nc.publish(self._next_subject, self._request, self._inbox)

    async def _received(self, msg: Msg) -> None:
        self._heard.set()
        headers = msg.headers or {}
        if not msg.reply.startswith(_ACK_PREFIX):
            self._told(headers)
            return
        tokens = msg.reply.split(".")
        place = _STREAM_SEQ_V1 if len(tokens) == _TOKENS_V1 else _STREAM_SEQ_V2
        stream_seq, consumer_seq = int(tokens[place]), int(tokens[place + 1])
        self._asked -= 1
        self._consumer_seq += 1
        if self._lost or consumer_seq != self._consumer_seq:
            self._lose(f"messages went astray before sequence {stream_seq}")
            return
        self._arrived.append(
            Message(
                stream_seq,
                msg.subject,
                msg.data,
                headers.get(MSG_ID, ""),
                headers.get(KEY_ID, ""),
                headers.get(SIGNATURE, ""),
            )
        )
        if len(self._arrived) >= self._batch:
            self._full.set()

    def _told(self, headers: dict[str, str]) -> None:
        """A status instead of a message: a heartbeat, the end of a request and what it leaves, or the end of it all."""
        left = headers.get("Nats-Pending-Messages", "")
        if left.isdecimal():
            self._asked -= int(left)
        elif headers.get("Status") == "100":
            sent = headers.get("Nats-Last-Consumer", "")
            if sent.isdecimal() and int(sent) > self._consumer_seq:
                self._lose("the last messages went astray")
        else:
            told = headers.get("Description", "").partition("\n")[0].strip()
            self._lose(f"the broker ended the flow: {headers.get('Status')} {told}".rstrip())

    def _lose(self, why: str) -> None:
        self._lost = self._lost or why
        self._full.set()
