"""The words in which a responder reads who did something, how we know, and when. Pure text, safe to print.

Guarantees: whatever comes from the trail passes `printable`; a level is said as it is recorded, never better; a caller
who calls itself a part of tasktrail is not shown as one.

    authority(step)
    "ana at id.example via desk · verified by tasktrail · jwt jti-7, until 15:16:40 · rule same-identity-context"
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from tasktrail.projections.audit.sentences import printable
from tasktrail.projections.audit.timeline import AddressShown, Step, Who

LEVELS: dict[str, str] = {
    "bound": "verified by tasktrail and bound to its sender",
    "verified": "verified by tasktrail",
    "vouched": "vouched for by tasktrail",
    "asserted": "asserted by the MCP server",
    "claimed": "only claimed",
}
_TRIGGERS: dict[str, str] = {
    "caller": "an unknown caller",
    "mcp_server": "the MCP server",
    "worker": "the worker",
    "timer": "tasktrail's timer",
    "operator": "an operator",
    "responder": "a responder",
}
STANDINGS: dict[str, str] = {
    "lapsed": "while the creator's authority had lapsed",
    "revoked": "while the creator's authority was revoked",
    "unknown": "while nothing said whether the creator's authority stood",
}
"""What a step of a worker, a timer or an operator adds when the creator's authority did not stand."""
_HASH_SHOWN = 12
_IDENTIFIER_MAX = 20
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400
_UNITS = (("d", _DAY_S, "h", _HOUR_S), ("h", _HOUR_S, "m", _MINUTE_S), ("m", _MINUTE_S, "s", 1))


def level(name: str | None) -> str:
    """A level of evidence in words."""
    return LEVELS.get(name or "", printable(name or "without any evidence"))


