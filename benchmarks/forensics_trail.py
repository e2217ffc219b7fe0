"""A trail of any length, as a busy service would have written it: made, not recorded, and the same each time.

Guarantees: every body is `encode` of an `Entry`, chained as the Ledger chains; the same seed and size give the same
bytes; memory grows with the tasks that are open, not with the trail. `BOT` makes about every twentieth task, with one
token from one address; `VISITOR` makes exactly one. Messages are signed only when asked for: an Ed25519 signature costs
more than all the rest.

    for messages in Made(100_000).batches():
        store.append(messages)
"""

import base64
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha256

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.forensics_people import (
    BOT,
    ISSUER,
    POLICY,
    TOKEN_MS,
    VISITOR,
    Who,
    caller,
    operator,
    request,
    timer,
    worker,
)
from tasktrail.events import facts
from tasktrail.events.authority import Authority, Binding, PolicyDecision, Trigger
from tasktrail.events.entry import VERSION, Entry, encode
from tasktrail.events.subjects import (
    ANONYMOUS_TENANT,
    access_subject,
    control_subject,
    denied_subject,
    governance_subject,
    task_subject,
)
from tasktrail.projections.audit.columns import Message

BATCH = 4_000
"""Messages of a batch."""
BEGAN_MS = 1_795_000_000_000
STEP_MS = 100
"""Between two entries."""
TENANTS = ("acme", "umbra", "north", "delta", "orbit")

_SHARES = (60, 80, 90, 97, 100)
_PRINCIPALS = 20_000
_TOOLS = 40
_OPEN, _SLOW = 2_000, 300
"""Tasks that are open at once, and those that wait for long, in a trail of a million entries or more."""
_TTL_MS, _LONG_TTL_MS = 7_200_000, 30 * 86_400_000
_CODE_DENIED = -32602
_SCANNER = "203.0.113.66"

_PLANS: tuple[tuple[int, str], ...] = (
    (40, "created polled reported completed disclosed expired"),
    (75, "created asked polled answered completed disclosed expired"),
    (85, "created polled reported stopping cancelled expired"),
    (89, "created reported failed polled expired"),
    (90, "created reported polled revoked completed"),
    (100, "created polled asked answered completed granted disclosed disclosed"),
)
"""What becomes of a task: shares in percent, added up. The last keeps its handle for a month."""


class _Open:
    """A task that goes on. `steps` are those to come, the next one last."""

    __slots__ = ("access", "leaf", "ref", "seq", "steps", "subject", "tool", "ttl_ms", "who")

    def __init__(self, ref: str, who: Who, steps: list[str], tool: int, ttl_ms: int) -> None:
        self.ref, self.who, self.steps, self.tool, self.ttl_ms = ref, who, steps, tool, ttl_ms
        self.subject, self.access = task_subject(who.tenant, ref), access_subject(who.tenant, ref)
        self.seq, self.leaf = 0, ""


