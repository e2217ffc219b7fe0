"""`tasktrail sql`: responders' own SELECT on the audit store, over Typer.

Guarantees: as `terminal.py`. With a running service the statement runs there, on the rows the operator may see, and is
recorded; without one it runs on a copy of the store here, in the same sandbox, and says that it is on no record. What
is printed holds no control character and, in CSV, no formula. `register` adds it to an app.

    tasktrail sql 'SELECT tool, count(*) FROM tasks GROUP BY ALL' --format csv
"""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tasktrail.events.errors import InvalidRequest
from tasktrail.projections.audit.store import AuditStore
from tasktrail.services import responder
from tasktrail.services.cli import EXIT_USAGE, complain
from tasktrail.services.escaping import csv_line, json_line, visible
from tasktrail.services.rendering import show
from tasktrail.services.rendering_answers import RowsView
from tasktrail.services.sandbox import Sandbox
from tasktrail.services.settings import Settings, load
from tasktrail.services.snapshots import copy_closed
from tasktrail.services.sources import NOT_RECORDED, open_service
from tasktrail.services.statements import SqlAnswer, SqlQuestion
from tasktrail.services.terminal_service import (
    STDIN_BYTES_MAX,
    As,
    Case,
    Data,
    Url,
    console,
    one_of,
    ordered,
    text_of,
    told,
)

WITHIN_S = 330.0
"""The longest a service may be configured to let a statement run, and what it takes besides."""
EXIT_TERMINATED = 128 + signal.SIGTERM
"""As a shell says of a process that SIGTERM ended."""
TIMEOUT_MAX_S = 3_600
_PARTS = 2


class Shape(StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(sql)


def sql(  # noqa: PLR0913 - one for each option
    statement: Annotated[str, typer.Argument(help="One SELECT; - reads it from standard input.")] = "",
    *,
    file: Annotated[Path | None, typer.Option("--file", help="File with the statement instead.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="name=value for $name in it; may be repeated.")] = None,
    tenant: Annotated[str, typer.Option(help="Only this tenant's rows are there to be read.")] = "",
    form: Annotated[str, typer.Option("--format", help=f"{', '.join(Shape)}.")] = Shape.TABLE.value,
    limit_rows: Annotated[int, typer.Option(min=0, help="At most so many rows; default what is configured.")] = 0,
    timeout: Annotated[
        float, typer.Option(min=0, max=TIMEOUT_MAX_S, help="Seconds it may take; default what is configured.")
    ] = 0,
    case: Case = "",
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Run one SELECT of your own on a copy of the audit store; recorded with its text."""
    with told():
        shape = Shape(one_of("--format", form, Shape))
        question = ordered(
            SqlQuestion,
            sql=_text(statement, file),
            parameters=_parameters(param or []),
            tenant=tenant,
            limit=limit_rows,
            timeout_ms=int(timeout * 1000),
        )
        settings = load(os.environ, data=data)
        if url or responder.find(settings.data) is not None:
            answer = _ask(question, settings.data, url, as_file, case)
        else:
            answer = _here(question, settings)
            complain(NOT_RECORDED.format(data=settings.data))
        _show(answer, shape)


def _ask(question: SqlQuestion, data: Path, url: str, as_file: Path | None, case: str) -> SqlAnswer:
    with open_service(data, url, as_file, case) as service:
        return service.order("/sql", question, SqlAnswer, WITHIN_S)


def _here(question: SqlQuestion, settings: Settings) -> SqlAnswer:
    try:
        return asyncio.run(_run_here(question, settings))
    except asyncio.CancelledError:
        raise typer.Exit(EXIT_TERMINATED) from None


async def _run_here(question: SqlQuestion, settings: Settings) -> SqlAnswer:
    """The same on the store of a stopped service, in the same sandbox."""
    from tasktrail.services.free_sql import answer_of, require_tenant  # noqa: PLC0415 - the whole service; half a second
    from tasktrail.services.service import AUDIT_FILE  # noqa: PLC0415 - as above

    question.require_runnable()
    _end_when_told()
    with contextlib.closing(AuditStore.open(settings.data / AUDIT_FILE, read_only=True)) as store:
        await asyncio.to_thread(require_tenant, store, question.tenant)
    with tempfile.TemporaryDirectory(prefix="tasktrail-sql-") as folder:
        copy = Path(folder) / "trail.duckdb"
        as_of = await asyncio.to_thread(copy_closed, settings.data / AUDIT_FILE, copy, question.tenant or None)
        table = await Sandbox(settings.responders).run(
            copy, question.sql, question.parameters, timeout_ms=question.timeout_ms, rows_max=question.limit
        )
    return answer_of(table, as_of, question.tenant)


def _end_when_told() -> None:
    """Have SIGTERM end what is under way as Ctrl-C does, so that the copy of the store is removed."""
    doing = asyncio.current_task()
    if doing is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, doing.cancel)


def _text(statement: str, file: Path | None) -> str:
    if bool(statement) == (file is not None):
        complain("give one statement: as the argument, with - on standard input, or with --file")
        raise typer.Exit(EXIT_USAGE)
    if file is not None:
        return text_of(file)
    if statement != "-":
        return statement
    said = sys.stdin.buffer.read(STDIN_BYTES_MAX + 1)
    if len(said) > STDIN_BYTES_MAX:
        message = f"standard input holds more than {STDIN_BYTES_MAX} bytes"
        raise InvalidRequest(message)
    return said.decode("utf-8", "replace")


def _parameters(said: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in said:
        parts = one.split("=", 1)
        if len(parts) != _PARTS or parts[0] in found:
            message = f"--param {one[:64]!r}: give name=value, each name once"
            raise InvalidRequest(message)
        found[parts[0]] = parts[1]
    return found


def _show(answer: SqlAnswer, shape: Shape) -> None:
    names = _unique([column.name for column in answer.columns])
    out = sys.stdout.buffer
    match shape:
        case Shape.JSON:
            out.write(json_line(msgspec.to_builtins(answer)))
        case Shape.JSONL:
            out.writelines(json_line(dict(zip(names, row, strict=True))) for row in answer.rows)
        case Shape.CSV:
            out.write(csv_line(names))
            out.writelines(csv_line(row) for row in answer.rows)
        case Shape.TABLE:
            columns = [(visible(name), one.type) for name, one in zip(names, answer.columns, strict=True)]
            show(console(), RowsView(columns, [[_cell(value) for value in row] for row in answer.rows]))
    with contextlib.suppress(BrokenPipeError):
        out.flush()
    if answer.cut:
        complain(f"there is more: the answer was cut at its limit of {answer.cut}, after {len(answer.rows)} rows")


def _unique(names: list[str]) -> list[str]:
    """Each name once: two columns may have the same one, two members of a document may not."""
    found: list[str] = []
    for name in names:
        free, number = name, 1
        while free in found:
            free, number = f"{name}_{number}", number + 1
        found.append(free)
    return found


def _cell(value: object) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json_line(value).decode("ascii").rstrip("\n")
    return visible(text)
