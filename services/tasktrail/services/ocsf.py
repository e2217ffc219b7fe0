"""Steps of the trail as events of the Open Cybersecurity Schema Framework (OCSF), version 1.5.0.

Guarantees: every event is valid under the published schema of its class with the profile `security_control`, nothing
invented and nothing raised: what the trail does not say is left out, and how far each fact is proved is in `unmapped`,
in the trail's own words. Pure.

| step | class |
|---|---|
| a call, a message, an access, a refusal, a denial, what an operator did | 6003 API Activity |
| a denial because of the credential itself | 3002 Authentication, a failed logon |
| a key activated | 6002 Application Lifecycle, an update |
| a gap, an entry or message that was not accepted | 2004 Detection Finding |

    event(step, at_ms=1_763_800_000_000, version="0.3.0")  ->  {"class_uid": 6003, "activity_id": 1, …}
"""

import ipaddress
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from tasktrail.events.facts import (
    AccessDenied,
    CommandRefused,
    EntryRejected,
    GapFound,
    KeyActivated,
    ResultDisclosed,
    TaskFailed,
    TaskPolled,
)
from tasktrail.projections.audit.columns import EPOCH
from tasktrail.projections.audit.exported import ExportedStep
from tasktrail.projections.audit.found import StepRow
from tasktrail.services.escaping import rfc3339

SCHEMA_VERSION = "1.5.0"
PROFILE = "security_control"
_ADDRESS_MAX = 40
_INTEGER_MAX = 2**31 - 1

_Event = dict[str, Any]


class _Class(NamedTuple):
    uid: int
    name: str
    category: tuple[int, str]


class _Activity(NamedTuple):
    uid: int
    name: str


_API = _Class(6003, "API Activity", (6, "Application Activity"))
_LOGON = _Class(3002, "Authentication", (3, "Identity & Access Management"))
_LIFECYCLE = _Class(6002, "Application Lifecycle", (6, "Application Activity"))
_FINDING = _Class(2004, "Detection Finding", (2, "Findings"))

_CREATE, _READ, _UPDATE, _DELETE = (
    _Activity(number, name) for number, name in enumerate(("Create", "Read", "Update", "Delete"), start=1)
)
_OTHER = _Activity(99, "Other")
_ACTIVITIES: dict[str, _Activity] = {
    **dict.fromkeys(("TaskCreated", "GrantGiven", "HoldPlaced", "PrincipalRevoked"), _CREATE),
    **dict.fromkeys(("TaskPolled", "ResultDisclosed", "SubscriptionOpened", "SubscriptionClosed"), _READ),
    **dict.fromkeys(("QueryRun", "BundleExported", "PayloadUnsealed"), _READ),
    **dict.fromkeys(("GrantWithdrawn", "HoldReleased", "RevocationLifted", "PayloadShredded"), _DELETE),
    **dict.fromkeys(("StatusReported", "InputRequested", "InputResponded", "InputIgnored", "TaskResumed"), _UPDATE),
    **dict.fromkeys(("TaskCompleted", "TaskFailed", "TaskCancelled", "TaskExpired", "CancelRequested"), _UPDATE),
    **dict.fromkeys(("AuthorityChanged", "HandleRevoked", "PolicyActivated"), _UPDATE),
    **dict.fromkeys(("WorkerLost", "WorkTaken", "ToolDriftSeen"), _UPDATE),
}
_METHODS: dict[str, _Activity] = {
    "tools/call": _CREATE,
    **dict.fromkeys(("tasks/get", "tasks/result", "tasks/list", "subscriptions/listen"), _READ),
    **dict.fromkeys(("tasks/update", "tasks/cancel"), _UPDATE),
}
"""What was tried, where it was refused."""
_SEVERITIES = {1: "Informational", 2: "Low", 3: "Medium", 4: "High"}
_USERS: dict[str, tuple[int, str]] = {"user": (1, "User"), "machine": (3, "System")}
_ACCEPTED = frozenset({None, "ok", "missing"})


