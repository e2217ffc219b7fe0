"""What `tasktrail doctor` finds, on real servers. Source: issue 3, "Configuration"; feature O6; design section 9."""

import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import msgspec
import pytest
from nats.js import JetStreamContext
from tests.services.findings import NOT_CHECKED, NOTICE, UNSAFE, WELL, by_check

from tasktrail.events.subjects import KEYS, TRAIL
from tasktrail.services import trail
from tasktrail.services.broker import Broker, bundled_binary, end_child, start_child
from tasktrail.services.configuration import DAY_MS, ApiKey, Issuer, McpServer, Operator, Retention, Tlog, Tool, Witness
from tasktrail.services.connection import Connection
from tasktrail.services.doctor import configured, examine, files, messaging, reading_side, text
from tasktrail.services.doctor.findings import Report, Severity
from tasktrail.services.doctor.permissions import Permissions, covers
from tasktrail.services.keyring import Keyring
from tasktrail.services.service import ADAPTER_FILE, AUDIT_FILE
from tasktrail.services.settings import MIB, Settings, effective
from tasktrail.testing.nats import NatsCluster

DIGEST = "0123456789abcdef" * 4
WITHIN_S = 30.0
OVER_A_CONNECTION = {*messaging.CHECKS}


def seen(report: Report, check: str) -> str:
    """All that was seen by a check."""
    return "\n".join(one.seen for one in report.findings if one.check == check)


@contextlib.asynccontextmanager
async def streams_of(connection: Connection) -> AsyncGenerator[JetStreamContext]:
    """JetStream by this login."""
    nc = await connection.connect("test")
    try:
        yield nc.jetstream()  # pyright: ignore[reportUnknownMemberType]  # nats-py's options have no types
    finally:
        await nc.close()


async def stored(js: JetStreamContext) -> dict[str, tuple[int, int]]:
    """What each stream holds: its last sequence and bytes."""
    infos = {name: await js.stream_info(name) for name in trail.desired()}
    return {name: (info.state.last_seq, info.state.bytes) for name, info in infos.items()}


