"""The verdict on one task: issue "Authority" (per-task verdict), feature M6."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.projections.audit.histories import NOW_MS, Trail, ana, caller, operator, timer, worker
from tests.projections.audit.stores import told

from tasktrail.events.authority import Authority, Binding, Client, Level, Principal, Standing
from tasktrail.events.commands import (
    Answer,
    Ask,
    CancelTask,
    ChangeAuthority,
    CompleteTask,
    ExpireTask,
    GiveGrant,
    PlaceHold,
    ReportStatus,
    RequestInput,
    RespondToInput,
    RevokeHandle,
    ShredPayload,
    StopTask,
)
from tasktrail.events.entry import encode
from tasktrail.events.facts import SCANNED_IN_PART, AccessDenied, GapFound, TaskPolled, TaskResumed
from tasktrail.events.subjects import access_subject, control_subject, denied_subject, task_subject
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.audit.timeline import Finding, Verdict
from tasktrail.projections.audit.verdict import CLEAN, Code

ROOT = Path(__file__).parents[3]


def judged(store: AuditStore, trail: Trail, ref: str) -> Verdict:
    verdict = told(store, trail, ref).verdict
    assert verdict is not None
    return verdict


def ask(trail: Trail, ref: str, key: str = "a") -> None:
    request = trail.sealed("request")
    asks = (Ask(key=key, method="elicitation/create", request=request),)
    trail.command(ref, RequestInput(id=f"ask {key}", asks=asks), worker(Standing.VALID))


def answer(trail: Trail, ref: str, who: Authority | None = None) -> None:
    said = Answer(key="a", action="accept", response=trail.sealed("response"))
    trail.command(ref, RespondToInput(id="answer", answers=(said,)), who)


def work(trail: Trail, ref: str) -> None:
    """What a task does in the best of lives, until it has ended."""
    trail.poll(ref)
    ask(trail, ref)
    answer(trail, ref)
    trail.command(ref, CompleteTask(id="done", result=trail.sealed("result")), worker(Standing.VALID))
    trail.disclose(ref)


def close(trail: Trail, ref: str) -> None:
    """What the clock does about it."""
    trail.now_ms = max(trail.now_ms, trail.tasks[ref].expires_at_ms)
    trail.command(ref, ExpireTask(id="expire"), timer(standing=Standing.LAPSED))
    trail.command(ref, ShredPayload(id="shred", reason="retention"), timer())


@pytest.mark.requirement("M6")
def test_a_task_of_one_authorised_context_that_left_nothing_is_clean(store: AuditStore) -> None:
    """Feature M6: created, queried, closed in the same context, nothing reusable left."""
    trail = Trail()
    ref = trail.create()
    work(trail, ref)
    close(trail, ref)
    trail.deny(ref, sub="ana")  # its creator came once more, too late
    assert judged(store, trail, ref) == Verdict(verdict="clean", clean=True, what=CLEAN, findings=())


@pytest.mark.requirement("M6")
def test_what_is_not_over_is_open_and_not_wrong(store: AuditStore) -> None:
    """Brief life of a task: live, ended with its handle open, expired with its key there, done."""
    trail = Trail()
    ref = trail.create()
    ask(trail, ref)
    trail.command(ref, CancelTask(id="c"))
    seen = [judged(store, trail, ref)]
    answer(trail, ref)
    trail.command(ref, StopTask(id="s"), worker(Standing.VALID))
    seen.append(judged(store, trail, ref))
    trail.now_ms += 60_000
    trail.command(ref, ExpireTask(id="t"), timer())
    seen.append(judged(store, trail, ref))
    trail.command(ref, PlaceHold(id="h", hold="h", by="olga", reason="r"), operator())
    seen.append(judged(store, trail, ref))
    assert [(one.verdict, one.clean) for one in seen] == [("open", False)] * 4
    assert [[(found.code, found.stream_seq) for found in one.findings] for one in seen] == [
        [("unanswered", 2), ("still_live", 3), ("cancel_pending", 3)],
        [("handle_opens", 5)],
        [("not_shredded", 6)],
        [("not_shredded", 7)],
    ]
    assert "legal hold" in seen[-1].findings[0].what


def poll_as(trail: Trail, ref: str, who: Authority, count: int = 3) -> None:
    ended = trail.now_ms
    polled = TaskPolled(
        at_ms=ended, method="tasks/get", status="working", count=count, first_ms=ended - 1, last_ms=ended
    )
    trail.note(access_subject("acme", ref), "acme", (polled,), ref, who)


def by_grant(trail: Trail, ref: str) -> None:
    bo = Binding(tenant="acme", iss="https://id.example", sub="bo", client_id="desk")
    trail.command(ref, GiveGrant(id="g", grant="g-1", to=bo, rights=("get",), reason="leave"), operator())
    poll_as(trail, ref, msgspec.structs.replace(ana(sub="bo"), grant="g-1"))


def other_client(trail: Trail, ref: str) -> None:
    """Under binding mode `user`, say: allowed, and all the same another context."""
    other = Client(client_id="phone", level=Level.VERIFIED)
    poll_as(trail, ref, msgspec.structs.replace(ana(), client=other))


def strangers(trail: Trail, ref: str) -> None:
    trail.deny(ref, sub="eve", count=2)
    trail.deny(ref, sub="mallory", count=3)


def the_creator_as_claimed(trail: Trail, ref: str) -> None:
    """Whoever only says that he is the creator is not."""
    trail.deny(ref, sub="ana", level=Level.CLAIMED)


def undecided(trail: Trail, ref: str) -> None:
    poll_as(trail, ref, msgspec.structs.replace(ana(), decision=None))


def asserted(trail: Trail, ref: str) -> None:
    poll_as(trail, ref, ana(level=Level.ASSERTED))


def came(address: str, which: str = "T1", level: Level = Level.ASSERTED) -> Authority:
    """The creator, with this token, from an address which an MCP server saw."""
    made = caller("ana", which, address=address)
    assert made.request is not None
    return msgspec.structs.replace(made, request=msgspec.structs.replace(made.request, address_level=level))


def from_elsewhere(trail: Trail, ref: str) -> None:
    """The same token, told apart from its first address: polls, an answer, and a run that was refused."""
    for address in ("192.0.2.7", "203.0.113.66", "192.0.2.7", "2001:db8::1"):
        poll_as(trail, ref, came(address))
    refused = AccessDenied(
        at_ms=NOW_MS, method="tasks/get", code=-32602, count=9, first_ms=1, last_ms=2, reasons={"x": 9}, refs={ref: 2}
    )
    trail.note(denied_subject("acme"), "acme", (refused,), authority=came("203.0.113.66"))


def jti_from_elsewhere(trail: Trail, ref: str) -> None:
    """An issuer's name for a token tells it as well as its digest does."""
    for address in ("192.0.2.7", "p-3n5q"):
        who = came(address)
        assert who.credential is not None
        credential = msgspec.structs.replace(who.credential, token_hash="")
        poll_as(trail, ref, msgspec.structs.replace(who, credential=credential), count=1)


