"""The edge of the HTTP surface: who may speak to it at all. Plain ASGI, before any framework.

Guarantees, for every request and in this order: the Host is one of ours and the Origin, if any, is the same (a web page
that rebinds its name to this address gets 421 or 403); what is sent to `/mcp` goes to the tasks endpoint, which callers
of MCP servers reach with their own tokens (`endpoint.py`); elsewhere the token is an operator's, compared in constant
time, except for `/healthz` and `/readyz`, and under `/ingest/`, where it is an MCP server's, good for the server it
names: neither opens what the other does, but for `/schema/`; the case that `Tasktrail-Case` names, if any, can be
recorded. What the operator or the server may do is decided, and recorded, by what is asked for (`admission.py`,
`access/`). A refusal is problem+json and is logged without what was presented; no response may be stored.

    Edge(app, token=token, hosts=Hosts(bound="127.0.0.1"), operators=settings.operators, servers=Servers(…))
"""

import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, TypeAlias, cast

import msgspec

from tasktrail.events.errors import InvalidRequest, TasktrailError
from tasktrail.services.configuration import Operator
from tasktrail.services.http.problems import MEDIA_TYPE, Problem, of_error, problem, refusal
from tasktrail.services.operators import CASE_HEADER, Asker, Operators, Person, case_of
from tasktrail.services.servers import SERVER_HEADER, Servers

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC = frozenset({"/healthz", "/readyz"})
PERSON = "tasktrail.person"
"""Where the scope of an admitted request holds the operator."""
CASE = "tasktrail.case"
"""Where it holds the case that the request names."""
INGEST = "/ingest/"
"""What MCP servers speak to, begins with this."""
SERVER = "tasktrail.server"
"""Where the scope of such a request holds the name of the MCP server."""
SCHEMA = "/schema/"
MCP = "/mcp"
"""Where the tasks endpoint is."""
CHALLENGE = 'Bearer realm="tasktrail"'
UNAUTHORISED = "unauthorised"
"""The reason of the 401."""

_ALWAYS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
_OR_A_SERVERS = "or the token of an MCP server that may speak to /ingest/, "
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")
_WILDCARDS = frozenset({"", "0.0.0.0", "::", "*"})  # noqa: S104 - recognised, not bound

_log = logging.getLogger("tasktrail.http")


class Hosts:
    """The names this surface answers to: loopback ones, the bound host, and `extra` ones (a proxy's, say).

    Bound to every address, it also answers to any address written as a number: a page cannot rebind a number.
    """

    def __init__(self, bound: str, extra: Iterable[str] = ()) -> None:
        self._names = {"localhost", *(_bare(name) for name in extra)}
        self._any_address = bound in _WILDCARDS
        if not self._any_address:
            self._names.add(_bare(bound))

    def admits(self, authority: str) -> bool:
        """Whether a Host header's value names us; the port does not matter."""
        found = _AUTHORITY.fullmatch(authority)
        if not found:
            return False
        name = _bare(found[1])
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or self._any_address


def _bare(name: str) -> str:
    return name.strip("[]").rstrip(".").lower()


