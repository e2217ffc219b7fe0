"""Reading the trail from outside of the service: for verification, replay and archives. Nothing is ever written.

Guarantees: messages come in the stream's order, each once, up to where the trail ended when it was opened; a sequence
the stream does not hold is simply not among them. Of a running service the trail is read as the user `reader`; of a
stopped one's directory a broker is started for as long as the reading takes, which no service can share meanwhile.

    async with open_trail(data) as trail:
        async for messages in trail.messages():
            …

From a coroutine on the main thread, when the service is stopped: the broker is a child process.
"""

import contextlib
import secrets
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError

from tasktrail.events.entry import KEY_ID, MSG_ID, SIGNATURE
from tasktrail.events.errors import TasktrailError, Unavailable
from tasktrail.events.subjects import TRAIL
from tasktrail.projections.audit.columns import Message
from tasktrail.services import responder
from tasktrail.services.broker import Broker
from tasktrail.services.connection import Connection
from tasktrail.services.fetching import fetch

READER_FILE = "reader.json"
BATCH = 1_000
_READ_S = 10.0
_FORGOTTEN_S = 30.0


class NoTrailHere(TasktrailError):
    """There is no trail to read; the message says where it was looked for."""

    reason = "no_trail"


class TrailReader:
    """The trail as it was when this was made. `created` is when the stream was made (UTC), `last_seq` where it ended.

    `nc` is the connection it is read over: `current` states may be read there too (`testing.rebuild` shows how).
    """

    def __init__(self, nc: Client, created: datetime, last_seq: int) -> None:
        self.nc, self.created, self.last_seq = nc, created, last_seq

    @classmethod
    async def of(cls, nc: Client) -> "TrailReader":
        """The trail behind a connection.

        Raises:
            NoTrailHere: the broker has none.
            Unavailable: it does not answer.
        """
        try:
            info = await JetStreamContext(nc).stream_info(TRAIL)
        except NotFoundError:
            message = f"the broker has no stream {TRAIL}"
            raise NoTrailHere(message) from None
        except (NatsError, TimeoutError, OSError) as error:
            message = f"the broker does not say what stream {TRAIL} holds: {error or type(error).__name__}"
            raise Unavailable(message) from error
        return cls(nc, info.created or datetime.fromtimestamp(0, UTC), info.state.last_seq)

    async def messages(self, first: int = 1, last: int = 0, *, batch: int = BATCH) -> AsyncGenerator[list[Message]]:
        """Messages from sequence `first` to `last` (0: the end), at most `batch` at a time, never an empty list.

        Raises:
            Unavailable: the broker stopped answering; what came before was right.
        """
        last = min(last or self.last_seq, self.last_seq)
        if first > last:
            return
        config = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=first,
            ack_policy=api.AckPolicy.NONE,
            inactive_threshold=_FORGOTTEN_S,
            name=f"reading-{secrets.token_hex(8)}",
        )
        js = JetStreamContext(self.nc)
        try:
            made = await js.add_consumer(TRAIL, config)
            if made.num_pending == 0:
                return  # what there was from `first` on is gone
            consumer = await js.pull_subscribe_bind(made.name, TRAIL)
            try:
                while True:
                    found = await fetch(consumer, batch, timeout_s=_READ_S)
                    taken = [_message(one) for one in found if one.metadata.sequence.stream <= last]
                    if taken:
                        yield taken
                    if not found[-1].metadata.num_pending or found[-1].metadata.sequence.stream >= last:
                        return
            finally:
                with contextlib.suppress(NatsError, OSError):
                    await consumer.unsubscribe()
        except (NatsError, TimeoutError, OSError) as error:
            message = f"the broker stopped answering while the trail was read: {error or type(error).__name__}"
            raise Unavailable(message) from error


@contextlib.asynccontextmanager
async def open_trail(
    data: Path, *, nats_url: str = "", nats_credentials: Path | None = None
) -> AsyncGenerator[TrailReader]:
    """The trail of this data directory, or of the external NATS at `nats_url`.

    Raises:
        NoTrailHere: there is none.
        Unavailable, BrokerError: it cannot be read now; the message says what to do.
    """
    async with contextlib.AsyncExitStack() as stack:
        connection = _connection(stack, data, nats_url, nats_credentials)
        nc = await connection.connect("tasktrail-reader")
        stack.push_async_callback(nc.close)
        yield await TrailReader.of(nc)


def _connection(
    stack: contextlib.AsyncExitStack, data: Path, nats_url: str, nats_credentials: Path | None
) -> Connection:
    if nats_url:
        return Connection.from_text(nats_url, nats_credentials)
    if data.is_dir() and responder.find(data) is not None:
        file = data / READER_FILE
        if not file.exists():
            message = f"the service on {data} uses an external NATS; say which with --nats"
            raise NoTrailHere(message)
        return Connection.from_text(str(file))
    if not (data / "nats" / "jetstream").is_dir():
        message = f"{data} holds no trail; is this the right data directory? An external NATS is named with --nats"
        raise NoTrailHere(message)
    broker = stack.enter_context(Broker.start(data / "nats"))
    return Connection(**broker.reader_connect_options())


def _message(one: Msg) -> Message:
    headers = one.headers or {}
    return Message(
        stream_seq=one.metadata.sequence.stream,
        subject=one.subject,
        body=one.data,
        msg_id=headers.get(MSG_ID, ""),
        key_id=headers.get(KEY_ID, ""),
        signature=headers.get(SIGNATURE, ""),
    )
