"""What a configuration by itself makes unsafe: who is believed, what is granted, who can see it.

Guarantees: pure; reads settings and nothing else. Each function is one check and gives one or more findings.

    findings = [*of_settings(settings)]
"""

from collections.abc import Iterator
from pathlib import Path

from tasktrail.services.addresses import is_loopback
from tasktrail.services.configuration import ANY, DAY_MS
from tasktrail.services.configuration_wording import in_words
from tasktrail.services.doctor.findings import Finding, notice, unsafe, well
from tasktrail.services.settings import Settings

TTL_LONG_MS = 30 * DAY_MS
KEPT_LONG_MS = 30 * DAY_MS
HOLDERS_LEAST = 2


def of_settings(settings: Settings) -> Iterator[Finding]:
    """All checks of the settings."""
    yield from _authentication(settings)
    yield from _servers(settings)
    yield from _times(settings)
    yield from _retention(settings)
    yield from _holds(settings)
    yield from _checkpoints(settings)
    yield from _surface(settings)


def _authentication(settings: Settings) -> Iterator[Finding]:
    sources = len(settings.issuers) + len(settings.api_keys)
    if not sources:
        yield unsafe(
            "authentication",
            "no issuer and no API key is configured: tasktrail itself verifies nobody",
            "add [[issuers]] with the address of their keys, or [[api_keys]]",
        )
    else:
        yield well("authentication", f"{len(settings.issuers)} issuers and {len(settings.api_keys)} API keys")
    if settings.anonymous:
        yield unsafe(
            "anonymous callers",
            "callers without any credential may create tasks and open them",
            "set anonymous = false in [service]",
        )
    else:
        yield well("anonymous callers", "callers without a credential hold no task")


def _servers(settings: Settings) -> Iterator[Finding]:
    trusted = [server.name for server in settings.servers if server.asserts]
    if not settings.issuers and not settings.servers:
        yield unsafe(
            "asserted identities",
            "the word of every MCP server on who its callers are is taken",
            "let servers forward tokens to configured [[issuers]], or name the trusted ones in [[servers]]",
        )
    elif wide := [name for name in trusted if ANY in name]:
        yield unsafe(
            "asserted identities",
            f"every MCP server named {', '.join(wide)} is believed on who its callers are",
            "name each trusted server whole in [[servers]]",
        )
    elif trusted:
        yield notice("asserted identities", f"believed on who their callers are: {', '.join(trusted)}")
    else:
        yield well("asserted identities", "no MCP server's word on its callers is taken")


def _times(settings: Settings) -> Iterator[Finding]:
    found = [("ttl_max_ms", settings.ttl_max_ms)]
    found += [
        (f"tools[{index}].ttl_max_ms ({tool.server} / {tool.tool})", tool.ttl_max_ms)
        for index, tool in enumerate(settings.tools)
        if tool.ttl_max_ms is not None
    ]
    long = [(name, most) for name, most in found if most > TTL_LONG_MS]
    for name, most in long:
        yield unsafe(
            "times to live",
            f"{name} grants handles for {_spoken(most)}: a handle that leaks opens its task for as long",
            f"lower it to {TTL_LONG_MS} ({_spoken(TTL_LONG_MS)}) or less; a day is usual",
        )
    if not long:
        yield well("times to live", f"at most {_spoken(max(most for _, most in found))}")


def _retention(settings: Settings) -> Iterator[Finding]:
    rows = [("retention", settings.retention)]
    rows += [(f"tools[{i}].retention", tool.retention) for i, tool in enumerate(settings.tools) if tool.retention]
    long = [
        f"{name}.{field} is {_spoken(getattr(row, field))}"
        for name, row in rows
        for field in row.__struct_fields__
        if getattr(row, field) > KEPT_LONG_MS
    ]
    if long:
        yield notice("retention", "; ".join(long), "keep results and payloads no longer than they are asked for")
    else:
        yield well("retention", f"payloads are kept {_spoken(settings.retention.payloads_ms)} after the handle's end")


def _holds(settings: Settings) -> Iterator[Finding]:
    holders = ["responder", *(operator.name for operator in settings.operators if "hold" in operator.rights)]
    if len(holders) < HOLDERS_LEAST:
        yield notice(
            "legal holds",
            "only the responder may place or release one, and nobody releases a hold of their own",
            'add a second person in [[operators]] with rights = ["read", "hold"]',
        )
    else:
        yield well("legal holds", f"may place and release: {', '.join(holders)}")


def _checkpoints(settings: Settings) -> Iterator[Finding]:
    tlog = settings.tlog
    here = [copy for copy in tlog.copies if "://" not in copy and Path(copy).is_relative_to(settings.data)]
    if here:
        yield unsafe(
            "checkpoints",
            f"{', '.join(here)} is in the data directory: who rewrites the trail rewrites this copy",
            "name a place with another owner in [tlog] copies",
        )
    elif tlog.copies or tlog.witnesses:
        yield well("checkpoints", f"{len(tlog.copies)} copies and {len(tlog.witnesses)} witnesses elsewhere")
    else:
        yield notice(
            "checkpoints",
            "nobody else has them: whoever holds this machine can rewrite the trail and sign it anew, unseen",
            "name a copy or a witness with another owner in [tlog]",
        )


def _surface(settings: Settings) -> Iterator[Finding]:
    if is_loopback(settings.host):
        yield well("HTTP surface", f"listens on {settings.host}, on this machine only")
    else:
        yield notice(
            "HTTP surface",
            f"listens on {settings.host} without TLS: whoever can listen in on the way learns operators' tokens",
            "let it listen on 127.0.0.1 behind a proxy that speaks TLS",
        )


def _spoken(ms: int) -> str:
    return in_words("_ms", ms) or f"{ms} ms"
