"""Opaque access tokens: what their issuer says of them now (OAuth 2.0 token introspection, RFC 7662).

Guarantees: only the configured addresses are asked, over https (http on the loopback interface), as the configured
client, without redirects; an answer counts only when it says `active: true`, names us in `aud` and holds by its dates,
and never longer than `FRESH_S`, so that a revocation is felt within that time; whatever else comes of it is a refusal,
`not_checked` when the issuer did not answer. Requests are bounded: one per token at a time, `AT_ONCE` connections,
`WAITING_MAX` tokens waiting. Tokens that were never seen active take `STRANGERS_AT_ONCE` of them, and those of one peer
`EACH_AT_ONCE`: a flood of garbage leaves places to known tokens, and to the new ones of others. After `FAILURES_MAX`
failures in a row, of known tokens or of one peer's, the issuer is left alone with these for `RETRY_S`. A token is in no
log and no message.

Of several introspecting issuers each is asked in turn, in the order configured, until one knows the token: configure
together only issuers that may see each other's tokens. Needs httpx and a running event loop.

    introspection = Introspection([Introspecting(url="https://id.example", address="https://id.example/introspect",
                                                 audiences=("https://mcp.example/mcp",), client_id="tasktrail",
                                                 secret_file=Path("introspection.secret"))])
    verdict = await introspection.verify(token, peer="203.0.113.5")  # Active | Refusal
"""

import asyncio
import base64
import contextlib
import hashlib
import logging
import stat
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote_plus, urlsplit

import httpx
import msgspec

from tasktrail.events.authority import Verification
from tasktrail.events.errors import InvalidRequest
from tasktrail.services import strict_json
from tasktrail.services.access.tokens import SKEW_S, TOKEN_MAX_BYTES, Refusal, check_address, claims_fault
from tasktrail.services.addresses import is_loopback

_log = logging.getLogger(__name__)

ANSWER_S = 5.0
FRESH_S = 10.0
RETRY_S = 1.0
FAILURES_MAX = 3
ANSWER_MAX_BYTES = 64 * 1024
ANSWERS_MAX = 4096
ACTIVE_MAX = 4096
"""How many tokens are remembered to have been active."""
AT_ONCE, STRANGERS_AT_ONCE, EACH_AT_ONCE = 16, 12, 4
"""Questions at once: of all tokens, of those never seen active, and of these from one peer."""
WAITING_MAX, STRANGERS_WAITING_MAX, EACH_WAITING_MAX = 256, 192, 64
"""Tokens asked about or waiting for it, likewise."""
CALLERS_MAX = 64
"""How many callers may wait for the answer about one token."""
PEERS_MAX = 1024
"""Of how many peers failures are counted."""
_DEPTH_MAX = 16
_AILING = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS})
_SECRET_MAX_BYTES = 4096


class Introspecting(msgspec.Struct, frozen=True, kw_only=True):
    """An issuer that is asked: its `iss`, its introspection endpoint, the audiences that are us, and our client there.

    Raises:
        InvalidRequest: the address is neither https nor http on the loopback interface, or a field is missing.
    """

    url: str
    address: str
    audiences: tuple[str, ...]
    client_id: str
    secret_file: Path
    skew_s: float = SKEW_S

    def __post_init__(self) -> None:
        if not self.url or not self.audiences or not all(self.audiences):
            message = f"introspection at {self.address}: the issuer and its audience must be given"
            raise InvalidRequest(message)
        if not self.client_id:
            message = f"introspection at {self.address}: give introspection_client_id and introspection_secret_file"
            raise InvalidRequest(message)
        check_address(self.address, f"introspection address of {self.url}")


class Active(msgspec.Struct, frozen=True, kw_only=True):
    """A token that its issuer says is active, and what it says of it."""

    claims: dict[str, Any]
    iss: str
    verified_at_ms: int


