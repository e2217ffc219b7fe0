"""Bundles: what is in them, and what a verifier makes of honest and incomplete ones. Source: T7; docs/evidence.md."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.projections.audit.histories import Trail, ana, operator
from tests.projections.tlog.bundles import (
    LEDGER,
    LOG,
    ORIGIN,
    STRANGER,
    WITNESS_KEY,
    Exporter,
    Pair,
    signed,
    signed_by,
    tasks_of,
)

from tasktrail.events.authority import Level
from tasktrail.events.commands import CompleteTask
from tasktrail.events.subjects import access_subject, control_subject
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog.bundle import ENTRIES_MAX, NothingToProve
from tasktrail.projections.tlog.note import COSIGNATURE, vkey
from tasktrail.projections.tlog.offline import LIMITS, main, told_of, untrusted, verify
from tasktrail.projections.tlog.offline_checks import Checkpoint, Key, tar_of, unpacked

WITNESS_OF = Key.of(WITNESS_KEY)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    return Exporter(tmp_path_factory.mktemp("bundle") / "log", signed(300), sizes=[1, 40, 200])


def a_task(here: Exporter, least: int = 4) -> str:
    """A task of several entries, some of access."""
    for ref, task in tasks_of(here.messages).items():
        own, access = (sum(one.subject == subject for one in here.messages) for subject in task.subjects)
        if own >= least and access:
            return ref
    raise AssertionError


def of_task(here: Exporter, ref: str) -> list[Message]:
    own = tasks_of(here.messages)[ref].subjects[0]
    return [one for one in here.messages if one.subject == own]


def verdicts(report: dict[str, Any]) -> dict[int, str]:
    return {row["stream_seq"]: row["verdict"] for row in report["entries"]}


def found(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["verdict"], one["where"]) for one in report["findings"]]


@pytest.mark.requirement("T7")
def test_a_whole_trail_is_proved_and_every_task_of_it_is_complete(here: Exporter) -> None:
    report = verify(here.write(here.everything()), here.keys, [WITNESS_OF])
    assert (report["verdict"], report["findings"]) == ("PROVEN", [])
    assert set(verdicts(report).values()) <= {"PROVEN", "ASSERTED"}
    assert len(report["entries"]) == 300
    told = [line for line in report["told"] if line.startswith("complete: task")]
    assert len(told) == len(tasks_of(here.messages))
    assert "complete: every sequence from 1 to 300" in report["told"]
    assert report["not_shown"] == list(LIMITS)
    assert report["checkpoint"]["size"] == 300


def test_the_same_contents_and_checkpoint_give_the_same_bytes(here: Exporter, tmp_path: Path) -> None:
    again = Exporter(tmp_path / "log", here.messages, sizes=[1, 40, 200])
    data = here.write(here.everything())
    assert data == again.write(again.everything())
    files = unpacked(data)
    manifest = msgspec.json.decode(files["manifest.json"])
    assert manifest["files"] == {
        name: hashlib.sha256(body).hexdigest() for name, body in files.items() if not name.startswith("manifest.")
    }
    assert files["entries/7.json"] == here.messages[6].body


def test_a_report_is_told_in_lines_and_as_a_document(here: Exporter) -> None:
    report = verify(here.write(here.contents([a_task(here)])), here.keys)
    lines = list(told_of(report))
    assert lines[0].startswith("bundle      sha256 ")
    assert lines[-1] == "verdict     PROVEN"
    assert "What this cannot show:" in lines
    assert any("TaskCreated; principal verified" in line for line in lines)
    assert json.loads(json.dumps(report)) == report


def without(here: Exporter, ref: str, gone: Iterable[int]) -> dict[str, Any]:
    """The report on a bundle that an exporter made who leaves entries out and says nothing of it."""
    contents = here.contents([ref])
    left = set(gone)
    kept = [one for one in contents.messages if one.stream_seq not in left]
    return verify(here.write(msgspec.structs.replace(contents, messages=kept)), here.keys)


@pytest.mark.requirement("T7")
def test_an_exporter_cannot_leave_out_the_last_entries_of_a_task(here: Exporter) -> None:
    """Design §1.6; issue: a committed map of task heads."""
    ref = a_task(here)
    own = [one.stream_seq for one in of_task(here, ref)]
    subject = of_task(here, ref)[0].subject
    for gone in (own[-1:], own[-2:], own[:1], own[1:2], own):
        report = without(here, ref, gone)
        assert report["verdict"] == "MISSING", gone
        assert ("MISSING", subject) in found(report)
        assert not [line for line in report["told"] if line.startswith("complete")]
    access = [one.stream_seq for one in here.messages if one.subject == tasks_of(here.messages)[ref].subjects[1]]
    report = without(here, ref, access[-1:])
    assert found(report) == [("MISSING", tasks_of(here.messages)[ref].subjects[1])]


def test_an_exporter_cannot_call_another_tasks_entry_this_ones(here: Exporter) -> None:
    ref = a_task(here)
    last = of_task(here, ref)[-1]
    other = next(one for one in here.messages if one.subject != last.subject and one.subject.split(".")[2] == "task")
    contents = here.contents([ref])
    messages = [other._replace(subject=last.subject) if one is last else one for one in contents.messages]
    messages.sort(key=lambda one: one.stream_seq)
    report = verify(here.write(msgspec.structs.replace(contents, messages=messages)), here.keys)
    assert report["verdict"] == "FAILED"
    row = next(row for row in report["entries"] if row["stream_seq"] == other.stream_seq)
    assert row["reason"] == "it is listed under a subject that is not its own"


def test_who_acted_only_by_a_peers_word_is_asserted(tmp_path: Path) -> None:
    trail = Trail()
    trail.note(control_subject("_"), "_", (LEDGER.announced(),), authority=operator("service", "_"))
    ref = trail.create(authority=ana(level=Level.ASSERTED))
    trail.command(ref, CompleteTask(id="c", result=trail.sealed("result")), ana(level=Level.CLAIMED))
    here = Exporter(tmp_path / "log", [signed_by(LEDGER, one) for one in trail.messages])
    report = verify(here.write(here.everything()), here.keys)
    assert report["verdict"] == "PROVEN"
    assert [row["verdict"] for row in report["entries"]] == ["PROVEN", "ASSERTED", "ASSERTED"]
    assert [row["principal_level"] for row in report["entries"]] == ["vouched", "asserted", "claimed"]
    assert report["entries"][2]["unproved"] == "principal claimed, client claimed, credential claimed"


def test_a_hole_of_the_stream_is_missing_and_the_tree_says_so(tmp_path: Path) -> None:
    messages = [one for one in signed(50) if one.stream_seq != 20]
    here = Exporter(tmp_path / "log", messages)
    report = verify(here.write(here.everything()), here.keys)
    assert report["verdict"] == "MISSING"
    row = next(row for row in report["entries"] if row["stream_seq"] == 20)
    assert (row["verdict"], row["reason"]) == ("MISSING", "the stream did not hold it; the tree says so")
    contents = here.everything(gaps=frozenset({20, 21}), messages=[one for one in messages if one.stream_seq != 21])
    report = verify(here.write(contents), here.keys)
    assert verdicts(report)[21] == "FAILED", "an entry that is there is no gap"


def test_a_refused_message_is_shown_and_proves_nothing(tmp_path: Path) -> None:
    messages = signed(50)
    ref = next(iter(tasks_of(messages)))
    own = tasks_of(messages)[ref].subjects[0]
    garbage = Message(51, own, b"garbage \xff", "x", "", "")
    here = Exporter(tmp_path / "log", [*messages, garbage])
    report = verify(here.write(here.contents([ref], refused={51: "undecodable"})), here.keys)
    assert report["entries"][-1]["verdict"] == "REFUSED"
    assert report["entries"][-1]["reason"] == "undecodable"
    assert found(report) == [("MISSING", f"task {ref}")], "its subject is the exporter's word, and so is the count"
    assert not [line for line in report["told"] if line.startswith("complete: task")]
    silent = verify(here.write(here.contents([ref])), here.keys)
    assert silent["verdict"] == "FAILED"


@pytest.mark.requirement("T7")
def test_an_exporter_cannot_call_an_entry_refused(here: Exporter, tmp_path: Path) -> None:
    """Neither to take it out of a history, nor to have another one stand for it in the count."""
    ref = a_task(here)
    last = of_task(here, ref)[-1]
    report = verify(here.write(here.contents([ref], refused={last.stream_seq: "chain"})), here.keys)
    assert verdicts(report)[last.stream_seq] == "FAILED"
    [reason] = [row["reason"] for row in report["entries"] if row["stream_seq"] == last.stream_seq]
    assert reason.startswith("it is signed and in its place")
    contents = here.contents([ref])
    filler = next(one for one in here.messages if one not in contents.messages)
    swapped = [filler._replace(subject=last.subject) if one is last else one for one in contents.messages]
    changed = msgspec.structs.replace(
        contents, messages=sorted(swapped, key=lambda one: one.stream_seq), refused={filler.stream_seq: "chain"}
    )
    report = verify(here.write(changed), here.keys)
    assert ("MISSING", f"task {ref}") in found(report)
    assert not [line for line in report["told"] if line.startswith("complete: task")]
    again = Exporter(tmp_path / "log", [*here.messages, last._replace(stream_seq=301)])
    report = verify(again.write(again.contents([ref], refused={301: "chain"})), again.keys)
    assert (report["verdict"], verdicts(report)[301]) == ("PROVEN", "REFUSED"), "the same bytes once more are a copy"


def keyed(tmp_path: Path, name: str, *announcements: tuple[Pair, Pair], by: Pair) -> dict[str, Any]:
    """The report on a trail with these announcements, (who, by whom) each, and an entry signed by `by`."""
    trail = Trail()
    signers: list[Pair] = []
    for who, signer in announcements:
        trail.note(control_subject("_"), "_", (who.announced(),), authority=operator("service", "_"))
        signers.append(signer)
    trail.create()
    messages = [signed_by(pair, one) for pair, one in zip([*signers, by], trail.messages, strict=True)]
    here = Exporter(tmp_path / name, messages)
    return verify(here.write(here.everything(), LEDGER), here.keys)


def test_a_key_counts_when_one_that_counts_announced_it(tmp_path: Path) -> None:
    new = Pair(7)
    report = keyed(tmp_path, "rotated", (LEDGER, LEDGER), (new, LEDGER), by=new)
    assert report["verdict"] == "PROVEN", report
    report = keyed(tmp_path, "intruder", (LEDGER, LEDGER), (STRANGER, STRANGER), by=STRANGER)
    assert [row["verdict"] for row in report["entries"]] == ["PROVEN", "FAILED", "FAILED"]
    assert report["entries"][2]["reason"] == "no key that the tree announces signed it"
    report = keyed(tmp_path, "other", (STRANGER, LEDGER), by=STRANGER)
    assert report["verdict"] == "FAILED"
    assert ("FAILED", "entries/1.json") in found(report)


@pytest.mark.requirement("T7")
def test_who_can_publish_but_not_sign_cannot_pass_for_the_first_key(tmp_path: Path) -> None:
    """Signatures are not in the tree: taking away the first announcement's must not let a later one be the first."""
    trail = Trail()
    for who in (LEDGER, STRANGER):
        trail.note(control_subject("_"), "_", (who.announced(),), authority=operator("service", "_"))
    trail.create()
    honest, false, forged = trail.messages
    signed_so = [signed_by(LEDGER, honest), signed_by(STRANGER, false), signed_by(STRANGER, forged)]
    here = Exporter(tmp_path / "log", signed_so)
    stripped = [signed_so[0]._replace(signature="", key_id=""), *signed_so[1:]]
    contents = here.everything(messages=stripped, refused={1: "undecodable"})
    report = verify(here.write(contents, STRANGER), here.keys)
    assert report["verdict"] == "FAILED"
    assert ("FAILED", "entries/1.json") in found(report)
    assert set(verdicts(report).values()) <= {"FAILED", "REFUSED"}


