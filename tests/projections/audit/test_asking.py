"""Every named query on histories whose answers are known: issue "Forensics", features T3, T4, A5, A7, A8."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from tests.projections.audit.histories import mixed
from tests.projections.audit.incident import DEFINED, LATER, SOON, TRACE, Case, Incident
from tests.projections.audit.stores import PACKAGE, contents, fed, opened

from tasktrail.projections.audit.named import catalogue, read_parameters
from tasktrail.projections.audit.opening import SCHEMA_VERSION
from tasktrail.projections.audit.store import AuditStore


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    one = Case(tmp_path_factory.mktemp("incident") / "audit.duckdb")
    yield one
    one.store.close()


STEP = "stream_seq type status_after sub principal_level credential_level"
T2 = "T2".ljust(43, ".")


@pytest.mark.requirement("T3")
@pytest.mark.requirement("T4")
def test_timeline_tells_a_tasks_steps_its_denials_and_what_was_not_accepted(case: Case) -> None:
    assert case.asked("timeline", f"{STEP} kind times reason", task=case.incident.a) == [
        (2, "TaskCreated", "working", "ana", "verified", "verified", "task", None, None),
        (6, "TaskPolled", "working", "ana", "verified", "verified", "access", 4, None),
        (7, "InputRequested", "input_required", "server:bank", "vouched", None, "task", None, None),
        (8, "InputResponded", "input_required", "ana", "verified", "asserted", "task", None, None),
        (8, "TaskResumed", "working", "ana", "verified", "asserted", "task", None, None),
        (9, "TaskCompleted", "completed", "server:bank", "vouched", None, "task", None, None),
        (10, "ResultDisclosed", "completed", "ana", "verified", "verified", "access", 1, None),
        (12, "AccessDenied", None, "eve", "verified", "verified", "denied", 3, "expired"),
        (13, "AccessDenied", None, "eve", "verified", "verified", "denied", 2, "other-identity-context"),
        (28, None, None, None, None, None, "rejected", None, "undecodable"),
    ]
    assert {ref for (ref,) in case.asked("timeline", "task_ref", task=case.incident.a)} == {"a"}
    assert case.asked("timeline", STEP, task="a" * 32) == []


@pytest.mark.requirement("T4")
def test_by_principal_is_everything_it_did_and_what_was_done_for_it(case: Case) -> None:
    assert case.asked("by_principal", "stream_seq type task_ref jti actor_sub", sub="ana") == [
        (2, "TaskCreated", "a", "jti-T1", None),
        (4, "TaskCreated", "c", "jti-T2", None),
        (6, "TaskPolled", "a", "jti-T1", None),
        (8, "InputResponded", "a", "jti-T2", None),
        (8, "TaskResumed", "a", "jti-T2", None),
        (10, "ResultDisclosed", "a", "jti-T2", None),
        (16, "TaskPolled", "c", "jti-T3", "agent-1"),
    ]
    assert case.asked("by_principal", "stream_seq sub", sub="agent-1", iss="https://id.example") == [(16, "ana")]
    assert case.asked("by_principal", "stream_seq", sub="ana", iss="https://other.example") == []
    assert case.asked("by_principal", "stream_seq", sub="ana", client_id="phone") == []
    assert case.asked("by_principal", "stream_seq", sub="ana", since="2026-11-18T11:06:40.065Z") == [(10,), (16,)]
    assert case.asked("by_principal", "stream_seq", sub="ana", until="2026-11-18T11:06:40.040Z") == [(2,), (4,)]


@pytest.mark.requirement("T4")
def test_by_token_is_everything_done_with_it_by_hash_or_by_id(case: Case) -> None:
    expected = [(4, "TaskCreated"), (8, "InputResponded"), (8, "TaskResumed"), (10, "ResultDisclosed")]
    assert case.asked("by_token", "stream_seq type", token=T2) == expected
    assert case.asked("by_token", "stream_seq type", token="jti-T2", iss="https://id.example") == expected
    assert case.asked("by_token", "stream_seq type", token="jti-T2", iss="https://other.example") == []
    assert case.asked("by_token", "stream_seq type effect", token="jti-TE") == [
        (12, "AccessDenied", "deny"),
        (13, "AccessDenied", "deny"),
    ]


@pytest.mark.requirement("T4")
def test_by_client_and_by_address_are_everything_that_came_that_way(case: Case) -> None:
    assert case.asked("by_client", "stream_seq sub", client_id="desk") == [
        (2, "ana"),
        (3, "svc"),
        (4, "ana"),
        (5, "cy"),
        (6, "ana"),
        (8, "ana"),
        (8, "ana"),
        (10, "ana"),
        (11, "svc"),
        (12, "eve"),
        (13, "eve"),
        (15, "bo"),
        (16, "ana"),
    ]
    assert case.asked("by_client", "stream_seq", client_id="desk", iss="https://other.example") == []
    assert case.asked("by_address", "stream_seq type address_level", address="198.51.100.9") == [
        (8, "InputResponded", "claimed"),
        (8, "TaskResumed", "claimed"),
        (10, "ResultDisclosed", "claimed"),
    ]


@pytest.mark.requirement("T4")
def test_by_tool_is_its_tasks_and_those_of_one_definition(case: Case) -> None:
    columns = "stream_seq task_ref tenant tool tool_sha256 status sub opens"
    transfers = [
        (2, "a", "acme", "transfer", DEFINED, "completed", "ana", True),
        (5, "g", "globex", "transfer", DEFINED, "working", "cy", True),
    ]
    assert case.asked("by_tool", columns, tool="transfer") == transfers
    assert case.asked("by_tool", columns, tool_sha256=DEFINED) == transfers
    assert case.asked("by_tool", columns, tool="report", server="bank", opens="true") == [
        (3, "b", "acme", "report", None, "working", "svc", True),
        (4, "c", "acme", "report", None, "working", "ana", True),
    ]
    assert case.asked("by_tool", columns, tool="report", opens="false") == []
    assert case.asked("by_tool", columns, server="shop") == []


FACT = "stream_seq fact reach task_ref sub handle_opens"


@pytest.mark.requirement("T4")
def test_blast_radius_of_a_token_is_what_it_did_and_what_it_still_opens(case: Case) -> None:
    """T1 made `a`; `b` is of the same trace; `c` is ana's too, and its handle opens it still for such a token."""
    assert case.asked("blast_radius", FACT, token="jti-T1") == [
        (2, "created", "own", "a", "ana", True),
        (3, "created", "trace", "b", "svc", True),
        (4, "created", "identity", "c", "ana", True),
        (11, "disclosed", "trace", "b", "svc", True),
    ]


