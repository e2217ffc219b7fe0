"""The gate's process for every test of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.services.access.rig import SETTINGS, Rig

from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Clock, parts


@pytest.fixture
async def rig(fresh_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """Give a process on an empty trail."""
    clock = Clock()
    async with parts(fresh_nats.url, tmp_path, clock, SETTINGS) as one:
        yield Rig(one, clock)
