"""The programs of `programs/`, run in the SDK v1's own environment, and what they say.

Guarantees: a program that ends by itself fails whoever waits for it, with what it printed; none outlives its block.

    async with served(up, "forwarded", issuers, log) as urls, clients(log) as those:
        ana = await those.open("ana", urls["tokens"], token)
        task = (await ana.call("greet"))["task"]
"""

import asyncio
import contextlib
import itertools
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from tests.v1.environment import PROGRAMS, environment, python

from tasktrail.testing.issuer import LocalIssuer
from tasktrail.testing.service import UpProcess
from tasktrail.testing.waiting import until

Json = dict[str, Any]
AUDIENCE = "https://mcp.example/mcp"
_START_S, _ANSWER_S = 60.0, 60.0
_LINE_BYTES = 2**24


class Refused(Exception):
    """A JSON-RPC error."""

    def __init__(self, error: Json) -> None:
        super().__init__(f"{error['code']}: {error['message']}")
        self.code, self.error = error["code"], error


@contextlib.asynccontextmanager
async def program(name: str, log: Path, *arguments: str) -> AsyncGenerator[Process]:
    """One of the programs, with these arguments."""
    with log.open("ab") as sink:
        child = await asyncio.create_subprocess_exec(
            python(),
            PROGRAMS / f"{name}.py",
            *arguments,
            stdin=PIPE,
            stdout=PIPE,
            stderr=sink,
            env=environment(),
            limit=_LINE_BYTES,
        )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
            try:
                await asyncio.wait_for(child.wait(), _ANSWER_S)
            except TimeoutError:
                child.kill()
                await child.wait()


@contextlib.asynccontextmanager
async def served(
    up: UpProcess, identity: str, issuers: Sequence[LocalIssuer], log: Path
) -> AsyncGenerator[dict[str, str]]:
    """The MCP servers; gives their endpoints by name."""
    said = {
        "logins": str(up.data / "servers"),
        "identity": identity,
        "audience": AUDIENCE,
        "issuers": [{"url": one.url, "jwks_url": one.jwks_url} for one in issuers],
    }
    async with program("server", log, json.dumps(said)) as child:
        assert child.stdout is not None
        async with asyncio.timeout(_START_S):
            line = await child.stdout.readline()
        assert line, f"the MCP servers did not start: see {log}"
        urls: dict[str, str] = json.loads(line)
        yield urls


class Client:
    """One session of a client; `asked` and `told` are what its server sent by itself, the first first."""

    def __init__(self, clients: "Clients", name: str) -> None:
        self.clients, self.name = clients, name
        self.server: Json = {}
        self.asked: list[Json] = []
        self.told: list[Json] = []

    async def do(self, op: str, /, **said: object) -> Any:  # noqa: ANN401 - JSON
        return await self.clients.request(self.name, op, **said)

    async def call(self, tool: str, /, ttl: int = 600_000, **arguments: object) -> Json:
        """Call a tool as a task: `task` of the answer."""
        made = await self.do("call", name=tool, arguments=arguments, ttl=ttl)
        task: Json = made["task"]
        return task

    async def question(self, number: int = 0) -> Json:
        """The question of this number, once it is asked."""
        await until(lambda: len(self.asked) > number, what=f"question {number} of {self.name}")
        return self.asked[number]

    async def answer(self, question: Json, **result: object) -> None:
        await self.do("answer", question=question["asked"], result=result)

    async def status(self, task: Json, status: str) -> Json:
        """The task, once it has this status."""

        async def reached() -> Json | None:
            seen: Json = await self.do("get", task_id=task["taskId"])
            return seen if seen["status"] == status else None

        return await until(reached, what=f"status {status}")


class Clients:
    """The program with the clients."""

    def __init__(self, child: Process) -> None:
        self._child = child
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._clients: dict[str, Client] = {}

    async def open(self, name: str, url: str, token: str | None = None, **said: object) -> Client:
        """A client that has a session."""
        client = self._clients[name] = Client(self, name)
        client.server = await self.request(name, "open", url=url, token=token, **said)
        return client

    async def request(self, client: str, op: str, /, **said: object) -> Any:  # noqa: ANN401 - JSON
        """What became of a command.

        Raises:
            Refused: an error.
        """
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"id": number, "client": client, "op": op, **said}).encode() + b"\n")
        async with asyncio.timeout(_ANSWER_S):
            return await answer

    async def read(self) -> None:
        """Hear what the program says, until it ends."""
        assert self._child.stdout is not None
        while line := await self._child.stdout.readline():
            said = json.loads(line)
            if "id" not in said:
                client = self._clients[said["client"]]
                (client.asked if "asked" in said else client.told).append(said)
                continue
            answer = self._answers.pop(said["id"])
            if answer.done():
                continue
            if "error" in said:
                answer.set_exception(Refused(said["error"]))
            else:
                answer.set_result(said["ok"])


@contextlib.asynccontextmanager
async def clients(log: Path) -> AsyncGenerator[Clients]:
    """The program with the clients."""
    async with program("client", log) as child:
        some = Clients(child)
        reading = asyncio.create_task(some.read())
        try:
            yield some
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
