"""Steps to decide about: a task of `ANA`, and whoever does something to it."""

from typing import Any

import msgspec

from tasktrail.events.authority import (
    Authority,
    Binding,
    BindingCheck,
    BindingMode,
    Credential,
    Level,
    Method,
    Principal,
    PrincipalKind,
    Standing,
    Trigger,
    Verification,
)
from tasktrail.events.facts import TaskSupport
from tasktrail.events.task import Task, evolve
from tasktrail.services.access.policy import Making, Policies
from tasktrail.testing.scenario import ANA, NOW_MS, authority, created

TASK: Task = evolve(None, created())
SAME = BindingCheck(mode=BindingMode.EXACT)
OTHER = BindingCheck(mode=BindingMode.EXACT, differs=("sub",))


def policies(*more: str) -> Policies:
    """The shipped policy and `more`, five minutes after the task's creation."""
    made = Policies(now=lambda: NOW_MS + 5 * 60_000)
    if more:
        made.activate("\n".join((made.text, *more)), "test")
    return made


def caller(
    kind: PrincipalKind = PrincipalKind.USER,
    *,
    level: Level = Level.VERIFIED,
    who: Binding = ANA,
    **credential: Any,  # noqa: ANN401 - fields of `Credential`
) -> Authority:
    """A caller of an MCP server, with this in its credential."""
    said = authority(who, level=level)
    return msgspec.structs.replace(
        said,
        principal=Principal(iss=who.iss, sub=who.sub, kind=kind, level=level),
        credential=Credential(method=Method.JWT, verification=Verification.OK, level=level, **credential),
    )


def part(trigger: Trigger, name: str, tenant: str = "acme", standing: Standing | None = None) -> Authority:
    """An MCP server, a timer or an operator."""
    principal = Principal(iss="tasktrail", sub=name, kind=PrincipalKind.MACHINE, level=Level.VOUCHED)
    return Authority(trigger=trigger, tenant=tenant, principal=principal, standing=standing)


def making(**changes: Any) -> Making:  # noqa: ANN401 - fields of `Making`
    """The tool `report` of the server `reports`, about to run as a task of `acme`."""
    usual: dict[str, Any] = {"server": "reports", "tool": "report", "tenant": "acme"}
    return Making(**{**usual, "task_support": TaskSupport.OPTIONAL, **changes})
