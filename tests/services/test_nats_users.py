"""An nkey for each part of an installation: what each user may do, and no more.

`docs/nats-server.conf` is the configuration of the server here. Sources: design section 1.2 (connected MCP servers hold
no right to publish), section 9 (permissions); facts on least privilege; issue "Authority" (NATS users for servers).
"""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import ObjectMeta
from tests.services.nats_keys import USER, Key, private, server

from tasktrail.events.facts import PayloadShredded, TaskCreated
from tasktrail.events.subjects import KEYS, PAYLOADS, TRAIL, task_subject
from tasktrail.mcp.link import ConnectedLink
from tasktrail.services import messages, trail
from tasktrail.services.connection import Connection
from tasktrail.services.doctor import examine
from tasktrail.services.doctor.findings import Severity
from tasktrail.services.doctor.permissions import DESTRUCTIVE, Denials, reach
from tasktrail.services.settings import effective
from tasktrail.services.states import States
from tasktrail.services.sweeper import Sweeper
from tasktrail.testing.feeding import Json, asked, caller, creation
from tasktrail.testing.fleet import fleet
from tasktrail.testing.rebuild import Book
from tasktrail.testing.service import UpProcess
from tasktrail.testing.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLE, PAGE = DOCS / "nats-server.conf", DOCS / "running.md"
WITHIN_S = 60.0
ANSWER_S = 10.0
SERVERS = ("reports", "billing")
LARGE = "large " * 1_000_000
ANA = caller("ana")
CONFIGURATION = '[[tools]]\ntool = "brief"\nretention = { completed_ms = 1, payloads_ms = 1 }\n'


class Guarded(NamedTuple):
    """A nats-server: where it listens, and the public key that belongs to the seed in each file."""

    url: str
    users: dict[str, str]


class Place(NamedTuple):
    """A guarded server, a service on it, and a connection file for each of two MCP servers."""

    url: str
    users: dict[str, str]
    folder: Path
    up: UpProcess

    def adapter(self, server: str) -> Connection:
        """How this MCP server connects, from its file."""
        return Connection.from_text(str(self.folder / f"{server}.json"))

    @property
    def service(self) -> Connection:
        """How the service connects."""
        return Connection.from_text(self.url, self.folder / "tasktrail.nk")

    def violations(self, key: str) -> list[str]:
        """What the server refused this user, so far."""
        said = (self.folder / "nats" / "out").read_text(encoding="utf-8")
        return [line for line in said.splitlines() if "Violation" in line and self.users[key] in line]


def file_of(name: str) -> str:
    """Where the seed of a key of the example is kept."""
    return name.removesuffix("_NKEY").lower() + ".nk"


@contextmanager
def guarded(folder: Path) -> Generator[Guarded]:
    """A nats-server with the documented configuration, and a second MCP server's user as its first one's."""
    example = EXAMPLE.read_text(encoding="utf-8")
    [reports] = re.findall(r"\n      \{\n        nkey: \$REPORTS_NKEY\n.*?\n      \}\n", example, re.DOTALL)
    billing = reports.replace("REPORTS", "BILLING").replace("reports", "billing")
    text = example.replace(reports, reports + billing)
    names = sorted(set(re.findall(r"\$([A-Z_]+_NKEY)", text)))
    users = {name: Key(USER) for name in names}
    for name, user in users.items():
        private(folder / file_of(name), user.seed + b"\n")
    for there, here in (('listen: "0.0.0.0:4222"', ""), ('"/data"', '"."')):
        assert there in text
        text = text.replace(there, here)
    keys = [f'{name}: "{user.public}"' for name, user in users.items()]
    (folder / "nats").mkdir()
    with server(folder / "nats", "\n".join([*keys, text])) as url:
        yield Guarded(url, {file_of(name): user.public for name, user in users.items()})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Give an installation: the streams made with one key, the service run with another."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tasktrail.toml").write_text(CONFIGURATION, encoding="utf-8")
    with guarded(folder) as (url, users):
        own = {"TASKTRAIL_NATS_CREDENTIALS": str(folder / "tasktrail.nk")}
        environment = {**own, "TASKTRAIL_CONFIG": str(folder / "tasktrail.toml")}
        by_init = {"TASKTRAIL_NATS_CREDENTIALS": str(folder / "tasktrail_init.nk")}
        [documented] = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        for server in SERVERS:
            said = json.loads(documented.replace("reports", server)) | {"servers": [url]}
            (folder / f"{server}.json").write_text(json.dumps(said), encoding="utf-8")
        asyncio.run(bucket_made(Connection.from_text(url, folder / "tasktrail.nk")))
        with fleet(url, folder, count=1, environment=environment, to_init=by_init) as (up,):
            yield Place(url, users, folder, up)


