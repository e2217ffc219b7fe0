"""One POST to the tasks endpoint: what it asks, who says so, and how it is answered. Free of any framework.

Guarantees: the body is one JSON-RPC message of strict JSON, not larger than a command over NATS may be; a header that a
proxy may have routed by is there once or not at all; nothing of a request is recorded but what claims and requests
elsewhere are cut to. Source: MCP 2026-07-28 and 2025-11-25, streamable HTTP.

    asked = read(scope, body, server="reports", bytes_max=…)
    answered(asked.id, {"result": {…}}).body
"""

import base64
import ipaddress
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, cast

import msgspec

from tasktrail.events.errors import InvalidRequest, TasktrailError, TooLarge
from tasktrail.services import strict_json, wire, wire_2025
from tasktrail.services.access.callers import Channel
from tasktrail.services.access.claims import text
from tasktrail.services.commands import DEPTH_MAX
from tasktrail.services.http.edge import Scope
from tasktrail.services.messages import TOKEN_MAX, Call, Caller

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION = -32020, -32021, -32022
STATUSES = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    INVALID_PARAMS: 400,
    HEADER_MISMATCH: 400,
    MISSING_CAPABILITY: 400,
    UNSUPPORTED_VERSION: 400,
    METHOD_NOT_FOUND: 404,
}
"""The HTTP status of a JSON-RPC error on the 2026-07-28 wire; 200 of any other."""

VERSION, METHOD, NAME = "mcp-protocol-version", "mcp-method", "mcp-name"
VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"

IPV6 = 6
NO_SERVER = "tasktrail"
"""The server of a request whose path names none."""
_ONCE = (VERSION, METHOD, NAME, "authorization", "content-type")
_TASKS = frozenset(f"tasks/{one}" for one in ("get", "update", "cancel", "list", "result"))
_TOLD = frozenset({*_TASKS, "initialize", "ping", "subscriptions/listen", "tools/call", "tools/list"})
"""Methods that are recorded by name; one that anybody made up is not, for each name would begin an entry."""
_ENCODED = re.compile(r"=\?base64\?(.*)\?=")
_JSON = "application/json"
_RESPONSE = "response"
"""What the answer to a question is called on the trail: it has no method of its own."""


class Refused(Exception):
    """A request that is answered with a JSON-RPC error. `status`: of HTTP, where the code alone does not say it."""

    def __init__(self, code: int, message: str, data: object = None, *, status: int = 0) -> None:
        super().__init__(message)
        self.error: dict[str, Any] = {"code": code, "message": message, **({} if data is None else {"data": data})}
        self.status = status
        self.headers: dict[str, str] = {}

    @property
    def retriable(self) -> bool:
        """Whether the same request may succeed later."""
        return bool(_object(self.error.get("data")).get("retriable"))


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One JSON-RPC message, of `size` bytes. `id` is None for a notification; `answer` is what a response brings."""

    id: int | str | None
    method: str
    params: dict[str, Any]
    answer: dict[str, Any] | None
    size: int
    headers: dict[str, str]
    caller: Caller
    call: Call
    channel: Channel

    @property
    def meta(self) -> dict[str, Any]:
        """The request's `_meta`."""
        return _object(self.params.get("_meta"))

    @property
    def modern(self) -> bool:
        """Whether it is of the 2026-07-28 wire, whose requests say so themselves."""
        return self.headers.get(VERSION) == wire.REVISION or VERSION_KEY in self.meta


def read(scope: Scope, body: bytes, *, server: str, bytes_max: int) -> Asked:
    """The message that a request brings.

    Raises:
        Refused: it is none, or its headers say two things.
    """
    headers = _headers(scope)
    try:
        said = strict_json.decode(body, bytes_max=bytes_max, depth_max=DEPTH_MAX, payloads=True)
    except TooLarge as error:
        raise Refused(INVALID_REQUEST, error.message, status=413) from None
    except InvalidRequest as error:
        raise Refused(PARSE_ERROR, error.message, status=400) from None
    message = _object(said)
    rpc_id, method, answer = message.get("id"), message.get("method"), _answer(message)
    if (
        message.get("jsonrpc") != "2.0"
        or not (isinstance(method, str) if answer is None else "method" not in message)
        or ("id" in message and (isinstance(rpc_id, bool) or not isinstance(rpc_id, int | str)))
        or not isinstance(message.get("params", {}), dict)
    ):
        raise Refused(INVALID_REQUEST, "the body is not a single JSON-RPC 2.0 message", status=400)
    asked = Asked(
        id=rpc_id,
        method=method or _RESPONSE,
        params=_object(message.get("params")),
        answer=answer,
        size=len(body),
        headers=headers,
        caller=_caller(headers),
        call=Call(method=""),
        channel=Channel(server=server, in_process=False, claimed=server != NO_SERVER),
    )
    return msgspec.structs.replace(asked, call=_call(scope, asked))


