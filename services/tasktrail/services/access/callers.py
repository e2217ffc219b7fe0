"""Who calls: from what an adapter hands over to a recorded authority, each fact at the level it deserves.

Guarantees: only this module assigns levels. A forwarded token is verified here, and then nothing that the adapter says
of its caller counts: `verified` when its signature holds, `vouched` when its issuer's introspection or our own table of
keys says so. What a connected adapter says is `asserted`, and taken from servers trusted for it only; an embedded one's
is `verified` when tasktrail's own verifier checked it in this process. All else is `claimed` and never decides. The
tenant comes from the settings, never from the request. No token is stored, logged or sent anywhere but to the
introspection endpoint configured for it. Text that is not of its documented form (addresses, trace parents, request
ids, token digests) is left out rather than recorded. Pseudonyms are in place before anything else sees an authority.

    authority, refused = await Callers(settings, keyring).authority(caller, call, channel)
"""

import ipaddress
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

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
from tasktrail.events.errors import InvalidRequest
from tasktrail.services.access import claims
from tasktrail.services.access.claims import Who
from tasktrail.services.access.introspection import Active, Introspecting, Introspection
from tasktrail.services.access.keys import Keys
from tasktrail.services.access.pseudonyms import OURS, Pseudonyms
from tasktrail.services.access.rules import Rule
from tasktrail.services.access.tokens import Issuer, Reading, Refusal, Tokens, Verified, is_jwt, reading
from tasktrail.services.clock import now_ms
from tasktrail.services.configuration import ALGORITHMS, McpServer
from tasktrail.services.keyring import Keyring
from tasktrail.services.messages import ActorFacts, Call, Caller, CredentialFacts
from tasktrail.services.settings import Settings

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_RPC_ID = re.compile(r"-?\d{1,20}|sha256:[0-9a-f]{16}")
_TOKEN_HASH = re.compile(r"[A-Za-z0-9_-]{43}")
_FORWARDED_MAX = 8


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """How a request came to the service: which MCP server, and whether it runs in this process.

    `claimed`: by none, the caller asks the service itself, and `server` is the one it names.
    """

    server: str
    in_process: bool
    claimed: bool = False


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a credential, or its absence, comes to."""

    who: Who = Who("", "", "")
    kind: PrincipalKind = PrincipalKind.ANONYMOUS
    level: Level = Level.CLAIMED
    actors: tuple[ActorFacts, ...] = ()
    credential: Credential = Credential(method=Method.NONE, verification=Verification.MISSING, level=Level.CLAIMED)
    tenant: str
    refused: Rule | None = None


class Callers:
    """Finds out who calls.

    Raises:
        InvalidRequest: the issuers, servers or keys of the settings cannot be used; the message says why.
    """

    def __init__(self, settings: Settings, keyring: Keyring, now: Callable[[], int] = now_ms) -> None:
        """`now` tells epoch milliseconds."""
        self._settings, self._now = settings, now
        issuers = settings.issuers
        self._signing = frozenset(issuer.url for issuer in issuers if issuer.jwks_url)
        self._tokens = Tokens(
            Issuer(one.url, one.jwks_url, one.audience, one.algorithms or ALGORITHMS, one.skew_ms / 1000)
            for one in issuers
            if one.jwks_url
        )
        self._introspection = Introspection(
            Introspecting(
                url=one.url,
                address=one.introspection_url,
                audiences=one.audience,
                client_id=one.introspection_client_id,
                secret_file=Path(one.introspection_secret_file),
                skew_s=one.skew_ms / 1000,
            )
            for one in issuers
            if one.introspection_url
        )
        self._keys = Keys(settings.api_keys)
        self._pseudonyms = Pseudonyms(keyring, settings.privacy)
        self._tenants = settings.tenants | {issuer.url: issuer.tenant for issuer in issuers}
        if len({issuer.url for issuer in issuers}) < len(issuers) or OURS in self._tenants:
            message = f"issuers: each has a url of its own, and none is {OURS!r}, which is ours"
            raise InvalidRequest(message)

    async def close(self) -> None:
        """Close the connections to issuers."""
        await self._introspection.close()

    async def authority(self, caller: Caller, call: Call, channel: Channel) -> tuple[Authority, Rule | None]:
        """The authority of a caller, and the rule that denies it outright if one does."""
        if caller.token:
            found = await self._forwarded(caller.token, call.address)
        elif caller.credential is None or caller.credential.method is Method.NONE:
            found = self._anonymous(caller)
        else:
            found = self._asserted(caller, caller.credential, channel)
        who, level = found.who, found.level
        authority = Authority(
            trigger=Trigger.CALLER,
            tenant=found.tenant,
            principal=Principal(iss=who.iss, sub=who.sub, kind=found.kind, level=level),
            client=Client(client_id=who.client_id, level=level) if who.client_id else None,
            actors=tuple(Actor(sub=actor.sub, iss=actor.iss, level=level) for actor in found.actors),
            credential=found.credential,
            request=request(call, channel),
        )
        # Who is refused is recorded as claimed, but as private as if the claim were true.
        private_to = self._tenants.get(who.iss, found.tenant) if found.refused else found.tenant
        return self._pseudonyms.applied(authority, private_to), found.refused

    def _anonymous(self, caller: Caller) -> _Found:
        """Without a credential: what it says of itself is claimed."""
        return _Found(
            who=Who(caller.iss, caller.sub, caller.client_id),
            actors=caller.actors,
            tenant=self._settings.default_tenant,
            refused=None if self._settings.anonymous else Rule.ANONYMOUS,
        )

    def _asserted(self, caller: Caller, facts: CredentialFacts, channel: Channel) -> _Found:
        """Whom the MCP server says it found, as far as its word is taken, and as long as the credential lasts.

        A server checks a credential once; a stream that it opened may outlive it.
        """
        who = Who(caller.iss, caller.sub, caller.client_id)
        ours = channel.in_process and facts.verified_by_tasktrail
        server = next((one for one in self._settings.servers if fnmatchcase(channel.server, one.name)), None)
        refused: Rule | None = None
        if facts.verification is Verification.OK and 0 < facts.exp <= self._now() // 1000:
            facts = msgspec.structs.replace(facts, verification=Verification.EXPIRED)
        if facts.verification is not Verification.OK:
            refused = Rule.TOKEN_REFUSED
        elif not (ours or self._trusted(server)):
            refused = Rule.NOT_TRUSTED
            facts = msgspec.structs.replace(facts, verification=Verification.NOT_TRUSTED)
        if refused is not None:
            level, tenant = Level.CLAIMED, self._settings.default_tenant
        else:
            level = Level.VERIFIED if ours else Level.ASSERTED
            tenant, refused = self._tenant(who, server)
        return _Found(
            who=who,
            kind=caller.kind,
            level=level,
            actors=caller.actors,
            credential=_credential(facts, level),
            tenant=tenant,
            refused=refused,
        )

    def _trusted(self, server: McpServer | None) -> bool:
        """Whether a server's word is taken; of all of them only while neither servers nor issuers are configured."""
        if server is not None:
            return server.asserts
        return not (self._settings.servers or self._settings.issuers)

    def _tenant(self, who: Who, server: McpServer | None = None) -> tuple[str, Rule | None]:
        """Whose a caller is, by its issuer, else by the MCP server it came through."""
        default = self._settings.default_tenant
        if not (who.sub or who.client_id):
            return default, Rule.NOBODY  # it would be bound as all others are that name nobody
        if who.iss == OURS:
            return default, Rule.ISSUER  # nobody else may speak of our own keys, operators and servers
        tenant = self._tenants.get(who.iss) or (server.tenant if server else "")
        if not tenant and self._tenants:
            return default, Rule.ISSUER
        return tenant or default, None

    async def _forwarded(self, token: str, peer: str) -> _Found:
        """Whom the token itself names, once it holds; `peer` is where it is said to come from."""
        key = self._keys.find(token)
        if key is not None:
            facts = CredentialFacts(method=Method.API_KEY, token_hash=claims.digest(token))
            return _Found(
                who=Who(OURS, f"key:{key.name}", key.client_id),
                kind=PrincipalKind.MACHINE,
                level=Level.VOUCHED,
                credential=_credential(facts, Level.VOUCHED),
                tenant=key.tenant,
            )
        verdict = await self._verdict(token, peer)
        if isinstance(verdict, Refusal):
            return self._refused(token, verdict)
        facts = msgspec.structs.replace(
            claims.credential(token, verdict.claims, Method.JWT if is_jwt(token) else Method.OPAQUE),
            verified_at_ms=verdict.verified_at_ms,
        )
        if isinstance(verdict, Verified):
            who, level = claims.identity(verdict.claims), Level.VERIFIED
            facts = msgspec.structs.replace(facts, kid=claims.text(verdict.kid), jwks_sha256=verdict.jwks_sha256)
        else:
            who, level = claims.identity(verdict.claims, verdict.iss), Level.VOUCHED
        tenant, refused = self._tenant(who)
        return _Found(
            who=who,
            kind=who.kind,
            level=level,
            actors=claims.actors(verdict.claims.get("act")),
            credential=_credential(facts, level),
            tenant=tenant,
            refused=refused,
        )

    async def _verdict(self, token: str, peer: str) -> Verified | Active | Refusal:
        """A signed token is judged by its signature, or by its issuer if that only introspects; others, who can."""
        if not is_jwt(token):
            return await self._introspection.verify(token, peer=peer)
        said = reading(token)
        iss = said.claims.get("iss") if isinstance(said, Reading) else None
        if isinstance(iss, str) and iss not in self._signing and self._introspection.asks(iss):
            return await self._introspection.verify(token, iss, peer)
        return await self._tokens.verify(token)

    def _refused(self, token: str, refusal: Refusal) -> _Found:
        """A token that does not hold: what it says is claimed, and recorded for whoever looks into it."""
        said = reading(token)
        told = said.claims if isinstance(said, Reading) else {}
        who = claims.identity(told)
        facts = claims.credential(token, told, Method.JWT if is_jwt(token) else Method.OPAQUE)
        kid = claims.text(said.kid) if isinstance(said, Reading) else ""
        again = refusal.verification is Verification.NOT_CHECKED
        return _Found(
            who=who,
            kind=who.kind if who.sub or who.client_id else PrincipalKind.ANONYMOUS,
            actors=claims.actors(told.get("act")),
            credential=_credential(
                msgspec.structs.replace(facts, verification=refusal.verification, kid=kid), Level.CLAIMED
            ),
            tenant=self._settings.default_tenant,
            refused=Rule.NOT_CHECKED if again else Rule.TOKEN_REFUSED,
        )


