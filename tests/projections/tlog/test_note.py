"""Signed notes, checkpoints and cosignatures: the examples and the rules of their C2SP specifications."""

from base64 import b64decode, b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.projections.tlog.grown import KEY, ORIGIN, PUBLIC

from tasktrail.projections.tlog.note import (
    COSIGNATURE,
    ED25519,
    NOTE_BYTES_MAX,
    SIGNATURES_MAX,
    Checkpoint,
    MalformedNote,
    Note,
    Signature,
    Verifier,
    cosign,
    key_id,
    sign,
    vkey,
)

pytestmark = pytest.mark.requirement("T2")

# The two examples of C2SP signed-note, and that of C2SP tlog-cosignature.
FOO_VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
FOO = """This is an example message.

— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=
"""
QUASIMODO = """Ognuno sta solo sul cuor della terra
trafitto da un raggio di sole:

ed è subito sera.

— quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=
"""  # noqa: E501 - a signature line is one line
COSIGNED = """example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==
"""  # noqa: E501 - a signature line is one line
WITNESS = Ed25519PrivateKey.from_private_bytes(bytes(range(32, 64)))
WITNESS_PUBLIC = WITNESS.public_key().public_bytes_raw()
WITNESS_NAME = "witness.example.com/w1"
ROOT = bytes(range(100, 132))
HEADS = bytes(range(132, 164))
TEXT = Checkpoint(ORIGIN, 42, ROOT, HEADS).text()
SIGNED = Note(TEXT, (sign(TEXT, ORIGIN, PUBLIC, KEY.sign),))
LINE = SIGNED.signatures[0].line()


def base64(data: bytes) -> str:
    return b64encode(data).decode()


def test_the_example_of_the_specification_is_signed_by_its_key() -> None:
    """C2SP signed-note, "Verifier keys", "Example"."""
    note, verifier = Note.parse(FOO.encode()), Verifier.of(FOO_VKEY)
    assert note.text == "This is an example message.\n"
    assert (verifier.name, verifier.key_id.hex(), verifier.kind) == ("example.com/foo", "530d903a", ED25519)
    assert note.signed_by(verifier)
    assert vkey(verifier.name, verifier.public) == FOO_VKEY
    assert not Note(note.text.replace("example", "other"), note.signatures).signed_by(verifier)


def test_the_last_empty_line_parts_text_and_signatures() -> None:
    """C2SP signed-note, "Format", and its first example, whose text has an empty line of its own."""
    note = Note.parse(QUASIMODO.encode())
    assert note.text.endswith("sole:\n\ned è subito sera.\n")
    assert [one.name for one in note.signatures] == ["quasimodo.example/salvatore"]
    assert note.encode() == QUASIMODO.encode()
    ends_empty = Note("text\n\n", SIGNED.signatures)
    assert Note.parse(ends_empty.encode()) == ends_empty


def test_the_example_of_a_cosigned_checkpoint_is_read() -> None:
    """C2SP tlog-cosignature, whose signed message names the time 1679315147."""
    note = Note.parse(COSIGNED.encode())
    found = Checkpoint.parse(note.text)
    assert (found.origin, found.size, found.heads) == ("example.com/behind-the-sofa", 20852163, b"")
    assert base64(found.root) == "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="
    assert found.text() == note.text
    assert int.from_bytes(note.signatures[1].blob[:8]) == 1679315147
    assert note.encode() == COSIGNED.encode()


def test_a_note_is_signed_only_by_the_key_that_signed_it() -> None:
    assert SIGNED.signed_by(Verifier.of(vkey(ORIGIN, PUBLIC)))
    assert not SIGNED.signed_by(Verifier.of(vkey("example.com/other", PUBLIC)))
    assert not SIGNED.signed_by(Verifier.of(vkey(ORIGIN, WITNESS_PUBLIC)))
    assert not SIGNED.signed_by(Verifier.of(vkey(ORIGIN, PUBLIC, COSIGNATURE)))
    assert SIGNED.cosigned_at(Verifier.of(vkey(ORIGIN, PUBLIC, COSIGNATURE))) is None


