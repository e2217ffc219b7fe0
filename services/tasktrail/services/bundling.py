"""Handing out evidence: a bundle is put together in the running service, and recorded before anybody gets it.

Guarantees: it needs the right `read` and a policy that permits it, for the tasks' tenant or the whole trail; the entry
`BundleExported` with the bundle's SHA-256 is on the trail before the bytes are answered; entries are those bytes that
the tree has, from the audit store or, where its are others, from the trail itself; a task's id is turned into its
reference at once. Payloads stay sealed.

    bundling = Bundling(service)
    await bundling.export(BundleOrder(kind="task", tasks=(ref,), reason="a court asks"), asker)
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from typing import NamedTuple

import msgspec
from nats.errors import Error as NatsError
from nats.js.errors import APIError, NotFoundError

from tasktrail.events.authority import Authority
from tasktrail.events.entry import KEY_ID, MSG_ID, SIGNATURE
from tasktrail.events.errors import Unavailable
from tasktrail.events.facts import BundleExported
from tasktrail.events.subjects import TRAIL, control_subject
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog.bundle import Contents, Custody, NothingToProve, Scope, Signer, write
from tasktrail.projections.tlog.log import Log, LogError
from tasktrail.projections.tlog.merkle import gap_record, leaf
from tasktrail.projections.tlog.note import Note
from tasktrail.services.access.policy import Action, shipped
from tasktrail.services.bundle_orders import BundleOrder
from tasktrail.services.bundle_selection import Found, Selection, Selector
from tasktrail.services.clock import rfc3339
from tasktrail.services.ledger import note_id
from tasktrail.services.operators import Asker
from tasktrail.services.orders import NoSuchTask
from tasktrail.services.questions import TENANT, prepare, reference
from tasktrail.services.reading import catch_up
from tasktrail.services.service import Service
from tasktrail.services.tlog_agreement import Stopped
from tasktrail.services.witnessing import Cosigned

NAME = "bundle"
TRIES = 5
FETCHED_MAX = 1_000
"""Messages at most of which the audit store has other bytes than the tree: each is read from the trail."""


class Exported(NamedTuple):
    """A bundle, its hex SHA-256, the id of the entry that says so, how many entries it holds and by which tree."""

    data: bytes
    sha256: str
    entry: str
    entries: int
    tree_size: int


class Bundling:
    """Puts bundles together over a running service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turn = asyncio.Lock()  # one at a time: a bundle is made in memory

    async def export(self, order: BundleOrder, asker: Asker) -> Exported:
        """A bundle, which is recorded before this returns.

        Raises:
            InvalidRequest: the order says no scope, or nothing of it is in the tree.
            NotAuthorised: the operator may not; on the trail.
            NoSuchTask: one of the tasks is not there.
            Stopped: no checkpoint was ever signed.
            Unavailable: the trail does not answer; nothing was recorded.
        """
        service = self._service
        order.require_scope()
        await service.admission.entitled(asker, Action.READ, NAME)
        authority: Authority | None = None
        if order.kind != "task":
            whose = order.parameters.get(TENANT, "") or order.tenant
            authority = await service.admission.admitted(asker, Action.READ, NAME, tenant=whose)
        await catch_up(service)
        note = await self._checkpoint()
        async with self._turn:
            return await self._made(order, asker, authority, note)

    async def _checkpoint(self) -> str:
        """Have everything recorded so far proved by a checkpoint; where none is signed now, say so.

        A trail that was tampered with gets no checkpoints any more, and that is when its evidence is wanted.
        """
        notary = self._service.notary
        try:
            await notary.checkpoint_now()
        except Stopped as stopped:
            if not (notary.folder / "checkpoint").exists():
                raise
            return (
                f"No checkpoint was signed at the time of the export: {stopped.message}. It is proved by the last one."
            )
        return ""

    async def _made(self, order: BundleOrder, asker: Asker, authority: Authority | None, note: str) -> Exported:
        service = self._service
        log = await asyncio.to_thread(_opened, service)
        try:
            selection, found, parameters = await asyncio.to_thread(self._selected, order, log)
            if authority is None:
                tenants = {task.tenant for task in selection.tasks}
                whose = tenants.pop() if len(tenants) == 1 else ""
                authority = await service.admission.admitted(asker, Action.READ, NAME, tenant=whose)
            found, unread = await self._as_proved(found, log)
            parameters = await service.admission.cleared(parameters)
            said = await service.admission.cleared({"case": order.case_id or asker.case_id, "reason": order.reason})
            custody = self._custody(said, asker, " ".join(filter(None, (note, unread))))
            cosigned = await asyncio.to_thread(_cosigned, service.notary.cosigned, log.committed)
            contents = msgspec.structs.replace(
                self._contents(order, parameters, selection, found, custody), cosigned=cosigned
            )
            data = await asyncio.to_thread(write, contents, log, Signer(service.keyring.kid, service.keyring.sign))
            size = log.committed
        finally:
            await asyncio.to_thread(log.close)
        sha256 = hashlib.sha256(data).hexdigest()
        await self._record(contents, authority, sha256, size)
        return Exported(data, sha256, contents.custody.entry_id, len(contents.messages), size)

    def _selected(self, order: BundleOrder, log: Log) -> tuple[Selection, Found, dict[str, str]]:
        """What the order names, of what the tree holds. Blocks."""
        with Selector.open(self._service.auditor.store, log.committed) as selector:
            selection, parameters = self._chosen(order, selector)
            return selection, selector.messages(selection), parameters

    def _chosen(self, order: BundleOrder, selector: Selector) -> tuple[Selection, dict[str, str]]:
        store, keyring = self._service.auditor.store, self._service.keyring
        match order.kind:
            case "task":
                refs = [reference(store, keyring.ref, task) for task in order.tasks]
                tasks = selector.tasks(refs)
                if len(tasks) != len(set(refs)):
                    raise NoSuchTask
                return selector.of_tasks(tasks), {"task": ",".join(refs)}
            case "principal":
                sub = self._service.operating.recorded_subject(order.tenant or None, order.iss or None, order.sub)
                who = {"sub": sub or "", "iss": order.iss, "client_id": order.client_id, "tenant": order.tenant}
                return selector.of_principal(**who), {name: value for name, value in who.items() if value}
            case "sequence":
                first, last = order.first or 1, order.last or 1
                return selector.within(first, last), {"first": str(first), "last": str(last)}
            case "time":
                since, until = _time(order.since), _time(order.until)
                return selector.between(since, until), {"since": since.isoformat(), "until": until.isoformat()}
            case "query":
                prepared = prepare(order.query, order.parameters, lambda task: reference(store, keyring.ref, task))
                pages = store.ask_batches(prepared.query, prepared.values, tenant=prepared.tenant)
                rows = selector.of_rows(int(str(row[0])) for page in pages for row in page.rows if row[0] is not None)
                return rows, {"query": order.query, **prepared.given}

    async def _as_proved(self, found: Found, log: Log) -> tuple[Found, str]:
        """With the trail's own bytes where the store's are not those of the tree, and what to say of the others."""
        wanted, unread = await asyncio.to_thread(unlike, found, log)
        fetched = {seq: one for seq in wanted if (one := await self._from_trail(seq)) is not None}
        better = {seq: one for seq, one in fetched.items() if seq in found.absent or _is_in(log, one)}
        messages = {message.stream_seq: message for message in found.messages} | better
        told = [messages[seq] for seq in sorted(messages)]
        return Found(messages=told, refused=found.refused, absent=found.absent - better.keys()), unread

    async def _from_trail(self, seq: int) -> Message | None:
        try:
            one = await self._service.js.get_msg(TRAIL, seq=seq)
        except NotFoundError:
            return None
        except (NatsError, APIError, TimeoutError, OSError) as error:
            message = "the trail does not answer; nothing was exported. Try again"
            raise Unavailable(message) from error
        headers = one.headers or {}
        told = (headers.get(name, "") for name in (MSG_ID, KEY_ID, SIGNATURE))
        return Message(seq, one.subject or "", one.data or b"", *told)

    def _custody(self, said: Mapping[str, str], asker: Asker, note: str) -> Custody:
        return Custody(
            exported_by=asker.operator,
            exported_at=rfc3339(self._service.ledger.now()),
            entry_id=note_id(),
            case_id=said["case"],
            reason=said["reason"],
            version=version("tasktrail"),
            note=note,
        )

    def _contents(
        self, order: BundleOrder, parameters: dict[str, str], selection: Selection, found: Found, custody: Custody
    ) -> Contents:
        text = shipped()
        return Contents(
            scope=Scope(kind=order.kind, parameters=parameters),
            custody=custody,
            messages=found.messages,
            gaps=found.absent,
            related=selection.related,
            tasks=selection.tasks,
            range=selection.range,
            policies={hashlib.sha256(text.encode()).hexdigest(): text, **selection.policies},
            refused=found.refused,
            holding=frozenset(order.holding),
        )

    async def _record(self, contents: Contents, authority: Authority, sha256: str, size: int) -> None:
        custody, ledger = contents.custody, self._service.ledger
        event = BundleExported(
            at_ms=ledger.now(),
            bundle_sha256=sha256,
            scope=contents.scope.kind,
            parameters=contents.scope.parameters,
            entries=len(contents.messages),
            tree_size=size,
            case_id=custody.case_id,
            reason=custody.reason,
        )
        tenant = authority.tenant
        await ledger.note(control_subject(tenant), tenant, authority, (event,), made=custody.entry_id)


