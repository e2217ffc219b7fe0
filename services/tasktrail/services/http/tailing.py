"""Steps as server-sent events, while they are recorded.

Guarantees: one `step` event per step; the stream sequence to go on from follows as `id` after whole entries only, so a
reader that lost its connection and sends it back misses nothing; a comment every `BEAT_S` seconds, so a dead connection
is noticed; an error ends the stream with a `problem` event; a slow reader slows only itself; at most `TAILS_MAX`
streams at a time. Streams end when the service stops.

    event: step
    data: {"stream_seq":1042,…}

    id: 1042
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

import msgspec

from tasktrail.events.errors import TasktrailError, Unavailable
from tasktrail.services.http import problems
from tasktrail.services.http.surface import Batch

MEDIA_TYPE = "text/event-stream"
BEAT_S = 15.0
TAILS_MAX = 32

_log = logging.getLogger("tasktrail.http")


class Tails:
    """The streams that are open."""

    def __init__(
        self,
        *,
        beat_s: float = BEAT_S,
        tails_max: int = TAILS_MAX,
        events: Callable[[Any], Iterable[bytes]] | None = None,
    ) -> None:
        """`events`: how one of what is streamed is said; steps as they stand in a `Batch` where nothing else is."""
        self._beat_s, self._tails_max = beat_s, tails_max
        self._events = events or _events
        self._open = 0
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all of them."""
        self._closing.set()

    async def open(self, batches: Callable[[], Awaitable[AsyncIterator[Any]]]) -> AsyncIterator[bytes]:
        """The bytes of a stream of these, which are asked for once there is room for it.

        Raises:
            Unavailable: too many streams are open.
        """
        if self._open >= self._tails_max:
            message = f"{self._tails_max} tails are open already; close one, or try again later"
            raise Unavailable(message)
        return self._stream(await batches())

    async def _stream(self, batches: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        self._open += 1
        closing = asyncio.ensure_future(self._closing.wait())
        following: asyncio.Future[Any] | None = None
        try:
            yield b": following\n\n"
            while not closing.done():
                following = following or asyncio.ensure_future(anext(batches))
                waiting: set[asyncio.Future[Any]] = {closing, following}
                await asyncio.wait(waiting, timeout=self._beat_s, return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    batch, following = following.result(), None
                    for event in self._events(batch):
                        yield event
                elif not closing.done():
                    yield b": still here\n\n"
        except StopAsyncIteration:
            return
        except TasktrailError as error:
            yield _problem(problems.of_error(error))
        except Exception:  # noqa: BLE001 - whatever it is, the reader is told that the stream ended by a fault
            _log.exception("http_tail_failed")
            yield _problem(problems.unexpected())
        finally:
            self._open -= 1
            closing.cancel()
            if following is not None:
                following.add_done_callback(_forget)
                following.cancel()


def _events(batch: Batch) -> Iterator[bytes]:
    for step in batch.steps:
        yield b"event: step\ndata: %s\n\n" % msgspec.json.encode(step)
    yield b"id: %d\n\n" % batch.until


def _problem(problem: problems.Problem) -> bytes:
    return b"event: problem\ndata: %s\n\n" % msgspec.json.encode(problem)


def _forget(following: asyncio.Future[Any]) -> None:
    """Take what a batch nobody waits for any more came to, so that asyncio does not complain about it."""
    if not following.cancelled():
        following.exception()
