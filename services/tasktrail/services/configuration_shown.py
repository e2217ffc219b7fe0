"""The effective configuration for a person or a program to read, without its secrets.

Guarantees: pure; user names and passwords of NATS addresses, and all but the first digits of a key's digest, are left
out; every value says where it comes from. Files that hold secrets are named, never read.

    sys.stdout.write(text(effective(os.environ)))
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from tasktrail.services.configuration_file import LISTS, TABLES
from tasktrail.services.settings import FLAT, Effective

DIGEST_SHOWN = 8
_CREDENTIALS = re.compile(r"//((?:(?!://).)*)@")


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """What `tasktrail config show --json` prints: `service` and the tables as in the file, and `origin` by path."""

    file: str | None
    service: dict[str, Any]
    tables: dict[str, Any]
    origin: dict[str, str]


def configuration(effective: Effective) -> Configuration:
    """The document."""
    settings = effective.settings
    tables: dict[str, Any] = {name: [_row(row) for row in getattr(settings, name)] for name in LISTS}
    return Configuration(
        file=str(effective.file) if effective.file else None,
        service={name: _plain(name, getattr(settings, name)) for name in FLAT},
        tables=tables | {name: _row(getattr(settings, name)) for name in TABLES},
        origin=effective.origin,
    )


def text(effective: Effective) -> str:
    """The same as the configuration file writes it, each value with its origin."""
    said = configuration(effective)
    lines = [f"# file: {said.file or 'none'}", "", "[service]", *_assignments(said.service, "", said.origin)]
    for name in LISTS:
        rows = said.tables[name]
        if not rows:
            lines += ["", f"# no [[{name}]]"]
        for index, row in enumerate(rows):
            lines += ["", f"[[{name}]]", *_assignments(row, f"{name}[{index}].", said.origin)]
    for name in TABLES:
        lines += ["", f"[{name}]", *_assignments(said.tables[name], f"{name}.", said.origin)]
    return "\n".join(lines) + "\n"


def without_passwords(urls: str) -> str:
    """NATS addresses as they may be shown: `nats://ana:***@host:4222`; a token in place of a user is left out too."""

    def masked(found: re.Match[str]) -> str:
        user, colon, _ = found[1].partition(":")
        return f"//{user}:***@" if colon else "//***@"

    return _CREDENTIALS.sub(masked, urls)


def _row(row: msgspec.Struct) -> dict[str, Any]:
    return {name: _plain(name, getattr(row, name)) for name in row.__struct_fields__}


def _plain(name: str, value: object) -> Any:  # noqa: ANN401 - whatever JSON and TOML share
    if name == "sha256" and value:
        return f"{str(value)[:DIGEST_SHOWN]}…"
    if name in {"nats_url", "copies"} and isinstance(value, str):
        return without_passwords(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(name, one) for one in cast("tuple[object, ...]", value)]
    return _row(value) if isinstance(value, msgspec.Struct) else msgspec.to_builtins(value)


def _assignments(row: Mapping[str, Any], prefix: str, origin: Mapping[str, str]) -> Iterator[str]:
    """`key = value  # origin`; what is not set is a comment, as TOML has no null."""
    for name, value in row.items():
        path = prefix + name
        where = origin.get(path) or origin.get(path.partition(".")[0], "")
        said = f"# {name}: not set" if value is None else f"{name} = {_toml(value)}"
        yield f"{said}  # {where}"


def _toml(value: Any) -> str:  # noqa: ANN401 - whatever JSON and TOML share
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(key, ensure_ascii=False)} = {_toml(one)}" for key, one in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(one) for one in value)}]"
    return json.dumps(value, ensure_ascii=False)