def test_a_key_id_that_collides_opens_nothing() -> None:
    """C2SP signed-note, "Signatures": ids are short, so a signature under a known id may be anybody's."""
    forged = Signature(ORIGIN, key_id(ORIGIN, PUBLIC), WITNESS.sign(TEXT.encode()))
    assert not Note(TEXT, (forged,)).signed_by(Verifier.of(vkey(ORIGIN, PUBLIC)))
    cut = Signature(ORIGIN, key_id(ORIGIN, PUBLIC), SIGNED.signatures[0].blob[:63])
    assert not Note(TEXT, (cut,)).signed_by(Verifier.of(vkey(ORIGIN, PUBLIC)))


def test_a_cosignature_says_when_it_was_given() -> None:
    """C2SP tlog-cosignature, "Ed25519 signed message": the message is rebuilt here from the specification."""
    given_ = cosign(TEXT, WITNESS_NAME, WITNESS_PUBLIC, WITNESS.sign, 1679315147)
    note = Note(TEXT, (*SIGNED.signatures, given_))
    verifier = Verifier.of(vkey(WITNESS_NAME, WITNESS_PUBLIC, COSIGNATURE))
    assert Note.parse(note.encode()).cosigned_at(verifier) == 1679315147
    WITNESS.public_key().verify(given_.blob[8:], b"cosignature/v1\ntime 1679315147\n" + TEXT.encode())
    assert not note.signed_by(verifier)
    other_time = Signature(WITNESS_NAME, given_.key_id, (1679315148).to_bytes(8) + given_.blob[8:])
    plain = Signature(WITNESS_NAME, given_.key_id, (1679315147).to_bytes(8) + WITNESS.sign(TEXT.encode()))
    for wrong in (other_time, plain, Signature(WITNESS_NAME, given_.key_id, given_.blob[8:])):
        assert Note(TEXT, (wrong,)).cosigned_at(verifier) is None
    assert SIGNED.cosigned_at(verifier) is None


@pytest.mark.parametrize("time_s", [-1, 2**63])
def test_a_cosignature_has_a_time_that_fits(time_s: int) -> None:
    """C2SP tlog-cosignature, "Format": it must not exceed 2^63 - 1; a signature over more is not taken either."""
    with pytest.raises(MalformedNote, match="no time of a cosignature"):
        cosign(TEXT, WITNESS_NAME, WITNESS_PUBLIC, WITNESS.sign, time_s)
    if time_s > 0:
        blob = time_s.to_bytes(8) + WITNESS.sign(f"cosignature/v1\ntime {time_s}\n{TEXT}".encode())
        wrong = Signature(WITNESS_NAME, key_id(WITNESS_NAME, WITNESS_PUBLIC, COSIGNATURE), blob)
        verifier = Verifier.of(vkey(WITNESS_NAME, WITNESS_PUBLIC, COSIGNATURE))
        assert Note(TEXT, (wrong,)).cosigned_at(verifier) is None


