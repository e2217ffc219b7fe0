"""The tokens of the data directory, and where the running service is: files that only its owner can read.

Guarantees: a token has 256 random bits, is made once and never printed or logged; it appears whole or not at all; a
token or a data directory that others could read, a link in its place, and another user's file are refused with the
command that mends it. `service.json` is replaced in one step. Needs POSIX file modes.

    prepare(data)                                   # at start: the directory, mode 0700
    token = open_token(data)                        # `up`: makes it at the first start
    publish(data, Running(url="http://127.0.0.1:8420", pid=os.getpid(), started_at=…))
    token, running = read_token(data), find(data)   # the command line
"""

import base64
import contextlib
import os
import re
import stat
from pathlib import Path
from typing import Annotated

import msgspec

from tasktrail.events.errors import TasktrailError

TOKEN_FILE = "responder.token"  # noqa: S105 - the name of a file, not a secret
SERVICE_FILE = "service.json"
SERVER_TOKEN_FILE = "server.token"  # noqa: S105 - the name of a file, not a secret
"""For MCP servers that feed the service over HTTP, while the configuration names none."""
TOKEN_PREFIX = "ttr_"  # noqa: S105 - what secret scanners look for
SERVER_TOKEN_PREFIX = "tts_"  # noqa: S105 - what secret scanners look for
TOKEN_BYTES = 32

_PREFIXES = {TOKEN_FILE: TOKEN_PREFIX, SERVER_TOKEN_FILE: SERVER_TOKEN_PREFIX}

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_OTHERS = 0o077
_FILE_BYTES_MAX = 4_096


class ResponderError(TasktrailError):
    """A token or the data directory is missing or unsafe; the message says which and what to do."""

    reason = "responder"


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A running service: its base URL, process id, and start as RFC 3339 in UTC."""

    url: str
    pid: Annotated[int, msgspec.Meta(ge=1)]
    started_at: str

    @property
    def alive(self) -> bool:
        """Whether its process still exists on this machine; a service that was killed leaves its file behind."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except (PermissionError, OverflowError):
            return True
        return True


def prepare(data: Path) -> None:
    """Make the data directory, mode 0700, or check it. An empty one that others can read is closed to them.

    Raises:
        ResponderError: it cannot be made, is no directory, or others can read what is in it.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = data.stat()
        if status.st_mode & _OTHERS and not any(data.iterdir()):
            data.chmod(0o700)
            return
    except OSError as error:
        message = f"{data} cannot be the data directory: {error.strerror}; choose another one with --data"
        raise ResponderError(message) from None
    if status.st_mode & _OTHERS:
        message = f"{data} is open to others (mode {stat.S_IMODE(status.st_mode):o}); run: chmod 700 {data}"
        raise ResponderError(message)


def open_token(data: Path, file: str = TOKEN_FILE) -> str:
    """The token of this data directory, made now if there is none: the responder's, or SERVER_TOKEN_FILE.

    Raises:
        ResponderError: it exists and is not acceptable, or cannot be written.
    """
    if not (data / file).exists():
        token = _PREFIXES[file] + base64.urlsafe_b64encode(os.urandom(TOKEN_BYTES)).decode().rstrip("=")
        _write(data, file, token.encode() + b"\n", replace=False)
    return read_token(data, file)


def read_token(data: Path, file: str = TOKEN_FILE) -> str:
    """The token of this data directory.

    Raises:
        ResponderError: there is none, or it is malformed, readable by others, a link or another user's.
    """
    token = _read(data / file).decode("ascii", "replace").strip()
    prefix, rest = token[: len(_PREFIXES[file])], token[len(_PREFIXES[file]) :]
    if prefix != _PREFIXES[file] or not _TOKEN.fullmatch(rest):
        what = file.replace(".", " ")
        message = f"{data / file} holds no {what}; remove it and restart the service to make a new one"
        raise ResponderError(message)
    return token


def publish(data: Path, running: Running) -> None:
    """Say where the service runs, for the command line."""
    _write(data, SERVICE_FILE, msgspec.json.encode(running) + b"\n", replace=True)


def withdraw(data: Path) -> None:
    """Say that no service runs any more. Only for the one that published."""
    (data / SERVICE_FILE).unlink(missing_ok=True)


def find(data: Path) -> Running | None:
    """The service that runs on this data directory, or None: none was started, or it was stopped or killed.

    Raises:
        ResponderError: the file is malformed, readable by others, a link or another user's.
    """
    path = data / SERVICE_FILE
    if not path.exists():
        return None
    try:
        running = msgspec.json.decode(_read(path), type=Running)
    except msgspec.DecodeError as error:
        message = f"{path} is malformed ({error}); restart the service"
        raise ResponderError(message) from None
    return running if running.alive else None


def _read(path: Path) -> bytes:
    """The bytes of a file that is ours alone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        message = f"no {path.name} in {path.parent}; start the service with: tasktrail up --data {path.parent}"
        raise ResponderError(message) from None
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}; run as the user who started the service"
        raise ResponderError(message) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or os.geteuid() not in {status.st_uid, 0}:
            message = f"{path} belongs to another user; run as the user who started the service"
            raise ResponderError(message)
        if status.st_mode & _OTHERS:
            message = f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):o}); run: chmod 600 {path}"
            raise ResponderError(message)
        return file.read(_FILE_BYTES_MAX)


def _write(data: Path, name: str, content: bytes, *, replace: bool) -> None:
    """Make a file appear whole, mode 0600. Without `replace` an existing one stays."""
    whole = data / f".{name}.{os.getpid()}-{os.urandom(4).hex()}"
    try:
        descriptor = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            whole.replace(data / name)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(whole, data / name)
    except OSError as error:
        message = f"cannot write {data / name}: {error.strerror}; check the directory's owner and free space"
        raise ResponderError(message) from None
    finally:
        whole.unlink(missing_ok=True)
