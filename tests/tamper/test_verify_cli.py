"""`tasktrail verify` on what a real service left, as it is and after it was tampered with.

Issue "Forensics": trail against tree, task chains, signatures, projections, with the first bad index and the kind.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgspec
import pytest
from nats.aio.client import Client
from tests.faults.stories import Teller
from tests.tamper.trails import STRANGER, VKEY

from tasktrail.events.entry import KEY_ID, MSG_ID, SIGNATURE
from tasktrail.projections import current
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog.log import Log
from tasktrail.projections.tlog.note import Checkpoint
from tasktrail.services import archive, trail
from tasktrail.services.broker import Broker
from tasktrail.services.connection import Connection
from tasktrail.services.trail_reading import open_trail
from tasktrail.testing.feeding import Feeder
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.rebuild import current_bucket
from tasktrail.testing.service import UpProcess, tasktrail

pytestmark = pytest.mark.requirement("T2")

COMMANDS = 120
Json = dict[str, Any]


class Left(NamedTuple):
    """What a stopped service left: its data, an older audit store, an early checkpoint, and the trail."""

    data: Path
    older: Path
    early: Path
    while_running: Json
    messages: list[Message]


def ran(*options: str | Path) -> "subprocess.CompletedProcess[str]":
    """`tasktrail verify` with these options."""
    return run("verify", *options)


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """`tasktrail` with these arguments."""
    return subprocess.run([tasktrail(), *arguments], capture_output=True, text=True, check=False)


def verify(code: int, *options: str | Path) -> Json:
    """Its document; it ends with this exit code."""
    done = ran("--json", *options)
    assert done.returncode == code, (done.stdout, done.stderr)
    document: Json = json.loads(done.stdout)
    return document


async def fed(up: UpProcess, seed: int) -> None:
    """Traffic of every kind, until both projections hold it."""
    feeder = await Feeder.connect(up.adapter(), f"campaign-{seed}")
    try:
        teller = Teller(feeder, seed=seed)
        await teller.tell(COMMANDS)
    finally:
        await feeder.close()
    assert not teller.wrong, teller.wrong
    up.wait_until_level()


async def all_of(data: Path) -> list[Message]:
    async with open_trail(data) as reader:
        return [one async for batch in reader.messages() for one in batch]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """A service that was fed, stopped, started, fed, verified as it ran, and stopped."""
    folder = tmp_path_factory.mktemp("verify")
    data = folder / "data"
    with UpProcess(data) as up:
        asyncio.run(fed(up, 1))
        up.stop()
        older = Path(shutil.copy(data / "audit.duckdb", folder / "older.duckdb"))
        early = Path(shutil.copy(data / "tlog" / "checkpoint", folder / "early"))
        up.start()
        asyncio.run(fed(up, 2))
        while_running = verify(0, "--data", data)
        up.stop()
    return Left(data, older, early, while_running, asyncio.run(all_of(data)))


@pytest.fixture
def data(left: Left, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(left.data, tmp_path / "data"))


def first(document: Json) -> tuple[str, int | None]:
    return document["findings"][0]["kind"], document["findings"][0]["index"]


def test_a_stopped_services_trail_is_verified_and_the_verdict_says_on_whose_word(left: Left) -> None:
    """Signatures, chains, tree, audit store and bucket; only what a stranger must bring is not checked."""
    document = verify(0, "--data", left.data)
    assert (document["ok"], document["found"], document["entries"]) == (True, 0, len(left.messages))
    assert document["size"] == document["entries"]
    assert [one.partition(":")[0].partition(" (")[0] for one in document["not_checked"]] == [
        "whether the log's key is the right one",
        "whether all of it was replaced, or cut off and signed again",
        "whether the first signing key is the right one",
    ]
    entry_key = document["entry_key"].partition(" ")[0]
    vkey = (left.data / "tlog" / "vkey").read_text(encoding="ascii").strip()
    given = ("--key", vkey, "--checkpoint", left.early, "--entry-key", entry_key)
    assert verify(0, "--data", left.data, *given)["not_checked"] == []


def test_a_running_services_trail_is_verified_with_a_copy_of_the_store_that_it_holds(left: Left) -> None:
    """One process holds the DuckDB file; the copy it lends is recorded, and gone afterwards.

    The record of the loan itself may come too late to be in the copy.
    """
    assert left.while_running["ok"]
    of_store = [one for one in left.while_running["not_checked"] if "audit store" in one]
    told = r"audit store: of \d+ entries the last 1, which it had not read yet"
    assert all(re.fullmatch(told, one) for one in of_store), of_store
    assert b'"query":"snapshot"' in b"".join(message.body for message in left.messages)
    assert not list((left.data / "snapshots").glob("*.duckdb"))


def test_for_a_person_the_verdict_is_the_last_line(left: Left) -> None:
    """And standard error is empty where it is no terminal."""
    done = ran("--data", left.data, "--quick")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[-1].startswith(f"VERIFIED: {len(left.messages)} entries, held against ")
    assert "not checked: signatures of entries: left out, as --quick asks" in lines


def test_an_archive_is_held_against_the_log_and_says_where_it_ends(left: Left, tmp_path: Path) -> None:
    """Issue: from a bundle or a Parquet archive."""

    async def written() -> None:
        async with open_trail(left.data) as reader:
            await archive.write(reader, tmp_path / "archive")

    asyncio.run(written())
    document = verify(0, "--data", left.data, "--archive", tmp_path / "archive")
    assert document["entries"] == len(left.messages)
    assert any(one.endswith("the entries come from an archive") for one in document["not_checked"])
    segment = next((tmp_path / "archive").glob("*.parquet"))
    segment.write_bytes(segment.read_bytes()[:-3] + b"xyz")
    assert first(verify(1, "--data", left.data, "--archive", tmp_path / "archive"))[0] == "changed"


@asynccontextmanager
async def broker_of(data: Path) -> AsyncGenerator[Client]:
    """A stopped service's broker, with every right."""
    with Broker.start(data / "nats", sync_interval="2m") as broker:
        nc = await Connection(**broker.connect_options()).connect("admin")
        try:
            yield nc
        finally:
            await nc.close()


