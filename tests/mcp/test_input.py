"""Questions of a running task and their answers. Sources: SEP-2663 (Task Update Requests), SEP-2322 (multi round-trip
requests), design section 5, features L6 and L7."""

import asyncio
from typing import Any

import pytest
from mcp.shared.exceptions import MCPDeprecationWarning

from tasktrail.events.facts import CommandRefused, InputIgnored, InputRequested, InputResponded

from .answering import accept, asked, text_of
from .client import EXTENSION, Answer
from .place import Place, only, shown

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # Sampling and roots are deprecated in 2026-07-28 (SEP-2577) and still part of what a task may ask.
    pytest.mark.filterwarnings(f"ignore::{MCPDeprecationWarning.__module__}.{MCPDeprecationWarning.__name__}"),
]


SAMPLE = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "plum"}, "stopReason": "endTurn"}
ROOTS = {"roots": [{"uri": "file:///srv/ana", "name": "home"}]}


@pytest.mark.requirement("L7")
@pytest.mark.parametrize(
    ("answer", "text"),
    [(accept(age=41), "accept 41"), ({"action": "decline"}, "decline"), ({"action": "cancel"}, "cancel")],
)
async def test_a_question_is_asked_and_its_answer_reaches_the_tool(
    place: Place, answer: dict[str, Any], text: str
) -> None:
    """`ctx.elicit` of the official SDK, unchanged, as the task's inputRequests and inputResponses."""
    async with place.client() as ana:
        made = await ana.start("asks")
        ((key, request),) = (await asked(ana, made["taskId"])).items()
        assert request["method"] == "elicitation/create"
        assert request["params"]["message"] == "How old?"
        assert request["params"]["requestedSchema"]["required"] == ["age"]
        acknowledged = await ana.update(made["taskId"], {key: answer})
        assert acknowledged.result["resultType"] == "complete"
        assert await text_of(ana, made["taskId"]) == text
    found = await place.trail.of(made["taskId"])
    assert shown(found) == [
        ["TaskCreated"],
        ["InputRequested"],
        ["InputResponded", "TaskResumed"],
        ["TaskCompleted"],
    ]
    responded = only(found, InputResponded)
    assert (responded.key, responded.method, responded.action) == (key, "elicitation/create", answer["action"])


@pytest.mark.requirement("L7")
@pytest.mark.parametrize(
    ("tool", "method", "answer", "text"),
    [
        ("sends_to", "elicitation/create", {"action": "accept"}, "accept"),
        ("samples", "sampling/createMessage", SAMPLE, "plum"),
        ("lists_roots", "roots/list", ROOTS, "file:///srv/ana"),
    ],
)
async def test_every_kind_of_request_can_be_asked(
    place: Place, tool: str, method: str, answer: dict[str, Any], text: str
) -> None:
    """Elicitation by URL, sampling and roots: the three methods of `InputRequest` in the extension's schema."""
    async with place.client() as ana:
        made = await ana.start(tool)
        ((key, request),) = (await asked(ana, made["taskId"])).items()
        assert request["method"] == method
        await ana.update(made["taskId"], {key: answer})
        assert await text_of(ana, made["taskId"]) == text
    assert only(await place.trail.of(made["taskId"]), InputRequested).method == method


@pytest.mark.requirement("L7")
async def test_two_questions_at_once_are_answered_one_by_one(place: Place) -> None:
    """SEP-2663: all outstanding requests in `inputRequests`; a partial answer leaves the rest, seen at once; keys are
    new for every question of a task's life."""
    async with place.client() as ana:
        made = await ana.start("asks_twice")
        first, second = await asked(ana, made["taskId"], 2)
        await ana.update(made["taskId"], {second: accept(name="Bo")})
        at_once = (await ana.get(made["taskId"])).result
        assert (at_once["status"], list(at_once["inputRequests"])) == ("input_required", [first])
        await ana.update(made["taskId"], {first: accept(name="Ada")})
        (third,) = await asked(ana, made["taskId"])
        assert third not in {first, second}
        await ana.update(made["taskId"], {third: {"action": "decline"}})
        assert await text_of(ana, made["taskId"]) == "Ada and Bo and decline"
    assert shown(await place.trail.of(made["taskId"])) == [
        ["TaskCreated"],
        ["InputRequested", "InputRequested"],
        ["InputResponded"],
        ["InputResponded", "TaskResumed"],
        ["InputRequested"],
        ["InputResponded", "TaskResumed"],
        ["TaskCompleted"],
    ]


