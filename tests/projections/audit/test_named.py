"""The catalogue of named queries and what they take: issue "Forensics" (named queries), feature T4."""

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasktrail.events.errors import InvalidRequest
from tasktrail.projections.audit.named import (
    IMPLICIT,
    BrokenQuery,
    Kind,
    NamedQuery,
    Parameter,
    WrongParameters,
    catalogue,
    parse,
    read_parameters,
)

REF = "k5" * 16
PAGE = (Path(__file__).parents[3] / "docs" / "queries.md").read_text(encoding="utf-8")
QUESTIONS = {
    "timeline",
    "by_principal",
    "by_token",
    "by_client",
    "by_address",
    "by_tool",
    "blast_radius",
    "changed_since",
    "state_as_of",
    "approvals",
    "denied_by_source",
    "lapsed_handles",
    "authority_then_and_now",
    "disclosures",
    "owners",
    "responders",
    "policies",
    "revocations",
    "gaps",
    "children",
    "definitions",
    "orphans",
}


@pytest.mark.requirement("T4")
def test_every_question_of_the_issue_has_its_query() -> None:
    assert set(catalogue()) == QUESTIONS
    assert list(catalogue()) == sorted(QUESTIONS)


@pytest.mark.parametrize("query", catalogue().values(), ids=lambda one: one.name)
def test_a_query_and_each_of_its_parameters_are_documented_as_its_file_says(query: NamedQuery) -> None:
    """Style 13: every audit query is documented or a test fails."""
    assert f"\n## {query.name}\n" in PAGE, f"docs/queries.md has no section {query.name}"
    section = PAGE.partition(f"\n## {query.name}\n")[2].partition("\n## ")[0]
    told = " ".join(section.split())
    assert f"{query.title}." in told
    assert " ".join(query.description.split()) in told
    for one in query.parameters:
        needed = "required" if one.required else one.default or ""
        assert f"| `{one.name}` | {one.type} | {needed} | {one.what} |".replace("|  |", "| |") in told
    if query.one_of:
        assert f"Exactly one of {', '.join(f'`{name}`' for name in query.one_of)}." in told


def test_the_page_documents_no_query_that_is_not_there() -> None:
    headings = {line.removeprefix("## ") for line in PAGE.splitlines() if line.startswith("## ")}
    assert headings - {"Asking", "What every answer has", "Tables and views"} == QUESTIONS


@pytest.mark.parametrize("query", catalogue().values(), ids=lambda one: one.name)
def test_a_query_keeps_to_one_tenant_and_to_its_page(query: NamedQuery) -> None:
    for name in ("tenant", "after", "as_of", "most"):
        assert f"${name}" in query.sql, f"{query.name}.sql leaves out ${name}"
    assert 1 <= len(query.statements) <= 3


ALL = parse(
    "all",
    """-- What it answers.
--
-- More about it,
-- and more.
-- $text text required: some text, which
--     goes on
-- $count integer = 7: a number
-- $seq sequence: where
-- $when time: when
-- $live boolean: whether
-- $task ref: which
-- $part one of head, tail = head: which end
SELECT $text, $count, $seq, $when, $live, $task, $part
""",
)


def test_the_head_of_a_file_says_what_it_answers_and_takes() -> None:
    assert (ALL.title, ALL.description) == ("What it answers", "More about it,\nand more.")
    assert ALL.parameters[0] == Parameter(name="text", kind=Kind.TEXT, required=True, what="some text, which goes on")
    assert ALL.parameters[1] == Parameter(name="count", kind=Kind.INTEGER, default="7", what="a number")
    kinds = ["text", "integer", "sequence", "time", "boolean", "ref", "one of head, tail"]
    assert [one.type for one in ALL.parameters] == kinds


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "-- Title.\nSELECT $told_nowhere",
        "-- Title.\n-- $unused text: what\nSELECT 1",
        "-- Title.\n-- $a number: what\nSELECT $a",
        "-- Title.\n-- $a text what\nSELECT $a",
        "-- Title.\n-- $a one of: what\nSELECT $a",
        "-- Title.\n-- $a one of b, c = d: what\nSELECT $a",
        "-- Title.\n-- $tenant text: what\nSELECT $tenant",
        "-- Title.\n-- Exactly one of: b\n-- $a text: what\nSELECT $a",
        "-- Title.\nSELECT $page",
    ],
)
def test_a_file_that_does_not_say_what_it_takes_is_refused(text: str) -> None:
    with pytest.raises(BrokenQuery):
        parse("broken", text)


