"""One answer for every handle that opens nothing: the same bytes, the same status, the same work behind them.

Sources: design section 1 (promise 4) and section 3 (polls), feature A4.
"""

import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Self

import pytest
from nats.aio.msg import Msg
from tests.binding.installation import Installation, Who
from tests.binding.table import NOT_ASKED
from tests.binding.test_matrix import UNKNOWN

from tasktrail.events.facts import AccessDenied
from tasktrail.mcp.callers import digest
from tasktrail.services.connection import settle
from tasktrail.testing.waiting import until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.requirement("A4")]

MALFORMED = {
    "too short": "a",
    "upper case": "A" * 32,
    "a UUID": "786512e2-9e0d-44bd-8f29-789f320fe840",
    "empty": "",
    "a wildcard": "*",
    "a subject": "trail.1.task.>",
    "long": "a" * 5_000,
}
REASONS = {
    "unknown": "no-such-task",
    "foreign": "other-identity-context",
    "expired": "handle-expired",
    "revoked": "handle-revoked",
    "malformed": "malformed-handle",
}


async def foreign(place: Installation, _: Who) -> str:
    """Somebody else's task."""
    return (await place.wire.create(place.creator().token(), "exact")).task_id


async def expired(place: Installation, who: Who) -> str:
    """The caller's own task, whose time has ended."""
    made = await place.wire.create(who.token(), "brief_exact")

    async def ended() -> bool:
        return not (await place.wire.get(who.token(), made.task_id)).allowed

    await until(ended)
    await _at_rest(place, made.task_id, "TaskExpired")
    return made.task_id


async def revoked(place: Installation, who: Who) -> str:
    """The caller's own task, whose handle was taken back."""
    made = await place.wire.create(who.token(), "exact")
    await place.revoke("handle", task=place.trail.ref(made.task_id))
    await _at_rest(place, made.task_id, "TaskCancelled")
    return made.task_id


async def _at_rest(place: Installation, task_id: str, last: str) -> None:
    """Wait until the task's last step is on the trail: nobody works on it any more."""

    async def there() -> bool:
        return last in await place.trail.names(task_id)

    await until(there)


async def unknown(_: Installation, __: Who) -> str:
    """An id that never was."""
    return UNKNOWN


async def malformed(_: Installation, __: Who) -> str:
    """A text that is no id."""
    return MALFORMED["a UUID"]


KINDS: dict[str, Callable[[Installation, Who], Awaitable[str]]] = {
    "unknown": unknown,
    "foreign": foreign,
    "expired": expired,
    "revoked": revoked,
    "malformed": malformed,
}


async def test_every_handle_that_opens_nothing_gets_the_same_bytes(place: Installation) -> None:
    """Status, headers and body; whatever the reason, and however the id is spelt."""
    ana = place.creator()
    token = ana.token()
    ids = {kind: await make(place, ana) for kind, make in KINDS.items()} | MALFORMED
    for method, ask in place.wire.ways.items():
        asked = [kind for kind in ids if (method, kind) not in NOT_ASKED]
        answers = {kind: await ask(token, ids[kind]) for kind in asked}
        assert not answers["unknown"].allowed, method
        assert {kind: answer for kind, answer in answers.items() if answer != answers["unknown"]} == {}, method


TRIES = 3


class Wiretap:
    """What the service asks of the broker, and what it writes, while one request is answered."""

    def __init__(self, place: Installation) -> None:
        self._place = place
        self._heard: list[Msg] = []
        self._subscriptions: list[Any] = []

    async def __aenter__(self) -> Self:
        for subject in ("$JS.API.STREAM.MSG.GET.>", "$JS.API.DIRECT.GET.>", "trail.1.denied.>"):
            self._subscriptions.append(await self._place.trail.nc.subscribe(subject, cb=self._hear))
        await settle(self._place.trail.nc)
        return self

    async def __aexit__(self, *_: object) -> None:
        for subscription in self._subscriptions:
            await subscription.unsubscribe()

    async def _hear(self, msg: Msg) -> None:
        self._heard.append(msg)

    async def heard(self, ref: str, token: str) -> Counter[str]:
        """The subjects of what was read about this reference, without it, and of denials of this token written.

        Each is told once.
        """
        await settle(self._place.trail.nc)
        about = [
            msg.subject
            for msg in self._heard
            if (digest(token) if msg.subject.startswith("trail.1.denied.") else ref) in f"{msg.subject} {msg.data!r}"
        ]
        self._heard.clear()
        return Counter(re.sub(r"(trail\.1\.denied\.).*", r"\1*", subject.replace(ref, "<ref>")) for subject in about)


async def test_the_same_is_asked_of_the_broker_whatever_the_handle_is(place: Installation) -> None:
    """Reads and writes as the broker sees them: what takes another way would take another time.

    What runs looks at its own task now and then; so only what differs each time does differ.
    """
    ids: dict[str, tuple[str, Who]] = {}
    for kind, make in KINDS.items():
        ana = place.creator()
        ids[kind] = await make(place, ana), ana if kind in {"expired", "revoked"} else place.creator()
    async with Wiretap(place) as tap:
        for method, ask in place.wire.ways.items():
            seen: dict[str, Counter[str]] = {}
            for kind, (task_id, prober) in ids.items():
                for _ in range(TRIES):
                    token = prober.token()  # another than before: this denial begins a run, and is written at once
                    assert not (await ask(token, task_id)).allowed, (method, kind)
                    seen[kind] = await tap.heard(place.trail.ref(task_id), token)
                    if seen[kind] == seen["unknown"]:
                        break
            assert sum(seen["unknown"].values()) > 1, (method, seen)
            assert {kind: asked for kind, asked in seen.items() if asked != seen["unknown"]} == {}, (method, seen)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_trail_tells_the_reason_that_the_wire_does_not(place: Installation, kind: str) -> None:
    """Design section 5: `AccessDenied` with true reasons; the code is what the caller saw."""
    ana = place.creator()
    task_id = await KINDS[kind](place, ana)
    token = (ana if kind in {"expired", "revoked"} else place.creator()).token()
    ref = place.trail.ref(task_id)
    before = len(await place.trail.denied(ref))
    assert not (await place.wire.get(token, task_id)).allowed

    async def written() -> bool:
        return len(await place.trail.denied(ref)) > before

    await until(written)
    last = (await place.trail.denied(ref))[-1]
    (denial,) = last.events
    assert isinstance(denial, AccessDenied)
    assert (denial.method, denial.code, dict(denial.reasons)) == ("tasks/get", -32602, {REASONS[kind]: 1})
    assert last.authority.decision is not None
    assert last.authority.decision.effect == "deny"
