"""What a person reads in a terminal. Design, section 6: responders read the word, not a code; nothing is raised."""

import io
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console, ConsoleRenderable
from tests.projections.audit.histories import NOW_MS, Trail, ana, operator, timer, worker
from tests.services.scene import CREATED, HOSTILE, Scene, open_store, play

from tasktrail.events.authority import Level, Standing
from tasktrail.events.commands import (
    Answer,
    Ask,
    CancelTask,
    ChangeAuthority,
    CompleteTask,
    ExpireTask,
    PlaceHold,
    ReportStatus,
    RequestInput,
    RespondToInput,
    RevokeHandle,
    ShredPayload,
)
from tasktrail.events.facts import SCANNED_IN_PART, GapFound, PolicyActivated, PrincipalRevoked
from tasktrail.events.subjects import control_subject, governance_subject
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.audit.timeline import Step, Timeline
from tasktrail.services.rendering import TailView, TasksView, TimelineView, show
from tasktrail.services.wording import lasted, since

TIMES = "\N{MULTIPLICATION SIGN}"
NOW = datetime.fromtimestamp(NOW_MS / 1000, UTC) + timedelta(days=1, seconds=65)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return play()


@pytest.fixture(scope="module")
def store(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditStore]:
    opened = open_store(scene, tmp_path_factory.mktemp("store") / "audit.duckdb")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def timeline(store: AuditStore, scene: Scene) -> Timeline:
    found = store.timeline(scene.ref)
    assert found is not None
    return found


