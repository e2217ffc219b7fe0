"""OCSF events are what the official schema says. Source: schema.ocsf.io 1.5.0 and 1.8.0, as exported there and carried
by the package ocsf-json-schema; its own words for siblings and deprecated attributes."""

import json
from functools import cache
from importlib import import_module
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tests.services.steps import AT_MS, HOSTILE, event_of, every_step, step_of

from tasktrail.events.facts import AccessDenied, TaskCreated, TaskPolled
from tasktrail.services import ocsf
from tasktrail.services.escaping import json_line

published = import_module("ocsf_json_schema")  # without annotations
CARRIED = {"activity_id": "activity_name", "severity_id": "severity", "status_id": "status", "action_id": "action"}
SIBLINGS = {**CARRIED, "disposition_id": "disposition", "type_uid": "type_name", "class_uid": "class_name"}


@cache
def schema(version: str) -> Any:  # noqa: ANN401 - of a package without annotations
    return published.OcsfJsonSchemaEmbedded(published.get_ocsf_schema(version=version))


@cache
def validator(version: str, class_uid: int) -> Draft202012Validator:
    name = schema(version).lookup_class_name_from_uid(class_uid=class_uid)
    return Draft202012Validator(schema(version).get_class_schema(class_name=name, profiles=[ocsf.PROFILE]))


def said(step: Any) -> dict[str, Any]:  # noqa: ANN401 - a step
    """What a reader gets of a step."""
    event: dict[str, Any] = json.loads(json_line(ocsf.event(step, at_ms=AT_MS, version="0.3.0")))
    return event


@pytest.mark.requirement("T9")
@pytest.mark.parametrize("version", [ocsf.SCHEMA_VERSION, "1.8.0"])
def test_every_kind_of_step_is_valid_under_the_official_schema_of_its_class(version: str) -> None:
    """Issue 4: OCSF, validated against its schema. A newer minor version takes the same events."""
    classes: set[int] = set()
    for step in every_step():
        event = said(step)
        faults = [
            (fault.json_path, fault.message) for fault in validator(version, event["class_uid"]).iter_errors(event)
        ]
        assert not faults, (step.row.type, faults)
        classes.add(event["class_uid"])
    assert classes == {6003, 3002, 6002, 2004}


@pytest.mark.requirement("T9")
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_stranger_makes_an_event_invalid(text: str) -> None:
    for step in every_step(text):
        event = said(step)
        assert not list(validator(ocsf.SCHEMA_VERSION, event["class_uid"]).iter_errors(event)), step.row.type


def test_words_beside_numbers_are_the_schemas_own_and_nothing_deprecated_is_used() -> None:
    """The schema's enumerations: an `_id` and its sibling say the same."""
    classes = published.get_ocsf_schema(version=ocsf.SCHEMA_VERSION)["classes"]
    for event in map(said, every_step()):
        kind = classes[schema(ocsf.SCHEMA_VERSION).lookup_class_name_from_uid(class_uid=event["class_uid"])]
        for number, word in SIBLINGS.items():
            if number in event:
                assert event[word] == kind["attributes"][number]["enum"][str(event[number])]["caption"]
        assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
        assert not [name for name in event if "@deprecated" in kind["attributes"][name]]
        required = {name for name, one in kind["attributes"].items() if one["requirement"] == "required"}
        assert {name for name in required if kind["attributes"][name].get("profile") is None} <= set(event)


@pytest.mark.requirement("T9")
def test_an_event_says_who_how_far_it_is_proved_and_where() -> None:
    """Design, promise 3: no export raises a level; issue 4: each line with sequence and leaf hash."""
    event = said(step_of(event_of(TaskCreated, "x"), "x", sub="ana", client_id="desk", principal_level="asserted"))
    assert (event["class_uid"], event["activity_name"]) == (6003, "Create")
    assert (event["actor"]["user"]["uid"], event["actor"]["app_uid"]) == ("ana", "desk")
    place = event["unmapped"]["tasktrail"]
    assert (place["stream_seq"], place["entry_id"], place["leaf_sha256"]) == (1_042, "e" * 32, "ab" * 32)
    assert (event["metadata"]["sequence"], event["metadata"]["uid"]) == (1_042, "1042:3")
    assert place["principal_level"] == "asserted"


def test_a_denial_is_a_failure_with_its_true_reasons_and_a_bad_credential_a_failed_logon() -> None:
    denied = event_of(AccessDenied, "handle-expired")
    event = said(step_of(denied, effect="deny"))
    assert (event["class_uid"], event["status"], event["action"], event["disposition"]) == (
        6003,
        "Failure",
        "Denied",
        "Blocked",
    )
    assert (event["status_detail"], event["status_code"], event["count"]) == ("handle-expired", "7", 7)
    logon = said(step_of(denied, effect="deny", credential_verification="expired"))
    assert (logon["class_uid"], logon["activity_name"], logon["status"]) == (3002, "Logon", "Failure")


def test_a_run_has_its_count_and_both_ends() -> None:
    event = said(step_of(event_of(TaskPolled, "x")))
    assert (event["activity_name"], event["count"]) == ("Read", 7)
    assert event["start_time"] == event["end_time"] == AT_MS
