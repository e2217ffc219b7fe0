"""A task as the SDK v1's types have it: what `services.wire_2025` says of it, in `mcp.types`.

Guarantees: pure; the types add nothing to what is said. Source: MCP 2025-11-25, tasks (Data Types).

    task(view)  ->  mcp.types.Task(taskId=…, status="failed", …)
"""

import mcp.types as mcp
from mcp.shared.exceptions import McpError

from tasktrail.events.errors import TasktrailError
from tasktrail.services import wire as sdk_free
from tasktrail.services import wire_2025
from tasktrail.services.messages import TaskView


def task(view: TaskView) -> mcp.Task:
    """`Task`: the handle and its state, without payloads."""
    return mcp.Task.model_validate(wire_2025.task(view))


def notification(view: TaskView) -> mcp.ServerNotification:
    """`notifications/tasks/status`: the whole task, which therefore carries no related-task metadata."""
    params = mcp.TaskStatusNotificationParams.model_validate(wire_2025.task(view))
    return mcp.ServerNotification(mcp.TaskStatusNotification(params=params))


def outcome(view: TaskView) -> mcp.GetTaskPayloadResult:
    """What the request of an ended task came to.

    Raises:
        McpError: it came to a JSON-RPC error, or was cancelled.
    """
    said = wire_2025.outcome(view)
    if "error" in said:
        raise McpError(mcp.ErrorData.model_validate(said["error"]))
    return mcp.GetTaskPayloadResult.model_validate(said["result"])


def rpc_error(error: TasktrailError) -> McpError:
    """An error as JSON-RPC: a handle that opens nothing gets the same bytes whatever the reason."""
    return McpError(mcp.ErrorData(**sdk_free.rpc_error(error)))