def printed(view: ConsoleRenderable, width: int = 80, *, terminal: bool = False, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    text = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(
        file=text, width=width, highlight=False, force_terminal=terminal, color_system="truecolor" if terminal else None
    )
    show(console, view)
    return raw.getvalue().decode(encoding)


def timeline_of(tmp_path: Path, trail: Trail, ref: str) -> Timeline:
    with closing(AuditStore.open(tmp_path / "audit.duckdb")) as store:
        store.bind("TRAIL", CREATED, len(trail.messages))
        store.append(trail.messages)
        found = store.timeline(ref)
    assert found is not None
    return found


def told(tmp_path: Path, trail: Trail, ref: str) -> str:
    """The timeline of a task, on one line."""
    found = timeline_of(tmp_path, trail, ref)
    return plain(TimelineView(found, now=datetime.fromtimestamp(trail.now_ms / 1000, UTC)))


def plain(view: ConsoleRenderable) -> str:
    """The words on one line, however they were wrapped."""
    return " ".join(printed(view, 200).split())


@pytest.mark.requirement("T3")
def test_every_step_says_what_happened_who_did_it_how_we_know_and_by_which_rule(timeline: Timeline) -> None:
    """Issue "main job": who, by what credential, at which level of evidence, allowed by which rule."""
    shown = plain(TimelineView(timeline, now=NOW))
    assert (
        "created for tool transfer of server bank; it lives 60 s, 120 s were asked for → working #1 "
        "ana at id.example via desk · verified by tasktrail · jwt jti-ana, until 11:16:40 · "
        "from 192.0.2.7 (claimed) · rule same-identity-context (builtin-1)"
    ) in shown
    assert "MCP server bank · asserted by itself · rule server-runs-task" in shown
    assert "(agent-7 at agents.example acts for it) · verified by tasktrail" in shown
    assert "ana at id.example via desk · asserted by the MCP server" in shown
    assert "input_required → working" in shown


@pytest.mark.requirement("T3")
def test_the_header_says_how_it_stands_and_what_must_not_be_overlooked(timeline: Timeline) -> None:
    shown = plain(TimelineView(timeline, now=NOW))
    for said in (
        "status completed with a tool error",
        "tool transfer on bank (task required, wire 2026-07-28)",
        "made by ana at https://id.example via desk, tenant acme, verified by tasktrail; binding exact",
        "handle lived 1 m of 2 m asked for; expired",
        "▲ alert 1 gap: something may be missing here",
        "▲ alert 1 message not accepted as an entry of this task",
        "▲ alert 20 attempts denied, of 3 callers",
        "note 1 command refused, which changed nothing",
    ):
        assert said in shown


def test_a_task_that_came_by_no_wire_of_mcp_names_none(timeline: Timeline) -> None:
    """docs/http.md, docs/nats.md: such a task may name no `wire`."""
    assert timeline.task is not None
    task = msgspec.structs.replace(timeline.task, wire="")
    shown = plain(TimelineView(msgspec.structs.replace(timeline, task=task), now=NOW))
    assert "tool transfer on bank (task required) made by" in shown


def test_denials_refusals_gaps_and_anomalies_are_told_in_words_not_only_in_colour(timeline: Timeline) -> None:
    shown = plain(TimelineView(timeline, now=NOW))
    assert f"✗ DENIED {TIMES}17 over 0.500 s tasks/get: other-identity-context; the caller was told -32602" in shown
    assert "not who created it: differs in sub" in shown
    assert "! REFUSED CancelTask, the task is completed: terminal" in shown
    assert "▲ ANOMALY not accepted (undecodable)" in shown
    assert re.search(r"▲ GAP 2026-11-18 [\d:.]+ to [\d:.]+: folded polls and denials", shown)
    assert "an anonymous caller · only claimed · no credential · not who created it" in shown
    assert "opaque hash ZkZkZkZkZkZk…, EXPIRED, ENDED 11:05:50" in shown
    assert f"{TIMES}3 over 0.900 s tasks/get told working" in shown


def test_the_same_caller_with_the_same_credential_is_told_once(timeline: Timeline) -> None:
    """What differs stands out when what does not is short; a credential that has ended since is told again."""
    shown = plain(TimelineView(timeline, now=NOW))
    assert "ana (verified), as in #1 · rule same-identity-context" in shown
    assert "MCP server bank (asserted), as in #3" in shown
    first, last = timeline.steps[0], timeline.steps[1]
    late = msgspec.structs.replace(last, first="2026-11-18T11:20:00.000Z")
    shown = plain(TimelineView(msgspec.structs.replace(timeline, steps=(first, late)), now=NOW))
    assert "jwt jti-ana, ENDED 11:16:40" in shown


def test_the_steps_of_one_command_stand_together(timeline: Timeline) -> None:
    """Design, section 7: one command, one entry."""
    lines = [line.strip() for line in printed(TimelineView(timeline, now=NOW), 200).splitlines()]
    at = next(number for number, line in enumerate(lines) if "the client answered sum-1" in line)
    assert "answered by ana (asserted by the MCP server)" in lines[at + 1]
    assert "an answer to approve-1 changed nothing" in lines[at + 2]
    assert "an answer to a key never issued changed nothing" in lines[at + 3]
    assert "nothing is outstanding any more" in lines[at + 4]
    assert "asserted by the MCP server" in lines[at + 5]


def test_a_folded_run_stands_where_it_began_though_it_was_recorded_later(timeline: Timeline) -> None:
    """Design, section 1: repeats fold, and are on the trail within a second; "told working" after the end misleads."""
    created, poll, *_ = timeline.steps
    ended = next(step for step in timeline.steps if step.type == "TaskCompleted")
    late = msgspec.structs.replace(poll, stream_seq=ended.stream_seq + 1, first=poll.time)
    same = msgspec.structs.replace(late, stream_seq=late.stream_seq + 1, first=ended.time)
    shown = plain(TimelineView(msgspec.structs.replace(timeline, steps=(created, ended, late, same), gaps=()), now=NOW))
    told = [shown.index(f" #{step.stream_seq} ", shown.index("times are UTC")) for step in (created, late, ended, same)]
    assert told == sorted(told)


def test_an_hour_of_polling_is_two_lines_when_the_token_ends_in_it(timeline: Timeline) -> None:
    """Each half second of repeats is an entry of its own; nobody reads seven thousand of them."""
    created, poll, *_ = timeline.steps
    at = datetime.fromisoformat(poll.time or "")

    def piece(number: int, count: int = 2, what: str = "tasks/get told working 2 times") -> Step:
        first, last = (
            (at + timedelta(seconds=number / 2 + more)).isoformat(timespec="milliseconds") for more in (0, 0.4)
        )
        return msgspec.structs.replace(
            poll, stream_seq=100 + number, first=first, last=last, time=last, count=count, what=what
        )

    pieces = [piece(number) for number in range(7_200)]
    other = piece(7_200, 1, "tasks/get told completed")
    shown = plain(TimelineView(msgspec.structs.replace(timeline, steps=(created, *pieces, other), gaps=()), now=NOW))
    assert f"{TIMES}2396 over 9 m 59 s tasks/get told working #100…1297 ana (verified), as in #1" in shown
    assert f"{TIMES}12004 over 50 m 1 s tasks/get told working #1298…7299 ana at id.example" in shown
    assert shown.count("told working") == 2  # the token ended in between, and that is told
    assert "tasks/get told completed #7300 ana (verified), as in #1298" in shown


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_every_line_fits_the_terminal(timeline: Timeline, store: AuditStore, width: int) -> None:
    views: list[ConsoleRenderable] = [TimelineView(timeline, now=NOW), TasksView(store.tasks(), now=NOW)]
    views += [TailView(step) for step in store.since(0)[0]]
    for view in views:
        for line in printed(view, width).splitlines():
            assert cell_len(line) <= width, line
            assert line == line.rstrip()


def test_text_of_the_trail_cannot_steer_the_terminal(timeline: Timeline, store: AuditStore) -> None:
    """The subject of the hostile caller holds escapes, a direction override and markup."""
    shown = [printed(TimelineView(timeline, now=NOW), 200)]
    shown += [printed(TailView(step), 200) for step in store.since(0)[0]]
    for text in shown:
        assert not set(text) & {"\x1b", "\u202e", "\x00", "\x07"}
    assert r"\x1b[31meve\x1b[0m \u202egnp [bold]x[/bold]" in plain(TimelineView(timeline, now=NOW))
    coloured = printed(TimelineView(timeline, now=NOW), 200, terminal=True)
    assert "\x1b[1m" in coloured
    assert HOSTILE not in coloured
    assert "\x1b[2J" not in coloured


def test_a_terminal_without_unicode_gets_other_marks(timeline: Timeline) -> None:
    shown = printed(TimelineView(timeline, now=NOW), encoding="latin-1")
    assert "x DENIED x17" in " ".join(shown.split())
    assert "●" not in shown


def test_a_live_task_says_how_long_its_handle_opens(store: AuditStore, scene: Scene) -> None:
    found = store.timeline(scene.others[1])
    assert found is not None
    shown = plain(TimelineView(found, now=NOW))
    assert "status input_required" in shown
    assert re.search(r"handle lives 1 h of 2 m asked for; opens until [\d:.]+ \(59 m \d+ s left\)", shown)
    late = plain(TimelineView(found, now=NOW + timedelta(hours=3)))
    assert re.search(r"was due to expire [\d:.]+ \(2 h ago\)", late)


def test_a_reference_that_only_denials_name_says_so(store: AuditStore, scene: Scene) -> None:
    """`task` is null in a timeline whose creation is not on the trail."""
    found = store.timeline(scene.ref)
    assert found is not None
    only = msgspec.structs.replace(found, task=None, gaps=(), steps_omitted=3)
    shown = plain(TimelineView(only, now=NOW))
    assert "status unknown: no creation of it is on the trail" in shown
    assert "▲ 3 later steps are left out" in shown


def test_tasks_are_listed_with_their_status_time_left_tool_and_creator(store: AuditStore, scene: Scene) -> None:
    wide = printed(TasksView(store.tasks(), now=NOW), 160)
    assert wide.splitlines()[0].split() == ["task", "status", "created", "handle", "tool", "and", "creator"]
    assert re.search(rf"{scene.ref} +completed +1 d ago +expired +TOOL ERROR, transfer on bank, ana at", wide)
    narrow = printed(TasksView(store.tasks(), now=NOW), 80).splitlines()
    assert re.fullmatch(rf"{scene.others[1]} +input_required +\S+ s ago +59 m \d+ s left", narrow[3])
    assert narrow[4] == "  transfer on bank, ana at id.example"


def test_the_tail_says_for_each_step_whose_task_it_is_and_who_did_it(store: AuditStore, scene: Scene) -> None:
    steps, _ = store.since(0)
    shown = plain(TailView(steps[0]))
    assert f"#1 {scene.ref} · ana at id.example via desk · verified by tasktrail" in shown
    assert "→ working" in shown


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0, "0 s"), (0.12, "0.120 s"), (59.9, "59.900 s"), (65, "1 m 5 s"), (7_380, "2 h 3 m"), (273_600, "3 d 4 h")],
)
def test_durations_are_as_precise_as_one_reads(seconds: float, says: str) -> None:
    assert lasted(timedelta(seconds=seconds)) == says


