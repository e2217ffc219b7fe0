"""The Ledger: the one writer of the trail.

Guarantees: an entry is acknowledged by JetStream before anyone is told of it; one command makes one entry, once,
however often it is sent; concurrent commands on a task are ordered by the task's subject; a caller is answered within
`answer_within_ms`, with the outcome or with what may have happened, and an unconfirmed write is resolved for
`resolve_for_ms` more, under the same command id. Needs the right to publish on `trail.>`; nobody else has it.

    done = await ledger.submit(tenant, ref, command, authority, sealed)
    done.outcome, done.state
"""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import PubAck
from nats.js.errors import APIError

from tasktrail.events import entry as entries
from tasktrail.events.authority import Authority
from tasktrail.events.decide import TaskCommand, decide
from tasktrail.events.entry import EXPECTED, KEY_ID, MSG_ID, SIGNATURE, Entry
from tasktrail.events.errors import CommandReused, MaybeWritten, NothingWritten, TasktrailError
from tasktrail.events.facts import Commitment, Event, TaskEvent
from tasktrail.events.subjects import entry_id, task_subject
from tasktrail.events.task import Outcome, outcome_of
from tasktrail.projections import current
from tasktrail.projections.current import State
from tasktrail.services.clock import now_ms, rfc3339
from tasktrail.services.keyring import Keyring
from tasktrail.services.settings import Settings
from tasktrail.services.states import States

WRONG_SEQUENCE = frozenset({10071, 10164})
CONFLICTS_MAX = 3
_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 1.0
_ACK_S = 1.0


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a command. `repeated`: it had been recorded before, and this is that outcome."""

    outcome: Outcome
    reason: str
    state: State
    entry_id: str
    repeated: bool = False
    events: tuple[TaskEvent, ...] = ()


class _Attempt:
    """One command on its way to the trail."""

    def __init__(self, tenant: str, ref: str, command: TaskCommand, authority: Authority) -> None:
        self.tenant, self.ref, self.command, self.authority = tenant, ref, command, authority
        self.entry_id = entry_id(ref, command.id)
        self.sha256 = command_digest(command)
        self.sent = False


class _Turn:
    """The commands of this process on one task take turns: fewer conflicts at the trail."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0


