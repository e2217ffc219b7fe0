"""The gate on a real server: who may do what with a handle, what is told, and what is on the trail first.

Source: promises 1, 4 and 5; features A1 A4 L5 L7 P1; SEP-2663. The trail refuses to take more (`full`) where a test
must see what happens when an entry cannot be written while states can still be read.
"""

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tasktrail.events.authority import BindingCheck, BindingMode, Method, PrincipalKind
from tasktrail.events.entry import Entry
from tasktrail.events.errors import (
    NOT_FOUND_TEXT,
    CommandReused,
    InvalidAnswer,
    InvalidRequest,
    NotAuthorised,
    NothingWritten,
    TaskNotFound,
    TooLarge,
    Unavailable,
)
from tasktrail.events.facts import AccessDenied, InputIgnored, ResultDisclosed, Status, TaskPolled, TaskSupport
from tasktrail.events.subjects import KEYS, TRAIL, key_subject, kind_of
from tasktrail.services import messages
from tasktrail.services.access.callers import Channel
from tasktrail.services.access.gate import ANSWERS_MAX
from tasktrail.services.messages import TaskView
from tasktrail.services.sealing import SealError, Vault
from tasktrail.services.settings import Settings
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Clock, Parts, parts, stored

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


@pytest.fixture
async def rig(fresh_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """Give a process on an empty trail."""
    clock = Clock()
    async with parts(fresh_nats.url, tmp_path, clock, SETTINGS) as one:
        yield Rig(one, clock)


# --- creation and polling ------------------------------------------------------------------------------------------


@pytest.mark.requirement("L1", "L5")
async def test_a_created_task_is_pollable_on_another_replica_at_once(
    rig: Rig, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    """L5, SEP-2663: the handle is not returned before `tasks/get` would resolve it."""
    async with parts(fresh_nats.url, tmp_path, rig.clock, SETTINGS) as other:
        made = await rig.create()
        assert await Rig(other, rig.clock).get(made.task_id) == made
    assert (made.status, made.ttl_ms, made.poll_interval_ms) == (Status.WORKING, 60_000, 777)
    assert made.created_at_ms == made.last_updated_at_ms == rig.clock.ms
    assert made.task_ref != made.task_id


@pytest.mark.requirement("L1")
async def test_a_repeated_creation_names_the_task_it_made_and_another_makes_another(rig: Rig) -> None:
    """Decisions: task ids are derived from server, identity context and command id."""
    made = await rig.create()
    assert await rig.create() == made
    others = [await rig.create(made="c2"), await rig.create(caller("eve")), await rig.create(caller(client_id="cli"))]
    assert len({made.task_id, *(other.task_id for other in others)}) == 4
    with pytest.raises(CommandReused):
        await rig.create(arguments={"other": 1})
    assert len(await rig.entries("task")) == 4


@pytest.mark.requirement("A1", "T1")
async def test_a_repeated_creation_is_an_access_like_any_other(rig: Rig) -> None:
    """What it shows by then is disclosed on the trail first; what is over is not shown at all."""
    made = await rig.create()
    await rig.complete(made.task_ref)
    again = await rig.create()
    assert again.result == {"text": "done"}
    assert [type(event) for entry in await rig.entries("access") for event in entry.events] == [ResultDisclosed]
    rig.clock.advance(60_000)
    with pytest.raises(TaskNotFound):
        await rig.create()


@pytest.mark.requirement("L1", "R1")
async def test_what_each_status_shows(rig: Rig) -> None:
    """SEP-2663: status message, outstanding requests, inlined result or error."""
    made = await rig.create()
    report = messages.ReportStatus(task_ref=made.task_ref, command_id="r", message="half")
    await rig.one.work.report(report, CHANNEL)
    assert (await rig.get(made.task_id)).status_message == "half"
    await rig.ask(made.task_ref, "a", "b")
    parked = await rig.get(made.task_id)
    assert (parked.status, sorted(parked.input_requests)) == (Status.INPUT_REQUIRED, ["a", "b"])
    assert parked.input_requests["a"].params == {"requestedSchema": SCHEMA}
    await rig.update(made.task_id, {"a": {"action": "decline"}})
    assert list((await rig.get(made.task_id)).input_requests) == ["b"]
    await rig.complete(made.task_ref, [1, {"ü": None}])
    done = await rig.get(made.task_id)
    assert (done.status, done.result, done.status_message) == (Status.COMPLETED, {"text": [1, {"ü": None}]}, None)
    assert done.input_requests == {}
    failed = await rig.create(made="f")
    error = messages.RpcError(code=-32000, message="no", data={"x": 1})
    await rig.one.work.fail(messages.FailTask(task_ref=failed.task_ref, command_id="e", error=error), CHANNEL)
    assert (await rig.get(failed.task_id)).error == error


@pytest.mark.requirement("L1")
@pytest.mark.parametrize(
    ("wished", "granted"),
    [(None, 60_000), (0, 60_000), (-5, 60_000), (1, 1), (119_999, 119_999), (120_001, 120_000), (10**15, 120_000)],
)
async def test_the_receiver_grants_the_time_to_live(rig: Rig, wished: int | None, granted: int) -> None:
    """P1: null and huge wishes are capped; requested, granted and effective are recorded."""
    made = await rig.create(ttl_ms=wished)
    assert made.ttl_ms == granted
    (event,) = (await rig.entries("task"))[0].events
    assert (getattr(event, "requested_ttl_ms", 0), getattr(event, "granted_ttl_ms", 0)) == (wished, granted)


@pytest.mark.requirement("L1", "L10")
async def test_access_ends_at_the_time_to_live_and_polling_does_not_extend_it(rig: Rig) -> None:
    """Promise 7, P1: whether or not a timer fired; parked on input it lives as long, not less."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a")
    rig.clock.advance(59_999)
    assert (await rig.get(made.task_id)).status is Status.INPUT_REQUIRED
    await rig.update(made.task_id, {"a": {"action": "decline"}})
    assert (await rig.get(made.task_id)).ttl_ms == 60_000
    rig.clock.advance(1)
    for act in ACTS.values():
        assert await outcome(act(rig, made.task_id, ANA)) is not None


@pytest.mark.requirement("R1", "R4")
async def test_the_trail_and_the_store_hold_no_handle_and_no_payload(rig: Rig, fresh_nats: NatsServer) -> None:
    """Promise 5; R1: arguments, questions, answers and results are sealed, the task id itself too."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a")
    await rig.update(made.task_id, {"a": {"action": "accept", "content": {"name": CANARY}}})
    await rig.complete(made.task_ref, CANARY)
    await rig.get(made.task_id)
    with pytest.raises(TaskNotFound):
        await rig.get(made.task_id, caller("eve"))
    await rig.one.recorder.flush()
    files = [path.read_bytes() for path in fresh_nats.store_dir.rglob("*.blk")]
    assert files
    for secret in (CANARY, made.task_id):
        assert not any(secret.encode() in content for content in files)


@pytest.mark.requirement("R1")
async def test_large_payloads_go_to_the_bucket_and_too_large_ones_nowhere(rig: Rig) -> None:
    """Design section 7: 32 KiB in the entry, 16 MiB at most; refused before anything is written."""
    made = await rig.create(arguments="x" * 40_000)
    await rig.complete(made.task_ref, "y" * 50_000)
    assert (await rig.get(made.task_id)).result == {"text": "y" * 50_000}
    assert [sorted(entry.sealed) for entry in await rig.entries("task")] == [["handle"], []]
    before = (await rig.one.js.stream_info(KEYS)).state.messages
    with pytest.raises(TooLarge, match="more than the maximum of 16777216"):
        await rig.create(made="big", arguments="z" * (16 * 1024 * 1024))
    assert (await rig.one.js.stream_info(KEYS)).state.messages == before
    with pytest.raises(InvalidRequest, match="arguments is not JSON"):
        await rig.create(made="odd", arguments={"x": {1, 2}, "y": object()})


@pytest.mark.requirement("R1")
async def test_a_task_whose_key_is_erased_says_so_to_its_owner(rig: Rig) -> None:
    """R2: unreadable everywhere; it is not passed off as unknown."""
    made = await rig.create()
    await rig.complete(made.task_ref)
    wrapped = await rig.one.js.get_last_msg(KEYS, key_subject(made.task_ref))
    await rig.one.js.delete_msg(KEYS, wrapped.seq or 0)
    rig.one.gate._payloads.vault = Vault(rig.one.js, rig.one.keyring)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]  # a process that does not remember the key
    with pytest.raises(SealError, match="no key is held"):
        await rig.get(made.task_id)


