"""The Ledger: the one writer of the trail.

Guarantees: an entry is acknowledged by JetStream before anyone is told of it; one command makes one entry, once,
however often it is sent; concurrent commands on a task are ordered by the task's subject; a caller is answered within
`answer_within_ms`, with the outcome or with what may have happened, and an unconfirmed write is resolved for
`resolve_for_ms` more, under the same command id. Needs the right to publish on `trail.>`; nobody else has it.

    done = await ledger.submit(tenant, ref, command, authority, sealed)
    done.outcome, done.state
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Awaitable, Callable

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from nats.js import JetStreamContext
from nats.js.api import PubAck
from nats.js.errors import APIError, NoStreamResponseError

from tasktrail.events import entry as entries
from tasktrail.events.authority import Authority, Level, Trigger
from tasktrail.events.commands import CreateTask, RespondToInput, TaskCommand
from tasktrail.events.decide import decide
from tasktrail.events.entry import EXPECTED, KEY_ID, MSG_ID, SIGNATURE, Entry
from tasktrail.events.errors import (
    CommandReused,
    MaybeWritten,
    NothingWritten,
    TaskNotFound,
    TooLarge,
    TrailError,
    Unavailable,
)
from tasktrail.events.facts import Commitment, Event, TaskEvent, UnknownEvent
from tasktrail.events.subjects import TRAIL, entry_id, task_subject
from tasktrail.events.task import Outcome, outcome_of
from tasktrail.projections import current
from tasktrail.projections.current import State
from tasktrail.services.clock import now_ms, rfc3339
from tasktrail.services.keyring import Keyring
from tasktrail.services.settings import Settings
from tasktrail.services.states import States

_log = logging.getLogger(__name__)

WRONG_SEQUENCE = frozenset({10071, 10164})
CONFLICTS_MAX = 3
_CONFLICT_S = 0.005  # 10164 says that another entry of the task is being replicated: it cannot be read yet
_IN_PROCESS = 10158  # R3: an earlier try with this message id is being replicated; it may yet fail
_STORE_FAILED = 10077  # the stream is full (`discard: new`), or its disk: nothing was stored
_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 1.0
_ACK_S = 1.0
_FLAGS = re.compile(rb',"flags":\[[^\]]*\]')  # as a member only: quotes within a text are escaped


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a command. `repeated`: it had been recorded before, and this is that outcome."""

    outcome: Outcome
    reason: str
    state: State
    entry_id: str
    repeated: bool = False
    events: tuple[Event | UnknownEvent, ...] = ()


