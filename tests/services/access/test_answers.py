"""Whether an answer is one. Source: SEP-2663 (`inputResponses`), MCP 2026-07-28 (ElicitResult, CreateMessageResult)."""

import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasktrail.services.access.answers import ELICITATION, METHODS, ROOTS, SAMPLING, action, fault

SECRET = "canary-41c9"
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 2}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
}

FORM = "`content` is not an object of strings, numbers, booleans and arrays of strings"
BLOCKS = "`content` is not a block, or an array of blocks, of type text, image, audio, tool_use, tool_result"


def accept(content: object) -> dict[str, object]:
    return {"action": "accept", "content": content}


@pytest.mark.requirement("L7")
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (accept({"name": "Luca"}), ""),
        (accept({"name": "Luca", "age": 3, "more": 1}), ""),
        ({"action": "decline"}, ""),
        ({"action": "cancel", "content": {"age": SECRET}}, ""),
        (accept({}), "`content` lacks name"),
        (accept({"name": SECRET, "age": SECRET}), "`content/age` fails `type`"),
        (accept({"name": "x"}), "`content/name` fails `minLength`"),
        (accept({"name": "xy", "age": -1}), "`content/age` fails `minimum`"),
        (accept(None), "`content` is not an object"),
        (accept([SECRET]), FORM),
        ({"action": "accept"}, "`content` is not an object"),
        ({"action": "maybe"}, "`action` is none of accept, decline, cancel"),
        ({"action": ["accept"]}, "`action` is none of accept, decline, cancel"),
        ({}, "`action` is none of accept, decline, cancel"),
        (SECRET, "it is not an object"),
        (None, "it is not an object"),
        ([accept({"name": "Luca"})], "it is not an object"),
    ],
)
def test_an_elicitations_answer_satisfies_the_schema_it_was_asked_with(answer: object, told: str) -> None:
    """L7; a fault names the place and the keyword, never the value."""
    found = fault(ELICITATION, {"message": "Who?", "requestedSchema": PERSON}, answer)
    assert found == told
    assert SECRET not in found


@pytest.mark.requirement("L7")
@pytest.mark.parametrize("params", [None, {}, {"mode": "url", "requestedSchema": PERSON}, {"requestedSchema": None}, 7])
def test_without_a_form_any_acceptance_is_one(params: object) -> None:
    """URL mode: what happened elsewhere is not in the answer."""
    assert fault(ELICITATION, params, {"action": "accept"}) == ""
    assert fault(ELICITATION, params, {"action": "x"}) != ""


@pytest.mark.requirement("L7")
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"role": "assistant", "model": "m", "content": {"type": "text", "text": "hi"}}, ""),
        ({"role": "user", "model": "m", "content": [{"type": "text", "text": "hi"}]}, ""),
        ({"role": "user", "model": "m", "content": []}, BLOCKS),
        ({"role": "system", "model": "m", "content": {}}, "`role` is neither user nor assistant"),
        ({"role": "user", "content": {}}, "`model` is not a string"),
        ({"role": "user", "model": "m", "content": "hi"}, BLOCKS),
        ({"role": "user", "model": "m", "content": {"type": "text"}}, BLOCKS),
        ({}, "`role` is neither user nor assistant"),
        ("hi", "it is not an object"),
    ],
)
def test_a_sampled_message_has_its_shape(answer: object, told: str) -> None:
    """MCP: CreateMessageResult."""
    assert fault(SAMPLING, {"messages": []}, answer) == told


@pytest.mark.requirement("L7")
def test_roots_are_a_list() -> None:
    """MCP: ListRootsResult."""
    assert fault(ROOTS, None, {"roots": [{"uri": "file:///x"}]}) == ""
    assert fault(ROOTS, None, {"roots": "file:///x"}) == "`roots` is not an array of objects with a `uri`"
    assert fault(ROOTS, None, {"roots": [{"uri": 5}]}) != ""


def test_what_the_client_said_is_told_as_it_said_it() -> None:
    """Design section 5: the response's action."""
    assert [action(ELICITATION, {"action": said}) for said in ("accept", "decline", "cancel", "other")] == [
        "accept",
        "decline",
        "cancel",
        "",
    ]
    assert [action(method, {"action": "accept"}) for method in (SAMPLING, ROOTS)] == ["result", "result"]
    odd: tuple[object, ...] = (None, [], {}, {"action": {}}, {"action": None})
    assert {action(ELICITATION, one) for one in odd} <= {"", "result"}


@pytest.mark.requirement("L7")
@pytest.mark.parametrize(
    "schema",
    [
        {"type": 7},
        {"type": "objekt"},
        {"properties": []},
        {"$ref": "#/nowhere"},
        {"$ref": "#"},
        {"$ref": "urn:nobody:knows"},
        {"properties": {"name": {"$ref": "file:///etc/passwd"}}},
        {"$dynamicRef": "#there"},
    ],
)
def test_a_schema_that_cannot_be_used_refuses_an_acceptance_and_says_so(schema: dict[str, Any]) -> None:
    """It is the asking tool's fault; declining still answers it."""
    params = {"requestedSchema": schema}
    assert fault(ELICITATION, params, accept({"name": "x"})) == "its request carries a schema that cannot be used"
    assert fault(ELICITATION, params, {"action": "decline"}) == ""


@pytest.mark.requirement("L7")
def test_no_schema_makes_the_service_fetch_anything() -> None:
    """A tool's schema must not reach into the service's network."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/schema.json"
        for schema in ({"$ref": url}, {"$schema": url}, {"$id": url, "$ref": "other.json"}, {"allOf": [{"$ref": url}]}):
            fault(ELICITATION, {"requestedSchema": schema}, accept({"name": "x"}))
        with pytest.raises(BlockingIOError):
            listening.accept()


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"properties": {"a": value}}
    return value


def test_a_deep_schema_and_a_deep_answer_are_survived() -> None:
    """Depth is bounded at the edge; what comes in process is survived here."""
    deep = nested(2_000)
    assert fault(ELICITATION, {"requestedSchema": deep}, accept({"a": deep})) in {
        "",
        FORM,
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
words = st.sampled_from(
    ["type", "properties", "required", "items", "enum", "minimum", "multipleOf", "$ref", "$defs", "not"]
)
schemas = st.dictionaries(words, json_values | st.sampled_from(["object", "#", ["a"]]), max_size=4)


@pytest.mark.requirement("L7")
@given(st.sampled_from(sorted(METHODS)), json_values | st.builds(dict, requestedSchema=schemas), json_values)
@settings(deadline=None)
def test_no_request_and_no_answer_breaks_it(method: str, params: object, answer: object) -> None:
    """Hostile input at every edge (issue "main job"): a text, whatever comes."""
    for given_answer in (answer, accept(answer), {"role": "user", "model": "m", "content": answer}):
        assert isinstance(fault(method, params, given_answer), str)
        assert isinstance(action(method, given_answer), str)
