"""What an entry says of itself against where it stands, and which signatures count. The campaign is in tests/tamper."""

import random

import msgspec
import pytest
from tests.projections.audit.histories import Trail, mixed
from tests.tamper.trails import SERVICE, STRANGER, Signer, numbered

from tasktrail.events.commands import CompleteTask, ReportStatus
from tasktrail.events.subjects import control_subject
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog.chains import PENDING_MAX, Chains, Signatures
from tasktrail.projections.tlog.findings import Finding
from tasktrail.projections.tlog.merkle import leaf

pytestmark = pytest.mark.requirement("T2")


def of_one_task(steps: int = 4) -> list[Message]:
    """A task's creation, its steps, a poll."""
    trail = Trail()
    ref = trail.create()
    for number in range(steps):
        trail.command(ref, ReportStatus(id=f"s{number}", message=trail.sealed("message")))
    trail.poll(ref)
    trail.command(ref, CompleteTask(id="done", result=trail.sealed("result")))
    return trail.messages


def chained(messages: list[Message]) -> list[tuple[str, int | None]]:
    """What the checks of everything but signatures find."""
    found: list[Finding] = []
    checks = Chains(found.append)
    for index, message in enumerate(messages):
        checks.take(index, message, leaf(message.body))
    return [(one.kind.value, one.index) for one in found]


def test_a_chain_that_is_whole_gives_no_finding() -> None:
    """Design section 7: `prev` is the SHA-256 of the task's entry before."""
    assert chained(of_one_task()) == []


def test_one_break_is_one_finding_whichever_side_goes_on() -> None:
    """What follows a break is judged by what it continues."""
    messages = of_one_task()
    assert chained([*messages[:2], *messages[3:]]) == [("unchained", 2)]
    strange = messages[2]._replace(body=messages[2].body.replace(b'"task_seq":3', b'"task_seq":9'))
    assert chained([*messages[:2], strange, *messages[2:]]) == [("unchained", 2)]


def test_an_entry_that_is_there_again_is_duplicated() -> None:
    """In a chain right behind itself, outside of one anywhere."""
    messages = of_one_task()
    assert chained([*messages[:2], messages[1], *messages[2:]]) == [("duplicated", 2)]
    poll = messages[-2]
    assert chained([*messages, poll]) == [("duplicated", len(messages))]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"msg_id": "other"}, "changed"),
        ({"subject": "trail.1.task.globex." + "a" * 32}, "changed"),
        ({"subject": "trail.1.control._"}, "changed"),
        ({"subject": "trail.1.task"}, "changed"),
        ({"subject": ""}, "changed"),
        ({"body": b"no entry"}, "unchained"),
        ({"body": b"\xff"}, "unchained"),
        ({"body": b'{"v":2,"id":"i","tenant":"t","events":[]}'}, "unchained"),
    ],
)
def test_what_is_no_entry_or_stands_elsewhere_is_found(changes: dict[str, str], kind: str) -> None:
    """The audit store rejects the same (`projections.audit.rows`)."""
    messages = of_one_task()
    wrong = messages[3]._replace(**changes)  # type: ignore[arg-type]
    assert chained([*messages[:3], wrong])[0] == (kind, 3)


def test_an_access_or_a_step_without_its_creation_is_unchained() -> None:
    """Nothing may begin a chain but a creation."""
    messages = of_one_task()
    assert chained([messages[-2]]) == [("unchained", 0)]
    assert chained([messages[1]]) == [("unchained", 0)]


def spoilt(messages: list[Message], draw: random.Random) -> list[Message]:
    """A history with one to three things wrong in it: places, ids, members, events, bytes."""
    made = list(messages)
    for _ in range(draw.randrange(1, 4)):
        at, other = draw.randrange(len(made)), draw.choice(messages)
        message = messages[at]
        entry = msgspec.json.decode(message.body)
        theirs = msgspec.json.decode(other.body)
        member = draw.choice(["v", "id", "tenant", "task_ref", "task_seq", "prev", "events"])
        entry[member] = draw.choice([theirs.get(member, ""), 1, "", [], "a.b", [{"type": "Newer"}]])
        made[at] = draw.choice(
            [
                other,
                message._replace(subject=other.subject),
                message._replace(subject=message.subject.replace(".1.", draw.choice([".2.", "..", "."]), 1)),
                message._replace(msg_id=other.msg_id),
                message._replace(body=msgspec.json.encode(entry)),
                message._replace(body=message.body[: draw.randrange(len(message.body))]),
            ]
        )
    return made


def test_many_at_once_are_judged_as_each_alone() -> None:
    """The quick look of `take_all` passes nothing that `take` finds, and leaves behind what `take` would."""
    draw, kinds = random.Random(6), set[str]()  # noqa: S311 - the same cases each time are what is wanted
    pool = [mixed(30, seed=seed).messages for seed in range(12)]
    for _ in range(600):
        messages = spoilt(draw.choice(pool), draw)
        alone, together = list[Finding](), list[Finding]()
        one_by_one, at_once = Chains(alone.append), Chains(together.append)
        for index, message in enumerate(messages):
            one_by_one.take(index, message, leaf(message.body))
        cut = draw.randrange(len(messages))
        leaves = at_once.take_all(0, messages[:cut]) + at_once.take_all(cut, messages[cut:])
        assert together == alone
        assert leaves == [leaf(message.body) for message in messages]
        kinds |= {one.kind.value for one in alone}
    assert kinds == {"changed", "duplicated", "unchained"}


def signed(messages: list[Message], pinned: str = "") -> list[tuple[str, int | None]]:
    """What the checks of signatures find."""
    found: list[Finding] = []
    checks = Signatures(found.append, pinned)
    for index, message in enumerate(messages):
        checks.learn(message)
        checks.take(index, message)
    checks.finish()
    return [(one.kind.value, one.index) for one in found]


def test_a_key_counts_once_one_that_counts_has_announced_it() -> None:
    """From the first, announced or given; also for what it signed just before."""
    first, second = SERVICE.signed(SERVICE.announced()), SERVICE.signed(STRANGER.announced(1))
    plain = of_one_task()
    later = [STRANGER.signed(one) for one in plain]
    early = [SERVICE.signed(one) for one in plain]
    assert signed([first, *early, second, *later]) == []
    assert signed([*early, first, later[0], second, *later]) == []
    assert signed([second, *early, *later], pinned=SERVICE.public) == []
    by_itself = STRANGER.signed(STRANGER.announced(1))
    assert signed([first, by_itself, *later]) == [("unsigned", at) for at in range(1, len(later) + 2)]
    assert signed([first, *early], pinned=STRANGER.public) == [("unsigned", at) for at in range(len(early) + 1)]
    third = Signer(7)
    assert signed([first, second, STRANGER.signed(third.announced(2)), third.signed(plain[0])]) == []


def test_an_announcement_counts_where_the_service_makes_it_and_nowhere_else() -> None:
    """`control._`, as the governance of a running service reads it."""
    first = SERVICE.signed(SERVICE.announced())
    elsewhere = SERVICE.signed(STRANGER.announced(1)._replace(subject=control_subject("acme")))
    assert signed([first, elsewhere, STRANGER.signed(of_one_task()[0])]) == [("unsigned", 2)]


def test_what_waits_for_its_key_is_bounded() -> None:
    """Beyond it a signature of an unknown key is wrong at once."""
    one = STRANGER.signed(of_one_task()[0])
    assert len(signed(numbered([one] * (PENDING_MAX + 5)))) == PENDING_MAX + 5
