"""Files of NATS credentials: nkeys and `.creds`.

Sources: NATS documentation (NKeys, JWT); issue "Authority" (NATS users for servers). A secret that others can read is
refused, as `introspection_secret_file` is.
"""

import importlib.util
import json
import logging
from pathlib import Path

import pytest
from tests.services.nats_keys import ACCOUNT, OPERATOR, USER, Key, private, server

from tasktrail.events.errors import InvalidRequest
from tasktrail.services import connection as module
from tasktrail.services.bus import make_bus
from tasktrail.services.connection import Connection, Secret

WITHIN_S = 30.0
UNLIMITED = {"subs": -1, "data": -1, "payload": -1}


def creds(jwt: str, user: Key) -> bytes:
    """A `.creds` file."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    ).encode()


async def gets_in(connection: Connection) -> bool:
    """Whether both clients of the service do: its own, and the framework's."""
    nc = await connection.connect("test")
    await nc.flush()
    await nc.close()
    bus = make_bus(connection)
    try:
        await bus.connect()
        return await bus.ping(WITHIN_S)
    finally:
        await bus.stop()


async def test_an_nkey_opens_the_server(tmp_path: Path) -> None:
    user = Key(USER)
    seed = private(tmp_path / "user.nk", user.seed + b"\n")
    with server(tmp_path, {"authorization": {"users": [{"nkey": user.public}]}}) as url:
        connection = Connection.from_text(url, seed)
        assert connection.secret() is Secret.NKEY
        assert await gets_in(connection)


async def test_a_creds_file_opens_the_server(tmp_path: Path) -> None:
    """An operator's own accounts: the server knows the operator, the account signed the user."""
    operator, account, user = Key(OPERATOR), Key(ACCOUNT), Key(USER)
    limits = {**UNLIMITED, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "wildcards": True}
    known = {account.public: operator.jwt(account, "account", limits=limits)}
    said = private(tmp_path / "user.creds", creds(account.jwt(user, "user", pub={}, sub={}, **UNLIMITED), user))
    config = {"operator": operator.jwt(operator, "operator"), "resolver": "MEMORY", "resolver_preload": known}
    with server(tmp_path, config) as url:
        connection = Connection.from_text(url, said)
        assert connection.secret() is Secret.JWT
        assert await gets_in(connection)


async def test_the_key_of_somebody_else_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CONNECT_S", 1.0)
    caplog.set_level(logging.CRITICAL)
    seed = private(tmp_path / "user.nk", Key(USER).seed)
    with (
        server(tmp_path, {"authorization": {"users": [{"nkey": Key(USER).public}]}}) as url,
        pytest.raises(TimeoutError, match="no NATS server took us"),
    ):
        await Connection.from_text(url, seed).connect("test")
    assert "authentication error" in (tmp_path / "out").read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
async def test_what_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    """With the remedy, before anything is sent."""
    seed = private(tmp_path / "user.nk", Key(USER).seed, mode)
    with pytest.raises(InvalidRequest, match=rf"mode {mode:04o}\): run chmod 600"):
        await Connection.from_text("nats://127.0.0.1:9", seed).connect("test")


@pytest.mark.parametrize("content", [b"", b"hello", Key(ACCOUNT).seed, Key(USER).public.encode(), b"\xff" * 100_000])
async def test_a_file_that_holds_neither_is_refused(tmp_path: Path, content: bytes) -> None:
    """An account's seed opens nothing, and its place is not here; what the file holds is not shown."""
    path = private(tmp_path / "user.nk", content)
    with pytest.raises(InvalidRequest, match=r"neither the seed of a user's nkey") as caught:
        await Connection.from_text("nats://127.0.0.1:9", path).connect("test")
    assert not content or content.decode("latin-1") not in str(caught.value)


async def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"user\.nk: No such file"):
        await Connection.from_text("nats://127.0.0.1:9", tmp_path / "user.nk").connect("test")


def test_a_path_in_a_connection_file_is_relative_to_it(tmp_path: Path) -> None:
    """An MCP server is started from anywhere."""
    for said, expected in (("user.nk", str(tmp_path / "user.nk")), ("/etc/user.nk", "/etc/user.nk"), ("", "")):
        (tmp_path / "tasktrail.json").write_text(json.dumps({"servers": ["nats://h:1"], "credentials": said}))
        assert Connection.from_text(str(tmp_path / "tasktrail.json")).credentials == expected


async def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connected MCP server that logs in by a password needs no more than nats-py."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    seed = private(tmp_path / "user.nk", Key(USER).seed)
    with pytest.raises(InvalidRequest, match=r"pip install 'tasktrail\[nkeys\]'"):
        await Connection.from_text("nats://127.0.0.1:9", seed).connect("test")
