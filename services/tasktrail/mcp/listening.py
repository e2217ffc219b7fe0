"""`subscriptions/listen` with `taskIds`: a task's changes pushed to who may see it.

Guarantees: only tasks of this caller are granted, and the acknowledgement names exactly those; every push is authorised
anew and is what `tasks/get` would have answered; the stream ends when all its tasks are finished or no longer open to
the caller. Other subscriptions on the same stream are served by the SDK. Source: SEP-2663, Task Status Notifications.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import anyio
import msgspec
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.session import ServerSession
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY
from mcp_types import (
    Notification,
    NotificationParams,
    RequestId,
    ServerNotification,
    SubscriptionFilter,
    SubscriptionsAcknowledgedNotification,
    SubscriptionsAcknowledgedNotificationParams,
    SubscriptionsListenResult,
)
from pydantic import ConfigDict

from tasktrail.events.errors import InvalidRequest, TaskNotFound, TasktrailError
from tasktrail.mcp.callers import handle_text
from tasktrail.mcp.link import Link
from tasktrail.services import messages, wire
from tasktrail.services.ending import end
from tasktrail.services.messages import Call, Caller, Granted, Signal, TaskView

_log = logging.getLogger(__name__)

METHOD = "subscriptions/listen"
PUSH = "notifications/tasks"
TASKS_MAX = 256
LOOK_EVERY_S = 5.0
"""How often a stream looks at its tasks by itself: signals may be lost."""

Context = ServerRequestContext[Any, Any]


class _TaskParams(NotificationParams):
    """`notifications/tasks` parameters: a whole `DetailedTask`."""

    model_config = ConfigDict(extra="allow")


def wants_tasks(ctx: Context) -> bool:
    """Whether the request is one to listen to tasks."""
    return ctx.method == METHOD and "taskIds" in _notifications(ctx)


def _notifications(ctx: Context) -> Mapping[str, object]:
    found: object = (ctx.params or {}).get("notifications")
    return cast("Mapping[str, object]", found) if isinstance(found, Mapping) else {}


def wanted(ctx: Context) -> tuple[str, ...]:
    """The task ids that a request to listen to tasks names.

    Raises:
        InvalidRequest: `taskIds` is no array of at most 256 strings.
    """
    ids = _notifications(ctx)["taskIds"]
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in cast("list[object]", ids)):
        message = "notifications.taskIds is not an array of strings"
        raise InvalidRequest(message)
    if len(cast("list[str]", ids)) > TASKS_MAX:
        message = f"notifications.taskIds names more than {TASKS_MAX} tasks; open several streams"
        raise InvalidRequest(message)
    return tuple(handle_text(one) for one in cast("list[str]", ids))


class TaskStream:
    """One subscription stream of one caller."""

    def __init__(self, link: Link, ctx: Context, caller: Caller, call: Call) -> None:
        self._link, self._ctx, self._caller, self._call = link, ctx, caller, call
        self._dirty: set[str] = set()
        self._nudged = asyncio.Event()
        self._sent: dict[str, dict[str, Any]] = {}
        self._pushes: dict[str, int] = {}
        self._open: dict[str, TaskView] = {}

    async def serve(self, ids: tuple[str, ...], call_next: CallNext) -> HandlerResult:
        """Acknowledge, push until nothing is left to push, and say that the stream is complete."""
        stop = self._link.listen(self._heard)
        try:
            watch = messages.WatchTasks(caller=self._caller, call=self._call, task_ids=ids)
            granted: Granted = await self._link.request("watch", watch)
            self._open = {view.task_ref: view for view in granted.tasks}
            self._pushes = dict.fromkeys(self._open, 0)
            if self._others():
                return await self._beside(call_next)
            await self._acknowledge(SubscriptionFilter())
            await self._push_all()
            return SubscriptionsListenResult(_meta={SUBSCRIPTION_ID_META_KEY: self._ctx.request_id})
        finally:
            stop()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(*(self._close(ref, "client") for ref in list(self._open)))

    def _heard(self, ref: str, _signal: Signal) -> None:
        self._dirty.add(ref)
        self._nudged.set()

    def _others(self) -> bool:
        """Whether the stream also asks for what the SDK serves."""
        return any(value for key, value in _notifications(self._ctx).items() if key != "taskIds")

    async def _beside(self, call_next: CallNext) -> HandlerResult:
        """Push tasks on the stream that the SDK serves for its own notifications."""
        acknowledged = asyncio.Event()

        async def on_acknowledged(honoured: SubscriptionFilter) -> None:
            await self._acknowledge(honoured)
            acknowledged.set()

        session = cast("ServerSession", _AcknowledgingSession(self._ctx.session, on_acknowledged))
        pushing = asyncio.create_task(self._push_after(acknowledged))
        try:
            return await call_next(replace(self._ctx, session=session))
        finally:
            await end(pushing)

    async def _push_after(self, acknowledged: asyncio.Event) -> None:
        await acknowledged.wait()
        await self._push_all()

    async def _acknowledge(self, honoured: SubscriptionFilter) -> None:
        ids = [view.task_id for view in self._open.values()]
        both = SubscriptionFilter.model_validate(
            {**honoured.model_dump(by_alias=True, exclude_none=True), "taskIds": ids}
        )
        params = SubscriptionsAcknowledgedNotificationParams(notifications=both, _meta=self._meta())
        await self._ctx.session.send_notification(
            SubscriptionsAcknowledgedNotification(params=params), related_request_id=self._ctx.request_id
        )

    def _meta(self) -> dict[str, Any]:
        return {SUBSCRIPTION_ID_META_KEY: self._ctx.request_id}

    async def _push_all(self) -> None:
        for ref, view in list(self._open.items()):
            await self._push(ref, view)
        while self._open:
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._nudged.wait()
                moved = self._dirty & self._open.keys()
            except TimeoutError:
                moved = set(self._open)
            self._nudged.clear()
            self._dirty.clear()
            for ref in moved:
                await self._look(ref)

    async def _look(self, ref: str) -> None:
        """Ask for the task anew, as any poll would, and push it if it changed."""
        asked = messages.GetTask(caller=self._caller, call=_as(self._call, PUSH), task_id=self._open[ref].task_id)
        try:
            view: TaskView = await self._link.request("get", asked)
        except TaskNotFound:
            await self._close(ref, "denied")
            return
        except TasktrailError as error:
            if not error.retriable:
                raise
            self._dirty.add(ref)
            return
        await self._push(ref, view)

    async def _push(self, ref: str, view: TaskView) -> None:
        shape = wire.detailed(view)
        if self._sent.get(ref) != shape:
            self._sent[ref] = shape
            self._pushes[ref] += 1
            params = _TaskParams.model_validate({**shape, "_meta": self._meta()})
            note: Any = Notification[_TaskParams, str](method=PUSH, params=params)
            await self._ctx.session.send_notification(
                cast("ServerNotification", note), related_request_id=self._ctx.request_id
            )
        if view.status.terminal:
            await self._close(ref, "terminal")

    async def _close(self, ref: str, reason: str) -> None:
        view = self._open.pop(ref, None)
        if view is None:
            return
        ended = messages.UnwatchTask(
            caller=self._caller, call=self._call, task_id=view.task_id, pushes=self._pushes[ref], reason=reason
        )
        try:
            await self._link.request("unwatch", ended)
        except TasktrailError as error:
            _log.warning("the end of a subscription to task %s could not be recorded: %s", ref, error.message)


class _AcknowledgingSession:
    """The request's session, with the SDK's acknowledgement passed through ours."""

    def __init__(self, session: ServerSession, acknowledge: Callable[[SubscriptionFilter], Awaitable[None]]) -> None:
        self._session, self._acknowledge = session, acknowledge

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the session has
        return getattr(self._session, name)

    async def send_notification(
        self, notification: ServerNotification, related_request_id: RequestId | None = None
    ) -> None:
        """Send, but let the acknowledgement name the tasks too."""
        if isinstance(notification, SubscriptionsAcknowledgedNotification):
            await self._acknowledge(notification.params.notifications)
            return
        await self._session.send_notification(notification, related_request_id)


def _as(call: Call, method: str) -> Call:
    return msgspec.structs.replace(call, method=method)
