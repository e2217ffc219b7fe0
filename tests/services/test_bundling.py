"""Evidence taken out of a real `tasktrail up`, and checked by the stand-alone file. Source: issue "Forensics"; T7."""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from tests.projections.audit.histories import Trail
from tests.projections.audit.histories import caller as called
from tests.projections.tlog.bundles import WITNESS, WITNESS_KEY, Exporter, signed
from typer.testing import CliRunner

from tasktrail.events.authority import Actor, Level
from tasktrail.events.errors import InvalidRequest
from tasktrail.projections.audit.store import AuditStore
from tasktrail.projections.tlog.bundle import NothingToProve, verifier
from tasktrail.projections.tlog.log import Log
from tasktrail.projections.tlog.note import Checkpoint, Note, cosign, sign
from tasktrail.projections.tlog.offline_checks import tar_of, unpacked
from tasktrail.services import bundle_selection, bundling
from tasktrail.services.bundle_selection import Found, Selector
from tasktrail.services.bundling import unlike
from tasktrail.services.keyring import Keyring
from tasktrail.services.terminal import app
from tasktrail.services.witnessing import Cosigned
from tasktrail.testing.feeding import Feeder, Refused, asked, caller, creation
from tasktrail.testing.service import UpProcess, wait_for

ANA, EVE = caller("ana"), caller("eve", client_id="eve-cli")
WHY = ("--reason", "a court asks", "--case", "C-7")
READER, HOLDER = "rita-s-own-token", "hugo-s-own-token"
CLEAN: dict[str, str | None] = {name: None for name in os.environ if name.startswith(("TASKTRAIL_", "COLUMNS"))}
CONFIGURATION = f"""
[[servers]]
name = "*"
asserts = true

[[operators]]
name = "rita"
sha256 = "{hashlib.sha256(READER.encode()).hexdigest()}"
rights = ["read"]

[[operators]]
name = "hugo"
sha256 = "{hashlib.sha256(HOLDER.encode()).hexdigest()}"
rights = ["hold"]
"""


class Ran(NamedTuple):
    """What became of a run."""

    code: int
    out: str
    err: str


class Place(NamedTuple):
    """A running service with a task of Ana's: denied to Eve, ended, and polled."""

    up: UpProcess
    ref: str
    task: str

    def run(self, *arguments: str, said: str = "") -> Ran:
        """A command on its data directory."""
        return run(*arguments, "--data", str(self.up.data), said=said)

    def export(self, out: Path, *arguments: str, said: str = "") -> dict[str, Any]:
        """What became of an export that is not refused."""
        ran = self.run("bundle", "export", "--out", str(out), *WHY, "--json", *arguments, said=said)
        assert (ran.code, ran.err) == (0, ""), ran
        done: dict[str, Any] = json.loads(ran.out)
        return done

    @property
    def key(self) -> str:
        """The public key, as its operator tells it."""
        return (self.up.data / "tlog" / "vkey").read_text().strip()


def run(*arguments: str, said: str = "") -> Ran:
    result = CliRunner().invoke(app, list(arguments), said.encode(), prog_name="tasktrail", env=CLEAN)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Ran(result.exit_code, result.stdout, result.stderr)


async def _feed(up: UpProcess) -> str:
    feeder = await Feeder.connect(up.adapter(), "reports")
    try:
        task = str((await feeder.request("create", creation(ANA, "c-1", arguments={"a": 1})))["task_id"])
        with pytest.raises(Refused):
            await feeder.request("get", asked(EVE, "tasks/get", task_id=task))
        await feeder.request("get", asked(ANA, "tasks/get", task_id=task))
        for number in range(5):
            await feeder.request("create", creation(EVE, f"e-{number}"))
        await feeder.request("cancel", asked(ANA, "tasks/cancel", task_id=task, command_id="x-1"))
        return task
    finally:
        await feeder.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("bundling")
    configuration = folder / "tasktrail.toml"
    configuration.write_text(CONFIGURATION)
    with UpProcess(folder / "data", "--config", str(configuration)) as up:
        task = asyncio.run(_feed(up))
        ran = run("tasks", "--sub", "ana", "--json", "--data", str(up.data))
        assert ran.code == 0, ran
        yield Place(up, json.loads(ran.out)[0]["task_ref"], task)