def test_an_announcement_counts_only_when_it_is_shown_to_be_the_first(tmp_path: Path) -> None:
    """An exporter who leaves out the true first one would have others believed."""
    trail = Trail()
    for pair in (LEDGER, STRANGER):
        trail.note(control_subject("_"), "_", (pair.announced(),), authority=operator("service", "_"))
    ref = trail.create()
    messages = [signed_by(pair, one) for pair, one in zip((LEDGER, STRANGER, STRANGER), trail.messages, strict=True)]
    here = Exporter(tmp_path / "log", messages)
    contents = here.contents([ref], messages=messages[1:], related=frozenset({2}))
    report = verify(here.write(contents, STRANGER), here.keys)
    assert report["verdict"] == "FAILED"
    assert set(verdicts(report).values()) == {"FAILED"}
    files = unpacked(here.write(here.contents([ref], messages=messages), STRANGER))
    del files["entries/1.json"]  # listed, and not there
    assert verdicts(verify(tar_of(files), here.keys)) == {1: "MISSING", 2: "FAILED", 3: "FAILED"}
    gap = here.contents([ref], messages=messages[1:], related=frozenset({2}), gaps=frozenset({1}))
    assert set(verdicts(verify(here.write(gap, STRANGER), here.keys)).values()) == {"FAILED"}, "called a gap"


