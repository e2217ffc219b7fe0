"""What was played, what has to hold, whether it did, and what was seen when it did not.

Guarantees: nothing is dropped: every expectation is in the list once, in the order it was looked at.

    checks = Checks()
    checks.hold("a cancelled task is `cancelled`", task.status == "cancelled", seen=task.status)
"""

import secrets

import msgspec


class Expectation(msgspec.Struct, frozen=True):
    """One of them: `what` is a sentence, `seen` what was there instead, for people."""

    what: str
    held: bool
    seen: str = ""


class Checks:
    """Expectations as they are looked at."""

    def __init__(self) -> None:
        self.expectations: list[Expectation] = []

    @property
    def held(self) -> bool:
        """Whether there were any and all of them held."""
        return bool(self.expectations) and all(one.held for one in self.expectations)

    def hold(self, what: str, held: bool, *, seen: object = "") -> None:  # noqa: FBT001 - reads as the sentence it is
        """Note whether `what` held."""
        self.expectations.append(Expectation(what, held, "" if held else str(seen)))


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario that was played: its task's id and last status, and one line for people."""

    scenario: str
    task_id: str
    status: str
    line: str


class Record:
    """One run. `refs`: task references by scenario; `tokens`: bearer tokens by name.

    `secret` is a text that is in every argument, answer, result, message and error, and must be found nowhere.
    """

    def __init__(self) -> None:
        self.checks = Checks()
        self.played: list[Played] = []
        self.refs: dict[str, str] = {}
        self.tokens: dict[str, str] = {}
        self.secret = f"canary-{secrets.token_hex(12)}"

    @property
    def ids(self) -> dict[str, str]:
        """Task ids by scenario, of those that became a task."""
        return {played.scenario: played.task_id for played in self.played if played.task_id}
