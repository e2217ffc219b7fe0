"""The HTTP surface for responders: health, tasks, timelines and the live tail, over Litestar.

Guarantees: everything but `/healthz` and `/readyz` needs the responder token (`edge.py`); every refusal is
problem+json (`problems.py`); a task id travels in a body only, never in a URL; request bodies are at most 64 KiB of
strict JSON, unknown fields and parameters are refused by name. The OpenAPI 3.1 document is at `/schema/openapi.json`
and `.yaml`; no page is served, so nothing is loaded from elsewhere.

    app = create_app(service, token=open_token(data), hosts=Hosts(settings.host))
    server = await Server.start(app, host=settings.host, port=settings.port)
"""

import logging
from collections.abc import Sequence
from typing import Annotated, Any, cast

import msgspec
from litestar import Litestar, MediaType, Request, Response, Router, get, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin, YamlRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.params import Parameter
from litestar.response import Stream

from tasktrail.events.authority import Authority
from tasktrail.events.errors import InvalidRequest, TasktrailError
from tasktrail.events.facts import Status
from tasktrail.events.subjects import DEFAULT_TENANT
from tasktrail.projections.audit.rows import TaskRow
from tasktrail.projections.audit.store import TaskFilter
from tasktrail.projections.audit.timeline import Timeline
from tasktrail.services import strict_json
from tasktrail.services.http import problems
from tasktrail.services.http.edge import Edge, Hosts
from tasktrail.services.http.problems import Problem
from tasktrail.services.http.surface import Health, Readiness, Surface
from tasktrail.services.http.tailing import MEDIA_TYPE as EVENT_STREAM
from tasktrail.services.http.tailing import Tails

BODY_BYTES_MAX = 64 * 1024
DEPTH_MAX = 16
LIMIT_MAX = 1_000
LIMIT_DEFAULT = 100

_log = logging.getLogger("tasktrail.http")

_Request = Request[Any, Any, State]

_UNAUTHORISED = ResponseSpec(Problem, description="No or a wrong responder token.", media_type=problems.MEDIA_TYPE)
_INVALID = ResponseSpec(Problem, description="The request is not as documented.", media_type=problems.MEDIA_TYPE)
_UNKNOWN = ResponseSpec(Problem, description="No such task on the trail.", media_type=problems.MEDIA_TYPE)
_TOO_LARGE = ResponseSpec(Problem, description="The body is too large.", media_type=problems.MEDIA_TYPE)
_UNAVAILABLE = ResponseSpec(Problem, description="Try again later.", media_type=problems.MEDIA_TYPE)


class TimelineQuestion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which task. An id is a bearer capability: that is why it travels in a body."""

    task: Annotated[str, msgspec.Meta(description="a task's reference or its id", min_length=1, max_length=256)]


class StrictRequest(_Request):
    """A request whose JSON body means one thing, or is refused."""

    async def json(self) -> Any:  # noqa: ANN401 - the handler's own type
        """The body as the handler's `data` type."""
        media_type = self.content_type[0]
        if media_type != MediaType.JSON:
            message = "send the body as Content-Type: application/json"
            raise UnsupportedMediaType(message)
        kind = cast("Any", self.route_handler).parsed_data_field.annotation
        return strict_json.read(await self.body(), kind, bytes_max=BODY_BYTES_MAX, depth_max=DEPTH_MAX)


class UnsupportedMediaType(InvalidRequest):
    """The body is of another type than JSON."""

    http_status = 415
    reason = "unsupported_media_type"


class App(Edge):
    """The whole surface as one ASGI application."""

    def __init__(self, inner: Litestar, tails: Tails, *, token: str, hosts: Hosts) -> None:
        super().__init__(cast("Any", inner), token=token, hosts=hosts)
        self.inner = inner
        self._tails = tails

    def close(self) -> None:
        """End the streams that are open, so that the server can stop."""
        self._tails.close()


def create_app(surface: Surface, *, token: str, hosts: Hosts, tenant: str = DEFAULT_TENANT, version: str = "") -> App:
    """The application over this service. `tenant` is the one that responders' readings are recorded under."""
    tails = Tails()
    asked_by = Responder(token, tenant)
    api = Router(
        "/api/v1",
        route_handlers=[
            _tasks_route(surface, asked_by),
            _timeline_route(surface, asked_by),
            _tail_route(surface, asked_by, tails),
        ],
        before_request=_known_parameters,
        tags=["trail"],
        security=[{"responder": []}],
    )
    inner = Litestar(
        [*_health_routes(surface), api],
        request_class=StrictRequest,
        request_max_body_size=BODY_BYTES_MAX,
        exception_handlers={Exception: _refuse},
        openapi_config=_openapi(version),
        logging_config=None,
        debug=False,
    )
    return App(inner, tails, token=token, hosts=hosts)


