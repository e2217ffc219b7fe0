"""`tasktrail proxy` before public MCP servers of several makers' kits, as they are installed from PyPI and npm.

Sources: docs/proxy.md; issue "Adapters" ("checked against real public MCP servers installable from npm or PyPI"). What
a client sees through the proxy is compared with what one sees that speaks with the server itself. PyPI's server is on
the Python SDK v2 and speaks protocol 2026-07-28 as well, npm's is on the TypeScript SDK.
"""

import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from fastmcp import Client as FastMCPClient
from fastmcp.client.transports import StdioTransport
from tests.node_packages import CACHE, installed

from tasktrail.events.facts import TaskCreated
from tasktrail.testing.service import UpProcess

from .client import Client
from .place import Trail, only, reading
from .test_proxy import NODE, WITHOUT_ROOTS, proxying

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.requirement("O2")]

TIME, FILES = "2026.10.19", "2026.8.31"
INSTALL_S_MAX = 300
Call = tuple[str, dict[str, Any]]


class Public(NamedTuple):
    """A public server: its command, and calls of it that come to the same whenever they are made."""

    command: Sequence[str]
    task: Call
    plain: Call
    fails: Call


@functools.cache
def from_pypi(package: str, version: str) -> Path:
    """The command of this package, in an environment of its own in `.cache`, made once."""
    home = CACHE / package / f"{version}-{sys.version_info.major}.{sys.version_info.minor}"
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent, prefix="installing-") as making:
            made = Path(making) / "env"
            _uv("venv", "--python", sys.executable, "--relocatable", made)
            _uv("pip", "install", "--python", made / "bin" / "python", f"{package}=={version}")
            try:
                made.rename(home)
            except OSError:
                if not home.exists():  # else another run was faster
                    raise
    return home / "bin" / package


def _uv(*command: str | Path) -> None:
    program = shutil.which("uv")
    assert program is not None, "uv makes the environments of public servers; it is not on the PATH"
    done = subprocess.run(
        [program, "--quiet", "--no-config", *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=INSTALL_S_MAX,
    )
    assert done.returncode == 0, f"uv {command[0]}: {done.stderr}"


def time_server(_: Path) -> Public:
    """PyPI's `mcp-server-time`."""
    command = [str(from_pypi("mcp-server-time", TIME)), "--local-timezone", "UTC"]
    same = {"source_timezone": "UTC", "target_timezone": "UTC"}
    noon, late = {**same, "time": "12:00"}, {**same, "time": "25:00"}
    return Public(command, ("convert_time", noon), ("convert_time", noon), ("convert_time", late))


def file_server(directory: Path) -> Public:
    """npm's `@modelcontextprotocol/server-filesystem`, on a directory with one file."""
    home = installed(f"filesystem/{FILES}", [f"@modelcontextprotocol/server-filesystem@{FILES}"])
    program = home / "node_modules" / "@modelcontextprotocol" / "server-filesystem" / "dist" / "index.js"
    (directory / "said.txt").write_text("hello\n")
    return Public(
        [str(NODE), str(program), str(directory)],
        ("read_text_file", {"path": str(directory / "said.txt")}),
        ("list_directory", {"path": str(directory)}),
        ("read_text_file", {"path": str(directory / "missing.txt")}),
    )


class Place(NamedTuple):
    """A public server, a proxy before another process of it, and the trail."""

    public: Public
    url: str
    trail: Trail


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Generator[UpProcess]:
    with UpProcess(tmp_path_factory.mktemp("public") / "data") as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[time_server, file_server])
async def place(
    request: pytest.FixtureRequest, up: UpProcess, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Place]:
    made: Callable[[Path], Public] = request.param
    directory = tmp_path_factory.mktemp("served")
    public = made(directory)
    behind = ["--server", "public", "--task", public.task[0], "--", *public.command]
    with proxying(up, directory.with_name(f"{directory.name}.log"), *behind) as proxy:
        async with reading(up.data) as trail:
            yield Place(public, proxy.url, trail)


def itself(public: Public, mode: str = "auto") -> FastMCPClient[Any]:
    """A client of the server itself."""
    command, *arguments = public.command
    return FastMCPClient(StdioTransport(command, arguments, keep_alive=False), mode=mode)


async def test_the_tools_and_their_schemas_are_the_servers_own(place: Place) -> None:
    """docs/proxy.md: MCP is forwarded as it is; FastMCP gives a title to a tool that has none, and adds its `_meta`."""
    async with itself(place.public, "legacy") as direct, FastMCPClient(place.url, mode="legacy") as proxied:
        own, forwarded = await direct.list_tools(), await proxied.list_tools()
    assert {place.public.task[0], place.public.plain[0]} <= {tool.name for tool in own}
    for tool, other in zip(own, forwarded, strict=True):
        added: dict[str, Any] = {"title": tool.title or other.title, "_meta": {"fastmcp": {"tags": []}}}
        if tool.name == place.public.task[0]:
            added["execution"] = {"taskSupport": "optional"}
        assert other.model_dump(by_alias=True) == tool.model_dump(by_alias=True) | added


async def test_a_call_comes_to_the_same_directly_through_the_proxy_and_as_a_task(place: Place) -> None:
    """docs/proxy.md: results are the server's own, errors of its tools too; a tool that is named becomes a task."""
    (tool, arguments), (other, others), (_, wrong) = place.public.task, place.public.plain, place.public.fails
    async with itself(place.public) as direct:
        own = [told((await direct.call_tool_mcp(*call)).model_dump(by_alias=True)) for call in place.public[1:]]
    async with FastMCPClient(place.url) as plain, Client(place.url, capabilities=WITHOUT_ROOTS) as ana:
        synchronous = [told((await plain.call_tool_mcp(*call)).model_dump(by_alias=True)) for call in place.public[1:]]
        assert synchronous == own
        assert [one["isError"] for one in own] == [False, False, True]
        if other != tool:
            assert told((await ana.call(other, **others)).result) == own[1]
        tasks = [await ana.start(tool, **said) for said in (arguments, wrong)]
        ended = [await ana.until(task["taskId"], "completed") for task in tasks]
    assert [told(one["result"]) for one in ended] == [own[0], own[2]]
    created = only(await place.trail.of(tasks[0]["taskId"]), TaskCreated)
    assert (created.server, created.tool) == ("public", tool)


def told(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result without what each connection adds of its own."""
    content = [{name: one for name, one in block.items() if one is not None} for block in result["content"]]
    return {
        "content": content,
        "structuredContent": result.get("structuredContent"),
        "isError": bool(result.get("isError")),
    }
