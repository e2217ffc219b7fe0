"""A session as a task's work sees it: what would go to its client goes by way of the task.

Guarantees: `elicit`, `create_message`, `list_roots` and progress of the SDK v1 work unchanged in the background, as the
task's input requests and status messages; log messages wait for the next `tasks/result`; status notices are not sent by
the work, but when the trail says that the task moved.

    session = TaskSession.over(ctx.session, work)
"""

import secrets
from datetime import timedelta
from typing import Any, Self

import mcp.types as mcp
from mcp.server.session import ServerSession
from mcp.shared.experimental.tasks.message_queue import QueuedMessage
from mcp.shared.experimental.tasks.resolver import Resolver
from mcp.shared.message import MessageMetadata
from mcp.shared.session import ProgressFnT

from tasktrail.mcp.v1.work import Work

QUESTIONS = frozenset({"elicitation/create", "sampling/createMessage", "roots/list"})


class TaskSession(ServerSession):
    """The same session, with another way to its client. Without `work` only status notices are kept back."""

    _work: Work | None

    def __init__(self) -> None:
        message = "use TaskSession.over"
        raise TypeError(message)

    @classmethod
    def over(cls, session: ServerSession, work: Work | None = None) -> Self:
        """A view of this session for the work of a task."""
        view = object.__new__(cls)
        view.__dict__ = {**vars(session), "_work": work}
        return view

    async def send_request(
        self,
        request: mcp.ServerRequest,
        result_type: type[Any],
        request_read_timeout_seconds: timedelta | None = None,
        metadata: MessageMetadata = None,
        progress_callback: ProgressFnT | None = None,
    ) -> Any:  # noqa: ANN401 - of `result_type`
        """Ask by way of the task; as long as the task lives, whatever the timeout."""
        said = request.model_dump(by_alias=True, mode="json", exclude_none=True)
        if self._work is None or said["method"] not in QUESTIONS:
            return await super().send_request(
                request, result_type, request_read_timeout_seconds, metadata, progress_callback
            )
        resolver: Resolver[dict[str, Any]] = Resolver()
        message = mcp.JSONRPCRequest(
            jsonrpc="2.0", id=secrets.token_hex(8), method=said["method"], params=said.get("params")
        )
        await self._work.ask(QueuedMessage(type="request", message=message, resolver=resolver))
        return result_type.model_validate(await resolver.wait())

    async def send_notification(
        self, notification: mcp.ServerNotification, related_request_id: mcp.RequestId | None = None
    ) -> None:
        """Progress becomes the status message; what else there is waits for whoever asks for the result."""
        one = notification.root
        if isinstance(one, mcp.TaskStatusNotification):
            return
        if self._work is None:
            await super().send_notification(notification, related_request_id)
        elif isinstance(one, mcp.ProgressNotification):
            of = "" if one.params.total is None else f" of {one.params.total:g}"
            self._work.say(one.params.message or f"{one.params.progress:g}{of}")
        else:
            said = notification.model_dump(by_alias=True, mode="json", exclude_none=True)
            message = mcp.JSONRPCNotification(jsonrpc="2.0", **said)
            await self._work.ask(QueuedMessage(type="notification", message=message))
