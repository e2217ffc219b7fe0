"""A worker's lease is renewed whatever goes wrong. Source: issue "Adapters" (work that survives), feature L9."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

import pytest

from tasktrail.events.errors import NothingWritten
from tasktrail.mcp.leasing import LEASE_S, Leasing
from tasktrail.mcp.link import Listener
from tasktrail.services.ending import end
from tasktrail.services.messages import Lease, RenewLease, Said
from tasktrail.testing.waiting import until

LEASE_MS = 30


class Wavering:
    """A link which answers with what it was given, then with leases."""

    server = "bank"

    def __init__(self, *answers: Exception | Lease) -> None:
        self.answers, self.said = deque(answers), list[RenewLease]()

    async def request(self, action: str, said: Said) -> Lease:
        assert action == "renew"
        assert isinstance(said, RenewLease)
        self.said.append(said)
        answer = self.answers.popleft() if self.answers else Lease(lease_ms=LEASE_MS)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def listen(self, listener: Listener) -> Callable[[], None]:
        raise NotImplementedError(listener)


@pytest.mark.requirement("L9")
async def test_a_lease_is_renewed_after_anything_that_goes_wrong(caplog: pytest.LogCaptureFixture) -> None:
    """What runs here must not become another's: also when a renewal fails in a way that nobody thought of."""
    away = NothingWritten("away")
    link = Wavering(Lease(lease_ms=LEASE_MS), away, RuntimeError("unthought of"), away, away)
    leasing = Leasing(link, "w1")
    assert leasing.lease_s == LEASE_S
    defined = {"report": "d" * 64}
    renewing = asyncio.create_task(leasing.renew_for_ever(lambda: defined))
    with caplog.at_level(logging.WARNING):
        await until(lambda: len(link.said) > 8, what="renewals")
    await end(renewing)
    assert leasing.lease_s == LEASE_MS / 1000
    assert {(one.worker, tuple(one.tools)) for one in link.said} == {("w1", ("report",))}
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"], "the same again is not said again"
