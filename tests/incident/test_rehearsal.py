"""The rehearsal: thousands of tasks, seven things that went wrong, every question answered exactly in one command.

Source: issue "Forensics", "an incident rehearsal as a test"; T4, T8, A7, A8. What is expected comes from the story as
it was made (`seeded.py`), never from a projection.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.incident.people import (
    ANA,
    DAN,
    DAN_AT,
    ELSEWHERE,
    EVE,
    EVE_AT,
    FAY,
    GUS,
    LEAKED,
    MALLORY,
    MALLORY_AT,
    OFFICE,
    Who,
)
from tests.incident.seeded import CROWD, TRACE, Done, Story
from tests.services.asked_place import Ran, run

from tasktrail.services.access.claims import digest
from tasktrail.testing.service import UpProcess

pytestmark = pytest.mark.requirement("T4")

TOKEN = digest(LEAKED)
Row = dict[str, Any]


class Scene(NamedTuple):
    """The running service, and what is on its trail."""

    up: UpProcess
    story: Story

    def run(self, *arguments: str, said: str = "") -> Ran:
        """One command."""
        return run(*arguments, "--data", str(self.up.data), said=said)

    def ask(self, name: str, *parameters: str, said: str = "", case: str = "INC-7") -> list[Row]:
        """All rows of an answer, each of which names an entry that says so, with the digest of its bytes."""
        ran = self.run("query", name, *parameters, "--all", "--format", "json", "--case", case, said=said)
        assert (ran.code, ran.err) == (0, ""), ran
        answer = json.loads(ran.out)
        assert not answer["more"]
        rows: list[Row] = answer["rows"]
        for row in rows:
            self._is_proved(row)
        return rows

    def _is_proved(self, row: Row) -> None:
        if not self.story.first_seq <= row["stream_seq"] <= self.story.last_seq:
            return
        message = self.story.message(row["stream_seq"])
        assert row["leaf_sha256"] == hashlib.sha256(message.body).hexdigest()
        assert row["entry_id"] == message.entry.id

    def events(self, name: str, *parameters: str, said: str = "") -> list[tuple[int, str]]:
        """Sequence and type of every row."""
        return [(row["stream_seq"], row["type"]) for row in self.ask(name, *parameters, said=said)]

    def name(self, ref: str) -> str:
        """A planted task's name."""
        return next(name for name, known in self.story.tasks.items() if known == ref)


