"""How to reach NATS: servers and credentials, from settings, a file that `up` wrote, or a URL.

Guarantees: credentials are never shown by `repr`, and none are read from a file that others can read; reconnects for
ever. Needs nats-py and msgspec only; for a credentials file also nkeys, which is in `tasktrail[nkeys]`.

    connection = Connection.from_text("nats://adapter:secret@127.0.0.1:4222")
    nc = await connection.connect(name="reports")

A connection file is JSON with these members; a path in it is relative to it:

    {"servers": ["tls://nats.example:4222"], "credentials": "reports.nk", "inbox_prefix": "_INBOX.reports"}
"""

import asyncio
import importlib.util
import logging
import os
import re
import stat
import time
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec
from nats.aio.client import Client

from tasktrail.events.errors import InvalidRequest

_log = logging.getLogger(__name__)

CONNECT_S = 5.0
QUIET_S = 30.0
"""A connection that keeps failing for the same reason says so this often."""
VIOLATION = "violation"
"""In each error by which a NATS server refuses a login or a subject."""


_OTHERS = 0o077
_CREDENTIALS_BYTES_MAX = 64 * 1024
_SEED = re.compile(rb"SU[A-Z2-7]{56}")
_JWT = b"BEGIN NATS USER JWT"


class Secret(StrEnum):
    """What a NATS credentials file holds."""

    NKEY = "nkey"  # the seed of a user's nkey, alone (ADR-14 of NATS)
    JWT = "jwt"  # a user's JWT and its seed, as `nsc` writes them


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """Servers (URLs without credentials), and at most one kind of credential.

    `credentials` is the path of a file with an nkey's seed or of a `.creds` file; `inbox_prefix` is where replies come
    to, which the user's permissions have to allow.
    """

    servers: list[str]
    user: str = ""
    password: str = ""
    credentials: str = ""
    inbox_prefix: str = ""
    reconnect_wait_s: float = 0.25

    def __repr__(self) -> str:
        return f"Connection(servers={self.servers!r}, user={self.user!r})"

    @classmethod
    def from_text(cls, text: str, credentials: Path | None = None) -> "Connection":
        """From comma-separated `nats://` URLs, or the path of a JSON file that `tasktrail up` wrote.

        Raises:
            InvalidRequest: it is neither.
        """
        if "://" not in text:
            return cls._from_file(Path(text))
        servers: list[str] = []
        user = password = ""
        for part in text.split(","):
            url = _nats_url(part.strip())
            user = unquote(url.username) if url.username else user
            password = unquote(url.password) if url.password else password
            host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
            servers.append(f"{url.scheme}://{host}:{url.port or 4222}")
        return cls(servers=servers, user=user, password=password, credentials=str(credentials or ""))

    @classmethod
    def _from_file(cls, path: Path) -> "Connection":
        try:
            found = msgspec.json.decode(path.read_bytes(), type=cls)
        except OSError as error:
            url = f"nats://{path}" if ":" in str(path) else "nats://host:4222"
            message = (
                f"{path.absolute()}: {error.strerror}; give the adapter.json in the data directory of a running "
                f"`tasktrail up`, or the URL of a NATS server of your own ({url})"
            )
            raise InvalidRequest(message) from None
        except msgspec.DecodeError as error:
            message = f"{path} is no connection file ({error}); start `tasktrail up` again to have it written anew"
            raise InvalidRequest(message) from None
        if not found.servers:
            message = f"{path} names no NATS server; start `tasktrail up` again to have it written anew"
            raise InvalidRequest(message)
        if found.credentials:
            found = msgspec.structs.replace(found, credentials=str(path.parent / found.credentials))
        return found

    def secret(self) -> Secret:
        """What the credentials file, which there must be, holds.

        Raises:
            InvalidRequest: it holds neither, cannot be read, or can be by others; or the package nkeys is missing.
        """
        if importlib.util.find_spec("nkeys") is None:
            message = "NATS credentials files need the package nkeys: pip install 'tasktrail[nkeys]'"
            raise InvalidRequest(message)
        try:
            with Path(self.credentials).open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                held = file.read(_CREDENTIALS_BYTES_MAX)
        except OSError as error:
            message = f"NATS credentials {self.credentials}: {error.strerror}"
            raise InvalidRequest(message) from None
        if mode & _OTHERS:
            message = (
                f"{self.credentials} can be read by others (mode {mode:04o}): "
                f"run chmod 600 {self.credentials}, and replace the key if they may have a copy"
            )
            raise InvalidRequest(message)
        if _SEED.fullmatch(held.strip()):
            return Secret.NKEY
        if _JWT in held:
            return Secret.JWT
        message = f"{self.credentials} holds neither the seed of a user's nkey (SU…) nor a user's JWT and seed (.creds)"
        raise InvalidRequest(message)

    def _login(self) -> dict[str, Any]:
        """The credential, as nats-py takes it."""
        if self.credentials:
            return {"nkeys_seed" if self.secret() is Secret.NKEY else "user_credentials": self.credentials}
        return {"user": self.user, "password": self.password} if self.user else {}

    async def connect(self, name: str, *, buffered: bool = True) -> Client:
        """Connect, and keep reconnecting when the connection is lost later.

        Not `buffered`: publishing while the connection is lost fails at once, instead of waiting for it to come back.

        Raises:
            TimeoutError: none of the servers took us within `CONNECT_S`; the message says what was seen last.
            InvalidRequest: as `secret`.
        """
        options = self._login()
        if self.inbox_prefix:
            options["inbox_prefix"] = self.inbox_prefix
        if not buffered:
            options["pending_size"] = 0
        seen, told, connected = "no answer", dict[str, float](), False

        async def complain(error: Exception) -> None:
            nonlocal seen, told
            if not connected and isinstance(error, ConnectionResetError) and VIOLATION in seen.lower():
                return  # how a server that refuses a login hangs up, now and then
            seen, now = str(error) or type(error).__name__, time.monotonic()
            told = {what: at for what, at in told.items() if now - at <= QUIET_S}
            if seen not in told:
                told[seen] = now
                _log.warning("NATS: %s", seen)

        nc = Client()
        try:
            async with asyncio.timeout(CONNECT_S):
                await nc.connect(
                    self.servers,
                    name=name,
                    connect_timeout=CONNECT_S,  # type: ignore[arg-type]  # nats-py takes fractions of a second
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=self.reconnect_wait_s,  # type: ignore[arg-type]  # as above
                    error_cb=complain,
                    **options,
                )
        except TimeoutError:
            await nc.close()
            message = f"no NATS server took us within {CONNECT_S:g} s at {', '.join(self.servers)}: {seen}"
            raise TimeoutError(message) from None
        except BaseException:
            await nc.close()
            raise
        connected = True
        return nc


async def settle(nc: Client) -> None:
    """Return when the server has taken every subscription and message that `nc` was given before.

    One `flush` is no such barrier: nats-py 2.16 sends its PING ahead of what is still in its buffer, and what another
    client sends upon the PONG can meet a server that has not seen the subscription yet (once in about 250 times).

    Raises:
        nats.errors.Error: as `Client.flush`.
    """
    await nc.flush()
    await nc.flush()


def _nats_url(text: str) -> SplitResult:
    url = urlsplit(text)
    try:
        fits = url.scheme in {"nats", "tls", "ws", "wss"} and bool(url.hostname) and url.port != 0
    except ValueError:
        fits = False
    if not fits:
        shown = f"{url.scheme}://…" if url.scheme else "a text without a scheme"
        message = (
            f"{shown} is no NATS URL; write nats://host:4222, several separated by commas, or give the adapter.json in "
            "the data directory of a running `tasktrail up`"
        )
        raise InvalidRequest(message)
    return url
