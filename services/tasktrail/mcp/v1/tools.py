"""Tools that run as tasks: which do, how a call becomes a task, and the work that runs here.

Guarantees: a tool is called as its definition says (Tool-Level Negotiation of MCP 2025-11-25, tasks); a task's work is
begun, or the task ended; nothing of it hangs on the session that called. Tools that call `run_task` do so with
tasktrail's store and queue; the plain tools that are named run with a session that speaks by way of the task.

    tools = Tools(link, door, {"report": "optional"}, attend=results.attend, made=notices.watch, context=…)
    server.request_handlers[CallToolRequest] = tools.calling(original)
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, cast

import mcp.types as mcp
from mcp.server.lowlevel.server import request_ctx
from mcp.server.session import ServerSession
from mcp.shared.exceptions import McpError

from tasktrail.events.errors import InvalidRequest, TasktrailError
from tasktrail.events.facts import TaskSupport
from tasktrail.mcp.definitions import definition_sha256
from tasktrail.mcp.link import Link, patiently
from tasktrail.mcp.v1 import requests, wire
from tasktrail.mcp.v1.door import Door
from tasktrail.mcp.v1.handles import Serve
from tasktrail.mcp.v1.requests import Context
from tasktrail.mcp.v1.sessions import TaskSession
from tasktrail.mcp.v1.support import Queue, Store, Support
from tasktrail.mcp.v1.work import Work
from tasktrail.services import messages
from tasktrail.services.clock import now_ms
from tasktrail.services.messages import Call, Caller, TaskView

STOP_WITHIN_S = 5.0
SETTLE_WITHIN_MS = 60_000
TOOL_PAGES_MAX = 100

Made = Callable[[TaskView, ServerSession, Caller, Call], None]


class _Making:
    """The task of the `tools/call` being served."""

    def __init__(self, ctx: Context, tool: mcp.Tool, call: mcp.CallToolRequestParams, support: TaskSupport) -> None:
        self.ctx, self.tool, self.call, self.support = ctx, tool, call, support
        self.creating: asyncio.Task[Work] | None = None
        self.error: McpError | None = None
        self.begun = False


_making: ContextVar[_Making] = ContextVar("making")


class Tools:
    """One MCP server's."""

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        link: Link,
        door: Door,
        tools: Mapping[str, str],
        *,
        attend: Callable[[ServerSession], None],
        made: Made,
        context: Callable[[], Context],
        require_tasks: bool,
    ) -> None:
        """`attend` is told of each new session, `made` of each new task; `context` gives the request at hand."""
        self._link, self._door, self._require_tasks = link, door, require_tasks
        self._made_one, self._context = made, context
        self._tools = {name: _support(name, said) for name, said in tools.items()}
        self._definitions: dict[str, mcp.Tool] = {}
        self._list_tools: Serve = _no_tools
        self._works: dict[str, Work] = {}
        self._refs: dict[str, str] = {}
        self._background: set[asyncio.Task[None]] = set()
        self.worker = secrets.token_hex(8)
        """This process's name as a worker."""
        store, queue = Store(self._make, self._by_id), Queue(self._by_id)
        self.support = Support(store, queue, attend=attend, begin=self._begin)

    def work_of(self, ref: str) -> Work | None:
        """The work of a task, by its reference, if it runs here."""
        return self._works.get(ref)

    def _by_id(self, task_id: str) -> Work | None:
        return self._works.get(self._refs.get(task_id, ""))

    async def lose(self) -> None:
        """This process is going away: stop what runs, and say so."""
        losing = [work.lose("shutdown") for work in self._works.values()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_WITHIN_S):
                await asyncio.gather(*losing, return_exceptions=True)
        for one in self._background:
            one.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._works.clear()
        self._refs.clear()

    def listing(self, original: Serve) -> Serve:
        """`tools/list` with the task support of the tools that are named here."""

        async def listed(req: Any) -> mcp.ServerResult:  # noqa: ANN401 - the SDK itself calls it with None, too
            answer = await original(req)
            if isinstance(answer.root, mcp.ListToolsResult):
                answer.root.tools = [self._declared(tool) for tool in answer.root.tools]
                self._definitions |= {tool.name: tool for tool in answer.root.tools}
            return answer

        self._list_tools = listed
        return listed

    def defined(self) -> dict[str, str]:
        """The tools that may be tasks, as far as clients were told of them, with the digests of their definitions."""
        return {
            name: _sha256(tool) for name, tool in self._definitions.items() if _supported(tool).value != "forbidden"
        }

    def _declared(self, tool: mcp.Tool) -> mcp.Tool:
        support = self._tools.get(tool.name)
        if support is None:
            return tool
        return tool.model_copy(update={"execution": mcp.ToolExecution(taskSupport=support.value)})

    async def _tool(self, name: str) -> mcp.Tool | None:
        """What clients are told of a tool."""
        known = self._definitions.get(name)
        if known is not None:
            return known
        cursor: str | None = None
        for _ in range(TOOL_PAGES_MAX):
            params = mcp.PaginatedRequestParams(cursor=cursor)
            answer = await self._list_tools(mcp.ListToolsRequest(params=params))
            cursor = answer.root.nextCursor if isinstance(answer.root, mcp.ListToolsResult) else None
            if cursor is None or name in self._definitions:
                break
        return self._definitions.get(name)

    def calling(self, original: Serve) -> Serve:
        """`tools/call` as a task where the call and its tool both say so (Tool-Level Negotiation)."""

        async def called(req: mcp.CallToolRequest) -> mcp.ServerResult:
            ctx, name = self._context(), req.params.name
            tool = await self._tool(name)
            support = _supported(tool)
            if req.params.task is None or not requests.speaks(ctx):
                if support is TaskSupport.REQUIRED:
                    text = f"tool {name!r} runs as a task only: call it with `task`"
                    await self._door.refuse(ctx, "tools/call", mcp.METHOD_NOT_FOUND, "task_required", text)
                if self._require_tasks and support is TaskSupport.OPTIONAL:
                    text = "Task augmentation required for tools/call requests"
                    await self._door.refuse(ctx, "tools/call", mcp.INVALID_REQUEST, "task_required", text)
                plain = replace(ctx, experimental=replace(ctx.experimental, task_metadata=None))
                return await _within(plain, original, req)
            if tool is None or support is TaskSupport.FORBIDDEN:
                text = f"tool {name!r} does not run as a task: call it without `task`"
                await self._door.refuse(ctx, "tools/call", mcp.METHOD_NOT_FOUND, "task_forbidden", text)
            making = _Making(ctx, tool, req.params, support)
            return await self._made(making, original, req)

        return called

    async def _made(self, making: _Making, original: Serve, req: mcp.CallToolRequest) -> mcp.ServerResult:
        """The answer to a call that is to become a task: its handle."""
        token = _making.set(making)
        try:
            if making.tool.name in self._tools:
                return await self._run_plain(making, original, req)
            quiet = TaskSession.over(making.ctx.session)
            experimental = replace(making.ctx.experimental, _session=quiet, _task_support=self.support)
            answer = await _within(replace(making.ctx, experimental=experimental), original, req)
            if making.error is not None:
                raise making.error
            if isinstance(answer.root, mcp.CreateTaskResult) and making.begun:
                return answer
            if isinstance(answer.root, mcp.CallToolResult) and answer.root.isError:
                return answer  # it was refused before there was a task: its input does not fit, say
            message = f"tool {making.tool.name!r} declares that it runs as a task, and did not call run_task"
            raise McpError(mcp.ErrorData(code=mcp.INTERNAL_ERROR, message=message))
        finally:
            _making.reset(token)
            if making.creating is not None and not making.begun:
                self._in_background(self._abandon(making.creating))

    async def _run_plain(self, making: _Making, original: Serve, req: mcp.CallToolRequest) -> mcp.ServerResult:
        """Run a tool that knows nothing of tasks as one: with a session that speaks by way of the task."""
        work = await self._make()
        ctx = making.ctx
        meta = mcp.RequestParams.Meta.model_validate(
            {**(ctx.meta.model_dump() if ctx.meta else {}), "progressToken": 0}
        )
        inner = replace(
            ctx,
            meta=meta,
            session=TaskSession.over(ctx.session, work),
            experimental=replace(ctx.experimental, task_metadata=None, _task_support=None),
            close_sse_stream=None,
            close_standalone_sse_stream=None,
        )

        async def execute() -> None:
            request_ctx.set(inner)
            try:
                answer = await original(req)
            except McpError as error:  # such as UrlElicitationRequiredError: there is no request left to answer with it
                await work.fail(error.error.message)
                return
            work.keep(cast("mcp.Result", answer.root))
            await work.complete()

        self._begin(execute)
        return mcp.ServerResult(mcp.CreateTaskResult(task=wire.task(work.view)))

    async def _make(self) -> Work:
        """Make the task of the call being served: not interrupted by a client that goes away meanwhile.

        Raises:
            McpError: it may not be made, or nothing could be written.
        """
        making = _making.get(None)
        if making is None or making.creating is not None:
            message = "one tools/call makes one task, while it is being served"
            raise RuntimeError(message)
        making.creating = asyncio.create_task(self._create(making))
        try:
            return await asyncio.shield(making.creating)
        except TasktrailError as error:
            making.error = wire.rpc_error(error)
            raise making.error from error

    async def _create(self, making: _Making) -> Work:
        ctx, wish = making.ctx, making.call.task
        who, call = self._door.caller(ctx), requests.call(ctx, "tools/call")
        said = messages.CreateTask(
            caller=who,
            call=call,
            command_id=secrets.token_hex(16),
            tool=making.tool.name,
            tool_sha256=_sha256(making.tool),
            task_support=making.support,
            client_features=requests.declared(ctx),
            ttl_ms=wish.ttl if wish else None,
            arguments=making.call.arguments,
            worker=self.worker,
        )
        try:
            view: TaskView = await self._link.request("create", said)
        except TasktrailError as error:
            if error.written == "maybe":
                self._in_background(self._settle(said))
            raise
        work = Work(self._link, view, worker=self.worker, call=call)
        self._works[work.ref], self._refs[view.task_id] = work, work.ref
        self._made_one(view, ctx.session, who, call)
        return work

    def _begin(self, execute: Callable[[], Awaitable[None]]) -> None:
        """Start the work of the task just made."""
        making = _making.get()
        if making.creating is None:
            message = "no task was made for this work"
            raise RuntimeError(message)
        work = making.creating.result()
        making.begun = True
        work.begin(execute)
        if work.running is not None:
            work.running.add_done_callback(lambda _done: self._forget(work))

    def _forget(self, work: Work) -> None:
        self._works.pop(work.ref, None)
        self._refs.pop(work.view.task_id, None)

    def _in_background(self, what: "Awaitable[None]") -> None:
        async def done() -> None:
            await what

        one = asyncio.create_task(done())
        self._background.add(one)
        one.add_done_callback(self._background.discard)

    async def _abandon(self, creating: "asyncio.Task[Work]") -> None:
        """A task was made whose work nobody began: end it, so that no ghost stays behind."""
        with contextlib.suppress(TasktrailError):
            work = await creating
            self._forget(work)
            await self._lose(work.ref, f"{work.ref}:unanswered")

    async def _settle(self, said: messages.CreateTask) -> None:
        """A task may have been made that nobody was told of: find out, and end it."""
        with contextlib.suppress(TasktrailError):
            until_ms = now_ms() + SETTLE_WITHIN_MS
            view: TaskView = await patiently(self._link, "create", said, until_ms=until_ms, now_ms=now_ms)
            await self._lose(view.task_ref, f"{said.command_id}:unanswered")

    async def _lose(self, ref: str, command_id: str) -> None:
        lost = messages.LoseWorker(task_ref=ref, command_id=command_id, cause="unanswered", worker=self.worker)
        until_ms = now_ms() + SETTLE_WITHIN_MS
        await patiently(self._link, "lose", lost, until_ms=until_ms, now_ms=now_ms)


async def _within(ctx: Context, original: Serve, req: mcp.CallToolRequest) -> mcp.ServerResult:
    """What the tool answers when this is its request's context."""
    token = request_ctx.set(ctx)
    try:
        return await original(req)
    finally:
        request_ctx.reset(token)


async def _no_tools(_: object) -> mcp.ServerResult:
    """Before there are any."""
    return mcp.ServerResult(mcp.ListToolsResult(tools=[]))


def _support(name: str, said: str) -> TaskSupport:
    if said in {TaskSupport.OPTIONAL, TaskSupport.REQUIRED}:
        return TaskSupport(said)
    message = f"tool {name!r}: task support {said!r} is neither optional nor required"
    raise InvalidRequest(message)


def _supported(tool: mcp.Tool | None) -> TaskSupport:
    """What the tool's definition declares."""
    declared = tool.execution.taskSupport if tool and tool.execution else None
    return TaskSupport(declared) if declared else TaskSupport.FORBIDDEN


def _sha256(tool: mcp.Tool) -> str:
    return definition_sha256(tool.name, tool.description, tool.inputSchema, tool.outputSchema)