def answered_by(**changes: object) -> Callable[[Trail, str], None]:
    def act(trail: Trail, ref: str) -> None:
        ask(trail, ref)
        answer(trail, ref, msgspec.structs.replace(ana(), **changes))

    return act


def answered_with_another_token(trail: Trail, ref: str) -> None:
    ask(trail, ref)
    credential = ana().credential
    assert credential is not None
    later = msgspec.structs.replace(credential, jti="jti-later", token_hash="i" * 43)
    answer(trail, ref, msgspec.structs.replace(ana(), credential=later))


def worked(standing: Standing) -> Callable[[Trail, str], None]:
    def act(trail: Trail, ref: str) -> None:
        ask(trail, ref)
        answer(trail, ref)
        trail.command(ref, CompleteTask(id="w", result=trail.sealed("result")), worker(standing))

    return act


def revoked(trail: Trail, ref: str) -> None:
    change = ChangeAuthority(id="r", standing=Standing.REVOKED, cause="r-1")
    trail.command(ref, change, operator())


def stopped(trail: Trail, ref: str) -> None:
    trail.command(ref, CancelTask(id="c", cause="operator"), operator())
    trail.command(ref, StopTask(id="s"), worker(Standing.VALID))


def handle_revoked(trail: Trail, ref: str) -> None:
    trail.command(ref, RevokeHandle(id="v", reason="stolen"), operator())


