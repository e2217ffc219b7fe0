r"""Values as lines of JSON and of CSV that mean the same to every reader, whoever wrote the values.

Guarantees: one document or row is one line, whatever is in it; JSON lines are ASCII. In CSV (RFC 4180) text is always
quoted, NULL is nothing at all, and no cell can be taken for a formula or reach another cell. What is done to text
is undone by `text_of_cell`, in this order: a leading ' goes away, then \\, \uXXXX and \UXXXXXXXX are what they say.

    csv_line(["=1+1", "a\nb", 7, None])  ->  b'"\'=1+1","a\\u000ab",7,\r\n'
"""

import base64
import json
import re
import unicodedata
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any

_FORMULAS = ("=", "+", "-", "@", "'")
_FULL_WIDTH = ("\N{FULLWIDTH EQUALS SIGN}", "\N{FULLWIDTH PLUS SIGN}", "\N{FULLWIDTH HYPHEN-MINUS}")
_STARTS = (*_FORMULAS, *_FULL_WIDTH, "\N{FULLWIDTH COMMERCIAL AT}")
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Controls, formatting (bidirectional overrides among it), lone surrogates, line and paragraph separators."""
_ESCAPED = re.compile(r"\\(?:u([0-9a-f]{4})|U([0-9a-f]{8})|(\\))")


def json_line(document: object) -> bytes:
    """A document of dictionaries, lists, text, numbers, None and times as one line of ASCII."""
    return json.dumps(document, ensure_ascii=True, separators=(",", ":"), default=plain).encode("ascii") + b"\n"


def plain(value: object) -> object:
    """What is not JSON by itself: times as RFC 3339 in UTC, bytes in base64, anything else as its text."""
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode("ascii")
    return str(value)


def rfc3339(at: datetime) -> str:
    """A time of the store, which is UTC without zone, with as many digits as it has, milliseconds at least."""
    whole = at.microsecond % 1_000 == 0
    return at.replace(tzinfo=None).isoformat(timespec="milliseconds" if whole else "microseconds") + "Z"


def csv_line(values: Iterable[Any]) -> bytes:
    """One row."""
    return (",".join(map(_cell, values)) + "\r\n").encode("utf-8")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal):
        return str(value)
    if isinstance(value, list | tuple | dict):
        return quoted(json_line(value).decode("ascii").rstrip("\n"))
    return quoted(str(plain(value)))


def quoted(text: str) -> str:
    """Text as a cell."""
    if not (text.isascii() and text.isprintable()) or "\\" in text:
        text = "".join(map(_escaped, text))
    if text.startswith(_STARTS):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"'


def _escaped(one: str) -> str:
    if one == "\\":
        return "\\\\"
    if unicodedata.category(one) not in _UNSAFE:
        return one
    return f"\\u{ord(one):04x}" if ord(one) <= 0xFFFF else f"\\U{ord(one):08x}"  # noqa: PLR2004 - the basic plane


def visible(text: str) -> str:
    """Text without a character that cannot be seen: each as its escape."""
    return text if text.isascii() and text.isprintable() and "\\" not in text else "".join(map(_escaped, text))


def text_of_cell(cell: str) -> str:
    """The text that a cell of ours stands for, as any CSV reader gives the cell."""
    return _ESCAPED.sub(_unescaped, cell.removeprefix("'"))


def _unescaped(found: re.Match[str]) -> str:
    return "\\" if found[3] else chr(int(found[1] or found[2], 16))
