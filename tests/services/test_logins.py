"""The logins of the embedded broker and what each may do: design.md, promise 2 and section 8 (JetStream)."""

import asyncio
import json
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import nats
import psutil
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from tasktrail.services.broker import Broker, BrokerFailed
from tasktrail.services.connection import settle
from tasktrail.services.messages import command_subject


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker.start(tmp_path / "nats") as running:
        yield running


async def test_an_adapter_gets_answers_to_commands_and_hears_signals(broker: Broker) -> None:
    """Design section 3, connected mode: commands by request and reply."""
    service = await nats.connect(**broker.connect_options())
    adapter = await nats.connect(**broker.adapter_connect_options())

    async def answer(message: Msg) -> None:
        await message.respond(b"done: " + message.data)

    await service.subscribe("tasktrail.cmd.>", cb=answer)
    await settle(service)
    reply = await adapter.request("tasktrail.cmd.x", b"create", timeout=30)
    assert reply.data == b"done: create"

    signals = await adapter.subscribe("tasktrail.signal.>")
    await settle(adapter)
    await service.publish("tasktrail.signal.cancel", b"stop")
    assert (await signals.next_msg(timeout=30)).data == b"stop"
    await adapter.close()
    await service.close()


@pytest.mark.parametrize(
    "subject", ["trail.1.task.acme.ref", "$JS.API.INFO", "$JS.API.STREAM.DELETE.TRAIL", "_INBOX_adapter.other", "x"]
)
async def test_an_adapter_can_not_publish_anything_but_commands(broker: Broker, subject: str) -> None:
    """Design promise 2: connected MCP servers hold no right to publish; a denial surfaces in the error callback."""
    async with Violations(broker) as (service, adapter, violations):
        heard = await service.subscribe(subject)
        await settle(service)
        await adapter.publish(subject, b"forged", reply="_INBOX_adapter.reply")
        await settle(adapter)
        await violations.wait_for(f'permissions violation for publish to "{subject.lower()}"')
        await service.publish(subject, b"own")
        assert (await heard.next_msg(timeout=30)).data == b"own"


@pytest.mark.parametrize("subject", [">", "tasktrail.cmd.>", "trail.>", "_INBOX_tasktrail.>", "$JS.API.>", "$SYS.>"])
async def test_an_adapter_can_not_listen_to_anything_but_its_inbox_and_signals(broker: Broker, subject: str) -> None:
    """Design promise 2, and least privilege in the measured facts."""
    async with Violations(broker) as (_, adapter, violations):
        await adapter.subscribe(subject)
        await settle(adapter)
        await violations.wait_for(f'permissions violation for subscription to "{subject.lower()}"')


@pytest.mark.requirement("O2")
async def test_a_named_server_speaks_in_its_own_name_and_nobody_else_does(tmp_path: Path) -> None:
    """Issue "Adapters": per-server NATS users that can reach only their own subjects."""
    with Broker.start(tmp_path / "nats", servers=["reports", "Büro 1"]) as running:
        service = await nats.connect(**running.connect_options())
        told: asyncio.Queue[str] = asyncio.Queue()

        async def tell(error: Exception) -> None:
            await told.put(str(error).lower())

        async def answer(message: Msg) -> None:
            await message.respond(message.data)

        await service.subscribe("tasktrail.cmd.>", cb=answer)
        await settle(service)
        office = command_subject("Büro 1", "get")
        reports = await nats.connect(**running.server_connect_options("reports"), error_cb=tell)
        other = await nats.connect(**running.server_connect_options("Büro 1"), error_cb=tell)
        adapter = await nats.connect(**running.adapter_connect_options(), error_cb=tell)
        assert (await reports.request("tasktrail.cmd.reports.get", b"mine", timeout=30)).data == b"mine"
        assert (await other.request(office, b"mine", timeout=30)).data == b"mine"
        assert (await adapter.request("tasktrail.cmd.else.get", b"no name", timeout=30)).data == b"no name"
        for stranger in (adapter, other):
            await stranger.publish("tasktrail.cmd.reports.get", b"forged", reply=stranger.new_inbox())
            await settle(stranger)
            assert 'publish to "tasktrail.cmd.reports.get"' in await asyncio.wait_for(told.get(), 30)
            await stranger.subscribe("tasktrail.signal.reports.*")
            await settle(stranger)
            assert 'subscription to "tasktrail.signal.reports.*"' in await asyncio.wait_for(told.get(), 30)
        for one in (service, reports, other, adapter):
            await one.close()


