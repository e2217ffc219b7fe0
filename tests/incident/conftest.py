"""What a service left that has seen the incident; each module works on a copy of it."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.incident.seeded import Story, seeded

from tasktrail.testing.service import UpProcess


@pytest.fixture(scope="session")
def incident(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Story]:
    """The data directory of a stopped service, and what is on its trail."""
    data = tmp_path_factory.mktemp("incident") / "data"
    with UpProcess(data) as up:
        up.stop()
    return data, asyncio.run(seeded(data))


@pytest.fixture(scope="session")
def copied(incident: tuple[Path, Story]) -> Callable[[Path], Story]:
    """Makes a copy of it in a directory that is not there yet."""

    def copy(into: Path) -> Story:
        shutil.copytree(incident[0], into)
        return incident[1]

    return copy
