"""People with MCP clients: the official SDK's client over streamable HTTP, each with a bearer token of their own.

Guarantees: every request is one that any client of the tasks extension may send (SEP-2663); questions are answered
through the client's own elicitation and sampling callbacks; what a server refuses is kept as it came over the wire.

    async with Person("ana", url=url, token=lambda: token) as ana:
        task = await ana.start("quarterly_report", quarter="Q3")
        task = await ana.until(task.task_id, terminal)
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Literal, Self

import httpx2
import mcp_types as types
from mcp.client import Client
from mcp.client.context import ClientRequestContext
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim, UnexpectedClaimedResult
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter

from tasktrail.services.wire import EXTENSION

PROTOCOL = "2026-07-28"
WITHIN_S = 10.0
_TERMINAL = frozenset({"completed", "failed", "cancelled"})
_RPC_ID = re.compile(rb'"id":\s*("[^"]*"|\d+)')
_ASKED: TypeAdapter[types.InputRequest] = TypeAdapter(types.InputRequest)


class TaskMade(types.Result):
    """`CreateTaskResult`: a handle."""

    result_type: Literal["task"]
    task_id: str
    status: str


class TaskSeen(types.Result):
    """`GetTaskResult`: a task as the wire showed it."""

    task_id: str
    status: str
    last_updated_at: str
    poll_interval_ms: int = 1_000
    status_message: str | None = None
    input_requests: dict[str, Any] = {}
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class TaskParams(types.RequestParams):
    """Parameters of tasks/get and tasks/cancel."""

    task_id: str


class UpdateParams(TaskParams):
    """Parameters of tasks/update."""

    input_responses: dict[str, Any]


class TaskRequest(types.Request[TaskParams, Literal["tasks/get", "tasks/cancel"]]):
    """A request that names a task, in its parameters and in the header `Mcp-Name`."""

    name_param = "taskId"


class UpdateRequest(types.Request[UpdateParams, Literal["tasks/update"]]):
    """The same, with answers."""

    name_param = "taskId"


class _TasksClient(ClientExtension):
    """Says on every request that this client takes tasks."""

    identifier = EXTENSION

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=TaskMade, resolve=_unresolved)]


async def _unresolved(task: TaskMade, _context: ClaimContext) -> types.CallToolResult:
    """Whoever starts a task here follows it too."""
    raise UnexpectedClaimedResult(task)


def terminal(task: TaskSeen) -> bool:
    """Whether it has ended."""
    return task.status in _TERMINAL


class _Bearer(httpx2.Auth):
    """The token of the moment, on every request."""

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response]:
        request.headers["Authorization"] = f"Bearer {self._token()}"
        yield request


class Person:
    """Somebody with a client. `content` is what they answer to a form, by field; `words` what their model says."""

    def __init__(self, name: str, *, url: str, token: Callable[[], str]) -> None:
        self.name = name
        self.content: dict[str, Any] = {}
        self.words = "nothing to say"
        self._refusal: tuple[int, bytes] | None = None
        self._url, self._token = url, token
        self._stack = AsyncExitStack()
        self._client: Client

    async def __aenter__(self) -> Self:
        http = httpx2.AsyncClient(
            auth=_Bearer(self._token), timeout=WITHIN_S, trust_env=False, event_hooks={"response": [self._answered]}
        )
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(http)
            self._client = await stack.enter_async_context(
                Client(
                    streamable_http_client(self._url, http_client=http),
                    mode=PROTOCOL,
                    extensions=[_TasksClient()],
                    elicitation_callback=self._fill_in,
                    sampling_callback=self._think,
                    client_info=types.Implementation(name="tasktrail-demo", version="1"),
                    cache=None,
                )
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _answered(self, response: httpx2.Response) -> None:
        """Keep the last refusal as it came, but for the JSON-RPC id: that is the request's own."""
        if response.is_error:
            self._refusal = (response.status_code, _RPC_ID.sub(b'"id":0', await response.aread()))

    async def _fill_in(
        self,
        context: ClientRequestContext,  # noqa: ARG002 - the SDK names its arguments
        params: types.ElicitRequestParams,
    ) -> types.ElicitResult | types.ErrorData:
        if not isinstance(params, types.ElicitRequestFormParams):
            return types.ElicitResult(action="decline")
        fields = params.requested_schema.get("properties", {})
        return types.ElicitResult(action="accept", content={name: self.content[name] for name in fields})

    async def _think(
        self,
        context: ClientRequestContext,  # noqa: ARG002 - the SDK names its arguments
        params: types.CreateMessageRequestParams,  # noqa: ARG002 - the model says the same to everything
    ) -> types.CreateMessageResult:
        said = types.TextContent(type="text", text=self.words)
        return types.CreateMessageResult(role="assistant", content=said, model="demo-model", stop_reason="endTurn")

    async def start(self, tool: str, **arguments: object) -> TaskMade:
        """Call a tool that becomes a task.

        Raises:
            MCPError: the server refused.
            TypeError: it answered with something else than a task.
        """
        made = await self._client.session.call_tool(tool, dict(arguments), allow_claimed=True)
        if not isinstance(made, TaskMade):
            message = f"{tool} did not become a task: {type(made).__name__}"
            raise TypeError(message)
        return made

    async def get(self, task_id: str) -> TaskSeen:
        """tasks/get. Raises MCPError."""
        request = TaskRequest(method="tasks/get", params=TaskParams(task_id=task_id))
        return await self._client.session.send_request(request, TaskSeen)

    async def update(self, task_id: str, responses: dict[str, Any]) -> None:
        """tasks/update. Raises MCPError."""
        params = UpdateParams(task_id=task_id, input_responses=responses)
        await self._client.session.send_request(UpdateRequest(method="tasks/update", params=params), types.EmptyResult)

    async def cancel(self, task_id: str) -> None:
        """tasks/cancel. Raises MCPError."""
        request = TaskRequest(method="tasks/cancel", params=TaskParams(task_id=task_id))
        await self._client.session.send_request(request, types.EmptyResult)

    async def answer(self, task: TaskSeen, key: str) -> None:
        """Answer one outstanding request as this client answers any request of its server."""
        session = self._client.session
        asked = _ASKED.validate_python(task.input_requests[key])
        context = ClientRequestContext(session=session, request_id=key, meta=None)
        answer = await session.dispatch_input_request(context, asked)
        await self.update(task.task_id, {key: answer.model_dump(by_alias=True, mode="json", exclude_none=True)})

    async def until(self, task_id: str, wanted: Callable[[TaskSeen], bool], within_s: float = WITHIN_S) -> TaskSeen:
        """Poll at the suggested interval until the task is as wanted.

        Raises:
            MCPError: the server refused.
            TimeoutError: it was not as wanted within `within_s`; says what was seen last.
        """
        deadline = time.monotonic() + within_s
        while True:
            task = await self.get(task_id)
            if wanted(task):
                return task
            if time.monotonic() > deadline:
                message = f"the task is still {task.status} after {within_s:g} s"
                raise TimeoutError(message)
            await asyncio.sleep(task.poll_interval_ms / 1000)

    async def turned_away(self, attempt: Callable[[], Awaitable[object]]) -> tuple[int, bytes] | None:
        """Status and body of the refusal that an attempt met on the wire; None when it was not refused.

        Nothing else of this person may be refused meanwhile.
        """
        self._refusal = None
        try:
            await attempt()
        except MCPError:
            return self._refusal
        return None
