"""Exports from a running service, streamed: who took what is on the trail before the first byte leaves.

Guarantees: what is recorded is the format, the scope, how many rows, and the case; the stream holds exactly so many.
At most `EXPORTS_MAX` run, counted from when they begin until their stream is at its end, closed or dropped.

    export = await Exporting(service).begin(ExportOrder(format="csv", tenant="acme"), asker)
    async for chunk in export.chunks: …
"""

import asyncio
import contextlib
import functools
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import NamedTuple

from tasktrail.events.authority import Authority
from tasktrail.events.errors import Unavailable
from tasktrail.projections.audit.exported import measure
from tasktrail.services.access.policy import Action
from tasktrail.services.exports import ExportOrder, chunks_of, scope_of, shape_of, sweep, told
from tasktrail.services.operators import Asker
from tasktrail.services.questions import reference
from tasktrail.services.reading import catch_up
from tasktrail.services.service import Service

EXPORTS_MAX = 4


class Export(NamedTuple):
    """An export that has begun: what it is, how many `rows`, as of which sequence, and its bytes."""

    format: str
    media_type: str
    suffix: str
    rows: int
    as_of: int
    chunks: AsyncIterator[bytes]


class Exporting:
    """Exports from a running service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._running: set[object] = set()
        sweep(service.settings.data)

    async def begin(self, order: ExportOrder, asker: Asker) -> Export:
        """Count an export, record it, and begin it.

        Raises:
            NotAuthorised: this operator may not have that; on the trail.
            InvalidRequest: the order is none.
            Unavailable: it cannot be recorded now, or too many are running.
        """
        authority = await self._service.admission.admitted(asker, Action.READ, "export", tenant=order.tenant or "")
        if len(self._running) >= EXPORTS_MAX:
            message = f"{EXPORTS_MAX} exports are running already; try again when one is over"
            raise Unavailable(message)
        place = object()
        self._running.add(place)
        try:
            return await self._begun(order, asker, authority, functools.partial(self._running.discard, place))
        except BaseException:
            self._running.discard(place)
            raise

    async def _begun(self, order: ExportOrder, asker: Asker, authority: Authority, over: Callable[[], None]) -> Export:
        service = self._service
        await catch_up(service)
        store = service.auditor.store
        scope = await asyncio.to_thread(scope_of, order, lambda task: reference(store, service.keyring.ref, task))
        extent = await asyncio.to_thread(measure, store, scope)
        await service.admission.note_query(authority, "export", told(order, scope), extent.rows, case_id=asker.case_id)
        shape = shape_of(order.format)
        chunks = _Chunks(chunks_of(store, order.format, scope, extent, service.settings.data), over)
        return Export(order.format, shape.media_type, shape.suffix, extent.rows, extent.as_of, chunks)


class _Chunks(AsyncIterator[bytes]):
    """The bytes of an export; `over` is called when it ends, fails, is closed, or is dropped, even unread.

    An async generator would not do: one that was never begun runs no `finally`.
    """

    def __init__(self, chunks: Generator[bytes], over: Callable[[], None]) -> None:
        self._chunks = chunks
        self._over = weakref.finalize(self, over)

    async def __anext__(self) -> bytes:
        try:
            chunk = await asyncio.to_thread(_next, self._chunks)
        except BaseException:
            await self.aclose()
            raise
        if not chunk:
            await self.aclose()
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        self._over()
        with contextlib.suppress(ValueError):  # a thread still makes the next one, and then lets go of it
            self._chunks.close()


def _next(chunks: Iterator[bytes]) -> bytes:
    """The next bytes; none when it is over."""
    return next((chunk for chunk in chunks if chunk), b"")
