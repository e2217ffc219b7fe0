"""One short English sentence for each event. Pure.

Guarantees: text that came from a caller, a server or an issuer is shown in printable characters only and cut at
`SHOWN_MAX` of them, so that it cannot steer a terminal. Nothing sealed is in it.

    sentence(TaskCancelled(at_ms=0, reason="ttl"))  ->  "cancelled: its time to live ended"
"""

from typing import assert_never

from tasktrail.events.authority import Level, Standing
from tasktrail.events.facts import (
    AccessDenied,
    AuthorityChanged,
    BundleExported,
    CancelRequested,
    CommandRefused,
    EntryRejected,
    Event,
    GapFound,
    GrantGiven,
    GrantWithdrawn,
    HandleRevoked,
    HoldPlaced,
    HoldReleased,
    InputIgnored,
    InputRequested,
    InputResponded,
    KeyActivated,
    PayloadShredded,
    PayloadUnsealed,
    PolicyActivated,
    PrincipalRevoked,
    QueryRun,
    ResultDisclosed,
    RevocationLifted,
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
    ToolDriftSeen,
    UnknownEvent,
    WorkerLost,
    WorkTaken,
)

SHOWN_MAX = 80
_DIGEST_SHOWN = 12


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
            parts = [_CAUSES.get(event.cause) or _why(event.cause), printable(event.reason)]
            return ": ".join(["cancellation requested", *(part for part in parts if part)])
        case TaskCancelled():
            return f"cancelled: {_CANCELLED.get(event.reason) or _why(event.reason)}"
        case TaskExpired():
            return "the handle expired, it opens nothing any more"
        case WorkerLost() | WorkTaken() | ToolDriftSeen():
            return _of_work(event)
        case CommandRefused():
            refused = f"{printable(event.command)} refused" + (f" to {_worker(event.worker)}" if event.worker else "")
            return f"{refused}, the task is {printable(event.status)}: {_why(event.reason)}"
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
        case (
            KeyActivated()
            | GapFound()
            | QueryRun()
            | BundleExported()
            | PayloadUnsealed()
            | EntryRejected()
            | UnknownEvent()
        ):
            return _of_service(event)
        case PolicyActivated() | PrincipalRevoked() | RevocationLifted():
            return _of_everybody(event)
        case _:
            return _of_rights(event)


def _of_work(event: WorkerLost | WorkTaken | ToolDriftSeen) -> str:
    match event:
        case WorkerLost():
            again = ", the work is to be started again" if event.rerun else ""
            return f"the {_worker(event.worker)} was lost: {_why(event.cause)}{again}"
        case WorkTaken():
            return f"{_worker(event.worker)} took the work, attempt {event.attempt}"
        case ToolDriftSeen():
            digest = printable(event.tool_sha256[:_DIGEST_SHOWN])
            return f"the tool is defined otherwise than at creation ({digest}…)"
        case _:
            assert_never(event)


def _worker(worker: str) -> str:
    return f"worker {printable(worker)}" if worker else "worker"


_Rights = AuthorityChanged | HandleRevoked | GrantGiven | GrantWithdrawn | HoldPlaced | HoldReleased | PayloadShredded


def _of_rights(event: _Rights) -> str:  # noqa: PLR0911 - one arm per event
    """Who may use the task, and how long its payloads are kept."""
    match event:
        case AuthorityChanged():
            return _changed(event)
        case HandleRevoked():
            return f"the handle was revoked, it opens nothing any more: {printable(event.reason)}"
        case GrantGiven():
            to = printable(event.to.sub or event.to.client_id or f"everybody of tenant {event.to.tenant}")
            rights = printable(", ".join(event.rights))
            return f"granted to {to} for {rights} (grant {printable(event.grant)}): {printable(event.reason)}"
        case GrantWithdrawn():
            return f"grant {printable(event.grant)} was withdrawn: {printable(event.reason)}"
        case HoldPlaced():
            case_id = f", case {printable(event.case_id)}" if event.case_id else ""
            held = f"hold {printable(event.hold)} was placed by {printable(event.by)}{case_id}"
            return f"{held}, the payloads are kept: {printable(event.reason)}"
        case HoldReleased():
            return f"hold {printable(event.hold)} was released by {printable(event.by)}: {printable(event.reason)}"
        case PayloadShredded():
            return f"the payloads' key was destroyed, nothing sealed here can be read any more: {_why(event.reason)}"
        case _:
            assert_never(event)


