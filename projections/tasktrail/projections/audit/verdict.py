"""One question of a task's history: was it created, queried and closed in one authorised context, nothing left? Pure.

Guarantees: clean only when nothing speaks against it; what is wrong is told apart from what is merely not over yet;
each finding names the step that shows it first. What was only asserted or claimed is never taken for verified.

    judged(timeline).verdict  ->  "not clean"
"""

from enum import StrEnum
from ipaddress import IPv6Address, ip_address

import msgspec

from tasktrail.projections.audit.sentences import printable
from tasktrail.projections.audit.timeline import Finding, Gap, Step, StepKind, TaskShown, Timeline, Verdict, Who


class Code(StrEnum):
    """What a finding is."""

    OTHER_CONTEXT = "other_context"  # somebody else than the creator had access
    GRANTED = "granted"  # somebody else was given access
    DENIED = "denied"  # somebody else tried and was turned away
    UNDECIDED = "undecided"  # a caller's step without a decision that allowed it
    UNVERIFIED = "unverified"  # who called was only asserted or claimed
    INPUT_BY_OTHER_PRINCIPAL = "input_by_other_principal"  # answered by another subject than the creator
    INPUT_BY_OTHER_CLIENT = "input_by_other_client"
    INPUT_BY_OTHER_TOKEN = "input_by_other_token"  # noqa: S105 - the name of a finding, not a secret
    OTHER_ADDRESS = "other_address"  # one token was used from more than one address
    AUTHORITY_LAPSED = "authority_lapsed"  # the work went on while the creator's authority had lapsed
    AUTHORITY_REVOKED = "authority_revoked"
    STOPPED = "stopped"  # somebody else than the creator wanted it to stop
    HANDLE_REVOKED = "handle_revoked"
    DEFINITION_CHANGED = "definition_changed"  # the tool was defined otherwise while the task lived
    ABANDONED = "abandoned"  # nobody closed it, its time to live ended it
    CANCEL_UNCONFIRMED = "cancel_unconfirmed"  # nobody confirmed that the work stopped
    UNANSWERED = "unanswered"  # a request for input that was never answered
    STILL_LIVE = "still_live"
    CANCEL_PENDING = "cancel_pending"
    HANDLE_OPENS = "handle_opens"  # it has ended, and its handle still opens it
    NOT_SHREDDED = "not_shredded"  # its handle opens nothing, and its payloads can still be read with its key
    SECRET_IN_PAYLOAD = "secret_in_payload"  # noqa: S105 - the name of a finding, not a secret
    ANOMALY = "anomaly"
    UNKNOWN = "unknown"  # an event of a newer version: what it means is not known here
    GAP = "gap"
    INCOMPLETE = "incomplete"  # later steps were left out


CLEAN = "created, queried and closed in one authorised context, nothing reusable left"
_OPEN = "nothing is wrong, and not everything is over yet"
_NOT_CLEAN = f"it cannot be said that it was {CLEAN}"
_UNPROVED = frozenset({None, "asserted", "claimed"})
_UNSEEN = frozenset({None, "claimed"})
_SETTLED = frozenset({"completed", "failed", "cancelled"})
_TOLD = frozenset({StepKind.ACCESS, StepKind.MESSAGE, StepKind.TRANSITION, StepKind.REFUSAL})


def judged(timeline: Timeline) -> Verdict | None:
    """The verdict on a timeline; None when it has no task."""
    task = timeline.task
    if task is None:
        return None
    found = _Findings()
    case = _Case(task, found)
    for step in timeline.steps:
        case.hear(step)
    case.close()
    for gap in timeline.gaps:
        found.add(Code.GAP, _missing(gap), gap.stream_seq)
    if timeline.steps_omitted:
        last = timeline.steps[-1].stream_seq if timeline.steps else task.first_seq
        found.add(Code.INCOMPLETE, "later steps were left out and not looked at", last, count=timeline.steps_omitted)
    findings = found.all()
    if not findings:
        return Verdict(verdict="clean", clean=True, what=CLEAN, findings=())
    is_open = all(one.open for one in findings)
    what = _OPEN if is_open else _NOT_CLEAN
    return Verdict(verdict="open" if is_open else "not clean", clean=False, what=what, findings=findings)


