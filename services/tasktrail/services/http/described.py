"""The AsyncAPI document over HTTP, beside the OpenAPI one.

create_app(…, beside=[described("0.3.0")])
"""

from typing import Any

from litestar import Response, Router, get

from tasktrail.services.asyncapi import document
from tasktrail.services.http.documented import REFUSALS

_MEDIA_TYPE = "application/vnd.aai.asyncapi+json;version=3.0.0"


def described(version: str) -> Router:
    """`GET /schema/asyncapi.json`."""

    @get("/asyncapi.json", media_type=_MEDIA_TYPE, responses=REFUSALS)
    async def asyncapi() -> Response[dict[str, Any]]:
        """What goes over NATS, as an AsyncAPI 3.0 document: commands with their answers, and signals."""
        return Response(document(version), media_type=_MEDIA_TYPE)

    return Router("/schema", route_handlers=[asyncapi], security=[{"responder": []}], tags=["documents"])
