"""Entries to states, and states in the bucket. Source: design sections 3 (polls) and 8; promise 8."""

import dataclasses

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasktrail.events import commands
from tasktrail.events.entry import leaf_hash
from tasktrail.events.errors import ChainBroken
from tasktrail.events.subjects import task_ref
from tasktrail.projections.current import FORMAT, State, advance, decode, encode, shown
from tasktrail.testing.memory import MemoryTrail, Stored
from tasktrail.testing.scenario import ANA, ELICITATION, NOW_MS, TTL_MS, authority, create, sealed

REF = task_ref(b"k" * 32, "a task")


@dataclasses.dataclass
class Story:
    """A task's entries as commands come."""

    trail: MemoryTrail = dataclasses.field(default_factory=lambda: MemoryTrail(clock=lambda: NOW_MS))

    def do(self, command: commands.TaskCommand, **sealed_blobs: bytes) -> State:
        blobs = {name.replace("_", "."): blob for name, blob in sealed_blobs.items()}
        return self.trail.record(ANA.tenant, REF, command, authority(), blobs).state


def ask(*keys: str) -> commands.RequestInput:
    asks = tuple(commands.Ask(key=key, method=ELICITATION, request=sealed(f"request.{key}")) for key in keys)
    return commands.RequestInput(id=f"ask {keys}", asks=asks)


def answer(key: str) -> commands.RespondToInput:
    said = commands.Answer(key=key, action="accept", response=sealed(f"response.{key}"))
    return commands.RespondToInput(id=f"answer {key}", answers=(said,))


def folded(messages: list[Stored], state: State | None = None) -> State | None:
    for message in messages:
        state = advance(state, message.entry, leaf_hash(message.body), message.stream_seq)
    return state


@pytest.mark.requirement("L1", "R1")
def test_a_state_holds_the_blobs_that_may_still_be_asked_for_and_no_others() -> None:
    """Module docstring: what a poll may show, or the work may still collect."""
    story = Story()
    made = story.do(create(), handle=b"handle", arguments=b"arguments")
    assert made.sealed == {}
    parked = story.do(ask("a", "b"), request_a=b"what a?", request_b=b"what b?")
    assert sorted(parked.sealed.values()) == [b"what a?", b"what b?"]
    part = story.do(answer("a"), response_a=b"this a")
    assert sorted(part.sealed.values()) == [b"this a", b"what b?"]
    told = story.do(commands.ReportStatus(id="m", message=sealed("message")), message=b"half way")
    assert b"half way" in told.sealed.values()
    done = story.do(commands.CompleteTask(id="e", result=sealed("result")), result=b"42")
    assert sorted(done.sealed.values()) == [b"42", b"what b?"]
    assert {one.sha256 for one in shown(done.task)} == set(done.sealed)


@pytest.mark.requirement("R1")
def test_a_blob_that_travels_outside_its_entry_is_not_in_the_state() -> None:
    """Design section 7: larger ones are in the object bucket, by digest."""
    story = Story()
    story.do(create())
    done = story.do(commands.CompleteTask(id="e", result=sealed("result")))
    assert done.sealed == {}
    assert [one.name for one in shown(done.task)] == ["result"]


def test_a_state_says_where_it_is_from() -> None:
    """It is the state as of one sequence of the stream."""
    story = Story()
    state = story.do(create())
    assert (state.format, state.tenant, state.task_ref, state.stream_seq) == (FORMAT, "acme", REF, 1)
    assert state.task.leaf == leaf_hash(story.trail.messages[0].body)


@pytest.mark.requirement("T1")
def test_an_entry_that_does_not_follow_is_an_error() -> None:
    """A chain that does not hold is never guessed over; the message names both sides (style 8)."""
    story = Story()
    story.do(create())
    story.do(commands.CancelTask(id="c"))
    story.do(commands.StopTask(id="s"))
    first, second, third = story.trail.messages
    state = folded([first])
    with pytest.raises(ChainBroken, match=r"has task_seq 3 and prev [0-9a-f]{64}; its chain continues with 2 and"):
        folded([third], state)
    with pytest.raises(ChainBroken, match="continues with 1 and none"):
        folded([second])
    with pytest.raises(ChainBroken):
        folded([first], state)


sequences: st.SearchStrategy[list[commands.TaskCommand]] = st.lists(
    st.sampled_from(
        [
            ask("a"),
            ask("b", "c"),
            answer("a"),
            answer("b"),
            commands.ReportStatus(id="m1", message=sealed("message", "1")),
            commands.ReportStatus(id="m2", message=sealed("message", "2")),
            commands.CancelTask(id="c"),
            commands.CompleteTask(id="e", result=sealed("result")),
            commands.ExpireTask(id="x", at_ms=NOW_MS + TTL_MS),
        ]
    ),
    max_size=12,
)


@pytest.mark.requirement("T6")
@given(sequences, st.data())
@settings(deadline=None)
def test_a_state_is_the_same_whoever_folds_it_and_wherever_they_begin(
    sequence: list[commands.TaskCommand], data: st.DataObject
) -> None:
    """Promise 8: projections are disposable; rebuilt, they are equal byte for byte."""
    story = Story()
    blobs = {name: name.encode() for name in ("request_a", "request_b", "request_c", "response_a", "message", "result")}
    last = story.do(create(), handle=b"h")
    for command in sequence:
        last = story.do(command, **blobs)
    messages = story.trail.messages
    at = data.draw(st.integers(0, len(messages)), label="at")
    half = folded(messages[:at])
    resumed = folded(messages[at:], decode(encode(half)) if half else None)
    assert resumed is not None
    assert encode(resumed) == encode(last)
    assert decode(encode(last)) == last


@pytest.mark.parametrize("body", [b"", b"\xc1", b"null", b"\x80", b"\x81\xa6format\x01", b"\xff" * 9])
def test_bytes_that_are_no_state_are_none(body: bytes) -> None:
    """Then it is folded from the trail."""
    assert decode(body) is None


def test_a_state_of_another_format_is_none() -> None:
    """As above: the bucket is disposable."""
    story = Story()
    state = story.do(create())
    assert decode(encode(msgspec.structs.replace(state, format=FORMAT + 1))) is None
    assert decode(encode(state) + b"x") is None
    assert decode(encode(state)[:-1]) is None
