"""What responders order in words of their own, and what they are told: documents of HTTP and of the command line.

Guarantees: unknown members are refused; a task's id travels in a body only. No framework here, and nothing heavy.

    SqlQuestion(sql="SELECT count(*) FROM tasks", tenant="acme")
    UnsealOrder(task=ref, payloads=["result"], reason="what did it disclose?", case_id="INC-7")
"""

import re
from typing import Annotated, Any, Literal

import msgspec

from tasktrail.events.errors import InvalidRequest
from tasktrail.services.orders import Order, Task

SQL_MAX = 32_768
"""Characters of a statement."""
PARAMETERS_MAX = 100
VALUE_MAX = 4_096
NAMES_MAX = 100
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


class SqlQuestion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One statement that reads. `parameters` are bound to `$name` in it.

    `tenant`: only its rows are there to be read; empty for every tenant's. `limit` rows and `timeout_ms` at most; 0
    for what the service allows.
    """

    sql: Annotated[str, msgspec.Meta(min_length=1, max_length=SQL_MAX)]
    parameters: dict[str, str | int | float | bool | None] = {}
    tenant: Annotated[str, msgspec.Meta(max_length=2_048)] = ""
    limit: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=3_600_000)] = 0

    def require_runnable(self) -> None:
        """See that a statement can be handed on at all.

        Raises:
            InvalidRequest: it cannot, and why.
        """
        if "\0" in self.sql:
            message = "sql holds a NUL character, which is part of no statement"
            raise InvalidRequest(message)
        if len(self.parameters) > PARAMETERS_MAX:
            message = f"{len(self.parameters)} parameters; give at most {PARAMETERS_MAX}"
            raise InvalidRequest(message)
        for name, value in self.parameters.items():
            if _NAME.fullmatch(name) is None:
                message = f"parameters: {name[:64]!r} is no name; use letters, digits and _"
                raise InvalidRequest(message)
            if isinstance(value, str) and len(value) > VALUE_MAX:
                message = f"parameters: {name} is longer than {VALUE_MAX} characters"
                raise InvalidRequest(message)


class SqlColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column of an answer; `type` is DuckDB's."""

    name: str
    type: str


class SqlAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a statement gave on the rows as of stream sequence `as_of`.

    Times are RFC 3339 in UTC, integers beyond 2^53 and decimals text, bytes base64. `cut` says which limit left rows
    out: rows, bytes, or empty for none.
    """

    columns: list[SqlColumn]
    rows: list[list[Any]]
    cut: str = ""
    as_of: int
    tenant: str = ""


class UnsealOrder(Order, frozen=True, kw_only=True):
    """Show what is sealed of this task: the payloads of these names; none named is all but the handle."""

    task: Task
    payloads: Annotated[list[Annotated[str, msgspec.Meta(max_length=2_048)]], msgspec.Meta(max_length=NAMES_MAX)] = []


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """One payload: which entry commits to it, the hex SHA-256 and bytes of its ciphertext, and what it says.

    `flags`: the kinds of secrets seen in it before it was sealed. `problem`: why it cannot be shown, else empty.
    """

    name: str
    stream_seq: int
    entry_id: str
    sha256: str
    size: int
    flags: tuple[str, ...] = ()
    value: Any = None
    problem: str = ""


class Unsealed(msgspec.Struct, frozen=True, kw_only=True):
    """What was shown, and the entry that says so; `entry` is empty when nothing could be."""

    task_ref: str
    tenant: str
    entry: str
    payloads: list[Payload]


class ArchiveOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Messages of these stream sequences, both inclusive, are about to be archived; `last` 0: all to the end."""

    first: Annotated[int, msgspec.Meta(ge=1, le=2**53)] = 1
    last: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded of it."""

    first: int
    last: int


class ReplayOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The trail is about to be played, or projections to be rebuilt from it, by who can read it from the broker.

    `task`: only the one with this reference or id. `begin`, `end`: a stream sequence or a time, as `replay.point` reads
    them, both inclusive. Empty for no bound. `projection`: of a rebuild, only this one.
    """

    doing: Literal["play", "rebuild"]
    task: Annotated[str, msgspec.Meta(max_length=256)] = ""
    begin: Annotated[str, msgspec.Meta(max_length=64)] = ""
    end: Annotated[str, msgspec.Meta(max_length=64)] = ""
    projection: Literal["", "current", "audit", "tlog"] = ""


class Replayable(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded of it: the task's reference (empty: all), how many steps, up to which sequence at most."""

    task_ref: str
    rows: int
    last: int
