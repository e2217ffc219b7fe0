"""What became of a tree's leaves on a trail: each change alone, and several, told at the tree's places."""

import random

import pytest

from tasktrail.projections.tlog.alignment import Change, align

pytestmark = pytest.mark.requirement("T2")

TREE = [bytes([number]) for number in range(20)]
OTHER = b"other"


@pytest.mark.parametrize(
    ("trail", "wanted"),
    [
        (TREE, []),
        ([*TREE[:5], *TREE[6:]], [(Change.REMOVED, 5)]),
        (TREE[:18], [(Change.ENDED, 18), (Change.ENDED, 19)]),
        ([*TREE[:5], TREE[6], TREE[5], *TREE[7:]], [(Change.MOVED, 5)]),
        ([*TREE[:5], OTHER, *TREE[6:]], [(Change.REPLACED, 5)]),
        ([*TREE[:5], OTHER, *TREE[5:]], [(Change.ADDED, 5)]),
        ([*TREE[:5], TREE[4], *TREE[5:]], [(Change.ADDED, 5)]),
        ([*TREE, OTHER], []),
        ([*TREE, TREE[3]], [(Change.ADDED, 20)]),
        ([*TREE[:3], *TREE[4:9], OTHER, *TREE[10:]], [(Change.REMOVED, 3), (Change.REPLACED, 9)]),
        ([], [(Change.ENDED, number) for number in range(20)]),
    ],
)
def test_each_change_is_one_difference_at_its_place(trail: list[bytes], wanted: list[tuple[Change, int]]) -> None:
    """Issue "Forensics": changed, removed, reordered, substituted, truncated."""
    assert [(one.change, one.at) for one in align(TREE, trail)] == wanted
    shifted = align(TREE, trail, first=100)
    assert [(one.change, one.at) for one in shifted] == [(change, at + 100) for change, at in wanted]


def test_it_says_where_the_tree_has_what_stands_there() -> None:
    """Of the part that is given, or of the rest."""
    (one,) = align(TREE, [*TREE[:5], TREE[9], *TREE[6:]], first=100)
    assert (one.change, one.at, one.place, one.source) == (Change.REPLACED, 105, 105, 109)
    (one,) = align(TREE, [*TREE[:5], OTHER, *TREE[6:]], {OTHER: 3}, first=100)
    assert one.source == 3


def test_where_both_go_on_alike_nothing_is_the_end() -> None:
    """What was taken out last of a part is removed, not cut off."""
    assert [one.change for one in align([b"a", b"b"], [b"a"], goes_on=True)] == [Change.REMOVED]
    assert [one.change for one in align([b"a"], [b"a", b"b"], goes_on=True)] == [Change.ADDED]


def test_a_hash_that_the_tree_has_twice_is_no_difference() -> None:
    """Two messages of the same bytes, which only garbage has."""
    twice = [*TREE[:5], OTHER, *TREE[5:9], OTHER, *TREE[9:]]
    assert align(twice, twice) == []
    assert [(one.change, one.at) for one in align(twice, [*twice[:10], *twice[11:]])] == [(Change.REMOVED, 10)]


def test_every_leaf_and_every_message_is_accounted_for() -> None:
    """Any two sequences: applying what was told to the tree gives the trail's messages, order aside."""
    draw = random.Random(3)  # noqa: S311 - the same sequences every time
    for _ in range(500):
        trail = [draw.choice([*TREE, OTHER]) for _ in range(draw.randrange(25))]
        told = align(TREE, trail, goes_on=True)
        left = list(TREE)
        for one in told:
            if one.change in {Change.REPLACED, Change.REMOVED}:
                left.remove(TREE[one.at])
        came = [trail[one.place] for one in told if one.change in {Change.REPLACED, Change.ADDED}]
        assert sorted([*left, *came]) == sorted(trail), (trail, told)