@pytest.mark.requirement("L7")
@pytest.mark.parametrize(
    "wrong",
    [
        accept(age="old"),
        accept(),
        accept(age=None),
        {"action": "accept"},
        {"action": "accept", "content": 5},
        {"action": "perhaps"},
        {"content": {"age": 41}},
        {},
        [],
        "accept",
        None,
        41,
        SAMPLE,
    ],
    ids=str,
)
async def test_an_answer_that_does_not_fit_is_refused_and_recorded(place: Place, wrong: object) -> None:
    """Feature L7: validated against the request's schema; -32602, and the task still waits. Values are not repeated."""
    async with place.client() as ana:
        made = await ana.start("asks")
        (key,) = await asked(ana, made["taskId"])
        refusal = await ana.update(made["taskId"], {key: wrong})
        assert (refusal.status, refusal.error["code"]) == (400, -32602)
        assert key in refusal.error["message"]
        assert "old" not in refusal.error["message"]
        assert list(await asked(ana, made["taskId"])) == [key]
        await ana.update(made["taskId"], {key: accept(age=1)})
        assert await text_of(ana, made["taskId"]) == "accept 1"
    refused = only(await place.trail.of(made["taskId"]), CommandRefused)
    assert (refused.command, refused.reason, refused.key) == ("RespondToInput", "invalid_answer", key)


@pytest.mark.requirement("L7")
@pytest.mark.parametrize(
    ("tool", "wrong"),
    [
        ("asks", accept(age=41, more={"nested": True})),
        ("asks", {"action": "decline", "content": "no"}),
        ("samples", {**SAMPLE, "content": {"type": "nonsense"}}),
        ("samples", {**SAMPLE, "content": []}),
        ("samples", {**SAMPLE, "content": {"type": "text"}}),
        ("lists_roots", {"roots": [{"uri": 5}]}),
        ("lists_roots", {"roots": ["file:///srv"]}),
    ],
    ids=str,
)
async def test_an_answer_of_no_shape_of_the_protocol_is_refused(place: Place, tool: str, wrong: dict[str, Any]) -> None:
    """MCP 2026-07-28 `ElicitResult`, `CreateMessageResult`, `ListRootsResult`: what they forbid crashes the tool."""
    async with place.client() as ana:
        made = await ana.start(tool)
        (key,) = await asked(ana, made["taskId"])
        refusal = await ana.update(made["taskId"], {key: wrong})
        await ana.cancel(made["taskId"])
        assert refusal.error["code"] == -32602


@pytest.mark.requirement("L7")
async def test_a_schema_with_a_pattern_of_another_dialect_can_still_be_answered(place: Place) -> None:
    r"""JSON Schema patterns are ECMA-262 (`\p{L}`), which pydantic takes and Python's `re` does not know."""
    async with place.client() as ana:
        made = await ana.start("asks_in_letters")
        (key,) = await asked(ana, made["taskId"])
        answer = await ana.update(made["taskId"], {key: accept(word="plum")})
        await ana.cancel(made["taskId"])
        assert answer.result["resultType"] == "complete"


@pytest.mark.requirement("L7")
async def test_one_invalid_answer_among_several_refuses_them_all(place: Place) -> None:
    """Design section 5: refuses them all and is recorded; nothing of the others was taken."""
    async with place.client() as ana:
        made = await ana.start("asks_twice")
        first, second = await asked(ana, made["taskId"], 2)
        refusal = await ana.update(made["taskId"], {first: accept(name="Ada"), second: accept(name=5)})
        assert refusal.error["code"] == -32602
        assert list(await asked(ana, made["taskId"], 2)) == [first, second]
        await ana.cancel(made["taskId"])
        await ana.until(made["taskId"], "cancelled")


