"""The tree of errors: the one in the docstring is the one in the code. Source: style 8, promise 4."""

import re

import pytest

from tasktrail.events import errors
from tasktrail.events.errors import NOT_FOUND_TEXT, CommandRefusedError, TaskNotFound, TasktrailError

ROW = re.compile(r"^[ │├└─]*(\w+) +(-?\d+) +(\d{3}) +(yes|no)(?: +(\w+))?$")


def drawn() -> dict[str, tuple[int, int, bool, str]]:
    """The rows of the drawing, by class."""
    found = (ROW.match(line) for line in (errors.__doc__ or "").splitlines())
    return {m[1]: (int(m[2]), int(m[3]), m[4] == "yes", m[5] or "nothing") for m in found if m}


def family(base: type[TasktrailError]) -> set[type[TasktrailError]]:
    """Those of this module that stand under it."""
    below = {kind for kind in base.__subclasses__() if kind.__module__ == errors.__name__}
    return below.union(*map(family, below))


def test_the_drawing_is_the_code() -> None:
    """Each error with its code on each surface, whether it may be sent again, and what was written."""
    coded = {
        kind.__name__: (kind.code, kind.http_status, kind.retriable, kind.written) for kind in family(TasktrailError)
    }
    assert drawn() == coded


def test_each_reason_is_one_stable_word() -> None:
    """Adapters tell errors apart by it."""
    reasons = {kind: kind.reason for kind in family(TasktrailError)}
    assert len(set(reasons.values())) == len(reasons), reasons
    assert all(re.fullmatch("[a-z_]+", reason) for reason in reasons.values())


@pytest.mark.requirement("A4")
def test_a_handle_that_opens_nothing_has_one_text() -> None:
    """Promise 4: the same bytes for unknown, foreign, expired and malformed."""
    assert TaskNotFound().message == NOT_FOUND_TEXT == str(TaskNotFound())
    with pytest.raises(TypeError):
        TaskNotFound("why")  # type: ignore[call-arg]  # there is no room for a reason


def test_an_error_without_a_text_says_its_reason() -> None:
    """A caller always gets a text."""
    assert errors.Unavailable().message == "unavailable"
    assert CommandRefusedError("CompleteTask", "failed", "terminal").message == (
        "CompleteTask refused: the task is failed (terminal); nothing changed, the refusal is on record"
    )