# --- who may do what -----------------------------------------------------------------------------------------------

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

STRANGERS: dict[str, tuple[messages.Caller, tuple[str, ...]]] = {
    "another tenant": (caller(iss=GLOBEX), ("tenant", "iss")),
    "another issuer of the tenant": (caller(iss=SISTER), ("iss",)),
    "another subject": (caller("eve"), ("sub",)),
    "the subject in other letters": (caller("Ana"), ("sub",)),
    "another client": (caller(client_id="cli"), ("client_id",)),
    "no client": (caller(client_id=""), ("client_id",)),
    "nobody": (ANONYMOUS, ("tenant", "iss", "sub", "client_id")),
    "somebody who only says so": (caller(method=Method.NONE), ("tenant", "iss", "sub", "client_id")),
    "anonymous, with a name": (
        messages.Caller(iss=ACME, sub="ana", client_id="desk"),
        ("tenant", "iss", "sub", "client_id"),
    ),
}


async def outcome(act: Awaitable[object]) -> str | None:
    """The text of `TaskNotFound`, or None when it was allowed."""
    try:
        await act
    except TaskNotFound as error:
        return error.message
    return None


@pytest.mark.requirement("A1", "A4")
@pytest.mark.parametrize("stranger", STRANGERS)
async def test_a_handle_opens_its_task_only_for_the_identity_context_that_made_it(rig: Rig, stranger: str) -> None:
    """Promise 4, at every call; the trail says how the caller differs, to the task's owner."""
    who, differs = STRANGERS[stranger]
    made = await rig.create()
    await rig.ask(made.task_ref, "a")
    before = len(await rig.entries("task"))
    for act in ACTS.values():
        assert await outcome(act(rig, made.task_id, who)) == NOT_FOUND_TEXT
    assert len(await rig.entries("task")) == before
    denials = await rig.denials()
    assert [(event.method, event.count) for _, _, event in denials] == [
        ("tasks/get", 1),
        ("tasks/update", 1),
        ("tasks/cancel", 1),
        ("subscriptions/listen", 1),
    ]
    for tenant, entry, event in denials:
        assert tenant == "acme", "a known task's denial goes to its owner's tenant"
        assert entry.authority.binding == BindingCheck(mode=BindingMode.EXACT, differs=differs)
        assert entry.authority.decision is not None
        assert (entry.authority.decision.effect, event.code) == ("deny", -32602)
        assert event.reasons == {"other-identity-context": 1}
        assert event.refs == {made.task_ref: 1}
    for act in ACTS.values():
        assert await outcome(act(rig, made.task_id, ANA)) is None


