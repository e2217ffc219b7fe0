"""Commands on tasks, sent as a caller should: again under the same id until the outcome is known.

await do(one, create())
done = await until_told(one, report("r1"))
"""

import time
from collections.abc import Coroutine

import pytest

from tasktrail.events import commands
from tasktrail.events.errors import Unavailable
from tasktrail.events.subjects import task_ref
from tasktrail.services.ledger import Recorded
from tasktrail.testing.parts import Parts
from tasktrail.testing.scenario import ANA, authority, sealed

TENANT = ANA.tenant
IN_TIME_S = 4.0
"""Within which a caller is answered: promise 1 says 2 s; the machine is shared."""


def ref_of(name: str) -> str:
    """The reference of a task of this name."""
    return task_ref(b"k" * 32, name)


REF = ref_of("a task")


def report(made: str) -> commands.ReportStatus:
    """A status text of its own, so that it is always a change."""
    return commands.ReportStatus(id=made, message=sealed("message", made))


def complete(made: str = "done", text: str = "") -> commands.CompleteTask:
    """A result."""
    return commands.CompleteTask(id=made, result=sealed("result", text))


async def do(one: Parts, command: commands.TaskCommand, ref: str = REF) -> Recorded:
    """Once."""
    return await one.ledger.submit(TENANT, ref, command, authority())


async def until_told(one: Parts, command: commands.TaskCommand, ref: str = REF, within_s: float = 60.0) -> Recorded:
    """The same command until its outcome is known; each answer in time."""
    deadline = time.monotonic() + within_s
    while True:
        asked = time.monotonic()
        try:
            return await do(one, command, ref)
        except Unavailable:
            now = time.monotonic()
            if now > deadline or now - asked > IN_TIME_S:
                raise


async def unavailable(command: Coroutine[object, object, object]) -> Unavailable:
    """The error of what the trail does not answer."""
    with pytest.raises(Unavailable) as caught:
        await command
    return caught.value
