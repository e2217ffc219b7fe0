"""Responders' own SQL, each statement in a process of its own that can only read the one file it is given.

Guarantees: a statement ends within its time, interrupted and else killed, and the service does not notice; at most
`AT_ONCE` run at the same time, others are told to come again; an answer is at most so many rows and bytes, and says
what was cut off. What the process cannot do is in `sandbox_child.py`. Whose rows the file holds is not decided here.

    sandbox = Sandbox(settings.responders)
    with sandbox.turn():
        answer = await sandbox.run(snapshot.path, "SELECT count(*) FROM entries")
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from tasktrail.events.errors import InvalidRequest, TasktrailError
from tasktrail.services.configuration import Responders
from tasktrail.services.sandbox_child import GRACE_S, TIME_OVER, Answer, Failed, Plain, Question, Rows

AT_ONCE = 2
ANSWER_BYTES_MAX = 16 * 1024 * 1024
_BESIDE_BYTES = 1024 * 1024
_KILL_AFTER_S = GRACE_S + 1.0
_START_S = 10.0
"""For starting Python and opening the file, on a machine that is busy."""
_CONFIGURE = "configure responders.sql_timeout_ms"
_TIME_CODES = frozenset({TIME_OVER, -signal.SIGXCPU})
_CHUNK = 64 * 1024
_answers = msgspec.json.Decoder(Answer)
_rows: msgspec.json.Decoder[list[list[Any]]] = msgspec.json.Decoder(list[list[Any]])


class SqlBusy(TasktrailError):
    """As many statements as may are running. Nothing was recorded."""

    code = -32029
    http_status = 429
    retriable = True
    reason = "busy"

    def __init__(self) -> None:
        super().__init__(f"{AT_ONCE} statements are running, no more do at once; try again in a moment")


class SqlFailed(InvalidRequest):
    """The statement is none that may be run, or failed; the run is on record."""

    written: ClassVar[str] = "refusal"
    reason = "sql_failed"


class SqlStopped(SqlFailed):
    """The statement reached a limit and was ended; the run is on record. `limit`: time, memory, bytes or process."""

    http_status = 422
    reason = "limit_reached"

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """What a statement came to: names and DuckDB's types of the columns, and the rows as JSON has their values.

    `cut`: which bound left rows out (rows or bytes), empty when nothing was.
    """

    columns: list[tuple[str, str]]
    rows: list[list[Any]]
    cut: str = ""


class Sandbox:
    """Runs statements within these limits."""

    def __init__(self, limits: Responders) -> None:
        self._limits = limits
        self._running = 0

    @contextlib.contextmanager
    def turn(self) -> Generator[None]:
        """A place among those that may run at once.

        Raises:
            SqlBusy: there is none now.
        """
        if self._running >= AT_ONCE:
            raise SqlBusy
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def run(
        self,
        database: Path,
        sql: str,
        parameters: Mapping[str, Plain] | None = None,
        *,
        timeout_ms: int = 0,
        rows_max: int = 0,
    ) -> Table:
        """What this statement gives on this file, an absolute path. `timeout_ms` and `rows_max` narrow the limits.

        Raises:
            SqlFailed: it may not be run, or failed.
            SqlStopped: it took more than it may.
        """
        timeout_ms = min(timeout_ms or self._limits.sql_timeout_ms, self._limits.sql_timeout_ms)
        question = Question(
            database=str(database),
            sql=sql,
            parameters=dict(parameters or {}),
            timeout_ms=timeout_ms,
            memory_mb=self._limits.sql_memory_mb,
            rows_max=min(rows_max or self._limits.sql_rows_max, self._limits.sql_rows_max),
            bytes_max=ANSWER_BYTES_MAX,
            parent=os.getpid(),
        )
        said = await _asked(question)
        answer = said if isinstance(said, Failed) else await asyncio.to_thread(_read, said)
        if isinstance(answer, Table):
            return answer
        if answer.why in {"refused", "sql"}:
            raise SqlFailed(answer.message)
        raise _stopped(answer, timeout_ms, self._limits)


def _stopped(failed: Failed, timeout_ms: int, limits: Responders) -> SqlStopped:
    longest_s = limits.sql_timeout_ms / 1000
    more = f"give it more, {longest_s:g} s at most" if timeout_ms < limits.sql_timeout_ms else _CONFIGURE
    told = {
        "time": f"it was ended after {timeout_ms / 1000:g} s; ask for less, or {more}",
        "memory": f"it needs more than {limits.sql_memory_mb} MiB ({failed.message}); ask for less at once",
        "bytes": f"its answer is too large: {failed.message}",
    }
    ended = f"its process ended: it took more than {timeout_ms / 1000:g} s or {limits.sql_memory_mb} MiB; ask for less"
    return SqlStopped(told.get(failed.why, ended), failed.why)


def _read(said: bytes) -> Table | Failed:
    """What the process said; one that says nothing we know has failed."""
    try:
        answer: Answer = _answers.decode(said)
        if isinstance(answer, Rows):
            return Table(columns=answer.columns, rows=_rows.decode(answer.rows), cut=answer.cut)
    except msgspec.DecodeError:
        return Failed(why="process", message="")
    return answer


async def _asked(question: Question) -> bytes | Failed:
    """What a process of its own says to this, or how it ended otherwise, or had to be."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        "tasktrail.services.sandbox_child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_START_S + question.timeout_ms / 1000 + _KILL_AFTER_S):
            said = await _exchanged(process, msgspec.json.encode(question))
            code = await process.wait()
    except TimeoutError:
        return Failed(why="time", message="")
    except ConnectionError:
        return Failed(why="process", message="")
    finally:
        await _end(process)
    if code == 0 and said is not None:
        return said
    return Failed(why="time" if code in _TIME_CODES else "process", message="")


async def _exchanged(process: asyncio.subprocess.Process, question: bytes) -> bytes | None:
    """What it writes until it closes; None when that is more than it may."""
    if process.stdin is None or process.stdout is None:  # both are pipes
        return None
    process.stdin.write(question)
    await process.stdin.drain()
    process.stdin.close()
    said = bytearray()
    while chunk := await process.stdout.read(_CHUNK):
        said += chunk
        if len(said) > ANSWER_BYTES_MAX + _BESIDE_BYTES:
            return None
    return bytes(said)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill it, with all it may have started, unless it has ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
