"""What the SDK v1's `run_task` works with, on tasktrail: its store, its message queue, and where it starts work.

Guarantees: a task's id is the service's; nothing is visible before it is on the trail; work outlives its session.
`create_task` makes the task of the `tools/call` being served, and of nothing else.

    Support(Store(…), Queue(…), attend=results.attend, begin=…)
"""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, NoReturn, cast

import mcp.types as mcp
from anyio.abc import TaskGroup
from mcp.server.experimental.task_support import TaskSupport
from mcp.server.session import ServerSession
from mcp.shared.experimental.tasks.message_queue import QueuedMessage, TaskMessageQueue
from mcp.shared.experimental.tasks.store import TaskStore

from tasktrail.mcp.v1 import wire
from tasktrail.mcp.v1.work import Work

Find = Callable[[str], Work | None]
"""The work of a task that runs in this process, by the task's id."""


class Store(TaskStore):
    """The state of the tasks whose work runs here, for that work. What callers are told comes from the trail."""

    def __init__(self, make: Callable[[], Awaitable[Work]], find: Find) -> None:
        """`make` makes the task of the call being served."""
        self._make, self._find = make, find

    async def create_task(self, metadata: mcp.TaskMetadata, task_id: str | None = None) -> mcp.Task:  # noqa: ARG002 - the id is the service's, the time to live is in the call
        """Make the task of the call being served; when this returns, every replica resolves its id."""
        return wire.task((await self._make()).view)

    async def get_task(self, task_id: str) -> mcp.Task | None:
        """The task as its work knows it; None when it runs elsewhere."""
        work = self._find(task_id)
        return wire.task(work.view) if work else None

    async def update_task(
        self, task_id: str, status: mcp.TaskStatus | None = None, status_message: str | None = None
    ) -> mcp.Task:
        """What the work says of itself. That it waits for input, or goes on, its questions and answers say."""
        work = self._running(task_id)
        if status == mcp.TASK_STATUS_CANCELLED:
            message = "a task is cancelled by its caller (tasks/cancel) or an operator, not by its work"
            raise ValueError(message)
        if status == mcp.TASK_STATUS_FAILED:
            await work.fail(status_message or "the task failed")
        elif status == mcp.TASK_STATUS_COMPLETED:
            if status_message is not None:
                work.say(status_message)
            await work.complete()
        elif status_message is not None:
            work.say(status_message)
        said: dict[str, Any] = {"status": status, "statusMessage": status_message}
        return wire.task(work.view).model_copy(update={name: one for name, one in said.items() if one is not None})

    async def store_result(self, task_id: str, result: mcp.Result) -> None:
        """Keep the result that the work is about to complete with."""
        self._running(task_id).keep(result)

    def _running(self, task_id: str) -> Work:
        work = self._find(task_id)
        if work is None:
            message = "this process does not run that task"
            raise ValueError(message)
        return work

    async def get_result(self, task_id: str) -> mcp.Result | None:  # noqa: ARG002 - the SDK's signature
        """Not from here: `tasks/result` asks the service, for each caller anew."""
        return None

    async def list_tasks(self, cursor: str | None = None) -> tuple[list[mcp.Task], str | None]:  # noqa: ARG002 - the SDK's signature
        """None: `tasks/list` asks the service, for each caller anew."""
        return [], None

    async def delete_task(self, task_id: str) -> bool:  # noqa: ARG002 - the SDK's signature
        """Never: the trail keeps what happened, and the task's time to live ends its handle."""
        return False

    async def wait_for_update(self, task_id: str) -> NoReturn:
        """Not from here.

        Raises:
            NotImplementedError: always.
        """
        message = "work does not wait for its own task: its questions return with the answers, and it is cancelled"
        raise NotImplementedError(message)

    async def notify_update(self, task_id: str) -> None:
        """Nothing: the service tells everybody."""


class Queue(TaskMessageQueue):
    """What work puts to its client: on the trail, and delivered by whichever replica is asked for the result."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self.support: Support | None = None

    async def enqueue(self, task_id: str, message: QueuedMessage) -> None:
        """Put a question on the trail; keep a notification for the next `tasks/result` here.

        Raises:
            McpError: the question cannot be asked.
            ValueError: this process does not run that task.
        """
        work = self._find(task_id)
        if work is None:
            error = "this process does not run that task"
            raise ValueError(error)
        if self.support is not None and message.original_request_id is not None:
            self.support.forget(message.original_request_id)
        await work.ask(message)

    async def dequeue(self, task_id: str) -> QueuedMessage | None:  # noqa: ARG002 - the SDK's signature
        """Nothing: `tasks/result` asks the service what is outstanding."""
        return None

    async def peek(self, task_id: str) -> QueuedMessage | None:  # noqa: ARG002 - the SDK's signature
        """Nothing, as `dequeue`."""
        return None

    async def is_empty(self, task_id: str) -> bool:  # noqa: ARG002 - the SDK's signature
        """Whether there is nothing to dequeue."""
        return True

    async def clear(self, task_id: str) -> list[QueuedMessage]:  # noqa: ARG002 - the SDK's signature
        """Nothing to remove."""
        return []

    async def wait_for_message(self, task_id: str) -> NoReturn:
        """Not from here.

        Raises:
            NotImplementedError: always.
        """
        message = "the questions of a task are on the trail, and `tasks/result` asks the service for them: call that"
        raise NotImplementedError(message)

    async def notify_message_available(self, task_id: str) -> None:
        """Nothing: the service tells everybody."""


class _Starter:
    """In the place of the session's task group, which ends with the session."""

    def __init__(self, begin: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._begin = begin

    def start_soon(self, execute: Callable[[], Awaitable[None]], *_args: object, name: object = None) -> None:  # noqa: ARG002 - anyio's signature
        self._begin(execute)


class Support(TaskSupport):
    """The SDK's `TaskSupport`, for all sessions of a server at once."""

    def __init__(
        self,
        store: Store,
        queue: Queue,
        *,
        attend: Callable[[ServerSession], None],
        begin: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        """`attend` is told of each new session; `begin` starts the work of the task just made."""
        super().__init__(store=store, queue=queue)
        self._attend, self._starter = attend, _Starter(begin)
        queue.support = self

    @property
    def task_group(self) -> TaskGroup:
        """Where `run_task` starts work."""
        return cast("TaskGroup", self._starter)

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """Nothing begins or ends with a session."""
        yield

    def configure_session(self, session: ServerSession, *, stateless: bool = False) -> None:  # noqa: ARG002 - the SDK's signature
        """A new session: take its answers. Its tasks are told apart by who made them, not by session."""
        self._attend(session)

    def forget(self, request_id: mcp.RequestId) -> None:
        """Answers come from the trail: the SDK's own table of who waits for which stays empty."""
        self.handler._pending_requests.pop(request_id, None)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # the SDK fills it and leaves it to its own queue's reader to empty
