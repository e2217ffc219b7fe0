"""Refusals as MCP servers are told them: problem+json with what they have to tell their own client.

Guarantees: `code` is the JSON-RPC code that goes with the refusal, as over NATS; whatever may be sent again says
when, in `retry_after_ms` and `Retry-After`. What another part of the surface refuses (a path that is none, a foreign
Host or Origin) is a plain problem, without them.

    {"type": "urn:tasktrail:problem:not_found", "status": 404, "reason": "not_found", "code": -32602, …}
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from litestar import Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi import ResponseSpec

from tasktrail.events.errors import InvalidRequest, TasktrailError, TooLarge
from tasktrail.services.http import app, problems
from tasktrail.services.http.problems import Problem, Refusal, refusal

_TOO_LARGE = 413
_MISSING = "Missing required header"

_Request: TypeAlias = Request[Any, Any, State]


class TooSlow(InvalidRequest):
    """The body did not come in time."""

    http_status = 408
    retriable = True
    reason = "too_slow"


def refuse(request: _Request, error: Exception) -> Response[Problem]:
    """What an MCP server is told of an error."""
    match error:
        case TasktrailError():
            return app.refused(refusal(error))
        case ValidationException():
            missing = "" if error.extra or _MISSING not in error.detail else error.detail.partition(" for path ")[0]
            return app.refused(refusal(InvalidRequest(missing or app.what_is_wrong(error))))
        case HTTPException() if error.status_code == _TOO_LARGE:
            largest = request.route_handler.opt["bytes_max"]
            return app.refused(refusal(TooLarge(f"the body is too large; at most {largest} bytes are taken")))
        case _:
            return app.refuse(request, error)


def _told(description: str) -> ResponseSpec:
    return ResponseSpec(Refusal, description=description, media_type=problems.MEDIA_TYPE, generate_examples=False)


REFUSALS: Mapping[int, ResponseSpec] = {
    400: _told("The request is not as documented, or an answer does not fit its request; `detail` says where."),
    401: _told("The token is no MCP server's."),
    403: _told("The token is another MCP server's, or the policy does not allow this, or lets the work wait."),
    404: _told("This id, or reference, opens nothing here: unknown, foreign, expired, revoked and malformed alike."),
    409: _told("The task does not admit this now; that is on the trail."),
    413: _told("The body, or a payload in it, is too large."),
    415: _told("The body is not declared as JSON."),
    422: _told("The idempotency key was used for another body."),
    429: _told("More than this caller may have at once or in this time; `Retry-After` says when to come again."),
    503: _told("Nothing was written; send it again, with the same key."),
    504: _told("It may have been written; send it again with the same key to learn what became of it."),
}
