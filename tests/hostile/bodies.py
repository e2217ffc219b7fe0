"""Bodies that no honest peer sends, for every action of `messages.ACTIONS`, made from honest ones.

for body in mutants("get", honest(ref, handle)["get"]): …
"""

import copy
from collections.abc import Iterator
from typing import Any

import msgspec

from tasktrail.testing.feeding import Json, asked, caller, creation

MARK = "hostile-text-that-no-log-may-hold"
ODD_TEXTS = (
    "",
    "*",
    ">",
    "a.b.*.>",
    "trail.1.task.>",
    "\r\nPUB trail.1.task.x 0\r\n",
    " \t\r\n",
    "../../etc/passwd",
    "'; DROP TABLE tasks; --",
    "\x1b[2J\x1b]0;title\x07",
    "\u202e\u2066\ufeff\U0001f4a9",
    "$JS.API.STREAM.DELETE.TRAIL",
    "%s%n{0}",
    "a\0b",
    MARK * 200,
)
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**53 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
    1.5,
    1e308,
    [],
    {},
    [MARK],
    {MARK: MARK},
    [[[[[[[[]]]]]]]],
    *ODD_TEXTS,
)
STRANGER = "b" * 32


def honest(handle: str, ref: str) -> dict[str, Json]:
    """A body for each action that the service could carry out. Commands have ids of their own in each use."""
    ana: Any = caller("ana")
    ana["actors"] = [{"sub": "agent", "iss": "https://id.example"}]
    ana["credential"] |= {"aud": ["a"], "scope": ["s"], "iat": 1, "exp": 2, "amr": ["pwd"], "acr": "1", "kid": "k"}
    ask = {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {"type": "object"}}}
    work = {"task_ref": ref, "command_id": "c"}
    return {
        "create": creation(ana, "c", ttl_ms=60_000, poll_interval_ms=500, client_extensions=["x"], tool_sha256="0"),
        "get": asked(ana, "tasks/get", task_id=handle),
        "list": asked(ana, "tasks/list", cursor="", limit=10),
        "update": asked(ana, "tasks/update", task_id=handle, command_id="c", answers={"k": {"action": "accept"}}),
        "cancel": asked(ana, "tasks/cancel", task_id=handle, command_id="c"),
        "watch": asked(ana, "subscriptions/listen", task_ids=[handle]),
        "unwatch": asked(ana, "subscriptions/listen", task_id=handle, pushes=1, reason="client"),
        "refusal": asked(ana, "tools/call", code=-32021, reason="capability", task_id=handle),
        "report": {**work, "message": "half", "progress": 0.5, "total": 1.0},
        "ask": {**work, "asks": {"k": ask}},
        "collect": {"task_ref": ref},
        "complete": {**work, "result": {"a": 1}, "is_error": False},
        "fail": {**work, "error": {"code": -32603, "message": "x", "data": None}},
        "stop": work,
        "lose": {**work, "cause": "shutdown"},
        "renew": {"worker": "w1"},
        "take": {"worker": "w1", "tools": {"report": ""}, "taken": {}, "wait_ms": 0},
    }


def paths(value: object, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where every member of a JSON value is, the value itself left out."""
    members: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        members = list(value.items())
    elif isinstance(value, list):
        members = list(enumerate(value))
    for name, member in members:
        yield (*before, name)
        yield from paths(member, (*before, name))


def mutants(body: Json) -> Iterator[Json]:
    """The body with each member in turn left out, replaced by each odd value, or joined by an unknown one.

    Each has a command id of its own, so that none is taken for the repetition of another.
    """
    for number, changed in enumerate(_changed(body)):
        if changed.get("command_id") == body.get("command_id", ""):
            changed["command_id"] = f"mutant {number}"
        yield changed


def _changed(body: Json) -> Iterator[Json]:
    for path in paths(body):
        for value in (..., *ODD_VALUES):
            changed, inner = _opened(body, path[:-1])
            if value is ...:
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
            yield changed
    for path in ((), *paths(body)):
        changed, inner = _opened(body, path)
        if isinstance(inner, dict):
            inner[f"unknown {MARK}"] = MARK
            yield changed


def _opened(body: Json, path: tuple[str | int, ...]) -> tuple[Json, Any]:
    """A copy of the body, and what is at the end of the path in it."""
    changed = copy.deepcopy(body)
    inner: Any = changed
    for step in path:
        inner = inner[step]
    return changed, inner


def _around(value: str) -> bytes:
    """An honest `create` whose arguments are this JSON text."""
    return msgspec.json.encode(creation(caller("ana"), "c", arguments="@")).replace(b'"@"', value.encode("utf-8"))


_LONG = 100_000
NOT_JSON: dict[str, bytes] = {
    "nothing": b"",
    "white space": b" \r\n\t ",
    "NUL": b"\0",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "an overlong form": b'{"a": "\xc0\xaf"}',
    "half a text": b'{"caller": {"iss": "',
    "two texts": b"{} {}",
    "a comment": b"{/* */}",
    "single quotes": b"{'a': 1}",
    "a trailing comma": b'{"a": 1,}',
    "a scalar": b"1",
    "a text": b'"get"',
    "null": b"null",
    "an array": b"[]",
    "deep arrays": b"[" * _LONG + b"]" * _LONG,
    "deep objects": b'{"a":' * _LONG + b"1" + b"}" * _LONG,
    "unclosed arrays": b"[" * _LONG,
    "closed arrays": b"]" * _LONG,
    "a repeated member": b'{"caller": {}, "caller": {}}',
    "a repeated member, escaped": b'{"a": 1, "\\u0061": 2}',
    "a long number": b"1" * _LONG,
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "msgpack": msgspec.msgpack.encode({"caller": {}}),
}
NOT_OURS: dict[str, bytes] = {
    "NaN": _around("NaN"),
    "Infinity": _around('{"a": -Infinity}'),
    "a number beyond a double": _around("1e999"),
    "an integer of 65 bits": _around(str(2**64)),
    "a very long integer": _around("9" * 5_000),
    "a lone surrogate": _around('"\\ud800"'),
    "a lone surrogate in a name": _around('{"\\udfff": 1}'),
    "depth in the arguments": _around("[" * 1_000 + "]" * 1_000),
    "a repeated name in the arguments": _around('{"a": {"b": 1, "b": 2}}'),
}
