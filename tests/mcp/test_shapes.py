"""The check of the wire's shapes would see a wrong one. Source: SEP-2663; the extension's JSON schema where present."""

from typing import Any

import msgspec
import pytest

from . import shapes

TASK: dict[str, Any] = {
    "taskId": "a" * 32,
    "status": "working",
    "createdAt": "2026-11-22T10:00:00.000Z",
    "lastUpdatedAt": "2026-11-22T10:00:01.000Z",
    "ttlMs": 1000,
    "pollIntervalMs": 1000,
}
RESULT: dict[str, Any] = {"content": [], "isError": False, "resultType": "complete"}

NOTHING: dict[str, Any] = {}


def got(**more: object) -> dict[str, Any]:
    """An answer to tasks/get."""
    return {"jsonrpc": "2.0", "id": 1, "result": {"resultType": "complete", **TASK, **more}}


def test_right_shapes_pass() -> None:
    """Each status with what it shows."""
    asks: dict[str, Any] = {"k": {"method": "roots/list"}}
    shapes.check("tasks/get", got())
    shapes.check("tasks/get", got(ttlMs=None, statusMessage="x"))
    shapes.check("tasks/get", got(status="input_required", inputRequests=asks))
    shapes.check("tasks/get", got(status="completed", result=RESULT))
    shapes.check("tasks/get", got(status="failed", error={"code": 1, "message": "x"}, statusMessage="x"))
    shapes.check("tools/call", {"jsonrpc": "2.0", "id": 1, "result": {"resultType": "task", **TASK}})


@pytest.mark.parametrize(
    "wrong",
    [
        got(resultType="task"),
        got(result=RESULT),
        got(requestState="x"),
        got(ttl=5),
        got(ttlMs=0),
        got(ttlMs="1000"),
        got(pollIntervalMs=0.5),
        got(createdAt="yesterday"),
        got(createdAt="2026-11-22T10:00:02.000Z"),
        got(taskId="not one of ours"),
        got(status="done"),
        got(status="completed"),
        got(status="completed", result={**RESULT, "more": 1}),
        got(status="failed", error={"code": 1, "message": "x"}),
        got(status="failed", statusMessage="x"),
        got(status="input_required", inputRequests=NOTHING),
        got(status="input_required", inputRequests={"k": {"method": "tools/call"}}),
        {**got(), "error": {"code": 1, "message": "x"}},
    ],
    ids=str,
)
def test_a_wrong_shape_is_seen(wrong: dict[str, Any]) -> None:
    """A field too many, too few, or of another form."""
    with pytest.raises((AssertionError, KeyError, msgspec.ValidationError)):
        shapes.check("tasks/get", wrong)


def test_an_acknowledgement_is_empty() -> None:
    """SEP-2663: an empty result; an envelope of a task in it is wrong."""
    result: dict[str, Any] = {"resultType": "complete", "_meta": {}}
    shapes.check("tasks/cancel", {"jsonrpc": "2.0", "id": 1, "result": result})
    with pytest.raises(AssertionError):
        shapes.check("tasks/cancel", {"jsonrpc": "2.0", "id": 1, "result": {**result, "status": "cancelled"}})


@pytest.mark.parametrize("data", [{}, {"requiredCapabilities": {}}, {"requiredCapabilities": {"tasks": {}}}, None])
def test_the_missing_capability_is_named_in_full(data: object) -> None:
    """SEP-2663: -32021 specifies the missing capabilities."""
    error = {"code": -32021, "message": "x", "data": data}
    with pytest.raises((AssertionError, KeyError, msgspec.ValidationError)):
        shapes.check("tasks/get", {"jsonrpc": "2.0", "id": 1, "error": error})
