"""Fetching from a pull consumer that was made just now.

Guarantees: on a cluster, a server that has not yet heard where a new consumer is answers that nobody listens (503);
that is asked again within the time given, and is no failure.

    messages = await fetch(subscription, 256, timeout_s=5.0)
"""

import asyncio
import time

from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import ServiceUnavailableError

_AGAIN_S = 0.02


async def fetch(subscription: JetStreamContext.PullSubscription, batch: int, *, timeout_s: float) -> list[Msg]:
    """At most `batch` messages, at least one.

    Raises:
        nats.errors.TimeoutError: there was none within `timeout_s`.
        nats.js.errors.ServiceUnavailableError: nobody took the request, all that time.
        nats.errors.Error: as nats-py says.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await subscription.fetch(batch, timeout=max(_AGAIN_S, deadline - time.monotonic()))
        except ServiceUnavailableError:
            if time.monotonic() + _AGAIN_S > deadline:
                raise
            await asyncio.sleep(_AGAIN_S)
