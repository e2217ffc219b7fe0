"""What the matrix needs of a wire: the things a caller can do with a task, and what came back.

Guarantees: nothing of tasktrail, of MCP or of HTTP is assumed here; a wire that can do these joins the matrix by one
line in `conftest.WIRES`. Every request on a wire carries the same request id and goes over the same connections,
whoever calls, so that two answers can be compared byte for byte and a connection that counted would show.

    outcome = await asking(wire, "tasks/get")(token, task_id)
    assert not outcome.allowed
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeAlias

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


Asking: TypeAlias = Callable[[str | None, str], Awaitable[Outcome]]
"""One follow-up: who asks, by token, and for which task, by id."""


class Wire(Protocol):
    """One way to a tasktrail. `token` is what the caller presents; None presents nothing.

    `kind` is its column of `table.ABSENT`.
    """

    kind: str

    @property
    def ways(self) -> Mapping[str, Asking]:
        """Its follow-ups, by what the trail calls them, each of which meets a task that the ones before have not ended.

        An answer is to a question that the task may never have asked; a subscription is allowed when its
        acknowledgement names the task; a result that is waited for, when waiting begins.
        """
        ...

    async def create(self, token: str | None, tool: str) -> Outcome:
        """Call a tool that becomes a task."""
        ...

    async def get(self, token: str | None, task_id: str) -> Outcome:
        """Ask how the task is."""
        ...

    async def listed(self, token: str | None) -> list[str] | None:
        """The ids of all tasks that the caller is told of; None when this wire lists none."""
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


METHODS = ("tasks/get", "tasks/update", "subscriptions/listen", "tasks/cancel")
"""The follow-ups of the extension's own wire."""


def asking(wire: Wire, method: str) -> Asking:
    """The wire's way of a method."""
    return wire.ways[method]
