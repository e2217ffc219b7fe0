"""One task's timeline as a responder reads it: issue "main job" (`tasktrail timeline`), features T3, A5."""

import json
import unicodedata

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.projections.audit.histories import NOW_MS, Trail, ana, gap, timer
from tests.projections.audit.stores import told

from tasktrail.events.authority import Actor, Level
from tasktrail.events.commands import (
    Answer,
    Ask,
    CancelTask,
    CompleteTask,
    ExpireTask,
    FailTask,
    ReportStatus,
    RequestInput,
    RespondToInput,
    StopTask,
)
from tasktrail.events.entry import encode
from tasktrail.events.facts import (
    SCANNED_IN_PART,
    BundleExported,
    EntryRejected,
    Event,
    KeyActivated,
    PayloadUnsealed,
    QueryRun,
    SubscriptionClosed,
    SubscriptionOpened,
    TaskResumed,
)
from tasktrail.events.subjects import access_subject, control_subject, task_subject
from tasktrail.projections.audit.sentences import SHOWN_MAX, printable
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.audit.timeline import StepKind


def the_story() -> tuple[Trail, str]:
    """One task with everything in it, and another beside it."""
    trail = Trail()
    ref = trail.create()
    other = trail.create(tool="report")
    trail.poll(ref, count=4)
    ask = tuple(Ask(key=key, method="elicitation/create", request=trail.sealed("request")) for key in "ab")
    trail.command(ref, RequestInput(id="ask", asks=ask))
    answer = trail.sealed("response")
    trail.command(
        ref,
        RespondToInput(
            id="r1", answers=(Answer(key="a", action="accept", response=answer), Answer(key_sha256="f" * 64))
        ),
    )
    trail.poll(other)
    trail.deny(ref, sub="eve", count=3)
    trail.command(ref, RespondToInput(id="r2", answers=(Answer(key="b", action="decline", response=answer),)))
    trail.command(ref, CompleteTask(id="done", result=trail.sealed("result")))
    trail.command(ref, CancelTask(id="late"))
    trail.disclose(ref)
    trail.now_ms += 60_000
    trail.command(ref, ExpireTask(id="t"), timer())
    return trail, ref


@pytest.mark.requirement("T3")
def test_a_timeline_tells_each_step_in_order_with_the_status_before_and_after(store: AuditStore) -> None:
    timeline = told(store, *the_story())
    assert [
        (step.stream_seq, step.kind, step.type, step.status_before, step.status_after) for step in timeline.steps
    ] == [
        (1, "transition", "TaskCreated", None, "working"),
        (3, "access", "TaskPolled", "working", "working"),
        (4, "message", "InputRequested", "working", "input_required"),
        (4, "message", "InputRequested", "input_required", "input_required"),
        (5, "message", "InputResponded", "input_required", "input_required"),
        (5, "message", "InputIgnored", "input_required", "input_required"),
        (7, "denial", "AccessDenied", "input_required", "input_required"),
        (8, "message", "InputResponded", "input_required", "input_required"),
        (8, "transition", "TaskResumed", "input_required", "working"),
        (9, "transition", "TaskCompleted", "working", "completed"),
        (10, "refusal", "CommandRefused", "completed", "completed"),
        (11, "access", "ResultDisclosed", "completed", "completed"),
        (12, "transition", "TaskExpired", "completed", "completed"),
    ]
    assert [step.what for step in timeline.steps] == [
        "created for tool transfer of server bank; it lives 60 s, 120 s were asked for",
        "tasks/get told working 4 times",
        "asked the client for elicitation/create, key a",
        "asked the client for elicitation/create, key b",
        "the client answered a (elicitation/create): accept",
        "an answer to a key never issued changed nothing: never asked",
        "tasks/get denied 3 times: other-identity-context; the caller was told -32602",
        "the client answered b (elicitation/create): decline",
        "nothing is outstanding any more, the work goes on",
        "completed with a result",
        "CancelTask refused, the task is completed: terminal",
        "tasks/get showed result, the first time",
        "the handle expired, it opens nothing any more",
    ]


