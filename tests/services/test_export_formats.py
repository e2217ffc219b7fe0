"""Exported steps in every format, read back by readers that know nothing of us. Source: issue 4 (T9); RFC 4180, RFC
8259, CloudEvents 1.0.2 with its JSON format and sequence extension, Timesketch's import rules."""

import csv
import io
import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tests.services.steps import AT, HOSTILE, SURROGATE, event_of, every_step, step_of

from tasktrail.events.facts import TaskPolled
from tasktrail.projections.audit.exported import COLUMNS, ExportedStep, flat
from tasktrail.services import parquet
from tasktrail.services.escaping import csv_line, json_line, plain, text_of_cell
from tasktrail.services.export_formats import FORMATS, NAMES, Origin
from tasktrail.services.whole_files import CannotWrite, WillNotOverwrite, whole_file, whole_path

ORIGIN = Origin("urn:tasktrail:trail:TRAIL:2026-01-01T00:00:00.000Z", "0.3.0")
TEXTS = [pytest.param(text, id=f"text {number}") for number, text in enumerate((*HOSTILE, SURROGATE))]
INVISIBLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""But the end of a line."""


def written(name: str, steps: list[ExportedStep]) -> bytes:
    """A whole export."""
    shape = FORMATS[name](ORIGIN)
    return shape.head + b"".join(map(shape.line, steps)) + shape.tail


def as_json(step: ExportedStep) -> dict[str, Any]:
    """What a JSON reader should get of a step; the event is an object."""
    said = dict(zip(NAMES, flat(step), strict=True))
    said["event"] = None if step.row.payload is None else json.loads(step.row.payload)
    return {name: plain(value) if isinstance(value, datetime) else value for name, value in said.items()}


@pytest.mark.requirement("T9")
@pytest.mark.parametrize("name", [*FORMATS])
@pytest.mark.parametrize("text", TEXTS)
def test_whatever_a_stranger_wrote_a_step_stays_on_its_line_and_shows_nothing_invisible(name: str, text: str) -> None:
    """Issue 4: escaped for its format."""
    steps = every_step(text)
    said = written(name, steps)
    assert said.count(b"\n") == len(steps) + FORMATS[name](ORIGIN).further_lines
    lines = said.decode("utf-8").replace("\r\n", "\n")
    assert INVISIBLE.search(lines) is None
    assert name in {"csv", "timesketch-csv"} or said.isascii()


@pytest.mark.requirement("T9")
@pytest.mark.parametrize("text", TEXTS)
def test_json_lines_give_back_every_value(text: str) -> None:
    steps = every_step(text)
    assert [json.loads(line) for line in written("jsonl", steps).splitlines()] == [as_json(step) for step in steps]


@pytest.mark.requirement("T9")
@pytest.mark.parametrize("name", ["csv", "timesketch-csv"])
@pytest.mark.parametrize("text", TEXTS)
def test_no_csv_cell_is_a_formula_and_every_value_comes_back(name: str, text: str) -> None:
    """OWASP, CSV injection: = + - @, tab and carriage return; docs/exports.md says how it is undone."""
    steps = every_step(text)
    header, *rows = csv.reader(io.StringIO(written(name, steps).decode("utf-8"), newline=""), strict=True)
    assert tuple(header[-len(NAMES) :]) == NAMES
    for step, row in zip(steps, rows, strict=True):
        assert not [cell for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))]
        wanted = ["" if value is None else str(plain(value)) for value in flat(step)]
        assert [text_of_cell(cell) for cell in row[-len(NAMES) :]] == wanted


def test_duckdb_reads_the_csv_and_tells_nothing_from_empty_text(tmp_path: Path) -> None:
    file = tmp_path / "one.csv"
    file.write_bytes(csv_line(["a", "b", "c"]) + csv_line([None, "", 'x"\n,']) + csv_line([-5, "=1", "z"]))
    found = duckdb.execute("SELECT * FROM read_csv(?, header=true, nullstr='', allow_quoted_nulls=false)", [str(file)])
    assert found.fetchall() == [(None, "", 'x"\\u000a,'), (-5, "'=1", "z")]


@pytest.mark.requirement("T9")
@pytest.mark.parametrize("text", TEXTS[:-1])
def test_duckdb_reads_back_every_value_and_type_from_parquet(text: str, tmp_path: Path) -> None:
    rows = [flat(step) for step in every_step(text)]
    assert parquet.write(tmp_path / "one.parquet", COLUMNS, [rows[:5], rows[5:]]) == len(rows)
    found = duckdb.read_parquet(str(tmp_path / "one.parquet"))
    assert list(zip(found.columns, map(str, found.types), strict=True)) == [(one.name, one.type) for one in COLUMNS]
    assert found.fetchall() == rows


def test_half_a_character_is_its_escape_in_parquet_which_can_hold_none(tmp_path: Path) -> None:
    rows = [flat(step) for step in every_step(SURROGATE)]
    parquet.write(tmp_path / "one.parquet", COLUMNS, [rows])
    [[sub], *_] = duckdb.read_parquet(str(tmp_path / "one.parquet")).select("sub").fetchall()
    assert sub == "half \\ud83d of it"


@pytest.mark.requirement("T9")
@pytest.mark.parametrize("text", TEXTS)
def test_cloudevents_are_a_batch_with_the_attributes_the_specification_asks_for(text: str) -> None:
    """CloudEvents 1.0.2, sections "Naming conventions" and "Required attributes"; JSON format, section 4."""
    steps = every_step(text)
    batch = json.loads(written("cloudevents", steps))
    assert len(batch) == len(steps)
    for event, step in zip(batch, steps, strict=True):
        assert event["specversion"] == "1.0"
        assert event["data"] == as_json(step)
        assert (event["streamseq"], event.get("entryid")) == (str(step.row.stream_seq), step.row.entry_id)
        attributes = {name: value for name, value in event.items() if name != "data"}
        assert {"id", "source", "type"} <= set(attributes)
        assert "time" not in attributes or datetime.fromisoformat(attributes["time"]).tzinfo is not None
        for name, value in attributes.items():
            assert re.fullmatch("[a-z0-9]{1,20}", name)
            assert isinstance(value, str)
            assert value
            assert INVISIBLE.search(value) is None
    assert json.loads(written("cloudevents", [])) == []


def test_ids_and_sequences_of_cloudevents_are_the_trails_place() -> None:
    """The sequence extension: compared as text it is the order."""
    first, second = (step_of(None, type="x", stream_seq=seq, ord=number) for seq, number in ((9, 12), (10, 0)))
    told = json.loads(written("cloudevents", [first, second]))
    assert [event["id"] for event in told] == ["9:12", "10:0"]
    assert told[0]["sequence"] < told[1]["sequence"]
    assert {event["source"] for event in told} == {ORIGIN.trail}


@pytest.mark.requirement("T9")
def test_timesketch_has_its_three_fields_and_a_time_on_every_line() -> None:
    """Timesketch, "Create timeline from JSON/CSV": message, datetime in ISO 8601, timestamp_desc."""
    polled = step_of(event_of(TaskPolled, "tasks/get"), at_time=AT + timedelta(hours=1))
    hole = every_step()[-1]
    lines = [json.loads(line) for line in written("timesketch", [step_of(None, type=None), polled, hole]).splitlines()]
    times = [datetime.fromisoformat(line["datetime"]) for line in lines]
    assert [at.replace(tzinfo=None) for at in times] == [AT, AT, AT + timedelta(hours=1)]
    assert all(at.utcoffset() == timedelta(0) for at in times)
    assert [line["timestamp_desc"] for line in lines] == [
        "Entry",
        "TaskPolled (first of a run)",
        "has no time of its own: that of the step before",
    ]
    assert lines[1]["message"].startswith(
        "ana | ana at ana via ana (ana at ana acts for it, ana) · verified by tasktrail"
    )
    assert lines[2]["stream_seq"] == 1_044


def test_a_json_line_is_ascii_on_one_line_whatever_it_holds() -> None:
    said = json_line({"at": AT, "bytes": b"\xff", "text": "".join(HOSTILE)})
    assert said.isascii()
    assert said.count(b"\n") == 1
    told = json.loads(said)
    assert (told["at"], told["bytes"], told["text"]) == ("2026-11-22T18:00:00.123Z", "/w==", "".join(HOSTILE))


def test_a_file_appears_whole_for_its_owner_only_and_never_replaces_another(tmp_path: Path) -> None:
    place = tmp_path / "answer.csv"
    with whole_file(place) as file:
        file.write(b"half")
        assert not place.exists()
        file.write(b" and half")
    assert place.read_bytes() == b"half and half"
    assert place.stat().st_mode & 0o777 == 0o600
    with pytest.raises(WillNotOverwrite, match="is there already"), whole_file(place):
        pytest.fail("it was begun")
    assert [one.name for one in tmp_path.iterdir()] == ["answer.csv"]


def test_a_file_that_fails_or_comes_second_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "failed"):
        _ = 1 / 0
    with pytest.raises(WillNotOverwrite), whole_path(tmp_path / "taken"):
        (tmp_path / "taken").write_text("another's")
    with pytest.raises(WillNotOverwrite), whole_path(tmp_path / "link"):
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CannotWrite, match="No such file or directory"), whole_file(tmp_path / "no" / "folder"):
        pytest.fail("it was begun")
    assert {one.name for one in tmp_path.iterdir()} == {"taken", "link"}
    assert (tmp_path / "taken").read_text() == "another's"
