"""Statements run as the sandbox runs them, and what a process of their own could do: for the tests of the sandbox.

table = await run(database, "SELECT 1")
said = await answers(database, ["SELECT 1", "DROP TABLE numbers"])
"""

import asyncio
import base64
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event

import msgspec

from tasktrail.services import sandbox_child
from tasktrail.services.configuration import Responders
from tasktrail.services.sandbox import ANSWER_BYTES_MAX, Sandbox, Table
from tasktrail.services.sandbox_child import Answer, Question
from tasktrail.testing.waiting import WITHIN_S

LIMITS = Responders(sql_timeout_ms=20_000, sql_memory_mb=128, sql_rows_max=500)


async def run(database: Path, sql: str, limits: Responders = LIMITS, **parameters: str | float) -> Table:
    return await Sandbox(limits).run(database, sql, parameters)


async def answers(database: Path, asked: list[str]) -> list[Answer]:
    """What becomes of each statement in one process, confined as each one's own would be."""
    process = await here(f"answered(Path({str(database)!r}))")
    async with asyncio.timeout(WITHIN_S):
        said, _ = await process.communicate(msgspec.json.encode(asked))
    return msgspec.json.decode(said, type=list[Answer])


def answered(path: Path) -> None:
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=list[str])
    question = question_of(path)
    sandbox_child.depend_on(question.parent)
    connection = sandbox_child.open_database(question)
    sandbox_child.confine(question)
    never = Event()
    said = [sandbox_child.answer(connection, msgspec.structs.replace(question, sql=sql), never) for sql in asked]
    sys.stdout.buffer.write(msgspec.json.encode(said))
    sys.stdout.buffer.flush()
    os._exit(0)


def question_of(path: Path) -> Question:
    return Question(
        database=str(path),
        sql="",
        parameters={},
        timeout_ms=LIMITS.sql_timeout_ms,
        memory_mb=LIMITS.sql_memory_mb,
        rows_max=LIMITS.sql_rows_max,
        bytes_max=ANSWER_BYTES_MAX,
        parent=os.getppid(),
    )


async def here(call: str) -> asyncio.subprocess.Process:
    """A process of its own that calls a function of this module."""
    folder = Path(__file__).parent
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import socket, sandboxed; from pathlib import Path; "
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"{code}sandboxed.{call}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


def children() -> set[int]:
    """The sandbox's processes that this one started and that still run; other tests' servers are no concern of ours."""
    started = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return {int(one) for one in started if b"sandbox_child" in command_of(one)}


def command_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def confined(path: Path) -> None:
    """What a statement could do that broke out of DuckDB, in the process as it is then."""
    question = question_of(path)
    sandbox_child.depend_on(question.parent)
    sandbox_child.confine(question)
    import socket  # noqa: PLC0415

    tried: dict[str, Callable[[], object]] = {
        "socket": functools.partial(socket.socket, socket.AF_INET, socket.SOCK_STREAM),
        "open": functools.partial(os.open, path, os.O_RDONLY),
        "pipe": os.pipe,
        "memory": functools.partial(bytearray, 2**40),
    }
    done: dict[str, str] = {}
    for name, act in tried.items():
        try:
            act()
            done[name] = "possible"
        except (OSError, MemoryError) as error:
            done[name] = type(error).__name__
    sys.stdout.buffer.write(base64.b64encode(msgspec.json.encode(done)))
    sys.stdout.buffer.flush()
    os._exit(0)
