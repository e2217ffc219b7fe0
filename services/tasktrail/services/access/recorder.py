"""Who looked, who was shown what, who was turned away: folded, and on the trail within a second.

Guarantees: the first denial of a run and the first disclosure of a payload to a caller are acknowledged by the trail
before they, and whatever of their run comes meanwhile, are answered; status-only polls and repeats fold, with exact
counts, for `fold_ms` at most. A run never spans two credentials, addresses, methods, statuses or wire codes. Memory is
bounded: older runs are written at once.

    await recorder.denied(authority, method, code, rule, ref, tenant)
    recorder.polled(state, authority, method)
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from functools import partial

import msgspec

from tasktrail.events.authority import Authority, identity
from tasktrail.events.errors import MaybeWritten, TasktrailError
from tasktrail.events.facts import AccessDenied, AccessEvent, Commitment, ResultDisclosed, TaskPolled
from tasktrail.events.subjects import access_subject, denied_subject
from tasktrail.projections.current import State
from tasktrail.services.access.rules import Rule, decision
from tasktrail.services.ledger import Ledger, note_id

_log = logging.getLogger(__name__)

RUNS_MAX = 10_000
REFS_MAX = 256
AT_ONCE = 64
QUIET_MS = 10_000
"""A denial after this long without another of its run begins a new run."""


class _Polls:
    def __init__(self, state: State, authority: Authority, method: str, at_ms: int) -> None:
        self.state, self.authority, self.method = state, authority, method
        self.count, self.first_ms, self.last_ms = 0, at_ms, at_ms


class _Shown:
    """Disclosures of the same payloads to the same caller by the same method."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.nth, self.folded = 0, 0
        self.pending: tuple[State, Authority, str, tuple[Commitment, ...]] | None = None


class _Denials:
    """A run of denials; `unwritten` counts, by the tenant each is shown to, what the trail does not hold yet."""

    def __init__(self, authority: Authority, method: str, code: int) -> None:
        self.authority, self.method, self.code = authority, method, code
        self.turn = asyncio.Lock()
        self.last_ms = -QUIET_MS - 1
        self.unwritten: dict[str, _Count] = {}


class _Count:
    def __init__(self, at_ms: int) -> None:
        self.count, self.first_ms, self.last_ms = 0, at_ms, at_ms
        self.reasons: dict[str, int] = {}
        self.refs: dict[str, int] = {}

    def add(self, rule: Rule, ref: str, at_ms: int) -> None:
        self.count += 1
        self.last_ms = at_ms
        self.reasons[rule.value] = self.reasons.get(rule.value, 0) + 1
        if ref and (ref in self.refs or len(self.refs) < REFS_MAX):
            self.refs[ref] = self.refs.get(ref, 0) + 1


class _Folded(msgspec.Struct, frozen=True):
    """An entry of a folded run, with the id under which it is on the trail once however often it is sent."""

    made: str
    subject: str
    tenant: str
    authority: Authority
    event: TaskPolled | ResultDisclosed | AccessDenied
    ref: str = ""


def _who(authority: Authority) -> Hashable:
    """What a run is never folded across: the caller, its credential and its address."""
    principal, client = authority.principal, authority.client
    credential, request = authority.credential, authority.request
    return (
        (principal.iss, principal.sub) if principal else None,
        client.client_id if client else "",
        credential.token_hash if credential else "",
        request.address if request else "",
        request.server if request else "",
    )


