"""The tamper campaign on a trail: whatever is done to it is found, as what it is and where it was done.

Issue "Forensics": on a trail of at least 1,000 entries flip bytes all over, remove each, swap neighbours, duplicate,
substitute, truncate, truncate and sign again, fork: 100 % found with the right kind and index.
"""

import random
from collections.abc import Callable, Iterable

import pytest
from tests.tamper.trails import (
    SERVICE,
    STRANGER,
    another,
    checkpoint,
    hashes_of,
    known,
    numbered,
    seen,
    signed_mixture,
    tree_of,
    verified,
)

from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog.findings import Verdict
from tasktrail.projections.tlog.merkle import Frontier
from tasktrail.projections.tlog.verification import Known

pytestmark = pytest.mark.requirement("T2")

ENTRIES = 1_000
SOME = 7
SIZES = (256, 512, 700, 701, 768, ENTRIES)
MESSAGES = signed_mixture(ENTRIES, seed=11)
LEAVES = hashes_of(MESSAGES)
OWN = known(LEAVES, *SIZES)
TREE = tree_of(LEAVES)
DRAW = random.Random(5)  # noqa: S311 - the same campaign every time


def quickly(messages: list[Message]) -> Verdict:
    return verified(messages, OWN, TREE, quick=True)


def flipped(message: Message, draw: random.Random) -> Message:
    """One bit of one byte is another."""
    at = draw.randrange(len(message.body))
    body = bytearray(message.body)
    body[at] ^= 1 << draw.randrange(8)
    return message._replace(body=bytes(body))


def test_the_trail_as_it_was_written_is_verified() -> None:
    """The campaign's other side: nothing is found where nothing was done."""
    verdict = verified(MESSAGES, OWN, TREE)
    assert verdict.ok, verdict.findings
    assert (verdict.entries, verdict.size, verdict.checkpoints) == (ENTRIES, ENTRIES, len(SIZES))
    assert verdict.not_checked == ()


def at_each(places: Iterable[int], what: str, change: Callable[[int], list[Message]], later: int = 0) -> None:
    """At every one of these places the change is found, as `what`."""
    for place in places:
        verdict = quickly(change(place))
        assert seen(verdict) == (what, place + later), (place, verdict.findings[:3])


def test_a_flipped_bit_in_any_entry_is_a_change_of_that_entry() -> None:
    """Issue: flip bytes all over; one place, at random, in each entry."""
    at_each(range(ENTRIES), "changed", lambda at: [*MESSAGES[:at], flipped(MESSAGES[at], DRAW), *MESSAGES[at + 1 :]])


def test_flipped_bits_all_over_one_entry_are_found() -> None:
    """Issue: flip bytes all over; every byte of one entry, with its signature looked at."""
    at = 300
    for place in range(0, len(MESSAGES[at].body), 5):
        body = bytearray(MESSAGES[at].body)
        body[place] ^= 1
        changed = [*MESSAGES[:at], MESSAGES[at]._replace(body=bytes(body)), *MESSAGES[at + 1 : 310]]
        verdict = verified(changed, known(LEAVES, 310), tree_of(LEAVES[:310]), quick=True)
        assert seen(verdict) == ("changed", at), place


def test_every_entry_taken_out_is_missed_at_its_place() -> None:
    """Issue: remove each. Without its last entry a trail is cut off, which is another word for it."""
    at_each(range(ENTRIES - 1), "removed", lambda at: numbered([*MESSAGES[:at], *MESSAGES[at + 1 :]]))
    assert seen(quickly(MESSAGES[:-1])) == ("truncated", ENTRIES - 1)


def test_an_entry_deleted_from_the_stream_leaves_a_hole_that_is_found() -> None:
    """A deletion that leaves the other sequences as they are; the tree has no gap there."""
    later = SERVICE.signed(MESSAGES[5]._replace(stream_seq=ENTRIES + 1, body=MESSAGES[5].body + b" "))
    places = [*range(0, ENTRIES, SOME), ENTRIES - 1]
    at_each(places, "removed", lambda at: [*MESSAGES[:at], *MESSAGES[at + 1 :], later])


