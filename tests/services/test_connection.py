"""How NATS is reached. Source: module docstring; issue "main job" (connected adapters, external servers)."""

import asyncio
import logging
import socket
import time
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from tasktrail.events.errors import InvalidRequest
from tasktrail.services import connection as module
from tasktrail.services.connection import Connection
from tasktrail.testing.nats import NatsServer


@pytest.mark.parametrize(
    ("text", "servers", "user", "password"),
    [
        ("nats://127.0.0.1:4222", ["nats://127.0.0.1:4222"], "", ""),
        ("nats://broker", ["nats://broker:4222"], "", ""),
        ("tls://[::1]:9", ["tls://[::1]:9"], "", ""),
        ("nats://ana:s%40cret@h:1, nats://i:2", ["nats://h:1", "nats://i:2"], "ana", "s@cret"),
        ("nats://a%2525:p%2525@h:1,nats://i:2", ["nats://h:1", "nats://i:2"], "a%25", "p%25"),
        ("ws://h:80", ["ws://h:80"], "", ""),
    ],
)
def test_urls_are_read_with_their_credentials_apart(text: str, servers: list[str], user: str, password: str) -> None:
    """Servers are shown in logs: without credentials."""
    found = Connection.from_text(text)
    assert (found.servers, found.user, found.password) == (servers, user, password)


@pytest.mark.parametrize(
    "text",
    ["http://u:secret@h", "nats://", "nats://u:secret@h:99999", "nats://h:port", "nats://h,://secret", "nats://h:0"],
)
def test_what_is_no_nats_url_is_refused_without_showing_secrets(text: str) -> None:
    """The message says what to write instead."""
    with pytest.raises(InvalidRequest, match="write nats://host:4222") as caught:
        Connection.from_text(text)
    assert "secret" not in caught.value.message


def test_a_connection_file_is_read(tmp_path: Path) -> None:
    """`adapter.json`, as `up` writes it."""
    path = tmp_path / "adapter.json"
    wanted = Connection(servers=["nats://h:1"], user="adapter", password="secret", inbox_prefix="_INBOX_adapter")
    path.write_bytes(msgspec.json.encode(wanted))
    assert Connection.from_text(str(path)) == wanted


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b'{"servers": "x"}'])
def test_another_file_is_refused_with_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    """As above."""
    path = tmp_path / "adapter.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"adapter\.json"):
        Connection.from_text(str(path))


@pytest.mark.requirement("R4")
def test_secrets_are_not_shown() -> None:
    """Module docstring: never by `repr`."""
    shown = repr(Connection(servers=["nats://h:1"], user="ana", password="secret"))
    assert "ana" in shown
    assert "secret" not in shown
    assert "secret" not in f"{[Connection.from_text('nats://ana:secret@h:1')]}"


async def test_it_connects_and_finds_its_server_again(fresh_nats: NatsServer) -> None:
    """Reconnects for ever: a killed and restarted broker is found again."""
    back = asyncio.Event()

    async def answer(msg: Msg) -> None:
        await msg.respond(b"back")

    nc = await Connection.from_text(fresh_nats.url).connect("test")
    try:
        await cast("Any", nc).subscribe("question", cb=answer)
        fresh_nats.kill()
        fresh_nats.restart()
        deadline = time.monotonic() + 20
        while not back.is_set():
            try:
                assert (await nc.request("question", timeout=0.5)).data == b"back"
                back.set()
            except NatsError:
                assert time.monotonic() < deadline, f"not back within 20 s: {nc.last_error!r}"
    finally:
        await nc.close()


@pytest.mark.parametrize("problem", ["nobody there", "wrong password", "silent"])
async def test_a_server_that_does_not_take_us_is_told_in_time(
    fresh_nats: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, problem: str
) -> None:
    """Never a hang: nats-py itself would try for ever, since a lost connection is to be found again for ever."""
    monkeypatch.setattr(module, "CONNECT_S", 0.5)
    caplog.set_level(logging.WARNING, "tasktrail")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = {"silent": silent.getsockname()[1], "nobody there": 9}.get(problem, fresh_nats.broker.port)
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match=rf"no NATS server took us within 0.5 s at nats://127.0.0.1:{port}"):
            await Connection.from_text(f"nats://tasktrail:secret@127.0.0.1:{port}").connect("test")
        assert time.monotonic() - begun < 5
    assert "secret" not in caplog.text
    told = [record.getMessage() for record in caplog.records]
    assert sorted(told) == sorted(set(told)), "each reason is told once"


def test_a_connection_file_without_a_server_is_refused(tmp_path: Path) -> None:
    """nats-py would look for one for ever."""
    file = tmp_path / "adapter.json"
    file.write_text('{"servers": []}')
    with pytest.raises(InvalidRequest, match="names no NATS server"):
        Connection.from_text(str(file))
