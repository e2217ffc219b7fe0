"""What became of a tree's leaves on a trail: two sequences of leaf hashes held against each other. Pure.

Guarantees: every leaf of the tree is accounted for, as is every message of the trail; one change made to a trail gives
one difference, at its place; two between the same neighbours may be told as one replacement. What kept its order is
the longest increasing run (O(n log n)), so that one message taken out does not make all that follow it look moved.

    align([a, b, c], [a, c])  ->  [Difference(Change.REMOVED, at=1, place=-1)]
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple


class Change(Enum):
    """What became of one place of the tree."""

    REPLACED = "replaced"  # the trail has another message there
    REMOVED = "removed"  # the trail has nothing for it
    MOVED = "moved"  # the trail has it, in another order
    ADDED = "added"  # the trail has a message there that the tree has not
    ENDED = "ended"  # the trail ends before it


class Difference(NamedTuple):
    """One of them. `at` is the tree's index, `place` the trail's (-1: nothing stands there).

    `source`: where the tree has what the trail has at `place`; -1: nowhere.
    """

    change: Change
    at: int
    place: int = -1
    source: int = -1


def align(
    tree: Sequence[bytes],
    trail: Sequence[bytes],
    elsewhere: Mapping[bytes, int] | None = None,
    *,
    first: int = 0,
    goes_on: bool = False,
) -> list[Difference]:
    """Where `trail` is not `tree`, by the tree's index; both begin at index `first` of the whole.

    `elsewhere` says where, in a part of the tree that is not given, hashes of the trail stand that are not in `tree`.
    `goes_on`: both go on with the same. Else messages after everything that the tree has are no difference, unless the
    tree has them too: it may have grown.
    """
    wanted = _positions(tree, trail)
    kept = _longest_run(wanted)
    anchored = {wanted[place] for place in kept}
    moved = _moved(wanted, kept, anchored)
    found: list[Difference] = []
    at = place = 0
    for next_place in (*kept, len(trail)):
        next_at = wanted[next_place] if next_place < len(trail) else len(tree)
        missing = [index for index in range(at, next_at) if index not in moved]
        extra: list[int] = []
        for here in range(place, next_place):
            if moved.get(wanted[here]) == here:
                index = min(wanted[here], next_at)
                found.append(Difference(Change.MOVED, index, here, wanted[here] + first))
            else:
                extra.append(here)
        sources = [
            wanted[here] + first if wanted[here] >= 0 else (elsewhere or {}).get(trail[here], -1) for here in extra
        ]
        ends = next_place == len(trail) and not goes_on
        found += _slot(missing, extra, sources, next_at, grown=ends, cut=ends and next_place == place)
        at, place = next_at + 1, next_place + 1
    found.sort(key=lambda one: one.at)
    return [one._replace(at=one.at + first, place=one.place + first if one.place >= 0 else -1) for one in found]


def _positions(tree: Sequence[bytes], trail: Sequence[bytes]) -> list[int]:
    """For each message of the trail the tree's index of its hash, -1 when it has none.

    A hash that the tree has several times is taken in turn.
    """
    at: dict[bytes, list[int]] = {}
    for index, hash_ in enumerate(tree):
        at.setdefault(hash_, []).append(index)
    taken: dict[bytes, int] = {}
    wanted: list[int] = []
    for hash_ in trail:
        places = at.get(hash_)
        if places is None:
            wanted.append(-1)
            continue
        turn = taken.get(hash_, 0)
        taken[hash_] = turn + 1
        wanted.append(places[min(turn, len(places) - 1)])
    return wanted


def _longest_run(wanted: Sequence[int]) -> list[int]:
    """Places of a longest strictly increasing run of indexes; of equal ones the first."""
    ends: list[int] = []  # the smallest index in which a run of this length can end
    places: list[int] = []
    before: list[int] = [-1] * len(wanted)
    for place, index in enumerate(wanted):
        if index < 0:
            continue
        length = bisect_left(ends, index)
        if length < len(ends) and ends[length] == index:
            continue
        before[place] = places[length - 1] if length else -1
        if length == len(ends):
            ends.append(index)
            places.append(place)
        else:
            ends[length], places[length] = index, place
    run: list[int] = []
    place = places[-1] if places else -1
    while place >= 0:
        run.append(place)
        place = before[place]
    return run[::-1]


def _moved(wanted: Sequence[int], kept: Sequence[int], anchored: set[int]) -> dict[int, int]:
    """The tree's indexes whose message stands out of order, each with the place of its first copy."""
    in_order = set(kept)
    moved: dict[int, int] = {}
    for place, index in enumerate(wanted):
        if index >= 0 and place not in in_order and index not in anchored:
            moved.setdefault(index, place)
    return moved


def _slot(  # noqa: PLR0913 - what lies between two anchors
    missing: Sequence[int], extra: Sequence[int], sources: Sequence[int], end: int, *, grown: bool, cut: bool
) -> Iterator[Difference]:
    """What lies between two messages that kept their order: pairs of one gone and one come, then what is left."""
    pairs = min(len(missing), len(extra))
    for index, place, source in zip(missing, extra, sources, strict=False):
        yield Difference(Change.REPLACED, index, place, source)
    for index in missing[pairs:]:
        yield Difference(Change.ENDED if cut else Change.REMOVED, index)
    for place, source in zip(extra[pairs:], sources[pairs:], strict=True):
        if not grown or source >= 0:
            yield Difference(Change.ADDED, end, place, source)