def test_a_step_before_its_task_was_made_says_so_with_its_sign() -> None:
    start = datetime(2026, 11, 18, 11, tzinfo=UTC)
    assert since("2026-11-18T10:59:58.000Z", start) == "-2.000 s"
    assert since("no time", start) == ""


def test_nothing_is_shown_as_part_of_tasktrail_because_a_caller_calls_itself_so(timeline: Timeline) -> None:
    """An issuer chooses its subjects' names."""
    step = timeline.steps[0]
    assert step.who is not None
    who = msgspec.structs.replace(step.who, iss="tasktrail", sub="server:bank")
    shown = plain(TailView(msgspec.structs.replace(step, who=who)))
    assert "server:bank at tasktrail" in shown
    assert "MCP server" not in shown


@pytest.mark.requirement("M6")
def test_the_timeline_ends_with_the_verdict_and_why(timeline: Timeline) -> None:
    """Issue "Authority": a per-task verdict with the reasons when not."""
    shown = plain(TimelineView(timeline, now=NOW))
    assert shown.endswith(
        "verdict NOT CLEAN: it cannot be said that it was created, queried and closed in one authorised context, "
        "nothing reusable left "
        f"✗ turned away: eve at https://id.example via desk and 2 others {TIMES}20 #6 "
        f"✗ who called is only asserted: ana at https://id.example via desk {TIMES}3 #8 "
        "✗ a message was not accepted as an entry of this task #11 "
        "✗ folded polls and denials may be missing: the service ended without stopping #9 "
        "· the key of its payloads is not destroyed yet #15"
    )


