"""The routes by which MCP servers in any language feed the service, under `/ingest/v1`: all of `messages.ACTIONS`.

Guarantees: who speaks is the MCP server whose token the edge recognised; what is asked goes to the same desk as over
NATS, so it is decided and recorded alike; a task's id travels in bodies only, paths name its reference; a write needs
`Idempotency-Key`, which becomes the command's id: sent again it returns the first outcome, with another body it is
refused (draft-ietf-httpapi-idempotency-key-header-07); bodies are strict JSON, large ones take turns, so that memory is
bounded; refusals are problem+json with the JSON-RPC code to pass on, and `Retry-After` where it may be sent again.

    create_app(…, beside=[router(ingesting, payload_max_bytes=…)], closing=[ingesting.close])
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar, cast

import msgspec
from litestar import MediaType, Request, Response, Router, get, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.middleware import DefineMiddleware
from litestar.params import HeaderParameter, JSONBody, PathParameter, QueryParameter
from litestar.response import Stream

from tasktrail.events.errors import InvalidRequest, Unavailable
from tasktrail.services import strict_json
from tasktrail.services.access.callers import Channel
from tasktrail.services.access.claims import digest
from tasktrail.services.commands import DEPTH_MAX, ENVELOPE_BYTES
from tasktrail.services.counting import Counting
from tasktrail.services.http.app import UnsupportedMediaType, known_parameters
from tasktrail.services.http.edge import SERVER, Application, Message, Receive, Scope, Send
from tasktrail.services.http.ingest_problems import REFUSALS, TooSlow, refuse
from tasktrail.services.http.tailing import MEDIA_TYPE as EVENT_STREAM
from tasktrail.services.http.tailing import Tails
from tasktrail.services.ingesting import ALL_WAITING_MAX, Ingesting, Move
from tasktrail.services.messages import ACTIONS, CollectInput, Said, WorkView
from tasktrail.services.servers import Servers
from tasktrail.services.turns import LARGE_BYTES, Turns

WAIT_MAX_S = 60
READ_WITHIN_S = 10.0
"""How long a body may take to come."""

OF_TOKEN_MAX = ALL_WAITING_MAX // 2
"""Waiting requests of one token: where it is good for several MCP servers, whose they are is only what it says."""

_KEY_MAX = 128
_SAID_MAX = 300

_T = TypeVar("_T")
_Request: TypeAlias = Request[Any, Any, State]
_Ref: TypeAlias = Annotated[str, PathParameter(pattern="^[a-z2-7]{32}$", description="the task's reference, no id")]
_Key: TypeAlias = Annotated[
    str,
    HeaderParameter(
        name="Idempotency-Key",
        description="Yours to choose, at most 128 characters: the same request sent again with it is carried out once.",
    ),
]
_Worker: TypeAlias = Annotated[
    str, QueryParameter(pattern="^[A-Za-z0-9_-]{0,64}$", description="which process does the task's work")
]
_Attempt: TypeAlias = Annotated[int, QueryParameter(ge=0, le=1_000_000, description="its number; 0 for any")]
_After: TypeAlias = Annotated[
    int, QueryParameter(ge=0, le=strict_json.INTEGER_MAX, description="the `seq` that is known already")
]
_Wait: TypeAlias = Annotated[int, QueryParameter(ge=0, le=WAIT_MAX_S, description="how long to wait for more, seconds")]
_LastSeen: TypeAlias = Annotated[int | None, HeaderParameter(name="Last-Event-ID", ge=0, le=strict_json.INTEGER_MAX)]


class _Route(NamedTuple):
    """Where an action is. Its members that the path or a header says are not in the body."""

    action: str
    path: str
    about: str


_ROUTES = (
    _Route(
        "create",
        "/tasks",
        "Make a task for one tool call; it resolves on every replica when this is answered. `call.traceparent` and "
        "`call.tracestate` (W3C; the latter is not recorded) also link it to the task whose work made the call: work "
        "hands on the trace id with the first 8 bytes of SHA-256(`run-span`, a zero byte, `task_ref`) as span.",
    ),
    _Route("get", "/tasks/get", "The task that this id opens for this caller. What is shown is on the trail first."),
    _Route("list", "/tasks/list", "The tasks of this caller, a page of them."),
    _Route("update", "/tasks/update", "Answer a task's requests for input: all answers are taken, or none."),
    _Route("cancel", "/tasks/cancel", "Ask for a task to stop; a finished one stays finished."),
    _Route("watch", "/tasks/watch", "A caller's subscription begins: those of the tasks that it may see."),
    _Route("unwatch", "/tasks/unwatch", "A caller's subscription to a task ended."),
    _Route("refusal", "/refusals", "The MCP server itself turned a request away: for the trail."),
    _Route("report", "/work/{ref:str}/report", "How far the work is."),
    _Route("ask", "/work/{ref:str}/ask", "Ask the client for input, under keys that are new to the task."),
    _Route("complete", "/work/{ref:str}/complete", "The work's result."),
    _Route("fail", "/work/{ref:str}/fail", "The work ended in a JSON-RPC error."),
    _Route("stop", "/work/{ref:str}/stop", "The work has stopped, as the task's cancellation asked."),
    _Route("lose", "/work/{ref:str}/lose", "The process doing the work is going away."),
    _Route("renew", "/workers/renew", "The process that says this still lives: its tasks are not lost."),
    _Route("take", "/workers/take", "Take over a task whose worker was lost, if there is one."),
)


class IngestRequest(_Request):
    """A request whose body is what a command over NATS may be: strict JSON that carries payloads."""

    async def json(self) -> Any:  # noqa: ANN401 - the handler's own type
        """The body as the handler's `data` type."""
        if self.content_type[0] != MediaType.JSON:
            message = "send the body as Content-Type: application/json"
            raise UnsupportedMediaType(message)
        handler = cast("Any", self.route_handler)
        try:
            async with asyncio.timeout(READ_WITHIN_S):
                body = await self.body()
        except TimeoutError:
            raise _too_slow() from None
        said = strict_json.decode(body, bytes_max=handler.opt["bytes_max"], depth_max=DEPTH_MAX, payloads=True)
        try:
            return msgspec.convert(said, handler.parsed_data_field.annotation)
        except msgspec.ValidationError as error:
            raise InvalidRequest(str(error)[:_SAID_MAX]) from None


