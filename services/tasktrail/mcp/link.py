"""The adapter's link to tasktrail: connected over NATS, or embedded in this process.

Guarantees: a connected link holds no key and publishes on its command subjects only; every request ends in an answer or
an error of `tasktrail.events.errors`; signals may be lost and are only ever a reason to ask.

    link = ConnectedLink(Connection.from_text("nats://…"), server="reports")
    await link.start()
    view = await link.request("get", messages.GetTask(…))
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError, NoRespondersError, OutboundBufferLimitError

from tasktrail.events import errors
from tasktrail.events.errors import (
    AuthorityPaused,
    InvalidRequest,
    MaybeWritten,
    NothingWritten,
    RateLimited,
    TasktrailError,
    TooLarge,
)
from tasktrail.events.subjects import tenant_token
from tasktrail.services.connection import VIOLATION, Connection, settle
from tasktrail.services.messages import ACTIONS, SIGNALS, Failed, Said, Signal, command_subject

if TYPE_CHECKING:
    from tasktrail.services.service import Service

_log = logging.getLogger(__name__)

_SAID_MAX = 300
"""What a NATS server's refusals have in common: `Authorization Violation`, `Permissions Violation for …`."""
ANSWER_S = 1.9
"""How long a connected adapter waits: its caller is answered within two seconds, and the service says within 1.5 s
that the trail does not answer."""

URL_VARIABLE = "TASKTRAIL_CONNECT"
"""The environment's word on where tasktrail is."""

Listener = Callable[[str, Signal], None]


class Link(Protocol):
    """What an adapter needs of tasktrail."""

    server: str

    async def start(self) -> None:
        """Connect, or start the embedded service."""
        ...

    async def stop(self) -> None:
        """Disconnect, or stop the embedded service."""
        ...

    async def request(self, action: str, said: Said) -> Any:  # noqa: ANN401 - the action's reply
        """Carry an action out and return its reply.

        Raises:
            TasktrailError: it was refused, or nobody knows whether it was done; `written` says which.
        """
        ...

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Hear of this server's tasks when they move; returns how to stop listening."""
        ...


class _Heard:
    """Whoever listens, called one after the other."""

    def __init__(self) -> None:
        self._listeners: dict[object, Listener] = {}

    def listen(self, listener: Listener) -> Callable[[], None]:
        token = object()
        self._listeners[token] = listener
        return lambda: self._listeners.pop(token, None) and None

    def tell(self, ref: str, signal: Signal) -> None:
        for listener in list(self._listeners.values()):
            listener(ref, signal)


