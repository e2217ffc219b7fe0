"""The MCP servers that feed the service over HTTP: which server the bearer token of a request is good for.

Guarantees: a token is compared by its SHA-256 with every known one, in constant time, whichever it is; only digests are
kept. A token speaks in the name of the servers whose first fitting `[[servers]]` entry is its own, and of no other;
the token of the data directory, which is there while no server is configured, in the name of any.

    servers = Servers(settings.servers, everyone=open_token(data, SERVER_TOKEN_FILE))
    servers.speaking(token, "reports")  ->  "reports"
"""

import hashlib
import hmac
from collections.abc import Iterable
from fnmatch import fnmatchcase

from tasktrail.events.errors import InvalidRequest, NotAuthorised
from tasktrail.events.subjects import DIGEST
from tasktrail.services.configuration import ANY, McpServer

SERVER_HEADER = "Tasktrail-Server"
"""The header of a request that says which MCP server makes it."""
NAME_MAX = 128


class UnknownToken(NotAuthorised):
    """The token is no MCP server's."""

    http_status = 401
    written = "nothing"
    reason = "unauthorised"


class AnotherServer(NotAuthorised):
    """The token is not that of the MCP server that the request names."""

    written = "nothing"
    reason = "another_server"


class Servers:
    """Every MCP server that may speak over HTTP."""

    def __init__(self, configured: Iterable[McpServer] = (), *, everyone: str = "") -> None:
        """`everyone`: the token that is good for any server; not used once a server is configured."""
        self._configured = tuple(configured)
        self._known: list[tuple[bytes, str]] = [
            (bytes.fromhex(one.sha256), one.name) for one in self._configured if one.sha256
        ]
        if everyone and not self._configured:
            self._known.append((hashlib.sha256(everyone.encode()).digest(), ANY))

    def whose(self, token: str) -> str | None:
        """The name, or pattern of names, that a token is configured for; None when it is nobody's."""
        presented = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found: str | None = None
        for known, name in self._known:
            if hmac.compare_digest(presented, known) and found is None:
                found = name
        return found

    def speaking(self, token: str, named: str = "") -> str:
        """The MCP server that presents this token; `named` is who it says it is, which one configured whole need not.

        Raises:
            UnknownToken: it is nobody's token.
            AnotherServer: it is not the token of the server named.
            InvalidRequest: it is good for several, and the request names none, or the name cannot be one.
        """
        own = self.whose(token)
        if own is None:
            message = (
                "send the token of an MCP server as `Authorization: Bearer …`: one that [[servers]] has the digest "
                "of, or, while no server is configured, the one in the file server.token of the data directory"
            )
            raise UnknownToken(message)
        name = named or ("" if ANY in own else own)
        if not name:
            message = f"this token is good for several MCP servers: name yours in the header {SERVER_HEADER}"
            raise InvalidRequest(message)
        if len(name) > NAME_MAX or not name.isprintable() or name.startswith(DIGEST):
            message = f"{SERVER_HEADER} is at most {NAME_MAX} printable characters on one line, not {DIGEST} first"
            raise InvalidRequest(message)
        first = next((one.name for one in self._configured if fnmatchcase(name, one.name)), None)
        if own != (first or (ANY if not self._configured else None)):
            message = f"this token is not that of the MCP server {name!r}: see its entry in [[servers]]"
            raise AnotherServer(message)
        return name
