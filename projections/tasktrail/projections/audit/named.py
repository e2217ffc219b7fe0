"""The named queries: each a file of SQL that says in its head what it answers and what it takes.

Guarantees: a value is only ever bound as a parameter, never made part of the text; what a query takes is read from its
file and nowhere else; a wrong parameter is refused with a message that lists the right ones.

A file is `queries/named/<name>.sql`. Its head, up to the first line that is no comment:

    -- What it answers, in one line.
    --
    -- More about it, over any number of lines.
    --
    -- Exactly one of: time, sequence
    -- $task ref required: what it is
    -- $action text: what it is, going on
    --     over the next line when that begins with four blanks
    -- $live boolean = false: what it is, with what holds when it is left out
    -- $standing one of lapsed, revoked: what it is; any other value is refused

A parameter that is left out is NULL. Beside those of its head a query may use what `IMPLICIT` names. Its first column
is a stream sequence; the answer is in the order of it, and pages go on after the last one. A query that would read the
whole trail for one page is two or three statements, each of which finds what the next has to read: see `PAGE`.

    query = catalogue()["timeline"]
    answer = store.ask(query, read_parameters(query, {"task": ref}), tenant=None, most=100)
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import assert_never

import msgspec

from tasktrail.events.errors import InvalidRequest
from tasktrail.events.subjects import is_task_ref

Value = str | int | bool | datetime | None
"""Of a parameter, or in a row of an answer. Times are UTC, without zone."""

TEXT_MAX = 4_096
IMPLICIT = frozenset({"tenant", "tenant_token", "after", "most", "as_of", "first", "last"})
"""What every query is given.

`tenant`: whose rows alone are to be seen, NULL for everybody's; `tenant_token`: the same as it stands in subjects;
`after`: only rows after this sequence; `most`: how many rows; `as_of`: nothing that was recorded after this sequence;
`first` and `last`: between which sequences the task lies that the parameter `task` names: 0 and 0 when there is no such
task to be seen, everything when none is named.
"""
PAGE = frozenset({"page", "page_first", "page_last", "page_rank"})
"""What a statement after another is given besides: what that one has found, reading few and narrow columns.

`page`: its column `stream_seq`; `page_first`: the least of them; `page_last`: the greatest, or that of its column
`last_seq` when it has one; `page_rank`: its column `rank`, if any. Nothing outside of `page_first` and `page_last` is
read: bounds that are known beforehand leave out most of the file, and those that a join finds on its way do not.
"""
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_SEQUENCE = re.compile(r"[0-9]{1,18}")
_DECLARED = re.compile(
    r"\$(?P<name>[a-z0-9_]+) (?P<kind>[a-z]+|one of (?P<values>\w+(?:, \w+)+))(?P<required> required)?"
    r"(?: = (?P<default>[^:]+))?: (?P<what>.+)"
)
_ONE_OF = "Exactly one of: "
_USED = re.compile(r"\$([a-z0-9_]+)")
_END = re.compile(r";\s*(?:\n|$)")
_TITLE_END = "."


class WrongParameters(InvalidRequest):
    """A named query was asked with parameters it does not take; the message lists those it takes."""

    reason = "wrong_parameters"


class Kind(StrEnum):
    """What a parameter's text has to be."""

    TEXT = "text"
    INTEGER = "integer"
    TIME = "time"  # RFC 3339; without a zone it is UTC
    SEQUENCE = "sequence"  # a sequence of the stream, from 0
    BOOLEAN = "boolean"  # true or false
    REF = "ref"  # a task's reference
    ONE_OF = "one of"  # one of the values that the parameter lists


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """What a query takes. `default` is text as it would be given; None: left out it is NULL.

    `values`: of kind ONE_OF, those that it may have; else none.
    """

    name: str
    kind: Kind
    required: bool = False
    default: str | None = None
    values: tuple[str, ...] = ()
    what: str

    @property
    def type(self) -> str:
        """Its kind as its file and the documentation write it."""
        return " ".join(filter(None, (self.kind, ", ".join(self.values))))


