"""Turns for large requests: memory is bounded, and small requests pass.

Guarantees: of the bodies above `LARGE_BYTES` at most `LARGE_AT_ONCE` are worked on at a time; of those that wait, each
waits `TURN_WITHIN_S` at most, and no more than `LARGE_WAITING` do.

    async with turns.taken(len(body)):
        said = strict_json.decode(body, …)
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from tasktrail.events.errors import NothingWritten

LARGE_BYTES = 256 * 1024
LARGE_AT_ONCE, LARGE_WAITING, TURN_WITHIN_S = 2, 16, 1.0
"""A body of arrays takes 30 times its size once decoded: of those above `LARGE_BYTES` few are worked on at once."""


class Turns:
    """Lets small requests pass and large ones in turn."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(LARGE_AT_ONCE)
        self._waiting = 0

    @contextlib.asynccontextmanager
    async def taken(self, size: int) -> AsyncGenerator[None]:
        """Wait for a turn if `size` bytes need one.

        Raises:
            NothingWritten: too many wait already, or this one waited `TURN_WITHIN_S`.
        """
        if size <= LARGE_BYTES:
            yield
            return
        self._waiting += 1
        try:
            async with asyncio.timeout(TURN_WITHIN_S if self._waiting <= LARGE_WAITING else 0):
                await self._free.acquire()
        except TimeoutError:
            message = f"too many requests above {LARGE_BYTES} bytes at once; nothing was written. Send it again"
            raise NothingWritten(message) from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()
