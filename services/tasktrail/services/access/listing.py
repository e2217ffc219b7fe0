"""A caller's own tasks, page by page: their order, the cursor that says where the next page begins, what each shows.

Guarantees: a task that is there all the while is on exactly one page, however many are made or end meanwhile; a cursor
says nothing but a place in the order, so whoever makes one up, or takes somebody else's, still sees own tasks only.
Source: MCP 2025-11-25, tasks (Task Listing) and pagination.

    page = following(inventory.open_to(who), place("")); cursor(page[-1])
"""

import base64
import binascii
from collections.abc import Iterable

import msgspec

from tasktrail.events.authority import Method
from tasktrail.events.entry import Entry
from tasktrail.events.errors import InvalidRequest, NotAuthorised
from tasktrail.events.subjects import is_task_ref
from tasktrail.projections.current import State
from tasktrail.services.access.payloads import Payloads
from tasktrail.services.access.views import shown
from tasktrail.services.inventory import Handle
from tasktrail.services.messages import Caller, TaskView
from tasktrail.services.sealing import SealError

LOOKED_MAX = 200
"""How many tasks are looked at for one page: some may not open, by policy or because what they held is gone."""

_BAD = "this cursor is none that was given here; list again without one"


class NotListed(NotAuthorised):
    """Whoever sends no credential cannot be told apart from others: there is no list for them (Task Listing)."""

    code = -32601
    reason = "not_listed"


def tell_apart(caller: Caller) -> None:
    """See that a caller can be told apart from others.

    Raises:
        NotListed: it has neither token nor credential.
    """
    if not caller.token and (caller.credential is None or caller.credential.method is Method.NONE):
        message = (
            "tasks are listed for callers with a credential only: send a bearer token, or ask for a task by its id"
        )
        raise NotListed(message)


class Place(msgspec.Struct, frozen=True):
    """A place in the order: a creation (epoch milliseconds), and the reference that tells two of one time apart."""

    created_at_ms: int
    task_ref: str


def cursor(last: Handle) -> str:
    """Where to go on after this task."""
    place = msgspec.json.encode([last.created_at_ms, last.task_ref])
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def place(said: str) -> Place | None:
    """The place a cursor names; None for the beginning.

    Raises:
        InvalidRequest: it is none of ours.
    """
    if not said:
        return None
    try:
        raw = base64.b64decode(said.encode("ascii") + b"=" * (-len(said) % 4), altchars=b"-_", validate=True)
        created_at_ms, ref = msgspec.json.decode(raw, type=tuple[int, str])
    except (UnicodeEncodeError, binascii.Error, msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest(_BAD) from None
    if not is_task_ref(ref):
        raise InvalidRequest(_BAD)
    return Place(created_at_ms, ref)


def following(handles: Iterable[Handle], after: Place | None) -> list[Handle]:
    """Those after a place, in order: the newest first."""
    ordered = sorted(handles, key=_order)
    if after is None:
        return ordered
    return [one for one in ordered if _order(one) > (-after.created_at_ms, after.task_ref)]


async def view(state: State, created: Entry, payloads: Payloads) -> TaskView | None:
    """A task as a list shows it; None when its time is over and its handle is gone. `created` is its first entry."""
    handle = state.task.handle
    with_handle = msgspec.structs.replace(state, sealed={handle.sha256: created.sealed[handle.name]})
    try:
        task_id: str = await payloads.open(with_handle, handle)
        return await shown(state, task_id, payloads, status_only=True)
    except SealError:
        return None


def _order(one: Handle) -> tuple[int, str]:
    return -one.created_at_ms, one.task_ref
