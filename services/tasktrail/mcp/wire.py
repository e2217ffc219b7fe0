"""A task as the wire says it.

Guarantees: pure; shapes are those of the extension `io.modelcontextprotocol/tasks` (SEP-2663, protocol 2026-07-28):
flat, with `resultType`, times in RFC 3339, durations in milliseconds.

    detailed(view)  ->  {"taskId": …, "status": "working", …}
"""

from typing import Any

import msgspec

from tasktrail.events.facts import Status
from tasktrail.services.clock import rfc3339
from tasktrail.services.messages import TaskView

EXTENSION = "io.modelcontextprotocol/tasks"


def created(view: TaskView) -> dict[str, Any]:
    """`CreateTaskResult`: the handle and its seed state, without payloads."""
    return {"resultType": "task", **_task(view)}


def got(view: TaskView) -> dict[str, Any]:
    """`GetTaskResult`: the task with what its status shows."""
    return {"resultType": "complete", **detailed(view)}


def detailed(view: TaskView) -> dict[str, Any]:
    """`DetailedTask`: also the parameters of `notifications/tasks`."""
    task = _task(view)
    if view.status is Status.INPUT_REQUIRED:
        task["inputRequests"] = {
            key: {"method": ask.method, **({} if ask.params is None else {"params": ask.params})}
            for key, ask in view.input_requests.items()
        }
    elif view.status is Status.COMPLETED:
        task["result"] = view.result
    elif view.status is Status.FAILED and view.error is not None:
        task["error"] = msgspec.to_builtins(view.error)
    return task


def _task(view: TaskView) -> dict[str, Any]:
    task: dict[str, Any] = {
        "taskId": view.task_id,
        "status": view.status.value,
        "createdAt": rfc3339(view.created_at_ms),
        "lastUpdatedAt": rfc3339(view.last_updated_at_ms),
        "ttlMs": view.ttl_ms,
        "pollIntervalMs": view.poll_interval_ms,
    }
    if view.status is Status.FAILED and view.error is not None:
        task["statusMessage"] = view.error.message
    elif view.status_message is not None:
        task["statusMessage"] = view.status_message
    return task
