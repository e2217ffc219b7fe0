"""Policies and revocations: what every process must know whole before it decides anything.

Guarantees: `start` returns when everything the trail held under `trail.<gen>.governance.>` has been read; from then on
what any process records is applied here in the stream's order, each entry once, over restarts of the broker too. Only
entries signed by a key of ours count: one that the keyring holds, or that an entry on the control subject announced
under a key known before; others are left out and told in the log, and hold nothing up. A policy that this version
cannot activate is no reason to go on with the one before: everything is denied. Revocations are found in constant time.

Needs the stream TRAIL and the right to read it: `$JS.API.CONSUMER.CREATE.TRAIL.>`, `.MSG.NEXT.` and `.INFO.` of it, and
`$JS.API.STREAM.MSG.GET.TRAIL`.

    governance = Governance(nc, js, ledger, policies, keyring.public_keys, keyring.pseudonym)
    await governance.start()
    governance.revocation(authority)
    await governance.record(PrincipalRevoked(…), authority)
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError

from tasktrail.events import entry as entries
from tasktrail.events.authority import Authority, Binding, Level, Standing, identity
from tasktrail.events.entry import KEY_ID, SIGNATURE
from tasktrail.events.errors import InvalidRequest, TasktrailError, Unavailable
from tasktrail.events.facts import (
    GovernanceEvent,
    KeyActivated,
    PolicyActivated,
    PrincipalRevoked,
    RevocationLifted,
)
from tasktrail.events.subjects import ANONYMOUS_TENANT, GENERATION, TRAIL, control_subject, governance_subject
from tasktrail.services.access.policy import Policies
from tasktrail.services.ending import end
from tasktrail.services.fetching import fetch
from tasktrail.services.ledger import Ledger, note_id
from tasktrail.services.revocations import Alias, Revocation, Revocations, revocation_of

_log = logging.getLogger(__name__)

SUBJECTS = f"trail.{GENERATION}.governance.>"
FETCH = 500
LISTEN_S = 0.5
"""How long a request for the next entry stands before it is seen whether the flow is still whole."""
LOOK_S = 2.0
"""How long JetStream has to say so. On a cluster a consumer goes with its server, without a word, while the trail goes
on: until that is noticed, what another process recorded is not known here.
"""
STUCK_AFTER_S = 15.0
LEARNT_WITHIN_S = 2.0
"""How long what governs may stand unread for want of its key, before nothing is decided any more."""
APPLIED_WITHIN_S = 1.0
RETRY_S = 0.2
INACTIVE_S = 30.0
_KEY_ID_LENGTH = 16

UNKNOWN_KEY = (
    "its key %r is neither in our keyring nor announced under a key of ours. If another installation signs with it, "
    "copy the files signing-*.key from there and start again; until then its revocations do not hold here"
)
NOT_GOVERNED = "policies and revocations are being read from the trail again; nothing was written. Send it again"

Listener: TypeAlias = Callable[[GovernanceEvent], Awaitable[None]]


class Ungoverned(Unavailable):
    """The policies and revocations on the trail could not be read: nothing may be decided without them."""

    reason = "ungoverned"


class Created(Protocol):
    """What is known of who created a task: a `Task`, say."""

    @property
    def binding(self) -> Binding:
        """Its identity context."""
        ...

    @property
    def token_hash(self) -> str:
        """The digest of the latest credential."""
        ...

    @property
    def jti(self) -> str:
        """The id its issuer gave the latest credential."""
        ...

    @property
    def created_token_hash(self) -> str:
        """The digest of the creating credential, when it is not the latest."""
        ...

    @property
    def created_jti(self) -> str:
        """The id of the creating credential, when it is not the latest."""
        ...

    @property
    def until_s(self) -> int:
        """When the latest credential ends: epoch seconds, 0 for no end."""
        ...


class _Astray(Exception):
    """The flow of entries has to be begun anew."""


class Governance:
    """Reads, follows and records what governs every decision."""

    def __init__(  # noqa: PLR0913, PLR0917 - its collaborators
        self,
        nc: Client,
        js: JetStreamContext,
        ledger: Ledger,
        policies: Policies,
        public_keys: Iterable[str],
        alias: Alias | None = None,
    ) -> None:
        """`public_keys`: those whose signatures count, raw Ed25519, base64url without padding; `alias`: pseudonyms."""
        self.revocations = Revocations(alias)
        self.on_change: list[Listener] = []
        self._whole = False
        self._reconnects = -1
        self.position = 0
        self.rejected = 0
        """How many entries on these subjects are none of ours."""
        self._nc, self._js, self._ledger, self._policies = nc, js, ledger, policies
        self._keys = dict(_public_key(text) for text in public_keys)
        self._learned = 0
        """How far the announcements of keys are read."""
        self._texts: dict[str, PolicyActivated] = {}
        self._newest: PolicyActivated | None = None
        self._applied: set[str] = set()
        self._awaited: dict[str, asyncio.Future[None]] = {}
        self._moved = asyncio.Event()
        self._failure = ""
        self._begun = False
        self._running: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """Whether everything on the trail is applied here, as far as can be known; while it is not, decide nothing.

        It is not from the moment a lost connection is made anew until the trail is read on to its end.
        """
        return self._whole and self._nc.stats["reconnects"] == self._reconnects

    async def start(self) -> None:
        """Read everything, then follow.

        Raises:
            Ungoverned: nothing was read for `STUCK_AFTER_S`.
        """
        self._running = asyncio.create_task(self._run(), name="governance")
        while not self.ready:
            self._moved.clear()
            try:
                async with asyncio.timeout(STUCK_AFTER_S):
                    await self._moved.wait()
            except TimeoutError:
                await self.stop()
                why = f": {self._failure}" if self._failure else ""
                message = f"the policies and revocations on the trail cannot be read to their end{why}; is NATS well?"
                raise Ungoverned(message) from None

    async def stop(self) -> None:
        """Stop following."""
        self._whole = False
        if self._running is not None:
            await end(self._running)
            self._running = None
        for task in tuple(self._telling):
            await end(task)

    def revocation(self, authority: Authority) -> Revocation | None:
        """A revocation that names this caller, its client, its credential or who acts for it; None when none does."""
        credential, mine = authority.credential, identity(authority)
        if credential is None:
            found = self.revocations.naming(mine)
        else:
            found = self.revocations.naming(mine, credential.token_hash, credential.jti)
        actor = authority.actors[0] if authority.actors else None  # RFC 8693: only the outermost one acts
        if found is not None or actor is None or actor.level is Level.CLAIMED:
            return found
        return self.revocations.naming(
            Binding(tenant=mine.tenant, iss=actor.iss or mine.iss, sub=actor.sub, client_id="")
        )

    def creator_revoked(self, task: Created) -> Revocation | None:
        """A revocation that names a task's creator, its client, its first or latest credential; None when none does."""
        found = self.revocations.naming(task.binding, task.token_hash, task.jti)
        if found is not None or not (task.created_token_hash or task.created_jti):
            return found
        return self.revocations.naming(task.binding, task.created_token_hash, task.created_jti)

    def standing(self, task: Created, now_ms: int) -> Standing:
        """How the creator's authority over a task stands at `now_ms` (epoch milliseconds)."""
        if self.creator_revoked(task) is not None:
            return Standing.REVOKED
        if not task.until_s:
            return Standing.UNKNOWN
        return Standing.VALID if now_ms < task.until_s * 1000 else Standing.LAPSED

    def policy(self, sha256: str) -> PolicyActivated | None:
        """The policy with this digest, if it was ever activated."""
        return self._texts.get(sha256)

    def policy_called(self, version: str) -> PolicyActivated | None:
        """A policy that was activated under this name; the latest, should there be several."""
        named = [one for one in self._texts.values() if one.version == version]
        return named[-1] if named else None

    async def record(self, event: GovernanceEvent, authority: Authority) -> str:
        """Append the event, and apply it here before this returns. Returns the id of its entry.

        Raises:
            MaybeWritten, NothingWritten: as `Ledger.note`; what was written after all is applied when it is seen.
        """
        tenant, made = self._tenant(event), note_id()
        applied = self._awaited[made] = asyncio.get_running_loop().create_future()
        try:
            await self._ledger.note(governance_subject(tenant), tenant, authority, (event,), made=made)
            try:
                async with asyncio.timeout(APPLIED_WITHIN_S):
                    await applied
            except TimeoutError:
                self._apply(event)  # it is on the trail; the flow, when it is whole again, applies it in its order
        finally:
            del self._awaited[made]
        return made

    def _tenant(self, event: GovernanceEvent) -> str:
        """Whose subject an event belongs on: `_` where it is about every tenant."""
        if isinstance(event, RevocationLifted):
            lifted = self.revocations.get(event.revocation)
            return (lifted.tenant if lifted else "") or ANONYMOUS_TENANT
        return (event.tenant if isinstance(event, PrincipalRevoked) else "") or ANONYMOUS_TENANT

    async def _run(self) -> None:
        while True:
            try:
                await self._flow()
            except _Astray as why:
                self._failure = str(why)
            except Exception as error:  # noqa: BLE001 - whatever it is: nothing may be decided on half of what governs
                self._failure = str(error) or type(error).__name__
            if self._whole:
                _log.warning("policies and revocations are read again from %d on: %s", self.position, self._failure)
            self._whole = False
            await asyncio.sleep(RETRY_S)

    async def _flow(self) -> None:
        """One consumer from after the last entry applied, as long as nothing is missing of what it delivers."""
        self._reconnects = reconnects = self._nc.stats["reconnects"]
        delivered = 0
        consumer = await self._js.pull_subscribe(SUBJECTS, stream=TRAIL, config=_consumer(self.position + 1))
        try:
            left = (await consumer.consumer_info()).num_pending or 0
            while True:
                if not left:
                    self._reached_the_end()
                try:
                    messages = await fetch(consumer, max(1, min(FETCH, left)), timeout_s=LISTEN_S)
                except TimeoutError:
                    if self._nc.stats["reconnects"] != reconnects:
                        message = "the connection to the broker was made anew"
                        raise _Astray(message) from None
                    async with asyncio.timeout(LOOK_S):
                        info = await consumer.consumer_info()
                    left = info.num_pending or 0
                    if (info.delivered.consumer_seq if info.delivered else 0) != delivered:
                        message = "an entry went astray"
                        raise _Astray(message) from None
                    continue
                for one in messages:
                    delivered += 1
                    if one.metadata.sequence.consumer != delivered:
                        message = f"entries went astray before sequence {one.metadata.sequence.stream}"
                        raise _Astray(message)
                    left = one.metadata.num_pending
                    if (one.headers or {}).get(KEY_ID, "") not in self._keys:
                        await self._learn()
                    self._take(one)
        finally:
            with contextlib.suppress(NatsError, OSError):
                await consumer.unsubscribe()

    async def _learn(self) -> None:
        """Take up the keys that were announced since this was last asked. While they cannot be read, nothing counts."""
        subject = control_subject(ANONYMOUS_TENANT)
        try:
            last = (await self._js.get_last_msg(TRAIL, subject)).seq or 0
        except NotFoundError:
            return
        if last <= self._learned:
            return
        consumer = await self._js.pull_subscribe(subject, stream=TRAIL, config=_consumer(self._learned + 1))
        delivered = 0
        try:
            left = (await consumer.consumer_info()).num_pending or 0
            while self._learned < last:
                for one in await fetch(consumer, max(1, min(FETCH, left)), timeout_s=LEARNT_WITHIN_S):
                    delivered += 1
                    if one.metadata.sequence.consumer != delivered:
                        message = f"entries went astray before sequence {one.metadata.sequence.stream}"
                        raise _Astray(message)
                    left = one.metadata.num_pending
                    self._take_key(one)
                    self._learned = one.metadata.sequence.stream
        finally:
            with contextlib.suppress(NatsError, OSError):
                await consumer.unsubscribe()

    def _take_key(self, message: Msg) -> None:
        """Have the signatures of a key count from here on, if this entry announces one and is signed by another."""
        if b'"KeyActivated"' not in message.data or not self._is_signed(message):
            return
        with contextlib.suppress(TasktrailError):
            for event in entries.decode(message.data).events:
                if isinstance(event, KeyActivated) and event.purpose == "signing":
                    kid, key = _public_key(event.public_key)
                    self._keys.setdefault(kid, key)

    def _reached_the_end(self) -> None:
        if not self._begun:
            self._begun = True
            if self._newest is not None:
                self._activate(self._newest)
        self._whole, self._failure = True, ""
        self._moved.set()

    def _take(self, message: Msg) -> None:
        """Apply one entry, unless it is none of ours."""
        self.position = message.metadata.sequence.stream
        self._moved.set()
        try:
            entry = entries.decode(message.data) if self._is_signed(message) else None
        except TasktrailError:
            entry = None
        if entry is None or message.subject != governance_subject(entry.tenant):
            self.rejected += 1
            kid = (message.headers or {}).get(KEY_ID, "")
            what = "what is at %d of %s governs nothing: "
            if kid in self._keys:
                _log.error(what + "it is not signed by the key that it names", self.position, TRAIL)
            else:
                _log.error(what + UNKNOWN_KEY, self.position, TRAIL, kid[:_KEY_ID_LENGTH])
            return
        if entry.id in self._applied:  # an old one, put there again: a policy of last year's, say
            self.rejected += 1
            _log.error("the entry at %d of %s governs nothing: it is a copy of an earlier one", self.position, TRAIL)
            return
        self._applied.add(entry.id)
        for event in entry.events:
            if isinstance(event, GovernanceEvent):
                self._apply(event)
                if self._begun:
                    self._tell(event)
            else:
                # Of a newer version, or out of its place: without effect on what this one decides.
                _log.warning("the entry at %d of %s holds %s", self.position, TRAIL, type(event).__name__)
        applied = self._awaited.get(entry.id)
        if applied is not None and not applied.done():
            applied.set_result(None)

    def _is_signed(self, message: Msg) -> bool:
        headers = message.headers or {}
        key = self._keys.get(headers.get(KEY_ID, ""))
        if key is None:
            return False
        try:
            key.verify(base64.b64decode(headers.get(SIGNATURE, ""), validate=True), message.data)
        except (InvalidSignature, ValueError):
            return False
        return True

    def _apply(self, event: GovernanceEvent) -> None:
        match event:
            case PrincipalRevoked():
                self.revocations.add(revocation_of(event))
            case RevocationLifted():
                self.revocations.remove(event.revocation)
            case PolicyActivated():
                self._texts[event.sha256] = self._newest = event
                if self._begun:  # until then only the last one matters
                    self._activate(event)

    def _activate(self, event: PolicyActivated) -> None:
        """This policy, or none."""
        if event.sha256 == self._policies.sha256 and event.version == self._policies.version:
            return
        try:
            self._policies.activate(event.text, event.version)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the one before does not decide any more
            self._policies.lose(f"policy {event.version} of the trail cannot be used by this version: {error}")

    def _tell(self, event: GovernanceEvent) -> None:
        """Have everyone know who listens; how long that takes holds up nothing."""
        for listener in self.on_change:
            task = asyncio.ensure_future(self._told(listener, event))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _told(self, listener: Listener, event: GovernanceEvent) -> None:
        try:
            await listener(event)
        except Exception:  # noqa: BLE001 - the listener's own failure, whatever it is
            _log.exception("%s is applied, but its listener failed", type(event).__name__)


def _public_key(text: str) -> tuple[str, Ed25519PublicKey]:
    """The key of this text, and its id as in `Keyring.kid`."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return hashlib.sha256(raw).hexdigest()[:_KEY_ID_LENGTH], Ed25519PublicKey.from_public_bytes(raw)
    except (binascii.Error, ValueError):
        message = f"{text[:64]!r} is no Ed25519 public key in base64url"
        raise InvalidRequest(message) from None


def _consumer(start: int) -> api.ConsumerConfig:
    return api.ConsumerConfig(
        deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=start,
        ack_policy=api.AckPolicy.NONE,
        inactive_threshold=INACTIVE_S,
    )
