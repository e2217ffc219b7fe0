"""Who looked, who was shown what, who was turned away: folded, and on the trail within a second.

Guarantees: the first denial of a run and the first disclosure of a payload to a caller are acknowledged by the trail
before they, and whatever of their run comes meanwhile, are answered; status-only polls and repeats fold, with exact
counts, for `fold_ms` at most. What is folded together has one caller, credential, address and method, and was decided
alike: a poll's or disclosure's entry also has one status or payload; a run of denials one wire code, and an entry for
each tenant it is shown to and each result of comparing the caller with the creator. Memory is bounded: the longest
unused runs are written at once and, when the trail takes nothing, a new one is refused before anything is told.

A run of denials begins anew after `QUIET_MS` without one. Beginning it takes one write whatever was asked for, so that
its time tells nothing. How often a payload was shown (`nth`) is counted by each process, from its start.

    await recorder.denied(authority, method, code, rule, ref, tenant)
    recorder.polled(state, authority, method)
"""

import asyncio
import contextlib
import logging
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import TypeVar

import msgspec

from tasktrail.events.authority import Authority, PolicyDecision, identity
from tasktrail.events.errors import MaybeWritten, NothingWritten, TasktrailError
from tasktrail.events.facts import AccessDenied, AccessEvent, Commitment, ResultDisclosed, TaskPolled
from tasktrail.events.subjects import access_subject, denied_subject
from tasktrail.projections.current import State
from tasktrail.services.access.rules import Rule, decision
from tasktrail.services.access.strangers import Strangers
from tasktrail.services.ledger import Ledger, note_id

_log = logging.getLogger(__name__)

RUNS_MAX = 10_000
"""Runs of each kind that are kept, and entries of which nobody knows whether they are on the trail."""
REFS_MAX = 256
GROUPS_MAX = 64
"""Entries that what is folded of one run of denials may make; what more differs is folded without saying how."""
REASONS_MAX = 32
AT_ONCE = 64
QUIET_MS = 10_000
"""A denial after this long without another of its run begins a new run."""
SERVER = "server:"
"""Stands before a reason that is the MCP server's own word."""
OTHER = f"{SERVER}other"
_WORD = re.compile(r"[a-z0-9_.-]{1,64}")


class _Polls:
    """Answers with the same status to the same caller by the same method."""

    def __init__(self, state: State, authority: Authority, method: str, at_ms: int) -> None:
        self.tenant, self.ref, self.status = state.tenant, state.task_ref, state.task.status.value
        self.authority, self.method = authority, method
        self.count, self.first_ms, self.last_ms = 0, at_ms, at_ms


class _Shown:
    """Disclosures of the same payloads to the same caller by the same method; `folded` of them are not written yet."""

    def __init__(self, state: State, authority: Authority, method: str, payloads: tuple[Commitment, ...]) -> None:
        self.tenant, self.ref = state.tenant, state.task_ref
        self.authority, self.method, self.payloads = authority, method, payloads
        self.turn = asyncio.Lock()
        self.users = 0
        self.nth, self.folded, self.last_ms = 0, 0, 0

    @property
    def pending(self) -> bool:
        """Whether something of it is not on the trail yet."""
        return self.folded > 0


class _Denials:
    """A run of denials; `unwritten` holds, by the entries they will make, those that the trail does not hold yet."""

    def __init__(self, method: str, code: int) -> None:
        self.method, self.code = method, code
        self.turn = asyncio.Lock()
        self.users = 0
        self.last_ms = -QUIET_MS - 1
        self.unwritten: dict[Hashable, _Count] = {}

    @property
    def pending(self) -> bool:
        """Whether something of it is not on the trail yet."""
        return bool(self.unwritten)

    def add(self, authority: Authority, why: Rule | str, ref: str, shown_to: str, at_ms: int) -> Hashable:
        """Count one denial. Returns the key of the entry it will be in."""
        group: Hashable = (shown_to, authority.binding, authority.created_by, authority.grant, _denied(authority))
        if group not in self.unwritten and len(self.unwritten) >= GROUPS_MAX:
            group = shown_to
            authority = msgspec.structs.replace(authority, binding=None, created_by="", grant="", decision=None)
        count = self.unwritten.get(group)
        if count is None:
            count = self.unwritten[group] = _Count(shown_to, at_ms)
        count.add(authority, why, ref, at_ms)
        return group


