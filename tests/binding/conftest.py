"""One installation for each wire; the tests of this folder share it, in one event loop."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from tests.binding.endpoint_wire import installed_behind_endpoint
from tests.binding.http_wire import installed_on_http
from tests.binding.installation import Installation, installed

WIRES: dict[str, Callable[[Path], AbstractAsyncContextManager[Installation]]] = {
    "mcp/2026-07-28, tokens forwarded": partial(installed, "forwarded"),
    "mcp/2026-07-28, identity asserted": partial(installed, "asserted"),
    "mcp/2026-07-28, tasks at the endpoint": installed_behind_endpoint,
    "http/ingest, tokens forwarded": partial(installed_on_http, "forwarded"),
    "http/ingest, identity asserted": partial(installed_on_http, "asserted"),
}
"""Every wire the matrix is run over, with how its installation is started."""


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=list(WIRES))
async def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Installation]:
    """Give a running installation."""
    async with WIRES[request.param](tmp_path_factory.mktemp("binding")) as running:
        yield running
