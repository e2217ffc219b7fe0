"""A policy's text before it decides: what is wrong with it, by line, and the bounds. Source: the issue (Policy), P5."""

import re

import pytest
from tests.services.access.steps import caller, making, policies

from tasktrail.services.access import policy
from tasktrail.services.access.policy import Action, InvalidPolicy, check

ALL = '@id("all") permit (principal, action, resource);'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the text holds no policy"),
        ("// only a comment", "the text holds no policy"),
        ("permit (principal, action, resource);", r"line 1: @id is missing"),
        (f"{ALL}\n\n{ALL}", r"line 3: @id\('all'\) is the policy's in line 1 already"),
        ('@id("Über") permit (principal, action, resource);', "line 1: .* lower-case letters"),
        ('@id("policy-error") permit (principal, action, resource);', "line 1: .* made elsewhere"),
        ('@id("no-such-task") permit (principal, action, resource);', "line 1: .* made elsewhere"),
        (f'{ALL}\n@id("t") permit (principal == ?principal, action, resource);', "line 2: a template decides nothing"),
        (f'{ALL}\n@id("u") permit (principal == User::"ana", action, resource);', 'line 2: User::"ana" is never met'),
        (f'{ALL}\n@id("u") permit (principal, action, resource in Task::"x");', 'line 2: Task::"x" is never met'),
        (
            f'{ALL}\n@id("u") forbid (principal, action, resource) when {{ [User::"a"].contains(principal) }};',
            "line 2: ",
        ),
        (f'{ALL}\n@id("a")\npermit (principal, action == Action::"run", resource);', "line 2: unrecognized action"),
        (
            f'{ALL}\n@id("a") permit (principal is McpServer, action == Action::"getTask", resource);',
            "line 2: .* applicable",
        ),
        (
            f'{ALL}\n@id("a") permit (principal, action, resource) when {{ context.address == ip("::1") }};',
            "line 2: .* optional attribute `address`",
        ),
        (f"{ALL}\n// ; no end\n\n@id('a') permit", "line 4: in the policy that begins here: "),
        (f'{ALL}\n@id("a;\n") permit (;', "line 2: in the policy that begins here: unexpected token `;`"),
        ("\ud800", "not UTF-8"),
        ("x" * 70_000, "70000 bytes; the maximum is 65536"),
        (f"{ALL}\n{'(' * 60_000}", "line 2: this policy nests 60000 deep"),
        (f"// a comment ends with its line\r{'(' * 60_000}", "nests 60000 deep"),
        (f'{ALL} "(" {"(;" * 20_000}', "nests 33 deep"),
        (f"{ALL}\n{'(()' * 10_000}", "line 2: this policy nests 10001 deep"),
        (f"{ALL}\n{')' * 50}{'(' * 40}", "line 2: this policy nests 40 deep"),
        (f"{ALL}\n{'if true then ' * 4_000}", "line 2: this policy nests 4000 deep"),
        (f"{ALL}\n{'1+' * 20_000}1", "line 2: this policy has 20000 words and signs"),
    ],
)
def test_what_is_wrong_with_a_text_is_told_by_its_line(text: str, problem: str) -> None:
    """Issue: validated before it is activated. Nesting and chains without a bound would end the process."""
    problems = check(text)
    assert any(re.search(problem, one) for one in problems), problems
    with pytest.raises(InvalidPolicy):
        policies().activate(text, "2")


def test_the_lines_of_many_policies_are_told_apart() -> None:
    """Cedar numbers policies and orders the numbers as text: policy10 before policy2."""
    wrong = '@id("p{}") permit (principal, action, resource) when {{ principal.a{} }};'
    found = check("\n".join(wrong.format(number, number) for number in range(1, 24)))
    said = [re.sub(r"line (\d+): attribute `a(\d+)`.*", r"\1 \2", one) for one in found]
    assert said == [*(f"{number} {number}" for number in range(1, 21)), "and 3 more"]


@pytest.mark.parametrize(
    ("policy", "begins"),
    [
        ("permit(principal, action, resource);\n", "line 20: @id is missing"),
        (
            '@id("a") permit(principal, action, resource) when { ' + "1+" * 1_001 + "1 };\n",
            "line 20: this policy has",
        ),
        ('@id("a") permit(\n;\n', "line 39: in the policy that begins here"),
    ],
)
def test_of_many_problems_the_first_are_told_and_how_many_more_there_are(policy: str, begins: str) -> None:
    """An answer, an entry and a terminal have room for some; whoever mends these sees the rest."""
    found = check(policy * 30)
    assert len(found) == 21
    assert found[19].startswith(begins)
    assert re.fullmatch(r"and \d+ more", found[20])


def test_as_many_conditions_as_the_bounds_admit_are_read_and_decided() -> None:
    """The bounds leave room: a list of 900 tool hashes, and nesting of 30."""
    hashes = ", ".join(f'"{number:064x}"' for number in range(900))
    listed = (
        f'@id("listed") forbid (principal, action, resource is Tool) when {{ [{hashes}].contains(resource.tool) }};'
    )
    nested = f'@id("nested") forbid (principal, action, resource) when {{ {"(" * 30}1 == 2{")" * 30} }};'
    assert policies(listed, nested).decide(Action.CREATE, caller(), about=making()).effect == "allow"


@pytest.mark.requirement("P5")
def test_the_shipped_policy_is_valid_and_names_why_in_a_comment() -> None:
    """Issue: a shipped default set and schema."""
    assert check(policy.shipped()) == []
    assert all(" // " in line for line in policy.shipped().splitlines() if line.startswith("@id"))
    assert re.fullmatch("[0-9a-f]{64}", policy.schema_sha256())
