"""What policies can see of a step: a flat record of attributes, and the Cedar request that is rebuilt from it. Pure.

Guarantees: the record names every attribute that `policies/tasktrail.cedarschema` does and that is not empty, each
prefixed `principal.`, `resource.` or `context.`, and the `action`; the request depends on nothing else. What is only
claimed is left out: claimed facts never decide.

    inputs = inputs_of("getTask", authority, task, check, (), now_ms)
    request, entities = cedar_request(inputs)
"""

import functools
import ipaddress
from typing import Any, TypeAlias

import msgspec

from tasktrail.events.authority import (
    Attribute,
    Authority,
    BindingCheck,
    Level,
    PrincipalKind,
    Record,
    Trigger,
    identity,
)
from tasktrail.events.facts import TaskSupport
from tasktrail.events.task import Task

Inputs: TypeAlias = dict[str, Attribute]
"""Attributes by name; those that are empty are left out."""

MINUTE_MS = 60_000
_SERVER = "server:"

_CALLER: Inputs = {
    **dict.fromkeys(("tenant", "iss", "sub", "client_id", "level", "method", "acr", "actor_iss", "actor_sub"), ""),
    "scope": (),
    "amr": (),
}
_PART: Inputs = {"name": "", "level": ""}
_TOOL: Inputs = dict.fromkeys(("tenant", "server", "tool", "tool_sha256", "task_support"), "")
_TASK: Inputs = {
    **_TOOL,
    **dict.fromkeys(("status", "standing", "creator_iss", "creator_sub", "creator_client_id"), ""),
    "age_minutes": 0,
}
SHAPES: dict[str, Inputs] = {
    "User": _CALLER,
    "Machine": _CALLER,
    "Anonymous": _CALLER,
    "McpServer": _PART,
    "Operator": {**_PART, "rights": ()},
    "Tool": _TOOL,
    "Task": _TASK,
    "Trail": {"tenant": ""},
}
"""The entity types of the schema, and the empty value of each of their attributes."""

CONTEXT: Inputs = {"is_creator": False, "by_grant": False, "server": ""}
"""The attributes of the context that are always there."""

_CALLERS = {
    PrincipalKind.USER: "User",
    PrincipalKind.MACHINE: "Machine",
    PrincipalKind.ANONYMOUS: "Anonymous",
}
_PARTS = {
    Trigger.MCP_SERVER: "McpServer",
    Trigger.WORKER: "McpServer",
    Trigger.OPERATOR: "Operator",
    Trigger.RESPONDER: "Operator",
}


class Making(Record, frozen=True, kw_only=True):
    """A task about to be created: whose, and for which tool of which MCP server."""

    server: str
    tool: str
    tool_sha256: str = ""
    task_support: TaskSupport = TaskSupport.OPTIONAL
    tenant: str


def inputs_of(  # noqa: PLR0913, PLR0917 - what a decision is made from
    action: str,
    authority: Authority,
    about: Task | Making | None,
    binding: BindingCheck | None,
    rights: tuple[str, ...],
    now_ms: int,
) -> Inputs:
    """Every attribute of the step that policies can see and that is not empty, always in the same order."""
    inputs: Inputs = {"action": str(action)}
    _put(inputs, "principal.", _caller(authority) if authority.trigger is Trigger.CALLER else _part(authority, rights))
    _put(inputs, "resource.", _resource(about, authority, now_ms))
    _put(inputs, "context.", _context(authority, binding))
    return inputs


def _put(inputs: Inputs, prefix: str, attributes: Inputs) -> None:
    for name, value in attributes.items():
        if value:
            inputs[prefix + name] = value