def interpreter() -> str:
    """Another Python than ours when there is one."""
    ours = f"python3.{sys.version_info.minor}"
    others = (shutil.which(f"python3.{minor}") for minor in (9, 10, 12, 13, 14, 11))
    for other in (one for one in others if one and not one.endswith(ours)):
        if subprocess.run([other, "-c", ""], check=False, capture_output=True).returncode == 0:
            return other
    return sys.executable


def alone(bundle: Path, empty: Path, *arguments: str) -> Ran:
    """The bundle's own verify.py, with nothing else, in an empty directory."""
    script = empty.with_name("verify.py")
    script.write_bytes(unpacked(bundle.read_bytes())["verify.py"])
    empty.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [interpreter(), "-I", script, bundle, *arguments],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert list(empty.iterdir()) == []
    return Ran(done.returncode, done.stdout, done.stderr)


def verified(place: Place, bundle: Path, *more: str) -> dict[str, Any]:
    """The report of the command and of the stand-alone file, which are the same."""
    ran = run("bundle", "verify", str(bundle), "--key", place.key, "--json", *more)
    other = alone(bundle, bundle.with_name("empty"), "--key", place.key, "--json", *more)
    assert (ran.code, json.loads(ran.out)) == (other.code, json.loads(other.out)), (ran, other)
    report: dict[str, Any] = json.loads(ran.out)
    assert ran.code == (report["verdict"] != "PROVEN"), report
    return report


