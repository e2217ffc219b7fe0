"""The built-in rules: which allow or deny each step, by name, with the digest that every decision carries.

Guarantees: a decision names the rule that made it and the digest of what it was computed from; the digest of the rule
text changes when the rules do.

    decision(Rule.SAME_CONTEXT, "get", binding)
"""

import hashlib
from enum import StrEnum

from tasktrail.events.authority import Binding, PolicyDecision
from tasktrail.events.subjects import framed

VERSION = "builtin-1"


class Rule(StrEnum):
    """Why a step was allowed or denied."""

    TOOL_MAY = "tool-may-run-as-task"
    SAME_CONTEXT = "same-identity-context"
    SERVER_RUNS_TASK = "server-runs-task"
    TIME_IS_UP = "time-is-up"
    SERVICE_ITSELF = "service-itself"
    RESPONDER = "responder-token"
    UNKNOWN = "no-such-task"
    MALFORMED = "malformed-handle"
    OTHER_CONTEXT = "other-identity-context"
    EXPIRED = "handle-expired"
    ISSUER = "issuer-has-no-tenant"
    ANONYMOUS = "anonymous-not-allowed"
    NOBODY = "credential-names-nobody"
    OTHER_SERVER = "other-server-runs-task"
    REFUSED_BY_SERVER = "refused-by-mcp-server"


_ALLOWS: dict[Rule, str] = {
    Rule.TOOL_MAY: "a tool whose task support is optional or required may run as a task of its caller",
    Rule.SAME_CONTEXT: "a handle opens its task for the identity context (tenant, iss, sub, client_id) that made it",
    Rule.SERVER_RUNS_TASK: "the MCP server that made a task may report on it",
    Rule.TIME_IS_UP: "a timer ends a task whose time to live has elapsed, or whose cancellation nobody confirmed",
    Rule.SERVICE_ITSELF: "the service records facts about itself",
    Rule.RESPONDER: "the holder of the responder token may read the trail",
}
POLICY_SHA256 = hashlib.sha256(framed(VERSION, *(f"{rule}: {text}" for rule, text in _ALLOWS.items()))).hexdigest()


def decision(rule: Rule, action: str, *inputs: Binding | str) -> PolicyDecision:
    """The recorded decision of `rule` on `action`, with the digest of the inputs that decided."""
    parts = [action]
    for one in inputs:
        parts += [one] if isinstance(one, str) else [one.tenant, one.iss, one.sub, one.client_id]
    return PolicyDecision(
        effect="allow" if rule in _ALLOWS else "deny",
        reason=rule.value,
        policy_sha256=POLICY_SHA256,
        policy_version=VERSION,
        input_sha256=hashlib.sha256(framed(*parts)).hexdigest(),
    )