def event(step: ExportedStep, *, at_ms: int, version: str) -> dict[str, Any]:
    """A step as an OCSF event. `at_ms`: when it became true; `version`: ours, as the product's."""
    kind = _class_of(step)
    activity = _activity(step, kind)
    said: _Event = {
        "category_uid": kind.category[0],
        "category_name": kind.category[1],
        "class_uid": kind.uid,
        "class_name": kind.name,
        "activity_id": activity.uid,
        "activity_name": activity.name,
        "type_uid": kind.uid * 100 + activity.uid,
        "type_name": f"{kind.name}: {activity.name}",
        "time": at_ms,
        "message": step.what,
        "metadata": _metadata(step, version),
        "unmapped": {"tasktrail": _unmapped(step)},
    }
    severity = _severity(step, kind)
    said |= {"severity_id": severity, "severity": _SEVERITIES[severity]}
    said |= _run(step) | _became(step, kind)
    return said | _of_class(step, kind, version)


def _class_of(step: ExportedStep) -> _Class:
    match step.event:
        case AccessDenied() if step.row.credential_verification not in _ACCEPTED:
            return _LOGON
        case GapFound() | EntryRejected():
            return _FINDING
        case KeyActivated():
            return _LIFECYCLE
        case _:
            return _FINDING if step.is_anomaly else _API


def _activity(step: ExportedStep, kind: _Class) -> _Activity:
    if kind is _LOGON:
        return _Activity(1, "Logon")
    if kind is _LIFECYCLE:
        return _Activity(8, "Update")
    if kind is _FINDING:
        return _CREATE
    if isinstance(step.event, AccessDenied | CommandRefused):
        return _METHODS.get(_operation(step), _OTHER)
    return _ACTIVITIES.get(step.row.type or "", _OTHER)


def _severity(step: ExportedStep, kind: _Class) -> int:
    if kind is _FINDING:
        return 4
    if isinstance(step.event, AccessDenied):
        return 3
    return 2 if isinstance(step.event, CommandRefused) else 1


def _became(step: ExportedStep, kind: _Class) -> _Event:
    """Whether it was done, and by which decision."""
    row, event_ = step.row, step.event
    if kind is _FINDING:
        return {"status_id": 1, "status": "New"}
    failed = isinstance(event_, AccessDenied | CommandRefused)
    said: _Event = {"status_id": 2, "status": "Failure"} if failed else {"status_id": 1, "status": "Success"}
    if isinstance(event_, AccessDenied):
        said["status_detail"] = ", ".join(sorted(event_.reasons))
    elif isinstance(event_, CommandRefused):
        said["status_detail"] = event_.reason
    if isinstance(event_, AccessDenied | TaskFailed):
        said["status_code"] = str(event_.code)
    if row.effect == "allow":
        said |= {"action_id": 1, "action": "Allowed", "disposition_id": 1, "disposition": "Allowed"}
    elif row.effect == "deny":
        said |= {"action_id": 2, "action": "Denied", "disposition_id": 2, "disposition": "Blocked"}
    return said


def _of_class(step: ExportedStep, kind: _Class, version: str) -> _Event:
    """What the class has beside what all have."""
    if kind is _LIFECYCLE:
        return {"app": _product(version)}
    resources = [{"uid": step.row.task_ref, "type": "MCP task"}] if step.row.task_ref else []
    if kind is _FINDING:
        title = "Message of the trail that is not accepted" if step.is_anomaly else "Gap or fault of the trail"
        found: _Event = {"uid": _place(step), "title": title, "desc": step.what, "types": [step.row.type or ""]}
        return {"finding_info": found, **({"resources": resources} if resources else {})}
    said: _Event = {"actor": _actor(step), "src_endpoint": _endpoint(step.row)}
    if kind is _LOGON:
        user = said["actor"]["user"]
        return said | {"user": user, "service": {"name": "tasktrail"}, "is_remote": True}
    api: _Event = {"operation": _operation(step)}
    if step.server:
        api["service"] = {"name": step.server}
    return said | {"api": api, **({"resources": resources} if resources else {})}


def _operation(step: ExportedStep) -> str:
    match step.event:
        case AccessDenied() | TaskPolled() | ResultDisclosed():
            return step.event.method
        case _:
            return step.rpc_method or step.row.type or "unknown"