def test_the_password_of_a_server_waits_while_it_is_not_named(tmp_path: Path) -> None:
    """Promise of `logins`: whoever opens the store without the configuration takes nothing from adapters."""
    with Broker.start(tmp_path / "nats", servers=["reports"]) as running:
        first = running.server_connect_options("reports")
    with Broker.start(tmp_path / "nats") as running:
        assert not running.servers
    with Broker.start(tmp_path / "nats", servers=["reports"]) as running:
        assert running.server_connect_options("reports")["password"] == first["password"]


class Violations:
    """Both users connected, and what the server told the adapter."""

    def __init__(self, running: Broker) -> None:
        self.running = running
        self.told: asyncio.Queue[str] = asyncio.Queue()

    async def __aenter__(self) -> tuple[Client, Client, "Violations"]:
        async def tell(error: Exception) -> None:
            await self.told.put(str(error).lower())

        self.service = await nats.connect(**self.running.connect_options())
        self.adapter = await nats.connect(**self.running.adapter_connect_options(), error_cb=tell)
        return self.service, self.adapter, self

    async def __aexit__(self, *_: object) -> None:
        await self.adapter.close()
        await self.service.close()

    async def wait_for(self, text: str) -> None:
        told = await asyncio.wait_for(self.told.get(), 30)
        assert text in told


@pytest.mark.parametrize("login", [{}, {"user": "tasktrail", "pass": "guess"}, {"user": "adapter"}])
def test_nobody_else_on_the_machine_may_connect(broker: Broker, login: dict[str, str]) -> None:
    """Another local user reaches the port; only the two users of the 0600 file may speak. NATS protocol: -ERR."""
    with socket.create_connection(("127.0.0.1", broker.port), timeout=30) as stranger, stranger.makefile("rb") as lines:
        assert b'"auth_required":true' in lines.readline()
        stranger.sendall(b"CONNECT " + json.dumps(login).encode() + b"\r\nPING\r\n")
        assert lines.readline() == b"-ERR 'Authorization Violation'\r\n"


def test_passwords_are_only_in_private_files(broker: Broker, tmp_path: Path) -> None:
    """Promise of the module: not in the log, not in the arguments or the environment, not in a representation."""
    server = psutil.Process(broker.pid)
    shown = [*server.cmdline(), *server.environ().values(), repr(broker.login), repr(broker.adapter)]
    for password in (broker.password, broker.adapter.password):
        assert not [text for text in shown if password in text]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    holding = {path.name for path in files if broker.password.encode() in path.read_bytes()}
    assert holding == {"credentials.json", "nats.conf"}
    open_to_others = [p for p in files if p.suffix != ".ports" and stat.S_IMODE(p.stat().st_mode) & 0o077]
    assert not open_to_others
    assert stat.S_IMODE((tmp_path / "nats").stat().st_mode) == 0o700


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tasktrail": "a"}', '{"tasktrail": 1, "adapter": "b"}'])
def test_damaged_credentials_are_refused_with_what_to_do(tmp_path: Path, content: str) -> None:
    """A damaged file must not become an empty password."""
    Broker.start(tmp_path / "nats").stop()
    credentials = tmp_path / "nats" / "credentials.json"
    credentials.write_text(content)
    with pytest.raises(BrokerFailed, match=r"credentials.json is damaged. Delete "):
        Broker.start(tmp_path / "nats")
    credentials.unlink()
    Broker.start(tmp_path / "nats").stop()


def test_credentials_that_others_could_read_are_refused(tmp_path: Path) -> None:
    """As ssh refuses such a key."""
    Broker.start(tmp_path / "nats").stop()
    (tmp_path / "nats" / "credentials.json").chmod(0o644)
    with pytest.raises(BrokerFailed, match="has mode 0644"):
        Broker.start(tmp_path / "nats")
