"""`tasktrail replay`, as a person runs it, on a trail that a real service wrote. Source: issue 4, feature T6."""

import asyncio
import contextlib
import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from tests.services.replays import CLEAN, CLI, TASKS, Ran, Recorded, feed, record, run

from tasktrail.events.facts import Status
from tasktrail.events.subjects import CURRENT
from tasktrail.projections import current
from tasktrail.projections.audit.timeline import Step
from tasktrail.projections.replay import Replay, states_sha256
from tasktrail.projections.tlog.log import Log
from tasktrail.services.bucket_reading import read_bucket
from tasktrail.services.connection import Connection
from tasktrail.services.replay_comparing import read_states
from tasktrail.services.replaying import unfinished
from tasktrail.services.trail import KV_STREAM
from tasktrail.services.trail_reading import TrailReader, open_trail
from tasktrail.testing.nats import NatsServer
from tasktrail.testing.service import UpProcess, is_gone, wait_for

pytestmark = pytest.mark.requirement("T6")

WITHIN_S = 60.0
PAGE = Path(__file__).parents[2] / "docs" / "replay.md"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(tmp_path_factory.mktemp("replaying"))


@pytest.fixture(scope="module")
def rebuilt(recorded: Recorded) -> Path:
    """Everything rebuilt from the whole trail of the stopped service."""
    into = recorded.data.with_name("rebuilt")
    done = run("replay", "rebuild", "--into", into, "--data", recorded.data)
    assert done.code == 0, done.err
    assert "not recorded on the trail" in done.err
    return into


def report(folder: Path) -> Any:  # noqa: ANN401 - JSON
    return json.loads((folder / "replay.json").read_bytes())


def test_a_rebuilt_directory_holds_each_projection_and_says_what_it_is(recorded: Recorded, rebuilt: Path) -> None:
    """Issue 4: rebuild any projection into a fresh place. Each digest is checked apart from the code that made it."""
    said = report(rebuilt)
    assert said["projections"] == ["current", "audit", "tlog"]
    assert (said["first_seq"], said["tasks"], said["left_out"], said["partial"]) == (1, TASKS, 0, False)
    assert said["messages"] == said["last_seq"] == said["tree_size"]
    states = (rebuilt / "current.jsonl").read_bytes()
    assert hashlib.sha256(states).hexdigest() == said["states_sha256"]
    assert sum(json.loads(line)["task"]["status"] == "completed" for line in states.splitlines()) == TASKS // 2
    with duckdb.connect(rebuilt / "audit.duckdb", read_only=True) as rows:
        assert rows.execute("SELECT count(*), max(stream_seq) FROM entries").fetchone() == (said["messages"],) * 2
    with Log.open(rebuilt / "tlog", read_only=True) as log, Log.open(recorded.data / "tlog", read_only=True) as live:
        assert (log.size, log.root().hex()) == (said["tree_size"], said["tree_root"])
        assert log.root(live.size) == live.root()
    assert not (rebuilt / "tlog" / "checkpoint").exists(), "nobody signed it"
    assert rebuilt.stat().st_mode & 0o077 == 0


def test_a_running_and_a_stopped_service_give_the_same_replay(recorded: Recorded, tmp_path: Path) -> None:
    """T6: any two replays agree; here file by file, and the reports byte for byte."""
    assert recorded.said["rebuild"].code == 0, recorded.said["rebuild"].err
    again = run("replay", "rebuild", "--into", tmp_path / "again", "--to", "12", "--json", "--data", recorded.data)
    assert again.out == recorded.said["rebuild"].out
    assert again.document()["last_seq"] == 12
    for name in ("current.jsonl", "replay.json"):
        running = recorded.data.with_name("running") / name
        assert (tmp_path / "again" / name).read_bytes() == running.read_bytes()


