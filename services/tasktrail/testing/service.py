"""A real `tasktrail up` in a process of its own: for tests that kill it, feed it from outside or read what it leaves.

Guarantees: what the process prints is kept beside the data directory, never in it; when the `with` block ends the
process and its nats-server are gone. Needs POSIX and the main thread; nothing of pytest.

    with UpProcess(tmp_path / "data") as up:
        nc = await up.adapter().connect("test")
        up.kill()
        up.start()
"""

import contextlib
import http.client
import os
import signal
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import msgspec

from tasktrail.events.subjects import tenant_token
from tasktrail.services.connection import Connection
from tasktrail.services.responder import Running, read_token
from tasktrail.services.service import ADAPTER_FILE, SERVERS_DIRECTORY

T = TypeVar("T")

READY_WITHIN_S = 60.0
GONE_WITHIN_S = 30.0
_ANSWER_S = 30.0
_POLL_S = 0.01
_SETTLED_S = 2.5
_SERVICE_FILE = "service.json"


def wait_for(what: str, look: Callable[[], T], within_s: float = GONE_WITHIN_S) -> T:
    """What `look` gives once it is true. Raises TimeoutError with what it gave last."""
    deadline = time.monotonic() + within_s
    while not (seen := look()):
        if time.monotonic() > deadline:
            message = f"{what}: not within {within_s:g} s; seen last: {seen!r}"
            raise TimeoutError(message)
        threading.Event().wait(_POLL_S)
    return seen