def _opened(service: Service) -> Log:
    """The log at its newest commit: again when another commit comes just then. Blocks."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(LogError):
            return Log.open(service.notary.folder, read_only=True)
    return Log.open(service.notary.folder, read_only=True)


def unlike(found: Found, log: Log) -> tuple[list[int], str]:
    """Where the audit store has not what the tree has: sequences to read from the trail, in order. Blocks.

    They are `FETCHED_MAX` at most; the text, empty when these are all, says for whoever reads the bundle what is left.
    """
    odd = [one.stream_seq for one in found.messages if not _is_in(log, one)]
    wanted = sorted({*odd, *(seq for seq in found.absent if not _is_gap(log, seq))})
    if len(wanted) <= FETCHED_MAX:
        return wanted, ""
    left = (
        f"In {len(wanted)} places the audit store has not what the tree has. Only the first {FETCHED_MAX} of them were "
        f"read from the trail: from {wanted[FETCHED_MAX]} on, what fails here may be whole there."
    )
    return wanted[:FETCHED_MAX], left


def _cosigned(kept: Cosigned, size: int) -> dict[int, Note]:
    """The newest checkpoint up to this size that a witness cosigned. Blocks: there may be many."""
    notes = ((at, kept.at(at)) for at in reversed(kept.sizes()) if at <= size)
    return next(({at: note} for at, note in notes if note is not None), {})


def _is_in(log: Log, message: Message) -> bool:
    return leaf(message.body) == log.leaf(message.stream_seq - 1)


def _is_gap(log: Log, seq: int) -> bool:
    return leaf(gap_record(seq)) == log.leaf(seq - 1)


def _time(given: datetime | None) -> datetime:
    if given is None:
        message = "a time is missing"
        raise NothingToProve(message)
    return given
