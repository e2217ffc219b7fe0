"""Files that are whole and on disk as soon as they are there, for their owner only (mode 0600).

Guarantees: when these return, what they wrote survives a crash of the machine; a crash before leaves the file as it
was, and at most a file beside it whose name begins with a dot. Needs a file system with hard links and POSIX renames.

    write_once(folder / "witness.key", secret)     # False: it was there already, and stays as it is
    replace(folder / "newest", note)
"""

import contextlib
import os
import tempfile
from pathlib import Path


def write_once(path: Path, content: bytes) -> bool:
    """Make the file with this content; an existing one is left as it is. Whether it was made."""
    fresh = _fresh(path, content)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
            return True
        return False
    finally:
        fresh.unlink()
        sync(path.parent)


def replace(path: Path, content: bytes) -> None:
    """The file with this content, in place of what was there."""
    fresh = _fresh(path, content)
    try:
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """See that a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fresh(path: Path, content: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    fresh = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        fresh.unlink()
        raise
    return fresh
