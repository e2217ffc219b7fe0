"""Errors as HTTP says them: `application/problem+json` (RFC 9457), one form for every refusal of this surface.

Guarantees: `reason` is a stable word, `detail` says what to do, `written` says whether something is on the trail; an
unexpected error says nothing about its cause. No framework here.

    {"type": "urn:tasktrail:problem:not_found", "title": "Not Found", "status": 404, "detail": "Task not found",
     "reason": "not_found", "retriable": false, "written": "denial"}
"""

import math
from http import HTTPStatus

import msgspec

from tasktrail.events.errors import CommandReused, TasktrailError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
_DETAIL_MAX = 2_000


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal. `written`: nothing, maybe, refusal or denial; `retriable`: the same request may succeed later."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    retriable: bool = False
    written: str = "nothing"

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it."""
        return {"Retry-After": str(RETRY_AFTER_S)} if self.retriable else {}


class Refusal(Problem, frozen=True, kw_only=True):
    """A refusal that an MCP server is told.

    `code`: the JSON-RPC code to give its client; `retry_after_ms`: when to come again, 0 when nobody knows.
    """

    code: int
    retry_after_ms: int = 0

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it."""
        after_s = max(RETRY_AFTER_S, math.ceil(self.retry_after_ms / 1000))
        return {"Retry-After": str(after_s)} if self.retriable else {}


def problem(status: int, reason: str, detail: str, *, retriable: bool = False, written: str = "nothing") -> Problem:
    """A refusal in the words of this surface."""
    return Problem(
        type=f"urn:tasktrail:problem:{reason}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail[:_DETAIL_MAX],
        reason=reason,
        retriable=retriable,
        written=written,
    )


def of_error(error: TasktrailError) -> Problem:
    """The refusal that an error of ours is."""
    return problem(error.http_status, error.reason, error.message, retriable=error.retriable, written=error.written)


def refusal(error: TasktrailError) -> Refusal:
    """The refusal that an error of ours is to an MCP server.

    An idempotency key used for another body is 422: draft-ietf-httpapi-idempotency-key-header-07, section 2.7.
    """
    told = of_error(error)
    if isinstance(error, CommandReused):
        told = problem(HTTPStatus.UNPROCESSABLE_ENTITY, error.reason, error.message)
    said = {name: getattr(told, name) for name in told.__struct_fields__}
    return Refusal(**said, code=error.code, retry_after_ms=error.retry_after_ms)


def unexpected() -> Problem:
    """What is said of an error that nobody foresaw; the log has it."""
    return problem(500, "internal", "the service failed on this request; its log says why")
