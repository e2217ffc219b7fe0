"""What the trail must say afterwards, read from the timelines. Pure.

check_attacked(checks, timeline, attackers)
"""

from collections.abc import Sequence

import msgspec

from tasktrail.demo.checks import Checks
from tasktrail.projections.audit.timeline import Step, StepKind, Timeline

METHODS = ("tasks/get", "tasks/update", "tasks/cancel")
"""What an attacker tries."""

_TWO_PARTS = (
    "TaskCreated",
    "InputRequested",
    "InputRequested",
    "InputResponded",
    "InputResponded",
    "TaskResumed",
    "TaskCompleted",
)
_REASON = "other-identity-context"


class Attacker(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who tried: who they are, and in what they differ from the owner."""

    name: str
    iss: str
    differs: tuple[str, ...]


def check_attacked(checks: Checks, timeline: Timeline, attackers: Sequence[Attacker]) -> None:
    """Each attempt is there, with who it was and the true reason the wire did not tell."""
    denials = [step for step in timeline.steps if step.kind is StepKind.DENIAL]
    for attacker in attackers:
        seen = {method: _attempts(denials, attacker, method) for method in METHODS}
        checks.hold(
            f"the attacked task's timeline names {attacker.name}'s three attempts and the true reason",
            all(seen.values()),
            seen=f"{seen} of {len(denials)} denials",
        )


def _attempts(denials: Sequence[Step], attacker: Attacker, method: str) -> int:
    return sum(
        step.count
        for step in denials
        if step.who is not None
        and (step.who.iss, step.who.sub) == (attacker.iss, attacker.name)
        and step.what.startswith(method)
        and _REASON in step.reasons
        and step.binding is not None
        and step.binding.differs == attacker.differs
    )


def check_two_parts(checks: Checks, timeline: Timeline, who: str) -> None:
    """Asked twice, answered twice, by whom, at which level."""
    types = tuple(step.type for step in timeline.steps if step.type in _TWO_PARTS)
    checks.hold("the timeline tells the two-part answer step by step", types == _TWO_PARTS, seen=types)
    answers = [step for step in timeline.steps if step.type == "InputResponded"]
    by = {(step.who.sub, step.who.level) for step in answers if step.who is not None}
    checks.hold(
        "each answer says who gave it, on the MCP server's word (asserted)",
        by == {(who, "asserted")},
        seen=by,
    )


def check_ended(checks: Checks, cancelled: Timeline, expired: Timeline) -> None:
    """Who stopped the stopped ones."""
    asked = _by(cancelled, "CancelRequested") + _by(cancelled, "TaskCancelled")
    checks.hold(
        "the cancellation was asked for by a caller, and done by the worker", asked == ["caller", "worker"], seen=asked
    )
    ended = _by(expired, "TaskCancelled") + _by(expired, "TaskExpired")
    checks.hold("the expiry is the timer's own act, not its owner's", ended == ["timer", "timer"], seen=ended)


def _by(timeline: Timeline, kind: str) -> list[str]:
    return [step.who.trigger for step in timeline.steps if step.type == kind and step.who is not None]


def check_all(checks: Checks, timelines: Sequence[Timeline]) -> None:
    """What holds of every step of every task."""
    steps = [step for timeline in timelines for step in timeline.steps]
    silent = [step.type for step in steps if step.who is None or step.rule is None]
    checks.hold(
        "every step of every task says who caused it and which rule decided", bool(steps) and not silent, seen=silent
    )
    levels = {step.who.level for step in steps if step.who is not None and step.who.trigger == "caller"}
    checks.hold("nobody's word counts for more than it is: callers are `asserted`", levels == {"asserted"}, seen=levels)
    gaps = [gap.what for timeline in timelines for gap in timeline.gaps]
    checks.hold("no timeline has a gap", not gaps, seen=gaps)
