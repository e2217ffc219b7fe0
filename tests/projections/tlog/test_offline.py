"""The stand-alone verifier's parts, against RFC 8032 and other implementations. Source: T7; docs/evidence.md."""

import ast
import contextlib
import hashlib
import io
import itertools
import json
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from tests.projections.tlog.bundles import LOG, ORIGIN, WITNESS, WITNESS_KEY, Exporter, Pair, signed, tasks_of

from tasktrail.events.subjects import access_subject, task_subject
from tasktrail.projections.tlog import heads, merkle
from tasktrail.projections.tlog.bundle import verifier
from tasktrail.projections.tlog.log import Log
from tasktrail.projections.tlog.note import Note, Verifier, sign, vkey
from tasktrail.projections.tlog.offline import show, told_of, verify
from tasktrail.projections.tlog.offline_checks import (
    Bad,
    Checkpoint,
    Key,
    gap_record,
    head_of,
    is_grown,
    is_included,
    leaf,
    printable,
    read_json,
    tar_header,
    tar_of,
    task_subjects,
    unpacked,
)
from tasktrail.projections.tlog.offline_ed25519 import added, base_table, ed25519_verified, point_of, times, written

L = 2**252 + 27742317777372353535851937790883648493
P = 2**255 - 19
RFC_8032 = [
    "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    "-",
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    "72",
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
    "af82",
    "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
]
VECTORS = list(zip(RFC_8032[::3], RFC_8032[1::3], RFC_8032[2::3], strict=True))


@pytest.mark.requirement("T7")
@pytest.mark.parametrize(("public", "message", "signature"), VECTORS)
def test_the_vectors_of_rfc_8032_verify_and_nothing_near_them(public: str, message: str, signature: str) -> None:
    """RFC 8032, section 7.1, tests 1 to 3."""
    key, said, given = bytes.fromhex(public), bytes.fromhex(message.strip("-")), bytes.fromhex(signature)
    assert ed25519_verified(key, said, given)
    assert not ed25519_verified(key, said + b"\0", given)
    for bit in range(0, 512, 7):
        assert not ed25519_verified(key, said, flipped(given, bit))
    for bit in range(0, 256, 7):
        assert not ed25519_verified(flipped(key, bit), said, given)