GOOD = SIGNED.encode()
HOSTILE = {
    "nothing": b"",
    "CRLF": GOOD.replace(b"\n", b"\r\n"),
    "a NUL": GOOD.replace(b"42", b"4\x002"),
    "a tab": GOOD.replace(b"42", b"4\t2"),
    "not UTF-8": GOOD.replace(b"42", b"4\xff2"),
    "a lone surrogate": GOOD.replace(b"42", b"\xed\xa0\x80"),
    "no final newline": GOOD[:-1],
    "an empty last line": GOOD + b"\n",
    "text after the signatures": GOOD + b"more\n",
    "no empty line": GOOD.replace(b"\n\n", b"\n"),
    "no signature": TEXT.encode() + b"\n",
    "no text": b"\n" + LINE.encode() + b"\n",
    "the signature twice": GOOD + LINE.encode() + b"\n",
    "two signatures of one key": GOOD + Signature(ORIGIN, key_id(ORIGIN, PUBLIC), b"other").line().encode() + b"\n",
    "a hyphen for the dash": GOOD.replace("— ".encode(), b"- "),
    "two spaces": GOOD.replace("— ".encode(), "—  ".encode()),
    "no name": f"{TEXT}\n— {LINE.split()[2]}\n".encode(),
    "a plus in the name": f"{TEXT}\n— a+b {LINE.split()[2]}\n".encode(),
    "a space in the name": f"{TEXT}\n— a\u2003b {LINE.split()[2]}\n".encode(),
    "a no-break space in the name": f"{TEXT}\n— a\u00a0b {LINE.split()[2]}\n".encode(),
    "not base64": f"{TEXT}\n— a AAAA*AAA\n".encode(),
    "base64 without padding": f"{TEXT}\n— a {LINE.split()[2].rstrip('=')}\n".encode(),
    "base64 with other last bits": f"{TEXT}\n— a AAAAAAF=\n".encode(),
    "base64 of another alphabet": f"{TEXT}\n— a AAAA_-AA\n".encode(),
    "base64 in digits of another script": f"{TEXT}\n— a AAAA\u0661AAA\n".encode(),
    "an empty signature": f"{TEXT}\n— a AAAAAA==\n".encode(),
    "a third field": f"{TEXT}\n{LINE} more\n".encode(),
    "too many signatures": TEXT.encode()
    + b"\n"
    + b"".join(f"— k{number} AAAAAAA=\n".encode() for number in range(SIGNATURES_MAX + 1)),
    "too many bytes": b"x" * NOTE_BYTES_MAX + b"\n" + GOOD,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_note_is_refused(data: bytes) -> None:
    """C2SP signed-note, "Format"; that a key may sign once is ours, so that a note has one form."""
    with pytest.raises(MalformedNote):
        Note.parse(data)


def test_sixteen_signatures_are_taken_also_long_ones() -> None:
    """C2SP signed-note, "Format": at least 16 must be accepted; post-quantum ones have nearly 5 kB."""
    many = tuple(Signature(f"k{number}", bytes(4), bytes(5_000)) for number in range(16))
    note = Note("text\n", many)
    assert Note.parse(note.encode()) == note


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_note_or_malformed(data: bytes) -> None:
    try:
        note = Note.parse(data)
    except MalformedNote:
        return
    assert note.encode() == data


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_signed_note_with_any_byte_changed_is_not_believed(at: int, change: int) -> None:
    data = bytearray(GOOD)
    data[at] ^= change
    try:
        note = Note.parse(bytes(data))
    except MalformedNote:
        return
    assert note.encode() == bytes(data)
    assert not note.signed_by(Verifier.of(vkey(ORIGIN, PUBLIC)))


@pytest.mark.parametrize("text", ["", "text", "te\rxt\n", "te\x00xt\n", "\ud800\n"])
def test_a_text_that_no_note_can_hold_is_not_written(text: str) -> None:
    with pytest.raises(MalformedNote):
        Note(text, SIGNED.signatures).encode()


def test_a_note_without_a_signature_is_not_written() -> None:
    with pytest.raises(MalformedNote):
        Note(TEXT, ()).encode()


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u2028b", "a\x00b", "a\ud800b"])
def test_a_name_that_no_key_can_have_is_refused(name: str) -> None:
    for refused in (
        lambda: vkey(name, PUBLIC),
        lambda: sign(TEXT, name, PUBLIC, KEY.sign),
        lambda: cosign(TEXT, name, PUBLIC, KEY.sign, 1),
    ):
        with pytest.raises(MalformedNote, match="no key name"):
            refused()


def test_verifier_keys_come_back_as_they_were() -> None:
    for kind in (ED25519, COSIGNATURE):
        text = vkey(ORIGIN, PUBLIC, kind)
        found = Verifier.of(text)
        assert (found.name, found.kind, found.public) == (ORIGIN, kind, PUBLIC)
        assert found.key_id == key_id(ORIGIN, PUBLIC, kind)
    assert key_id(ORIGIN, PUBLIC, ED25519) != key_id(ORIGIN, PUBLIC, COSIGNATURE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com/foo",
        "example.com/foo+530d903a",
        FOO_VKEY.replace("530d903a", "530d903b"),
        FOO_VKEY.replace("530d903a", "530D903A"),
        FOO_VKEY.replace("foo", "bar"),
        FOO_VKEY.replace("foo", "f oo"),
        FOO_VKEY + "\n",
        FOO_VKEY[:-4],
        FOO_VKEY[:-1] + "*",
        "+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/foo+530d903a+",
        "\udce9xample.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        f"a+{key_id('a', PUBLIC, 2).hex()}+{base64(bytes([2]) + PUBLIC)}",
    ],
)
def test_what_is_no_verifier_key_is_refused(text: str) -> None:
    """C2SP signed-note, "Verifier keys"; of the types only the two Ed25519 ones are known."""
    with pytest.raises(MalformedNote):
        Verifier.of(text)


