"""Statements in a process of their own: what they can read, what they cannot, and that each one ends.

Source: issue "Forensics" (free SQL: read-only, no file or network access, locked, limits, killed without the service
noticing); design section 8 (what DuckDB still allows). The statements are attacks which anyone who may write SQL can
try.
"""

import asyncio
import base64
import contextlib
import os
import signal
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import ClassVar, TypeVar

import duckdb
import msgspec
import pytest
from tests.services.sandboxed import LIMITS, answers, children, here, run

from tasktrail.services import sandbox_child
from tasktrail.services.sandbox import AT_ONCE, Sandbox, SqlBusy, SqlFailed, SqlStopped, Table
from tasktrail.services.sandbox_child import Answer, Failed, Rows, plain
from tasktrail.testing.service import is_gone
from tasktrail.testing.waiting import WITHIN_S, until

T = TypeVar("T")

SECRET = "what-no-statement-may-read"
FOR_EVER = "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT sum(n) FROM r"

pytestmark = pytest.mark.requirement("T5")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sandbox") / "trail.duckdb"
    with duckdb.connect(path) as made:
        made.execute("CREATE TABLE numbers AS SELECT range AS n FROM range(1000)")
        made.execute("CREATE VIEW evens AS SELECT n FROM numbers WHERE n % 2 = 0")
    return path


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "secret.csv"
    path.write_text(f"{SECRET}\n")
    with duckdb.connect(path.with_suffix(".duckdb")) as other:
        other.execute(f"CREATE TABLE t AS SELECT '{SECRET}' AS s")
        other.table("t").write_parquet(str(path.with_suffix(".parquet")))
    return path


def only(kind: type[T], said: list[Answer]) -> list[T]:
    """All of them, which are of this kind."""
    found: list[T] = [one for one in said if isinstance(one, kind)]
    assert len(found) == len(said), said
    return found


def content(path: Path) -> bytes:
    return path.read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


async def test_a_statement_that_reads_is_answered(database: Path) -> None:
    said = await answers(
        database,
        [
            "SELECT n FROM numbers ORDER BY n LIMIT 1",
            "FROM evens ORDER BY n LIMIT 1",
            "WITH few AS (SELECT n FROM numbers WHERE n < 1) SELECT n FROM few",
            "VALUES (0)",
            "SELECT n FROM numbers WHERE n = 0 ; -- one statement, and a comment after it",
        ],
    )
    assert said == [Rows(columns=one.columns, rows=msgspec.Raw(b"[[0]]"), count=1) for one in only(Rows, said)]


async def test_parameters_are_bound_and_never_part_of_the_text(database: Path) -> None:
    answer = await run(database, "SELECT $a AS a, $b + 1 AS b", a="x'; DROP TABLE numbers --", b=1)
    assert answer.rows == [["x'; DROP TABLE numbers --", 2]]


async def test_what_describes_the_tables_is_answered(database: Path) -> None:
    said = await answers(database, ["DESCRIBE numbers", "SHOW TABLES", "EXPLAIN SELECT n FROM numbers"])
    described, shown, explained = [msgspec.json.decode(one.rows) for one in only(Rows, said)]
    assert described[0][:2] == ["n", "BIGINT"]
    assert shown == [["evens"], ["numbers"]]
    assert "numbers" in str(explained)


async def test_values_arrive_as_json_has_them(database: Path) -> None:
    """`sandbox_child.plain`: nothing is rounded, and times say that they are UTC."""
    answer = await run(
        database,
        "SELECT 9007199254740993 AS big, 1.10::DECIMAL(4,2), TIMESTAMP '2026-01-02 03:04:05.6', 'ab'::BLOB, [1, NULL], "
        "{'a': 'x'}, 'nan'::DOUBLE, NULL, DATE '2026-01-02', true, MAP {1: 'x'}",
    )
    assert answer.columns[0] == ("big", "BIGINT")
    said = ["9007199254740993", "1.10", "2026-01-02T03:04:05.600000Z", "YWI=", [1, None], {"a": "x"}, "nan", None]
    assert answer.rows == [[*said, "2026-01-02", True, {"1": "x"}]]
    assert plain((1, {2: b"x"})) == [1, {"2": "eA=="}]
    with pytest.raises(SqlFailed, match="cast it"):
        await run(database, "SELECT now()")


