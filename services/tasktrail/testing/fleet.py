"""Several `tasktrail up` processes on one external nats-server or cluster, as an operator runs them.

Guarantees: the streams and keys are made by `tasktrail init`; each process has a data directory of its own with a copy
of the keys; all of them are gone when the `with` block ends. Needs what `tasktrail.testing.service` needs.

    with NatsServer() as server, fleet(server.url, tmp_path) as (one, two):
        one.order("revocations", kind="principal", iss=…, sub=…, reason="left")
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from pathlib import Path

from tasktrail.testing.service import READY_WITHIN_S, UpProcess, tasktrail

AT_ONCE, ROUNDS = 8, 4
"""That 32 requests, which a queue group gives to members at random, all pass one of two by: once in 4 billion."""


@contextlib.contextmanager
def fleet(  # noqa: PLR0913 - what an operator may choose, all but two with a default
    nats: str,
    directory: Path,
    *,
    count: int = 2,
    replicas: int = 1,
    environment: Mapping[str, str] | None = None,
    to_init: Mapping[str, str] | None = None,
) -> Generator[tuple[UpProcess, ...]]:
    """Start `count` processes on the servers `nats` (URLs, comma-separated); their data lies in `directory`.

    `environment` is added to ours, for `init` also `to_init`, where it logs in by another user.

    Raises:
        RuntimeError, TimeoutError: one of them does not come up; with what it printed.
    """
    places = [directory / f"service-{number}" for number in range(count)]
    _init(nats, places[0], replicas, {**(environment or {}), **(to_init or {})})
    for place in places[1:]:
        place.mkdir(mode=0o700)
        shutil.copytree(places[0] / "keys", place / "keys")
    with contextlib.ExitStack() as stack:
        yield tuple(stack.enter_context(UpProcess(place, "--nats", nats, environment=environment)) for place in places)


def _init(nats: str, data: Path, replicas: int, environment: Mapping[str, str]) -> None:
    done = subprocess.run(  # noqa: S603 - this environment's own command
        [tasktrail(), "init", "--nats", nats, "--data", data, "--replicas", str(replicas)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=READY_WITHIN_S,
        check=False,
    )
    if done.returncode:
        message = f"tasktrail init ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}"
        raise RuntimeError(message)


async def last_true(ask: Callable[[], Awaitable[bool]], *, within_s: float) -> float:
    """When the last true answer came, by `time.perf_counter`; 0.0 when none did.

    Begin it while answers are still true: it asks `AT_ONCE` at a time, until `ROUNDS` times in a row none was true.

    Raises:
        TimeoutError: there were still true answers after `within_s`.
    """
    began, last, rounds = time.perf_counter(), 0.0, 0

    async def answer() -> bool:
        nonlocal last
        found = await ask()
        if found:
            last = time.perf_counter()
        return found

    while rounds < ROUNDS:
        rounds = 0 if any(await asyncio.gather(*(answer() for _ in range(AT_ONCE)))) else rounds + 1
        if last - began > within_s:
            message = f"still true after {last - began:.1f} s"
            raise TimeoutError(message)
    return last
