"""The commands of docs/proxy.md and the lines of docs/mcp-sdk.md, as a user pastes them beside a `tasktrail up`.

What is of the reader's own place is put in its stead: addresses, and `npx` by the package that it would fetch.
"""

import contextlib
import os
import re
import shlex
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from fastmcp import FastMCP
from mcp.server import MCPServer

from tasktrail.events.facts import TaskCreated, TaskSupport
from tasktrail.mcp.extension import Tasks
from tasktrail.testing.service import UpProcess, tasktrail

from .client import UNDECLARED, Client
from .place import only, reading
from .serving import listening, served, url_of
from .test_proxy import LONG, NODE, WITHOUT_ROOTS, everything

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.requirement("O2")]

DOCS = Path(__file__).resolve().parents[2] / "docs"
UPSTREAM, NPX = "http://127.0.0.1:9000/mcp", "npx -y @modelcontextprotocol/server-everything"


def blocks(page: str, kind: str) -> list[str]:
    """The blocks of this kind on a page."""
    return re.findall(rf"```{kind}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@contextlib.contextmanager
def pasted(command: str, directory: Path) -> Generator[str]:
    """A command of the page, on a free port; gives the URL for clients."""
    program, subcommand, *arguments = shlex.split(command)
    assert (program, subcommand) == ("tasktrail", "proxy")
    run: list[str | Path] = [tasktrail(), "proxy", "--port", "0", *arguments]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("TASKTRAIL_")}
    with subprocess.Popen(run, cwd=directory, env=quiet, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline().decode()
            assert line.startswith("proxying at "), f"{command}: {line!r}"
            yield line.split()[-1]
        finally:
            child.terminate()


async def test_the_commands_of_the_proxys_page_work_when_pasted(tmp_path: Path) -> None:
    """docs/proxy.md: both commands, beside the data of a running service, which they find by themselves."""
    (block,) = blocks("proxy.md", "sh")
    over_http, over_stdio = block.strip().splitlines()
    assert UPSTREAM in over_http
    assert NPX in over_stdio
    behind: FastMCP = FastMCP("behind")

    @behind.tool
    async def render_page(number: int) -> str:
        return f"page {number}"

    with UpProcess(tmp_path / ".tasktrail"), listening() as sock:
        async with served(behind.http_app(), sock):
            with pasted(over_http.replace(UPSTREAM, url_of(sock)), tmp_path) as url:
                async with Client(url) as somebody:
                    task = await somebody.start("render_page", number=7)
                    done = await somebody.until(task["taskId"], "completed")
        assert done["result"]["content"][0]["text"] == "page 7"
        node = shlex.join([str(NODE), str(everything())])
        with pasted(over_stdio.replace(NPX, node), tmp_path) as url:
            async with Client(url, capabilities=WITHOUT_ROOTS) as somebody:
                task = await somebody.start(LONG, duration=0.1, steps=1)
                done = await somebody.until(task["taskId"], "completed")
        assert "completed" in done["result"]["content"][0]["text"]


async def test_the_two_lines_of_the_sdks_page_make_tasks_of_the_tools_they_name(tmp_path: Path) -> None:
    """docs/mcp-sdk.md: `report` is optional, `deploy` is required, the trail has the server's own name."""
    (block,) = blocks("mcp-sdk.md", "python")
    with UpProcess(tmp_path / "data") as up, listening() as sock:
        pasting = block.replace("nats://127.0.0.1:4222", str(up.data / "adapter.json"))
        assert pasting != block
        names: dict[str, Any] = {"Tasks": Tasks, "MCPServer": MCPServer}
        exec(pasting, names)  # noqa: S102 - a page of our own
        server: MCPServer[Any] = names["mcp"]

        @server.tool()
        async def report() -> str:
            return "up 4 %"

        @server.tool()
        async def deploy() -> str:
            return "deployed"

        async with served(server, sock), reading(up.data) as trail:
            async with Client(url_of(sock)) as somebody:
                tasks = [await somebody.start(name) for name in ("report", "deploy")]
                ended = [await somebody.until(task["taskId"], "completed") for task in tasks]
            async with Client(url_of(sock), capabilities=UNDECLARED) as other:
                assert (await other.call("report")).result["content"][0]["text"] == "up 4 %"
                assert (await other.call("deploy")).error["code"] == -32021
            created = [only(await trail.of(task["taskId"]), TaskCreated) for task in tasks]
    assert [one["result"]["content"][0]["text"] for one in ended] == ["up 4 %", "deployed"]
    assert {one.server for one in created} == {"reports"}
    assert [one.task_support for one in created] == [TaskSupport.OPTIONAL, TaskSupport.REQUIRED]
