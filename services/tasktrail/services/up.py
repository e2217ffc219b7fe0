"""The composition root: everything in one process, or the streams of an external server made.

Guarantees: `run` prints what runs where and how to feed it, shows progress while a large trail is caught up, and ends
cleanly on SIGINT and SIGTERM; a second one on the same data is refused; what cannot start says what to do.

    run(load(os.environ, data=Path(".tasktrail")), demo=False)
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import uvloop
from litestar.handlers import HTTPRouteHandler
from nats.errors import Error as NatsError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tasktrail.events.errors import TasktrailError
from tasktrail.events.subjects import TRAIL
from tasktrail.services import responder, trail
from tasktrail.services.broker import BrokerError, end_child, require_api_level
from tasktrail.services.bundling import Bundling
from tasktrail.services.clock import now_ms, rfc3339
from tasktrail.services.connection import Connection
from tasktrail.services.exporting import Exporting
from tasktrail.services.free_sql import FreeSql
from tasktrail.services.handing_out import HandingOut
from tasktrail.services.http import bundling, ingest, querying, sql, unsealing
from tasktrail.services.http.app import create_app
from tasktrail.services.http.described import described
from tasktrail.services.http.edge import Hosts
from tasktrail.services.http.endpoint import Endpoint
from tasktrail.services.http.endpoint_results import Earlier
from tasktrail.services.http.log import log_routes, tlog
from tasktrail.services.http.operating import routes
from tasktrail.services.http.server import Server
from tasktrail.services.ingesting import Ingesting
from tasktrail.services.querying import Querying
from tasktrail.services.reading import Reading
from tasktrail.services.sandbox import Sandbox
from tasktrail.services.servers import Servers
from tasktrail.services.service import ADAPTER_FILE, Service, make_keys, shown
from tasktrail.services.settings import Settings
from tasktrail.services.snapshots import SNAPSHOTS, Snapshots
from tasktrail.services.unsealing import Unsealing

EXIT_OK, EXIT_FAILED, EXIT_UNAVAILABLE = 0, 1, 3
_CATCH_UP_POLL_S = 0.1
_DEMO_STOP_S = 5.0


def run(settings: Settings, *, demo: bool = False) -> int:
    """Run the service until it is told to stop. Returns the process's exit code."""
    console = Console(stderr=False, highlight=False, soft_wrap=True)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, console, demo=demo))
    except (TasktrailError, BrokerError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"tasktrail: {error}", markup=False)
        return EXIT_UNAVAILABLE
    except OSError as error:
        place = shown(settings.nats_url) or settings.data
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"tasktrail: {place}: {error}", markup=False)
        return EXIT_UNAVAILABLE


async def _serve(settings: Settings, console: Console, *, demo: bool) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    responder.prepare(settings.data)
    async with contextlib.AsyncExitStack() as stack:
        service = Service(settings)
        await service.start()
        stack.push_async_callback(service.stop)
        snapshots = Snapshots(service.auditor.store, settings.data / SNAPSHOTS)
        stack.push_async_callback(snapshots.close)
        token = responder.open_token(settings.data)
        ingesting = Ingesting(service.desk, service.moved)
        hosts = Hosts(settings.host, settings.hosts)
        earlier = Earlier(service.desk, service.moved, service.keyring.ref)
        app = create_app(
            Reading(service),
            token=token,
            hosts=hosts,
            operators=settings.operators,
            acting=[
                *routes(service.operating, service.policing),
                *log_routes(service.notary),
                *_responding(service, snapshots),
                *querying.routes(Querying(service), Exporting(service)),
                *bundling.routes(Bundling(service)),
            ],
            beside=[
                tlog(service.notary),
                described(version("tasktrail")),
                ingest.router(ingesting, payload_max_bytes=settings.payload_max_bytes),
            ],
            servers=_servers(settings),
            endpoint=_endpoint(service, earlier),
            closing=[ingesting.close, earlier.close],
            version=version("tasktrail"),
        )
        server = await Server.start(app, host=settings.host, port=settings.port)
        stack.push_async_callback(server.stop)
        here = responder.Running(url=server.url, pid=os.getpid(), started_at=rfc3339(now_ms()))
        responder.publish(settings.data, here)
        stack.callback(responder.withdraw, settings.data)
        _introduce(console, settings, service, server)
        await _catch_up(service, console, stopping)
        if demo and not stopping.is_set():
            stack.push_async_callback(asyncio.to_thread, end_child, _start_demo(settings), _DEMO_STOP_S)
        return await _until_stopped(service, stopping, console)


def _servers(settings: Settings) -> Servers:
    """The MCP servers that may feed this over HTTP; all of them by one token while none is configured."""
    everyone = "" if settings.servers else responder.open_token(settings.data, responder.SERVER_TOKEN_FILE)
    return Servers(settings.servers, everyone=everyone)


def _endpoint(service: Service, earlier: Earlier) -> Endpoint:
    """What answers `tasks/*` in the MCP servers' stead."""
    return Endpoint(service.desk, service.callers, earlier, payload_max_bytes=service.settings.payload_max_bytes)


def _responding(service: Service, snapshots: Snapshots) -> list[HTTPRouteHandler]:
    """What responders ask in words of their own."""
    free = FreeSql(service, snapshots, Sandbox(service.settings.responders))
    return [*sql.routes(free, HandingOut(service, snapshots)), *unsealing.routes(Unsealing(service))]


