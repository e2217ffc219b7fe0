"""One service for each module of this folder."""

from collections.abc import AsyncGenerator, Iterator

import pytest
import pytest_asyncio
from tests.endpoint.place import Place, opened, running

from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.service import UpProcess


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[UpProcess, LocalIssuer]]:
    """The module's service, and the issuer it knows."""
    with running(tmp_path_factory.mktemp("endpoint")) as found:
        yield found


@pytest_asyncio.fixture
async def place(service: tuple[UpProcess, LocalIssuer]) -> AsyncGenerator[Place]:
    """The service with an MCP server that feeds it."""
    async with opened(*service) as found:
        yield found
