"""The tree's hashes in files, as C2SP tlog-tiles has them: 256 hashes a tile, `tile/<level>/<index>[.p/<width>]`.

Guarantees: a file appears whole or not at all, and what it holds under one name never changes. Nothing is promised to
outlast a crash before `sync` returned; a file that a checkpoint does not need may then be anything.
Entry bundles are not written: an entry may be longer than their 65,535 bytes, and its bytes are in the trail.

    tiles = Tiles(folder)
    tiles.write(0, 1234067, 256, hashes)        # tile/0/x001/x234/067
    tiles.sync()
"""

import contextlib
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Final

from tasktrail.projections.tlog.errors import LogDamaged
from tasktrail.projections.tlog.merkle import HASH_BYTES

WIDTH: Final = 256
"""Hashes in a full tile."""
HEIGHT: Final = 8
"""Levels of the tree in one level of tiles: a full tile is a complete subtree of `2**HEIGHT` nodes."""
_LEVEL_MAX: Final = 63
_UNSYNCED: Final = 1_024
_SYNCERS: Final = 16
_PATH = re.compile(r"tile/(0|[1-9]\d?)/((?:x\d{3}/){0,6}\d{3})(?:\.p/([1-9]\d{0,2}))?", re.ASCII)


def path(level: int, index: int, width: int = WIDTH) -> str:
    """The path of a tile below the log's prefix; a `width` less than `WIDTH` is a partial tile's."""
    parts = [f"{index % 1000:03}"]
    rest = index // 1000
    while rest:
        parts.insert(0, f"x{rest % 1000:03}")
        rest //= 1000
    partial = "" if width == WIDTH else f".p/{width}"
    return f"tile/{level}/{'/'.join(parts)}{partial}"


def place(text: str) -> tuple[int, int, int] | None:
    """The level, index and width that a path names; None when it is the path of no tile."""
    found = _PATH.fullmatch(text)
    if found is None:
        return None
    level = int(found[1])
    index = int(found[2].replace("/", "").replace("x", ""))
    width = int(found[3]) if found[3] else WIDTH
    one_form = level <= _LEVEL_MAX and width <= WIDTH and path(level, index, width) == text
    return (level, index, width) if one_form else None


def subtrees(hashes: bytes) -> list[bytes]:
    """The levels above concatenated hashes, up to the tile's root; an odd last hash of a level has no parent here."""
    levels = [hashes]
    while len(levels[-1]) > HASH_BYTES:
        below = levels[-1]
        pairs = range(0, len(below) - 2 * HASH_BYTES + 1, 2 * HASH_BYTES)
        levels.append(b"".join([sha256(b"\x01" + below[at : at + 2 * HASH_BYTES]).digest() for at in pairs]))
    return levels


def write_whole(file: Path, data: bytes, *, durable: bool = True) -> None:
    """Make a file with these bytes, or replace it, in one step; `durable` also makes its bytes outlast a crash.

    Its directory must exist, and is the caller's to sync.
    """
    new = file.with_name(f".{file.name}.new")
    with new.open("wb") as opened:
        opened.write(data)
        if durable:
            opened.flush()
            os.fsync(opened.fileno())
    new.replace(file)


def sync_path(file: Path) -> None:
    """Make a file's bytes, or a directory's names, outlast a crash."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Tiles:
    """The tiles of one log below its directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unsynced: list[Path] = []
        self._changed: dict[Path, None] = {}  # directories with new names, in the order they came
        self._known: set[Path] = set()

    def write(self, level: int, index: int, width: int, hashes: bytes) -> None:
        """Write one tile; it outlasts a crash once `sync` returned."""
        file = self.folder / path(level, index, width)
        self._make(file.parent)
        write_whole(file, hashes, durable=False)
        self._changed[file.parent] = None
        self._unsynced.append(file)
        if len(self._unsynced) >= _UNSYNCED:
            self._sync_files()

    def _make(self, directory: Path) -> None:
        if directory in self._known:
            return
        if directory != self.folder:
            self._make(directory.parent)
            if not directory.is_dir():
                directory.mkdir()
            self._changed[directory.parent] = None  # also when it was there: a crash may have left it unsynced
        self._known.add(directory)

    def sync(self) -> None:
        """Make everything written so far outlast a crash."""
        self._sync_files()
        for directory in self._changed:
            sync_path(directory)
        self._changed.clear()

    def _sync_files(self) -> None:
        """Sync what was written; many at once, for a file system does them together: 200 in 0.05 s instead of 0.5."""
        if len(self._unsynced) <= _SYNCERS:
            for file in self._unsynced:
                sync_path(file)
        else:
            with ThreadPoolExecutor(_SYNCERS) as pool:
                for _ in pool.map(sync_path, self._unsynced):
                    pass
        self._unsynced.clear()

    def read(self, level: int, index: int, width: int = WIDTH) -> bytes:
        """The hashes of a tile, concatenated. A partial tile may by now be the beginning of the full one.

        Raises:
            LogDamaged: there is no such file, or it has another length.
        """
        name = path(level, index, width)
        for candidate, expected in ((name, width), (path(level, index), WIDTH)):
            try:
                data = (self.folder / candidate).read_bytes()
            except FileNotFoundError:
                continue
            if len(data) != expected * HASH_BYTES:
                what = f"the tile has {len(data)} bytes and should have {expected * HASH_BYTES}"
                raise LogDamaged(candidate, what)
            return data[: width * HASH_BYTES]
        raise LogDamaged(name, "the tile is missing")

    def prune(self, level: int, index: int) -> None:
        """Remove the partial tiles of a tile that is full by now, and synced."""
        directory = (self.folder / path(level, index, 1)).parent
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory)
        self._known.discard(directory)
