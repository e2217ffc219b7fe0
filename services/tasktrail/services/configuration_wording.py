"""What is wrong with a setting's value, in the words of whoever wrote it, and what to do about it.

Guarantees: pure; a message names the bound a number breaks, with durations in words besides; a text is quoted only if
one of a few words was expected, so no secret is quoted. What msgspec says that is not known here is passed on as it is.

    complaint("skew_ms", 900_000, "Expected `int` <= 300000")  # 900000 is more than 300000 (5 min); lower it
"""

import re
from collections.abc import Mapping

from tasktrail.events.authority import BindingMode

_BOUND = re.compile(r"Expected `\w+` (<=|>=) (-?\d+)")
_LENGTH = re.compile(r"Expected `str` of length (<=|>=) (\d+)")
_KIND = re.compile(r"Expected `([\w |]+)`, got `(\w+)`")
_QUOTED_MAX = 80
_WANTED: Mapping[str, str] = {
    "int": "a whole number, without quotes",
    "str": 'text in quotes: "…"',
    "bool": "true or false, without quotes",
    "array": 'a list: ["…", "…"]',
    "object": 'a table: {"…" = "…"}',
}
_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"))


def complaint(key: str, value: object, error: str) -> str:
    """What msgspec's `error` about this key's value means."""
    what, _, at = error.partition(" - at `$")
    where = f"{at.rstrip('`')}: " if at else ""
    if bound := _BOUND.search(what):
        return where + _beyond(key, value, bound[1], int(bound[2]))
    if length := _LENGTH.search(what):
        told = "is empty; give it" if length[2] == "1" else f"is longer than {length[2]} characters; shorten it"
        return where + told
    if "matching regex" in what:
        return where + "give 64 lower-case hex digits: the SHA-256 of the key"
    if what.startswith("Invalid enum value"):
        return f"{where}{quoted(value)} is none of {', '.join(BindingMode)}; choose one"
    if kind := _KIND.search(what):
        wanted = kind[1].split(" | ")[0]
        return f"{where}give {_WANTED.get(wanted, wanted)}"
    return where + what


def _beyond(key: str, value: object, side: str, bound: int) -> str:
    said, unit = value if isinstance(value, int) else quoted(value), in_words(key, bound)
    limit = f"{bound} ({unit})" if unit else f"{bound}"
    if side == "<=":
        return f"{said} is more than {limit}; lower it"
    return f"{said} is less than {limit}; raise it"


def in_words(key: str, number: int) -> str:
    """A duration, or a size, in its largest whole unit: `5 min`, `16 MiB`; empty for what has none."""
    if key.endswith("_bytes"):
        for size, name in ((1024**2, "MiB"), (1024, "KiB")):
            if number and number % size == 0:
                return f"{number // size} {name}"
    if key.endswith("_ms"):
        for size, name in _UNITS:
            if number and number % size == 0:
                return f"{number // size} {name}"
    return ""


def quoted(value: object) -> str:
    """A value in quotes, cut when it is long."""
    text = str(value)
    return f'"{text[:_QUOTED_MAX]}…"' if len(text) > _QUOTED_MAX else f'"{text}"'
