"""Callers who are not believed, and are too many: recorded as one. Pure.

Guarantees: of those who come from one address through one server within a minute, the first `APART` are told apart by
what they claim; further ones are recorded together, without it, so that nobody writes an entry of the trail with each
made-up name or token. Whoever is believed is not concerned. Memory is bounded: what is forgotten can only tell more
apart.

    authority = strangers.known(authority, now_ms)
"""

from collections import OrderedDict
from collections.abc import Hashable

import msgspec

from tasktrail.events.authority import Authority, Credential, Level, Principal, PrincipalKind, Request

APART = 20
MINUTE_MS = 60_000
ADDRESSES_MAX = 10_000


class _Minute:
    def __init__(self, since_ms: int) -> None:
        self.since_ms = since_ms
        self.seen: set[Hashable] = set()


class Strangers:
    """Remembers who claimed what, by address and server."""

    def __init__(self) -> None:
        self._minutes: OrderedDict[Hashable, _Minute] = OrderedDict()

    def known(self, authority: Authority, now_ms: int) -> Authority:
        """The authority as it is to be recorded: without what it claims when too many others came before it."""
        principal, credential, request = authority.principal, authority.credential, authority.request
        if principal is None or principal.level is not Level.CLAIMED or credential is None:
            return authority
        through = request.through if request else ""
        claimed = request.server if request and not through else ""
        claim = (principal, authority.client, authority.actors, credential.token_hash, credential.jti, claimed)
        minute = self._minute((authority.tenant, request.address, through) if request else None, now_ms)
        if claim in minute.seen or len(minute.seen) < APART:
            minute.seen.add(claim)
            return authority
        return msgspec.structs.replace(
            authority,
            principal=Principal(iss="", sub="", kind=PrincipalKind.ANONYMOUS, level=Level.CLAIMED),
            client=None,
            actors=(),
            credential=Credential(method=credential.method, verification=credential.verification, level=Level.CLAIMED),
            request=_bare(request),
        )

    def _minute(self, key: Hashable, now_ms: int) -> _Minute:
        minute = self._minutes.get(key)
        if minute is None or not 0 <= now_ms - minute.since_ms < MINUTE_MS:
            minute = self._minutes[key] = _Minute(now_ms)
        self._minutes.move_to_end(key)
        while len(self._minutes) > ADDRESSES_MAX:
            self._minutes.popitem(last=False)
        return minute


def _bare(request: Request | None) -> Request | None:
    """The request without what is of one alone."""
    if request is None:
        return None
    return msgspec.structs.replace(request, server=request.through, rpc_id="", traceparent="", forwarded_for="")