class Made:
    """A trail of `size` entries, and references of a few of its tasks.

    The entries of `refs` lie near each other, those of `slow` far apart.
    """

    def __init__(self, size: int, *, signed: bool = False, seed: int = 4) -> None:
        self.size, self._signed = size, signed
        self.refs: list[str] = []
        self.slow: list[str] = []
        self._random = random.Random(seed)  # noqa: S311 - the same numbers each time are what is wanted
        self._key = Ed25519PrivateKey.from_private_bytes(sha256(b"benchmark %d" % seed).digest())
        raw = self._key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self._public = base64.urlsafe_b64encode(raw).decode().rstrip("=")
        self._kid = sha256(raw).hexdigest()[:16]
        self._seq = self._number = 0
        self._open_max, self._slow_max = min(_OPEN, max(20, size // 50)), min(_SLOW, size // 3_000)
        self._now_ms = BEGAN_MS
        self._minute, self._minute_text = -1, ""
        self._tasks: list[_Open] = []
        self._waiting: list[_Open] = []
        self._authorities: dict[tuple[Who, str], Authority] = {}
        self._steps: dict[str, Callable[[_Open], Message]] = {
            "polled": self._polled,
            "disclosed": self._disclosed,
        }

    @property
    def end_ms(self) -> int:
        """When the last entry was recorded so far."""
        return self._now_ms

    def batches(self) -> Iterator[list[Message]]:
        """The trail, in its order; to be taken once."""
        visit = self.size * 37 // 100
        while self._seq < self.size:
            batch: list[Message] = []
            for _ in range(min(BATCH, self.size - self._seq)):
                self._now_ms += STEP_MS
                batch.append(self._visit() if self._seq == visit else self._next())
            yield batch

    def _next(self) -> Message:
        number = self._seq
        if number < 2:  # noqa: PLR2004 - a trail begins with its key and its policy
            return self._policy(number) if number else self._announced()
        if number % 20_000 == 0:
            return self._told(number)
        draw = self._random.random()
        if draw < 0.005:  # noqa: PLR2004 - one in 200
            return self._denied(draw)
        slow = self._waiting
        if len(slow) > self._slow_max:
            at = int(self._random.random() * len(slow))
            task = slow[at]
            message = self._step(task)
            if not task.steps:
                slow[at] = slow[-1]
                slow.pop()
            return message
        return self._of_open()

    def _of_open(self) -> Message:
        tasks = self._tasks
        at = int(self._random.random() * self._open_max)
        if at >= len(tasks):
            task = self._begun(self._who())
            tasks.append(task)
        else:
            task = tasks[at]
            if not task.steps:
                task = tasks[at] = self._begun(self._who())
        message = self._step(task)
        if task.seq == 1 and self._number % 300 == 7:  # noqa: PLR2004 - one in 300
            tasks[at if at < len(tasks) else -1] = tasks[-1]
            tasks.pop()
            self._wait(task)
        return message

    def _wait(self, task: _Open) -> None:
        """It goes on much later."""
        self._waiting.append(task)
        if len(self.slow) < 200:  # noqa: PLR2004 - a few
            self.slow.append(task.ref)

    def _visit(self) -> Message:
        task = self._begun(VISITOR)
        self._tasks.append(task)
        self.refs.append(task.ref)
        return self._step(task)

    def _begun(self, who: Who) -> _Open:
        self._number += 1
        ref = base64.b32encode(sha256(b"task %d" % self._number).digest()[:20]).decode().lower()
        drawn = self._random.random() * 100
        plan = next(plan for share, plan in _PLANS if drawn < share)
        if self._number % 100 == 1:
            self.refs.append(ref)
        ttl_ms = _LONG_TTL_MS if plan is _PLANS[-1][1] else _TTL_MS
        return _Open(ref, who, plan.split()[::-1], self._number % _TOOLS, ttl_ms)

    def _who(self) -> Who:
        drawn = self._random.random()
        if drawn < 0.05:  # noqa: PLR2004 - one in twenty
            return BOT
        one = int(((drawn - 0.05) / 0.95) ** 2 * _PRINCIPALS)
        share = one * 7919 % 100
        tenant = TENANTS[next(at for at, upto in enumerate(_SHARES) if share < upto)]
        shift = self._now_ms // TOKEN_MS
        token = base64.urlsafe_b64encode(sha256(b"token %d %d" % (one, shift)).digest()).decode().rstrip("=")
        address = f"10.{one % 8}.{one // 8 % 50}.{one // 400}"
        return Who(tenant, f"user-{one}", f"client-{one % 9}", address, token, f"jti-{one}-{shift}")

    # -- entries -------------------------------------------------------------------------------------------------------

    def _step(self, task: _Open) -> Message:
        name = task.steps.pop()
        apart = self._steps.get(name)
        if apart is not None:
            return apart(task)
        events, authority, sealed = self._of_task(name, task)
        task.seq += 1
        message, leaf = self._put(
            task.subject,
            events,
            authority,
            tenant=task.who.tenant,
            ref=task.ref,
            seq=task.seq,
            prev=task.leaf,
            command=name,
            sealed=sealed,
        )
        task.leaf = leaf
        return message

    def _of_task(  # noqa: C901, PLR0911 - one for each step
        self, name: str, task: _Open
    ) -> tuple[tuple[facts.Event, ...], Authority, dict[str, bytes]]:
        at_ms = self._now_ms
        match name:
            case "created":
                return self._created(task)
            case "reported":
                one, sealed = self._sealed("message")
                report = facts.StatusReported(at_ms=at_ms, message=one, progress=0.5, total=1.0)
                return (report,), worker(task.who.tenant, f"server-{task.tool % 5}"), sealed
            case "asked":
                one, sealed = self._sealed("request.a")
                ask = facts.InputRequested(at_ms=at_ms, key="a", method="elicitation/create", request=one)
                return (ask,), worker(task.who.tenant, f"server-{task.tool % 5}"), sealed
            case "answered":
                one, sealed = self._sealed("response.a")
                given = facts.InputResponded(
                    at_ms=at_ms, key="a", method="elicitation/create", action="accept", response=one
                )
                return (given, facts.TaskResumed(at_ms=at_ms)), self._caller(task.who, "tasks/update"), sealed
            case "completed":
                one, sealed = self._sealed("result")
                return (
                    (facts.TaskCompleted(at_ms=at_ms, result=one),),
                    worker(task.who.tenant, f"server-{task.tool % 5}"),
                    sealed,
                )
            case "failed":
                one, sealed = self._sealed("error")
                return (
                    (facts.TaskFailed(at_ms=at_ms, error=one, code=-32603),),
                    worker(task.who.tenant, f"server-{task.tool % 5}"),
                    sealed,
                )
            case "stopping":
                return (facts.CancelRequested(at_ms=at_ms),), self._caller(task.who, "tasks/cancel"), {}
            case "cancelled":
                return (
                    (facts.TaskCancelled(at_ms=at_ms, reason="requested"),),
                    worker(task.who.tenant, f"server-{task.tool % 5}"),
                    {},
                )
            case "expired":
                return (facts.TaskExpired(at_ms=at_ms),), timer(task.who.tenant), {}
            case "revoked":
                return (facts.HandleRevoked(at_ms=at_ms, reason="leaked"),), operator(task.who.tenant), {}
            case _:
                return (self._grant(task),), operator(task.who.tenant), {}

    def _created(self, task: _Open) -> tuple[tuple[facts.Event, ...], Authority, dict[str, bytes]]:
        who, number = task.who, self._number
        handle, sealed = self._sealed("handle")
        arguments, more = self._sealed("arguments")
        binding = Binding(tenant=who.tenant, iss=ISSUER, sub=who.sub, client_id=who.client_id)
        event = facts.TaskCreated(
            at_ms=self._now_ms,
            binding=binding,
            server=f"server-{task.tool % 5}",
            tool=f"tool-{task.tool}",
            tool_sha256=f"{task.tool:064x}",
            task_support=facts.TaskSupport.OPTIONAL,
            wire="mcp/2026-07-28",
            protocol_version="2026-07-28",
            granted_ttl_ms=task.ttl_ms,
            ttl_set_by="service",
            poll_interval_ms=1_000,
            handle=handle,
            arguments=arguments,
        )
        # Three tasks in a row are of one piece of work.
        traceparent = f"00-{number // 3 + 1:032x}-{number:016x}-01"
        caller = msgspec.structs.replace(
            self._caller(who, "tools/call"), request=request(who, "tools/call", traceparent=traceparent)
        )
        return (event,), caller, sealed | more

    def _grant(self, task: _Open) -> facts.GrantGiven:
        to = Binding(tenant=task.who.tenant, iss=ISSUER, sub="deputy", client_id="desk")
        return facts.GrantGiven(
            at_ms=self._now_ms, grant=f"g{self._seq}", to=to, rights=("get",), reason="holiday", until_ms=0
        )

    def _polled(self, task: _Open) -> Message:
        at_ms = self._now_ms
        event = facts.TaskPolled(
            at_ms=at_ms, method="tasks/get", status="working", count=3, first_ms=at_ms - 900, last_ms=at_ms
        )
        authority = self._caller(task.who, "tasks/get")
        return self._put(task.access, (event,), authority, tenant=task.who.tenant, ref=task.ref)[0]

    def _disclosed(self, task: _Open) -> Message:
        digest = sha256(task.leaf.encode()).hexdigest()
        event = facts.ResultDisclosed(
            at_ms=self._now_ms, payloads=("result",), sha256=(digest,), nth=1, method="tasks/result"
        )
        authority = self._caller(task.who, "tasks/result")
        return self._put(task.access, (event,), authority, tenant=task.who.tenant, ref=task.ref)[0]

    def _denied(self, draw: float) -> Message:
        claimed = self._tasks[int(draw * 200 * len(self._tasks))] if self._tasks else None
        tenant = claimed.who.tenant if claimed else "acme"
        at_ms, count = self._now_ms, self._seq % 7 + 1
        reason = "wrong_binding" if self._seq % 3 else "unknown_task"
        event = facts.AccessDenied(
            at_ms=at_ms,
            method="tasks/get",
            code=_CODE_DENIED,
            count=count,
            first_ms=at_ms - 700,
            last_ms=at_ms,
            reasons={reason: count},
            refs={claimed.ref: count} if claimed else {},
        )
        who = self._who()
        authority = self._caller(who, "tasks/get")
        carried = request(who._replace(address=_SCANNER) if self._seq % 2 else who, "tasks/get")
        decision = PolicyDecision(effect="deny", reason=reason, policy_version="builtin-1", policy_sha256=POLICY)
        denied = msgspec.structs.replace(authority, request=carried, decision=decision, tenant=tenant)
        return self._put(denied_subject(tenant), (event,), denied, tenant=tenant)[0]

    def _announced(self) -> Message:
        event = facts.KeyActivated(
            at_ms=self._now_ms, purpose="signing", kid=self._kid, algorithm="Ed25519", public_key=self._public
        )
        authority = Authority(trigger=Trigger.TIMER, tenant=ANONYMOUS_TENANT)
        return self._put(control_subject(ANONYMOUS_TENANT), (event,), authority, tenant=ANONYMOUS_TENANT)[0]

    def _policy(self, number: int) -> Message:
        text = "permit(principal, action, resource);"
        event = facts.PolicyActivated(
            at_ms=self._now_ms,
            version=f"v-{number}",
            sha256=sha256(text.encode()).hexdigest(),
            schema_sha256=POLICY,
            text=text,
            reason="reviewed",
        )
        authority = operator(ANONYMOUS_TENANT)
        return self._put(governance_subject(ANONYMOUS_TENANT), (event,), authority, tenant=ANONYMOUS_TENANT)[0]

    def _told(self, number: int) -> Message:
        """What the service and its responders do, now and then."""
        at_ms, turn = self._now_ms, number // 20_000
        tenant, subject = "acme", control_subject("acme")
        event: facts.Event
        if turn % 100 == 1:
            return self._policy(turn)
        if turn % 10 == 0:
            event = facts.GapFound(
                at_ms=at_ms, what="polls", since_ms=at_ms - 2_000, until_ms=at_ms - 1_000, cause="restart"
            )
        elif turn % 5 == 0:
            subject = governance_subject(tenant)
            event = facts.PrincipalRevoked(
                at_ms=at_ms,
                revocation=f"r{turn}",
                kind="principal",
                tenant=tenant,
                iss=ISSUER,
                sub=f"user-{turn * 31 % _PRINCIPALS}",
                reason="left",
            )
        elif turn % 5 == 1 and turn > 10:  # noqa: PLR2004 - some revocations do not last
            subject = governance_subject(tenant)
            event = facts.RevocationLifted(at_ms=at_ms, revocation=f"r{turn - 6}", reason="came back")
        else:
            event = facts.QueryRun(
                at_ms=at_ms, query="by_principal", parameters={"sub": "bot-7"}, rows=100, case_id=f"case-{turn % 7}"
            )
        return self._put(subject, (event,), operator(tenant), tenant=tenant)[0]

    def _put(  # noqa: PLR0913 - an entry
        self,
        subject: str,
        events: tuple[facts.Event, ...],
        authority: Authority,
        *,
        tenant: str,
        ref: str = "",
        seq: int = 0,
        prev: str = "",
        command: str = "",
        sealed: dict[str, bytes] | None = None,
    ) -> tuple[Message, str]:
        self._seq += 1
        made = sha256(b"entry %d" % self._seq).hexdigest()[:32]
        entry = Entry(
            v=VERSION,
            id=made,
            tenant=tenant,
            task_ref=ref,
            task_seq=seq,
            prev=prev,
            recorded_at=self._recorded(),
            command=command,
            command_sha256=made[::-1] if command else "",
            authority=authority,
            events=events,
            sealed=sealed or {},
        )
        body = encode(entry)
        leaf = sha256(body).hexdigest()
        signature = base64.b64encode(self._key.sign(body)).decode() if self._signed else f"{leaf}{made[:22]}=="
        return Message(self._seq, subject, body, made, self._kid, signature), leaf

    def _recorded(self) -> str:
        minute, rest = divmod(self._now_ms, 60_000)
        if minute != self._minute:
            self._minute = minute
            self._minute_text = datetime.fromtimestamp(minute * 60, UTC).strftime("%Y-%m-%dT%H:%M:")
        return f"{self._minute_text}{rest // 1000:02d}.{rest % 1000:03d}Z"

    def _sealed(self, name: str) -> tuple[facts.Commitment, dict[str, bytes]]:
        digest = sha256(b"%d %b" % (self._seq, name.encode()))
        text, blob = digest.hexdigest(), digest.digest() * 2
        return facts.Commitment(name=name, sha256=text, mac=text[::-1], size=len(blob)), {name: blob}

    # -- who -----------------------------------------------------------------------------------------------------------

    def _caller(self, who: Who, method: str) -> Authority:
        made = self._authorities.get((who, method))
        if made is None:
            if len(self._authorities) > 4 * _PRINCIPALS:
                self._authorities.clear()
            made = self._authorities[who, method] = caller(who, method, self._now_ms)
        return made
