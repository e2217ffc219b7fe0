"""The service's door for callers on the 2025-11-25 wire: what they ask goes through, errors come back as JSON-RPC.

Guarantees: each request goes in the name of whom its own credential names; what this server turns away itself is on the
trail before it is answered.

    view = await door.look(ctx, "tasks/get", handle)
"""

from typing import Any, NoReturn

import mcp.types as mcp
from mcp.shared.exceptions import McpError

from tasktrail.events.errors import TasktrailError
from tasktrail.mcp.credentials import handle_text
from tasktrail.mcp.link import Link
from tasktrail.mcp.v1 import requests, wire
from tasktrail.mcp.v1.requests import Context
from tasktrail.services import messages
from tasktrail.services.messages import Caller, TaskView


class Door:
    """One MCP server's. `forward`: as in `TasktrailTasks.connect`."""

    def __init__(self, link: Link, *, forward: bool) -> None:
        self._link, self._forward = link, forward

    def caller(self, ctx: Context) -> Caller:
        """Who makes the request at hand."""
        return requests.caller(ctx.request, forward=self._forward)

    async def request(self, action: str, said: messages.Said) -> Any:  # noqa: ANN401 - the action's reply
        """Carry an action out.

        Raises:
            McpError: it was refused, or nothing could be written.
        """
        try:
            return await self._link.request(action, said)
        except TasktrailError as error:
            raise wire.rpc_error(error) from error

    async def look(self, ctx: Context, method: str, handle: str) -> TaskView:
        """A task's status, for whoever makes this request."""
        said = messages.GetTask(
            caller=self.caller(ctx), call=requests.call(ctx, method), task_id=handle, status_only=True
        )
        view: TaskView = await self.request("get", said)
        return view

    async def speaking(self, ctx: Context, method: str, handle: object) -> None:
        """See that the request's revision has tasks at all."""
        if not requests.speaks(ctx):
            text = "Method not found"
            await self.refuse(ctx, method, mcp.METHOD_NOT_FOUND, "missing_capability", text, handle_text(handle))

    async def refuse(  # noqa: PLR0913, PLR0917 - a refusal, and what is said of it
        self, ctx: Context, method: str, code: int, reason: str, text: str, handle: str = ""
    ) -> NoReturn:
        """Put on the trail that this server turned a request away, and do."""
        call = requests.call(ctx, method)
        said = messages.ReportRefusal(caller=self.caller(ctx), call=call, code=code, reason=reason, task_id=handle)
        await self.request("refusal", said)
        raise McpError(mcp.ErrorData(code=code, message=text))
