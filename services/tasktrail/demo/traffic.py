"""`tasktrail up --demo`: an MCP server with gentle traffic, so that there is something to look at.

Guarantees: one task every few seconds and `LIVE_MAX` live ones at most; an absent tasktrail is waited for; ends within
seconds of SIGINT, SIGTERM, or the end of the process that started it.

    serve("/data/adapter.json", data=None, port=0, every_s=4.0)
"""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from mcp.shared.exceptions import MCPError
from nats.errors import Error as NatsError

from tasktrail.demo.hosting import hosting, listener, url_of
from tasktrail.demo.people import Person, TaskSeen, terminal
from tasktrail.demo.tools import Floor, build
from tasktrail.events.errors import InvalidRequest
from tasktrail.mcp.verifier import Issuer
from tasktrail.services.access.rules import Rule
from tasktrail.services.connection import Connection
from tasktrail.testing.issuer import LocalIssuer

EXIT_OK, EXIT_UNAVAILABLE = 0, 3
LIVE_MAX = 4
TOKEN_S = 600.0
CLIENT_ID = "portal"
_WITHIN_S = 30.0
_PARENT_POLL_S = 0.5
_THINKING_S = 1.5

_log = logging.getLogger(__name__)


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    """Who is there."""

    ana: Person
    bob: Person
    eve: Person


async def _report(crowd: Crowd, number: int) -> None:
    made = await crowd.ana.start("quarterly_report", quarter=f"Q{number % 4 + 1}")
    await crowd.ana.until(made.task_id, terminal, _WITHIN_S)


async def _reconcile(crowd: Crowd, number: int) -> None:
    made = await crowd.bob.start("reconcile", account=f"account {number}")
    await crowd.bob.until(made.task_id, terminal, _WITHIN_S)


async def _export(crowd: Crowd, number: int) -> None:
    made = await crowd.eve.start("export_ledger", target=f"partner {number}")
    await crowd.eve.until(made.task_id, terminal, _WITHIN_S)


async def _pay(crowd: Crowd, number: int) -> None:
    await _answered(crowd.ana, "pay_invoice", invoice=f"invoice {number}")


async def _summarise(crowd: Crowd, number: int) -> None:
    await _answered(crowd.bob, "summarise", document=f"document {number}")


async def _answered(person: Person, tool: str, **arguments: object) -> None:
    """Run a tool and answer what it asks, one question after the other, as slowly as people do."""
    made = await person.start(tool, **arguments)
    while not terminal(task := await person.until(made.task_id, _asks_or_ends, _WITHIN_S)):
        await asyncio.sleep(_THINKING_S)
        await person.answer(task, next(iter(task.input_requests)))


def _asks_or_ends(task: TaskSeen) -> bool:
    return bool(task.input_requests) or terminal(task)


async def _rebuild(crowd: Crowd, number: int) -> None:
    made = await crowd.ana.start("rebuild_index", name=f"index {number}")
    await asyncio.sleep(3 * _THINKING_S)
    await crowd.ana.cancel(made.task_id)
    await crowd.ana.until(made.task_id, terminal, _WITHIN_S)


async def _backup(crowd: Crowd, number: int) -> None:
    made = await crowd.bob.start("nightly_backup", name=f"mailbox {number}")
    with contextlib.suppress(MCPError):  # the handle opens nothing once it has expired
        await crowd.bob.until(made.task_id, terminal, _WITHIN_S)


async def _attack(crowd: Crowd, number: int) -> None:
    made = await crowd.ana.start("delete_customer", customer=f"customer {number}")
    task = await crowd.ana.until(made.task_id, _asks_or_ends, _WITHIN_S)
    for attempt in (crowd.eve.get, crowd.eve.cancel):
        with contextlib.suppress(MCPError):
            await attempt(made.task_id)
    await asyncio.sleep(_THINKING_S)
    await crowd.ana.answer(task, next(iter(task.input_requests)))
    await crowd.ana.until(made.task_id, terminal, _WITHIN_S)


Kind = Callable[[Crowd, int], Awaitable[None]]
KINDS: tuple[Kind, ...] = (_report, _pay, _reconcile, _rebuild, _summarise, _attack, _export, _backup)
"""What happens, in turn."""


