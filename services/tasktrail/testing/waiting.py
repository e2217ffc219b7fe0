"""Waiting for a condition: the one place where tests that await something let time pass.

Guarantees: returns as soon as the condition holds, with what was seen; a condition that never holds fails with what was
seen last, never hangs. `service.wait_for` is the same for code that blocks.

    state = await until(lambda: states.kept(ref), what="the state")
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TypeVar, overload

T = TypeVar("T")

WITHIN_S = 60.0
"""Long for a machine that is busy with something else."""
LOOK_S = 0.005


@overload
async def until(probe: Callable[[], Awaitable[T | None]], *, what: str = ..., within_s: float = ...) -> T: ...


@overload
async def until(probe: Callable[[], T | None], *, what: str = ..., within_s: float = ...) -> T: ...


async def until(probe: Callable[[], object], *, what: str = "the condition", within_s: float = WITHIN_S) -> object:
    """What `probe` answers, once that is true; it is asked again and again.

    Raises:
        TimeoutError: it was not within `within_s` (seconds); the message says what was seen last.
    """
    deadline = time.monotonic() + within_s
    while True:
        answer = probe()
        seen: object = await answer if isawaitable(answer) else answer
        if seen:
            return seen
        if time.monotonic() > deadline:
            message = f"{what}: not within {within_s:g} s; seen last: {seen!r}"
            raise TimeoutError(message)
        await asyncio.sleep(LOOK_S)