def test_growth_since_a_checkpoint_one_holds_is_shown_or_missed(here: Exporter) -> None:
    held = Checkpoint.of(here.checkpoint(40))
    ref = a_task(here)
    before = next(one.stream_seq for one in here.messages if one.subject == of_task(here, ref)[0].subject)
    assert before < 40, "the checkpoint of 40 is not among those every bundle has"
    report = verify(here.write(here.contents([ref], holding=frozenset({40}))), here.keys, held=[held])
    assert report["verdict"] == "PROVEN", report["findings"]
    assert "the log only grew since the checkpoint you hold, of size 40" in report["told"]
    report = verify(here.write(here.contents([ref])), here.keys, held=[held])
    assert found(report) == [("MISSING", "the checkpoint you hold")]
    assert "--holding 40" in report["findings"][0]["reason"]


@pytest.mark.requirement("T7")
def test_a_fork_shows_against_a_checkpoint_one_holds(here: Exporter, tmp_path: Path) -> None:
    """Two histories under one key: without something from before nobody could tell."""
    other = Exporter(tmp_path / "log", signed(300, seed=2), sizes=[1, 40, 200])
    contents = other.contents([a_task(other)], holding=frozenset({40, 200, 300}))
    data = other.write(contents)
    assert verify(data, here.keys)["verdict"] == "PROVEN"
    for size in (40, 200, 300):
        report = verify(data, here.keys, held=[Checkpoint.of(here.checkpoint(size))])
        assert report["verdict"] == "FAILED"
        assert "forked" in report["findings"][0]["reason"]


