"""Who acts in the trail that `forensics_trail` makes, and by what authority.

authority = caller(BOT, "tasks/get", now_ms)
"""

from typing import NamedTuple

from tasktrail.events.authority import (
    Authority,
    BindingCheck,
    BindingMode,
    Client,
    Credential,
    Level,
    Method,
    PolicyDecision,
    Principal,
    PrincipalKind,
    Request,
    Standing,
    Trigger,
    Verification,
)

ISSUER = "https://id.example"
POLICY = "5" * 64
"""A digest of a policy, and of whatever else is not looked at."""
TOKEN_MS = 12 * 3_600_000


class Who(NamedTuple):
    """Somebody who makes tasks."""

    tenant: str
    sub: str
    client_id: str
    address: str
    token_hash: str
    jti: str


BOT = Who("acme", "bot-7", "pipeline", "198.51.100.9", "B" * 43, "jti-of-the-bot")
VISITOR = Who("acme", "visitor", "kiosk", "192.0.2.250", "V" * 43, "jti-of-the-visitor")


def _decided(reason: str) -> PolicyDecision:
    return PolicyDecision(
        effect="allow",
        reason=reason,
        policy_sha256=POLICY,
        policy_version="builtin-1",
        policies=(reason,),
        inputs={"tenant_same": True, "binding_differs": (), "status": "working", "kind": "user"},
        input_sha256=POLICY,
    )


_WORKS, _TIME, _OPERATES = _decided("server-runs-task"), _decided("time-is-up"), _decided("operator-may")
_SAME = _decided("same-identity-context")


def caller(who: Who, method: str, now_ms: int) -> Authority:
    """A step of a task's creator, with a token of `TOKEN_MS` from now."""
    level = Level.VERIFIED
    return Authority(
        trigger=Trigger.CALLER,
        tenant=who.tenant,
        principal=Principal(iss=ISSUER, sub=who.sub, level=level),
        client=Client(client_id=who.client_id, level=level),
        credential=Credential(
            method=Method.JWT,
            verification=Verification.OK,
            verified_at_ms=now_ms,
            token_hash=who.token_hash,
            jti=who.jti,
            aud=("https://tasks.example",),
            scope=("tasks",),
            iat=now_ms // 1000,
            exp=now_ms // 1000 + TOKEN_MS // 1000,
            kid="id-2026",
            jwks_sha256=POLICY,
            level=level,
        ),
        binding=BindingCheck(mode=BindingMode.EXACT),
        decision=_SAME,
        request=request(who, method),
    )


def request(who: Who, method: str, *, traceparent: str = "") -> Request:
    """What carried it."""
    return Request(
        method=method,
        server="server-1",
        wire="mcp/2026-07-28",
        protocol_version="2026-07-28",
        traceparent=traceparent,
        address=who.address,
        address_level=Level.VOUCHED,
    )


def worker(tenant: str, server: str) -> Authority:
    """A step of the MCP server that runs the task."""
    return Authority(
        trigger=Trigger.WORKER,
        tenant=tenant,
        principal=Principal(iss="tasktrail", sub=f"server:{server}", kind=PrincipalKind.MACHINE, level=Level.VOUCHED),
        standing=Standing.VALID,
        decision=_WORKS,
    )


def timer(tenant: str) -> Authority:
    """A step that time brought."""
    return Authority(trigger=Trigger.TIMER, tenant=tenant, standing=Standing.VALID, decision=_TIME)


def operator(tenant: str) -> Authority:
    """A step of the one operator there is."""
    return Authority(
        trigger=Trigger.OPERATOR,
        tenant=tenant,
        principal=Principal(iss="tasktrail", sub="olga", level=Level.VOUCHED),
        decision=_OPERATES,
    )