ATTACKS = [
    "SELECT * FROM read_csv('{secret}', header = false)",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_blob('{secret}')",
    "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM read_json('{secret}')",
    "SELECT * FROM read_parquet('{folder}/secret.parquet')",
    "SELECT * FROM read_duckdb('{folder}/secret.duckdb')",
    "FROM '{secret}'",
    "FROM '{folder}/secret.parquet'",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''{secret}'')'))",
    "ATTACH '{folder}/secret.duckdb' AS other",
    "COPY numbers FROM '{secret}'",
    "COPY (SELECT 1) TO '{folder}/written.csv'",
    "EXPORT DATABASE '{folder}/written'",
    "IMPORT DATABASE '{folder}'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "PRAGMA enable_progress_bar",
    "PRAGMA database_list",
    "CALL force_checkpoint()",
    "CHECKPOINT",
    "VACUUM",
    "SET VARIABLE x = 1",
    "CREATE TEMP TABLE t AS SELECT 1",
    "CREATE TABLE t AS SELECT 1",
    "CREATE MACRO f(x) AS x",
    "INSERT INTO numbers VALUES (1)",
    "WITH gone AS (DELETE FROM numbers RETURNING n) SELECT * FROM gone",
    "WITH new AS (INSERT INTO numbers VALUES (1) RETURNING n) SELECT * FROM new",
    "UPDATE numbers SET n = 0",
    "DELETE FROM numbers",
    "DROP TABLE numbers",
    "ALTER TABLE numbers ADD COLUMN x INTEGER",
    "COMMENT ON TABLE numbers IS 'x'",
    "BEGIN",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "USE memory",
    "DETACH trail",
    "UPDATE EXTENSIONS",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE numbers",
    "SELECT getenv('HOME')",
    "FROM duckdb_secrets()",
    "CREATE SECRET s (TYPE s3)",
    "SELEC",
    "",
    ";",
    "-- nothing",
    "SELECT $missing",
    "SELECT 1/*",
    "SELECT " + "(" * 20_000,
    "SELECT " + "-" * 3 + "\n" * 3,
    "PIVOT numbers ON n USING count(*)",
]


def aimed(secret: Path, sql: str) -> str:
    return sql.replace("{secret}", str(secret)).replace("{folder}", str(secret.parent))


async def test_nothing_else_can_be_read_written_or_set(database: Path, secret: Path) -> None:
    before = content(database)
    said = await answers(database, [aimed(secret, sql) for sql in ATTACKS])
    unlike = [
        (sql, one) for sql, one in zip(ATTACKS, said, strict=True) if not isinstance(one, Failed) or one.why == "time"
    ]
    assert not unlike
    assert SECRET not in str(said)
    assert names(secret.parent) == ["secret.csv", "secret.duckdb", "secret.parquet"]
    assert content(database) == before


@pytest.mark.parametrize("sql", ["FROM '{secret}'", "COPY (SELECT 1) TO '{folder}/written.csv'", "SELECT 1; SELECT 2"])
async def test_who_asks_for_it_is_told_so(database: Path, secret: Path, sql: str) -> None:
    with pytest.raises(SqlFailed) as refused:
        await run(database, aimed(secret, sql))
    assert (SECRET in str(refused.value), type(refused.value)) == (False, SqlFailed)
    assert names(secret.parent) == ["secret.csv", "secret.duckdb", "secret.parquet"]


