"""Calls of `tasks/result` that wait, on every server of the 2025-11-25 wire: few of one caller, bounded of all.

Guarantees: counted by what a caller cannot make up: the token or the identity, and for anonymous callers the address.
Needs no SDK, so that adapters use it too.

    waiting = WaitingResults()
    with waiting.one(whose(caller, call.address)): …
"""

from collections.abc import Generator, Hashable
from contextlib import contextmanager

from tasktrail.events.errors import RateLimited
from tasktrail.services.access.claims import digest
from tasktrail.services.counting import Counting
from tasktrail.services.messages import Caller

CALLER_MAX, WAITING_MAX = 16, 64
LOOK_EVERY_S = 5.0
"""How often a call that waits looks at its task by itself, as signals may be lost, and whether its client is there."""


class TooManyWait(RateLimited):
    """As many calls wait as may; no entry is made of it."""

    written = "nothing"


class WaitingResults:
    """Those of one process."""

    def __init__(self) -> None:
        self._waiting: Counting[Hashable] = Counting()

    @contextmanager
    def one(self, who: Hashable) -> Generator[None]:
        """One more, while the block runs.

        Raises:
            TooManyWait: `CALLER_MAX` of this caller wait already, or `WAITING_MAX` of all.
        """
        if self._waiting.of(who) >= CALLER_MAX or self._waiting.total() >= WAITING_MAX:
            message = f"at most {CALLER_MAX} calls of a caller wait, {WAITING_MAX} of all: end one, or use tasks/get"
            raise TooManyWait(message, int(LOOK_EVERY_S * 1000))
        with self._waiting.one(who):
            yield


def whose(caller: Caller, address: str) -> tuple[str, ...]:
    """Whose call it is, as an adapter knows its callers; anonymous ones are told apart by their address."""
    if caller.token:
        return (digest(caller.token),)
    return (caller.iss, caller.sub, caller.client_id) if caller.credential else (address,)