@pytest.mark.requirement("A1")
async def test_anonymous_callers_of_a_tenant_are_one_another_and_nobody_else(rig: Rig) -> None:
    """Without authentication a handle is all there is; a task of theirs is still not anybody else's."""
    made = await rig.create(ANONYMOUS)
    claims = messages.Caller(iss=ACME, sub="ana", client_id="desk")
    assert (await rig.get(made.task_id, claims)).task_id == made.task_id
    assert await outcome(rig.get(made.task_id, ANA)) == NOT_FOUND_TEXT


@pytest.mark.requirement("A1")
async def test_a_token_is_not_a_binding_input(rig: Rig) -> None:
    """A7: reconnect with a new token, from elsewhere: the same identity context, recorded with what was presented."""
    made = await rig.create()
    facts = messages.CredentialFacts(method=Method.OPAQUE, token_hash="n" * 43, jti="new")
    again = msgspec.structs.replace(ANA, credential=facts, kind=PrincipalKind.MACHINE)
    await rig.complete(made.task_ref)
    assert (await rig.get(made.task_id, again, address="198.51.100.9")).result
    entry = (await rig.entries("access"))[-1]
    assert entry.authority.credential is not None
    assert (entry.authority.credential.jti, entry.authority.credential.token_hash) == ("new", "n" * 43)


