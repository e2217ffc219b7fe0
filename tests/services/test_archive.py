"""The trail as Parquet files: exact, continued, never overwritten, read back. Source: issue "Forensics"; T9."""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import duckdb
import msgspec
import pytest
from tests.projections.audit.histories import Trail, mixed
from typer.testing import CliRunner

from tasktrail.projections.audit.columns import Message
from tasktrail.services import archive
from tasktrail.services.archive import ArchiveDamaged, Manifest, NoArchive, manifest, read, write
from tasktrail.services.terminal import app
from tasktrail.services.trail_reading import TrailReader, open_trail
from tasktrail.services.whole_files import WillNotOverwrite
from tasktrail.testing.feeding import Feeder, caller, creation
from tasktrail.testing.service import UpProcess

CREATED = datetime(2026, 1, 1, tzinfo=UTC)

pytestmark = pytest.mark.requirement("T9")


class Held:
    """A trail that is held here: of `TrailReader`, what an archive reads of it."""

    def __init__(self, messages: Sequence[Message], created: datetime = CREATED) -> None:
        self._messages, self.created = messages, created
        self.last_seq = messages[-1].stream_seq if messages else 0

    async def messages(self, first: int = 1, last: int = 0, *, batch: int = 1_000) -> AsyncGenerator[list[Message]]:
        wanted = [one for one in self._messages if first <= one.stream_seq <= (last or self.last_seq)]
        for start in range(0, len(wanted), batch):
            yield wanted[start : start + batch]


async def archived(messages: Sequence[Message], folder: Path, first: int = 1, last: int = 0) -> Manifest:
    return await write(cast("TrailReader", Held(messages)), folder, first, last)


def back(folder: Path, first: int = 1, last: int = 0) -> list[Message]:
    return [message for messages in read(folder, first, last, batch=7) for message in messages]


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    trail: Trail = mixed(250, seed=5)
    trail.put("trail.1.task.acme.x", b"\x00\xff no entry", "m")
    trail.put("trail.1.task.acme.x", b"", "")
    kept = [one for one in trail.messages if one.stream_seq not in {5, 6, 100, 101, 102}]
    return [*kept[:-1], kept[-1]._replace(signature="späť \u202e", key_id="'; --")]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a hundred sequences instead of a hundred thousand."""
    monkeypatch.setattr(archive, "SEGMENT", 100)


@pytest.mark.usefixtures("small")
async def test_every_message_comes_back_as_it_was(messages: list[Message], tmp_path: Path) -> None:
    """Holes, bytes that are no entry, and headers that are no signature among them."""
    made = await archived(messages, tmp_path / "ar[1]*chive")
    ranges = [(one.first, one.last, one.messages) for one in made.segments]
    assert ranges == [(1, 100, 97), (101, 200, 98), (201, 252, 52)]
    assert made.segments[0].name == f"trail-{1:020}-{100:020}.parquet"
    assert back(tmp_path / "ar[1]*chive") == messages
    assert back(tmp_path / "ar[1]*chive", 99, 103) == [one for one in messages if 99 <= one.stream_seq <= 103]
    assert manifest(tmp_path / "ar[1]*chive") == made


@pytest.mark.usefixtures("small")
async def test_an_archive_goes_on_where_it_ended(messages: list[Message], tmp_path: Path) -> None:
    """And what is there stays."""
    first = await archived([one for one in messages if one.stream_seq <= 130], tmp_path)
    before = {one.name: (tmp_path / one.name).read_bytes() for one in first.segments}
    later = await archived(messages, tmp_path)
    assert [(one.first, one.last) for one in later.segments] == [(1, 100), (101, 130), (131, 200), (201, 252)]
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert back(tmp_path) == messages
    assert await archived(messages, tmp_path) == later


@pytest.mark.usefixtures("small")
async def test_parts_may_be_archived_in_any_order(messages: list[Message], tmp_path: Path) -> None:
    await archived(messages, tmp_path, 150, 160)
    await archived(messages, tmp_path, 10, 20)
    made = await archived(messages, tmp_path)
    ranges = [(one.first, one.last) for one in made.segments]
    assert ranges == [(1, 9), (10, 20), (21, 100), (101, 149), (150, 160), (161, 200), (201, 252)]
    assert back(tmp_path) == messages


async def test_the_same_messages_give_the_same_files(messages: list[Message], tmp_path: Path) -> None:
    """So a segment that a crash left without the manifest is taken for what it is, and another one never replaced."""
    one, two = await archived(messages, tmp_path / "one"), await archived(messages, tmp_path / "two")
    assert one == two
    (tmp_path / "two" / "manifest.json").unlink()
    assert await archived(messages, tmp_path / "two") == one
    (tmp_path / "two" / "manifest.json").unlink()
    segment = tmp_path / "two" / one.segments[0].name
    segment.write_bytes(b"another")
    with pytest.raises(WillNotOverwrite):
        await archived(messages, tmp_path / "two")
    assert segment.read_bytes() == b"another"
    assert [name.name for name in (tmp_path / "two").iterdir()] == [segment.name]


async def test_columns_for_people_are_read_from_the_entries(messages: list[Message], tmp_path: Path) -> None:
    made = await archived(messages, tmp_path)
    with duckdb.connect() as db:
        held = db.read_parquet(str(tmp_path / made.segments[0].name))
        counted = db.sql("SELECT count(*), count(entry_id), count(DISTINCT tenant) FROM held").fetchall()
        assert counted == [(len(messages), len(messages) - 2, 3)]
        found = db.sql("SELECT events, tenant FROM held WHERE events LIKE '%TaskCreated%' ORDER BY stream_seq LIMIT 1")
        assert found.fetchall()[0][0] == "TaskCreated"
        assert held.types[0] == "UBIGINT"


async def test_a_segment_that_is_not_the_manifests_is_not_read(messages: list[Message], tmp_path: Path) -> None:
    made = await archived(messages, tmp_path)
    segment = tmp_path / made.segments[0].name
    held = segment.read_bytes()
    segment.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    with pytest.raises(ArchiveDamaged, match="and the manifest says"):
        back(tmp_path)
    segment.unlink()
    with pytest.raises(ArchiveDamaged, match="is not there"):
        back(tmp_path)


HOSTILE = {
    "no sequence": "NULL::BIGINT, 's', ''::BLOB, '', '', ''",
    "another sequence": "'x', 's', ''::BLOB, '', '', ''",
    "no subject": "1, NULL::VARCHAR, ''::BLOB, '', '', ''",
    "subjects": "1, ['s'], ''::BLOB, '', '', ''",
    "no body": "1, 's', NULL::BLOB, '', '', ''",
    "a text": "1, 's', 'text', '', '', ''",
    "too long": "1, 's', repeat('x', 19000000)::BLOB, '', '', ''",
    "a number": "1, 's', ''::BLOB, 7, '', ''",
}


@pytest.mark.parametrize("values", HOSTILE.values(), ids=HOSTILE)
async def test_a_segment_of_anybodys_is_read_or_refused_and_never_more(
    messages: list[Message], tmp_path: Path, values: str
) -> None:
    """The manifest may be anybody's too: its SHA-256 then says nothing."""
    await archived(messages, tmp_path)
    told = json.loads((tmp_path / "manifest.json").read_bytes())
    segment = told["segments"][0]
    path = tmp_path / segment["name"]
    path.unlink()
    names = ("stream_seq", "subject", "body", "msg_id", "key_id", "signature")
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE t AS SELECT * FROM (VALUES ({values})) t({', '.join(names)})")  # noqa: S608 - ours
        connection.table("t").write_parquet(str(path))
    segment |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "messages": 1}
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(ArchiveDamaged):
        back(tmp_path)


