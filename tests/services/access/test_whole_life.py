"""What a responder reads of tasks that really went through the gate: issue "Authority" (per-task verdict), feature M6.

What the parts of the service write has to be what the audit store judges; `tests/projections` makes its own trails.
"""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from tests.services.access.rig import ANONYMOUS, CHANNEL, Rig, caller, outcome

from tasktrail.events.authority import Trigger
from tasktrail.events.commands import ExpireTask
from tasktrail.events.entry import MSG_ID
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.audit.timeline import StepKind, Timeline
from tasktrail.services import messages
from tasktrail.services.access.callers import service_authority
from tasktrail.services.access.rules import Rule, decision
from tasktrail.services.shredder import Shredder
from tasktrail.testing.parts import stored


async def read(rig: Rig, folder: Path, ref: str) -> Timeline:
    """The timeline of a task, from the trail as it is now."""
    await rig.one.recorder.flush()
    trail = [
        Message(one.stream_seq, one.subject, one.body, one.headers.get(MSG_ID, "")) for one in await stored(rig.one.js)
    ]
    store = AuditStore.open(folder / "audit.duckdb")
    try:
        store.bind("TRAIL", datetime(2026, 1, 1, tzinfo=UTC), trail[-1].stream_seq)
        store.append(trail)
        timeline = store.timeline(ref)
    finally:
        store.close()
    assert timeline is not None
    return timeline


async def worked(rig: Rig) -> messages.TaskView:
    """A task that asked, was answered, ended, and was looked at all the while by its creator."""
    made = await rig.create()
    await rig.watch(made.task_id)
    await rig.ask(made.task_ref, "a")
    await rig.get(made.task_id)
    await rig.update(made.task_id, {"a": {"action": "accept", "content": {"name": "Ana"}}})
    said = messages.ReportStatus(task_ref=made.task_ref, command_id="half", message="half of it")
    await rig.one.work.report(said, CHANNEL)
    await rig.get(made.task_id)
    await rig.complete(made.task_ref)
    for _ in range(3):
        await rig.get(made.task_id)
    return made


async def closed(rig: Rig, made: messages.TaskView) -> None:
    """Its time is over, and what it held is destroyed."""
    rig.clock.advance(120_000)
    timer = msgspec.structs.replace(
        service_authority(Trigger.TIMER, "acme", "timekeeper"), decision=decision(Rule.TIME_IS_UP, "timer:expire")
    )
    over = await rig.one.ledger.submit("acme", made.task_ref, ExpireTask(id="timer:expire"), timer)
    assert await Shredder(rig.one.ledger, rig.one.vault, rig.one.settings).shred(over.state)


@pytest.mark.requirement("M6", "A2")
async def test_an_ordinary_task_shows_nothing_but_that_its_caller_was_only_asserted(rig: Rig, tmp_path: Path) -> None:
    """A connected MCP server's word on its callers is no proof, and that is all there is to say."""
    made = await worked(rig)
    await closed(rig, made)
    assert await outcome(rig.get(made.task_id)) is not None  # its creator once more, too late
    timeline = await read(rig, tmp_path, made.task_ref)
    assert timeline.verdict is not None
    assert [one.code for one in timeline.verdict.findings] == ["unverified"], timeline.verdict.findings
    assert StepKind.ANOMALY not in {step.kind for step in timeline.steps}
    assert all(step.rule is not None for step in timeline.steps), [one.what for one in timeline.steps if not one.rule]


@pytest.mark.requirement("M6", "A1")
async def test_others_who_tried_are_told_in_the_verdict(rig: Rig, tmp_path: Path) -> None:
    """Each is turned away alike on the wire, and named here."""
    made = await worked(rig)
    for who in (caller("eve"), caller(client_id="phone"), ANONYMOUS):
        assert await outcome(rig.get(made.task_id, who)) is not None
    timeline = await read(rig, tmp_path, made.task_ref)
    assert timeline.verdict is not None
    assert timeline.verdict.verdict == "not clean"
    (denied,) = [one for one in timeline.verdict.findings if one.code == "denied"]
    assert (denied.count, denied.what) == (3, "turned away: eve at https://id.example via desk and 2 others")
