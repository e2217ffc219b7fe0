"""docs/policy.md: every example is valid and decides as its sentence says. Source: style 13, the issue (Policy)."""

import re
from pathlib import Path

import msgspec
import pytest
from tests.services.access.steps import SAME, TASK, caller, making, part, policies

from tasktrail.events.authority import Authority, Level, PrincipalKind, Standing, Trigger
from tasktrail.events.task import Task
from tasktrail.services.access.policy import Action, Making

PAGE = (Path(__file__).parents[3] / "docs" / "policy.md").read_text(encoding="utf-8")
EXAMPLES: dict[str, str] = {
    name: text
    for text in re.findall(r"```cedar\n(.*?)```", PAGE, re.DOTALL)
    for name in re.findall(r'@id\("(.*?)"', text)
}
FORBIDDEN_HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
LAPSED = part(Trigger.WORKER, "server:reports", standing=Standing.LAPSED)
DESK = part(Trigger.RESPONDER, "acme-desk")
ROBOT = PrincipalKind.MACHINE


def inside(who: Authority, address: str = "10.1.2.3") -> Authority:
    assert who.request is not None
    request = msgspec.structs.replace(who.request, address=address, address_level=Level.ASSERTED)
    return msgspec.structs.replace(who, request=request)


TRIED: list[tuple[str, Action, Authority, Task | Making | None, str]] = [
    ("no-export-v1-tasks", Action.CREATE, caller(), making(tool_sha256=FORBIDDEN_HASH), "deny"),
    ("no-export-v1-tasks", Action.CREATE, caller(), making(tool_sha256="0" * 64), "allow"),
    ("creating-needs-scope", Action.CREATE, caller(scope=("tasks:read",)), making(), "deny"),
    ("creating-needs-scope", Action.CREATE, caller(scope=("tasks:read", "tasks:create")), making(), "allow"),
    ("exports-need-strong-login", Action.CREATE, caller(scope=("tasks:create",)), making(tool="export"), "deny"),
    (
        "exports-need-strong-login",
        Action.CREATE,
        caller(scope=("tasks:create",), acr="urn:example:strong"),
        making(tool="export"),
        "allow",
    ),
    ("answers-need-mfa", Action.UPDATE, caller(amr=("pwd",)), TASK, "deny"),
    ("answers-need-mfa", Action.UPDATE, caller(amr=("pwd", "mfa")), TASK, "allow"),
    ("answers-need-mfa", Action.UPDATE, caller(ROBOT, amr=("mfa",)), TASK, "deny"),
    ("answers-need-mfa", Action.GET, caller(amr=("pwd",)), TASK, "allow"),
    ("lapsed-work-stops", Action.CONTINUE, LAPSED, TASK, "deny"),
    ("lapsed-work-waits", Action.PAUSE, LAPSED, TASK, "allow"),
    ("acme-desk-sees-acme", Action.READ, DESK, TASK, "allow"),
    ("acme-desk-sees-acme", Action.READ, DESK, None, "allow"),
    ("acme-desk-sees-acme", Action.READ, msgspec.structs.replace(DESK, tenant="other"), None, "deny"),
    ("acme-desk-sees-acme", Action.READ, part(Trigger.RESPONDER, "chief", tenant="other"), None, "allow"),
    ("machines-from-inside", Action.CREATE, inside(caller(ROBOT)), making(), "allow"),
    ("machines-from-inside", Action.CREATE, inside(caller(ROBOT), "192.0.2.1"), making(), "deny"),
    ("machines-from-inside", Action.CREATE, caller(ROBOT), making(), "deny"),
    ("machines-from-inside", Action.CREATE, inside(caller(ROBOT, level=Level.ASSERTED)), making(), "deny"),
    ("machines-from-inside", Action.CREATE, caller(), making(), "allow"),
]


@pytest.mark.requirement("A10", "P3", "P5")
@pytest.mark.parametrize(("example", "action", "who", "about", "effect"), TRIED)
def test_each_example_of_the_page_decides_as_it_says(
    example: str, action: Action, who: Authority, about: Task | Making | None, effect: str
) -> None:
    """The page's own sentences."""
    decided = policies(EXAMPLES[example]).decide(action, who, about=about, binding=SAME, rights=("read",))
    assert decided.effect == effect
    if effect == "deny":
        assert example in decided.policies


def test_every_example_was_tried() -> None:
    """Style 13: docs are run."""
    assert {tried[0] for tried in TRIED} == set(EXAMPLES)


def test_the_page_names_every_action() -> None:
    """Style 13."""
    assert set(re.findall(r"`(\w+)`", PAGE.partition("## How")[0])) >= set(Action)