def abandoned(trail: Trail, ref: str) -> None:
    trail.now_ms = trail.tasks[ref].expires_at_ms
    trail.command(ref, ExpireTask(id="t"), timer(standing=Standing.VALID))


def unconfirmed(trail: Trail, ref: str) -> None:
    trail.command(ref, CancelTask(id="c"))
    trail.command(ref, StopTask(id="s", reason="unconfirmed"), timer(standing=Standing.VALID))


def never_stopped(trail: Trail, ref: str) -> None:
    trail.command(ref, CancelTask(id="c"))
    abandoned(trail, ref)


def unanswered(trail: Trail, ref: str) -> None:
    ask(trail, ref)
    ask(trail, ref, "b")
    answer(trail, ref)
    trail.command(ref, CompleteTask(id="w", result=trail.sealed("result")), worker(Standing.VALID))


def anomaly(trail: Trail, ref: str) -> None:
    trail.put(task_subject("acme", ref), b"\xff", "x")


def newer(trail: Trail, ref: str) -> None:
    entry = trail.entry(ref, (TaskResumed(at_ms=NOW_MS),))
    body = encode(entry).replace(b'"type":"TaskResumed"', b'"type":"HandleLent"')
    trail.put(access_subject("acme", ref), encode(msgspec.structs.replace(entry, task_seq=0, prev="")), entry.id)
    trail.messages[-1] = trail.messages[-1]._replace(
        body=body.replace(f'"task_seq":{entry.task_seq},"prev":"{entry.prev}",'.encode(), b"")
    )


def gap(trail: Trail, ref: str) -> None:
    del ref
    lost = GapFound(at_ms=NOW_MS, what="polls", since_ms=NOW_MS, until_ms=NOW_MS + 99, cause="crash")
    trail.note(control_subject("_"), "_", (lost,))


def with_secrets(trail: Trail, ref: str) -> None:
    """Whatever else was found; that only a part was looked through is no secret."""
    message = trail.sealed("message", "1", "jwt", "npm_token")
    trail.command(ref, ReportStatus(id="r1", message=message), worker(Standing.VALID))
    message = trail.sealed("message", "2", "jwt", SCANNED_IN_PART)
    trail.command(ref, ReportStatus(id="r2", message=message), worker(Standing.VALID))


