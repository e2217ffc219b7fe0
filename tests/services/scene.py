"""One task's eventful life, and a data directory that holds its audit store: what the terminal and HTTP tests show.

scene = play()
data = keep(scene, tmp_path)
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
from tests.projections.audit.histories import KEY, NOW_MS, Trail, ana, timer

from tasktrail.events.authority import (
    Actor,
    Authority,
    BindingCheck,
    BindingMode,
    Credential,
    Level,
    Method,
    PolicyDecision,
    Principal,
    PrincipalKind,
    Request,
    Trigger,
    Verification,
)
from tasktrail.events.commands import (
    Answer,
    Ask,
    CancelTask,
    CompleteTask,
    ExpireTask,
    ReportStatus,
    RequestInput,
    RespondToInput,
)
from tasktrail.events.facts import AccessDenied, GapFound
from tasktrail.events.subjects import control_subject, denied_subject, task_subject
from tasktrail.projections.audit.store import AuditStore
from tasktrail.services import responder
from tasktrail.services.keyring import Keyring

HOSTILE = "\x1b[31meve\x1b[0m \u202egnp [bold]x[/bold]"
"""A subject that tries to colour the terminal, to turn the text round, and to be markup."""

CREATED = datetime(2026, 1, 1, tzinfo=UTC)


class Scene(NamedTuple):
    """`ref` and `task_id` are the eventful task's; `others` live on."""

    trail: Trail
    ref: str
    task_id: str
    others: tuple[str, ...]


def server() -> Authority:
    """A connected MCP server, on its own word."""
    return Authority(
        trigger=Trigger.WORKER,
        tenant="acme",
        principal=Principal(iss="tasktrail", sub="server:bank", kind=PrincipalKind.MACHINE, level=Level.ASSERTED),
        decision=PolicyDecision(effect="allow", reason="server-runs-task", policy_version="builtin-1"),
        request=Request(method="work/complete", server="bank"),
    )


def refused(authority: Authority, *differs: str, reason: str = "other-identity-context") -> Authority:
    """The same caller, turned away."""
    return msgspec.structs.replace(
        authority,
        binding=BindingCheck(mode=BindingMode.EXACT, differs=differs),
        decision=PolicyDecision(effect="deny", reason=reason, policy_version="builtin-1"),
    )


def _hostile() -> Authority:
    credential = Credential(
        method=Method.OPAQUE,
        verification=Verification.EXPIRED,
        token_hash="Zk" * 21 + "Q",
        exp=NOW_MS // 1000 - 50,
        level=Level.CLAIMED,
    )
    return msgspec.structs.replace(refused(ana(sub=HOSTILE), "iss", "sub", "client_id"), credential=credential)


def _anonymous() -> Authority:
    caller = Authority(
        trigger=Trigger.CALLER,
        tenant="_",
        principal=Principal(iss="", sub="", kind=PrincipalKind.ANONYMOUS, level=Level.CLAIMED),
        credential=Credential(method=Method.NONE, verification=Verification.MISSING, level=Level.CLAIMED),
        request=Request(method="tasks/get", address="203.0.113.9", address_level=Level.ASSERTED),
    )
    return refused(caller, "tenant", "iss", "sub", reason="handle-expired")


def _deny(trail: Trail, ref: str, authority: Authority, tenant: str, *reasons: str) -> None:
    event = AccessDenied(
        at_ms=trail.now_ms,
        method="tasks/update",
        code=-32602,
        count=len(reasons),
        first_ms=trail.now_ms - 100,
        last_ms=trail.now_ms,
        reasons=dict.fromkeys(reasons, 1),
        refs={ref: len(reasons)},
    )
    trail.note(denied_subject(tenant), tenant, (event,), authority=authority)


def _ask(trail: Trail, ref: str) -> None:
    asks = tuple(
        Ask(key=key, method=method, request=trail.sealed("request"))
        for key, method in (("approve-1", "elicitation/create"), ("sum-1", "sampling/createMessage"))
    )
    trail.command(ref, RequestInput(id="ask", asks=asks), server())


def _answer(trail: Trail, ref: str) -> None:
    delegated = Actor(sub="agent-7", iss="https://agents.example", level=Level.VERIFIED)
    first = Answer(key="approve-1", action="accept", response=trail.sealed("response"))
    trail.command(ref, RespondToInput(id="a1", answers=(first,)), msgspec.structs.replace(ana(), actors=(delegated,)))
    rest = (
        Answer(key="sum-1", action="accept", response=trail.sealed("response")),
        first,
        Answer(key_sha256="b" * 64),
    )
    trail.command(ref, RespondToInput(id="a2", answers=rest), ana(level=Level.ASSERTED))


def _gap(trail: Trail) -> None:
    event = GapFound(
        at_ms=trail.now_ms,
        what="folded polls and denials",
        since_ms=trail.now_ms - 4_000,
        until_ms=trail.now_ms,
        cause="the service ended without stopping",
    )
    trail.note(control_subject("acme"), "acme", (event,), authority=timer())


def play() -> Scene:
    """Created, polled, asked, answered, gone wrong in every way, ended with a tool error, expired, tried again."""
    trail = Trail()
    ref = trail.create()
    trail.now_ms += 1_000
    trail.poll(ref, 1)
    trail.command(ref, ReportStatus(id="r", message=trail.sealed("message"), progress=1.0, total=3.0), server())
    trail.now_ms += 900
    trail.poll(ref, 3)
    _ask(trail, ref)
    trail.now_ms += 700
    trail.deny(ref, count=17)
    _answer(trail, ref)
    trail.now_ms += 5_000
    _gap(trail)
    _deny(trail, ref, _hostile(), "acme", "other-identity-context", "handle-expired")
    trail.put(task_subject("acme", ref), b'{"v":1,"nonsense":"\x1b[2J"}', "nobody")
    trail.command(ref, CompleteTask(id="c", result=trail.sealed("result"), is_error=True), server())
    trail.command(ref, CancelTask(id="x"))
    trail.disclose(ref)
    trail.now_ms = NOW_MS + 60_500
    trail.command(ref, ExpireTask(id="e"), timer())
    trail.now_ms += 86_400_000
    _deny(trail, ref, _anonymous(), "_", "handle-expired")
    others = (trail.create(tool="export", sub="ben"), trail.create(ttl_ms=3_600_000), trail.create(tenant="globex"))
    trail.command(others[1], RequestInput(id="q", asks=(_one(trail),)), server())
    return Scene(trail, ref, "task 1 of acme", others)


def _one(trail: Trail) -> Ask:
    return Ask(key="k", method="elicitation/create", request=trail.sealed("request"))


def open_store(scene: Scene, path: Path) -> AuditStore:
    """A store that has read the whole trail."""
    store = AuditStore.open(path)
    store.bind("TRAIL", CREATED, len(scene.trail.messages))
    store.append(scene.trail.messages)
    return store


def keep(scene: Scene, folder: Path) -> Path:
    """A data directory as a stopped service leaves it."""
    data = folder / "trail"
    responder.prepare(data)
    keys = data / "keys"
    keys.mkdir(mode=0o700)
    reference = keys / "reference.key"
    reference.write_text(KEY.hex())
    reference.chmod(0o600)
    Keyring.create(data)
    open_store(scene, data / "audit.duckdb").close()
    return data
