"""The demo's own tasktrail: a real `tasktrail up` as a child process, and the real command line beside it.

Guarantees: the child sees none of our TASKTRAIL_ settings but those given here; it is stopped, or killed, when the block
ends; what it printed is shown when it fails. Needs the extra `service`.

    async with OwnService(data, tenants={issuer.url: "acme"}) as service:
        timeline = await service.timeline(task_id)
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import msgspec

from tasktrail.events.errors import TasktrailError
from tasktrail.projections.audit.timeline import Timeline
from tasktrail.services import responder
from tasktrail.services.broker import end_child

READY_S = 30.0
STOP_S = 10.0
COMMAND_S = 20.0
_POLL_S = 0.05
_COMMAND = (sys.executable, "-m", "tasktrail.services.cli")
_PREFIX = "TASKTRAIL_"


class DemoFailed(Exception):
    """A part of the demo did not do what it must before anything can be shown."""


class OwnService:
    """One `tasktrail up` on `data`. `url` is where responders ask, `target` what MCP servers connect to."""

    url = ""

    def __init__(self, data: Path, tenants: dict[str, str]) -> None:
        self.data = data
        self.target = str(data / "adapter.json")
        self._tenants = tenants
        self._child: subprocess.Popen[bytes]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the block

    async def __aenter__(self) -> Self:
        self._child = subprocess.Popen(
            [*_COMMAND, "up", "--data", str(self.data), "--port", "0"],
            env=_environment() | {f"{_PREFIX}TENANTS": json.dumps(self._tenants)},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            await self._ready()
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        end_child(self._child, STOP_S)
        self._output.close()

    async def _ready(self) -> None:
        """Wait until it answers that it is ready.

        Raises:
            DemoFailed: it ended, or took longer than `READY_S`; with the end of what it printed.
        """
        deadline = time.monotonic() + READY_S
        async with httpx.AsyncClient(timeout=1.0, trust_env=False) as client:
            while self._child.poll() is None and time.monotonic() < deadline:
                self.url = self._published()
                if self.url and await _is_ready(client, self.url):
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

    async def timeline(self, task_id: str) -> Timeline:
        """What `tasktrail timeline - --json` prints for this task.

        Raises:
            DemoFailed: it fails; with what it said.
        """
        asked = await asyncio.to_thread(self._command, ("timeline", "-", "--json"), task_id, show=False)
        try:
            return msgspec.json.decode(asked.stdout, type=Timeline)
        except msgspec.DecodeError as error:
            message = f"tasktrail timeline --json: exit code {asked.returncode}: {error}: {asked.stderr.decode()[-500:]}"
            raise DemoFailed(message) from None

    def show_timeline(self, task_id: str, columns: int) -> bool:
        """Let `tasktrail timeline -` print this task on our own standard output; whether it could."""
        return self._command(("timeline", "-"), task_id, show=True, columns=columns).returncode == 0

    def _command(
        self, arguments: tuple[str, ...], said: str, *, show: bool, columns: int = 0
    ) -> "subprocess.CompletedProcess[bytes]":
        """The command line on our data directory; `said` is its standard input, so that no id is an argument."""
        pipe = None if show else subprocess.PIPE
        return subprocess.run(
            [*_COMMAND, *arguments, "--data", str(self.data)],
            input=said.encode(),
            stdout=pipe,
            stderr=pipe,
            env=_environment() | ({"COLUMNS": str(columns)} if columns else {}),
            check=False,
            timeout=COMMAND_S,
        )


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}


async def _is_ready(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(f"{url}/readyz")).is_success
    except httpx.HTTPError:
        return False
