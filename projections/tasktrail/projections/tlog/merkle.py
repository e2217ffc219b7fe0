"""The Merkle tree of RFC 6962, section 2.1, and its proofs as in RFC 9162, sections 2.1.3 and 2.1.4. Pure.

Guarantees: a verification answers True only for a proof of exactly the right length that leads to the given root; any
other input of the right types answers False and raises nothing. Hashes are 32 bytes of SHA-256 everywhere.

    tree = Frontier()
    tree.extend([leaf(body) for body in bodies])
    proof = inclusion_proof(3, tree.size, nodes)
    assert verify_inclusion(leaf(bodies[3]), 3, tree.size, proof, tree.root())
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()
"""The root of a tree without leaves (RFC 6962, section 2.1)."""

Nodes = Callable[[int, int], bytes]
"""(level, index) -> hash of the complete subtree over the leaves `index * 2**level` to `(index + 1) * 2**level - 1`."""


def leaf(body: bytes) -> bytes:
    """The leaf hash of one entry's bytes."""
    return sha256(b"\x00" + body).digest()


def gap_record(stream_seq: int) -> bytes:
    """What stands in the tree for a sequence that the stream does not hold; its leaf is `leaf` of these bytes."""
    return b"tasktrail/gap/v1\n%d\n" % stream_seq


