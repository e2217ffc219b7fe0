"""One service without any configuration for each module: one developer on one machine."""

from collections.abc import AsyncGenerator, Iterator

import pytest
import pytest_asyncio
from tests.http_ingest.calling import Speaking, speaking

from tasktrail.testing.service import UpProcess


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """The module's service."""
    with UpProcess(tmp_path_factory.mktemp("ingest") / "data") as running:
        running.wait_until_ready()
        yield running


@pytest_asyncio.fixture
async def http(up: UpProcess) -> AsyncGenerator[Speaking]:
    """The MCP server "reports"."""
    async with speaking(up, server="reports") as opened:
        yield opened
