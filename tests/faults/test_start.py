"""What `tasktrail up` cannot start on, and what it says then. Issue "main job": `--nats`, `init`, too old a server.

Design section 8: streams are never created or changed on start; the API level is checked. Exit codes: cli.py.
"""

import json
import os
import re
import shlex
import socketserver
import subprocess
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.js import JetStreamContext, api

from tasktrail.events.facts import KeyActivated
from tasktrail.events.subjects import KEYS, TRAIL
from tasktrail.services.broker import bundled_binary
from tasktrail.services.connection import Connection
from tasktrail.services.keyring import Keyring
from tasktrail.services.trail import desired
from tasktrail.testing.feeding import Feeder, caller, creation
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.rebuild import Book
from tasktrail.testing.service import UpProcess

WITHIN_S = 60.0
UNAVAILABLE = 3


def command(*words: object) -> "subprocess.CompletedProcess[str]":
    """Run the installed command."""
    words = (Path(sysconfig.get_path("scripts")) / "tasktrail", *words)
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=WITHIN_S, check=False)


def refusal(data: Path, *options: str) -> str:
    """What `up` prints when it refuses to start: one sentence, no traceback."""
    up = UpProcess(data, *options)
    try:
        code = up.spawn().wait(WITHIN_S)
    finally:
        up.kill()
    said = up.output()
    assert (code, "Traceback" in said) == (UNAVAILABLE, False), said
    return said


async def streams(server: NatsServer) -> dict[str, api.StreamConfig]:
    nc = await Connection.from_text(server.url).connect("test")
    try:
        return {info.config.name or "": info.config for info in await JetStreamContext(nc).streams_info()}
    finally:
        await nc.close()