@pytest.mark.requirement("T4")
def test_blast_radius_of_a_principal_holds_what_was_granted_to_it(case: Case) -> None:
    assert case.asked("blast_radius", f"{FACT} owner_sub grant_id", sub="bo") == [
        (4, "created", "used", "c", "ana", True, "ana", None),
        (15, "cancelled", "own", "c", "bo", True, "ana", "grant-1"),
    ]
    assert case.asked("blast_radius", FACT, sub="bo", iss="https://other.example") == []
    assert case.asked("blast_radius", "stream_seq fact reach payloads_sha256", sub="ana") == [
        (2, "created", "own", _payload_at(case, 2)),
        (3, "created", "trace", _payload_at(case, 3)),
        (4, "created", "own", _payload_at(case, 4)),
        (8, "answered", "own", _payload_at(case, 8)),
        (10, "disclosed", "own", f'["{"a1" * 32}","{"a2" * 32}"]'),
        (11, "disclosed", "trace", f'["{"b1" * 32}"]'),
    ]


def _payload_at(case: Case, stream_seq: int) -> str:
    """The payload of the first event at a sequence, as the trail has it."""
    found = {
        row[0]: row[1]
        for row in case.asked("changed_since", "stream_seq payload_sha256 ord", sequence="0")
        if not row[2]
    }
    return f'["{found[stream_seq]}"]'


