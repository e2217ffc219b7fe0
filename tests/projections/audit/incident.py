"""A history in which a token leaked, and the store that answers questions about it: what `named` queries are tested on.

case = Case(tmp_path / "audit.duckdb")
case.asked("timeline", "stream_seq type", task=case.incident.a)
"""

from datetime import datetime
from pathlib import Path

import msgspec
from tests.projections.audit.histories import NOW_MS, Trail, caller, operator, responder, timer, worker
from tests.projections.audit.stores import fed

from tasktrail.events.authority import Actor, Authority, Binding, Level, PolicyDecision, Standing
from tasktrail.events.commands import (
    Answer,
    Ask,
    CancelTask,
    ChangeAuthority,
    CompleteTask,
    GiveGrant,
    RequestInput,
    RespondToInput,
)
from tasktrail.events.facts import (
    AccessDenied,
    BundleExported,
    GapFound,
    PayloadUnsealed,
    PolicyActivated,
    PrincipalRevoked,
    QueryRun,
    ResultDisclosed,
    RevocationLifted,
    TaskPolled,
)
from tasktrail.events.subjects import access_subject, control_subject, denied_subject, governance_subject, task_subject
from tasktrail.projections.audit import named
from tasktrail.projections.audit.columns import instant
from tasktrail.projections.audit.named import NamedQuery, catalogue, read_parameters

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
DEFINED = "d1" * 32