class Attempt:
    """One command on its way to the trail, with the id and the digest that its entry will have."""

    def __init__(self, tenant: str, ref: str, command: TaskCommand, authority: Authority) -> None:
        self.tenant, self.ref, self.command, self.authority = tenant, ref, command, authority
        self.entry_id = command_entry_id(ref, command, authority)
        self.sha256 = command_digest(command)
        self.unsure = False  # whether a try of it may be on the trail
        self.given_up = False  # the caller was told that nothing was written: so it shall be


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
        self._kid = keyring.kid
        self.on_recorded: Callable[[State], Awaitable[None]] | None = None
        self._flights: dict[str, tuple[Attempt, asyncio.Task[Recorded]]] = {}
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
            TaskNotFound: there is no such task, and the command does not make one.
            TooLarge: its entry is larger than the broker takes.
        """
        this = Attempt(tenant, ref, command, authority)
        attempt, flight = self._flights.get(this.entry_id) or self._begin(this, sealed or {})
        if attempt.sha256 != this.sha256:
            raise _reused(command)
        try:
            async with asyncio.timeout(self._settings.answer_within_ms / 1000):
                return await asyncio.shield(flight)
        except TimeoutError:
            if not attempt.unsure:
                attempt.given_up = True
                self._forget(attempt)
            raise self._unanswered(attempt) from None

    def _begin(self, attempt: Attempt, sealed: dict[str, bytes]) -> tuple[Attempt, asyncio.Task[Recorded]]:
        flight = asyncio.create_task(self._resolve(attempt, sealed))
        self._flights[attempt.entry_id] = attempt, flight
        flight.add_done_callback(lambda done: self._landed(attempt, done))
        return attempt, flight

    def _landed(self, attempt: Attempt, flight: asyncio.Task[Recorded]) -> None:
        self._forget(attempt)
        if not flight.cancelled():
            flight.exception()

    def _forget(self, attempt: Attempt) -> None:
        if self._flights.get(attempt.entry_id, (None,))[0] is attempt:
            del self._flights[attempt.entry_id]

    def _unanswered(self, attempt: Attempt) -> Unavailable:
        return _unavailable(
            f"the trail did not confirm within {self._settings.answer_within_ms} ms", unsure=attempt.unsure
        )

    async def _resolve(self, attempt: Attempt, sealed: dict[str, bytes]) -> Recorded:
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

    async def _until_settled(  # noqa: C901 - one arm for each way a try may end
        self, attempt: Attempt, sealed: dict[str, bytes]
    ) -> Recorded:
        conflicts, pause = 0, _BACKOFF_FIRST_S
        state = self._states.kept(attempt.ref)
        remembered = state is not None
        deadline = asyncio.get_running_loop().time() + self._settings.resolve_for_ms / 1000  # see `ending`
        while not attempt.given_up and asyncio.get_running_loop().time() < deadline:
            try:
                if not remembered:
                    state = await self._states.of(attempt.tenant, attempt.ref)
                done = await self._settled(attempt, state, sealed)
            except APIError as error:
                if error.err_code in WRONG_SEQUENCE and not attempt.unsure:
                    conflicts += 0 if remembered else 1
                    if conflicts > CONFLICTS_MAX:
                        why = f"the task changed {conflicts} times meanwhile"
                        raise _unavailable(why, unsure=False) from None
                    remembered = False
                    await asyncio.sleep(conflicts * _CONFLICT_S)
                    continue
                if error.err_code not in WRONG_SEQUENCE and not _passing(error):
                    why = f"the trail does not take the entry ({error.description or error.code})"
                    raise _unavailable(why, unsure=attempt.unsure) from None
            except MaxPayloadError:
                message = "the entry with its payloads is larger than the broker takes; send fewer or smaller ones"
                raise TooLarge(message) from None
            except (NatsError, OSError):
                pass
            else:
                if done.events or not remembered:
                    return done
                remembered = False
                continue
            remembered = False
            await asyncio.sleep(pause)
            pause = min(2 * pause, _BACKOFF_MAX_S)
        raise self._unanswered(attempt)

    async def _settled(self, attempt: Attempt, state: State | None, sealed: dict[str, bytes]) -> Recorded:
        """What became of the command: as the state says when it is on the trail, else by appending it."""
        known = self._known(attempt, state)
        if known is None:
            return await self._append(attempt, state, sealed)
        if attempt.unsure:
            await self._tell(known.state)
        return known

    async def _tell(self, state: State) -> None:
        """Tell who listens. What is on the trail is on it, whatever becomes of that."""
        if self.on_recorded is None:
            return
        try:
            await self.on_recorded(state)
        except Exception:  # noqa: BLE001 - the listener's own failure, whatever it is
            _log.exception("entry %d of task %s is recorded, but its listener failed", state.task.seq, state.task_ref)

    def _known(self, attempt: Attempt, state: State | None) -> Recorded | None:
        accepted = state.task.commands.get(attempt.entry_id) if state else None
        if accepted is None or state is None:
            return None
        if accepted.sha256 != attempt.sha256:
            raise _reused(attempt.command)
        return Recorded(
            outcome=accepted.outcome,
            reason=accepted.reason,
            state=state,
            entry_id=attempt.entry_id,
            repeated=True,
        )

    async def _append(self, attempt: Attempt, state: State | None, sealed: dict[str, bytes]) -> Recorded:
        entry = make_entry(attempt, state, sealed, self._clock())
        outcome, reason = outcome_of(entry.events)
        if not entry.events and state is not None:
            return Recorded(outcome=outcome, reason=reason, state=state, entry_id=attempt.entry_id)
        body = entries.encode(entry)
        ack = await self._try(attempt, body, state.stream_seq if state else 0)
        if ack.duplicate:
            known = await self._as_stored(attempt, ack.seq)
            await self._tell(known.state)
            return known
        after = current.advance(state, entry, entries.leaf_hash(body), ack.seq)
        self._states.remember(after)
        await self._tell(after)
        return Recorded(outcome=outcome, reason=reason, state=after, entry_id=entry.id, events=entry.events)

    async def _try(self, attempt: Attempt, body: bytes, expected: int) -> PubAck:
        """Publish the command's entry once; whether it may have been written is kept in the attempt."""
        if attempt.given_up:
            raise self._unanswered(attempt)
        before, attempt.unsure = attempt.unsure, True
        subject = task_subject(attempt.tenant, attempt.ref)
        try:
            return await self._publish(subject, body, attempt.entry_id, expected=expected)
        except (NoStreamResponseError, MaxPayloadError):
            attempt.unsure = before
            raise
        except APIError as error:
            attempt.unsure = before or _passing(error)
            raise

    async def _as_stored(self, attempt: Attempt, seq: int) -> Recorded:
        """An earlier try of the same command is on the trail, at `seq`: read what it was."""
        state = await self._states.of(attempt.tenant, attempt.ref)
        known = self._known(attempt, state)
        if known is not None:
            return known
        entry = entries.decode((await self._js.get_msg(TRAIL, seq=seq)).data or b"")
        if state is None or entry.id != attempt.entry_id:
            message = f"the stream calls entry {attempt.entry_id} a duplicate of {seq}, which is another"
            raise TrailError(message)
        if entry.command_sha256 != attempt.sha256:
            raise _reused(attempt.command)
        outcome, reason = outcome_of(entry.events)
        return Recorded(outcome=outcome, reason=reason, state=state, entry_id=entry.id, repeated=True)

    async def note(  # noqa: PLR0913, PLR0917 - the parts of an entry
        self, subject: str, tenant: str, authority: Authority, events: tuple[Event, ...], ref: str = "", made: str = ""
    ) -> str:
        """Append an entry outside any chain (access, denied, control): it never contends. Returns its id.

        `made` is the id to give it: of one that `MaybeWritten` was said of, so that it is on the trail once.

        Raises:
            MaybeWritten, NothingWritten: as `submit`.
        """
        made = made or note_id()
        entry = Entry(
            v=entries.VERSION,
            id=made,
            tenant=tenant,
            task_ref=ref,
            recorded_at=rfc3339(self._clock()),
            authority=authority,
            events=events,
        )
        body, pause, unsure = entries.encode(entry), _BACKOFF_FIRST_S, False
        deadline = asyncio.get_running_loop().time() + self._settings.answer_within_ms / 1000
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while asyncio.get_running_loop().time() < deadline:  # see `ending`
                    before, unsure = unsure, True
                    try:
                        await self._publish(subject, body, made)
                    except NoStreamResponseError:
                        unsure = before
                    except APIError as error:
                        if not _passing(error):
                            why = f"the trail does not take the entry ({error.description or error.code})"
                            raise _unavailable(why, unsure=before) from None
                    except (NatsError, OSError):
                        pass
                    else:
                        return made
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _BACKOFF_MAX_S)
        why = f"the trail did not confirm within {self._settings.answer_within_ms} ms"
        raise _unavailable(why, unsure=unsure)

    async def _publish(self, subject: str, body: bytes, made: str, *, expected: int | None = None) -> PubAck:
        headers = {MSG_ID: made, SIGNATURE: self._keyring.sign(body), KEY_ID: self._kid}
        if expected is not None:
            headers[EXPECTED] = str(expected)
        return await self._js.publish(subject, body, headers=headers, timeout=_ACK_S)