@pytest.mark.requirement("T4")
def test_blast_radius_of_a_handle_is_what_anybody_did_on_it_and_its_trace(case: Case) -> None:
    assert case.asked("blast_radius", FACT, task=case.incident.a) == [
        (2, "created", "own", "a", "ana", True),
        (3, "created", "trace", "b", "svc", True),
        (8, "answered", "own", "a", "ana", True),
        (10, "disclosed", "own", "a", "ana", True),
        (11, "disclosed", "trace", "b", "svc", True),
    ]
    assert case.asked("blast_radius", FACT, task=case.incident.g) == [(5, "created", "own", "g", "cy", True)]


@pytest.mark.requirement("T4")
def test_changed_since_a_sequence_a_checkpoint_or_a_time(case: Case) -> None:
    expected = [
        (21, "PolicyActivated"),
        (22, "AuthorityChanged"),
        (23, "GapFound"),
        (24, "QueryRun"),
        (25, "BundleExported"),
        (26, "PayloadUnsealed"),
    ]
    assert case.asked("changed_since", "stream_seq type", sequence="20") == expected
    assert case.asked("changed_since", "stream_seq type", size="20") == expected
    assert case.asked("changed_since", "stream_seq type", time="2026-11-18T11:06:40.100Z") == expected[1:]


STATE = "stream_seq task_ref status sub standing outstanding grants opens last_seq as_of_seq"


@pytest.mark.requirement("T4")
def test_state_as_of_is_what_the_events_until_then_come_to(case: Case) -> None:
    at_seven = [
        (2, "a", "input_required", "ana", "valid", '["pay"]', 0, True, 7, 7),
        (3, "b", "working", "svc", "valid", "[]", 0, True, 3, 7),
        (4, "c", "working", "ana", "valid", "[]", 0, True, 4, 7),
        (5, "g", "working", "cy", "valid", "[]", 0, True, 5, 7),
    ]
    assert case.asked("state_as_of", STATE, sequence="7") == at_seven
    assert case.asked("state_as_of", STATE, time="2026-11-18T11:06:40.059Z") == at_seven
    assert case.asked("state_as_of", f"{STATE} revocations authority_until", sequence="28") == [
        (2, "a", "completed", "ana", "revoked", "[]", 0, True, 10, 26, "rev-1", 600_000),
        (3, "b", "working", "svc", "revoked", "[]", 0, True, 22, 26, "rev-3", 0),
        (4, "c", "working", "ana", "valid", "[]", 1, True, 16, 26, None, 600_000),
        (5, "g", "working", "cy", "valid", "[]", 0, True, 5, 26, None, 600_000),
    ]
    assert case.asked("state_as_of", STATE, sequence="3", task=case.incident.a) == [
        (2, "a", "working", "ana", "valid", "[]", 0, True, 2, 3)
    ]
    assert case.asked("state_as_of", STATE, sequence="18", task=case.incident.g) == [
        (5, "g", "working", "cy", "revoked", "[]", 0, True, 5, 18)
    ], "a revocation that was lifted later held then"
    assert case.asked("state_as_of", STATE, sequence="1") == []


