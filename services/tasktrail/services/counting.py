"""How many of each are under way.

Guarantees: what has begun counts until its block ends, however it ends; whoever has nothing under way takes no memory.
Pure; whether there may be one more is the caller's decision, before the block.

    waiting = Counting[str]()
    if waiting.of(server) < WAITING_MAX:
        with waiting.one(server): …
"""

from collections import Counter
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Counting(Generic[T]):
    """Counts by whose they are."""

    def __init__(self) -> None:
        self._of: Counter[T] = Counter()

    def of(self, whose: T) -> int:
        """How many of one are under way."""
        return self._of[whose]

    def total(self) -> int:
        """How many are, of all."""
        return self._of.total()

    @contextmanager
    def one(self, whose: T) -> Generator[None]:
        """One more, while the block runs."""
        self._of[whose] += 1
        try:
            yield
        finally:
            self._of[whose] -= 1
            if not self._of[whose]:
                del self._of[whose]