class _Findings:
    """One finding for each code: the first step that shows it, and how many do. What is wrong comes first."""

    def __init__(self) -> None:
        self._found: dict[Code, Finding] = {}
        self._whose: dict[Code, set[str]] = {}

    def add(  # noqa: PLR0913 - what a finding is made of
        self, code: Code, what: str, stream_seq: int, *, count: int = 1, of: str = "", is_open: bool = False
    ) -> None:
        """One more step that shows `code`; `of`: by whom, told after `what`."""
        self._whose.setdefault(code, set()).add(of)
        what = f"{what}: {of}" if of else what
        held = self._found.get(code)
        if held is not None:
            what, stream_seq, count = held.what, held.stream_seq, held.count + count
        self._found[code] = Finding(code=code.value, what=what, stream_seq=stream_seq, count=count, open=is_open)

    def all(self) -> tuple[Finding, ...]:
        told = (self._with_others(code, one) for code, one in self._found.items())
        return tuple(sorted(told, key=lambda one: one.open))

    def _with_others(self, code: Code, one: Finding) -> Finding:
        others = len(self._whose[code]) - 1
        more = f" and {others} other{'s' if others > 1 else ''}" if others else ""
        return msgspec.structs.replace(one, what=one.what + more)


class _Case:
    """One task, step by step."""

    def __init__(self, task: TaskShown, found: _Findings) -> None:
        self._task, self._found = task, found
        self._ended = task.status in _SETTLED
        self._outstanding: dict[str, Step] = {}
        self._places: dict[tuple[str, str], str] = {}

    def hear(self, step: Step) -> None:
        """One more step, in the stream's order."""
        if step.kind is StepKind.DENIAL:
            if not by_creator(self._task, step.who):
                who = _name(step.who)
                self._found.add(Code.DENIED, "turned away", step.stream_seq, count=step.count, of=who)
        elif step.kind is StepKind.ANOMALY:
            self._found.add(Code.ANOMALY, "a message was not accepted as an entry of this task", step.stream_seq)
        elif step.kind is StepKind.UNKNOWN:
            self._found.add(Code.UNKNOWN, "an event of a newer version, its meaning is not known here", step.stream_seq)
        elif step.kind in _TOLD and step.type != "TaskResumed" and step.who and step.who.trigger == "caller":
            self._called(step, step.who)
        self._came(step)
        self._worked(step)
        self._governed(step)
        self._asked(step)
        for payload in step.payloads:
            for kind in payload.secrets:
                what = f"what looks like a secret is in the {printable(payload.name)}"
                self._found.add(Code.SECRET_IN_PAYLOAD, what, step.stream_seq, of=printable(kind))

    def _called(self, step: Step, who: Who) -> None:
        """A caller's step."""
        if step.rule is None or step.rule.effect != "allow":
            what = f"no decision that allowed it: {step.what}"
            self._found.add(Code.UNDECIDED, what, step.stream_seq, count=step.count)
        if who.level in _UNPROVED:
            said = f"who called is only {printable(who.level)}" if who.level else "nothing says who called"
            self._found.add(Code.UNVERIFIED, said, step.stream_seq, count=step.count, of=_name(who))
        if step.type == "InputResponded":
            self._answered(step, who)
        elif not by_creator(self._task, who):
            how = f" by grant {printable(step.grant)}" if step.grant else ""
            what = f"another context had access{how}"
            self._found.add(Code.OTHER_CONTEXT, what, step.stream_seq, count=step.count, of=_name(who))

    def _answered(self, step: Step, who: Who) -> None:
        """An answer, which should come from whom the question was meant for."""
        creator, task = self._task.creator, self._task
        said, of = "the input was answered by another %s than the creator's", _name(who)
        iss, sub, client_id = _identity(who)
        if (iss, sub) != (creator.iss, creator.sub):
            self._found.add(Code.INPUT_BY_OTHER_PRINCIPAL, said % "principal", step.stream_seq, of=of)
        elif client_id != creator.client_id:
            self._found.add(Code.INPUT_BY_OTHER_CLIENT, said % "client", step.stream_seq, of=of)
        elif step.credential and (step.credential.token_hash, step.credential.jti) != (task.token_hash, task.jti):
            self._found.add(Code.INPUT_BY_OTHER_TOKEN, said % "token", step.stream_seq, of=of)

    def _came(self, step: Step) -> None:
        """From where a caller's token came, also one that was refused. What is only claimed says nothing."""
        credential, address = step.credential, step.address
        if step.who is None or step.who.trigger != "caller" or credential is None or address is None:
            return
        if credential.level in _UNSEEN or address.level in _UNSEEN:
            return
        names = {("hash", credential.token_hash or ""), (f"jti of {step.who.iss}", credential.jti or "")}
        came = {self._places.setdefault(name, address.address) for name in sorted(names) if name[1]}
        if first := next((one for one in sorted(came) if _place(one) != _place(address.address)), ""):
            what = f"a token that came from {printable(first)} came from another address"
            self._found.add(Code.OTHER_ADDRESS, what, step.stream_seq, count=step.count, of=printable(address.address))

    def _worked(self, step: Step) -> None:
        """What was done while the task was live, and the creator's authority over it did not stand."""
        if step.status_before in _SETTLED:
            return
        if step.standing == "lapsed":
            what = f"the creator's authority had lapsed: {step.what}"
            self._found.add(Code.AUTHORITY_LAPSED, what, step.stream_seq)
        elif step.standing == "revoked":
            what = f"the creator's authority was revoked: {step.what}"
            self._found.add(Code.AUTHORITY_REVOKED, what, step.stream_seq)

    def _governed(self, step: Step) -> None:
        """What others than the creator did about it, and how it ended."""
        match step.type:
            case "GrantGiven":
                self._found.add(Code.GRANTED, step.what, step.stream_seq)
            case "HandleRevoked":
                self._found.add(Code.HANDLE_REVOKED, step.what, step.stream_seq)
            case "ToolDriftSeen":
                self._found.add(Code.DEFINITION_CHANGED, step.what, step.stream_seq)
            case "CancelRequested" if step.reasons:
                self._found.add(Code.STOPPED, step.what, step.stream_seq)
            case "TaskCancelled" if "unconfirmed" in step.reasons:
                self._found.add(Code.CANCEL_UNCONFIRMED, step.what, step.stream_seq)
            case "TaskCancelled" if "ttl" in step.reasons and self._task.cancel_requested_at:
                what = "its time to live ended before anybody confirmed that the work stopped"
                self._found.add(Code.CANCEL_UNCONFIRMED, what, step.stream_seq)
            case "TaskCancelled" if "ttl" in step.reasons:
                self._found.add(Code.ABANDONED, "nobody closed it, its time to live ended it", step.stream_seq)
            case _:
                pass

    def _asked(self, step: Step) -> None:
        key = step.message.key if step.message else None
        if key is not None and step.type == "InputRequested":
            self._outstanding[key] = step
        elif key is not None and step.type == "InputResponded":
            self._outstanding.pop(key, None)

    def close(self) -> None:
        """What is left at the end."""
        task, last = self._task, self._task.last_seq
        for step in self._outstanding.values():
            what = f"never answered: {step.what}" if self._ended else f"not answered yet: {step.what}"
            self._found.add(Code.UNANSWERED, what, step.stream_seq, is_open=not self._ended)
        if not self._ended:
            self._found.add(Code.STILL_LIVE, f"it is still {printable(task.status)}", last, is_open=True)
            if task.cancel_requested_at:
                what = "cancellation is requested, and nobody has confirmed that the work stopped"
                self._found.add(Code.CANCEL_PENDING, what, last, is_open=True)
        elif not task.expired_at and not task.revoked_at:
            self._found.add(Code.HANDLE_OPENS, f"its handle opens it until {task.expires_at}", last, is_open=True)
        elif not task.shredded_at:
            why = "kept by a legal hold" if task.holds else "not destroyed yet"
            self._found.add(Code.NOT_SHREDDED, f"the key of its payloads is {why}", last, is_open=True)