def _actor(step: ExportedStep) -> _Event:
    row = step.row
    number, word = _USERS.get(row.principal_kind or "", (0, "Unknown"))
    user: _Event = {"type_id": number, "type": word}
    if row.sub:
        user |= {"uid": row.sub, "name": row.sub}
    else:
        user["name"] = "anonymous" if row.principal_kind == "anonymous" else row.trigger
    if row.iss:
        user["domain"] = row.iss
    if row.jti:
        user["credential_uid"] = row.jti
    actor: _Event = {"user": user}
    session = _session(row)
    if session:
        actor["session"] = session
    if row.client_id:
        actor["app_uid"] = row.client_id
    if row.actor_sub:
        actor["invoked_by"] = row.actor_sub
    if row.effect:
        actor["authorizations"] = [{"decision": row.effect, **_policy(row)}]
    return actor


def _session(row: StepRow) -> _Event:
    said: _Event = {}
    if row.iss:
        said["issuer"] = row.iss
    if row.jti:
        said["credential_uid"] = row.jti
    if row.token_expires_at:
        said["expiration_time"] = epoch_ms(row.token_expires_at)
    if row.authenticated_at:
        said["created_time"] = epoch_ms(row.authenticated_at)
    return said


def _policy(row: StepRow) -> _Event:
    """The policy that decided: the rule by name, the whole text by its digest."""
    said = {"name": row.decision_reason, "uid": row.policy_sha256, "version": row.policy_version}
    told = {name: value for name, value in said.items() if value}
    return {"policy": told} if "name" in told or "uid" in told else {}


def _endpoint(row: StepRow) -> _Event:
    """The peer; of a step that no peer asked for, which part of the service made it."""
    if not row.address:
        return {"svc_name": f"tasktrail {row.trigger}"}
    try:
        ipaddress.ip_address(row.address)
    except ValueError:
        return {"name": row.address}
    return {"ip": row.address} if len(row.address) <= _ADDRESS_MAX else {"name": row.address}


def _metadata(step: ExportedStep, version: str) -> _Event:
    row = step.row
    said: _Event = {
        "version": SCHEMA_VERSION,
        "profiles": [PROFILE],
        "product": _product(version),
        "uid": _place(step),
        "log_name": "trail",
        "log_provider": "tasktrail",
        "event_code": row.type or "",
        "sequence": row.stream_seq,
    }
    if row.tenant:
        said["tenant_uid"] = row.tenant
    if row.task_ref:
        said["correlation_uid"] = row.task_ref
    if row.kind != "anomaly":
        said |= {"logged_time": epoch_ms(row.recorded_at), "original_time": rfc3339(row.at_time or row.recorded_at)}
    return said


def _product(version: str) -> _Event:
    return {"name": "tasktrail", "vendor_name": "tasktrail", "version": version}


def _run(step: ExportedStep) -> _Event:
    """Of a folded run: how many, from when to when."""
    match step.event:
        case TaskPolled(count=count, first_ms=first, last_ms=last):
            said = {"count": count, "start_time": first, "end_time": last}
        case AccessDenied(count=count, first_ms=first, last_ms=last):
            said = {"count": count, "start_time": first, "end_time": last}
        case ResultDisclosed(count=count):
            said = {"count": count}
        case _:
            return {}
    return {**said, "count": min(count, _INTEGER_MAX)}


def _unmapped(step: ExportedStep) -> _Event:
    """Where to find and how to prove it, how far each fact is proved, and the rest of what the trail says."""
    row = step.row
    named = {
        "stream_seq": row.stream_seq,
        "ord": row.ord or 0,
        "entry_id": row.entry_id,
        "leaf_sha256": row.leaf_sha256,
        "created_by": step.created_by,
        "principal_level": row.principal_level,
        "client_level": row.client_level,
        "credential_level": row.credential_level,
        "address_level": row.address_level,
        "actor_level": row.actor_level,
        "trigger": row.trigger,
        "credential_method": row.credential_method,
        "credential_verification": row.credential_verification,
        "revocation": row.revocation,
        "token_hash": row.token_hash,
        "binding_mode": row.binding_mode,
        "binding_differs": row.binding_differs,
        "grant_id": row.grant_id,
        "standing": row.standing,
        "status_after": row.status_after,
        "traceparent": step.traceparent,
    }
    return {name: value for name, value in named.items() if value is not None}


def _place(step: ExportedStep) -> str:
    return f"{step.row.stream_seq}:{step.row.ord or 0}"


def epoch_ms(at: datetime) -> int:
    """A time of the store as epoch milliseconds."""
    return (at - EPOCH) // timedelta(milliseconds=1)
