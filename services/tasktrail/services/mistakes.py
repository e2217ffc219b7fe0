"""What is wrong with an order that a person typed, in plain words: what it is, what it may be, an example.

Guarantees: no pattern and no name of a type is in the text; a value is repeated only where it is one of a few words, a
number or a time, so that no token ever is.

    mistake(error, ExportOrder, {"format": "xml"})  ->  "--format is 'xml'; it can be jsonl, csv, …"
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.inspect import EnumType, ListType, LiteralType, StructType, Type, UnionType, VarTupleType, type_info

TIME_EXAMPLE = "2026-11-22T18:00:00Z"
_AT = re.compile(r"(?P<what>.*) - at `\$\.(?P<member>\w+)(?:\[(?P<index>\d+)\])?`", re.DOTALL)
_BOUND = re.compile(r"Expected `\w+`(?P<of> of length)? (?P<sign>[<>]=) (?P<bound>\d+)")
_OPTIONS = {"case_id": "--case", "rights": "--right", "token_hash": "--hash", "until_ms": "--until"}
_ARGUMENTS = frozenset({"entry", "grant", "hold", "revocation", "task", "tasks", "text"})
_FORMS = {
    "token_hash": "the base64url SHA-256 of a token: 43 characters of A to Z, a to z, 0 to 9, - and _, as timelines "
    "show it",
    "version": "a name of at most 64 letters, digits, ., _ and -, the first a letter or digit, as 2026-11",
}
_EXAMPLES = {"reason": "say why, for whoever reads the trail later: --reason 'INC-7: the token leaked'"}


def mistake(error: msgspec.ValidationError, kind: type[msgspec.Struct], members: Mapping[str, object]) -> str:
    """What is wrong with the `members` of which no `kind` could be made, named as the options are."""
    found = _AT.fullmatch(str(error))
    if found is None:
        return str(error).replace("`", "")
    name, index = found["member"], found["index"]
    value: Any = members.get(name)
    if index is not None:
        value = value[int(index)]
    return f"{_option(name)} {_wrong(found['what'], kind, name, value)}"


def not_one_of(option: str, said: str, allowed: Iterable[str]) -> str:
    """That an option is none of the few words it may be."""
    return f"{option} is {said[:64]!r}; it can be {', '.join(allowed)}"


def _option(name: str) -> str:
    """What a person typed where an order has this member."""
    return _OPTIONS.get(name) or (name.upper() if name in _ARGUMENTS else f"--{name.replace('_', '-')}")


def _wrong(what: str, kind: type[msgspec.Struct], name: str, value: Any) -> str:  # noqa: ANN401 - any member's
    if bound := _BOUND.fullmatch(what):
        return _out_of_bounds(bound, name, value)
    if "RFC3339" in what:
        return f"is {str(value)[:64]!r}, which is no time; write it like {TIME_EXAMPLE}"
    if name in _FORMS:
        return f"is not {_FORMS[name]}"
    if words := _words(kind, name):
        return f"is {str(value)[:64]!r}; it can be {', '.join(words)}"
    return f"cannot be taken: {what.replace('`', '')}"


def _out_of_bounds(bound: re.Match[str], name: str, value: Any) -> str:  # noqa: ANN401 - any member's
    most = "at most" if bound["sign"] == "<=" else "at least"
    if not bound["of"]:
        return f"is {value}; it can be {most} {bound['bound']}"
    unit = "characters" if isinstance(value, str) else "of them"
    example = f"; {_EXAMPLES[name]}" if name in _EXAMPLES else ""
    return f"takes {most} {bound['bound']} {unit}, not {len(value)}{example}"


def _words(kind: type[msgspec.Struct], name: str) -> list[str]:
    """The few words that a member may be; none when it may be others."""
    info = type_info(kind)
    fields = info.fields if isinstance(info, StructType) else ()
    return [word for field in fields if field.name == name for word in _of(field.type)]


def _of(kind: Type) -> list[str]:
    if isinstance(kind, LiteralType):
        return [str(one) for one in kind.values]
    if isinstance(kind, EnumType):
        return [str(one.value) for one in kind.cls]
    if isinstance(kind, UnionType):
        return [word for part in kind.types for word in _of(part)]
    return _of(kind.item_type) if isinstance(kind, ListType | VarTupleType) else []