def make_entry(attempt: Attempt, state: State | None, sealed: dict[str, bytes], now: int) -> Entry:
    """The entry that a command makes after `state`, at `now` (epoch milliseconds); without events: nothing to record.

    Raises:
        TaskNotFound: there is no task, and the command does not make one. Nothing may begin a chain but a creation.
    """
    command, task = attempt.command, state.task if state else None
    if task is None and not isinstance(command, CreateTask):
        raise TaskNotFound
    at_ms = max(now, task.last_updated_at_ms if task else 0)
    events = decide(msgspec.structs.replace(command, at_ms=at_ms), task)
    committed = _committed(events) if sealed else ()
    return Entry(
        v=entries.VERSION,
        id=attempt.entry_id,
        tenant=attempt.tenant,
        task_ref=attempt.ref,
        task_seq=task.seq + 1 if task else 1,
        prev=task.leaf if task else entries.GENESIS,
        recorded_at=rfc3339(at_ms),
        command=type(command).__name__,
        command_sha256=attempt.sha256,
        authority=attempt.authority,
        events=events,
        sealed={name: blob for name, blob in sealed.items() if name in committed},
    )


def command_entry_id(ref: str, command: TaskCommand, authority: Authority) -> str:
    """The id of the entry that a command makes. Ids of ours are fixed, so no command of an MCP server can have them."""
    theirs = {Trigger.CALLER, Trigger.MCP_SERVER, Trigger.WORKER}
    return entry_id(ref if authority.trigger in theirs else f"{authority.trigger}:{ref}", command.id)


def note_id() -> str:
    """The id of an entry outside any chain: 160 random bits."""
    return os.urandom(20).hex()


def _unavailable(why: str, *, unsure: bool) -> Unavailable:
    """What the caller is told when a command could not be seen through."""
    if unsure:
        message = f"{why}; it may have been written. Send it again with the same command id to learn its outcome"
        return MaybeWritten(message)
    return NothingWritten(f"{why}; nothing was written. Send it again")


def _reused(command: TaskCommand) -> CommandReused:
    message = (
        f"command id {command.id!r} was used before for another command of this task; use a new id for a new command"
    )
    return CommandReused(message)


def _committed(events: tuple[TaskEvent, ...]) -> frozenset[str]:
    """Names of the payloads that these events commit to."""
    values = (getattr(event, field) for event in events for field in event.__struct_fields__)
    return frozenset(value.name for value in values if isinstance(value, Commitment))


def _passing(error: APIError) -> bool:
    """Whether a JetStream error may go away by itself: 503 while a leader is elected, 500 while it is shutting down."""
    return error.err_code == _IN_PROCESS or (error.code in {500, 503} and error.err_code != _STORE_FAILED)


def command_digest(command: TaskCommand) -> str:
    """What tells a repeat of a command from another with its id: 32 hex digits of a SHA-256.

    Over it without its time, and without what was found out about it: another version may see more in its payloads, and
    the task whose work made it may be over by then.
    """
    said = msgspec.structs.replace(command, at_ms=0)
    if isinstance(said, RespondToInput) and said.said:
        said = msgspec.structs.replace(said, answers=())
    if isinstance(said, CreateTask):
        said = msgspec.structs.replace(said, parent="", parent_level=Level.CLAIMED)
    return hashlib.sha256(_FLAGS.sub(b"", msgspec.json.encode(said))).hexdigest()[:32]