def _changed(event: AuthorityChanged) -> str:
    match event.standing:
        case Standing.VALID:
            return "the creator's authority stands again, it came with a later credential"
        case Standing.LAPSED:
            return "the creator's authority lapsed, its credential has ended"
        case Standing.REVOKED:
            cause = f", by revocation {printable(event.cause)}" if event.cause else ""
            return f"the creator's authority was revoked{cause}"
        case Standing.UNKNOWN:
            return "whether the creator's authority stands is unknown, its credential says no end"
        case _:
            assert_never(event.standing)


def _of_everybody(event: PolicyActivated | PrincipalRevoked | RevocationLifted) -> str:
    """Policies and revocations."""
    match event:
        case PolicyActivated():
            digest = printable(event.sha256[:_DIGEST_SHOWN])
            return f"policy {printable(event.version)} ({digest}…) decides from here on: {printable(event.reason)}"
        case PrincipalRevoked():
            return f"revoked {_revoked(event)} (revocation {printable(event.revocation)}): {printable(event.reason)}"
        case RevocationLifted():
            return f"revocation {printable(event.revocation)} was lifted: {printable(event.reason)}"
        case _:
            assert_never(event)


def _revoked(event: PrincipalRevoked) -> str:
    at = f" at {printable(event.iss)}" if event.iss else ""
    where = f", in tenant {printable(event.tenant)}" if event.tenant else ""
    match event.kind:
        case "principal":
            return f"principal {printable(event.sub)}{at}{where}"
        case "client":
            return f"client {printable(event.client_id)}{at}{where}"
        case "token":
            name = f"jti {event.jti}" if event.jti else f"hash {event.token_hash}"
            return f"token {printable(name)}{at}{where}"
        case _:
            return f"{printable(event.kind)}{at}{where}"


def _of_service(
    event: KeyActivated | GapFound | QueryRun | BundleExported | PayloadUnsealed | EntryRejected | UnknownEvent,
) -> str:
    match event:
        case KeyActivated():
            return f"{printable(event.purpose)} key {printable(event.kid)} is in use from here on"
        case GapFound():
            return f"{printable(event.what)} may be missing: {_why(event.cause)}"
        case QueryRun():
            return f"a responder ran {printable(event.query)}, {_some(event.rows, 'row')}{_in_case(event.case_id)}"
        case BundleExported() | PayloadUnsealed():
            return _handed_out(event)
        case EntryRejected():
            return f"message {event.stream_seq} of the trail was not accepted: {_why(event.reason)}"
        case UnknownEvent():
            return f"{printable(event.type)}: an event of a newer version, kept as written"
        case _:
            assert_never(event)


def _handed_out(event: BundleExported | PayloadUnsealed) -> str:
    if isinstance(event, BundleExported):
        what = f"evidence of {_some(event.entries, 'entry', 'entries')} was exported"
    else:
        what = f"a responder was shown {printable(', '.join(event.payloads)) or 'nothing'} unsealed"
    return f"{what}{_in_case(event.case_id)}: {printable(event.reason)}"


_CAUSES = {
    "authority_lapsed": "the creator's authority had lapsed",
    "authority_revoked": "the creator's authority was revoked",
    "handle_revoked": "the handle was revoked",
    "operator": "an operator wants it to stop",
}
_CANCELLED = {
    "requested": "the work stopped as requested",
    "unconfirmed": "no worker confirmed in time that it stopped",
    "ttl": "its time to live ended",
}


def _why(reason: str) -> str:
    return printable(reason.replace("_", " "))


def _some(count: int, what: str, many: str = "") -> str:
    return f"{count} {what if count == 1 else many or f'{what}s'}"


def _in_case(case_id: str) -> str:
    return f" (case {printable(case_id)})" if case_id else ""


def _times(count: int) -> str:
    return "" if count == 1 else f" {count} times"


def _created(event: TaskCreated) -> str:
    wish = event.requested_ttl_ms
    wished = f", {wish / 1000:g} s were asked for" if wish is not None and wish != event.granted_ttl_ms else ""
    decided = f", decided by the {_why(event.ttl_set_by)}" if event.ttl_set_by else ""
    lives = f"it lives {event.granted_ttl_ms / 1000:g} s{wished}{decided}"
    made = f"created for tool {printable(event.tool)} of server {printable(event.server)}"
    if event.parent:
        by = "the MCP server" if event.parent_level is Level.ASSERTED else "the caller's trace context"
        made += f" by the work of task {printable(event.parent)} ({event.parent_level} by {by})"
    return f"{made}; {lives}"


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
