"""Whether the audit store keeps up with the trail: a responder reads what it has, not what is on the way.

Guarantees: reads the running service's `/readyz`, or opens the store of a stopped one read-only.

    findings = await of_store(data, trail_last=1200)
"""

import asyncio
from pathlib import Path

import httpx
import msgspec

from tasktrail.events.errors import TasktrailError
from tasktrail.projections.audit.store import AuditStore
from tasktrail.services import responder
from tasktrail.services.doctor.findings import Finding, not_checked, notice, unsafe, well
from tasktrail.services.http.surface import Readiness

ASK_S = 10.0
BEHIND_MUCH = 1_000
_CHECK = "audit store"


async def of_store(data: Path, audit_file: Path, trail_last: int | None) -> list[Finding]:
    """How far the audit store is behind. `trail_last`: the trail's last sequence; None when the broker is away."""
    try:
        running = responder.find(data)
        if running is not None:
            return [await _of_service(running.url)]
        position = await asyncio.to_thread(_position, audit_file)
    except TasktrailError as error:
        return [not_checked(_CHECK, f"no service answers on {data}: {error.message}")]
    except OSError as error:
        return [not_checked(_CHECK, f"{data}: {error.strerror}", "run as the user who runs the service")]
    if trail_last is None:
        return [not_checked(_CHECK, f"it has read up to {position}; the trail's end is not known without its broker")]
    return [_behind(max(0, trail_last - position), "no service runs")]


async def _of_service(url: str) -> Finding:
    try:
        async with httpx.AsyncClient(timeout=ASK_S, follow_redirects=False, trust_env=False) as client:
            answer = await client.get(f"{url}/readyz")
        ready = msgspec.json.decode(answer.content, type=Readiness)
    except (httpx.HTTPError, msgspec.MsgspecError) as error:
        why = f"the service at {url} does not answer ({type(error).__name__})"
        return unsafe(_CHECK, why, "look at what tasktrail up printed last, and restart it")
    failed = [f"{name}: {part.detail}" for name, part in ready.parts.items() if part.detail]
    if failed:
        return unsafe(_CHECK, "; ".join(failed), "look at what tasktrail up printed last, and restart it")
    auditor = ready.parts.get("auditor")
    return _behind(auditor.behind if auditor else 0, "the service runs")


def _behind(entries: int, seen: str) -> Finding:
    if entries > BEHIND_MUCH:
        return notice(_CHECK, f"{seen}; {entries} entries are not in it yet", "let the service run until it caught up")
    return well(_CHECK, f"{seen}; {entries} entries behind")


def _position(audit_file: Path) -> int:
    store = AuditStore.open(audit_file, read_only=True)
    try:
        return store.position().last_seq
    finally:
        store.close()
