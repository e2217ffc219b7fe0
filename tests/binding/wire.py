"""What the matrix needs of a wire: the things a caller can do with a task, and what came back.

Guarantees: nothing of tasktrail, of MCP or of HTTP is assumed here; a wire that can do these joins the matrix by one
line in `conftest.WIRES`. Every request on a wire carries the same request id and goes over the same connections,
whoever calls, so that two answers can be compared byte for byte and a connection that counted would show.

    outcome = await wire.get(token, task_id)
    assert not outcome.allowed
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one request came to.

    `allowed` is whether the caller got what it asked for; `status` and `raw` are everything that it could tell two
    answers apart by: the status of the transport, and its headers (without the date) and bytes. `task_id` is a new
    task's.
    """

    allowed: bool
    status: int
    raw: bytes
    task_id: str = ""


class Wire(Protocol):
    """One way to a tasktrail. `token` is what the caller presents; None presents nothing."""

    async def create(self, token: str | None, tool: str) -> Outcome:
        """Call a tool that becomes a task."""
        ...

    async def get(self, token: str | None, task_id: str) -> Outcome:
        """Ask how the task is."""
        ...

    async def update(self, token: str | None, task_id: str) -> Outcome:
        """Send an answer, to a question that the task may never have asked."""
        ...

    async def subscribe(self, token: str | None, task_id: str) -> Outcome:
        """Listen to the task; allowed when the acknowledgement names it."""
        ...

    async def cancel(self, token: str | None, task_id: str) -> Outcome:
        """Ask for the task to stop."""
        ...

    async def listen_while(self, token: str | None, task_id: str, meanwhile: Callable[[], Awaitable[None]]) -> Outcome:
        """Listen to the task, do `meanwhile` once that is acknowledged, and go on until the other side ends it.

        Raises:
            TimeoutError: it does not.
        """
        ...

    async def reconnect(self) -> None:
        """Leave all connections and take new ones."""
        ...


Asking = Callable[[str | None, str], Awaitable[Outcome]]

METHODS = ("tasks/get", "tasks/update", "subscriptions/listen", "tasks/cancel")
"""The follow-ups, in an order in which each meets a task that the ones before have not ended."""


def asking(wire: Wire, method: str) -> Asking:
    """The wire's way of a method."""
    ways: dict[str, Asking] = {
        "tasks/get": wire.get,
        "tasks/update": wire.update,
        "subscriptions/listen": wire.subscribe,
        "tasks/cancel": wire.cancel,
    }
    return ways[method]
