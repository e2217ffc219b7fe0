"""What the evidence of a verification comes to. Pure.

Guarantees: a checkpoint is called forked only when another one of the same key is shown to be of a history that cannot
have it; a trail that every checkpoint agrees with is never found fault with for what its tree's files say.

    judge(evidence)  ->  findings
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import msgspec

from tasktrail.projections.tlog.alignment import Change, Difference, align
from tasktrail.projections.tlog.findings import Finding, Kind, found
from tasktrail.projections.tlog.note import Checkpoint

_CHUNK = 4_096


class Known(NamedTuple):
    """A checkpoint that a trusted key has signed. `own`: the log holds it itself; else it was kept elsewhere."""

    checkpoint: Checkpoint
    source: str
    own: bool

    @property
    def size(self) -> int:
        """Leaves of its tree."""
        return self.checkpoint.size

    @property
    def root(self) -> bytes:
        """Root of its tree."""
        return self.checkpoint.root


class Foreign(NamedTuple):
    """A place of the trail whose hash the tree has not. `signed`: by a key that counts. `hole`: nothing is there."""

    hole: bool
    signed: bool


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was seen. Roots are by size, places of the trail by index.

    `parted`: the first index at which trail and tree differ, None: they do not, as far as both go. `tree_tail`, `tail`,
    `refs`: both from there on. `entries`: what is wrong with single entries. `heads`: roots of the heads of the trail.
    """

    known: tuple[Known, ...]
    size: int
    whole: bool
    roots: Mapping[int, bytes]
    tree_roots: Mapping[int, bytes]
    tree_size: int
    parted: int | None
    tree_tail: Sequence[bytes]
    tail: Sequence[bytes]
    refs: Sequence[str]
    foreign: Mapping[int, Foreign]
    leaves: Callable[[int, int], Sequence[bytes]]
    entries: Sequence[Finding]
    heads: Mapping[int, bytes]


class _Judged(NamedTuple):
    findings: list[Finding]
    explained: frozenset[int]
    """Places of the trail whose entries are told of already."""


def judge(seen: Evidence) -> list[Finding]:
    """Every finding, in no order."""
    trail_has = frozenset(one for one in seen.known if seen.roots.get(one.size) == one.root)
    tree_has = frozenset(one for one in seen.known if seen.tree_roots.get(one.size) == one.root)
    forked = _forked(seen, trail_has, tree_has)
    told = [_fork(seen, one, trail_has, tree_has) for one in forked]
    left = frozenset(seen.known) - forked
    against = [one for one in left if one.size <= seen.size and one not in trail_has]
    beyond = [one for one in left if one.size > seen.size] if seen.whole else []
    if against or beyond:
        judged = _differing(seen, left, against, beyond, trail_has, tree_has)
    else:
        judged = _Judged(list(_tree_lies(seen, left)), frozenset())
    told += judged.findings
    told += _heads_lie(seen, trail_has)
    if not seen.known and seen.size:
        told.append(found(Kind.TREE, None, "there is no checkpoint: nothing that is signed says what the trail held"))
    return told + [one for one in seen.entries if one.index not in judged.explained]


def _forked(seen: Evidence, trail_has: AbstractSet[Known], tree_has: AbstractSet[Known]) -> frozenset[Known]:
    """Checkpoints that another one of the same key rules out."""
    forked: set[Known] = set()
    own = _largest(one for one in seen.known if one.own)
    own_is_trail = any(one.own and one.size == own for one in trail_has)
    on_trail, in_tree = _largest(trail_has), _largest(tree_has)
    first_of: dict[int, bytes] = {}
    for one in sorted(seen.known, key=lambda known: (known not in trail_has, known not in tree_has, not known.own)):
        not_trails = one not in trail_has and one.size <= on_trail and (one not in tree_has or on_trail >= in_tree)
        not_trees = one not in tree_has and one.size <= in_tree and (one not in trail_has or in_tree > on_trail)
        put_back = seen.whole and not one.own and one.size > max(own, seen.size) and own_is_trail
        if (
            first_of.setdefault(one.size, one.root) != one.root
            or not_trails
            or not_trees
            or (put_back and one not in tree_has)
        ):
            forked.add(one)
    return frozenset(forked)


