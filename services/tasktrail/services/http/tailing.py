"""Entries as server-sent events, while they are appended.

Guarantees: one `entry` event per entry with its stream sequence as `id`, so a reader that lost its connection goes on
after the last one it saw; a comment every `BEAT_S` seconds, so a dead connection is noticed; an error ends the stream
with a `problem` event; a reader that is slow slows only itself; at most `TAILS_MAX` streams at a time. Streams end
when the service stops.

    event: entry
    id: 1042
    data: {"seq":1042,…}
"""

import asyncio
import logging
from collections.abc import AsyncIterator

import msgspec

from tasktrail.events.errors import TasktrailError, Unavailable
from tasktrail.services.http import problems
from tasktrail.services.http.surface import TailLine

MEDIA_TYPE = "text/event-stream"
BEAT_S = 15.0
TAILS_MAX = 32

_log = logging.getLogger("tasktrail.http")


class Tails:
    """The streams that are open."""

    def __init__(self, *, beat_s: float = BEAT_S, tails_max: int = TAILS_MAX) -> None:
        self._beat_s, self._tails_max = beat_s, tails_max
        self._open = 0
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all of them."""
        self._closing.set()

    def open(self, lines: AsyncIterator[TailLine]) -> AsyncIterator[bytes]:
        """The bytes of a stream of these lines.

        Raises:
            Unavailable: too many streams are open.
        """
        if self._open >= self._tails_max:
            message = f"{self._tails_max} tails are open already; close one, or try again later"
            raise Unavailable(message)
        return self._stream(lines)

    async def _stream(self, lines: AsyncIterator[TailLine]) -> AsyncIterator[bytes]:
        self._open += 1
        closing = asyncio.ensure_future(self._closing.wait())
        following: asyncio.Future[TailLine] | None = None
        try:
            yield b": following\n\n"
            while not closing.done():
                following = following or asyncio.ensure_future(anext(lines))
                await asyncio.wait({closing, following}, timeout=self._beat_s, return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    line, following = following.result(), None
                    yield b"event: entry\nid: %d\ndata: %s\n\n" % (line.seq, msgspec.json.encode(line))
                elif not closing.done():
                    yield b": still here\n\n"
        except StopAsyncIteration:
            return
        except TasktrailError as error:
            yield _problem(problems.of_error(error))
        except Exception:
            _log.exception("http_tail_failed")
            yield _problem(problems.unexpected())
        finally:
            self._open -= 1
            closing.cancel()
            if following is not None:
                following.add_done_callback(_forget)
                following.cancel()


def _forget(following: asyncio.Future[TailLine]) -> None:
    """Take what a line nobody waits for any more came to, so that asyncio does not complain about it."""
    if not following.cancelled():
        following.exception()


def _problem(problem: problems.Problem) -> bytes:
    return b"event: problem\ndata: %s\n\n" % msgspec.json.encode(problem)
