"""The shapes of the tasks extension on the wire (SEP-2663, protocol 2026-07-28), strictly: a field too many is wrong.

Guarantees: `check` and `check_streamed` fail with the field that is wrong. Where the extension's own JSON schema lies
beside the repository, every message must satisfy that too; these models are the check that always runs.
"""

import functools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from jsonschema import Draft202012Validator
from msgspec import Meta

EXTENSION = "io.modelcontextprotocol/tasks"
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
SCHEMA = Path(__file__).parents[3] / "shared" / "spec" / "tasks-extension.schema.json"

TaskId = Annotated[str, Meta(pattern="^[a-z2-7]{32}$")]
Time = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")]
Milliseconds = Annotated[int, Meta(ge=1, le=2**53 - 1)]


class Shape(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """Base: nothing but the fields named."""


class Task(Shape, kw_only=True):
    """What every status shows."""

    task_id: TaskId
    created_at: Time
    last_updated_at: Time
    ttl_ms: Milliseconds | None
    poll_interval_ms: Milliseconds
    status_message: str | msgspec.UnsetType = msgspec.UNSET


class CreatedTask(Task, kw_only=True):
    """`CreateTaskResult` without its envelope: never a payload, whatever the status."""

    status: Literal["working", "input_required", "completed", "failed", "cancelled"]


class WorkingTask(Task, kw_only=True):
    """Its work goes on."""

    status: Literal["working"]


class InputRequest(Shape, kw_only=True):
    """One question to the client."""

    method: Literal["elicitation/create", "sampling/createMessage", "roots/list"]
    params: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class InputRequiredTask(Task, kw_only=True):
    """It waits for its client."""

    status: Literal["input_required"]
    input_requests: Annotated[
        dict[Annotated[str, Meta(min_length=1, max_length=128)], InputRequest], Meta(min_length=1)
    ]


class ToolResult(Shape, kw_only=True):
    """`CallToolResult` as the synchronous call would have given it."""

    content: list[dict[str, Any]]
    is_error: bool
    result_type: Literal["complete"]
    structured_content: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    meta: dict[str, Any] | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="_meta")


class CompletedTask(Task, kw_only=True):
    """It has a result, which may be a tool's error."""

    status: Literal["completed"]
    result: ToolResult


class RpcError(Shape, kw_only=True):
    """A JSON-RPC error object."""

    code: int
    message: str
    data: Any = None


class FailedTask(Task, kw_only=True):
    """It ended in a JSON-RPC error, and says why."""

    status: Literal["failed"]
    error: RpcError


class CancelledTask(Task, kw_only=True):
    """It was stopped."""

    status: Literal["cancelled"]


DETAILED: dict[str, type[Task]] = {
    "working": WorkingTask,
    "input_required": InputRequiredTask,
    "completed": CompletedTask,
    "failed": FailedTask,
    "cancelled": CancelledTask,
}


class Acknowledged(Shape, kw_only=True):
    """What a subscription stream honours; absent is not honoured."""

    task_ids: list[TaskId]
    tools_list_changed: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    prompts_list_changed: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    resources_list_changed: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    resource_subscriptions: list[str] | msgspec.UnsetType = msgspec.UNSET


class Extensions(Shape, kw_only=True):
    """The extension by its identifier."""

    tasks: dict[str, Any] = msgspec.field(name=EXTENSION)


class RequiredCapabilities(Shape, kw_only=True):
    """The capability that a client did not declare."""

    extensions: Extensions


class MissingCapability(Shape, kw_only=True):
    """What -32021 says is missing."""

    required_capabilities: RequiredCapabilities


class Unavailable(Shape, kw_only=True):
    """What -32603 says of the trail."""

    retriable: bool
    written: Literal["nothing", "maybe", "refusal", "denial"]


METHODS = frozenset({"tasks/get", "tasks/update", "tasks/cancel"})

ERROR_DATA: dict[int, type[Shape] | None] = {-32021: MissingCapability, -32603: Unavailable, -32602: None, -32020: None}
"""What the extension's own errors carry as data, by code; None: no data at all."""


def check(method: str, message: dict[str, Any]) -> None:
    """An answer: to a method of the extension, to `tools/call` when it made a task, to `subscriptions/listen`."""
    if "error" in message:
        assert message.keys() == {"jsonrpc", "id", "error"}, message
        _check_error(method, message["error"])
        return
    assert message.keys() == {"jsonrpc", "id", "result"}, message
    result = dict(message["result"])
    kind, meta = result.pop("resultType"), result.pop("_meta", {})
    if method == "tasks/get":
        assert kind == "complete", message
        _check_detailed(result)
        _check_schema("GetTaskResult", message["result"])
    elif method in {"tasks/update", "tasks/cancel"}:
        assert (kind, result) == ("complete", {}), message
        _check_schema("UpdateTaskResult" if method == "tasks/update" else "CancelTaskResult", message["result"])
    elif method == "subscriptions/listen":
        assert (kind, result) == ("complete", {}), message
        assert meta[SUBSCRIPTION] == message["id"], message
    elif kind == "task":
        created = msgspec.convert(result, CreatedTask)
        assert created.created_at <= created.last_updated_at, message
        _check_schema("CreateTaskResult", message["result"])


def check_streamed(message: dict[str, Any], rpc_id: int | str) -> None:
    """A message of the subscription stream of the request with this id."""
    if "method" not in message:
        check("subscriptions/listen", message)
        return
    assert message.keys() == {"jsonrpc", "method", "params"}, message
    params = dict(message["params"])
    assert params.pop("_meta") == {SUBSCRIPTION: rpc_id}, message
    if message["method"] == "notifications/tasks":
        _check_detailed(params)
        _check_schema("TaskStatusNotification", message)
    elif message["method"] == "notifications/subscriptions/acknowledged":
        assert params.keys() == {"notifications"}, message
        msgspec.convert(params["notifications"], Acknowledged)
        _check_schema("TaskSubscriptionAcknowledgedNotifications", params["notifications"])


def _check_detailed(task: dict[str, Any]) -> None:
    shown = msgspec.convert(task, DETAILED[task["status"]])
    assert shown.created_at <= shown.last_updated_at, task
    assert shown.status_message is not msgspec.UNSET or task["status"] != "failed", task


def _check_error(method: str, error: dict[str, Any]) -> None:
    told = msgspec.convert(error, RpcError)
    if method in METHODS:
        kind = ERROR_DATA[told.code]
        if kind is None:
            assert "data" not in error, error
        else:
            msgspec.convert(error["data"], kind)


@functools.cache
def _validator(definition: str) -> Draft202012Validator | None:
    if not SCHEMA.exists():
        return None
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return Draft202012Validator({"$ref": f"#/$defs/{definition}", "$defs": schema["$defs"]})


def _check_schema(definition: str, message: dict[str, Any]) -> None:
    validator: Any = _validator(definition)
    assert validator is None or validator.is_valid(message), f"not a {definition} of the schema: {message}"