def _caller(authority: Authority) -> Inputs:
    principal, credential = authority.principal, authority.credential
    mine = identity(authority)
    seen: Inputs = {
        "type": _CALLERS[principal.kind] if principal and principal.level is not Level.CLAIMED else "Anonymous",
        "tenant": mine.tenant,
        "iss": mine.iss,
        "sub": mine.sub,
        "client_id": mine.client_id,
        "level": str(principal.level if principal else Level.CLAIMED),
        "method": "none",
    }
    if credential is not None and credential.level is not Level.CLAIMED:
        seen["method"] = str(credential.method)
        seen["scope"] = _set(credential.scope)
        seen["acr"] = credential.acr
        seen["amr"] = _set(credential.amr)
    if authority.actors and authority.actors[0].level is not Level.CLAIMED:
        seen["actor_iss"] = authority.actors[0].iss
        seen["actor_sub"] = authority.actors[0].sub
    return seen


def _part(authority: Authority, rights: tuple[str, ...]) -> Inputs:
    kind = _PARTS[authority.trigger]
    principal = authority.principal
    known = principal is not None and principal.level is not Level.CLAIMED
    seen: Inputs = {
        "type": kind,
        "name": principal.sub.removeprefix(_SERVER) if principal and known else "",
        "level": str(principal.level if principal else Level.CLAIMED),
    }
    if kind == "Operator":
        seen["rights"] = _set(rights)
    return seen


def _set(words: tuple[str, ...]) -> tuple[str, ...]:
    """In one order, whichever they came in: the same set is the same input."""
    return tuple(sorted(set(words))) if len(words) > 1 else words


def _resource(about: Task | Making | None, authority: Authority, now_ms: int) -> Inputs:
    if about is None:
        return {"type": "Trail", "tenant": authority.tenant}
    if isinstance(about, Making):
        kind, tenant = "Tool", about.tenant
    else:
        kind, tenant = "Task", about.binding.tenant
    seen: Inputs = {
        "type": kind,
        "tenant": tenant,
        "server": about.server,
        "tool": about.tool,
        "tool_sha256": about.tool_sha256,
        "task_support": str(about.task_support),
    }
    if isinstance(about, Task):
        seen["status"] = str(about.status)
        seen["standing"] = str(authority.standing or about.standing)
        seen["creator_iss"] = about.binding.iss
        seen["creator_sub"] = about.binding.sub
        seen["creator_client_id"] = about.binding.client_id
        seen["age_minutes"] = max(0, now_ms - about.created_at_ms) // MINUTE_MS
    return seen


def _context(authority: Authority, binding: BindingCheck | None) -> Inputs:
    request = authority.request
    known = request is not None and request.address_level is not Level.CLAIMED
    caller = authority.trigger is Trigger.CALLER
    return {
        "is_creator": caller and binding is not None and binding.matches and not authority.grant,
        "by_grant": caller and bool(authority.grant),
        "server": request.through if request else "",
        "address": address(request.address) if request and known else "",
    }


@functools.lru_cache(maxsize=1024)
def address(text: str) -> str:
    """The address as Cedar reads it: IPv4 in IPv6 as IPv4, without a zone; empty for what is no address."""
    try:
        parsed = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def cedar_request(inputs: Inputs) -> tuple[dict[str, Any], str]:
    """The request and its entities (JSON) as Cedar reads them, from recorded inputs; what is not there is empty.

    Entities have no identity: each is called `it`, and policies compare attributes.
    """
    principal, resource = _entity(inputs, "principal."), _entity(inputs, "resource.")
    context: dict[str, Any] = {name: inputs.get(f"context.{name}", empty) for name, empty in CONTEXT.items()}
    if peer := inputs.get("context.address"):
        context["address"] = {"__extn": {"fn": "ip", "arg": peer}}
    request: dict[str, Any] = {
        "principal": principal["uid"],
        "action": {"type": "Action", "id": inputs["action"]},
        "resource": resource["uid"],
        "context": msgspec.json.encode(context).decode(),
    }
    return request, msgspec.json.encode([principal, resource]).decode()


def _entity(inputs: Inputs, prefix: str) -> dict[str, Any]:
    """One entity of the request; recorded attributes that the schema no longer knows are left out."""
    kind = str(inputs.get(f"{prefix}type", ""))
    attributes = {name: inputs.get(prefix + name, empty) for name, empty in SHAPES.get(kind, {}).items()}
    return {"uid": {"type": kind, "id": "it"}, "attrs": attributes, "parents": []}
