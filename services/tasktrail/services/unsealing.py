"""Unsealing: an operator reads what a task's entries keep sealed. An act of its own, apart from reading the trail.

Guarantees: it needs the right `unseal`, a policy that permits it, and a reason; what is shown is a `PayloadUnsealed` on
the tenant's control subject before it is answered, by name and digest; a payload is what its entry commits to, or is
not shown at all; once the task's key is destroyed nothing can be shown. The handle, which opens the task for whoever
holds it, is shown only to who names it.

    unsealing = Unsealing(service)
    await unsealing.unseal(UnsealOrder(task=ref, payloads=["result"], reason="what leaked?"), asker)
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import msgspec
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from tasktrail.events import entry as entries
from tasktrail.events.authority import Authority
from tasktrail.events.entry import Entry
from tasktrail.events.errors import TasktrailError, TooLarge, Unavailable
from tasktrail.events.facts import Commitment, PayloadUnsealed
from tasktrail.events.subjects import control_subject, is_task_ref
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.current import State
from tasktrail.services.access.policy import Action
from tasktrail.services.clock import rfc3339
from tasktrail.services.operators import Asker
from tasktrail.services.orders import NoSuchTask
from tasktrail.services.reading import catch_up
from tasktrail.services.sealing import SealError, TaskKey
from tasktrail.services.service import Service
from tasktrail.services.statements import Payload, Unsealed, UnsealOrder

HANDLE = "handle"
"""The payload that holds the task id."""
AT_ONCE_BYTES_MAX = 64 * 1024 * 1024


class Shredded(TasktrailError):
    """The task's key is destroyed: nobody can read its payloads any more. Nothing was recorded."""

    http_status = 410
    reason = "shredded"


class NoSuchPayload(TasktrailError):
    """The task has no payload of this name. Which it has is said to who may read the trail, by the timeline."""

    http_status = 404
    reason = "no_such_payload"


class _Sealed(NamedTuple):
    """A payload as it is committed to, with its blob when that travelled in the entry."""

    stream_seq: int
    entry_id: str
    commitment: Commitment
    blob: bytes | None


