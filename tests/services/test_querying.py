"""Named queries asked of a real `tasktrail up`, over HTTP and from the command line, and of what it leaves. Source:
issue 4 (T4, T8): each query of the catalogue, in each format; long ones page; every answer is an entry first."""

import base64
import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tests.services.asked_place import HOLDER, SUBJECT, Place, asked_place, run
from tests.services.scene import keep, play

from tasktrail.projections.audit.named import Kind, NamedQuery, catalogue
from tasktrail.services import terminal_query
from tasktrail.services.escaping import text_of_cell
from tasktrail.services.trail_reading import open_trail

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbmEifQ.c2lnbmF0dXJl"
VALUES = {
    Kind.TEXT: "ana",
    Kind.INTEGER: "7",
    Kind.TIME: "2036-01-01T00:00:00Z",
    Kind.SEQUENCE: "8",
    Kind.BOOLEAN: "true",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with asked_place(tmp_path_factory.mktemp("querying")) as one:
        yield one


def needed(query: NamedQuery, task: str) -> dict[str, str]:
    """The fewest parameters with which a query can be asked."""
    chosen = [one for one in query.parameters if one.required or one.name in query.one_of[:1]]
    return {one.name: task if one.kind is Kind.REF else VALUES[one.kind] for one in chosen}


def asked(
    place: Place, name: str, given: dict[str, str] | None = None, *, limit: int = 100, after: int = 0, **further: str
) -> dict[str, Any]:
    """An answer over HTTP."""
    parameters = (given or {}) | further
    said = {"parameters": parameters, "limit": limit, "after": after}
    status, body = place.post(f"queries/{name}", said)
    assert status == 200, body
    answer: dict[str, Any] = json.loads(body)
    return answer


@pytest.mark.requirement("T4")
@pytest.mark.parametrize("name", sorted(catalogue()))
def test_every_query_of_the_catalogue_is_asked_over_http_and_the_command_line(name: str, place: Place) -> None:
    parameters = needed(catalogue()[name], place.ana)
    answer = asked(place, name, parameters, limit=10_000)
    names = [column["name"] for column in answer["columns"]]
    assert len(names) == len(set(names))
    assert all(len(row) == len(names) for row in answer["rows"])
    ran = place.run("query", name, *(f"{key}={value}" for key, value in parameters.items()), "--format", "json")
    told = ran.json()
    assert told["columns"] == answer["columns"]
    places = [row[names[0]] for row in told["rows"] if row[names[0]] <= answer["as_of"]]
    assert places[: len(answer["rows"])] == [row[0] for row in answer["rows"]]
    shown = place.run("query", name, *(f"{key}={value}" for key, value in parameters.items()), "--format", "table")
    assert shown.code == 0
    described = place.run("query", name, "--describe").out
    assert all(one.name in described for one in catalogue()[name].parameters)


@pytest.mark.requirement("T8")
def test_an_answer_is_recorded_with_its_parameters_rows_and_case(place: Place) -> None:
    ran = place.run("query", "by_principal", "--param", "sub=ben", "tenant=default", "--limit", "1", "--case", "INC-7")
    assert (ran.code, ran.out.count("\n")) == (0, 1)
    [last, *_] = place.queries("by_principal")
    assert last["parameters"] == {"sub": "ben", "tenant": "default"}
    assert (last["rows"], last["case_id"]) == (1, "INC-7")


@pytest.mark.requirement("T8")
async def test_a_task_id_is_turned_into_its_reference_and_recorded_nowhere(place: Place) -> None:
    """Design, promise 5."""
    ran = place.run("query", "timeline", "task=-", said=place.eve + "\n")
    assert (ran.code, ran.err) == (0, "")
    reference = json.loads(ran.out.splitlines()[0])["task_ref"]
    assert place.queries("timeline")[0]["parameters"] == {"task": reference}
    assert place.run("query", "timeline", f"task={reference}").out == ran.out
    assert "shell's history" in place.run("query", "timeline", f"task={place.eve}").err
    mistaken = place.run("query", "by_token", f"token={place.eve}")
    assert (mistaken.code, mistaken.out) == (2, "")
    assert "'token' is given the id of a task, which opens it" in mistaken.err
    assert place.run("query", "by_token", f"token={reference}").code == 0
    async with open_trail(place.up.data) as trail:
        bodies = b"".join([message.body async for messages in trail.messages() for message in messages])
    assert place.eve.encode() not in bodies + ran.out.encode()


@pytest.mark.requirement("R4")
async def test_a_token_is_asked_about_by_its_digest_and_recorded_nowhere(place: Place) -> None:
    ran = place.run("query", "by_token", "token=-", said=JWT)
    assert ran.code == 0, ran
    token_hash = base64.urlsafe_b64encode(hashlib.sha256(JWT.encode()).digest()).rstrip(b"=").decode()
    assert place.queries("by_token")[0]["parameters"] == {"token": token_hash}
    refused = place.run("query", "by_token", f"token={JWT}")
    status, body = place.post("queries/by_token", {"parameters": {"token": JWT}})
    assert (refused.code, status) == (2, 400)
    assert "on standard input" in refused.err
    assert JWT not in refused.err + body.decode()
    async with open_trail(place.up.data) as trail:
        bodies = b"".join([message.body async for messages in trail.messages() for message in messages])
    assert JWT.encode() not in bodies + place.up.output().encode()


@pytest.mark.requirement("T4")
def test_pages_follow_each_other_and_all_of_them_are_the_answer(place: Place) -> None:
    whole = asked(place, "changed_since", sequence="0", limit=10_000)["rows"]
    rows: list[list[Any]] = []
    after = 0
    while after < whole[-1][0]:
        page = asked(place, "changed_since", sequence="0", limit=2, after=after)
        assert len(page["rows"]) >= 2
        rows += page["rows"]
        after = page["after"]
    assert rows[: len(whole)] == whole
    one = place.run("query", "changed_since", "sequence=0", "--limit", "2")
    last = json.loads(one.out.splitlines()[-1])["stream_seq"]
    assert one.err == f"tasktrail: there is more: --after {last}, or --all\n"


@pytest.mark.requirement("T4")
def test_all_pages_are_as_of_the_first_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page is an entry of its own, which the same answer would go on to tell of, for ever."""
    monkeypatch.setattr(terminal_query, "ROWS_MAX", 2)
    end = asked(place, "changed_since", sequence="0", limit=1)["as_of"]
    every = place.run("query", "changed_since", "sequence=0", "--all", "--format", "json")
    told = every.json()
    assert (every.err, told["more"]) == ("", False)
    assert told["as_of"] in {end, end + 1}
    places = [row["stream_seq"] for row in told["rows"]]
    assert sorted(set(places)) == [*range(1, told["as_of"] + 1)]


@pytest.mark.requirement("T4")
def test_each_format_is_read_back_by_a_reader_that_knows_nothing_of_us(place: Place, tmp_path: Path) -> None:
    """A caller named itself as a formula, over two lines, turned round, with a backslash at the end."""
    wanted = asked(place, "by_principal", sub=SUBJECT, tenant="default")
    names = [column["name"] for column in wanted["columns"]]
    command = ("query", "by_principal", f"sub={SUBJECT}", "tenant=default")
    files = {form: tmp_path / f"answer.{form}" for form in ("json", "jsonl", "csv", "parquet")}
    for form, file in files.items():
        ran = place.run(*command, "--out", str(file))
        assert (ran.code, ran.out, ran.err) == (0, "", ""), form
        assert file.stat().st_mode & 0o777 == 0o600
    objects = [dict(zip(names, row, strict=True)) for row in wanted["rows"]]
    assert len(objects) > 1
    assert json.loads(files["json"].read_bytes())["rows"] == objects
    assert [json.loads(line) for line in files["jsonl"].read_bytes().splitlines()] == objects
    header, *rows = csv.reader(io.StringIO(files["csv"].read_bytes().decode(), newline=""), strict=True)
    assert header == names
    values = [["" if value is None else str(value) for value in row] for row in wanted["rows"]]
    assert [[text_of_cell(cell) for cell in row] for row in rows] == values
    found = duckdb.read_parquet(str(files["parquet"]))
    assert [(name, str(kind)) for name, kind in zip(found.columns, found.types, strict=True)] == [
        (column["name"], column["type"]) for column in wanted["columns"]
    ]
    at = names.index("sub")
    assert {row[at] for row in found.fetchall()} == {SUBJECT}
    assert place.run(*command, "--out", str(files["csv"])).code == 2


def test_a_table_cuts_nothing_and_steers_no_terminal(place: Place) -> None:
    """No value is cut: however narrow, all of each leaf hash is there."""
    wanted = asked(place, "by_principal", sub=SUBJECT, tenant="default")
    names = [column["name"] for column in wanted["columns"]]
    ran = place.run("query", "by_principal", f"sub={SUBJECT}", "tenant=default", "--format", "table", width=60)
    joined = "".join(line.strip().removeprefix("leaf_sha256").strip() for line in ran.out.splitlines())
    for row in wanted["rows"]:
        assert row[names.index("leaf_sha256")] in joined
    assert "asserted by the MCP server" in ran.out
    assert not {"\u202e", "\x1b"} & set(ran.out)
    assert max(map(len, ran.out.splitlines())) <= 60
    empty = place.run("query", "by_principal", "sub=nobody", "--format", "table")
    assert empty == (0, "", "tasktrail: nothing on the trail answers to this\n")


def test_the_catalogue_is_told(place: Place) -> None:
    listed = run("query")
    assert all(name in listed.out for name in catalogue())
    status, body = place.up.get("/api/v1/queries")
    assert (status, json.loads(body)) == (200, run("query", "--json").json())
    one = run("query", "timeline", "--describe", "--json").json()
    assert one in json.loads(body)
    assert [parameter["name"] for parameter in one["parameters"]] == ["task"]


def test_what_is_wrong_with_a_question_is_one_line(place: Place, tmp_path: Path) -> None:
    for arguments, said in (
        (("nothing_like_it",), "there is no query 'nothing_like_it'"),
        (("by_principal",), "sub is missing"),
        (("by_principal", "sub"), "NAME=VALUE"),
        (("by_principal", "sub=a", "sub=b"), "given more than once"),
        (("by_principal", "sub=a", "colour=red"), "takes no 'colour'"),
        (("by_principal", "sub=a", "tenant="), "tenant is empty"),
        (("by_principal", "sub=-", "iss=-"), "holds one value"),
        (("by_principal", "sub=a", "--format", "xml"), "there is no format 'xml'"),
        (("by_principal", "sub=a", "--format", "parquet"), "needs a file"),
        (("by_principal", "sub=a", "--format", "table", "--out", str(tmp_path / "t")), "is for a terminal"),
    ):
        ran = place.run("query", *arguments)
        assert (ran.code, ran.out) == (2, ""), ran
        assert said in ran.err
        assert ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_a_request_is_said(place: Place) -> None:
    for path, said, status in (
        ("queries/nothing_like_it", {}, 404),
        ("queries/by_principal", {"parameters": {}}, 400),
        ("queries/by_principal", {"parameters": {"sub": "a"}, "limit": 0}, 400),
        ("queries/by_principal", {"parameters": {"sub": "a"}, "after": -1}, 400),
        ("queries/by_principal", {"parameters": {"sub": "a"}, "colour": 1}, 400),
        ("queries/by_principal", {"parameters": {"sub": "a" * 5_000}}, 400),
        ("exports", {"format": "xml"}, 400),
        ("exports", {"format": "csv", "from_seq": 0}, 400),
    ):
        assert place.post(path, said)[0] == status, (path, said)


@pytest.mark.requirement("T8")
def test_who_may_not_read_is_told_nothing_and_the_refusal_is_recorded(place: Place) -> None:
    status, body = place.post("queries/by_principal", {"parameters": {"sub": "ana"}}, token=HOLDER)
    assert (status, json.loads(body)["written"]) == (403, "denial")
    methods = [step["event"]["method"] for step in place.steps() if step["type"] == "AccessDenied"]
    assert "operator/query/by_principal" in methods


@pytest.mark.requirement("T4")
def test_a_stopped_services_store_answers_and_says_that_it_is_not_recorded(tmp_path: Path) -> None:
    scene = play()
    data = keep(scene, tmp_path)
    note = f"tasktrail: no service runs on {data}: read from its store; this reading is not recorded on the trail\n"
    unknown = run("query", "timeline", "task=-", "--data", str(data), said="q" * 32)
    assert (unknown.code, unknown.out) == (1, "")
    assert unknown.err.endswith("tasktrail: no task on this trail has this reference or id\n")
    by_reference = run("query", "timeline", f"task={scene.ref}", "--data", str(data), "--format", "table")
    assert (by_reference.code, by_reference.err) == (0, note)
    assert "not accepted" in by_reference.out or "undecodable" in by_reference.out
    assert "\u202e" not in by_reference.out
    mistaken = run("query", "owners", "task=nosuch", "--data", str(data))
    assert (mistaken.code, mistaken.out) == (1, ""), "an empty answer would look as if nothing had happened"
    missing = run("query", "gaps", "--data", str(tmp_path / "nowhere"))
    assert (missing.code, missing.out) == (2, "")
    assert "no tasktrail data in" in missing.err
