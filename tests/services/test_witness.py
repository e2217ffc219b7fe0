"""The witness. Source: C2SP tlog-witness, add-checkpoint: every status and the order of the checks."""

import base64
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasktrail.projections.tlog.merkle import consistency_proof, leaf, root
from tasktrail.projections.tlog.note import COSIGNATURE, Checkpoint, Note, Signature, Verifier, sign, vkey
from tasktrail.services.witness import SIZE, Answer, Request, Witness, WitnessError

pytestmark = pytest.mark.requirement("T2")

ORIGIN = "tasktrail/log"
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
VKEY = vkey(ORIGIN, PUBLIC)
NOW_S = 1_800_000_000


def tree(size: int, other_from: int = 10**9) -> list[bytes]:
    """Leaves; those from index `other_from` on are another history's."""
    return [leaf(b"%d%s" % (n, b"" if n < other_from else b"!")) for n in range(size)]


def nodes(leaves: list[bytes], level: int, index: int) -> bytes:
    return root(leaves[index << level : (index + 1) << level])


def submission(
    old: int, leaves: list[bytes], *, origin: str = ORIGIN, key: Ed25519PrivateKey = KEY, heads: bytes = b"h" * 32
) -> bytes:
    """The body that asks to cosign this tree, with the proof from `old`."""
    text = Checkpoint(origin, len(leaves), root(leaves), heads).text()
    note = Note(text, (sign(text, origin, key.public_key().public_bytes_raw(), key.sign),))
    proof = consistency_proof(old, len(leaves), lambda level, index: nodes(leaves, level, index)) if old else []
    return Request(old, tuple(proof), note).encode()


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness.open(tmp_path / "witness", [VKEY], clock=lambda: NOW_S)


def cosigned_at(witness: Witness, body: bytes, answer: Answer) -> int | None:
    """When the answer's line cosigns the checkpoint of the body."""
    assert answer.status == 200, answer
    text = Request.parse(body).note.text
    note = Note(text, (Signature.of(answer.body.decode().removesuffix("\n")),))
    return note.cosigned_at(Verifier.of(witness.vkey))


def test_it_cosigns_each_tree_that_extends_the_one_before(witness: Witness) -> None:
    """200: signature lines by the witness's key on the checkpoint; the same size again is cosigned again."""
    for old, new in ((0, 3), (3, 3), (3, 8), (8, 300)):
        body = submission(old, tree(new))
        assert cosigned_at(witness, body, witness.add_checkpoint(body)) == NOW_S


def test_another_old_size_is_a_conflict_that_says_the_size(witness: Witness) -> None:
    """409 with text/x.tlog.size: decimal and a newline."""
    assert witness.add_checkpoint(submission(2, tree(5))) == Answer(409, SIZE, b"0\n")
    assert witness.add_checkpoint(submission(0, tree(5))).status == 200
    for old in (0, 4):
        assert witness.add_checkpoint(submission(old, tree(9))) == Answer(409, SIZE, b"5\n")


def test_it_never_cosigns_a_second_history(witness: Witness) -> None:
    """422 for a proof that does not hold; 409 for other ones of the same size; then the first history goes on."""
    assert witness.add_checkpoint(submission(0, tree(5))).status == 200
    rewritten = tree(9, other_from=2)
    assert witness.add_checkpoint(submission(5, rewritten)).status == 422
    assert witness.add_checkpoint(submission(5, tree(5, other_from=2))).status == 409
    assert witness.add_checkpoint(submission(5, tree(5), heads=b"o" * 32)).status == 409, "other heads"
    assert witness.add_checkpoint(submission(4, tree(4))) == Answer(409, SIZE, b"5\n")
    request = Request.parse(submission(5, tree(9)))
    assert witness.add_checkpoint(request._replace(proof=()).encode()).status == 422
    assert witness.add_checkpoint(request._replace(proof=request.proof[::-1]).encode()).status == 422
    assert witness.add_checkpoint(request.encode()).status == 200


def test_the_first_checkpoint_takes_no_proof(witness: Witness) -> None:
    """The proof MUST be empty if the old size is zero."""
    request = Request.parse(submission(0, tree(5)))
    assert witness.add_checkpoint(request._replace(proof=(b"p" * 32,)).encode()).status == 422


def test_strangers_are_turned_away(witness: Witness) -> None:
    """404 for an origin it does not know, 403 without a signature that is trusted for it."""
    other = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
    assert witness.add_checkpoint(submission(0, tree(5), origin="tasktrail/other")).status == 404
    assert witness.add_checkpoint(submission(0, tree(5), key=other)).status == 403
    assert witness.newest(ORIGIN) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda body: body.replace(b"old 0", b"old 00"),
        lambda body: body.replace(b"old 0", b"old -1"),
        lambda body: body.replace(b"old 0", b"old  0"),
        lambda body: body.replace(b"old 0", b"new 0"),
        lambda body: body.replace(b"old 0", b"old 6"),
        lambda body: body.replace(b"old 0\n", b"old 0\nAAAA\n"),
        lambda body: body.replace(b"old 0\n", b"old 0\n" + (base64.b64encode(b"p" * 32) + b"\n") * 64),
        lambda body: body.replace(b"\n5\n", b"\n05\n"),
        lambda body: body.replace(b"\n\n", b"\n"),
        lambda body: body[:-1],
        lambda body: body + b"\xff",
        lambda body: b"old " + b"9" * 5_000 + body.removeprefix(b"old 0"),
    ],
)
def test_what_is_not_of_the_form_is_a_bad_request(witness: Witness, change: Callable[[bytes], bytes]) -> None:
    """400, also for an old size beyond the checkpoint's."""
    assert witness.add_checkpoint(change(submission(0, tree(5)))).status == 400
    assert witness.newest(ORIGIN) is None


def test_it_goes_on_where_it_was_after_a_restart(tmp_path: Path) -> None:
    """The witness MUST persist the new checkpoint before responding; name and key stay too."""
    first = Witness.open(tmp_path, [VKEY])
    assert first.add_checkpoint(submission(0, tree(5))).status == 200
    with pytest.raises(WitnessError, match="another witness runs"):
        Witness.open(tmp_path, [VKEY])
    first.release()
    again = Witness.open(tmp_path, [VKEY])
    assert again.vkey == first.vkey
    assert again.add_checkpoint(submission(0, tree(9))) == Answer(409, SIZE, b"5\n")
    assert again.add_checkpoint(submission(5, tree(9))).status == 200
    again.release()


def test_its_key_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    """A new key in place of a lost one would be another witness under the same name."""
    witness = Witness.open(tmp_path, [VKEY], name="witness.example/one")
    assert Verifier.of(witness.vkey).kind == COSIGNATURE
    assert witness.add_checkpoint(submission(0, tree(5))).status == 200
    witness.release()
    key = tmp_path / "witness.key"
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(WitnessError, match=r"is the witness witness.example/one"):
        Witness.open(tmp_path, [VKEY], name="witness.example/two")
    key.chmod(0o640)
    with pytest.raises(WitnessError, match="chmod 600"):
        Witness.open(tmp_path, [VKEY])
    key.unlink()
    with pytest.raises(WitnessError, match="restore your backup"):
        Witness.open(tmp_path, [VKEY])


@pytest.mark.parametrize("text", ["", "log", VKEY[:-1], vkey(ORIGIN, PUBLIC, COSIGNATURE)])
def test_what_is_no_logs_key_is_refused_at_the_start(tmp_path: Path, text: str) -> None:
    with pytest.raises(WitnessError, match="--log"):
        Witness.open(tmp_path, [text])