@pytest.mark.requirement("O1")
async def test_an_external_server_is_used_only_after_init_and_the_refusal_says_the_command(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Issue "main job": streams are created by an explicit `tasktrail init` only; `up` refuses with the command."""
    data = tmp_path / "data"
    said = refusal(data, "--nats", fresh_nats.url)
    assert f"stream {TRAIL} is missing" in said
    assert not await streams(fresh_nats)
    words = shlex.split(re.findall(r"run: tasktrail (.*)", said)[0].replace("***", fresh_nats.broker.password))
    assert words[0] == "init"
    done = command(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(await streams(fresh_nats)) == set(desired())
    with UpProcess(data, "--nats", fresh_nats.url) as up:
        feeder = await Feeder.connect(Connection.from_text(fresh_nats.url), "reports")
        view = await feeder.settled("create", creation(caller("ana"), "c-1"))
        await feeder.close()
        assert view["status"] == "working"
        assert up.stop() == 0
        assert fresh_nats.broker.password not in up.output()
    again = command(*words)
    assert again.returncode == 0, again.stderr


@pytest.mark.requirement("O1")
async def test_a_second_up_with_an_external_server_is_refused_and_leaves_no_gap(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Issue "main job": a second `up` on the same data is refused clearly; nothing of it is on the trail."""
    data, nats_url = tmp_path / "data", fresh_nats.url
    assert command("init", "--nats", nats_url, "--data", data).returncode == 0
    with UpProcess(data, "--nats", nats_url) as up:
        second = UpProcess(data, "--nats", nats_url)
        second.log = tmp_path / "second.log"
        assert second.spawn().wait(WITHIN_S) == UNAVAILABLE
        assert str(up.pid) in second.output(), second.output()
        up.wait_until_ready()
        assert up.stop() == 0
    with UpProcess(data, "--nats", nats_url) as up:
        nc = await Connection.from_text(nats_url).connect("reader")
        book = Book()
        await book.read(nc)
        await nc.close()
        assert up.stop() == 0
    events = [type(event).__name__ for _, entry in book.entries.values() for event in entry.events]
    assert (book.faults, events) == ([], ["KeyActivated", "KeyActivated"])


@pytest.mark.requirement("T2")
async def test_a_key_rotated_before_the_first_start_is_announced_with_the_one_that_signs_for_it(
    fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """Verifiers believe the first announced key, and others by its word: the one that signs has to be the first."""
    data, nats_url = tmp_path / "data", fresh_nats.url
    assert command("init", "--nats", nats_url, "--data", data).returncode == 0
    rotated = data / "keys" / "signing-2.key"
    rotated.touch(mode=0o600)
    rotated.write_text(os.urandom(32).hex() + "\n")
    with UpProcess(data, "--nats", nats_url):
        nc = await Connection.from_text(nats_url).connect("reader")
        book = Book()
        await book.read(nc)
        await nc.close()
    events = [event for _, entry in book.entries.values() for event in entry.events if isinstance(event, KeyActivated)]
    assert [event.purpose for event in events] == ["signing", "signing", "checkpoint"]
    assert book.messages[0].key_id == events[0].kid == Keyring.open(data).oldest().kid
    assert events[1].kid == Keyring.open(data).kid


@pytest.mark.requirement("O1")
@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (TRAIL, {"deny_delete": False}, "deny_delete is False, should be True"),
        (TRAIL, {"max_age": 3600.0}, "max_age is 3600.0, which would lose entries"),
        (TRAIL, {"max_msgs": 1_000_000}, "max_msgs is 1000000, which would lose entries"),
        (KEYS, {"storage": api.StorageType.MEMORY}, "storage is memory, should be file"),
        (TRAIL, {"duplicate_window": 1.0}, "duplicate_window is 1.0, should be 120.0"),
    ],
)
async def test_a_stream_that_is_not_as_it_should_be_is_refused_and_left_as_it_is(
    fresh_nats: NatsServer, tmp_path: Path, name: str, change: dict[str, object], told: str
) -> None:
    """Issue "main job": `up` refuses with the command to run when they are missing or differ."""
    nc = await Connection.from_text(fresh_nats.url).connect("test")
    js = JetStreamContext(nc)
    for config in desired().values():
        await js.add_stream(config.evolve(**change) if config.name == name else config)
    await nc.close()
    before = await streams(fresh_nats)
    said = refusal(tmp_path / "data", "--nats", fresh_nats.url)
    assert f"stream {name}: {told}" in said
    done = command("init", "--nats", fresh_nats.url, "--data", tmp_path / "data")
    assert (done.returncode, told in done.stdout) == (1, True), done
    assert await streams(fresh_nats) == before