class Incident:
    """A history in which a token leaked, of 28 sequences. Each task has one letter.

    `a`: the transfer of ana, made with the token T1, answered with T2 from elsewhere, completed. `b`: of svc, in the
    same trace. `c`: a report of ana, made with T2, granted to bo, who cancels it. `g`: of cy at globex. Eve tries `a`.
    """

    def __init__(self) -> None:
        self.trail = Trail()
        self._begin()
        self._go_on()
        self._govern()
        self._look()

    def _begin(self) -> None:
        trail = self.trail
        self._decide("v1")  # 1
        ana, cy = caller("ana", "T1", trace=TRACE), caller("cy", "TC", tenant="globex")
        self.a = trail.create(authority=ana, ttl_ms=120_000, tool_sha256=DEFINED)  # 2
        self.b = trail.create(sub="svc", tool="report", authority=caller("svc", "TS", trace=TRACE))  # 3
        self.c = trail.create(tool="report", authority=caller("ana", "T2"), ttl_ms=3_600_000)  # 4
        self.g = trail.create(tenant="globex", sub="cy", authority=cy, tool_sha256=DEFINED)  # 5

    def _go_on(self) -> None:
        trail, (a, b, c) = self.trail, (self.a, self.b, self.c)
        poll = TaskPolled(
            at_ms=trail.now_ms, method="tasks/get", status="working", count=4, first_ms=NOW_MS, last_ms=trail.now_ms
        )
        trail.note(access_subject("acme", a), "acme", (poll,), a, caller("ana", "T1"))  # 6
        ask = Ask(key="pay", method="elicitation/create", request=trail.sealed("request"))
        trail.command(a, RequestInput(id="ask", asks=(ask,)), worker(Standing.VALID))  # 7
        answer = Answer(key="pay", action="accept", response=trail.sealed("response"))
        here = caller(
            "ana",
            "T2",
            address="198.51.100.9",
            level=Level.ASSERTED,
            acr="urn:example:loa3",
            amr=("pwd", "hwk"),
            auth_time=NOW_MS // 1000 - 60,
        )
        trail.command(a, RespondToInput(id="r", answers=(answer,)), here)  # 8
        trail.command(a, CompleteTask(id="done", result=trail.sealed("result")), worker(Standing.VALID))  # 9
        self._disclose(a, caller("ana", "T2", address="198.51.100.9"), "a1" * 32, "a2" * 32)  # 10
        self._disclose(b, caller("svc", "TS"), "b1" * 32)  # 11
        self._deny("expired", 3)  # 12
        self._deny("other-identity-context", 2)  # 13
        to = Binding(tenant="acme", iss="https://id.example", sub="bo", client_id="")
        trail.command(
            c, GiveGrant(id="g", grant="grant-1", to=to, rights=("cancel",), reason="cover"), operator()
        )  # 14
        trail.command(c, CancelTask(id="x"), caller("bo", "TB", grant="grant-1"))  # 15
        agents = (
            Actor(sub="agent-1", iss="https://id.example", level=Level.VERIFIED),
            Actor(sub="agent-2", level=Level.CLAIMED),
        )
        seen = msgspec.structs.replace(poll, at_ms=trail.now_ms, count=1)
        trail.note(access_subject("acme", c), "acme", (seen,), c, caller("ana", "T3", actors=agents))  # 16

    def _govern(self) -> None:
        everybody = governance_subject("_")
        leaked = PrincipalRevoked(
            at_ms=self.trail.now_ms,
            revocation="rev-1",
            kind="token",
            tenant="acme",
            token_hash="T1".ljust(43, "."),
            reason="leaked",
        )
        self.trail.note(everybody, "_", (leaked,), authority=operator(tenant="_"))  # 17
        left = msgspec.structs.replace(
            leaked,
            revocation="rev-2",
            kind="principal",
            tenant="globex",
            iss="https://id.example",
            sub="cy",
            token_hash="",
            reason="left",
        )
        self.trail.note(governance_subject("globex"), "globex", (left,), authority=operator(tenant="globex"))  # 18
        back = RevocationLifted(at_ms=self.trail.now_ms, revocation="rev-2", reason="came back")
        self.trail.note(governance_subject("globex"), "globex", (back,), authority=operator(tenant="globex"))  # 19
        gone = msgspec.structs.replace(left, revocation="rev-3", tenant="", sub="svc")
        self.trail.note(everybody, "_", (gone,), authority=operator(tenant="_"))  # 20
        self._decide("v2")  # 21
        revoked = ChangeAuthority(id="z", standing=Standing.REVOKED, until_s=NOW_MS // 1000, cause="rev-3")
        self.trail.command(self.b, revoked, timer())  # 22

    def _look(self) -> None:
        trail, on = self.trail, control_subject("acme")
        gap = GapFound(at_ms=trail.now_ms, what="polls", since_ms=NOW_MS, until_ms=NOW_MS + 40, cause="restart")
        trail.note(control_subject("_"), "_", (gap,), authority=timer("_"))  # 23
        ran = QueryRun(at_ms=trail.now_ms, query="timeline", parameters={"task": self.a}, rows=9, case_id="case-7")
        trail.note(on, "acme", (ran,), authority=responder())  # 24
        handed = BundleExported(
            at_ms=trail.now_ms,
            bundle_sha256="bb" * 32,
            scope="task",
            parameters={"task": self.a},
            entries=6,
            tree_size=24,
            case_id="case-7",
            reason="for the bank",
        )
        trail.note(on, "acme", (handed,), authority=responder())  # 25
        unsealed = PayloadUnsealed(
            at_ms=trail.now_ms,
            task_ref=self.a,
            payloads=("result",),
            sha256=("a1" * 32,),
            reason="what was paid",
        )
        trail.note(on, "acme", (unsealed,), authority=responder("rob"))  # 26
        trail.put(trail.messages[-1].subject, b"?", "?")  # 27: not delivered, a hole
        del trail.messages[-1]
        trail.put(task_subject("acme", self.a), b"forged", "x")  # 28

    def _decide(self, version: str) -> None:
        active = PolicyActivated(
            at_ms=self.trail.now_ms,
            version=version,
            sha256=version * 32,
            schema_sha256="5c" * 32,
            text="permit(principal, action, resource);",
            reason="house rules",
        )
        self.trail.note(governance_subject("_"), "_", (active,), authority=operator(tenant="_"))

    def _disclose(self, ref: str, authority: Authority, *digests: str) -> None:
        shown = ResultDisclosed(
            at_ms=self.trail.now_ms,
            payloads=("result", "error")[: len(digests)],
            sha256=digests,
            nth=1,
            method="tasks/result",
        )
        self.trail.note(access_subject("acme", ref), "acme", (shown,), ref, authority)

    def _deny(self, reason: str, count: int) -> None:
        trail = self.trail
        denied = AccessDenied(
            at_ms=trail.now_ms,
            method="tasks/get",
            code=-32602,
            count=count,
            first_ms=trail.now_ms - 5,
            last_ms=trail.now_ms,
            reasons={reason: count},
            refs={self.a: count},
        )
        eve = msgspec.structs.replace(
            caller("eve", "TE", address="203.0.113.66"),
            decision=PolicyDecision(effect="deny", reason=reason, policy_version="v1"),
        )
        trail.note(denied_subject("acme"), "acme", (denied,), authority=eve)


SOON = "2026-11-18T11:06:50Z"
LATER = "2026-11-18T11:20:00Z"
WITHIN: dict[str, dict[str, str]] = {
    "by_principal": {"sub": "ana"},
    "by_token": {"token": "jti-T2"},
    "by_client": {"client_id": "desk"},
    "by_address": {"address": "192.0.2.7"},
    "changed_since": {"sequence": "0"},
    "state_as_of": {"sequence": "28"},
    "blast_radius": {"sub": "ana"},
    "lapsed_handles": {"time": LATER},
    "authority_then_and_now": {"time": SOON},
}
"""What each query is asked with where any answer will do; those that need a task are given one."""


IN_CORRELATION = {"children", "orphans"}
"""What this history has nothing of: `test_correlation.py`."""


class Case:
    """A store that holds the incident, and its questions."""

    def __init__(self, path: Path) -> None:
        self.incident = Incident()
        self.store = fed(path, self.incident.trail, batch=7)
        self.letters = {getattr(self.incident, one): one for one in "abcg"}

    def ask(self, name: str, tenant: str | None = None, **given: str) -> named.Answer:
        query = catalogue()[name]
        return self.store.ask(query, read_parameters(query, given), tenant=tenant, most=1_000)

    def asked(self, name: str, columns: str, tenant: str | None = None, **given: str) -> list[tuple[object, ...]]:
        """The whole answer: these of its columns; a task by its letter, a time in milliseconds of the history."""
        answer = self.ask(name, tenant, **given)
        assert not answer.more
        names = [one.name for one in answer.columns]
        places = [names.index(one) for one in columns.split()]
        return [tuple(self._told(row[place]) for place in places) for row in answer.rows]

    def _told(self, value: object) -> object:
        if isinstance(value, datetime):
            return round((value - instant("now", NOW_MS)).total_seconds() * 1000)
        return self.letters.get(value, value) if isinstance(value, str) else value


def given_for(query: NamedQuery, ref: str) -> dict[str, str]:
    needs_task = any(one.name == "task" and one.required for one in query.parameters)
    return {"task": ref} if needs_task else WITHIN.get(query.name, {})
