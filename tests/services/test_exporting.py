"""Exports from a real `tasktrail up`, over HTTP and from the command line, and from what it leaves. Source: issue 4
(T8, T9): each line with sequence and leaf hash; every export is an entry; a stopped service's store is read."""

import asyncio
import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest
from tests.services.asked_place import ANA, HOLDER, SUBJECT, Place, asked_place
from tests.services.scene import keep, open_store, play

from tasktrail.events.errors import InvalidRequest, Unavailable
from tasktrail.projections.audit.exported import Scope, measure, portions
from tasktrail.services import responder
from tasktrail.services.escaping import text_of_cell
from tasktrail.services.exporting import EXPORTS_MAX, Export, Exporting
from tasktrail.services.exports import ExportOrder
from tasktrail.services.operators import Asker
from tasktrail.services.orders import NoSuchTask
from tasktrail.services.query_sources import StoreQueries, Taken, open_queries
from tasktrail.services.service import Service
from tasktrail.services.settings import load
from tasktrail.services.sources import Unreachable
from tasktrail.services.terminal_query import counted
from tasktrail.services.trail_reading import open_trail


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with asked_place(tmp_path_factory.mktemp("exporting")) as one:
        yield one


def rows_of(path: Path, form: str) -> list[dict[str, Any]]:
    """What an independent reader gets of a file: where each step stands, and who."""
    if form == "parquet":
        found = duckdb.read_parquet(str(path))
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]
    if form.endswith("csv"):
        with path.open(encoding="utf-8", newline="") as file:
            read = [{name: text_of_cell(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
        return [row | {"stream_seq": int(row["stream_seq"]), "ord": int(row["ord"])} for row in read]
    if form == "cloudevents":
        return [event["data"] for event in json.loads(path.read_bytes())]
    documents = [json.loads(line) for line in path.read_bytes().splitlines()]
    if form == "ocsf":
        who = [event.get("actor", {}).get("user", {}).get("uid") for event in documents]
        return [event["unmapped"]["tasktrail"] | {"sub": sub} for event, sub in zip(documents, who, strict=True)]
    return documents


FORMATS = ["jsonl", "csv", "parquet", "ocsf", "cloudevents", "timesketch", "timesketch-csv"]


@pytest.mark.requirement("T9")
@pytest.mark.parametrize("form", FORMATS)
async def test_every_format_holds_every_step_with_its_place_and_is_recorded(
    form: str, place: Place, tmp_path: Path
) -> None:
    """The leaf hashes are compared with the bytes of the stream itself."""
    out = tmp_path / "file"
    ran = place.run("export", "--format", form, "--out", str(out), "--to-seq", "8", "--case", "INC-9")
    rows = rows_of(out, form)
    assert (ran.code, ran.out, ran.err) == (0, "", f"tasktrail: {len(rows)} steps are in {out}\n")
    assert out.stat().st_mode & 0o777 == 0o600
    leaves: dict[int, tuple[str, str]] = {}
    async with open_trail(place.up.data) as trail:
        async for messages in trail.messages(1, 8):
            for message in messages:
                leaves[message.stream_seq] = (message.msg_id or "", hashlib.sha256(message.body).hexdigest())
    assert {row["stream_seq"]: (row["entry_id"], row["leaf_sha256"]) for row in rows} == leaves
    assert SUBJECT in [row["sub"] for row in rows]
    recorded = place.queries("export")[0]
    assert recorded["parameters"] == {"format": form, "to_seq": "8"}
    assert (recorded["rows"], recorded["case_id"]) == (len(rows), "INC-9")


@pytest.mark.requirement("T8")
async def test_a_task_is_exported_by_its_id_from_standard_input_and_the_id_is_nowhere(
    place: Place, tmp_path: Path
) -> None:
    """Design, promise 5: the trail never contains a task id."""
    out = tmp_path / "task.jsonl"
    assert place.run("export", "--format", "jsonl", "--out", str(out), "--task", "-", said=place.ana + "\n").code == 0
    rows = rows_of(out, "jsonl")
    kinds = [row["type"] for row in rows]
    assert kinds[0] == "TaskCreated"
    assert {"TaskPolled", "AccessDenied", "CancelRequested"} <= set(kinds)
    assert {row["task_ref"] for row in rows if row["kind"] != "denied"} == {rows[0]["task_ref"]}
    again = tmp_path / "again.jsonl"
    by_reference = ("--task", rows[0]["task_ref"])
    assert place.run("export", "--format", "jsonl", "--out", str(again), *by_reference).code == 0
    assert again.read_bytes() == out.read_bytes()
    assert place.queries("export")[0]["parameters"] == {"format": "jsonl", "task_ref": rows[0]["task_ref"]}
    async with open_trail(place.up.data) as trail:
        bodies = b"".join([message.body async for messages in trail.messages() for message in messages])
    assert place.ana.encode() not in bodies + out.read_bytes()


def test_scopes_are_bounds_in_sequence_time_and_tenant(place: Place) -> None:
    everything = [step for step in place.steps() if step["stream_seq"] <= 8]

    def found(**scope: object) -> list[dict[str, Any]]:
        status, body = place.post("exports", {"format": "jsonl", "to_seq": 8, **scope})
        assert status == 200, body
        return [json.loads(line) for line in body.splitlines()]

    assert found() == everything
    assert found(from_seq=3, to_seq=5) == [step for step in everything if 3 <= step["stream_seq"] <= 5]
    moment = everything[3]["recorded_at"]
    assert found(since=moment) == [step for step in everything if step["recorded_at"] >= moment]
    assert found(until=moment) == [step for step in everything if step["recorded_at"] < moment]
    assert found(since=moment.replace("Z", "+00:00")) == found(since=moment)
    assert found(tenant="default") == [step for step in everything if step["tenant"] == "default"]
    assert found(tenant="nobody") == []


def test_the_stream_says_what_it_is_before_it_comes(place: Place) -> None:
    running = responder.find(place.up.data)
    assert running is not None
    headers = {"Authorization": f"Bearer {responder.read_token(place.up.data)}"}
    answer = httpx.post(f"{running.url}/api/v1/exports", json={"format": "csv", "to_seq": 3}, headers=headers)
    assert answer.headers["content-type"].startswith("text/csv; charset=utf-8")
    assert answer.headers["content-disposition"] == 'attachment; filename="tasktrail-export.csv"'
    assert int(answer.headers["tasktrail-rows"]) == answer.text.count("\r\n") - 1
    assert int(answer.headers["tasktrail-as-of"]) >= 8
    assert answer.headers["cache-control"] == "no-store"
    schema = httpx.get(f"{running.url}/schema/openapi.json", headers=headers).json()
    assert {"/api/v1/exports", "/api/v1/queries", "/api/v1/queries/{name}"} <= set(schema["paths"])


@pytest.mark.requirement("T8")
def test_who_may_not_read_gets_nothing_and_the_refusal_is_recorded(place: Place) -> None:
    status, body = place.post("exports", {"format": "jsonl"}, token=HOLDER)
    assert (status, json.loads(body)["written"]) == (403, "denial")
    [denied] = [step for step in place.steps() if step["sub"] == "olaf"]
    assert (denied["type"], denied["event"]["method"]) == ("AccessDenied", "operator/export")


def test_what_is_wrong_is_one_line_and_leaves_no_file(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "file"
    for arguments, said in (
        (("--format", "xml"), "--format"),
        (("--format", "csv", "--since", "yesterday"), "--since"),
        (("--format", "csv", "--from-seq", "9", "--to-seq", "3"), "ends before it begins"),
        (("--format", "csv", "--case", "\n"), "case"),
    ):
        ran = place.run("export", "--out", str(out), *arguments)
        assert (ran.code, ran.out) == (2, ""), ran
        assert said in ran.err
        assert ran.err.count("\n") == 1
    out.write_text("mine")
    ran = place.run("export", "--out", str(out), "--format", "csv")
    assert (ran.code, out.read_text()) == (2, "mine")
    assert ran.err == f"tasktrail: {out} is there already and is not overwritten; name another file\n"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.requirement("T9")
@pytest.mark.parametrize("form", FORMATS)
def test_a_stopped_services_store_is_exported_and_says_that_it_is_not_recorded(form: str, tmp_path: Path) -> None:
    """A trail with every kind of trouble: refusals, a gap, a message that is no entry, a hostile subject."""
    scene = play()
    data = keep(scene, tmp_path)
    with open_queries(data, "", None, "") as source, source.export(ExportOrder(format=form)) as taken:  # type: ignore[arg-type]
        assert (
            source.note == f"no service runs on {data}: read from its store; this reading is not recorded on the trail"
        )
        out = tmp_path / "file"
        out.write_bytes(b"".join(taken.chunks))
    rows = rows_of(out, form)
    assert len(rows) == taken.rows == 24
    assert [row["stream_seq"] for row in rows] == sorted(row["stream_seq"] for row in rows)
    bodies = {message.stream_seq: message.body for message in scene.trail.messages}
    assert {row["leaf_sha256"] for row in rows} == {hashlib.sha256(body).hexdigest() for body in bodies.values()}


async def test_exports_are_counted_from_when_they_begin_until_they_are_let_go(tmp_path: Path) -> None:
    """However many begin together; and a caller who is gone before the first byte has a place no longer."""
    service = Service(load({}, data=tmp_path / "data"))
    await service.start()
    try:
        exporting, asker = Exporting(service), Asker(token_hash="o" * 43, address="203.0.113.5")
        order = ExportOrder(format="csv")

        async def begin_all() -> list[Export]:
            begun = [exporting.begin(order, asker) for _ in range(EXPORTS_MAX + 2)]
            done = await asyncio.gather(*begun, return_exceptions=True)
            assert [type(one) for one in done] == [Export] * EXPORTS_MAX + [Unavailable] * 2, done
            return [one for one in done if isinstance(one, Export)]

        whole, in_part, *unread = await begin_all()
        assert len([chunk async for chunk in whole.chunks]) > 1
        assert await anext(in_part.chunks)
        del in_part, unread
        for _ in range(EXPORTS_MAX + 1):
            with pytest.raises(InvalidRequest):
                await exporting.begin(ExportOrder(format="csv", from_seq=9, to_seq=3), asker)
            given_up = asyncio.create_task(exporting.begin(order, asker))
            await asyncio.sleep(0)
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
        assert len(await begin_all()) == EXPORTS_MAX
    finally:
        await service.stop()


def test_however_it_is_cut_into_portions_an_export_holds_what_was_counted(tmp_path: Path) -> None:
    scene = play()
    store = open_store(scene, tmp_path / "audit.duckdb")
    scopes = [Scope(), Scope(tenant="acme"), Scope(task_ref=scene.ref), Scope(from_seq=5, to_seq=9), Scope(tenant="x")]
    for scope in scopes:
        extent = measure(store, scope)
        steps = [step for portion in portions(store, scope, extent) for step in portion]
        assert len(steps) == extent.rows
        if scope.tenant:
            assert {step.row.tenant for step in steps} - {None} <= {scope.tenant}
    one_task = Scope(task_ref=scene.ref)
    seen = {step.row.stream_seq for portion in portions(store, one_task, measure(store, one_task)) for step in portion}
    timeline = store.timeline(scene.ref)
    assert timeline is not None
    assert seen == {step.stream_seq for step in timeline.steps}
    store.close()


def test_an_id_is_told_from_a_reference_by_the_key_alone(tmp_path: Path) -> None:
    """They look alike: what the store knows is a reference, everything else is taken for an id; it may be neither."""
    scene = play()
    data = keep(scene, tmp_path)
    with open_queries(data, "", None, "") as source:
        assert isinstance(source, StoreQueries)
        for task in (scene.ref, scene.task_id):
            with source.export(ExportOrder(format="jsonl", task=task)) as taken:
                assert taken.rows == 19
        with pytest.raises(NoSuchTask), source.export(ExportOrder(format="jsonl", task="q" * 32)):
            pass
    assert ANA["iss"]


@pytest.mark.parametrize("form", [one for one in FORMATS if one != "parquet"])
def test_an_export_with_fewer_steps_than_were_announced_is_none(form: str, tmp_path: Path) -> None:
    """A proxy in between may end a response well that the service broke off."""
    scene = play()
    data = keep(scene, tmp_path)
    with open_queries(data, "", None, "") as source:
        with source.export(ExportOrder(format=form, to_seq=9)) as taken:  # type: ignore[arg-type]
            whole = b"".join(counted(taken, form))
        short = whole.replace(b"\r\n", b"\n").rpartition(b"\n")[0].rpartition(b"\n")[0]
        with pytest.raises(Unreachable, match="of 13 steps came, so nothing of it was kept"):
            list(counted(Taken(taken.rows, iter([short])), form))
