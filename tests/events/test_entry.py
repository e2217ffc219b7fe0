"""The entry and its bytes. Source: design sections 5 (new fields, unknown types) and 7 (the body is the leaf)."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from tasktrail.events import entry as entries
from tasktrail.events.authority import Authority, Level, Principal, Trigger
from tasktrail.events.entry import Entry, decode, encode, leaf_hash
from tasktrail.events.errors import MalformedEntry
from tasktrail.events.facts import Event, TaskCompleted, TaskCreated, UnknownEvent
from tasktrail.events.task import OnTask, evolve
from tasktrail.testing.scenario import NOW_MS, authority, completed, created, sealed

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

# Any value of a type as msgspec describes it: whatever fields the facts grow, they are drawn too.
PLAIN: dict[type[inspect.Type], st.SearchStrategy[Any]] = {
    inspect.NoneType: st.none(),
    inspect.BoolType: st.booleans(),
    inspect.IntType: st.integers(-(2**53) + 1, 2**53 - 1),
    inspect.FloatType: st.floats(allow_nan=False, allow_infinity=False),
    inspect.StrType: text,
    inspect.BytesType: st.binary(max_size=40),
}


def anything(kind: inspect.Type) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: anything(field.type) for field in fields})
        case inspect.EnumType(cls=cls):
            return st.sampled_from(list(cls))
        case inspect.UnionType(types=types):
            return st.one_of(*map(anything, types))
        case inspect.VarTupleType(item_type=item):
            return st.lists(anything(item), max_size=3).map(tuple)
        case inspect.DictType(value_type=value):
            return st.dictionaries(text, anything(value), max_size=3)
        case _:
            return PLAIN[type(kind)]


def strategy(kind: Any) -> st.SearchStrategy[Any]:  # noqa: ANN401 - any type
    return anything(inspect.type_info(kind))


authorities = strategy(Authority)
events = {kind.__name__: strategy(kind) for kind in get_args(Event)}


@st.composite
def some_entries(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Entry:
    return Entry(
        v=entries.VERSION,
        id=draw(text),
        tenant=draw(text),
        task_ref=draw(text),
        task_seq=draw(st.integers(0, 2**53)),
        prev=draw(text),
        recorded_at=draw(text),
        command=draw(text),
        command_sha256=draw(text),
        authority=draw(authorities),
        sealed=draw(st.dictionaries(text, st.binary(max_size=40), max_size=3)),
        events=tuple(draw(st.lists(st.one_of(*events.values()), max_size=4))),
    )


def an_entry(*facts: Event, **changes: Any) -> Entry:  # noqa: ANN401 - fields of `Entry`
    made = Entry(
        v=1,
        id="e" * 32,
        tenant="acme",
        task_ref="r" * 32,
        task_seq=1,
        recorded_at="2026-11-22T11:00:00.000Z",
        authority=authority(),
        events=facts or (created(),),
    )
    return msgspec.structs.replace(made, **changes)


@pytest.mark.requirement("T1")
@given(some_entries())
def test_what_is_written_is_what_is_read(entry: Entry) -> None:
    """Every event type, every field, any text."""
    body = encode(entry)
    assert decode(body) == entry
    assert encode(decode(body)) == body
    assert b"\n" not in body
    assert leaf_hash(body) == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("name", events)
def test_each_event_round_trips(name: str) -> None:
    """One of each for certain, whatever the random ones hold."""

    @given(events[name])
    def one(event: Event) -> None:
        entry = an_entry(event)
        assert decode(encode(entry)) == entry
        assert json.loads(encode(entry))["events"][0]["type"] == name

    one()


@pytest.mark.requirement("T1")
@pytest.mark.parametrize("at_ms", [None, 7])
def test_an_event_of_a_newer_version_is_kept_as_written_and_changes_nothing(at_ms: int | None) -> None:
    """Design section 5: an unknown `type` read from the trail is kept and shown, never dropped."""
    newer = {"type": "HandleLent", "why": {"deep": [1, 2.50, "ü"]}} | ({} if at_ms is None else {"at_ms": at_ms})
    body = json.loads(encode(an_entry()))
    body["events"].append(newer)
    first, second = decode(json.dumps(body).encode()).events
    assert first == created()
    assert isinstance(second, UnknownEvent)
    assert (second.type, second.at_ms) == ("HandleLent", at_ms or 0)
    assert json.loads(bytes(second.raw)) == newer
    task = evolve(None, created())
    assert evolve(task, second) == task


def test_an_unknown_event_does_not_outlive_its_bytes() -> None:
    """It holds a copy, not a view of the whole message."""
    body = json.loads(encode(an_entry()))
    body["events"] = [{"type": "Newer", "x": "y" * 100}]
    (event,) = decode(json.dumps(body).encode() + b" " * 100_000).events
    assert isinstance(event, UnknownEvent)
    assert len(bytes(event.raw)) < 200


FIELDS = {name for kind in (Entry, TaskCreated, Authority, Principal) for name in kind.__struct_fields__}


@pytest.mark.requirement("T1")
@given(text.filter(lambda name: name not in FIELDS), st.integers() | text | st.none())
def test_fields_of_a_newer_version_are_read_over(name: str, value: object) -> None:
    """Design section 5: new fields need defaults; readers that do not know them go on."""
    entry = an_entry()
    body = json.loads(encode(entry))
    for place in (body, body["events"][0], body["authority"], body["authority"]["principal"]):
        place.setdefault(name, value)
    assert decode(json.dumps(body).encode()) == entry


def test_defaults_are_not_written() -> None:
    """An entry holds what was known; its bytes are kept for ever."""
    event = json.loads(encode(an_entry(completed())))["events"][0]
    assert event == {"type": "TaskCompleted", "at_ms": NOW_MS + 3, "result": msgspec.to_builtins(sealed("result"))}
    assert "prev" not in json.loads(encode(an_entry()))


def nested(depth: int) -> bytes:
    return b'{"v":1,"x":' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"v":1}',
        b'{"v":1,"id":"\xed\xa0\x80"}',
        nested(100_000),
        encode(an_entry())[:-1],
        encode(an_entry(v=2)),
        encode(an_entry(v=0)),
        encode(an_entry()).replace(b'"at_ms":', b'"at_ms":"x'),
        encode(an_entry(TaskCompleted(at_ms=1, result=sealed("r")))).replace(b'"result"', b'"resolt"'),
        encode(an_entry()).replace(b'"type":"TaskCreated"', b'"type":7'),
        encode(an_entry()).replace(b'"type":"TaskCreated",', b""),
    ],
    ids=lambda body: repr(body[:40]),
)
def test_what_is_no_entry_is_malformed_and_nothing_else(body: bytes) -> None:
    """Whatever lies in a stream, a reader gets one of our errors."""
    with pytest.raises(MalformedEntry):
        decode(body)


@given(st.binary(max_size=200))
def test_random_bytes_are_malformed(body: bytes) -> None:
    """As above."""
    with pytest.raises(MalformedEntry):
        decode(body)


def test_a_newer_version_is_refused_with_what_to_do() -> None:
    """The message names both sides (style 8)."""
    with pytest.raises(MalformedEntry, match="has version 2; this code reads 1: read it with a newer tasktrail"):
        decode(encode(an_entry(v=2)))


def test_the_facts_carry_no_payload_text() -> None:
    """Design section 7 (R1): an event holds commitments; free text is in names, reasons and identities only."""
    spoken = {
        field
        for kind in get_args(OnTask)
        if kind is not UnknownEvent
        for field in kind.__struct_fields__
        if field in {"message", "result", "error", "request", "response", "arguments", "handle"}
    }
    assert spoken == {"message", "result", "error", "request", "response", "arguments", "handle"}
    for kind in get_args(OnTask):
        hints = {field.name: str(field.type) for field in msgspec.structs.fields(kind)}
        assert all("Commitment" in hints[name] for name in spoken & hints.keys()), hints


def test_an_authority_keeps_the_level_of_each_fact() -> None:
    """Design section 6: a level per fact; nothing in reading or writing raises one."""
    entry = an_entry(authority=authority(trigger=Trigger.WORKER, level=Level.CLAIMED))
    again = decode(encode(entry)).authority
    assert again.principal is not None
    assert again.client is not None
    assert (again.trigger, again.principal.level, again.client.level) == ("worker", "claimed", "claimed")
