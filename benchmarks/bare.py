"""The bare comparison: the tasks extension on the official SDK with a dictionary, as one would write it first.

Guarantees: the wire shapes are tasktrail's own (`tasktrail.services.wire`), and tools run in the background with a
channel that parks `ctx.elicit`. Nothing is stored, bound to a caller, validated, limited or expired: that is what
tasktrail adds, and what its ratio to this pays for.

    tasks = BareTasks({"park", "ask"})
    mcp = MCPServer("benchmark", extensions=[tasks], lifespan=tasks.lifespan)
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import anyio
import msgspec
from mcp.server import MCPServer
from mcp.server.connection import Connection
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver import Context
from mcp.server.session import ServerSession
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError
from mcp.shared.transport_context import TransportContext
from mcp_types import INVALID_PARAMS, CallToolRequestParams, RequestParams
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from tasktrail.events.facts import Status
from tasktrail.services import wire
from tasktrail.services.clock import now_ms
from tasktrail.services.messages import InputAsk, TaskView

_Context = ServerRequestContext[Any, Any]
_TTL_MS, _POLL_INTERVAL_MS = 3_600_000, 1_000


class _Params(RequestParams):
    task_id: str
    input_responses: dict[str, Any] = {}


class _Stored:
    """One task in the dictionary, and the channel its tool asks through."""

    def __init__(self) -> None:
        self.view = TaskView(
            task_id=secrets.token_hex(16),
            task_ref="",
            status=Status.WORKING,
            created_at_ms=now_ms(),
            last_updated_at_ms=now_ms(),
            ttl_ms=_TTL_MS,
            poll_interval_ms=_POLL_INTERVAL_MS,
            seq=1,
        )
        self.waiting: dict[str, asyncio.Future[Any]] = {}
        self.work: asyncio.Task[None] | None = None
        self.transport = TransportContext(kind="task", can_send_request=True)
        self.can_send_request, self.request_id, self.message_metadata = True, None, None
        self.cancel_requested = anyio.Event()

    def set(self, **changes: object) -> None:
        self.view = msgspec.structs.replace(self.view, last_updated_at_ms=now_ms(), **changes)

    async def send_raw_request(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,  # noqa: ARG002 - the SDK's signature
    ) -> dict[str, Any]:
        key = secrets.token_hex(4)
        self.waiting[key] = asyncio.get_running_loop().create_future()
        asks = {**self.view.input_requests, key: InputAsk(method=method, params=dict(params or {}))}
        self.set(status=Status.INPUT_REQUIRED, input_requests=asks)
        answer: dict[str, Any] = await self.waiting[key]
        return answer

    def answer(self, key: str, given: object) -> None:
        asked = self.waiting.pop(key, None)
        if asked is not None:
            left = {name: ask for name, ask in self.view.input_requests.items() if name != key}
            self.set(status=Status.INPUT_REQUIRED if left else Status.WORKING, input_requests=left)
            asked.set_result(given)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Dropped, as by tasktrail."""

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        self.set(status_message=message or f"{progress:g} of {total}")


class BareTasks(Extension):
    """The extension over a dictionary."""

    identifier = wire.EXTENSION

    def __init__(self, tools: set[str]) -> None:
        self._tools = tools
        self._tasks: dict[str, _Stored] = {}
        self._server: MCPServer[Any]

    @contextlib.asynccontextmanager
    async def lifespan(self, server: MCPServer[Any]) -> AsyncGenerator[dict[str, Any]]:
        """Learn which server the tools are of."""
        self._server = server
        yield {}

    def methods(self) -> Sequence[MethodBinding]:
        """`tasks/get` and `tasks/update`."""
        modern = frozenset(MODERN_PROTOCOL_VERSIONS)
        return [
            MethodBinding("tasks/get", _Params, self._get, protocol_versions=modern),
            MethodBinding("tasks/update", _Params, self._update, protocol_versions=modern),
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: _Context, call_next: CallNext
    ) -> HandlerResult:
        """Put the task into the dictionary and start its tool."""
        capabilities = ctx.session.client_capabilities
        if params.name not in self._tools or wire.EXTENSION not in ((capabilities and capabilities.extensions) or {}):
            return await call_next(ctx)
        task = _Stored()
        self._tasks[task.view.task_id] = task
        connection = Connection.from_envelope(ctx.protocol_version, None, None, outbound=task)
        background = ServerRequestContext(
            session=ServerSession(task, connection),
            lifespan_context=ctx.lifespan_context,
            protocol_version=ctx.protocol_version,
            method=ctx.method,
            params=ctx.params,
            meta=ctx.meta,
        )
        task.work = asyncio.create_task(self._run(task, params, background))
        return wire.created(task.view)

    async def _run(self, task: _Stored, params: CallToolRequestParams, ctx: _Context) -> None:
        context: Context[Any, Any] = Context(request_context=ctx, mcp_server=self._server, input_params=params)
        result = await self._server.call_tool(params.name, params.arguments or {}, context)
        task.set(status=Status.COMPLETED, result=result.model_dump(by_alias=True, mode="json", exclude_none=True))

    async def _get(self, ctx: _Context, params: _Params) -> HandlerResult:  # noqa: ARG002 - the SDK's signature
        return wire.got(self._found(params).view)

    async def _update(self, ctx: _Context, params: _Params) -> HandlerResult:  # noqa: ARG002 - the SDK's signature
        task = self._found(params)
        for key, given in params.input_responses.items():
            task.answer(key, given)
        return {"resultType": "complete"}

    def _found(self, params: _Params) -> _Stored:
        task = self._tasks.get(params.task_id)
        if task is None:
            raise MCPError(INVALID_PARAMS, "unknown task")
        return task
