"""The handles that still open something, and whose they are: found by identity and by credential.

Guarantees: a handle is here from its creation until it has expired, or was revoked and its task has ended; what is kept
of one is small and holds no payload; a state never replaces a later one. A revocation's handles are found without going
through all of them, whether their subjects were recorded by name or by pseudonym. Fed by the projector and, before
that, by `each_current`, which reads the bucket of current states.

    await each_current(states, inventory.observe)
    inventory.named(revocation)  ->  the handles of its tasks
"""

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import msgspec

from tasktrail.events.authority import COMPARED, Authority, Binding, BindingMode, Standing, differences
from tasktrail.events.facts import Status
from tasktrail.events.task import Grant
from tasktrail.events.tracing import run_span
from tasktrail.projections.current import State
from tasktrail.services.revocations import Alias, Revocation
from tasktrail.services.states import States

CREDENTIALS_MAX = 2_000
"""Under how many names of credentials (a digest, a `jti`), the last used, it is remembered what they opened."""
OPENED_MAX = 256
"""How many tasks are remembered of each: as many as a stream may watch."""

_Name: TypeAlias = tuple[str, ...]


class Handle(msgspec.Struct, kw_only=True):
    """What is known of one handle. Times are epoch milliseconds but `until_s`; members as in `Task`."""

    task_ref: str
    tenant: str
    stream_seq: int
    binding: Binding
    binding_mode: BindingMode
    server: str
    tool: str
    status: Status
    live: bool
    revoked: bool
    cancel_requested: bool
    created_at_ms: int
    expires_at_ms: int
    ttl_ms: int
    standing: Standing
    until_s: int
    token_hash: str
    jti: str
    created_token_hash: str = ""
    created_jti: str = ""
    grants: dict[str, Grant] = {}
    accessed_at_ms: int = 0
    """When its task was last asked for through this process; 0 when it was not."""


class Inventory:
    """Every handle that still opens something."""

    def __init__(self, alias: Alias | None = None) -> None:
        """With `alias` (as `Keyring.pseudonym`) a subject's handles are found by its name and by its pseudonym."""
        self._alias = alias
        self._tenants: Counter[str] = Counter()
        self._handles: dict[str, Handle] = {}
        self._by_name: dict[_Name, set[str]] = {}
        self._found_by: dict[str, list[_Name]] = {}
        self._opened_by: OrderedDict[_Name, OrderedDict[str, None]] = OrderedDict()
        self._wider: set[str] = set()
        self._by_run: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._handles)

    def __iter__(self) -> Iterator[Handle]:
        return iter(tuple(self._handles.values()))

    def get(self, ref: str) -> Handle | None:
        """The handle of this task, if it still opens something."""
        return self._handles.get(ref)

    def observe(self, state: State) -> None:
        """A task moved."""
        known = self._handles.get(state.task_ref)
        if known is not None and known.stream_seq >= state.stream_seq:
            return
        task = state.task
        if task.expired_at_ms is not None or (task.revoked_at_ms is not None and not task.live):
            self._forget(known)
            return
        handle = _handle(state, known.accessed_at_ms if known else 0)
        self._handles[handle.task_ref] = handle
        if known is None:
            self._tenants[handle.tenant] += 1
            self._by_run[run_span(handle.task_ref)] = handle.task_ref
            self._name(handle, self._names(handle))
        else:
            if (known.token_hash, known.jti) != (handle.token_hash, handle.jti):
                self._name(handle, _credentials(handle))  # its creator came with a later one; earlier ones still count
            if known.grants != handle.grants:
                self._name(handle, _opens_for(handle))
        if handle.grants or handle.binding_mode is not BindingMode.EXACT:
            self._wider.add(handle.task_ref)
        else:
            self._wider.discard(handle.task_ref)

    def accessed(self, ref: str, at_ms: int, by: Authority | None = None) -> None:
        """Its task was asked for, and opened for this caller."""
        handle = self._handles.get(ref)
        if handle is not None:
            handle.accessed_at_ms = max(handle.accessed_at_ms, at_ms)
        credential = by.credential if by else None
        if by is None or credential is None:
            return
        iss = by.principal.iss if by.principal else ""
        for name in _credential_names(iss, (credential.token_hash,), (credential.jti,)):
            refs = self._opened_by.setdefault(name, OrderedDict())
            self._opened_by.move_to_end(name)
            refs[ref] = None
            refs.move_to_end(ref)
            if len(refs) > OPENED_MAX:
                refs.popitem(last=False)
        while len(self._opened_by) > CREDENTIALS_MAX:
            self._opened_by.popitem(last=False)

    def opened_by(self, one: Revocation) -> list[Handle]:
        """Handles that the credential which it names opened through this process, the latest first, as remembered."""
        if one.kind != "token":
            return []
        refs = [ref for name in self._named(one) for ref in reversed(self._opened_by.get(name, ()))]
        return [self._handles[ref] for ref in refs if ref in self._handles]

    def named(self, one: Revocation) -> list[Handle]:
        """Handles of the tasks whose creator, client or credential it names."""
        refs = {ref for name in self._named(one) for ref in self._by_name.get(name, ())}
        handles = [self._handles[ref] for ref in refs]
        return [handle for handle in handles if _is_within(handle, one)]

    def _named(self, one: Revocation) -> Iterator[_Name]:
        """What the handles that it names are found by: where subjects are pseudonyms, those too."""
        match one.kind:
            case "principal":
                yield from (("principal", one.iss, sub) for sub in self._known_as(one.tenant, one.sub))
            case "client":
                yield from (("client", client_id) for client_id in self._known_as(one.tenant, one.client_id))
            case _:
                yield ("hash", one.token_hash) if one.token_hash else ("jti", one.iss, one.jti)

    def _known_as(self, tenant: str, text: str) -> set[str]:
        """A name, and its pseudonym in this tenant; in every tenant when there is none."""
        if self._alias is None:
            return {text}
        return {text} | {self._alias(one, text) for one in ([tenant] if tenant else self._tenants)}

    def open_to(self, who: Binding) -> list[Handle]:
        """Handles that may open their task for somebody: theirs under its mode, or with grants to whomever.

        Whether one does is for the state of its task to say.
        """
        names: list[_Name] = [_widely(who, mode) for mode in BindingMode]
        names.append(("principal", who.iss, who.sub) if who.sub else ("client", who.client_id))
        refs = {ref for name in names for ref in self._by_name.get(name, ())}
        handles = [self._handles[ref] for ref in refs]
        return [one for one in handles if one.grants or not differences(one.binding, who, one.binding_mode)]

    def of_run(self, span: str) -> Handle | None:
        """The handle of the task whose work has this span (`tracing.run_span`)."""
        ref = self._by_run.get(span)
        return self._handles.get(ref) if ref is not None else None

    def wider(self) -> list[Handle]:
        """Handles that open their task for somebody else than exactly its creator, too."""
        return [self._handles[ref] for ref in self._wider]

    def _name(self, handle: Handle, names: Iterable[_Name]) -> None:
        found_by = self._found_by.setdefault(handle.task_ref, [])
        for name in names:
            refs = self._by_name.setdefault(name, set())
            if handle.task_ref not in refs:
                refs.add(handle.task_ref)
                found_by.append(name)

    def _names(self, handle: Handle) -> Iterator[_Name]:
        """What a handle is found by."""
        who = handle.binding
        if who.sub:
            yield ("principal", who.iss, who.sub)
            if self._alias:
                yield ("principal", who.iss, self._alias(who.tenant, who.sub))
        if who.client_id:
            yield ("client", who.client_id)
            if self._alias and who.client_id == who.sub:
                yield ("client", self._alias(who.tenant, who.client_id))
        yield from _credentials(handle)
        yield from _opens_for(handle)

    def _forget(self, handle: Handle | None) -> None:
        if handle is None:
            return
        del self._handles[handle.task_ref]
        self._wider.discard(handle.task_ref)
        self._by_run.pop(run_span(handle.task_ref), None)
        self._tenants[handle.tenant] -= 1
        if not self._tenants[handle.tenant]:
            del self._tenants[handle.tenant]
        for name in self._found_by.pop(handle.task_ref):
            refs = self._by_name[name]
            refs.discard(handle.task_ref)
            if not refs:
                del self._by_name[name]