@pytest.mark.requirement("T3")
def test_each_step_says_who_by_what_credential_at_which_level_and_by_which_rule(store: AuditStore) -> None:
    timeline = told(store, *the_story())
    (denial,) = [step for step in timeline.steps if step.kind is StepKind.DENIAL]
    assert msgspec.json.decode(msgspec.json.encode(denial)) | {"entry_id": "", "leaf_sha256": ""} == {
        "stream_seq": 7,
        "ord": 0,
        "task_ref": timeline.task_ref,
        "tenant": "acme",
        "entry_id": "",
        "leaf_sha256": "",
        "time": "2026-11-18T11:06:40.040Z",
        "recorded_at": "2026-11-18T11:06:40.040Z",
        "kind": "denial",
        "type": "AccessDenied",
        "what": "tasks/get denied 3 times: other-identity-context; the caller was told -32602",
        "status_before": "input_required",
        "status_after": "input_required",
        "who": {
            "trigger": "caller",
            "iss": "https://id.example",
            "sub": "eve",
            "kind": "user",
            "level": "verified",
            "client_id": "desk",
            "client_level": "verified",
            "actor": None,
        },
        "credential": {
            "method": "jwt",
            "verification": "ok",
            "level": "verified",
            "revocation": "unknown",
            "jti": "jti-eve",
            "token_hash": "h" * 43,
            "exp": "2026-11-18T11:16:40.000Z",
            "acr": None,
            "amr": [],
            "auth_time": None,
        },
        "rule": {
            "effect": "deny",
            "reason": "other-identity-context",
            "policy_version": "builtin-1",
            "policy_sha256": None,
            "policies": [],
        },
        "binding": {"mode": "exact", "matches": False, "differs": ["sub"]},
        "grant": None,
        "standing": None,
        "address": {"address": "192.0.2.7", "level": "claimed"},
        "message": {"key": None, "method": "tasks/get", "action": None},
        "payloads": [],
        "count": 3,
        "first": "2026-11-18T11:06:39.540Z",
        "last": "2026-11-18T11:06:40.040Z",
        "code": -32602,
        "reasons": {"other-identity-context": 3},
    }
    expired = timeline.steps[-1]
    assert expired.who is not None
    assert (expired.who.trigger, expired.who.sub, expired.credential, expired.address) == ("timer", None, None, None)
    assert expired.rule is not None
    assert expired.rule.reason == "time-is-up"


def test_the_header_says_what_the_task_is_and_as_of_when(store: AuditStore) -> None:
    trail, ref = the_story()
    timeline = told(store, trail, ref)
    assert timeline.task is not None
    header = msgspec.to_builtins(timeline.task)
    assert header == {
        "task_ref": ref,
        "tenant": "acme",
        "server": "bank",
        "tool": "transfer",
        "task_support": "required",
        "wire": "2026-07-28",
        "protocol_version": "2026-07-28",
        "creator": {"iss": "https://id.example", "sub": "ana", "client_id": "desk", "binding_mode": "exact"},
        "created_by": timeline.steps[0].entry_id,
        "status": "completed",
        "is_error": False,
        "created_at": "2026-11-18T11:06:40.010Z",
        "last_updated_at": "2026-11-18T11:06:40.060Z",
        "expires_at": "2026-11-18T11:07:40.010Z",
        "ended_at": "2026-11-18T11:06:40.060Z",
        "cancel_requested_at": None,
        "revoked_at": None,
        "expired_at": "2026-11-18T11:07:40.080Z",
        "shredded_at": None,
        "requested_ttl_ms": 120_000,
        "ttl_ms": 60_000,
        "effective_ttl_ms": 60_000,
        "ttl_set_by": None,
        "retention_ms": {},
        "poll_interval_ms": 500,
        "grants": 0,
        "holds": 0,
        "standing": "valid",
        "authority_until": "2026-11-18T11:16:40.000Z",
        "token_hash": "h" * 43,
        "jti": "jti-ana",
        "entries": 9,
        "first_seq": 1,
        "last_seq": 12,
    }
    assert (timeline.version, timeline.as_of, timeline.steps_omitted, timeline.gaps) == (1, 12, 0, ())
    assert timeline.as_of_time == "2026-11-18T11:07:40.080Z"


def test_a_messages_payload_is_its_name_commitment_and_size_never_its_text(store: AuditStore) -> None:
    trail, ref = the_story()
    timeline = told(store, trail, ref)
    asked = timeline.steps[2]
    assert [(one.name, len(one.sha256), one.size) for one in asked.payloads] == [("request", 64, 34)]
    assert [one.name for one in timeline.steps[0].payloads] == ["handle", "arguments"]
    assert "secret" not in msgspec.json.encode(timeline).decode()


@pytest.mark.requirement("R4")
def test_a_payload_shows_which_kinds_of_secrets_were_seen_in_it(store: AuditStore) -> None:
    """R4: where it was sealed; a disclosure says only what was shown."""
    trail = Trail()
    ref = trail.create(arguments=trail.sealed("arguments", "a", "jwt", "npm_token", SCANNED_IN_PART))
    trail.command(ref, CompleteTask(id="done", result=trail.sealed("result")))
    trail.disclose(ref)
    steps = told(store, trail, ref).steps
    assert [[(one.name, one.flags, one.secrets) for one in step.payloads] for step in steps] == [
        [("handle", (), ()), ("arguments", ("jwt", "npm_token", SCANNED_IN_PART), ("jwt", "npm_token"))],
        [("result", (), ())],
        [("result", (), ())],
    ]
    assert json.loads(msgspec.json.encode(steps[1].payloads[0]))["flags"] == []


