"""From what an adapter says of its caller to a recorded authority, each fact at the level it deserves.

Guarantees: only this module assigns levels; what a connected adapter says is `asserted` at most; `verified` needs a
token that tasktrail's own verifier checked in this process; an anonymous caller is `claimed`, and what it says of
itself never decides. The tenant comes from the settings, never from the request. Text that is not of its documented
form (addresses, trace parents, request ids, token digests) is left out rather than recorded.

    authority = caller_authority(caller, call, channel, settings)
"""

import ipaddress
import re

import msgspec

from tasktrail.events.authority import (
    Actor,
    Authority,
    Client,
    Credential,
    Level,
    Method,
    Principal,
    PrincipalKind,
    Request,
    Trigger,
    Verification,
)
from tasktrail.services.access.rules import Rule
from tasktrail.services.messages import Call, Caller, CredentialFacts
from tasktrail.services.settings import Settings

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_RPC_ID = re.compile(r"-?\d{1,20}|sha256:[0-9a-f]{16}")
_TOKEN_HASH = re.compile(r"[A-Za-z0-9_-]{43}")
_FORWARDED_MAX = 8


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """How a request came to the service: which MCP server, and whether it runs in this process."""

    server: str
    in_process: bool


def caller_authority(caller: Caller, call: Call, channel: Channel, settings: Settings) -> tuple[Authority, Rule | None]:
    """The authority of a caller, and the rule that denies it outright if one does."""
    level = _level(caller, channel)
    tenant, refused = _tenant(caller, settings)
    authority = Authority(
        trigger=Trigger.CALLER,
        tenant=tenant,
        principal=Principal(iss=caller.iss, sub=caller.sub, kind=_kind(caller), level=level),
        client=Client(client_id=caller.client_id, level=level) if caller.client_id else None,
        actors=tuple(Actor(sub=actor.sub, iss=actor.iss, level=level) for actor in caller.actors),
        credential=_credential(_presented(caller), level),
        request=request(call, channel),
    )
    return authority, refused


def _presented(caller: Caller) -> CredentialFacts | None:
    """The credential, if one was presented at all; without, the caller is anonymous."""
    facts = caller.credential
    return None if facts is None or facts.method is Method.NONE else facts


def _level(caller: Caller, channel: Channel) -> Level:
    facts = _presented(caller)
    if facts is None:
        return Level.CLAIMED
    return Level.VERIFIED if channel.in_process and facts.verified_by_tasktrail else Level.ASSERTED


def _kind(caller: Caller) -> PrincipalKind:
    return caller.kind if _presented(caller) else PrincipalKind.ANONYMOUS


def _tenant(caller: Caller, settings: Settings) -> tuple[str, Rule | None]:
    if _presented(caller) is None:
        return settings.default_tenant, None if settings.anonymous else Rule.ANONYMOUS
    if not (caller.iss or caller.sub or caller.client_id):
        return settings.default_tenant, Rule.NOBODY  # it would be bound as an anonymous caller is
    if not settings.tenants:
        return settings.default_tenant, None
    tenant = settings.tenants.get(caller.iss)
    return (tenant, None) if tenant else (settings.default_tenant, Rule.ISSUER)


def _credential(facts: CredentialFacts | None, level: Level) -> Credential:
    if facts is None:
        return Credential(method=Method.NONE, verification=Verification.MISSING, level=Level.CLAIMED)
    return Credential(
        method=facts.method,
        verification=Verification.OK,
        verified_at_ms=facts.verified_at_ms,
        token_hash=facts.token_hash if _TOKEN_HASH.fullmatch(facts.token_hash) else "",
        jti=facts.jti,
        aud=facts.aud,
        scope=facts.scope,
        iat=facts.iat,
        exp=facts.exp,
        auth_time=facts.auth_time,
        acr=facts.acr,
        amr=facts.amr,
        kid=facts.kid,
        jwks_sha256=facts.jwks_sha256,
        level=level,
    )


def request(call: Call, channel: Channel) -> Request:
    """The request as recorded: only what is of its documented form."""
    address = _address(call.address)
    forwarded = [_address(part.strip()) for part in call.forwarded_for.split(",")[:_FORWARDED_MAX]]
    return Request(
        method=call.method,
        server=channel.server,
        wire=call.wire,
        protocol_version=call.protocol_version,
        rpc_id=call.rpc_id if _RPC_ID.fullmatch(call.rpc_id) else "",
        traceparent=call.traceparent if _TRACEPARENT.fullmatch(call.traceparent) else "",
        address=address,
        address_level=Level.ASSERTED if address else Level.CLAIMED,
        forwarded_for=", ".join(part for part in forwarded if part),
    )


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError:
        return ""


def server_authority(channel: Channel, tenant: str, action: str, trigger: Trigger = Trigger.WORKER) -> Authority:
    """The authority of the MCP server itself, doing a task's work."""
    level = Level.VOUCHED if channel.in_process else Level.ASSERTED
    return Authority(
        trigger=trigger,
        tenant=tenant,
        principal=Principal(iss="tasktrail", sub=f"server:{channel.server}", kind=PrincipalKind.MACHINE, level=level),
        request=Request(method=f"work/{action}", server=channel.server),
    )


def service_authority(trigger: Trigger, tenant: str, part: str) -> Authority:
    """The authority of a part of the service: a timer, the Ledger itself."""
    return Authority(
        trigger=trigger,
        tenant=tenant,
        principal=Principal(iss="tasktrail", sub=part, kind=PrincipalKind.MACHINE, level=Level.VOUCHED),
    )
