"""Given, when, then: what a task's rules make of a command, told as its history, the command and the outcome.

Guarantees: needs no broker, no clock and nothing of pytest; a scenario that does not hold is an AssertionError that
names both sides. Times count from `NOW_MS`; payloads are stand-ins that differ when their text does.

    given(created(), asked("name")).when(CancelTask(id="c")).then(CancelRequested(at_ms=LATER_MS))
    given().when(CancelTask(id="c")).then_refused("no_such_task")
    given(created(), completed()).when(CancelTask(id="c")).then_refused("terminal")
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Self, cast

import msgspec

from tasktrail.events import commands, decide
from tasktrail.events.authority import (
    Authority,
    Binding,
    Client,
    Credential,
    Level,
    Method,
    Principal,
    Request,
    Trigger,
)
from tasktrail.events.authority import Verification as Checked
from tasktrail.events.facts import (
    CancelRequested,
    Commitment,
    InputRequested,
    InputResponded,
    Status,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskEvent,
    TaskExpired,
    TaskFailed,
    TaskResumed,
    TaskSupport,
    WorkerLost,
    WorkTaken,
)
from tasktrail.events.task import Outcome, Task, outcome_of, replay

NOW_MS = 1_800_000_000_000
"""When the tasks of scenarios are created, epoch milliseconds."""

LATER_MS = NOW_MS + 1_000
"""When a scenario's command comes, unless it says otherwise."""

TTL_MS = 60_000
ELICITATION = "elicitation/create"
ANA = Binding(tenant="acme", iss="https://id.example", sub="ana", client_id="desk")


def sealed(name: str, text: str = "") -> Commitment:
    """A commitment to a payload: the same for the same name and text."""
    digest = hashlib.sha256(f"{name}\0{text}".encode()).hexdigest()
    return Commitment(name=name, sha256=digest, mac=digest[::-1], size=len(text) + 28)


def authority(who: Binding = ANA, trigger: Trigger = Trigger.CALLER, level: Level = Level.ASSERTED) -> Authority:
    """A step by this identity context, as its MCP server says."""
    return Authority(
        trigger=trigger,
        tenant=who.tenant,
        principal=Principal(iss=who.iss, sub=who.sub, level=level),
        client=Client(client_id=who.client_id, level=level),
        credential=Credential(method=Method.JWT, verification=Checked.OK, token_hash="h" * 43, level=level),
        request=Request(method="tools/call", server="reports"),
    )


def create(made: str = "create", **changes: Any) -> commands.CreateTask:  # noqa: ANN401 - fields of `CreateTask`
    """The command that makes a task of `ANA`; `made` is the command's id."""
    command = commands.CreateTask(
        id=made,
        binding=ANA,
        server="reports",
        tool="report",
        task_support=TaskSupport.OPTIONAL,
        wire="mcp/2026-07-28",
        protocol_version="2026-07-28",
        granted_ttl_ms=TTL_MS,
        poll_interval_ms=1_000,
        handle=sealed("handle"),
        arguments=sealed("arguments"),
    )
    return msgspec.structs.replace(command, **changes)


def created(**changes: Any) -> TaskCreated:  # noqa: ANN401 - fields of `CreateTask`
    """The creation of a task of `ANA` at `NOW_MS`."""
    return cast("TaskCreated", decide.decide(create(at_ms=NOW_MS, **changes), None)[0])


def asked(key: str) -> InputRequested:
    """A request for input under this key."""
    return InputRequested(at_ms=NOW_MS + 1, key=key, method=ELICITATION, request=sealed(f"request.{key}"))


def answered(key: str) -> InputResponded:
    """The answer to it."""
    response = sealed(f"response.{key}")
    return InputResponded(at_ms=NOW_MS + 2, key=key, method=ELICITATION, action="accept", response=response)


def resumed() -> TaskResumed:
    """Nothing is outstanding any more."""
    return TaskResumed(at_ms=NOW_MS + 2)


def completed() -> TaskCompleted:
    """The work is done."""
    return TaskCompleted(at_ms=NOW_MS + 3, result=sealed("result"))


def failed() -> TaskFailed:
    """The work ended in a JSON-RPC error."""
    return TaskFailed(at_ms=NOW_MS + 3, error=sealed("error"), code=-32603)


def cancel_requested() -> CancelRequested:
    """The task is to stop."""
    return CancelRequested(at_ms=NOW_MS + 3)


def cancelled(reason: str = "requested") -> TaskCancelled:
    """The task stopped."""
    return TaskCancelled(at_ms=NOW_MS + 4, reason=reason)


def worker_lost(worker: str = "w1", *, rerun: bool = True) -> WorkerLost:
    """The process doing the work went away."""
    return WorkerLost(at_ms=NOW_MS + 1, cause="lease", worker=worker, rerun=rerun)


def taken(worker: str = "w2", attempt: int = 2) -> WorkTaken:
    """Another process took the work."""
    return WorkTaken(at_ms=NOW_MS + 2, worker=worker, attempt=attempt)


def expired() -> TaskExpired:
    """The handle's time ended."""
    return TaskExpired(at_ms=NOW_MS + TTL_MS)


def given(*history: TaskEvent) -> "Given":
    """A task with this history; without one there is no task yet."""
    return Given(history)


class Given:
    """A history to which a command comes."""

    def __init__(self, history: Iterable[TaskEvent]) -> None:
        self.history = tuple(history)
        self.task = replay(self.history) if self.history else None

    def when(self, command: commands.TaskCommand) -> "Then":
        """The command comes at its own `at_ms`, or at `LATER_MS` when it has none."""
        at_ms = command.at_ms or LATER_MS
        return Then(self, decide.decide(msgspec.structs.replace(command, at_ms=at_ms), self.task))


class Then:
    """What the command caused: `events`, and the task after them (None while there is none)."""

    def __init__(self, before: Given, events: tuple[TaskEvent, ...]) -> None:
        self.before, self.events = before, events
        self.outcome, self.reason = outcome_of(events)

    @property
    def task(self) -> Task | None:
        """The task after the events."""
        if self.before.task is None and self.outcome is Outcome.REFUSED:
            return None
        return replay((*self.before.history, *self.events))

    def then(self, *events: TaskEvent) -> Self:
        """Exactly these events."""
        _same("the events", self.events, events)
        return self

    def then_refused(self, reason: str) -> Self:
        """One refusal, for this reason, and a task as it was before."""
        _same("the outcome", (self.outcome, self.reason, len(self.events)), (Outcome.REFUSED, reason, 1))
        _same("the task after a refusal", self.task, self.before.task)
        return self

    def then_nothing(self) -> Self:
        """Nothing to record."""
        _same("the events", self.events, ())
        return self

    def then_task(self, status: Status, fields: Mapping[str, object] | None = None) -> Self:
        """A task of this status, with these values in its fields."""
        task = self.task
        wanted = {"status": status, **(fields or {})}
        _same("the task", {name: getattr(task, name) for name in wanted}, wanted)
        return self


def _same(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        message = f"{what}: expected {wanted!r}, found {found!r}"
        raise AssertionError(message)
