"""The routes of responders' own SQL, and of what is handed out whole. Under `/api/v1`, beside the reading ones.

Guarantees: a statement travels in a body of strict JSON; whose rows it sees, what it may take and what is recorded of
it is decided by what is called (`free_sql.py`, `handing_out.py`).

    Router("/api/v1", route_handlers=[…, *routes(free_sql, handing_out)])
"""

from typing import Any, TypeAlias

from litestar import Request, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody

from tasktrail.services.free_sql import FreeSql
from tasktrail.services.handing_out import HandingOut
from tasktrail.services.http.documented import NO_TASK, NOT_JSON, REFUSALS, TOO_LARGE, refusal
from tasktrail.services.http.edge import asker
from tasktrail.services.snapshots import Lent
from tasktrail.services.statements import Archived, ArchiveOrder, Replayable, ReplayOrder, SqlAnswer, SqlQuestion

_Request: TypeAlias = Request[Any, Any, State]
_RUN = {
    **REFUSALS,
    413: TOO_LARGE,
    415: NOT_JSON,
    422: refusal("It took more time or memory than it may, or gave too much; the run is on the trail."),
    429: refusal("As many statements as may are running; try again."),
}


def routes(sql: FreeSql, handing_out: HandingOut) -> list[HTTPRouteHandler]:
    """All of them, for a router at `/api/v1`."""

    @post("/sql", status_code=200, responses=_RUN)
    async def run(request: _Request, data: JSONBody[SqlQuestion]) -> SqlAnswer:
        """Run one SELECT on a copy of the audit store, in a process of its own. Recorded on the trail with its text."""
        return await sql.run(data, asker(request.scope))

    @post("/snapshots", status_code=200, responses=REFUSALS)
    async def snapshot(request: _Request) -> Lent:
        """Make a copy of the whole audit store on the service's machine, for a process there. Recorded on the trail."""
        return await handing_out.snapshot(asker(request.scope))

    @post("/archives", status_code=200, responses={**REFUSALS, 413: TOO_LARGE, 415: NOT_JSON})
    async def archive(request: _Request, data: JSONBody[ArchiveOrder]) -> Archived:
        """Say that these messages are about to be archived by who can read them from the broker. Recorded."""
        return await handing_out.archive(data, asker(request.scope))

    @post("/replays", status_code=200, responses={**REFUSALS, 404: NO_TASK, 413: TOO_LARGE, 415: NOT_JSON})
    async def replay(request: _Request, data: JSONBody[ReplayOrder]) -> Replayable:
        """Say that the trail is about to be played, or rebuilt from, by who can read it from the broker. Recorded."""
        return await handing_out.replay(data, asker(request.scope))

    return [run, snapshot, archive, replay]