@pytest.mark.requirement("O1")
def test_keys_that_did_not_make_the_trail_are_not_made_anew(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """Design section 7: losing the reference key orphans every task; new keys must never take its place silently."""
    first, other = tmp_path / "first", tmp_path / "other"
    assert command("init", "--nats", fresh_nats.url, "--data", first).returncode == 0
    with UpProcess(first, "--nats", fresh_nats.url) as up:
        assert up.stop() == 0
    done = command("init", "--nats", fresh_nats.url, "--data", other)
    assert done.returncode == UNAVAILABLE
    assert "holds no keys: copy the directory `keys`" in done.stderr
    assert "no keys in" in refusal(other, "--nats", fresh_nats.url)


@pytest.mark.requirement("O1")
def test_copies_that_the_server_cannot_hold_are_refused_in_a_sentence(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """A single server, asked for three; nothing is made, and there is no traceback."""
    done = command("init", "--nats", fresh_nats.url, "--replicas", "3", "--data", tmp_path / "data")
    assert (done.returncode, done.stdout) == (UNAVAILABLE, "")
    assert done.stderr.count("\n") == 1
    assert "--replicas 3 needs a cluster with as many nodes" in done.stderr


@pytest.mark.requirement("O1")
def test_a_trail_lost_from_an_embedded_directory_is_not_made_anew(tmp_path: Path) -> None:
    """Design section 8: embedded `up` creates TRAIL and KEYS only in a directory without its marker."""
    data = tmp_path / "data"
    with UpProcess(data) as up:
        assert up.stop() == 0
    (data / "nats" / "jetstream").rename(tmp_path / "lost")
    assert "restore the directory from a backup" in refusal(data)


@pytest.mark.requirement("O1")
def test_a_server_that_does_not_answer_is_said_at_once(tmp_path: Path) -> None:
    """Style: never a hang; nobody listens on the port."""
    url = "nats://127.0.0.1:1"
    assert "127.0.0.1:1" in refusal(tmp_path / "data", "--nats", url)
    done = command("init", "--nats", url, "--data", tmp_path / "data")
    assert done.returncode == UNAVAILABLE
    assert "127.0.0.1:1" in done.stderr


@pytest.mark.requirement("O1", "R4")
def test_wrong_credentials_are_said_at_once_and_not_printed(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """Feature R4: no secret is shown; and never a hang."""
    url = f"nats://tasktrail:not-the-password@127.0.0.1:{fresh_nats.broker.port}"
    said = refusal(tmp_path / "data", "--nats", url)
    assert "not-the-password" not in said
    assert f"127.0.0.1:{fresh_nats.broker.port}" in said


@pytest.mark.requirement("O1")
def test_a_server_build_that_is_too_old_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Issue "main job": `--nats-server PATH`; Debian's 2.9 says `unknown field`, here of a setting no build knows."""
    old = tmp_path / "old-nats-server"
    old.write_text(f"#!/bin/sh\nsed -i 's/sync_interval/sync_unknown/' \"$2\"; exec '{bundled_binary()}' \"$@\"\n")
    old.chmod(0o755)
    said = refusal(tmp_path / "data", "--nats-server", str(old))
    assert "this nats-server is too old" in said
    assert "is not an executable file" in refusal(tmp_path / "data", "--nats-server", str(tmp_path / "absent"))


_ACCOUNT = {
    "type": "io.nats.jetstream.api.v1.account_info_response",
    **dict.fromkeys(("memory", "storage", "streams", "consumers"), 0),
    "limits": {
        **dict.fromkeys(("max_memory", "max_storage", "max_streams", "max_consumers", "max_ack_pending"), -1),
        **dict.fromkeys(("memory_max_stream_bytes", "storage_max_stream_bytes"), -1),
        "max_bytes_required": False,
    },
    "api": {"level": 1, "total": 0, "errors": 0},
}


class _Old(socketserver.StreamRequestHandler):
    """Speaks as much NATS as asking for JetStream's API level takes, and answers with 1."""

    def handle(self) -> None:
        self._say(f"INFO {json.dumps({'server_id': 'OLD', 'version': '2.9.0', 'max_payload': 65536, 'headers': True})}")
        subscribed = ""
        for line in self.rfile:
            verb, *words = line.split()
            if verb == b"PING":
                self._say("PONG")
            elif verb == b"SUB":
                subscribed = words[-1].decode()
            elif verb in {b"PUB", b"HPUB"}:
                self.rfile.read(int(words[-1]) + 2)
                told = json.dumps(_ACCOUNT)
                self._say(f"MSG {words[1].decode()} {subscribed} {len(told)}\r\n{told}")

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@pytest.fixture
def old_server() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Old) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        yield f"nats://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        serving.join()


@pytest.mark.requirement("O1")
def test_an_external_server_whose_api_level_is_too_low_is_refused_with_both_levels(
    old_server: str, tmp_path: Path
) -> None:
    """Design section 8: older servers silently ignore what tasktrail counts on; the level is checked at start."""
    said = refusal(tmp_path / "data", "--nats", old_server)
    assert "needs JetStream API level 4 or more, found 1 (nats server v2.9.0)" in said
    done = command("init", "--nats", old_server, "--data", tmp_path / "data")
    assert done.returncode == UNAVAILABLE
    assert "found 1" in done.stderr