def test_a_checkpoint_has_four_lines() -> None:
    """C2SP tlog-checkpoint, "Note text", with the one extension line of the plan of issue 4."""
    assert f"{ORIGIN}\n42\n{base64(ROOT)}\nheads {base64(HEADS)}\n" == TEXT
    assert Checkpoint.parse(TEXT) == Checkpoint(ORIGIN, 42, ROOT, HEADS)
    empty = Checkpoint(ORIGIN, 0, ROOT)
    assert Checkpoint.parse(empty.text()) == empty


def test_lines_of_other_logs_are_kept() -> None:
    """C2SP tlog-checkpoint: extension lines are opaque; a witness signs them as they are."""
    text = f"{ORIGIN}\n42\n{base64(ROOT)}\nsome extension\nheadsup\n"
    found = Checkpoint.parse(text)
    assert (found.heads, found.others) == (b"", ("some extension", "headsup"))
    assert found.text() == text


R, H = base64(ROOT), base64(HEADS)
NO_CHECKPOINTS = {
    "nothing": "",
    "two lines": f"{ORIGIN}\n42\n",
    "no final newline": f"{ORIGIN}\n42\n{R}",
    "an empty origin": f"\n42\n{R}\n",
    "an empty extension line": f"{ORIGIN}\n42\n{R}\n\n",
    "a leading zero": f"{ORIGIN}\n042\n{R}\n",
    "a sign": f"{ORIGIN}\n-42\n{R}\n",
    "a plus": f"{ORIGIN}\n+42\n{R}\n",
    "an underscore": f"{ORIGIN}\n4_2\n{R}\n",
    "a space": f"{ORIGIN}\n 42\n{R}\n",
    "digits of another script": f"{ORIGIN}\n\u0664\u0662\n{R}\n",
    "no size": f"{ORIGIN}\nx\n{R}\n",
    "too large": f"{ORIGIN}\n{2**63}\n{R}\n",
    "far too large": f"{ORIGIN}\n{'9' * 10_000}\n{R}\n",
    "a short root": f"{ORIGIN}\n42\n{base64(ROOT[:31])}\n",
    "a long root": f"{ORIGIN}\n42\n{base64(ROOT + ROOT)}\n",
    "a root that is not base64": f"{ORIGIN}\n42\n{R[:-1]}\n",
    "a short root of heads": f"{ORIGIN}\n42\n{R}\nheads {base64(HEADS[:31])}\n",
    "no root of heads": f"{ORIGIN}\n42\n{R}\nheads \n",
    "heads twice": f"{ORIGIN}\n42\n{R}\nheads {H}\nheads {H}\n",
    "heads in another place": f"{ORIGIN}\n42\n{R}\nmore\nheads {H}\n",
}


@pytest.mark.parametrize("text", NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS.keys())
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(MalformedNote):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    "wrong",
    [
        Checkpoint("", 42, ROOT),
        Checkpoint("a\nb", 42, ROOT),
        Checkpoint(ORIGIN, -1, ROOT),
        Checkpoint(ORIGIN, 42, b""),
        Checkpoint(ORIGIN, 42, ROOT, b"x"),
        Checkpoint(ORIGIN, 42, ROOT, HEADS, ("",)),
        Checkpoint(ORIGIN, 42, ROOT, HEADS, ("a\nb",)),
        Checkpoint(ORIGIN, 42, ROOT, b"", (f"heads {H}",)),
    ],
)
def test_values_that_no_checkpoint_can_hold_are_not_written(wrong: Checkpoint) -> None:
    with pytest.raises(MalformedNote):
        wrong.text()


@given(st.text(max_size=120))
def test_any_text_is_a_checkpoint_or_malformed(text: str) -> None:
    for candidate in (text, f"{text}\n42\n{R}\n", f"{ORIGIN}\n{text}\n{R}\n", f"{ORIGIN}\n42\n{R}\n{text}\n"):
        try:
            found = Checkpoint.parse(candidate)
        except MalformedNote:
            continue
        assert found.text() == candidate


def test_signatures_are_ed25519_over_the_text_alone() -> None:
    """RFC 8032 signatures are deterministic: the same text gives the same line."""
    blob = b64decode(LINE.split()[2])
    assert blob[:4] == key_id(ORIGIN, PUBLIC)
    assert blob[4:] == KEY.sign(TEXT.encode())
