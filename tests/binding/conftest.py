"""One installation for each wire; the tests of this folder share it, in one event loop."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from tests.binding.earlier_wire import installed_at_earlier_endpoint
from tests.binding.endpoint_wire import installed_behind_endpoint
from tests.binding.http_wire import installed_on_http
from tests.binding.installation import Installation, installed
from tests.binding.nats_wire import installed_on_nats

WIRES: dict[str, Callable[[Path], AbstractAsyncContextManager[Installation]]] = {
    "mcp/2026-07-28, tokens forwarded": partial(installed, "forwarded"),
    "mcp/2026-07-28, identity asserted": partial(installed, "asserted"),
    "mcp/2026-07-28, tasks at the endpoint": installed_behind_endpoint,
    "mcp/2025-11-25, tasks at the endpoint": installed_at_earlier_endpoint,
    "http/ingest, tokens forwarded": partial(installed_on_http, "forwarded"),
    "http/ingest, identity asserted": partial(installed_on_http, "asserted"),
    "nats, tokens forwarded": partial(installed_on_nats, "forwarded"),
    "nats, identity asserted": partial(installed_on_nats, "asserted"),
}
"""Every wire the matrix is run over, with how its installation is started."""


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=list(WIRES))
async def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Installation]:
    """Give a running installation."""
    async with WIRES[request.param](tmp_path_factory.mktemp("binding")) as running:
        yield running