def test_an_archive_gives_the_same_replay_and_a_bundle_the_states_of_its_tasks(
    recorded: Recorded, rebuilt: Path, tmp_path: Path
) -> None:
    """Issue 4: from the trail, or from a bundle or Parquet archive."""
    assert recorded.said["archive"].code == 0, recorded.said["archive"].err
    one = run("replay", "rebuild", "--into", tmp_path / "a", "--archive", recorded.archive, "--json").document()
    until = ("--to", str(one["last_seq"]), "--json")
    other = run("replay", "rebuild", "--into", tmp_path / "t", "--data", recorded.data, *until).document()
    assert {**one, "source": ""} == {**other, "source": ""}
    assert recorded.said["bundle"].code == 0, recorded.said["bundle"].err
    bundled = run("replay", "rebuild", "--into", tmp_path / "b", "--bundle", recorded.bundle, "--json")
    assert bundled.document()["projections"] == ["current", "audit"]
    assert bundled.document()["partial"] is True
    assert "no tree" in bundled.err
    lines = (rebuilt / "current.jsonl").read_bytes().splitlines()
    assert (tmp_path / "b" / "current.jsonl").read_bytes().splitlines() == [
        one for one in lines if recorded.ref.encode() in one
    ]
    tree = run("replay", "rebuild", "--into", tmp_path / "n", "--bundle", recorded.bundle, "--projection", "tlog")
    assert (tree.code, (tmp_path / "n").exists()) == (2, False)
    none = run("replay", "rebuild", "--into", tmp_path / "n", "--bundle", PAGE)
    assert (none.code, "no evidence bundle" in none.err) == (2, True)


def test_only_what_was_asked_for_is_built_and_up_to_a_time(recorded: Recorded, tmp_path: Path) -> None:
    """`--projection`; `--to` a time is when entries were recorded."""
    told = recorded.timeline.steps[0]
    at = ("--to", told.recorded_at or "", "--projection", "current", "--json", "--data", recorded.data)
    done = run("replay", "rebuild", "--into", tmp_path / "r", *at).document()
    assert done["last_seq"] == told.stream_seq
    assert done["rows_sha256"] is None
    assert done["tree_size"] == told.stream_seq
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["current.jsonl", "replay.json"]


def test_a_place_that_is_not_fresh_and_a_time_that_is_none_are_refused(recorded: Recorded, tmp_path: Path) -> None:
    """Nothing is overwritten."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "evidence").touch()
    (tmp_path / "empty").mkdir()
    full = run("replay", "rebuild", "--into", tmp_path / "full", "--data", recorded.data)
    assert (full.code, "is not empty" in full.err) == (2, True)
    assert run("replay", "rebuild", "--into", tmp_path / "no" / "where", "--data", recorded.data).code == 2
    when = run("replay", "rebuild", "--into", tmp_path / "new", "--to", "noon", "--data", recorded.data)
    assert (when.code, "neither a stream sequence nor a time" in when.err) == (2, True)
    done = run("replay", "rebuild", "--into", tmp_path / "empty", "--projection", "current", "--data", recorded.data)
    assert done.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


_STUCK = """
import asyncio, sys
from pathlib import Path
from tasktrail.services import replaying
from tasktrail.services.trail import KV_STREAM
from tasktrail.services.trail_reading import open_trail