class Traffic:
    """One task after the other, whatever becomes of them."""

    def __init__(self, crowd: Crowd, hint: str) -> None:
        self._crowd, self._hint = crowd, hint
        self._troubled = ""

    async def flow(self, every_s: float) -> None:
        """For ever: the next kind of task every `every_s` seconds, unless `LIVE_MAX` are live."""
        live = asyncio.Semaphore(LIVE_MAX)
        async with asyncio.TaskGroup() as group:
            for number in itertools.count(1):
                await live.acquire()
                group.create_task(self._one(KINDS[number % len(KINDS)], number, live))
                await asyncio.sleep(every_s)

    async def _one(self, kind: Kind, number: int, live: asyncio.Semaphore) -> None:
        trouble = ""
        try:
            await kind(self._crowd, number)
        except MCPError as error:
            trouble = f"{error.error.message}{self._hint if Rule.ISSUER in error.error.message else ''}"
        except Exception as error:  # noqa: BLE001 - one task's failure is no reason to stop
            trouble = f"{type(error).__name__}: {error}"
        finally:
            live.release()
        if trouble and trouble != self._troubled:
            _log.warning("the demo goes on in spite of this: %s", trouble)
        self._troubled = trouble


class _Token:
    """A token that is renewed in time."""

    def __init__(self, issuer: LocalIssuer, name: str, audience: str) -> None:
        self._issuer, self._name, self._audience = issuer, name, audience
        self._text, self._renew = "", float("-inf")

    def __call__(self) -> str:
        if time.monotonic() >= self._renew:
            self._text = self._issuer.issue(self._name, CLIENT_ID, "tools", TOKEN_S, aud=self._audience)
            self._renew = time.monotonic() + TOKEN_S / 2
        return self._text


def serve(target: str, *, data: Path | None, port: int, every_s: float) -> int:
    """Serve and keep busy until stopped. Returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="demo: %(message)s", stream=sys.stderr)
    parent = os.getppid()  # at once: it may end while we start
    try:
        return asyncio.run(_serve(target, data, port, every_s, parent))
    except (InvalidRequest, NatsError, OSError) as error:
        sys.stderr.write(f"demo: {error or type(error).__name__}; is `tasktrail up` running?\n")
        return EXIT_UNAVAILABLE


async def _serve(target: str, data: Path | None, port: int, every_s: float, parent: int) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await (await Connection.from_text(target).connect("tasktrail demo")).close()
    with LocalIssuer() as acme, LocalIssuer() as globex, listener(port) as listening:
        url = url_of(listening)
        issuers = [Issuer(one.url, one.jwks_url, url) for one in (acme, globex)]
        async with hosting(build(target=target, url=url, issuers=issuers, floor=Floor()), listening):
            _introduce(url, data)
            hint = f'; give the service TASKTRAIL_TENANTS with "{acme.url}" and "{globex.url}" too'
            busy = asyncio.create_task(_busy({"ana": acme, "bob": acme, "eve": globex}, url, hint, every_s))
            watching = asyncio.create_task(_parent_gone(parent))
            told = asyncio.create_task(stopping.wait())
            await asyncio.wait({busy, watching, told}, return_when=asyncio.FIRST_COMPLETED)
            for task in (watching, told, busy):
                task.cancel()
            await asyncio.gather(watching, told, busy, return_exceptions=True)
    return EXIT_OK


async def _busy(issuers: dict[str, LocalIssuer], url: str, hint: str, every_s: float) -> None:
    async with contextlib.AsyncExitStack() as stack:
        people = {
            name: await stack.enter_async_context(Person(name, url=url, token=_Token(issuer, name, url)))
            for name, issuer in issuers.items()
        }
        for name, person in people.items():
            person.content = {"approve": True, "cost_centre": "4711"}
            person.words = f"what {name}'s model made of it"
        await Traffic(Crowd(**people), hint).flow(every_s)


async def _parent_gone(parent: int) -> None:
    """Until the process that started us has ended."""
    while os.getppid() == parent:  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(_PARENT_POLL_S)


def _introduce(url: str, data: Path | None) -> None:
    where = f" --data {data}" if data is not None else ""
    lines = (
        f"demo: an MCP server at {url} with some traffic of ana, bob and eve",
        f"demo: watch it with: tasktrail tail{where}",
    )
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