@pytest.mark.requirement("A1", "T1")
async def test_each_step_records_the_creating_entry_the_comparison_and_the_decision(rig: Rig) -> None:
    """A3: every follow-up access is recorded against the creating authorisation; orphans: 0."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a")
    await rig.watch(made.task_id)
    await rig.update(made.task_id, {"a": {"action": "decline"}})
    await rig.get(made.task_id)
    await rig.cancel(made.task_id)
    closed = messages.UnwatchTask(
        caller=ANA, call=call("subscriptions/listen"), task_id=made.task_id, pushes=2, reason="client"
    )
    await rig.one.gate.unwatch(closed, CHANNEL)
    await rig.one.recorder.flush()
    first, *later = await rig.entries()
    names = [type(event).__name__ for entry in later for event in entry.events]
    assert names == [
        "InputRequested",
        "SubscriptionOpened",
        "ResultDisclosed",
        "InputResponded",
        "TaskResumed",
        "CancelRequested",
        "SubscriptionClosed",
        "TaskPolled",
    ]
    assert first.authority.decision is not None
    assert (first.authority.decision.reason, first.authority.created_by) == ("tool-may-run-as-task", "")
    for entry in later:
        authority = entry.authority
        assert authority.created_by == first.id, entry
        assert authority.decision is not None
        assert authority.decision.effect == "allow"
        mine = authority.trigger == "caller"
        assert authority.decision.reason == ("same-identity-context" if mine else "server-runs-task")
        assert authority.binding == (BindingCheck(mode=BindingMode.EXACT) if mine else None)


@pytest.mark.requirement("A1")
async def test_the_end_of_a_strangers_subscription_is_nothing_to_record(rig: Rig) -> None:
    """It was never granted."""
    made = await rig.create()
    before = len(await rig.entries())
    closed = messages.UnwatchTask(
        caller=caller("eve"), call=call("subscriptions/listen"), task_id=made.task_id, pushes=2, reason="client"
    )
    assert await rig.one.gate.unwatch(closed, CHANNEL) == messages.Done()
    assert await rig.one.gate.unwatch(msgspec.structs.replace(closed, task_id="x"), CHANNEL) == messages.Done()
    assert len(await rig.entries()) == before


@pytest.mark.requirement("A1")
async def test_an_issuer_without_a_tenant_holds_no_tasks(rig: Rig) -> None:
    """Setting `tenants`: when given, other issuers are refused; the refusal is on the trail before the answer."""
    foreign = caller(iss="https://elsewhere.example")
    with pytest.raises(NotAuthorised, match="issuer-has-no-tenant"):
        await rig.create(foreign)
    made = await rig.create()
    assert await outcome(rig.get(made.task_id, foreign)) == NOT_FOUND_TEXT
    assert [(tenant, event.code, event.reasons) for tenant, _, event in await rig.denials()] == [
        ("public", -32001, {"issuer-has-no-tenant": 1}),
        ("acme", -32602, {"issuer-has-no-tenant": 1}),
    ]


@pytest.mark.requirement("A1")
async def test_anonymous_callers_can_be_refused_altogether(fresh_nats: NatsServer, tmp_path: Path) -> None:
    """Setting `anonymous`."""
    closed = msgspec.structs.replace(SETTINGS, anonymous=False)
    async with parts(fresh_nats.url, tmp_path, Clock(), closed) as one:
        rig = Rig(one, Clock())
        for nobody in (ANONYMOUS, caller(method=Method.NONE)):
            with pytest.raises(NotAuthorised, match="anonymous-not-allowed"):
                await rig.create(nobody)
        assert await rig.entries("task") == []


@pytest.mark.requirement("A1")
async def test_what_the_mcp_server_turned_away_itself_is_recorded(rig: Rig) -> None:
    """-32021, -32020: refused before a handle is looked at."""
    made = await rig.create()
    said = messages.ReportRefusal(
        caller=ANA, call=call("tasks/get"), code=-32020, reason="header_mismatch", task_id=made.task_id
    )
    await rig.one.gate.refusal(said, CHANNEL)
    ((tenant, _, event),) = await rig.denials()
    assert (tenant, event.code, event.refs) == ("acme", -32020, {made.task_ref: 1})
    assert event.reasons == {"refused-by-mcp-server": 1}


# --- nothing is told to strangers ------------------------------------------------------------------------------------


class Watched:
    """What a connection asks of NATS: subjects without references, tenants and inboxes."""

    def __init__(self, one: Parts, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        publish = one.nc.publish

        async def noted(subject: str, *args: Any, **options: Any) -> None:  # noqa: ANN401
            kind = kind_of(subject)
            self.seen.append(f"trail {kind}" if kind else subject.partition(".$KV.")[0])
            await publish(subject, *args, **options)

        patch.setattr(one.nc, "publish", noted)

    async def during(self, act: Awaitable[object]) -> tuple[str | None, list[str]]:
        self.seen = []
        return await outcome(act), self.seen


HOSTILE = ("", "x", "a.b.*.>", "trail.1.>", "a\r\nPUB x 1\r\n", "\0", "\ud800", "é" * 4000, "A" * 32)


@pytest.mark.requirement("A4")
@pytest.mark.parametrize("act", ACTS)
async def test_no_handle_that_opens_nothing_differs_from_another(
    rig: Rig, fresh_nats: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """Promise 4: same bytes, same I/O; in a process that knows the tasks and in one that does not."""
    foreign = await rig.create(caller("eve"), "foreign")
    elsewhere = await rig.create(caller(iss=GLOBEX), "elsewhere")
    over = await rig.create(made="over", ttl_ms=5)
    done = await rig.create(caller("eve"), "finished")
    await rig.complete(done.task_ref, "x" * 20_000)
    rig.clock.advance(5)
    handles = [foreign.task_id, elsewhere.task_id, over.task_id, done.task_id, "a" * 32, *HOSTILE]
    async with parts(fresh_nats.url, tmp_path, rig.clock, SETTINGS) as cold:
        for one in (rig.one, cold):
            here, seen = Rig(one, rig.clock), Watched(one, monkeypatch)
            first = [await seen.during(ACTS[act](here, handle, ANA)) for handle in handles[:1]]
            again = [await seen.during(ACTS[act](here, handle, ANA)) for handle in handles]
            assert first[0][1] == [*again[0][1], "trail denied"], "the first denial of a run is on the trail first"
            assert {(text, tuple(asked)) for text, asked in again} == {(NOT_FOUND_TEXT, tuple(again[0][1]))}
            rig.clock.advance(20_000)
            for handle in handles:  # each the first of a run of its own
                rig.clock.advance(20_000)
                assert await seen.during(ACTS[act](here, handle, ANA)) == first[0], handle


@pytest.mark.requirement("A4", "T1")
async def test_the_trail_says_which_it_was(rig: Rig) -> None:
    """Promise 4: the trail always tells the responder why; claimed handles appear as keyed references only."""
    foreign = await rig.create(caller("eve"), "foreign")
    elsewhere = await rig.create(caller(iss=GLOBEX), "elsewhere")
    over = await rig.create(made="over", ttl_ms=5)
    rig.clock.advance(5)
    unknown = "a" * 32
    for handle in (foreign.task_id, elsewhere.task_id, over.task_id, unknown, *HOSTILE):
        assert await outcome(rig.get(handle)) == NOT_FOUND_TEXT
    shown: dict[str, dict[str, int]] = {}
    refs: dict[str, int] = {}
    for tenant, _, event in await rig.denials():
        for reason, count in event.reasons.items():
            into = shown.setdefault(tenant, {})
            into[reason] = into.get(reason, 0) + count
        refs |= event.refs
    assert shown == {
        "acme": {
            "other-identity-context": 1,
            "handle-expired": 1,
            "no-such-task": 1,
            "malformed-handle": len(HOSTILE),
        },
        "globex": {"other-identity-context": 1},
    }
    assert {foreign.task_ref, elsewhere.task_ref, over.task_ref, rig.one.keyring.ref(unknown)} < refs.keys()
    assert len(refs) == 4 + len(HOSTILE)
    bodies = b"".join(message.body for message in await stored(rig.one.js))
    assert unknown.encode() not in bodies
    assert b"PUB x" not in bodies


@pytest.mark.requirement("A4")
async def test_a_subscription_leaves_out_what_is_not_the_callers(rig: Rig) -> None:
    """Uniformly; the others are granted, each on the trail, and each once."""
    mine, foreign = await rig.create(), await rig.create(caller("eve"), "foreign")
    granted = await rig.watch(foreign.task_id, mine.task_id, "x" * 32, mine.task_id)
    assert [view.task_id for view in granted] == [mine.task_id]
    names = [type(event).__name__ for entry in await rig.entries("access") for event in entry.events]
    assert names == ["SubscriptionOpened"]


# --- durable before visible ------------------------------------------------------------------------------------------


@pytest.mark.requirement("T1", "A4")
async def test_a_denial_is_on_the_trail_before_it_is_answered(rig: Rig) -> None:
    """Promise 1: the first denial of a run; while it cannot be written, nobody is told that there is no such task."""
    await rig.create()
    async with rig.full():
        for _ in range(2):
            with pytest.raises(NothingWritten):
                await rig.get("a" * 32)
    assert await outcome(rig.get("a" * 32)) == NOT_FOUND_TEXT
    assert sum(event.count for _, _, event in await rig.denials()) == 3
    async with rig.full():
        assert await outcome(rig.get("b" * 32)) == NOT_FOUND_TEXT, "a repeat of the run folds"
    assert sum(event.count for _, _, event in await rig.denials()) == 4


@pytest.mark.requirement("T1", "R1")
async def test_a_result_is_disclosed_on_the_trail_before_it_is_shown(rig: Rig) -> None:
    """Promise 1: no result disclosure is shown before its entry is acknowledged; repeats fold, exactly counted."""
    made = await rig.create()
    await rig.complete(made.task_ref)
    async with rig.full():
        with pytest.raises(NothingWritten):
            await rig.get(made.task_id)
    shown = await asyncio.gather(*(rig.get(made.task_id) for _ in range(5)))
    assert {str(view.result) for view in shown} == {"{'text': 'done'}"}
    await rig.get(made.task_id, address="198.51.100.9")
    await rig.one.recorder.flush()
    events = [event for entry in await rig.entries("access") for event in entry.events]
    assert [(event.nth, event.count) for event in events if isinstance(event, ResultDisclosed)] == [
        (1, 1),
        (1, 1),
        (5, 4),
    ]


@pytest.mark.requirement("T1", "L7")
async def test_questions_are_disclosed_too(rig: Rig) -> None:
    """The text shown to a person is what they approve: who was shown it is on the trail."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a", "b")
    async with rig.full():
        with pytest.raises(NothingWritten):
            await rig.get(made.task_id)
    await rig.get(made.task_id)
    await rig.update(made.task_id, {"a": {"action": "decline"}})
    await rig.get(made.task_id)
    events = [event for entry in await rig.entries("access") for event in entry.events]
    assert [event.payloads for event in events if isinstance(event, ResultDisclosed)] == [
        ("request.a", "request.b"),
        ("request.b",),
    ]


