"""The log's directory as evidence: whatever is done to a file that matters is a finding, and the rest is still read."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from tests.tamper.trails import (
    CHECKPOINTS,
    ORIGIN,
    SERVICE,
    STRANGER,
    VKEY,
    hashes_of,
    sealed_log,
    seen,
    signed_mixture,
    verified,
)

from tasktrail.projections.tlog.findings import Finding
from tasktrail.projections.tlog.note import COSIGNATURE, Checkpoint, Note, cosign, sign, vkey
from tasktrail.services.log_reading import (
    Trusted,
    WrongCheckpoint,
    WrongKey,
    check_files,
    read_checkpoints,
    read_log,
)

pytestmark = pytest.mark.requirement("T2")

SIZES = (100, 300, 700)
MESSAGES = signed_mixture(700, seed=21)
LEAVES = hashes_of(MESSAGES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a log of three checkpoints."""
    data = tmp_path_factory.mktemp("data")
    sealed_log(data / "tlog", MESSAGES, *SIZES)
    return data


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """One of one's own."""
    return Path(shutil.copytree(made, tmp_path / "data"))


def found(data: Path) -> list[Finding]:
    """What is found in the log of a trail that is as it was written."""
    log = read_log(data / "tlog", Trusted.of([VKEY], data))
    verdict = verified(MESSAGES, log.known, log.tree, quick=True)
    return [*verdict.findings, *log.findings, *check_files(data / "tlog", lambda _: None)]


def test_a_log_as_it_was_written_gives_no_finding(data: Path) -> None:
    """Every tile, head and checkpoint."""
    assert found(data) == []
    log = read_log(data / "tlog", Trusted.of((), data))
    assert sorted(one.size for one in log.known) == list(SIZES)


@pytest.mark.parametrize("change", ["flip", "cut", "lose"])
def test_any_tile_that_is_changed_cut_or_lost_is_found(data: Path, change: str) -> None:
    """All of them that the newest checkpoint needs."""
    tlog = data / "tlog"
    needed = ["tile/0/000", "tile/0/001", f"tile/0/002.p/{700 - 512}", "tile/1/000.p/2"]
    for name in needed:
        whole = (tlog / name).read_bytes()
        if change == "lose":
            (tlog / name).unlink()
        else:
            at = len(whole) // 2
            wrong = whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] if change == "flip" else whole[:-5]
            (tlog / name).write_bytes(wrong)
        findings = found(data)
        (tlog / name).write_bytes(whole)
        assert {one.kind.value for one in findings} == {"tree"}, (name, findings)
        if name.startswith("tile/0"):
            index = int(name[7:10]) * 256
            assert index <= (findings[0].index or 0) < index + 256, (name, findings)
    assert found(data) == []


def test_any_checkpoint_that_is_changed_is_found(data: Path) -> None:
    """Text or signature: every byte of the newest, and the files as wholes."""
    tlog = data / "tlog"
    file = tlog / "checkpoints" / f"{700:020}"
    whole = file.read_bytes()
    for at in range(0, len(whole), 3):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        findings = found(data)
        assert findings, at
        assert {one.kind.value for one in findings} == {"tree"}, (at, findings)
    file.write_bytes((tlog / "checkpoints" / f"{300:020}").read_bytes())
    assert any("is a checkpoint of 300 entries" in one.what for one in found(data))
    file.write_bytes(whole)
    text = Checkpoint(ORIGIN, 500, LEAVES[0], b"\1" * 32).text()
    strange = Note(text, (sign(text, ORIGIN, STRANGER.raw, STRANGER.key.sign),))
    (tlog / "checkpoints" / f"{500:020}").write_bytes(strange.encode())
    assert any("is not signed by" in one.what for one in found(data))
    ours = Note(text, (sign(text, ORIGIN, CHECKPOINTS.raw, CHECKPOINTS.key.sign),))
    (tlog / "checkpoints" / f"{500:020}").write_bytes(ours.encode())
    assert "forked" in {one.kind.value for one in found(data)}


@pytest.mark.parametrize("name", [f"{700:020}.bak", "notes", "700"])
def test_a_file_that_is_not_named_as_a_checkpoint_is_found(data: Path, name: str) -> None:
    """The names are the sizes, in 20 digits; a copy under another name is nothing that the log wrote."""
    folder = data / "tlog" / "checkpoints"
    shutil.copy(folder / f"{700:020}", folder / name)
    (one,) = found(data)
    assert (one.kind.value, f"{folder / name} is" in one.what) == ("tree", True)


