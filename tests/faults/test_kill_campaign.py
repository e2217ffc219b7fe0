"""`kill -9` of the service, and of its broker alone, again and again in the middle of traffic, on the same data.

Issue "main job": every acknowledged command present exactly once, both projections equal to a rebuild from the trail.
Design section 1: durable before visible; a repeat of a command id returns the first outcome; a restart records a gap.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from nats.aio.client import Client

from tasktrail.events.facts import AccessDenied, GapFound, ResultDisclosed, TaskPolled
from tasktrail.events.subjects import entry_id
from tasktrail.events.task import outcome_of
from tasktrail.testing.feeding import Feeder, Json, Refused, asked, caller, creation
from tasktrail.testing.rebuild import Book, audit_differences, current_differences
from tasktrail.testing.service import UpProcess

KILLS = 20
COMMANDS = 2_000
WORKERS = 32
REPEATED = 200
SETTLED_WITHIN_S = 30.0

ANA, BEN = caller("ana"), caller("ben", client_id="desk")
EVE = caller("ana", iss="https://elsewhere.example")
STRANGER = "a" * 32
FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
ASK = {"method": "elicitation/create", "params": {"message": "Who?", "requestedSchema": FORM}}
ANSWER = {"action": "accept", "content": {"name": "Luca"}}
SAMPLE = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 5}}
SAMPLED = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "yes"}}
LARGE = "large " * 10_000

ENVIRONMENT = {"TASKTRAIL_CANCEL_GRACE_MS": "600000"}
"""No timer ends a cancelled task while the service is down: the stories say what each command comes to."""


class Acknowledged(NamedTuple):
    """A command and what the service said became of it."""

    ref: str
    command_id: str
    outcome: str
    reason: str
    action: str
    said: Json


class Teller:
    """Tells stories, each the life of one task, and keeps what was acknowledged."""

    def __init__(self, feeder: Feeder, seed: int) -> None:
        self.feeder = feeder
        self.random = random.Random(seed)
        self.acknowledged: list[Acknowledged] = []
        self.lives: list[Life] = []
        self.wrong: list[str] = []
        self.commands = 0
        self.looks, self.denials = 0, 0
        self._kill_at, self._reached = 0, asyncio.Event()

    async def tell(self, goal: int) -> None:
        """Tell stories, `WORKERS` at a time, until `goal` commands were acknowledged in all."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(WORKERS):
                workers.create_task(self._tell(goal))

    async def _tell(self, goal: int) -> None:
        while self.commands < goal and len(self.wrong) < KILLS:
            life = Life(self, len(self.lives))
            self.lives.append(life)
            await self.random.choice(STORIES)(life)

    async def reach(self, commands: int) -> None:
        """Wait until so many were acknowledged."""
        self._kill_at = commands
        self._reached.clear()
        await self._reached.wait()

    async def settled(self, action: str, said: Json) -> Json:
        """What became of a command."""
        try:
            return await self.feeder.settled(action, said)
        finally:
            self.commands += 1
            if self.commands >= self._kill_at:
                self._reached.set()


class Life:
    """One task, and what a client and a worker do to it, one command after the other unless it says otherwise."""

    def __init__(self, teller: Teller, number: int) -> None:
        self.teller, self.number = teller, number
        self.who = teller.random.choice((ANA, BEN))
        self.handle, self.ref, self.status = "", "", ""
        self._commands = 0

    async def create(self, arguments: object) -> None:
        said = creation(self.who, self._next(), arguments=arguments)
        view = await self.teller.settled("create", said)
        self.handle, self.ref, self.status = view["task_id"], view["task_ref"], "working"
        self._keep("create", said, ("accepted", ""))

    def _next(self) -> str:
        self._commands += 1
        return f"{self.number}-{self._commands}"

    def _keep(self, action: str, said: Json, told: tuple[str, str]) -> None:
        self.teller.acknowledged.append(Acknowledged(self.ref, said["command_id"], *told, action, said))

    def _expect(self, what: str, told: object, expected: object) -> None:
        if told != expected:
            self.teller.wrong.append(f"life {self.number}, {what}: {told}, not {expected}")

    async def work(self, action: str, expected: tuple[str, str] | None = ("accepted", ""), **fields: Any) -> Json:
        """What the worker reports; `expected` None: whatever comes first wins."""
        said = {"task_ref": self.ref, "command_id": self._next(), **fields}
        view = await self.teller.settled(action, said)
        told = (view.get("outcome", "accepted"), view.get("reason", ""))
        if expected is not None:
            self._expect(action, told, expected)
        self._keep(action, said, told)
        return view

    async def call(self, action: str, expected: tuple[str, str] | None = ("accepted", ""), **fields: Any) -> None:
        """What the client does; it is told only whether an answer was invalid."""
        said = asked(self.who, f"tasks/{action}", command_id=self._next(), task_id=self.handle, **fields)
        told = expected or ("", "")
        try:
            await self.teller.settled(action, said)
        except Refused as refused:
            told = ("refused", refused.reason)
            self._expect(action, told, expected)
        self._keep(action, said, told)

    async def get(self, status: str, **shown: object) -> None:
        """A poll, right the moment the change before it was acknowledged."""
        self.status = status
        self.teller.looks += 1
        view = await self.teller.settled("get", asked(self.who, "tasks/get", task_id=self.handle))
        self._expect("get", {name: view.get(name) for name in ("status", *shown)}, {"status": status, **shown})

    async def denied(self, action: str, said: Json) -> None:
        """A request that must not get anywhere."""
        self.teller.denials += 1
        try:
            self._expect(action, await self.teller.settled(action, said), "a refusal")
        except Refused as refused:
            self._expect(action, (refused.reason, str(refused.error["message"])), ("not_found", "Task not found"))