class Embedded(NamedTuple):
    """A data directory whose embedded broker runs, as `tasktrail up` leaves it."""

    data: Path
    broker: Broker

    @property
    def own(self) -> Connection:
        return Connection(**self.broker.connect_options())


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[Embedded]:
    """Give one with its streams, its keys and the adapters' file."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    with Broker.start(data / "nats") as broker:
        (data / ADAPTER_FILE).touch(mode=0o600)
        adapter = Connection(**broker.adapter_connect_options())
        (data / ADAPTER_FILE).write_bytes(msgspec.json.encode(adapter))
        Keyring.create(data)
        made = Embedded(data, broker)
        async with streams_of(made.own) as js:
            await trail.create(js)
        yield made


class External(NamedTuple):
    """A nats-server of an operator: where it listens, and its monitoring address."""

    host: str
    monitor: str

    def url(self, user: str = "") -> str:
        return f"nats://{user}:{user}@{self.host}" if user else f"nats://{self.host}"


@contextlib.contextmanager
def external(directory: Path, jetstream: Mapping[str, Any], **more: object) -> Generator[External]:
    """A real server with this configuration."""
    directory.mkdir()
    said = {
        "listen": "127.0.0.1:-1",
        "http": "127.0.0.1:-1",
        "ports_file_dir": ".",
        "jetstream": {"store_dir": ".", **jetstream},
        **more,
    }
    (directory / "nats.conf").write_text(json.dumps(said))
    child = start_child([bundled_binary(), "-c", "nats.conf"], directory=directory, output=directory / "out")
    try:
        deadline, ports = time.monotonic() + WITHIN_S, list[Path]()
        while not ports or not ports[0].stat().st_size:
            assert child.poll() is None, (directory / "out").read_text()
            assert time.monotonic() < deadline, "no ports file"
            Event().wait(0.01)
            ports = list(directory.glob("*.ports"))
        told = json.loads(ports[0].read_text())
        yield External(told["nats"][0].removeprefix("nats://"), told["monitoring"][0])
    finally:
        end_child(child, 5.0)


def user(name: str, *, deny: list[str] | None = None) -> dict[str, object]:
    permissions = {"permissions": {"publish": {"deny": deny}}} if deny else {}
    return {"user": name, "password": name, **permissions}


@pytest.mark.requirement("O6")
async def test_an_embedded_broker_is_as_it_should_be_and_nothing_is_written(embedded: Embedded) -> None:
    """Embedded default: `always`, permissions, private files. What asks for trouble stores nothing."""
    async with streams_of(embedded.own) as js:
        before = await stored(js)
        report = await examine(effective({}, data=embedded.data))
        assert await stored(js) == before
    found = by_check(report)
    well = OVER_A_CONNECTION | {"sync", "data directory", "keys and tokens", "transport to the broker"}
    assert {check: found[check] for check in well} == dict.fromkeys(well, WELL), report
    assert found["copies"] is NOTICE
    assert (found["authentication"], found["anonymous callers"], found["asserted identities"]) == (UNSAFE,) * 3
    assert report.unsafe == 3
    for secret in (embedded.broker.password, embedded.broker.adapter.password):
        assert secret not in repr(report)


@pytest.mark.requirement("O6")
async def test_of_a_stopped_service_it_says_what_was_not_checked_and_checks_the_rest(embedded: Embedded) -> None:
    """Module docstring: every check that could not be made says why."""
    embedded.broker.stop()
    (embedded.data / "keys" / "signing-1.key").chmod(0o644)
    report = await examine(effective({}, data=embedded.data))
    found = by_check(report)
    assert {check: found[check] for check in OVER_A_CONNECTION} == dict.fromkeys(OVER_A_CONNECTION, NOT_CHECKED)
    assert (found["sync"], found["keys and tokens"], found["audit store"]) == (WELL, UNSAFE, NOT_CHECKED)
    assert "signing-1.key can be read by others (mode 0644)" in seen(report, "keys and tokens")
    assert "the embedded broker does not run" in seen(report, "streams")


async def test_a_directory_without_data_is_no_failure(tmp_path: Path) -> None:
    """A wrong --data is told as such."""
    report = await examine(effective({}, data=tmp_path / "none"))
    assert by_check(report)["data directory"] is NOT_CHECKED
    assert not (tmp_path / "none").exists()


async def test_lazy_sync_of_an_embedded_broker_is_unsafe(tmp_path: Path) -> None:
    """Design section 9: the 2-minute default loses acknowledged writes on power failure; doctor flags anything less."""
    with Broker.start(tmp_path / "nats", sync_interval="2m"):
        found = messaging.of_own_sync(tmp_path / "nats")
    assert (found.severity, "sync_interval 2m" in found.seen) == (UNSAFE, True)


@pytest.mark.requirement("O6")
async def test_an_open_server_is_unsafe_in_each_way_that_it_is(tmp_path: Path) -> None:
    """No users, no permissions, lazy sync, one copy: each found, and the trail is as before."""
    with external(tmp_path / "nats", {}) as server:
        connection = Connection.from_text(server.url())
        async with streams_of(connection) as js:
            await trail.create(js)
            before = await stored(js)
            report = await examine(effective({}, data=tmp_path, nats_url=server.url()), monitor=server.monitor)
            assert await stored(js) == before
            without = await examine(effective({}, data=tmp_path, nats_url=server.url()))
    found = by_check(report)
    for check in ("connections without credentials", "permissions of the service", "sync", "copies"):
        assert found[check] is UNSAFE, report
    assert "publish to the trail, read wrapped keys" in seen(report, "connections without credentials")
    assert f"$JS.API.STREAM.DELETE.{TRAIL}" in seen(report, "permissions of the service")
    assert "sync_interval 120 s" in seen(report, "sync")
    assert (found["permissions of adapters"], found["streams"], found["nats-server"]) == (NOT_CHECKED, WELL, WELL)
    assert by_check(without)["sync"] is NOT_CHECKED


async def test_a_guarded_server_is_well(tmp_path: Path) -> None:
    """Users with permissions and `always`; that it is one server remains."""
    deny = ["$JS.API.STREAM.DELETE.>", "$JS.API.STREAM.UPDATE.>", "$JS.API.STREAM.PURGE.>"]
    users = {"users": [user("tasktrail", deny=deny), user("root")]}
    with external(tmp_path / "nats", {"sync_interval": "always"}, authorization=users) as server:
        async with streams_of(Connection.from_text(server.url("root"))) as js:
            await trail.create(js)
        report = await examine(effective({}, data=tmp_path, nats_url=server.url("tasktrail")), monitor=server.monitor)
    found = by_check(report)
    for check in ("connections without credentials", "permissions of the service", "sync", "clock of the broker"):
        assert found[check] is WELL, report
    assert found["copies"] is UNSAFE
    assert "tasktrail:tasktrail" not in repr(report)


async def test_strangers_without_permissions_are_a_notice(tmp_path: Path) -> None:
    """`no_auth_user` lets them in; what they may do is what counts."""
    guest = {"user": "guest", "password": "guest", "permissions": {"publish": ["hello"], "subscribe": ["_INBOX.>"]}}
    users = {"users": [user("tasktrail"), guest]}
    with external(tmp_path / "nats", {}, authorization=users, no_auth_user="guest") as server:
        async with streams_of(Connection.from_text(server.url("tasktrail"))) as js:
            await trail.create(js)
        report = await examine(effective({}, data=tmp_path, nats_url=server.url("tasktrail")))
    assert by_check(report)["connections without credentials"] is NOTICE


async def test_three_copies_are_well_and_one_on_a_cluster_is_not(nats_cluster: NatsCluster, tmp_path: Path) -> None:
    """Design section 9: three nodes, R3."""
    settings = effective({}, data=tmp_path, nats_url=",".join(nats_cluster.urls))
    for replicas, expected in ((3, WELL), (1, UNSAFE)):
        async with streams_of(Connection(servers=nats_cluster.urls)) as js:
            await trail.create(js, replicas=replicas)
            report = await examine(settings)
            assert by_check(report)["copies"] is expected, report
            assert {last for last, _ in (await stored(js)).values()} == {0}
            for name in trail.desired():
                await js.delete_stream(name)


async def test_a_server_that_does_not_answer_is_told_without_its_password(tmp_path: Path) -> None:
    """A secret of an address is in no message."""
    report = await examine(effective({}, data=tmp_path, nats_url="nats://ana:s3cret@127.0.0.1:1"))
    assert by_check(report)["streams"] is NOT_CHECKED
    assert "no NATS server answers at nats://127.0.0.1:1" in seen(report, "streams")
    assert "s3cret" not in repr(report) + text(report)


async def test_streams_that_were_changed_or_lost_are_named(embedded: Embedded) -> None:
    """The differences of `trail.py`, each a finding."""
    async with streams_of(embedded.own) as js:
        await js.delete_stream(KEYS)
    report = await examine(effective({}, data=embedded.data))
    assert by_check(report)["streams"] is UNSAFE
    assert f"stream {KEYS} is missing" in seen(report, "streams")


async def test_an_adapter_that_may_do_more_is_unsafe(embedded: Embedded) -> None:
    """Promise 2: connected MCP servers may not publish to the trail. Here they got the service's login."""
    (embedded.data / ADAPTER_FILE).write_bytes(msgspec.json.encode(embedded.own))
    report = await examine(effective({}, data=embedded.data))
    assert by_check(report)["permissions of adapters"] is UNSAFE
    said = seen(report, "permissions of adapters")
    for right in ("publish to the trail", "read wrapped keys", "listen to the trail", "listen to everything"):
        assert right in said


