"""The HTTP surface for responders: health, tasks, timelines, the live tail and what operators do, over Litestar.

Guarantees: everything but `/healthz` and `/readyz` needs an operator's token (`edge.py`); every refusal is
problem+json (`problems.py`); a task id travels in a body only, never in a URL; request bodies are at most 64 KiB of
strict JSON; unknown fields and parameters are refused by name. The OpenAPI 3.1 document is at `/schema/openapi.json`
and `.yaml`; no page is served, so nothing is loaded from elsewhere.

    app = create_app(service, token=open_token(data), hosts=Hosts(settings.host))
    server = await Server.start(app, host=settings.host, port=settings.port)
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, TypeAlias, cast

import msgspec
from litestar import Litestar, MediaType, Request, Response, Router, get, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin, YamlRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.params import FromQuery, HeaderParameter, JSONBody, QueryParameter
from litestar.response import Stream

from tasktrail.events.errors import InvalidRequest, TasktrailError, TooLarge
from tasktrail.events.facts import Status
from tasktrail.projections.audit.store import TaskFilter
from tasktrail.projections.audit.timeline import TaskShown, Timeline
from tasktrail.services import strict_json
from tasktrail.services.configuration import Operator
from tasktrail.services.http import problems
from tasktrail.services.http.documented import NO_TASK, NOT_JSON, REFUSALS, TOO_LARGE, Tuples
from tasktrail.services.http.edge import Application, Edge, Hosts, asker
from tasktrail.services.http.problems import Problem, problem
from tasktrail.services.http.surface import Health, Readiness, Surface
from tasktrail.services.http.tailing import MEDIA_TYPE as EVENT_STREAM
from tasktrail.services.http.tailing import Tails
from tasktrail.services.orders import NoSuchTask
from tasktrail.services.servers import Servers

BODY_BYTES_MAX = 64 * 1024
DEPTH_MAX = 16
TASKS_MAX = 1_000
TASKS_DEFAULT = 100

_NAME_MAX = 64
_TEXT_MAX = 2_048
_log = logging.getLogger("tasktrail.http")

_Request: TypeAlias = Request[Any, Any, State]
_Text: TypeAlias = Annotated[str | None, QueryParameter(max_length=_TEXT_MAX)]
_Sequence: TypeAlias = Annotated[int | None, QueryParameter(ge=0, le=strict_json.INTEGER_MAX)]


class TimelineQuestion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which task. Its id is a bearer capability: that is why it travels in a body."""

    task: Annotated[str, msgspec.Meta(description="a task's reference or its id", min_length=1, max_length=256)]


class UnsupportedMediaType(InvalidRequest):
    """The body is not declared as JSON."""

    http_status = 415
    reason = "unsupported_media_type"


class StrictRequest(_Request):
    """A request whose JSON body means one thing, or is refused."""

    async def json(self) -> Any:  # noqa: ANN401 - the handler's own type
        """The body as the handler's `data` type."""
        if self.content_type[0] != MediaType.JSON:
            message = "send the body as Content-Type: application/json"
            raise UnsupportedMediaType(message)
        kind = cast("Any", self.route_handler).parsed_data_field.annotation
        return strict_json.read(await self.body(), kind, bytes_max=BODY_BYTES_MAX, depth_max=DEPTH_MAX)


class App(Edge):
    """The whole surface as one ASGI application."""

    def __init__(  # noqa: PLR0913 - everyone who may speak to it
        self,
        inner: Litestar,
        closing: Sequence[Callable[[], None]],
        *,
        token: str,
        hosts: Hosts,
        operators: Iterable[Operator],
        servers: Servers | None,
        endpoint: Application | None,
    ) -> None:
        """`closing` ends what is open."""
        app = cast("Any", inner)
        super().__init__(app, token=token, hosts=hosts, operators=operators, servers=servers, endpoint=endpoint)
        self.inner = inner
        self._closing = closing

    def close(self) -> None:
        """End the streams that are open, so that the server can stop."""
        for close in self._closing:
            close()