@pytest.mark.requirement("T7")
def test_a_history_cut_and_signed_again_shows_against_a_checkpoint_one_holds(here: Exporter, tmp_path: Path) -> None:
    cut = Exporter(tmp_path / "log", here.messages[:250], sizes=[1, 40, 200])
    data = cut.write(cut.contents([a_task(cut)]))
    assert verify(data, here.keys)["verdict"] == "PROVEN"
    report = verify(data, here.keys, held=[Checkpoint.of(here.checkpoint())])
    assert found(report) == [("FAILED", "the checkpoint you hold")]
    assert "the bundle is older, or was cut" in report["findings"][0]["reason"]


def test_a_witness_that_did_not_cosign_is_missed(here: Exporter) -> None:
    data = here.write(here.contents([a_task(here)]))
    assert any("witness.example saw the first 300" in line for line in verify(data, here.keys, [WITNESS_OF])["told"])
    stranger = Key.of(vkey("witness.example", STRANGER.public, COSIGNATURE))
    assert found(verify(data, here.keys, [stranger])) == [("MISSING", "checkpoints")]


def test_another_log_key_proves_nothing(here: Exporter) -> None:
    data = here.write(here.everything())
    for pair, origin in ((STRANGER, ORIGIN), (LOG, "other.example")):
        report = verify(data, [Key.of(vkey(origin, pair.public))])
        assert report["verdict"] == "FAILED"
        assert set(verdicts(report).values()) == {"FAILED"}
        assert report["checkpoint"] is None