def test_values_are_read_by_their_kind_and_what_is_left_out_is_null_or_its_default() -> None:
    given_all = {
        "text": "a'b",
        "count": "-3",
        "seq": "0",
        "when": "2026-11-22T19:00:00+01:00",
        "live": "false",
        "task": REF,
        "part": "tail",
    }
    assert read_parameters(ALL, given_all) == {
        "text": "a'b",
        "count": -3,
        "seq": 0,
        "when": datetime(2026, 11, 22, 18),  # noqa: DTZ001 - the store's times are UTC without a zone
        "live": False,
        "task": REF,
        "part": "tail",
    }
    assert read_parameters(ALL, {"text": "x"}) == {
        "text": "x",
        "count": 7,
        "seq": None,
        "when": None,
        "live": None,
        "task": None,
        "part": "head",
    }


def test_a_value_that_is_none_of_those_listed_is_refused_with_the_list() -> None:
    """Else it answers with nothing, which reads as if nothing had happened."""
    with pytest.raises(WrongParameters, match=r"part is 'middle'; it can be head, tail\. It takes .*part \(one of"):
        read_parameters(ALL, {"text": "x", "part": "middle"})


TAKES = (
    "It takes text (text, required), count (integer), seq (sequence), when (time), live (boolean), task (ref), "
    "part (one of head, tail)"
)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "text is missing"),
        ({"text": "x", "txet": "y"}, "it takes no 'txet'"),
        ({"text": ""}, "it has 0 bytes"),
        ({"text": "x" * 4_097}, "it has 4097 bytes"),
        ({"text": "\ud800"}, "half of a character"),
        ({"text": "x", "count": "1.5"}, "which is no integer: a whole number"),
        ({"text": "x", "count": "9" * 19}, "at most 18 digits"),
        ({"text": "x", "seq": "-1"}, "which is no sequence"),
        ({"text": "x", "when": "yesterday"}, "write it like 2026-11-22T18:00:00Z"),
        ({"text": "x", "when": "0001-01-01T00:00:00+23:00"}, "which is no time"),
        ({"text": "x", "live": "yes"}, "say true or false"),
        ({"text": "x", "task": REF.upper()}, "a task's reference has 32 characters"),
    ],
)
def test_a_wrong_parameter_is_refused_with_a_list_of_what_is_taken(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(WrongParameters) as caught:
        read_parameters(ALL, wrong)
    assert said in str(caught.value)
    assert str(caught.value).endswith(TAKES)
    assert isinstance(caught.value, InvalidRequest)


def test_one_of_several_parameters_is_needed_and_no_two_of_them() -> None:
    query = catalogue()["changed_since"]
    with pytest.raises(WrongParameters, match="exactly one of time, sequence, size is needed, none is given"):
        read_parameters(query, {})
    with pytest.raises(WrongParameters, match="time and sequence exclude each other"):
        read_parameters(query, {"time": "2026-11-22", "sequence": "3"})


@given(st.dictionaries(st.sampled_from([one.name for one in ALL.parameters]), st.text(max_size=40)))
def test_any_text_is_a_value_of_its_kind_or_refused(given_text: dict[str, str]) -> None:
    try:
        values = read_parameters(ALL, given_text)
    except WrongParameters:
        return
    assert set(values) == {one.name for one in ALL.parameters}
    assert values["text"] == given_text["text"]


def test_no_parameter_hides_one_that_every_query_is_given() -> None:
    for query in catalogue().values():
        assert not {one.name for one in query.parameters} & IMPLICIT
