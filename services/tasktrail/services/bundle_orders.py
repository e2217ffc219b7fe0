"""What operators order when they hand out evidence: the document of HTTP and of the command line. No framework here.

Guarantees: an order says why, and exactly one scope; unknown members are refused.

    BundleOrder(kind="task", tasks=(ref,), reason="asked for by the court", case_id="C-7")
"""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from tasktrail.events.errors import InvalidRequest
from tasktrail.services.orders import TASKS_MAX, Order, Task, Text

SHA256_HEADER, ENTRY_HEADER = "Tasktrail-Bundle-Sha256", "Tasktrail-Entry"
"""Of an answer over HTTP: the bundle's hex SHA-256, and the id of the entry that says it was handed out."""
COUNT_HEADER, SIZE_HEADER = "Tasktrail-Entries", "Tasktrail-Tree-Size"
MEDIA_TYPE = "application/x-tar"
HOLDING_MAX = 64
_SEQUENCE_MAX = 2**53 - 1

Sequence = Annotated[int, msgspec.Meta(ge=1, le=_SEQUENCE_MAX)]

_NEEDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "task": (frozenset({"tasks"}), frozenset()),
    "principal": (frozenset({"sub"}), frozenset({"iss", "client_id", "tenant"})),
    "time": (frozenset({"since", "until"}), frozenset()),
    "sequence": (frozenset({"first", "last"}), frozenset()),
    "query": (frozenset({"query"}), frozenset({"parameters"})),
}


class BundleOrder(Order, frozen=True, kw_only=True):
    """Which part of the trail to prove.

    `kind` names the members that say it: task: `tasks`. principal: `sub`, and `iss`, `client_id`, `tenant` to limit it.
    time: `since`, inclusive, and `until`, exclusive. sequence: `first` and `last`, both inclusive. query: a named
    `query` with its `parameters`. `holding`: sizes of checkpoints that whoever gets the bundle has, to be shown that
    the log only grew since.
    """

    kind: Literal["task", "principal", "time", "sequence", "query"]
    tasks: Annotated[tuple[Task, ...], msgspec.Meta(max_length=TASKS_MAX)] = ()
    tenant: Text = ""
    iss: Text = ""
    sub: Text = ""
    client_id: Text = ""
    since: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    until: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    first: Sequence | None = None
    last: Sequence | None = None
    query: Annotated[str, msgspec.Meta(max_length=64)] = ""
    parameters: Annotated[dict[str, Text], msgspec.Meta(max_length=32)] = {}
    holding: Annotated[tuple[Sequence, ...], msgspec.Meta(max_length=HOLDING_MAX)] = ()

    def require_scope(self) -> None:
        """See that it says one scope, and that scope wholly.

        Raises:
            InvalidRequest: it does not; the message says what it takes.
        """
        needed, taken = _NEEDS[self.kind]
        given = {name for _, (more, less) in _NEEDS.items() for name in more | less if getattr(self, name)}
        if not needed <= given <= needed | taken:
            more = f", and takes {', '.join(sorted(taken))}" if taken else ""
            message = (
                f"a bundle of kind {self.kind} needs {', '.join(sorted(needed))}{more}; given: "
                f"{', '.join(sorted(given)) or 'none'}"
            )
            raise InvalidRequest(message)
        if self.first and self.last and self.last < self.first:
            message = f"the last sequence, {self.last}, is before the first, {self.first}"
            raise InvalidRequest(message)
        if self.since and self.until and self.until <= self.since:
            message = "until is not after since"
            raise InvalidRequest(message)
