"""Clients of the SDK v1, told what to do by JSON lines on standard input, telling what came of it on standard output.

Runs in the environment of `tests/v1/environment.py`. A command is `{"id", "client", "op", …}`, its answer
`{"id", "ok"}` or `{"id", "error": {code, message, data}}`. What a server sends by itself is told as it comes:
`{"client", "asked": <number>, "method", "params"}`, to be answered by the op `answer`, and `{"client", "told",
"params"}`.
"""
# ruff: noqa: ANN401 - JSON, and what the SDK gives to callbacks

import asyncio
import contextlib
import itertools
import json
import sys
import warnings
from typing import Any

import httpx
import mcp.types as mcp
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import McpError
from pydantic import TypeAdapter

warnings.simplefilter("ignore", DeprecationWarning)  # the SDK v1 says that v2 has no such tasks
numbers = itertools.count(1)


def say(**said: Any) -> None:
    print(json.dumps(said), flush=True)  # noqa: T201 - what it is run for


class Client:
    """One session."""

    def __init__(self, name: str, said: dict[str, Any]) -> None:
        self.name, self.said = name, said
        self.session: ClientSession
        self.opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.closing = asyncio.Event()
        self.answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.running = asyncio.create_task(self.run())

    async def run(self) -> None:
        headers = {"Authorization": f"Bearer {self.said['token']}"} if self.said.get("token") else {}
        can = self.said.get("can", ["elicitation", "sampling"])
        try:
            async with (
                httpx.AsyncClient(headers=headers, timeout=120, trust_env=False) as http,
                streamable_http_client(self.said["url"], http_client=http) as (read, write, _),
                ClientSession(
                    read,
                    write,
                    elicitation_callback=self.elicited if "elicitation" in can else None,
                    sampling_callback=self.sampled if "sampling" in can else None,
                    message_handler=self.told,
                ) as self.session,
            ):
                made = await self.session.initialize()
                self.opened.set_result(made.model_dump(by_alias=True, mode="json", exclude_none=True))
                await self.closing.wait()
        except BaseException as error:
            if not self.opened.done():
                self.opened.set_exception(RuntimeError(repr(error)))
            raise

    async def elicited(self, _: Any, params: mcp.ElicitRequestParams) -> mcp.ElicitResult | mcp.ErrorData:
        return await self.asked("elicitation/create", params, mcp.ElicitResult)

    async def sampled(self, _: Any, params: mcp.CreateMessageRequestParams) -> mcp.CreateMessageResult | mcp.ErrorData:
        return await self.asked("sampling/createMessage", params, mcp.CreateMessageResult)

    async def asked(self, method: str, params: Any, answer: type[Any]) -> Any:
        number = next(numbers)
        self.answers[number] = asyncio.get_running_loop().create_future()
        said = params.model_dump(by_alias=True, mode="json", exclude_none=True)
        say(client=self.name, asked=number, method=method, params=said)
        given = await self.answers[number]
        if "error" in given:
            return mcp.ErrorData.model_validate(given["error"])
        return TypeAdapter(answer).validate_python(given["result"])

    async def told(self, message: Any) -> None:
        if isinstance(message, mcp.ServerNotification):
            said = message.model_dump(by_alias=True, mode="json", exclude_none=True)
            say(client=self.name, told=said["method"], params=said.get("params"))

    async def do(self, op: str, said: dict[str, Any]) -> Any:  # noqa: PLR0911 - one for each of the SDK's methods
        tasks = self.session.experimental
        match op:
            case "call":
                return await tasks.call_tool_as_task(
                    said["name"], said.get("arguments", {}), ttl=said.get("ttl", 60_000)
                )
            case "plain":
                return await self.session.call_tool(said["name"], said.get("arguments", {}))
            case "tools":
                return await self.session.list_tools()
            case "get":
                return await tasks.get_task(said["task_id"])
            case "result":
                return await tasks.get_task_result(said["task_id"], mcp.CallToolResult)
            case "list":
                return await tasks.list_tasks(said.get("cursor"))
            case "cancel":
                return await tasks.cancel_task(said["task_id"])
        raise ValueError(op)


class Clients:
    """All of them, by name."""

    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}

    async def carry_out(self, said: dict[str, Any]) -> Any:
        name, op = said["client"], said["op"]
        if op == "open":
            self.clients[name] = Client(name, said)
            return await self.clients[name].opened
        client = self.clients[name]
        if op == "answer":
            client.answers.pop(said["question"]).set_result(said)
            return None
        if op in {"close", "vanish"}:
            client.closing.set()
            if op == "vanish":  # as a process that is killed: nothing is said to the server
                client.running.cancel()
            with contextlib.suppress(BaseException):
                await client.running
            return None
        made = await client.do(op, said)
        return made.model_dump(by_alias=True, mode="json", exclude_none=True)

    async def answer(self, said: dict[str, Any]) -> None:
        try:
            say(id=said["id"], ok=await self.carry_out(said))
        except McpError as error:
            say(id=said["id"], error=error.error.model_dump(mode="json"))
        except Exception as error:  # noqa: BLE001 - whoever waits for it is told
            say(id=said["id"], error={"code": None, "message": repr(error)})


async def main() -> None:
    clients, doing = Clients(), set()
    reader = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        one = asyncio.create_task(clients.answer(json.loads(line)))
        doing.add(one)
        one.add_done_callback(doing.discard)


if __name__ == "__main__":
    asyncio.run(main())