def _largest(known: Iterable[Known]) -> int:
    return max((one.size for one in known), default=0)


def _fork(seen: Evidence, one: Known, trail_has: AbstractSet[Known], tree_has: AbstractSet[Known]) -> Finding:
    if seen.size < one.size and _largest(tree_has) < one.size:
        what = (
            f"{one.source} is signed for {one.size} entries; the trail ends after {seen.size}, and a checkpoint of the "
            "same key agrees with that: it was cut off and signed again, or put back from an older copy"
        )
        return found(Kind.FORKED, seen.size, what, until=one.size)
    same = _largest(other for other in trail_has if not other.own and other.size < one.size)
    if (one in tree_has) != (one in trail_has) and seen.parted is not None and seen.parted < one.size:
        same = seen.parted
    what = (
        f"{one.source} and the checkpoints of the log are signed by the same key for different histories; they part at "
        f"index {same} or after it, before {one.size}"
    )
    return found(Kind.FORKED, same, what, until=one.size)


def _differing(  # noqa: PLR0913, PLR0917 - the checkpoints, sorted by what they say
    seen: Evidence,
    left: AbstractSet[Known],
    against: Sequence[Known],
    beyond: Sequence[Known],
    trail_has: AbstractSet[Known],
    tree_has: AbstractSet[Known],
) -> _Judged:
    """The trail is not what a checkpoint says."""
    authentic = _largest(tree_has & left)
    findings: list[Finding] = []
    explained: frozenset[int] = frozenset()
    if seen.parted is not None and seen.parted < authentic:
        findings, explained = _aligned(seen, seen.parted, authentic)
    if not findings and against:
        findings, explained = _between(seen, against, trail_has)
    if not findings and beyond:
        least = min(beyond, key=lambda one: one.size)
        findings.append(_cut(seen.size, least.size, least.source))
    if authentic < _largest(one for one in left if one.own):
        what = (
            "the log's tiles do not give the root of its newest checkpoint, and could not help to place what is wrong"
        )
        findings.append(found(Kind.TREE, None, what))
    return _Judged(findings, explained)


def _cut(size: int, signed: int, source: str) -> Finding:
    return found(
        Kind.TRUNCATED, size, f"the trail ends after {size} entries, {source} is signed for {signed}", until=signed
    )


def _between(seen: Evidence, against: Sequence[Known], trail_has: AbstractSet[Known]) -> _Judged:
    """No leaves to be believed: two checkpoints say where, and the entry itself if its signature is broken."""
    until = min(one.size for one in against)
    first = _largest(one for one in trail_has if one.size < until)
    suspects = [
        one
        for kind in (Kind.UNSIGNED, Kind.CHANGED, Kind.UNCHAINED)
        for one in seen.entries
        if one.kind is kind and one.index is not None and first <= one.index < until
    ]
    if suspects and suspects[0].kind is not Kind.UNCHAINED:
        one = suspects[0]
        what = f"the checkpoint of {until} entries does not agree with the trail, and here {one.what}"
        return _Judged([found(Kind.CHANGED, one.index, what, one.task_ref)], frozenset({one.index or 0}))
    what = f"the trail agrees with the checkpoint of {first} entries, not with that of {until}: it differs in between"
    return _Judged([found(Kind.CHANGED, first, what, until=until)], frozenset())


def _aligned(seen: Evidence, first: int, end: int) -> _Judged:
    """What became of each leaf from `first` on, where the tree is authenticated up to `end`."""
    tree, trail = list(seen.tree_tail[: end - first]), list(seen.tail)
    if not seen.whole:
        tree = tree[: len(trail)]
    same = 0
    while same < min(len(tree), len(trail)) and tree[-1 - same] == trail[-1 - same]:
        same += 1
    tree, trail = tree[: len(tree) - same], trail[: len(trail) - same]
    has = frozenset(tree)
    strange = frozenset(hash_ for hash_ in trail if hash_ not in has)
    found_at = _elsewhere(seen, strange, end)
    differences = align(tree, trail, found_at, first=first, goes_on=same > 0)
    explained = frozenset(one.place for one in differences if one.place >= 0)
    return _Judged(list(_told(seen, differences, end)), explained)