class ConnectedLink(_Heard):
    """Request/reply to a running tasktrail."""

    def __init__(self, connection: Connection, server: str) -> None:
        super().__init__()
        self.server = server
        self._connection = connection
        self._nc: Client | None = None

    async def start(self) -> None:
        """Connect and listen for signals.

        Raises:
            NothingWritten: the NATS server does not answer, or wants a login.
            InvalidRequest: the login is for another MCP server.
        """
        where = ", ".join(self._connection.servers)
        try:
            self._nc = nc = await self._connection.connect(f"tasktrail adapter {self.server}", buffered=False)
            await cast("Any", nc).subscribe(f"{SIGNALS}.{tenant_token(self.server)}.*", cb=self._signalled)
            await settle(nc)
        except (NatsError, OSError) as error:
            message = f"no NATS server answers at {where}: {error}; is `tasktrail up` running?"
            if VIOLATION in str(error).lower():
                message = (
                    f"the NATS server at {where} refuses this login; give the adapter.json in the data directory of "
                    "the running `tasktrail up`, or its servers/NAME.json for a server that `[[servers]]` names"
                )
            raise NothingWritten(message) from error
        if f"permissions {VIOLATION}" in str(nc.last_error or "").lower():
            await self.stop()
            message = (
                f"this NATS login is not for the MCP server {self.server!r}: give its own file, servers/{self.server}"
                ".json in tasktrail's data directory, or the name that the login is for"
            )
            raise InvalidRequest(message)

    async def stop(self) -> None:
        """Close the connection."""
        if self._nc is not None:
            await self._nc.close()
            self._nc = None

    async def _signalled(self, msg: Msg) -> None:
        try:
            signal = msgspec.json.decode(msg.data, type=Signal)
        except msgspec.DecodeError:
            _log.warning("a signal on %s is not of this version; ignored", msg.subject)
            return
        self.tell(msg.subject.rpartition(".")[2], signal)

    async def request(self, action: str, said: Said) -> Any:  # noqa: ANN401 - the action's reply
        """Send one request and wait `ANSWER_S` for its reply.

        Raises:
            InvalidRequest: the payload is not JSON.
            TooLarge: it is more than the NATS server takes.
            NothingWritten: the link is not started, or nobody answers on this NATS server.
            MaybeWritten: no reply came in time.
            TasktrailError: the service answered with an error.
        """
        if self._nc is None:
            message = "the adapter is not started: give its `lifespan` to the MCP server"
            raise NothingWritten(message)
        try:
            body = msgspec.json.encode(said)
        except (TypeError, ValueError, RecursionError) as error:
            message = f"{action}: the payload is not JSON: {error}"
            raise InvalidRequest(message) from None
        try:
            reply = await self._nc.request(command_subject(self.server, action), body, timeout=ANSWER_S)
        except NoRespondersError:
            message = "no tasktrail answers on this NATS server; is `tasktrail up` running? Nothing was written"
            raise NothingWritten(message) from None
        except OutboundBufferLimitError:
            message = "the NATS server is away, the adapter is reconnecting; nothing was written. Send it again"
            raise NothingWritten(message) from None
        except MaxPayloadError:
            message = f"{action}: {len(body)} bytes exceed what the NATS server takes; raise its max_payload"
            raise TooLarge(message) from None
        except (NatsError, OSError) as error:
            message = f"tasktrail did not answer within {ANSWER_S:g} s ({type(error).__name__}); send it again"
            raise MaybeWritten(message) from None
        return answered(action, reply.data)


def connected(target: str | Path | None, server: str, *, by: str = "Tasks") -> ConnectedLink:
    """The link to a running tasktrail: `target`, or what the environment says. `by` has the `connect` to name.

    Raises:
        InvalidRequest: neither says where it is, or it is not of this form.
    """
    text = str(target or os.environ.get(URL_VARIABLE, ""))
    if not text:
        message = (
            f"say where tasktrail is: {by}.connect('.tasktrail/adapter.json'), or nats://… of a NATS server of your "
            f"own; or set {URL_VARIABLE}"
        )
        raise InvalidRequest(message)
    return ConnectedLink(Connection.from_text(text), server)


class EmbeddedLink(_Heard):
    """A whole tasktrail in this process."""

    def __init__(self, data: Path, server: str) -> None:
        super().__init__()
        self.server = server
        self._data = data
        self._service: Service | None = None

    async def start(self) -> None:
        """Start the service on its own broker.

        Raises:
            InvalidRequest: the extra `service` is not installed.
        """
        try:
            from tasktrail.services.service import Service  # noqa: PLC0415 - needs the extra `service`
            from tasktrail.services.settings import load  # noqa: PLC0415 - see above
        except ImportError as error:
            message = f"embedded mode needs the service's packages ({error.name}): pip install 'tasktrail[service]'"
            raise InvalidRequest(message) from error
        self._service = Service(load(os.environ, data=self._data))
        self._service.announce(self.server, self.tell)
        await self._service.start()

    async def stop(self) -> None:
        """Stop the service and its broker."""
        if self._service is not None:
            await self._service.stop()
            self._service = None

    async def request(self, action: str, said: Said) -> Any:  # noqa: ANN401 - the action's reply
        """Carry an action out at the service's desk.

        Raises:
            InvalidRequest: it is not of the form that the service takes over NATS.
            NothingWritten: the link is not started, or the trail cannot even be read.
            TasktrailError: the service refused it.
        """
        if self._service is None:
            message = "the adapter is not started: give its `lifespan` to the MCP server"
            raise NothingWritten(message)
        return await self._service.carry_out(action, _converted(action, said), self.server)


