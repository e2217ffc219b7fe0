"""Who caused a step, by what credential, verified how, allowed by which policy.

Guarantees: every fact carries its own `Level`; no function here raises a level. Field names are the standards' own:
RFC 9068 and 7662 (token claims), RFC 8693 (`act`), RFC 9449 (`ath`, here `token_hash`), W3C trace context.

    Authority(trigger=Trigger.CALLER, tenant="acme", principal=Principal(iss="https://id.example", sub="ana",
              kind=PrincipalKind.USER, level=Level.ASSERTED))
"""

from enum import StrEnum

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


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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
    """Names of the compared members in which `caller` differs from `created`; empty when it matches."""
    return tuple(name for name in COMPARED[mode] if getattr(created, name) != getattr(caller, name))


class BindingCheck(Record, frozen=True, kw_only=True):
    """What was compared with the creating identity context, and where it differed."""

    mode: BindingMode
    differs: tuple[str, ...] = ()

    @property
    def matches(self) -> bool:
        """True when every compared member was equal."""
        return not self.differs


class PolicyDecision(Record, frozen=True, kw_only=True):
    """The decision that allowed or denied a step, and what it was computed from."""

    effect: str
    reason: str
    policy_sha256: str = ""
    policy_version: str = ""
    input_sha256: str = ""


class Request(Record, frozen=True, kw_only=True):
    """The request that carried the step. `rpc_id` is the JSON-RPC id: a number as it is, text only as its digest."""

    method: str
    server: str = ""
    wire: str = ""
    protocol_version: str = ""
    rpc_id: str = ""
    traceparent: str = ""
    address: str = ""
    address_level: Level = Level.CLAIMED
    forwarded_for: str = ""
    session: str = ""


class Authority(Record, frozen=True, kw_only=True):
    """Everything recorded about who caused one step, as it was known when it happened."""

    trigger: Trigger
    tenant: str
    principal: Principal | None = None
    client: Client | None = None
    actors: tuple[Actor, ...] = ()
    credential: Credential | None = None
    created_by: str = ""
    binding: BindingCheck | None = None
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
