"""The built-in rules and the decisions they leave. Source: design section 6 (`decision`)."""

import itertools
import re

import pytest

from tasktrail.events.authority import Binding
from tasktrail.services.access.rules import POLICY_SHA256, VERSION, Rule, decision
from tasktrail.testing.scenario import ANA

ALLOWING = {
    Rule.SERVER_RUNS_TASK,
    Rule.TIME_IS_UP,
    Rule.LEASE_OVER,
    Rule.RETENTION_OVER,
    Rule.SERVICE_ITSELF,
    Rule.REPLACES_UNREADABLE,
}


@pytest.mark.requirement("A1")
@pytest.mark.parametrize("rule", list(Rule))
def test_a_decision_names_its_rule_and_what_it_does(rule: Rule) -> None:
    """Effect, reason code, policy version and digest, input digest."""
    made = decision(rule, "get", ANA, "more")
    assert (made.effect, made.reason) == ("allow" if rule in ALLOWING else "deny", rule.value)
    assert (made.policy_version, made.policy_sha256) == (VERSION, POLICY_SHA256)
    assert re.fullmatch("[0-9a-f]{64}", made.policy_sha256)
    assert re.fullmatch("[0-9a-f]{64}", made.input_sha256)
    assert re.fullmatch("[a-z-]+", rule.value)


@pytest.mark.requirement("A1")
def test_the_input_digest_is_of_the_members_never_of_their_joined_text() -> None:
    """Two decisions have one digest only when everything they were computed from is equal."""
    bindings = [
        ANA,
        Binding(tenant="acme", iss="a", sub="b", client_id=""),
        Binding(tenant="acme", iss="", sub="ab", client_id=""),
        Binding(tenant="acme", iss="a", sub="", client_id="b"),
    ]
    inputs = [(), ("x",), ("x", "y"), ("xy",), *((one,) for one in bindings), (ANA, ANA)]
    made = [decision(Rule.TIME_IS_UP, action, *each) for action, each in itertools.product(("get", "update"), inputs)]
    assert len({one.input_sha256 for one in made}) == len(made)
    assert decision(Rule.EXPIRED, "get", ANA).input_sha256 == decision(Rule.TIME_IS_UP, "get", ANA).input_sha256