class _Count:
    """Denials that are folded into one entry. Its authority is the last one's."""

    def __init__(self, shown_to: str, at_ms: int) -> None:
        self.shown_to = shown_to
        self.authority: Authority
        self.count, self.first_ms, self.last_ms = 0, at_ms, at_ms
        self.reasons: dict[str, int] = {}
        self.refs: dict[str, int] = {}

    def add(self, authority: Authority, why: Rule | str, ref: str, at_ms: int) -> None:
        self.authority = authority
        self.count += 1
        self.last_ms = at_ms
        self._of_reason(_reason(why), 1)
        if ref:
            self._of_ref(ref, 1)

    def precede(self, later: "_Count") -> None:
        """Take up what came after this could not be written."""
        self.authority = later.authority
        self.count, self.last_ms = self.count + later.count, later.last_ms
        for reason, number in later.reasons.items():
            self._of_reason(reason, number)
        for ref, number in later.refs.items():
            self._of_ref(ref, number)

    def _of_reason(self, reason: str, number: int) -> None:
        known = reason in self.reasons or len(self.reasons) < REASONS_MAX or not reason.startswith(SERVER)
        reason = reason if known else OTHER
        self.reasons[reason] = self.reasons.get(reason, 0) + number

    def _of_ref(self, ref: str, number: int) -> None:
        if ref in self.refs or len(self.refs) < REFS_MAX:
            self.refs[ref] = self.refs.get(ref, 0) + number


class _Folded(msgspec.Struct, frozen=True):
    """An entry of a folded run, with the id under which it is on the trail once however often it is sent."""

    made: str
    subject: str
    tenant: str
    authority: Authority
    event: TaskPolled | ResultDisclosed | AccessDenied
    ref: str = ""
    run: object = None


def _reason(why: Rule | str) -> str:
    """A rule's code, or what is recorded of an MCP server's word."""
    if isinstance(why, Rule):
        return why.value
    return SERVER + why if _WORD.fullmatch(why) else OTHER


_Run = TypeVar("_Run", _Shown, _Denials)


def _who(authority: Authority) -> Hashable:
    """What nothing is ever folded across: the caller in its tenant, its credential and its address."""
    credential, request = authority.credential, authority.request
    return (
        authority.trigger,
        authority.tenant,
        authority.principal,
        authority.client,
        authority.actors,
        (credential.method, credential.verification, credential.token_hash, credential.jti) if credential else None,
        (request.address, request.through) if request else None,
    )


def _how(authority: Authority) -> Hashable:
    """What no access is folded across beside: how the caller compared, by which grant, decided how."""
    return authority.binding, authority.grant, _decided(authority.decision)


def _decided(made: PolicyDecision | None) -> Hashable:
    return (made.effect, made.reason, made.policy_sha256, made.input_sha256) if made else None


def _denied(authority: Authority) -> Hashable:
    """The decision that denied, if the caller was denied by one: what allowed it so far does not count."""
    made = authority.decision
    return _decided(made) if made is not None and made.effect != "allow" else None


