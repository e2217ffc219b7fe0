"""The tamper campaign on a bundle of 1,000 entries: everything is found, at the right place. Source: issue; T7, T6.

What is run is the `verify.py` that goes into bundles. Signatures that were verified before are remembered: the bundles
differ in few of them.
"""

import functools
import hashlib
import json
import random
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.projections.tlog.bundles import (
    LEDGER,
    ORIGIN,
    STRANGER,
    WITNESS_KEY,
    Exporter,
    Pair,
    signed,
    signed_by,
)

from tasktrail.events.entry import decode, encode
from tasktrail.projections.tlog import offline
from tasktrail.projections.tlog.bundle import verifier
from tasktrail.projections.tlog.note import vkey
from tasktrail.projections.tlog.offline import SIGNED_AS
from tasktrail.projections.tlog.offline_checks import (
    Key,
    printable,
    tar_of,
    task_subjects,
    unpacked,
)
from tasktrail.projections.tlog.offline_ed25519 import ed25519_verified

ENTRIES = 1_000
AT_ONCE = 20
Files = dict[str, bytes]
Report = dict[str, Any]

check = functools.lru_cache(maxsize=None)(ed25519_verified)


class Campaign:
    """A bundle of everything, and the two verifiers."""

    def __init__(self, folder: Path) -> None:
        self.here = Exporter(folder / "log", signed(ENTRIES), sizes=[1, 300, 700])
        self.data = self.here.write(self.here.everything())
        self.files = unpacked(self.data)
        self.alone: Any = types.ModuleType("verify_py")
        sys.modules["verify_py"] = self.alone
        exec(compile(verifier(), "verify.py", "exec"), self.alone.__dict__)  # noqa: S102 - the file that is shipped

    def verify(self, data: bytes, key: str = "", witness: str = "", held: Iterable[bytes] = ()) -> Report:
        alone = self.alone
        witnesses = [alone.Key.of(witness)] if witness else []
        known = [alone.Checkpoint.of(one) for one in held]
        report: Report = alone.verify(data, [alone.Key.of(key or self.here.key_text)], witnesses, known, check)
        return report

    def changed(self, change: Callable[[Files], object]) -> Report:
        files = dict(self.files)
        change(files)
        return self.verify(tar_of(files))

    def rewritten(self, change: Callable[[Files], object], signer: Pair) -> bytes:
        """A bundle whose manifest was made to fit the change, and signed by this pair."""
        files = dict(self.files)
        change(files)
        manifest = msgspec.json.decode(files["manifest.json"])
        manifest["files"] = {
            name: hashlib.sha256(body).hexdigest() for name, body in files.items() if not name.startswith("manifest.")
        }
        raw = msgspec.json.encode(manifest)
        signature = {"key_id": signer.kid, "signature": signer.text(SIGNED_AS + raw)}
        return tar_of({**files, "manifest.json": raw, "manifest.sig": msgspec.json.encode(signature)})


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    made = Campaign(tmp_path_factory.mktemp("tamper"))
    assert made.verify(made.data, witness=WITNESS_KEY)["verdict"] == "PROVEN"
    return made


def entry(seq: int) -> str:
    return f"entries/{seq}.json"


def of_verdict(report: Report, verdict: str) -> set[int]:
    return {row["stream_seq"] for row in report["entries"] if row["verdict"] == verdict}


def places(report: Report) -> set[str]:
    return {one["where"] for one in report["findings"]}


def flipped(body: bytes, at: int, draw: random.Random) -> bytes:
    return bytes([*body[:at], body[at] ^ draw.randrange(1, 256), *body[at + 1 :]])


def others(campaign: Campaign) -> list[str]:
    return [name for name in campaign.files if not name.startswith("entries/")]


@pytest.mark.requirement("T7")
@pytest.mark.parametrize("start", range(1, AT_ONCE + 1))
def test_a_byte_flipped_in_any_entry_is_found_at_that_entry_and_at_no_other(campaign: Campaign, start: int) -> None:
    draw = random.Random(start)  # noqa: S311 - the same every time
    hit = set(range(start, ENTRIES + 1, AT_ONCE))

    def flip(files: Files) -> None:
        for seq in hit:
            body = files[entry(seq)]
            files[entry(seq)] = flipped(body, draw.randrange(len(body)), draw)

    report = campaign.changed(flip)
    assert report["verdict"] == "FAILED"
    assert {entry(seq) for seq in hit} <= places(report)
    if 1 in hit:  # the announcement of the key: without it no signature can be believed
        assert of_verdict(report, "FAILED") == set(range(1, ENTRIES + 1))
    else:
        assert of_verdict(report, "FAILED") == hit


