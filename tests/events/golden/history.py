"""The history of which each release leaves a golden copy here: every event type, every kind of authority.

Written once for a release, never again; `test_golden.py` replays all copies for ever. The next release's:

    uv run python tests/events/golden/history.py 0.4.0
"""

import sys
from pathlib import Path

import msgspec

from tasktrail.events import commands, facts
from tasktrail.events.authority import (
    Actor,
    Authority,
    Binding,
    BindingCheck,
    BindingMode,
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
from tasktrail.events.subjects import access_subject, control_subject, denied_subject, governance_subject, task_ref
from tasktrail.projections import current
from tasktrail.projections.current import State
from tasktrail.projections.replay import states_sha256
from tasktrail.testing.memory import MemoryTrail
from tasktrail.testing.scenario import ANA, ELICITATION, NOW_MS, TTL_MS, authority, create, sealed

HERE = Path(__file__).parent
TENANT = ANA.tenant


class Story:
    """A trail whose clock moves a second with every entry."""

    def __init__(self) -> None:
        self.at_ms = NOW_MS
        self.trail = MemoryTrail(clock=lambda: self.at_ms)
        self.states: dict[str, State] = {}

    def do(self, name: str, command: commands.TaskCommand, who: Authority | None = None) -> str:
        """One command on the task of this name; each payload's blob is its own name."""
        self.at_ms += 1_000
        ref = task_ref(b"golden" * 6, name)
        blobs = {blob: blob.encode() for blob in ("handle", "arguments", "message", "result", "error", "response.a")}
        blobs |= {f"request.{key}": key.encode() for key in ("a", "b", "größe")}
        done = self.trail.record(TENANT, ref, command, who or authority(), blobs)
        self.states[ref] = done.state
        return ref

    async def note(self, subject: str, event: facts.Event, who: Authority, ref: str = "") -> None:
        """One entry outside a chain."""
        self.at_ms += 1_000
        await self.trail.note(subject, TENANT, who, (event,), ref)


def worker() -> Authority:
    """The MCP server, doing the work."""
    machine = Principal(iss="tasktrail", sub="server:reports", kind=PrincipalKind.MACHINE, level=Level.VOUCHED)
    decision = PolicyDecision(
        effect="allow", reason="server-runs-task", policy_sha256="p" * 64, policy_version="builtin-1", input_sha256="i"
    )
    return Authority(trigger=Trigger.WORKER, tenant=TENANT, principal=machine, created_by="c" * 32, decision=decision)


def timer() -> Authority:
    """The service's own clock."""
    return Authority(trigger=Trigger.TIMER, tenant=TENANT)


def stranger() -> Authority:
    """Somebody through an agent, without a right to the task."""
    who = authority(msgspec.structs.replace(ANA, sub="eve"), level=Level.VERIFIED)
    request = Request(
        method="tasks/get",
        server="reports",
        wire="mcp/2026-07-28",
        protocol_version="2026-07-28",
        rpc_id="7",
        traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01",
        address="192.0.2.7",
        address_level=Level.ASSERTED,
        forwarded_for="198.51.100.1",
    )
    differs = BindingCheck(mode=BindingMode.EXACT, differs=("sub",))
    return msgspec.structs.replace(
        who, actors=(Actor(sub="agent", level=Level.VERIFIED),), binding=differs, request=request
    )


def operator(name: str) -> Authority:
    """A person with a named key, allowed by a policy that names what it saw."""
    key = Credential(
        method=Method.API_KEY,
        verification=Verification.OK,
        verified_at_ms=NOW_MS,
        token_hash="o" * 43,
        level=Level.VOUCHED,
    )
    allowed = PolicyDecision(
        effect="allow",
        reason="policy",
        policy_sha256="c" * 64,
        policy_version="2027-01",
        policies=("operators-may", "everybody-in-reports"),
        inputs={"operator": name, "rights": ("revoke", "hold"), "age_ms": 7, "confirmed": True},
        input_sha256="d" * 64,
    )
    who = Principal(iss="tasktrail", sub=name, level=Level.VOUCHED)
    return Authority(trigger=Trigger.OPERATOR, tenant=TENANT, principal=who, credential=key, decision=allowed)


def grantee() -> Authority:
    """Somebody else than the creator, by a grant."""
    return msgspec.structs.replace(authority(BO, level=Level.VERIFIED), grant="g-1")


BO = Binding(tenant=TENANT, iss="https://id.example", sub="bo", client_id="desk")


def ask(made: str, *keys: str) -> commands.RequestInput:
    """Requests for input."""
    asks = tuple(commands.Ask(key=key, method=ELICITATION, request=sealed(f"request.{key}")) for key in keys)
    return commands.RequestInput(id=made, asks=asks)


async def written() -> Story:
    """The whole story."""
    story = Story()
    await story.note(
        control_subject("_"),
        facts.KeyActivated(at_ms=NOW_MS, purpose="signing", kid="k" * 16, algorithm="Ed25519", public_key="P" * 43),
        timer(),
    )
    talk = story.do("talk", create("c1", requested_ttl_ms=None, client_extensions=("io.modelcontextprotocol/tasks",)))
    story.do("talk", commands.ReportStatus(id="r1", message=sealed("message"), progress=1, total=3.5), worker())
    story.do("talk", ask("a1", "a", "b", "größe"), worker())
    accepted = commands.Answer(key="a", action="accept", response=sealed("response.a"))
    story.do("talk", commands.RespondToInput(id="u1", answers=(accepted, commands.Answer(key_sha256="d" * 64))))
    story.do("talk", commands.RespondToInput(id="u2", answers=(commands.Answer(key="b", fault="`x` is missing"),)))
    rest = [commands.Answer(key=key, action="decline", response=sealed(f"response.{key}")) for key in ("b", "größe")]
    story.do("talk", commands.RespondToInput(id="u3", answers=(*rest, accepted)))
    await story.note(
        access_subject(TENANT, talk),
        facts.TaskPolled(at_ms=story.at_ms, method="tasks/get", status="working", count=3, first_ms=1, last_ms=2),
        authority(),
        talk,
    )
    await story.note(access_subject(TENANT, talk), facts.SubscriptionOpened(at_ms=story.at_ms), authority(), talk)
    story.do("talk", commands.CompleteTask(id="e1", result=sealed("result"), is_error=True), worker())
    await story.note(
        access_subject(TENANT, talk),
        facts.ResultDisclosed(
            at_ms=story.at_ms, payloads=("result",), sha256=("a" * 64,), nth=2, count=2, method="tasks/get"
        ),
        authority(),
        talk,
    )
    closed = facts.SubscriptionClosed(at_ms=story.at_ms, pushes=4, reason="terminal")
    await story.note(access_subject(TENANT, talk), closed, authority(), talk)
    story.do("talk", commands.CancelTask(id="x1"))
    story.do("stop", create("c2", binding_mode=BindingMode.USER, task_support=facts.TaskSupport.REQUIRED))
    story.do("stop", commands.CancelTask(id="x2"))
    story.do("stop", commands.StopTask(id="s2"), worker())
    story.do("fail", create("c3", arguments=None))
    story.do("fail", commands.FailTask(id="f3", error=sealed("error"), code=-32000), worker())
    story.do("lose", create("c4"))
    story.do("lose", commands.LoseWorker(id="l4", cause="shutdown", error=sealed("error"), code=-32603), worker())
    story.do("late", create("c5"))
    story.do("late", ask("a5", "a"), worker())
    handed_on(story)
    await looked_at(story, talk)
    await governed(story)
    story.at_ms += TTL_MS
    story.do("late", commands.ExpireTask(id="timer:expire"), timer())
    story.do("talk", commands.ExpireTask(id="timer:expire"), timer())
    return story


def handed_on(story: Story) -> None:
    """A task that outlives its workers, and one that does not."""
    of_worker = {"on_worker_lost": facts.OnWorkerLost.RERUN, "worker": "w-1", "tool_sha256": "t" * 64}
    parent = story.do("again", create("c8", **of_worker))
    lost = commands.LoseWorker(id="l8", cause="lease", error=sealed("error"), code=-32603, reruns_max=1, worker="w-1")
    story.do("again", lost, timer())
    story.do("again", commands.CompleteTask(id="e8", result=sealed("result"), worker="w-1"), worker())
    story.do("again", commands.TakeWork(id="t8", worker="w-2", tool_sha256="u" * 64), worker())
    story.do("again", commands.CompleteTask(id="f8", result=sealed("result"), worker="w-2", attempt=2), worker())
    story.do("given up", create("c9", parent=parent, **of_worker))
    for number, name in enumerate(("w-1", "w-2"), 1):
        gone = msgspec.structs.replace(lost, id=f"l9-{number}", cause="shutdown", worker=name, attempt=number)
        story.do("given up", gone, worker())
        if number == 1:
            story.do("given up", commands.TakeWork(id="t9", worker="w-2"), worker())


async def looked_at(story: Story, talk: str) -> None:
    """Who was turned away, what responders did, and what the service says of itself."""
    denied = facts.AccessDenied(
        at_ms=story.at_ms,
        method="tasks/get",
        code=-32602,
        count=3,
        first_ms=1,
        last_ms=2,
        reasons={"other-identity-context": 2, "no-such-task": 1},
        refs={talk: 2},
    )
    await story.note(denied_subject(TENANT), denied, stranger())
    query = facts.QueryRun(at_ms=story.at_ms, query="timeline", parameters={"task": talk}, rows=9, case_id="IR-7")
    rejected = facts.EntryRejected(at_ms=story.at_ms, stream_seq=9, sha256="e" * 64, reason="chain_broken")
    gap = facts.GapFound(at_ms=story.at_ms, what="folded polls", since_ms=1, until_ms=2, cause="crash")
    bundle = facts.BundleExported(
        at_ms=story.at_ms,
        bundle_sha256="b" * 64,
        scope="task",
        parameters={"task": talk},
        entries=9,
        tree_size=40,
        case_id="IR-7",
        reason="court order",
    )
    unsealed = facts.PayloadUnsealed(
        at_ms=story.at_ms, task_ref=talk, payloads=("result",), sha256=("a" * 64,), case_id="IR-7", reason="leak"
    )
    for event in (query, rejected, gap, bundle, unsealed):
        await story.note(control_subject(TENANT), event, timer())


async def governed(story: Story) -> None:
    """A policy and revocations, and two tasks on which everything happens that only governs them."""
    olga, omar, all_tenants = operator("olga"), operator("omar"), governance_subject("_")
    text = "permit(principal, action, resource);"
    policy = facts.PolicyActivated(
        at_ms=story.at_ms, version="2027-01", sha256="c" * 64, schema_sha256="s" * 64, text=text, reason="first"
    )
    await story.note(all_tenants, policy, olga)
    kept = {"completed": 30_000, "failed": 10_000, "cancelled": 0}
    ref = story.do("kept", create("c6", ttl_set_by="tool", requested_ttl_ms=10**12, retention_ms=kept))
    lapsed = commands.ChangeAuthority(id="a6", standing=Standing.LAPSED, until_s=1_800_000_000)
    story.do("kept", lapsed, msgspec.structs.replace(worker(), standing=Standing.LAPSED))
    story.do("kept", commands.ChangeAuthority(id="b6", standing=Standing.VALID, until_s=1_900_000_000))
    given = commands.GiveGrant(
        id="g6", grant="g-1", to=BO, mode=BindingMode.USER, rights=("get", "update"), reason="leave"
    )
    story.do("kept", given, olga)
    await story.note(access_subject(TENANT, ref), facts.SubscriptionOpened(at_ms=story.at_ms), grantee(), ref)
    story.do("kept", commands.WithdrawGrant(id="w6", grant="g-1", reason="back"), olga)
    story.do("kept", commands.PlaceHold(id="h6", hold="h-1", by="olga", reason="inquiry", case_id="7"), olga)
    story.do("kept", commands.CompleteTask(id="e6", result=sealed("result")), worker())
    story.at_ms += 30_000
    story.do("kept", commands.ExpireTask(id="timer:expire"), timer())
    story.do("kept", commands.ShredPayload(id="s6", reason="retention"), timer())
    story.do("kept", commands.ReleaseHold(id="l6", hold="h-1", by="olga", reason="over"), olga)
    story.do("kept", commands.ReleaseHold(id="m6", hold="h-1", by="omar", reason="over"), omar)
    story.do("kept", commands.ShredPayload(id="t6", reason="retention"), timer())
    revoked = facts.PrincipalRevoked(
        at_ms=story.at_ms, revocation="r-1", kind="principal", tenant=TENANT, iss=ANA.iss, sub=ANA.sub, reason="left"
    )
    story.do("taken", create("c7"))
    await story.note(governance_subject(TENANT), revoked, olga)
    change = commands.ChangeAuthority(id="a7", standing=Standing.REVOKED, cause="r-1")
    story.do("taken", change, msgspec.structs.replace(operator("olga"), standing=Standing.REVOKED))
    story.do("taken", commands.RevokeHandle(id="v7", reason="stolen"), olga)
    story.do("taken", commands.CancelTask(id="x7", cause="handle_revoked"), olga)
    token = msgspec.structs.replace(
        revoked, revocation="r-2", kind="token", tenant="", iss="", sub="", token_hash="h" * 43
    )
    client = msgspec.structs.replace(revoked, revocation="r-3", kind="client", iss="", sub="", client_id="desk")
    for event in (token, client, facts.RevocationLifted(at_ms=story.at_ms, revocation="r-2", reason="found")):
        await story.note(all_tenants, event, omar)


async def main(version: str) -> None:
    """Write the golden copy of a release, unless there is one."""
    story = await written()
    with (HERE / f"{version}.jsonl").open("xb") as file:
        file.writelines(message.body + b"\n" for message in story.trail.messages)
    with (HERE / f"{version}.states.json").open("xb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(story.states), indent=1) + b"\n")
    with (HERE / f"{version}.hash").open("x") as file:
        file.write(states_sha256(story.states) + "\n")
    assert all(current.decode(current.encode(state)) == state for state in story.states.values())


if __name__ == "__main__":
    import asyncio

    asyncio.run(main(sys.argv[1]))