EVE = Principal(iss="https://id.example", sub="eve", level=Level.VERIFIED)
PHONE = Client(client_id="phone", level=Level.VERIFIED)
WRONG: dict[str, tuple[Callable[[Trail, str], None], list[tuple[Code, int, int, str]]]] = {
    "a grant was given and used": (
        by_grant,
        [
            (Code.GRANTED, 2, 1, "granted to bo for get (grant g-1): leave"),
            (Code.OTHER_CONTEXT, 3, 3, "another context had access by grant g-1: bo at https://id.example via desk"),
        ],
    ),
    "another client of the same user": (
        other_client,
        [(Code.OTHER_CONTEXT, 2, 3, "another context had access: ana at https://id.example via phone")],
    ),
    "others tried": (
        strangers,
        [(Code.DENIED, 2, 5, "turned away: eve at https://id.example via desk and 1 other")],
    ),
    "somebody said to be the creator": (
        the_creator_as_claimed,
        [(Code.DENIED, 2, 2, "turned away: ana at https://id.example via desk")],
    ),
    "a step nobody decided on": (
        undecided,
        [(Code.UNDECIDED, 2, 3, "no decision that allowed it: tasks/get told working 3 times")],
    ),
    "only asserted": (
        asserted,
        [(Code.UNVERIFIED, 2, 3, "who called is only asserted: ana at https://id.example via desk")],
    ),
    "answered by another principal": (
        answered_by(principal=EVE),
        [
            (
                Code.INPUT_BY_OTHER_PRINCIPAL,
                3,
                1,
                "the input was answered by another principal than the creator's: eve at https://id.example via desk",
            )
        ],
    ),
    "answered by another client": (
        answered_by(client=PHONE),
        [
            (
                Code.INPUT_BY_OTHER_CLIENT,
                3,
                1,
                "the input was answered by another client than the creator's: ana at https://id.example via phone",
            )
        ],
    ),
    "answered with another token": (
        answered_with_another_token,
        [
            (
                Code.INPUT_BY_OTHER_TOKEN,
                3,
                1,
                "the input was answered by another token than the creator's: ana at https://id.example via desk",
            )
        ],
    ),
    "one token from several addresses": (
        from_elsewhere,
        [
            (
                Code.OTHER_ADDRESS,
                3,
                8,
                "a token that came from 192.0.2.7 came from another address: 203.0.113.66 and 1 other",
            )
        ],
    ),
    "one token, by its id, from several addresses": (
        jti_from_elsewhere,
        [(Code.OTHER_ADDRESS, 3, 1, "a token that came from 192.0.2.7 came from another address: p-3n5q")],
    ),
    "work while lapsed": (
        worked(Standing.LAPSED),
        [(Code.AUTHORITY_LAPSED, 4, 1, "the creator's authority had lapsed: completed with a result")],
    ),
    "work while revoked": (
        worked(Standing.REVOKED),
        [(Code.AUTHORITY_REVOKED, 4, 1, "the creator's authority was revoked: completed with a result")],
    ),
    "the creator was revoked": (
        revoked,
        [
            (
                Code.AUTHORITY_REVOKED,
                2,
                1,
                "the creator's authority was revoked: the creator's authority was revoked, by revocation r-1",
            )
        ],
    ),
    "stopped by an operator": (
        stopped,
        [(Code.STOPPED, 2, 1, "cancellation requested: an operator wants it to stop")],
    ),
    "the handle was revoked": (
        handle_revoked,
        [(Code.HANDLE_REVOKED, 2, 1, "the handle was revoked, it opens nothing any more: stolen")],
    ),
    "abandoned": (abandoned, [(Code.ABANDONED, 2, 1, "nobody closed it, its time to live ended it")]),
    "cancelled without confirmation": (
        unconfirmed,
        [(Code.CANCEL_UNCONFIRMED, 3, 1, "cancelled: no worker confirmed in time that it stopped")],
    ),
    "a cancellation that never took effect": (
        never_stopped,
        [
            (
                Code.CANCEL_UNCONFIRMED,
                3,
                1,
                "its time to live ended before anybody confirmed that the work stopped",
            )
        ],
    ),
    "an input never answered": (
        unanswered,
        [(Code.UNANSWERED, 3, 1, "never answered: asked the client for elicitation/create, key b")],
    ),
    "an anomaly": (anomaly, [(Code.ANOMALY, 2, 1, "a message was not accepted as an entry of this task")]),
    "an event of a newer version": (
        newer,
        [(Code.UNKNOWN, 2, 1, "an event of a newer version, its meaning is not known here")],
    ),
    "secrets in payloads": (
        with_secrets,
        [(Code.SECRET_IN_PAYLOAD, 2, 3, "what looks like a secret is in the message: jwt and 1 other")],
    ),
    "a gap": (gap, [(Code.GAP, 2, 1, "polls may be missing: crash")]),
}