async def test_servers_that_share_a_login_can_take_each_others_names(embedded: Embedded, tmp_path: Path) -> None:
    """Servers that a pattern fits have no login of their own, and it is said; one with a name of its own has."""
    path = tmp_path / "tasktrail.toml"
    path.write_text('[[servers]]\nname = "reports*"\nasserts = true\n')
    report = await examine(effective({}, path, data=embedded.data))
    assert by_check(report)["permissions of adapters"] is NOTICE
    path.write_text('[[servers]]\nname = "reports"\nasserts = true\n')
    report = await examine(effective({}, path, data=embedded.data))
    assert by_check(report)["permissions of adapters"] is WELL


async def test_the_audit_store_of_a_stopped_service_is_measured_by_the_trail(embedded: Embedded) -> None:
    """A store that does not exist, or a trail whose end is not known, is not checked."""
    missing = await reading_side.of_store(embedded.data, embedded.data / AUDIT_FILE, 5)
    assert by_check(missing) == {"audit store": NOT_CHECKED}


def test_file_names_are_the_services_own() -> None:
    """They are repeated so that the doctor need not import the whole service."""
    named = [name for name in files.SECRETS if "/" not in name]
    assert ADAPTER_FILE in named


@pytest.mark.parametrize(
    ("settings", "check", "expected"),
    [
        (Settings(), "authentication", UNSAFE),
        (Settings(api_keys=(ApiKey(name="a", sha256=DIGEST),)), "authentication", WELL),
        (Settings(anonymous=False), "anonymous callers", WELL),
        (Settings(), "asserted identities", UNSAFE),
        (Settings(servers=(McpServer(name="*", asserts=True),)), "asserted identities", UNSAFE),
        (Settings(servers=(McpServer(name="a", asserts=True),)), "asserted identities", NOTICE),
        (Settings(servers=(McpServer(name="*"),)), "asserted identities", WELL),
        (Settings(issuers=(Issuer(url="https://a", audience=("b",)),)), "asserted identities", WELL),
        (Settings(ttl_max_ms=30 * DAY_MS), "times to live", WELL),
        (Settings(ttl_max_ms=31 * DAY_MS), "times to live", UNSAFE),
        (Settings(tools=(Tool(ttl_max_ms=90 * DAY_MS),)), "times to live", UNSAFE),
        (Settings(retention=Retention(payloads_ms=60 * DAY_MS)), "retention", NOTICE),
        (Settings(tools=(Tool(retention=Retention(failed_ms=60 * DAY_MS)),)), "retention", NOTICE),
        (Settings(), "retention", WELL),
        (Settings(), "legal holds", NOTICE),
        (Settings(operators=(Operator(name="a", sha256=DIGEST),)), "legal holds", NOTICE),
        (Settings(operators=(Operator(name="a", sha256=DIGEST, rights=("hold",)),)), "legal holds", WELL),
        (Settings(), "checkpoints", NOTICE),
        (Settings(tlog=Tlog(copies=("/mnt/other",))), "checkpoints", WELL),
        (Settings(tlog=Tlog(witnesses=(Witness(url="https://w", vkey="w"),))), "checkpoints", WELL),
        (Settings(data=Path("/d"), tlog=Tlog(copies=("nats://h/S", "/d/copies"))), "checkpoints", UNSAFE),
        (Settings(host="::1"), "HTTP surface", WELL),
        (Settings(host="0.0.0.0"), "HTTP surface", NOTICE),  # noqa: S104 - judged, not bound
    ],
)
def test_what_the_settings_make_unsafe(settings: Settings, check: str, expected: Severity) -> None:
    """Issue 3: no authentication, unlimited TTLs; and what else a configuration alone says."""
    assert by_check(list(configured.of_settings(settings)))[check] is expected


