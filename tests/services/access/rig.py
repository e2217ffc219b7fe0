"""A process behind the gate on a real server, its clock, and short ways to ask it.

rig = Rig(one, clock)
made = await rig.create()
assert await outcome(rig.get(made.task_id, caller("eve"))) == NOT_FOUND_TEXT
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from tasktrail.events.authority import Method
from tasktrail.events.entry import Entry
from tasktrail.events.errors import (
    TaskNotFound,
)
from tasktrail.events.facts import AccessDenied, TaskSupport
from tasktrail.events.subjects import TRAIL, kind_of
from tasktrail.services import messages
from tasktrail.services.access.callers import Channel
from tasktrail.services.messages import TaskView
from tasktrail.services.settings import Settings
from tasktrail.testing.parts import Clock, Parts, stored

CHANNEL = Channel(server="reports", in_process=False)
ACME, GLOBEX, SISTER = "https://id.example", "https://id.globex.example", "https://second.example"
SETTINGS = Settings(
    tenants={ACME: "acme", SISTER: "acme", GLOBEX: "globex"},
    default_tenant="public",
    ttl_default_ms=60_000,
    ttl_max_ms=120_000,
    poll_interval_ms=777,
)
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
CANARY = "canary-7f3a"


def caller(sub: str = "ana", iss: str = ACME, client_id: str = "desk", method: Method = Method.JWT) -> messages.Caller:
    facts = messages.CredentialFacts(method=method, token_hash="h" * 43)
    return messages.Caller(iss=iss, sub=sub, client_id=client_id, credential=facts)


ANA = caller()
ANONYMOUS = messages.Caller()


def call(method: str, address: str = "192.0.2.1") -> messages.Call:
    return messages.Call(method=method, wire="mcp/2026-07-28", protocol_version="2026-07-28", address=address)


class Rig:
    """A process, its clock, and short ways to ask it."""

    def __init__(self, one: Parts, clock: Clock) -> None:
        self.one, self.clock = one, clock

    async def create(self, who: messages.Caller = ANA, made: str = "c", **fields: Any) -> TaskView:  # noqa: ANN401
        said = messages.CreateTask(
            caller=who,
            call=call("tools/call"),
            command_id=made,
            tool="report",
            task_support=TaskSupport.OPTIONAL,
            arguments={"for": CANARY},
        )
        return await self.one.gate.create(msgspec.structs.replace(said, **fields), CHANNEL)

    async def get(self, handle: str, who: messages.Caller = ANA, address: str = "192.0.2.1") -> TaskView:
        return await self.one.gate.get(
            messages.GetTask(caller=who, call=call("tasks/get", address), task_id=handle), CHANNEL
        )

    async def update(
        self, handle: str, answers: dict[str, Any], who: messages.Caller = ANA, made: str = "u"
    ) -> messages.Done:
        said = messages.UpdateTask(
            caller=who, call=call("tasks/update"), command_id=made, task_id=handle, answers=answers
        )
        return await self.one.gate.update(said, CHANNEL)

    async def cancel(self, handle: str, who: messages.Caller = ANA) -> messages.Done:
        said = messages.CancelTask(caller=who, call=call("tasks/cancel"), command_id="x", task_id=handle)
        return await self.one.gate.cancel(said, CHANNEL)

    async def watch(self, *handles: str, who: messages.Caller = ANA) -> tuple[TaskView, ...]:
        said = messages.WatchTasks(caller=who, call=call("subscriptions/listen"), task_ids=handles)
        return (await self.one.gate.watch(said, CHANNEL)).tasks

    async def ask(self, ref: str, *keys: str) -> None:
        asks = {key: messages.InputAsk(method="elicitation/create", params={"requestedSchema": SCHEMA}) for key in keys}
        said = messages.RequestInput(task_ref=ref, command_id=f"ask {keys}", asks=asks)
        await self.one.work.ask(said, CHANNEL)

    async def complete(self, ref: str, result: object = "done") -> None:
        said = messages.CompleteTask(task_ref=ref, command_id="done", result={"text": result})
        await self.one.work.complete(said, CHANNEL)

    async def entries(self, kind: str = "") -> list[Entry]:
        """On the trail now, of one kind of subject or all."""
        found = await stored(self.one.js)
        return [message.entry for message in found if not kind or kind_of(message.subject) == kind]

    async def denials(self) -> list[tuple[str, Entry, AccessDenied]]:
        """Those on the trail, with the tenant they are shown to."""
        await self.one.recorder.flush()
        return [
            (entry.tenant, entry, event)
            for entry in await self.entries("denied")
            for event in entry.events
            if isinstance(event, AccessDenied)
        ]

    @asynccontextmanager
    async def full(self) -> AsyncGenerator[None]:
        """While this lasts the trail takes nothing more; it can be read."""
        info = await self.one.js.stream_info(TRAIL)
        update: Any = self.one.js.update_stream  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # nats-py's options have no types
        info.config.max_msgs = max(1, info.state.messages)
        await update(info.config)
        try:
            yield
        finally:
            info.config.max_msgs = -1
            await update(info.config)


Act = Callable[[Rig, str, messages.Caller], Awaitable[object]]


async def watched(rig: Rig, handle: str, who: messages.Caller) -> None:
    """A subscription is not refused: what it was not granted is left out."""
    if not await rig.watch(handle, who=who):
        raise TaskNotFound


ACTS: dict[str, Act] = {
    "get": lambda rig, handle, who: rig.get(handle, who),
    "update": lambda rig, handle, who: rig.update(handle, {"a": {"action": "decline"}}, who, "foreign"),
    "cancel": lambda rig, handle, who: rig.cancel(handle, who),
    "watch": watched,
}


async def outcome(act: Awaitable[object]) -> str | None:
    """The text of `TaskNotFound`, or None when it was allowed."""
    try:
        await act
    except TaskNotFound as error:
        return error.message
    return None
