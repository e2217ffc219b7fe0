"""The built-in rules: what is decided in code, not by a policy, each by name and with the digest of them all.

Guarantees: a decision names the rule that made it and the digest of what it was computed from; the digest of the rule
text changes when the rules do.

    decision(Rule.OTHER_CONTEXT, "get", binding)
"""

import hashlib
from enum import StrEnum

from tasktrail.events.authority import Binding, PolicyDecision
from tasktrail.events.subjects import framed

VERSION = "builtin-1"


class Rule(StrEnum):
    """Why a step was allowed or denied."""

    SERVER_RUNS_TASK = "server-runs-task"
    TIME_IS_UP = "time-is-up"
    LEASE_OVER = "lease-over"
    SERVICE_ITSELF = "service-itself"
    UNKNOWN = "no-such-task"
    MALFORMED = "malformed-handle"
    OTHER_CONTEXT = "other-identity-context"
    EXPIRED = "handle-expired"
    ISSUER = "issuer-has-no-tenant"
    ANONYMOUS = "anonymous-not-allowed"
    NOBODY = "credential-names-nobody"
    OTHER_SERVER = "other-server-runs-task"
    REFUSED_BY_SERVER = "refused-by-mcp-server"
    HANDLE_REVOKED = "handle-revoked"
    REVOKED = "caller-revoked"
    POLICY = "policy-denies"
    TOKEN_REFUSED = "token-refused"  # noqa: S105 - the name of a rule, not a secret
    NOT_CHECKED = "credential-not-checked"
    NOT_TRUSTED = "server-not-trusted-to-assert"
    NO_CREDENTIAL = "mcp-server-saw-no-credential"
    CREDENTIAL_REFUSED = "credential-refused-by-mcp-server"
    SCOPE_REFUSED = "scope-refused-by-mcp-server"
    RATE_LIMITED = "rate-limited"
    PAUSED = "work-waits-for-authority"
    RETENTION_OVER = "retention-is-over"
    NO_RIGHT = "operator-lacks-right"
    REPLACES_UNREADABLE = "operator-replaces-unreadable-policy"


_ALLOWS: dict[Rule, str] = {
    Rule.SERVER_RUNS_TASK: "the MCP server that made a task may report on it",
    Rule.TIME_IS_UP: "a timer ends a task whose time to live has elapsed, or whose cancellation nobody confirmed",
    Rule.RETENTION_OVER: "a timer destroys the key of a task whose payloads were kept long enough and are not held",
    Rule.LEASE_OVER: "a timer ends, or has started again, the work of a process whose lease was not renewed in time",
    Rule.SERVICE_ITSELF: "the service records facts about itself",
    Rule.REPLACES_UNREADABLE: "an operator with the right `policy` may activate one where none can be read",
}
POLICY_SHA256 = hashlib.sha256(framed(VERSION, *(f"{rule}: {text}" for rule, text in _ALLOWS.items()))).hexdigest()


_REPORTED = {rule.value: rule for rule in (Rule.NO_CREDENTIAL, Rule.CREDENTIAL_REFUSED, Rule.SCOPE_REFUSED)}


def reported(reason: str) -> Rule | str:
    """The rule by which an MCP server says that it turned a request away itself; else the server's own word."""
    return _REPORTED.get(reason, reason)


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