@pytest.mark.requirement("T1")
async def test_status_polls_fold_and_lose_none_while_the_trail_is_full(rig: Rig) -> None:
    """Promise 1: they are on the trail within a second, exactly counted; a poll itself does not wait for it."""
    made = await rig.create()
    async with rig.full():
        for _ in range(4):
            await rig.get(made.task_id)
            rig.clock.advance(10)
        await rig.one.recorder.flush()
        assert rig.one.recorder.unwritten
        await rig.get(made.task_id)
    await rig.get(made.task_id, address="198.51.100.9")
    await rig.one.recorder.flush()
    assert not rig.one.recorder.unwritten
    events = [event for entry in await rig.entries("access") for event in entry.events]
    polls = [event for event in events if isinstance(event, TaskPolled)]
    assert sorted((event.count, event.last_ms - event.first_ms) for event in polls) == [(1, 0), (5, 40)]
    assert {(event.method, event.status) for event in polls} == {("tasks/get", "working")}


# --- answers ---------------------------------------------------------------------------------------------------------


def accept(**content: object) -> dict[str, object]:
    return {"action": "accept", "content": content}


@pytest.mark.requirement("L7")
async def test_one_invalid_answer_refuses_all_and_says_which_and_why(rig: Rig) -> None:
    """Design section 5: -32602, recorded; values are not in the message. The corrected ones are taken."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a", "b", "c")
    bad = {"a": accept(name="Luca"), "b": accept(name=7, secret=CANARY), "c": {"action": "maybe"}}
    with pytest.raises(InvalidAnswer) as caught:
        await rig.update(made.task_id, bad)
    assert caught.value.code == -32602
    assert caught.value.message.startswith("'b': `content/name` fails `type`; 'c': `action` is none of")
    assert CANARY not in caught.value.message
    assert sorted((await rig.get(made.task_id)).input_requests) == ["a", "b", "c"]
    with pytest.raises(InvalidAnswer):
        await rig.update(made.task_id, bad)
    refusals = [entry for entry in await rig.entries("task") if entry.command == "RespondToInput"]
    assert [(type(event).__name__, entry.sealed) for entry in refusals for event in entry.events] == [
        ("CommandRefused", {})
    ]
    await rig.update(made.task_id, {"a": accept(name="Luca"), "b": {"action": "cancel"}}, made="u2")
    assert list((await rig.get(made.task_id)).input_requests) == ["c"]


@pytest.mark.requirement("L7")
async def test_answers_nobody_asked_for_change_nothing_and_are_kept_as_digests(rig: Rig) -> None:
    """L7: unknown, repeated or foreign answers change nothing and are recorded; a client's text is in no entry."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a", "b")
    await rig.update(made.task_id, {"a": {"action": "decline"}})
    stray = "who-asked\ud800.*>"
    await rig.update(made.task_id, {"a": accept(name="again"), stray: accept(name="x")}, made="u2")
    entry = (await rig.entries("task"))[-1]
    digest = hashlib.sha256(stray.encode("utf-8", "surrogatepass")).hexdigest()
    assert entry.events == (
        InputIgnored(at_ms=rig.clock.ms, reason="already_answered", key="a"),
        InputIgnored(at_ms=rig.clock.ms, reason="never_asked", key_sha256=digest),
    )
    assert entry.sealed == {}
    bodies = b"".join(message.body for message in await stored(rig.one.js))
    assert b"who-asked" not in bodies
    assert list((await rig.get(made.task_id)).input_requests) == ["b"]


