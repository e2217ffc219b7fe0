"""What a configuration's tables say that cannot be: found before anything is started.

Guarantees: pure; every problem is found, each with the path of the value it is about and the remedy; no message quotes
a digest. What is right for a field by itself is in `configuration.py`; files are looked at by `settings.py`.

    problems(Tables(issuers=(issuer,), ttl_max_ms=86_400_000))
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

import msgspec

from tasktrail.services.addresses import is_loopback
from tasktrail.services.configuration import (
    ALGORITHMS,
    ANY,
    RIGHTS,
    ApiKey,
    Issuer,
    McpServer,
    Operator,
    Privacy,
    Tlog,
    Tool,
)
from tasktrail.services.configuration_file import Problem
from tasktrail.services.operators import RESPONDER

_OURS = "tasktrail"
_OF_NOTHING = hashlib.sha256(b"").hexdigest()
_NO_WILDCARDS = "?[]"
_STREAM = re.compile(r"/[A-Za-z0-9_-]{1,64}")
_VKEY = re.compile(r"(?P<name>[^\s+]+)\+(?P<id>[0-9a-f]{8})\+(?P<key>[A-Za-z0-9+/]+={0,2})")
_VKEY_BYTES = 33


class Tables(msgspec.Struct, frozen=True, kw_only=True):
    """The tables, and the setting that tools are measured by; as in `Settings`."""

    issuers: tuple[Issuer, ...] = ()
    servers: tuple[McpServer, ...] = ()
    tools: tuple[Tool, ...] = ()
    api_keys: tuple[ApiKey, ...] = ()
    operators: tuple[Operator, ...] = ()
    privacy: Privacy = Privacy()
    tlog: Tlog = Tlog()
    ttl_max_ms: int


def problems(tables: Tables) -> list[Problem]:
    """All of them, table by table."""
    return [
        *_issuers(tables.issuers),
        *_servers(tables.servers),
        *_tools(tables.tools, tables.ttl_max_ms),
        *_keys(tables),
        *_operators(tables.operators),
        *_privacy(tables.privacy),
        *_tlog(tables.tlog),
    ]


def _issuers(issuers: Sequence[Issuer]) -> Iterator[Problem]:
    yield from _repeated("issuers", "url", [one.url for one in issuers])
    for index, issuer in enumerate(issuers):
        at = ("issuers", index)
        if issuer.url == _OURS:
            yield Problem((*at, "url"), "is tasktrail's own name in the trail; give the issuer's")
        if not issuer.audience:
            yield Problem((*at, "audience"), "names nobody; give what its tokens must be for, such as your MCP server")
        if not issuer.jwks_url and not issuer.introspection_url:
            yield Problem(at, "its tokens cannot be checked; give jwks_url (JWT) or introspection_url (opaque tokens)")
        for field in ("jwks_url", "introspection_url"):
            address = getattr(issuer, field)
            if address and (why := _unsafe(address)):
                yield Problem((*at, field), why)
        yield from _algorithms(issuer, at)
        yield from _introspection(issuer, at)


def _algorithms(issuer: Issuer, at: tuple[str, int]) -> Iterator[Problem]:
    wrong = [name for name in issuer.algorithms if name not in ALGORITHMS]
    if wrong:
        yield Problem((*at, "algorithms"), f"{', '.join(wrong)} cannot be used; choose among {', '.join(ALGORITHMS)}")
    if issuer.algorithms and not issuer.jwks_url:
        yield Problem((*at, "algorithms"), "only tokens checked with jwks_url have one; remove it, or give jwks_url")


def _introspection(issuer: Issuer, at: tuple[str, int]) -> Iterator[Problem]:
    for field in ("introspection_client_id", "introspection_secret_file"):
        given = bool(getattr(issuer, field))
        if issuer.introspection_url and not given:
            yield Problem((*at, field), "introspection asks as a client (RFC 7662, section 2.1); give it")
        if given and not issuer.introspection_url:
            yield Problem((*at, field), "is for introspection; give introspection_url too, or remove it")


def _unsafe(address: str) -> str:
    """Why this address may not be asked for keys or about tokens; empty when it may."""
    try:
        url = urlsplit(address)
        host, _ = url.hostname or "", url.port
    except ValueError:
        return "is no address; give https://host/path"
    if url.username is not None or url.password is not None:
        return "holds a password; remove it from the address"
    if not host or url.fragment or url.scheme not in {"https", "http"}:
        return "is no address to ask; give https://host/path"
    if url.scheme == "http" and not is_loopback(host):
        return "would be asked in the clear; give https, or http on the loopback interface"
    return ""


def _servers(servers: Sequence[McpServer]) -> Iterator[Problem]:
    yield from _repeated("servers", "name", [one.name for one in servers])
    for index, server in enumerate(servers):
        yield from _pattern(("servers", index, "name"), server.name)
    yield from _never_reached("servers", [(one.name,) for one in servers])


def _tools(tools: Sequence[Tool], ttl_max_ms: int) -> Iterator[Problem]:
    for index, tool in enumerate(tools):
        at = ("tools", index)
        yield from _pattern((*at, "server"), tool.server)
        yield from _pattern((*at, "tool"), tool.tool)
        if ANY in tool.tenant and tool.tenant != ANY:
            yield Problem((*at, "tenant"), f"is one tenant's name, or {ANY} for all; name it whole")
        most = ttl_max_ms if tool.ttl_max_ms is None else tool.ttl_max_ms
        if tool.ttl_default_ms is not None and tool.ttl_default_ms > most:
            whose = "the service's" if tool.ttl_max_ms is None else "its"
            text = f"{tool.ttl_default_ms} exceeds {whose} ttl_max_ms ({most}); lower it, or give a higher ttl_max_ms"
            yield Problem((*at, "ttl_default_ms"), text)
    yield from _never_reached("tools", [(one.server, one.tool, one.tenant) for one in tools])


def _pattern(path: tuple[str, int, str], pattern: str) -> Iterator[Problem]:
    if any(one in pattern for one in _NO_WILDCARDS):
        yield Problem(path, f"holds one of {_NO_WILDCARDS}, and only {ANY} stands for other characters; remove it")


def _never_reached(table: str, patterns: Sequence[tuple[str, ...]]) -> Iterator[Problem]:
    """Members behind one that fits everything they fit: `*` matches a `*` as it does any text."""
    for index, later in enumerate(patterns):
        for before in range(index):
            earlier = patterns[before]
            if earlier != later and all(fnmatchcase(b, a) for a, b in zip(earlier, later, strict=True)):
                yield Problem((table, index), f"is never reached: {table}[{before}] fits the same; put this one first")
                break
    if table == "tools":
        yield from _repeated(table, "server, tool and tenant", [" / ".join(one) for one in patterns])


def _keys(said: Tables) -> Iterator[Problem]:
    yield from _repeated("api_keys", "name", [one.name for one in said.api_keys])
    owner: dict[str, str] = {}
    tables: tuple[tuple[str, Sequence[ApiKey | Operator | McpServer]], ...] = (
        ("api_keys", said.api_keys),
        ("operators", said.operators),
        ("servers", said.servers),
    )
    for table, rows in tables:
        for index, row in enumerate(rows):
            path = (table, index, "sha256")
            if not row.sha256:
                continue  # an MCP server that does not come over HTTP
            if row.sha256 == _OF_NOTHING:
                yield Problem(path, "is the digest of an empty key; give that of 32 random bytes or more")
            elif row.sha256 in owner:
                yield Problem(path, f"is the same key as {owner[row.sha256]}; give each its own")
            owner.setdefault(row.sha256, f"{table}[{index}]")


def _operators(operators: Sequence[Operator]) -> Iterator[Problem]:
    yield from _repeated("operators", "name", [one.name for one in operators])
    for index, operator in enumerate(operators):
        at = ("operators", index)
        if operator.name == RESPONDER:
            yield Problem(
                (*at, "name"), f"{RESPONDER} is the holder of the data directory's token; choose another name"
            )
        wrong = [right for right in operator.rights if right not in RIGHTS]
        if wrong or not operator.rights:
            what = f"{', '.join(wrong)}: there is no such right" if wrong else "gives none"
            yield Problem((*at, "rights"), f"{what}; choose among {', '.join(RIGHTS)}")


def _privacy(privacy: Privacy) -> Iterator[Problem]:
    for index, tenant in enumerate(privacy.tenants):
        if not tenant or (ANY in tenant and tenant != ANY):
            yield Problem(("privacy", "tenants", index), f"is one tenant's name, or {ANY} for all; name it whole")


def _tlog(tlog: Tlog) -> Iterator[Problem]:
    for index, copy in enumerate(tlog.copies):
        at = ("tlog", "copies", index)
        if copy in tlog.copies[:index]:
            yield Problem(at, f"is the same as tlog.copies[{tlog.copies.index(copy)}]; remove one")
        elif "://" in copy and (why := _no_copy(copy)):
            yield Problem(at, why)
    for index, witness in enumerate(tlog.witnesses):
        at = ("tlog", "witnesses", index)
        if not _is_http(witness.url):
            yield Problem((*at, "url"), "is no address to ask; give https://host/path or http://host/path")
        if not _is_cosigner(witness.vkey):
            text = "is no witness's verifier key; give the whole of what `tasktrail witness` prints: name+id+key"
            yield Problem((*at, "vkey"), text)
        if witness.vkey in [one.vkey for one in tlog.witnesses[:index]]:
            yield Problem(at, "is there already with the same vkey; remove one")


def _no_copy(copy: str) -> str:
    try:
        url = urlsplit(copy)
        fits = url.scheme in {"nats", "tls"} and bool(url.hostname) and url.port != 0
    except ValueError:
        fits, url = False, urlsplit("")
    if not fits or not _STREAM.fullmatch(url.path):
        return "is no place for copies; give a directory, or nats://host:4222/STREAM"
    return ""


def _is_cosigner(vkey: str) -> bool:
    """Whether it is the verifier key of Ed25519 cosignatures (C2SP signed-note, tlog-cosignature)."""
    found = _VKEY.fullmatch(vkey)
    if not found:
        return False
    try:
        key = base64.b64decode(found["key"], validate=True)
    except ValueError:
        return False
    named = hashlib.sha256(found["name"].encode() + b"\n" + key).hexdigest()
    return key[:1] == b"\x04" and len(key) == _VKEY_BYTES and named.startswith(found["id"])


def _is_http(address: str) -> bool:
    try:
        url = urlsplit(address)
        _ = url.port
    except ValueError:
        return False
    return url.scheme in {"http", "https"} and bool(url.hostname) and not (url.username or url.query or url.fragment)


def _repeated(table: str, what: str, names: Iterable[str]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in first:
            yield Problem((table, index), f"{what}: {table}[{first[name]}] has the same; each may be there once")
        first.setdefault(name, index)