def _handle(state: State, accessed_at_ms: int) -> Handle:
    task = state.task
    return Handle(
        task_ref=state.task_ref,
        tenant=state.tenant,
        stream_seq=state.stream_seq,
        binding=task.binding,
        binding_mode=task.binding_mode,
        server=task.server,
        tool=task.tool,
        status=task.status,
        live=task.live,
        revoked=task.revoked_at_ms is not None,
        cancel_requested=task.cancel_requested_at_ms is not None,
        created_at_ms=task.created_at_ms,
        expires_at_ms=task.expires_at_ms,
        ttl_ms=task.ttl_ms,
        standing=task.standing,
        until_s=task.until_s,
        token_hash=task.token_hash,
        jti=task.jti,
        created_token_hash=task.created_token_hash,
        created_jti=task.created_jti,
        grants=task.grants,
        accessed_at_ms=accessed_at_ms,
    )


def _opens_for(handle: Handle) -> Iterator[_Name]:
    """For whom it opens who is not found by the creator's name: in wider modes, by grants, and for the nameless."""
    who = handle.binding
    if handle.binding_mode is not BindingMode.EXACT or not (who.sub or who.client_id):
        yield _widely(who, handle.binding_mode)
    for grant in handle.grants.values():
        yield _widely(grant.to, grant.mode)


def _widely(who: Binding, mode: BindingMode) -> _Name:
    """What is compared under a mode, as a name."""
    return (f"opens {mode}", *(getattr(who, name) for name in COMPARED[mode]))


def _credentials(handle: Handle) -> Iterator[_Name]:
    """The credential that created the task, and the one it stands on now."""
    hashes, ids = (handle.token_hash, handle.created_token_hash), (handle.jti, handle.created_jti)
    return _credential_names(handle.binding.iss, hashes, ids)


def _credential_names(iss: str, hashes: tuple[str, ...], ids: tuple[str, ...]) -> Iterator[_Name]:
    for token_hash in set(hashes) - {""}:
        yield ("hash", token_hash)
    for jti in set(ids) - {""}:
        yield ("jti", iss, jti)


def _is_within(handle: Handle, one: Revocation) -> bool:
    """Whether the tenant, and for a client the issuer, are the ones a revocation is limited to."""
    if one.tenant and one.tenant != handle.tenant:
        return False
    return one.kind != "client" or not one.iss or one.iss == handle.binding.iss


async def each_current(states: States, observe: Callable[[State], None]) -> None:
    """Give every state in the bucket of current states, which must be there, to `observe`. Raises as `States.each`."""
    async with contextlib.aclosing(states.each()) as batches:
        async for some in batches:
            for state in some:
                observe(state)
