"""A task as the 2025-11-25 wire says it.

Guarantees: pure; a result with `isError` is `failed` here; every message that belongs to a task names it under
`io.modelcontextprotocol/related-task`; a question's JSON-RPC id says by itself what it asks, so that any replica takes
the answer. Source: MCP 2025-11-25, tasks (Data Types, Associating Task-Related Messages).

    task(view)  ->  {"taskId": …, "status": "failed", …}
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import msgspec

from tasktrail.events.facts import Status
from tasktrail.services.clock import rfc3339
from tasktrail.services.messages import InputAsk, Listed, TaskView

REVISION = "2025-11-25"
WIRE = f"mcp/{REVISION}"
"""The name of this wire on the trail."""
RELATED = "io.modelcontextprotocol/related-task"
NO_CURSOR = "this cursor is none that was given here; list again without one"
NOT_STOPPED = "the task was told to stop and has not stopped yet: ask for it again"
CANCELLED_WITHIN_S = 15.0
"""How long `tasks/cancel` waits for the task to be cancelled: work that does not stop is ended without it sooner."""
CANCELLED_CODE, CANCELLED_TEXT = 0, "Request cancelled"
"""What a cancelled task's request would have got as its answer."""


def status(view: TaskView) -> str:
    """The status: a tool's own error is a failure on this wire."""
    return "failed" if view.status is Status.COMPLETED and view.is_error else view.status.value


def task(view: TaskView) -> dict[str, Any]:
    """`Task`: the handle and its state, without payloads."""
    said = {} if view.status_message is None else {"statusMessage": view.status_message}
    return {
        "taskId": view.task_id,
        "status": status(view),
        **said,
        "createdAt": rfc3339(view.created_at_ms),
        "lastUpdatedAt": rfc3339(view.last_updated_at_ms),
        "ttl": view.ttl_ms,
        "pollInterval": view.poll_interval_ms,
    }


def page(found: Listed) -> dict[str, Any]:
    """`ListTasksResult`: a page of tasks, and the cursor of the next one where there is more."""
    more = {"nextCursor": found.next_cursor} if found.next_cursor else {}
    return {"tasks": [task(view) for view in found.tasks], **more}


def over(view: TaskView) -> str:
    """What is said to whoever would cancel a task that has ended."""
    return f"the task is {status(view)}: it cannot be cancelled any more"


def notification(view: TaskView) -> dict[str, Any]:
    """`notifications/tasks/status`: the whole task, which therefore carries no related-task metadata."""
    return {"jsonrpc": "2.0", "method": "notifications/tasks/status", "params": task(view)}


def outcome(view: TaskView) -> dict[str, Any]:
    """What the request of an ended task came to: the member `result` or `error` of its answer."""
    if view.status is Status.CANCELLED:
        return {"error": {"code": CANCELLED_CODE, "message": CANCELLED_TEXT}}
    if view.error is not None:
        return {"error": msgspec.to_builtins(view.error)}
    return {"result": related(view.task_id, view.result)}


def related(task_id: str, body: object) -> dict[str, Any]:
    """A result's or request's members, with the task that it belongs to."""
    members: dict[str, Any] = dict(cast("Mapping[str, Any]", body)) if isinstance(body, Mapping) else {}
    return {**members, "_meta": {**_meta(members), RELATED: {"taskId": task_id}}}


def unrelated(body: Mapping[str, Any]) -> dict[str, Any]:
    """An answer's members as they are recorded: without the task's id."""
    members = dict(body)
    meta = {name: value for name, value in _meta(members).items() if name != RELATED}
    members.pop("_meta", None)
    return {**members, "_meta": meta} if meta else members


def _meta(members: Mapping[str, Any]) -> Mapping[str, Any]:
    meta: object = members.get("_meta")
    return cast("Mapping[str, Any]", meta) if isinstance(meta, Mapping) else {}


class Question(NamedTuple):
    """What a question's id says: the task, which of its questions, and the stream it was put on.

    An id may not be used twice (MCP 2025-11-25, base protocol), and a question is put on every stream that waits.
    """

    task_id: str
    stream: str
    key: str

    @property
    def rpc_id(self) -> str:
        """The JSON-RPC id."""
        return ".".join(self)

    @classmethod
    def of(cls, rpc_id: object) -> "Question | None":
        """The question that an id stands for; None when it is no question of a task."""
        task_id, _, rest = rpc_id.partition(".") if isinstance(rpc_id, str) else ("", "", "")
        stream, _, key = rest.partition(".")
        return cls(task_id, stream, key) if task_id and stream and key else None

    def request(self, ask: InputAsk) -> dict[str, Any]:
        """The question as it is put."""
        params = related(self.task_id, ask.params)
        return {"jsonrpc": "2.0", "id": self.rpc_id, "method": ask.method, "params": params}