@pytest.mark.requirement("A8")
@pytest.mark.requirement("A5")
def test_approvals_show_an_asserted_presence_as_asserted(case: Case) -> None:
    columns = "stream_seq task_ref input_key action sub principal_level credential_level acr amr authenticated_at"
    answer = (8, "a", "pay", "accept", "ana", "verified", "asserted", "urn:example:loa3", '["pwd","hwk"]', -60_000)
    told = case.asked("approvals", f"{columns} presence_level tool requested_seq token_hash address")
    assert told == [
        (*answer, "asserted", "transfer", 7, T2, "198.51.100.9"),
    ]
    assert case.asked("approvals", columns, task=case.incident.a, sub="ana", iss="https://id.example") == [answer]
    assert case.asked("approvals", columns, task=case.incident.b) == []
    assert case.asked("approvals", columns, sub="eve") == []
    asked = {row[0]: row[1] for row in case.asked("changed_since", "stream_seq payload_sha256", sequence="6")}
    assert case.asked("approvals", "request_sha256") == [(asked[7],)], "the very text that was shown is committed to"


@pytest.mark.requirement("T4")
def test_denied_by_source_counts_every_attempt_with_its_true_reasons(case: Case) -> None:
    columns = "stream_seq last_seq attempts runs reasons address sub jti first_at last_at"
    eve = (12, 13, 5, 2, '{"expired":3,"other-identity-context":2}', "203.0.113.66", "eve", "jti-TE", 65, 70)
    assert case.asked("denied_by_source", columns) == [eve]
    for wanted in ({"address": "203.0.113.66"}, {"sub": "eve"}, {"token": "jti-TE"}, {"task": case.incident.a}):
        assert case.asked("denied_by_source", columns, **wanted) == [eve]
    for other in ({"address": "192.0.2.7"}, {"sub": "ana"}, {"token": "TE"}, {"task": case.incident.b}):
        assert case.asked("denied_by_source", columns, **other) == []


@pytest.mark.requirement("T4")
def test_lapsed_handles_are_those_that_open_though_the_authority_is_gone(case: Case) -> None:
    columns = "stream_seq task_ref standing revocations authority_until status"
    assert case.asked("lapsed_handles", columns, time=SOON) == [
        (2, "a", "revoked", "rev-1", 600_000, "completed"),
        (3, "b", "revoked", "rev-3", 0, "working"),
    ]
    assert case.asked("lapsed_handles", columns, time=LATER) == [(4, "c", "lapsed", None, 600_000, "working")]
    assert case.asked("lapsed_handles", columns, time=LATER, standing="revoked") == []
    assert case.asked("lapsed_handles", columns) == [], "by the clock of now every handle has ended"


@pytest.mark.requirement("T4")
@pytest.mark.requirement("A5")
def test_authority_then_is_the_creating_entrys_and_now_is_what_the_trail_came_to(case: Case) -> None:
    columns = "task_ref then_principal_level then_credential_level then_effect then_reason then_policy_version then_jti"
    columns += " now_standing now_until now_policy_version revocations changes"
    then = ("verified", "verified", "allow", "same-identity-context", "builtin-1")
    assert case.asked("authority_then_and_now", columns, time=SOON) == [
        ("a", *then, "jti-T1", "revoked", 600_000, "v2", "rev-1", 0),
        ("b", *then, "jti-TS", "revoked", 0, "v2", "rev-3", 1),
        ("c", *then, "jti-T2", "valid", 600_000, "v2", None, 0),
        ("g", *then, "jti-TC", "valid", 600_000, "v2", None, 0),
    ]
    (lapsed,) = case.asked("authority_then_and_now", "now_standing now_at", task=case.incident.c, time=LATER)
    assert lapsed == ("lapsed", 800_000)


@pytest.mark.requirement("T4")
def test_disclosures_have_a_row_for_each_payload_that_was_shown(case: Case) -> None:
    columns = "stream_seq n task_ref payload_name payload_sha256 nth times method sub"
    shown = [
        (10, 0, "a", "result", "a1" * 32, 1, 1, "tasks/result", "ana"),
        (10, 1, "a", "error", "a2" * 32, 1, 1, "tasks/result", "ana"),
        (11, 0, "b", "result", "b1" * 32, 1, 1, "tasks/result", "svc"),
    ]
    assert case.asked("disclosures", columns) == shown
    assert case.asked("disclosures", columns, task=case.incident.a) == shown[:2]
    assert case.asked("disclosures", columns, payload_sha256="a2" * 32) == shown[1:2]
    assert case.asked("disclosures", columns, sub="svc", iss="https://id.example") == shown[2:]


