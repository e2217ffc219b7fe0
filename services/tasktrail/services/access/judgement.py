"""How a caller compares with the creator of a task, and why it is turned away if it is. Pure.

Guarantees: a handle opens its task for the identity context that made it, or by a grant that is on its trail, and for
nobody else; what a policy says comes afterwards and can only deny more. The first reason that holds is the one
recorded; the caller is told none of them.

    judged(handle, state.task, mine, refused=None, right="get", now_ms=now)
"""

from typing import NamedTuple

from tasktrail.events.authority import Binding, BindingCheck, BindingMode, differences
from tasktrail.events.subjects import is_task_id
from tasktrail.events.task import Grant, Task
from tasktrail.services.access.rules import Rule


class Judgement(NamedTuple):
    """What was compared and where it differed, the grant that opens the task, and the rule that denies it."""

    check: BindingCheck | None
    grant: str
    rule: Rule | None


def judged(  # noqa: PLR0913 - what decides
    handle: str, task: Task | None, mine: Binding, *, refused: Rule | None, right: str, now_ms: int
) -> Judgement:
    """Whether this caller may use the task for `right` (get, update, cancel, subscribe)."""
    if task is None:
        return Judgement(None, "", refused or (Rule.UNKNOWN if is_task_id(handle) else Rule.MALFORMED))
    check = BindingCheck(mode=task.binding_mode, differs=differences(task.binding, mine, task.binding_mode))
    grant = "" if check.matches else _grant(task, mine, right, now_ms)
    return Judgement(check, grant, refused or _rule(task, check, grant, now_ms))


def _rule(task: Task, check: BindingCheck, grant: str, now_ms: int) -> Rule | None:
    if check.differs and not grant:
        return Rule.OTHER_CONTEXT
    if task.revoked_at_ms is not None:
        return Rule.HANDLE_REVOKED
    if task.expired_at_ms is not None or now_ms >= task.expires_at_ms:
        return Rule.EXPIRED
    return None


def _grant(task: Task, mine: Binding, right: str, now_ms: int) -> str:
    """The id of a grant that opens the task to this caller for `right`; empty without."""
    for name, grant in task.grants.items():
        lasts = not grant.until_ms or now_ms < grant.until_ms
        if right in grant.rights and lasts and _is_to(grant, mine):
            return name
    return ""


def _is_to(grant: Grant, mine: Binding) -> bool:
    """Whether a grant is to this caller. One to a tenant is to everybody of whom more is known than the tenant."""
    if grant.mode is BindingMode.TENANT:
        return grant.to.tenant == mine.tenant and bool(mine.iss or mine.sub or mine.client_id)
    return not differences(grant.to, mine, grant.mode)
