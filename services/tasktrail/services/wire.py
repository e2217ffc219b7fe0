"""A task as the wire says it, and what of a request is recorded.

Guarantees: pure; shapes are those of the extension `io.modelcontextprotocol/tasks` (SEP-2663, protocol 2026-07-28):
flat, with `resultType`, times in RFC 3339, durations in milliseconds. The earlier wire is in `wire_2025`. Needs msgspec
only, so that adapters use it too.

    detailed(view)  ->  {"taskId": …, "status": "working", …}
"""

import hashlib
from typing import Any

import msgspec

from tasktrail.events.errors import TaskNotFound, TasktrailError
from tasktrail.events.facts import Status
from tasktrail.services.access.claims import DIGESTED, clean
from tasktrail.services.clock import rfc3339
from tasktrail.services.messages import HANDLE_MAX, TaskView

EXTENSION = "io.modelcontextprotocol/tasks"
REVISION = "2026-07-28"
WIRE = f"mcp/{REVISION}"
"""The name of this wire on the trail."""


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


def rpc_error(error: TasktrailError) -> dict[str, Any]:
    """An error as JSON-RPC: a handle that opens nothing gets the same bytes whatever the reason."""
    told = {"code": error.code, "message": error.message}
    if error.code == TaskNotFound.code and not error.retriable:
        return told
    data: dict[str, Any] = {"retriable": error.retriable, "written": error.written}
    if error.retry_after_ms:
        data["retryAfterMs"] = error.retry_after_ms
    return {**told, "data": data}


def rpc_id(request_id: object) -> str:
    """A JSON-RPC id as it is recorded: a number, or the digest of a text."""
    if isinstance(request_id, int):
        return str(request_id)[:20]
    said = str(request_id or "")
    return f"{DIGESTED}{hashlib.sha256(said.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}" if said else ""


def handle_text(value: object) -> str:
    """A handle as it came, in a form that travels: what is no text, or no Unicode, names no task."""
    return clean(value)[:HANDLE_MAX] if isinstance(value, str) else ""