def test_one_cut_note_in_a_directory_of_copies_is_told_of_and_the_others_count(data: Path) -> None:
    """A copy that was being written when the machine stopped must not keep the rest from being used."""
    folder, trusted = data / "tlog" / "checkpoints", Trusted.of([VKEY], data)
    cut = folder / f"{300:020}"
    cut.write_bytes(cut.read_bytes()[:-20])
    kept = read_checkpoints(folder, trusted)
    assert sorted(one.size for one in kept.known) == [100, 700]
    assert [str(cut) in why for why in kept.left_out] == [True]
    for size in (100, 700):
        (folder / f"{size:020}").unlink()
    with pytest.raises(WrongCheckpoint, match="holds no checkpoint"):
        read_checkpoints(folder, trusted)


@pytest.mark.parametrize(
    "said",
    [
        "UPDATE records SET count = count + 1 WHERE key = (SELECT max(key) FROM records)",
        "DELETE FROM records WHERE key = (SELECT min(key) FROM records)",
        "UPDATE buckets SET hash = zeroblob(32) WHERE bucket = (SELECT max(bucket) FROM buckets)",
        "UPDATE state SET position = 300",
    ],
)
def test_heads_that_are_changed_are_found(data: Path, said: str) -> None:
    """The committed heads are in one SQLite file."""
    with contextlib.closing(sqlite3.connect(data / "tlog" / "heads.sqlite")) as connection:
        connection.execute(said)
        connection.commit()
    findings = found(data)
    assert {one.kind.value for one in findings} == {"tree"}, findings


def test_a_log_that_is_lost_altogether_is_found(data: Path) -> None:
    """With the key from elsewhere; without any, there is nothing to hold the trail against."""
    shutil.rmtree(data / "tlog")
    assert {one.kind.value for one in found(data)} == {"tree"}
    with pytest.raises(WrongKey, match="--key"):
        Trusted.of((), data)


def test_a_log_that_somebody_else_signed_is_not_believed(data: Path) -> None:
    """Cut off, and signed again by another key."""
    shutil.rmtree(data / "tlog")
    sealed_log(data / "tlog", MESSAGES, 100, 300, signer=STRANGER)
    log = read_log(data / "tlog", Trusted.of([VKEY], data))
    assert [one.what.startswith("none of the 3 checkpoints") for one in log.findings] == [True]
    assert log.known == []
    own_word = read_log(data / "tlog", Trusted.of((), data))
    assert verified(MESSAGES[:300], own_word.known, own_word.tree, quick=True).ok


def test_keys_are_texts_or_files_and_nothing_else(tmp_path: Path) -> None:
    """A verifier key is public: it may be an argument."""
    file = tmp_path / "keys"
    file.write_text(f"{VKEY}\n\n{vkey('witness', STRANGER.raw, COSIGNATURE)}\n", encoding="ascii")
    assert len(Trusted.of([str(file)], tmp_path).verifiers) == 2
    assert Trusted.of([VKEY], tmp_path).named().startswith(ORIGIN)
    file.write_text("\n", encoding="ascii")
    for wrong in (str(file), "no key", SERVICE.public, f"{VKEY}x"):
        with pytest.raises(WrongKey):
            Trusted.of([wrong], tmp_path)


def test_a_checkpoint_kept_elsewhere_counts_when_a_trusted_key_or_witness_signed_it(data: Path, tmp_path: Path) -> None:
    """C2SP tlog-cosignature: a witness's cosignature is of the checkpoint's text."""
    kept = data / "tlog" / "checkpoints" / f"{300:020}"
    trusted = Trusted.of([VKEY], data)
    (one,) = read_checkpoints(kept, trusted).known
    assert (one.size, one.own) == (300, False)
    assert sorted(one.size for one in read_checkpoints(kept.parent, trusted).known) == list(SIZES)
    witness = Trusted.of([vkey("witness", STRANGER.raw, COSIGNATURE)], data)
    with pytest.raises(WrongCheckpoint, match="not signed by witness"):
        read_checkpoints(kept, witness)
    note = Note.parse(kept.read_bytes())
    by_witness = cosign(note.text, "witness", STRANGER.raw, STRANGER.key.sign, 1_800_000_000)
    cosigned = tmp_path / "cosigned"
    cosigned.write_bytes(Note(note.text, (*note.signatures, by_witness)).encode())
    assert read_checkpoints(cosigned, witness).known[0].size == 300
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "not-there", tmp_path / "empty", data / "tlog" / "vkey"):
        with pytest.raises(WrongCheckpoint):
            read_checkpoints(wrong, trusted)


def test_a_trail_cut_off_and_signed_again_is_found_by_a_witness(data: Path) -> None:
    """Issue: truncate and re-sign with the real checkpoint key."""
    kept = read_checkpoints(data / "tlog" / "checkpoints" / f"{700:020}", Trusted.of([VKEY], data)).known
    shutil.rmtree(data / "tlog")
    sealed_log(data / "tlog", MESSAGES, 100, 500)
    log = read_log(data / "tlog", Trusted.of([VKEY], data))
    assert verified(MESSAGES[:500], log.known, log.tree, quick=True).ok
    assert seen(verified(MESSAGES[:500], [*log.known, *kept], log.tree, quick=True)) == ("forked", 500)
