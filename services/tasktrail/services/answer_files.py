"""Answers of named queries, page by page, as a table, JSON, CSV or Parquet, on standard output or in a new file.

Guarantees: pages are written as they come, so that memory stays bounded; a file appears whole or not at all; whatever
is in a value, it stays in its cell or line (`escaping.py`).

    write_answer(pages, "csv", Path("answer.csv"), console)
"""

import contextlib
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import msgspec
from rich.console import Console

from tasktrail.events.errors import InvalidRequest
from tasktrail.services import parquet
from tasktrail.services.cli import complain
from tasktrail.services.escaping import csv_line, json_line
from tasktrail.services.export_formats import PARQUET
from tasktrail.services.questions import AnswerShown, Cell, columns_of
from tasktrail.services.rendering import show
from tasktrail.services.rendering_answers import AnswerView
from tasktrail.services.whole_files import whole_file, whole_path

TABLE = "table"


def write_answer(pages: Iterator[AnswerShown], form: str, out: Path | None, console: Console) -> AnswerShown:
    """Write every page; gives the last one. `out` None: on standard output, where Parquet cannot be.

    Raises:
        CannotWrite, WillNotOverwrite, NotWritten: the file cannot be made; nothing of it is left.
    """
    pages = _Remembered(pages)
    if form == TABLE:
        _tables(pages, console)
    elif form == PARQUET and out is not None:
        _parquet(pages, out)
    else:
        with _sink(out) as sink:
            for piece in _WRITERS[form](pages):
                sink.write(piece)
    return pages.last


def chosen(pages: Iterator[AnswerShown], columns: str) -> Iterator[AnswerShown]:
    """The pages with these columns alone, in this order, as `a,b` names them; empty for all.

    Raises:
        InvalidRequest: one is not in the answer, or is named twice; the message lists those there are.
    """
    wanted = [one.strip() for one in columns.split(",")] if columns.strip() else []
    for page in pages:
        if not wanted:
            yield page
            continue
        names = [column.name for column in page.columns]
        wrong = next((one for at, one in enumerate(wanted) if one not in names or one in wanted[:at]), None)
        if wrong is not None:
            why = "is named twice" if wrong in names else "is no column of this answer"
            message = f"--columns: {wrong[:64]!r} {why}; there are {', '.join(names)}"
            raise InvalidRequest(message)
        places = [names.index(one) for one in wanted]
        yield msgspec.structs.replace(
            page,
            columns=tuple(page.columns[place] for place in places),
            rows=[[row[place] for place in places] for row in page.rows],
        )


class _Remembered(Iterator[AnswerShown]):
    """Pages, and the last one that came."""

    def __init__(self, pages: Iterator[AnswerShown]) -> None:
        self._pages = pages
        self.last: AnswerShown

    def __next__(self) -> AnswerShown:
        self.last = next(self._pages)
        return self.last


@contextlib.contextmanager
def _sink(out: Path | None) -> Generator[BinaryIO]:
    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with whole_file(out) as file:
            yield file


def _tables(pages: Iterable[AnswerShown], console: Console) -> None:
    rows = 0
    for page in pages:
        rows += len(page.rows)
        if page.rows:
            show(console, AnswerView(page))
    if not rows:
        complain("nothing on the trail answers to this")


def _objects(page: AnswerShown) -> Iterator[dict[str, Cell]]:
    names = [column.name for column in page.columns]
    return (dict(zip(names, row, strict=True)) for row in page.rows)


def _json(pages: Iterable[AnswerShown]) -> Iterator[bytes]:
    """One document: the last page's, with the rows of all of them as objects, one on each line."""
    last: AnswerShown | None = None
    separator = b"\n"
    for page in pages:
        if last is None:
            columns = [msgspec.structs.asdict(column) for column in page.columns]
            head = {"query": page.query, "parameters": page.parameters, "columns": columns}
            yield json_line(head)[: -len("}\n")] + b',"rows":['
        for row in _objects(page):
            yield separator + json_line(row).rstrip(b"\n")
            separator = b",\n"
        last = page
    if last is not None:
        rest = {"more": last.more, "after": last.after, "as_of": last.as_of}
        yield b"\n]," + json_line(rest)[len("{") :]


def _json_lines(pages: Iterable[AnswerShown]) -> Iterator[bytes]:
    for page in pages:
        yield from (json_line(row) for row in _objects(page))


def _csv(pages: Iterable[AnswerShown]) -> Iterator[bytes]:
    begun = False
    for page in pages:
        if not begun:
            yield csv_line([column.name for column in page.columns])
        begun = True
        yield from (csv_line(row) for row in page.rows)


def _parquet(pages: Iterator[AnswerShown], out: Path) -> None:
    with whole_path(out) as part:
        first = next(pages)
        rows: Iterator[Sequence[Sequence[Cell]]] = (page.rows for page in chain([first], pages))
        parquet.write(part, columns_of(first), rows)


_WRITERS: MappingProxyType[str, Callable[[Iterable[AnswerShown]], Iterator[bytes]]] = MappingProxyType(
    {"json": _json, "jsonl": _json_lines, "csv": _csv}
)
FORMATS = (TABLE, *_WRITERS, PARQUET)
"""How an answer can be written."""