@pytest.mark.parametrize(
    ("free", "total", "expected"),
    [
        (50 * 1024 * MIB, 100 * 1024 * MIB, WELL),
        (9 * 1024 * MIB, 100 * 1024 * MIB, NOTICE),
        (2 * 1024 * MIB, 100 * 1024 * MIB, UNSAFE),
        (500 * MIB, 1024 * MIB, UNSAFE),
        (0, 0, UNSAFE),
    ],
)
def test_a_disk_that_fills_is_told(free: int, total: int, expected: Severity) -> None:
    """Issue 3: disk filling."""
    assert files.of_space(free, total, "/data").severity is expected


@pytest.mark.parametrize(
    ("used", "most", "expected"),
    [(10, -1, WELL), (10, 0, WELL), (79, 100, WELL), (81, 100, NOTICE), (96, 100, UNSAFE)],
)
def test_a_stream_near_its_limit_is_told(used: int, most: int, expected: Severity) -> None:
    """`discard: new` fails closed: a full trail refuses every command."""
    assert by_check(list(messaging.of_sizes([("stream TRAIL", used, most)])))["space of streams"] is expected


def test_a_data_directory_that_others_can_read_is_unsafe(tmp_path: Path) -> None:
    """Issue 3: keys readable by others."""
    (tmp_path / "responder.token").touch(mode=0o640)
    tmp_path.chmod(0o750)
    found = list(files.of_data(tmp_path))
    assert by_check(found) | {"disk": WELL} == {"data directory": UNSAFE, "keys and tokens": UNSAFE, "disk": WELL}
    assert any(f"chmod 600 {tmp_path / 'responder.token'}" in one.remedy for one in found)


