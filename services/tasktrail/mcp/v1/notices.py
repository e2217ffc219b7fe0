"""`notifications/tasks/status`: a task's changes, told to the session that made it while it lasts.

Guarantees: every notice is authorised anew as its creator's, and says what `tasks/get` would have said then; a session
that is gone, or an authority that has ended, ends them. They are a courtesy: on this wire nobody may rely on them.
Source: MCP 2025-11-25, tasks (Task Status Notification).

    notices = Notices(link)
    notices.watch(view, session, caller, call)
"""

import asyncio
import logging
from collections import OrderedDict

import anyio
import msgspec
from mcp.server.session import ServerSession

from tasktrail.events.errors import TasktrailError
from tasktrail.mcp.link import Link
from tasktrail.mcp.v1 import wire
from tasktrail.services import messages
from tasktrail.services.clock import now_ms
from tasktrail.services.ending import end
from tasktrail.services.messages import Call, Caller, Signal, TaskView

_log = logging.getLogger(__name__)

METHOD = "notifications/tasks/status"
WATCHED_MAX = 10_000


class _Watched:
    def __init__(self, view: TaskView, session: ServerSession, caller: Caller, call: Call) -> None:
        self.view, self.session, self.caller, self.call = view, session, caller, call


class Notices:
    """Who is to be told of which task."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._watched: OrderedDict[str, _Watched] = OrderedDict()
        self._moved: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._telling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to tell."""
        self._telling = asyncio.create_task(self._tell_for_ever())

    async def stop(self) -> None:
        """Tell nobody any more."""
        if self._telling is not None:
            await end(self._telling)
            self._telling = None
        self._watched.clear()

    def watch(self, view: TaskView, session: ServerSession, caller: Caller, call: Call) -> None:
        """Tell this session of this task, until it has ended. Of more than `WATCHED_MAX` the oldest are left out."""
        pushed = msgspec.structs.replace(call, method=METHOD, rpc_id="")
        self._watched[view.task_ref] = _Watched(view, session, caller, pushed)
        while len(self._watched) > WATCHED_MAX:
            self._watched.popitem(last=False)

    def signalled(self, ref: str, _signal: Signal) -> None:
        """A task moved."""
        if ref in self._watched:
            self._moved[ref] = None
            self._wake.set()

    async def _tell_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            moved, self._moved = self._moved, {}
            for ref in moved:
                one = self._watched.get(ref)
                if one is not None and not await self._told(one):
                    self._watched.pop(ref, None)

    async def _told(self, one: _Watched) -> bool:
        """Tell what changed, if anything did. False when there is nothing more to tell, or nobody to tell it to."""
        if now_ms() >= one.view.created_at_ms + one.view.ttl_ms:
            return False
        said = messages.GetTask(caller=one.caller, call=one.call, task_id=one.view.task_id, status_only=True)
        try:
            view: TaskView = await self._link.request("get", said)
        except TasktrailError as error:
            return error.retriable
        changed = (view.status, view.status_message) != (one.view.status, one.view.status_message)
        one.view = view
        if changed:
            try:
                await one.session.send_notification(wire.notification(view))
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                return False
            except Exception:  # noqa: BLE001 - a transport that fails is its session's concern, not the others'
                _log.warning("a session could not be told of task %s", view.task_ref, exc_info=True)
                return False
        return not view.status.terminal
