"""The broker as the doctor finds it: does it keep what it acknowledges, and who may write to the trail.

Guarantees: nothing is created, changed or stored; a check that the broker does not answer is said to be not made. Needs
the address and login that the service itself uses: of an embedded broker, from the data directory.

    async with Ward.enter(settings) as ward:  # raises when there is no broker: none of `CHECKS` was made
        findings = await examine(ward)
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import httpx
import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import Error as JetStreamError

from tasktrail.events.errors import InvalidRequest
from tasktrail.events.subjects import TRAIL
from tasktrail.services import trail
from tasktrail.services.addresses import is_loopback
from tasktrail.services.broker import BrokerError, api_level
from tasktrail.services.connection import Connection
from tasktrail.services.doctor import clocks
from tasktrail.services.doctor.findings import Finding, not_checked, notice, unsafe, well
from tasktrail.services.doctor.permissions import DESTRUCTIVE, Denials, of_user, reach
from tasktrail.services.settings import Settings

ANSWER_S = 5.0
FULL_MUCH, FULL_MOST = 0.80, 0.95
_ADAPTER_FILE = "adapter.json"
_REFUSED = "authorization violation"
_FAILURES = (NatsError, JetStreamError, OSError, TimeoutError, BrokerError, InvalidRequest, msgspec.MsgspecError)
_Check: TypeAlias = Callable[["Ward"], Awaitable[list[Finding]]]


class Ward(msgspec.Struct, frozen=True, kw_only=True):
    """A broker under examination: how the service and (embedded) adapters reach it, and the service's connection."""

    settings: Settings
    connection: Connection
    adapter: Connection | None
    nc: Client
    js: JetStreamContext

    @classmethod
    @contextlib.asynccontextmanager
    async def enter(cls, settings: Settings) -> AsyncGenerator["Ward"]:
        """Connect as the service does.

        Raises:
            OSError, TimeoutError, InvalidRequest: it does not run, does not take us, or its login cannot be read.
        """
        connection, adapter = logins(settings)
        await _greets(connection)
        nc = await connection.connect("tasktrail doctor")
        try:
            js = nc.jetstream(timeout=ANSWER_S)  # pyright: ignore[reportUnknownMemberType]  # options have no types
            yield cls(settings=settings, connection=connection, adapter=adapter, nc=nc, js=js)
        finally:
            await nc.close()


def logins(settings: Settings) -> tuple[Connection, Connection | None]:
    """How the service connects, and how an embedded broker's adapters do. Raises what `Ward.enter` does."""
    if not settings.embedded:
        return Connection.from_text(settings.nats_url, settings.nats_credentials), None
    if not (settings.data / _ADAPTER_FILE).exists():
        message = "the embedded broker was never started"
        raise ConnectionRefusedError(message)
    adapter = Connection.from_text(str(settings.data / _ADAPTER_FILE))
    path = settings.data / "nats" / "credentials.json"
    try:
        password = msgspec.json.decode(path.read_bytes(), type=dict[str, str])["tasktrail"]
    except (OSError, msgspec.MsgspecError, KeyError) as error:
        message = f"{path}: the broker's password cannot be read ({type(error).__name__})"
        raise InvalidRequest(message) from None
    own = msgspec.structs.replace(adapter, user="tasktrail", password=password, inbox_prefix="_INBOX_tasktrail")
    return own, adapter


async def _greets(connection: Connection) -> None:
    """Return if any of the servers takes connections at all: faster than a client that tries for long."""
    for server in connection.servers:
        url = urlsplit(server)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                _, writer = await asyncio.open_connection(url.hostname, url.port or 4222)
            writer.close()
            return
    message = f"no NATS server answers at {', '.join(connection.servers)}"
    raise ConnectionRefusedError(message)


async def examine(ward: Ward) -> list[Finding]:
    """All checks that need the broker."""
    found = list(_transport(ward))
    for name, check in CHECKS.items():
        try:
            found += await check(ward)
        except _FAILURES as error:
            found.append(not_checked(name, str(error) or type(error).__name__))
    return found


async def last_sequence(ward: Ward) -> int | None:
    """The trail's last sequence; None when it does not say."""
    try:
        return (await ward.js.stream_info(TRAIL)).state.last_seq
    except _FAILURES:
        return None


