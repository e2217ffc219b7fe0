"""Who caused a step, by what credential, verified how, allowed by which policy.

Guarantees: every fact carries its own `Level`; no function here raises a level. Field names are the standards' own:
RFC 9068 and 7662 (token claims), RFC 8693 (`act`), RFC 9449 (`ath`, here `token_hash`), W3C trace context.

    Authority(trigger=Trigger.CALLER, tenant="acme", principal=Principal(iss="https://id.example", sub="ana",
              kind=PrincipalKind.USER, level=Level.ASSERTED))
"""

from enum import StrEnum
from typing import TypeAlias

import msgspec


class Level(StrEnum):
    """How far a fact can be proved, strongest first."""

    BOUND = "bound"  # signature verified and sender-constrained
    VERIFIED = "verified"  # signature verified by tasktrail, key snapshot held
    VOUCHED = "vouched"  # tasktrail says so: introspection, key table, its own timers
    ASSERTED = "asserted"  # an authenticated peer said so
    CLAIMED = "claimed"  # unauthenticated text; never decides


class Trigger(StrEnum):
    """What kind of actor caused the step."""

    CALLER = "caller"
    MCP_SERVER = "mcp_server"
    WORKER = "worker"
    TIMER = "timer"
    OPERATOR = "operator"
    RESPONDER = "responder"


class PrincipalKind(StrEnum):
    """What the subject is."""

    USER = "user"
    MACHINE = "machine"
    ANONYMOUS = "anonymous"


class Method(StrEnum):
    """How the credential authenticates."""

    JWT = "jwt"
    OPAQUE = "opaque"
    NKEY = "nkey"
    PASSWORD = "password"  # noqa: S105 - the name of a method, not a secret
    API_KEY = "api_key"
    NONE = "none"


class Verification(StrEnum):
    """What checking the credential found; anything but `ok` appears on denials only."""

    OK = "ok"
    NOT_CHECKED = "not_checked"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    BAD_SIGNATURE = "bad_signature"
    WRONG_AUDIENCE = "wrong_audience"
    WRONG_ISSUER = "wrong_issuer"
    MALFORMED = "malformed"
    MISSING = "missing"
    INACTIVE = "inactive"  # the issuer's introspection says so (RFC 7662)
    REVOKED = "revoked"
    NOT_TRUSTED = "not_trusted"  # asserted by an MCP server whose word on its callers is not taken