class InTurn:
    """Lets requests with large bodies, or of a length that is not said, take turns, once they are there.

    A server whose body comes slowly holds up its own, not those of others.
    """

    def __init__(self, app: Application, turns: Turns, bytes_max: int) -> None:
        self._app, self._turns, self._bytes_max = app, turns, bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI request."""
        size = _size(scope)
        if size <= LARGE_BYTES:
            await self._app(scope, receive, send)
            return
        async with self._turns.reading(size, scope.get(SERVER)):
            receive = await _ahead(receive, self._bytes_max)
            async with self._turns.taken(size):
                await self._app(scope, receive, send)


async def _ahead(receive: Receive, bytes_max: int) -> Receive:
    """The same, with the body read already, as far as it is not too large.

    Raises:
        TooSlow: it did not come within `READ_WITHIN_S`.
    """
    parts: deque[Message] = deque()
    left, more = bytes_max, True
    try:
        async with asyncio.timeout(READ_WITHIN_S):
            while more and left >= 0:
                parts.append(await receive())
                left, more = left - len(parts[-1].get("body", b"")), parts[-1].get("more_body", False)
    except TimeoutError:
        raise _too_slow() from None

    async def again() -> Message:
        return parts.popleft() if parts else await receive()

    return again


def _too_slow() -> TooSlow:
    return TooSlow(f"the body did not come within {READ_WITHIN_S:g} s")


def _size(scope: Scope) -> int:
    """How many bytes the body has, as its sender says; as many as a large one where that is not said."""
    if scope["method"] != "POST":
        return 0  # a body that nobody reads
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return strict_json.INTEGER_MAX
    return int(headers.get(b"content-length", b"0"))


def router(ingesting: Ingesting, *, payload_max_bytes: int) -> Router:
    """All routes, for an application whose edge admits MCP servers."""
    bytes_max, waiting = payload_max_bytes + ENVELOPE_BYTES, _Waiting()
    return Router(
        "/ingest/v1",
        route_handlers=[
            *(_posting(one, ingesting) for one in _ROUTES if one.action in ACTIONS),
            _collecting(ingesting, waiting),
            *_following(ingesting, waiting),
        ],
        request_class=IngestRequest,
        request_max_body_size=bytes_max,
        opt={"bytes_max": bytes_max},
        before_request=known_parameters,
        middleware=[DefineMiddleware(cast("Any", InTurn), turns=Turns(), bytes_max=bytes_max)],
        exception_handlers={Exception: refuse},
        security=[{"server": []}],
        tags=["ingest"],
    )


def _posting(route: _Route, ingesting: Ingesting) -> HTTPRouteHandler:
    kind, answer = ACTIONS[route.action]
    body = _body_of(kind)

    async def carried_out(request: _Request, data: Said, **elsewhere: str) -> msgspec.Struct:
        said = kind(**{name: getattr(data, name) for name in body.__struct_fields__}, **elsewhere)
        return await ingesting.carry_out(route.action, said, _channel(request))

    async def plain(request: _Request, data: Any) -> Any:  # noqa: ANN401 - the action's own, see below
        return await carried_out(request, data)

    async def keyed(request: _Request, data: Any, idempotency_key: _Key) -> Any:  # noqa: ANN401 - see below
        return await carried_out(request, data, command_id=_key(idempotency_key))

    async def of_task(request: _Request, ref: _Ref, data: Any, idempotency_key: _Key) -> Any:  # noqa: ANN401 - see below
        return await carried_out(request, data, task_ref=ref, command_id=_key(idempotency_key))

    fields = kind.__struct_fields__
    function = of_task if "task_ref" in fields else keyed if "command_id" in fields else plain
    function.__annotations__ |= {"data": cast("Any", JSONBody)[body], "return": answer}
    made = post(
        route.path,
        operation_id=route.action,
        summary=route.action,
        description=route.about,
        status_code=201 if route.action == "create" else 200,
        responses=REFUSALS,
        response_description=str(answer.__doc__).partition("\n")[0],
    )
    return made(function)


def _body_of(kind: type[Said]) -> type[Said]:
    """What of a request travels in the body: the rest is in the path and in `Idempotency-Key`."""
    elsewhere = {"command_id", "task_ref"} & set(kind.__struct_fields__)
    if not elsewhere:
        return kind
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        if field.name not in elsewhere:
            named = (field.name, field.type)
            fields.append(named if field.required else (*named, _default(field)))
    said = {"__doc__": kind.__doc__}
    made = msgspec.defstruct(
        kind.__name__, fields, bases=(Said,), namespace=said, module=__name__, frozen=True, kw_only=True
    )
    return cast("type[Said]", made)


def _default(field: msgspec.structs.FieldInfo) -> Any:  # noqa: ANN401 - the field's own
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return msgspec.field(default_factory=field.default_factory)


class _Waiting:
    """Counts the requests that wait, by the token that they came with."""

    def __init__(self) -> None:
        self._of: Counting[str] = Counting()

    @contextlib.contextmanager
    def one(self, request: _Request) -> Generator[None]:
        """One more.

        Raises:
            Unavailable: as many of this token wait already.
        """
        token = digest(request.headers.get("authorization", "").partition(" ")[2].strip())
        if self._of.of(token) >= OF_TOKEN_MAX:
            message = f"{OF_TOKEN_MAX} requests with this token wait already; end one, or follow all tasks by one"
            raise Unavailable(message)
        with self._of.one(token):
            yield

    async def following(self, request: _Request, stream: AsyncGenerator[_T]) -> AsyncGenerator[_T]:
        """The same stream, counted until it ends."""
        with self.one(request):
            async with contextlib.aclosing(stream):
                async for one in stream:
                    yield one


def _collecting(ingesting: Ingesting, waiting: _Waiting) -> HTTPRouteHandler:
    @get("/work/{ref:str}", operation_id="collect", summary="collect", responses=REFUSALS)
    async def collect(  # noqa: PLR0913, PLR0917 - one for each documented parameter
        request: _Request, ref: _Ref, worker: _Worker = "", attempt: _Attempt = 0, after: _After = 0, wait: _Wait = 0
    ) -> WorkView:
        """What the worker has to know: whether to go on, and the answers so far. With `wait` and `after`: once the task
        has moved beyond `after`, or no work is wanted any more, at the latest after `wait` seconds.
        """  # noqa: D205 - one paragraph of the OpenAPI document
        said = CollectInput(task_ref=ref, worker=worker, attempt=attempt)
        with waiting.one(request) if wait else contextlib.nullcontext():
            return await ingesting.collected(said, _channel(request), after=after, wait_s=wait)

    return collect


def _following(ingesting: Ingesting, waiting: _Waiting) -> list[HTTPRouteHandler]:
    views = Tails(tails_max=ALL_WAITING_MAX, events=_told_view)
    moves = Tails(tails_max=ALL_WAITING_MAX, events=_told_moves)

    @get(
        "/work/{ref:str}/events",
        operation_id="follow",
        summary="follow",
        media_type=EVENT_STREAM,
        responses=REFUSALS,
        response_description="Server-sent events: `work` (see WorkView), with its `seq` as `id`.",
    )
    async def follow(
        request: _Request, ref: _Ref, worker: _Worker = "", attempt: _Attempt = 0, last_event_id: _LastSeen = None
    ) -> Stream | Response[None]:
        """The same as a stream: the view now, and again whenever it changed, until no work is wanted any more. 204
        when there is nothing beyond `Last-Event-ID` and there will not be.
        """  # noqa: D205 - one paragraph of the OpenAPI document
        said = CollectInput(task_ref=ref, worker=worker, attempt=attempt)
        following = waiting.following(request, ingesting.views(said, _channel(request)))
        first = await anext(following)
        seen = last_event_id is not None and first.seq <= last_event_id
        if seen and not first.live:
            return Response(None, status_code=204)
        return Stream(await views.open(lambda: _ready(following, None if seen else first)), media_type=EVENT_STREAM)

    @get(
        "/moves",
        operation_id="moves",
        summary="moves",
        media_type=EVENT_STREAM,
        responses=REFUSALS,
        response_description="Server-sent events: `move`, with `task_ref`, `seq`, `status`, `live` and the like.",
    )
    async def moved(request: _Request) -> Stream:
        """One stream for all tasks of this MCP server: that one of them moved, without any payload. A move may be
        lost; look at what is waited for by yourself, too, now and then.
        """  # noqa: D205 - one paragraph of the OpenAPI document
        following = waiting.following(request, ingesting.moves(_channel(request)))
        first = await anext(following)
        return Stream(await moves.open(lambda: _ready(following, first)), media_type=EVENT_STREAM)

    ingesting.ending += [views.close, moves.close]
    return [follow, moved]


async def _ready(following: AsyncGenerator[Any], first: object) -> AsyncIterator[Any]:
    """A stream whose first member was taken already."""

    async def whole() -> AsyncGenerator[Any]:
        if first is not None:
            yield first
        async for one in following:
            yield one

    return whole()


def _told_view(view: WorkView) -> Iterable[bytes]:
    yield b"id: %d\nevent: work\ndata: %s\n\n" % (view.seq, msgspec.json.encode(view))


def _told_moves(moves: tuple[Move, ...]) -> Iterable[bytes]:
    for move in moves:
        yield b"event: move\ndata: %s\n\n" % msgspec.json.encode(move)


def _channel(request: _Request) -> Channel:
    """The MCP server that speaks."""
    server = cast("str | None", request.scope.get(SERVER))
    return Channel(server=server if server is not None else Servers().speaking(""), in_process=False)


def _key(said: str) -> str:
    """The key that `Idempotency-Key` says: a string of RFC 8941, section 3.3.3, or the same without its quotes.

    Raises:
        InvalidRequest: it is empty, too long, or not of printable ASCII.
    """
    key = said.strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    if not (0 < len(key) <= _KEY_MAX and key.isascii() and key.isprintable()):
        message = f'Idempotency-Key is 1 to {_KEY_MAX} printable ASCII characters in quotes: "…"'
        raise InvalidRequest(message)
    return key
