"""How to reach NATS: servers and credentials, from settings, a file that `up` wrote, or a URL.

Guarantees: needs nats-py and msgspec only; credentials are never shown by `repr`; reconnects for ever.

    connection = Connection.from_text("nats://adapter:secret@127.0.0.1:4222")
    nc = await connection.connect(name="reports")
"""

import logging
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import nats
from nats.aio.client import Client

from tasktrail.events.errors import InvalidRequest

_log = logging.getLogger(__name__)

CONNECT_S = 5.0


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """Servers (URLs without credentials), and at most one kind of credential."""

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
            url = urlsplit(part.strip())
            if url.scheme not in {"nats", "tls", "ws", "wss"} or not url.hostname:
                message = f"{part.strip()!r} is no NATS URL; write nats://host:4222, several separated by commas"
                raise InvalidRequest(message)
            user, password = unquote(url.username or user), unquote(url.password or password)
            host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
            servers.append(f"{url.scheme}://{host}:{url.port or 4222}")
        return cls(servers=servers, user=user, password=password, credentials=str(credentials or ""))

    @classmethod
    def _from_file(cls, path: Path) -> "Connection":
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except OSError as error:
            message = f"{path}: {error.strerror}; give a nats:// URL or the adapter.json of a running `tasktrail up`"
            raise InvalidRequest(message) from None
        except msgspec.DecodeError as error:
            message = f"{path} is no connection file ({error}); start `tasktrail up` again to have it written anew"
            raise InvalidRequest(message) from None

    async def connect(self, name: str) -> Client:
        """Connect, and keep reconnecting when the connection is lost later.

        Raises:
            OSError, nats.errors.Error: none of the servers answers now.
        """
        options: dict[str, Any] = {}
        if self.user:
            options |= {"user": self.user, "password": self.password}
        if self.credentials:
            options["user_credentials"] = self.credentials
        if self.inbox_prefix:
            options["inbox_prefix"] = self.inbox_prefix

        async def complain(error: Exception) -> None:
            _log.warning("NATS: %s", str(error) or type(error).__name__)

        return await nats.connect(
            self.servers,
            name=name,
            connect_timeout=CONNECT_S,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=self.reconnect_wait_s,
            error_cb=complain,
            **options,
        )