def read_secret(path: Path) -> str:
    """The client's secret in a file that only its owner can read.

    Raises:
        InvalidRequest: it cannot be read, others can read it, or it holds no secret.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        with path.open("rb") as file:
            secret = file.read(_SECRET_MAX_BYTES).decode().strip()
    except (OSError, ValueError) as error:
        message = f"cannot read the introspection secret {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}"
        raise InvalidRequest(message) from None
    if mode & 0o077:
        message = f"{path} can be read by others (mode {mode:o}); run: chmod 600 {path}"
        raise InvalidRequest(message)
    if not secret:
        message = f"{path} is empty: write the introspection client's secret into it"
        raise InvalidRequest(message)
    return secret


def judge(document: bytes, issuer: Introspecting, now_s: float) -> Active | Refusal:
    """What an introspection answer (RFC 7662 section 2.2) proves at `now_s`, epoch seconds.

    Raises:
        InvalidRequest: it is no such answer.
    """
    said = strict_json.decode(document, bytes_max=ANSWER_MAX_BYTES, depth_max=_DEPTH_MAX)
    claims = cast("dict[str, Any]", said) if isinstance(said, dict) else {}
    if not isinstance(claims.get("active"), bool):
        message = "an introspection answer is an object with the boolean `active`"
        raise InvalidRequest(message)
    if not claims["active"]:
        return Refusal(verification=Verification.INACTIVE, why="its issuer says that it is not active")
    if claims.get("iss", issuer.url) != issuer.url:
        return Refusal(verification=Verification.WRONG_ISSUER, why="the answer names another issuer")
    if str(claims.get("token_type", "bearer")).lower() != "bearer":
        return Refusal(verification=Verification.MALFORMED, why="it is no bearer token")
    fault = claims_fault(claims, issuer.audiences, now_s, issuer.skew_s, opaque=True)
    return fault or Active(claims=claims, iss=issuer.url, verified_at_ms=int(now_s * 1000))


class _Unanswered(Exception):
    """The issuer gave no answer that counts; `ails`: not because of this token alone."""

    def __init__(self, why: str, *, ails: bool) -> None:
        super().__init__(why)
        self.ails = ails


class _Places:
    """Whose question is asked when. `peer` None: that of a token that is known to have been active."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(AT_ONCE)
        self._strangers = asyncio.Semaphore(STRANGERS_AT_ONCE)
        self._peers: dict[str, asyncio.Semaphore] = {}
        self._waiting: Counter[str | None] = Counter()
        self._failures: OrderedDict[str | None, tuple[int, float]] = OrderedDict()

    def are_taken(self, peer: str | None) -> bool:
        """Whether too many wait already."""
        everyone = self._waiting.total()
        if peer is None:
            return everyone >= WAITING_MAX
        strangers = everyone - self._waiting[None]
        return strangers >= STRANGERS_WAITING_MAX or self._waiting[peer] >= EACH_WAITING_MAX

    def take(self, peer: str | None) -> None:
        """One more waits, until it is said to `leave`."""
        self._waiting[peer] += 1
        if peer is not None:
            self._peers.setdefault(peer, asyncio.Semaphore(EACH_AT_ONCE))

    def leave(self, peer: str | None) -> None:
        self._waiting[peer] -= 1
        if not self._waiting[peer]:
            del self._waiting[peer]
            if peer is not None:
                del self._peers[peer]

    @contextlib.asynccontextmanager
    async def turn(self, peer: str | None) -> AsyncGenerator[None]:
        """Wait until one that took a place may ask."""
        async with contextlib.AsyncExitStack() as stack:
            if peer is not None:
                await stack.enter_async_context(self._peers[peer])
                await stack.enter_async_context(self._strangers)
            await stack.enter_async_context(self._all)
            yield

    def is_ailing(self, peer: str | None, now_s: float) -> bool:
        """Whether the last questions failed, all of them, just now."""
        failures, at_s = self._failures.get(peer, (0, 0.0))
        return failures >= FAILURES_MAX and now_s - at_s < RETRY_S

    def answered(self, peer: str | None) -> None:
        self._failures.pop(peer, None)

    def failed(self, peer: str | None, now_s: float) -> None:
        failures, _ = self._failures.get(peer, (0, 0.0))
        self._failures[peer] = (failures + 1, now_s)
        self._failures.move_to_end(peer)
        if len(self._failures) > PEERS_MAX:
            self._failures.popitem(last=False)


