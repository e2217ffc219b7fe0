"""Ending a task that runs in the background.

Guarantees: when `end` returns the task has ended. One `cancel()` is not enough before Python 3.12: `asyncio.wait_for`,
with which nats-py awaits replies, loses a cancellation that comes with the reply (gh-86296), and the task goes on.

    await end(self._watch)
"""

import asyncio
from typing import Any

_AGAIN_S = 0.1


async def end(task: asyncio.Task[Any], again_s: float = _AGAIN_S) -> None:
    """Cancel a task until it has ended; how it ended does not matter.

    `again_s`: how long what is cancelled may take to clean up; then it is cancelled again, which may cut that short.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=again_s)
    if not task.cancelled():
        task.exception()