@pytest.mark.requirement("A5")
@pytest.mark.parametrize("level", list(Level))
def test_no_level_is_raised_on_its_way_to_the_responder(store: AuditStore, level: Level) -> None:
    trail = Trail()
    ref = trail.create()
    who = msgspec.structs.replace(ana(level=level), actors=(Actor(sub="agent", iss="https://id.example", level=level),))
    trail.command(ref, ReportStatus(id="r", message=trail.sealed("message")), who)
    step = told(store, trail, ref).steps[-1]
    assert step.who is not None
    assert step.who.actor is not None
    assert step.credential is not None
    levels = (step.who.level, step.who.client_level, step.who.actor.level, step.credential.level)
    assert levels == (level,) * 4


def test_what_was_never_recorded_has_no_timeline(store: AuditStore) -> None:
    trail, _ = the_story()
    store.append(trail.messages)
    assert store.timeline("z" * 32) is None
    assert store.timeline("") is None
    assert store.timeline("' OR 1=1 --") is None


def test_a_reference_that_was_only_claimed_shows_who_was_denied(store: AuditStore) -> None:
    trail = Trail()
    trail.create()
    trail.deny("z" * 32, count=2)
    timeline = told(store, trail, "z" * 32)
    assert timeline.task is None
    assert [(step.kind, step.count, step.status_before) for step in timeline.steps] == [("denial", 2, None)]


def test_a_malformed_message_on_the_tasks_subject_is_an_anomaly_in_its_place(store: AuditStore) -> None:
    """Issue "main job": nothing right of the log drops what it does not understand."""
    trail = Trail()
    ref = trail.create()
    trail.put(task_subject("acme", ref), b"\x1b[2J not json", "x")
    forged = trail.entry(ref, (TaskResumed(at_ms=1),))
    trail.put(access_subject("acme", ref), encode(forged), forged.id)
    trail.command(ref, CancelTask(id="c"))
    steps = told(store, trail, ref).steps
    assert [(step.stream_seq, step.kind, step.type, step.status_after) for step in steps] == [
        (1, "transition", "TaskCreated", "working"),
        (2, "anomaly", "undecodable", "working"),
        (3, "anomaly", "subject", "working"),
        (4, "transition", "CancelRequested", "working"),
    ]
    assert "these 13 bytes are no entry of version 1" in steps[1].what
    assert steps[2].what.endswith("; it says TaskResumed")
    assert (steps[1].time, steps[1].who) == (None, None)


def test_an_event_of_a_newer_version_is_shown(store: AuditStore) -> None:
    trail = Trail()
    ref = trail.create()
    entry = trail.entry(ref, (TaskResumed(at_ms=NOW_MS),))
    newer = encode(entry).replace(b'"type":"TaskResumed"', b'"type":"HandleLent","by":"ops"')
    trail.put(task_subject("acme", ref), newer, entry.id)
    step = told(store, trail, ref).steps[-1]
    assert (step.kind, step.type, step.what) == (
        "unknown",
        "HandleLent",
        "HandleLent: an event of a newer version, kept as written",
    )
    assert step.who is not None


def test_an_entry_without_events_is_shown(store: AuditStore) -> None:
    trail = Trail()
    ref = trail.create()
    empty = trail.entry(ref, ())
    trail.put(task_subject("acme", ref), encode(empty), empty.id)
    step = told(store, trail, ref).steps[-1]
    assert (step.kind, step.what, step.stream_seq) == ("unknown", "an entry without events", 2)


def test_beyond_a_bound_later_steps_are_left_out_and_counted(store: AuditStore) -> None:
    trail, ref = the_story()
    store.append(trail.messages)
    whole, part = store.timeline(ref), store.timeline(ref, steps_max=5)
    assert whole is not None
    assert part is not None
    assert part.steps == whole.steps[:5]
    assert (part.steps_omitted, whole.steps_omitted) == (len(whole.steps) - 5, 0)


EVENTS: list[tuple[Event, str]] = [
    (SubscriptionOpened(at_ms=1), "a subscription was opened"),
    (
        SubscriptionClosed(at_ms=1, pushes=1, reason="terminal"),
        "a subscription ended after 1 notification: terminal",
    ),
]


@pytest.mark.parametrize(("event", "what"), EVENTS)
def test_subscriptions_are_accesses(store: AuditStore, event: Event, what: str) -> None:
    trail = Trail()
    ref = trail.create()
    trail.note(access_subject("acme", ref), "acme", (event,), ref)
    step = told(store, trail, ref).steps[-1]
    assert (step.kind, step.what) == ("access", what)


