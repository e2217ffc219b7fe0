"""What may be missing from one task's history, and why we think so. Pure.

Guarantees: whatever overlaps the time between the task's creation and its expiry is told, also when it began after the
task had ended: then only accesses can be missing, and it says so.

    list(gaps(found))
"""

from collections.abc import Iterator

from tasktrail.events.facts import GapFound
from tasktrail.projections.audit.columns import instant
from tasktrail.projections.audit.found import Found, event_of, stamp_ms
from tasktrail.projections.audit.sentences import printable
from tasktrail.projections.audit.task_rows import TaskRow
from tasktrail.projections.audit.timeline import Gap


def gaps(found: Found) -> Iterator[Gap]:
    """What the service, or the stream itself, lacks in the time between the task's creation and its expiry."""
    if found.task is None:
        return
    for row in found.gaps:
        event = event_of(row)
        if isinstance(event, GapFound) and _overlaps(event, found.task):
            yield Gap(
                source="control",
                stream_seq=row.stream_seq,
                sequences=0,
                what=printable(event.what),
                cause=printable(event.cause),
                since=stamp_ms(event.since_ms),
                until=stamp_ms(event.until_ms),
                after_end=_after_end(event, found.task),
            )
    for hole in found.holes:
        yield Gap(
            source="stream",
            stream_seq=hole.stream_seq,
            sequences=hole.sequences,
            what="messages of the trail, which may have been of this task",
            cause=printable(hole.detail),
            since=None,
            until=None,
            after_end=False,
        )


def _overlaps(gap: GapFound, task: TaskRow) -> bool:
    ended = task.expired_at
    return instant("until_ms", gap.until_ms) >= task.created_at and (
        ended is None or instant("since_ms", gap.since_ms) <= ended
    )


def _after_end(gap: GapFound, task: TaskRow) -> bool:
    return task.ended_at is not None and instant("since_ms", gap.since_ms) > task.ended_at