@pytest.mark.requirement("A7")
def test_owners_tell_each_steps_owner_a_new_token_and_the_whole_chain_of_delegation(case: Case) -> None:
    columns = "stream_seq type status_after owner_sub sub jti new_token"
    assert case.asked("owners", columns, task=case.incident.a) == [
        (2, "TaskCreated", "working", "ana", "ana", "jti-T1", False),
        (6, "TaskPolled", "working", "ana", "ana", "jti-T1", False),
        (7, "InputRequested", "input_required", "ana", "server:bank", None, False),
        (8, "InputResponded", "input_required", "ana", "ana", "jti-T2", True),
        (8, "TaskResumed", "working", "ana", "ana", "jti-T2", False),
        (9, "TaskCompleted", "completed", "ana", "server:bank", None, False),
        (10, "ResultDisclosed", "completed", "ana", "ana", "jti-T2", False),
    ]
    assert case.asked("owners", "stream_seq owner_sub trigger sub grant_id new_token actors", task=case.incident.c) == [
        (4, "ana", "caller", "ana", None, False, None),
        (14, "ana", "operator", "olga", None, False, None),
        (15, "ana", "caller", "bo", "grant-1", False, None),
        (
            16,
            "ana",
            "caller",
            "ana",
            None,
            True,
            '[{"sub":"agent-1","iss":"https://id.example","level":"verified"},{"sub":"agent-2","level":"claimed"}]',
        ),
    ]


@pytest.mark.requirement("T4")
@pytest.mark.requirement("T8")
def test_responders_are_seen_with_what_they_looked_at_and_why(case: Case) -> None:
    columns = "stream_seq type sub case_id query parameters task_ref payloads shown reason"
    asked = f'{{"task":"{case.incident.a}"}}'
    looked = [
        (24, "QueryRun", "rita", "case-7", "timeline", asked, None, None, 9, None),
        (25, "BundleExported", "rita", "case-7", "task", asked, None, None, 6, "for the bank"),
        (26, "PayloadUnsealed", "rob", None, None, None, "a", '["result"]', None, "what was paid"),
    ]
    assert case.asked("responders", columns) == looked
    assert case.asked("responders", columns, case_id="case-7") == looked[:2]
    assert case.asked("responders", columns, task=case.incident.a) == looked[2:]
    assert case.asked("responders", columns, sub="rita", type="QueryRun") == looked[:1]


@pytest.mark.requirement("T4")
def test_policies_and_revocations_say_what_holds(case: Case) -> None:
    assert case.asked("policies", "stream_seq version until_seq sub reason") == [
        (1, "v1", 21, "olga", "house rules"),
        (21, "v2", None, "olga", "house rules"),
    ]
    assert case.asked("policies", "version", sha256="v2" * 32) == [("v2",)]
    columns = "stream_seq revocation revoked_kind tenant revoked_sub in_force lifted_seq tasks reason"
    leaked = (17, "rev-1", "token", "acme", "", True, None, 1, "leaked")
    left = (18, "rev-2", "principal", "globex", "cy", False, 19, 1, "left")
    gone = (20, "rev-3", "principal", "", "svc", True, None, 1, "left")
    assert case.asked("revocations", columns) == [leaked, left, gone]
    assert case.asked("revocations", columns, in_force="false") == [left]
    assert case.asked("revocations", columns, token="T1".ljust(43, ".")) == [leaked]
    assert case.asked("revocations", columns, sub="svc") == [gone]