class _Endpoint:
    """One issuer's endpoint: asked once per token at a time, its answers kept for a moment."""

    def __init__(self, issuer: Introspecting, now: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self.issuer = issuer
        self._now, self._monotonic = now, monotonic
        known = f"{quote_plus(issuer.client_id)}:{quote_plus(read_secret(issuer.secret_file))}"  # RFC 6749, 2.3.1
        self._basic = "Basic " + base64.b64encode(known.encode()).decode()
        self._http: httpx.AsyncClient | None = None
        self._asking: dict[bytes, asyncio.Task[Active | Refusal]] = {}
        self._answers: OrderedDict[bytes, tuple[float, Active | Refusal]] = OrderedDict()
        self._active: OrderedDict[bytes, None] = OrderedDict()
        self._callers: Counter[bytes] = Counter()
        self._places = _Places()

    async def verify(self, token: str, peer: str) -> Active | Refusal:
        """What the issuer says of this token, now or a moment ago."""
        digest = hashlib.sha256(token.encode()).digest()
        kept = self._kept(digest)
        if kept is not None:
            return kept
        asking = self._asking.get(digest)
        if asking is None:
            whose = None if digest in self._active else peer
            if self._places.is_ailing(whose, self._monotonic()):
                return _not_checked("the issuer did not answer a moment ago")
            if self._places.are_taken(whose):
                return _not_checked("too many tokens wait for the issuer's answer")
            asking = self._begun(digest, token, whose)
        elif self._callers[digest] >= CALLERS_MAX:
            return _not_checked("too many callers wait for the answer about this token")
        self._callers[digest] += 1
        try:
            return await asyncio.shield(asking)  # one caller going away leaves the others their answer
        finally:
            self._callers[digest] -= 1
            if not self._callers[digest]:
                del self._callers[digest]

    def _begun(self, digest: bytes, token: str, whose: str | None) -> "asyncio.Task[Active | Refusal]":
        self._places.take(whose)
        asking = asyncio.create_task(self._ask(digest, token, whose), name="introspection")
        asking.add_done_callback(lambda _: self._places.leave(whose))
        self._asking[digest] = asking
        return asking

    def _kept(self, digest: bytes) -> Active | Refusal | None:
        asked, verdict = self._answers.get(digest, (float("-inf"), None))
        if verdict is None or self._monotonic() - asked >= FRESH_S:
            self._answers.pop(digest, None)
            return None
        exp = verdict.claims.get("exp") if isinstance(verdict, Active) else None
        if exp is not None and self._now() >= exp:
            return Refusal(verification=Verification.EXPIRED, why="the token has expired")
        return verdict

    async def _ask(self, digest: bytes, token: str, whose: str | None) -> Active | Refusal:
        try:
            async with self._places.turn(whose):
                if self._places.is_ailing(whose, self._monotonic()):
                    return _not_checked("the issuer did not answer a moment ago")
                asked = self._monotonic()  # freshness counts from before the issuer looked
                verdict = judge(await self._posted(token), self.issuer, self._now())
        except (httpx.HTTPError, httpx.InvalidURL, InvalidRequest, TimeoutError, _Unanswered) as error:
            if getattr(error, "ails", not isinstance(error, InvalidRequest)):
                self._places.failed(whose, self._monotonic())
            _log.warning("no answer from %s: %s", self.issuer.address, str(error) or type(error).__name__)
            return _not_checked("the issuer gave no answer")
        else:
            self._places.answered(whose)
            self._keep(digest, asked, verdict)
            return verdict
        finally:
            self._asking.pop(digest, None)

    def _keep(self, digest: bytes, asked: float, verdict: Active | Refusal) -> None:
        self._answers[digest] = (asked, verdict)
        if len(self._answers) > ANSWERS_MAX:
            self._answers.popitem(last=False)
        self._active.pop(digest, None)
        if isinstance(verdict, Active):
            self._active[digest] = None
            if len(self._active) > ACTIVE_MAX:
                self._active.popitem(last=False)

    async def _posted(self, token: str) -> bytes:
        """One request, `ANSWER_S` for all of it, `ANSWER_MAX_BYTES` at most (RFC 7662 section 2.1)."""
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "Authorization": self._basic}
        form = {"token": token, "token_type_hint": "access_token"}
        document = bytearray()
        async with (
            asyncio.timeout(ANSWER_S),
            self._client().stream("POST", self.issuer.address, data=form, headers=headers) as response,
        ):
            if response.status_code != HTTPStatus.OK:
                message = f"it answered {response.status_code}"
                raise _Unanswered(message, ails=response.status_code in _AILING or response.is_server_error)
            async for chunk in response.aiter_raw():  # raw: nothing is decompressed
                document += chunk
                if len(document) > ANSWER_MAX_BYTES:
                    message = f"it answered more than {ANSWER_MAX_BYTES} bytes"
                    raise _Unanswered(message, ails=False)
        return bytes(document)

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            proxied = not is_loopback(urlsplit(self.issuer.address).hostname)
            limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
            self._http = httpx.AsyncClient(timeout=ANSWER_S, trust_env=proxied, limits=limits, follow_redirects=False)
        return self._http

    async def close(self) -> None:
        for asking in list(self._asking.values()):
            asking.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        if self._http is not None:
            await self._http.aclose()
            self._http = None