def test_an_audit_store_with_another_value_in_a_derived_column_is_found(left: Left, data: Path) -> None:
    """Issue: change derived DuckDB columns."""
    at = len(left.messages) // 2
    with duckdb.connect(data / "audit.duckdb") as connection:
        for trigger, table in connection.execute("SELECT trigger_name, table_name FROM duckdb_triggers()").fetchall():
            connection.execute(f"DROP TRIGGER {trigger} ON {table}")
        connection.execute("UPDATE entries SET sub = 'somebody else' WHERE stream_seq = ?", [at])
    document = verify(1, "--data", data)
    assert first(document) == ("derived", at - 1)
    assert 'entries.sub is "somebody else"' in document["findings"][0]["what"]
    others = [one["what"] for one in document["findings"][1:]]
    assert all(re.fullmatch(r"audit store: trigger \w+ is not the one of this schema", one) for one in others), others
    assert document["found"] == 1 + len(others)


def test_old_checkpoints_may_be_thinned_as_the_page_says(data: Path) -> None:
    """docs/checkpoints.md: local files of checkpoints may go, the first of each hour stays; the log is what it was."""
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^find tlog/checkpoints .*$", page, re.MULTILINE)
    files = sorted((data / "tlog" / "checkpoints").iterdir())
    for number, one in enumerate(files):
        days = 2 if number < len(files) - 1 else 0
        made = time.time() - days * 86_400
        os.utime(one, times=(made, made))
    hours = {time.strftime("%Y%m%d%H", time.localtime(one.stat().st_mtime)): one for one in reversed(files[:-1])}
    assert len(files) > len(hours) + 1, files
    subprocess.run(["bash", "-c", command], cwd=data, check=True)
    assert sorted((data / "tlog" / "checkpoints").iterdir()) == sorted({*hours.values(), files[-1]})
    assert verify(0, "--data", data)["ok"]
    with Log.open(data / "tlog") as log:
        newest = log.checkpoint()
        assert newest is not None
        assert Checkpoint.parse(newest.text).size == int(files[-1].name)
        assert log.check() == []


def test_an_older_audit_store_in_the_place_of_the_newest_is_found(left: Left, data: Path) -> None:
    """Issue: swap the DuckDB file for an older one."""
    shutil.copy(left.older, data / "audit.duckdb")
    (data / "audit.duckdb.wal").unlink(missing_ok=True)
    document = verify(1, "--data", data)
    kind, index = first(document)
    assert kind == "derived"
    assert "is older: it ends at sequence" in document["findings"][0]["what"]
    assert 0 < (index or 0) < len(left.messages)
    (data / "audit.duckdb").write_bytes(b"not a database" * 1_000)
    assert first(verify(1, "--data", data)) == ("derived", None)
    (data / "audit.duckdb").unlink()
    assert any(one.startswith("audit store: there is none") for one in verify(0, "--data", data)["not_checked"])