class NamedQuery(msgspec.Struct, frozen=True, kw_only=True):
    """One query of the catalogue.

    `title` is one line without a stop, `description` the rest of its head, possibly empty. `one_of`: exactly one of
    these parameters has to be given; empty when there is no such rule.
    """

    name: str
    title: str
    description: str
    parameters: tuple[Parameter, ...]
    one_of: tuple[str, ...] = ()
    sql: str

    @property
    def statements(self) -> tuple[str, ...]:
        """The one, two or three statements of its SQL."""
        return tuple(one for one in _END.split(self.sql) if one.strip())


def used(sql: str) -> frozenset[str]:
    """The names of all parameters that a text of SQL binds, implicit ones among them."""
    return frozenset(_USED.findall(sql))


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """A column of an answer; `type` is DuckDB's: VARCHAR, BIGINT, UBIGINT, UINTEGER, BOOLEAN or TIMESTAMP (UTC)."""

    name: str
    type: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a query came to, or a page of it.

    The first column is a stream sequence, in the order of which the rows are; rows of one sequence are never on two
    pages, so a page may be shorter than asked for. `more`: another page follows, `after` this sequence.
    `as_of`: the last sequence the answer knows of.
    """

    columns: tuple[Column, ...]
    rows: list[tuple[Value, ...]]
    more: bool
    after: int
    as_of: int


class BrokenQuery(ValueError):
    """A file of the catalogue is not of the documented form."""


@cache
def catalogue() -> Mapping[str, NamedQuery]:
    """Every named query by its name, in the order of the names."""
    folder = files("tasktrail.projections.audit") / "queries" / "named"
    found = sorted((one for one in folder.iterdir() if one.name.endswith(".sql")), key=lambda one: one.name)
    names = ((one.name.removesuffix(".sql"), one.read_text(encoding="utf-8")) for one in found)
    return MappingProxyType({name: parse(name, text) for name, text in names})


def parse(name: str, text: str) -> NamedQuery:
    """The query of a file.

    Raises:
        BrokenQuery: its head is not of the documented form, or its SQL binds what the head does not tell.
    """
    head, sql = _split(text)
    title = head[0] if head else ""
    prose: list[str] = []
    parameters: list[Parameter] = []
    one_of: tuple[str, ...] = ()
    for line in _joined(head[1:]):
        if line.startswith("$"):
            parameters.append(_parameter(name, line))
        elif line.startswith(_ONE_OF):
            one_of = tuple(line.removeprefix(_ONE_OF).split(", "))
        else:
            prose.append(line)
    query = NamedQuery(
        name=name,
        title=title.removesuffix(_TITLE_END),
        description="\n".join(prose).strip(),
        parameters=tuple(parameters),
        one_of=one_of,
        sql=sql,
    )
    told, bound = {one.name for one in parameters}, used(sql)
    given = IMPLICIT | PAGE if len(query.statements) > 1 else IMPLICIT
    if not title or told & given or not told | given >= bound >= told or not told >= set(one_of):
        message = f"{name}.sql tells of {sorted(told)} and binds {sorted(bound)}"
        raise BrokenQuery(message)
    return query


def _split(text: str) -> tuple[list[str], str]:
    """The lines of the head without their comment marks, and the rest."""
    lines = text.splitlines()
    end = next((at for at, line in enumerate(lines) if not line.startswith("--")), len(lines))
    return [line.removeprefix("--").removeprefix(" ") for line in lines[:end]], "\n".join(lines[end:])


def _joined(lines: list[str]) -> Iterator[str]:
    """Lines with those that go on from them."""
    held: str | None = None
    for line in lines:
        if held is not None and line.startswith("    "):
            held = f"{held} {line.strip()}"
            continue
        if held is not None:
            yield held
        held = line
    if held is not None:
        yield held


def _parameter(query: str, line: str) -> Parameter:
    found = _DECLARED.fullmatch(line)
    values = tuple(found["values"].split(", ")) if found and found["values"] else ()
    kind = Kind.ONE_OF if values else next((one for one in Kind if found and one == found["kind"]), None)
    if found is None or kind is None or (values and found["default"] not in {None, *values}):
        message = f"{query}.sql: no parameter of the documented form: {line}"
        raise BrokenQuery(message)
    return Parameter(
        name=found["name"],
        kind=kind,
        required=bool(found["required"]),
        default=found["default"],
        values=values,
        what=found["what"],
    )


def read_parameters(query: NamedQuery, given: Mapping[str, str]) -> dict[str, Value]:
    """The values of all of a query's parameters from text: None for one that is left out and has no default.

    Raises:
        WrongParameters: one is not taken, is missing, or is no value of its kind; the message lists what is taken.
    """
    taken = {one.name: one for one in query.parameters}
    unknown = sorted(set(given) - set(taken))
    if unknown:
        raise _wrong(query, f"it takes no {', '.join(f'{name!r:.60}' for name in unknown[:5])}")
    missing = [name for name, one in taken.items() if one.required and name not in given]
    if missing:
        raise _wrong(query, f"{', '.join(missing)} is missing")
    chosen = [name for name in query.one_of if name in given]
    if query.one_of and len(chosen) != 1:
        said = f"{' and '.join(chosen)} exclude each other" if chosen else "none is given"
        raise _wrong(query, f"exactly one of {', '.join(query.one_of)} is needed, {said}")
    return {name: _value(query, one, given.get(name, one.default)) for name, one in taken.items()}


def _value(query: NamedQuery, parameter: Parameter, text: str | None) -> Value:
    if text is None:
        return None
    if parameter.values and text not in parameter.values:
        raise _wrong(query, f"{parameter.name} is {text!r:.60}; it can be {', '.join(parameter.values)}")
    try:
        return _of_kind(parameter.kind, text)
    except ValueError as error:
        raise _wrong(query, f"{parameter.name} is {text!r:.60}, which is no {parameter.kind}: {error}") from None


def _of_kind(kind: Kind, text: str) -> Value:
    """The value of a text.

    Raises:
        ValueError: it is none of this kind; the message says what one is.
    """
    match kind:
        case Kind.TEXT | Kind.ONE_OF:
            return _text(text)
        case Kind.INTEGER:
            return int(_matching(_INTEGER, text, "a whole number of at most 18 digits"))
        case Kind.SEQUENCE:
            return int(_matching(_SEQUENCE, text, "a sequence of the stream is a number of at most 18 digits"))
        case Kind.BOOLEAN:
            if text not in {"true", "false"}:
                message = "say true or false"
                raise ValueError(message)
            return text == "true"
        case Kind.TIME:
            return _time(text)
        case Kind.REF:
            if not is_task_ref(text):
                message = "a task's reference has 32 characters of a to z and 2 to 7"
                raise ValueError(message)
            return text
        case _:
            assert_never(kind)


def _matching(form: re.Pattern[str], text: str, what: str) -> str:
    if form.fullmatch(text) is None:
        raise ValueError(what)
    return text


def _text(text: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        message = "it holds half of a character"
        raise ValueError(message) from None
    if not 0 < size <= TEXT_MAX:
        message = f"it has {size} bytes, 1 to {TEXT_MAX} can be taken; leave it out instead of giving nothing"
        raise ValueError(message)
    return text


def _time(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=None) if at.tzinfo is None else at.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        message = "write it like 2026-11-22T18:00:00Z"
        raise ValueError(message) from None


def _wrong(query: NamedQuery, why: str) -> WrongParameters:
    taken = [f"{one.name} ({one.type}{', required' if one.required else ''})" for one in query.parameters]
    return WrongParameters(f"{query.name}: {why}. It takes {', '.join(taken) if taken else 'no parameters'}")
