"""Free SQL through a running service and on the data of a stopped one: whose rows it sees, and what is on record.

Source: issue "Forensics" (free SQL, responders are audited); docs/responders.md.
"""

import asyncio
import csv
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from typer.testing import CliRunner

from tasktrail.services.access.policy import shipped
from tasktrail.services.free_sql import SQL_RECORDED, VALUE_RECORDED
from tasktrail.services.terminal import app
from tasktrail.testing.feeding import Feeder, caller, creation
from tasktrail.testing.service import UpProcess, is_gone, wait_for

OMAR, RITA = "omar-s-own-token", "rita-s-own-token"
FOR_EVER = "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT sum(n) FROM r"
CLEAN: dict[str, str | None] = {name: None for name in os.environ if name.startswith(("TASKTRAIL_", "COLUMNS"))}
CONFIGURATION = f"""
[[servers]]
name = "reports"
asserts = true
tenant = "acme"

[[servers]]
name = "vault"
asserts = true
tenant = "globex"

[[operators]]
name = "omar"
sha256 = "{hashlib.sha256(OMAR.encode()).hexdigest()}"
rights = ["read"]

[[operators]]
name = "rita"
sha256 = "{hashlib.sha256(RITA.encode()).hexdigest()}"
rights = ["revoke"]

[responders]
sql_timeout_ms = 3000
sql_rows_max = 50
"""
ONLY_ACME = """
@id("omar-answers-for-acme")
forbid (principal is Operator, action == Action::"readTrail", resource)
when { principal.name == "omar" && resource.tenant != "acme" };
"""
NOT_GLOBEX = """
@id("omar-does-not-see-globex")
forbid (principal is Operator, action == Action::"readTrail", resource)
when { principal.name == "omar" && resource.tenant == "globex" };
"""


class Ran(NamedTuple):
    """What became of a run."""

    code: int
    out: str
    err: str


class Place(NamedTuple):
    """A running service, a task's id in each tenant, and token files."""

    up: UpProcess
    acme: str
    globex: str
    omar: str
    rita: str

    def run(self, *arguments: str, said: str = "") -> Ran:
        return run(*arguments, "--data", str(self.up.data), said=said)

    def sql(self, statement: str, *options: str) -> Any:  # noqa: ANN401 - any JSON
        ran = self.run("sql", statement, "--format", "json", *options)
        assert ran.code == 0, ran
        return json.loads(ran.out)

    def recorded(self, query: str = "sql") -> list[dict[str, Any]]:
        """The `QueryRun`s of this query, oldest first, as the trail holds them."""
        position = json.loads(self.up.get("/readyz", token=False)[1])["parts"]["auditor"]["position"]
        statement = (
            "SELECT v.payload, e.sub, e.tenant FROM events v JOIN entries e USING (stream_seq) "
            "WHERE v.type = 'QueryRun' AND json_extract_string(v.payload, '$.query') = $query ORDER BY stream_seq"
        )

        def fresh() -> Any:  # noqa: ANN401 - any JSON
            answer = self.sql(statement, "--param", f"query={query}")
            return answer if answer["as_of"] >= position else None

        found = wait_for("a copy of the store as it is", fresh)["rows"]
        return [json.loads(payload) | {"by": by, "tenant": tenant} for payload, by, tenant in found]


def run(*arguments: str, said: str = "") -> Ran:
    done = CliRunner().invoke(app, list(arguments), input=said, env=CLEAN)
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return Ran(done.exit_code, done.stdout, done.stderr)


def feed(up: UpProcess, server: str) -> str:
    async def made() -> str:
        feeder = await Feeder.connect(up.adapter(server), server)
        try:
            said = creation(caller(f"{server}-ana"), f"c-{server}", arguments={"of": server})
            return str((await feeder.settled("create", said))["task_id"])
        finally:
            await feeder.close()

    return asyncio.run(made())


def token_file(folder: Path, token: str) -> str:
    file = folder / f"{token}.token"
    file.touch(mode=0o600)
    file.write_text(token + "\n")
    return str(file)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("sql")
    configuration = folder / "tasktrail.toml"
    configuration.write_text(CONFIGURATION)
    with UpProcess(folder / "data", "--config", str(configuration)) as up:
        tasks = feed(up, "reports"), feed(up, "vault")
        yield Place(up, *tasks, token_file(folder, OMAR), token_file(folder, RITA))


