"""Who takes part in the incident, with which tokens, from where; and the authorities of their steps.

caller(ANA, "tasks/update", login=STRONG)
worker("acme", Standing.LAPSED)
"""

from typing import NamedTuple

from tasktrail.events.authority import (
    Authority,
    Binding,
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
from tasktrail.services.access.claims import digest
from tasktrail.services.clock import now_ms

DAY_S = 86_400
LEAKED = "the-words-of-ana-s-leaked-token"
"""A token, as it would be found in a paste."""
OFFICE, ELSEWHERE, HER_HOME = "192.0.2.10", "203.0.113.66", "192.0.2.11"
EVE_AT, MALLORY_AT, DAN_AT = "198.51.100.23", "198.51.100.77", "198.51.100.88"
ISS = "https://id.acme.example"


class Login(NamedTuple):
    """How somebody authenticated, in the issuer's words; nothing where it says nothing."""

    acr: str = ""
    amr: tuple[str, ...] = ()


UNTOLD, STRONG, WEAK = Login(), Login("urn:example:loa3", ("pwd", "hwk")), Login("urn:example:loa1", ("pwd",))


class Who(NamedTuple):
    """A caller with a token."""

    sub: str
    token: str
    address: str
    tenant: str = "acme"
    client: str = "desk"

    @property
    def iss(self) -> str:
        return f"https://id.{self.tenant}.example"

    @property
    def binding(self) -> Binding:
        return Binding(tenant=self.tenant, iss=self.iss, sub=self.sub, client_id=self.client)


ANA = Who("ana", LEAKED, OFFICE)
THIEF = ANA._replace(address=ELSEWHERE)
ANA_LATER = Who("ana", "ana-s-next-token", HER_HOME)
ERRAND = Who("errands", "errands-token", "192.0.2.30", client="robot")
EVE = Who("eve", "eve-s-token", EVE_AT, client="cli")
MALLORY = Who("mallory", "mallory-s-token", MALLORY_AT)
BO = Who("bo", "bo-s-token", "192.0.2.12")
CY = Who("cy", "cy-s-token", "192.0.2.13")
DAN = Who("dan", "dan-s-token", DAN_AT, client="phone")
FAY = Who("fay", "fay-s-token", "192.0.2.14")
GUS = Who("gus", "gus-s-token", "192.0.2.15")
HAL = Who("hal", "hal-s-token", "192.0.2.16")


def caller(  # noqa: PLR0913 - who calls, how, and what was decided
    who: Who,
    method: str = "tasks/get",
    *,
    trace: str = "",
    grant: str = "",
    effect: str = "allow",
    reason: str = "creators-use",
    exp: int = 0,
    login: Login = UNTOLD,
) -> Authority:
    """A call with a token that was verified."""
    differs = ("sub",) if grant or reason == "other-identity-context" else ()
    return Authority(
        trigger=Trigger.CALLER,
        tenant=who.tenant,
        principal=Principal(iss=who.iss, sub=who.sub, level=Level.VERIFIED),
        client=Client(client_id=who.client, level=Level.VERIFIED),
        credential=Credential(
            method=Method.JWT,
            verification=Verification.OK,
            token_hash=digest(who.token),
            jti=f"jti-of-{who.token}",
            exp=exp or now_ms() // 1000 + DAY_S,
            acr=login.acr,
            amr=login.amr,
            level=Level.VERIFIED,
        ),
        binding=BindingCheck(mode=BindingMode.EXACT, differs=differs),
        grant=grant,
        decision=PolicyDecision(effect=effect, reason=reason, policy_version="builtin-1"),
        request=Request(
            method=method,
            server="bank",
            wire="2026-07-28",
            address=who.address,
            address_level=Level.ASSERTED,
            traceparent=f"00-{trace}-00f067aa0ba902b7-01" if trace else "",
        ),
    )


def service(trigger: Trigger, sub: str, tenant: str, reason: str, standing: Standing | None = None) -> Authority:
    """A step of ours: of a worker, an operator or the service itself."""
    kind = PrincipalKind.USER if trigger is Trigger.OPERATOR else PrincipalKind.MACHINE
    return Authority(
        trigger=trigger,
        tenant=tenant,
        principal=Principal(iss="tasktrail", sub=sub, kind=kind, level=Level.VOUCHED),
        standing=standing,
        decision=PolicyDecision(effect="allow", reason=reason, policy_version="builtin-1"),
    )


def worker(tenant: str, standing: Standing = Standing.VALID) -> Authority:
    return service(Trigger.WORKER, "server:bank", tenant, "work-continues", standing)


OLGA = service(Trigger.OPERATOR, "olga", "acme", "operators-act")
ENFORCED = service(Trigger.OPERATOR, "enforcement", "acme", "authority-revoked")
