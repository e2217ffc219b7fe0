"""One entrance for all requests: finds who carries an action out.

Guarantees: every action of `messages.ACTIONS` is served here, in process and over NATS alike.

    view = await desk.carry_out("get", messages.GetTask(…), Channel(server="reports", in_process=True))
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from tasktrail.events.errors import NothingWritten
from tasktrail.services.access.callers import Channel
from tasktrail.services.access.gate import Gate
from tasktrail.services.access.work import Work
from tasktrail.services.messages import ACTIONS, Said


class Desk:
    """The gate and the work's side behind one door."""

    def __init__(self, gate: Gate, work: Work) -> None:
        self._serving: dict[str, Callable[[Any, Channel], Awaitable[msgspec.Struct]]] = {
            action: getattr(gate, action, None) or getattr(work, action) for action in ACTIONS
        }

    async def carry_out(self, action: str, said: Said, channel: Channel) -> msgspec.Struct:
        """Do what the request says.

        Raises:
            TasktrailError: any of its tree; NothingWritten when the trail cannot even be read.
        """
        try:
            return await self._serving[action](said, channel)
        except (NatsError, APIError, OSError) as error:
            message = (
                f"the trail does not answer ({str(error) or type(error).__name__}); nothing was written, try again"
            )
            raise NothingWritten(message) from error