async def _level(ward: Ward) -> list[Finding]:
    level = await api_level(ward.nc)
    seen = f"JetStream API level {level}"
    if level < trail.API_LEVEL:
        return [unsafe("nats-server", f"{seen}; {trail.API_LEVEL} is needed", "install nats-server 2.15 or later")]
    return [well("nats-server", seen)]


async def _streams(ward: Ward) -> list[Finding]:
    problems = await trail.differences(ward.js)
    remedy = "make missing ones with tasktrail init; change the others with the nats command line"
    found = [unsafe("streams", problem, remedy) for problem in problems] or [well("streams", "as they should be")]
    info = await ward.js.stream_info(TRAIL)
    copies = info.config.num_replicas or 1
    if ward.settings.embedded:
        seen = "one copy, on this machine's disk: it is lost with the disk"
        found.append(notice("copies", seen, "back the data directory up, or use a cluster of three (--nats)"))
    elif copies == 1:
        seen = "the trail has one copy: it is lost with that server's disk, and away while that server is"
        found.append(unsafe("copies", seen, "run three servers as a cluster, and tasktrail init --replicas 3"))
    else:
        found.append(well("copies", f"{copies} of the trail"))
    return found


async def _space(ward: Ward) -> list[Finding]:
    sizes: list[tuple[str, int, int]] = []
    account = await ward.js.account_info()
    sizes.append(("JetStream account", account.storage, account.limits.max_storage))
    for name in trail.desired():
        with contextlib.suppress(JetStreamError):
            info = await ward.js.stream_info(name)
            sizes.append((f"stream {name}", info.state.bytes, info.config.max_bytes or -1))
    return list(of_sizes(sizes))


def of_sizes(sizes: list[tuple[str, int, int]]) -> Iterator[Finding]:
    """How full each place is: its name, bytes used and most bytes (below 1: no limit)."""
    check, remedy = "space of streams", "raise its limit: when it is full, every command is refused"
    full = [(name, used, most) for name, used, most in sizes if most > 0 and used > FULL_MUCH * most]
    for name, used, most in full:
        seen = f"{name} holds {used} of {most} bytes ({used / most:.0%})"
        yield unsafe(check, seen, remedy) if used > FULL_MOST * most else notice(check, seen, remedy)
    if not full:
        yield well(check, f"none of {len(sizes)} is nearly full")


async def _clock(ward: Ward) -> list[Finding]:
    before = time.time()
    answer = await ward.nc.request(f"$JS.API.STREAM.INFO.{TRAIL}", b"", timeout=ANSWER_S)
    told: dict[str, Any] = msgspec.json.decode(answer.data, type=dict[str, Any])
    return [clocks.of_broker(str(told.get("ts", "")), before, time.time())]


async def _own_permissions(ward: Ward) -> list[Finding]:
    check = "permissions of the service"
    if ward.settings.embedded:
        return [well(check, "the broker is the service's own; only its password file opens it")]
    permissions = await of_user(ward.nc)
    if permissions is None:
        return [not_checked(check, "the server does not tell this user what it may do ($SYS.REQ.USER.INFO)")]
    allowed = [subject for subject in DESTRUCTIVE if permissions.permit(subject)]
    if allowed:
        seen = f"its NATS user may publish {', '.join(allowed)}: the whole trail can be deleted with its login"
        return [unsafe(check, seen, "deny the user these subjects in the server's configuration")]
    return [well(check, "its NATS user cannot delete, change or purge the trail")]


async def _adapters(ward: Ward) -> list[Finding]:
    check = "permissions of adapters"
    if ward.adapter is None:
        why = "the logins of MCP servers are theirs"
        remedy = "allow each to publish tasktrail.cmd.<its name>.> and to subscribe its own inbox and signals, no more"
        return [not_checked(check, why, remedy)]
    allowed = await _reach(ward.adapter)
    if allowed:
        return [unsafe(check, f"an adapter may {', '.join(allowed)}", "restart tasktrail up: it writes them anew")]
    found = [well(check, "adapters send commands and hear signals, and reach neither trail nor keys")]
    patterns = [one.name for one in ward.settings.servers if not one.named]
    if patterns:
        seen = f"MCP servers that only {', '.join(patterns)} fits share one login: one can speak in another's name"
        found.append(notice(check, seen, "give each a [[servers]] of its own: it gets a login of its own at the start"))
    return found


