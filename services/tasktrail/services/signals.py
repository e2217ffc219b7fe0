"""What a task's move is told as, to whoever runs or watches it: without any payload.

signal_of(state.task)  ->  Signal(seq=4, status=Status.WORKING, …)
"""

from tasktrail.events.task import Task
from tasktrail.services.messages import Signal


def signal_of(task: Task) -> Signal:
    """The nudge that says how the task is now."""
    return Signal(
        seq=task.seq,
        status=task.status,
        cancel_requested=task.cancel_requested_at_ms is not None,
        live=task.live,
        worker=task.worker,
        attempt=task.attempt,
        waiting=task.waits_for_worker,
    )