def _elsewhere(seen: Evidence, strange: frozenset[bytes], end: int) -> dict[bytes, int]:
    """Where in the authenticated tree these hashes stand; the first place of each."""
    at: dict[bytes, int] = {}
    for start in range(0, end if strange else 0, _CHUNK):
        for index, hash_ in enumerate(seen.leaves(start, min(start + _CHUNK, end)), start):
            if hash_ in strange:
                at.setdefault(hash_, index)
    return at


def _told(seen: Evidence, differences: Sequence[Difference], end: int) -> Iterator[Finding]:
    moved: list[Difference] = []
    for one in differences:
        if one.change is Change.MOVED:
            if moved and one.at > max(before.source for before in moved):
                yield _reordered(seen, moved)
                moved = []
            moved.append(one)
    if moved:
        yield _reordered(seen, moved)
    ended = next((one.at for one in differences if one.change is Change.ENDED), None)
    if ended is not None:
        yield _cut(ended, end, "a checkpoint")
    for one in differences:
        if one.change in {Change.REPLACED, Change.REMOVED, Change.ADDED}:
            yield _one(seen, one)


def _ref(seen: Evidence, one: Difference) -> str:
    return seen.refs[one.place - (seen.parted or 0)] if one.place >= 0 else ""


def _reordered(seen: Evidence, moved: Sequence[Difference]) -> Finding:
    until = max(one.source for one in moved) + 1
    what = f"entries are not in the tree's order: here stands the one of index {moved[0].source}"
    if moved[0].place != moved[0].at:
        what = f"entries are not in the tree's order: that of index {moved[0].source} stands at {moved[0].place}"
    return found(Kind.REORDERED, moved[0].at, what, _ref(seen, moved[0]), until)


def _one(seen: Evidence, one: Difference) -> Finding:
    ref = _ref(seen, one)
    place = seen.foreign.get(one.place, Foreign(hole=False, signed=False))
    if one.change is Change.REMOVED or place.hole:
        return found(Kind.REMOVED, one.at, "the tree has an entry here, the trail has not")
    if one.change is Change.ADDED:
        if one.source >= 0:
            return found(Kind.DUPLICATED, one.at, f"here stands the entry of index {one.source} again", ref)
        how = "is signed by a key that counts" if place.signed else "no key that counts has signed"
        return found(Kind.ADDED, one.at, f"here stands a message that the tree has not, and that {how}", ref)
    if one.source >= 0:
        what = f"in place of the tree's entry stands that of index {one.source}"
        return found(Kind.SUBSTITUTED, one.at, what, ref)
    if place.signed:
        what = "in place of the tree's entry stands another one, signed by a key that counts"
        return found(Kind.SUBSTITUTED, one.at, what, ref)
    what = "its bytes are not those in the tree, and no key that counts has signed them"
    return found(Kind.CHANGED, one.at, what, ref)


def _tree_lies(seen: Evidence, left: AbstractSet[Known]) -> Iterator[Finding]:
    """Every checkpoint agrees with the trail: then the log's leaves must be the trail's."""
    own = _largest(one for one in left if one.own)
    if seen.parted is not None and seen.parted < min(own, seen.size):
        what = "the log's leaf hash is not the trail's, which every checkpoint agrees with"
        yield found(Kind.TREE, seen.parted, what, seen.refs[0] if seen.refs else "")
    elif seen.tree_size < min(own, seen.size):
        what = f"the log's leaf hashes are lost from here on, up to its newest checkpoint of {own} entries"
        yield found(Kind.TREE, seen.tree_size, what)
    newest = max(left, key=lambda one: one.size, default=None)
    if newest is not None and newest.size > own:
        what = f"{newest.source} is of {newest.size} entries, and the log has no checkpoint later than of {own}"
        yield found(Kind.TREE, None, what)


def _heads_lie(seen: Evidence, trail_has: AbstractSet[Known]) -> Iterator[Finding]:
    for one in trail_has:
        if one.checkpoint.heads and one.size in seen.heads and seen.heads[one.size] != one.checkpoint.heads:
            what = f"the map of heads that {one.source} commits to is not that of the trail's subjects"
            yield found(Kind.TREE, None, what)