async def main():
    async with open_trail(Path(sys.argv[1])) as trail:
        source = replaying.TrailSource(trail, "here")
        whole = source.messages

        async def slowly(first=1):
            async for messages in whole(first):
                yield messages[: len(messages) // 2]
                print("half", flush=True)
                await asyncio.Event().wait()  # for ever: it is to be killed here

        source.messages = slowly
        await replaying.rebuild(source, Path(sys.argv[2]))

asyncio.run(main())
"""


def test_a_rebuild_that_is_killed_leaves_nothing_that_looks_whole(recorded: Recorded, tmp_path: Path) -> None:
    """The directory appears under its name only when it is complete."""
    into = tmp_path / "into"
    with subprocess.Popen([sys.executable, "-c", _STUCK, recorded.data, into], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        broker = int((recorded.data / "nats" / "nats.lock").read_text(encoding="ascii").split()[1])
        child.kill()
    wait_for("the end of its nats-server", partial(is_gone, broker))
    assert not into.exists()
    (left,) = unfinished(into)
    done = run("replay", "rebuild", "--into", into, "--data", recorded.data)
    assert done.code == 0, done.err
    assert str(left) in done.err
    assert report(into)["messages"] == report(into)["last_seq"] > 0


def test_projections_that_are_as_they_should_be_are_told_to_be(recorded: Recorded) -> None:
    """Of a running service, which lends a copy of its store, and of a stopped one."""
    for ran in (recorded.said["compare"], run("replay", "compare", "--json", "--data", recorded.data)):
        assert ran.code == 0, ran.err
        found = ran.document()
        assert found["equal"]
        assert [(part["what"], part["differences"], part["not_compared"]) for part in found["parts"]] == [
            ("current", [], ""),
            ("audit", [], ""),
        ]
        assert found["parts"][0]["compared"] == TASKS
        assert found["parts"][1]["compared"] == found["parts"][1]["position"] > TASKS


async def tamper_with_bucket(up: UpProcess, change: Callable[[str, bytes], bytes | None]) -> list[str]:
    """Replace states as somebody who may write to the bucket would; the references of those that were."""
    nc = await up.admin().connect("tamper")
    try:
        trail = await TrailReader.of(nc)
        held = await read_states(nc, str(trail.created))
        changed: list[str] = []
        for ref, state in sorted(held.states.items()):
            assert state is not None
            body = change(ref, current.encode(state))
            if body is not None:
                await nc.jetstream().publish(f"$KV.{CURRENT}.{ref}", body)
                changed.append(ref)
        return changed
    finally:
        await nc.close()


@contextlib.contextmanager
def traffic(up: UpProcess) -> Generator[None]:
    """Tasks made, followed and finished all the while."""
    over = threading.Event()

    async def on_and_on() -> None:
        while not over.is_set():
            await feed(up)

    feeding = threading.Thread(target=lambda: asyncio.run(on_and_on()))
    feeding.start()
    try:
        yield
    finally:
        over.set()
        feeding.join(WITHIN_S)


def test_every_difference_of_the_live_projections_is_named(recorded: Recorded, tmp_path: Path) -> None:
    """Issue 4: compare with the live one and name every difference: while it runs, and when it has stopped."""
    data = tmp_path / "data"
    shutil.copytree(recorded.data, data)
    wanted: dict[str, tuple[str, str | None, str | None]] = {}

    def change(ref: str, body: bytes) -> bytes | None:
        state = current.decode(body)
        assert state is not None
        if len(wanted) == 0:
            wanted[ref] = ("", "bytes that are no state", "a state")
            return b"garbage"
        if len(wanted) == 1:
            wanted[ref] = ("task.tool", '"harmless"', '"report"')
            return current.encode(
                msgspec.structs.replace(state, task=msgspec.structs.replace(state.task, tool="harmless"))
            )
        return None

    with UpProcess(data) as up:
        with traffic(up):
            busy = run("replay", "compare", "--json", "--data", data)
        assert busy.code == 0, f"what comes in meanwhile is no difference: {busy.out} {busy.err}"
        up.wait_until_level()
        assert asyncio.run(tamper_with_bucket(up, change)) == list(wanted)
        ran = run("replay", "compare", "--json", "--data", data)
        assert up.stop() == 0
    assert ran.code == 1, ran.err
    states = ran.document()["parts"][0]["differences"]
    assert {one["task_ref"]: (one["field"], one["live"], one["replayed"]) for one in states} == wanted
    with duckdb.connect(data / "audit.duckdb") as owner:
        owner.execute("UPDATE tasks SET sub = 'mallory' WHERE task_ref = ?", [recorded.ref])
    told = run("replay", "compare", "--data", data)
    assert told.code == 1
    assert re.search(
        rf"audit +DIFFERS tasks {recorded.ref} #\d+ sub\n +live +\"mallory\"\n +replayed \"ana\"", told.out
    )
    assert len(re.findall("DIFFERS", told.out)) == 3
    (data / "audit.duckdb").unlink()
    gone = run("replay", "compare", "--data", data)
    assert (gone.code, "audit was not compared" in gone.err) == (1, True)


def steps(ran: Ran) -> list[Step]:
    assert ran.code == 0, ran.err
    return [msgspec.json.decode(line, type=Step) for line in ran.out.splitlines()]


def test_what_is_played_is_what_was_recorded(recorded: Recorded) -> None:
    """With `--json` one document a line, as the tail's; those of one task are its timeline's, denials too."""
    played = steps(run("replay", "play", "--json", "--data", recorded.data))
    assert [one.stream_seq for one in played] == sorted(one.stream_seq for one in played)
    assert played[: len(steps(recorded.said["play"]))] == steps(recorded.said["play"])
    assert {one.stream_seq for one in played} == set(range(1, played[-1].stream_seq + 1))
    own = run("replay", "play", "--task", recorded.ref, "--json", "--data", recorded.data)
    assert tuple(steps(own))[: len(recorded.timeline.steps)] == recorded.timeline.steps
    assert {one.kind.value for one in steps(own)} >= {"transition", "access", "denial"}
    later = steps(run("replay", "play", "--json", "--from", "10", "--to", "12", "--data", recorded.data))
    assert later == [one for one in played if 10 <= one.stream_seq <= 12]
    since = recorded.timeline.steps[1].recorded_at or ""
    part = steps(run("replay", "play", "--task", recorded.ref, "--json", "--from", since, "--data", recorded.data))
    assert part == [one for one in steps(own) if (one.recorded_at or "") >= since]


def test_a_task_is_played_by_its_id_which_is_better_not_on_the_command_line(recorded: Recorded) -> None:
    """Promise 5: a task id opens its task."""
    typed = run("replay", "play", "--task", recorded.task_id, "--speed", "max", "--data", recorded.data)
    assert typed.code == 0, typed.err
    assert "now in your shell's history" in typed.err
    assert recorded.task_id not in typed.out
    said = run("replay", "play", "--task", "-", "--speed", "max", "--data", recorded.data, said=recorded.task_id)
    assert said.out == typed.out
    assert "shell's history" not in said.err
    nobody = run("replay", "play", "--task", "x" * 32, "--data", recorded.data)
    assert (nobody.code, "no task on this trail" in nobody.err) == (1, True)


def test_steps_are_told_as_a_person_reads_them(recorded: Recorded) -> None:
    """The sentence, the status after it, who, and how far that is proved."""
    told = run("replay", "play", "--task", recorded.ref, "--speed", "max", "--data", recorded.data, COLUMNS="200")
    text = told.out
    assert re.search(r"● created for tool report .*→ working", text)
    assert re.search(r"● completed with a result  working → completed", text)
    assert re.search(r"· .* · (working|completed)\n", text), "an access changes nothing, and says what stands"
    assert f"{recorded.ref} · ana at id.example via cli · asserted by the MCP server" in text
    assert re.search(r"✗ DENIED", text)
    assert "not recorded on the trail" in told.err


def test_steps_wait_for_enter_on_a_terminal_and_are_refused_without_one(recorded: Recorded) -> None:
    """`--step`."""
    at = ("replay", "play", "--step", "--json", "--task", recorded.ref, "--data", str(recorded.data))
    without = run(*at)
    assert (without.code, "no terminal" in without.err, without.out) == (2, True, "")
    ours, theirs = pty.openpty()
    with subprocess.Popen([*CLI, *at], stdin=theirs, stdout=subprocess.PIPE, env=CLEAN) as child:
        os.close(theirs)
        assert child.stdout is not None
        seen = [child.stdout.readline()]
        for _ in recorded.timeline.steps[1:]:
            os.write(ours, b"\n")
            seen.append(child.stdout.readline())
        with contextlib.suppress(OSError):
            os.write(ours, b"\n\n\n\n")
        seen += child.stdout.readlines()
        assert child.wait(WITHIN_S) == 0
    os.close(ours)
    found = [msgspec.json.decode(line, type=Step) for line in seen]
    assert tuple(found[: len(recorded.timeline.steps)]) == recorded.timeline.steps


@pytest.mark.requirement("T8")
def test_what_is_read_of_a_running_service_is_on_record_before_it_is_read(recorded: Recorded) -> None:
    """Issue 4: identity, query, parameters, rows and case id of every query: as many rows as steps were shown."""
    whole, task, _ = (one for one in recorded.events if one.get("query") == "play")
    played = steps(recorded.said["whole"])
    assert (whole["rows"], whole["case_id"]) == (len(played), "INC-7")
    assert whole["parameters"] == {"as_of": str(played[-1].stream_seq)}
    assert "not recorded" not in recorded.said["whole"].err
    assert task["rows"] == len(steps(recorded.said["task"])) > 0
    assert {**task["parameters"], "as_of": ""} == {
        "task_ref": recorded.ref,
        "from": "3",
        "to": "2030-01-01",
        "as_of": "",
    }
    (built,) = (one for one in recorded.events if one.get("query") == "rebuild")
    assert {**built["parameters"], "as_of": ""} == {"to": "12", "as_of": ""}
    nobody = recorded.said["nobody"]
    assert (nobody.code, "no task on this trail" in nobody.err) == (1, True)


@pytest.mark.requirement("T8")
def test_who_may_not_read_the_trail_is_refused_which_is_on_it(recorded: Recorded) -> None:
    """The right `read`, as for every reading."""
    for name in ("no right", "no right to rebuild", "no right to compare"):
        ran = recorded.said[name]
        assert (ran.code, ran.out) == (2, ""), ran
        assert "may not" in ran.err
    assert not recorded.data.with_name("refused").exists()
    denied = [one["method"] for one in recorded.events if one["type"] == "AccessDenied"]
    assert denied == ["operator/play", "operator/rebuild", "operator/snapshot"]


async def test_the_bucket_agrees_with_a_replay_of_the_trail(recorded: Recorded) -> None:
    """Promise 8, by the parts themselves, from one connection."""
    async with open_trail(recorded.data) as trail:
        held = await read_states(trail.nc, str(trail.created))
        replay = Replay()
        async for messages in trail.messages(batch=5):
            replay.take(messages)
    assert held.position == replay.position == trail.last_seq
    assert {ref: state for ref, state in held.states.items() if state is not None} == replay.states
    assert states_sha256(replay.states) != states_sha256({})
    assert {state.task.status for state in replay.states.values()} == {Status.WORKING, Status.COMPLETED}


async def test_a_bucket_is_read_as_key_value_clients_see_it(fresh_nats: NatsServer) -> None:
    """NATS ADR-8: `KV-Operation` marks what was deleted; and a purged bucket is an empty one, not a silent broker."""
    nc = await Connection.from_text(fresh_nats.url).connect("bucket")
    try:
        js = nc.jetstream()
        assert await read_bucket(nc) is None
        bucket = await js.create_key_value(bucket=CURRENT)
        assert await read_bucket(nc) == ({}, "", 0)
        for name in ("kept", "deleted", "purged"):
            await bucket.put(name, b"state")
        await bucket.delete("deleted")
        await bucket.purge("purged")
        await bucket.put("_position", b'{"stream": "then", "seq": 7}')
        assert await read_bucket(nc) == ({"kept": b"state"}, "then", 7)
        await js.purge_stream(KV_STREAM)
        assert await read_bucket(nc) == ({}, "", 0)
    finally:
        await nc.close()


def test_the_examples_of_the_page_run(recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Style 13: docs are run."""
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    examples = [line.partition("#")[0].split() for line in re.findall(r"^tasktrail .*$", page, re.MULTILINE)]
    assert len(examples) == 3
    for _, *arguments in examples:
        done = run(*arguments, TASKTRAIL_DATA=str(recorded.data))
        assert done.code == 0, done.err
        assert done.out
    for name in report(tmp_path / "fresh"):
        assert f"`{name}`" in page, f"docs/replay.md does not name {name}"
