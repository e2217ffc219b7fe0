"""An incident with known ground truth: thousands of honest tasks, and seven things that went wrong among them.

Entries are made by the Ledger's own code (`MemoryTrail`), signed with the service's own key and published to its broker
while it is stopped; then the real service starts on them. Every step that is made is noted in `done`, apart from what
any projection makes of it; what was planted is noted by name.

Planted: ana's token leaked and was used from elsewhere (polls, a disclosure, an answered input, a cancellation, a
creation); eve tried unknown handles; mallory replayed another's handle; dan misused a grant; fay was revoked and her
work went on; gus approved without strong authentication; hal's authority lapsed and his work went on.

    story = await seeded(data)          # a data directory of a service that was started and stopped
    story.tasks["A1"]; story.rows(lambda done: done.token == digest(LEAKED))
"""

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from nats.js import JetStreamContext
from nats.js.api import PubAck
from tests.incident.people import (
    ANA,
    ANA_LATER,
    BO,
    CY,
    DAN,
    ENFORCED,
    ERRAND,
    EVE,
    FAY,
    GUS,
    HAL,
    ISS,
    MALLORY,
    OLGA,
    STRONG,
    THIEF,
    UNTOLD,
    WEAK,
    Login,
    Who,
    caller,
    worker,
)

from tasktrail.events.authority import Authority, Binding, Standing
from tasktrail.events.commands import (
    Answer,
    Ask,
    CancelTask,
    ChangeAuthority,
    CompleteTask,
    CreateTask,
    GiveGrant,
    ReportStatus,
    RequestInput,
    RespondToInput,
    StopTask,
    TaskCommand,
)
from tasktrail.events.entry import KEY_ID, MSG_ID, SIGNATURE
from tasktrail.events.facts import (
    AccessDenied,
    Commitment,
    Event,
    PrincipalRevoked,
    ResultDisclosed,
    TaskPolled,
    TaskSupport,
    UnknownEvent,
)
from tasktrail.events.subjects import TRAIL, access_subject, denied_subject, governance_subject
from tasktrail.projections.current import State
from tasktrail.services.broker import Broker
from tasktrail.services.clock import now_ms
from tasktrail.services.connection import Connection
from tasktrail.services.keyring import Keyring
from tasktrail.services.sealing import TaskKey, Vault
from tasktrail.testing.memory import MemoryTrail, Stored
from tasktrail.testing.scenario import sealed

CROWD = 3_200
"""Honest tasks."""
AT_ONCE = 40
HOUR_MS = 3_600_000
BEGAN_AGO_MS = HOUR_MS
TTL_MS = 24 * HOUR_MS
IN_FLIGHT = 500
ELICITATION = "elicitation/create"

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PLANTED = ("A1", "A2", "A3", "A4", "A5", "B1", "C1", "C2", "F1", "F2", "G1", "H1", "H2", "R1")
"""Tasks: A of ana, B of her task's errand, C granted to dan, F of fay, G of gus, H of hal, R replayed by mallory."""


class Done(NamedTuple):
    """One step as it was made: an entry at this sequence, with these events."""

    seq: int
    types: tuple[str, ...]
    task: str
    tenant: str
    sub: str
    client: str
    token: str
    address: str


