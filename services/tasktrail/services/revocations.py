"""Revocations that hold, found by what they name. Pure: no clock, no network.

Guarantees: a caller or a credential is looked up in constant time, however many there are; what names nobody refuses
nobody; members are compared one by one, never as a joined string. Switching `[privacy]` on or off ends none: a subject,
or a client that is one, is found by its name and by its pseudonym, whichever of the two was recorded.

    revocations = Revocations(keyring.pseudonym)
    revocations.add(Revocation(id="r1", kind="client", client_id="cli-7"))
    revocations.naming(identity(authority), token_hash, jti)
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeAlias

import msgspec

from tasktrail.events.authority import Binding
from tasktrail.events.facts import PrincipalRevoked

Alias: TypeAlias = Callable[[str, str], str]
"""`alias(tenant, text)`: the pseudonym of a subject in a tenant, as `Keyring.pseudonym`."""

TENANTS_KEPT = 256
"""Of how many tenants, those used last, the pseudonyms of all who are revoked are kept."""

_PSEUDONYM = re.compile(r"p-[a-z2-7]{32}")
_Name: TypeAlias = tuple[str, ...]


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """Who is refused, since when (epoch milliseconds), and why. Members as in `PrincipalRevoked`."""

    id: str
    kind: str
    tenant: str = ""
    iss: str = ""
    sub: str = ""
    client_id: str = ""
    token_hash: str = ""
    jti: str = ""
    reason: str = ""
    at_ms: int = 0


class Revocations:
    """Those that hold, by what they name. Several may have one id: they were ordered, and are lifted, together."""

    def __init__(self, alias: Alias | None = None) -> None:
        """Without `alias` names are compared as they are."""
        self._alias = alias
        self._by_id: dict[str, tuple[Revocation, ...]] = {}
        self._lifted: set[str] = set()
        self._by_name: dict[_Name, dict[str, Revocation]] = {}
        self._veiled: set[str] = set()
        """Those that name a pseudonym."""
        self._by_alias: OrderedDict[str, dict[_Name, dict[str, Revocation]]] = OrderedDict()
        """By tenant: those that hold there, by the pseudonym there of whom they name."""

    def __len__(self) -> int:
        return len(self._by_id)

    def all(self) -> list[Revocation]:
        """In the order in which they were recorded."""
        return [one for together in self._by_id.values() for one in together]

    def get(self, revocation: str) -> Revocation | None:
        """The (first) one with this id, if it holds."""
        return next(iter(self._by_id.get(revocation, ())), None)

    def add(self, one: Revocation) -> None:
        """From now on it holds."""
        name, together = _name(one), self._by_id.get(one.id, ())
        if name is None or one in together:
            return
        self._by_id[one.id] = (*together, one)
        self._by_name.setdefault(name, {})[one.id] = one
        if _PSEUDONYM.fullmatch(one.sub or one.client_id):
            self._veiled.add(one.id)
        for tenant, aliased in self._by_alias.items():
            for other in self._aliases(tenant, one):
                aliased.setdefault(other, {})[one.id] = one

    def same_as(self, one: Revocation) -> Revocation | None:
        """One that holds and names the very same as this, whatever its id, its reason and its time."""
        name = _name(one)
        return next(iter(self._by_name.get(name, {}).values()), None) if name is not None else None

    def remove(self, revocation: str) -> None:
        """From now on it does not."""
        self._lifted.add(revocation)
        self._veiled.discard(revocation)
        for one in self._by_id.pop(revocation, ()):
            _forget(self._by_name, _name(one), one)
            for tenant, aliased in self._by_alias.items():
                for other in self._aliases(tenant, one):
                    _forget(aliased, other, one)

    def is_lifted(self, revocation: str) -> bool:
        """Whether the one with this id held, and does not any more: as far as is known here."""
        return revocation in self._lifted and revocation not in self._by_id

    def naming(self, who: Binding, token_hash: str = "", jti: str = "") -> Revocation | None:
        """One that names this identity context or this credential; the oldest of those of one form."""
        if not self._by_id:
            return None
        for tenant in ("", who.tenant):
            for name in (
                *_names(tenant, who.iss, who.sub, who.client_id),
                ("hash", tenant, token_hash),
                ("jti", tenant, who.iss, jti),
            ):
                if named := self._by_name.get(name):
                    return next(iter(named.values()))
        return self._otherwise_named(who) if self._alias else None

    def _otherwise_named(self, who: Binding) -> Revocation | None:
        """One recorded by a pseudonym while the caller comes by name, or the other way round."""
        if self._alias and self._veiled:
            sub, client_id = (text and self._alias(who.tenant, text) for text in (who.sub, who.client_id))
            for tenant in ("", who.tenant):
                for name in _names(tenant, who.iss, sub, client_id):
                    if named := self._by_name.get(name):
                        return next(iter(named.values()))
        if _PSEUDONYM.fullmatch(who.sub) or _PSEUDONYM.fullmatch(who.client_id):
            aliased = self._aliased(who.tenant)
            for name in _names(who.tenant, who.iss, who.sub, who.client_id):
                if named := aliased.get(name):
                    return next(iter(named.values()))
        return None

    def _aliased(self, tenant: str) -> dict[_Name, dict[str, Revocation]]:
        """Those that hold in this tenant, by pseudonyms; made when it is first asked for."""
        aliased = self._by_alias.get(tenant)
        if aliased is None:
            aliased = self._by_alias[tenant] = {}
            for one in self.all():
                for name in self._aliases(tenant, one):
                    aliased.setdefault(name, {})[one.id] = one
            if len(self._by_alias) > TENANTS_KEPT:
                self._by_alias.popitem(last=False)
        self._by_alias.move_to_end(tenant)
        return aliased

    def _aliases(self, tenant: str, one: Revocation) -> Iterator[_Name]:
        """What a revocation compares in a tenant whose subjects are pseudonyms."""
        if self._alias is None or one.tenant not in {"", tenant}:
            return
        match one.kind:
            case "principal":
                yield ("principal", tenant, one.iss, self._alias(tenant, one.sub))
            case "client":
                yield ("client", tenant, one.iss, self._alias(tenant, one.client_id))
            case _:
                pass


def revocation_of(event: PrincipalRevoked) -> Revocation:
    """The revocation that this event began."""
    return Revocation(
        id=event.revocation,
        kind=event.kind,
        tenant=event.tenant,
        iss=event.iss,
        sub=event.sub,
        client_id=event.client_id,
        token_hash=event.token_hash,
        jti=event.jti,
        reason=event.reason,
        at_ms=event.at_ms,
    )


def _names(tenant: str, iss: str, sub: str, client_id: str) -> tuple[_Name, _Name, _Name]:
    """What a principal and its client are compared by."""
    return (
        ("principal", tenant, iss, sub),
        ("client", tenant, "", client_id),
        ("client", tenant, iss, client_id),
    )


def _forget(by_name: dict[_Name, dict[str, Revocation]], name: _Name | None, one: Revocation) -> None:
    named = by_name.get(name, {}) if name else {}
    named.pop(one.id, None)
    if name and not named:
        by_name.pop(name, None)


def _name(one: Revocation) -> _Name | None:
    """What a revocation compares; None when it names nobody, and so holds for nobody."""
    match one.kind:
        case "principal" if one.sub:
            return ("principal", one.tenant, one.iss, one.sub)
        case "client" if one.client_id:
            return ("client", one.tenant, one.iss, one.client_id)
        case "token" if one.token_hash:
            return ("hash", one.tenant, one.token_hash)
        case "token" if one.jti:
            return ("jti", one.tenant, one.iss, one.jti)
        case _:
            return None