def test_neighbours_that_changed_places_are_found() -> None:
    """Issue: swap neighbours."""

    def swapped(at: int) -> list[Message]:
        return numbered([*MESSAGES[:at], MESSAGES[at + 1], MESSAGES[at], *MESSAGES[at + 2 :]])

    at_each([*range(0, ENTRIES - 1, SOME), ENTRIES - 2], "reordered", swapped)


def test_an_entry_that_is_there_twice_is_found_where_it_is_again() -> None:
    """Issue: duplicate; right behind itself, and anywhere else."""
    places = [*range(0, ENTRIES, SOME), ENTRIES - 1]
    at_each(places, "duplicated", lambda at: numbered([*MESSAGES[: at + 1], *MESSAGES[at:]]), later=1)
    for _ in range(50):
        of, to = DRAW.randrange(ENTRIES), DRAW.randrange(ENTRIES)
        verdict = quickly(numbered([*MESSAGES[:to], MESSAGES[of], *MESSAGES[to:]]))
        assert seen(verdict) == ("duplicated", to if of != to else to + 1), (of, to, verdict.findings)


def test_another_entry_in_the_place_of_one_is_found() -> None:
    """Issue: substitute; an entry that the service's own key signed."""
    places = [*range(0, ENTRIES, SOME), ENTRIES - 1]
    at_each(places, "substituted", lambda at: [*MESSAGES[:at], another(MESSAGES[at], DRAW), *MESSAGES[at + 1 :]])


def test_a_copy_of_another_entry_in_its_place_is_a_substitution() -> None:
    """Issue: substitute; an entry of the same trail."""
    for _ in range(100):
        at, of = DRAW.sample(range(ENTRIES), 2)
        verdict = quickly(numbered([*MESSAGES[:at], MESSAGES[of], *MESSAGES[at + 1 :]]))
        assert seen(verdict) == ("substituted", at), (at, of, verdict.findings)


def test_a_trail_cut_off_anywhere_is_found_where_it_ends() -> None:
    """Issue: truncate."""
    for at in range(0, ENTRIES, 7):
        assert seen(quickly(MESSAGES[:at])) == ("truncated", at)


def test_a_message_put_between_two_others_is_added() -> None:
    """What the tree never had: the kind that the issue's list leaves open."""
    for at in range(0, ENTRIES - 1, 50):
        verdict = quickly(numbered([*MESSAGES[:at], another(MESSAGES[at], DRAW), *MESSAGES[at:]]))
        assert seen(verdict) == ("added", at), verdict.findings


def test_several_changes_are_each_found() -> None:
    """One does not hide the other."""
    messages = list(MESSAGES)
    messages[900] = another(messages[900], DRAW)
    messages[600] = flipped(messages[600], DRAW)
    messages[400], messages[401] = messages[401], messages[400]
    del messages[100]
    found = {(one.kind.value, one.index) for one in quickly(numbered(messages)).findings}
    assert found >= {("removed", 100), ("reordered", 400), ("changed", 600), ("substituted", 900)}


@pytest.mark.parametrize(
    "lost", [None, [*LEAVES[:50], b"\0" * 32, *LEAVES[51:]], LEAVES[:40]], ids=["none", "lies", "cut"]
)
def test_without_the_trees_leaves_checkpoints_and_signatures_place_it(lost: list[bytes] | None) -> None:
    """Tiles that are lost or lie do not help who changed the trail."""
    tree = tree_of(lost) if lost else None
    changed = [*MESSAGES[:600], flipped(MESSAGES[600], DRAW), *MESSAGES[601:]]
    verdict = verified(changed, OWN, tree)
    assert seen(verdict) == ("changed", 600), verdict.findings
    verdict = verified([*MESSAGES[:600], another(MESSAGES[600], DRAW), *MESSAGES[601:]], OWN, tree)
    first = verdict.findings[0]
    assert (first.kind.value, first.index, first.until) == ("changed", 512, 700), verdict.findings
    assert seen(verified(MESSAGES[:600], OWN, tree)) == ("truncated", 600)
    assert any(one.kind.value == "tree" for one in verdict.findings)


