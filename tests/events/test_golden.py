"""Golden histories of each release are replayed for ever (style 10): what was written can be read, and means the same.

A copy is `golden/<version>.jsonl`, one entry a line, the states it led to, and their digest as a replay tells it
(`<version>.hash`). Copies are never changed; a difference here means that the code no longer reads what is on people's
trails. Only the digest may have to be made anew, when states come to hold more: the states that were are compared too.
"""

import json
from pathlib import Path
from typing import cast, get_args

import msgspec
import pytest

from tasktrail.events.entry import Entry, decode, encode, leaf_hash
from tasktrail.events.facts import Event, UnknownEvent
from tasktrail.events.subjects import access_subject, is_task_ref, task_subject
from tasktrail.events.task import Task, apply
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.current import State, advance
from tasktrail.projections.replay import Replay, states_sha256

GOLDEN = Path(__file__).parent / "golden"
RELEASES = sorted(path.stem for path in GOLDEN.glob("*.jsonl"))


def bodies(release: str) -> list[bytes]:
    return (GOLDEN / f"{release}.jsonl").read_bytes().splitlines()


def missing(found: object, wanted: object) -> list[str]:
    """Where `found` lacks something of `wanted`; what newer versions add is no difference."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        have, want = cast("dict[str, object]", found), cast("dict[str, object]", wanted)
        return [f"{key}: {why}" for key in want for why in missing(have.get(key), want[key])]
    return [] if found == wanted else [f"expected {wanted!r}, found {found!r}"]


def replayed(release: str) -> dict[str, State]:
    states: dict[str, State] = {}
    for stream_seq, body in enumerate(bodies(release), 1):
        entry = decode(body)
        if entry.task_seq:
            states[entry.task_ref] = advance(states.get(entry.task_ref), entry, leaf_hash(body), stream_seq)
    return states


def test_there_is_a_golden_history() -> None:
    """Without one the tests below say nothing."""
    assert "0.1.0" in RELEASES


@pytest.mark.requirement("T1")
@pytest.mark.parametrize("release", RELEASES)
def test_a_golden_history_leads_to_the_states_it_led_to(release: str) -> None:
    """Style 10. What is compared is the states, not the format in which the bucket of that release held them."""
    wanted = json.loads((GOLDEN / f"{release}.states.json").read_bytes())
    for state in wanted.values():
        del state["format"]
    found = json.loads(msgspec.json.encode(replayed(release)))
    assert found.keys() == wanted.keys()
    assert missing(found, wanted) == []


@pytest.mark.requirement("T6")
@pytest.mark.parametrize("release", RELEASES)
def test_a_replay_of_it_comes_to_its_states_and_their_digest(release: str) -> None:
    """T6: any two replays agree, the one of then and the one of now."""
    replay = Replay()
    for stream_seq, body in enumerate(bodies(release), 1):
        entry = decode(body)
        subject = (task_subject if entry.task_seq else access_subject)(entry.tenant, entry.task_ref)
        replay.take((Message(stream_seq, subject, body, entry.id),))
    assert replay.left_out == 0
    assert replay.states == replayed(release)
    assert states_sha256(replay.states) == (GOLDEN / f"{release}.hash").read_text(encoding="ascii").strip()


@pytest.mark.requirement("T1")
@pytest.mark.parametrize("release", RELEASES)
def test_every_entry_of_it_is_read_whole(release: str) -> None:
    """No event is unknown, no chain broken, and the bytes are the ones that would be written."""
    tasks: dict[str, Task] = {}
    for body in bodies(release):
        entry: Entry = decode(body)
        assert not [event for event in entry.events if isinstance(event, UnknownEvent)]
        assert missing(json.loads(encode(entry)), json.loads(body)) == []
        if entry.task_seq:
            assert is_task_ref(entry.task_ref)
            tasks[entry.task_ref] = apply(tasks.get(entry.task_ref), entry, leaf_hash(body))
    assert len({task.leaf for task in tasks.values()}) == len(tasks) > 4


@pytest.mark.requirement("T1")
def test_the_newest_golden_history_holds_every_event_there_is() -> None:
    """A new event type needs a new golden history: `golden/history.py` tells how it is written."""
    newest = max(RELEASES, key=lambda release: tuple(map(int, release.split("."))))
    held = {type(event).__name__ for body in bodies(newest) for event in decode(body).events}
    assert {kind.__name__ for kind in get_args(Event)} - held == set()
