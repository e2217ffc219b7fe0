"""The configuration file: one TOML document, read into the settings it gives, each problem by line, key and remedy.

Guarantees: every problem of the file is found, not only the first; a key that is no setting is refused, with the name
that was probably meant; a value is taken as TOML types it (no text for a number); relative paths are relative to the
file; no message quotes the text of a digest. At most `FILE_BYTES_MAX` bytes are read, and nothing else is.

    file = read(Path("tasktrail.toml"), service={"port": int})
    file.values["port"], file.place(("service", "port")), file.problems
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, cast, get_args

import msgspec

from tasktrail.events.errors import InvalidRequest
from tasktrail.services import toml_lines
from tasktrail.services.configuration import (
    ApiKey,
    Issuer,
    Limits,
    McpServer,
    Operator,
    Privacy,
    Responders,
    Retention,
    Table,
    Tlog,
    Tool,
)
from tasktrail.services.configuration_wording import complaint

FILE_BYTES_MAX = 256 * 1024
SERVICE = "service"
LISTS: Mapping[str, type[Table]] = {
    "issuers": Issuer,
    "servers": McpServer,
    "tools": Tool,
    "api_keys": ApiKey,
    "operators": Operator,
}
"""Tables of which there may be several: `[[issuers]]`."""
TABLES: Mapping[str, type[Table]] = {
    "retention": Retention,
    "limits": Limits,
    "privacy": Privacy,
    "tlog": Tlog,
    "responders": Responders,
}
"""Tables of which there is one: `[retention]`."""
PATHS = frozenset({"data", "nats_credentials", "nats_server", "introspection_secret_file"})
"""Fields that name a file or directory."""
PLACES = frozenset({"copies"})
"""Lists whose members name a directory, or are addresses."""

_AT = re.compile(r" \((at line (?P<line>\d+), column (?P<column>\d+)|at end of document)\)$")


class Problem(NamedTuple):
    """What is wrong with the value at `path` (keys and indexes from 0), and what to do."""

    path: toml_lines.Path
    text: str


class ConfigurationFile:
    """What a file gave: `values` by setting, and its `problems`; a setting with a problem has no value."""

    def __init__(self, path: Path, line_of: Mapping[toml_lines.Path, int]) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self.line_of = line_of

    def place(self, path: toml_lines.Path) -> str:
        """The file and line of the value at this path, or of the table it would be in: `tasktrail.toml:14`."""
        while path:
            line = self.line_of.get(path) or self.line_of.get((*path, 0))
            if line:
                return f"{self.path}:{line}"
            path = path[:-1]
        return str(self.path)

    def gives(self, path: toml_lines.Path) -> bool:
        """Whether the value at this path is written in the file."""
        return path in self.line_of

    def told(self, problem: Problem) -> str:
        """One problem with its file, line and key."""
        key = shown(problem.path)
        return f"{self.place(problem.path)}: {key}: {problem.text}" if key else f"{self.path}: {problem.text}"


def shown(path: toml_lines.Path) -> str:
    """A path as a person writes it: `issuers[1].skew_ms`; a flat setting without its table."""
    text = ""
    for part in path[1:] if len(path) > 1 and path[0] == SERVICE else path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read(path: Path, service: Mapping[str, Any]) -> ConfigurationFile:
    """The settings in the file. `service`: name and type of each setting of the table `[service]`.

    Raises:
        InvalidRequest: the file cannot be read or is not TOML; the message says which line.
    """
    text = _text(path)
    try:
        file = ConfigurationFile(path, toml_lines.lines(text))
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(_not_toml(path, text, error)) from None
    _Reader(file, service).document(tomllib.loads(text))
    return file


def _text(path: Path) -> str:
    try:
        with path.open("rb") as source:
            raw = source.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        message = f"{path}: {error.strerror}; name a configuration file that can be read"
        raise InvalidRequest(message) from None
    if len(raw) > FILE_BYTES_MAX:
        message = f"{path}: larger than {FILE_BYTES_MAX // 1024} KiB, which is no configuration file of tasktrail's"
        raise InvalidRequest(message)
    try:
        return raw.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"{path}:{line}: not UTF-8; save the file in that encoding"
        raise InvalidRequest(message) from None


def _not_toml(path: Path, text: str, error: tomllib.TOMLDecodeError) -> str:
    what = str(error)
    found = _AT.search(what)
    line = found["line"] if found else None
    where = f" in column {found['column']}" if found and line else " at its end"
    number = int(line) if line else len(text.rstrip("\n").split("\n"))
    return f"{path}:{number}: not TOML{where}: {_AT.sub('', what)}; mend this line (texts stand in double quotes)"


class _Reader:
    """Fills one `ConfigurationFile`."""

    def __init__(self, file: ConfigurationFile, service: Mapping[str, Any]) -> None:
        self._file = file
        self._service = service
        self._folder = Path(os.path.abspath(file.path.expanduser())).parent  # noqa: PTH100 - links stay as written

    def document(self, said: Mapping[str, Any]) -> None:
        for key, value in said.items():
            if key == SERVICE and _is_table(value):
                self._file.values.update(self._fields(self._service, value, (SERVICE,)))
            elif key in LISTS and _is_list_of_tables(value):
                made = [self._table(LISTS[key], one, (key, index)) for index, one in enumerate(value)]
                self._file.values[key] = tuple(one for one in made if one is not None)
            elif key in TABLES and _is_table(value):
                table = self._table(TABLES[key], value, (key,))
                if table is not None:
                    self._file.values[key] = table
            else:
                self._problem((key,), self._misplaced(key))

    def _misplaced(self, key: str) -> str:
        if key in LISTS:
            return f"there may be several; begin each with [[{key}]], in two brackets"
        if key in {SERVICE, *TABLES}:
            return f"there is one; begin it with [{key}], in one bracket"
        if key in self._service:
            return f"write it in the table [{SERVICE}]"
        return _unknown("table", key, [SERVICE, *LISTS, *TABLES])

    def _fields(self, kinds: Mapping[str, Any], said: Mapping[str, Any], at: toml_lines.Path) -> dict[str, Any]:
        """The values of a table's keys; those with a problem are left out."""
        made: dict[str, Any] = {}
        for key, value in said.items():
            if key not in kinds:
                own = f"[[{key}]]" if key in LISTS else f"[{key}]" if key in TABLES else ""
                text = f"begin it with {own}, outside of [{SERVICE}]" if own else _unknown("setting", key, kinds)
                self._problem((*at, key), text)
                continue
            table = _table_of(kinds[key])
            if table is not None and _is_table(value):
                inner = self._table(table, value, (*at, key))
                made |= {key: inner} if inner is not None else {}
                continue
            try:
                made[key] = self._value(key, kinds[key], value)
            except msgspec.ValidationError as error:
                self._problem((*at, key), complaint(key, value, str(error)))
        return made

    def _table(self, kind: type[Table], said: Mapping[str, Any], at: toml_lines.Path) -> Table | None:
        known = len(self._file.problems)
        made = self._fields({field.name: field.type for field in msgspec.structs.fields(kind)}, said, at)
        for field in msgspec.structs.fields(kind):
            if field.required and field.name not in said:
                self._problem(at, f"{field.name} is missing; add it")
        return kind(**made) if len(self._file.problems) == known else None

    def _value(self, key: str, kind: Any, value: object) -> object:  # noqa: ANN401 - a type
        """The value as its type. Raises msgspec.ValidationError."""
        if key in PLACES:
            named = msgspec.convert(value, kind)
            return tuple(one if "://" in one else str(self._folder / Path(one).expanduser()) for one in named)
        if key not in PATHS:
            return msgspec.convert(value, kind)
        text = msgspec.convert(value, str)
        if not text and kind is Path:
            message = "Expected `str` of length >= 1"
            raise msgspec.ValidationError(message)
        if not text:
            return None if type(None) in get_args(kind) else text
        path = self._folder / Path(text).expanduser()
        return str(path) if kind is str else path

    def _problem(self, path: toml_lines.Path, text: str) -> None:
        self._file.problems.append(Problem(path, text))


def _table_of(kind: Any) -> type[Table] | None:  # noqa: ANN401 - a type
    return next((one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, Table)), None)


def _is_table(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_list_of_tables(value: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(_is_table(one) for one in cast("list[object]", value))


def _unknown(what: str, key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"no {what} has this name" + (f"; did you mean {near[0]}?" if near else "; remove it")