def moment(text: str | None) -> datetime | None:
    """An RFC 3339 time of the trail, None for none or for what is no time."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC) if text else None
    except (ValueError, OverflowError):
        return None


def day(text: str | None) -> str:
    """The date of a time, empty when there is none."""
    at = moment(text)
    return at.date().isoformat() if at else ""


def clock(text: str | None, *, millis: bool = True) -> str:
    """The time of day, in UTC."""
    at = moment(text)
    return at.time().isoformat(timespec="milliseconds" if millis else "seconds") if at else ""


def happened(step: Step) -> str | None:
    """When a step happened: a folded run, when it began, which may be before others that were recorded sooner."""
    return step.first or step.time


def without_count(step: Step) -> str:
    """The sentence of a folded run without how many it holds: that is shown beside it."""
    return step.what.replace(f" {step.count} times", "", 1) if step.count > 1 else step.what


def lasted(duration: timedelta, *, precise: bool = True) -> str:
    """A duration with as much precision as one reads: 0.12 s, 1 m 5 s, 2 h 3 m, 3 d 4 h."""
    seconds = abs(duration.total_seconds())
    if seconds < _MINUTE_S:
        return f"{seconds:.3f} s" if precise and seconds else f"{round(seconds, 1):g} s"
    whole = round(seconds)
    unit, size, part, below = next(one for one in _UNITS if whole >= one[1])
    rest = whole % size // below
    return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")


def since(text: str | None, start: datetime | None) -> str:
    """How long after `start`, signed."""
    at = moment(text)
    if at is None or start is None:
        return ""
    return ("+" if at >= start else "-") + lasted(at - start)


def who(one: Who | None) -> str:
    """Who caused a step: subject, issuer, client, and who acts for it."""
    if one is None:
        return ""
    said = _subject(one)
    if one.client_id:
        said += f" via {printable(one.client_id)}"
    if one.actor is not None:
        whose = f" at {issuer(one.actor.iss)}" if one.actor.iss else ""
        doubt = "" if one.actor.level == one.level else f", {level(one.actor.level)}"
        said += f" ({printable(one.actor.sub)}{whose} acts for it{doubt})"
    return said


def _subject(one: Who, *, short: bool = False) -> str:
    if one.trigger != "caller" and one.iss == "tasktrail" and one.sub:
        if one.trigger == "responder" and one.sub == "responder":
            return "the holder of the responder token"
        if one.trigger in {"responder", "operator"} and one.kind == "user":
            return f"operator {printable(one.sub)}"
        kind, _, name = one.sub.partition(":")
        return f"MCP server {printable(name)}" if kind == "server" and name else f"tasktrail's {printable(one.sub)}"
    if one.kind == "anonymous":
        return "an anonymous caller"
    if not one.sub:
        return _TRIGGERS.get(one.trigger, printable(one.trigger))
    kind = "machine " if one.kind == "machine" else ""
    return f"{kind}{printable(one.sub)}" + (f" at {issuer(one.iss)}" if one.iss and not short else "")


def issuer(iss: str | None) -> str:
    """An issuer, without the scheme that nearly all of them have."""
    return printable((iss or "").removeprefix("https://"))


def authority(step: Step, *, like: int | None = None, wide: bool = False) -> str:
    """One line about a step: who, how we know, by what credential, by which rule, from where. Empty for an anomaly.

    `like`: the sequence of an earlier step with the same `provenance`, which then is not told again.
    """
    if step.who is None:
        return ""
    if like is not None:
        word = f" ({printable(step.who.level)})" if step.who.level else ""
        parts = [f"{_subject(step.who, short=True)}{word}, as in #{like}"]
    else:
        parts = [who(step.who), *evidence(step.who), _credential(step), _difference(step), _address(step.address)]
    parts += [STANDINGS.get(step.standing or "", ""), _grant(step), _rule(step, wide=wide)]
    return " · ".join(part for part in parts if part)


def provenance(step: Step) -> object:
    """What two steps have in common when the same caller made them by the same credential from the same place."""
    ends, at = moment(step.credential.exp if step.credential else None), moment(happened(step))
    differs = step.binding.differs if step.binding else ()
    return step.who, step.credential, differs, step.grant, step.address, bool(ends and at and at >= ends)


def evidence(one: Who) -> list[str]:
    """How we know the subject, and the client where that is another level."""
    if one.level is None:
        return []
    if one.level == "asserted" and one.trigger in {"mcp_server", "worker"}:
        return ["asserted by itself"]
    if one.client_id and one.client_level != one.level:
        return [level(one.level), f"client {level(one.client_level)}"]
    return [level(one.level)]


def remarks(step: Step) -> Iterator[tuple[str, str]]:
    """What else is to be said of a step, each with its mark: who answered and how we know; `▲`, what was flagged."""
    if said := _approved(step):
        yield "", said
    if said := _secrets_seen(step):
        yield "▲", said


def _approved(step: Step) -> str:
    """Who answered, how and when they were authenticated, and whose word each is; empty for what is no answer."""
    if step.type != "InputResponded" or step.who is None:
        return ""
    one, who_said = step.credential, step.who.level
    said = f"answered by {_subject(step.who, short=True)} ({level(who_said)}), "
    if one is None or not (one.amr or one.acr or one.auth_time):
        return said + "nothing says how a person was authenticated"
    said += "authenticated"
    if one.amr:
        said += " by " + ", ".join(map(printable, one.amr))
    if one.acr:
        said += f" (acr {printable(one.acr)})"
    if one.auth_time:
        date = "" if day(one.auth_time) == day(happened(step)) else f"{day(one.auth_time)} "
        said += f" at {date}{clock(one.auth_time, millis=False)}"
    return said if one.level == who_said else f"{said} ({level(one.level)})"


def _secrets_seen(step: Step) -> str:
    seen = [
        f"{', '.join(map(printable, one.secrets))} in {printable(one.name)}" for one in step.payloads if one.secrets
    ]
    return f"looks like a secret: {'; '.join(seen)}" if seen else ""


def _grant(step: Step) -> str:
    return f"by grant {printable(step.grant)}" if step.grant else ""


def _difference(step: Step) -> str:
    if step.binding is None or step.binding.matches:
        return ""
    return "not who created it: differs in " + ", ".join(map(printable, step.binding.differs))


def _credential(step: Step) -> str:
    one = step.credential
    if one is None:
        return ""
    if one.method == "none":
        return "no credential"
    name = printable(one.method)
    if one.jti:
        name += f" {_short(one.jti)}"
    elif one.token_hash:
        name += f" hash {_short(one.token_hash)}"
    if one.verification not in {"ok", None}:
        name += f", {printable(one.verification or '').replace('_', ' ').upper()}"
    ends, at = moment(one.exp), moment(happened(step))
    if ends:
        date = "" if at is not None and at.date() == ends.date() else f"{day(one.exp)} "
        name += f", {'ENDED' if at and at >= ends else 'until'} {date}{clock(one.exp, millis=False)}"
    if one.revocation not in {"unknown", None}:
        name += f", revocation {printable(one.revocation or '')}"
    return name


def _short(identifier: str) -> str:
    """The beginning of an opaque identifier; the JSON has all of it."""
    long = len(identifier) > _IDENTIFIER_MAX
    return printable(identifier[:_HASH_SHOWN]) + "…" if long else printable(identifier)


def _rule(step: Step, *, wide: bool) -> str:
    one = step.rule
    if one is None or (one.effect != "allow" and one.reason in step.reasons):
        return ""
    version = f" ({printable(one.policy_version)})" if wide and one.policy_version else ""
    verb = "rule" if one.effect == "allow" else "denied by rule"
    return f"{verb} {printable(one.reason or 'unnamed')}{version}"


def _address(one: AddressShown | None) -> str:
    if one is None:
        return ""
    doubt = f" ({printable(one.level)})" if one.level in {"asserted", "claimed"} else ""
    return f"from {printable(one.address)}{doubt}"


def status_words(status: str, *, is_error: bool = False) -> str:
    """A status, and what the word alone hides."""
    return printable(status) + (" with a tool error" if is_error else "")