@pytest.mark.requirement("M6")
def test_what_happens_in_the_best_of_lives_is_no_alert_and_a_clean_verdict(tmp_path: Path) -> None:
    """A late command, a creator who comes after the end, a crash after it: nothing of that is an attack."""
    trail = Trail()
    ref = trail.create(retention_ms={"completed": 5_000}, ttl_set_by="tool")
    trail.command(ref, CompleteTask(id="c", result=trail.sealed("result")), worker(Standing.VALID))
    trail.command(ref, CancelTask(id="x"))
    trail.now_ms += 5_000
    trail.command(ref, ExpireTask(id="e"), timer())
    trail.command(ref, ShredPayload(id="s", reason="retention"), timer())
    trail.deny(ref, sub="ana", count=2)
    shown = told(tmp_path, trail, ref)
    assert "alert" not in shown
    assert "handle lived 1 m of 2 m asked for, decided by the tool, 5 s with its retention; expired" in shown
    assert "payloads unreadable, their key was destroyed 11:06:45.050" in shown
    assert "note its creator was turned away 2 times: other-identity-context" in shown
    assert "note 1 command refused, which changed nothing: the task did not admit it" in shown
    assert shown.endswith("verdict CLEAN: created, queried and closed in one authorised context, nothing reusable left")


def test_a_gap_after_the_end_is_a_note(tmp_path: Path) -> None:
    trail = Trail()
    ref = trail.create()
    trail.command(ref, CompleteTask(id="c", result=trail.sealed("result")), worker(Standing.VALID))
    late = GapFound(at_ms=NOW_MS, what="folded polls", since_ms=NOW_MS + 900, until_ms=NOW_MS + 1_900, cause="crash")
    trail.note(control_subject("_"), "_", (late,))
    shown = told(tmp_path, trail, ref)
    assert "alert" not in shown
    assert "note 1 gap after its end: repeated accesses may be missing, nothing of the task itself" in shown


