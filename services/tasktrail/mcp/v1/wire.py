"""A task as the 2025-11-25 wire says it.

Guarantees: pure; a result with `isError` is `failed` here; every message that belongs to a task names it under
`io.modelcontextprotocol/related-task`. Source: MCP 2025-11-25, tasks (Data Types, Associating Task-Related Messages).

    task(view)  ->  mcp.types.Task(taskId=…, status="failed", …)
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import mcp.types as mcp
from mcp.shared.exceptions import McpError

from tasktrail.events.errors import TaskNotFound, TasktrailError
from tasktrail.events.facts import Status
from tasktrail.services.messages import TaskView

RELATED = "io.modelcontextprotocol/related-task"
CANCELLED_CODE, CANCELLED_TEXT = 0, "Request cancelled"
"""What the SDK v1 answers to a request that was cancelled: a cancelled task's request would have got it."""


def status(view: TaskView) -> mcp.TaskStatus:
    """The status: a tool's own error is a failure on this wire."""
    return "failed" if view.status is Status.COMPLETED and view.is_error else view.status.value


def task(view: TaskView) -> mcp.Task:
    """`Task`: the handle and its state, without payloads."""
    return mcp.Task(
        taskId=view.task_id,
        status=status(view),
        statusMessage=view.status_message,
        createdAt=_time(view.created_at_ms),
        lastUpdatedAt=_time(view.last_updated_at_ms),
        ttl=view.ttl_ms,
        pollInterval=view.poll_interval_ms,
    )


def _time(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def notification(view: TaskView) -> mcp.ServerNotification:
    """`notifications/tasks/status`: the whole task, which therefore carries no related-task metadata."""
    params = mcp.TaskStatusNotificationParams(**task(view).model_dump())
    return mcp.ServerNotification(mcp.TaskStatusNotification(params=params))


def outcome(view: TaskView) -> mcp.GetTaskPayloadResult:
    """What the request of an ended task came to.

    Raises:
        McpError: it came to a JSON-RPC error, or was cancelled.
    """
    if view.status is Status.CANCELLED:
        raise McpError(mcp.ErrorData(code=CANCELLED_CODE, message=CANCELLED_TEXT))
    if view.error is not None:
        raise McpError(mcp.ErrorData(code=view.error.code, message=view.error.message, data=view.error.data))
    return mcp.GetTaskPayloadResult.model_validate(related(view.task_id, view.result))


def related(task_id: str, body: object) -> dict[str, Any]:
    """A result's or request's members, with the task that it belongs to."""
    members: dict[str, Any] = dict(cast("Mapping[str, Any]", body)) if isinstance(body, Mapping) else {}
    meta: object = members.get("_meta")
    members["_meta"] = {
        **(cast("Mapping[str, Any]", meta) if isinstance(meta, Mapping) else {}),
        RELATED: {"taskId": task_id},
    }
    return members


def unrelated(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request's parameters as they are recorded: without the task's id, which each delivery names anew."""
    members = dict(body)
    meta = {name: value for name, value in (members.pop("_meta", None) or {}).items() if name != RELATED}
    return {**members, "_meta": meta} if meta else members


def rpc_error(error: TasktrailError) -> McpError:
    """An error as JSON-RPC: a handle that opens nothing gets the same bytes whatever the reason."""
    if isinstance(error, TaskNotFound) or (error.code == TaskNotFound.code and not error.retriable):
        return McpError(mcp.ErrorData(code=error.code, message=error.message))
    data: dict[str, Any] = {"retriable": error.retriable, "written": error.written}
    if error.retry_after_ms:
        data["retryAfterMs"] = error.retry_after_ms
    return McpError(mcp.ErrorData(code=error.code, message=error.message, data=data))
