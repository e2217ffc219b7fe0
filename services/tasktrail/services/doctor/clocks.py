"""Whether our clock, the broker's and the issuers' agree: what is early for one is expired for another.

Guarantees: asks only the configured addresses of issuers, by the proxy of the environment as `access/tokens.py` does,
follows no redirect, reads no more than the head of the answer. A difference is said with the uncertainty of its
measurement.

    findings = await of_issuers(settings.issuers)
"""

import asyncio
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx

from tasktrail.services.addresses import is_loopback
from tasktrail.services.configuration import Issuer
from tasktrail.services.doctor.findings import Finding, not_checked, notice, unsafe, well

ASK_S = 5.0
AGREE_S = 2.0
"""Clocks this close agree: a `Date` header has whole seconds."""

BROKER_MOST_S = 30.0
_REMEDY = "set the clocks of both by NTP"


async def of_issuers(issuers: Iterable[Issuer]) -> list[Finding]:
    """Each issuer's clock and whether it answers, all at once."""
    return list(await asyncio.gather(*(_issuer(issuer) for issuer in issuers)))


async def _issuer(issuer: Issuer) -> Finding:
    check = f"clock of {issuer.url}"
    address = issuer.jwks_url or issuer.introspection_url
    try:
        status, date, middle, uncertain = await _asked(address)
    except httpx.HTTPError as error:
        why = f"{address} does not answer ({type(error).__name__}); its tokens cannot be checked either"
        return not_checked(check, why, "let this machine reach it, or correct the address")
    if issuer.jwks_url and status != HTTPStatus.OK:
        return unsafe(check, f"{address} answers {status}: its keys are not there", "correct jwks_url")
    try:
        told = parsedate_to_datetime(date).timestamp() + 0.5
    except ValueError:
        return not_checked(check, f"{address} says no time in its answers")
    return judged(check, told - middle, uncertain, issuer.skew_ms / 1000)


async def _asked(address: str) -> tuple[int, str, float, float]:
    """Its status and date, and when it said so: our time (epoch seconds), and by how much that may be wrong."""
    proxied = not is_loopback(urlsplit(address).hostname)
    async with httpx.AsyncClient(timeout=ASK_S, follow_redirects=False, trust_env=proxied) as client:
        before = time.time()
        async with client.stream("GET", address) as answer:
            taken = time.time() - before
            return answer.status_code, answer.headers.get("Date", ""), before + taken / 2, taken / 2 + 0.5


def of_broker(ts: str, before: float, after: float) -> Finding:
    """The broker's clock, from the time in an answer asked for at `before` and there at `after` (epoch seconds)."""
    check = "clock of the broker"
    try:
        told = datetime.fromisoformat(ts[:26].rstrip("Z")).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return not_checked(check, "its answers say no time")
    return judged(check, told - (before + after) / 2, (after - before) / 2, BROKER_MOST_S)


def judged(check: str, ahead_s: float, uncertain_s: float, most_s: float) -> Finding:
    """A difference of clocks, positive when theirs is ahead, against the one that breaks something."""
    apart = max(0.0, abs(ahead_s) - uncertain_s)
    side = "ahead of" if ahead_s > 0 else "behind"
    seen = f"{abs(ahead_s):.1f} s {side} ours, give or take {uncertain_s:.1f} s"
    if apart > most_s:
        return unsafe(check, f"{seen}; more than {most_s:g} s makes valid credentials and times wrong", _REMEDY)
    return notice(check, seen, _REMEDY) if apart > AGREE_S else well(check, seen)
