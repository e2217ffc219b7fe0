"""Tasks in the background end when they are told to. Source: CPython gh-86296; promise 1 (never a hang)."""

import asyncio

from tasktrail.services.ending import end


async def test_a_task_that_loses_a_cancellation_ends_all_the_same() -> None:
    """As `asyncio.wait_for` before Python 3.12 loses one that comes together with what it waits for."""
    lost = 0

    async def deaf() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                lost += 1
                if lost == 3:
                    raise

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    await end(task)
    assert (task.cancelled(), lost) == (True, 3)


async def test_a_task_that_ended_before_is_left_as_it_is() -> None:
    """Also one that failed: its failure is nobody's any more."""

    async def failing() -> None:
        raise ValueError

    task = asyncio.create_task(failing())
    await asyncio.wait([task])
    await end(task)
    assert isinstance(task.exception(), ValueError)