def resigned(messages: list[Message], *sizes: int) -> tuple[list[Known], list[bytes]]:
    """The log made anew over these messages, by whoever has all its keys."""
    leaves = hashes_of(messages)
    return known(leaves, *sizes), leaves


def test_a_trail_cut_off_and_signed_again_is_forked_by_an_earlier_checkpoint_kept_elsewhere() -> None:
    """Issue: truncate and re-sign with the real checkpoint key; found through an earlier checkpoint or a witness."""
    kept = known(LEAVES, 900, own=False)
    own, leaves = resigned(MESSAGES[:800], 256, 800)
    assert verified(MESSAGES[:800], own, tree_of(leaves), quick=True).ok
    assert seen(verified(MESSAGES[:800], [*own, *kept], tree_of(leaves), quick=True)) == ("forked", 800)


def test_a_trail_that_was_cut_off_grown_anew_and_signed_again_is_forked() -> None:
    """The same, with other entries instead of those cut off: the kept checkpoints say between which two it parts."""
    kept = known(LEAVES, 700, 900, own=False)
    other = numbered([*MESSAGES[:800], *(another(one, DRAW) for one in MESSAGES[800:])])
    own, leaves = resigned(other, 256, 768, ENTRIES)
    verdict = verified(other, [*own, *kept], tree_of(leaves))
    first = verdict.findings[0]
    assert (first.kind.value, first.index, first.until) == ("forked", 700, 900), verdict.findings


def test_a_history_rewritten_by_whoever_has_every_key_is_forked() -> None:
    """Every signature and chain of it may be right: what was signed before is not undone."""
    rewritten = [*MESSAGES[:300], another(MESSAGES[300], DRAW), *MESSAGES[301:]]
    own, leaves = resigned(rewritten, *SIZES)
    verdict = verified(rewritten, [*own, *known(LEAVES, 256, 512, own=False)], tree_of(leaves), quick=True)
    first = verdict.findings[0]
    assert (first.kind.value, first.index, first.until) == ("forked", 256, 512), verdict.findings


def test_two_checkpoints_of_one_size_with_two_roots_are_a_fork() -> None:
    """C2SP tlog-checkpoint: a log signs one tree of each size."""
    other = hashes_of([*MESSAGES[:999], another(MESSAGES[999], DRAW)])
    verdict = verified(MESSAGES, [*OWN, *known(other, ENTRIES, own=False)], TREE, quick=True)
    assert [one.kind.value for one in verdict.findings] == ["forked"]
    verdict = verified(MESSAGES, [*OWN, *known(other, ENTRIES)], TREE, quick=True)
    assert [one.kind.value for one in verdict.findings] == ["forked"]


def test_an_older_checkpoint_of_the_log_itself_that_is_of_another_history_is_a_fork() -> None:
    """What was left behind when the log was signed again."""
    other = hashes_of([*MESSAGES[:400], another(MESSAGES[400], DRAW), *MESSAGES[401:]])
    verdict = verified(MESSAGES, [*OWN, *known(other, 600)], TREE, quick=True)
    assert [one.kind.value for one in verdict.findings] == ["forked"]


def test_a_fork_is_placed_exactly_where_the_leaves_of_the_other_branch_are_left() -> None:
    """The stream and the checkpoints were replaced, the tiles were not."""
    rewritten = [*MESSAGES[:300], another(MESSAGES[300], DRAW), *MESSAGES[301:]]
    own, _ = resigned(rewritten, *SIZES)
    verdict = verified(rewritten, [*own, *known(LEAVES, 900, own=False)], TREE, quick=True)
    assert seen(verdict) == ("forked", 300), verdict.findings


