"""The growing tree of one log over its tiles: hashes go in at the right edge, roots, nodes and proofs come out.

Guarantees: memory does not grow with the tree: full tiles go to their files at once, and inner nodes are computed again
from tiles, with a small cache. A hash given out by `nodes` came from tiles that fit the tree up to its edge. Nothing
outlasts a crash before `settle` returned. One thread at a time: the Log that owns it sees to it.

    tree = Tree(Tiles(folder))
    tree.grow(leaves)
    tree.settle()
    proof = merkle.inclusion_proof(3, tree.size, tree.nodes)
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from tasktrail.projections.tlog import merkle
from tasktrail.projections.tlog.errors import LogDamaged, NotInLog
from tasktrail.projections.tlog.merkle import HASH_BYTES
from tasktrail.projections.tlog.tiles import HEIGHT, WIDTH, Tiles, path, subtrees

_TILE_BYTES: Final = WIDTH * HASH_BYTES
_CACHED: Final = 512


class Tree:
    """The tree in `tiles`; `size` is its number of leaves."""

    def __init__(self, tiles: Tiles) -> None:
        self.size = 0
        self._tiles = tiles
        self._edge: list[bytearray] = []  # by level: the hashes of the one tile that is not full
        self._cache: OrderedDict[tuple[int, int, int], list[bytes]] = OrderedDict()

    # -- growing ------------------------------------------------------------------------------------------------------

    def load(self, size: int, root: bytes) -> None:
        """Take up the tree of this size from its files; only those at its edge are read.

        Raises:
            LogDamaged: they do not give the root; `path` names the file that is wrong.
        """
        self.size = size
        level = 0
        while size >> (HEIGHT * level):
            width = size >> (HEIGHT * level) & (WIDTH - 1)
            self._edge.append(bytearray(self._tiles.read(level, self._edge_index(level), width) if width else b""))
            level += 1
        if self.root() != root:
            raise self._blame(root)

    def grow(self, leaves: Sequence[bytes]) -> None:
        """Add leaf hashes, and write the tiles that are full now."""
        level, hashes = 0, b"".join(leaves)
        while hashes:
            if level == len(self._edge):
                self._edge.append(bytearray())
            edge, index = self._edge[level], self._edge_index(level)
            edge += hashes
            full = len(edge) // _TILE_BYTES * _TILE_BYTES
            roots: list[bytes] = []
            for at in range(0, full, _TILE_BYTES):
                tile = bytes(edge[at : at + _TILE_BYTES])
                self._tiles.write(level, index + at // _TILE_BYTES, WIDTH, tile)
                roots.append(subtrees(tile)[-1])
            del edge[:full]
            level, hashes = level + 1, b"".join(roots)
        self.size += len(leaves)

    def settle(self) -> None:
        """Write the tiles that are not full, and make all of them outlast a crash."""
        for level, edge in enumerate(self._edge):
            if edge:
                self._tiles.write(level, self._edge_index(level), len(edge) // HASH_BYTES, bytes(edge))
        self._tiles.sync()

    def prune(self, before: int) -> None:
        """Remove the partial tiles settled at size `before` whose full tile is settled by now."""
        for level in range(len(self._edge)):
            index = before >> (HEIGHT * (level + 1))
            if index < self._edge_index(level):
                self._tiles.prune(level, index)

    # -- reading ------------------------------------------------------------------------------------------------------

    def root(self) -> bytes:
        """The root of the whole tree."""
        right: list[bytes] = []
        for edge in self._edge:
            right = [merkle.root([*_split(edge), *right])] if edge or right else []
        return merkle.root(right)

    def nodes(self, level: int, index: int) -> bytes:
        """The hash of a complete subtree: a `merkle.Nodes`.

        Raises:
            NotInLog: it is not complete.
            LogDamaged: a tile it is read from does not fit the tree.
        """
        if level < 0 or index < 0 or (index + 1) << level > self.size:
            message = f"The log has {self.size} leaves and no node {index} at level {level}."
            raise NotInLog(message)
        tile_level, rise = divmod(level, HEIGHT)
        tile, at = divmod(index << rise, WIDTH)
        hashes = self._subtrees(tile_level, tile)[rise]
        at >>= rise
        return hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES]

    def leaves(self, first: int, last: int) -> list[bytes]:
        """The leaf hashes from index `first` to `last`, both included, as the tiles have them: not checked.

        Raises:
            NotInLog: one of them is not there.
            LogDamaged: a tile is missing or has another length.
        """
        if not 0 <= first <= last + 1 <= self.size:
            message = f"The log has {self.size} leaves, and not those from {first} to {last}."
            raise NotInLog(message)
        found: list[bytes] = []
        for index in range(first // WIDTH, last // WIDTH + 1):
            begin = index * WIDTH
            hashes = bytes(self._edge[0]) if index == self._edge_index(0) else self._tiles.read(0, index)
            found += _split(hashes)[max(first - begin, 0) : last + 1 - begin]
        return found

    def check(self, told: Callable[[int], None]) -> list[LogDamaged]:
        """Hold every full tile against the node above it, from the top; below a wrong tile nothing can be told.

        `told` is called with the number of hashes read since it was last called.
        """
        wrong: dict[tuple[int, int], LogDamaged] = {}
        for level in reversed(range(len(self._edge))):
            for index in range(self._edge_index(level)):
                if (level + 1, index // WIDTH) in wrong:
                    wrong[level, index] = wrong[level + 1, index // WIDTH]
                    continue
                try:
                    self._checked(level, index)
                except LogDamaged as error:
                    wrong[level, index] = error
                told(WIDTH)
        return list(dict.fromkeys(wrong.values()))

    # -- tiles --------------------------------------------------------------------------------------------------------

    def _edge_index(self, level: int) -> int:
        """The index of the tile of this level that is not full; those before it are."""
        return self.size >> (HEIGHT * (level + 1))

    def _subtrees(self, level: int, index: int) -> list[bytes]:
        """The levels of a tile that fits the tree, from the cache."""
        at_edge = index == self._edge_index(level)
        key = (level, index, len(self._edge[level]) if at_edge else _TILE_BYTES)
        found = self._cache.get(key)
        if found is None:
            found = subtrees(bytes(self._edge[level])) if at_edge else self._checked(level, index)
            self._cache[key] = found
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(key)
        return found

    def _checked(self, level: int, index: int) -> list[bytes]:
        """The levels of a full tile, whose root is what the tile above says, up to the edge and the checkpoint."""
        found = subtrees(self._tiles.read(level, index))
        parent, at = divmod(index, WIDTH)
        if found[-1] != _at(self._subtrees(level + 1, parent)[0], at):
            raise LogDamaged(path(level, index), f"the tile does not give its hash in {path(level + 1, parent)}")
        return found

    def _blame(self, root: bytes) -> LogDamaged:
        """Which file is wrong, when the tiles at the edge do not give the root."""
        what = "the tiles do not give the root of the last checkpoint"
        suspects: list[str] = []
        for level in reversed(range(1, len(self._edge))):
            held = self._edge[level]
            first, width = self._edge_index(level) * WIDTH, len(held) // HASH_BYTES
            try:
                below = [subtrees(self._tiles.read(level - 1, first + at))[-1] for at in range(width)]
            except LogDamaged as error:
                return error
            self._edge[level] = bytearray(b"".join(below))
            fits = self.root() == root
            self._edge[level] = held
            if fits:
                return LogDamaged(path(level, self._edge_index(level), width), what)
            suspects += [path(level - 1, first + at) for at in range(width) if below[at] != _at(held, at)]
        if suspects:
            return LogDamaged(suspects[0], what)
        if self._edge and self._edge[0]:
            return LogDamaged(path(0, self._edge_index(0), len(self._edge[0]) // HASH_BYTES), what)
        return LogDamaged("checkpoint", f"{what}, though they fit each other")


def _at(hashes: bytes | bytearray, at: int) -> bytes:
    return bytes(hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES])


def _split(hashes: bytes | bytearray) -> list[bytes]:
    return [bytes(hashes[at : at + HASH_BYTES]) for at in range(0, len(hashes), HASH_BYTES)]