@pytest.fixture(scope="module")
def scene(copied: Callable[[Path], Story], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    data = tmp_path_factory.mktemp("rehearsal") / "data"
    story = copied(data)
    with UpProcess(data) as up:
        up.wait_until_ready()
        yield Scene(up, story)


def _is(name: str, value: str, done: Done) -> bool:
    """Whether a member of a step has this value."""
    return bool(getattr(done, name) == value)


def rfc3339(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def test_the_trail_is_that_of_thousands_of_tasks(scene: Scene) -> None:
    """Issue: seeded traffic of thousands of tasks."""
    assert len(scene.story.states) == CROWD + len(scene.story.tasks)
    made = [done.task for done in scene.story.done if "TaskCreated" in done.types]
    tools = [row["task_ref"] for row in scene.ask("by_tool")]
    assert tools == made


def test_the_token_that_leaked_is_followed_from_standard_input(scene: Scene) -> None:
    """Everything by token (jti, hash)."""
    wanted = scene.story.rows(lambda done: done.token == TOKEN)
    assert scene.events("by_token", "token=-", said=LEAKED) == wanted
    assert scene.events("by_token", f"token={TOKEN}", "iss=" + ANA.iss) == wanted
    assert scene.events("by_token", f"token=jti-of-{LEAKED}") == wanted


def test_what_was_done_from_elsewhere_is_all_of_the_theft_and_nothing_else(scene: Scene) -> None:
    """Everything by address."""
    rows = scene.ask("by_address", f"address={ELSEWHERE}")
    assert [(row["stream_seq"], row["type"]) for row in rows] == scene.story.rows(
        lambda done: done.address == ELSEWHERE
    )
    assert [(row["type"], scene.name(row["task_ref"]), row["times"]) for row in rows] == [
        ("TaskPolled", "A1", 7),
        ("InputResponded", "A1", None),
        ("TaskResumed", "A1", None),
        ("ResultDisclosed", "A2", 1),
        ("CancelRequested", "A3", None),
        ("ResultDisclosed", "A1", 1),
        ("TaskCreated", "A4", None),
    ]
    assert {row["token_hash"] for row in rows} == {TOKEN}
    assert {row["address_level"] for row in rows} == {"asserted"}
    office = scene.events("by_address", f"address={OFFICE}")
    assert office == scene.story.rows(lambda done: done.address == OFFICE)


def test_the_blast_radius_of_the_token_is_every_task_and_disclosure_in_reach(scene: Scene) -> None:
    """Tasks, results disclosed, inputs answered, cancels, live handles reachable, and tasks of the same work."""
    rows = scene.ask("blast_radius", "token=-", said=LEAKED)
    assert [(row["fact"], scene.name(row["task_ref"]), row["reach"], row["address"]) for row in rows] == [
        ("created", "A1", "own", OFFICE),
        ("created", "B1", "trace", "192.0.2.30"),
        ("created", "A2", "own", OFFICE),
        ("created", "A5", "identity", "192.0.2.11"),
        ("disclosed", "A2", "own", OFFICE),
        ("created", "A3", "own", OFFICE),
        ("answered", "A1", "own", ELSEWHERE),
        ("disclosed", "A2", "own", ELSEWHERE),
        ("cancelled", "A3", "own", ELSEWHERE),
        ("disclosed", "A1", "own", ELSEWHERE),
        ("created", "A4", "own", ELSEWHERE),
        ("disclosed", "B1", "trace", "192.0.2.30"),
    ]
    assert all(row["handle_opens"] for row in rows)
    shown = {row["stream_seq"]: json.loads(row["payloads_sha256"]) for row in rows if row["fact"] == "disclosed"}
    for row in scene.ask("disclosures", "sub=ana"):
        assert shown.pop(row["stream_seq"]) == [row["payload_sha256"]]
    assert len(shown) == 1, "the errand's is not hers"


def test_a_principal_and_a_client_are_followed_through_the_crowd(scene: Scene) -> None:
    """Everything by a principal; by client."""
    for who in ("ana", "user-7", "dan"):
        assert scene.events("by_principal", f"sub={who}") == scene.story.rows(partial(_is, "sub", who))
    begin = scene.story.times["after the theft"]
    assert scene.events("by_principal", "sub=ana", f"since={rfc3339(begin)}") == [], "nothing since"
    for client in ("desk", "phone"):
        assert scene.events("by_client", f"client_id={client}") == scene.story.rows(partial(_is, "client", client))


def test_the_timeline_of_a_task_holds_its_own_steps_and_who_was_refused(scene: Scene) -> None:
    """Task timeline."""
    story = scene.story
    refused: dict[str, Who | None] = {"A1": None, "R1": MALLORY, "F1": FAY, "C2": None}
    for name, by in refused.items():
        ref = story.tasks[name]
        own = story.rows(partial(_is, "task", ref))
        denied = (
            [(seq, kind) for seq, kind in story.rows(partial(_is, "sub", by.sub)) if kind == "AccessDenied"]
            if by
            else []
        )
        assert scene.events("timeline", f"task={ref}") == sorted(own + denied, key=lambda row: row[0]), name
    shown = scene.run("timeline", story.tasks["A1"], "--json").json()
    found = [(step["stream_seq"], step["type"]) for step in shown["steps"]]
    assert found == story.rows(partial(_is, "task", story.tasks["A1"]))


def test_every_tasks_state_in_the_middle_of_it_is_what_it_was(scene: Scene) -> None:
    """State of one or all tasks as of a time or sequence."""
    story, cut = scene.story, scene.story.marks["halfway"]
    for point in (f"sequence={cut}", f"time={rfc3339(story.times['halfway'])}"):
        rows = scene.ask("state_as_of", point)
        assert {row["task_ref"]: row["status"] for row in rows} == story.halfway
        assert {row["as_of_seq"] for row in rows} == {cut}
    [row] = scene.ask("state_as_of", f"sequence={story.marks['theft']}", f"task={story.tasks['A1']}")
    assert (row["status"], row["outstanding"], row["standing"]) == ("input_required", '["confirm"]', "valid")


def test_what_changed_since_is_everything_after_it(scene: Scene) -> None:
    """What changed since a time, sequence or checkpoint."""
    story, cut = scene.story, scene.story.marks["halfway"]
    wanted = story.rows(lambda done: done.seq > cut)
    for point in (f"sequence={cut}", f"size={cut}", f"time={rfc3339(story.times['halfway'] + 1)}"):
        rows = scene.events("changed_since", point)
        assert [row for row in rows if story.first_seq <= row[0] <= story.last_seq] == wanted, point


@pytest.mark.requirement("A8")
def test_who_approved_is_told_with_how_strongly_they_had_authenticated(scene: Scene) -> None:
    """Who approved, with levels."""
    rows = scene.ask("approvals")
    answered = scene.story.rows(lambda done: "InputResponded" in done.types)
    assert [row["stream_seq"] for row in rows] == [seq for seq, kind in answered if kind == "InputResponded"]
    [weak] = [row for row in rows if "hwk" not in row["amr"]]
    assert (weak["sub"], scene.name(weak["task_ref"]), weak["presence_level"]) == (GUS.sub, "G1", "verified")
    [stolen] = scene.ask("approvals", f"task={scene.story.tasks['A1']}")
    assert (stolen["action"], stolen["address"], stolen["sub"]) == ("accept", ELSEWHERE, "ana")


@pytest.mark.requirement("M6")
def test_a_token_that_came_from_two_addresses_is_in_the_verdict_of_those_tasks_only(scene: Scene) -> None:
    """Feature M4: a handle replayed from a new address. Every planted task, and the first of the crowd's."""
    story = scene.story
    came: dict[tuple[str, str], set[str]] = {}
    for done in story.done:
        if done.token and done.address:
            came.setdefault((done.task, done.token), set()).add(done.address)
    wanted = {task for (task, _), addresses in came.items() if task and len(addresses) > 1}
    crowd = [done.task for done in story.done if "TaskCreated" in done.types and done.task not in story.tasks.values()]
    found = set[str]()
    for ref in (*story.tasks.values(), *crowd[:20]):
        ran = scene.run("timeline", ref, "--json")
        assert ran.code == 0, ran.err
        codes = {one["code"]: one for one in json.loads(ran.out)["verdict"]["findings"]}
        if "other_address" in codes:
            found.add(ref)
            assert ELSEWHERE in codes["other_address"]["what"]
    assert found == wanted == {story.tasks[name] for name in ("A1", "A2", "A3")}


def test_those_who_tried_are_told_by_source_with_the_true_reasons(scene: Scene) -> None:
    """Denied attempts by source."""
    rows = scene.ask("denied_by_source")
    found = [(row["sub"], row["address"], row["attempts"], row["runs"], json.loads(row["reasons"])) for row in rows]
    assert sorted(found) == [
        ("eve", EVE_AT, 40, 8, {"no_such_task": 40}),
        ("fay", FAY.address, 6, 1, {"revoked": 6}),
        ("mallory", MALLORY_AT, 7, 2, {"other-identity-context": 7}),
    ]
    assert next(row["stream_seq"] for row in rows if row["sub"] == EVE.sub) == scene.story.marks["enumeration"]
    [replayed] = scene.ask("denied_by_source", f"task={scene.story.tasks['R1']}")
    assert (replayed["sub"], replayed["token_hash"]) == (MALLORY.sub, digest(MALLORY.token))


@pytest.mark.requirement("A7")
def test_the_misuse_of_a_grant_is_told_apart_from_the_owners_own_steps(scene: Scene) -> None:
    """A handle granted and misused; the owner at every step."""
    rows = scene.ask("blast_radius", "sub=dan", f"iss={DAN.iss}")
    assert [(row["fact"], scene.name(row["task_ref"]), row["reach"], row["sub"]) for row in rows] == [
        ("created", "C1", "used", "cy"),
        ("created", "C2", "used", "cy"),
        ("disclosed", "C1", "own", "dan"),
        ("cancelled", "C2", "own", "dan"),
    ]
    taken = scene.ask("owners", f"task={scene.story.tasks['C2']}")
    assert {row["owner_sub"] for row in taken} == {"cy"}
    [misused] = [row for row in taken if row["grant_id"]]
    assert (misused["type"], misused["sub"]) == ("CancelRequested", "dan")
    assert scene.events("by_address", f"address={DAN_AT}") == scene.story.rows(lambda done: done.sub == "dan")


def test_what_went_on_after_a_revocation_or_a_lapse_is_told(scene: Scene) -> None:
    """Live handles whose authority has lapsed; authority at creation and now."""
    story = scene.story
    [revoked] = scene.ask("revocations")
    assert (revoked["revocation"], revoked["in_force"], revoked["tasks"]) == ("rev-fay", True, 2)
    assert revoked["stream_seq"] == story.marks["revocation"]
    handles = scene.ask("lapsed_handles")
    assert {(scene.name(row["task_ref"]), row["standing"], row["revocations"]) for row in handles} == {
        ("F1", "revoked", "rev-fay"),
        ("F2", "revoked", "rev-fay"),
        ("H1", "lapsed", None),
        ("H2", "lapsed", None),
    }
    then_and_now = {
        name: scene.ask("authority_then_and_now", f"task={story.tasks[name]}")[0] for name in ("F1", "H1", "A1")
    }
    assert {name: (row["then_effect"], row["now_standing"]) for name, row in then_and_now.items()} == {
        "F1": ("allow", "revoked"),
        "H1": ("allow", "lapsed"),
        "A1": ("allow", "valid"),
    }
    went_on = [row for row in scene.ask("timeline", f"task={story.tasks['F1']}") if row["standing"] == "revoked"]
    assert [row["type"] for row in went_on] == ["StatusReported", "TaskCompleted"]
    late = [row for row in scene.ask("timeline", f"task={story.tasks['H1']}") if row["standing"] == "lapsed"]
    assert [row["type"] for row in late] == ["StatusReported", "TaskCompleted"]


def test_tasks_of_one_piece_of_work_are_found_in_sql_as_by_the_named_query(scene: Scene) -> None:
    """A free question, and nothing that should not be there: no gap, no policy but the built-in one."""
    statement = "SELECT task_ref FROM tasks WHERE trace_id = $trace"
    asked = scene.run("sql", statement, "--param", f"trace={TRACE}", "--format", "json").json()
    assert {row[0] for row in asked["rows"]} == scene.story.refs("A1", "B1")
    assert scene.ask("gaps") == []
    assert scene.ask("policies") == []


@pytest.mark.requirement("T8")
def test_the_responders_own_questions_are_on_the_trail(scene: Scene) -> None:
    """Responders are audited."""
    scene.ask("by_token", "token=-", said=LEAKED, case="INC-8")
    scene.ask("approvals", case="INC-8")
    rows = scene.ask("responders", "case_id=INC-8", case="INC-9")
    assert [(row["type"], row["query"], json.loads(row["parameters"])) for row in rows] == [
        ("QueryRun", "by_token", {"token": TOKEN}),
        ("QueryRun", "approvals", {}),
    ]
    assert {row["trigger"] for row in rows} == {"responder"}
    wanted = len(scene.story.rows(lambda done: done.token == TOKEN))
    assert rows[0]["shown"] == wanted
