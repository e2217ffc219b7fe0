"""Tiles in files: paths and sizes as in C2SP tlog-tiles."""

from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.projections.tlog.grown import grown

from tasktrail.projections.tlog import merkle
from tasktrail.projections.tlog.errors import LogDamaged
from tasktrail.projections.tlog.tiles import Tiles, path, place, subtrees

pytestmark = pytest.mark.requirement("T2")

FULL = b"".join(sha256(b"%d" % number).digest() for number in range(256))


@pytest.mark.parametrize(
    ("level", "index", "width", "expected"),
    [
        (0, 1234067, 256, "tile/0/x001/x234/067"),  # the specification's example
        (0, 0, 256, "tile/0/000"),
        (1, 999, 256, "tile/1/999"),
        (0, 1000, 256, "tile/0/x001/000"),
        (3, 5, 17, "tile/3/005.p/17"),
        (0, 273, 112, "tile/0/273.p/112"),
        (63, 10**9, 1, "tile/63/x001/x000/x000/000.p/1"),
    ],
)
def test_paths_are_those_of_the_specification(level: int, index: int, width: int, expected: str) -> None:
    assert path(level, index, width) == expected
    assert place(expected) == (level, index, width)


@given(st.integers(0, 63), st.integers(0, 2**55), st.integers(1, 256))
def test_a_path_says_which_tile_it_is(level: int, index: int, width: int) -> None:
    assert place(path(level, index, width)) == (level, index, width)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tile/0",
        "tile/00/000",
        "tile/64/000",
        "tile/0/00",
        "tile/0/0000",
        "tile/0/000/",
        "tile/0/000\n",
        "/tile/0/000",
        "tile/0/x000/000",
        "tile/0/001/x002",
        "tile/0/x001",
        "tile/0/000.p/0",
        "tile/0/000.p/01",
        "tile/0/000.p/256",
        "tile/0/000.p/300",
        "tile/0/000.p/",
        "tile/0/" + "x001/" * 2_000 + "001",
        "tile/0/../000",
        "tile/0/x001/../000",
        "tile/entries/000",
        "tile/-1/000",
        "tile/0/\u0660\u0660\u0660",
        "tile/0/%30%30%30",
    ],
)
def test_no_other_path_names_a_tile(text: str) -> None:
    """Each tile has one path, and nothing a caller sends leads out of the directory."""
    assert place(text) is None


def test_a_tree_of_70000_leaves_has_the_tiles_the_specification_counts(tmp_path: Path) -> None:
    """C2SP tlog-tiles, "Partial Tiles": 273 full tiles and one of 112, then one and one of 17, then one of 1."""
    grown(tmp_path, 70_000)
    found = {place(str(file.relative_to(tmp_path))) for file in (tmp_path / "tile").rglob("*") if file.is_file()}
    assert found == {
        *((0, index, 256) for index in range(273)),
        (0, 273, 112),
        (1, 0, 256),
        (1, 1, 17),
        (2, 0, 1),
    }


def test_the_hashes_within_a_tile_are_those_of_the_tree() -> None:
    hashes = [FULL[at : at + 32] for at in range(0, len(FULL), 32)]
    assert subtrees(FULL)[-1] == merkle.root(hashes)
    assert subtrees(FULL)[3][32:64] == merkle.root(hashes[8:16])
    assert [len(level) // 32 for level in subtrees(FULL[: 6 * 32])] == [6, 3, 1]
    assert subtrees(FULL[: 6 * 32])[2] == merkle.root(hashes[:4])


def test_a_partial_tile_that_was_removed_is_the_beginning_of_the_full_one(tmp_path: Path) -> None:
    tiles = Tiles(tmp_path)
    tiles.write(0, 7, 5, FULL[: 5 * 32])
    tiles.write(0, 7, 256, FULL)
    tiles.sync()
    assert tiles.read(0, 7, 5) == FULL[: 5 * 32]
    tiles.prune(0, 7)
    tiles.prune(0, 7)
    assert not (tmp_path / "tile/0/007.p").exists()
    assert tiles.read(0, 7, 5) == FULL[: 5 * 32]
    assert tiles.read(0, 7) == FULL
    tiles.write(0, 7, 6, FULL[: 6 * 32])
    assert tiles.read(0, 7, 6) == FULL[: 6 * 32]


def test_a_missing_or_cut_tile_is_named(tmp_path: Path) -> None:
    tiles = Tiles(tmp_path)
    with pytest.raises(LogDamaged, match="tile/0/007: the tile is missing") as raised:
        tiles.read(0, 7)
    assert raised.value.path == "tile/0/007"
    tiles.write(0, 7, 256, FULL[:-1])
    with pytest.raises(LogDamaged, match="8191 bytes and should have 8192"):
        tiles.read(0, 7)
