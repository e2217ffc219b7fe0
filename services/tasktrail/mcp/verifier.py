"""Bearer tokens of an MCP server, verified by tasktrail: what makes a caller's identity more than somebody's word.

Guarantees: accepted is what `tasktrail.services.access.tokens` verifies, nothing else; what it proved (key, key set,
time) travels with the token, so that an embedded tasktrail records level `verified`; a refused token is logged with the
reason and never with its text. Needs the official SDK, joserfc and httpx.

    verifier = JwtVerifier([Issuer("https://id.example", "https://id.example/jwks.json", "https://mcp.example/mcp")])
    MCPServer("reports", token_verifier=verifier, auth=AuthSettings(...), extensions=[tasks], lifespan=tasks.lifespan)
"""

import logging
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from mcp.server.auth.provider import AccessToken

from tasktrail.events.authority import Verification
from tasktrail.services.access.claims import scopes
from tasktrail.services.access.tokens import SKEW_S, Issuer, Refusal, Tokens

__all__ = ["Issuer", "JwtVerifier", "VerifiedToken"]

_log = logging.getLogger(__name__)


class Checked:
    """What was found of the token of one request; `verification` None: no verifier of ours was asked."""

    def __init__(self) -> None:
        self.verification: Verification | None = None


checking: ContextVar[Checked | None] = ContextVar("checking", default=None)
"""Where to say what was found of the current request's token, if anybody wants to know: see `recording`."""


class VerifiedToken(AccessToken):
    """An access token whose signature tasktrail verified, with the key set it was verified against.

    `kid` is the key's id as the token names it, `jwks_sha256` the hex SHA-256 of the fetched document, `verified_at_ms`
    epoch milliseconds. `resource` is the configured audience (RFC 8707), of several the first that the token is for.
    """

    kid: str
    jwks_sha256: str
    verified_at_ms: int


class JwtVerifier:
    """The SDK's `TokenVerifier` for JWT access tokens of these issuers.

    Raises:
        InvalidRequest: an issuer is configured twice.
    """

    def __init__(self, issuers: Iterable[Issuer], *, skew_s: float = SKEW_S) -> None:
        known = tuple(issuers)
        self._audiences = {issuer.url: issuer.audiences for issuer in known}
        self._tokens = Tokens(known, skew_s=skew_s)

    async def verify_token(self, token: str) -> VerifiedToken | None:
        """The token with what it proves, or None when it proves nothing."""
        verdict = await self._tokens.verify(token)
        checked = checking.get()
        if checked is not None:
            checked.verification = verdict.verification if isinstance(verdict, Refusal) else Verification.OK
        if isinstance(verdict, Refusal):
            _log.info("a bearer token was refused: %s: %s", verdict.verification.value, verdict.why)
            return None
        claims = verdict.claims
        return VerifiedToken(
            token=token,
            client_id=claims.get("client_id") or claims.get("azp") or "",
            scopes=scopes(claims),
            expires_at=int(claims["exp"]),
            resource=_audience(claims["aud"], self._audiences[claims["iss"]]),
            subject=claims["sub"],
            claims=claims,
            kid=verdict.kid,
            jwks_sha256=verdict.jwks_sha256,
            verified_at_ms=verdict.verified_at_ms,
        )


def _audience(said: Any, ours: tuple[str, ...]) -> str:  # noqa: ANN401 - the claim of a token that holds: text or texts
    """The first of our audiences that the token is for."""
    return next(one for one in ours if one in (said if isinstance(said, list) else [said]))
