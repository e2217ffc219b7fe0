"""The work queue: work whose worker was lost, waiting in the stream WORK for another process to start it again.

Guarantees: what waits is in the stream, once for each attempt, under `work.<gen>.<server>.<task_ref>`; it goes to one
taker at a time, and comes again when that one does not settle it within `ACK_WAIT_S`. The stream is disposable: it is
filled from the current states at each start, and again when it was lost. Whether work is still to be had is for the
task's state to say, never for the queue.

    queue = WorkQueue(nc, js, embedded=True)
    await queue.start()
    queue.observe(state)                       # fed by the projector
    offer = await queue.next("reports", wait_s=1.0)
    await offer.settle()                       # or: await offer.again(after_s=2.0)
"""

import asyncio
import contextlib
import itertools
import logging
import time

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError

from tasktrail.events.entry import MSG_ID
from tasktrail.events.subjects import WORK, is_task_ref, tenant_token, work_subject
from tasktrail.projections.current import State
from tasktrail.services import trail
from tasktrail.services.ending import end

_log = logging.getLogger(__name__)

ACK_WAIT_S = 30.0
IN_HAND_MAX = 10_000
UNUSED_S = 600.0
"""A server's consumer is gone when nobody has asked for so long; who asks again makes it again."""
AT_ONCE = 64
_LOOK_S = 5.0
_RETRY_S, _RETRY_MAX_S = 0.5, 30.0
_NEXT = f"$JS.API.CONSUMER.MSG.NEXT.{WORK}"
_PLACED_S = 0.05
_LATE_S = 0.5
"""How much longer than asked for an empty answer may take."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """Work to be started again: `attempt` is the one that was lost."""

    tenant: str
    task_ref: str
    server: str
    attempt: int


_work = msgspec.json.Decoder(Work)


class Offer(msgspec.Struct, frozen=True):
    """Work as one taker has it, until it settles it or leaves it to another."""

    work: Work
    message: Msg

    async def settle(self) -> None:
        """Take it off the queue. Should that get lost, it comes again, and its state says that it was taken."""
        with contextlib.suppress(NatsError):
            await self.message.ack()

    async def again(self, after_s: float) -> None:
        """Leave it to whoever asks after that long."""
        with contextlib.suppress(NatsError):
            await self.message.nak(delay=after_s)


class WorkQueue:
    """Puts waiting work on the stream, and takes it off for those who ask."""

    def __init__(self, nc: Client, js: JetStreamContext, *, embedded: bool) -> None:
        """`embedded`: the broker is ours, and a missing stream is made."""
        self._nc, self._js, self._embedded = nc, js, embedded
        self._waiting: dict[str, Work] = {}
        self._to_put: dict[str, Work] = {}
        self._told = asyncio.Event()
        self._made = ""
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin."""
        await self._place()
        self._running = asyncio.create_task(self._put_for_ever())

    async def stop(self) -> None:
        """Stop. What was not put yet is put after the next start."""
        if self._running is not None:
            await end(self._running)
            self._running = None

    def observe(self, state: State) -> None:
        """A task moved: does its work wait? Never waits itself."""
        task, ref = state.task, state.task_ref
        if not task.waits_for_worker:
            self._waiting.pop(ref, None)
            self._to_put.pop(ref, None)
            return
        work = Work(tenant=state.tenant, task_ref=ref, server=task.server, attempt=task.attempt)
        if self._waiting.get(ref) != work:
            self._waiting[ref] = self._to_put[ref] = work
            self._told.set()

    async def next(self, server: str, wait_s: float) -> Offer | None:
        """Work of this MCP server; None when none comes within `wait_s`.

        Raises:
            nats.errors.Error: the stream does not answer.
        """
        consumer = f"work-{tenant_token(server)}"
        deadline = time.monotonic() + wait_s
        while True:
            left_s = max(deadline - time.monotonic(), 0.0)
            question = {"batch": 1, "expires": int(left_s * 1e9)} if left_s else {"batch": 1, "no_wait": True}
            try:
                body = msgspec.json.encode(question)
                # Old style: what comes has the subject it is stored under, by which the other style knows no answer.
                message = await self._nc.request(f"{_NEXT}.{consumer}", body, timeout=left_s + _LATE_S, old_style=True)
            except NoRespondersError:
                await self._placed(consumer, server)
                if time.monotonic() >= deadline + _LATE_S:
                    return None
                await asyncio.sleep(_PLACED_S)
                continue
            except TimeoutError:
                return None
            if message.headers and "Status" in message.headers:
                return None
            try:
                work = _work.decode(message.data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                work = None
            if work is None or not is_task_ref(work.task_ref):
                _log.error("a message in %s is no work; it is dropped", WORK)
                await message.ack()
                continue
            return Offer(work, message)

    async def _placed(self, consumer: str, server: str) -> None:
        """See that the consumer of a server's work is there."""
        await self._js.add_consumer(
            WORK,
            api.ConsumerConfig(
                durable_name=consumer,
                description="tasktrail: work of one MCP server that waits for a worker",
                filter_subject=work_subject(server, "*"),
                ack_policy=api.AckPolicy.EXPLICIT,
                ack_wait=ACK_WAIT_S,
                max_ack_pending=IN_HAND_MAX,
                inactive_threshold=UNUSED_S,
            ),
        )

    async def _put_for_ever(self) -> None:
        pause_s = _RETRY_S
        while True:
            try:
                await self._put_all()
                pause_s = _RETRY_S
                self._told.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._told.wait()
                await self._place()
            except Exception as error:  # noqa: BLE001 - whatever it was, waiting work is to be found
                passing = isinstance(error, (NatsError, OSError, TimeoutError))
                _log.warning("work that waits is put on the queue later", exc_info=None if passing else error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_MAX_S)

    async def _put_all(self) -> None:
        while self._to_put:
            some = list(itertools.islice(self._to_put.values(), AT_ONCE))
            await asyncio.gather(*(self._put(work) for work in some))
            for work in some:
                if self._to_put.get(work.task_ref) is work:
                    del self._to_put[work.task_ref]

    async def _put(self, work: Work) -> None:
        headers = {MSG_ID: f"{work.task_ref}.{work.attempt}"}
        await self._js.publish(work_subject(work.server, work.task_ref), msgspec.json.encode(work), headers=headers)

    async def _place(self) -> None:
        """Whether the stream is the one that was filled; if it is another, all that waits is put again.

        Raises:
            nats.js.errors.NotFoundError: an external broker has none: `tasktrail init` makes it.
        """
        try:
            info = await self._js.stream_info(WORK)
        except NotFoundError:
            if not self._embedded:
                raise
            await trail.create(self._js, only=frozenset({WORK}))
            info = await self._js.stream_info(WORK)
        made = str(info.created)
        if made != self._made:
            self._made = made
            self._to_put |= self._waiting