@pytest.mark.requirement("L7")
async def test_an_update_sent_again_is_the_update_it_was(rig: Rig) -> None:
    """Promise 1: after "may have been written" the same command id returns the outcome; the answers are taken by now."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a")
    for _ in range(3):
        assert await rig.update(made.task_id, {"a": accept(name="Luca")}) == messages.Done()
    with pytest.raises(CommandReused):
        await rig.update(made.task_id, {"a": accept(name="Eve")})
    assert len(await rig.entries("task")) == 3


@pytest.mark.requirement("L7")
async def test_too_many_answers_and_what_is_no_json_are_refused_before_anything(rig: Rig) -> None:
    """Every loop has a bound (style 7)."""
    made = await rig.create()
    await rig.ask(made.task_ref, "a")
    before = len(await rig.entries("task"))
    with pytest.raises(InvalidRequest, match=f"the maximum is {ANSWERS_MAX}"):
        await rig.update(made.task_id, {str(number): {} for number in range(ANSWERS_MAX + 1)})
    with pytest.raises(InvalidRequest, match="not JSON"):
        await rig.update(made.task_id, {"a": {"action": "accept", "content": {"name": "x", "more": object()}}})
    assert len(await rig.entries("task")) == before


@pytest.mark.requirement("L8")
async def test_cancelling_what_is_finished_is_answered_and_changes_nothing(rig: Rig) -> None:
    """SEP-2663: an acknowledgement; L8: a finished task stays finished, and the wish is on the trail."""
    made = await rig.create()
    await rig.complete(made.task_ref)
    assert await rig.cancel(made.task_id) == messages.Done()
    assert (await rig.get(made.task_id)).status is Status.COMPLETED
    assert (await rig.entries("task"))[-1].command == "CancelTask"


# --- a broker that does not answer -----------------------------------------------------------------------------------


@pytest.mark.requirement("T1")
async def test_while_the_broker_is_silent_every_request_is_answered_in_time(rig: Rig, fresh_nats: NatsServer) -> None:
    """Promise 1: never a hang, one of our retriable errors; afterwards everything goes on."""
    made = await rig.create()
    await rig.complete(made.task_ref)

    async def told(action: str) -> tuple[str, float]:
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            await rig.one.desk.carry_out(action, said_for(action, made.task_id), CHANNEL)
        return action, time.monotonic() - begun

    os.kill(fresh_nats.broker.pid, signal.SIGSTOP)
    try:
        took = await asyncio.gather(*map(told, ("create", *ACTS)))
    finally:
        os.kill(fresh_nats.broker.pid, signal.SIGCONT)
    assert max(seconds for _, seconds in took) < 3.0, took
    assert (await rig.get(made.task_id)).result


def said_for(action: str, handle: str) -> messages.Said:
    """A request of each kind, as the desk takes it."""
    return {
        "create": messages.CreateTask(
            caller=ANA,
            call=call("tools/call"),
            command_id="later",
            tool="report",
            task_support=TaskSupport.OPTIONAL,
        ),
        "get": messages.GetTask(caller=ANA, call=call("tasks/get"), task_id=handle),
        "update": messages.UpdateTask(
            caller=ANA, call=call("tasks/update"), command_id="u", task_id=handle, answers={}
        ),
        "cancel": messages.CancelTask(caller=ANA, call=call("tasks/cancel"), command_id="x", task_id=handle),
        "watch": messages.WatchTasks(caller=ANA, call=call("subscriptions/listen"), task_ids=(handle,)),
    }[action]