def flipped(raw: bytes, bit: int) -> bytes:
    return bytes([*raw[: bit // 8], raw[bit // 8] ^ (1 << bit % 8), *raw[bit // 8 + 1 :]])


def test_another_implementation_agrees_on_honest_and_changed_signatures() -> None:
    draw = random.Random(1)  # noqa: S311 - the same every time
    for _ in range(40):
        private = Ed25519PrivateKey.from_private_bytes(draw.randbytes(32))
        public, said = private.public_key().public_bytes_raw(), draw.randbytes(draw.randrange(200))
        given = private.sign(said)
        for one in (given, flipped(given, draw.randrange(512)), draw.randbytes(64), given[:63], given + b"\0", b""):
            try:
                Ed25519PublicKey.from_public_bytes(public).verify(one, said)
                agreed = True
            except InvalidSignature:
                agreed = False
            assert ed25519_verified(public, said, one) is agreed


def test_a_signature_has_one_form_only() -> None:
    """RFC 8032, section 8.4: S and S + L would be the same signature twice."""
    given = LOG.private.sign(b"text")
    s = int.from_bytes(given[32:], "little")
    for twin in (s + L, s + 2 * L, s + 8 * L):
        if twin < 2**256:
            assert not ed25519_verified(LOG.public, b"text", given[:32] + twin.to_bytes(32, "little"))
    assert not ed25519_verified(LOG.public, b"text", given[:32] + L.to_bytes(32, "little"))


def test_points_that_are_written_in_another_way_or_are_of_small_order_are_refused() -> None:
    """RFC 8032, section 5.1.3. A key of small order would verify a signature that needs no secret."""
    zero_sign = (1 | 1 << 255).to_bytes(32, "little")  # x = 0 with a sign
    not_reduced = [(P + y).to_bytes(32, "little") for y in range(19)]
    small = [bytes([1]) + bytes(31), bytes(32), (P - 1).to_bytes(32, "little")]
    small += [
        bytes.fromhex(f"{order_8}{sign}")
        for order_8, sign in itertools.product(
            (
                "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc",
                "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03",
            ),
            ("05", "85", "7a", "fa"),
        )
    ]
    for public in (zero_sign, *not_reduced, *small):
        for forged in (public + bytes(32), bytes([1]) + bytes(63), *(one + bytes(32) for one in small)):
            assert not ed25519_verified(public, b"anything", forged), public.hex()
    for r in (zero_sign, *not_reduced):
        assert not ed25519_verified(LOG.public, b"anything", r + bytes(32))


def test_what_only_holds_times_the_cofactor_is_refused_as_openssl_refuses_it() -> None:
    """RFC 8032, section 5.1.7: the equation without the cofactor is sufficient, and the stricter one."""
    order_8 = point_of(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"))
    assert order_8 is not None
    rows = base_table()
    tried = 0
    for secret in range(1000, 1012):
        mixed = written(added(times(secret, rows), order_8))
        r = written(times(77, rows))
        k = int.from_bytes(hashlib.sha512(r + mixed + b"m").digest(), "little") % L
        given = r + ((77 + k * secret) % L).to_bytes(32, "little")
        assert ed25519_verified(mixed, b"m", given) is (k % 8 == 0)
        tried += k % 8 != 0
    assert tried


def test_inclusion_agrees_with_the_tree_at_every_size() -> None:
    bodies = [b"%d" % number for number in range(33)]
    hashes = [leaf(body) for body in bodies]
    assert hashes == [merkle.leaf(body) for body in bodies]
    assert gap_record(7) == merkle.gap_record(7)

    def nodes(level: int, index: int) -> bytes:
        return merkle.root(hashes[index << level : (index + 1) << level])

    for size in range(1, 34):
        root = merkle.root(hashes[:size])
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, nodes)
            assert is_included(hashes[index], index, size, proof, root)
            assert not is_included(hashes[index], index + 1, size, proof, root)
            assert not is_included(hashes[index], index, size, [*proof, bytes(32)], root)
            assert not is_included(hashes[index - 1], index, size, proof, root) or size == 1
            if proof:
                assert not is_included(hashes[index], index, size, proof[:-1], root)


def test_growth_agrees_with_the_tree_at_every_pair_of_sizes() -> None:
    hashes = [leaf(b"%d" % number) for number in range(25)]

    def nodes(level: int, index: int) -> bytes:
        return merkle.root(hashes[index << level : (index + 1) << level])

    for new in range(1, 26):
        for old in range(1, new + 1):
            roots = merkle.root(hashes[:old]), merkle.root(hashes[:new])
            proof = merkle.consistency_proof(old, new, nodes)
            assert is_grown(old, new, *roots, proof)
            assert not is_grown(old, new, roots[1], bytes(32), proof)
            assert not is_grown(old, new, *roots, [*proof, bytes(32)])
            if old < new:
                assert not is_grown(old, new, bytes(32), roots[1], proof)
                assert not is_grown(old, new, *roots, proof[:-1])
    assert is_grown(0, 5, merkle.root([]), merkle.root(hashes[:5]), [])


def test_heads_agree_with_the_map(tmp_path: Path) -> None:
    messages = signed(60)
    Exporter(tmp_path / "log", messages)
    with Log.open(tmp_path / "log", read_only=True) as log:
        root = log.heads.root()
        for task in tasks_of(messages).values():
            for subject in (*task.subjects, f"{task.subjects[0]}x"):
                proof = log.heads.proof(subject)
                told = heads.verify_head(root, subject, proof)
                found = head_of(root, subject, proof.records, proof.path)
                assert found == ((told.count, told.last_seq, told.leaf) if told else (0, 0, b""))
                for records, path in (
                    ([], proof.path),
                    (proof.records, proof.path[:-1]),
                    ([bytes(80), *proof.records], proof.path),
                    (proof.records, [bytes(32), *proof.path[1:]]),
                ):
                    if (records, path) != (proof.records, proof.path):
                        with pytest.raises(Bad):
                            head_of(root, subject, records, path)


def test_notes_and_keys_agree_with_those_that_write_them(tmp_path: Path) -> None:
    raw = Exporter(tmp_path / "log", signed(5)).checkpoint()
    note, read = Note.parse(raw), Checkpoint.of(raw)
    key, witness = Key.of(vkey(ORIGIN, LOG.public)), Key.of(WITNESS_KEY)
    assert read.is_signed(key, ed25519_verified)
    assert note.signed_by(Verifier.of(vkey(ORIGIN, LOG.public)))
    assert read.cosigned_at(witness, ed25519_verified) == note.cosigned_at(Verifier.of(WITNESS_KEY))
    for other in (vkey("other.example", LOG.public), vkey(ORIGIN, WITNESS.public)):
        assert not read.is_signed(Key.of(other), ed25519_verified)
    assert not read.is_signed(witness, ed25519_verified)


def test_a_checkpoint_that_is_not_one_is_refused(tmp_path: Path) -> None:
    raw = Exporter(tmp_path / "log", signed(5)).checkpoint()
    lines = raw.split(b"\n")
    for at in range(4):
        for put in ([b"\xff"], [b"1"], [b"\x1b"], []):
            with contextlib.suppress(Bad):
                changed = Checkpoint.of(b"\n".join([*lines[:at], *put, *lines[at + 1 :]]))
                assert not changed.is_signed(Key.of(vkey(ORIGIN, LOG.public)), ed25519_verified), (at, put)
    for bad in (b"", b"\n\n", raw.replace(b"5\n", b"05\n", 1), raw.replace(b"5\n", b"-5\n", 1), raw[:-1], raw + b"x"):
        with pytest.raises(Bad):
            Checkpoint.of(bad)


def test_a_key_that_is_not_one_says_so() -> None:
    text = vkey(ORIGIN, LOG.public)
    for bad in ("", "x", text[:-3], text.replace(ORIGIN, "other.example"), text.replace("+", " "), f"{text}AAAA"):
        with pytest.raises(Bad):
            Key.of(bad)
    assert Key.of(f" {text}\n").public == LOG.public


@pytest.mark.parametrize("tenant", ["acme", "_", "x-y", "Zoë & co", "a.b", "", "-", "n" * 41, "n" * 64, "ß" * 30])
def test_subjects_are_those_of_the_trail(tenant: str) -> None:
    assert task_subjects(tenant, "r" * 32) == (task_subject(tenant, "r" * 32), access_subject(tenant, "r" * 32))


def test_a_bundle_is_a_tar_that_tar_reads() -> None:
    files = {
        "README.txt": b"hello",
        "entries/1.json": b"{}",
        "verify.py": b"",
        "policies/" + "a" * 64 + ".cedar": b"x" * 513,
    }
    data = tar_of(files)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert [one.name for one in archive] == sorted(files)
        assert {(one.mode, one.uid, one.gid, one.mtime, one.type) for one in archive} == {(0o644, 0, 0, 0, b"0")}
        for name, body in files.items():
            held = archive.extractfile(name)
            assert held is not None
            assert held.read() == body
    assert unpacked(data) == files


def hostile() -> Iterator[tuple[str, bytes]]:
    """Archives that no exporter writes."""
    end = bytes(1024)
    entry = tar_header("README.txt", 2) + b"hi".ljust(512, b"\0")
    for name in (
        "../evil",
        "/etc/passwd",
        "entries/../../x",
        "entries/01.json",
        "entries/0.json",
        "a" * 99,
        "",
        "entries/٣.json",
    ):
        with io.BytesIO() as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                archive.addfile(tarfile.TarInfo(name or "x"), io.BytesIO(b""))
            yield f"name {name[:20]}", file.getvalue()
    for kind in (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.DIRTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
        tarfile.GNUTYPE_SPARSE,
    ):
        info = tarfile.TarInfo("README.txt")
        info.type, info.linkname = kind, "/etc/passwd"
        yield f"type {kind!r}", info.tobuf(tarfile.USTAR_FORMAT) + end
    yield "pax", tarfile.TarInfo("README.txt").tobuf(tarfile.PAX_FORMAT, encoding="utf-8") + end
    yield "giant", tar_header("README.txt", 8**11 - 1) + b"hi"
    yield (
        "giant in base 256",
        tar_header("README.txt", 2)[:124] + b"\x80" + bytes(11) + tar_header("README.txt", 2)[136:] + end,
    )
    yield "twice", entry + entry + end
    yield "not by name", tar_header("verify.py", 0) + entry + end
    yield "hidden in padding", entry[:-1] + b"x" + end
    yield "more after the end", entry + end + entry
    yield "zeros after the end", entry + end + bytes(512)
    yield "one block of end", entry + bytes(512)
    yield "no end", entry
    yield "cut", entry[:700]
    yield "cut in a header", entry[:300]
    yield "wrong sum", entry[:148] + b"000000\0 " + entry[156:] + end
    yield "another mode", entry[:100] + b"0000755\0" + entry[108:] + end
    yield "nothing", b""
    yield "text", b"hello " * 200
    yield "gzip", b"\x1f\x8b" + bytes(2000)


@pytest.mark.requirement("T7")
@pytest.mark.parametrize(("name", "data"), [pytest.param(*one, id=one[0]) for one in hostile()])
def test_a_hostile_archive_is_failed_and_nothing_else(name: str, data: bytes) -> None:
    report = verify(data, [Key.of(vkey(ORIGIN, LOG.public))])
    assert (report["verdict"], report["entries"]) == ("FAILED", []), name
    json.dumps(report)


@pytest.mark.parametrize(
    "text",
    [
        b"{", b"[]", b"1", b"null", b"", b"\xff{}", b'{"a":1,"a":2}', b'{"a":{"b":1,"b":1}}', b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"a":' + b"9" * 5_000 + b"}", b"\xef\xbb\xbf{}", b"{}{}",
        b'{"a":1e999}', b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", b'{"a":' * 65 + b"1" + b"}" * 65,
    ],
)  # fmt: skip
def test_json_that_means_two_things_or_none_is_refused(text: bytes) -> None:
    with pytest.raises(Bad):
        read_json(text)


def test_json_that_is_long_and_not_deep_is_read() -> None:
    assert read_json(b'{"a":' * 64 + b"1" + b"}" * 64)
    assert read_json(b'{"a":[' + b"[1]," * 1000 + b"{}]}")["a"][-1] == {}


def test_text_of_a_bundle_cannot_speak_to_the_terminal() -> None:
    assert printable("a\x1b[31m\n\u202e\ud800é") == "a\\x1b[31m\\n\\u202e\\ud800é"


def test_a_report_is_printed_whatever_is_in_it_and_whatever_the_terminal_can_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text of an entry, of custody, of a finding: no escape sequence gets through, no character stops it."""
    here = Exporter(tmp_path / "log", signed(12))
    report = verify(here.write(here.everything()), here.keys)
    evil = "\x1b]0;x\x07\x9b\r\n\ud800\u2028é"
    report["custody"]["reason"] = evil
    report["findings"] = [{"verdict": "FAILED", "where": evil, "reason": evil}]
    report["told"], report["checkpoint"]["origin"] = [evil], evil
    report["entries"][0] |= {"recorded_at": evil, "task_ref": evil, "events": [evil], "unproved": evil, "reason": evil}
    for encoding in ("ascii", "utf-8"):
        for as_json in (True, False):
            raw = io.BytesIO()
            monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
            show(report, as_json=as_json)
            printed = raw.getvalue().decode(encoding)
            assert all(one.isprintable() or one == "\n" for one in printed)
            assert printed.count("\n") == (1 if as_json else len(list(told_of(report))))
            assert "x1b" in printed or "u001b" in printed


def test_the_verifier_is_one_file_of_python_3_9_and_the_standard_library() -> None:
    """Issue: standard library only, Python 3.9 or later."""
    tree = ast.parse(verifier(), feature_version=(3, 9))
    names = {alias.name for one in ast.walk(tree) if isinstance(one, ast.Import) for alias in one.names}
    names |= {one.module or "" for one in ast.walk(tree) if isinstance(one, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "__future__"}
    assert not names & {"os", "subprocess", "socket", "urllib.request", "ctypes", "pickle", "tarfile"}


def interpreters() -> list[str]:
    """Every Python from 3.9 on that runs here."""
    named = [shutil.which(f"python3.{minor}") for minor in range(9, 16)]
    return [
        one
        for one in named
        if one and subprocess.run([one, "-c", ""], check=False, capture_output=True).returncode == 0
    ]


def test_every_python_here_says_the_same(tmp_path: Path) -> None:
    here = Exporter(tmp_path / "log", signed(40), sizes=[10])
    bundle, script, empty = tmp_path / "evidence.tar", tmp_path / "verify.py", tmp_path / "empty"
    empty.mkdir()
    script.write_bytes(verifier())
    honest = here.write(here.everything())
    for data in (honest, honest[:-1], honest.replace(b"acme", b"emca")):
        bundle.write_bytes(data)
        wanted = verify(data, here.keys)
        for python in {sys.executable, *interpreters()}:
            asked: list[str | Path] = [python, "-I", script, bundle, "--key", here.key_text, "--json"]
            done = subprocess.run(asked, cwd=empty, capture_output=True, text=True, check=False, timeout=120)
            assert done.returncode == (wanted["verdict"] != "PROVEN"), (python, done)
            assert json.loads(done.stdout) == wanted, python
    assert list(empty.iterdir()) == []


def test_a_pair_signs_what_the_library_of_the_service_verifies() -> None:
    """The pairs of these tests make the signatures that the service makes."""
    pair = Pair(5)
    given = sign("text\n", ORIGIN, pair.public, pair.private.sign)
    assert ed25519_verified(pair.public, b"text\n", given.blob)