class Unsealing:
    """Carries out the orders of operators who want to read payloads."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def unseal(self, order: UnsealOrder, asker: Asker) -> Unsealed:
        """The payloads; recorded before this returns.

        Raises:
            NotAuthorised: the operator may not; on the trail.
            NoSuchTask, NoSuchPayload: there is none.
            Shredded: there is no key any more.
            TooLarge: they are more than are shown at once; name some.
            Unavailable: the trail does not answer, and nothing is shown.
        """
        service = self._service
        await service.admission.entitled(asker, Action.UNSEAL, "unseal")
        state = await self._state(order.task)
        authority = await service.admission.admitted(asker, Action.UNSEAL, "unseal", state=state)
        _require_key(state)
        await catch_up(service)
        if service.auditor.position < state.stream_seq:
            message = "the audit store is behind the trail; nothing was shown. Try again in a moment"
            raise Unavailable(message)
        wanted = _wanted(await asyncio.to_thread(_sealed, service.auditor.store, state), order.payloads)
        shown = await self._opened(state, wanted)
        entry = await self._record(order, asker, authority, state, [one for one in shown if not one.problem])
        return Unsealed(task_ref=state.task_ref, tenant=state.tenant, entry=entry, payloads=shown)

    async def _record(
        self, order: UnsealOrder, asker: Asker, authority: Authority, state: State, shown: Sequence[Payload]
    ) -> str:
        if not shown:
            return ""
        said = {"case": order.case_id or asker.case_id, "reason": order.reason}
        said = await self._service.admission.cleared(said)
        event = PayloadUnsealed(
            at_ms=self._service.ledger.now(),
            task_ref=state.task_ref,
            payloads=tuple(one.name for one in shown),
            sha256=tuple(one.sha256 for one in shown),
            case_id=said["case"],
            reason=said["reason"],
        )
        return await self._service.ledger.note(control_subject(state.tenant), state.tenant, authority, (event,))

    async def _state(self, task: str) -> State:
        """The task with this reference or id, as of now."""
        states, keyring = self._service.states, self._service.keyring
        try:
            state = await states.by_handle(task) if is_task_ref(task) else None
            state = state or await states.by_handle(keyring.ref(task))
        except (NatsError, OSError) as error:
            message = "the trail does not answer; nothing was shown. Try again"
            raise Unavailable(message) from error
        if state is None:
            raise NoSuchTask
        return state

    async def _opened(self, state: State, wanted: Sequence[_Sealed]) -> list[Payload]:
        try:
            key = await self._service.vault.key(state.task_ref)
        except SealError as error:
            message = f"{error.message}; nobody can read them any more"
            raise Shredded(message) from None
        except (NatsError, APIError, TimeoutError, OSError) as error:
            message = "the task's key cannot be fetched now; nothing was shown. Try again"
            raise Unavailable(message) from error
        return [await self._payload(key, one) for one in wanted]

    async def _payload(self, key: TaskKey, one: _Sealed) -> Payload:
        commitment = one.commitment
        place = Payload(
            name=commitment.name,
            stream_seq=one.stream_seq,
            entry_id=one.entry_id,
            sha256=commitment.sha256,
            size=commitment.size,
            flags=commitment.flags,
        )
        try:
            blob = one.blob if one.blob is not None else await self._service.vault.get(commitment)
            value = msgspec.json.decode(key.open(commitment, blob))
        except SealError as error:
            return msgspec.structs.replace(place, problem=error.message)
        except msgspec.DecodeError as error:
            return msgspec.structs.replace(place, problem=f"it is no JSON: {error}")
        except (NatsError, APIError, TimeoutError, OSError) as error:
            message = "the object bucket does not answer; nothing was shown. Try again"
            raise Unavailable(message) from error
        return msgspec.structs.replace(place, value=value)


def _require_key(state: State) -> None:
    at_ms = state.task.shredded_at_ms
    if at_ms is not None:
        message = (
            f"the payloads of task {state.task_ref} were shredded at {rfc3339(at_ms)}: its key is destroyed, and "
            "nobody can read them any more; their commitments are still on the trail"
        )
        raise Shredded(message)


def _sealed(store: AuditStore, state: State) -> list[_Sealed]:
    """Every payload that the task's entries commit to, each once, in order. Blocks."""
    with contextlib.closing(store.cursor()) as cursor:
        rows = cursor.execute(
            "SELECT e.stream_seq, e.body FROM entries e JOIN tasks t USING (task_ref) "
            "WHERE t.task_ref = $ref AND e.stream_seq BETWEEN t.first_seq AND t.last_seq AND e.kind = 'task' "
            "ORDER BY e.stream_seq",
            {"ref": state.task_ref},
        ).fetchall()
    found: dict[tuple[str, str], _Sealed] = {}
    for stream_seq, body in rows:
        entry = entries.decode(bytes(body))
        for commitment in _commitments(entry):
            blob = entry.sealed.get(commitment.name)
            found.setdefault((commitment.name, commitment.sha256), _Sealed(stream_seq, entry.id, commitment, blob))
    return list(found.values())


def _commitments(entry: Entry) -> Iterator[Commitment]:
    for event in entry.events:
        for field in event.__struct_fields__:
            yield from _within(getattr(event, field))


def _within(value: object) -> Iterator[Commitment]:
    if isinstance(value, Commitment):
        yield value
    elif isinstance(value, Mapping):
        for one in cast("Mapping[object, object]", value).values():
            yield from _within(one)
    elif isinstance(value, tuple | list):
        for one in cast("Sequence[object]", value):
            yield from _within(one)


def _wanted(sealed: Sequence[_Sealed], names: Sequence[str]) -> list[_Sealed]:
    """Those of these names; without names, all but the handle.

    Raises:
        NoSuchPayload, TooLarge: see there.
    """
    there = {one.commitment.name for one in sealed}
    missing = [name for name in names if name not in there]
    if missing:
        message = f"the task has no payload {missing[0][:64]!r}; its timeline names those it has"
        raise NoSuchPayload(message)
    found = [one for one in sealed if (one.commitment.name in names if names else one.commitment.name != HANDLE)]
    size = sum(one.commitment.size for one in found)
    if size > AT_ONCE_BYTES_MAX:
        most = AT_ONCE_BYTES_MAX // 2**20
        message = f"these are {size // 2**20} MiB, and {most} are shown at once; name fewer payloads"
        raise TooLarge(message)
    return found
