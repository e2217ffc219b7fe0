"""The commands of docs/proxy.md and the server of docs/mcp-sdk.md, as a user pastes them beside a `tasktrail up`.

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

    with UpProcess(tmp_path / ".tasktrail") as up, listening() as sock:
        async with served(behind.http_app(), sock):
            with pasted(over_http.replace(UPSTREAM, url_of(sock)), tmp_path) as url:
                async with Client(url) as somebody:
                    task = await somebody.start("render_page", number=7)
                    done = await somebody.until(task["taskId"], "completed")
                    made = [task["taskId"]]
        assert done["result"]["content"][0]["text"] == "page 7"
        node = shlex.join([str(NODE), str(everything())])
        with pasted(over_stdio.replace(NPX, node), tmp_path) as url:
            async with Client(url, capabilities=WITHOUT_ROOTS) as somebody:
                task = await somebody.start(LONG, duration=0.1, steps=1)
                done = await somebody.until(task["taskId"], "completed")
                made.append(task["taskId"])
        assert "completed" in done["result"]["content"][0]["text"]
        async with reading(up.data) as trail:
            created = [only(await trail.of(task_id), TaskCreated) for task_id in made]
    assert [one.server for one in created] == ["pages", "everything"]


async def test_the_server_of_the_sdks_page_makes_tasks_of_the_tool_it_names(tmp_path: Path) -> None:
    """docs/mcp-sdk.md: a whole server, `report` is optional, the trail has the server's own name."""
    (block,) = blocks("mcp-sdk.md", "python")
    with UpProcess(tmp_path / ".tasktrail") as up, listening() as sock:
        pasting, _, running = block.replace(".tasktrail", str(up.data)).partition("mcp.run(")
        assert running.startswith('"streamable-http")')
        assert str(up.data / "adapter.json") in pasting
        names: dict[str, Any] = {}
        exec(pasting, names)  # noqa: S102 - a page of our own
        server: MCPServer[Any] = names["mcp"]
        async with served(server, sock), reading(up.data) as trail:
            async with Client(url_of(sock)) as somebody:
                task = await somebody.start("report")
                ended = await somebody.until(task["taskId"], "completed")
            async with Client(url_of(sock), capabilities=UNDECLARED) as other:
                assert (await other.call("report")).result["content"][0]["text"] == "up 4 %"
            created = only(await trail.of(task["taskId"]), TaskCreated)
    assert ended["result"]["content"][0]["text"] == "up 4 %"
    assert (created.server, created.task_support) == ("reports", TaskSupport.OPTIONAL)
