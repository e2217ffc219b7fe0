"""Answers of named queries and the catalogue for a terminal.

Guarantees: as `rendering.py`: what is not printable is shown as its escape, and nothing is told by colour alone. No
value is cut: it is folded. Where the columns do not fit beside each other, each row is a block of its own, in which
values the trail does not have are left out.

    show(console, AnswerView(answer))
"""

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tasktrail.services.questions import AnswerShown, Cell, QueryShown
from tasktrail.services.wording import LEVELS

_QUIET = "dim"
_INDENT = (0, 0, 0, 2)
_GAP = 2
_NUMBERS = frozenset({"BIGINT", "UBIGINT", "INTEGER", "UINTEGER", "HUGEINT", "DOUBLE"})
_NOTHING = "-"
_LEVEL = "level"


class RowsView:
    """Rows of printable text, None where there is nothing, under columns of a name and a type of DuckDB's."""

    def __init__(self, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str | None]]) -> None:
        self._names = [name for name, _ in columns]
        self._right = [kind in _NUMBERS for _, kind in columns]
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A table, or a block for each row."""
        widths = [max(len(value or _NOTHING) for value in each) for each in zip(self._names, *self._rows, strict=True)]
        if sum(widths) + _GAP * (len(widths) - 1) <= options.max_width:
            yield self._table()
        else:
            yield from self._blocks()

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
        for name, right in zip(self._names, self._right, strict=True):
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in self._rows:
            table.add_row(*(Text(_NOTHING if value is None else value) for value in row))
        return table

    def _blocks(self) -> Iterator[Table | Text]:
        width = max(map(len, self._names))
        for number, row in enumerate(self._rows):
            if number:
                yield Text()
            grid = Table.grid(padding=(0, _GAP, 0, 0))
            grid.add_column(style=_QUIET, no_wrap=True, min_width=width)
            grid.add_column(overflow="fold")
            for at, (name, value) in enumerate(zip(self._names, row, strict=True)):
                if value is not None:
                    grid.add_row(name, Text(value, style="" if at else "bold"))
            yield grid


class AnswerView(RowsView):
    """A page of an answer."""

    def __init__(self, answer: AnswerShown) -> None:
        names = [column.name for column in answer.columns]
        rows = [[_said(name, value) for name, value in zip(names, row, strict=True)] for row in answer.rows]
        super().__init__([(column.name, column.type) for column in answer.columns], rows)


def _said(name: str, value: Cell) -> str | None:
    """A value in words: a level of evidence as timelines say it."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith(_LEVEL) and value in LEVELS:
        return LEVELS[str(value)]
    return _whole(value) if isinstance(value, str) else str(value)


def _whole(text: str) -> str:
    """All of a text, what is not printable as its escape."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class CatalogueView:
    """Every query: its name, and what it answers."""

    def __init__(self, queries: Sequence[QueryShown]) -> None:
        self._queries = queries

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """In the order of the names."""
        grid = Table.grid(padding=(0, _GAP, 0, 0))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for one in self._queries:
            grid.add_row(one.name, one.title)
        yield grid


class QueryView:
    """One query: what it answers, and what it takes."""

    def __init__(self, query: QueryShown) -> None:
        self._query = query

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Its head, then its parameters."""
        one = self._query
        yield Text(one.name, style="bold")
        yield Padding(Text(one.title), _INDENT)
        if one.description:
            for paragraph in one.description.split("\n\n"):
                yield Padding(Text(" ".join(paragraph.split()), style=_QUIET), _INDENT)
        grid = Table.grid(padding=(0, _GAP, 0, 0))
        for _ in range(2):
            grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for parameter in one.parameters:
            needed = "required" if parameter.required else ""
            held = f"default {parameter.default}" if parameter.default is not None else needed
            grid.add_row(parameter.name, ", ".join(filter(None, (parameter.kind, held))), parameter.what)
        grid.add_row("tenant", "text", "only this tenant's; left out: everybody's")
        yield Text()
        yield Padding(grid, _INDENT)
        if one.one_of:
            yield Text()
            yield Padding(Text(f"exactly one of {', '.join(one.one_of)}"), _INDENT)
