"""Stock clients drive our server: FastMCP's, and the official SDK's. Source: feature O2.

FastMCP's own half of the tasks extension is a package of its own; its client takes any client extension of the official
SDK, which is what that package is. Like it, ours sends no Mcp-Name with FastMCP's requests.
"""

from pathlib import Path
from typing import Any

import httpx2
import mcp_types as types
import pytest
from fastmcp import Client as FastMCPClient
from fastmcp.client.transports import StreamableHttpTransport
from mcp.client import Client
from mcp.client.extension import ClientExtension
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from tasktrail.events.facts import TaskCreated
from tasktrail.mcp.extension import Tasks

from .client import VERSION
from .place import Place, only, reading, settings
from .polling import NamedRequest, TasksClient
from .workshop import SUPPORT, Workshop

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def not_asked(*_: object) -> Any:  # noqa: ANN401 - both clients' callbacks
    """That there is a callback declares that the client takes questions; the extension answers those of tasks."""
    message = "asked outside of a task"
    raise AssertionError(message)


def sdk_options(extension: ClientExtension) -> dict[str, Any]:
    """The official SDK's client at this protocol version, with nothing cached."""
    return {"mode": VERSION, "extensions": [extension], "elicitation_callback": not_asked, "cache": None}


def stock(place: Place, *extensions: ClientExtension) -> FastMCPClient[StreamableHttpTransport]:
    """FastMCP's client with a bearer token."""
    transport = StreamableHttpTransport(place.url, auth=place.token())
    return FastMCPClient(transport, extensions=extensions, elicitation_handler=not_asked)


@pytest.mark.requirement("O2")
@pytest.mark.parametrize(
    ("tool", "arguments", "text", "first"),
    [
        ("echo", {"text": "hello"}, "hello", None),
        ("must", {"text": "hello"}, "hello", None),
        ("asks", {}, "accept 41", "input_required"),
        ("fails", {}, "Error executing tool fails: the printer is out of paper", None),
        ("breaks", {}, "failed", None),
    ],
)
async def test_a_fastmcp_client_calls_polls_answers_and_gets_the_result(
    place: Place, tool: str, arguments: dict[str, Any], text: str, first: str | None
) -> None:
    """`call_tool` of a client with the tasks extension: a task in between that its caller need not know of."""
    extension = TasksClient()
    async with stock(place, extension) as client:
        result = await client.call_tool(tool, arguments, raise_on_error=False)
    assert [block.text for block in result.content if isinstance(block, types.TextContent)] == [text]
    (task_id,) = extension.made
    assert first is None or first in extension.seen
    assert only(await place.trail.of(task_id), TaskCreated).tool == tool


@pytest.mark.requirement("O2", "L4")
async def test_a_fastmcp_client_without_tasks_is_served_directly_or_told(place: Place) -> None:
    """FastMCP's client says nothing of tasks unless asked to."""
    async with stock(place) as client:
        assert (await client.call_tool("echo", {"text": "hello"})).data.result == "hello"
        with pytest.raises(MCPError, match="did not declare") as refused:
            await client.call_tool("must", {"text": "hello"})
    assert refused.value.error.code == -32021


@pytest.mark.requirement("O2", "L3")
async def test_the_official_clients_call_is_a_task_in_between(place: Place) -> None:
    """SDK v2 over streamable HTTP, with the Mcp-Name it sends for requests that declare what names them."""
    extension = TasksClient(NamedRequest)
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {place.token()}"}, trust_env=False)
    transport = streamable_http_client(place.url, http_client=http)
    async with http, Client(transport, **sdk_options(extension)) as client:
        result = await client.call_tool("asks")
    assert result.content == [types.TextContent(type="text", text="accept 41")]
    (task_id,) = extension.made
    assert (await place.trail.names(task_id))[-1] == "TaskCompleted"


@pytest.mark.requirement("O2")
async def test_a_server_without_http_is_served_the_same(tmp_path: Path) -> None:
    """The SDK's in-memory transport stands for stdio: no headers, no address, nobody's token."""
    with settings({}):
        tasks = Tasks.embed(tmp_path, tools=SUPPORT)
        extension = TasksClient(NamedRequest)
        async with Client(Workshop().server(tasks), **sdk_options(extension)) as client:
            result = await client.call_tool("asks")
            async with reading(tmp_path) as trail:
                created = (await trail.of(extension.made[0]))[0]
    assert result.content == [types.TextContent(type="text", text="accept 41")]
    assert created.authority.request is not None
    assert (created.authority.request.address, created.authority.request.method) == ("", "tools/call")
