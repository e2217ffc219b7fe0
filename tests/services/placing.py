"""Streams on a cluster that has only just begun: its nodes may not yet take each other for present.

await placed(cluster)
"""

import time

import pytest
from nats.errors import Error as NatsError
from nats.js import JetStreamContext

from tasktrail.services import trail
from tasktrail.services.connection import Connection
from tasktrail.testing.nats import NatsCluster

_WITHIN_S = 30.0


async def placed(cluster: NatsCluster) -> None:
    """Make every stream with three copies, as soon as the cluster takes them."""
    nc = await Connection.from_text(",".join(cluster.urls)).connect("placing")
    deadline = time.monotonic() + _WITHIN_S
    try:
        while True:
            try:
                await trail.create(JetStreamContext(nc), replicas=3)
            except NatsError as error:
                if time.monotonic() > deadline:
                    pytest.fail(f"no streams within {_WITHIN_S:g} s; seen last: {error!r}")
            else:
                return
    finally:
        await nc.close()
