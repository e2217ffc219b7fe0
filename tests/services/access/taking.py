"""Work whose worker is lost, and who takes it: for the tests of reruns."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from tests.services.access.rig import ANA, CHANNEL, Rig

from tasktrail.events.facts import OnWorkerLost
from tasktrail.services import messages
from tasktrail.services.messages import Order, Taken, TaskView, WorkView
from tasktrail.testing.parts import Parts

TOOLS = {"report": "t" * 64}


@contextlib.asynccontextmanager
async def queued(at: Parts, *made: TaskView) -> AsyncGenerator[None]:
    """While the queue is filled with what these tasks wait for."""
    for view in made:
        state = at.states.kept(view.task_ref)
        assert state is not None
        at.queue.observe(state)
    await at.queue.start()
    try:
        yield
    finally:
        await at.queue.stop()


async def created(rig: Rig, made: str = "c", who: messages.Caller = ANA, **fields: Any) -> TaskView:  # noqa: ANN401 - of a creation
    said = {"worker": "w1", "on_worker_lost": OnWorkerLost.RERUN, "tool_sha256": "t" * 64, **fields}
    return await rig.create(who, made, **said)


async def lost(rig: Rig, ref: str, worker: str = "w1", attempt: int = 1, cause: str = "shutdown") -> WorkView:
    said = messages.LoseWorker(
        task_ref=ref, command_id=f"lose {worker} {attempt}", cause=cause, worker=worker, attempt=attempt
    )
    return await rig.one.work.lose(said, CHANNEL)


async def take(rig: Rig, worker: str = "w2", wait_ms: int = 1_000, **fields: Any) -> Order | None:  # noqa: ANN401 - of the request
    said = messages.TakeWork(worker=worker, wait_ms=wait_ms, tools=TOOLS)
    said = msgspec.structs.replace(said, **fields)
    taken: Taken = await rig.one.work.take(said, CHANNEL)
    return taken.order


async def facts(rig: Rig, kind: type[Any]) -> list[Any]:
    return [event for entry in await rig.entries("task") for event in entry.events if isinstance(event, kind)]