async def test_another_trail_or_a_damaged_manifest_is_refused(messages: list[Message], tmp_path: Path) -> None:
    made = await archived(messages, tmp_path)
    other = cast("TrailReader", Held(messages, datetime(2027, 1, 1, tzinfo=UTC)))
    with pytest.raises(NoArchive, match="this one was created 2027"):
        await write(other, tmp_path)
    with pytest.raises(NoArchive, match="there is no manifest"):
        back(tmp_path / "nothing")
    segment = made.segments[0]
    for wrong in (
        msgspec.structs.replace(made, format="x"),
        msgspec.structs.replace(made, segments=(segment, segment)),
        msgspec.structs.replace(made, segments=(msgspec.structs.replace(segment, name="../../etc/passwd"),)),
        msgspec.structs.replace(made, segments=(msgspec.structs.replace(segment, last=7),)),
    ):
        (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(wrong))
        with pytest.raises(NoArchive):
            back(tmp_path)


def feed(up: UpProcess) -> None:
    async def made() -> None:
        feeder = await Feeder.connect(up.adapter(), "reports")
        for number in range(3):
            await feeder.settled("create", creation(caller("ana"), f"c-{number}"))
        await feeder.close()

    asyncio.run(made())


def trail_of(data: Path, last: int) -> list[Message]:
    async def held() -> list[Message]:
        async with open_trail(data) as trail:
            return [one async for some in trail.messages(1, last) for one in some]

    return asyncio.run(held())


def run(*arguments: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.requirement("T8")
def test_a_running_service_and_a_stopped_one_are_archived_alike(tmp_path: Path) -> None:
    """The former records who took what, in which case; of the latter is said that nobody does."""
    data, out, again = tmp_path / "data", tmp_path / "running", tmp_path / "stopped"
    with UpProcess(data) as up:
        feed(up)
        code, said, told = run("archive", "--out", out, "--case", "INC-7", "--data", data, "--json")
        assert (code, json.loads(said)["segments"][0]["first"]) == (0, 1), told
        last = manifest(out).segments[-1].last
        asked = "SELECT stream_seq, payload FROM events WHERE json_extract_string(payload, '$.query') = 'archive'"
        noted = json.loads(run("sql", asked, "--format", "jsonl", "--data", data)[1])
        event = json.loads(noted["payload"])
        assert noted["stream_seq"] > last
        assert (event["query"], event["rows"], event["case_id"]) == ("archive", last, "INC-7")
        assert event["parameters"] == {"first": "1", "last": str(last)}
        assert up.stop() == 0
    code, _, told = run("archive", "--out", again, "--to", str(last), "--data", data)
    assert code == 0, told
    assert "not recorded on the trail" in told
    assert manifest(again) == manifest(out)
    assert back(out) == trail_of(data, last)
    assert run("archive", "--out", tmp_path / "x", "--data", tmp_path / "nothing")[0] == 2
