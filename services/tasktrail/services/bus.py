"""FastStream on NATS as this service uses it: raw bodies in and out, decoded by us.

Guarantees: bodies are never decoded, re-encoded or declared by the framework; no stream is made or changed by it.

    bus = make_bus(options)
    @bus.subscriber("tasktrail.cmd.*.*", queue="tasktrail", codec=RAW)
"""

import logging
from collections.abc import Sequence
from typing import Any

from faststream.nats import NatsBroker
from faststream.nats.security import NatsCredentials, NatsNKey, NatsUserPassword
from faststream.security import BaseSecurity
from nats.aio.client import DEFAULT_INBOX_PREFIX
from nats.errors import TimeoutError as NatsTimeout

from tasktrail.services.connection import Connection, Secret

_log = logging.getLogger(__name__)

PING_S, PINGS_MAX = 1, 2
"""nats-py stops reading for good, without a word, at a message whose subject is no UTF-8: unanswered pings tell."""


class RawCodec:
    """Handlers get the message itself, its body as it came."""

    async def decode(self, msg: Any) -> Any:  # noqa: ANN401 - the framework's protocol
        """The message itself."""
        return msg

    async def encode(self, msg: Any, serializer: object = None) -> tuple[bytes, str | None]:  # noqa: ANN401, ARG002
        """The bytes themselves."""
        return bytes(msg or b""), None

    async def decode_batch(self, msg: Any) -> Any:  # noqa: ANN401 - see `decode`
        """The message that holds the batch."""
        return msg

    async def encode_batch(
        self,
        msgs: Sequence[Any],
        serializer: object = None,  # noqa: ARG002 - see `encode`
    ) -> list[tuple[bytes, str | None]]:
        """The bytes themselves."""
        return [(bytes(one or b""), None) for one in msgs]


RAW = RawCodec()


def make_bus(connection: Connection) -> NatsBroker:
    """A FastStream broker on the same servers and user as the service's own connection."""
    return NatsBroker(
        connection.servers,
        security=_security(connection),
        apply_types=False,  # injecting a handler's arguments runs each message through a thread
        name="tasktrail",
        inbox_prefix=connection.inbox_prefix or DEFAULT_INBOX_PREFIX.decode(),
        max_reconnect_attempts=-1,
        ping_interval=PING_S,
        max_outstanding_pings=PINGS_MAX,
        reconnect_time_wait=connection.reconnect_wait_s,  # type: ignore[arg-type]  # nats-py takes fractions of a second
        logger=None,
        error_cb=_complain,
        disconnected_cb=_quiet,
        reconnected_cb=_quiet,
        closed_cb=_quiet,
    )


def _security(connection: Connection) -> BaseSecurity | None:
    """The connection's credential, as the framework takes it."""
    if connection.credentials:
        kind = NatsNKey if connection.secret() is Secret.NKEY else NatsCredentials
        return kind.from_file(connection.credentials)
    return NatsUserPassword(connection.user, connection.password) if connection.user else None


def keep_what_was_fetched(subscription: Any) -> None:  # noqa: ANN401 - nats-py's pull subscription, as FastStream holds it
    """Make a pull subscription say `nats.errors.TimeoutError` whenever it timed out.

    nats-py 2.16 raises the built-in TimeoutError when a fetch begins with next to no time left. FastStream 0.7.8
    fetches again with what is left of a batch's time and expects the other one: its loop breaks, is begun anew, and
    the messages that were fetched before are gone.
    """
    fetch = subscription.fetch

    async def fetched(batch: int = 1, timeout: float | None = 5, **options: Any) -> Any:  # noqa: ANN401, ASYNC109 - its signature
        try:
            return await fetch(batch, timeout, **options)
        except NatsTimeout:
            raise
        except TimeoutError as error:
            raise NatsTimeout from error

    subscription.fetch = fetched


async def _complain(error: Exception) -> None:
    _log.warning("NATS: %s", error or type(error).__name__)


async def _quiet() -> None:
    return None