def test_ends_are_told_apart(store: AuditStore) -> None:
    trail = Trail()
    failed, stopped, late, erring, lost = (trail.create() for _ in range(5))
    trail.command(failed, FailTask(id="f", error=trail.sealed("error"), code=-32603))
    trail.command(stopped, CancelTask(id="c"))
    trail.command(stopped, StopTask(id="s", reason="unconfirmed"))
    trail.command(erring, CompleteTask(id="e", result=trail.sealed("result"), is_error=True))
    trail.command(lost, ReportStatus(id="r", message=trail.sealed("message"), progress=1, total=4))
    trail.now_ms += 60_000
    trail.command(late, ExpireTask(id="t"), timer())
    store.append(trail.messages)

    def last(ref: str, place: int = -1) -> str:
        timeline = store.timeline(ref)
        assert timeline is not None
        return timeline.steps[place].what

    assert last(failed) == "failed with JSON-RPC error -32603"
    assert last(stopped) == "cancelled: no worker confirmed in time that it stopped"
    assert last(erring) == "completed with a tool error"
    assert last(late, -2) == "cancelled: its time to live ended"
    assert last(lost) == "the work reported a message and progress 1 of 4"


def test_the_tail_tells_control_events_too(store: AuditStore) -> None:
    trail = Trail()
    events: tuple[Event, ...] = (
        KeyActivated(at_ms=NOW_MS, purpose="signing", kid="k1", algorithm="Ed25519"),
        QueryRun(at_ms=NOW_MS, query="timeline", parameters={}, rows=3),
        BundleExported(
            at_ms=NOW_MS,
            bundle_sha256="b" * 64,
            scope="task",
            parameters={},
            entries=1,
            tree_size=9,
            case_id="c1",
            reason="court order",
        ),
        PayloadUnsealed(at_ms=NOW_MS, task_ref="t" * 32, payloads=("result",), sha256=("0" * 64,), reason="leak"),
        EntryRejected(at_ms=NOW_MS, stream_seq=9, sha256="0" * 64, reason="msg_id"),
        gap(NOW_MS, NOW_MS),
    )
    trail.note(control_subject("_"), "_", events)
    store.append(trail.messages)
    steps, _ = store.since(0)
    assert [step.what for step in steps] == [
        "signing key k1 is in use from here on",
        "a responder ran timeline, 3 rows",
        "evidence of 1 entry was exported (case c1): court order",
        "a responder was shown result unsealed: leak",
        "message 9 of the trail was not accepted: msg id",
        "folded polls may be missing: crash",
    ]
    assert {step.kind for step in steps} == {StepKind.CONTROL}


@given(st.text(max_size=300))
def test_no_text_of_somebody_elses_can_steer_a_terminal(text: str) -> None:
    shown = printable(text)
    assert all(unicodedata.category(one) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} for one in shown)
    assert len(shown) <= SHOWN_MAX * len("\\U0001f600")


def test_hostile_names_are_made_printable_in_sentences_and_kept_in_fields(store: AuditStore) -> None:
    trail = Trail()
    ref = trail.create(tool="\x1b[31mred\x1b[0m\r\nfake line" + "x" * 500)
    timeline = told(store, trail, ref)
    what = timeline.steps[0].what
    assert what.isprintable()
    assert len(what) < 300
    assert timeline.task is not None
    assert timeline.task.tool.startswith("\x1b[31m")


@pytest.mark.requirement("A8")
def test_an_answer_shows_how_whoever_gave_it_was_authenticated_at_the_level_of_its_credential(
    store: AuditStore,
) -> None:
    """RFC 9068 and RFC 8176; each value is its own, whatever it holds; what is no time is left to the entry's bytes."""
    trail = Trail()
    ref = trail.create()
    said: list[tuple[tuple[str, ...], int]] = [(("pwd", "otp"), NOW_MS // 1000), (("a, b", '"'), 2**52), ((), 0)]
    for number, (amr, at) in enumerate(said):
        who = ana(level=Level.ASSERTED)
        assert who.credential is not None
        credential = msgspec.structs.replace(who.credential, acr="strong" if amr else "", amr=amr, auth_time=at)
        key = f"k{number}"
        asks = (Ask(key=key, method="elicitation/create", request=trail.sealed("request")),)
        trail.command(ref, RequestInput(id=f"ask {key}", asks=asks))
        answer = Answer(key=key, action="accept", response=trail.sealed("response"))
        by = msgspec.structs.replace(who, credential=credential)
        trail.command(ref, RespondToInput(id=f"answer {key}", answers=(answer,)), by)
    answers = [step.credential for step in told(store, trail, ref).steps if step.type == "InputResponded"]
    shown = [(one.acr, one.amr, one.auth_time, one.level) for one in answers if one]
    assert shown == [
        ("strong", ("pwd", "otp"), "2026-11-18T11:06:40.000Z", "asserted"),
        ("strong", ("a, b", '"'), None, "asserted"),
        (None, (), None, "asserted"),
    ]
