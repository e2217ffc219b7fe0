"""Files that appear whole or not at all.

Guarantees: a file that exists is never overwritten, not even when it appears meanwhile; the new one has mode 0600 and
is on disk before it has its name; when writing fails nothing is left.

    with whole_file(Path("trail.csv")) as file:
        file.write(…)
"""

import contextlib
import os
import secrets
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from tasktrail.events.errors import InvalidRequest
from tasktrail.services.durable import sync


class WillNotOverwrite(InvalidRequest):
    """The file is there already."""

    reason = "exists"


class CannotWrite(InvalidRequest):
    """The place does not take a file."""

    reason = "cannot_write"


@contextlib.contextmanager
def whole_file(path: Path) -> Generator[BinaryIO]:
    """The file that becomes `path` when the block ends well.

    Raises:
        WillNotOverwrite, CannotWrite: see there; nothing was left.
    """
    with whole_path(path) as part, _explained(path), part.open("wb") as file:
        yield file


@contextlib.contextmanager
def whole_path(path: Path) -> Generator[Path]:
    """The path of an empty file, mode 0600, in the same directory, that becomes `path` when the block ends well.

    Whoever fills it may replace it by a file of the same name. Raises as `whole_file`.
    """
    if os.path.lexists(path):
        raise _exists(path)
    part = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.part")
    with _explained(path):
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        yield part
        with _explained(path):
            part.chmod(0o600)
            sync(part)
            _name(part, path)
            sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _name(part: Path, path: Path) -> None:
    """Give a file its name, unless another one has it: a link is refused then, a rename would replace that one."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError:  # a file system without links
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise _exists(path) from None
        part.replace(path)


def _exists(path: Path) -> WillNotOverwrite:
    return WillNotOverwrite(f"{path} is there already and is not overwritten; name another file")


@contextlib.contextmanager
def _explained(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}"
        raise CannotWrite(message) from error