class _Server(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(SECRET.encode())

    do_HEAD = do_GET  # noqa: N815 - the base class's name


@pytest.fixture
def web() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Server)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_nothing_is_fetched_from_the_network(database: Path, web: str) -> None:
    asked = [
        f"FROM '{web}/x.parquet'",
        f"FROM read_csv('{web}/x.csv')",
        f"ATTACH '{web}/x.duckdb'",
        f"INSTALL x FROM '{web}'",
        f"SELECT http_get('{web}/x')",
    ]
    assert len(only(Failed, await answers(database, asked))) == len(asked)
    assert _Server.asked == []


async def test_no_environment_and_no_settings_of_ours_are_to_be_seen(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKTRAIL_CASE", SECRET)
    settings = await run(database, "SELECT name, value FROM duckdb_settings()")
    assert SECRET not in str(settings.rows)
    held = dict(map(tuple, settings.rows))
    assert (held["enable_external_access"], held["lock_configuration"], held["threads"]) == ("false", "true", "1")
    assert (held["autoinstall_known_extensions"], held["autoload_known_extensions"]) == ("false", "false")


async def test_every_kind_of_value_can_be_shown_where_nothing_can_be_loaded_any_more(database: Path) -> None:
    """Python loads modules for some of them when they first appear, and there no file can be opened."""
    answer = await run(
        database,
        "SELECT uuid(), INTERVAL 3 DAYS, TIME '01:02:03', '101'::BIT, 'a'::ENUM('a', 'b'), DATE 'infinity', "
        "TIMESTAMP_NS '2026-01-01 00:00:00.123456789', 1::UHUGEINT, '{}'::JSON, union_value(k := 1), [[1], [2]], "
        "TIMETZ '01:02:03+02', 1.5::DECIMAL(38, 10), '12'::BIGNUM",
    )
    assert len(answer.rows[0]) == 14
    assert answer.rows[0][1:5] == ["3 days, 0:00:00", "01:02:03", "101", "a"]


async def test_rows_beyond_the_limit_are_cut_off_and_the_answer_says_so(database: Path) -> None:
    whole, narrowed = await run(database, "SELECT n FROM numbers"), await _narrowed(database)
    assert (len(whole.rows), whole.cut) == (500, "rows")
    assert (len(narrowed.rows), narrowed.cut) == (3, "rows")
    exact = await run(database, "SELECT n FROM numbers LIMIT 500")
    assert (len(exact.rows), exact.cut) == (500, "")


async def _narrowed(database: Path) -> Table:
    return await Sandbox(LIMITS).run(database, "SELECT range FROM range(100000000000)", rows_max=3)


async def test_an_answer_beyond_its_bytes_is_cut_off_and_one_row_beyond_them_refused(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasktrail.services.sandbox.ANSWER_BYTES_MAX", 10_000)
    cut = await run(database, "SELECT repeat('x', 3000) FROM range(100)")
    assert (len(cut.rows), cut.cut) == (3, "bytes")
    with pytest.raises(SqlStopped, match="too large") as stopped:
        await run(database, "SELECT repeat('x', 20000)")
    assert stopped.value.limit == "bytes"


async def test_a_statement_that_takes_for_ever_is_ended_and_it_is_told_that_it_was_for_its_time(database: Path) -> None:
    """Whether it lets go when it is interrupted, has to be ended, or is slow to start: the limit is the same."""
    sandbox, asked = (
        Sandbox(LIMITS),
        [FOR_EVER, "SELECT max(md5((a.n * 7 + b.n)::VARCHAR)) FROM numbers a, numbers b, numbers c"],
    )
    ended = await asyncio.gather(
        *(sandbox.run(database, sql, timeout_ms=1_000) for sql in asked), return_exceptions=True
    )
    for one in ended:
        assert isinstance(one, SqlStopped), one
        assert (one.limit, one.http_status) == ("time", 422)
        assert "after 1 s" in str(one)
    assert not children()


async def test_a_statement_that_begins_just_after_an_interruption_is_interrupted_too(database: Path) -> None:
    """An interruption when nothing runs is lost."""
    first, done = Event(), Event()
    with duckdb.connect(database, read_only=True) as connection:

        def interrupt() -> None:
            if done.is_set():
                raise EOFError
            connection.interrupt()
            first.set()

        def watch() -> None:
            with contextlib.suppress(EOFError):
                sandbox_child.keep_time(interrupt, 0.0, 60.0, Event())

        thread = Thread(target=watch, daemon=True)
        thread.start()
        assert first.wait(60)
        try:
            with pytest.raises(duckdb.InterruptException):
                await asyncio.to_thread(lambda: connection.execute(FOR_EVER).fetchall())
        finally:
            done.set()
            thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("ended", "limit"),
    [("3", "time"), ("kill", "process"), ("time", "time")],
    ids=["itself", "killed", "by-the-kernel"],
)
async def test_how_a_process_ended_tells_the_limit(
    database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ended: str, limit: str
) -> None:
    """One that would not let go ends with `TIME_OVER`; SIGXCPU is the kernel's word for processor time."""
    does = {
        "3": f"exit {sandbox_child.TIME_OVER}",
        "kill": "kill -KILL $$",
        "time": "kill -XCPU $$",
    }[ended]
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat >/dev/null\nulimit -c 0\n{does}\n")
    python.chmod(0o700)
    monkeypatch.setattr("tasktrail.services.sandbox.sys.executable", str(python))
    with pytest.raises(SqlStopped) as stopped:
        await run(database, "SELECT 1")
    assert stopped.value.limit == limit


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT repeat('x', 2000000000)",
        "SELECT list(range) FROM range(1000000000)",
        "SELECT string_agg(range::VARCHAR) FROM range(1000000000)",
        "SELECT a.n, b.n FROM numbers a, numbers b, numbers c ORDER BY hash(a.n, b.n, c.n) LIMIT 100000000",
    ],
)
async def test_a_statement_that_takes_too_much_memory_is_ended(database: Path, sql: str) -> None:
    with pytest.raises(SqlStopped) as stopped:
        await run(database, sql)
    assert stopped.value.limit in {"memory", "process"}
    assert not children()


