"""The wire `mcp/2026-07-28` behind a load balancer: tasktrail itself answers `tasks/*`, the MCP server the rest.

Tasktrail's address is looked up for each request: a restart moves it.

    async with installed_behind_endpoint(tmp_path) as place:
        made = await place.wire.create(ana.token(), "exact")
"""

import contextlib
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import httpx
from tests.binding.installation import Installation, installed
from tests.binding.mcp_wire import McpWire

from tasktrail.services.responder import find

AT_TASKTRAIL = {"tasks/get", "tasks/update", "tasks/cancel"}


class EndpointWire(McpWire):
    """Callers who reach both by one address."""

    def __init__(self, with_tokens: str, without: str, data: Path) -> None:
        super().__init__(with_tokens, without)
        self._data = data

    def _request(self, token: str | None, method: str, params: Mapping[str, Any], name: str | None) -> httpx.Request:
        request = super()._request(token, method, params, name)
        running = find(self._data)
        if method in AT_TASKTRAIL and running is not None:
            request.url = httpx.URL(f"{running.url}/mcp/workshop")
            request.headers["Host"] = request.url.netloc.decode("ascii")
        return request


@contextlib.asynccontextmanager
async def installed_behind_endpoint(directory: Path) -> AsyncGenerator[Installation]:
    """Start everything; the MCP server forwards its callers' tokens."""
    async with installed("forwarded", directory) as place:
        place.wire = EndpointWire(place.wire.url("some"), place.wire.url(None), place.up.data)
        try:
            yield place
        finally:
            await place.wire.close()
