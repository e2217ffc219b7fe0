"""On which line of a TOML text each value stands: the standard library's parser does not say.

Guarantees: pure; for a text that `tomllib` reads, every value that is written out has a line: that of the statement it
belongs to (a value within a list or inline table that goes over several lines has its first line). Reads statement by
statement with `tomllib` itself, so strings, comments and dotted keys are never misread.

    line_of = lines(Path("tasktrail.toml").read_text())
    line_of["service", "port"], line_of["issuers", 0, "url"]  # 2, 5
"""

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, cast

Path: TypeAlias = tuple[str | int, ...]
"""Where a value stands: keys of tables and, from 0, indexes of lists."""


def lines(text: str) -> Mapping[Path, int]:
    """The line, from 1, of each table and value.

    Raises:
        tomllib.TOMLDecodeError: the text is not TOML.
    """
    tomllib.loads(text)
    found: dict[Path, int] = {}
    lengths: dict[Path, int] = {}
    table: Path = ()
    for number, statement in _statements(text):
        said = tomllib.loads(statement)
        if statement.lstrip().startswith("["):
            table = _header(said, lengths)
            found.setdefault(table, number)
        else:
            for path in _paths(said, table):
                found.setdefault(path, number)
    return found


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each header or assignment with the number of its first line; what does not end on its line is put together."""
    begun, first = "", 0
    for number, line in enumerate(text.split("\n"), start=1):
        first = first if begun else number
        begun += line + "\n"
        try:
            said = tomllib.loads(begun)
        except tomllib.TOMLDecodeError:
            continue
        if said:
            yield first, begun
        begun = ""


def _header(said: Mapping[str, Any], lengths: dict[Path, int]) -> Path:
    """The table a header opens. A header alone parses to nested tables around an empty one, or a list of an empty one.

    `[[x]]` begins one more member of x; below a list of tables, a header speaks of its last member.
    """
    path: Path = ()
    within: Any = said
    while within:
        (key, within) = next(iter(cast("Mapping[str, Any]", within).items()))
        path = (*path, key)
        if isinstance(within, list):
            index = lengths.get(path, 0)
            lengths[path] = index + 1
            return (*path, index)
        if path in lengths:
            path = (*path, lengths[path] - 1)
    return path


def _paths(value: object, path: Path) -> Iterator[Path]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in cast("dict[str, object]", value).items():
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(cast("list[object]", value)):
            yield from _paths(inner, (*path, index))