class Introspection:
    """Asks the configured issuers about opaque tokens.

    Raises:
        InvalidRequest: a secret cannot be read, or others can read it too.
    """

    def __init__(
        self,
        issuers: Iterable[Introspecting],
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoints = {issuer.url: _Endpoint(issuer, now, monotonic) for issuer in issuers}

    def asks(self, iss: object) -> bool:
        """Whether this issuer is one of those asked."""
        return iss in self._endpoints

    async def verify(self, token: str, iss: str = "", peer: str = "") -> Active | Refusal:
        """What this token is worth now.

        `iss`: ask that issuer alone; else each, until one knows the token. `peer`: the address it came from, as far as
        it is known: tokens never seen active wait for those of the same peer.
        """
        if not token or len(token) > TOKEN_MAX_BYTES or not token.isascii() or not token.isprintable():
            why = f"a token is printable ASCII of at most {TOKEN_MAX_BYTES} bytes"
            return Refusal(verification=Verification.MALFORMED, why=why)
        endpoints = [self._endpoints[iss]] if iss else list(self._endpoints.values())
        found = Refusal(verification=Verification.WRONG_ISSUER, why="no issuer of opaque tokens is configured")
        for endpoint in endpoints:
            verdict = await endpoint.verify(token, peer)
            if isinstance(verdict, Active):
                return verdict
            if found.verification is not Verification.NOT_CHECKED:
                found = verdict
            if verdict.verification not in {Verification.INACTIVE, Verification.NOT_CHECKED}:
                return verdict  # the issuer knows it: it is nobody else's
        return found

    async def close(self) -> None:
        """Close the connections; what is asked for meanwhile is not answered."""
        await asyncio.gather(*(endpoint.close() for endpoint in self._endpoints.values()))


def _not_checked(why: str) -> Refusal:
    return Refusal(verification=Verification.NOT_CHECKED, why=f"{why}; try again later")