def create_app(  # noqa: PLR0913 - what the surface is made of
    surface: Surface,
    *,
    token: str,
    hosts: Hosts,
    operators: Iterable[Operator] = (),
    acting: Sequence[HTTPRouteHandler] = (),
    beside: Sequence[Router] = (),
    servers: Servers | None = None,
    endpoint: Application | None = None,
    closing: Sequence[Callable[[], None]] = (),
    version: str = "unknown",
    tails: Tails | None = None,
) -> App:
    """The application over this service.

    `operators` are the named ones beside the holder of the responder token; `acting` are the routes of what they do
    (`operating.routes`); `beside` are routers outside of `/api/v1`, `servers` the MCP servers that may speak to those
    under `/ingest/`; `endpoint` answers at `/mcp`; `closing` ends what else is open. `version` is the one its OpenAPI
    document says.
    """
    tails = tails or Tails()
    reading = _Reading(surface)
    api = Router(
        "/api/v1",
        route_handlers=[reading.tasks_route(), reading.timeline_route(), reading.tail_route(tails), *acting],
        before_request=known_parameters,
        security=[{"responder": []}],
        tags=["trail"],
    )
    inner = Litestar(
        [*_health_routes(surface), api, *beside],
        request_class=StrictRequest,
        request_max_body_size=BODY_BYTES_MAX,
        exception_handlers={Exception: refuse},
        openapi_config=_openapi(version),
        plugins=[Tuples()],
        logging_config=None,
        debug=False,
    )
    ending = (tails.close, *closing)
    return App(inner, ending, token=token, hosts=hosts, operators=operators, servers=servers, endpoint=endpoint)


def _openapi(version: str) -> OpenAPIConfig:
    scheme = SecurityScheme(
        type="http",
        scheme="bearer",
        description="An operator's token, or the one in the file responder.token of the data directory.",
    )
    of_servers = SecurityScheme(
        type="http",
        scheme="bearer",
        description="The token of an MCP server in [[servers]], or the one in the file server.token of the data "
        "directory while none is configured; where it is good for several, the header Tasktrail-Server names which.",
    )
    return OpenAPIConfig(
        title="tasktrail",
        version=version,
        description="What responders ask a trail: who authorised each step of an MCP task, and how we know.",
        use_handler_docstrings=True,
        render_plugins=[JsonRenderPlugin(), YamlRenderPlugin()],
        openapi_router=Router("/schema", route_handlers=[], include_in_schema=False, after_request=_no_page),
        components=Components(security_schemes={"responder": scheme, "server": of_servers}),
    )


async def _no_page(response: Response[Any]) -> Response[Any]:
    """Litestar answers unknown paths under its schema's with a page; this surface has none."""
    if response.status_code != HTTPStatus.NOT_FOUND:
        return response
    return refused(problem(404, "not_found", _DETAILS[404]))


def _health_routes(surface: Surface) -> list[HTTPRouteHandler]:
    @get("/healthz", tags=["health"], responses={503: ResponseSpec(Health, description="It does not.")})
    async def healthz() -> Response[Health]:
        """Whether the process does its work. Needs no token."""
        health = await surface.health()
        return Response(health, status_code=200 if health.alive else 503)

    @get("/readyz", tags=["health"], responses={503: ResponseSpec(Readiness, description="Not yet.")})
    async def readyz() -> Response[Readiness]:
        """Whether the projections have caught up; which one is behind, and by how much. Needs no token."""
        readiness = await surface.readiness()
        return Response(readiness, status_code=200 if readiness.ready else 503)

    return [healthz, readyz]


