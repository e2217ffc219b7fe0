"""Stories of tasks, told command by command to a running service by a plain NATS client, over whatever breaks.

Each story knows what each of its commands must come to; what the service acknowledged instead is kept in `wrong`, and
everything that it acknowledged in `acknowledged`. Methods and answers are SEP-2663's, outcomes those of the design.

    teller = Teller(await Feeder.connect(up.adapter(), "campaign"), seed=1)
    await teller.tell(2_000)
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tasktrail.testing.feeding import Feeder, Json, Refused, asked, caller, creation

WORKERS = 32
WRONG_MAX = 20

ANA, BEN = caller("ana"), caller("ben", client_id="desk")
EVE = caller("ana", iss="https://elsewhere.example")
STRANGER = "a" * 32
FORM: Json = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
ASK: Json = {"method": "elicitation/create", "params": {"message": "Who?", "requestedSchema": FORM}}
ANSWER: Json = {"action": "accept", "content": {"name": "Luca"}}
SAMPLE: Json = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 5}}
SAMPLED: Json = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "yes"}}
LARGE = "large " * 10_000


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
        self.random = random.Random(seed)  # noqa: S311 - a reproducible mixture, no secret
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
        while self.commands < goal and len(self.wrong) < WRONG_MAX:
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

    async def work(self, action: str, expected: tuple[str, str] | None = ("accepted", ""), **fields: object) -> Json:
        """What the worker reports; `expected` None: whatever comes first wins."""
        said = {"task_ref": self.ref, "command_id": self._next(), **fields}
        view = await self.teller.settled(action, said)
        told = outcome(view)
        if expected is not None:
            self._expect(action, told, expected)
        self._keep(action, said, told)
        return view

    async def call(self, action: str, expected: tuple[str, str] | None = ("accepted", ""), **fields: object) -> None:
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


def outcome(view: Json) -> tuple[str, str]:
    """What a worker is told became of its command: outcome and reason."""
    return view.get("outcome", "accepted"), view.get("reason", "")


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
    ends: tuple[tuple[str, Json], ...] = (
        ("complete", {"result": 1}),
        ("stop", {}),
        ("fail", {"error": {"code": 1, "message": "x"}}),
    )
    views = await asyncio.gather(*(life.work(action, None, **fields) for action, fields in ends))
    won = [view["status"] for view in views if outcome(view)[0] == "accepted"]
    if len(won) != 1 or {view["status"] for view in views} != set(won):
        life.teller.wrong.append(f"life {life.number}: three raced to the end, {views}")
    await life.get(won[0] if won else "?")


STORIES: tuple[Callable[[Life], Awaitable[None]], ...] = (
    *(completed, answered, cancelled, failed) * 4,
    *(lost, denied, raced) * 2,
    large,
)
