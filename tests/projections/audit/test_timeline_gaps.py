"""Gaps of the trail as one task's timeline tells them: issue "main job", docs/timeline.md."""

from tests.projections.audit.histories import NOW_MS, Trail, gap, timer
from tests.projections.audit.stores import told

from tasktrail.events.commands import CompleteTask, ExpireTask
from tasktrail.events.subjects import control_subject, task_subject
from tasktrail.projections.audit.store import AuditStore


def test_gaps_of_the_tenant_and_of_the_service_are_shown_when_they_overlap_the_tasks_life(store: AuditStore) -> None:
    trail = Trail()
    early = gap(NOW_MS - 5_000, NOW_MS - 4_000)
    trail.note(control_subject("_"), "_", (early,))
    ref = trail.create()
    trail.note(control_subject("_"), "_", (gap(NOW_MS - 5_000, NOW_MS + 100),))
    trail.note(control_subject("globex"), "globex", (gap(NOW_MS, NOW_MS + 100),))
    trail.note(control_subject("acme"), "acme", (gap(NOW_MS + 50, NOW_MS + 60),))
    trail.now_ms += 70_000
    trail.command(ref, ExpireTask(id="t"), timer())
    trail.note(control_subject("acme"), "acme", (gap(NOW_MS + 90_000, NOW_MS + 99_000),))
    gaps = told(store, trail, ref).gaps
    assert [(one.source, one.stream_seq, one.since, one.cause) for one in gaps] == [
        ("control", 3, "2026-11-18T11:06:35.000Z", "crash"),
        ("control", 5, "2026-11-18T11:06:40.050Z", "crash"),
    ]


def test_a_task_after_many_gaps_is_told_of_its_own(store: AuditStore) -> None:
    """Source: docs/timeline.md, gaps; a bound on how many are told must not leave out those of the task's time."""
    trail = Trail()
    for at in range(1_001):
        trail.note(control_subject("_"), "_", (gap(NOW_MS - 90_000 + at, NOW_MS - 80_000 + at),))
    ref = trail.create()
    trail.note(control_subject("_"), "_", (gap(NOW_MS, NOW_MS + 100),))
    assert [one.stream_seq for one in told(store, trail, ref).gaps] == [1_003]


def test_the_end_is_dated_by_the_last_entry_when_the_last_message_is_none(store: AuditStore) -> None:
    """Source: docs/timeline.md, as_of_time."""
    trail = Trail()
    ref = trail.create()
    before = told(store, trail, ref)
    trail.put(task_subject("acme", ref), b"{}", "no-entry")
    store.append(trail.messages)
    after = store.timeline(ref)
    assert after is not None
    assert (before.as_of, after.as_of) == (1, 2)
    assert before.as_of_time is not None
    assert after.as_of_time == before.as_of_time


def test_a_gap_after_the_end_says_that_only_accesses_can_be_missing(store: AuditStore) -> None:
    """What became of the task is chained: a crash loses folded accesses at most (design, section 1)."""
    trail = Trail()
    ref = trail.create()
    trail.command(ref, CompleteTask(id="c", result=trail.sealed("result")))
    trail.note(control_subject("_"), "_", (gap(NOW_MS, NOW_MS + 30),))
    trail.note(control_subject("_"), "_", (gap(NOW_MS + 900, NOW_MS + 2_000),))
    assert [one.after_end for one in told(store, trail, ref).gaps] == [False, True]


def test_a_hole_in_the_stream_since_the_creation_is_a_gap(store: AuditStore) -> None:
    trail = Trail()
    for _ in range(6):
        trail.create()
    del trail.messages[3:5]
    del trail.messages[1]
    refs = list(trail.tasks)
    (first,) = [gap for gap in told(store, trail, refs[2]).gaps if gap.stream_seq > 2]
    assert (first.source, first.stream_seq, first.sequences) == ("stream", 4, 2)
    timeline = store.timeline(refs[0])
    assert timeline is not None
    assert [one.stream_seq for one in timeline.gaps] == [2, 4]
