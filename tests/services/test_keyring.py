"""The service's own keys. Source: design section 7 (keys), issue "main job" (a 0600 file)."""

import base64
import os
import stat
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tasktrail.events.subjects import is_task_id, is_task_ref
from tasktrail.services.keyring import KEY_BYTES, Keyring, KeyringError

FILES = ("checkpoint-1.key", "reference.key", "signing-1.key", "wrapping-1.key")
RAW = b"r" * KEY_BYTES


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def held(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (data / "keys").iterdir()}


@pytest.mark.requirement("R1")
def test_keys_are_files_that_only_their_owner_can_read(tmp_path: Path) -> None:
    """Whatever the umask is."""
    before = os.umask(0)
    try:
        Keyring.create(tmp_path / "data")
    finally:
        os.umask(before)
    assert sorted(held(tmp_path / "data")) == sorted(FILES)
    assert mode(tmp_path / "data" / "keys") == 0o700
    assert {mode(tmp_path / "data" / "keys" / name) for name in FILES} == {0o600}


def test_creating_again_keeps_the_keys_there_are(tmp_path: Path) -> None:
    """A new reference key would orphan every task."""
    one = Keyring.create(tmp_path)
    before = held(tmp_path)
    other = Keyring.create(tmp_path)
    assert held(tmp_path) == before
    assert (one.ref("t"), one.kid, one.public_key) == (other.ref("t"), other.kid, other.public_key)
    assert Keyring.open(tmp_path).ref("t") == one.ref("t")


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_key_is_an_error_with_a_remedy_and_never_a_new_key(tmp_path: Path, name: str) -> None:
    """Module docstring: keys are made only by `create`."""
    Keyring.create(tmp_path)
    (tmp_path / "keys" / name).unlink()
    before = held(tmp_path)
    with pytest.raises(KeyringError, match="restore your backup"):
        Keyring.open(tmp_path)
    assert held(tmp_path) == before


def test_a_missing_older_signing_key_is_an_error(tmp_path: Path) -> None:
    """What it signed governs: without it a revocation would no longer be believed."""
    Keyring.create(tmp_path)
    one, two = (tmp_path / "keys" / f"signing-{number}.key" for number in (1, 2))
    one.rename(two)
    with pytest.raises(KeyringError, match=r"holds signing-2.key, but not signing-1.key.*keep old signing keys"):
        Keyring.open(tmp_path)


def test_the_oldest_key_signs_for_those_who_do_not_know_the_newest(tmp_path: Path) -> None:
    before = Keyring.create(tmp_path)
    newer = tmp_path / "keys" / "signing-2.key"
    newer.touch(mode=0o600)
    newer.write_text(RAW.hex())
    ring = Keyring.open(tmp_path)
    assert ring.kid != ring.oldest().kid == before.kid
    assert ring.oldest().sign(b"body") == before.sign(b"body") != ring.sign(b"body")


