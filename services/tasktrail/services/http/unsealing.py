"""The route by which operators read sealed payloads. Under `/api/v1`, beside the reading ones.

Guarantees: the task's id travels in a body only; who may, and what is recorded first, is decided in `unsealing.py`.

    Router("/api/v1", route_handlers=[…, *routes(unsealing)])
"""

from typing import Any, TypeAlias

from litestar import Request, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody

from tasktrail.services.http.documented import MAYBE, NO_TASK, NOT_JSON, REFUSALS, TOO_LARGE, refusal
from tasktrail.services.http.edge import asker
from tasktrail.services.statements import Unsealed, UnsealOrder
from tasktrail.services.unsealing import Unsealing

_Request: TypeAlias = Request[Any, Any, State]
_GONE = refusal("The task's key is destroyed: nobody can read its payloads any more.")


def routes(unsealing: Unsealing) -> list[HTTPRouteHandler]:
    """All of them, for a router at `/api/v1`."""

    @post(
        "/unseal",
        status_code=200,
        responses={**REFUSALS, 404: NO_TASK, 410: _GONE, 413: TOO_LARGE, 415: NOT_JSON, 504: MAYBE},
    )
    async def unseal(request: _Request, data: JSONBody[UnsealOrder]) -> Unsealed:
        """Read sealed payloads of a task. Needs the right `unseal`; recorded on the trail before it is answered."""
        return await unsealing.unseal(data, asker(request.scope))

    return [unseal]