@pytest.mark.requirement("T5", "T8")
def test_a_statement_is_answered_and_recorded_with_who_asked_why_and_what_came_of_it(place: Place) -> None:
    statement = "SELECT tool, tenant FROM tasks ORDER BY tenant -- whose?"
    answer = place.sql(statement, "--case", "INC-7", "--as", place.omar)
    assert [column["name"] for column in answer["columns"]] == ["tool", "tenant"]
    assert answer["rows"] == [["report", "acme"], ["report", "globex"]]
    run = place.recorded()[-1]
    assert (run["by"], run["case_id"], run["rows"]) == ("omar", "INC-7", 2)
    assert run["parameters"] == {
        "sql": statement,
        "sql_sha256": hashlib.sha256(statement.encode()).hexdigest(),
        "as_of": str(answer["as_of"]),
        "outcome": "answered",
    }


@pytest.mark.requirement("T8")
def test_a_statement_that_fails_or_is_ended_is_recorded_too(place: Place) -> None:
    for statement, code, outcome in (
        ("SELECT * FROM read_text('/etc/hostname')", 2, "failed"),
        ("DROP TABLE entries", 2, "failed"),
        (FOR_EVER, 2, "ended: time"),
    ):
        ran = place.run("sql", statement)
        assert (ran.code, ran.out) == (code, ""), ran
        assert ran.err.startswith("tasktrail: ")
        run = place.recorded()[-1]
        assert (run["parameters"]["sql"], run["parameters"]["outcome"], run["rows"]) == (statement, outcome, 0)


@pytest.mark.requirement("T5")
def test_an_answer_that_was_cut_says_so_to_the_reader_and_on_the_trail(place: Place) -> None:
    ran = place.run("sql", "SELECT range FROM range(1000)", "--format", "csv")
    assert (len(ran.out.splitlines()), ran.code) == (51, 0)
    assert "cut at its limit of rows, after 50 rows" in ran.err
    assert place.recorded()[-1]["parameters"]["outcome"] == "cut: rows"
    assert len(place.sql("SELECT range FROM range(1000)", "--limit-rows", "7")["rows"]) == 7


@pytest.mark.requirement("T5")
def test_a_statement_sees_the_named_tenants_rows_alone_whatever_it_says(place: Place) -> None:
    """The catalogue, the blocks of the file and every table: what is not in the file cannot be asked for."""
    everything = (
        "SELECT tenant FROM tasks UNION SELECT tenant FROM entries",
        "SELECT DISTINCT split_part(subject, '.', 4) FROM entries",
        "SELECT DISTINCT tenant FROM steps",
    )
    for statement in everything:
        assert place.sql(statement, "--tenant", "acme")["rows"] == [["acme"]]
    found = place.sql("SELECT * FROM entries", "--tenant", "acme")
    assert "globex" not in json.dumps(found)
    run = place.recorded()
    assert [one["parameters"].get("tenant") for one in run][-2:] == ["acme", "acme"]
    assert [one["tenant"] for one in run][-2:] == ["acme", "acme"]


@pytest.mark.requirement("T5", "T8")
def test_who_may_read_one_tenants_trail_alone_gets_nothing_of_another(place: Place) -> None:
    """The policy decides on what was asked for; the denial is on the trail."""
    place.up.order("policy", text=shipped() + ONLY_ACME, version="only-acme", reason="a test")
    try:
        for asked in ((), ("--tenant", "globex")):
            ran = place.run("sql", "SELECT 1", "--as", place.omar, *asked)
            assert (ran.code, ran.out) == (2, ""), ran
            assert "the policy does not permit it (omar-answers-for-acme)" in ran.err
        assert place.sql("SELECT DISTINCT tenant FROM entries", "--as", place.omar, "--tenant", "acme")["rows"] == [
            ["acme"]
        ]
        ran = place.run("archive", "--out", str(place.up.data / "not-there"), "--as", place.omar)
        assert ran.code == 2, ran
    finally:
        place.up.order("policy", text=shipped(), version="shipped-again", reason="a test")
    denied = place.sql("SELECT payload FROM events WHERE type = 'AccessDenied' AND payload LIKE '%operator/%'")["rows"]
    assert len(denied) == 3


def test_a_misspelt_tenant_is_refused_with_the_tenants_that_the_operator_may_see(place: Place) -> None:
    """An answer without rows would look as if nothing had happened; others' names are not for everybody."""
    ran = place.run("sql", "SELECT 1", "--tenant", "acne")
    assert (ran.code, ran.out) == (1, "")
    assert "nothing of a tenant 'acne' is on the trail; there are 'acme', 'globex'. Nothing was run" in ran.err
    place.up.order("policy", text=shipped() + NOT_GLOBEX, version="not-globex", reason="a test")
    try:
        ran = place.run("sql", "SELECT 1", "--tenant", "acne", "--as", place.omar)
        assert (ran.code, ran.out) == (1, "")
        assert "there are 'acme'. Nothing was run" in ran.err
    finally:
        place.up.order("policy", text=shipped(), version="shipped-once-more", reason="a test")
    run_of = "SELECT count(*) AS n FROM events WHERE type = 'QueryRun' AND payload LIKE '%acne%'"
    assert place.sql(run_of)["rows"] == [[0]]


