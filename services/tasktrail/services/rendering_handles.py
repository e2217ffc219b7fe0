"""What operators are told, for a terminal: handles, revocations and decisions.

Guarantees: as `rendering.py`: text from strangers is made printable, and nothing is told by colour alone.

    show(console, HandlesView(handles, now=datetime.now(UTC)))
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.text import Text

from tasktrail.events.authority import PolicyDecision
from tasktrail.projections.audit.sentences import printable
from tasktrail.services.orders import Explained, HandleShown, Owner, RevocationShown, RightShown
from tasktrail.services.wording import issuer, lasted, moment

_QUIET = "dim"
_INDENT = (0, 0, 0, 2)


class HandlesView:
    """Handles, some lines each: which, how it stands and for how long yet, whose, and who else may use it."""

    def __init__(self, handles: Sequence[HandleShown], *, now: datetime) -> None:
        self._handles, self._now = handles, now

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One after the other."""
        for one in self._handles:
            yield Text(f"{printable(one.task_ref)}  {one.status}, {self._left(one)}", style="bold")
            yield Padding(Text(f"{printable(one.tool)} on {printable(one.server)}, {_owner(one.owner)}"), _INDENT)
            for line in self._facts(one):
                yield Padding(Text(line, style=_QUIET), _INDENT)

    def _left(self, one: HandleShown) -> str:
        ends = moment(one.expires_at)
        if one.revoked:
            return "handle revoked, its work not over yet"
        return f"{lasted(ends - self._now, precise=False)} left" if ends and ends > self._now else "time is up"

    def _facts(self, one: HandleShown) -> Iterator[str]:
        lapsed = "AUTHORITY " if one.lapsed else "authority "
        until = f" since {one.authority_until}" if one.lapsed and one.standing == "lapsed" else ""
        used = f", last used {one.accessed_at}" if one.accessed_at else ""
        age = lasted(timedelta(milliseconds=one.age_ms), precise=False)
        yield f"{lapsed}{one.standing}{until}; created {age} ago{used}; {one.entropy} handle ({one.entropy_bits} bits)"
        for right in one.rights:
            if right.grant or right.mode != "exact":
                yield _right(right)


def _right(right: RightShown) -> str:
    until = f" until {right.until}" if right.until else ""
    what = f"granted ({right.grant})" if right.grant else "open"
    return f"{what} to {_owner(right.who)}, compared by {right.mode}: {', '.join(right.rights)}{until}"


def _owner(one: Owner) -> str:
    name = printable(one.sub) if one.sub else "anyone" if one.client_id else "anonymous"
    through = f" through {printable(one.client_id)}" if one.client_id else ""
    return f"{name}{f' at {issuer(one.iss)}' if one.iss else ''}{through}, tenant {printable(one.tenant)}"


class RevocationsView:
    """Revocations that hold, some lines each: which, whom, and why."""

    def __init__(self, revocations: Sequence[RevocationShown]) -> None:
        self._revocations = revocations

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """In the order in which they were recorded."""
        for one in self._revocations:
            members = ("tenant", "iss", "sub", "client_id", "token_hash", "jti")
            named = [f"{name} {printable(str(getattr(one, name)))}" for name in members if getattr(one, name)]
            count = "1 handle" if one.handles == 1 else f"{one.handles} handles"
            yield Text(f"{printable(one.id)}  {printable(one.kind)}, {count}", style="bold")
            yield Padding(Text(", ".join(named)), _INDENT)
            yield Padding(Text(printable(one.reason), style=_QUIET), _INDENT)


class ExplainedView:
    """A decision as it was recorded and as it comes out again, and what it is made from."""

    def __init__(self, explained: Explained) -> None:
        self._explained = explained

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Recorded, again, inputs."""
        one = self._explained
        yield Text(f"recorded  {_decision(one.recorded)}")
        yield Text(f"again     {_decision(one.again)}" + ("" if one.same else "  ANOTHER DECISION"), style="bold")
        for name, value in sorted(one.recorded.inputs.items()):
            text = ", ".join(value) if isinstance(value, tuple) else str(value)
            yield Padding(Text(f"{printable(name)} = {printable(text)}", style=_QUIET), _INDENT)


def _decision(one: PolicyDecision) -> str:
    version = printable(one.policy_version) or "another version"
    return f"{printable(one.effect)} by {printable(one.reason)} of policy {version} ({one.policy_sha256[:12]})"