async def completed(life: Life) -> None:
    await life.create({"number": life.number})
    await life.get("working")
    await life.work("report", message="half", progress=0.5)
    await life.work("report", ("unchanged", ""), message="half", progress=0.7)
    await life.get("working", status_message="half")
    await life.work("complete", result={"content": [{"type": "text", "text": f"done {life.number}"}]})
    await life.get("completed", result={"content": [{"type": "text", "text": f"done {life.number}"}]})
    await life.work("report", ("refused", "terminal"), message="late")
    await life.call("cancel", ("refused", "terminal"))
    await life.get("completed")


async def answered(life: Life) -> None:
    await life.create(None)
    await life.work("ask", asks={"who": ASK, "what": SAMPLE})
    await life.get("input_required", input_requests={"who": ASK, "what": SAMPLE})
    await life.call("update", ("refused", "invalid_answer"), answers={"what": SAMPLED, "who": {"action": "maybe"}})
    await life.call("update", answers={"who": ANSWER})
    await life.get("input_required", input_requests={"what": SAMPLE})
    await life.call("update", ("ignored", ""), answers={"who": ANSWER, "never": {"action": "accept"}})
    await life.call("update", answers={"what": SAMPLED})
    view = await life.work("report", message="thanks")
    if view.get("answers") != {"who": ANSWER, "what": SAMPLED}:
        life.teller.wrong.append(f"life {life.number}: the worker sees the answers {view.get('answers')}")
    await life.work("ask", ("refused", "key_used"), asks={"who": ASK})
    await life.work("complete", result="x", is_error=True)
    await life.get("completed", is_error=True)


async def cancelled(life: Life) -> None:
    await life.create("stop me")
    await life.work("stop", ("refused", "no_cancel_requested"))
    await life.call("cancel")
    await life.call("cancel", ("refused", "already_requested"))
    await life.work("ask", ("refused", "cancel_requested"), asks={"late": ASK})
    await life.work("stop")
    await life.get("cancelled")


async def failed(life: Life) -> None:
    await life.create({"will": "fail"})
    await life.work("ask", asks={"who": ASK})
    await life.work("fail", error={"code": -32050, "message": "no luck", "data": [life.number]})
    await life.get("failed", error={"code": -32050, "message": "no luck", "data": [life.number]})
    await life.call("update", ("refused", "terminal"), answers={"who": ANSWER})


async def lost(life: Life) -> None:
    await life.create(["a", "worker", "goes"])
    await life.work("lose", cause="shutdown")
    await life.get("failed")


async def large(life: Life) -> None:
    await life.create({"text": LARGE})
    await life.work("complete", result={"text": LARGE})
    await life.get("completed", result={"text": LARGE})


async def denied(life: Life) -> None:
    await life.create("mine")
    await life.denied("get", asked(EVE, "tasks/get", task_id=life.handle))
    await life.denied("get", asked(life.who, "tasks/get", task_id=STRANGER))
    await life.denied("get", asked(life.who, "tasks/get", task_id="no handle"))
    await life.denied("cancel", asked(EVE, "tasks/cancel", command_id="e", task_id=life.handle))
    await life.denied("update", asked(EVE, "tasks/update", command_id="e", task_id=life.handle, answers={}))
    await life.denied("collect", {"task_ref": STRANGER})
    await life.get("working")


async def raced(life: Life) -> None:
    """Who comes first wins, the others are refused: which it was, only the answers say."""
    await life.create("race")
    await life.call("cancel")
    ends = (("complete", {"result": 1}), ("stop", {}), ("fail", {"error": {"code": 1, "message": "x"}}))
    views = await asyncio.gather(*(life.work(action, None, **fields) for action, fields in ends))
    won = [view["status"] for view in views if view.get("outcome", "accepted") == "accepted"]
    if len(won) != 1 or {view["status"] for view in views} != set(won):
        life.teller.wrong.append(f"life {life.number}: three raced to the end, {views}")
    await life.get(won[0] if won else "?")


STORIES: tuple[Callable[[Life], Awaitable[None]], ...] = (
    *(completed, answered, cancelled, failed) * 4,
    *(lost, denied, raced) * 2,
    large,
)


