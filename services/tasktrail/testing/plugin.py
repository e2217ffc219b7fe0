"""Fixtures for pytest, on real servers: `pytest_plugins = ["tasktrail.testing.plugin"]` in the root `conftest.py`.

`nats_server` is one per session: keep apart by stream names and subjects of your own. `fresh_nats` is a new one for
each test (30 ms). `nats_cluster` is three nodes per module (half a second), all of them up when a test begins.

Needs: pytest, and what `tasktrail.testing.nats` needs.
"""

from collections.abc import Iterator

import pytest

from tasktrail.testing.nats import NatsCluster, NatsServer


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """Give the session's server. Leave it running."""
    with NatsServer() as server:
        yield server


@pytest.fixture
def fresh_nats() -> Iterator[NatsServer]:
    """Give a server with an empty store, for this test alone: it may be killed and restarted."""
    with NatsServer() as server:
        yield server


@pytest.fixture(scope="module")
def _module_cluster() -> Iterator[NatsCluster]:
    with NatsCluster() as cluster:
        yield cluster


@pytest.fixture
def nats_cluster(_module_cluster: NatsCluster) -> NatsCluster:
    """Give the module's cluster, with nodes that an earlier test killed up again. Use stream names of your own."""
    _module_cluster.heal()
    return _module_cluster