@pytest.mark.parametrize("index", [0, 255, 256, 511, 999])
def test_a_leaf_of_the_log_that_is_not_the_trails_is_the_trees_fault(index: int) -> None:
    """The trail gives every checkpoint's root: then it is the log's files that are wrong."""
    wrong = [*LEAVES[:index], b"\7" * 32, *LEAVES[index + 1 :]]
    assert [(one.kind.value, one.index) for one in verified(MESSAGES, OWN, tree_of(wrong)).findings] == [
        ("tree", index)
    ]


def test_leaves_that_are_lost_are_the_trees_fault_too() -> None:
    """Tiles that are missing."""
    assert seen(verified(MESSAGES, OWN, tree_of(LEAVES[:512]))) == ("tree", 512)


def test_a_checkpoint_with_other_heads_is_the_trees_fault() -> None:
    """The committed heads are the trail's subjects, which no leaf holds."""
    own = [Known(checkpoint(LEAVES, ENTRIES, heads=b"\1" * 32), "the log's checkpoint", own=True)]
    found = verified(MESSAGES, own, TREE).findings
    assert [one.kind.value for one in found] == ["tree"]
    assert "heads" in found[0].what


def test_a_trail_without_any_checkpoint_is_not_verified() -> None:
    """Whoever removes them all gains nothing."""
    assert seen(verified(MESSAGES, [], None)) == ("tree", None)


def test_signatures_are_looked_at_one_by_one() -> None:
    """A signature is no part of a leaf: the tree does not see it."""
    for index, wrong in (
        (3, MESSAGES[3]._replace(signature="")),
        (4, MESSAGES[4]._replace(signature=MESSAGES[5].signature)),
        (5, STRANGER.signed(MESSAGES[5])),
        (6, MESSAGES[6]._replace(signature="not base64!")),
    ):
        verdict = verified([*MESSAGES[:index], wrong, *MESSAGES[index + 1 :]], OWN, TREE)
        assert [(one.kind.value, one.index) for one in verdict.findings] == [("unsigned", index)]
        assert verified([*MESSAGES[:index], wrong, *MESSAGES[index + 1 :]], OWN, TREE, quick=True).not_checked


def test_message_id_and_subject_are_the_entrys_own() -> None:
    """Neither is part of a leaf."""
    at = 20
    for wrong in (
        MESSAGES[at]._replace(msg_id="another"),
        MESSAGES[at]._replace(subject="trail.1.task.acme." + "a" * 32),
        MESSAGES[at]._replace(subject="elsewhere"),
        MESSAGES[at]._replace(subject=MESSAGES[at].subject.replace("trail.1.", "trail.2.")),
    ):
        verdict = verified([*MESSAGES[:at], wrong, *MESSAGES[at + 1 :]], OWN, TREE, quick=True)
        assert seen(verdict) == ("changed", at), verdict.findings


def test_a_tree_that_was_grown_over_a_broken_chain_does_not_hide_it() -> None:
    """Whoever may publish and waits for the checkpoint: the tree is right, the chain is not."""
    gone = next(at for at in range(500, ENTRIES) if b'"task_seq":3,' in MESSAGES[at].body)
    ref = MESSAGES[gone].subject
    messages = numbered([*MESSAGES[:gone], *MESSAGES[gone + 1 :]])
    leaves = hashes_of(messages)
    verdict = verified(messages, known(leaves, len(leaves)), tree_of(leaves))
    after = next((at for at in range(gone, len(messages)) if messages[at].subject == ref), None)
    assert [(one.kind.value, one.index) for one in verdict.findings] == [("unchained", after)]
    again = numbered([*MESSAGES, MESSAGES[700]])
    leaves = hashes_of(again)
    assert not verified(again, known(leaves, len(leaves)), tree_of(leaves)).ok


def test_what_lies_after_the_last_checkpoint_is_said_not_to_be_covered() -> None:
    """A verdict says what it does not say."""
    short = known(LEAVES, 900)
    verdict = verified(MESSAGES, short, tree_of(LEAVES[:900]))
    assert verdict.ok
    assert any("index 900" in one for one in verdict.not_checked)
    frontier = Frontier()
    frontier.extend(LEAVES[:900])
    assert verdict.root == frontier.root().hex()