async def bucket_made(service: Connection) -> None:
    """The one stream that the service itself makes, when it was lost; here, before there was any."""
    nc = await service.connect("projector")
    try:
        made = await trail.create(JetStreamContext(nc), only=frozenset({trail.KV_STREAM}))
        assert made == [trail.KV_STREAM]
    finally:
        await nc.close()


class Stranger(NamedTuple):
    """A connection that hears what it is refused."""

    nc: Client
    denials: Denials

    async def is_refused(self, action: Callable[[], Awaitable[object]], subject: str) -> bool:
        """Whether this action is a violation of permissions, told about this subject."""
        await action()
        async with asyncio.timeout(ANSWER_S):
            await self.denials.about(subject)
        return True


@asynccontextmanager
async def as_user(place: Place, key: str, inbox_prefix: str) -> AsyncGenerator[Stranger]:
    """A plain NATS client with this key."""
    nc, denials = Client(), Denials()
    await nc.connect([place.url], nkeys_seed=str(place.folder / key), inbox_prefix=inbox_prefix, error_cb=denials.hear)
    try:
        yield Stranger(nc, denials)
    finally:
        await nc.close()


@pytest_asyncio.fixture(loop_scope="module")
async def reports(place: Place) -> AsyncGenerator[Stranger]:
    """Give whatever runs with the key of the server `reports`."""
    async with as_user(place, "reports.nk", "_INBOX.reports") as stranger:
        yield stranger


async def ask(nc: Client, subject: str, said: Json) -> Json:
    """What the service answers."""
    answer: Json = json.loads(
        (await nc.request(f"tasktrail.cmd.{subject}", json.dumps(said).encode(), timeout=ANSWER_S)).data
    )
    return answer


async def book(place: Place) -> Book:
    """The trail."""
    nc = await place.service.connect("reader")
    try:
        found = Book()
        await found.read(nc)
    finally:
        await nc.close()
    assert not found.faults
    return found


async def named(place: Place, kind: type[Any], ref: str = "") -> list[Any]:
    """The events of one kind on the trail, of one task or of all."""
    read = [entry for _, entry in (await book(place)).entries.values() if ref in {"", entry.task_ref}]
    return [event for entry in read for event in entry.events if isinstance(event, kind)]


async def test_the_service_does_all_it_does_with_what_the_example_allows_it(place: Place) -> None:
    """Large payloads, an expiry, a shredding, a revocation, a lost bucket, a sweep, the doctor: nothing is refused."""
    link, heard = ConnectedLink(place.adapter("reports"), "reports"), set[str]()
    link.listen(lambda ref, _: heard.add(ref))
    await link.start()
    try:
        kept, gone = [await life(link, tool) for tool in ("report", "brief")]
        await until(lambda: heard == {kept.task_ref, gone.task_ref})
        look = msgspec.convert(asked(ANA, "tasks/get", task_id=kept.task_id), messages.GetTask)
        assert (await link.request("get", look)).result == {"text": LARGE}
    finally:
        await link.stop()

    async def shredded() -> bool:
        return bool(await named(place, PayloadShredded, gone.task_ref))

    await until(shredded, within_s=WITHIN_S)
    revoke = partial(place.up.order, kind="principal", iss="https://id.example", sub="leaver", reason="left")
    await asyncio.to_thread(revoke, "revocations")
    await swept(place)
    await asyncio.to_thread(place.up.wait_until_level)
    key = place.folder / "tasktrail.nk"
    report = await examine(effective({}, data=place.up.data, nats_url=place.url, nats_credentials=key))
    checks = {one.check: one.severity for one in report.findings}
    for check in ("permissions of the service", "connections without credentials", "streams", "NATS credentials"):
        assert checks[check] is Severity.WELL, report
    assert [place.violations(name) for name in ("tasktrail.nk", "tasktrail_init.nk")] == [[], []]


async def life(link: ConnectedLink, tool: str) -> messages.TaskView:
    """A task that takes and gives more than an entry holds."""
    said = creation(ANA, secrets.token_hex(8), tool, arguments={"text": LARGE})
    made: messages.TaskView = await link.request("create", msgspec.convert(said, messages.CreateTask))
    done = messages.CompleteTask(task_ref=made.task_ref, command_id="done", result={"text": LARGE})
    await link.request("complete", done)
    return made