class _Reading:
    """The routes that read the trail, each on behalf of whoever holds the token."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface

    def timeline_route(self) -> HTTPRouteHandler:
        """One task's history."""

        @post("/timeline", status_code=200, responses={**REFUSALS, 404: NO_TASK, 413: TOO_LARGE, 415: NOT_JSON})
        async def timeline(request: _Request, data: JSONBody[TimelineQuestion]) -> Timeline:
            """The ordered history of one task. The reading is recorded on the trail."""
            found = await self._surface.timeline(data.task, asker(request.scope))
            if found is None:
                raise NoSuchTask
            return found

        return timeline

    def tasks_route(self) -> HTTPRouteHandler:
        """Tasks by filter."""

        @get("/tasks", responses=REFUSALS)
        async def tasks(  # noqa: PLR0913, PLR0917 - one for each documented parameter
            request: _Request,
            status: FromQuery[list[Status] | None] = None,
            tenant: _Text = None,
            server: _Text = None,
            tool: _Text = None,
            iss: _Text = None,
            sub: _Text = None,
            client_id: _Text = None,
            live: FromQuery[bool | None] = None,
            before: _Sequence = None,
            limit: Annotated[int, QueryParameter(ge=1, le=TASKS_MAX)] = TASKS_DEFAULT,
        ) -> list[TaskShown]:
            """Tasks, the newest first; `before` is the `first_seq` of the last one of the page before. The reading is
            recorded on the trail.
            """  # noqa: D205 - one paragraph of the OpenAPI document
            wanted = TaskFilter(
                statuses=tuple(status) if status else None,
                tenant=tenant,
                server=server,
                tool=tool,
                iss=iss,
                sub=sub,
                client_id=client_id,
                live=live,
                before=before,
            )
            return list(await self._surface.tasks(wanted, limit, asker(request.scope)))

        return tasks

    def tail_route(self, tails: Tails) -> HTTPRouteHandler:
        """The live tail."""

        @get("/tail", media_type=EVENT_STREAM, responses=REFUSALS, response_description=_TAIL_IS)
        async def tail(
            request: _Request,
            since: _Sequence = None,
            last_event_id: Annotated[
                int | None, HeaderParameter(name="Last-Event-ID", ge=0, le=strict_json.INTEGER_MAX)
            ] = None,
        ) -> Stream:
            """Steps as they are recorded after stream sequence `since`, or from now on. The reading is recorded too."""
            after = since if last_event_id is None else last_event_id
            stream = await tails.open(lambda: self._surface.tail(after, asker(request.scope)))
            return Stream(stream, media_type=EVENT_STREAM)

        return tail


_TAIL_IS = "Server-sent events: `step` (see Step), perhaps `problem` (see Problem) at the end; `id` to go on from."
_REPEATABLE = {"status"}
_NOT_PARAMETERS = {"request", "data", "ref", "last_event_id", "idempotency_key"}


async def known_parameters(request: _Request) -> None:
    """Refuse a parameter the route does not know, or is told twice: it would answer another question."""
    known = set(cast("Any", request.route_handler).parsed_fn_signature.parameters) - _NOT_PARAMETERS
    for name in request.query_params:
        if name not in known:
            message = f"unknown parameter {name[:_NAME_MAX]!r}; known: {', '.join(sorted(known)) or 'none'}"
            raise InvalidRequest(message)
        if name not in _REPEATABLE and len(request.query_params.getall(name)) > 1:
            message = f"parameter {name} is given more than once"
            raise InvalidRequest(message)


def refuse(_: _Request, error: Exception) -> Response[Problem]:
    """What whoever asked is told of an error."""
    match error:
        case TasktrailError():
            if error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                _log.error("http_failed reason=%s: %s", error.reason, error)
            return refused(problems.of_error(error))
        case ValidationException():
            return refused(problem(400, InvalidRequest.reason, what_is_wrong(error)))
        case HTTPException() if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            status = HTTPStatus(error.status_code)
            reason = _REASONS.get(status, status.name.lower())
            return refused(problem(status, reason, _DETAILS.get(status, status.phrase)), error.headers or {})
        case _:
            _log.error("http_failed", exc_info=error)
            return refused(problems.unexpected())


_REASONS: dict[int, str] = {413: TooLarge.reason}
_DETAILS: dict[int, str] = {
    404: "there is nothing at this path; the OpenAPI document at /schema/openapi.json lists what there is",
    405: "this path takes other methods, see the Allow header",
    413: f"the body is too large; at most {BODY_BYTES_MAX} bytes are taken",
}


def refused(refusal: Problem, headers: Mapping[str, str] | None = None) -> Response[Problem]:
    """A refusal as it is sent."""
    return Response(
        refusal,
        status_code=refusal.status,
        media_type=problems.MEDIA_TYPE,
        headers={**refusal.headers, **(headers or {})},
    )


def what_is_wrong(error: ValidationException) -> str:
    """Litestar's list of faults as one line."""
    faults = cast("list[dict[str, Any]]", error.extra or [])
    said = [f"{fault.get('key', '')}: {fault.get('message', '')}" for fault in faults if fault.get("key") != "data"]
    return "; ".join(said) or "the body is empty; send JSON"
