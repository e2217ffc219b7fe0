"""A trail in memory: decides, chains and remembers as the Ledger and its states do, without a broker.

Guarantees: entries are made by the Ledger's own code and their bytes are the ones it would publish (unsigned: there are
no headers); one contract suite runs on both. For tests of what stands on a Ledger; one process, one thread.

    trail = MemoryTrail(clock=lambda: NOW_MS)
    done = await trail.submit("acme", ref, create(), authority())
    trail.messages[0].entry
"""

from collections.abc import Awaitable, Callable, Iterable

import msgspec

from tasktrail.events import entry as entries
from tasktrail.events.authority import Authority
from tasktrail.events.commands import TaskCommand
from tasktrail.events.entry import MSG_ID, Entry
from tasktrail.events.errors import ChainBroken, CommandReused
from tasktrail.events.facts import Event
from tasktrail.events.subjects import entry_id, kind_of, task_subject
from tasktrail.events.task import outcome_of
from tasktrail.projections import current
from tasktrail.projections.current import State
from tasktrail.services.clock import now_ms, rfc3339
from tasktrail.services.ledger import Attempt, Recorded, make_entry


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the trail."""

    stream_seq: int
    subject: str
    body: bytes
    headers: dict[str, str] = {}

    @property
    def entry(self) -> Entry:
        """Its entry."""
        return entries.decode(self.body)


def folded(messages: Iterable[Stored]) -> dict[str, State]:
    """What any reader makes of a whole trail: the states of its tasks, by reference.

    Raises:
        ChainBroken: an entry is on it twice, on another task's subject, or does not continue its task.
        MalformedEntry: a message is no entry.
    """
    states: dict[str, State] = {}
    seen: set[str] = set()
    for message in messages:
        entry = message.entry
        if entry.id in seen or message.headers.get(MSG_ID, entry.id) != entry.id:
            text = f"message {message.stream_seq} holds entry {entry.id} again, or under another id"
            raise ChainBroken(text)
        seen.add(entry.id)
        if kind_of(message.subject) != "task":
            continue
        if message.subject != task_subject(entry.tenant, entry.task_ref):
            text = f"message {message.stream_seq} of task {entry.task_ref} stands on {message.subject}"
            raise ChainBroken(text)
        before = states.get(entry.task_ref)
        states[entry.task_ref] = current.advance(before, entry, entries.leaf_hash(message.body), message.stream_seq)
    return states


class MemoryTrail:
    """The calls of `Ledger` and `States` that the service uses. `messages` is the stream."""

    def __init__(self, clock: Callable[[], int] = now_ms) -> None:
        self._clock = clock
        self.messages: list[Stored] = []
        self.on_recorded: Callable[[State], Awaitable[None]] | None = None
        self._states: dict[str, State] = {}
        self._recorded: dict[str, tuple[str, Recorded]] = {}
        self._notes: set[str] = set()

    def now(self) -> int:
        """The trail's clock, epoch milliseconds."""
        return self._clock()

    async def by_handle(self, ref: str) -> State | None:
        """The state of the task with this reference, in whichever tenant."""
        return self._states.get(ref)

    async def of(self, tenant: str, ref: str) -> State | None:
        """The state of a task whose tenant is known."""
        state = self._states.get(ref)
        return state if state is not None and state.tenant == tenant else None

    async def submit(
        self, tenant: str, ref: str, command: TaskCommand, authority: Authority, sealed: dict[str, bytes] | None = None
    ) -> Recorded:
        """As `Ledger.submit`; the trail always answers."""
        done = self.record(tenant, ref, command, authority, sealed)
        if done.events and self.on_recorded is not None:
            await self.on_recorded(done.state)
        return done

    def record(
        self, tenant: str, ref: str, command: TaskCommand, authority: Authority, sealed: dict[str, bytes] | None = None
    ) -> Recorded:
        """`submit` without waiting, and without telling anybody."""
        attempt = Attempt(tenant, ref, command, authority)
        state = self._states.get(ref)
        sha256, before = self._recorded.get(attempt.entry_id, ("", None))
        if before is not None and state is not None:
            if sha256 != attempt.sha256:
                message = f"command id {command.id!r} was used before for another command of this task"
                raise CommandReused(message)
            return msgspec.structs.replace(before, state=state, events=(), repeated=True)
        entry = make_entry(attempt, state, sealed or {}, self._clock())
        outcome, reason = outcome_of(entry.events)
        if not entry.events and state is not None:
            return Recorded(outcome=outcome, reason=reason, state=state, entry_id=entry.id)
        body = entries.encode(entry)
        seq = self._store(task_subject(tenant, ref), body)
        after = self._states[ref] = current.advance(state, entry, entries.leaf_hash(body), seq)
        done = Recorded(outcome=outcome, reason=reason, state=after, entry_id=entry.id, events=entry.events)
        self._recorded[entry.id] = attempt.sha256, done
        return done

    async def note(  # noqa: PLR0913, PLR0917 - the parts of an entry
        self, subject: str, tenant: str, authority: Authority, events: tuple[Event, ...], ref: str = "", made: str = ""
    ) -> str:
        """As `Ledger.note`."""
        made = made or entry_id(subject, f"note {len(self.messages) + 1}")
        if made in self._notes:
            return made
        self._notes.add(made)
        entry = Entry(
            v=entries.VERSION,
            id=made,
            tenant=tenant,
            task_ref=ref,
            recorded_at=rfc3339(self._clock()),
            authority=authority,
            events=events,
        )
        self._store(subject, entries.encode(entry))
        return made

    def _store(self, subject: str, body: bytes) -> int:
        seq = len(self.messages) + 1
        self.messages.append(Stored(stream_seq=seq, subject=subject, body=body))
        return seq
