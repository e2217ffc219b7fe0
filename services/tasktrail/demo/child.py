"""The demo's own tasktrail: a real `tasktrail up` as a child process.

Guarantees: the child sees none of our TASKTRAIL_ settings but those given here; it is stopped, or killed, when the
block ends; what it printed is shown when it fails. Light to import, so that the child can start before the rest is.

    with OwnService(data, tenants={issuer.url: "acme"}) as service:
        await service.ready()
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tasktrail.events.errors import TasktrailError
from tasktrail.services import responder
from tasktrail.services.broker import end_child

READY_S = 60.0
STOP_S = 10.0
COMMAND = (sys.executable, "-m", "tasktrail.services.cli")
_POLL_S = 0.05
_ANSWER_S = 2.0
_PREFIX = "TASKTRAIL_"


class DemoFailed(Exception):
    """A part of the demo did not do what it must before anything can be shown."""


def environment() -> dict[str, str]:
    """Ours without any setting of tasktrail's."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}


class OwnService:
    """One `tasktrail up` on `data`. `url` is where responders ask, `target` what MCP servers connect to."""

    url = ""

    def __init__(self, data: Path, tenants: dict[str, str]) -> None:
        self.data = data
        self.target = str(data / "adapter.json")
        self._tenants = tenants
        self._child: subprocess.Popen[bytes]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the block

    def __enter__(self) -> Self:
        self._child = subprocess.Popen(  # noqa: S603 - our own program
            [*COMMAND, "up", "--data", str(self.data), "--port", "0"],
            env=environment() | {f"{_PREFIX}TENANTS": json.dumps(self._tenants)},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        end_child(self._child, STOP_S)
        self._output.close()

    async def ready(self) -> None:
        """Wait until it answers that it is ready.

        Raises:
            DemoFailed: it ended, or took longer than `READY_S`; with the end of what it printed.
        """
        deadline = time.monotonic() + READY_S
        while self._child.poll() is None and time.monotonic() < deadline:
            self.url = self._published()
            answered = await asyncio.to_thread(_is_ready, self.url) if self.url else False
            if answered:
                return
            await asyncio.sleep(_POLL_S)
        code = self._child.poll()
        how = f"ended with exit code {code}" if code is not None else f"was not ready within {READY_S:g} s"
        message = f"tasktrail up {how}; it said:\n{self.said()}"
        raise DemoFailed(message)

    def _published(self) -> str:
        try:
            running = responder.find(self.data)
        except TasktrailError:
            return ""
        return running.url if running is not None and running.pid == self._child.pid else ""

    def said(self) -> str:
        """The last lines it printed."""
        self._output.seek(0)
        return "\n".join(self._output.read().decode(errors="replace").splitlines()[-15:])

    async def stop(self) -> int:
        """Stop it as Ctrl-C does, and return its exit code (-9 when it had to be killed)."""
        self._child.send_signal(signal.SIGINT)
        try:
            return await asyncio.to_thread(self._child.wait, STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()


def _is_ready(url: str) -> bool:
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=_ANSWER_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
