"""One embedded and one connected installation per module, in one event loop."""

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from .place import Mode, Place, opened


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["embedded", "connected"])
async def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Place]:
    """Give a running installation; the tests of a module share it."""
    mode: Mode = request.param
    async with opened(mode, tmp_path_factory.mktemp(mode)) as running:
        yield running