def by_creator(task: TaskShown, who: Who | None) -> bool:
    """Whether a step's caller is the one who made the task: issuer, subject and client."""
    creator = task.creator
    return who is not None and _identity(who) == (creator.iss, creator.sub, creator.client_id)


def _identity(who: Who) -> tuple[str | None, str | None, str | None]:
    """Issuer, subject and client, as a binding has them: what is only claimed counts as absent."""
    known, client_known = who.level != "claimed", who.client_level != "claimed"
    return (
        (who.iss or None) if known else None,
        (who.sub or None) if known else None,
        (who.client_id or None) if client_known else None,
    )


def _place(address: str) -> str:
    """An address as one place has it: all of the loopback are one, and so are an IPv4 address and its form in IPv6."""
    try:
        found = ip_address(address)
    except ValueError:  # a pseudonym
        return address
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return "loopback" if (mapped or found).is_loopback else str(mapped or found)


def _name(who: Who | None) -> str:
    if who is None or not who.sub:
        return "an unknown caller"
    at = f" at {printable(who.iss)}" if who.iss else ""
    via = f" via {printable(who.client_id)}" if who.client_id else ""
    return f"{printable(who.sub)}{at}{via}"


def _missing(gap: Gap) -> str:
    return f"{gap.what} may be missing: {gap.cause}" if gap.source == "control" else gap.cause