async def _until_stopped(service: Service, stopping: asyncio.Event, console: Console) -> int:
    waiting = asyncio.create_task(stopping.wait())
    watched: set[asyncio.Future[Any]] = {waiting, service.failed, service.auditor.ended}
    await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for ended in (service.failed, service.auditor.ended):
        if ended.done() and not ended.cancelled() and ended.exception() is not None:
            console.print(f"tasktrail: {ended.exception()}", markup=False)
            return EXIT_FAILED
    console.print("stopping")
    return EXIT_OK


def _introduce(console: Console, settings: Settings, service: Service, server: Server) -> None:
    where = service.broker.url if service.broker else shown(settings.nats_url)
    target = str(settings.data / ADAPTER_FILE) if service.broker else shown(settings.nats_url)
    command = "uv run tasktrail" if "UV" in os.environ else "tasktrail"
    lines = [
        f"tasktrail {version('tasktrail')}",
        f"  data       {settings.data}",
        f"  broker     {where}" + (" (embedded)" if service.broker else ""),
        f"  responders {server.url}  (token in {settings.data / responder.TOKEN_FILE})",
        "",
        "Feed it from an MCP server:",
        f'  tasks = Tasks.connect("{target}", tools={{"my_tool": "optional"}})',
        '  mcp = MCPServer("my-server", extensions=[tasks], lifespan=tasks.lifespan)',
        f"From any other, in any language: {server.url}/ingest/v1"
        + ("" if settings.servers else f"  (token in {settings.data / responder.SERVER_TOKEN_FILE})"),
        "Look at it:",
        f"  {command} tasks --data {settings.data}",
        f"  {command} tail --data {settings.data}",
        "",
    ]
    for line in lines:
        console.print(line, markup=False)


async def _catch_up(service: Service, console: Console, stopping: asyncio.Event) -> None:
    """Show progress until both projections have what the trail held at the start."""
    target = service.projector.target
    columns = (TextColumn("catching up {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    if not _caught_up(service):
        with Progress(*columns, console=console, transient=True) as progress:
            bars = {name: progress.add_task(name, total=target) for name in ("current states", "audit store")}
            while not _caught_up(service) and not stopping.is_set() and service.auditor.failed is None:
                progress.update(bars["current states"], completed=min(target, service.projector.position))
                progress.update(bars["audit store"], completed=min(target, service.auditor.position))
                await asyncio.sleep(_CATCH_UP_POLL_S)
    if not stopping.is_set():
        console.print(f"ready: {target} entries on the trail" if target else "ready: the trail is empty")


def _caught_up(service: Service) -> bool:
    return service.projector.ready and service.auditor.ready


def _start_demo(settings: Settings) -> "subprocess.Popen[bytes]":
    """The demo MCP server with its traffic, as a process of its own: it speaks to us as any MCP server would."""
    connect = str(settings.data / ADAPTER_FILE) if settings.embedded else settings.nats_url
    return subprocess.Popen(  # noqa: S603 - this environment's own Python and package
        [sys.executable, "-m", "tasktrail.demo", "serve", "--connect", connect, "--data", str(settings.data)],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def init(settings: Settings) -> int:
    """Make the streams and keys for an external NATS server; safe to repeat. Returns the process's exit code."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        return asyncio.run(_init(settings, console))
    except (TasktrailError, BrokerError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"tasktrail: {error}", markup=False)
        return EXIT_UNAVAILABLE
    except OSError as error:
        message = f"tasktrail: no NATS server answers at {shown(settings.nats_url)}: {error}"
        Console(stderr=True, highlight=False, soft_wrap=True).print(message, markup=False)
        return EXIT_UNAVAILABLE
    except NatsError as error:
        needs = f"; --replicas {settings.replicas} needs a cluster with as many nodes" if settings.replicas > 1 else ""
        told: object = getattr(error, "description", None) or error
        message = f"tasktrail: {shown(settings.nats_url)} did not make the streams: {told}{needs}"
        Console(stderr=True, highlight=False, soft_wrap=True).print(message, markup=False)
        return EXIT_UNAVAILABLE


async def _init(settings: Settings, console: Console) -> int:
    responder.prepare(settings.data)
    nc = await Connection.from_text(settings.nats_url, settings.nats_credentials).connect("tasktrail init")
    try:
        await require_api_level(nc, trail.API_LEVEL)
        js = nc.jetstream()
        made = await trail.create(
            js, replicas=settings.replicas, within_s=trail.CLUSTER_WITHIN_S if settings.replicas > 1 else 0.0
        )
        make_keys(settings.data, (await js.stream_info(TRAIL)).state.last_seq)
        problems = await trail.differences(js, replicas=settings.replicas)
    finally:
        await nc.close()
    for name in made:
        console.print(f"made stream {name}", markup=False)
    for problem in problems:
        console.print(f"not as it should be: {problem}", markup=False)
    if problems:
        console.print("change these with the nats command line; tasktrail changes no existing stream")
        return EXIT_FAILED
    console.print(f"the streams are as they should be; keys in {settings.data / 'keys'} (back them up)", markup=False)
    return EXIT_OK
