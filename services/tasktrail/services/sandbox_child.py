"""One statement of responders' own SQL, in a process that can do nothing else. Run by `sandbox.py`, never by a person.

Guarantees: the statement is one that only reads; it sees the one database it was given, which is open for reading
alone. When it begins, the process can open no file and no socket (`RLIMIT_NOFILE` 0), write none (`RLIMIT_FSIZE` 0),
start no process or thread (`RLIMIT_NPROC` 0, which binds every user but root), and has bounds on memory and processor
time; it holds no environment and gains no privileges. It is interrupted when its time is over, again and again, ends
itself a second later, and ends when the service does. What is not done: no seccomp filter, no namespaces; it runs as
the service's user.

Reads a `Question` as JSON from standard input and writes one `Answer` as JSON to standard output.

    python -I -m tasktrail.services.sandbox_child < question.json
"""

import base64
import ctypes
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from datetime import time as day_time
from pathlib import Path
from typing import Any, cast

import duckdb
import msgspec

GRACE_S = 1.0
"""Between the interruption and the end."""
TIME_OVER = 3
"""Exit code of a process whose statement did not let go when it was interrupted."""
BESIDE_BYTES = 512 * 1024 * 1024
"""What the process may take beside the database's own limit: the answer, its parts, the allocator."""
NICENESS = 10
_ROWS_AT_ONCE = 256
_INTERRUPT_S = 0.05
_EXACT = 2**53
_CPU_GRACE_S = 3
_ZONED = "a TIMESTAMP WITH TIME ZONE cannot be shown: cast it, as in now()::TIMESTAMP"
_READS = frozenset({"SELECT", "EXPLAIN"})
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38

Plain = str | int | float | bool | None


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What to run where, and within which bounds. `parent`: the process without which it has no purpose."""

    database: str
    sql: str
    parameters: dict[str, Plain]
    timeout_ms: int
    memory_mb: int
    rows_max: int
    bytes_max: int
    parent: int


class Rows(msgspec.Struct, frozen=True, kw_only=True, tag="rows"):
    """An answer. `columns` are names and DuckDB's types; `rows` a JSON array of `count` arrays.

    `cut` says which bound left rows out: rows, bytes, or empty for none.
    """

    columns: list[tuple[str, str]]
    rows: msgspec.Raw
    count: int
    cut: str = ""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """No answer. `why`: refused, sql, time, memory or bytes."""

    why: str
    message: str


Answer = Rows | Failed


class Refused(Exception):
    """The statement is none that may be run; the message says why."""


def main() -> None:
    """Answer the question on standard input."""
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    depend_on(question.parent)
    sys.stdout.buffer.write(msgspec.json.encode(_answered(question)))
    sys.stdout.buffer.flush()
    os._exit(0)  # nothing is to be cleaned up, and a query that was interrupted may not let go


def depend_on(parent: int) -> None:
    """End with the service, and gain nothing on the way. Linux; elsewhere the watch below is what ends it."""
    os.umask(0o077)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    os.nice(NICENESS)


def _answered(question: Question) -> Answer:
    connection = open_database(question)
    over = threading.Event()

    def watch() -> None:
        keep_time(connection.interrupt, question.timeout_ms / 1000, GRACE_S, over)
        os._exit(TIME_OVER)

    threading.Thread(target=watch, daemon=True).start()
    confine(question)
    return answer(connection, question, over)


def keep_time(interrupt: Callable[[], None], time_s: float, grace_s: float, over: threading.Event) -> None:
    """When the time is over, interrupt what runs, for as long as the grace.

    Again and again: an interruption that falls between two fetches is lost.
    """
    time.sleep(time_s)
    over.set()
    end = time.monotonic() + grace_s
    while time.monotonic() < end:
        interrupt()
        time.sleep(_INTERRUPT_S)


def answer(connection: duckdb.DuckDBPyConnection, question: Question, over: threading.Event) -> Answer:
    """What comes of the statement. Once `over` is set, whatever fails has failed for its time."""
    try:
        return _run(connection, question)
    except Refused as error:
        return Failed(why="refused", message=str(error))
    except (MemoryError, duckdb.OutOfMemoryException) as error:
        return Failed(why="memory", message=str(error).partition("\n")[0])
    except duckdb.InterruptException:
        return Failed(why="time", message="interrupted")
    except Exception as error:  # noqa: BLE001 - whatever a statement can provoke is an answer to it
        why = "time" if over.is_set() else "sql"
        message = _ZONED if "'pytz'" in str(error) else str(error).strip()
        return Failed(why=why, message=message or type(error).__name__)


def open_database(question: Question) -> duckdb.DuckDBPyConnection:
    """Open it for reading alone, and nothing else from then on."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false",
        "python_enable_replacements": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "temp_directory": "",
        "max_temp_directory_size": "0B",
        "memory_limit": f"{question.memory_mb}MiB",
        "threads": "1",
    }
    connection = duckdb.connect(Path(question.database), read_only=True, config=config)
    connection.execute("SET lock_configuration = true")
    return connection


