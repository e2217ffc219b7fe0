"""What happens to long-running tools, one scenario each, played by real clients against a real MCP server.

Guarantees: a scenario only says what it saw; each ends within its bounds or raises. Where its expectations come from:
the tasks extension `io.modelcontextprotocol/tasks` (SEP-2663).

    played = await completed(stage)
"""

import asyncio
import base64
import secrets
from collections.abc import Awaitable, Callable

import msgspec
from mcp.shared.exceptions import MCPError

from tasktrail.demo.checks import Checks, Played
from tasktrail.demo.people import Person, TaskSeen, terminal
from tasktrail.demo.tools import EXPIRES_MS, Floor
from tasktrail.demo.trail import METHODS
from tasktrail.events.errors import NOT_FOUND_TEXT

STOPS_WITHIN_S = 5.0


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Who is there: two users of tenant acme, one of globex; the server's floor; where expectations are noted.

    `secret` is a text to put into every argument, answer, result, message and error.
    """

    ana: Person
    bob: Person
    eve: Person
    floor: Floor
    checks: Checks
    secret: str


Scenario = Callable[[Stage], Awaitable[Played]]


async def completed(stage: Stage) -> Played:
    """A tool that says how far it is, and ends with a result."""
    made = await stage.ana.start("quarterly_report", quarter=f"Q3 {stage.secret}")
    spoken = await stage.ana.until(made.task_id, lambda task: bool(task.status_message) or terminal(task))
    done = await stage.ana.until(made.task_id, terminal)
    stage.checks.hold(
        "a task can be polled the moment it was created, and says how far it is",
        spoken.status == "working" and stage.secret in (spoken.status_message or ""),
        seen=spoken.status,
    )
    stage.checks.hold(
        "a finished tool is `completed`, its result inlined",
        done.status == "completed" and stage.secret in _text(done),
        seen=done.status,
    )
    return Played(
        scenario="completed",
        task_id=made.task_id,
        status=done.status,
        line="ana follows quarterly_report to its result",
    )


async def tool_error(stage: Stage) -> Played:
    """A tool that fails as tools fail."""
    made = await stage.bob.start("reconcile", account=stage.secret)
    done = await stage.bob.until(made.task_id, terminal)
    stage.checks.hold(
        "a tool error is `completed` with isError",
        done.status == "completed" and (done.result or {}).get("isError") is True,
        seen=f"{done.status} {done.result}",
    )
    return Played(
        scenario="tool_error",
        task_id=made.task_id,
        status=done.status,
        line="bob runs reconcile; the tool itself fails",
    )


async def failed(stage: Stage) -> Played:
    """A tool that ends in a JSON-RPC error."""
    made = await stage.eve.start("export_ledger", target=stage.secret)
    done = await stage.eve.until(made.task_id, terminal)
    stage.checks.hold(
        "a JSON-RPC error is `failed` with that error",
        done.status == "failed" and isinstance((done.error or {}).get("code"), int),
        seen=f"{done.status} {done.error}",
    )
    return Played(
        scenario="failed",
        task_id=made.task_id,
        status=done.status,
        line="eve: export_ledger ends in a JSON-RPC error",
    )


async def elicitation(stage: Stage) -> Played:
    """Two questions at once, answered one after the other."""
    ana = stage.ana
    made = await ana.start("pay_invoice", invoice=f"invoice {stage.secret}")
    asked = await ana.until(made.task_id, lambda task: len(task.input_requests) > 1 or terminal(task))
    first, *others = sorted(asked.input_requests, key=lambda key: "cost_centre" in str(asked.input_requests[key]))
    await ana.answer(asked, first)
    half = await ana.get(made.task_id)
    stage.checks.hold(
        "after the first of two answers only the other question is left",
        half.status == "input_required" and list(half.input_requests) == others,
        seen=f"{half.status} {list(half.input_requests)}",
    )
    await ana.answer(half, others[0])
    done = await ana.until(made.task_id, terminal)
    stage.checks.hold(
        "the second answer lets the tool go on with both",
        done.status == "completed" and "paid by" in _text(done) and stage.secret in _text(done),
        seen=done.status,
    )
    return Played(
        scenario="elicitation",
        task_id=made.task_id,
        status=done.status,
        line="ana approves pay_invoice, then says who pays",
    )


async def sampling(stage: Stage) -> Played:
    """A tool that needs the client's model."""
    made = await stage.bob.start("summarise", document=stage.secret)
    asked = await stage.bob.until(made.task_id, lambda task: bool(task.input_requests) or terminal(task))
    methods = [request["method"] for request in asked.input_requests.values()]
    for key in asked.input_requests:
        await stage.bob.answer(asked, key)
    done = await stage.bob.until(made.task_id, terminal)
    stage.checks.hold(
        "a sampling request reaches the client, and its answer the tool",
        methods == ["sampling/createMessage"] and stage.bob.words in _text(done),
        seen=f"{methods} {done.status}",
    )
    return Played(
        scenario="sampling",
        task_id=made.task_id,
        status=done.status,
        line="bob runs summarise; his model is asked",
    )