@pytest.mark.requirement("T3")
def test_gaps_are_holes_what_was_not_accepted_and_what_the_service_said(case: Case) -> None:
    columns = "stream_seq gap sequences task_ref reason what since until"
    said = (23, "said", None, None, "restart", "polls", 0, 40)
    hole = (27, "hole", 1, None, "missing", "the stream has no message 27", None, None)
    answer = case.asked("gaps", columns)
    assert answer[:2] == [said, hole]
    assert answer[2][:5] == (28, "rejected", 1, "a", "undecodable")
    assert len(answer) == 3
    assert case.asked("gaps", columns, gap="hole") == [hole]


@pytest.mark.parametrize("seed", range(3))
def test_state_as_of_the_end_is_the_state_that_is_kept(tmp_path: Path, seed: int) -> None:
    """The fold in SQL agrees with `rows.read`, which tests compare with `evolve`."""
    trail = mixed(400, seed=seed)
    store = fed(tmp_path / "audit.duckdb", trail)
    query = catalogue()["state_as_of"]
    answer = store.ask(query, read_parameters(query, {"sequence": "400"}), tenant=None, most=1_000)
    names = [one.name for one in answer.columns]
    told = [dict(zip(names, row, strict=True)) for row in answer.rows]
    kept = "status ended_at cancel_requested_at revoked_at expired_at shredded_at grants holds last_seq authority_until"
    store.close()
    with duckdb.connect(tmp_path / "audit.duckdb", read_only=True) as db:
        expected = db.execute(f"SELECT {kept.replace(' ', ', ')} FROM tasks ORDER BY first_seq").fetchall()  # noqa: S608 - a constant
    assert [tuple(row[name] for name in kept.split()) for row in told] == expected


def of_schema_two(path: Path, later: Path) -> None:
    """The file as the schema before this one had it, with the rows of a store of today."""
    with duckdb.connect(path) as db:
        db.execute("CREATE TABLE schema_version (version INTEGER NOT NULL, name VARCHAR NOT NULL)")
        db.execute((PACKAGE / "schema" / "002_audit.sql").read_text(encoding="utf-8"))
        db.execute("INSERT INTO schema_version VALUES (2, '002_audit.sql')")
        db.execute(f"ATTACH '{later}' AS later (READ_ONLY)")
        for table in ("position", "entries", "events", "tasks", "denials", "rejected"):
            columns = db.execute(f"SELECT * FROM {table} LIMIT 0").description  # noqa: S608 - names of our tables
            names = ", ".join(str(one[0]) for one in columns)
            db.execute(f"INSERT INTO {table} SELECT {names} FROM later.{table}")  # noqa: S608 - names of our tables


@pytest.mark.requirement("T6")
def test_a_store_of_the_schema_before_keeps_its_rows_and_becomes_equal_to_a_rebuilt_one(tmp_path: Path) -> None:
    for number, trail in enumerate((Incident().trail, mixed(300, seed=5))):
        rebuilt, old = tmp_path / f"rebuilt{number}.duckdb", tmp_path / f"old{number}.duckdb"
        fed(rebuilt, trail).close()
        of_schema_two(old, rebuilt)
        AuditStore.open(old).close()
        assert contents(old) == contents(rebuilt)
        with duckdb.connect(old, read_only=True) as db:
            assert db.execute("SELECT max(version) FROM schema_version").fetchone() == (SCHEMA_VERSION,)


def test_every_view_and_each_of_its_columns_says_what_it_is(case: Case, tmp_path: Path) -> None:
    opened(tmp_path / "audit.duckdb").close()
    with duckdb.connect(tmp_path / "audit.duckdb", read_only=True) as db:
        views = db.execute("SELECT view_name, comment FROM duckdb_views() WHERE NOT internal").fetchall()
        silent = db.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE comment IS NULL AND table_name IN "
            "(SELECT view_name FROM duckdb_views() WHERE NOT internal)"
        ).fetchall()
    assert len(views) == 12
    assert all(comment for _, comment in views)
    assert silent == []
    assert TRACE in {row[0] for row in case.asked("by_tool", "trace_id")}