@pytest.mark.requirement("T7")
def test_a_task_is_taken_out_and_proved_by_a_file_that_needs_only_python(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "evidence.tar"
    done = place.export(out, "--task", place.ref)
    assert done["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    report = verified(place, out)
    assert report["verdict"] == "PROVEN", report
    assert report["findings"] == []
    assert [line for line in report["told"] if line.startswith(f"complete: task {place.ref}")], report["told"]
    events = [event for row in report["entries"] for event in row["events"]]
    assert {"TaskCreated", "CancelRequested", "TaskPolled", "AccessDenied", "KeyActivated"} <= set(events), events
    created = next(row for row in report["entries"] if "TaskCreated" in row["events"])
    assert (created["verdict"], created["principal_level"]) == ("ASSERTED", "asserted")
    assert report["custody"]["exported_by"] == "responder"
    assert (report["custody"]["case_id"], report["custody"]["entry_id"]) == ("C-7", done["entry"])


@pytest.mark.requirement("T7")
def test_the_trail_says_what_was_handed_out_before_anybody_has_it(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "evidence.tar"
    done = place.export(out, "--task", "-", said=f"{place.task}\n")
    # Another bundle, of everything, holds the entry about the first.
    whole = tmp_path / "whole.tar"
    place.export(whole, "--from-seq", "1", "--to-seq", "100000")
    entries = [msgspec.json.decode(body) for name, body in unpacked(whole.read_bytes()).items() if "entries/" in name]
    entry = next(one for one in entries if one["id"] == done["entry"])
    event = entry["events"][0]
    assert (event["type"], event["bundle_sha256"]) == ("BundleExported", done["sha256"])
    assert (event["scope"], event["parameters"]) == ("task", {"task": place.ref})
    assert (event["case_id"], event["reason"], event["tree_size"]) == ("C-7", "a court asks", done["tree_size"])
    assert entry["authority"]["decision"]["effect"] == "allow"
    assert place.task.encode() not in whole.read_bytes()
    report = verified(place, whole)
    assert report["verdict"] == "PROVEN", report
    assert any(line.startswith("complete: every sequence from 1 to ") for line in report["told"])


@pytest.mark.requirement("T7")
def test_each_scope_holds_what_it_names(place: Place, tmp_path: Path) -> None:
    eve = place.export(tmp_path / "eve.tar", "--principal", "eve", "--iss", EVE["iss"])
    report = verified(place, tmp_path / "eve.tar")
    assert report["verdict"] == "PROVEN", report
    assert len([line for line in report["told"] if line.startswith("complete: task")]) == 5
    assert eve["entries"] == len(report["entries"])
    place.export(tmp_path / "times.tar", "--from", "2020-01-01T00:00:00Z", "--to", "2100-01-01T00:00:00Z")
    assert verified(place, tmp_path / "times.tar")["scope"]["kind"] == "time"
    place.export(tmp_path / "query.tar", "--query", "by_principal", "--param", "sub=ana")
    report = verified(place, tmp_path / "query.tar")
    assert report["verdict"] == "PROVEN", report
    assert report["scope"]["parameters"] == {"query": "by_principal", "sub": "ana"}


def test_an_earlier_checkpoint_shows_that_the_log_only_grew(place: Place, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.write_bytes((place.up.data / "tlog" / "checkpoint").read_bytes())
    size = int(held.read_text().splitlines()[1])
    place.export(tmp_path / "growth.tar", "--task", place.ref)
    wait_for(
        "a further checkpoint", lambda: int((place.up.data / "tlog" / "checkpoint").read_text().splitlines()[1]) > size
    )
    place.export(tmp_path / "evidence.tar", "--task", place.ref, "--holding", str(size))
    report = verified(place, tmp_path / "evidence.tar", "--checkpoint", str(held))
    assert report["verdict"] == "PROVEN", report
    assert f"the log only grew since the checkpoint you hold, of size {size}" in report["told"]


def test_the_newest_cosigned_checkpoint_that_the_log_reaches_comes_with_the_bundle(
    place: Place, tmp_path: Path
) -> None:
    """C2SP tlog-cosignature. Witnesses are asked later than the checkpoint is made, and may be ahead of an open log."""
    folder, held = place.up.data / "tlog" / "cosigned", tmp_path / "held"
    held.write_bytes((place.up.data / "tlog" / "checkpoint").read_bytes())
    note, ring = Note.parse(held.read_bytes()), Keyring.open(place.up.data)
    size = Checkpoint.parse(note.text).size
    text = Checkpoint(ring.origin, 10**9, bytes(32), bytes(32)).text()
    ahead = Note(text, (sign(text, ring.origin, ring.checkpoint_publics[0], ring.sign_checkpoint),))
    for one in (note, ahead):
        saw = cosign(one.text, "witness.example", WITNESS.public, WITNESS.private.sign, 1_800_000_000)
        Cosigned(folder).add(one, saw)
    try:
        place.export(tmp_path / "evidence.tar", "--task", place.ref)
    finally:
        shutil.rmtree(folder)
    report = verified(place, tmp_path / "evidence.tar", "--witness", WITNESS_KEY)
    assert report["verdict"] == "PROVEN", report
    assert f"the witness witness.example saw the first {size} entries, 1800000000 s after 1970 began" in report["told"]


def test_without_a_key_or_with_another_nothing_is_proved(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "evidence.tar"
    place.export(out, "--task", place.ref)
    for ran in (run("bundle", "verify", str(out)), alone(out, tmp_path / "empty")):
        assert ran.code == 2, ran
        assert "verdict     UNTRUSTED" in ran.out
        assert "with --key; a key that comes with a bundle proves nothing about it" in ran.out
    name, _, public = place.key.split("+", 2)
    wrong = run("bundle", "verify", str(out), "--key", f"{name}+00000000+{public}")
    assert (wrong.code, wrong.out) == (2, "")
    assert "cut or mistyped" in wrong.err


def test_what_is_changed_after_the_export_is_found(place: Place, tmp_path: Path) -> None:
    out, bad = tmp_path / "evidence.tar", tmp_path / "bad.tar"
    place.export(out, "--task", place.ref)
    files = unpacked(out.read_bytes())
    name = next(name for name, body in files.items() if name.startswith("entries/") and b"TaskCreated" in body)
    bad.write_bytes(tar_of({**files, name: files[name].replace(b"ana", b"eve")}))
    report = verified(place, bad)
    assert report["verdict"] == "FAILED"
    assert [row["stream_seq"] for row in report["entries"] if row["verdict"] == "FAILED"] == [int(name[8:-5])]


def test_a_bundle_never_overwrites_and_needs_the_right_to_read(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "evidence.tar"
    out.write_text("mine")
    again = place.run("bundle", "export", "--out", str(out), *WHY, "--task", place.ref)
    assert (again.code, out.read_text()) == (2, "mine")
    assert "is not overwritten" in again.err
    for token, code in ((READER, 0), (HOLDER, 2)):
        file = tmp_path / f"{code}.token"
        file.touch(mode=0o600)
        file.write_text(token)
        ran = place.run(
            "bundle", "export", "--out", str(tmp_path / f"{code}.tar"), *WHY, "--task", place.ref, "--as", str(file)
        )
        assert ran.code == code, ran
        assert (tmp_path / f"{code}.tar").exists() is (code == 0)
    assert "it needs `read`" in ran.err


@pytest.mark.requirement("T7")
def test_a_trail_that_gets_no_checkpoints_any_more_still_gives_evidence(tmp_path: Path) -> None:
    """The log's key signed another history elsewhere: signing stops, and what was proved before can be taken out."""
    copies, configuration, out = tmp_path / "copies", tmp_path / "tasktrail.toml", tmp_path / "evidence.tar"
    copies.mkdir()
    configuration.write_text(f"{CONFIGURATION}\n[tlog]\ncopies = ['{copies}']\n")
    with UpProcess(tmp_path / "data", "--config", str(configuration)) as up:
        asyncio.run(_feed(up))
        ran = run("tasks", "--sub", "ana", "--json", "--data", str(up.data))
        here = Place(up, json.loads(ran.out)[0]["task_ref"], "")
        here.export(out, "--task", here.ref)
        ring = Keyring.open(up.data)
        text = Checkpoint(ring.origin, 10_000, bytes(32), bytes(32)).text()
        note = Note(text, (sign(text, ring.origin, ring.checkpoint_publics[0], ring.sign_checkpoint),))
        [folder] = copies.iterdir()
        (folder / f"{10_000:020}").write_bytes(note.encode())
        out.unlink()
        ran = here.run("bundle", "export", "--out", str(out), *WHY, "--task", here.ref)
        assert ran.code == 0, ran
        assert "No checkpoint was signed at the time of the export" in ran.err
        report = verified(here, out)
        assert report["verdict"] == "PROVEN", report
        assert report["custody"]["note"].startswith("No checkpoint was signed")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "in one way"),
        (("--task", "a" * 32), "no task on this trail"),
        (("--task", "x", "--query", "owners"), "in one way"),
        (("--from", "yesterday", "--to", "2100-01-01"), "write it like"),
        (("--from", "2020-01-01T00:00:00Z"), "needs since, until"),
        (("--from", "0001-01-01T00:00:00+01:00", "--to", "2100-01-01"), "no time that the trail can hold"),
        (("--from", "2020-01-01", "--to", "9999-12-31T23:00:00-01:00"), "no time that the trail can hold"),
        (("--from-seq", "9", "--to-seq", "3"), "is before the first"),
        (("--from-seq", "1000000", "--to-seq", "1000001"), "nothing from 1000000 on can be proved"),
        (("--query", "nonsense"), "there is no query"),
        (("--query", "by_principal"), "sub is missing"),
        (("--principal", "ana", "--param", "sub"), "name=value"),
        (("--principal", "\udcff"), "no text in UTF-8"),
    ],
)
def test_an_order_that_names_no_scope_says_what_it_takes(
    place: Place, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    ran = place.run("bundle", "export", "--out", str(tmp_path / "evidence.tar"), *WHY, *arguments)
    assert ran.code in {1, 2}, ran
    assert says in ran.err
    assert not list(tmp_path.iterdir())


def test_the_bundles_verifier_is_the_one_of_this_version(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "evidence.tar"
    place.export(out, "--task", place.ref)
    assert unpacked(out.read_bytes())["verify.py"] == verifier()


def test_a_principals_bundle_holds_also_what_it_did_for_somebody_else(tmp_path: Path) -> None:
    """As the named query `by_principal`. RFC 8693, section 4.1: the actor acts for the subject."""
    trail = Trail()
    agent = Actor(sub="agent", iss="https://agents.example", level=Level.VERIFIED)
    trail.create(sub="agent", authority=called("agent", "T1"))  # 1: its own, at another issuer
    trail.create(authority=called("ana", "T2", actors=(agent,)))  # 2
    trail.create(authority=called("ana", "T3"))  # 3
    with contextlib.closing(AuditStore.open(tmp_path / "audit.duckdb")) as store:
        store.bind("TRAIL", datetime.now(UTC), trail.messages[-1].stream_seq)
        store.append(trail.messages)
        with Selector.open(store, 3) as selector:
            for iss, sequences in (("", {1, 2}), (agent.iss, {2}), ("https://other.example", set())):
                assert selector.of_principal("agent", iss, "", "").sequences == sequences, iss
            assert selector.of_principal("ana", "", "", "").sequences == {2, 3}


def test_more_than_a_bundle_holds_is_noticed_without_reading_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_selection, "ENTRIES_MAX", 3)
    monkeypatch.setattr(bundle_selection, "FOUND_MAX", 4)
    trail = Trail()
    refs = [trail.create() for _ in range(3)]
    for _ in range(9):
        trail.poll(refs[0])
    with contextlib.closing(AuditStore.open(tmp_path / "audit.duckdb")) as store:
        store.bind("TRAIL", datetime.now(UTC), trail.messages[-1].stream_seq)
        store.append(trail.messages)
        rows = iter([1, 1, 1, 1, 2, 3, 4, 5])
        with Selector.open(store, 12) as selector:
            assert selector.of_tasks(selector.tasks(refs[1:])).sequences == {2, 3}
            asks: list[Callable[[], object]] = [
                lambda: selector.of_tasks(selector.tasks(refs[:1])),
                lambda: selector.of_principal("ana", "", "", ""),
                lambda: selector.of_rows(rows),
                lambda: selector.within(1, 4),
            ]
            for ask in asks:
                with pytest.raises(NothingToProve, match="more than the 3"):
                    ask()
            assert list(rows) == [5]
            far = datetime.fromisoformat("0001-01-01T00:00:00+01:00")
            with pytest.raises(InvalidRequest, match="no time that the trail can hold"):
                selector.between(far, datetime.now(UTC))


def test_what_is_not_read_from_the_trail_again_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that was changed everywhere: the trail is asked for some of it, and the bundle says for which."""
    here = Exporter(tmp_path / "log", signed(20))
    odd = [one._replace(body=b"{}") for one in here.messages[4:]]
    found = Found(messages=[*here.messages[:2], *odd], refused={}, absent=frozenset({3, 4}))
    with Log.open(here.folder, read_only=True) as log:
        assert unlike(found, log) == (list(range(3, 21)), "")
        monkeypatch.setattr(bundling, "FETCHED_MAX", 5)
        wanted, said = unlike(found, log)
    assert wanted == [3, 4, 5, 6, 7]
    assert "In 18 places the audit store has not what the tree has. Only the first 5 of them" in said
    assert "from 8 on" in said
