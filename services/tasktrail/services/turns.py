"""Turns for large requests: memory is bounded, and small requests pass.

Guarantees: of the bodies above `LARGE_BYTES` at most `LARGE_AT_ONCE` are worked on at a time, and `READ_AT_ONCE` are on
their way in, `READ_OF_PEER` of one peer: who sends slowly holds up nobody's work, and few of others' bodies. Each waits
a bounded while, and no more than `LARGE_WAITING` do.

    async with turns.reading(size, address):
        body = await …
        async with turns.taken(len(body)):
            said = strict_json.decode(body, …)
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Hashable

from tasktrail.events.errors import NothingWritten

LARGE_BYTES = 256 * 1024
LARGE_AT_ONCE, LARGE_WAITING, TURN_WITHIN_S = 2, 16, 1.0
"""A body of arrays takes 30 times its size once decoded: of those above `LARGE_BYTES` few are worked on at once."""
READ_AT_ONCE, READ_OF_PEER, READ_WITHIN_S = 8, 2, 0.5


class _Places:
    """So many places; those for whom there is none wait `within_s`, and `LARGE_WAITING` at the most do."""

    def __init__(self, places: int, within_s: float) -> None:
        self._free, self._places, self._within_s = asyncio.Semaphore(places), places, within_s
        self.users = 0
        """How many have a place, or wait for one."""

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncGenerator[None]:
        """Wait for a place."""
        self.users += 1
        try:
            await self._take()
            try:
                yield
            finally:
                self._free.release()
        finally:
            self.users -= 1

    async def _take(self) -> None:
        try:
            async with asyncio.timeout(self._within_s if self.users <= self._places + LARGE_WAITING else 0):
                await self._free.acquire()
        except TimeoutError:
            message = f"too many requests above {LARGE_BYTES} bytes at once; nothing was written. Send it again"
            raise NothingWritten(message) from None


class Turns:
    """Lets small requests pass and large ones in turn."""

    def __init__(self) -> None:
        self._working = _Places(LARGE_AT_ONCE, TURN_WITHIN_S)
        self._reading = _Places(READ_AT_ONCE, READ_WITHIN_S)
        self._peers: dict[Hashable, _Places] = {}

    @contextlib.asynccontextmanager
    async def taken(self, size: int) -> AsyncGenerator[None]:
        """Wait for a turn if `size` bytes need one.

        Raises:
            NothingWritten: too many wait already, or this one waited `TURN_WITHIN_S`.
        """
        if size <= LARGE_BYTES:
            yield
            return
        async with self._working.one():
            yield

    @contextlib.asynccontextmanager
    async def reading(self, size: int, peer: Hashable) -> AsyncGenerator[None]:
        """Wait until so large a body of this peer may come in.

        Raises:
            NothingWritten: too many of the peer's, or of all, are on their way in.
        """
        if size <= LARGE_BYTES:
            yield
            return
        mine = self._peers.setdefault(peer, _Places(READ_OF_PEER, READ_WITHIN_S))
        try:
            async with mine.one(), self._reading.one():
                yield
        finally:
            if not mine.users:
                del self._peers[peer]
