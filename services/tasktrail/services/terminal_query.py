"""The commands `query` and `export`, over Typer.

Guarantees: as `terminal.py`: a foreseen failure is one line on standard error and an exit code, and standard output
holds the answer and nothing else. A file that is there is never overwritten, and a new one appears whole. A task's id,
and a token, are read from standard input with `-`; of a token only the digest leaves this process.

    register(app)
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from tasktrail.events.errors import InvalidRequest
from tasktrail.projections.audit.named import Kind
from tasktrail.services.access.claims import digest
from tasktrail.services.answer_files import FORMATS, chosen, write_answer
from tasktrail.services.cli import complain
from tasktrail.services.export_formats import PARQUET
from tasktrail.services.exports import ExportOrder, shape_of
from tasktrail.services.query_sources import QuerySource, Taken, open_queries
from tasktrail.services.questions import (
    ROWS_DEFAULT,
    ROWS_MAX,
    AnswerShown,
    QueryShown,
    Question,
    named,
    refuse_token,
    shown_catalogue,
)
from tasktrail.services.rendering import show
from tasktrail.services.rendering_answers import CatalogueView, QueryView
from tasktrail.services.settings import load
from tasktrail.services.sources import Unreachable
from tasktrail.services.terminal_service import (
    As,
    Case,
    Data,
    Json,
    Url,
    console,
    ordered,
    print_json,
    task_of,
    told,
    word,
)
from tasktrail.services.whole_files import whole_file

TOKEN_PARAMETER = "token"  # noqa: S105 - the name of a parameter
STDIN = "-"
"""The value of a parameter that is read from standard input."""

Out = Annotated[
    Path | None,
    typer.Option("--out", help="Write to this new file, readable by you alone.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(query)
    app.command()(export)


def query(  # noqa: PLR0913 - one for each option
    name: Annotated[str | None, typer.Argument(help="The query; without, all are listed.", show_default=False)] = None,
    given: Annotated[
        list[str] | None, typer.Argument(metavar="[PARAMETER=VALUE]...", help="As --param.", show_default=False)
    ] = None,
    *,
    param: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE; may be repeated. VALUE - is read from standard input.", show_default=False),
    ] = None,
    describe: Annotated[bool, typer.Option("--describe", help="Show what the query takes.")] = False,
    form: Annotated[
        str | None,
        typer.Option("--format", help=f"{', '.join(FORMATS)}; default table on a terminal, else jsonl."),
    ] = None,
    as_json: Json = False,
    out: Out = None,
    columns: Annotated[
        str, typer.Option(help="Only these columns, in this order: a,b.", metavar="A,B", show_default=False)
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=ROWS_MAX, help="Rows of one page.")] = ROWS_DEFAULT,
    after: Annotated[int, typer.Option(min=0, help="The next page: after this sequence.")] = 0,
    everything: Annotated[bool, typer.Option("--all", help="All pages, each recorded.")] = False,
    case: Case = "",
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Ask a named query, or list them all."""
    with told():
        if name is None or describe:
            _tell_catalogue(name, as_json=as_json or form == "json")
            return
        shape = _format("json" if as_json else form, out)
        typed = _typed(name, [*(param or ()), *(given or ())])
        question = Question(parameters=_parameters(name, typed), after=after, limit=ROWS_MAX if everything else limit)
        with open_queries(load(os.environ, data=data).data, url, as_file, case) as source:
            pages = chosen(_pages(source, name, question, everything=everything), columns)
            last = write_answer(pages, shape, out, console())
            _tell_rest(source, last, typed)


def _tell_catalogue(name: str | None, *, as_json: bool) -> None:
    queries: list[QueryShown] = shown_catalogue()
    if name is not None:
        [one] = [query for query in queries if query.name == named(name).name]
        print_json(one) if as_json else show(console(), QueryView(one))
    elif as_json:
        print_json(queries)
    else:
        show(console(), CatalogueView(queries))
        complain("what one takes: tasktrail query NAME --describe")


def _format(form: str | None, out: Path | None) -> str:
    """How the answer is written."""
    chosen = form or (out.suffix.removeprefix(".") if out and out.suffix.removeprefix(".") in FORMATS else None)
    chosen = chosen or ("table" if out is None and sys.stdout.isatty() else "jsonl")
    if chosen not in FORMATS:
        message = f"there is no format {chosen[:32]!r}; give one of {', '.join(FORMATS)}"
        raise InvalidRequest(message)
    if chosen == PARQUET and out is None:
        message = "a Parquet answer needs a file: --out FILE"
        raise InvalidRequest(message)
    if chosen == "table" and out is not None:
        message = "a table is for a terminal; for a file take another --format"
        raise InvalidRequest(message)
    return chosen


