"""Trails for tests: entries made by `decide` and chained as the Ledger chains them, without a broker.

trail = Trail()
ref = trail.create(tool="transfer")
trail.command(ref, CompleteTask(id="c", result=trail.sealed("result")))
store.append(trail.messages)
"""

import hashlib
import random
from datetime import UTC, datetime
from typing import Any

import msgspec

from tasktrail.events.authority import (
    Actor,
    Authority,
    Binding,
    BindingCheck,
    BindingMode,
    Client,
    Credential,
    Level,
    Method,
    PolicyDecision,
    Principal,
    PrincipalKind,
    Request,
    Standing,
    Trigger,
    Verification,
)
from tasktrail.events.commands import (
    Answer,
    Ask,
    CancelTask,
    ChangeAuthority,
    CompleteTask,
    CreateTask,
    ExpireTask,
    FailTask,
    GiveGrant,
    LoseWorker,
    PlaceHold,
    ReleaseHold,
    ReportStatus,
    RequestInput,
    RespondToInput,
    RevokeHandle,
    ShredPayload,
    StopTask,
    TaskCommand,
    WithdrawGrant,
)
from tasktrail.events.decide import decide
from tasktrail.events.entry import VERSION, Entry, encode, leaf_hash
from tasktrail.events.facts import AccessDenied, Commitment, Event, GapFound, ResultDisclosed, TaskPolled, TaskSupport
from tasktrail.events.subjects import access_subject, denied_subject, entry_id, task_ref, task_subject
from tasktrail.events.task import Task, apply
from tasktrail.projections.audit.columns import Message

NOW_MS = 1_795_000_000_000
KEY = b"k" * 32


