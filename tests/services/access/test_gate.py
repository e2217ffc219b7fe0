"""The gate: creation, what each status shows, and who may do what with a handle.

Source: promises 4, 5 and 7; features L1 L5 A1 P1; SEP-2663.
"""

from pathlib import Path

import msgspec
import pytest
from tests.services.access.rig import (
    ACME,
    ACTS,
    ANA,
    ANONYMOUS,
    CANARY,
    CHANNEL,
    GLOBEX,
    SCHEMA,
    SETTINGS,
    SISTER,
    Rig,
    call,
    caller,
    outcome,
)

from tasktrail.events.authority import BindingCheck, BindingMode, Method, PrincipalKind
from tasktrail.events.errors import (
    NOT_FOUND_TEXT,
    CommandReused,
    InvalidRequest,
    NotAuthorised,
    TaskNotFound,
    TooLarge,
)
from tasktrail.events.facts import ResultDisclosed, Status, TaskSupport
from tasktrail.events.subjects import KEYS, key_subject
from tasktrail.services import messages
from tasktrail.services.sealing import SealError, Vault
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.parts import Clock, parts


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
    assert (first.authority.decision.reason, first.authority.created_by) == ("callers-create", "")
    for entry in later:
        authority = entry.authority
        assert authority.created_by == first.id, entry
        assert authority.decision is not None
        assert authority.decision.effect == "allow"
        mine = authority.trigger == "caller"
        assert authority.decision.reason == ("creators-use" if mine else "work-continues")
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
    assert event.reasons == {"server:header_mismatch": 1}


@pytest.mark.requirement("L4")
async def test_a_forbidden_tool_makes_no_task_and_a_polling_wish_is_bounded(rig: Rig) -> None:
    """The recorded rule: a tool whose task support is optional or required may run as a task."""
    said = messages.CreateTask(
        caller=ANA, call=call("tools/call"), command_id="f", tool="t", task_support=TaskSupport.FORBIDDEN
    )
    with pytest.raises(InvalidRequest, match="forbidden as a task"):
        await rig.one.gate.create(said, CHANNEL)
    assert await rig.entries("task") == []
    for wish, granted in ((1, 50), (10**12, 600_000), (700, 700)):
        asked = msgspec.structs.replace(
            said, task_support=TaskSupport.OPTIONAL, command_id=str(wish), poll_interval_ms=wish
        )
        assert (await rig.one.gate.create(asked, CHANNEL)).poll_interval_ms == granted
