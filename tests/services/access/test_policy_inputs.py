"""What policies see of a step: the schema's attributes, and nothing that is only claimed. Source: design 6, schema."""

import re

import cedarpy
import msgspec
import pytest
from tests.services.access.steps import OTHER, SAME, TASK, caller, part, policies

from tasktrail.events.authority import Actor, Level, PolicyDecision, Request, Trigger
from tasktrail.services.access import policy
from tasktrail.services.access.policy import Action, explain
from tasktrail.services.access.policy_inputs import CONTEXT, SHAPES, address


@pytest.mark.requirement("A5")
def test_what_is_claimed_is_not_seen() -> None:
    """Design section 6: claimed facts never decide."""
    claimed = msgspec.structs.replace(
        caller(level=Level.CLAIMED, scope=("tasks:create",), acr="strong", amr=("mfa",)),
        actors=(Actor(sub="boss", iss="https://id.example", level=Level.CLAIMED),),
        request=Request(method="tasks/get", server="reports", address="10.0.0.1"),
    )
    assert policies().decide(Action.GET, claimed, about=TASK, binding=OTHER).inputs == {
        "action": "getTask",
        "principal.type": "Anonymous",
        "principal.tenant": "acme",
        "principal.level": "claimed",
        "principal.method": "none",
        "resource.type": "Task",
        "resource.tenant": "acme",
        "resource.server": "reports",
        "resource.tool": "report",
        "resource.task_support": "optional",
        "resource.status": "working",
        "resource.standing": "valid",
        "resource.creator_iss": "https://id.example",
        "resource.creator_sub": "ana",
        "resource.creator_client_id": "desk",
        "resource.age_minutes": 5,
        "context.server": "reports",
    }


@pytest.mark.requirement("A5")
@pytest.mark.parametrize(("level", "seen"), [(Level.ASSERTED, {"context.server": "reports"}), (Level.CLAIMED, {})])
def test_a_server_that_only_the_caller_names_is_not_seen(level: Level, seen: dict[str, str]) -> None:
    """The same, for the tasks endpoint: its path is the caller's word."""
    asked = msgspec.structs.replace(caller(), request=Request(method="tasks/get", server="reports", server_level=level))
    inputs = policies().decide(Action.GET, asked, about=TASK, binding=SAME).inputs
    assert {name: value for name, value in inputs.items() if name == "context.server"} == seen


@pytest.mark.requirement("A1")
def test_only_a_caller_without_a_grant_is_the_creator() -> None:
    """A worker, a timer or an operator never acts as the user (design section 3)."""
    worker = msgspec.structs.replace(part(Trigger.WORKER, "server:reports"), binding=SAME)
    for who, seen in (
        (caller(), {"context.is_creator"}),
        (msgspec.structs.replace(caller(), grant="g1"), {"context.by_grant"}),
        (msgspec.structs.replace(worker, grant="g1"), set[str]()),
        (worker, set[str]()),
    ):
        inputs = policies().decide(Action.GET, who, about=TASK, binding=SAME).inputs
        assert {"context.is_creator", "context.by_grant"} & inputs.keys() == seen


@pytest.mark.requirement("A7")
def test_only_the_outermost_actor_counts() -> None:
    """RFC 8693 section 4.1: the inner ones are history."""
    actors = tuple(Actor(sub=sub, iss="https://id.example", level=Level.VERIFIED) for sub in ("agent", "earlier"))
    delegated = msgspec.structs.replace(caller(), actors=actors)
    no_agents = '@id("no-agents") forbid (principal is User, action, resource) when { principal.actor_sub == "agent" };'
    assert policies(no_agents).decide(Action.GET, delegated, about=TASK, binding=SAME).reason == "no-agents"
    inner = msgspec.structs.replace(delegated, actors=actors[::-1])
    assert policies(no_agents).decide(Action.GET, inner, about=TASK, binding=SAME).effect == "allow"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("k5xm2ahz", ""),
        ("", ""),
    ],
)
def test_addresses_are_seen_in_the_form_that_cedar_reads(text: str, seen: str) -> None:
    """Cedar takes neither zones nor IPv4 in IPv6; a pseudonym is no address."""
    assert address(text) == seen
    who = msgspec.structs.replace(
        caller(), request=Request(method="tasks/get", address=text, address_level=Level.ASSERTED)
    )
    assert policies().decide(Action.GET, who, about=TASK, binding=SAME).effect == "allow"


def test_the_order_of_a_set_makes_no_other_input() -> None:
    """`scope` is a set (RFC 8693 section 4.2)."""
    some = policies()
    one, other = caller(scope=("a", "b", "a")), caller(scope=("b", "a"))
    assert some.decide(Action.GET, one, about=TASK, binding=SAME) is some.decide(
        Action.GET, other, about=TASK, binding=SAME
    )


def test_the_schema_and_the_code_name_the_same_attributes_and_actions() -> None:
    """What a policy may name is what it is given."""
    schema = str(cedarpy.Schema.from_str(policy.schema()))
    entities = re.findall(r"^entity (\w+) = \{(.*?)\};", schema, re.DOTALL | re.MULTILINE)
    kinds = {"String": "", "Set<String>": (), "Long": 0, "Bool": False}
    shapes = {
        name: {attribute: kinds[kind] for attribute, kind in re.findall(r"(\w+): ([\w<>]+)", body)}
        for name, body in entities
    }
    assert shapes == SHAPES
    step = re.search(r"^type Step = \{(.*?)\};", schema, re.DOTALL | re.MULTILINE)
    assert step
    assert dict(re.findall(r"(\w+\??): (\w+)", step[1])) == {
        "is_creator": "Bool",
        "by_grant": "Bool",
        "server": "String",
        "address?": "ipaddr",
    }
    assert set(CONTEXT) == {"is_creator", "by_grant", "server"}
    assert set(re.findall(r'^action "?(\w+)"?', schema, re.MULTILINE)) == set(Action)


def test_inputs_of_another_version_are_filled_up() -> None:
    """Design section 5: fields are added; an entry of before has none of the new ones, and may have others."""
    recorded = PolicyDecision(
        effect="allow",
        reason="x",
        inputs={
            "principal.type": "Operator",
            "principal.later": "y",
            "resource.type": "Trail",
            "principal.rights": ("read",),
        },
    )
    assert explain(recorded, Action.READ, policy.shipped()).reason == "operators-read"
