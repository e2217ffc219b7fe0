"""The routes of named queries and exports, under `/api/v1`.

Guarantees: a task travels in a body only; every answer and export is recorded before it leaves; an export that breaks
off ends its response without the closing chunk, so that it is not taken for a whole one.

    Router("/api/v1", route_handlers=[…, *routes(Querying(service), Exporting(service))])
"""

from typing import Any, TypeAlias

from litestar import Request, get, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody
from litestar.response import Stream

from tasktrail.services.exporting import Exporting
from tasktrail.services.exports import AS_OF_HEADER, ROWS_HEADER, ExportOrder
from tasktrail.services.http.documented import NOT_JSON, REFUSALS, TOO_LARGE, refusal
from tasktrail.services.http.edge import asker
from tasktrail.services.querying import Querying
from tasktrail.services.questions import AnswerShown, QueryShown, Question, shown_catalogue

_Request: TypeAlias = Request[Any, Any, State]
_ASKED = {**REFUSALS, 413: TOO_LARGE, 415: NOT_JSON}
_EXPORT_IS = (
    "The export, in the media type of its format; `Tasktrail-Rows` says how many steps, `Tasktrail-As-Of` up to which "
    "sequence the trail was looked at."
)


def routes(querying: Querying, exporting: Exporting) -> list[HTTPRouteHandler]:
    """All of them, for a router at `/api/v1`."""

    @get("/queries", responses=REFUSALS)
    async def queries() -> list[QueryShown]:
        """The named queries: what each answers and what it takes. Each also takes `tenant`."""
        return shown_catalogue()

    @post(
        "/queries/{name:str}",
        status_code=200,
        responses={**_ASKED, 404: refusal("No query of the catalogue has this name.")},
    )
    async def ask(request: _Request, name: str, data: JSONBody[Question]) -> AnswerShown:
        """A page of a named query's answer. The question, and how many rows, are recorded on the trail."""
        return await querying.ask(name, data, asker(request.scope))

    @post("/exports", status_code=200, responses=_ASKED, response_description=_EXPORT_IS)
    async def export(request: _Request, data: JSONBody[ExportOrder]) -> Stream:
        """The steps of a scope, streamed. Format, scope and how many rows are recorded on the trail."""
        begun = await exporting.begin(data, asker(request.scope))
        headers = {
            ROWS_HEADER: str(begun.rows),
            AS_OF_HEADER: str(begun.as_of),
            "Content-Disposition": f'attachment; filename="tasktrail-export.{begun.suffix}"',
        }
        return Stream(begun.chunks, media_type=begun.media_type, headers=headers)

    return [queries, ask, export]
