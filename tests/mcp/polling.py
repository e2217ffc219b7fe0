"""The client's half of the tasks extension for clients made with the official SDK, FastMCP's among them.

Guarantees: a call that became a task is polled to its end, its questions answered with an age of 41.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import mcp_types as types
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from pydantic import ConfigDict

from .client import EXTENSION


class Made(types.Result):
    """`CreateTaskResult` as this client reads it."""

    model_config = ConfigDict(extra="allow")
    result_type: Literal["task"]
    task_id: str
    poll_interval_ms: int


class Params(types.RequestParams):
    """Parameters of the extension's requests."""

    task_id: str
    input_responses: dict[str, Any] | None = None


class TaskRequest(types.Request[Params, str]):
    """Any of the three, as FastMCP sends it: without Mcp-Name."""


class NamedRequest(types.Request[Params, str]):
    """Any of the three, with Mcp-Name (SEP-2243)."""

    name_param: ClassVar[str | None] = "taskId"


class Seen(types.Result):
    """`GetTaskResult` as this client reads it."""

    model_config = ConfigDict(extra="allow")
    status: str
    input_requests: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class TasksClient(ClientExtension):
    """Polls a task to its end and answers its questions with the client's own callback."""

    identifier = EXTENSION

    def __init__(self, request: type[types.Request[Params, str]] = TaskRequest) -> None:
        self._request = request
        self.made: list[str] = []
        self.seen: list[str] = []

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Made, resolve=self._resolve)]

    async def _resolve(self, made: Made, context: ClaimContext) -> types.CallToolResult:
        self.made.append(made.task_id)
        while True:
            asking = self._request(method="tasks/get", params=Params(task_id=made.task_id))
            task = await context.session.send_request(asking, Seen)
            self.seen.append(task.status)
            if task.input_requests:
                answers = {key: {"action": "accept", "content": {"age": 41}} for key in task.input_requests}
                update = Params(task_id=made.task_id, input_responses=answers)
                await context.session.send_request(
                    self._request(method="tasks/update", params=update), types.EmptyResult
                )
            elif task.result is not None:
                return types.CallToolResult.model_validate(task.result)
            elif task.error is not None:
                return types.CallToolResult(content=[types.TextContent(type="text", text="failed")], is_error=True)
            await asyncio.sleep(0.02)
