"""`tasktrail proxy` before a server that knows nothing of tasks, for the official conformance suite.

    uv run python tests/conformance/proxied_server.py PORT        # as server.py beside it

Guarantees and needs: those of `server.py`, and fastmcp. `tasktrail up`, `plain_server.py` and the proxy are processes
of their own, which end with this one.
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

from tasktrail.testing.service import UpProcess, tasktrail

_TASKS = (
    "slow_compute",
    "failing_job=required",
    "protocol_error_job",
    "confirm_delete",
    "multi_input",
    "test_tool_with_task=required,asks-first",
)


@contextlib.contextmanager
def _running(*command: str | Path, cwd: Path) -> Generator[str]:
    """A process while the block runs; gives the address on its first line."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd) as child:
        try:
            assert child.stdout is not None
            yield child.stdout.readline().split()[-1]
        finally:
            child.terminate()


def main(port: int) -> None:
    """Serve until interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plain = Path(__file__).with_name("plain_server.py")
    with (
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="tasktrail-conformance-") as directory,
        UpProcess(Path(directory, "data")) as up,
        _running(sys.executable, plain, "0", cwd=Path(directory)) as upstream,
    ):
        tasks = [part for one in _TASKS for part in ("--task", one)]
        options = ["--upstream", upstream, "--connect", str(up.data / "adapter.json"), "--port", str(port)]
        with _running(tasktrail(), "proxy", *options, *tasks, cwd=Path(directory)) as url:
            print(f"ready {url}", flush=True)  # noqa: T201 - the line whoever started us waits for
            signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]))