@pytest.mark.requirement("A2")
def test_what_a_worker_does_while_the_authority_has_lapsed_is_told_as_its_own(tmp_path: Path) -> None:
    """Issue "Authority": never shown as authorised by the user."""
    trail = Trail()
    ref = trail.create(ttl_ms=3_600_000)
    trail.now_ms = NOW_MS + 700_000
    said = ReportStatus(id="r", message=trail.sealed("message"))
    trail.command(ref, ChangeAuthority(id="l", standing=Standing.LAPSED, until_s=NOW_MS // 1000 + 600), worker())
    trail.command(ref, said, worker(Standing.LAPSED))
    shown = told(tmp_path, trail, ref)
    assert "◆ the creator's authority lapsed, its credential has ended" in shown
    by = "MCP server bank (vouched), as in #2 · while the creator's authority had lapsed · rule server-runs-task"
    assert f"the work reported a message #3 {by}" in shown
    assert "now it has lapsed, its credential ended 2026-11-18 11:16:40" in shown


@pytest.mark.requirement("A2", "A9", "R3")
def test_the_header_says_what_the_authority_was_then_and_is_now(tmp_path: Path) -> None:
    trail = Trail()
    ref = trail.create()
    revoked = PrincipalRevoked(
        at_ms=NOW_MS, revocation="r-1", kind="principal", iss="https://id.example", sub="ana", reason="left"
    )
    policy = PolicyActivated(at_ms=NOW_MS, version="v-2", sha256="p" * 64, schema_sha256="", text="permit", reason="r")
    trail.note(governance_subject("_"), "_", (policy, revoked), authority=operator())
    trail.command(ref, RevokeHandle(id="v", reason="stolen"), operator())
    trail.command(ref, PlaceHold(id="h", hold="h-1", by="olga", reason="inquiry"), operator())
    shown = told(tmp_path, trail, ref)
    assert (
        "authority then allowed by rule same-identity-context (builtin-1); now it is REVOKED; policy v-2 decides now "
        "· principal, revocation r-1 #2: left"
    ) in shown
    assert "revoked 11:06:40.020, opens nothing any more" in shown
    assert "payloads kept by 1 hold, whatever their retention says" in shown
    assert "operator olga · vouched for by tasktrail" in shown


def test_a_part_of_tasktrail_that_acts_for_the_operators_is_no_operator(timeline: Timeline) -> None:
    """What policy makes happen is told as the policy's; a person is told by name."""
    step = next(step for step in timeline.steps if step.type == "TaskExpired")
    assert step.who is not None
    part = msgspec.structs.replace(step.who, trigger="operator", iss="tasktrail", sub="policy", kind="machine")
    assert "tasktrail's policy" in plain(TailView(msgspec.structs.replace(step, who=part)))


@pytest.mark.requirement("A8")
def test_an_answer_says_how_its_person_was_authenticated_and_whose_word_that_is(tmp_path: Path) -> None:
    """Asserted human presence is shown as asserted; and what the issuer writes cannot steer the terminal."""
    trail = Trail()
    ref = trail.create()
    answers = ((Level.ASSERTED, ("pwd", "otp")), (Level.VERIFIED, ("\x1b[2J",)), (Level.VERIFIED, ()))
    for number, (level, amr) in enumerate(answers):
        who = ana(level=level)
        assert who.credential is not None
        facts = {"acr": "strong", "amr": amr, "auth_time": NOW_MS // 1000 - 86_400} if amr else {}
        by = msgspec.structs.replace(who, credential=msgspec.structs.replace(who.credential, **facts))
        asks = (Ask(key=f"k{number}", method="elicitation/create", request=trail.sealed("request")),)
        trail.command(ref, RequestInput(id=f"ask {number}", asks=asks))
        answer = Answer(key=f"k{number}", action="accept", response=trail.sealed("response"))
        trail.command(ref, RespondToInput(id=f"answer {number}", answers=(answer,)), by)
    shown = told(tmp_path, trail, ref)
    for words in (
        "answered by ana (asserted by the MCP server), authenticated by pwd, otp (acr strong) at 2026-11-17 11:06:40",
        "answered by ana (verified by tasktrail), authenticated by \\x1b[2J (acr strong) at 2026-11-17 11:06:40",
        "answered by ana (verified by tasktrail), nothing says how a person was authenticated",
    ):
        assert shown.count(words) == 1, shown


@pytest.mark.requirement("A1")
def test_a_step_by_a_grant_says_so(timeline: Timeline) -> None:
    poll = next(step for step in timeline.steps if step.type == "TaskPolled")
    by_grant = msgspec.structs.replace(poll, grant="g-1", stream_seq=2)
    shown = plain(TimelineView(msgspec.structs.replace(timeline, steps=(timeline.steps[0], by_grant)), now=NOW))
    assert "· by grant g-1 · rule" in shown


@pytest.mark.requirement("R4")
def test_what_looks_like_a_secret_is_told_beside_the_step_and_in_the_tail(tmp_path: Path) -> None:
    """R4: which kind, in which payload."""
    trail = Trail()
    ref = trail.create(arguments=trail.sealed("arguments", "a", "jwt", "npm_token", SCANNED_IN_PART))
    done = CompleteTask(id="done", result=trail.sealed("result", "r", "\x1b[31mjwt"))
    trail.command(ref, done, worker(Standing.VALID))
    timeline = timeline_of(tmp_path, trail, ref)
    shown = plain(TimelineView(timeline, now=NOW))
    assert "→ working ▲ looks like a secret: jwt, npm_token in arguments #1 ana" in shown
    assert "▲ looks like a secret: \\x1b[31mjwt in result #2 MCP server bank" in shown
    assert "note 1 payload looked through for secrets only in the first MiB" in shown
    assert "▲ looks like a secret: jwt, npm_token in arguments #1" in plain(TailView(timeline.steps[0]))


@pytest.mark.requirement("R4")
def test_of_payloads_without_secrets_nothing_is_said(tmp_path: Path) -> None:
    trail = Trail()
    shown = told(tmp_path, trail, trail.create())
    assert "secret" not in shown
