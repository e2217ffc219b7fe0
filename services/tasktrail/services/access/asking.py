"""Who asks: found out at the beginning of every request, and again whenever it matters.

Guarantees: nobody is somebody before all that governs is read; who calls is found out anew for each request,
and whether it was revoked again for each task it is about; one caller's flood delays that caller alone, and those who
are not believed wait for others from their address; a refusal leaves no sooner whatever was found.

    async with askers.asking(said.caller, said.call, channel) as asking:
        asking = askers.as_of_now(asking)
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import NamedTuple

import msgspec

from tasktrail.events.authority import Authority, Binding, identity
from tasktrail.events.errors import NothingWritten, RateLimited, Unavailable
from tasktrail.services import messages
from tasktrail.services.access.callers import Callers, Channel
from tasktrail.services.access.limits import Limits
from tasktrail.services.access.policy import Policies
from tasktrail.services.access.recorder import Recorder
from tasktrail.services.access.rules import Rule
from tasktrail.services.governance import NOT_GOVERNED, Governance

REFUSED_AFTER_S = 0.005
"""A handle that opens nothing is answered this long after the request came: reading what the broker says of an existing
task takes a little longer than of none, and must not be told by time."""


class Checks(NamedTuple):
    """What every request is held against."""

    callers: Callers
    governance: Governance
    policies: Policies
    limits: Limits


class Asking(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks: the authority as it was found, the identity to compare, and the rule that refuses it outright.

    `whose` is whom limits count it for: somebody who is not believed counts by address, not as the anonymous do.
    `answerable` is set once a refusal may leave (see `REFUSED_AFTER_S`).
    """

    authority: Authority
    mine: Binding
    whose: Binding
    refused: Rule | None
    call: messages.Call
    answerable: asyncio.Event


class Askers:
    """Finds out who asks."""

    def __init__(self, checks: Checks, recorder: Recorder) -> None:
        self._callers, self._governance, self._limits = checks.callers, checks.governance, checks.limits
        self._recorder = recorder

    @contextlib.asynccontextmanager
    async def asking(self, caller: messages.Caller, call: messages.Call, channel: Channel) -> AsyncGenerator[Asking]:
        """Find out who calls, and wait for its turn: one caller's flood delays that caller alone."""
        answerable = asyncio.Event()
        timer = asyncio.get_running_loop().call_later(REFUSED_AFTER_S, answerable.set)
        if not self._governance.ready:
            raise NothingWritten(NOT_GOVERNED)
        authority, refused = await self._callers.authority(caller, call, channel)
        mine = identity(authority)
        whose = mine if refused is None else stranger(authority)
        if refused is Rule.NOT_CHECKED:
            await self._recorder.denied(authority, call.method, Unavailable.code, refused, "", authority.tenant)
            message = "the caller's credential cannot be checked now: its issuer does not answer. Send it again"
            raise NothingWritten(message)
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._limits.turn(whose))
            except RateLimited:
                await self._recorder.denied(
                    authority, call.method, RateLimited.code, Rule.RATE_LIMITED, "", authority.tenant
                )
                raise
            stack.callback(timer.cancel)
            yield Asking(authority=authority, mine=mine, whose=whose, refused=refused, call=call, answerable=answerable)

    def as_of_now(self, asking: Asking) -> Asking:
        """The same caller, refused if it was revoked meanwhile: a request may wait, and may be about many tasks.

        Raises:
            NothingWritten: what governs is being read again.
        """
        if not self._governance.ready:
            raise NothingWritten(NOT_GOVERNED)
        if asking.refused is not None or self._governance.revocation(asking.authority) is None:
            return asking
        return msgspec.structs.replace(asking, refused=Rule.REVOKED)


def stranger(authority: Authority) -> Binding:
    """Whose turn it is when who calls is not believed: those of one address wait for each other, not for the honest."""
    address = authority.request.address if authority.request else ""
    return Binding(tenant="", iss="", sub="", client_id=address)
