"""`tasks/get`, `tasks/result`, `tasks/list` and `tasks/cancel` of the 2025-11-25 wire.

Guarantees: nothing is answered that the service did not find out for this very request; a cancelled task is cancelled
when the answer goes out. Source: MCP 2025-11-25, tasks (Protocol Messages, Behavior Requirements).

    server.request_handlers |= Handles(link, door, results, lambda: server.request_context).served()
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import mcp.types as mcp
from mcp.shared.exceptions import McpError

from tasktrail.mcp.credentials import handle_text
from tasktrail.mcp.link import Link
from tasktrail.mcp.v1 import requests, wire
from tasktrail.mcp.v1.door import Door
from tasktrail.mcp.v1.requests import Context
from tasktrail.mcp.v1.results import Results
from tasktrail.services import messages, wire_2025
from tasktrail.services.access.claims import TEXT_MAX
from tasktrail.services.messages import Listed, TaskView

LOOK_EVERY_S = 1.0

Serve: TypeAlias = Callable[[Any], Awaitable[mcp.ServerResult]]
"""What answers the requests of one method."""


class Handles:
    """What callers may do with the handles they have."""

    def __init__(self, link: Link, door: Door, results: Results, context: Callable[[], Context]) -> None:
        """`context` gives the request at hand."""
        self._link, self._door, self._results, self._context = link, door, results, context

    def served(self) -> dict[type, Serve]:
        """The methods, as the SDK's server holds them."""
        return {
            mcp.GetTaskRequest: self._get,
            mcp.GetTaskPayloadRequest: self._result,
            mcp.ListTasksRequest: self._list,
            mcp.CancelTaskRequest: self._cancel,
        }

    async def _at(self, method: str, handle: object) -> Context:
        """The request at hand, if its revision has tasks."""
        ctx = self._context()
        await self._door.speaking(ctx, method, handle)
        return ctx

    async def _get(self, req: mcp.GetTaskRequest) -> mcp.ServerResult:
        ctx = await self._at("tasks/get", req.params.taskId)
        view = await self._door.look(ctx, "tasks/get", handle_text(req.params.taskId))
        return mcp.ServerResult(mcp.GetTaskResult(**wire.task(view).model_dump()))

    async def _result(self, req: mcp.GetTaskPayloadRequest) -> mcp.ServerResult:
        ctx = await self._at("tasks/result", req.params.taskId)
        return mcp.ServerResult(await self._results.wait(ctx, handle_text(req.params.taskId)))

    async def _list(self, req: mcp.ListTasksRequest) -> mcp.ServerResult:
        ctx = await self._at("tasks/list", "")
        cursor = handle_text(req.params.cursor if req.params else None)
        if len(cursor) > TEXT_MAX:
            raise McpError(mcp.ErrorData(code=mcp.INVALID_PARAMS, message=wire_2025.NO_CURSOR))
        who = self._door.caller(ctx)
        said = messages.ListTasks(caller=who, call=requests.call(ctx, "tasks/list"), cursor=cursor)
        found: Listed = await self._door.request("list", said)
        return mcp.ServerResult(mcp.ListTasksResult.model_validate(wire_2025.page(found)))

    async def _cancel(self, req: mcp.CancelTaskRequest) -> mcp.ServerResult:
        """Tell the task to stop, and answer once it is cancelled (Task Cancellation)."""
        method, handle = "tasks/cancel", handle_text(req.params.taskId)
        ctx = await self._at(method, handle)
        view = await self._door.look(ctx, method, handle)
        if not view.status.terminal:
            who = self._door.caller(ctx)
            said = messages.CancelTask(
                caller=who, call=requests.call(ctx, method), command_id=secrets.token_hex(16), task_id=handle
            )
            await self._door.request("cancel", said)
            view = await self._ended(ctx, method, view)
            if wire_2025.status(view) == mcp.TASK_STATUS_CANCELLED:
                return mcp.ServerResult(mcp.CancelTaskResult(**wire.task(view).model_dump()))
        if view.status.terminal:
            raise McpError(mcp.ErrorData(code=mcp.INVALID_PARAMS, message=wire_2025.over(view)))
        data = {"retriable": True}
        raise McpError(mcp.ErrorData(code=mcp.INTERNAL_ERROR, message=wire_2025.NOT_STOPPED, data=data))

    async def _ended(self, ctx: Context, method: str, view: TaskView) -> TaskView:
        """The task once it has ended, or as it is after `CANCELLED_WITHIN_S`."""
        moved = asyncio.Event()
        stop = self._link.listen(lambda ref, _signal: moved.set() if ref == view.task_ref else None)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wire_2025.CANCELLED_WITHIN_S):
                    while not (view := await self._door.look(ctx, method, view.task_id)).status.terminal:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(LOOK_EVERY_S):
                                await moved.wait()
                        moved.clear()
        finally:
            stop()
        return view
