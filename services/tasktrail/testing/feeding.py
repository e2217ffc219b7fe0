"""A plain NATS client that feeds a running tasktrail as an adapter does: JSON in, JSON out, nothing of ours.

Guarantees: `settled` sends the same command id until the service says what became of it, over lost connections and
restarts, as the documentation asks of adapters; what it returns was acknowledged.

    feeder = await Feeder.connect(up.adapter(), "reports")
    task = (await feeder.settled("create", creation(ANA, "c-1", tool="report")))["task_id"]
    await feeder.close()
"""

import asyncio
import time
from typing import Any, Self

import msgspec
from nats.aio.client import DEFAULT_INBOX_PREFIX, Client
from nats.errors import Error as NatsError

from tasktrail.services.connection import Connection

ANSWER_S = 5.0
SETTLED_WITHIN_S = 60.0
_PAUSE_S = 0.2
_RECONNECT_S = 0.05

Json = dict[str, Any]


def caller(sub: str, iss: str = "https://id.example", client_id: str = "cli", *, token_hash: str = "") -> Json:
    """A caller whom the adapter verified by a JWT."""
    return {
        "iss": iss,
        "sub": sub,
        "client_id": client_id,
        "credential": {"method": "jwt", "token_hash": token_hash or "h" * 43, "jti": f"jti-{sub}"},
    }


def asked(who: Json, method: str, **fields: object) -> Json:
    """The body of a caller's request."""
    call = {"method": method, "wire": "2026-07-28", "protocol_version": "2026-07-28", "rpc_id": "7"}
    return {"caller": who, "call": call, **fields}


def creation(who: Json, command_id: str, tool: str = "report", arguments: object = None, **fields: object) -> Json:
    """The body of `create`."""
    said = {"command_id": command_id, "tool": tool, "task_support": "optional", "arguments": arguments, **fields}
    return asked(who, "tools/call", **said)


class Refused(Exception):
    """The service answered with an error; `error` holds the fields of `messages.Failed`."""

    def __init__(self, error: Json) -> None:
        super().__init__(f"{error.get('reason')}: {error.get('message')}")
        self.error = error

    @property
    def reason(self) -> str:
        """The stable word."""
        return str(self.error.get("reason"))


class Feeder:
    """One connection of one MCP server. `sent` counts requests, repeated ones too."""

    def __init__(self, nc: Client, server: str, broken: asyncio.Event) -> None:
        self.nc, self.server = nc, server
        self.sent = 0
        self._broken = broken

    @classmethod
    async def connect(cls, connection: Connection, server: str) -> Self:
        """Connect, and keep reconnecting.

        Raises:
            nats.errors.Error, OSError: nobody answers now.
        """
        broken = asyncio.Event()

        async def lost() -> None:
            broken.set()

        async def back() -> None:
            broken.clear()

        async def quiet(_: Exception) -> None:
            return None

        nc = Client()
        await nc.connect(
            connection.servers,
            user=connection.user,
            password=connection.password,
            inbox_prefix=connection.inbox_prefix or DEFAULT_INBOX_PREFIX,
            max_reconnect_attempts=-1,
            reconnect_time_wait=_RECONNECT_S,  # type: ignore[arg-type,unused-ignore]  # takes fractions of a second
            disconnected_cb=lost,
            reconnected_cb=back,
            error_cb=quiet,
        )
        return cls(nc, server, broken)

    async def close(self) -> None:
        """Disconnect."""
        await self.nc.close()

    async def request(self, action: str, said: Json | bytes, within_s: float = ANSWER_S) -> Json:
        """What the service answers.

        Raises:
            Refused: an error.
            NatsError: nobody answers, or the connection broke before the answer came.
        """
        body = said if isinstance(said, bytes) else msgspec.json.encode(said)
        self.sent += 1
        answer = msgspec.json.decode(await self.raw(action, body, within_s))
        if "error" in answer:
            raise Refused(answer["error"])
        done: Json = answer["ok"]
        return done

    async def raw(self, action: str, body: bytes, within_s: float = ANSWER_S) -> bytes:
        """The bytes of the answer, or NatsError."""
        if self._broken.is_set():
            message = "the connection is down"
            raise NatsError(message)
        subject = f"tasktrail.cmd.{self.server}.{action}"
        request = asyncio.ensure_future(self.nc.request(subject, body, timeout=within_s))
        broken = asyncio.ensure_future(self._broken.wait())
        try:
            await asyncio.wait({request, broken}, return_when=asyncio.FIRST_COMPLETED)
            if not request.done():
                message = "the connection broke before the answer came"
                raise NatsError(message)
            return (await request).data
        finally:
            request.cancel()
            broken.cancel()
            await asyncio.gather(request, broken, return_exceptions=True)

    async def settled(self, action: str, said: Json, within_s: float = SETTLED_WITHIN_S) -> Json:
        """The answer, however often the same request has to be sent for it.

        Raises:
            Refused: an error that is not to be tried again.
            TimeoutError: none within `within_s`; with what was seen last.
        """
        deadline = time.monotonic() + within_s
        while True:
            try:
                return await self.request(action, said)
            except Refused as refused:
                if not refused.error.get("retriable"):
                    raise
                seen: Exception = refused
            except (NatsError, OSError) as error:
                seen = error
            if time.monotonic() > deadline:
                message = f"{action}: no answer within {within_s:g} s; seen last: {seen!r}"
                raise TimeoutError(message)
            await asyncio.sleep(_PAUSE_S)
