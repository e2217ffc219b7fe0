"""From messages to rows, without a database: issue "main job" (timeline), design.md sections 5-7."""

import random
from datetime import UTC, datetime
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.projections.audit.histories import Trail, ana, mixed, some_command

from tasktrail.events.authority import Level
from tasktrail.events.commands import CompleteTask, ReportStatus
from tasktrail.events.entry import decode, encode, leaf_hash
from tasktrail.events.facts import KeyActivated, TaskCreated, TaskPolled, TaskResumed
from tasktrail.events.subjects import access_subject, control_subject, denied_subject, task_subject
from tasktrail.events.task import Task
from tasktrail.projections.audit.columns import EntryRow, EventRow, Message
from tasktrail.projections.audit.rows import DenialRow, Reason, Rows, read, ref_of
from tasktrail.projections.audit.task_rows import TaskRow


def read_all(trail: Trail) -> Rows:
    return read(trail.messages, after=0, known={})


def only_rejection(trail: Trail) -> tuple[str, str]:
    (row,) = read_all(trail).rejected
    return row.reason, row.detail


def epoch_ms(at: datetime | None) -> int | None:
    return None if at is None else round(at.replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.requirement("T1")
@given(seed=st.integers(0, 2**32), length=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_a_tasks_row_says_what_folding_its_events_says(seed: int, length: int) -> None:
    """`evolve` is the law: tasktrail.events.task."""
    draw, trail = random.Random(seed), Trail()  # noqa: S311 - the same trail for the same seed
    ref = trail.create(retention_ms={"completed": 50, "failed": 10**9, "cancelled": 0} if seed % 2 else {})
    for _ in range(length):
        trail.command(ref, some_command(trail, ref, draw))
    row, task = read_all(trail).created[ref], trail.tasks[ref]
    assert _of_row(row) == _of_task(task)


def _of_row(row: TaskRow) -> tuple[object, ...]:
    times = (row.created_at, row.last_updated_at, row.expires_at, row.cancel_requested_at, row.expired_at)
    later = (row.revoked_at, row.shredded_at, row.authority_until)
    counted = (row.grants, row.holds, row.standing, row.token_hash, row.jti)
    return (row.status, row.is_error, row.task_seq, row.leaf_sha256, *map(epoch_ms, times + later), *counted)


def _of_task(task: Task) -> tuple[object, ...]:
    times = (task.created_at_ms, task.last_updated_at_ms, task.expires_at_ms)
    until_ms = task.until_s * 1000 if 0 < task.until_s < 2**40 else None
    later = (task.cancel_requested_at_ms, task.expired_at_ms, task.revoked_at_ms, task.shredded_at_ms, until_ms)
    counted = (len(task.grants), len(task.holds), task.standing, task.token_hash, task.jti)
    return (task.status, task.is_error, task.seq, task.leaf, *times, *later, *counted)


@given(cuts=st.lists(st.integers(0, 60), max_size=6))
@settings(max_examples=40, deadline=None)
def test_rows_do_not_depend_on_where_batches_are_cut(cuts: list[int]) -> None:
    trail = mixed(60, seed=3)
    whole = read_all(trail)
    known: dict[str, TaskRow] = {}
    entries: list[EntryRow] = []
    events: list[EventRow] = []
    denials: list[DenialRow] = []
    last = 0
    bounds = [0, *sorted(cuts), len(trail.messages)]
    for start, end in pairwise(bounds):
        part = read(trail.messages[start:end], after=last, known=known)
        known |= part.created | part.changed
        entries += part.entries
        events += part.events
        denials += part.denials
        last = part.last_seq
    assert (entries, events, denials, known) == (whole.entries, whole.events, whole.denials, whole.created)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_the_bytes_every_message_gives_an_entry_or_a_rejection(data: st.DataObject) -> None:
    trail = mixed(12, seed=5)
    at = data.draw(st.integers(0, len(trail.messages) - 1))
    body = bytearray(trail.messages[at].body)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    trail.messages[at] = trail.messages[at]._replace(body=bytes(body))
    rows = read_all(trail)
    assert sorted([one.stream_seq for one in rows.entries] + [one.stream_seq for one in rows.rejected]) == [
        message.stream_seq for message in trail.messages
    ]


def test_a_message_delivered_again_gives_nothing() -> None:
    trail = mixed(20)
    assert not read(trail.messages, after=trail.messages[-1].stream_seq, known={}).entries
    doubled = [message for message in trail.messages for _ in range(2)]
    assert read(doubled, after=0, known={}).entries == read_all(trail).entries


def test_bytes_that_are_no_entry_are_kept_as_undecodable() -> None:
    trail = Trail()
    ref = trail.create()
    body = b'{"v":1,"id":"\xff'
    trail.put(task_subject("acme", ref), body, "x")
    (row,) = read_all(trail).rejected
    assert (row.reason, row.body, row.task_ref, row.leaf_sha256) == (Reason.UNDECODABLE, body, ref, leaf_hash(body))


def test_an_entry_under_another_message_id_is_rejected() -> None:
    trail = Trail()
    trail.create()
    trail.messages[0] = trail.messages[0]._replace(msg_id="another")
    reason, detail = only_rejection(trail)
    assert reason == Reason.MSG_ID
    assert "another" in detail


@pytest.mark.parametrize(
    "subject",
    [
        task_subject("globex", "r" * 32),
        "trail.1.task.acme.someothertask",
        "trail.1.task.acme",
        "elsewhere",
        "trail.1.secrets.acme.x",
    ],
)
def test_an_entry_on_a_subject_that_is_not_its_own_is_rejected(subject: str) -> None:
    trail = Trail()
    trail.create()
    trail.messages[0] = trail.messages[0]._replace(subject=subject)
    assert only_rejection(trail)[0] == Reason.SUBJECT


def test_an_event_that_does_not_belong_on_its_subject_is_rejected() -> None:
    """Design section 5: which event lives where."""
    trail = Trail()
    trail.note(control_subject("acme"), "acme", (TaskResumed(at_ms=1),))
    key = KeyActivated(at_ms=1, purpose="signing", kid="k", algorithm="Ed25519")
    trail.note(denied_subject("acme"), "acme", (key,))
    assert [row.reason for row in read_all(trail).rejected] == [Reason.SUBJECT] * 2


def test_an_entry_that_does_not_continue_its_chain_is_rejected_and_changes_nothing() -> None:
    trail = Trail()
    ref = trail.create()
    before = read_all(trail).created[ref]
    forged = trail.entry(ref, (TaskResumed(at_ms=trail.now_ms),))
    forged = msgspec.structs.replace(forged, prev="0" * 64)
    trail.put(task_subject("acme", ref), encode(forged), forged.id)
    rows = read_all(trail)
    assert [row.reason for row in rows.rejected] == [Reason.CHAIN]
    assert rows.created[ref] == before
    trail.command(ref, CompleteTask(id="c", result=trail.sealed("result")))
    assert read_all(trail).created[ref].status == "completed", "the chain goes on where it was"


def test_after_a_lost_entry_the_rest_of_its_chain_is_rejected() -> None:
    trail = Trail()
    ref = trail.create()
    for number in range(3):
        trail.command(ref, ReportStatus(id=str(number), message=trail.sealed("message")))
    del trail.messages[1]
    rows = read_all(trail)
    assert [(row.reason, row.stream_seq, row.sequences) for row in rows.rejected] == [
        (Reason.MISSING, 2, 1),
        (Reason.CHAIN, 3, 1),
        (Reason.CHAIN, 4, 1),
    ]
    assert rows.created[ref].task_seq == 1


def test_a_task_begins_with_its_creation_and_is_created_once() -> None:
    trail = Trail()
    ref = trail.create()
    created = decode(trail.messages[0].body).events
    again = trail.entry(ref, created)  # type: ignore[arg-type]
    trail.put(task_subject("acme", ref), encode(again), again.id)
    unborn = trail.entry("u" * 32, (TaskResumed(at_ms=1),))
    trail.put(task_subject("acme", "u" * 32), encode(unborn), unborn.id)
    assert [row.reason for row in read_all(trail).rejected] == [Reason.CHAIN] * 2


def test_an_access_to_a_task_nobody_created_is_an_orphan() -> None:
    """features.md A3: orphans: 0."""
    trail = Trail()
    ref = trail.create()
    trail.poll(ref)
    del trail.messages[0]
    assert [row.reason for row in read_all(trail).rejected] == [Reason.ORPHAN]


def test_a_hole_is_one_row_and_what_was_archived_before_the_first_message_is_none() -> None:
    trail = Trail(first_seq=500)
    trail.create()
    trail.create()
    third = trail.create()
    del trail.messages[1]
    rows = read_all(trail)
    assert [(row.stream_seq, row.sequences, row.reason) for row in rows.rejected] == [(501, 1, Reason.MISSING)]
    later = trail.messages[-1]._replace(stream_seq=900)
    (row,) = read([later], after=502, known=rows.created).rejected[:1]
    assert (row.stream_seq, row.sequences) == (503, 397)
    assert third in rows.created


@pytest.mark.parametrize(
    "change",
    [{"count": 2**70}, {"first_ms": 10**18}, {"last_ms": -(10**18)}, {"at_ms": 2**62}],
)
def test_a_value_no_column_holds_is_out_of_range_and_not_cut(change: dict[str, int]) -> None:
    trail = Trail()
    ref = trail.create()
    event = TaskPolled(at_ms=1, method="tasks/get", status="working", count=1, first_ms=1, last_ms=1)
    trail.note(access_subject("acme", ref), "acme", (msgspec.structs.replace(event, **change),), ref)
    assert only_rejection(trail)[0] == Reason.OUT_OF_RANGE


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-22", "2026-11-22T11:00:00", "0001-01-01T00:00:00+23:59"])
def test_a_recorded_time_that_is_none_is_out_of_range(text: str) -> None:
    trail = Trail()
    ref = trail.create()
    entry = trail.entry(ref, (TaskResumed(at_ms=1),))
    entry = msgspec.structs.replace(entry, recorded_at=text)
    trail.put(task_subject("acme", ref), encode(entry), entry.id)
    assert only_rejection(trail)[0] == Reason.OUT_OF_RANGE


def test_a_strange_expiry_of_somebodys_token_does_not_reject_the_entry() -> None:
    trail, who = Trail(), ana()
    assert who.credential is not None
    odd = msgspec.structs.replace(who, credential=msgspec.structs.replace(who.credential, exp=2**62))
    ref = trail.create()
    trail.command(ref, ReportStatus(id="r", message=trail.sealed("message")), odd)
    rows = read_all(trail)
    assert not rows.rejected
    assert rows.entries[1].token_expires_at is None
    assert rows.entries[0].token_expires_at is not None


@pytest.mark.requirement("T1")
def test_an_event_of_a_newer_version_is_kept_as_written() -> None:
    """Design section 5: an unknown type is kept and shown, never dropped; so is a field a known type has not."""
    trail = Trail()
    ref = trail.create()
    entry = trail.entry(ref, (TaskResumed(at_ms=7),))
    body = encode(entry)
    newer = body.replace(b'{"type":"TaskResumed","at_ms":7}', b'{"type":"HandleLent","to":"bo","at_ms":8}')
    trail.put(task_subject("acme", ref), newer, entry.id)
    event = read_all(trail).events[-1]
    assert (event.type, event.payload, event.status_after) == (
        "HandleLent",
        '{"type":"HandleLent","to":"bo","at_ms":8}',
        "working",
    )
    wider = body.replace(b'{"type":"TaskResumed","at_ms":7}', b'{"type":"TaskResumed","mood":"glad","at_ms":7}')
    trail.messages[-1] = trail.messages[-1]._replace(body=wider)
    assert read_all(trail).events[-1].payload == '{"type":"TaskResumed","mood":"glad","at_ms":7}'


@pytest.mark.requirement("R4")
def test_the_kinds_of_secrets_seen_in_a_payload_have_a_column() -> None:
    """R4; NULL for the many in which none was seen."""
    trail = Trail()
    trail.create(arguments=trail.sealed("arguments", "a", "jwt", "npm_token"))
    trail.create()
    assert [(event.payload_name, event.payload_flags) for event in read_all(trail).events] == [
        ("arguments", "jwt, npm_token"),
        ("arguments", None),
    ]


def test_a_newer_versions_entry_is_kept_with_the_advice_to_read_it_with_one() -> None:
    trail = Trail()
    trail.create()
    trail.messages[0] = trail.messages[0]._replace(body=trail.messages[0].body.replace(b'{"v":1', b'{"v":2', 1))
    reason, detail = only_rejection(trail)
    assert reason == Reason.UNDECODABLE
    assert "newer tasktrail" in detail


@pytest.mark.requirement("T3")
@pytest.mark.parametrize("level", list(Level))
def test_levels_are_copied_and_never_raised(level: Level) -> None:
    trail = Trail()
    ref = trail.create()
    trail.command(ref, ReportStatus(id="r", message=trail.sealed("message")), ana(level=level))
    row = read_all(trail).entries[-1]
    assert (row.principal_level, row.client_level, row.credential_level) == (level, level, level)
    assert row.address_level == Level.CLAIMED


def test_denials_link_every_claimed_reference_with_its_own_count() -> None:
    trail = Trail()
    ref = trail.create()
    trail.deny(ref, count=5)
    trail.deny("u" * 32, count=1)
    assert [(row.task_ref, row.times, row.reason) for row in read_all(trail).denials] == [
        (ref, 5, "other-identity-context"),
        ("u" * 32, 1, "other-identity-context"),
    ]


def test_an_entry_is_kept_byte_for_byte_with_its_headers() -> None:
    trail = mixed(30)
    rows = read_all(trail)
    assert [(row.body, row.key_id, row.signature, row.entry_id) for row in rows.entries] == [
        (message.body, message.key_id, message.signature, message.msg_id) for message in trail.messages
    ]


def test_the_reference_is_the_last_token_of_a_tasks_subjects_only() -> None:
    assert ref_of(task_subject("acme", "abc")) == "abc"
    assert ref_of(access_subject("acme", "abc")) == "abc"
    assert not ref_of(denied_subject("acme"))
    assert not ref_of("")


def test_a_second_tenant_cannot_write_into_a_task() -> None:
    trail = Trail()
    ref = trail.create()
    foreign = msgspec.structs.replace(trail.entry(ref, (TaskResumed(at_ms=1),)), tenant="globex")
    trail.put(task_subject("globex", ref), encode(foreign), foreign.id)
    polled = TaskPolled(at_ms=1, method="tasks/get", status="working", count=1, first_ms=1, last_ms=1)
    trail.note(access_subject("globex", ref), "globex", (polled,), ref)
    assert [row.reason for row in read_all(trail).rejected] == [Reason.CHAIN, Reason.ORPHAN]


def test_an_entry_without_events_is_an_entry() -> None:
    trail = Trail()
    ref = trail.create()
    empty = trail.entry(ref, ())
    trail.put(task_subject("acme", ref), encode(empty), empty.id)
    rows = read_all(trail)
    assert (len(rows.entries), len(rows.events), len(rows.rejected)) == (2, 1, 0)


def test_creation_must_come_first_in_its_entry() -> None:
    trail = Trail()
    ref = trail.create()
    created = decode(trail.messages[0].body)
    events = (TaskResumed(at_ms=1), *created.events)
    shuffled = msgspec.structs.replace(created, events=events)
    trail.messages[0] = Message(1, task_subject("acme", ref), encode(shuffled), created.id)
    assert any(isinstance(event, TaskCreated) for event in events)
    assert only_rejection(trail)[0] == Reason.CHAIN