def _typed(name: str, said: list[str]) -> dict[str, str]:
    """The parameters as they were typed."""
    found: dict[str, str] = {}
    for one in said:
        parameter, separator, value = one.partition("=")
        if not separator or not parameter:
            message = f"a parameter is NAME=VALUE; `tasktrail query {named(name).name} --describe` shows the names"
            raise InvalidRequest(message)
        if parameter in found:
            message = f"{parameter[:64]} is given more than once"
            raise InvalidRequest(message)
        refuse_token(parameter, value)
        found[parameter] = value
    return found


def _parameters(name: str, typed: dict[str, str]) -> dict[str, str]:
    """The parameters, one of them perhaps from standard input; of a token that comes from there its digest."""
    read = [parameter for parameter, value in typed.items() if value == STDIN]
    if len(read) > 1:
        message = f"standard input holds one value, and {' and '.join(read)} ask for it"
        raise InvalidRequest(message)
    kinds = {one.name: one.kind for one in named(name).parameters}
    found = dict(typed)
    for parameter in read:
        text = task_of(STDIN) if kinds.get(parameter) is Kind.REF else word(parameter)
        found[parameter] = digest(text) if parameter == TOKEN_PARAMETER else text
    return found


def _pages(source: QuerySource, name: str, question: Question, *, everything: bool) -> Iterator[AnswerShown]:
    """The page asked for, or all from there on, with what has come shown meanwhile.

    All are as of the first one: what the trail gets while they are asked for, our own readings too, is left out.
    """
    answer = source.answer(name, question)
    yield answer
    if not everything or not answer.more:
        return
    end = answer.as_of
    with _progress(TextColumn("{task.completed} rows, up to #{task.fields[at]} of #{task.fields[end]}")) as progress:
        bar = progress.add_task("", total=None, completed=len(answer.rows), at=answer.after, end=end)
        while answer.more:
            following = Question(parameters=question.parameters, after=answer.after, limit=question.limit)
            answer = _until(source.answer(name, following), end)
            progress.update(bar, advance=len(answer.rows), at=answer.after)
            yield answer


def _until(page: AnswerShown, end: int) -> AnswerShown:
    """A page without what came after the sequence `end`, which is the last page when there was something."""
    rows = [row for row in page.rows if isinstance(row[0], int) and row[0] <= end]
    return msgspec.structs.replace(page, rows=rows, more=page.more and len(rows) == len(page.rows), as_of=end)


def _progress(*columns: TextColumn | BarColumn | MofNCompleteColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(SpinnerColumn(), *columns, console=console, transient=True, disable=not console.is_terminal)


def _tell_rest(source: QuerySource, last: AnswerShown, typed: dict[str, str]) -> None:
    """What a person should know besides the answer."""
    if source.note:
        complain(source.note)
    if last.more:
        complain(f"there is more: --after {last.after}, or --all")
    tasks = {one.name for one in named(last.query).parameters if one.kind is Kind.REF}
    if any(name in tasks and value not in {STDIN, last.parameters.get(name)} for name, value in typed.items()):
        complain("a task id opens its task and is now in your shell's history; give it on standard input: task=-")


def export(  # noqa: PLR0913 - one for each option
    *,
    form: Annotated[
        str, typer.Option("--format", help="jsonl, csv, parquet, ocsf, cloudevents, timesketch or timesketch-csv.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Write to this new file, readable by you alone.")],
    task: Annotated[
        str | None,
        typer.Option(help="Only what concerns this task, by reference or id; - reads it from standard input."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    from_seq: Annotated[int | None, typer.Option(min=1, help="From this sequence on.")] = None,
    to_seq: Annotated[int | None, typer.Option(min=1, help="Up to this sequence.")] = None,
    since: Annotated[str | None, typer.Option(help="Recorded at this time or later, as 2026-11-22T18:00:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="Recorded before this time.")] = None,
    case: Case = "",
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Write the trail's steps to a file: one for each event, with who, how we know, and where it is proved."""
    with told():
        order = ordered(
            ExportOrder,
            format=form,
            task=task_of(task) if task else None,
            tenant=tenant,
            from_seq=from_seq,
            to_seq=to_seq,
            since=since,
            until=until,
        )
        with (
            whole_file(out) as file,
            open_queries(load(os.environ, data=data).data, url, as_file, case) as source,
            source.export(order) as taken,
        ):
            for chunk in counted(taken, order.format):
                file.write(chunk)
        if source.note:
            complain(source.note)
        complain(f"{taken.rows} steps are in {out}")


def counted(taken: Taken, form: str) -> Iterator[bytes]:
    """The bytes of an export, seen to be as many steps as were announced: each ends its line."""
    lines = -shape_of(form).further_lines
    with _progress(BarColumn(), MofNCompleteColumn(), TextColumn("steps")) as progress:
        bar = progress.add_task("", total=taken.rows)
        for chunk in taken.chunks:
            lines += chunk.count(b"\n")
            progress.update(bar, completed=max(0, lines))
            yield chunk
    if form != PARQUET and lines != taken.rows:
        message = f"the export broke off: {max(0, lines)} of {taken.rows} steps came, so nothing of it was kept"
        raise Unreachable(message)