def is_gone(pid: int) -> bool:
    """Whether no process has this id, or only one that waits to be reaped."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
    except ProcessLookupError:
        return True
    except FileNotFoundError:
        return False
    return state.split()[0] == "Z"


def tasktrail() -> Path:
    """The command as it is installed."""
    return Path(sysconfig.get_path("scripts")) / "tasktrail"


class UpProcess:
    """`tasktrail up` on `data`, on free ports, with further `options`. `environment` is added to ours."""

    def __init__(self, data: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.log = data.with_name(f"{data.name}.log")
        self._options = options
        self._environment = {**os.environ, **(environment or {})}
        self._child: subprocess.Popen[bytes] | None = None
        self._brokers: set[int] = set()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def spawn(self) -> "subprocess.Popen[bytes]":
        """Start the process and wait for nothing: for a start that is to be refused."""
        with self.log.open("ab") as sink:
            self._child = subprocess.Popen(  # noqa: S603 - this environment's own command
                [tasktrail(), "up", "--data", self.data, "--port", "0", *self._options],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        return self._child

    def start(self, within_s: float = READY_WITHIN_S) -> Self:
        """Start it and wait until it takes requests; its projections may still be behind.

        Raises:
            TimeoutError, RuntimeError: it does not come up; with what it printed.
        """
        child = self.spawn()

        def published() -> bool:
            if child.poll() is not None:
                message = f"it ended with exit code {child.returncode}:\n{self.output()}"
                raise RuntimeError(message)
            return self._running(child.pid) is not None

        wait_for(f"the service on {self.data}", published, within_s)
        self.broker_pid()
        return self

    def _running(self, pid: int) -> Running | None:
        try:
            found = msgspec.json.decode((self.data / _SERVICE_FILE).read_bytes(), type=Running)
        except FileNotFoundError:
            return None
        return found if found.pid == pid else None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._started().pid

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._child is None:
            message = "it was not started"
            raise RuntimeError(message)
        return self._child

    def broker_pid(self) -> int:
        """Process id of its nats-server as the store's lock names it; 0 when there is none."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            _, server = (self.data / "nats" / "nats.lock").read_text(encoding="ascii").split()
            self._brokers.add(int(server))
            return int(server)
        return 0

    def output(self) -> str:
        """What it and its predecessors printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def kill(self) -> None:
        """End it as `kill -9` does, and wait until its nats-server is gone too."""
        if self._child is not None:
            self.broker_pid()
            self._child.kill()
            self._child.wait()
            self._see_brokers_gone()

    def stop(self, number: int = signal.SIGTERM, within_s: float = GONE_WITHIN_S) -> int:
        """Ask it to stop and wait until it and its nats-server are gone. Returns its exit code."""
        child = self._started()
        self.broker_pid()
        child.send_signal(number)
        code = child.wait(within_s)
        self._see_brokers_gone()
        return code

    def _see_brokers_gone(self) -> None:
        for pid in self._brokers - {0}:
            wait_for(f"the end of nats-server {pid}", partial(is_gone, pid))
        self._brokers.clear()

    def kill_broker(self) -> int:
        """End its nats-server as `kill -9` does. Returns the process id it had."""
        pid = self.broker_pid()
        os.kill(pid, signal.SIGKILL)
        return pid

    def adapter(self, server: str = "") -> Connection:
        """How an MCP server's adapter connects: by the login of its own, if the configuration names this server."""
        own = self.data / SERVERS_DIRECTORY / f"{tenant_token(server)}.json"
        return Connection.from_text(str(own if server and own.exists() else self.data / ADAPTER_FILE))

    def admin(self) -> Connection:
        """How the service itself connects: may do everything."""
        passwords = msgspec.json.decode((self.data / "nats" / "credentials.json").read_bytes(), type=dict[str, str])
        return Connection(
            servers=self.adapter().servers,
            user="tasktrail",
            password=passwords["tasktrail"],
            inbox_prefix="_INBOX_tasktrail",
        )

    def get(self, path: str, *, token: str | bool = True) -> tuple[int, bytes]:
        """One GET of the responders' surface: status and body. `token`: True for the responder's, False for none."""
        return self._ask("GET", path, b"", token=token)

    def post(self, path: str, body: bytes, *, token: str | bool = True) -> tuple[int, bytes]:
        """One POST of JSON to the responders' surface: status and body. `token` as in `get`."""
        return self._ask("POST", path, body, token=token)

    def order(self, path: str, *, token: str | bool = True, **said: object) -> dict[str, Any]:
        """What an operator's order at `/api/v1/<path>` came to. `token` as in `get`.

        Raises:
            RuntimeError: it was refused.
        """
        status, answer = self.post(f"/api/v1/{path}", msgspec.json.encode(said), token=token)
        if status != HTTPStatus.OK:
            message = f"{path} was answered {status}: {answer.decode()}"
            raise RuntimeError(message)
        done: dict[str, Any] = msgspec.json.decode(answer)
        return done

    def _ask(self, method: str, path: str, body: bytes, *, token: str | bool) -> tuple[int, bytes]:
        running = self._running(self.pid)
        if running is None:
            message = f"no service is published in {self.data}"
            raise RuntimeError(message)
        connection = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=_ANSWER_S)
        headers = {"Content-Type": "application/json"} if body else {}
        shown = read_token(self.data) if token is True else token
        headers |= {"Authorization": f"Bearer {shown}"} if shown else {}
        try:
            connection.request(method, path, body=body or None, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def wait_until_level(self, within_s: float = READY_WITHIN_S) -> None:
        """Wait until both projections hold everything that is on the trail, while nothing is fed.

        Level for `_SETTLED_S`: what is folded is written within half a second, the trail's end looked at every second.
        """
        since = time.monotonic()

        def settled() -> bool:
            nonlocal since
            parts = msgspec.json.decode(self.get("/readyz", token=False)[1])["parts"]
            if any(part.get("behind", 0) for part in parts.values()):
                since = time.monotonic()
            return time.monotonic() - since > _SETTLED_S

        wait_for("projections that are level with the trail", settled, within_s)

    def wait_until_ready(self, within_s: float = READY_WITHIN_S) -> None:
        """Wait until `/readyz` says so."""
        seen: list[bytes] = []

        def ready() -> bool:
            status, body = self.get("/readyz", token=False)
            seen[:] = [body]
            return status == http.client.OK

        try:
            wait_for("readiness", ready, within_s)
        except TimeoutError as error:
            message = f"{error}: {seen!r}"
            raise TimeoutError(message) from None
