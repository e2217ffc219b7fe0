"""docs/mcp-sdk-v1.md is run: its server, in the SDK v1's environment, and a client that gets its report."""

import asyncio
import re
from pathlib import Path

import pytest
from tests.v1.environment import ROOT
from tests.v1.place import Place, told_text
from tests.v1.running import program

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.requirement("O2")
async def test_the_pages_server_makes_a_report_of_a_task(place: Place, tmp_path: Path) -> None:
    """The snippet as it stands; `documented.py` serves its `app`."""
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "mcp-sdk-v1.md").read_text(), re.DOTALL)
    (tmp_path / "server_of_the_page.py").write_text(snippet, encoding="utf-8")
    adapter = str(place.up.data / "servers" / "reports.json")
    async with program("documented", tmp_path / "log", str(tmp_path), adapter) as child:
        assert child.stdout is not None
        async with asyncio.timeout(60):
            url = (await child.stdout.readline()).decode().strip()
        anybody = await place.clients.open(f"page-{tmp_path.name}", url)
        task = await anybody.call("report")
        waiting = asyncio.create_task(anybody.do("result", task_id=task["taskId"]))
        await anybody.answer(await anybody.question(), action="accept", content={"year": 2025})
        assert told_text(await waiting) == "report of 2025"