@pytest.mark.requirement("M6")
@pytest.mark.parametrize("case", WRONG)
def test_each_thing_that_is_wrong_is_found_and_nothing_else(store: AuditStore, case: str) -> None:
    """Each finding names the step that shows it first, and how many do."""
    act, wanted = WRONG[case]
    trail = Trail()
    ref = trail.create()
    act(trail, ref)
    if not trail.tasks[ref].status.terminal:
        trail.command(ref, CompleteTask(id="done", result=trail.sealed("result")), worker(Standing.VALID))
    if trail.tasks[ref].expired_at_ms is None:
        close(trail, ref)
    else:
        trail.command(ref, ShredPayload(id="shred", reason="retention"), timer())
    verdict = judged(store, trail, ref)
    assert (verdict.verdict, verdict.clean) == ("not clean", False)
    assert list(verdict.findings) == [
        Finding(code=code.value, what=what, stream_seq=seq, count=count, open=False)
        for code, seq, count, what in wanted
    ]


@pytest.mark.requirement("M6")
def test_addresses_of_other_tokens_of_one_machine_or_only_claimed_are_no_finding(store: AuditStore) -> None:
    """Honest traffic: a new token in a new place; `localhost` in both families; IPv4 on a socket for both; a word."""
    trail = Trail()
    ref = trail.create()
    for who in (
        came("192.0.2.7"),
        came("::ffff:192.0.2.7"),
        came("198.51.100.9", which="T2"),
        came("127.0.0.1", which="T3"),
        came("::1", which="T3"),
        came("127.0.0.2", which="T3"),
        came("203.0.113.66", level=Level.CLAIMED),
        came(""),
    ):
        poll_as(trail, ref, who)
    work(trail, ref)
    close(trail, ref)
    assert judged(store, trail, ref).clean


@pytest.mark.requirement("M6")
def test_a_verdict_on_a_part_of_the_history_says_so(store: AuditStore) -> None:
    trail = Trail()
    ref = trail.create()
    work(trail, ref)
    close(trail, ref)
    store.append(trail.messages)
    part = store.timeline(ref, steps_max=4)
    assert part is not None
    assert part.verdict is not None
    assert [(one.code, one.count, one.open) for one in part.verdict.findings] == [("incomplete", 5, False)]


@pytest.mark.requirement("M6")
def test_what_is_wrong_comes_before_what_is_open(store: AuditStore) -> None:
    trail = Trail()
    ref = trail.create()
    trail.deny(ref)
    verdict = judged(store, trail, ref)
    assert verdict.verdict == "not clean"
    assert [(one.code, one.open) for one in verdict.findings] == [("denied", False), ("still_live", True)]


def test_a_reference_without_a_task_has_no_verdict(store: AuditStore) -> None:
    trail = Trail()
    trail.deny("z" * 32)
    timeline = told(store, trail, "z" * 32)
    assert (timeline.verdict, timeline.authority) == (None, None)


def test_every_finding_is_documented_and_tested() -> None:
    """Style 13."""
    page = (ROOT / "docs" / "timeline.md").read_text(encoding="utf-8")
    for code in Code:
        assert f"| `{code.value}` |" in page, f"docs/timeline.md does not say what the finding {code.value} is"
    tested = {code for _, wanted in WRONG.values() for code, *_ in wanted}
    opened = {Code.STILL_LIVE, Code.CANCEL_PENDING, Code.HANDLE_OPENS, Code.NOT_SHREDDED, Code.INCOMPLETE}
    in_correlation = {Code.DEFINITION_CHANGED}
    assert set(Code) == tested | opened | in_correlation


def test_text_of_somebody_elses_in_a_finding_is_made_printable(store: AuditStore) -> None:
    trail = Trail()
    ref = trail.create()
    trail.deny(ref, sub="\x1b[2Jeve\r\n")
    verdict = judged(store, trail, ref)
    assert all(one.what.isprintable() for one in verdict.findings)
    assert json.loads(msgspec.json.encode(verdict))["findings"][0]["code"] == "denied"