@pytest.mark.requirement("L7")
async def test_unknown_and_answered_keys_are_acknowledged_and_change_nothing(place: Place) -> None:
    """SEP-2663: a server should ignore answers to keys that are not outstanding, also beside a good one."""
    async with place.client() as ana:
        made = await ana.start("asks_twice")
        first, second = await asked(ana, made["taskId"], 2)
        before = (await ana.get(made["taskId"])).result["lastUpdatedAt"]
        odd: dict[str, Any] = {"never asked": {"ignored": True}, "": 5, "k" * 5000: None}
        assert (await ana.update(made["taskId"], odd)).result["resultType"] == "complete"
        assert (await ana.update(made["taskId"], {})).result["resultType"] == "complete"
        after = (await ana.get(made["taskId"])).result
        assert (list(after["inputRequests"]), after["lastUpdatedAt"]) == ([first, second], before)
        await ana.update(made["taskId"], {first: accept(name="Ada"), "other": 1})
        await ana.update(made["taskId"], {first: accept(name="Eve")})
        await ana.update(made["taskId"], {first: accept(name=5), second: accept(name="Bo")})
        (third,) = await asked(ana, made["taskId"])
        await ana.update(made["taskId"], {third: accept(name="Cy"), second: accept(name="Eve")})
        assert await text_of(ana, made["taskId"]) == "Ada and Bo and Cy"
        late: Answer = await ana.update(made["taskId"], {third: accept(name="Eve")})
        assert late.result["resultType"] == "complete"
    events = [event for entry in await place.trail.of(made["taskId"]) for event in entry.events]
    ignored = [(event.reason, event.key) for event in events if isinstance(event, InputIgnored)]
    assert sorted(ignored) == sorted(
        [("never_asked", "")] * 4 + [("already_answered", first)] * 2 + [("already_answered", second)]
    )
    assert all(
        len(event.key_sha256) == 64
        for event in events
        if isinstance(event, InputIgnored) and event.reason == "never_asked"
    )


@pytest.mark.requirement("L7")
async def test_of_many_answers_at_the_same_time_one_is_taken(place: Place) -> None:
    """SEP-2663: already answered keys are ignored; who comes first is what the trail says, and what the tool gets."""
    async with place.client() as ana:
        made = await ana.start("asks")
        (key,) = await asked(ana, made["taskId"])
        sent = [ana.update(made["taskId"], {key: accept(age=age)}) for age in range(10)]
        for answer in await asyncio.gather(*sent):
            assert answer.result["resultType"] == "complete"
        text = await text_of(ana, made["taskId"])
    assert text in {f"accept {age}" for age in range(10)}
    found = await place.trail.of(made["taskId"])
    assert only(found, InputResponded).key == key
    assert (await place.trail.names(made["taskId"]))[-1] != "InputRequested"


NO_FORM: dict[str, Any] = {"elicitation": {"form": {}}}


@pytest.mark.requirement("L4")
@pytest.mark.parametrize(
    ("tool", "declared", "required"),
    [
        ("asks", {}, NO_FORM),
        ("asks", {"elicitation": {"url": {}}}, NO_FORM),
        ("asks_inside", {"sampling": {}}, NO_FORM),
        ("sends_to", {"elicitation": {}}, {"elicitation": {"url": {}}}),
        ("samples", {"elicitation": {}}, {"sampling": {}}),
        ("lists_roots", {"elicitation": {}}, {"roots": {}}),
    ],
)
async def test_a_client_is_asked_only_what_it_declared(
    place: Place, tool: str, declared: dict[str, Any], required: dict[str, Any]
) -> None:
    """SEP-2322: no inputRequests that the client has not declared support for; the tool gets -32021 in their place."""
    async with place.client(capabilities={"extensions": {EXTENSION: {}}, **declared}) as plain:
        made = await plain.start(tool)
        done = await plain.until(made["taskId"], "failed", "input_required")
    assert done["status"] == "failed"
    assert (done["error"]["code"], done["error"]["data"]) == (-32021, {"requiredCapabilities": required})
    assert "InputRequested" not in await place.trail.names(made["taskId"])