async def swept(place: Place) -> None:
    """What the sweeper does once an hour: large payloads that no entry came to hold are removed."""
    nc = await place.service.connect("sweeper")
    try:
        js = JetStreamContext(nc)
        bucket = await js.object_store(PAYLOADS)
        await bucket.put("orphan", LARGE.encode(), meta=ObjectMeta(description="a" * 32))
        assert await Sweeper(js, States(nc, js, kept=16)).sweep(datetime.now(UTC) + timedelta(days=1)) == 1
    finally:
        await nc.close()


async def test_a_server_cannot_speak_as_another_one(place: Place, reports: Stranger) -> None:
    """docs/identity.md: that permission is what ties a server's name to its login. Nothing of it is on the trail."""
    for action in messages.ACTIONS:
        subject = f"tasktrail.cmd.billing.{action}"
        body = json.dumps(creation(ANA, "forged")).encode()
        assert await reports.is_refused(partial(reports.nc.publish, subject, body, "_INBOX.reports.x"), subject)
    answer = await ask(reports.nc, "reports.create", creation(ANA, "c-2"))
    assert answer["ok"]["status"] == "working"
    assert len(place.violations("reports.nk")) >= len(messages.ACTIONS)
    assert {event.server for event in await named(place, TaskCreated)} == {"reports"}
    async with as_user(place, "billing.nk", "_INBOX.billing") as billing:
        answer = await ask(billing.nc, "billing.create", creation(ANA, "c-3"))
        assert answer["ok"]["status"] == "working"
    assert {event.server for event in await named(place, TaskCreated)} == set(SERVERS)


async def test_a_server_reaches_neither_the_trail_nor_keys_nor_what_others_hear(
    place: Place, reports: Stranger
) -> None:
    """Design section 1.2: connected MCP servers hold none of the rights. What the doctor tries, and more."""
    before = await last_sequences(place)
    assert await reach(reports.nc, reports.denials) == []
    streams = (TRAIL, KEYS, "KV_CURRENT", "TIMERS", "OBJ_PAYLOADS")
    published = [
        task_subject("default", "a" * 32),
        f"keys.1.{'a' * 32}",
        f"$KV.CURRENT.{'a' * 32}",
        f"timer.1.fired.shred.{'a' * 32}",
        "tasktrail.signal.billing.x",
        "_INBOX.billing.x",
        "$JS.API.INFO",
        *DESTRUCTIVE,
        *(f"$JS.API.{call}.{name}" for name in streams for call in ("STREAM.INFO", "DIRECT.GET", "CONSUMER.CREATE")),
    ]
    for subject in published:
        assert await reports.is_refused(partial(reports.nc.publish, subject, b"{}"), subject)
    signals = ("tasktrail.signal.billing.*", "tasktrail.signal.>")
    commands = ("tasktrail.cmd.reports.*", "tasktrail.cmd.*.*")
    for subject in (*signals, *commands, "_INBOX.>", "_INBOX.billing.>", "trail.>", "$KV.CURRENT.>"):
        assert await reports.is_refused(partial(cast("Any", reports.nc).subscribe, subject), subject)
    assert await last_sequences(place) == before


async def last_sequences(place: Place) -> dict[str, int]:
    """Where each stream ends that nothing but a command moves."""
    nc = await place.service.connect("reader")
    try:
        js = JetStreamContext(nc)
        return {name: (await js.stream_info(name)).state.last_seq for name in (TRAIL, KEYS)}
    finally:
        await nc.close()


async def test_nobody_gets_in_without_a_key_or_with_another_one(place: Place, tmp_path: Path) -> None:
    """The example has no `no_auth_user`."""
    other = private(tmp_path / "other.nk", Key(USER).seed)
    for connection in (Connection(servers=[place.url]), Connection.from_text(place.url, other)):
        with pytest.raises(NatsError, match=r"(?i)authorization violation"):
            await once(connection)


async def once(connection: Connection) -> None:
    """Connect, without trying again."""
    nc = Client()
    login = {"nkeys_seed": connection.credentials} if connection.credentials else {}
    try:
        await nc.connect(connection.servers, allow_reconnect=False, error_cb=Denials().hear, **cast("Any", login))
    finally:
        await nc.close()


async def test_every_permission_of_the_example_is_documented() -> None:
    """Style 13: docs are run, and complete."""
    page = PAGE.read_text(encoding="utf-8")
    allowed = re.findall(r"allow: \[(.*?)\]", re.sub(r"#.*", "", EXAMPLE.read_text(encoding="utf-8")), re.DOTALL)
    subjects = {text.split()[0] for part in allowed for text in re.findall(r'"(.*?)"', part)}
    assert len(subjects) > len(DESTRUCTIVE)
    for subject in subjects:
        assert f"`{subject.removeprefix('$JS.API.')}`" in page, f"docs/running.md does not name {subject}"
    assert f"({EXAMPLE.name})" in page