def _answer(message: dict[str, Any]) -> dict[str, Any] | None:
    """What a response answers; an error is an answer, too, though none that a question takes."""
    if "error" in message and "id" in message:
        return {"error": message["error"]}
    return _object(message["result"]) if "result" in message and "id" in message else None


def _headers(scope: Scope) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in cast("list[tuple[bytes, bytes]]", scope["headers"]):
        key = name.decode("latin-1").lower()
        if key in found and key in _ONCE:
            code = HEADER_MISMATCH if key in {VERSION, METHOD, NAME} else INVALID_REQUEST
            raise Refused(code, f"the header {key} is there more than once", status=400)
        found.setdefault(key, value.decode("latin-1"))
    if found.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        raise Refused(INVALID_REQUEST, f"send the body as Content-Type: {_JSON}", status=415)
    if not accepts(found, _JSON):
        raise Refused(INVALID_REQUEST, f"the answer is {_JSON}, which the header Accept leaves out", status=406)
    return found


def accepts(headers: Mapping[str, str], kind: str) -> bool:
    """Whether a client takes answers of this media type."""
    said = {part.partition(";")[0].strip().lower() for part in headers.get("accept", "*/*").split(",")}
    return bool(said & {kind, f"{kind.partition('/')[0]}/*", "*/*"})


def header_text(value: str) -> str | None:
    """What a header says (SEP-2243): as it stands, or as base64 between `=?base64?` and `?=`; None for bad base64."""
    found = _ENCODED.fullmatch(value)
    if found is None:
        return value
    try:
        raw = base64.b64decode(found[1], validate=True)
        return raw.decode("utf-8") if base64.b64encode(raw).decode("ascii") == found[1] else None
    except ValueError:
        return None


def _caller(headers: Mapping[str, str]) -> Caller:
    """Who calls: by the bearer token, for us to verify; nobody without one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return Caller()
    token = token.strip()
    if not 0 < len(token) <= TOKEN_MAX:
        refusal = Refused(INVALID_REQUEST, "send a token: Authorization: Bearer …", status=400)
        refusal.headers["WWW-Authenticate"] = 'Bearer error="invalid_request"'
        raise refusal
    return Caller(token=token)


def peer(scope: Scope) -> str:
    """The address that a request comes from."""
    client = cast("tuple[str, int] | None", scope.get("client"))
    return client[0] if client else ""


def neighbourhood(address: str) -> str:
    """The address, or the /64 of one of IPv6: whoever has one of these has them all (RFC 6177)."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((known, 64), strict=False)) if known.version == IPV6 else address


def _call(scope: Scope, asked: Asked) -> Call:
    return Call(
        method=asked.method if asked.method in {*_TOLD, _RESPONSE} else "http",
        protocol_version=text(asked.headers.get(VERSION) or asked.meta.get(VERSION_KEY)),
        wire=wire.WIRE if asked.modern else wire_2025.WIRE,
        rpc_id=wire.rpc_id(asked.id),
        traceparent=text(asked.meta.get("traceparent") or asked.headers.get("traceparent")),
        address=text(peer(scope)),
        forwarded_for=text(asked.headers.get("x-forwarded-for")),
    )


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def message(rpc_id: int | str | None, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON-RPC response: `outcome` is its member `result` or `error`."""
    return {"jsonrpc": "2.0", "id": rpc_id, **outcome}


def answered(rpc_id: int | str | None, outcome: Mapping[str, Any], status: int = HTTPStatus.OK) -> Reply:
    """A response as it is sent."""
    return Reply(status, msgspec.json.encode(message(rpc_id, outcome)), {"Content-Type": _JSON})


def refused(error: TasktrailError) -> Refused:
    """An error of ours as it is answered."""
    told = wire.rpc_error(error)
    return Refused(told["code"], told["message"], told.get("data"))