class Recorder:
    """Folds accesses and denials and writes them through the Ledger."""

    def __init__(self, ledger: Ledger, *, fold_ms: int) -> None:
        self._ledger, self._strangers = ledger, Strangers()
        self._fold_s = fold_ms / 1000
        self._polls: dict[Hashable, _Polls] = {}
        self._shown: OrderedDict[Hashable, _Shown] = OrderedDict()
        self._denials: OrderedDict[Hashable, _Denials] = OrderedDict()
        self._unsure: dict[str, _Folded] = {}
        self._beat: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._ending = False

    async def start(self) -> None:
        """Begin to write folded runs every `fold_ms`."""
        self._beat = asyncio.create_task(self._flush_for_ever())

    async def stop(self) -> None:
        """Write what is folded and stop."""
        if self._beat is not None:
            self._ending = True
            self._wake.set()
            await self._beat
            self._beat = None
        await self.flush()

    @property
    def unwritten(self) -> bool:
        """Whether anything folded is not on the trail yet."""
        shown = any(one.pending for one in self._shown.values())
        denied = any(run.pending for run in self._denials.values())
        return bool(self._polls or self._unsure) or shown or denied

    async def _flush_for_ever(self) -> None:
        while not self._ending:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._fold_s):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.flush()
            except Exception:  # noqa: BLE001 - whatever it is, what comes later must still be written
                _log.exception("folded runs could not be written; they are tried again")

    def polled(self, state: State, authority: Authority, method: str) -> None:
        """A caller is about to be told a task's status.

        Raises:
            NothingWritten: the trail has taken no polls for so long that there is no room for another run of them.
        """
        at_ms = self._ledger.now()
        key = (state.task_ref, _who(authority), _how(authority), method, state.task.status)
        run = self._polls.get(key)
        if run is None:
            if len(self._polls) >= RUNS_MAX:
                raise _no_room()
            run = self._polls[key] = _Polls(state, authority, method, at_ms)
            if len(self._polls) > RUNS_MAX // 2:
                self._wake.set()
        run.count += 1
        run.last_ms = at_ms

    async def disclosed(
        self, state: State, authority: Authority, method: str, payloads: tuple[Commitment, ...]
    ) -> None:
        """Payloads are about to be shown: on the trail before this returns when they are shown for the first time.

        Raises:
            MaybeWritten, NothingWritten: it is not known to be on the trail; show nothing.
        """
        key = (state.task_ref, _who(authority), _how(authority), method, tuple(one.sha256 for one in payloads))
        await self._make_room(self._shown, key, self._flush_shown)
        shown = self._shown.get(key)
        if shown is None:
            shown = self._shown[key] = _Shown(state, authority, method, payloads)
        self._shown.move_to_end(key)
        shown.users += 1
        try:
            async with shown.turn:
                if not shown.nth:
                    await self.note(state, authority, self._disclosure(shown, self._ledger.now(), nth=1, count=1))
                else:
                    shown.authority, shown.folded = authority, shown.folded + 1
                    shown.last_ms = self._ledger.now()
                shown.nth += 1
        finally:
            shown.users -= 1

    async def _make_room(
        self, runs: OrderedDict[Hashable, _Run], key: Hashable, flush: Callable[[_Run], Awaitable[None]]
    ) -> None:
        """See that one more run can be kept: the longest unused ones are written and forgotten.

        Raises:
            NothingWritten: they cannot be written.
        """
        while key not in runs and len(runs) >= RUNS_MAX:
            oldest, run = next(((name, one) for name, one in runs.items() if not one.users), (None, None))
            if run is None:
                raise _no_room()
            run.users += 1
            try:
                await flush(run)
            except TasktrailError as error:
                raise _no_room() from error
            finally:
                run.users -= 1
            if not run.users and not run.pending and runs.get(oldest) is run:
                del runs[oldest]

    def _disclosure(self, shown: _Shown, at_ms: int, *, nth: int, count: int) -> ResultDisclosed:
        return ResultDisclosed(
            at_ms=at_ms,
            payloads=tuple(one.name for one in shown.payloads),
            sha256=tuple(one.sha256 for one in shown.payloads),
            nth=nth,
            count=count,
            method=shown.method,
        )

    async def note(self, state: State, authority: Authority, event: AccessEvent) -> None:
        """Write one access of a task at once."""
        subject = access_subject(state.tenant, state.task_ref)
        await self._ledger.note(subject, state.tenant, authority, (event,), state.task_ref)

    async def denied(  # noqa: PLR0913, PLR0917 - the fields of the fact
        self, authority: Authority, method: str, code: int, why: Rule | str, ref: str, shown_to: str
    ) -> None:
        """A caller is about to be turned away: on the trail before this returns when it begins a run.

        `why` is the rule, or an MCP server's own word for why it turned the caller away, recorded as `server:<word>`
        (lower-case letters, digits, `_.-`, 64 at most; anything else as `server:other`). A decision that denies is
        recorded as it is. `shown_to` is the tenant whose responders see it: the task's owner's when there is one, else
        the caller's.

        Raises:
            MaybeWritten, NothingWritten: the run is not known to have begun on the trail; tell nothing.
        """
        authority = self._strangers.known(authority, self._ledger.now())
        key = (_who(authority), method, code)
        await self._make_room(self._denials, key, self._flush_denials)
        run = self._denials.get(key)
        if run is None:
            run = self._denials[key] = _Denials(method, code)
        self._denials.move_to_end(key)
        at_ms = self._ledger.now()
        group = run.add(authority, why, ref, shown_to, at_ms)
        run.users += 1
        try:
            if at_ms - run.last_ms > QUIET_MS:
                async with run.turn:
                    if at_ms - run.last_ms > QUIET_MS:
                        await self._begin(run, group)
            run.last_ms = max(run.last_ms, at_ms)
        finally:
            run.users -= 1

    async def _begin(self, run: _Denials, group: Hashable) -> None:
        """Put something of a run on the trail: what may be there already, else the entry that this denial is in."""
        unsure = next((one for one in self._unsure.values() if one.run is run), None)
        if unsure is not None:
            await self._send(unsure)
        elif group in run.unwritten:
            await self._write_denials(run, group)

    async def flush(self) -> None:
        """Write every folded run; what cannot be written now stays folded and is tried again."""
        writes: list[Callable[[], Awaitable[None]]] = [partial(self._send, one) for one in self._unsure.values()]
        writes += [partial(self._flush_polls, key) for key in list(self._polls)]
        writes += [partial(self._flush_shown, shown) for shown in list(self._shown.values()) if shown.pending]
        writes += [partial(self._flush_denials, run) for run in list(self._denials.values()) if run.pending]
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
        if folded.made not in self._unsure and len(self._unsure) >= RUNS_MAX:
            raise _no_room()
        try:
            await self._ledger.note(
                folded.subject, folded.tenant, folded.authority, (folded.event,), folded.ref, folded.made
            )
        except (MaybeWritten, asyncio.CancelledError):
            self._unsure[folded.made] = folded
            raise
        self._unsure.pop(folded.made, None)

    async def _send_access(self, run: _Polls | _Shown, event: TaskPolled | ResultDisclosed) -> None:
        subject = access_subject(run.tenant, run.ref)
        await self._send(_Folded(note_id(), subject, run.tenant, run.authority, event, run.ref))

    async def _flush_polls(self, key: Hashable) -> None:
        run = self._polls.pop(key, None)
        if run is None:
            return
        try:
            await self._send_access(run, _poll_event(run))
        except (MaybeWritten, asyncio.CancelledError):
            raise
        except BaseException:
            later = self._polls.get(key)
            if later is not None:
                run.count, run.last_ms = run.count + later.count, later.last_ms
            self._polls[key] = run
            raise

    async def _flush_shown(self, shown: _Shown) -> None:
        folded, shown.folded = shown.folded, 0
        if not folded:
            return
        try:
            await self._send_access(shown, self._disclosure(shown, shown.last_ms, nth=shown.nth, count=folded))
        except (MaybeWritten, asyncio.CancelledError):
            raise
        except BaseException:
            shown.folded += folded
            raise

    async def _flush_denials(self, run: _Denials) -> None:
        async with run.turn:
            for group in list(run.unwritten):
                await self._write_denials(run, group)

    async def _write_denials(self, run: _Denials, group: Hashable) -> None:
        """Write one entry of a run; its turn is held."""
        count = run.unwritten.pop(group)
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
        subject, authority = denied_subject(count.shown_to), _turned_away(count, run.method)
        try:
            await self._send(_Folded(note_id(), subject, count.shown_to, authority, event, run=run))
        except (MaybeWritten, asyncio.CancelledError):
            raise
        except BaseException:
            later = run.unwritten.get(group)
            if later is not None:
                count.precede(later)
            run.unwritten[group] = count
            raise


def _turned_away(count: _Count, method: str) -> Authority:
    """The authority of a run's entry: with the decision that denied it, or the rules that did."""
    authority = count.authority
    if _denied(authority) is not None:
        return authority
    reasons = tuple(count.reasons)
    rule = Rule.REFUSED_BY_SERVER if reasons[0].startswith(SERVER) else Rule(reasons[0])
    made = decision(rule, method, identity(authority), *reasons)
    return msgspec.structs.replace(authority, decision=made)


def _no_room() -> NothingWritten:
    return NothingWritten("the trail takes no entries and too many wait for it; nothing was written, try again")


def _poll_event(run: _Polls) -> TaskPolled:
    """True when the last of the run was told, however much later it is written."""
    return TaskPolled(
        at_ms=run.last_ms,
        method=run.method,
        status=run.status,
        count=run.count,
        first_ms=run.first_ms,
        last_ms=run.last_ms,
    )
