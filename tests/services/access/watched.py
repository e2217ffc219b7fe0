"""What a connection asks of NATS, written down, and identifiers that try to break out of a subject."""

from collections.abc import Awaitable
from typing import Any

import pytest
from tests.services.access.rig import outcome

from tasktrail.events.subjects import kind_of
from tasktrail.testing.parts import Parts

HOSTILE = ("", "x", "a.b.*.>", "trail.1.>", "a\r\nPUB x 1\r\n", "\0", "\ud800", "é" * 4000, "A" * 32)


class Watched:
    """What a connection asks of NATS: subjects without references, tenants and inboxes."""

    def __init__(self, one: Parts, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        publish = one.nc.publish

        async def noted(subject: str, *args: Any, **options: Any) -> None:  # noqa: ANN401
            kind = kind_of(subject)
            self.seen.append(f"trail {kind}" if kind else subject.partition(".$KV.")[0])
            await publish(subject, *args, **options)

        patch.setattr(one.nc, "publish", noted)

    async def during(self, act: Awaitable[object]) -> tuple[str | None, list[str]]:
        self.seen = []
        return await outcome(act), self.seen
