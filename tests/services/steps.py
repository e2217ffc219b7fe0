"""Steps as an export reads them, one of every kind of event, with whatever a stranger may have put into their texts."""

from datetime import datetime
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from tasktrail.events.facts import AccessDenied, Event, UnknownEvent
from tasktrail.projections.audit.exported import ANOMALY, ExportedStep
from tasktrail.projections.audit.found import StepRow

HOSTILE = (
    '=cmd|"/c calc"!A1',
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "'quoted",
    'he said "no", twice',
    'a\r\nb,c\n"d',
    "\\u0041\\",
    "\x00\x1b[31mred\x7f\x85",
    "\u202egnp.exe\u2066",
    "one\u2028two\u2029",
    "\ufeffbom\u200b",
    "\N{FULLWIDTH EQUALS SIGN}1",
    "\U000e0001tag \U0001f600",
    "日本 é",
    "</script><!--",
    "",
)
"""Text that steers, breaks out of or hides in what is not careful with it."""
SURROGATE = "half \ud83d of it"
AT = datetime(2026, 11, 22, 18, 0, 0, 123_000)  # noqa: DTZ001 - as the store keeps it
AT_MS = 1_795_370_400_123


@cache
def kinds() -> tuple[type[Any], ...]:
    """Every kind of event."""
    return get_args(Event)


def event_of(kind: type[Any], text: str) -> Any:  # noqa: ANN401 - any event
    """An event with `text` wherever it may have one."""
    return kind(**{name: _value(hint, text, name) for name, hint in get_type_hints(kind).items()})


def _value(hint: Any, text: str, name: str) -> Any:  # noqa: ANN401 - any type
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        return _value(next(one for one in arguments if one is not NoneType), text, name)
    if origin is tuple:
        return (_value(arguments[0], text, name),)
    if origin is dict:
        return {text: _value(arguments[1], text, name)}
    plain = {int: AT_MS if name.endswith("_ms") else 7, float: 1.5, bool: True, str: text}
    if hint in plain:
        return plain[hint]
    return event_of(hint, text) if issubclass(hint, msgspec.Struct) else next(iter(hint))


def row_of(kind: str, event: Any, text: str, **changes: Any) -> StepRow:  # noqa: ANN401 - any event
    """The row of the view `steps` of an event."""
    values: dict[str, Any] = {
        name: AT if "datetime" in str(hint) else text for name, hint in get_type_hints(StepRow).items()
    }
    values |= {"stream_seq": 1_042, "ord": 3, "kind": kind, "type": type(event).__name__, "leaf_sha256": "ab" * 32}
    values |= {"principal_level": "verified", "trigger": "caller", "principal_kind": "user", "effect": "allow"}
    values |= {"amr": '["pwd"]', "task_ref": "q" * 32, "credential_verification": "ok", "entry_id": "e" * 32}
    values["payload"] = None
    if isinstance(event, msgspec.Struct):
        values["payload"] = "{}" if "\ud83d" in text else msgspec.json.encode(event).decode()
    return StepRow(**(values | changes))


def step_of(event: Any, text: str = "ana", **changes: Any) -> ExportedStep:  # noqa: ANN401 - any event
    """One step of this event, with `text` wherever a stranger has a say."""
    return ExportedStep(row_of("task", event, text, **changes), text, event, *(text or None for _ in range(6)))


def every_step(text: str = "ana") -> list[ExportedStep]:
    """One of every kind: known events, one of a newer version, an entry without any, denials, what is no entry."""
    steps = [step_of(event_of(kind, text), text) for kind in kinds()]
    denied = event_of(AccessDenied, text)
    newer = UnknownEvent(type="TaskFrozen", raw=msgspec.Raw(b'{"type":"TaskFrozen"}'))
    hole: dict[str, Any] = dict.fromkeys(StepRow._fields)
    hole.update(stream_seq=1_044, ord=0, kind=ANOMALY, type="missing")
    return [
        *steps,
        step_of(denied, text, credential_verification="bad_signature", effect="deny"),
        step_of(denied, text, effect="deny", credential_verification="missing", sub=None, principal_kind="anonymous"),
        step_of(newer, text, type="TaskFrozen", payload='{"type":"TaskFrozen"}'),
        step_of(None, text, type=None, ord=None, payload=None),
        step_of(event_of(kinds()[0], text), text, address="2001:db8::1"),
        step_of(event_of(kinds()[0], text), text, address=None, sub=None, iss=None, jti=None, client_id=None),
        ExportedStep(StepRow(**hole), "not accepted (missing): the stream has no message 1044", None, *([None] * 6)),
    ]