@pytest.mark.parametrize(
    ("mode", "password", "expected"),
    [(0o600, "a:b@", WELL), (0o644, "", WELL), (0o644, "a:b@", UNSAFE), (0o620, "", UNSAFE)],
)
@pytest.mark.parametrize(
    "written", ['[service]\nnats_url = "nats://{}h:1"\n', '[tlog]\ncopies = ["/mnt/other", "nats://{}h:1/KEPT"]\n']
)
def test_a_configuration_that_others_can_change_is_unsafe(
    tmp_path: Path, mode: int, password: str, expected: Severity, written: str
) -> None:
    """It says who is believed; and an address of NATS may hold a password."""
    path = tmp_path / "tasktrail.toml"
    path.write_text(written.format(password))
    path.chmod(mode)
    assert by_check(list(files.of_file(effective({}, path)))) == {"configuration file": expected}


def test_a_credentials_file_is_its_owners_alone(tmp_path: Path) -> None:
    """It opens the broker."""
    path = tmp_path / "service.creds"
    assert by_check(list(files.of_credentials(path))) == {"NATS credentials": UNSAFE}
    path.touch(mode=0o600)
    assert by_check(list(files.of_credentials(path))) == {"NATS credentials": WELL}
    path.chmod(0o644)
    assert by_check(list(files.of_credentials(path))) == {"NATS credentials": UNSAFE}


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("a.b.c", "a.b", False),
        ("*.b", "a.c", False),
    ],
)
def test_wildcards_cover_what_nats_says_they_do(pattern: str, subject: str, expected: bool) -> None:  # noqa: FBT001 - as above
    """NATS: `*` is one token, `>` one or more at the end."""
    assert covers(pattern, subject) is expected


def test_permissions_are_an_allow_list_if_there_is_one_less_the_denied() -> None:
    """NATS: deny wins; without an allow list everything else is allowed."""
    assert Permissions().permit("a")
    assert not Permissions(deny=["a"]).permit("a")
    assert not Permissions(allow=["b"]).permit("a")
    assert not Permissions(allow=["a.>"], deny=["a.b"]).permit("a.b")


async def test_a_running_service_is_asked_how_far_it_is(embedded: Embedded) -> None:
    """A service that published its address and does not answer is unsafe: nobody reads the trail."""
    service = {"url": "http://127.0.0.1:1", "pid": 1, "started_at": "2026-11-22T00:00:00Z"}
    (embedded.data / "service.json").touch(mode=0o600)
    (embedded.data / "service.json").write_text(json.dumps(service))
    found = await reading_side.of_store(embedded.data, embedded.data / AUDIT_FILE, 5)
    assert by_check(found) == {"audit store": UNSAFE}


async def test_the_report_begins_with_the_worst(embedded: Embedded) -> None:
    """For a person: severities in words, every remedy, and how many of each."""
    report = await examine(effective({}, data=embedded.data))
    shown = text(report)
    assert shown.index("UNSAFE") < shown.index("NOTICE") < shown.index("WELL")
    assert f"{report.unsafe} unsafe, " in shown.splitlines()[-1]
    assert all(len(line) <= 120 for line in shown.splitlines() if str(embedded.data) not in line)
