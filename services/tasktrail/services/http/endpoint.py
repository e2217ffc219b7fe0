"""The tasks endpoint: `POST /mcp` and `/mcp/{server}` answer `tasks/*` of both wires in the MCP servers' stead.

Guarantees: who calls is whom the request's own token names, verified here, or nobody; never whom anybody says; what is
asked goes to the same desk as the MCP servers' requests, so it is decided and recorded alike; a credential that is
refused outright gets 401, and is on the trail; bodies are strict JSON, large ones take turns; nothing is remembered
between requests, so any replica answers any of them. Plain ASGI. Sources: MCP 2026-07-28 with SEP-2663 and SEP-2243,
MCP 2025-11-25 (streamable HTTP, tasks, authorization).

    Edge(app, …, endpoint=Endpoint(service.desk, service.callers, Earlier(…), payload_max_bytes=…))
"""

import asyncio
import logging
import secrets
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from tasktrail.events.authority import Binding, identity
from tasktrail.events.errors import NotAuthorised, RateLimited, TaskNotFound, TasktrailError
from tasktrail.services import messages, strict_json, wire, wire_2025
from tasktrail.services.access.asking import stranger
from tasktrail.services.access.callers import Callers
from tasktrail.services.access.desk import Desk
from tasktrail.services.access.rules import Rule
from tasktrail.services.commands import ENVELOPE_BYTES
from tasktrail.services.ending import end
from tasktrail.services.http import endpoint_requests as requests
from tasktrail.services.http.edge import MCP, Receive, Scope, Send
from tasktrail.services.http.endpoint_requests import NO_SERVER, Asked, Refused, Reply, accepts, answered, read, refused
from tasktrail.services.http.endpoint_results import Earlier, Message, Messages
from tasktrail.services.messages import TaskView
from tasktrail.services.servers import NAME_MAX
from tasktrail.services.turns import Turns
from tasktrail.services.wire_2025 import Question

READ_WITHIN_S = 30.0
"""How long a body may take to come."""
LISTEN = "subscriptions/listen"
EVENT_STREAM = "text/event-stream"
METHODS = frozenset({"tasks/get", "tasks/update", "tasks/cancel"})
EARLIER_METHODS = frozenset({"tasks/get", "tasks/list", "tasks/cancel", "tasks/result"})

_log = logging.getLogger("tasktrail.http")
_STREAMED = {"Content-Type": EVENT_STREAM, "X-Accel-Buffering": "no"}


