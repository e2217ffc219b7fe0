"""Two tasktrails on one broker: nothing is remembered between requests. Source: issue 5, MCP 2025-11-25 (tasks)."""

from pathlib import Path

import pytest
from tests.endpoint.place import ANSWER, AUDIENCE, QUESTION, RESULT, SERVER, address, configured, earlier

from tasktrail.services.connection import Connection
from tasktrail.testing.feeding import Feeder, creation
from tasktrail.testing.fleet import fleet
from tasktrail.testing.nats import NatsServer


@pytest.mark.requirement("L6", "O2")
async def test_a_question_of_one_replica_is_answered_at_the_other(tmp_path: Path) -> None:
    """Who waits at the first hears what came by the second, and the end."""
    with (
        configured(tmp_path) as (known, issuer),
        NatsServer() as server,
        fleet(server.url, tmp_path, environment=known) as (one, two),
    ):
        token = issuer.issue("ana", "cli", "tasks", aud=AUDIENCE)
        feeder = await Feeder.connect(Connection.from_text(server.url), SERVER)
        here, there = f"{address(one)}/mcp", f"{address(two)}/mcp"
        async with earlier(here, token) as ana, earlier(there, token) as elsewhere:
            task = await feeder.settled("create", creation({"token": token}, "c-1"))
            work = {"task_ref": task["task_ref"], "command_id": "w-1"}
            await feeder.settled("ask", {**work, "asks": {"q": QUESTION}})
            async with ana.waiting(task["task_id"]) as messages:
                question = await anext(messages)
                assert (await elsewhere.answer(question["id"], result=ANSWER)).status_code == 202
                assert (await feeder.settled("collect", {"task_ref": task["task_ref"]}))["answers"] == {"q": ANSWER}
                await feeder.settled("complete", {**work, "command_id": "w-2", "result": RESULT})
                *_, last = [message async for message in messages]
            assert last["result"]["content"] == RESULT["content"]
            told = await elsewhere.ask("tasks/result", taskId=task["task_id"])
            assert told["result"] == last["result"]
        await feeder.close()
