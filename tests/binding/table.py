"""The auth-binding matrix as it is promised: who opens whose task, under each binding mode.

Source: design sections 1 (promise 4) and 6 (identity, binding modes), features A1, A4, A6 and A9, SEP-2663 (auth
binding). A row is a caller who differs from the task's creator in exactly one thing; its letters stand for the modes
exact, user, client and tenant: `+` opens the task, `-` gets the answer of an id that never was. The same verdict holds
for each of `METHODS` on each wire, but for those that `ABSENT` names. `creates` is whether such a caller may make a
task of its own.

    verdict(ROWS["another sub"], "client")  ->  True
"""

import msgspec

MODES: tuple[str, ...] = ("exact", "user", "client", "tenant")
COMPARED = {
    "exact": ("tenant", "iss", "sub", "client_id"),
    "user": ("tenant", "iss", "sub"),
    "client": ("tenant", "client_id"),
    "tenant": ("tenant",),
}
"""What each mode compares, written down once more, so that a change of the code alone does not pass."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of caller. `reason` is what the trail says where it is turned away; `differs`: in which members.
    `nameless`: the creator lacks what a mode goes by, or the caller everything; then all members are compared.
    """

    opens: str
    creates: bool = True
    reason: str = "other-identity-context"
    differs: tuple[str, ...] = ()
    nameless: bool = False


METHODS = frozenset(
    {
        "tasks/get",
        "tasks/update",
        "response",
        "subscriptions/listen",
        "tasks/cancel",
        "tasks/result",
        "tasks/list",
    }
)
"""Everything that a caller can do with a task, as the trail calls it; `response` answers a question of the task's."""

_BY_UPDATE = "questions are answered by `tasks/update`"
_IN_GET = "`tasks/get` shows the result"
ABSENT: dict[str, dict[str, str]] = {
    "mcp/2026-07-28": {
        "response": f"{_BY_UPDATE} (SEP-2663)",
        "tasks/result": f"{_IN_GET} (SEP-2663)",
        "tasks/list": "the extension has none (SEP-2663)",
    },
    "mcp/2025-11-25": {
        "tasks/update": "questions are JSON-RPC requests of the receiver's, answered by responses (2025-11-25)",
        "subscriptions/listen": "the stream of `tasks/result` tells of the task (2025-11-25)",
    },
    "http/ingest": {"response": _BY_UPDATE, "tasks/result": _IN_GET},
    "nats": {"response": _BY_UPDATE, "tasks/result": _IN_GET},
}
"""The cells that a kind of wire has not, and why: whatever is not here is asked."""

NOT_ASKED: dict[tuple[str, str], str] = {
    ("response", "empty"): "a response whose id names no task answers no question, whoever sends it: -32600",
}
"""Spellings of an id, by method, that never reach the look-up."""

TOKEN_REFUSED = "token-refused"
"""Who presents such a token is nobody: how it compares with the creator says nothing."""

_ALL_BUT_TENANT = ("iss", "sub", "client_id")

ROWS: dict[str, Row] = {
    "the creator": Row(opens="++++"),
    "the creator with a new token": Row(opens="++++"),
    "another tenant": Row(opens="----", differs=("tenant",)),
    "another iss": Row(opens="--++", differs=("iss",)),
    "another sub": Row(opens="--++", differs=("sub",)),
    "another sub, neither with a client": Row(opens="---+", differs=("sub",), nameless=True),
    "another client": Row(opens="-+-+", differs=("client_id",)),
    "no client": Row(opens="-+-+", differs=("client_id",)),
    "sub and client swapped": Row(opens="---+", differs=("sub", "client_id")),
    "anonymous": Row(opens="----", differs=_ALL_BUT_TENANT, nameless=True),
    "an expired token": Row(opens="----", creates=False, reason=TOKEN_REFUSED),
    "an expired handle": Row(opens="----", reason="handle-expired"),
    "a revoked principal": Row(opens="----", creates=False, reason="caller-revoked"),
    "a revoked client": Row(opens="----", creates=False, reason="caller-revoked"),
    "a revoked token": Row(opens="----", creates=False, reason="caller-revoked"),
    "a new token after a revoked one": Row(opens="++++"),
    "a revoked handle": Row(opens="----", reason="handle-revoked"),
}


def verdict(row: Row, mode: str) -> bool:
    """Whether such a caller opens a task that is bound in this mode."""
    return row.opens[MODES.index(mode)] == "+"


def differing(row: Row, mode: str) -> tuple[str, ...]:
    """The compared members in which such a caller differs."""
    return tuple(name for name in row.differs if name in COMPARED["exact" if row.nameless else mode])