class Endpoint:
    """The endpoint as an ASGI application."""

    def __init__(self, desk: Desk, callers: Callers, earlier: Earlier, *, payload_max_bytes: int) -> None:
        self._desk, self._callers, self._earlier = desk, callers, earlier
        self._bytes_max = payload_max_bytes + ENVELOPE_BYTES
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        asked: Asked | None = None
        try:
            asked = await self._read(scope, receive)
            who = await self._admit(asked)
            if asked.method == "tasks/result" and not asked.modern and asked.id is not None:
                await self._result(asked, who, receive, send)
                return
            reply = await self._reply(asked)
        except _GoneError:
            return
        except TasktrailError as error:
            reply = _refusal(refused(error), asked)
        except Refused as refusal:
            reply = _refusal(refusal, asked)
        except Exception:  # noqa: BLE001 - the caller gets an answer whatever happens; the log has the rest
            _log.exception("http_mcp_failed")
            message = "internal error; the service's log has it"
            reply = _refusal(Refused(TasktrailError.code, message, status=500), asked)
        await _send(send, reply)

    async def _read(self, scope: Scope, receive: Receive) -> Asked:
        """The message that a request brings."""
        if scope["method"] != "POST":
            refusal = Refused(requests.INVALID_REQUEST, "this path takes POST only", status=405)
            refusal.headers["Allow"] = "POST"
            raise refusal
        server = _server(cast("str", scope["path"]))
        async with self._turns.reading(_size(scope), requests.neighbourhood(requests.peer(scope))):
            body = await _body(receive, self._bytes_max)
            async with self._turns.taken(len(body)):
                return read(scope, body, server=server, bytes_max=self._bytes_max)

    async def _admit(self, asked: Asked) -> Binding:
        """See that the credential, or that there is none, is not refused outright: 401, and on the trail first.

        Returns who calls; anonymous callers are told apart by their address.
        """
        authority, rule = await self._callers.authority(asked.caller, asked.call, asked.channel)
        who = identity(authority) if asked.caller.token else stranger(authority)
        if rule is None or rule is Rule.NOT_CHECKED:
            return who  # the gate says of the latter what there is to say
        handle = _handle(asked)
        get = messages.GetTask(caller=asked.caller, call=asked.call, task_id=handle, status_only=True)
        mine = messages.ListTasks(caller=asked.caller, call=asked.call, limit=1)
        try:  # either is refused at the gate for the same reason, and recorded
            await self._desk.carry_out("get" if handle else "list", get if handle else mine, asked.channel)
        except (TaskNotFound, NotAuthorised, RateLimited):
            pass  # the last one, too: what would help is another token, not to come again
        else:
            return who  # the credential holds by now
        presented = bool(asked.caller.token)
        refusal = Refused(NotAuthorised.code, "send a bearer token that is good for tasktrail", status=401)
        refusal.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"' if presented else "Bearer"
        raise refusal

    async def _report(self, asked: Asked, code: int, reason: str) -> None:
        """Put on the trail that a request is turned away here."""
        said = messages.ReportRefusal(
            caller=asked.caller, call=asked.call, code=code, reason=reason, task_id=_handle(asked)
        )
        await self._desk.carry_out("refusal", said, asked.channel)

    async def _reply(self, asked: Asked) -> Reply:
        if asked.answer is not None:
            return await self._answer(asked)
        if asked.id is None:
            return Reply(202)
        if asked.modern:
            return answered(asked.id, {"result": await self._modern(asked)})
        self._serves_earlier(asked)
        if asked.method == "tasks/list" and not asked.caller.token:
            # MCP 2025-11-25, tasks: a receiver that cannot tell requestors apart offers no list.
            raise Refused(requests.METHOD_NOT_FOUND, "tasks are listed for whoever sends a bearer token")
        earlier = self._earlier
        serving = {"tasks/get": earlier.get, "tasks/list": earlier.list, "tasks/cancel": earlier.cancel}
        return answered(asked.id, {"result": await serving[asked.method](asked)})

    # -- 2026-07-28 -------------------------------------------------------------------------------------------------

    async def _modern(self, asked: Asked) -> Message:
        """What a method of the extension comes to: -32021 before -32020 before -32602."""
        _enveloped(asked)
        served = asked.method in METHODS
        if served and not _declared(asked):
            await self._report(asked, requests.MISSING_CAPABILITY, "missing_capability")
            required: Message = {"requiredCapabilities": {"extensions": {wire.EXTENSION: {}}}}
            message = f"the client did not declare the extension {wire.EXTENSION}"
            raise Refused(requests.MISSING_CAPABILITY, message, required)
        if mismatch := _mismatch(asked):
            await self._report(asked, requests.HEADER_MISMATCH, "header_mismatch")
            raise Refused(requests.HEADER_MISMATCH, mismatch)
        if not served:
            raise _unknown(asked)
        handle = _handle(asked)
        if asked.method == "tasks/get":
            got = messages.GetTask(caller=asked.caller, call=asked.call, task_id=handle)
            return wire.got(cast("TaskView", await self._desk.carry_out("get", got, asked.channel)))
        if asked.method == "tasks/update":
            await self._update(asked, handle)
        else:
            cancel = messages.CancelTask(
                caller=asked.caller, call=asked.call, command_id=secrets.token_hex(16), task_id=handle
            )
            await self._desk.carry_out("cancel", cancel, asked.channel)
        return {"resultType": "complete"}

    async def _update(self, asked: Asked, handle: str) -> None:
        answers: object = asked.params.get("inputResponses")
        if not isinstance(answers, dict):
            raise Refused(requests.INVALID_PARAMS, "inputResponses is not an object")
        said = messages.UpdateTask(
            caller=asked.caller,
            call=asked.call,
            command_id=secrets.token_hex(16),
            task_id=handle,
            answers=cast("dict[str, Any]", answers),
        )
        async with self._turns.taken(asked.size):
            await self._desk.carry_out("update", said, asked.channel)

    # -- 2025-11-25 -------------------------------------------------------------------------------------------------

    @staticmethod
    def _serves_earlier(asked: Asked) -> None:
        _of_2025(asked)
        if asked.method not in EARLIER_METHODS:
            raise _unknown(asked)

    async def _answer(self, asked: Asked) -> Reply:
        """Take the answer to a question that `tasks/result` put, here or on another replica."""
        question = Question.of(asked.id)
        if asked.modern or question is None:
            raise Refused(requests.INVALID_REQUEST, "this answers no question of a task", status=400)
        _of_2025(asked)
        await self._earlier.answer(asked, question)
        return Reply(202)

    async def _result(self, asked: Asked, who: Binding, receive: Receive, send: Send) -> None:
        """`tasks/result`: at once when the task has ended, else as a stream."""
        self._serves_earlier(asked)
        stream = self._earlier.result(asked, who)
        try:
            first = await anext(stream)
            if first is not None:
                await _send(send, Reply(200, msgspec.json.encode(first), {"Content-Type": "application/json"}))
            elif not accepts(asked.headers, EVENT_STREAM):
                message = f"the answer is {EVENT_STREAM}, which the header Accept leaves out"
                raise Refused(requests.INVALID_REQUEST, message, status=406)
            else:
                await _stream(stream, receive, send)
        finally:
            await stream.aclose()


class _GoneError(Exception):
    """Whoever asked is gone."""


def _server(path: str) -> str:
    """The MCP server that a path names."""
    name = path.removeprefix(MCP).removeprefix("/")
    if len(name) > NAME_MAX or not name.isprintable() or "/" in name:
        raise Refused(requests.INVALID_REQUEST, f"POST {MCP}, or {MCP}/ and the name of an MCP server", status=404)
    return name or NO_SERVER


