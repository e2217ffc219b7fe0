"""What a caller sees of a task: its state, with the payloads that its status shows.

Guarantees: nothing is opened that is not shown; what is shown is what `disclosed` names.

    payloads = disclosed(state.task)
    view = await shown(state, handle, payloads, status_only=False)
"""

import msgspec

from tasktrail.events.facts import Commitment
from tasktrail.events.task import Task
from tasktrail.projections.current import State
from tasktrail.services.access.payloads import Payloads
from tasktrail.services.messages import InputAsk, RpcError, TaskView


def disclosed(task: Task) -> tuple[Commitment, ...]:
    """The payloads a look at the task shows: results, errors, and the texts of outstanding requests."""
    payloads = [one for one in (task.result, task.error) if one is not None]
    if not task.status.terminal:
        payloads += [asked.request for asked in task.outstanding.values()]
    return tuple(payloads)


async def shown(state: State, handle: str, payloads: Payloads, *, status_only: bool) -> TaskView:
    """The task as its caller sees it. `status_only`: without the payloads that `disclosed` names.

    Raises:
        SealError: a payload, or the task's key, is gone.
    """
    task = state.task
    requests: dict[str, InputAsk] = {}
    if not task.status.terminal and not status_only:
        for name, asked in task.outstanding.items():
            requests[name] = msgspec.convert(await payloads.open(state, asked.request), InputAsk)
    message = await payloads.open(state, task.message) if task.message else None
    result = await payloads.open(state, task.result) if task.result and not status_only else None
    error = await payloads.open(state, task.error) if task.error and not status_only else None
    return TaskView(
        task_id=handle,
        task_ref=state.task_ref,
        status=task.status,
        created_at_ms=task.created_at_ms,
        last_updated_at_ms=task.last_updated_at_ms,
        ttl_ms=task.ttl_ms,
        poll_interval_ms=task.poll_interval_ms,
        seq=task.seq,
        status_message=message,
        input_requests=requests,
        result=result,
        is_error=task.is_error,
        error=msgspec.convert(error, RpcError) if error is not None else None,
    )