def rfc3339(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ana(tenant: str = "acme", sub: str = "ana", *, level: Level = Level.VERIFIED) -> Authority:
    """A user's call with a verified token."""
    return Authority(
        trigger=Trigger.CALLER,
        tenant=tenant,
        principal=Principal(iss="https://id.example", sub=sub, level=level),
        client=Client(client_id="desk", level=level),
        credential=Credential(
            method=Method.JWT,
            verification=Verification.OK,
            token_hash="h" * 43,
            jti=f"jti-{sub}",
            exp=NOW_MS // 1000 + 600,
            level=level,
        ),
        binding=BindingCheck(mode=BindingMode.EXACT),
        decision=PolicyDecision(effect="allow", reason="same-identity-context", policy_version="builtin-1"),
        request=Request(method="tasks/get", server="bank", wire="2026-07-28", address="192.0.2.7"),
    )


def worker(standing: Standing | None = None, tenant: str = "acme") -> Authority:
    """The MCP server's own step, with what the creator's authority is worth at that moment."""
    return Authority(
        trigger=Trigger.WORKER,
        tenant=tenant,
        principal=Principal(iss="tasktrail", sub="server:bank", kind=PrincipalKind.MACHINE, level=Level.VOUCHED),
        standing=standing,
        decision=PolicyDecision(effect="allow", reason="server-runs-task", policy_version="builtin-1"),
    )


def operator(name: str = "olga", tenant: str = "acme") -> Authority:
    """A person with a named key."""
    return Authority(
        trigger=Trigger.OPERATOR,
        tenant=tenant,
        principal=Principal(iss="tasktrail", sub=name, level=Level.VOUCHED),
        decision=PolicyDecision(effect="allow", reason="operator-may", policy_version="v-2", policies=("ops", "all")),
    )


def timer(tenant: str = "acme", standing: Standing | None = None) -> Authority:
    return Authority(
        trigger=Trigger.TIMER,
        tenant=tenant,
        standing=standing,
        decision=PolicyDecision(effect="allow", reason="time-is-up", policy_version="builtin-1"),
    )


def gap(since_ms: int, until_ms: int) -> GapFound:
    """What a crash says of the folded polls it may have lost."""
    return GapFound(at_ms=until_ms, what="folded polls", since_ms=since_ms, until_ms=until_ms, cause="crash")


class Trail:
    """Grows `messages`; `tasks` holds each task's state as the Ledger would."""

    def __init__(self, *, first_seq: int = 1) -> None:
        self.messages: list[Message] = []
        self.tasks: dict[str, Task] = {}
        self.tenants: dict[str, str] = {}
        self.now_ms = NOW_MS
        self._seq = first_seq
        self._made = 0

    def sealed(self, name: str, text: str = "secret", *flags: str) -> Commitment:
        self._made += 1
        digest = hashlib.sha256(f"{name}{text}{self._made}".encode()).hexdigest()
        return Commitment(name=name, sha256=digest, mac=digest[::-1], size=len(text) + 28, flags=flags)

    def put(self, subject: str, body: bytes, msg_id: str) -> Message:
        message = Message(self._seq, subject, body, msg_id, "key-1", "c2lnbmF0dXJl")
        self._seq += 1
        self.messages.append(message)
        return message

    def create(
        self,
        *,
        tenant: str = "acme",
        tool: str = "transfer",
        sub: str = "ana",
        ttl_ms: int = 60_000,
        authority: Authority | None = None,
        **fields: object,
    ) -> str:
        self._made += 1
        ref = task_ref(KEY, f"task {self._made} of {tenant}")
        self.tenants[ref] = tenant
        made = CreateTask(
            id=f"create-{self._made}",
            binding=Binding(tenant=tenant, iss="https://id.example", sub=sub, client_id="desk"),
            server="bank",
            tool=tool,
            task_support=TaskSupport.REQUIRED,
            wire="2026-07-28",
            protocol_version="2026-07-28",
            requested_ttl_ms=120_000,
            granted_ttl_ms=ttl_ms,
            poll_interval_ms=500,
            handle=self.sealed("handle"),
            arguments=self.sealed("arguments"),
        )
        self.command(ref, msgspec.structs.replace(made, **fields), authority or ana(tenant, sub))
        return ref

    def command(self, ref: str, command: TaskCommand, authority: Authority | None = None) -> Message | None:
        """One entry of what `command` causes; None when it causes nothing."""
        self.now_ms += 10
        task = self.tasks.get(ref)
        command = msgspec.structs.replace(command, at_ms=self.now_ms)
        events: tuple[Event, ...] = decide(command, task)
        if not events:
            return None
        entry = self.entry(ref, events, authority, made=entry_id(ref, f"{command.id} {self._seq}"))
        entry = msgspec.structs.replace(entry, command=type(command).__name__)
        body = encode(entry)
        self.tasks[ref] = apply(task, entry, leaf_hash(body))
        return self.put(task_subject(entry.tenant, ref), body, entry.id)

    def entry(self, ref: str, events: tuple[Event, ...], authority: Authority | None = None, made: str = "") -> Entry:
        """The entry that continues the chain of `ref`."""
        tenant, task = self.tenants.get(ref, "acme"), self.tasks.get(ref)
        return Entry(
            v=VERSION,
            id=made or entry_id(ref, f"entry {self._seq}"),
            tenant=tenant,
            task_ref=ref,
            task_seq=task.seq + 1 if task else 1,
            prev=task.leaf if task else "",
            recorded_at=rfc3339(self.now_ms),
            authority=authority or ana(tenant),
            events=events,
            sealed={"text": b"\x00sealed\xff"},
        )

    def note(
        self, subject: str, tenant: str, events: tuple[Event, ...], ref: str = "", authority: Authority | None = None
    ) -> Message:
        """One entry outside a chain: access, denied, control."""
        made = entry_id(subject, f"note {self._seq}")
        entry = Entry(
            v=VERSION,
            id=made,
            tenant=tenant,
            task_ref=ref,
            recorded_at=rfc3339(self.now_ms),
            authority=authority or ana(tenant),
            events=events,
        )
        return self.put(subject, encode(entry), made)

    def poll(self, ref: str, count: int = 3) -> Message:
        tenant = self.tenants[ref]
        event = TaskPolled(
            at_ms=self.now_ms,
            method="tasks/get",
            status=self.tasks[ref].status.value,
            count=count,
            first_ms=self.now_ms - 900,
            last_ms=self.now_ms,
        )
        return self.note(access_subject(tenant, ref), tenant, (event,), ref)

    def disclose(self, ref: str) -> Message:
        event = ResultDisclosed(at_ms=self.now_ms, payloads=("result",), sha256=("a" * 64,), nth=1, method="tasks/get")
        return self.note(access_subject(self.tenants[ref], ref), self.tenants[ref], (event,), ref)

    def deny(
        self, ref: str, *, tenant: str = "acme", sub: str = "eve", count: int = 2, level: Level = Level.VERIFIED
    ) -> Message:
        event = AccessDenied(
            at_ms=self.now_ms,
            method="tasks/get",
            code=-32602,
            count=count,
            first_ms=self.now_ms - 500,
            last_ms=self.now_ms,
            reasons={"other-identity-context": count},
            refs={ref: count},
        )
        refused = msgspec.structs.replace(
            ana(tenant, sub, level=level),
            binding=BindingCheck(mode=BindingMode.EXACT, differs=("sub",)),
            decision=PolicyDecision(effect="deny", reason="other-identity-context", policy_version="builtin-1"),
        )
        return self.note(denied_subject(tenant), tenant, (event,), authority=refused)


def some_command(trail: Trail, ref: str, draw: random.Random) -> TaskCommand:
    """Any command, often one the status does not admit."""
    made, key = f"c{len(trail.messages)}", draw.choice("abc")
    task = trail.tasks[ref]
    if draw.random() < 0.05:
        trail.now_ms = max(trail.now_ms, task.expires_at_ms)
    return draw.choice(
        (
            ReportStatus(id=made, message=trail.sealed("message")),
            RequestInput(id=made, asks=(Ask(key=key, method="elicitation/create", request=trail.sealed("request")),)),
            RespondToInput(id=made, answers=(Answer(key=key, action="accept", response=trail.sealed("response")),)),
            RespondToInput(id=made, answers=(Answer(key_sha256="b" * 64),)),
            CompleteTask(id=made, result=trail.sealed("result"), is_error=draw.random() < 0.5),
            FailTask(id=made, error=trail.sealed("error"), code=-32603),
            CancelTask(id=made),
            StopTask(id=made),
            ExpireTask(id=made),
            LoseWorker(id=made, cause="lease", error=trail.sealed("error"), code=-32603),
            *governing(made, key, draw),
        )
    )


def governing(made: str, key: str, draw: random.Random) -> tuple[TaskCommand, ...]:
    """Any command about who may use a task and how long its payloads are kept."""
    to, by = Binding(tenant="acme", iss="", sub="bo", client_id=""), draw.choice(("olga", "omar"))
    return (
        ChangeAuthority(id=made, standing=draw.choice(list(Standing)), until_s=draw.choice((0, NOW_MS // 1000, 2**60))),
        GiveGrant(id=made, grant=key, to=to, rights=("get",), reason="r"),
        WithdrawGrant(id=made, grant=key, reason="r"),
        PlaceHold(id=made, hold=key, by=by, reason="r"),
        ReleaseHold(id=made, hold=key, by=by, reason="r"),
        RevokeHandle(id=made, reason="r"),
        ShredPayload(id=made, reason="retention"),
    )


def mixed(entries: int, *, seed: int = 1, tasks_at_once: int = 8) -> Trail:
    """A trail of so many entries: many tasks interleaved, refusals, accesses and denials among them."""
    draw, trail = random.Random(seed), Trail()  # noqa: S311 - the same trail for the same seed
    live: list[str] = []
    while len(trail.messages) < entries:
        if len(live) < tasks_at_once:
            live.append(trail.create(tenant=draw.choice(("acme", "globex", "Zoë & co"))))
        ref = draw.choice(live)
        chance = draw.random()
        if chance < 0.2:
            trail.poll(ref)
        elif chance < 0.25:
            trail.disclose(ref)
        elif chance < 0.3:
            trail.deny(ref, tenant=trail.tenants[ref])
        else:
            trail.command(ref, some_command(trail, ref, draw))
        if len(trail.tasks[ref].commands) > draw.randrange(4, 12):
            live.remove(ref)
    del trail.messages[entries:]
    return trail


def caller(  # noqa: PLR0913 - who calls, with what and from where
    sub: str,
    token: str,
    *,
    tenant: str = "acme",
    address: str = "192.0.2.7",
    trace: str = "",
    grant: str = "",
    actors: tuple[Actor, ...] = (),
    **credential: object,
) -> Authority:
    """A user's call with this token: its hash is `token` made 43 characters long, its id `jti-` and it."""
    made = ana(tenant, sub)
    assert made.credential is not None
    assert made.request is not None
    presented: dict[str, Any] = {"token_hash": token.ljust(43, "."), "jti": f"jti-{token}"} | credential
    request = msgspec.structs.replace(
        made.request, address=address, traceparent=f"00-{trace}-00f067aa0ba902b7-01" if trace else ""
    )
    credentials = msgspec.structs.replace(made.credential, **presented)
    return msgspec.structs.replace(made, credential=credentials, request=request, grant=grant, actors=actors)


def responder(sub: str = "rita", tenant: str = "acme") -> Authority:
    """A person who looks at the trail."""
    return msgspec.structs.replace(operator(sub, tenant), trigger=Trigger.RESPONDER)
