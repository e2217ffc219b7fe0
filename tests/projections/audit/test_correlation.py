"""Parents and children, definitions that change, and messages without a place. Source: issue "Adapters" (correlation),
features L6, P3, T4."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.projections.audit.histories import Trail, caller, worker
from tests.projections.audit.stores import fed

from tasktrail.events.authority import Authority, Level, Standing
from tasktrail.events.commands import Answer, Ask, CancelTask, CompleteTask, RequestInput, RespondToInput, SeeDefinition
from tasktrail.events.facts import AccessDenied, ResultDisclosed
from tasktrail.events.subjects import access_subject, denied_subject
from tasktrail.projections.audit.named import catalogue, read_parameters
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.audit.timeline import Timeline

OLD, NEW = "d1" * 32, "d2" * 32
UNKNOWN = "u" * 32
ORPHAN = "stream_seq what reason times task_ref known sub"


class Correlated:
    """A history of 21 entries. `p` is ana's; its work made `c`, whose work made `g`.

    `q` is of the tool's next definition, and so is `o` of globex. Each task has one letter.
    """

    def __init__(self) -> None:
        self.trail = trail = Trail()
        ana = self.ana = caller("ana", "T1")
        self.p = trail.create(authority=ana, tool_sha256=OLD)  # 1
        self.c = trail.create(tool="report", sub="bank", authority=caller("bank", "TB"), parent=self.p)  # 2
        report = caller("report", "TR")
        self.g = trail.create(
            tool="mail", sub="report", authority=report, parent=self.c, parent_level=Level.ASSERTED
        )  # 3
        self.q = trail.create(authority=ana, tool_sha256=NEW)  # 4
        other = caller("cy", "TC", tenant="globex")
        self.o = trail.create(tenant="globex", sub="cy", authority=other, tool_sha256=NEW)  # 5
        trail.command(self.p, SeeDefinition(id="seen", tool_sha256=NEW), worker())  # 6
        self._talk()
        self._stray()

    def _talk(self) -> None:
        trail, p = self.trail, self.p
        ask = Ask(key="pay", method="elicitation/create", request=trail.sealed("request"))
        trail.command(p, RequestInput(id="ask", asks=(ask,)), worker(Standing.VALID))  # 7
        self._answer("one", Answer(key_sha256="0f" * 32))  # 8: a key never issued
        self._answer("two", Answer(key="pay", action="accept", response=trail.sealed("response")))  # 9
        self._answer("three", Answer(key="pay"))  # 10: again
        done = CompleteTask(id="done", result=trail.sealed("result"))
        trail.command(p, done, worker(Standing.VALID))  # 11
        trail.command(p, CompleteTask(id="late", result=trail.sealed("result")), worker(Standing.VALID))  # 12: too late
        trail.command(p, CancelTask(id="x"), self.ana)  # 13: belongs to the task, and comes too late

    def _answer(self, made: str, answer: Answer) -> None:
        self.trail.command(self.p, RespondToInput(id=made, answers=(answer,)), self.ana)

    def _stray(self) -> None:
        eve, bank = caller("eve", "TE"), worker()
        self._deny("tasks/update", "other-identity-context", eve, {self.p: 2, UNKNOWN: 1})  # 14
        self._deny("work/complete", "no-such-task", bank, {UNKNOWN: 1})  # 15
        self._deny("tasks/get", "other-identity-context", eve, {self.p: 1})  # 16: a look is no message
        self._deny("work/report", "work-waits-for-authority", bank, {self.p: 1})  # 17: it is said again
        self._deny("elicitation/create", "handle-expired", self.ana, {self.p: 1})  # 18: an answer on the other wire
        other = caller("eve", "TE", tenant="globex")
        self._deny("tasks/update", "other-identity-context", other, {self.o: 1}, "globex")  # 19
        for ref in (self.c, self.g):  # 20, 21
            shown = ResultDisclosed(
                at_ms=self.trail.now_ms, payloads=("result",), sha256=("a1" * 32,), nth=1, method="tasks/get"
            )
            self.trail.note(access_subject("acme", ref), "acme", (shown,), ref, caller("bank", "TB"))

    def _deny(self, method: str, reason: str, who: Authority, refs: dict[str, int], tenant: str = "acme") -> None:
        now_ms, count = self.trail.now_ms, sum(refs.values())
        denied = AccessDenied(
            at_ms=now_ms,
            method=method,
            code=-32602,
            count=count,
            first_ms=now_ms,
            last_ms=now_ms,
            reasons={reason: count},
            refs=refs,
        )
        self.trail.note(denied_subject(tenant), tenant, (denied,), authority=who)


class Case:
    """A store that holds it, and its questions; a task is told by its letter."""

    def __init__(self, path: Path) -> None:
        self.history = Correlated()
        self.store: AuditStore = fed(path, self.history.trail, batch=4)
        self._letters = {getattr(self.history, one): one for one in "pcgqo"} | {UNKNOWN: "?"}

    def asked(self, name: str, columns: str, tenant: str | None = None, **given: str) -> list[tuple[object, ...]]:
        query = catalogue()[name]
        answer = self.store.ask(query, read_parameters(query, given), tenant=tenant, most=1_000)
        assert not answer.more
        names = [one.name for one in answer.columns]
        rows = [[row[names.index(one)] for one in columns.split()] for row in answer.rows]
        return [
            tuple(self._letters.get(value, value) if isinstance(value, str) else value for value in row) for row in rows
        ]

    def timeline(self, ref: str) -> Timeline:
        found = self.store.timeline(ref)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    one = Case(tmp_path_factory.mktemp("correlated") / "audit.duckdb")
    yield one
    one.store.close()


@pytest.mark.requirement("L6", "T4")
def test_every_message_without_a_place_is_listed_with_whose_it_was_and_why(case: Case) -> None:
    """Issue: orphans are listed, never lost."""
    everything = [
        (8, "answer", "never_asked", 1, "p", True, "ana"),
        (10, "answer", "already_answered", 1, "p", True, "ana"),
        (12, "result", "terminal", 1, "p", True, "server:bank"),
        (14, "answer", "other-identity-context", 2, "p", True, "eve"),
        (14, "answer", "other-identity-context", 1, "?", False, "eve"),
        (15, "result", "no-such-task", 1, "?", False, "server:bank"),
        (18, "answer", "handle-expired", 1, "p", True, "ana"),
        (19, "answer", "other-identity-context", 1, "o", True, "eve"),
    ]
    found = case.asked("orphans", ORPHAN)
    assert sorted(found, key=str) == sorted(everything, key=str)
    assert [row[0] for row in found] == [8, 10, 12, 14, 14, 15, 18, 19]
    assert set(case.asked("orphans", ORPHAN, "acme")) == set(everything[:-1])
    assert case.asked("orphans", ORPHAN, "globex") == everything[-1:]
    assert case.asked("orphans", ORPHAN, sub="ana") == [everything[0], everything[1], everything[6]]
    assert case.asked("orphans", ORPHAN, task=case.history.p) == [*everything[:4], everything[6]]
    assert case.asked("orphans", ORPHAN, task=UNKNOWN) == everything[4:6]


@pytest.mark.requirement("L6", "A5", "T4")
def test_children_are_told_with_theirs_and_how_far_each_link_is_proved(case: Case) -> None:
    """Issue: parent and child tasks are linked; no view raises a level."""
    child, grandchild = (2, 1, "p", "claimed", "c", "report"), (3, 2, "c", "asserted", "g", "mail")
    columns = "stream_seq depth parent parent_level task_ref tool"
    assert case.asked("children", columns, task=case.history.p) == [child, grandchild]
    assert case.asked("children", columns, "acme", task=case.history.c) == [(3, 1, "c", "asserted", "g", "mail")]
    assert case.asked("children", columns, task=case.history.g) == []
    assert case.asked("children", columns, "globex", task=case.history.p) == []
    told = case.timeline(case.history.c).steps[0].what
    assert f"by the work of task {case.history.p} (claimed by the caller's trace context)" in told
    told = case.timeline(case.history.g).steps[0].what
    assert f"by the work of task {case.history.c} (asserted by the MCP server)" in told


@pytest.mark.requirement("L6", "T4")
def test_what_a_leak_reaches_goes_on_to_the_tasks_that_its_tasks_made(case: Case) -> None:
    """Issue: the blast radius follows parents to children, which other principals made and other traces may be of."""
    columns = "stream_seq fact reach task_ref"
    made = [(2, "created", "child", "c"), (3, "created", "child", "g")]
    shown = [(20, "disclosed", "child", "c"), (21, "disclosed", "child", "g")]
    found = case.asked("blast_radius", columns, token="jti-T1")
    assert [row for row in found if row[3] in {"c", "g"}] == [*made, *shown]
    assert [row for row in case.asked("blast_radius", columns, task=case.history.c) if row[3] == "g"] == [
        (3, "created", "child", "g"),
        (21, "disclosed", "child", "g"),
    ]
    assert {row[3] for row in case.asked("blast_radius", columns, task=case.history.g)} == {"g"}


@pytest.mark.parametrize("query", ["children", "definitions", "orphans"])
def test_every_row_names_its_entry_and_pages_are_the_whole_answer(case: Case, query: str) -> None:
    """Issue "Forensics": every row carries stream sequence, entry id and leaf hash; pages never cut a sequence."""
    columns, given = "stream_seq entry_id leaf_sha256", {"task": case.history.p} if query == "children" else {}
    rows = set(case.asked("changed_since", columns, sequence="0"))
    answer = case.asked(query, columns, **given)
    assert answer
    assert set(answer) <= rows
    read = read_parameters(catalogue()[query], given)
    whole = case.store.ask(catalogue()[query], read, tenant=None, most=1_000).rows
    for most in (1, 2):
        pages = case.store.ask_batches(catalogue()[query], read, tenant=None, most=most)
        assert [row for page in pages for row in page.rows] == whole


@pytest.mark.requirement("P3", "T4")
def test_definitions_of_a_tool_are_told_in_order_and_which_of_its_tasks_saw_the_next(case: Case) -> None:
    """Feature P3: definition drift noticed."""
    columns = "stream_seq server tool tool_sha256 before_sha256 tasks live drifted"
    old, new = (1, "bank", "transfer", OLD, None, 1, 0, 1), (4, "bank", "transfer", NEW, OLD, 2, 2, 0)
    assert case.asked("definitions", columns) == [old, new]
    assert case.asked("definitions", columns, changed="true") == [new]
    assert case.asked("definitions", columns, tool="report") == []
    assert case.asked("definitions", columns, "globex") == [(5, "bank", "transfer", NEW, None, 1, 1, 0)]


@pytest.mark.requirement("P3", "M6")
def test_a_task_whose_tool_changed_says_so_and_is_not_clean(case: Case) -> None:
    """Issue: tool-definition drift between creation and later steps is noticed."""
    timeline = case.timeline(case.history.p)
    assert "the tool is defined otherwise than at creation (d2d2d2d2d2d2…)" in [step.what for step in timeline.steps]
    assert timeline.verdict is not None
    assert ("definition_changed", 6) in [(one.code, one.stream_seq) for one in timeline.verdict.findings]
    other = case.timeline(case.history.q).verdict
    assert other is not None
    assert "definition_changed" not in [one.code for one in other.findings]
