"""One installation for each way that callers' identity reaches tasktrail; the tests of this folder share them."""

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from tests.v1.place import Place, opened


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=["forwarded", "asserted"])
async def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Place]:
    """Give a running installation."""
    async with opened(request.param, tmp_path_factory.mktemp("v1")) as running:
        yield running