@pytest.mark.requirement("T5")
def test_without_the_right_to_read_nothing_is_run(place: Place) -> None:
    ran = place.run("sql", "SELECT 1", "--as", place.rita)
    assert (ran.code, ran.out) == (2, "")
    assert "it needs `read`" in ran.err


@pytest.mark.requirement("T8")
def test_no_task_id_and_no_token_gets_on_the_trail_by_a_statement(place: Place) -> None:
    """Promise 5: the trail never contains a task id; R4: no secret is stored."""
    ref = place.sql("SELECT task_ref FROM tasks WHERE tenant = 'acme'")["rows"][0][0]
    place.sql(f"SELECT '{place.acme}' AS x, $id AS y", "--param", f"id={place.globex}")
    run = place.recorded()[-1]
    assert run["parameters"]["sql"] == f"SELECT '{ref}' AS x, $id AS y"
    assert place.globex not in json.dumps(run)
    jwt = "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbmEiLCJleHAiOjE3MDAwMDAwMDB9." + "A" * 86
    place.sql(f"SELECT '{jwt}' AS x")
    assert place.recorded()[-1]["parameters"]["sql"].startswith("withheld, it shows: ")
    entries = place.sql("SELECT decode(body) AS said FROM entries ORDER BY stream_seq DESC")
    assert place.acme not in json.dumps(entries)
    assert jwt not in json.dumps(entries)


@pytest.mark.requirement("T8")
def test_what_is_recorded_is_cut_last_so_that_no_part_of_an_id_or_a_credential_is_left(place: Place) -> None:
    """Of what stands across the cut, a part could be told from nothing."""
    ref = place.sql("SELECT task_ref FROM tasks WHERE tenant = 'acme'")["rows"][0][0]

    def across(most: int, text: str) -> str:
        return "-" * (most - 20) + " " + text

    def said(text: str) -> dict[str, str]:
        place.sql(f"SELECT $id {across(SQL_RECORDED - 11, text)}", "--param", f"id={across(VALUE_RECORDED, text)}")
        return dict(place.recorded()[-1]["parameters"])

    found = said(place.acme)
    assert (len(found["sql"]), len(found["param.id"])) == (SQL_RECORDED, VALUE_RECORDED)
    assert [found[name][-19:] for name in ("sql", "param.id")] == [ref[:19], ref[:19]]
    assert place.acme[:8] not in str(found)
    key = "AKIA" + hashlib.sha256(b"no one's").hexdigest()[:16].upper()
    for told in (said(key)[name] for name in ("sql", "param.id")):
        assert told == "withheld, it shows: aws_access_key_id"


@pytest.mark.requirement("T8")
def test_readings_are_recorded_in_the_case_that_was_named(place: Place) -> None:
    """`--case`, its environment variable, and the header of HTTP; tasks, timeline and the operators' lists alike."""
    assert place.run("tasks", "--case", "INC-8", "--as", place.omar, "--json").code == 0
    assert place.run("timeline", "-", "--case", "INC-8", "--json", said=place.acme).code == 0
    done = CliRunner().invoke(
        app, ["tasks", "--json", "--data", str(place.up.data)], env=CLEAN | {"TASKTRAIL_CASE": "Fall Ü-9"}
    )
    assert done.exit_code == 0, done.stderr
    tasks, timeline = place.recorded("tasks"), place.recorded("timeline")
    assert [(one["by"], one["case_id"]) for one in tasks[-2:]] == [("omar", "INC-8"), ("responder", "Fall Ü-9")]
    assert timeline[-1]["case_id"] == "INC-8"
    for bad in ("x" * 201, "a\nb", "a\x1b[31m"):
        ran = place.run("tasks", "--case", bad)
        assert (ran.code, ran.out) == (2, "")
        assert "at most 200 printable characters" in ran.err


