"""Streams on a cluster that has only just begun: its nodes may not yet take each other for present.

await placed(cluster)
"""

from nats.js import JetStreamContext

from tasktrail.services import trail
from tasktrail.services.connection import Connection
from tasktrail.testing.nats import NatsCluster


async def placed(cluster: NatsCluster) -> None:
    """Make every stream with three copies, as soon as the cluster takes them."""
    nc = await Connection.from_text(",".join(cluster.urls)).connect("placing")
    try:
        await trail.create(JetStreamContext(nc), replicas=3, within_s=trail.CLUSTER_WITHIN_S)
    finally:
        await nc.close()