def test_current_states_that_are_not_the_trails_are_found(data: Path) -> None:
    """Changed, taken out, put in; each names its task."""

    async def tampered() -> list[str]:
        async with broker_of(data) as nc:
            held = await current_bucket(nc)
            changed, lost = sorted(held)[:2]
            state = current.decode(held[changed])
            assert state is not None
            js = nc.jetstream()
            wrong = current.encode(of_another_server(state))
            await js.publish(f"$KV.CURRENT.{changed}", wrong)
            await js.purge_stream(trail.KV_STREAM, subject=f"$KV.CURRENT.{lost}")
            await js.publish("$KV.CURRENT." + "a" * 32, held[changed])
            await js.publish("$KV.CURRENT." + "b" * 32, b"", headers={"KV-Operation": "DEL"})
            return [changed, lost, "a" * 32]

    refs = asyncio.run(tampered())
    document = verify(1, "--data", data)
    assert {one["kind"] for one in document["findings"]} == {"derived"}
    assert {one["task_ref"] for one in document["findings"]} == set(refs)


def of_another_server(state: current.State) -> current.State:
    return msgspec.structs.replace(state, task=msgspec.structs.replace(state.task, server="another"))


def test_a_tile_of_the_log_that_was_changed_is_found(data: Path) -> None:
    """The trail is right: it says whose fault it is."""
    tile = next(one for one in (data / "tlog" / "tile" / "0").rglob("*") if one.is_file())
    raw = bytearray(tile.read_bytes())
    raw[40] ^= 1
    tile.write_bytes(bytes(raw))
    document = verify(1, "--data", data)
    assert {one["kind"] for one in document["findings"]} == {"tree"}


async def restored(url: str, messages: list[Message]) -> None:
    """A fresh broker whose stream holds these messages in this order."""
    nc = await Connection.from_text(url).connect("restore")
    try:
        js = nc.jetstream()
        await trail.create(js)
        for one in messages:
            headers = {MSG_ID: one.msg_id, KEY_ID: one.key_id, SIGNATURE: one.signature}
            await js.publish(one.subject, one.body, headers={name: value for name, value in headers.items() if value})
    finally:
        await nc.close()


@pytest.fixture
def elsewhere(left: Left) -> Iterator[Callable[[int, list[Message]], Json]]:
    """Runs verify on a broker that holds these messages, with the key and the checkpoints of the original log."""
    with NatsServer() as server:

        def on(code: int, messages: list[Message]) -> Json:
            asyncio.run(restored(server.url, messages))
            return verify(code, "--data", left.data, "--nats", server.url, "--checkpoint", left.early)

        yield on


def changes(messages: list[Message], place: int = 0) -> dict[str, tuple[list[Message], int]]:
    """What may be done to a trail, each with the first place at which it shows."""
    at = place or len(messages) // 3
    body = messages[at].body.replace(b'"trigger":"', b'"trigger":"x', 1)
    edited = messages[at]._replace(body=body)
    forged = messages[at]._replace(body=body.replace(b'"trigger":"x', b'"trigger":"', 1) + b" ")
    return {
        "changed": ([*messages[:at], edited, *messages[at + 1 :]], at),
        "unsigned": ([*messages[:at], STRANGER.signed(messages[at]), *messages[at + 1 :]], at),
        "removed": ([*messages[:at], *messages[at + 1 :]], at),
        "reordered": ([*messages[:at], messages[at + 1], messages[at], *messages[at + 2 :]], at),
        "truncated": (messages[:-3], len(messages) - 3),
        "added": ([*messages[:at], forged._replace(msg_id="forged"), *messages[at:]], at),
    }


@pytest.mark.parametrize("kind", ["changed", "unsigned", "removed", "reordered", "truncated", "added"])
def test_a_trail_restored_with_a_change_is_found_out(
    left: Left, elsewhere: Callable[[int, list[Message]], Json], kind: str
) -> None:
    """JetStream's own checksums do not help whoever fills a stream anew."""
    messages, index = changes(left.messages)[kind]
    document = elsewhere(1, messages)
    assert first(document) == (kind, index), document["findings"]
    assert any(one.startswith("audit store and current states: the trail itself") for one in document["not_checked"])