class Recorder:
    """Folds accesses and denials and writes them through the Ledger."""

    def __init__(self, ledger: Ledger, *, fold_ms: int) -> None:
        self._ledger = ledger
        self._fold_s = fold_ms / 1000
        self._polls: dict[Hashable, _Polls] = {}
        self._shown: OrderedDict[Hashable, _Shown] = OrderedDict()
        self._denials: OrderedDict[Hashable, _Denials] = OrderedDict()
        self._unsure: dict[str, _Folded] = {}
        self._beat: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()

    async def start(self) -> None:
        """Begin to write folded runs every `fold_ms`."""
        self._beat = asyncio.create_task(self._flush_for_ever())

    async def stop(self) -> None:
        """Write what is folded and stop."""
        if self._beat is not None:
            self._ending.set()
            await self._beat
            self._beat = None
        await self.flush()

    @property
    def unwritten(self) -> bool:
        """Whether anything folded is not on the trail yet."""
        shown = any(one.pending for one in self._shown.values())
        denied = any(run.unwritten for run in self._denials.values())
        return bool(self._polls or self._unsure) or shown or denied

    async def _flush_for_ever(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._fold_s):
                    await self._ending.wait()
            await self.flush()

    def polled(self, state: State, authority: Authority, method: str) -> None:
        """A caller was told a task's status."""
        at_ms = self._ledger.now()
        key = (state.task_ref, _who(authority), method, state.task.status)
        run = self._polls.get(key)
        if run is None:
            run = self._polls[key] = _Polls(state, authority, method, at_ms)
        run.count += 1
        run.last_ms = at_ms

    async def disclosed(
        self, state: State, authority: Authority, method: str, payloads: tuple[Commitment, ...]
    ) -> None:
        """Payloads are about to be shown: on the trail before this returns when they are shown for the first time."""
        key = (state.task_ref, _who(authority), method, tuple(one.sha256 for one in payloads))
        shown = self._shown.get(key)
        if shown is None:
            shown = self._shown[key] = _Shown()
        self._shown.move_to_end(key)
        async with shown.turn:
            if not shown.nth:
                await self.note(state, authority, self._disclosure(method, payloads, nth=1, count=1))
            else:
                shown.folded += 1
                shown.pending = (state, authority, method, payloads)
            shown.nth += 1
        await self._trim()

    async def _trim(self) -> None:
        """Write the oldest runs now; one that cannot be written stays."""
        while len(self._shown) > RUNS_MAX:
            key, oldest = self._shown.popitem(last=False)
            try:
                await self._flush_shown(oldest)
            finally:
                if oldest.pending:
                    self._shown[key] = oldest
        while len(self._denials) > RUNS_MAX:
            key, run = self._denials.popitem(last=False)
            try:
                await self._flush_denials(run)
            finally:
                if run.unwritten:
                    self._denials[key] = run

    def _disclosure(self, method: str, payloads: tuple[Commitment, ...], *, nth: int, count: int) -> ResultDisclosed:
        return ResultDisclosed(
            at_ms=self._ledger.now(),
            payloads=tuple(one.name for one in payloads),
            sha256=tuple(one.sha256 for one in payloads),
            nth=nth,
            count=count,
            method=method,
        )

    async def note(self, state: State, authority: Authority, event: AccessEvent) -> None:
        """Write one access of a task at once."""
        subject = access_subject(state.tenant, state.task_ref)
        await self._ledger.note(subject, state.tenant, authority, (event,), state.task_ref)

    async def denied(  # noqa: PLR0913, PLR0917 - the fields of the fact
        self, authority: Authority, method: str, code: int, rule: Rule, ref: str, shown_to: str
    ) -> None:
        """A caller is about to be turned away: on the trail before this returns when it begins a run.

        `shown_to` is the tenant whose responders see it: the task's owner's when there is one, else the caller's.
        """
        at_ms = self._ledger.now()
        key = (_who(authority), method, code)
        run = self._denials.get(key)
        if run is None:
            run = self._denials[key] = _Denials(authority, method, code)
        self._denials.move_to_end(key)
        run.authority = authority
        run.unwritten.setdefault(shown_to, _Count(at_ms)).add(rule, ref, at_ms)
        async with run.turn:
            if at_ms - run.last_ms > QUIET_MS:
                await self._write_denials(run)
            run.last_ms = max(run.last_ms, at_ms)
        await self._trim()

    async def flush(self) -> None:
        """Write every folded run; what cannot be written now stays folded and is tried again."""
        writes: list[Callable[[], Awaitable[None]]] = [partial(self._send, one) for one in self._unsure.values()]
        writes += [partial(self._flush_polls, key) for key in list(self._polls)]
        writes += [partial(self._flush_shown, shown) for shown in list(self._shown.values()) if shown.pending]
        writes += [partial(self._flush_denials, run) for run in list(self._denials.values()) if run.unwritten]
        for start in range(0, len(writes), AT_ONCE):
            now = writes[start : start + AT_ONCE]
            failed = [
                done for done in await asyncio.gather(*(write() for write in now), return_exceptions=True) if done
            ]
            for error in failed:
                if not isinstance(error, TasktrailError):
                    raise error
            if failed:
                _log.warning("%d folded runs stay folded, the trail does not take them: %s", len(failed), failed[0])
                return

    async def _send(self, folded: _Folded) -> None:
        """Write an entry of a folded run. What may have been written is kept and sent again as it is.

        Raises:
            MaybeWritten: it is kept here: the run must not count it again.
            TasktrailError: it is not on the trail.
        """
        try:
            await self._ledger.note(
                folded.subject, folded.tenant, folded.authority, (folded.event,), folded.ref, folded.made
            )
        except (MaybeWritten, asyncio.CancelledError):
            self._unsure[folded.made] = folded
            raise
        self._unsure.pop(folded.made, None)

    async def _send_access(self, state: State, authority: Authority, event: TaskPolled | ResultDisclosed) -> None:
        subject = access_subject(state.tenant, state.task_ref)
        await self._send(_Folded(note_id(), subject, state.tenant, authority, event, state.task_ref))

    async def _flush_polls(self, key: Hashable) -> None:
        run = self._polls.pop(key, None)
        if run is None:
            return
        try:
            await self._send_access(run.state, run.authority, _poll_event(run, self._ledger.now()))
        except MaybeWritten:
            raise
        except TasktrailError:
            self._merge(key, run)
            raise

    def _merge(self, key: Hashable, run: _Polls) -> None:
        """Put a run back that could not be written, before what came meanwhile."""
        later = self._polls.get(key)
        if later is not None:
            run.count, run.last_ms = run.count + later.count, later.last_ms
        self._polls[key] = run

    async def _flush_shown(self, shown: _Shown) -> None:
        if shown.pending is None:
            return
        (state, authority, method, payloads), folded = shown.pending, shown.folded
        shown.pending, shown.folded = None, 0
        try:
            await self._send_access(state, authority, self._disclosure(method, payloads, nth=shown.nth, count=folded))
        except MaybeWritten:
            raise
        except TasktrailError:
            shown.pending, shown.folded = (state, authority, method, payloads), shown.folded + folded
            raise

    async def _flush_denials(self, run: _Denials) -> None:
        async with run.turn:
            await self._write_denials(run)

    async def _write_denials(self, run: _Denials) -> None:
        for tenant in list(run.unwritten):
            count = run.unwritten.pop(tenant)
            event = AccessDenied(
                at_ms=self._ledger.now(),
                method=run.method,
                code=run.code,
                count=count.count,
                first_ms=count.first_ms,
                last_ms=count.last_ms,
                reasons=count.reasons,
                refs=count.refs,
            )
            reasons = tuple(count.reasons)
            denial = decision(Rule(reasons[0]), run.method, identity(run.authority), *reasons)
            authority = msgspec.structs.replace(run.authority, decision=denial)
            try:
                await self._send(_Folded(note_id(), denied_subject(tenant), tenant, authority, event))
            except MaybeWritten:
                raise
            except TasktrailError:
                self._restore(run, tenant, count)
                raise

    @staticmethod
    def _restore(run: _Denials, tenant: str, count: _Count) -> None:
        later = run.unwritten.get(tenant)
        if later is not None:
            count.count, count.last_ms = count.count + later.count, later.last_ms
            for into, more in ((count.reasons, later.reasons), (count.refs, later.refs)):
                for name, number in more.items():
                    into[name] = into.get(name, 0) + number
        run.unwritten[tenant] = count


def _poll_event(run: _Polls, at_ms: int) -> TaskPolled:
    return TaskPolled(
        at_ms=at_ms,
        method=run.method,
        status=run.state.task.status.value,
        count=run.count,
        first_ms=run.first_ms,
        last_ms=run.last_ms,
    )