@pytest.mark.requirement("T7")
def test_a_byte_flipped_in_any_other_member_is_found_there(campaign: Campaign) -> None:
    draw = random.Random(7)  # noqa: S311 - the same every time
    for name in others(campaign):
        body = campaign.files[name]
        for at in (0, len(body) // 2, len(body) - 1):
            report = campaign.verify(tar_of({**campaign.files, name: flipped(body, at, draw)}))
            assert report["verdict"] == "FAILED", (name, at)
            where = places(report)
            assert name in where or (name.startswith("manifest.") and "manifest.sig" in where), (name, at, where)


@pytest.mark.requirement("T7")
def test_a_byte_flipped_anywhere_in_the_archive_is_found(campaign: Campaign) -> None:
    draw = random.Random(8)  # noqa: S311 - the same every time
    data = campaign.data
    headers = [data.find(name.encode()) for name in list(campaign.files)[:: ENTRIES // 10]]
    spots = [start + draw.randrange(512) for start in headers] + [draw.randrange(len(data)) for _ in range(15)]
    for at in (*spots, len(data) - 1, len(data) - 1024, 0, 156, 257):
        report = campaign.verify(flipped(data, at, draw))
        assert report["verdict"] == "FAILED", at


@pytest.mark.requirement("T7")
def test_an_entry_that_is_taken_out_is_missing(campaign: Campaign) -> None:
    for start in range(2, AT_ONCE + 1, 4):
        hit = set(range(start, ENTRIES + 1, AT_ONCE))

        def take_out(files: Files, hit: set[int] = hit) -> None:
            for seq in hit:
                del files[entry(seq)]

        report = campaign.changed(take_out)
        assert report["verdict"] == "MISSING"
        assert of_verdict(report, "MISSING") == hit
        assert of_verdict(report, "FAILED") == set()


@pytest.mark.requirement("T7")
def test_any_other_member_that_is_taken_out_is_missed(campaign: Campaign) -> None:
    for name in others(campaign):
        report = campaign.verify(tar_of({one: body for one, body in campaign.files.items() if one != name}))
        assert report["verdict"] in {"MISSING", "FAILED"}, name
        assert name in places(report), (name, places(report))


@pytest.mark.requirement("T7")
def test_what_is_taken_out_with_all_that_speaks_of_it_is_found_by_the_manifests_signature(campaign: Campaign) -> None:
    """Somebody without keys takes the last entry of a task out, out of the listing and out of the claims."""
    subject = campaign.here.messages[-1].subject
    ref = subject.rpartition(".")[2]

    def take_out(files: Files) -> None:
        for name, kind in (("messages.json", "messages"), ("heads.json", "proofs"), ("manifest.json", "tasks")):
            document = msgspec.json.decode(files[name])
            document[kind] = [
                one
                for one in document[kind]
                if one.get("stream_seq") != ENTRIES and ref not in one.get("subject", "") and one.get("task_ref") != ref
            ]
            files[name] = msgspec.json.encode(document)
        del files[entry(ENTRIES)]

    for signer in (STRANGER, Pair(77)):
        report = campaign.verify(campaign.rewritten(take_out, signer))
        assert report["verdict"] == "FAILED"
        assert "manifest.sig" in places(report)


@pytest.mark.requirement("T7")
def test_neighbours_that_changed_places_are_found(campaign: Campaign) -> None:
    pairs = [(seq, seq + 1) for seq in range(2, ENTRIES - 1, 7)]

    def swap(files: Files) -> None:
        for one, other in pairs:
            files[entry(one)], files[entry(other)] = files[entry(other)], files[entry(one)]

    report = campaign.changed(swap)
    assert of_verdict(report, "FAILED") == {seq for pair in pairs for seq in pair}
    listed = campaign.verify(campaign.rewritten(swap, LEDGER))
    assert of_verdict(listed, "FAILED") == {seq for pair in pairs for seq in pair}, "even signed anew"


@pytest.mark.requirement("T7")
def test_an_entry_that_stands_there_twice_is_found(campaign: Campaign) -> None:
    instead = campaign.changed(lambda files: files.update({entry(500): files[entry(499)]}))
    assert of_verdict(instead, "FAILED") == {500}
    beside = campaign.changed(lambda files: files.update({entry(ENTRIES + 1): files[entry(499)]}))
    assert of_verdict(beside, "FAILED") == {ENTRIES + 1}
    at = campaign.data.find(b"entries/499.json\0")
    end = campaign.data.find(b"entries/5.json\0")
    assert 0 < at < end
    twice = campaign.verify(campaign.data[:end] + campaign.data[at:])
    assert (twice["verdict"], places(twice)) == ("FAILED", {"archive"})


@pytest.mark.requirement("T7")
def test_an_entry_that_the_ledgers_own_key_signed_anew_is_found(campaign: Campaign) -> None:
    """Who holds the signing key but not the log's key cannot rewrite what is in the tree."""
    old = campaign.here.messages[499]
    forged = signed_by(LEDGER, old._replace(body=encode(msgspec.structs.replace(decode(old.body), command="Other"))))

    def substitute(files: Files) -> None:
        document = msgspec.json.decode(files["messages.json"])
        document["messages"][499]["signature"] = forged.signature
        files["messages.json"] = msgspec.json.encode(document)
        files[entry(500)] = forged.body

    report = campaign.verify(campaign.rewritten(substitute, LEDGER))
    assert of_verdict(report, "FAILED") == {500}
    assert report["entries"][499]["reason"] == "these bytes are not in the tree at this place"


@pytest.mark.requirement("T7")
def test_an_archive_that_was_cut_is_found(campaign: Campaign) -> None:
    draw = random.Random(9)  # noqa: S311 - the same every time
    length = len(campaign.data)
    for at in (*(draw.randrange(length) for _ in range(60)), 0, 1, 511, 512, length - 1, length - 512, length - 1024):
        report = campaign.verify(campaign.data[:at])
        assert (report["verdict"], places(report)) == ("FAILED", {"archive"}), at


@pytest.mark.requirement("T7")
def test_a_log_that_was_cut_and_signed_again_is_found(campaign: Campaign, tmp_path: Path) -> None:
    here = campaign.here
    stranger = Exporter(tmp_path / "stranger", here.messages[:900], log=STRANGER)
    report = campaign.verify(stranger.write(stranger.everything()))
    assert report["verdict"] == "FAILED"
    assert of_verdict(report, "FAILED") == set(range(1, 901)), "by another key"
    same = Exporter(tmp_path / "same", here.messages[:900])
    data = same.write(same.everything())
    report = campaign.verify(data, held=[here.checkpoint()])
    assert (report["verdict"], places(report)) == ("FAILED", {"the checkpoint you hold"}), "by its own key"


@pytest.mark.requirement("T7")
def test_a_log_that_was_forked_is_found(campaign: Campaign, tmp_path: Path) -> None:
    here = campaign.here
    tail = signed(ENTRIES, seed=2)[600:]
    fork = Exporter(tmp_path / "fork", [*here.messages[:600], *tail], sizes=[300])
    data = fork.write(fork.everything(holding=frozenset({300, 700, ENTRIES})))
    assert campaign.verify(data, held=[here.checkpoint(300)])["verdict"] in {"PROVEN", "MISSING"}, "before the fork"
    for size in (700, ENTRIES):
        report = campaign.verify(data, held=[here.checkpoint(size)])
        assert report["verdict"] == "FAILED"
        assert "the checkpoint you hold" in places(report)
        assert any("forked" in one["reason"] for one in report["findings"])


@pytest.mark.requirement("T7")
def test_both_verifiers_say_the_same_of_every_kind_of_change(campaign: Campaign) -> None:
    """`tasktrail bundle verify` is `offline.py`; `verify.py` is made of it."""
    draw = random.Random(10)  # noqa: S311 - the same every time
    files, data = campaign.files, campaign.data
    bundles = [
        data,
        data[:-3],
        b"",
        flipped(data, len(data) // 3, draw),
        tar_of({**files, entry(9): files[entry(8)]}),
        tar_of({name: body for name, body in files.items() if name != entry(9)}),
        tar_of({name: body for name, body in files.items() if name != "proofs.json"}),
        tar_of({**files, "messages.json": b'{"messages": [{"stream_seq": 1e999}]}'}),
        tar_of({**files, "manifest.json": b"[" * 100_000}),
        tar_of({**files, "heads.json": b'{"proofs": [{"subject": "x", "subject": "y"}]}'}),
        tar_of({**files, "custody.json": b'{"exported_by": NaN}'}),
    ]
    keys = [Key.of(vkey(ORIGIN, campaign.here.pair.public))]
    for one in bundles:
        assert offline.verify(one, keys, check=check) == campaign.verify(one)


JUNK: list[object] = [None, True, -1, 2**70, 1.5, "", "x", [], {}, [None], {"a": None}, [[]], "\ud800"]


@pytest.mark.requirement("T7")
def test_documents_of_any_shape_are_failed_and_never_a_traceback(tmp_path: Path) -> None:
    """Issue: hostile bundles. Values of each document become values of every type, the manifest is made to fit."""
    here = Exporter(tmp_path / "log", signed(12), sizes=[3])
    small = Campaign.__new__(Campaign)
    small.here, small.files = here, unpacked(here.write(here.everything()))
    draw = random.Random(11)  # noqa: S311 - the same every time
    names = [name for name in small.files if name.endswith(".json") and "/" not in name] + ["manifest.sig", entry(4)]
    for name in names:
        document = msgspec.json.decode(small.files[name])
        for place in draw.sample(paths := list(_paths(document)), min(len(paths), 25)):
            for junk in draw.sample(JUNK, 3):
                raw = json.dumps(_replaced(document, place, junk)).encode()
                files = {**small.files, name: raw}
                for data in (tar_of(files), _resigned(files) if name != "manifest.sig" else tar_of(files)):
                    report = offline.verify(data, here.keys, check=check)
                    assert report["verdict"] in {"PROVEN", "MISSING", "FAILED"}
                    json.dumps(report)
                    assert all(printable(line) for line in offline.told_of(report))


@pytest.mark.requirement("T7")
def test_a_name_that_no_utf8_can_say_is_failed_where_it_stands(campaign: Campaign) -> None:
    """JSON can say half of a surrogate pair; a name with one has no hash, and no subject."""
    manifest = msgspec.json.decode(campaign.files["manifest.json"])
    manifest["tasks"][0]["task_ref"] = "\ud800"
    subject = task_subjects(manifest["tasks"][0]["tenant"], "\ud800")[0]
    heads = msgspec.json.decode(campaign.files["heads.json"])
    heads["proofs"][0]["subject"] = subject
    changed = {"manifest.json": json.dumps(manifest).encode(), "heads.json": json.dumps(heads).encode()}
    for data in (tar_of({**campaign.files, **changed}), _resigned({**campaign.files, **changed})):
        report = campaign.verify(data)
        found = [one["reason"] for one in report["findings"] if one["where"] == subject]
        assert (report["verdict"], found) == ("FAILED", ["a name in it holds half of a surrogate pair"])
        assert all(printable(line).encode() for line in offline.told_of(report))


@pytest.mark.requirement("T7")
def test_entries_of_any_shape_are_failed_and_never_a_traceback(tmp_path: Path) -> None:
    """Garbage may be in an honest tree, even under a good signature."""
    honest = signed(40)
    draw = random.Random(12)  # noqa: S311 - the same every time
    bodies = [b"", b"\xff", b"[" * 100_000, b"{}", b"null", b'{"id":1,"id":2}', b'{"at":1e999}']
    changed = [
        message._replace(body=json.dumps(_replaced(document, place, draw.choice(JUNK))).encode())
        for message in honest
        for document in [msgspec.json.decode(message.body)]
        for place in draw.sample(list(_paths(document)), 8)
    ]
    plain = [
        signed_by(LEDGER, honest[-1]._replace(stream_seq=seq, body=body, msg_id="m"))
        for seq, body in enumerate(bodies, len(honest) + 1)
    ]
    junk = [signed_by(LEDGER, one, seq) for seq, one in enumerate(changed, len(honest) + len(plain) + 1)]
    here = Exporter(tmp_path / "log", [*honest, *plain, *junk])
    contents = here.contents([], messages=here.messages, range=(1, here.messages[-1].stream_seq))
    report = offline.verify(here.write(contents), here.keys, check=check)
    assert report["verdict"] == "FAILED"
    assert len(junk) > 200
    assert of_verdict(report, "FAILED") >= {message.stream_seq for message in plain}
    json.dumps(report)
    assert all(printable(line) for line in offline.told_of(report))


def _paths(document: Any, before: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:  # noqa: ANN401 - JSON
    yield before
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for name, value in items:
            yield from _paths(value, (*before, name))


def _replaced(document: Any, place: tuple[Any, ...], value: object) -> Any:  # noqa: ANN401 - JSON
    if not place:
        return value
    copy = document.copy()
    copy[place[0]] = _replaced(document[place[0]], place[1:], value)
    return copy


def _resigned(files: Files) -> bytes:
    """Signed by the ledger's own key, so that nothing but the documents themselves is wrong."""
    try:
        manifest = json.loads(files["manifest.json"])
        manifest["files"] = {
            name: hashlib.sha256(body).hexdigest() for name, body in files.items() if not name.startswith("manifest.")
        }
    except (ValueError, TypeError):
        return tar_of(files)
    raw = json.dumps(manifest).encode()
    signature = json.dumps({"key_id": LEDGER.kid, "signature": LEDGER.text(SIGNED_AS + raw)}).encode()
    return tar_of({**files, "manifest.json": raw, "manifest.sig": signature})