class Standing(StrEnum):
    """What a task's creator may still do, at the moment of a step that is not the creator's own."""

    VALID = "valid"  # its latest credential has not ended and nothing revokes it
    LAPSED = "lapsed"  # its latest credential has ended
    REVOKED = "revoked"  # the principal, its client or its credential was revoked
    UNKNOWN = "unknown"  # its credential says no end


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Base of the structures of an entry: immutable, keyword-only, defaults left out of the bytes."""


class Principal(Record, frozen=True, kw_only=True):
    """The subject of a step: issuer and subject as the issuer wrote them."""

    iss: str
    sub: str
    kind: PrincipalKind = PrincipalKind.USER
    level: Level


class Client(Record, frozen=True, kw_only=True):
    """The OAuth client (RFC 9068 `client_id`) the subject acts through."""

    client_id: str
    level: Level


class Actor(Record, frozen=True, kw_only=True):
    """One RFC 8693 `act` member, outermost first; only the outermost counts."""

    sub: str
    iss: str = ""
    level: Level


class Credential(Record, frozen=True, kw_only=True):
    """What was presented. Never the token itself: `token_hash` is base64url SHA-256 of it (RFC 9449 `ath`)."""

    method: Method
    verification: Verification
    verified_at_ms: int = 0
    revocation: str = "unknown"
    token_hash: str = ""
    jti: str = ""
    aud: tuple[str, ...] = ()
    scope: tuple[str, ...] = ()
    iat: int = 0
    exp: int = 0
    auth_time: int = 0
    acr: str = ""
    amr: tuple[str, ...] = ()
    kid: str = ""
    jwks_sha256: str = ""
    level: Level


class BindingMode(StrEnum):
    """Which members of the identity context a follow-up must match."""

    EXACT = "exact"
    USER = "user"
    CLIENT = "client"
    TENANT = "tenant"


class Binding(Record, frozen=True, kw_only=True):
    """The identity context that created a task, compared member by member, never as a joined string."""

    tenant: str
    iss: str
    sub: str
    client_id: str


COMPARED: dict[BindingMode, tuple[str, ...]] = {
    BindingMode.EXACT: ("tenant", "iss", "sub", "client_id"),
    BindingMode.USER: ("tenant", "iss", "sub"),
    BindingMode.CLIENT: ("tenant", "client_id"),
    BindingMode.TENANT: ("tenant",),
}


def differences(created: Binding, caller: Binding, mode: BindingMode = BindingMode.EXACT) -> tuple[str, ...]:
    """Names of the compared members in which `caller` differs from `created`; empty when it matches.

    A creator without the very member that a mode goes by (no client under `client`, no subject under `user`) is
    compared exactly: otherwise everybody who lacks it, too, would match. So is somebody with nobody: a tenant that was
    presumed of an anonymous caller is no common ground.
    """
    nameless = (mode is BindingMode.CLIENT and not created.client_id) or (mode is BindingMode.USER and not created.sub)
    nameless = nameless or _is_nobody(created) is not _is_nobody(caller)
    compared = COMPARED[BindingMode.EXACT if nameless else mode]
    return tuple(name for name in compared if getattr(created, name) != getattr(caller, name))


def _is_nobody(who: Binding) -> bool:
    return not (who.iss or who.sub or who.client_id)


class BindingCheck(Record, frozen=True, kw_only=True):
    """What was compared with the creating identity context, and where it differed."""

    mode: BindingMode
    differs: tuple[str, ...] = ()

    @property
    def matches(self) -> bool:
        """True when every compared member was equal."""
        return not self.differs


Attribute: TypeAlias = str | int | bool | tuple[str, ...]
"""The value of one input of a decision."""


class PolicyDecision(Record, frozen=True, kw_only=True):
    """The decision that allowed or denied a step, and what it was computed from.

    `reason` is the rule that made it; `policies` are the Cedar policies that determined it, by their `@id`. `inputs`
    holds every attribute the policies could see, so that the decision can be made again; `input_sha256` is the hex
    SHA-256 of them.
    """

    effect: str
    reason: str
    policy_sha256: str = ""
    policy_version: str = ""
    policies: tuple[str, ...] = ()
    inputs: dict[str, Attribute] = {}
    input_sha256: str = ""


class Request(Record, frozen=True, kw_only=True):
    """The request that carried the step. `rpc_id` is the JSON-RPC id: a number as it is, text only as its digest.

    `server_level` is `claimed` where the caller named the MCP server, and asked tasktrail itself.
    """

    method: str
    server: str = ""
    server_level: Level = Level.ASSERTED
    wire: str = ""
    protocol_version: str = ""
    rpc_id: str = ""
    traceparent: str = ""
    address: str = ""
    address_level: Level = Level.CLAIMED
    forwarded_for: str = ""
    session: str = ""

    @property
    def through(self) -> str:
        """The MCP server that the request came through; empty where its name is only the caller's word."""
        return "" if self.server_level is Level.CLAIMED else self.server


class Authority(Record, frozen=True, kw_only=True):
    """Everything recorded about who caused one step, as it was known when it happened.

    `standing` is the creator's, on steps of a worker, a timer or an operator; such a step is never the creator's own.
    `grant` is the id of the grant that opened the task to somebody else than its creator.
    """

    trigger: Trigger
    tenant: str
    principal: Principal | None = None
    client: Client | None = None
    actors: tuple[Actor, ...] = ()
    credential: Credential | None = None
    created_by: str = ""
    binding: BindingCheck | None = None
    grant: str = ""
    standing: Standing | None = None
    decision: PolicyDecision | None = None
    request: Request | None = None


def identity(authority: Authority) -> Binding:
    """The identity context of the caller: (tenant, iss, sub, client_id); empty text where a member is absent.

    What is only claimed counts as absent: claimed facts never decide.
    """
    principal, client = authority.principal, authority.client
    known = principal is not None and principal.level is not Level.CLAIMED
    return Binding(
        tenant=authority.tenant,
        iss=principal.iss if principal and known else "",
        sub=principal.sub if principal and known else "",
        client_id=client.client_id if client and client.level is not Level.CLAIMED else "",
    )
