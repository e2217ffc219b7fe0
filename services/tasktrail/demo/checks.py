"""What has to hold, whether it did, and what was seen when it did not.

Guarantees: nothing is dropped: every expectation is in the list once, in the order it was looked at.

    checks = Checks()
    checks.hold("a cancelled task stays cancelled", task.status == "cancelled", seen=task.status)
"""

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

    def hold(self, what: str, held: bool, *, seen: object = "") -> bool:  # noqa: FBT001 - reads as the sentence it is
        """Note whether `what` held, and return it."""
        self.expectations.append(Expectation(what, held, "" if held else str(seen)))
        return held