def shape(text: str) -> list[str]:
    """Output without what differs from trail to trail: references, hashes, numbers, and the rest of a long sequence."""
    for pattern, stand_in in (
        (r"\(/\S*/tlog/", "(TLOG/"),
        (r"tasktrail/[a-z2-7]+\+[0-9a-f]+", "KEY"),
        (r"\b[a-z2-7]{32}\b", "REF"),
        (r"\b[0-9a-f]{16}\b", "HASH"),
        (r"\d+", "N"),
    ):
        text = re.sub(pattern, stand_in, text)
    return text.splitlines()


def test_the_page_shows_what_the_command_prints(left: Left, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Style 13: docs are run. A trail as it was written, and one restored with another word in one entry."""
    page = (Path(__file__).parents[2] / "docs" / "verify.md").read_text(encoding="utf-8")
    shown = [block.partition("\n") for block in re.findall(r"```\n\$ tasktrail (verify .*?)```", page, re.DOTALL)]
    data.rename(data.with_name(".tasktrail"))
    monkeypatch.chdir(data.parent)
    shutil.copy(left.data / "tlog" / "vkey", "vkey.txt")
    shutil.copy(left.early, "kept")
    with NatsServer() as server:
        asyncio.run(restored(server.url, with_another_word(left.messages)))
        for number, (command, _, output) in enumerate(shown):
            done = ran(*command.replace("nats://other:4222", server.url).split()[1:])
            assert done.returncode == number, (done.stdout, done.stderr)
            assert shape(done.stdout) == shape(output)


def with_another_word(messages: list[Message]) -> list[Message]:
    """One entry, somewhere in the middle of a task's chain, is not as it was written."""
    followed = [one.subject for one in messages]
    at = next(
        at
        for at in range(len(messages) // 3, len(messages))
        if ".task." in followed[at] and followed[at] in followed[at + 1 :]
    )
    return changes(messages, at)["changed"][0]


def test_a_directory_in_use_and_a_place_that_takes_no_file_are_told_in_one_line(left: Left, tmp_path: Path) -> None:
    """Style: every failure that can be foreseen is one line that says what to do, never a traceback."""
    archived = ("archive", "--data", left.data, "--out")
    with Broker.start(left.data / "nats"):
        told = [ran("--data", left.data), run(*archived, tmp_path / "archive")]
    for done in told:
        assert (done.returncode, done.stdout) == (3, "")
        assert re.fullmatch(r"tasktrail: \S+ is in use by process \d+ .*", done.stderr.splitlines()[-1])
        assert "Traceback" not in done.stderr
    file = tmp_path / "file"
    file.touch()
    done = run(*archived, file / "archive")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"tasktrail: cannot read or write {file / 'archive'}: Not a directory"
    assert "Traceback" not in done.stderr


def test_a_copy_of_a_checkpoint_that_cannot_be_read_is_told_of(left: Left, tmp_path: Path) -> None:
    """And the others in its directory count."""
    shutil.copy(left.early, tmp_path / "early")
    (tmp_path / "cut").write_bytes(left.early.read_bytes()[:-20])
    document = verify(0, "--data", left.data, "--quick", "--checkpoint", tmp_path)
    (told,) = [one for one in document["not_checked"] if one.startswith("a checkpoint kept elsewhere: ")]
    assert str(tmp_path / "cut") in told


def test_what_cannot_be_verified_says_why(left: Left, tmp_path: Path) -> None:
    """Exit code 2 for what the person gave, 1 for what the trail is."""
    wrong = ran("--data", left.data, "--key", "nonsense")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "neither a verifier key nor a file" in wrong.stderr
    assert ran("--data", left.data, "--entry-key", "short").returncode == 2
    assert ran("--data", left.data, "--checkpoint", tmp_path / "nothing").returncode == 2
    assert ran("--data", tmp_path / "nothing").returncode == 2
    stranger = verify(1, "--data", left.data, "--key", VKEY)
    assert "is signed by" in stranger["findings"][-1]["what"] or any(
        "is signed by" in one["what"] for one in stranger["findings"]
    )
    strange_entry_key = verify(1, "--data", left.data, "--entry-key", STRANGER.public)
    assert {one["kind"] for one in strange_entry_key["findings"]} == {"unsigned"}
    assert strange_entry_key["found"] == len(left.messages)
