"""A store of its own for each test of the audit store."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.projections.audit.stores import opened

from tasktrail.projections.audit.store import AuditStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AuditStore]:
    one = opened(tmp_path / "audit.duckdb")
    yield one
    one.close()
