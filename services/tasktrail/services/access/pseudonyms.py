"""Keyed pseudonyms in place of subjects and addresses, for the tenants that must not record them.

Guarantees: pure; applied before anything else sees an authority, so that bindings, the trail and the audit store know
the pseudonym only; the same text has the same pseudonym within a tenant and another one in another tenant; without the
keyring's reference key no pseudonym can be computed or checked. Issuers, clients, tokens' digests and the names of our
own keys stay as they are; a client that is the subject does not.

    authority = Pseudonyms(keyring, settings.privacy).applied(authority, tenant="acme")
"""

import msgspec

from tasktrail.events.authority import Authority, Client, Principal, Request
from tasktrail.services.configuration import Privacy
from tasktrail.services.keyring import Keyring

OURS = "tasktrail"
"""The issuer of identities that tasktrail itself gives: keys, operators, servers, parts of the service."""


class Pseudonyms:
    """What stands for whom."""

    def __init__(self, keyring: Keyring, privacy: Privacy) -> None:
        self._keyring, self._privacy = keyring, privacy

    def applied(self, authority: Authority, tenant: str) -> Authority:
        """The authority with pseudonyms of `tenant` where that tenant must have them."""
        if not self._privacy.covers(tenant):
            return authority
        if self._privacy.subjects:
            authority = self._without_subjects(authority, tenant)
        if self._privacy.addresses and authority.request is not None:
            authority = msgspec.structs.replace(authority, request=self._without_addresses(authority.request, tenant))
        return authority

    def _without_subjects(self, authority: Authority, tenant: str) -> Authority:
        principal, client = authority.principal, authority.client
        if principal is not None and client is not None and client.client_id == principal.sub:
            client = Client(client_id=self._named(tenant, client.client_id), level=client.level)
        if principal is not None and principal.iss != OURS:
            principal = Principal(
                iss=principal.iss, sub=self._named(tenant, principal.sub), kind=principal.kind, level=principal.level
            )
        actors = tuple(msgspec.structs.replace(actor, sub=self._named(tenant, actor.sub)) for actor in authority.actors)
        return msgspec.structs.replace(authority, principal=principal, client=client, actors=actors)

    def _without_addresses(self, request: Request, tenant: str) -> Request:
        forwarded = [part for part in request.forwarded_for.split(", ") if part]
        return msgspec.structs.replace(
            request,
            address=self._named(tenant, request.address),
            forwarded_for=", ".join(self._named(tenant, part) for part in forwarded),
        )

    def _named(self, tenant: str, text: str) -> str:
        return self._keyring.pseudonym(tenant, text) if text else ""