@pytest.mark.requirement("L4")
async def test_elicitation_declared_without_a_mode_means_forms(place: Place) -> None:
    """MCP 2026-07-28 ClientCapabilities: an empty `elicitation` object is form mode."""
    async with place.client(capabilities={"extensions": {EXTENSION: {}}, "elicitation": {}}) as plain:
        made = await plain.start("asks")
        await asked(plain, made["taskId"])
        await plain.cancel(made["taskId"])


@pytest.mark.requirement("L6", "A6")
async def test_the_same_client_answers_on_another_connection_with_another_token(place: Place) -> None:
    """Feature L6: correlated by task and principal, never by connection."""
    async with place.client() as ana:
        made = await ana.start("asks")
    async with place.client() as again:
        (key,) = await asked(again, made["taskId"])
    async with place.client() as once_more:
        await once_more.update(made["taskId"], {key: accept(age=41)})
        assert await text_of(once_more, made["taskId"]) == "accept 41"


@pytest.mark.requirement("L7")
async def test_a_question_nobody_waits_for_any_more_does_not_hold_the_task(place: Place) -> None:
    """A tool may stop waiting; its result ends the task from `input_required` too (SEP-2663 state diagram)."""
    with place.bench() as label:
        async with place.client() as ana:
            made = await ana.start("asks_impatiently", label=label)
            (key,) = await asked(ana, made["taskId"])
            place.workshop.bench(label).go.set()
            assert await text_of(ana, made["taskId"]) == "nobody"
            assert (await ana.update(made["taskId"], {key: accept(name="late")})).result["resultType"] == "complete"


@pytest.mark.parametrize(
    ("tool", "key", "text"),
    [("asks_before", "who", "Ada after round 1"), ("resolves", None, "Ada resolved")],
)
async def test_a_tool_that_asks_first_is_a_task_from_the_answering_round_on(
    place: Place, tool: str, key: str | None, text: str
) -> None:
    """SEP-2663: multi round-trip exchanges are resolved before the CreateTaskResult; the state is the SDK's, sealed."""
    async with place.client() as ana:
        first = (await ana.call(tool)).result
        assert first["resultType"] == "input_required"
        assert "taskId" not in first
        (asked_key,) = first["inputRequests"]
        assert key in {None, asked_key}
        params = {"name": tool, "arguments": {}, "inputResponses": {asked_key: accept(name="Ada")}}
        answered = await ana.send("tools/call", {**params, "requestState": first["requestState"]}, name=tool)
        assert answered.result["resultType"] == "task"
        assert "requestState" not in answered.result
        assert await text_of(ana, answered.result["taskId"]) == text
    assert await place.trail.names(answered.result["taskId"]) == ["TaskCreated", "TaskCompleted"]


@pytest.mark.requirement("L7")
async def test_questions_returned_from_within_a_task_get_keys_of_their_own(place: Place) -> None:
    """SEP-2322 within a task: entered again with the answers under the tool's keys; the wire's are never reused."""
    async with place.client() as ana:
        made = await ana.start("asks_inside")
        round_one = await asked(ana, made["taskId"], 2)
        who = next(key for key in round_one if key.startswith("who-"))
        (other,) = round_one.keys() - {who}
        await ana.update(made["taskId"], {other: accept(name="Bo")})
        await ana.update(made["taskId"], {who: accept(name="Ada")})
        (again,) = await asked(ana, made["taskId"])
        assert again not in round_one
        await ana.update(made["taskId"], {again: accept(name="Cy")})
        assert await text_of(ana, made["taskId"]) == "one Ada Bo then Cy"


async def test_a_tool_that_asks_for_nothing_is_entered_again_later(place: Place) -> None:
    """SEP-2322: requestState alone says "try again". It must not keep the server from everything else."""
    with place.bench() as label:
        async with place.client() as ana:
            made = await ana.start("comes_back", label=label)
            other = await ana.start("echo", text="meanwhile")
            assert await text_of(ana, other["taskId"]) == "meanwhile"
            place.workshop.bench(label).go.set()
            assert await text_of(ana, made["taskId"]) == "again"
    assert len(place.workshop.bench(label).log) < 50