def _size(scope: Scope) -> int:
    """How many bytes the body has, as its sender says; as many as a large one where that is not said."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return strict_json.INTEGER_MAX
    return int(headers.get(b"content-length", b"0"))


async def _body(receive: Receive, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    left, more = bytes_max, True
    try:
        async with asyncio.timeout(READ_WITHIN_S):
            while more:
                part = await receive()
                if part["type"] != "http.request":
                    raise _GoneError
                parts.append(part.get("body", b""))
                left, more = left - len(parts[-1]), part.get("more_body", False)
                if left < 0:
                    message = f"the body is too large; at most {bytes_max} bytes are taken"
                    raise Refused(requests.INVALID_REQUEST, message, status=413)
    except TimeoutError:
        message = f"the body did not come within {READ_WITHIN_S:g} s"
        raise Refused(requests.INVALID_REQUEST, message, status=408) from None
    return b"".join(parts)


def _handle(asked: Asked) -> str:
    """The handle that a message names, as it travels; empty for none."""
    if asked.answer is not None:
        question = Question.of(asked.id)
        return wire.handle_text(question.task_id) if question else ""
    return wire.handle_text(asked.params.get("taskId"))


def _unknown(asked: Asked) -> Refused:
    if asked.method == LISTEN:
        message = f"{LISTEN} is not served here: send it to the MCP server, or poll with tasks/get"
    else:
        message = "Method not found: this endpoint answers the methods of tasks only"
    return Refused(requests.METHOD_NOT_FOUND, message)


def _unsupported(requested: str) -> Refused:
    served = {"supported": [wire.REVISION, wire_2025.REVISION], "requested": requested}
    return Refused(requests.UNSUPPORTED_VERSION, "Unsupported protocol version", served, status=400)


def _of_2025(asked: Asked) -> None:
    version = asked.headers.get(requests.VERSION, "")
    if version != wire_2025.REVISION:
        raise _unsupported(version)


def _enveloped(asked: Asked) -> None:
    """See that the request says of itself what each must (MCP 2026-07-28, base protocol)."""
    missing = [key for key in (requests.VERSION_KEY, requests.CAPABILITIES_KEY) if key not in asked.meta]
    if missing:
        raise Refused(requests.INVALID_PARAMS, f"params._meta lacks {', '.join(missing)}")
    version: object = asked.meta[requests.VERSION_KEY]
    if version == asked.headers.get(requests.VERSION) != wire.REVISION:
        raise _unsupported(str(version))


def _declared(asked: Asked) -> bool:
    capabilities: object = asked.meta[requests.CAPABILITIES_KEY]
    declared = cast("Mapping[str, object]", capabilities) if isinstance(capabilities, dict) else {}
    extensions = declared.get("extensions")
    return isinstance(extensions, dict) and wire.EXTENSION in extensions


def _mismatch(asked: Asked) -> str:
    """How a header that proxies route by differs from the body (SEP-2243); empty when none does."""
    if asked.headers.get(requests.VERSION) != asked.meta[requests.VERSION_KEY]:
        return "the MCP-Protocol-Version header does not match the request's protocol version"
    if asked.headers.get(requests.METHOD) != asked.method:
        return "the Mcp-Method header does not match the request's method"
    name = asked.headers.get(requests.NAME) if asked.method in METHODS else None
    if name is not None and requests.header_text(name) != asked.params.get("taskId"):
        return "the Mcp-Name header does not match the request's taskId"
    return ""


def _refusal(refusal: Refused, asked: Asked | None) -> Reply:
    """An error as it is answered; one to a response or a notification belongs to no request."""
    of_request = asked is not None and asked.answer is None
    reply = answered(asked.id if asked and of_request else None, {"error": refusal.error}, _status(refusal, asked))
    return reply._replace(headers={**reply.headers, **refusal.headers})


def _status(refusal: Refused, asked: Asked | None) -> int:
    if refusal.status:
        return refusal.status
    if asked is None or asked.answer is not None:
        return 503 if refusal.retriable else 400
    return requests.STATUSES.get(refusal.error["code"], 200) if asked.modern else 200


async def _send(send: Send, reply: Reply) -> None:
    fields = {**reply.headers, "Content-Length": str(len(reply.body))}
    await send({"type": "http.response.start", "status": reply.status, "headers": _raw(fields)})
    await send({"type": "http.response.body", "body": reply.body})


def _raw(fields: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]


async def _stream(stream: Messages, receive: Receive, send: Send) -> None:
    """Send messages as server-sent events until there are no more, or whoever asked is gone."""
    await send({"type": "http.response.start", "status": 200, "headers": _raw(_STREAMED)})
    writing = asyncio.create_task(_write(stream, send))
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if writing.done() and not writing.cancelled() and writing.exception() is not None:
            _log.error("http_mcp_failed", exc_info=writing.exception())
    finally:
        await end(writing)
        await end(gone)


async def _write(stream: Messages, send: Send) -> None:
    body = b": waiting\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})
    async for one in stream:
        body = b": still here\n\n" if one is None else b"event: message\ndata: %s\n\n" % msgspec.json.encode(one)
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
