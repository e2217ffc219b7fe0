"""What a NATS user may do, found out without doing it.

Guarantees: writes nothing to any stream: what is published to the trail asks for a stream that does not exist, which
JetStream refuses before it stores (`Nats-Expected-Stream`); what is asked of KEYS is a message no stream can have.
Subscriptions end at once and what they bring is not read. Needs a connection whose `error_cb` is `Denials.hear`.

    denials = Denials()
    nc = await connect(..., error_cb=denials.hear)
    allowed = await reach(nc, denials)      # {"publish to the trail", ...}: empty is right for an adapter
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from tasktrail.events.subjects import ANONYMOUS_TENANT, KEYS, TRAIL, control_subject
from tasktrail.services.connection import settle

WITHIN_S = 5.0
_NO_STREAM = "tasktrail-doctor-asks-only"
_NO_SEQUENCE = b'{"seq":18446744073709551615}'
_PUBLISHED = (
    ("publish to the trail", control_subject(ANONYMOUS_TENANT), b"", {"Nats-Expected-Stream": _NO_STREAM}),
    ("read wrapped keys", f"$JS.API.STREAM.MSG.GET.{KEYS}", _NO_SEQUENCE, None),
    ("read the trail", f"$JS.API.STREAM.MSG.GET.{TRAIL}", _NO_SEQUENCE, None),
)
_SUBSCRIBED = (
    ("listen to the trail", "trail.>"),
    ("listen to other servers' commands", "tasktrail.cmd.>"),
    ("listen to everything", ">"),
)
DESTRUCTIVE = (
    f"$JS.API.STREAM.DELETE.{TRAIL}",
    f"$JS.API.STREAM.UPDATE.{TRAIL}",
    f"$JS.API.STREAM.PURGE.{TRAIL}",
    f"$JS.API.STREAM.DELETE.{KEYS}",
)
"""What no running service needs, and `deny_delete` does not stop (the first two)."""


class Denials:
    """What the server refused on one connection."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._more = asyncio.Event()

    async def hear(self, error: Exception) -> None:
        """An error of the connection."""
        self.seen.append(str(error).lower())
        self._more.set()

    def names(self, subject: str) -> bool:
        """Whether a refusal was about this subject (nats-py gives it in lower case)."""
        return any("permissions violation" in one and f'"{subject.lower()}"' in one for one in self.seen)

    async def about(self, subject: str) -> None:
        """Return once there is one about this subject."""
        while not self.names(subject):
            self._more.clear()
            await self._more.wait()


class Permissions(msgspec.Struct, frozen=True, kw_only=True):
    """`allow` and `deny` lists of subjects, as the server tells its user; an empty `allow` allows everything."""

    allow: list[str] = []
    deny: list[str] = []

    def permit(self, subject: str) -> bool:
        """Whether a message to this subject is taken."""
        allowed = not self.allow or any(covers(pattern, subject) for pattern in self.allow)
        return allowed and not any(covers(pattern, subject) for pattern in self.deny)


def covers(pattern: str, subject: str) -> bool:
    """Whether a NATS subject with wildcards includes this subject, which has none."""
    wanted, given = pattern.split("."), subject.split(".")
    for index, part in enumerate(wanted):
        if part == ">":
            return len(given) > index
        if index >= len(given) or part not in {"*", given[index]}:
            return False
    return len(wanted) == len(given)


async def reach(nc: Client, denials: Denials) -> list[str]:
    """What of the service's own this user reaches.

    Raises:
        TimeoutError: the server neither answered nor refused within `WITHIN_S`.
    """
    found = [
        what for what, subject, body, headers in _PUBLISHED if await _publishes(nc, denials, subject, body, headers)
    ]
    for what, subject in _SUBSCRIBED:
        subscription = await nc.subscribe(subject)
        await settle(nc)
        if not denials.names(subject):
            found.append(what)
        await subscription.unsubscribe()
    return found


async def _publishes(
    nc: Client, denials: Denials, subject: str, body: bytes, headers: Mapping[str, str] | None
) -> bool:
    """Whether the server takes this request: it answers, or nobody listens; or it refuses."""

    async def ask() -> bool:
        try:
            await nc.request(subject, body, timeout=WITHIN_S, headers=dict(headers) if headers else None)
        except NoRespondersError:
            return True
        return True

    async def hear() -> bool:
        await denials.about(subject)
        return False

    racing: Sequence[asyncio.Task[bool]] = (asyncio.create_task(ask()), asyncio.create_task(hear()))
    try:
        done, _ = await asyncio.wait(racing, timeout=WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            message = f"neither an answer nor a refusal for {subject} within {WITHIN_S:g} s"
            raise TimeoutError(message)
        return all([await one for one in done])
    finally:
        for one in racing:
            one.cancel()
        await asyncio.gather(*racing, return_exceptions=True)


async def of_user(nc: Client) -> Permissions | None:
    """What this connection's user may publish, told by the server; None when it may not ask or is told nothing."""
    try:
        answer = await nc.request("$SYS.REQ.USER.INFO", b"", timeout=WITHIN_S)
        told: dict[str, Any] = msgspec.json.decode(answer.data, type=dict[str, Any])
        publish = told["data"].get("permissions", {}).get("publish", {})
        return msgspec.convert(publish, Permissions)
    except (NatsError, TimeoutError, msgspec.MsgspecError, KeyError):
        return None