class Ledger:
    """Decides commands against a task's history and appends the entries."""

    def __init__(  # noqa: PLR0913, PLR0917 - its collaborators
        self,
        nc: Client,
        js: JetStreamContext,
        keyring: Keyring,
        states: States,
        settings: Settings,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._nc, self._js, self._keyring, self._states, self._settings = nc, js, keyring, states, settings
        self._clock = clock
        self.on_recorded: Callable[[State], Awaitable[None]] | None = None
        self._flights: dict[str, asyncio.Task[Recorded]] = {}
        self._turns: dict[str, _Turn] = {}

    def now(self) -> int:
        """The Ledger's clock, epoch milliseconds."""
        return self._clock()

    async def submit(
        self, tenant: str, ref: str, command: TaskCommand, authority: Authority, sealed: dict[str, bytes] | None = None
    ) -> Recorded:
        """Record what `command` causes in the task; a refusal is recorded and returned, not raised.

        Raises:
            NothingWritten: the trail did not answer in time and holds nothing of this command.
            MaybeWritten: it did not confirm in time; the same command id will return the outcome.
            CommandReused: this command id was used for another command.
        """
        attempt = _Attempt(tenant, ref, command, authority)
        flight = self._flights.get(attempt.entry_id)
        if flight is None:
            flight = asyncio.create_task(self._resolve(attempt, sealed or {}))
            self._flights[attempt.entry_id] = flight
            flight.add_done_callback(lambda done: self._landed(attempt.entry_id, done))
        try:
            async with asyncio.timeout(self._settings.answer_within_ms / 1000):
                return await asyncio.shield(flight)
        except TimeoutError:
            raise self._unanswered(attempt) from None

    def _landed(self, key: str, flight: asyncio.Task[Recorded]) -> None:
        self._flights.pop(key, None)
        if not flight.cancelled():
            flight.exception()

    def _unanswered(self, attempt: _Attempt) -> TasktrailError:
        waited = self._settings.answer_within_ms
        if attempt.sent:
            message = (
                f"the trail did not confirm within {waited} ms; the command may have been written. "
                "Send it again with the same command id to learn its outcome"
            )
            return MaybeWritten(message)
        message = f"the trail did not answer within {waited} ms; nothing was written. Send the command again"
        return NothingWritten(message)

    async def _resolve(self, attempt: _Attempt, sealed: dict[str, bytes]) -> Recorded:
        turn = self._turns.setdefault(attempt.ref, _Turn())
        turn.waiting += 1
        try:
            async with asyncio.timeout(self._settings.resolve_for_ms / 1000), turn.lock:
                return await self._until_settled(attempt, sealed)
        except TimeoutError:
            raise self._unanswered(attempt) from None
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                self._turns.pop(attempt.ref, None)

    async def _until_settled(self, attempt: _Attempt, sealed: dict[str, bytes]) -> Recorded:
        conflicts, pause = 0, _BACKOFF_FIRST_S
        state = self._states.kept(attempt.ref)
        remembered = state is not None
        while True:
            try:
                if not remembered:
                    state = await self._states.of(attempt.tenant, attempt.ref)
                known = self._known(attempt, state)
                if known is not None:
                    return known
                done = await self._append(attempt, state, sealed)
                if done.outcome is not Outcome.UNCHANGED or not remembered:
                    return done
                remembered = False
                continue
            except APIError as error:
                if error.err_code in WRONG_SEQUENCE:
                    conflicts += 0 if remembered else 1
                    remembered = False
                    if conflicts > CONFLICTS_MAX:
                        message = f"the task changed {conflicts} times meanwhile; nothing was written. Send it again"
                        raise NothingWritten(message) from None
                    continue
                if not _passing(error):
                    raise
            except (NatsError, OSError):
                pass
            remembered = False
            await asyncio.sleep(pause)
            pause = min(2 * pause, _BACKOFF_MAX_S)

    def _known(self, attempt: _Attempt, state: State | None) -> Recorded | None:
        accepted = state.task.commands.get(attempt.entry_id) if state else None
        if accepted is None or state is None:
            return None
        if accepted.sha256 != attempt.sha256:
            message = (
                f"command id {attempt.command.id!r} was used before for another command of this task; "
                "use a new id for a new command"
            )
            raise CommandReused(message)
        return Recorded(
            outcome=accepted.outcome,
            reason=accepted.reason,
            state=state,
            entry_id=attempt.entry_id,
            repeated=True,
        )

    async def _append(self, attempt: _Attempt, state: State | None, sealed: dict[str, bytes]) -> Recorded:
        at_ms = max(self._clock(), state.task.last_updated_at_ms if state else 0)
        events = decide(msgspec.structs.replace(attempt.command, at_ms=at_ms), state.task if state else None)
        outcome, reason = outcome_of(events)
        if not events and state is not None:
            return Recorded(outcome=outcome, reason=reason, state=state, entry_id=attempt.entry_id)
        entry = Entry(
            v=entries.VERSION,
            id=attempt.entry_id,
            tenant=attempt.tenant,
            task_ref=attempt.ref,
            task_seq=state.task.seq + 1 if state else 1,
            prev=state.task.leaf if state else entries.GENESIS,
            recorded_at=rfc3339(at_ms),
            command=type(attempt.command).__name__,
            command_sha256=attempt.sha256,
            authority=attempt.authority,
            events=events,
            sealed={name: blob for name, blob in sealed.items() if name in _committed(events)},
        )
        body = entries.encode(entry)
        attempt.sent = True
        subject = task_subject(attempt.tenant, attempt.ref)
        ack = await self._publish(subject, body, entry.id, expected=state.stream_seq if state else 0)
        if ack.duplicate:
            return await self._as_stored(attempt)
        after = current.advance(state, entry, entries.leaf_hash(body), ack.seq)
        self._states.remember(after)
        if self.on_recorded is not None:
            await self.on_recorded(after)
        return Recorded(outcome=outcome, reason=reason, state=after, entry_id=entry.id, events=events)

    async def _as_stored(self, attempt: _Attempt) -> Recorded:
        """An earlier try of the same command is on the trail: read what it was."""
        known = self._known(attempt, await self._states.of(attempt.tenant, attempt.ref))
        if known is None:
            message = f"the stream calls entry {attempt.entry_id} a duplicate, but its task does not hold it"
            raise TasktrailError(message)
        return known

    async def note(
        self, subject: str, tenant: str, authority: Authority, events: tuple[Event, ...], ref: str = ""
    ) -> str:
        """Append an entry outside any chain (access, denied, control): it never contends. Returns its id.

        Raises:
            MaybeWritten, NothingWritten: as `submit`.
        """
        made = os.urandom(20).hex()
        entry = Entry(
            v=entries.VERSION,
            id=made,
            tenant=tenant,
            task_ref=ref,
            recorded_at=rfc3339(self._clock()),
            authority=authority,
            events=events,
        )
        body, pause, sent = entries.encode(entry), _BACKOFF_FIRST_S, False
        try:
            async with asyncio.timeout(self._settings.answer_within_ms / 1000):
                while True:
                    try:
                        sent = True
                        await self._publish(subject, body, made)
                    except APIError as error:
                        if not _passing(error):
                            raise
                    except (NatsError, OSError):
                        pass
                    else:
                        return made
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _BACKOFF_MAX_S)
        except TimeoutError:
            message = f"the trail did not confirm within {self._settings.answer_within_ms} ms; send the request again"
            raise (MaybeWritten if sent else NothingWritten)(message) from None

    async def _publish(self, subject: str, body: bytes, made: str, *, expected: int | None = None) -> PubAck:
        headers = {MSG_ID: made, SIGNATURE: self._keyring.sign(body), KEY_ID: self._keyring.kid}
        if expected is not None:
            headers[EXPECTED] = str(expected)
        return await self._js.publish(subject, body, headers=headers, timeout=_ACK_S)


def _committed(events: tuple[TaskEvent, ...]) -> frozenset[str]:
    """Names of the payloads that these events commit to."""
    values = (getattr(event, field) for event in events for field in event.__struct_fields__)
    return frozenset(value.name for value in values if isinstance(value, Commitment))


def _passing(error: APIError) -> bool:
    """Whether a JetStream error may go away by itself: 503 while a leader is elected, 500 while it is shutting down."""
    return error.code in {500, 503}


def command_digest(command: TaskCommand) -> str:
    """What tells a repeat of a command from another with its id: SHA-256 over it without its time, 32 hex digits."""
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(command, at_ms=0))).hexdigest()[:32]