def test_after_a_rotation_of_the_logs_key_each_key_that_is_trusted_counts(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The bundle is proved by the new key; the checkpoint that somebody holds is signed by the old one."""
    messages = signed(60)
    old = Exporter(tmp_path / "old", messages[:40])
    new = Exporter(tmp_path / "new", messages, log=Pair(8))
    bundle, held = tmp_path / "evidence.tar", tmp_path / "held"
    bundle.write_bytes(new.write(new.everything(holding=frozenset({40}))))
    held.write_bytes(old.checkpoint())
    checkpoint = Checkpoint.of(held.read_bytes())
    report = verify(bundle.read_bytes(), [*old.keys, *new.keys], held=[checkpoint])
    assert report["verdict"] == "PROVEN", report["findings"]
    assert "the log only grew since the checkpoint you hold, of size 40" in report["told"]
    report = verify(bundle.read_bytes(), new.keys, held=[checkpoint])
    assert found(report) == [("FAILED", "the checkpoint you hold")]
    assert verify(bundle.read_bytes(), old.keys)["verdict"] == "FAILED"
    asked = [str(bundle), "--checkpoint", str(held), "--key", new.key_text]
    assert main([*asked, "--key", old.key_text]) == 0
    assert main(asked) == 1
    assert main([*asked, "--key", "nonsense"]) == 2
    capsysbinary.readouterr()


def test_policies_are_there_by_digest_or_said_to_be_absent(tmp_path: Path) -> None:
    text = "permit (principal, action, resource);"
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    trail = Trail()
    trail.note(control_subject("_"), "_", (LEDGER.announced(),), authority=operator("service", "_"))
    decided = ana()
    assert decided.decision is not None
    decision = msgspec.structs.replace(decided.decision, policy_sha256=sha256)
    trail.create(authority=msgspec.structs.replace(decided, decision=decision))
    here = Exporter(tmp_path / "log", [signed_by(LEDGER, one) for one in trail.messages])
    with_text = unpacked(here.write(here.everything(policies={sha256: text, "f" * 64: "another"})))
    assert with_text[f"policies/{sha256}.cedar"] == text.encode()
    assert not any("f" * 64 in name for name in with_text)
    absent = here.write(here.everything())
    assert msgspec.json.decode(unpacked(absent)["manifest.json"])["policies_absent"] == [sha256]
    assert verify(absent, here.keys)["verdict"] == "PROVEN"


def test_what_the_checkpoint_does_not_reach_cannot_be_exported(here: Exporter) -> None:
    late = here.messages[0]._replace(stream_seq=301)
    with pytest.raises(NothingToProve, match="does not reach"):
        here.write(here.everything(messages=[*here.messages, late]))
    with pytest.raises(NothingToProve, match=f"more than the {ENTRIES_MAX}"):
        here.write(here.everything(messages=[], gaps=frozenset(range(-ENTRIES_MAX, 2)), range=None))


def test_a_task_nobody_ever_looked_at_is_proved_to_have_no_accesses(tmp_path: Path) -> None:
    trail = Trail()
    trail.note(control_subject("_"), "_", (LEDGER.announced(),), authority=operator("service", "_"))
    quiet, polled = trail.create(), trail.create()
    trail.poll(polled)
    here = Exporter(tmp_path / "log", [signed_by(LEDGER, one) for one in trail.messages])
    report = verify(here.write(here.contents([quiet])), here.keys)
    assert report["told"] == [f"complete: task {quiet}, 1 entries of its own, 0 of access to it"]
    assert verify(here.write(here.contents([polled])), here.keys)["told"][0].endswith("1 of access to it")
    assert access_subject("acme", quiet) not in {one.subject for one in here.messages}


def test_without_a_key_it_says_which_it_takes(here: Exporter) -> None:
    report = untrusted(here.write(here.contents([a_task(here)])))
    assert report["verdict"] == "UNTRUSTED"
    assert f"the public key of {ORIGIN}" in report["findings"][0]["reason"]
    assert untrusted(b"nothing")["verdict"] == "UNTRUSTED"


def test_the_command_line_says_what_it_cannot_use(
    here: Exporter, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    bundle, key = tmp_path / "evidence.tar", tmp_path / "vkey"
    bundle.write_bytes(here.write(here.contents([a_task(here)])))
    key.write_text(here.key_text + "\n")
    assert main([str(bundle), "--key", str(key)]) == 0
    assert main([str(bundle), "--key", here.key_text, "--witness", WITNESS_KEY, "--json"]) == 0
    assert main([str(bundle)]) == 2
    capsysbinary.readouterr()
    wrong = [
        [str(tmp_path / "none.tar"), "--key", here.key_text],
        [str(tmp_path), "--key", here.key_text],
        [str(bundle), "--key", "nonsense"],
        [str(bundle), "--key", WITNESS_KEY],
        [str(bundle), "--key", here.key_text, "--witness", here.key_text],
        [str(bundle), "--key", here.key_text, "--checkpoint", str(key)],
        [str(bundle), "--key", "a\0b"],
    ]
    for asked in wrong:
        assert main(asked) == 2, asked
        told = capsysbinary.readouterr()
        assert told.out == b"", asked
        assert told.err.count(b"\n") == 1, asked