@pytest.mark.requirement("T5")
def test_at_most_two_statements_run_and_the_service_does_not_notice_what_becomes_of_them(place: Place) -> None:
    """While two run for ever, a third is told to come again, readings are served, and afterwards nothing is left."""
    before = {int(one) for one in _children(place.up.pid)}
    codes: list[int] = []
    asked = msgspec.json.encode({"sql": FOR_EVER})
    threads = [threading.Thread(target=lambda: codes.append(place.up.post("/api/v1/sql", asked)[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_for("two processes", lambda: len(_children(place.up.pid)) == len(before) + 2)
    status, answer = place.up.post("/api/v1/sql", msgspec.json.encode({"sql": "SELECT 1"}))
    assert (status, json.loads(answer)["reason"], json.loads(answer)["retriable"]) == (429, "busy", True)
    assert place.run("sql", "SELECT 1").code == 3
    assert place.run("tasks", "--json").code == 0
    for thread in threads:
        thread.join(60)
    assert codes == [422, 422]
    for pid in set(map(int, _children(place.up.pid))) - before:
        assert is_gone(pid)
    assert place.sql("SELECT 1")["rows"] == [[1]]


def _children(pid: int) -> list[str]:
    found: list[str] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += (thread / "children").read_text(encoding="ascii").split()
    return found


def test_http_refuses_what_is_no_question(place: Place) -> None:
    for body in (
        b"{}",
        b'{"sql": ""}',
        b'{"sql": "SELECT 1", "more": 1}',
        b'{"sql": "SELECT 1\\u0000; SELECT 2"}',
        b'{"sql": "SELECT 1", "parameters": {"a-b": 1}}',
        b'{"sql": "SELECT 1", "parameters": {"a": "' + b"x" * 5_000 + b'"}}',
        b'{"sql": "SELECT 1", "parameters": {"a": [1]}}',
        b'{"sql": "' + b"x" * 33_000 + b'"}',
        b'{"sql": 1}',
        b"SELECT 1",
    ):
        status, answer = place.up.post("/api/v1/sql", body)
        assert status == 400, (body[:60], answer)
    assert place.up.post("/api/v1/sql", b'{"sql": "' + b"x" * 70_000 + b'"}')[0] == 413
    assert place.up.post("/api/v1/sql", b'{"sql": "SELECT 1"}', token=False)[0] == 401


def test_the_answer_is_printed_safely_in_each_format(place: Place) -> None:
    statement = "SELECT chr(27) || '[31m' AS hostile, '=1+1' AS formula, NULL AS nothing, 7 AS seven, 7 AS seven"
    table = place.run("sql", statement)
    assert "\x1b" not in table.out
    assert "\\u001b[31m" in table.out
    lines = place.run("sql", statement, "--format", "jsonl").out.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"hostile": "\x1b[31m", "formula": "=1+1", "nothing": None, "seven": 7, "seven_1": 7}
    ]
    rows = list(csv.reader(place.run("sql", statement, "--format", "csv").out.splitlines()))
    assert rows[1] == ["\\u001b[31m", "'=1+1", "", "7", "7"]


def test_a_statement_comes_from_a_file_or_from_standard_input(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "question.sql"
    file.write_text("SELECT $name AS name\n")
    assert place.run("sql", "--file", str(file), "--param", "name=a=b", "--format", "jsonl").out == '{"name":"a=b"}\n'
    assert place.run("sql", "-", "--format", "jsonl", said="SELECT 2 AS n").out == '{"n":2}\n'
    for wrong in ((), ("SELECT 1", "--file", str(file)), ("SELECT 1", "--param", "x")):
        assert place.run("sql", *wrong).code == 2


@pytest.mark.requirement("T8")
def test_a_copy_for_another_process_is_lent_and_on_record(place: Place) -> None:
    status, answer = place.up.post("/api/v1/snapshots", b"")
    assert status == 200, answer
    lent = json.loads(answer)
    assert Path(lent["path"]).is_relative_to(place.up.data)
    assert Path(lent["path"]).parent.stat().st_mode & 0o077 == 0
    assert place.recorded("snapshot")[-1]["parameters"] == {"as_of": str(lent["as_of"])}


@pytest.mark.requirement("T5", "T8")
def test_on_the_data_of_a_stopped_service_it_runs_in_the_same_sandbox_and_is_on_no_record(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with UpProcess(data) as up:
        feed(up, "reports")
        up.wait_until_ready()
        wait_for("the task in the store", lambda: '"report"' in run("tasks", "--json", "--data", str(data)).out)
        assert up.stop() == 0
    assert not (data / "snapshots").exists()
    told = f"no service runs on {data}: read from its store; this reading is not recorded on the trail"
    ran = run("sql", "SELECT count(*) AS n FROM tasks", "--format", "jsonl", "--data", str(data))
    assert (ran.out, ran.code) == ('{"n":1}\n', 0)
    assert told in ran.err
    misspelt = run("sql", "SELECT count(*) AS n FROM tasks", "--tenant", "x", "--data", str(data))
    assert (misspelt.code, misspelt.out) == (1, ""), "a count of 0 would look as if nothing had happened"
    assert run("sql", "SELECT * FROM read_text('/etc/hostname')", "--data", str(data)).code == 2
    assert run("sql", "SELECT 1", "--data", str(tmp_path / "nothing")).code == 2
