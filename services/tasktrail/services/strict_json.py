"""JSON from strangers: one meaning, bounded, or a refusal that names the problem and where it is.

Guarantees: what is accepted means the same to every reader (RFC 8259 within the limits of I-JSON, RFC 7493). Refused:
more bytes or deeper nesting than allowed, text that is not UTF-8, a repeated member name, NaN and Infinity, numbers
that a double cannot hold, integers beyond 2^53 - 1, lone surrogates, NUL. Where the text carries payloads, which are
ours to keep and not to judge, NUL and integers of 64 bits pass. The work is linear in the body's size and no Python
code runs per value; a message quotes at most 40 characters of the body. Needs the standard library and msgspec.

    decode(b'{"a": 1, "a": 2}', bytes_max=65_536, depth_max=32)
    InvalidRequest: $.a: repeated member name; send each name once
"""

import json
import math
import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NoReturn, TypeVar, cast

import msgspec

from tasktrail.events.errors import InvalidRequest, TooLarge

INTEGER_MAX = 2**53 - 1
"""The largest integer that every JSON reader holds exactly (RFC 7493, section 2.2)."""

DEPTH_MAX = 64
"""How deep arrays and objects may be nested where a caller says nothing else."""

_QUOTED_MAX = 40
_INTEGER_DIGITS = len(str(INTEGER_MAX))
_BIG_NUMBER = re.compile(rb"[0-9](?:[0-9]{%d}|[eE])" % (_INTEGER_DIGITS - 1))
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_CURLY_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_STEPS = bytes.maketrans(b"[]", b"\x01\xff")  # +1 and -1 as signed bytes
_ROUNDS = 4

T = TypeVar("T")


class _Suspect(ValueError):
    """Something in the body is not acceptable; where, the slow path finds out."""


class _Members(list[tuple[str, Any]]):
    """An object as the slow path keeps it: every member, repeated ones too."""

    __slots__ = ()


class _Refused:
    """A number that is not acceptable, and why, in its place among the values."""

    __slots__ = ("why",)

    def __init__(self, why: str) -> None:
        self.why = why