async def _strangers(ward: Ward) -> list[Finding]:
    check = "connections without credentials"
    bare = Connection(servers=ward.connection.servers)
    try:
        allowed = await _reach(bare)
    except NatsError as error:
        if _REFUSED not in str(error).lower():
            raise
        return [well(check, "the server refuses them")]
    if allowed:
        seen = f"anybody who reaches the server may {', '.join(allowed)}"
        return [unsafe(check, seen, "give the server users with permissions; let only the service's publish trail.>")]
    return [notice(check, "the server takes them, but neither trail nor keys can be reached")]


CHECKS: Mapping[str, _Check] = {
    "nats-server": _level,
    "streams": _streams,
    "space of streams": _space,
    "clock of the broker": _clock,
    "permissions of the service": _own_permissions,
    "permissions of adapters": _adapters,
    "connections without credentials": _strangers,
}
"""What is looked at over a connection."""


async def _reach(connection: Connection) -> list[str]:
    """What a login reaches; its connection is tried once. Raises what connecting and asking raise."""
    denials = Denials()
    options: dict[str, Any] = {"user": connection.user, "password": connection.password} if connection.user else {}
    if connection.inbox_prefix:
        options["inbox_prefix"] = connection.inbox_prefix
    nc = Client()
    try:
        async with asyncio.timeout(ANSWER_S):
            await nc.connect(connection.servers, allow_reconnect=False, error_cb=denials.hear, **options)
        return await reach(nc, denials)
    finally:
        await nc.close()


def _transport(ward: Ward) -> Iterator[Finding]:
    check = "transport to the broker"
    clear = [
        server
        for server in ward.connection.servers
        if urlsplit(server).scheme in {"nats", "ws"} and not is_loopback(urlsplit(server).hostname or "")
    ]
    if clear:
        seen = f"{', '.join(clear)} need not be encrypted: entries and logins may cross the network in the clear"
        yield unsafe(check, seen, "let the servers require TLS and write tls://host:4222")
    else:
        yield well(check, "encrypted, or within this machine")


def of_own_sync(store: Path) -> Finding:
    """Whether an embedded broker writes before it acknowledges, by the configuration it was last started with."""
    try:
        said: dict[str, Any] = msgspec.json.decode((store / "nats.conf").read_bytes(), type=dict[str, Any])
        interval = str(said["jetstream"]["sync_interval"])
    except (OSError, msgspec.MsgspecError, KeyError, TypeError) as error:
        return not_checked("sync", f"{store / 'nats.conf'}: {type(error).__name__}")
    return _synced(interval == "always", f"the embedded broker has sync_interval {interval}")


async def of_monitored_sync(monitor: str) -> list[Finding]:
    """The same of external servers, by their monitoring addresses, comma-separated."""
    if not monitor:
        why = "a NATS client is not told; give each server's monitoring address with --monitor"
        return [not_checked("sync", why, "set sync_interval: always in jetstream {…} of every server")]
    found: list[Finding] = []
    async with httpx.AsyncClient(timeout=ANSWER_S, follow_redirects=False, trust_env=False) as client:
        for address in monitor.split(","):
            try:
                answer = await client.get(f"{address.strip().rstrip('/')}/varz")
                config: dict[str, Any] = answer.json()["jetstream"]["config"]
            except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
                found.append(not_checked("sync", f"{address}/varz: {type(error).__name__}", "check the address"))
                continue
            always = config.get("sync_always") is True
            shown = "always" if always else f"{config.get('sync_interval', 0) / 1e9:g} s"
            found.append(_synced(always, f"{address.strip()} has sync_interval {shown}"))
    return found


def _synced(always: bool, seen: str) -> Finding:  # noqa: FBT001 - a finding of its own has no other argument
    if always:
        return well("sync", seen)
    lost = f"{seen}: what it acknowledged in that time is lost with the power"
    return unsafe("sync", lost, "set sync_interval: always in jetstream {…} of every server")