def test_without_any_keys_it_says_how_they_are_made(tmp_path: Path) -> None:
    """Errors say what to do next (style 8)."""
    assert not Keyring.exists(tmp_path)
    with pytest.raises(KeyringError, match=r"no keys in .*tasktrail init.*restore your backup"):
        Keyring.open(tmp_path)
    Keyring.create(tmp_path)
    assert Keyring.exists(tmp_path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("open_to", [0o640, 0o604, 0o660, 0o601])
def test_a_key_readable_by_others_is_refused_with_the_command_to_run(tmp_path: Path, name: str, open_to: int) -> None:
    """Module docstring."""
    Keyring.create(tmp_path)
    path = tmp_path / "keys" / name
    path.chmod(open_to)
    with pytest.raises(KeyringError, match=f"can be read by others .mode {open_to:o}.; run: chmod 600 {path}"):
        Keyring.open(tmp_path)


@pytest.mark.parametrize("text", [b"", b"00", b"zz" * 32, b"00" * 31, b"00" * 33, b"\xff" * 64])
def test_a_damaged_key_is_refused(tmp_path: Path, text: bytes) -> None:
    """A short key must not work by chance."""
    Keyring.create(tmp_path)
    (tmp_path / "keys" / "wrapping-1.key").write_bytes(text)
    with pytest.raises(KeyringError, match="does not hold 32 bytes in hex"):
        Keyring.open(tmp_path)


def test_a_start_that_is_killed_leaves_whole_keys_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty key file would stand in the way of every later start."""

    def killed(_descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            Keyring.create(tmp_path)
    assert held(tmp_path) == {}
    assert Keyring.create(tmp_path).kid


def test_signatures_verify_under_the_public_key_and_for_these_bytes_only(tmp_path: Path) -> None:
    """Ed25519 over the exact body (design section 7)."""
    keyring = Keyring.create(tmp_path)
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(keyring.public_key + "="))
    signature = base64.b64decode(keyring.sign(b"body"))
    public.verify(signature, b"body")
    with pytest.raises(InvalidSignature):
        public.verify(signature, b"body ")
    assert len(keyring.kid) == 16


def test_the_highest_number_signs_and_wraps_and_the_others_still_open(tmp_path: Path) -> None:
    """Design section 7: signing and key-encryption keys are versioned; the reference key never rotates."""
    old = Keyring.create(tmp_path)
    wrapped = old.wrap(RAW, "ref")
    for name in ("signing-2.key", "wrapping-10.key"):
        path = tmp_path / "keys" / name
        path.touch(mode=0o600)
        path.write_text(os.urandom(KEY_BYTES).hex(), encoding="ascii")
    new = Keyring.open(tmp_path)
    assert new.kid != old.kid
    assert new.ref("t") == old.ref("t")
    assert new.unwrap(wrapped, "ref") == RAW
    assert new.wrap(RAW, "ref").startswith(b"10\n")
    with pytest.raises(KeyringError, match=r"wrapped by version b'10', which is not in the keyring; restore it"):
        old.unwrap(new.wrap(RAW, "ref"), "ref")


@pytest.mark.requirement("R1")
def test_a_wrapped_key_opens_for_its_own_task_only(tmp_path: Path) -> None:
    """Associated data: the reference."""
    keyring = Keyring.create(tmp_path)
    wrapped = keyring.wrap(RAW, "one")
    assert RAW not in wrapped
    assert keyring.unwrap(wrapped, "one") == RAW
    assert keyring.wrap(RAW, "one") != wrapped
    with pytest.raises(KeyringError, match="does not open"):
        keyring.unwrap(wrapped, "other")


@pytest.mark.parametrize("wrapped", [b"", b"1", b"1\n", b"1\n" + b"x" * 12, b"-1\nx", b"\xb2\nx", b"9\n" + b"x" * 60])
def test_what_is_no_wrapped_key_is_refused(tmp_path: Path, wrapped: bytes) -> None:
    """Whatever lies in the stream KEYS."""
    with pytest.raises(KeyringError):
        Keyring.create(tmp_path).unwrap(wrapped, "ref")


@pytest.mark.requirement("A4")
def test_ids_and_references_are_of_this_installation(tmp_path: Path) -> None:
    """Both keyed: another installation's are others."""
    one, other = Keyring.create(tmp_path / "one"), Keyring.create(tmp_path / "other")
    made = one.task_id("reports", "acme", "iss", "ana", "desk", "command")
    assert is_task_id(made)
    assert is_task_ref(one.ref(made))
    assert other.task_id("reports", "acme", "iss", "ana", "desk", "command") != made
    assert other.ref(made) != one.ref(made)


def without_checkpoint_key(data: Path) -> None:
    """As a directory of a version before there were checkpoints."""
    Keyring.create(data)
    (data / "keys" / "checkpoint-1.key").unlink()


@pytest.mark.requirement("T2")
def test_a_directory_from_before_there_were_checkpoints_gets_their_key_once(tmp_path: Path) -> None:
    """Issue 4: data directories made before get one at their next start."""
    without_checkpoint_key(tmp_path)
    with pytest.raises(KeyringError, match="makes it at its next start"):
        Keyring.open(tmp_path).sign_checkpoint(b"text")
    Keyring.complete(tmp_path)
    made = held(tmp_path)
    Keyring.complete(tmp_path)
    assert held(tmp_path) == made
    assert mode(tmp_path / "keys" / "checkpoint-1.key") == 0o600
    keyring = Keyring.open(tmp_path)
    Ed25519PublicKey.from_public_bytes(keyring.checkpoint_publics[0]).verify(keyring.sign_checkpoint(b"text"), b"text")


@pytest.mark.requirement("T2")
def test_no_checkpoint_key_is_made_where_there_are_checkpoints(tmp_path: Path) -> None:
    """A new key could not continue them: the backup of the keys is what is needed."""
    without_checkpoint_key(tmp_path)
    (tmp_path / "tlog" / "checkpoints").mkdir(parents=True)
    (tmp_path / "tlog" / "checkpoints" / "00000000000000000007").touch()
    before = held(tmp_path)
    for make in (Keyring.complete, Keyring.create):
        with pytest.raises(KeyringError, match=r"holds checkpoints.*restore your backup of the keys"):
            make(tmp_path)
    assert held(tmp_path) == before


@pytest.mark.requirement("T2")
def test_the_newest_checkpoint_key_signs_and_the_older_ones_stay_known(tmp_path: Path) -> None:
    """Versioned as signing keys are (design section 7); the log's name is as lasting as the reference key."""
    old = Keyring.create(tmp_path)
    path = tmp_path / "keys" / "checkpoint-2.key"
    path.touch(mode=0o600)
    path.write_text(RAW.hex(), encoding="ascii")
    new = Keyring.open(tmp_path)
    assert new.checkpoint_publics[1:] == old.checkpoint_publics
    Ed25519PublicKey.from_public_bytes(new.checkpoint_publics[0]).verify(new.sign_checkpoint(b"text"), b"text")
    assert new.origin == old.origin
    assert new.origin != Keyring.create(tmp_path / "other").origin
    (tmp_path / "keys" / "checkpoint-1.key").unlink()
    with pytest.raises(KeyringError, match=r"holds checkpoint-2.key, but not checkpoint-1.key.*restore your backup"):
        Keyring.open(tmp_path)
