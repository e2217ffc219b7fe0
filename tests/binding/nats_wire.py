"""The wire `nats`: an MCP server in any language, which says by NATS request/reply what its callers ask. Needs nats-py.

Nothing of ours connects: the login is the server's own, read from its file as JSON; the subjects are those of the
AsyncAPI document that the running service serves, and every request and every answer is held against its schemas.

    async with installed_on_nats("forwarded", tmp_path) as place:
        made = await place.wire.create(ana.token(), "exact")
"""

import asyncio
import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import nats
from jsonschema import Draft202012Validator
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from tests.binding.installation import Identity, Installation
from tests.binding.played_wire import SERVER, WITHIN_S, Json, PlayedWire, key, played
from tests.binding.wire import Outcome

from tasktrail.mcp.verifier import JwtVerifier
from tasktrail.testing.service import UpProcess

WITHOUT_ID = frozenset({"get", "list", "watch", "unwatch", "refusal"})
"""The commands that change nothing, and so have no id."""


class Document:
    """What goes over NATS, as the service itself says."""

    def __init__(self, up: UpProcess) -> None:
        status, body = up.get("/schema/asyncapi.json")
        assert status == 200, body
        self._said: Json = json.loads(body)
        self._validators: dict[str, Draft202012Validator] = {}

    def subject(self, channel: str, **parameters: str) -> str:
        """Where something goes."""
        address: str = self._said["channels"][channel]["address"]
        return address.format(server=SERVER, **parameters)

    def check(self, message: str, body: object) -> None:
        """See that a message is as the document has it. Raises jsonschema.ValidationError."""
        if message not in self._validators:
            schema = {"$ref": f"#/components/messages/{message}/payload", "components": self._said["components"]}
            self._validators[message] = Draft202012Validator(schema)
        self._validators[message].validate(body)


class NatsWire(PlayedWire):
    """Callers of a server that speaks NATS."""

    kind = "nats"

    def __init__(self, up: UpProcess, verifier: JwtVerifier | None, revision: str = "2026-07-28") -> None:
        super().__init__(verifier, revision)
        self._login = up.data / "servers" / f"{SERVER}.json"
        self._document = Document(up)
        self._nc: Client | None = None
        self._connecting = asyncio.Lock()
        self._lost = asyncio.Event()

    async def close(self) -> None:
        """Stop working, and close the connection."""
        if self._nc is not None:
            await self._nc.close()
            self._nc = None

    async def reconnect(self) -> None:
        """Leave the connection; the next request takes a new one."""
        await self.close()

    async def _connected(self) -> Client:
        """The connection, a new one where the last is gone: a restart moves the broker."""
        async with self._connecting:
            if self._nc is not None and self._nc.is_connected:
                return self._nc
            await self.close()
            self._lost.clear()
            login: Json = json.loads(self._login.read_bytes())
            nc = await nats.connect(
                login["servers"],
                user=login["user"],
                password=login["password"],
                inbox_prefix=login["inbox_prefix"],
                allow_reconnect=False,
                error_cb=_quiet,
                closed_cb=self._closed,
            )
            await nc.subscribe(self._document.subject("signals", task_ref="*"), cb=self._signalled)
            self._nc = nc
            return nc

    async def say(self, action: str, said: Json) -> tuple[Outcome, Json]:
        """One request."""
        body = json.dumps(said if action in WITHOUT_ID else {**said, "command_id": key()}).encode()
        self._document.check(f"{action}.request", json.loads(body))
        try:
            raw = await self._answered(self._document.subject(action), body)
        except (NatsError, OSError):
            return Outcome(allowed=False, status=0, raw=b""), {}
        answer: Json = json.loads(raw)
        self._document.check(f"{action}.answer", answer)
        error: Json = answer.get("error", {})
        return Outcome(allowed=not error, status=error.get("code", 0), raw=raw), error or answer["ok"]

    async def _answered(self, subject: str, body: bytes) -> bytes:
        """The answer to a request. Raises NatsError or OSError when none comes, at once when the connection breaks."""
        nc = await self._connected()
        asked = asyncio.ensure_future(nc.request(subject, body, timeout=WITHIN_S))
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait({asked, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                message = "the connection broke before the answer came"
                raise NatsError(message)
            return (await asked).data
        finally:
            asked.cancel()
            lost.cancel()
            await asyncio.gather(asked, lost, return_exceptions=True)

    async def _closed(self) -> None:
        """The connection is gone."""
        self._lost.set()

    async def _signalled(self, msg: Msg) -> None:
        """A task of the server moved."""
        move = json.loads(msg.data)
        self._document.check("signal", move)
        await self.heed(msg.subject.rpartition(".")[2], move)


async def _quiet(_: Exception) -> None:
    """The service is restarted in some tests."""


def installed_on_nats(identity: Identity, directory: Path) -> AbstractAsyncContextManager[Installation]:
    """Start everything; `identity` is how callers' identity reaches tasktrail."""
    return played(identity, directory, NatsWire)