def _openapi(version: str) -> OpenAPIConfig:
    return OpenAPIConfig(
        title="tasktrail",
        version=version or "unknown",
        description="What responders ask of a trail: who authorised each step of an MCP task.",
        path="/schema",
        use_handler_docstrings=True,
        render_plugins=[JsonRenderPlugin(), YamlRenderPlugin()],
        openapi_router=Router("/schema", [], include_in_schema=False, after_request=_no_page),
        components=Components(
            security_schemes={"responder": SecurityScheme(type="http", scheme="bearer", description=_TOKEN_IS)}
        ),
    )


def _health_routes(surface: Surface) -> list[HTTPRouteHandler]:
    @get("/healthz", tags=["health"], responses={503: ResponseSpec(Health, description="It does not.")})
    async def healthz() -> Response[Health]:
        """Whether the process does its work. No token needed."""
        health = await surface.health()
        return Response(health, status_code=200 if health.alive else 503)

    @get("/readyz", tags=["health"], responses={503: ResponseSpec(Readiness, description="Not yet.")})
    async def readyz() -> Response[Readiness]:
        """Whether the projections have caught up, and which is behind by how much. No token needed."""
        readiness = await surface.readiness()
        return Response(readiness, status_code=200 if readiness.ready else 503)

    return [healthz, readyz]


def _timeline_route(surface: Surface, asked_by: Responder) -> HTTPRouteHandler:
    @post("/timeline", status_code=200, responses={**_REFUSALS, 404: _UNKNOWN, 413: _TOO_LARGE})
    async def timeline(request: _Request, data: TimelineQuestion) -> Timeline:
        """The ordered history of one task. The reading is recorded on the trail."""
        return await surface.timeline(data.task, authority=asked_by.authority(request))

    return timeline


def _tail_route(surface: Surface, asked_by: Responder, tails: Tails) -> HTTPRouteHandler:
    @get(
        "/tail",
        media_type=EVENT_STREAM,
        responses={**_REFUSALS, 503: _UNAVAILABLE},
        response_description="Server-sent events: `entry` (see TailLine), at the end perhaps `problem` (see Problem).",
    )
    async def tail(
        request: _Request,
        since: Annotated[int | None, Parameter(ge=0, le=strict_json.INTEGER_MAX, description=_SINCE_IS)] = None,
        last_event_id: Annotated[int | None, Parameter(header="Last-Event-ID", ge=0, le=strict_json.INTEGER_MAX)] = None,
    ) -> Stream:
        """Steps as they are appended, until the service stops. The reading is recorded on the trail."""
        after = last_event_id if last_event_id is not None else since
        lines = surface.tail(after, authority=asked_by.authority(request))
        return Stream(tails.open(lines), media_type=EVENT_STREAM)

    return tail


def _tasks_route(surface: Surface, asked_by: Responder) -> HTTPRouteHandler:
    @get("/tasks", responses=_REFUSALS)
    async def tasks(  # noqa: PLR0913, PLR0917 - one per documented parameter
        request: _Request,
        status: Status | None = None,
        tenant: _Text = None,
        server: _Text = None,
        tool: _Text = None,
        iss: _Text = None,
        sub: _Text = None,
        client_id: _Text = None,
        before: Annotated[int | None, Parameter(ge=0, le=strict_json.INTEGER_MAX, description=_BEFORE_IS)] = None,
        limit: Annotated[int, Parameter(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT,
    ) -> list[TaskRow]:
        """Tasks, newest first. The reading is recorded on the trail."""
        wanted = TaskFilter(
            status=status,
            tenant=tenant,
            server=server,
            tool=tool,
            iss=iss,
            sub=sub,
            client_id=client_id,
            before=before,
            limit=limit,
        )
        return list(await surface.tasks(wanted, authority=asked_by.authority(request)))

    return tasks


async def _known_parameters(request: _Request) -> None:
    """Refuse what the route does not know or is told twice: a misspelt filter would answer another question."""
    known = cast("Any", request.route_handler).parsed_fn_signature.parameters
    for name in request.query_params:
        if name not in known or name in {"request", "data", "last_event_id"}:
            message = f"unknown parameter {name[:_NAME_MAX]!r}"
            raise InvalidRequest(message)
        if len(request.query_params.getall(name)) > 1:
            message = f"parameter {name} is given more than once"
            raise InvalidRequest(message)


def _refuse(_: _Request, error: Exception) -> Response[Problem]:
    refusal, headers = _problem(error)
    return Response(
        refusal,
        status_code=refusal.status,
        media_type=problems.MEDIA_TYPE,
        headers={**refusal.headers, **headers},
    )


def _problem(error: Exception) -> tuple[Problem, dict[str, str]]:
    match error:
        case TasktrailError():
            if error.http_status >= 500:  # noqa: PLR2004
                _log.error("http_failed reason=%s: %s", error.reason, error)
            return problems.of_error(error), {}
        case ValidationException():
            return problems.problem(400, InvalidRequest.reason, _what_is_wrong(error)), {}
        case HTTPException() if error.status_code < 500:  # noqa: PLR2004
            reason = HTTPStatus(error.status_code).name.lower()
            return problems.problem(error.status_code, reason, _DETAILS.get(error.status_code, reason)), dict(
                error.headers or {}
            )
        case _:
            _log.error("http_failed", exc_info=error)
            return problems.unexpected(), {}