async def cancelled(stage: Stage) -> Played:
    """A tool that is told to stop."""
    label = f"customers {stage.secret}"
    stopped = stage.floor.watch(label)
    made = await stage.ana.start("rebuild_index", name=label)
    await stage.ana.until(made.task_id, lambda task: bool(task.status_message) or terminal(task))
    await stage.ana.cancel(made.task_id)
    done = await stage.ana.until(made.task_id, terminal)
    stage.checks.hold("a cancelled task is `cancelled`", done.status == "cancelled", seen=done.status)
    stage.checks.hold("its tool was really stopped", await _set(stopped), seen="it runs on")
    await stage.ana.cancel(made.task_id)
    again = await stage.ana.get(made.task_id)
    stage.checks.hold(
        "cancelling it again is acknowledged and changes nothing",
        (again.status, again.last_updated_at) == (done.status, done.last_updated_at),
        seen=again.status,
    )
    return Played(
        scenario="cancelled",
        task_id=made.task_id,
        status=done.status,
        line="ana cancels rebuild_index; the tool stops",
    )


async def expired(stage: Stage) -> Played:
    """A task that outlives its time."""
    label = f"mailboxes {stage.secret}"
    stopped = stage.floor.watch(label)
    made = await stage.ana.start("nightly_backup", name=label)
    gone = ""
    try:
        await stage.ana.until(made.task_id, terminal)
    except MCPError as error:
        gone = error.error.message
    stage.checks.hold(
        f"after {EXPIRES_MS / 1000:g} s to live, polled all along, the handle opens nothing",
        gone == NOT_FOUND_TEXT,
        seen=gone or "it still opens the task",
    )
    stage.checks.hold("an expired task's tool was really stopped", await _set(stopped), seen="it runs on")
    return Played(
        scenario="expired",
        task_id=made.task_id,
        status="cancelled",
        line=f"nightly_backup takes an hour, may live {EXPIRES_MS / 1000:g} s",
    )


async def foreign(stage: Stage) -> Played:
    """Others have the handle, and even the key of its question: it does not help them."""
    ana = stage.ana
    made = await ana.start("delete_customer", customer=stage.secret)
    asked = await ana.until(made.task_id, lambda task: bool(task.input_requests) or terminal(task))
    key = next(iter(asked.input_requests))
    for person, where in ((stage.bob, "same tenant"), (stage.eve, "other tenant")):
        theirs = {method: await _attempt(person, method, made.task_id, key) for method in METHODS}
        unknown = {method: await _attempt(person, method, _made_up(), key) for method in METHODS}
        for method in METHODS:
            answer = theirs[method]
            same = answer is not None and answer == unknown[method] and NOT_FOUND_TEXT.encode() in answer[1]
            what = f"{person.name} ({where}): {method} gets what an unknown id gets, to the byte"
            stage.checks.hold(what, same, seen=f"{theirs[method]} for it, {unknown[method]} for an unknown one")
    after = await ana.get(made.task_id)
    stage.checks.hold(
        "the attacked task did not move",
        (after.status, after.last_updated_at, list(after.input_requests))
        == (asked.status, asked.last_updated_at, list(asked.input_requests)),
        seen=after.status,
    )
    await ana.answer(after, key)
    done = await ana.until(made.task_id, terminal)
    stage.checks.hold("its owner still answers it", done.status == "completed", seen=done.status)
    return Played(
        scenario="foreign",
        task_id=made.task_id,
        status=done.status,
        line="bob and eve try ana's task; she goes on",
    )


SCENARIOS: tuple[Scenario, ...] = (completed, tool_error, failed, elicitation, sampling, cancelled, expired, foreign)
"""In the order they are told; they are played at the same time."""


async def _attempt(person: Person, method: str, task_id: str, key: str) -> tuple[int, bytes] | None:
    match method:
        case "tasks/get":
            return await person.turned_away(lambda: person.get(task_id))
        case "tasks/update":
            answer = {key: {"action": "accept", "content": {"approve": True}}}
            return await person.turned_away(lambda: person.update(task_id, answer))
        case _:
            return await person.turned_away(lambda: person.cancel(task_id))


def _made_up() -> str:
    """An id of the right form that names nothing."""
    return base64.b32encode(secrets.token_bytes(20)).decode().lower()


def _text(task: TaskSeen) -> str:
    """The text of a task's result."""
    parts = (task.result or {}).get("content", [])
    return " ".join(part.get("text", "") for part in parts)


async def _set(event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(STOPS_WITHIN_S):
            await event.wait()
    except TimeoutError:
        return False
    return True