class Edge:
    """Checks each request, then lets the application answer it."""

    def __init__(  # noqa: PLR0913 - everyone who may speak to it
        self,
        app: Application,
        *,
        token: str,
        hosts: Hosts,
        operators: Iterable[Operator] = (),
        servers: Servers | None = None,
        endpoint: Application | None = None,
    ) -> None:
        """`token` is the responder token; `operators` are the named ones beside it, `servers` the MCP servers;
        `endpoint` answers at `/mcp`.
        """  # noqa: D205 - one sentence
        self._app, self._endpoint = app, endpoint
        self._operators = Operators(token, operators)
        self._servers = servers or Servers()
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._foreign(scope)
        if refusal is None and self._endpoint is not None and f"{scope['path']}/".startswith(f"{MCP}/"):
            await self._endpoint(scope, receive, _marking(send))
            return
        if refusal is None and scope["path"] not in PUBLIC:
            refusal = self._unadmitted(scope)
        if refusal is None:
            await self._app(scope, receive, _marking(send))
            return
        _log_refusal(scope, refusal)
        headers = {"WWW-Authenticate": _challenge(scope)} if refusal.status == 401 else {}  # noqa: PLR2004
        await _answer(_marking(send), refusal, headers, head=scope["method"] == "HEAD")

    def _foreign(self, scope: Scope) -> Problem | None:
        """Why this was not sent to us, or by a page of another's."""
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not self._hosts.admits(hosts[0]):
            return problem(
                421,
                "wrong_host",
                "this service does not answer to that Host; use a loopback name or the address it listens on, or "
                "configure the name as one of its hosts",
            )
        origins = _values(scope, b"origin")
        if origins and (len(origins) > 1 or not _same(origins[0], hosts[0])):
            return problem(403, "foreign_origin", "requests from pages of another origin are refused")
        return None

    def _unadmitted(self, scope: Scope) -> Problem | None:
        """Why whoever sends this may not; who may is put into the scope."""
        token = _bearer(scope)
        if scope["path"].startswith(INGEST):
            try:
                scope[SERVER] = self._servers.speaking(token, _text(scope, SERVER_HEADER))
            except TasktrailError as error:
                return refusal(error)
            return None
        try:
            person = self._operators.who(token)
            if person is not None:
                scope[PERSON], scope[CASE] = person, case_of(_text(scope, CASE_HEADER))
                return None
        except InvalidRequest as error:
            return of_error(error)
        if scope["path"].startswith(SCHEMA) and self._servers.whose(token):
            return None
        return problem(
            401,
            UNAUTHORISED,
            "send your operator's token, or the one in the file responder.token of the data directory, "
            f"{_OR_A_SERVERS if scope['path'].startswith(SCHEMA) else ''}as `Authorization: Bearer …`",
        )


def asker(scope: Mapping[str, object]) -> Asker:
    """Who makes an admitted request, and from which peer address."""
    person = cast("Person", scope[PERSON])
    client = cast("tuple[str, int] | None", scope.get("client"))
    return Asker(
        token_hash=person.token_hash,
        address=client[0] if client else "",
        operator=person.name,
        rights=person.rights,
        case_id=cast("str", scope.get(CASE, "")),
    )


def _bearer(scope: Scope) -> str:
    """The token of a request; empty, which is nobody's, when there is not exactly one."""
    presented = _values(scope, b"authorization")
    scheme, _, token = presented[0].partition(" ") if len(presented) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else ""


def _text(scope: Scope, header: str) -> str:
    """The text of a header, empty where it is not given. Raises InvalidRequest."""
    said = _values(scope, header.lower().encode())
    if len(said) > 1:
        message = f"{header} is given more than once"
        raise InvalidRequest(message)
    try:
        return said[0].encode("latin-1").decode("utf-8") if said else ""
    except UnicodeDecodeError:
        message = f"{header} is no UTF-8 text"
        raise InvalidRequest(message) from None


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _same(origin: str, host: str) -> bool:
    """Whether an Origin is the page of this very host. The scheme may be a proxy's; a default port may be left out."""
    scheme, separator, authority = origin.partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme.lower())
    if not separator or port is None:
        return False
    return authority.lower().removesuffix(port) == host.lower().removesuffix(port)


def _challenge(scope: Scope) -> str:
    """RFC 6750, section 3: no error code when nothing was presented."""
    return f'{CHALLENGE}, error="invalid_token"' if _values(scope, b"authorization") else CHALLENGE


def _log_refusal(scope: Scope, refusal: Problem) -> None:
    # Neither path nor headers: a stranger may have put anything there, a token or a task id too.
    client = scope.get("client")
    _log.warning(
        "http_refused reason=%s status=%d method=%s address=%s",
        refusal.reason,
        refusal.status,
        scope["method"] if scope["method"].isalpha() else "-",
        client[0] if client else "-",
    )


def _marking(send: Send) -> Send:
    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_ALWAYS]
        await send(message)

    return marked


async def _answer(send: Send, refusal: Problem, headers: dict[str, str], *, head: bool) -> None:
    body = msgspec.json.encode(refusal)
    fields = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body)), **headers}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if head else body})