def node(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


def root(hashes: Sequence[bytes]) -> bytes:
    """The root over leaf hashes; of none of them `EMPTY_ROOT`.

    Pairing level by level and carrying an odd last one up gives the tree RFC 6962 defines by its splits.
    """
    level = list(hashes)
    while len(level) > 1:
        odd = level[-1:] if len(level) % 2 else []
        level = _paired(level) + odd
    return level[0] if level else EMPTY_ROOT


def _paired(level: Sequence[bytes]) -> list[bytes]:
    """The parents of each two; an odd last one is left out."""
    rest, parents, begun = iter(level), list[bytes](), sha256(b"\x01").copy
    for left, right in zip(rest, rest, strict=False):
        parent = begun()
        parent.update(left + right)
        parents.append(parent.digest())
    return parents


class Frontier:
    """The right edge of a growing tree: its size and root in O(log size) memory."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes | None] = []  # one place a level: the complete subtree that waits for its sibling

    def append(self, leaf_hash: bytes) -> None:
        """Add one leaf hash."""
        self.extend((leaf_hash,))

    def extend(self, leaf_hashes: Iterable[bytes]) -> None:
        """Add leaf hashes in order; many at once cost one hash each."""
        level = list(leaf_hashes)
        self.size += len(level)
        height = 0
        while level:
            if height == len(self._peaks):
                self._peaks.append(None)
            waiting = self._peaks[height]
            if waiting is not None:
                level.insert(0, waiting)
            self._peaks[height] = level[-1] if len(level) % 2 else None
            level = _paired(level)
            height += 1

    def root(self) -> bytes:
        """The root of the tree as it stands."""
        return _folded([peak for peak in self._peaks if peak is not None])


def _folded(peaks: Sequence[bytes]) -> bytes:
    """The root over complete subtrees, the smallest (the rightmost) first."""
    if not peaks:
        return EMPTY_ROOT
    found = peaks[0]
    for left in peaks[1:]:
        found = node(left, found)
    return found


def root_at(size: int, nodes: Nodes) -> bytes:
    """The root of the first `size` leaves."""
    return _range(0, size, nodes)


def _range(first: int, end: int, nodes: Nodes) -> bytes:
    """The hash over the leaves `first` to `end - 1`; `first` is where RFC 6962 splits, so subtrees are aligned."""
    peaks: list[bytes] = []
    while first < end:
        level = _trailing_zeros(end - first)
        end -= 1 << level
        peaks.append(nodes(level, end >> level))
    return _folded(peaks)


def _split(size: int) -> int:
    """The largest power of two smaller than `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_proof(index: int, size: int, nodes: Nodes) -> list[bytes]:
    """The audit path of the leaf at `index` (from 0) in the tree of `size` leaves, leaf's side first.

    Raises:
        ValueError: there is no such leaf in a tree of that size.
    """
    if not 0 <= index < size:
        message = f"A tree of {size} leaves has no leaf {index}."
        raise ValueError(message)
    path: list[bytes] = []
    first, end = 0, size
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            path.append(_range(middle, end, nodes))
            end = middle
        else:
            path.append(_range(first, middle, nodes))
            first = middle
    return path[::-1]


def consistency_proof(old: int, new: int, nodes: Nodes) -> list[bytes]:
    """The proof that the tree of `new` leaves begins with the tree of `old` leaves; empty when `old` is 0 or `new`.

    Raises:
        ValueError: `old` is not between 0 and `new`.
    """
    if not 0 <= old <= new:
        message = f"A tree of {new} leaves cannot begin with one of {old}."
        raise ValueError(message)
    if old in {0, new}:
        return []
    path: list[bytes] = []
    first, end = 0, new
    while end != old:
        middle = first + _split(end - first)
        if old <= middle:
            path.append(_range(middle, end, nodes))
            end = middle
        else:
            path.append(_range(first, middle, nodes))
            first = middle
    if first:  # the old tree is not itself a node of the new one's left edge, so the proof must give this part of it
        path.append(_range(first, end, nodes))
    return path[::-1]


def verify_inclusion(leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the leaf is at `index` in the tree of `size` leaves with this root (RFC 9162, section 2.1.3.2)."""
    if not 0 <= index < size or not _sound(leaf_hash, root, *proof):
        return False
    sides = _sides(index, size - 1, len(proof))
    if sides is None:
        return False
    found = leaf_hash
    for hash_, left in zip(proof, sides, strict=True):
        found = node(hash_, found) if left else node(found, hash_)
    return found == root


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the tree of `new` leaves begins with the tree of `old` leaves (RFC 9162, section 2.1.4.2).

    Every tree begins with the empty one, whose root is known; a tree begins with itself. Both need no proof, and a
    proof that is given all the same is refused.
    """
    if not 0 <= old <= new or not _sound(old_root, new_root, *proof):
        return False
    if old in {0, new}:
        return not proof and (old > 0 or old_root == EMPTY_ROOT) and (old < new or old_root == new_root)
    complete = old & (old - 1) == 0  # then the old root itself begins the path
    path = [old_root, *proof] if complete else list(proof)
    height = _trailing_ones(old - 1)
    sides = _sides((old - 1) >> height, (new - 1) >> height, len(path) - 1) if path else None
    if sides is None:
        return False
    found_old = found_new = path[0]
    for hash_, left in zip(path[1:], sides, strict=True):
        if left:
            found_old = node(hash_, found_old)
            found_new = node(hash_, found_new)
        else:
            found_new = node(found_new, hash_)
    return found_old == old_root and found_new == new_root


def _sides(at: int, last: int, steps: int) -> list[bool] | None:
    """On which side the sibling is at each step from node `at`, on a level whose last is `last`, up to the root.

    True: to the left. None when the way to the root is not of so many steps.
    """
    sides: list[bool] = []
    while last and len(sides) < steps:
        left = at & 1 == 1 or at == last
        sides.append(left)
        if left and not at & 1:  # the last node of a level may have no sibling for some levels
            height = _trailing_zeros(at)
            at >>= height
            last >>= height
        at >>= 1
        last >>= 1
    return sides if last == 0 and len(sides) == steps else None


def _trailing_ones(number: int) -> int:
    return _trailing_zeros(~number)


def _trailing_zeros(number: int) -> int:
    """How often two divides a number other than 0."""
    return (number & -number).bit_length() - 1


def _sound(*hashes: bytes) -> bool:
    return all(len(hash_) == HASH_BYTES for hash_ in hashes)