def _credential(facts: CredentialFacts, level: Level) -> Credential:
    return Credential(
        method=facts.method,
        verification=facts.verification,
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
        server_level=Level.CLAIMED if channel.claimed else Level.ASSERTED,
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
        principal=Principal(iss=OURS, sub=f"server:{channel.server}", kind=PrincipalKind.MACHINE, level=level),
        request=Request(method=f"work/{action}", server=channel.server),
    )


def operator_authority(operator: str, tenant: str, action: str, address: str, token_hash: str) -> Authority:
    """The authority of an operator: a person with a named key of ours, at a peer address that we saw ourselves."""
    return Authority(
        trigger=Trigger.OPERATOR,
        tenant=tenant,
        principal=Principal(iss=OURS, sub=operator, kind=PrincipalKind.USER, level=Level.VOUCHED),
        credential=Credential(
            method=Method.API_KEY, verification=Verification.OK, token_hash=token_hash, level=Level.VOUCHED
        ),
        request=Request(
            method=f"operator/{action}",
            address=_address(address),
            address_level=Level.VOUCHED if _address(address) else Level.CLAIMED,
        ),
    )


def service_authority(trigger: Trigger, tenant: str, part: str) -> Authority:
    """The authority of a part of the service: a timer, the Ledger itself."""
    return Authority(
        trigger=trigger,
        tenant=tenant,
        principal=Principal(iss=OURS, sub=part, kind=PrincipalKind.MACHINE, level=Level.VOUCHED),
    )