class Campaign:
    """One service, what is fed to it, and what its trail says."""

    def __init__(self, up: UpProcess, seed: int) -> None:
        self.up, self.seed = up, seed
        self.book = Book()
        self.teller: Teller
        self._checked = 0

    async def run(self, kill: Callable[[], None]) -> list[str]:
        """`KILLS` rounds of `COMMANDS` with one kill each; what was found wrong, nothing at best."""
        self.teller = Teller(await Feeder.connect(self.up.adapter(), "campaign"), self.seed)
        try:
            for _ in range(KILLS):
                await self._round(kill)
                found = [*self.teller.wrong, *await self._read()]
                if found:
                    return found
            return [*await self._repeated(), *await self._projected()]
        finally:
            await self.teller.feeder.close()

    async def _round(self, kill: Callable[[], None]) -> None:
        start = self.teller.commands
        telling = asyncio.create_task(self.teller.tell(start + COMMANDS))
        await self.teller.reach(start + self.teller.random.randint(COMMANDS // 10, COMMANDS - COMMANDS // 10))
        await asyncio.to_thread(kill)
        await telling

    async def _read(self) -> list[str]:
        """Read on, and look up what was acknowledged since."""
        nc = await self.up.admin().connect("campaign")
        try:
            await self.book.read(nc.jetstream())
        finally:
            await nc.close()
        fresh = self.teller.acknowledged[self._checked :]
        self._checked = len(self.teller.acknowledged)
        return self.book.faults + [fault for one in fresh if (fault := self._missing(one))]

    def _missing(self, one: Acknowledged) -> str:
        """What is wrong with an acknowledged command's entry; nothing at best."""
        found = self.book.entries.get(entry_id(one.ref, one.command_id))
        if one.outcome == "unchanged":
            return f"{one}: it changed nothing and is on the trail" if found else ""
        if found is None:
            return f"{one}: acknowledged, and not on the trail"
        outcome, reason = outcome_of(found[1].events)
        same = found[1].task_ref == one.ref and (not one.outcome or (outcome, reason) == (one.outcome, one.reason))
        return "" if same else f"{one}: the trail says {outcome} {reason}"

    async def _repeated(self) -> list[str]:
        """Send the last commands again: each is answered as it was, and no entry is made."""
        found: list[str] = []
        before = len(self.book.entries)
        for one in self.teller.acknowledged[-REPEATED:]:
            if one.outcome == "unchanged":
                continue  # nothing of it is on the trail: sent again it is decided again
            try:
                view = await self.teller.feeder.settled(one.action, one.said)
                told = (view.get("outcome", one.outcome), view.get("reason", one.reason))
            except Refused as refused:
                told = ("refused", refused.reason)
            if one.action not in {"create", "cancel", "update"} and told != (one.outcome, one.reason):
                found.append(f"{one}: sent again it is {told}")
            if one.action in {"create", "cancel", "update"} and told[0] == "refused" != one.outcome:
                found.append(f"{one}: sent again it is {told}")
        found += await self._read()
        made = [entry for _, entry in list(self.book.entries.values())[before:] if entry.command]
        return found + [f"sent again, a command made an entry: {entry}" for entry in made]

    async def _projected(self) -> list[str]:
        """Every task can be polled with the status acknowledged; the bucket is what the trail folds to."""
        found: list[str] = []
        for life in self.teller.lives:
            status = self.book.states[life.ref].task.status
            if life.status != status and STORIES.count(raced):
                found.append(f"life {life.number}: {life.status} was acknowledged, the trail says {status}")
        sample = self.teller.random.sample(self.teller.lives, REPEATED)
        await asyncio.gather(*(life.get(life.status) for life in sample))
        nc = await self.up.admin().connect("campaign")
        try:
            found += await _settled_bucket(nc, self.book)
        finally:
            await nc.close()
        return found + self.teller.wrong

    async def audited(self, scratch: Path) -> list[str]:
        """Stop the service; its store is what the trail gives row for row."""
        await asyncio.to_thread(self.up.wait_until_ready)
        return []

    def counted(self) -> Counter[str]:
        """How many looks and denials the trail counts, and gaps."""
        counts: Counter[str] = Counter()
        for _, entry in self.book.entries.values():
            for event in entry.events:
                match event:
                    case TaskPolled() | ResultDisclosed():
                        counts["looks"] += event.count
                    case AccessDenied():
                        counts["denials"] += event.count
                    case GapFound():
                        counts["gaps"] += 1
                    case _:
                        pass
        return counts


async def _settled_bucket(nc: Client, book: Book) -> list[str]:
    """Differences of the bucket, once the projector has had time to end its work."""
    js = nc.jetstream()
    deadline = asyncio.get_running_loop().time() + SETTLED_WITHIN_S
    while True:
        await book.read(js)
        found = await current_differences(js, book)
        if not found or asyncio.get_running_loop().time() > deadline:
            return found
        await asyncio.sleep(0.1)