class Story:
    """Grows a trail. `done` is every step, `tasks` the planted tasks by name, `marks` sequences by name."""

    def __init__(self, keyring: Keyring, keys: dict[str, TaskKey], first_seq: int) -> None:
        self._keyring, self._keys = keyring, keys
        self._before = first_seq - 1
        self._draw = random.Random(4)  # noqa: S311 - the same story every time
        self.began_ms = self.now = now_ms() - BEGAN_AGO_MS
        self.trail = MemoryTrail(clock=lambda: self.now)
        self.done: list[Done] = []
        self.tasks: dict[str, str] = {name: keyring.ref(task_id(keyring, name)) for name in PLANTED}
        self.marks: dict[str, int] = {}
        self.times: dict[str, int] = {}
        self.halfway: dict[str, str] = {}
        self.states: dict[str, State] = {}
        self._made = 0
        self._blobs: dict[str, bytes] = {}
        self._tell()

    # --- what may be asked --------------------------------------------------------------------------------------------

    @property
    def first_seq(self) -> int:
        return self._before + 1

    @property
    def last_seq(self) -> int:
        return self._before + len(self.trail.messages)

    def rows(self, wanted: Callable[[Done], bool]) -> list[tuple[int, str]]:
        """Sequence and type of every event of these steps, in order."""
        return [(done.seq, kind) for done in self.done if wanted(done) for kind in done.types]

    def message(self, seq: int) -> Stored:
        """What was published at this sequence."""
        return self.trail.messages[seq - self.first_seq]

    def refs(self, *names: str) -> set[str]:
        return {self.tasks[name] for name in names}

    # --- how it goes --------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """The crowd's tasks and the planted ones side by side, the same order every time."""
        crowd, due = iter(range(CROWD)), self._plot()
        running: list[Iterator[None]] = []
        while True:
            while len(running) < AT_ONCE and (number := next(crowd, None)) is not None:
                running.append(self._honest(number))
                running += [one() for one in due.pop(number, ())]
                if number == CROWD // 2:
                    self._look_halfway()
            if not running:
                break
            one = self._draw.choice(running)
            if next(one, self) is self:
                running.remove(one)
        assert not due, sorted(due)

    def _plot(self) -> dict[int, tuple[Callable[[], Iterator[None]], ...]]:
        """What begins when: beside which of the crowd's tasks."""
        return {
            300: (self._leak,),
            700: (self._enumeration, self._lapse),
            1_200: (self._replay,),
            1_500: (self._grant,),
            2_000: (self._revocation,),
            2_400: (self._approval,),
        }

    def _look_halfway(self) -> None:
        """Every task's status as it was then."""
        self.marks["halfway"] = self.last_seq
        self.times["halfway"] = self.now
        self.halfway = {ref: state.task.status.value for ref, state in self.states.items()}

    def _honest(self, number: int) -> Iterator[None]:
        draw = random.Random(number)  # noqa: S311 - the same story every time
        tenant = "globex" if number % 4 == 0 else "acme"
        user = number % 97
        who = Who(f"user-{user}", f"token-{user}-{number % 3}", f"10.0.{user}.{number % 3}", tenant=tenant)
        ref = self._keyring.ref(task_id(self._keyring, f"crowd {number}"))
        self._create(ref, who, draw.choice(("report", "export", "transfer")))
        yield
        if draw.random() < 0.6:
            self._poll(ref, who, draw.randrange(1, 9))
            yield
        if number % 10 == 0:
            self._ask(ref, tenant)
            yield
            self._answer(ref, who, login=STRONG)
            yield
        if number % 50 == 7:
            self._command(ref, tenant, CancelTask(id="x"), caller(who))
            self._command(ref, tenant, StopTask(id="s"), worker(tenant))
            return
        if number % 40 != 3:  # these are not done yet
            self._complete(ref, tenant)
            yield
            self._disclose(ref, who)

    def _leak(self) -> Iterator[None]:
        a1, a2, a3, a4, a5 = (self.tasks[name] for name in ("A1", "A2", "A3", "A4", "A5"))
        self._create(a1, ANA, "transfer", trace=TRACE, login=STRONG)
        yield
        self._create(self.tasks["B1"], ERRAND, "report", trace=TRACE)
        self._create(a2, ANA, "export")
        yield
        self._create(a5, ANA_LATER, "report", login=STRONG)
        self._poll(a1, ANA, 2)
        self._complete(a2, "acme")
        yield
        self._disclose(a2, ANA)
        self._create(a3, ANA, "report")
        self._ask(a1, "acme")
        yield
        self.marks["theft"] = self.last_seq + 1
        self.times["theft"] = self.now
        self._poll(a1, THIEF, 7)
        yield
        self._answer(a1, THIEF, login=STRONG)
        yield
        self._disclose(a2, THIEF)
        self._command(a3, "acme", CancelTask(id="x"), caller(THIEF))
        self._command(a3, "acme", StopTask(id="s"), worker("acme"))
        yield
        self._complete(a1, "acme")
        self._disclose(a1, THIEF)
        self._create(a4, THIEF, "export")
        self.times["after the theft"] = self.now + 1
        yield
        self._complete(self.tasks["B1"], "acme")
        self._disclose(self.tasks["B1"], ERRAND)

    def _enumeration(self) -> Iterator[None]:
        self.marks["enumeration"] = self.last_seq + 1
        for run in range(8):
            guessed = [self._keyring.ref(f"guess {run} {number}") for number in range(5)]
            self._deny(EVE, {"no_such_task": 5}, dict.fromkeys(guessed, 1))
            yield

    def _replay(self) -> Iterator[None]:
        self._create(self.tasks["R1"], BO, "transfer")
        yield
        for times in (3, 4):
            self._deny(MALLORY, {"other-identity-context": times}, {self.tasks["R1"]: times})
            yield

    def _grant(self) -> Iterator[None]:
        c1, c2 = self.tasks["C1"], self.tasks["C2"]
        self._create(c1, CY, "export")
        self._create(c2, CY, "report")
        yield
        to = Binding(tenant="acme", iss=ISS, sub="dan", client_id="")
        for ref, rights in ((c1, ("get",)), (c2, ("get", "cancel"))):
            given = GiveGrant(id="g", grant=f"cover-{ref[:4]}", to=to, rights=rights, reason="cover for cy")
            self._command(ref, "acme", given, OLGA)
        yield
        self._complete(c1, "acme")
        self._disclose(c1, DAN, grant=f"cover-{c1[:4]}")
        yield
        self._command(c2, "acme", CancelTask(id="x"), caller(DAN, grant=f"cover-{c2[:4]}"))
        self._command(c2, "acme", StopTask(id="s"), worker("acme"))

    def _revocation(self) -> Iterator[None]:
        f1, f2 = self.tasks["F1"], self.tasks["F2"]
        self._create(f1, FAY, "export")
        self._create(f2, FAY, "report")
        yield
        self._complete(f2, "acme")
        self.marks["revocation"] = self.last_seq + 1
        gone = PrincipalRevoked(
            at_ms=self.now, revocation="rev-fay", kind="principal", tenant="acme", iss=ISS, sub="fay", reason="left"
        )
        self._note(governance_subject("acme"), "acme", (gone,), OLGA)
        marked = ChangeAuthority(id="a", standing=Standing.REVOKED, until_s=self.now // 1000, cause="rev-fay")
        self._command(f1, "acme", marked, ENFORCED)
        yield
        gone_on = worker("acme", Standing.REVOKED)
        self._report(f1, gone_on)
        self._deny(FAY, {"revoked": 6}, {f1: 6})
        yield
        self._complete(f1, "acme", gone_on)

    def _approval(self) -> Iterator[None]:
        ref = self.tasks["G1"]
        self._create(ref, GUS, "transfer", login=WEAK)
        self._ask(ref, "acme")
        yield
        self._answer(ref, GUS, login=WEAK)
        self._complete(ref, "acme")

    def _lapse(self) -> Iterator[None]:
        short = self.now // 1000 + 1
        h1, h2 = self.tasks["H1"], self.tasks["H2"]
        self._create(h1, HAL, "export", exp=short)
        self._create(h2, HAL, "report", exp=short)
        yield
        self.now += 5_000
        lapsed = worker("acme", Standing.LAPSED)
        self._report(h1, lapsed)
        yield
        self._complete(h1, "acme", lapsed)
        self._report(h2, lapsed)

    # --- steps --------------------------------------------------------------------------------------------------------

    def _create(  # noqa: PLR0913 - what a creation tells
        self, ref: str, who: Who, tool: str, *, trace: str = "", login: Login = UNTOLD, exp: int = 0
    ) -> None:
        handle, arguments = self._seal(ref, "handle", ref), self._seal(ref, "arguments", f"of {who.sub}")
        made = CreateTask(
            id="c",
            binding=who.binding,
            server="bank",
            tool=tool,
            tool_sha256=hashlib.sha256(tool.encode()).hexdigest(),
            task_support=TaskSupport.REQUIRED,
            wire="2026-07-28",
            protocol_version="2026-07-28",
            granted_ttl_ms=TTL_MS,
            retention_ms=dict.fromkeys(("completed", "failed", "cancelled", "payloads"), TTL_MS),
            poll_interval_ms=500,
            handle=handle,
            arguments=arguments,
        )
        self._command(ref, who.tenant, made, caller(who, "tools/call", trace=trace, login=login, exp=exp))

    def _report(self, ref: str, by: Authority) -> None:
        self._command(ref, "acme", ReportStatus(id="r", message=self._seal(ref, "message", "halfway")), by)

    def _ask(self, ref: str, tenant: str) -> None:
        ask = Ask(key="confirm", method=ELICITATION, request=self._seal(ref, "request.confirm", "Send 900 EUR?"))
        self._command(ref, tenant, RequestInput(id="i", asks=(ask,)), worker(tenant))

    def _answer(self, ref: str, who: Who, login: Login) -> None:
        said = Answer(key="confirm", action="accept", response=self._seal(ref, "response.confirm", "yes"))
        self._command(
            ref, who.tenant, RespondToInput(id="u", answers=(said,)), caller(who, "tasks/update", login=login)
        )

    def _complete(self, ref: str, tenant: str, by: Authority | None = None) -> None:
        done = CompleteTask(id="d", result=self._seal(ref, "result", "900 EUR to the account ending in 66"))
        self._command(ref, tenant, done, by or worker(tenant))

    def _poll(self, ref: str, who: Who, count: int) -> None:
        run = TaskPolled(
            at_ms=self.now,
            method="tasks/get",
            status=self.states[ref].task.status.value,
            count=count,
            first_ms=self.now - 900,
            last_ms=self.now,
        )
        self._note(access_subject(who.tenant, ref), who.tenant, (run,), caller(who), ref)

    def _disclose(self, ref: str, who: Who, grant: str = "") -> None:
        result = self.states[ref].task.result
        assert result is not None
        shown = ResultDisclosed(
            at_ms=self.now, payloads=("result",), sha256=(result.sha256,), nth=1, method="tasks/get"
        )
        self._note(access_subject(who.tenant, ref), who.tenant, (shown,), caller(who, grant=grant), ref)

    def _deny(self, who: Who, reasons: dict[str, int], refs: dict[str, int]) -> None:
        refused = AccessDenied(
            at_ms=self.now,
            method="tasks/get",
            code=-32602,
            count=sum(reasons.values()),
            first_ms=self.now - 500,
            last_ms=self.now,
            reasons=reasons,
            refs=refs,
        )
        [reason] = reasons
        self._note(denied_subject(who.tenant), who.tenant, (refused,), caller(who, effect="deny", reason=reason))

    def _seal(self, ref: str, name: str, text: str) -> Commitment:
        self._made += 1
        key = self._keys.get(ref)
        if key is None:
            return sealed(name, f"{self._made}")
        commitment, blob = key.seal(name, f"{self._made}", b'"%s"' % text.encode())
        self._blobs[name] = blob
        return commitment

    def _command(self, ref: str, tenant: str, command: TaskCommand, authority: Authority) -> None:
        self.now += self._draw.randrange(20, 150)
        blobs, self._blobs = self._blobs, {}
        made = self.trail.record(tenant, ref, command, authority, blobs)
        assert made.events, (command, made)
        assert made.outcome == "accepted", (command, made)
        self.states[ref] = made.state
        self._wrote(ref, tenant, made.events, authority)

    def _note(self, subject: str, tenant: str, events: tuple[Event, ...], authority: Authority, ref: str = "") -> None:
        self.now += self._draw.randrange(20, 150)
        noting = self.trail.note(subject, tenant, authority, events, ref)
        with contextlib.suppress(StopIteration):  # it awaits nothing
            noting.send(None)
        self._wrote(ref, tenant, events, authority)

    def _wrote(self, ref: str, tenant: str, events: Sequence[Event | UnknownEvent], by: Authority) -> None:
        self.done.append(
            Done(
                seq=self.last_seq,
                types=tuple(type(event).__name__ for event in events),
                task=ref,
                tenant=tenant,
                sub=by.principal.sub if by.principal else "",
                client=by.client.client_id if by.client else "",
                token=by.credential.token_hash if by.credential else "",
                address=by.request.address if by.request else "",
            )
        )


def task_id(keyring: Keyring, name: str) -> str:
    """The id of a task, as its caller holds it."""
    return keyring.task_id("incident", name)


async def seeded(data: Path) -> Story:
    """The story, published to the stream in `data`, where a service was started once and is stopped."""
    keyring = Keyring.open(data)
    with Broker.start(data / "nats") as broker:
        nc = await Connection(**broker.connect_options()).connect("story")
        try:
            js = JetStreamContext(nc, publish_async_max_pending=IN_FLIGHT)
            vault = Vault(js, keyring)
            refs = [keyring.ref(task_id(keyring, name)) for name in PLANTED]
            keys = {ref: await vault.make(ref) for ref in refs}
            story = Story(keyring, keys, (await js.stream_info(TRAIL)).state.last_seq + 1)
            acks = [await _published(js, keyring, message) for message in story.trail.messages]
            assert (await asyncio.gather(*acks))[-1].seq == story.last_seq
        finally:
            await nc.close()
    return story


async def _published(js: JetStreamContext, keyring: Keyring, message: Stored) -> "asyncio.Future[PubAck]":
    signed = {MSG_ID: message.entry.id, SIGNATURE: keyring.sign(message.body), KEY_ID: keyring.kid}
    return await js.publish_async(message.subject, message.body, headers=signed)
