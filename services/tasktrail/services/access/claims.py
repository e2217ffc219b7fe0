"""What a token says, as facts to record: the claims of RFC 9068 and RFC 7662, bounded and clean.

Guarantees: pure; nothing here proves anything; texts are cut to `TEXT_MAX` characters of valid Unicode, numbers are
those that every JSON reader holds; a member of the identity, which is compared whole, is never cut but replaced by its
digest; of a token nothing but its digest is kept. Needs msgspec only, so that adapters use it too.

    facts = credential(token, claims, Method.JWT)
    who = identity(claims)  # iss, sub, client_id
"""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from tasktrail.events.authority import Method, PrincipalKind
from tasktrail.services.messages import ACTORS_MAX, ActorFacts, CredentialFacts

TEXT_MAX = 512
WORDS_MAX = 64
DIGESTED = "sha256:"
_WHOLE_MAX = 2**53 - 1


class Who(NamedTuple):
    """The members of an identity as claims name them; empty where they name none."""

    iss: str
    sub: str
    client_id: str

    @property
    def kind(self) -> PrincipalKind:
        """A machine acts for itself: it has no subject, or its client is the subject."""
        return PrincipalKind.MACHINE if self.sub in {"", self.client_id} else PrincipalKind.USER


def identity(claims: Mapping[str, Any], iss: str = "") -> Who:
    """Who the claims name: `client_id` (RFC 9068), or `azp` where older issuers write that."""
    client_id = claims.get("client_id") or claims.get("azp")
    return Who(member(iss or claims.get("iss")), member(claims.get("sub")), member(client_id))


def credential(token: str, claims: Mapping[str, Any], method: Method) -> CredentialFacts:
    """What is recorded of a token with these claims. `verified_by_tasktrail` and `verification` are the caller's."""
    return CredentialFacts(
        method=method,
        token_hash=digest(token),
        jti=text(claims.get("jti")),
        aud=texts(claims.get("aud")),
        scope=tuple(text(scope) for scope in scopes(claims)[:WORDS_MAX]),
        iat=whole(claims.get("iat")),
        exp=whole(claims.get("exp")),
        auth_time=whole(claims.get("auth_time")),
        acr=text(claims.get("acr")),
        amr=texts(claims.get("amr")),
    )


def digest(token: str) -> str:
    """A token's `ath` (RFC 9449): base64url of its SHA-256, without padding."""
    raw = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def scopes(claims: Mapping[str, Any]) -> list[str]:
    """The `scope` claim (RFC 9068 section 2.2.3), or `scp` of issuers that write a list."""
    said = claims.get("scope", claims.get("scp"))
    if isinstance(said, str):
        return said.split()
    return [scope for scope in cast("list[object]", said) if isinstance(scope, str)] if isinstance(said, list) else []


def actors(act: object) -> tuple[ActorFacts, ...]:
    """The RFC 8693 `act` chain, outermost first, at most `ACTORS_MAX` of it."""
    chain: list[ActorFacts] = []
    while isinstance(act, Mapping) and len(chain) < ACTORS_MAX:
        claims = cast("Mapping[str, object]", act)
        chain.append(ActorFacts(sub=text(claims.get("sub")), iss=text(claims.get("iss"))))
        act = claims.get("act")
    return tuple(chain)


def member(value: object) -> str:
    """A member of the identity, which is compared whole: what is not recorded as it is becomes its digest."""
    said = value if isinstance(value, str) else ""
    if said == text(said) and not said.startswith(DIGESTED):
        return said
    return DIGESTED + hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def text(value: object) -> str:
    """A text as it is recorded; empty for what is none."""
    return clean(value)[:TEXT_MAX] if isinstance(value, str) else ""


def texts(value: object) -> tuple[str, ...]:
    """A text or a list of them, as they are recorded."""
    many = cast("list[object]", value) if isinstance(value, list) else [value]
    return tuple(text(one) for one in many[:WORDS_MAX] if isinstance(one, str))


def clean(said: str) -> str:
    """The text without what JSON between services may not hold: lone surrogates and NUL."""
    return said.encode("utf-8", "replace").decode().replace("\0", "?")


def whole(value: object) -> int:
    """A number of the token as a whole one; 0 for what is none (NaN, infinite, past what JSON readers hold)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_WHOLE_MAX <= value <= _WHOLE_MAX:
        return 0
    return int(value)