def confine(question: Question) -> None:
    """From here on nothing is opened, written or started."""
    cpu_s = math.ceil(question.timeout_ms / 1000) + _CPU_GRACE_S
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))  # apart: SIGXCPU comes first, and says what it was
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,
    }
    if hasattr(resource, "RLIMIT_NPROC"):
        bounds[resource.RLIMIT_NPROC] = 0
    if (taken := _address_space()) > 0:
        bounds[resource.RLIMIT_AS] = taken + question.memory_mb * 2**20 + BESIDE_BYTES
    for which, most in bounds.items():
        resource.setrlimit(which, (most, most))


def _address_space() -> int:
    """Bytes of it in use; 0 where nobody says."""
    try:
        pages = Path("/proc/self/statm").read_bytes().split()[0]
    except OSError:
        return 0
    return int(pages) * resource.getpagesize()


def _run(connection: duckdb.DuckDBPyConnection, question: Question) -> Answer:
    statement = _only_statement(connection, question.sql)
    connection.execute(statement, question.parameters or None)
    columns = [(str(one[0]), str(one[1])) for one in connection.description or ()]
    rows: list[bytes] = []
    size, cut = 0, ""
    while not cut and (found := connection.fetchmany(_ROWS_AT_ONCE)):
        for row in found:
            if len(rows) == question.rows_max:
                cut = "rows"
                break
            encoded = msgspec.json.encode([plain(value) for value in row])
            size += len(encoded) + 1
            if size > question.bytes_max:
                cut = "bytes"
                break
            rows.append(encoded)
    if cut == "bytes" and not rows:
        return Failed(why="bytes", message="the first row alone is larger than an answer may be")
    return Rows(columns=columns, rows=msgspec.Raw(b"[" + b",".join(rows) + b"]"), count=len(rows), cut=cut)


def _only_statement(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """The one statement of the text, which reads.

    Raises:
        Refused: there is none, or another one besides, or it does something else.
        duckdb.ParserException: it is no SQL.
    """
    try:
        found = connection.extract_statements(sql)
        kinds = [one.type.name for one in found]
    except ValueError:  # a kind that DuckDB's Python does not know
        message = "only reading is possible here: SELECT, WITH, VALUES, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN"
        raise Refused(message) from None
    if len(found) != 1:
        message = f"give one statement; this text holds {len(found)}"
        raise Refused(message)
    if kinds[0] not in _READS:
        message = (
            f"{kinds[0]} is not possible here, only reading: SELECT, WITH, VALUES, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN"
        )
        raise Refused(message)
    return found[0]


def plain(value: Any) -> Any:  # noqa: ANN401, PLR0911 - any value of a database, and any of JSON
    """A value as JSON has it: times in UTC with Z, integers beyond 2^53 and decimals as text, bytes as base64."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if -_EXACT < value < _EXACT else str(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case datetime():
            return f"{value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value:%Y-%m-%dT%H:%M:%S.%f}Z"
        case date() | day_time():
            return value.isoformat()
        case Mapping():
            named = cast("Mapping[object, object]", value)
            return {str(name): plain(one) for name, one in named.items()}
        case Sequence():
            return [plain(one) for one in cast("Sequence[object]", value)]
        case _:
            return str(value)


if __name__ == "__main__":
    main()
