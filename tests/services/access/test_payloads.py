"""What is sealed, and what its commitment says of it. Source: features R1 R4; test_secrets.py has the formats."""

import json

import msgspec
import pytest
from tests.services.access.rig import ANA, CHANNEL, SCHEMA, Rig
from tests.services.access.secret_text import body, jwt

from tasktrail.events.facts import (
    SCANNED_IN_PART,
    Commitment,
    InputRequested,
    InputResponded,
    StatusReported,
    TaskCompleted,
    TaskCreated,
    TaskFailed,
)
from tasktrail.services import messages
from tasktrail.services.access.payloads import Payloads
from tasktrail.services.access.secrets import SCANNED_BYTES
from tasktrail.services.messages import TaskView

NPM = f"npm_{body(36)}"
GITHUB = f"ghp_{body(36)}"
AWS = f"AKIA{body(16, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567')}"
JWT = jwt({"alg": "HS256"})
SK = f"sk-{body(48)}"


async def live(rig: Rig, made: TaskView) -> None:
    """A status message, a question and its answer, each with a secret in it."""
    ref = made.task_ref
    await rig.one.work.report(
        messages.ReportStatus(task_ref=ref, command_id="r", message=f"logged in with {GITHUB}"), CHANNEL
    )
    ask = messages.InputAsk(method="elicitation/create", params={"message": AWS, "requestedSchema": SCHEMA})
    await rig.one.work.ask(messages.RequestInput(task_ref=ref, command_id="q", asks={"a": ask}), CHANNEL)
    await rig.update(made.task_id, {"a": {"action": "accept", "content": {"name": JWT}}})


async def flags(rig: Rig) -> dict[str, tuple[str, ...]]:
    """Of every payload on the trail, by its name."""
    found: dict[str, tuple[str, ...]] = {}
    for entry in await rig.entries("task"):
        for event in entry.events:
            match event:
                case TaskCreated(handle=handle, arguments=arguments):
                    sealed: tuple[Commitment | None, ...] = (handle, arguments)
                case StatusReported(message=message):
                    sealed = (message,)
                case InputRequested(request=request):
                    sealed = (request,)
                case InputResponded(response=response):
                    sealed = (response,)
                case TaskCompleted(result=result):
                    sealed = (result,)
                case TaskFailed(error=error):
                    sealed = (error,)
                case _:
                    sealed = ()
            found |= {one.name: one.flags for one in sealed if one is not None}
    return found


@pytest.mark.requirement("R4")
async def test_every_payload_says_which_secrets_were_seen_in_it_and_none_of_them_is_on_the_trail(rig: Rig) -> None:
    """R4: arguments, status messages, questions, answers, results; the handle, a secret of its own, says nothing."""
    made = await rig.create(arguments={"deep": [{"token": NPM}], "said": json.dumps({"also": SK})})
    await live(rig, made)
    await rig.complete(made.task_ref, f"{NPM} {JWT}")
    assert await flags(rig) == {
        "handle": (),
        "arguments": ("npm_token", "sk_key"),
        "message": ("github_token",),
        "request.a": ("aws_access_key_id",),
        "response.a": ("jwt",),
        "result": ("jwt", "npm_token"),
    }
    entries = [msgspec.json.encode(entry) for entry in await rig.entries()]
    assert not [one for one in (NPM, GITHUB, AWS, JWT, SK) if any(one.encode() in entry for entry in entries)]


@pytest.mark.requirement("R4")
async def test_an_error_says_so_too_and_what_is_harmless_says_nothing(rig: Rig) -> None:
    made = await rig.create()
    error = messages.RpcError(code=-1, message="no", data={"url": f"amqp://ana:{body(12)}@queue.example"})
    await rig.one.work.fail(messages.FailTask(task_ref=made.task_ref, command_id="f", error=error), CHANNEL)
    assert await flags(rig) == {"handle": (), "arguments": (), "error": ("url_password",)}


@pytest.mark.requirement("R4")
async def test_a_large_payload_is_looked_through_as_far_as_it_is_said(rig: Rig) -> None:
    """The first MiB; what is larger than 64 KiB by a thread."""
    made = await rig.create(arguments={"before": "." * 200_000, "token": NPM})
    await rig.complete(made.task_ref, "." * SCANNED_BYTES + f" {NPM}")
    assert await flags(rig) == {"handle": (), "arguments": ("npm_token",), "result": (SCANNED_IN_PART,)}


@pytest.mark.requirement("L2", "R4")
async def test_the_same_command_again_is_a_repeat_whatever_was_flagged(rig: Rig) -> None:
    """Sealing is deterministic, the flags with it."""
    made = await rig.create(arguments={"token": NPM})
    again = await rig.create(arguments={"token": NPM})
    assert again.task_id == made.task_id
    await live(rig, made)
    await live(rig, made)
    assert [type(event).__name__ for entry in await rig.entries("task") for event in entry.events] == [
        "TaskCreated",
        "StatusReported",
        "InputRequested",
        "InputResponded",
        "TaskResumed",
    ]


@pytest.mark.requirement("R1")
async def test_what_was_flagged_opens_as_it_was_sealed(rig: Rig) -> None:
    """A flag is a hint: nothing is taken out of a payload."""
    made = await rig.create()
    await rig.complete(made.task_ref, JWT)
    assert (await rig.get(made.task_id, ANA)).result == {"text": JWT}
    payloads = Payloads(rig.one.vault, rig.one.settings)
    key = await rig.one.vault.key(made.task_ref)
    sealed = await payloads.seal(key, "result", "scope", {"text": JWT})
    bare, blob = key.seal("result", "scope", msgspec.json.encode({"text": JWT}))
    assert sealed == (msgspec.structs.replace(bare, flags=("jwt",)), {"result": blob})
