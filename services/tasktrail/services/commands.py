"""The way in for connected MCP servers and any NATS client: request/reply on `tasktrail.cmd.<server>.<action>`.

Guarantees: every request gets an answer, a `{"ok": …}` or a `{"error": …}` with the fields of `messages.Failed`; bad
input is answered, never dropped; the server's name is the subject's, which NATS permissions can bind to a user, never
the body's; an answer goes to an inbox and nowhere else, because the sender of a request may name any subject to reply
to and the service may publish on all of them; large requests take turns, so that memory is bounded, and are told to
come again when too many wait.

    nats req tasktrail.cmd.reports.get '{"caller": …, "call": …, "task_id": "…"}'
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import msgspec
from faststream.nats import NatsBroker, NatsMessage
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from tasktrail.events.errors import InvalidRequest, NothingWritten, TasktrailError
from tasktrail.events.subjects import DIGEST, tenant_token, token_text
from tasktrail.services import strict_json
from tasktrail.services.access.callers import Channel
from tasktrail.services.access.desk import Desk
from tasktrail.services.bus import RAW
from tasktrail.services.messages import ACTIONS, COMMANDS, Failed
from tasktrail.services.settings import Settings
from tasktrail.services.turns import Turns

_log = logging.getLogger(__name__)

QUEUE = "tasktrail"
AT_ONCE = 1_024
"""Requests being answered; each caller has its own few (`limits.turn`), so that one caller's flood delays itself."""
DRAIN_S = 2.0
ENVELOPE_BYTES = 64 * 1024
DEPTH_MAX = 512
_SAID_MAX = 300
_INBOX = re.compile(r"_INBOX[A-Za-z0-9_-]{0,128}(\.[A-Za-z0-9_-]{1,128}){1,8}")


Publish: TypeAlias = Callable[[str, bytes], Awaitable[None]]


class Endpoint:
    """Answers requests, each in a task of its own: the broker's next one is taken at once, whoever sent the last."""

    def __init__(self, desk: Desk, publish: Publish, settings: Settings) -> None:
        self._desk, self._publish = desk, publish
        self._bytes_max = settings.payload_max_bytes + ENVELOPE_BYTES
        self._named = {tenant_token(one.name): one.name for one in settings.servers if one.named}
        self._turns = Turns()
        self._answering: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def take(self, msg: NatsMessage) -> None:
        """Begin to answer a request; while `AT_ONCE` are being answered, wait for one of them."""
        reply_to, msg.reply_to = msg.reply_to, ""  # the answer is ours to send, not the framework's
        if not _INBOX.fullmatch(reply_to):
            _log.warning("a request without an inbox to answer to is not carried out")
            return
        task = asyncio.create_task(self._answer(msg.raw_message, reply_to))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        if len(self._answering) >= AT_ONCE:
            await asyncio.wait(self._answering, return_when=asyncio.FIRST_COMPLETED)

    async def drain(self) -> None:
        """Answer what is being carried out, and tell whoever still comes to come again."""
        self._stopping = True
        if self._answering:
            await asyncio.wait(self._answering, timeout=DRAIN_S)

    async def _answer(self, msg: Msg, reply_to: str) -> None:
        answer = await self._answered(msg.subject, msg.data)
        try:
            await self._publish(reply_to, answer)
        except NatsError as error:
            _log.warning("an answer of %d bytes could not be sent: %s", len(answer), error)

    async def _answered(self, subject: str, body: bytes) -> bytes:
        if self._stopping:
            stopping = NothingWritten("this tasktrail is stopping; nothing was written. Send it again")
            return _encode({"error": failed(stopping)})
        try:
            async with self._turns.taken(len(body)):
                done = await _carry_out(self._desk, subject, body, self._bytes_max, self._named)
        except TasktrailError as error:
            return _encode({"error": failed(error)})
        except Exception:  # noqa: BLE001 - the caller gets an answer whatever happens; the log has the rest
            _log.exception("a request on %.80r failed", subject)
            return _encode({"error": failed(TasktrailError("internal error; the service's log has it"))})
        return _encode({"ok": done})


def serve(bus: NatsBroker, desk: Desk, publish: Publish, settings: Settings) -> Endpoint:
    """Register the endpoint on the bus, with what its answers are sent by; drain it before the bus stops."""
    endpoint = Endpoint(desk, publish, settings)
    bus.subscriber(f"{COMMANDS}.*.*", queue=QUEUE, codec=RAW)(endpoint.take)
    return endpoint


async def _carry_out(desk: Desk, subject: str, body: bytes, bytes_max: int, named: Mapping[str, str]) -> msgspec.Struct:
    server, _, action = subject.removeprefix(f"{COMMANDS}.").partition(".")
    kinds = ACTIONS.get(action)
    if kinds is None:
        message = f"no action {action!r:.80}; the actions are {', '.join(sorted(ACTIONS))}"
        raise InvalidRequest(message)
    said = strict_json.decode(body, bytes_max=bytes_max, depth_max=DEPTH_MAX, payloads=True)
    try:
        request = msgspec.convert(said, kinds[0])
    except msgspec.ValidationError as error:
        message = f"{action}: {error}"[:_SAID_MAX]
        raise InvalidRequest(message) from None
    return await desk.carry_out(action, request, Channel(server=_server(server, named), in_process=False))


def _server(token: str, named: Mapping[str, str]) -> str:
    """The MCP server that a subject's token stands for; `named` has those of the configuration by theirs.

    Raises:
        InvalidRequest: the token is no server's, but looks like the name of one.
    """
    name = named.get(token) or token_text(token)
    if not name or (tenant_token(name) != token and not token.startswith(DIGEST)):
        message = f"{token!r:.80} stands for no MCP server: its token is {tenant_token(name)}"
        raise InvalidRequest(message)
    return name


def failed(error: TasktrailError) -> Failed:
    """An error as the wire says it."""
    return Failed(
        reason=error.reason,
        message=error.message,
        code=error.code,
        retriable=error.retriable,
        written=error.written,
        retry_after_ms=error.retry_after_ms,
    )


def _encode(answer: dict[str, object]) -> bytes:
    return msgspec.json.encode(answer)