async def test_a_process_that_hangs_is_killed_and_what_follows_is_served(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, it neither answers nor sees its own clock: only the kill is left."""
    monkeypatch.setattr("tasktrail.services.sandbox._START_S", 1.0)
    running = asyncio.create_task(Sandbox(LIMITS).run(database, FOR_EVER, timeout_ms=500))
    pid = next(iter(await until(children, what="the process")))
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(SqlStopped) as stopped:
        await running
    assert stopped.value.limit == "time"
    assert is_gone(pid)
    assert (await run(database, "SELECT 1")).rows == [[1]]


async def test_a_killed_process_is_an_answer_too(database: Path) -> None:
    running = asyncio.create_task(run(database, FOR_EVER))
    os.kill(next(iter(await until(children, what="the process"))), signal.SIGKILL)
    with pytest.raises(SqlStopped, match="its process ended"):
        await running


async def test_the_process_goes_with_who_asked(database: Path) -> None:
    running = asyncio.create_task(run(database, FOR_EVER))
    pid = next(iter(await until(children, what="the process")))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert is_gone(pid)


async def test_as_many_run_at_once_as_may_and_the_next_is_told_to_come_again() -> None:
    sandbox = Sandbox(LIMITS)
    with sandbox.turn(), sandbox.turn():
        assert AT_ONCE == 2
        with pytest.raises(SqlBusy) as busy, sandbox.turn():
            pass
        assert (busy.value.http_status, busy.value.retriable, busy.value.written) == (429, True, "nothing")
    with sandbox.turn():
        pass


async def test_even_who_breaks_out_of_the_database_can_open_nothing(database: Path) -> None:
    """No descriptor is left to be had: neither a file nor a socket."""
    process = await here(f"confined(Path({str(database)!r}))")
    async with asyncio.timeout(WITHIN_S):
        said, _ = await process.communicate()
    done = msgspec.json.decode(base64.b64decode(said))
    assert done == {"socket": "OSError", "open": "OSError", "pipe": "OSError", "memory": "MemoryError"}
