"""The gate: answers to requests for input, and cancellation.

Source: design section 5, features L7 L8; SEP-2663.
"""

import hashlib

import pytest
from tests.services.access.rig import CANARY, Rig

from tasktrail.events.errors import (
    CommandReused,
    InvalidAnswer,
    InvalidRequest,
)
from tasktrail.events.facts import InputIgnored, Status
from tasktrail.services import messages
from tasktrail.services.access.gate import ANSWERS_MAX
from tasktrail.testing.parts import stored


def accept(**content: object) -> dict[str, object]:
    return {"action": "accept", "content": content}


@pytest.mark.requirement("L7")
async def test_one_invalid_answer_refuses_all_and_says_which_and_why(rig: Rig) -> None:
    """Design section 5: -32602, recorded; values are not in the message. The corrected ones are taken."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a", "b", "c")
    bad = {"a": accept(name="Luca"), "b": accept(name=7, secret=CANARY), "c": {"action": "maybe"}}
    with pytest.raises(InvalidAnswer) as caught:
        await rig.update(made.task_id, bad)
    assert caught.value.code == -32602
    assert caught.value.message.startswith("'b': `content/name` fails `type`; 'c': `action` is none of")
    assert CANARY not in caught.value.message
    assert sorted((await rig.get(made.task_id)).input_requests) == ["a", "b", "c"]
    with pytest.raises(InvalidAnswer):
        await rig.update(made.task_id, bad)
    refusals = [entry for entry in await rig.entries("task") if entry.command == "RespondToInput"]
    assert [(type(event).__name__, entry.sealed) for entry in refusals for event in entry.events] == [
        ("CommandRefused", {})
    ]
    await rig.update(made.task_id, {"a": accept(name="Luca"), "b": {"action": "cancel"}}, made="u2")
    assert list((await rig.get(made.task_id)).input_requests) == ["c"]


@pytest.mark.requirement("L7")
async def test_answers_nobody_asked_for_change_nothing_and_are_kept_as_digests(rig: Rig) -> None:
    """L7: unknown, repeated or foreign answers change nothing and are recorded; a client's text is in no entry."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a", "b")
    await rig.update(made.task_id, {"a": {"action": "decline"}})
    stray = "who-asked\ud800.*>"
    await rig.update(made.task_id, {"a": accept(name="again"), stray: accept(name="x")}, made="u2")
    entry = (await rig.entries("task"))[-1]
    digest = hashlib.sha256(stray.encode("utf-8", "surrogatepass")).hexdigest()
    assert entry.events == (
        InputIgnored(at_ms=rig.clock.ms, reason="already_answered", key="a"),
        InputIgnored(at_ms=rig.clock.ms, reason="never_asked", key_sha256=digest),
    )
    assert entry.sealed == {}
    bodies = b"".join(message.body for message in await stored(rig.one.js))
    assert b"who-asked" not in bodies
    assert list((await rig.get(made.task_id)).input_requests) == ["b"]


@pytest.mark.requirement("L7")
async def test_an_update_sent_again_is_the_update_it_was(rig: Rig) -> None:
    """Promise 1: after "may have been written" the same command id returns the outcome, its answers taken or not."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a")
    for _ in range(3):
        assert await rig.update(made.task_id, {"a": accept(name="Luca")}) == messages.Done()
    with pytest.raises(CommandReused):
        await rig.update(made.task_id, {"a": accept(name="Eve")})
    assert len(await rig.entries("task")) == 3


@pytest.mark.requirement("L7")
async def test_too_many_answers_and_what_is_no_json_are_refused_before_anything(rig: Rig) -> None:
    """Every loop has a bound (style 7)."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a")
    before = len(await rig.entries("task"))
    with pytest.raises(InvalidRequest, match=f"the maximum is {ANSWERS_MAX}"):
        await rig.update(made.task_id, {str(number): {} for number in range(ANSWERS_MAX + 1)})
    with pytest.raises(InvalidRequest, match="not JSON"):
        await rig.update(made.task_id, {"a": {"action": "accept", "content": {"name": "\ud800"}}})
    assert len(await rig.entries("task")) == before


@pytest.mark.requirement("L8")
async def test_cancelling_what_is_finished_is_answered_and_changes_nothing(rig: Rig) -> None:
    """SEP-2663: an acknowledgement; L8: a finished task stays finished, and the wish is on the trail."""
    made = await rig.create()
    await rig.complete(made.task_ref)
    assert await rig.cancel(made.task_id) == messages.Done()
    assert (await rig.get(made.task_id)).status is Status.COMPLETED
    assert (await rig.entries("task"))[-1].command == "CancelTask"


@pytest.mark.requirement("L7")
async def test_a_refused_update_sent_again_later_is_still_the_refusal_it_was(rig: Rig) -> None:
    """A repeat is known by what came, not by how it looks in a state that has moved on meanwhile."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a")
    with pytest.raises(InvalidAnswer):
        await rig.update(made.task_id, {"a": {"action": "maybe"}}, made="first")
    await rig.update(made.task_id, {"a": accept(name="Luca")}, made="second")
    with pytest.raises(InvalidAnswer):
        await rig.update(made.task_id, {"a": {"action": "maybe"}}, made="first")
    assert len(await rig.entries("task")) == 4
