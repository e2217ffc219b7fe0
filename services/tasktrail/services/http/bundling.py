"""The route by which operators take evidence out. Under `/api/v1`, beside the reading ones.

Guarantees: a task's id travels in a body only; who may, and what is recorded first, is decided in `bundling.py`.

    Router("/api/v1", route_handlers=[…, *routes(bundling)])
"""

from typing import Any, TypeAlias

from litestar import Request, Response, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody

from tasktrail.services.bundle_orders import (
    COUNT_HEADER,
    ENTRY_HEADER,
    MEDIA_TYPE,
    SHA256_HEADER,
    SIZE_HEADER,
    BundleOrder,
)
from tasktrail.services.bundling import Bundling
from tasktrail.services.http.documented import MAYBE, NO_TASK, NOT_JSON, REFUSALS, TOO_LARGE
from tasktrail.services.http.edge import asker

_Request: TypeAlias = Request[Any, Any, State]


def routes(bundling: Bundling) -> list[HTTPRouteHandler]:
    """All of them, for a router at `/api/v1`."""

    @post(
        "/bundles",
        status_code=200,
        media_type=MEDIA_TYPE,
        responses={**REFUSALS, 404: NO_TASK, 413: TOO_LARGE, 415: NOT_JSON, 504: MAYBE},
        response_description="The bundle, a tar archive: see docs/evidence.md.",
    )
    async def export(request: _Request, data: JSONBody[BundleOrder]) -> Response[bytes]:
        """Take out entries with their proofs. Recorded on the trail, with the bundle's SHA-256, before the answer."""
        made = await bundling.export(data, asker(request.scope))
        headers = {
            SHA256_HEADER: made.sha256,
            ENTRY_HEADER: made.entry,
            COUNT_HEADER: str(made.entries),
            SIZE_HEADER: str(made.tree_size),
        }
        return Response(made.data, media_type=MEDIA_TYPE, headers=headers)

    return [export]
