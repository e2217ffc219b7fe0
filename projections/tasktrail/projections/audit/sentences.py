"""One short English sentence for each event. Pure.

Guarantees: text that came from a caller, a server or an issuer is shown in printable characters only and cut at
`SHOWN_MAX` of them, so that it cannot steer a terminal. Nothing sealed is in it.

    sentence(TaskCancelled(at_ms=0, reason="ttl"))  ->  "cancelled: its time to live ended"
"""

from typing import assert_never

from tasktrail.events.facts import (
    AccessDenied,
    CancelRequested,
    CommandRefused,
    EntryRejected,
    Event,
    GapFound,
    InputIgnored,
    InputRequested,
    InputResponded,
    KeyActivated,
    QueryRun,
    ResultDisclosed,
    StatusReported,
    SubscriptionClosed,
    SubscriptionOpened,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskExpired,
    TaskFailed,
    TaskPolled,
    TaskResumed,
    UnknownEvent,
    WorkerLost,
)

SHOWN_MAX = 80


def printable(text: str) -> str:
    """`text` on one line: what is not printable as its escape, at most `SHOWN_MAX` characters."""
    cut = text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 1] + "…"
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in cut)


def sentence(event: Event | UnknownEvent) -> str:  # noqa: C901, PLR0911, PLR0912 - one arm per event
    """What happened, without who did it."""
    match event:
        case TaskCreated():
            return _created(event)
        case StatusReported():
            return _reported(event)
        case InputRequested():
            return f"asked the client for {printable(event.method)}, key {printable(event.key)}"
        case InputResponded():
            return f"the client answered {printable(event.key)} ({printable(event.method)}): {printable(event.action)}"
        case InputIgnored():
            return f"an answer to {printable(event.key) or 'a key never issued'} changed nothing: {_why(event.reason)}"
        case TaskResumed():
            return "nothing is outstanding any more, the work goes on"
        case TaskCompleted():
            return "completed with a tool error" if event.is_error else "completed with a result"
        case TaskFailed():
            return f"failed with JSON-RPC error {event.code}"
        case CancelRequested():
            return "cancellation requested"
        case TaskCancelled():
            return f"cancelled: {_CANCELLED.get(event.reason) or _why(event.reason)}"
        case TaskExpired():
            return "the handle expired, it opens nothing any more"
        case WorkerLost():
            return f"the worker was lost: {_why(event.cause)}"
        case CommandRefused():
            return f"{printable(event.command)} refused, the task is {printable(event.status)}: {_why(event.reason)}"
        case TaskPolled():
            return f"{printable(event.method)} told {printable(event.status)}{_times(event.count)}"
        case ResultDisclosed():
            return _disclosed(event)
        case SubscriptionOpened():
            return "a subscription was opened"
        case SubscriptionClosed():
            return f"a subscription ended after {_some(event.pushes, 'notification')}: {_why(event.reason)}"
        case AccessDenied():
            reasons = ", ".join(_why(reason) for reason in sorted(event.reasons))
            return f"{printable(event.method)} denied{_times(event.count)}: {reasons}; the caller was told {event.code}"
        case _:
            return _of_service(event)


def _of_service(event: KeyActivated | GapFound | QueryRun | EntryRejected | UnknownEvent) -> str:
    match event:
        case KeyActivated():
            return f"{printable(event.purpose)} key {printable(event.kid)} is in use from here on"
        case GapFound():
            return f"{printable(event.what)} may be missing: {_why(event.cause)}"
        case QueryRun():
            return f"a responder ran {printable(event.query)}, {_some(event.rows, 'row')}"
        case EntryRejected():
            return f"message {event.stream_seq} of the trail was not accepted: {_why(event.reason)}"
        case UnknownEvent():
            return f"{printable(event.type)}: an event of a newer version, kept as written"
        case _:
            assert_never(event)


_CANCELLED = {
    "requested": "the work stopped as requested",
    "unconfirmed": "no worker confirmed in time that it stopped",
    "ttl": "its time to live ended",
}


def _why(reason: str) -> str:
    return printable(reason.replace("_", " "))


def _some(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _times(count: int) -> str:
    return "" if count == 1 else f" {count} times"


def _created(event: TaskCreated) -> str:
    wish = event.requested_ttl_ms
    wished = f", {wish / 1000:g} s were asked for" if wish is not None and wish != event.granted_ttl_ms else ""
    lives = f"it lives {event.granted_ttl_ms / 1000:g} s{wished}"
    return f"created for tool {printable(event.tool)} of server {printable(event.server)}; {lives}"


def _reported(event: StatusReported) -> str:
    progress = "" if event.progress is None else f"progress {event.progress:g}"
    if progress and event.total is not None:
        progress += f" of {event.total:g}"
    parts = [part for part in ("a message" if event.message else "", progress) if part]
    return "the work reported " + (" and ".join(parts) or "nothing new")


def _disclosed(event: ResultDisclosed) -> str:
    what = ", ".join(printable(name) for name in event.payloads) or "nothing"
    again = "the first time" if event.nth == 1 else f"showing {event.nth} to this caller"
    return f"{printable(event.method)} showed {what}{_times(event.count)}, {again}"