def _converted(action: str, said: Said) -> Said:
    """A request whose every member is of its type, as after decoding: what a caller said may be anything."""
    try:
        return msgspec.convert(msgspec.to_builtins(said), ACTIONS[action][0])
    except msgspec.ValidationError as error:
        message = f"{action}: {error}"[:_SAID_MAX]
    except (TypeError, ValueError, RecursionError) as error:
        message = f"{action}: the payload is not JSON: {error}"
    raise InvalidRequest(message)


class _Answer(msgspec.Struct):
    ok: msgspec.Raw = msgspec.Raw()
    error: Failed | None = None


_KINDS: dict[str, type[TasktrailError]] = {
    kind.reason: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TasktrailError)
}


class RemoteError(TasktrailError):
    """An error this version of the adapter has no class for; it keeps the code and the rest of what was said."""


def answered(action: str, body: bytes) -> Any:  # noqa: ANN401 - the action's reply
    """The reply in these bytes.

    Raises:
        TasktrailError: the service answered with an error.
    """
    try:
        answer = msgspec.json.decode(body, type=_Answer)
        if answer.error is None:
            return msgspec.json.decode(answer.ok, type=ACTIONS[action][1])
    except msgspec.DecodeError as unread:
        message = f"{action}: tasktrail's answer is not of this adapter's version ({unread}); install the same version"
        raise RemoteError(message) from None
    said = answer.error
    facts = {"code": said.code, "retriable": said.retriable, "written": said.written, "reason": said.reason}
    kind: type[TasktrailError] = _KINDS.get(said.reason) or type("RemoteError", (RemoteError,), facts)
    error = BaseException.__new__(kind)
    Exception.__init__(error, said.message)
    error.retry_after_ms = said.retry_after_ms
    raise error


PAUSE_MAX_S = 2.0
"""Between two tries where nobody says how long to wait."""

RETRY_AFTER_MAX_S = 60.0
"""Between two tries, whatever was said."""

_WAITING_FOR = {
    AuthorityPaused.reason: "waits until the creator's authority stands",
    RateLimited.reason: "waits its turn",
}


async def patiently(  # noqa: PLR0913 - a request, and until when
    link: Link,
    action: str,
    said: Said,
    *,
    until_ms: int,
    now_ms: Callable[[], int],
    unless: asyncio.Event | None = None,
) -> Any:  # noqa: ANN401 - the action's reply
    """Carry an action out, again and again while it cannot be, until `until_ms`: no result is lost to an outage.

    Between two tries it waits as long as it was told to, `RETRY_AFTER_MAX_S` at most. What policy makes wait for the
    creator's authority is given up once `unless` is set.

    Raises:
        TasktrailError: what is not retriable, or the last retriable one.
    """
    unless = unless or asyncio.Event()
    pause_s, reason = 0.05, ""
    while True:
        try:
            return await link.request(action, said)
        except TasktrailError as error:
            left_s, paused = (until_ms - now_ms()) / 1000, isinstance(error, AuthorityPaused)
            if not error.retriable or left_s <= 0 or (paused and unless.is_set()):
                raise
            if error.reason != reason:
                reason = error.reason
                _log.warning("%s of a task %s: %s", action, _WAITING_FOR.get(reason, "waits for the trail"), reason)
            wait_s = min(max(pause_s, error.retry_after_ms / 1000), RETRY_AFTER_MAX_S, left_s)
        if paused:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await unless.wait()
        else:
            await asyncio.sleep(wait_s)
        pause_s = min(2 * pause_s, PAUSE_MAX_S)


async def in_turn(link: Link, action: str, said: Said, *, until_ms: int, now_ms: Callable[[], int]) -> Any:  # noqa: ANN401 - as above
    """As `patiently`, but whoever asks too often is told so instead of waiting here, where nobody counts who waits.

    Raises:
        RateLimited: the first try met a limit.
        TasktrailError: as `patiently`.
    """
    try:
        return await link.request(action, said)
    except TasktrailError as error:
        if error.code == RateLimited.code or not error.retriable:
            raise
    return await patiently(link, action, said, until_ms=until_ms, now_ms=now_ms)