def decode(body: bytes, *, bytes_max: int, depth_max: int = DEPTH_MAX, payloads: bool = False) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a JSON text of at most `bytes_max` bytes, nested at most `depth_max` deep (a scalar has depth 0).

    `payloads`: NUL and integers up to 64 bits are taken as they are.

    Raises:
        TooLarge: the body is longer than `bytes_max`.
        InvalidRequest: the body is not acceptable JSON; the message says what is wrong and where.
    """
    if len(body) > bytes_max:
        message = f"the body has {len(body)} bytes; at most {bytes_max} are taken"
        raise TooLarge(message)
    if _too_deep(body, depth_max):
        message = f"the body is nested deeper than {depth_max} levels"
        raise InvalidRequest(message)
    text = _text(body)
    kept = _LOOSE if payloads else _PORTABLE
    decoder = kept.checking if _BIG_NUMBER.search(body) else _PLAIN
    try:
        value = decoder.decode(text)
    except _Suspect:
        _refuse(text, kept)
    except json.JSONDecodeError as error:
        message = f"the body is no JSON: {error.msg} at line {error.lineno} column {error.colno}"
        raise InvalidRequest(message) from None
    except RecursionError:
        message = "the body is nested too deep"
        raise InvalidRequest(message) from None
    if b"\\u" in body and not _clean(value, kept):
        _refuse(text, kept)
    return value


def read(body: bytes, kind: type[T], *, bytes_max: int, depth_max: int = DEPTH_MAX) -> T:
    """The body as a `kind` (a msgspec Struct, say): `decode`, then strict conversion. Unknown fields are for the Struct
    to forbid.

    Raises:
        TooLarge, InvalidRequest: as `decode`, or a field is missing, unknown or of another type.
    """  # noqa: D205 - two sentences that belong together
    value = decode(body, bytes_max=bytes_max, depth_max=depth_max)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_shortened(str(error), 4 * _QUOTED_MAX)) from None


def _text(body: bytes) -> str:
    if not body or body.isspace():
        message = "the body is empty; send JSON"
        raise InvalidRequest(message)
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"the body is not UTF-8: byte {error.start} ({error.reason})"
        raise InvalidRequest(message) from None


def _too_deep(body: bytes, depth_max: int) -> bool:
    """Whether brackets outside of strings nest deeper than `depth_max`; exact for well-formed JSON."""
    if body.count(b"[") + body.count(b"{") <= depth_max:
        return False
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(body.split(b'"')[::2])
    brackets = outside.translate(_CURLY_TO_SQUARE, _NOT_BRACKETS)
    levels = 0
    # Most bodies are shallow: each round takes the innermost level away. What is left is added up, once.
    while levels < _ROUNDS and b"[]" in brackets:
        brackets, levels = brackets.replace(b"[]", b""), levels + 1
    steps = memoryview(brackets.translate(_STEPS)).cast("b")
    return max(accumulate(steps), default=0) + levels > depth_max


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Suspect
    return members


def _not_a_number(_: str) -> NoReturn:
    raise _Suspect


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _Suspect
    return number


class _Kept:
    """Which integers and strings are taken."""

    def __init__(self, least: int, most: int, *, nul: bool) -> None:
        self.nul = nul
        self._least, self._most = least, most
        self.checking = json.JSONDecoder(
            object_pairs_hook=_members, parse_constant=_not_a_number, parse_int=self._integer, parse_float=_float
        )
        self.keeping = json.JSONDecoder(
            object_pairs_hook=_Members,
            parse_constant=lambda name: _Refused(f"{name} is no JSON number"),
            parse_int=self._kept_integer,
            parse_float=_kept_float,
        )

    def _integer(self, digits: str) -> int:
        if self._integer_fault(digits):
            raise _Suspect
        return int(digits)

    def _kept_integer(self, digits: str) -> int | _Refused:
        why = self._integer_fault(digits)
        return _Refused(why) if why else int(digits)

    def _integer_fault(self, digits: str) -> str:
        # Length first: Python refuses to convert thousands of digits.
        if len(digits) > len(str(self._most)) + 1 or not self._least <= int(digits) <= self._most:
            why = "the largest every JSON reader holds exactly" if self._most == INTEGER_MAX else "the largest taken"
            return f"integer beyond {self._most}, {why}; send it as a string"
        return ""

    def text_fault(self, text: str) -> str:
        """Why a string is not taken; empty when it is."""
        if "\0" in text and not self.nul:
            return "NUL character in a string"
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return "lone surrogate in a string"
        return ""


def _kept_float(digits: str) -> float | _Refused:
    return _Refused("number too large for a double") if math.isinf(float(digits)) else float(digits)


_PLAIN = json.JSONDecoder(object_pairs_hook=_members, parse_constant=_not_a_number)
_PORTABLE = _Kept(-INTEGER_MAX, INTEGER_MAX, nul=False)
_LOOSE = _Kept(-(2**63), 2**64 - 1, nul=True)


def _clean(value: object, kept: _Kept) -> bool:
    """Whether every string among the values is taken. One pass in C: nothing is escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return (kept.nul or "\\u0000" not in text.replace("\\\\", "")) and not kept.text_fault(text)


def _refuse(text: str, kept: _Kept) -> NoReturn:
    """Say what is wrong and where; the slow path, taken only for bodies that are refused."""
    try:
        value = kept.keeping.decode(text)
    except json.JSONDecodeError as error:
        message = f"the body is no JSON: {error.msg} at line {error.lineno} column {error.colno}"
        raise InvalidRequest(message) from None
    for path, fault in _faults(value, kept):
        message = f"{path}: {fault}"
        raise InvalidRequest(message)
    message = "the body is not acceptable JSON"
    raise InvalidRequest(message)


def _faults(value: object, kept: _Kept, path: str = "$") -> Iterator[tuple[str, str]]:
    """Every fault with its path, in the order of the text."""
    match value:
        case _Refused():
            yield path, value.why
        case str():
            if fault := kept.text_fault(value):
                yield path, fault
        case _Members():
            seen: set[str] = set()
            for name, member in value:
                if fault := kept.text_fault(name):
                    yield path, fault.replace("a string", "a member name")
                if name in seen:
                    yield _member(path, name), "repeated member name; send each name once"
                seen.add(name)
                yield from _faults(member, kept, _member(path, name))
        case list():
            for at, one in enumerate(cast("list[object]", value)):
                yield from _faults(one, kept, f"{path}[{at}]")
        case _:
            pass


def _member(path: str, name: str) -> str:
    plain = name.isascii() and name.isidentifier() and len(name) <= _QUOTED_MAX
    return f"{path}.{name}" if plain else f"{path}[{_shortened(json.dumps(name), _QUOTED_MAX)}]"


def _shortened(text: str, length: int) -> str:
    kept = text.encode("utf-8", "replace").decode("utf-8")
    return kept if len(kept) <= length else kept[: length - 1] + "…"
