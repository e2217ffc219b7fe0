"""The service's own keys, as files that only their owner can read.

Guarantees: a directory holds one reference key that never changes (losing it orphans every task: back it up), and
numbered signing, checkpoint and key-encryption keys of which the highest number is in use; keys are made only by
`create` and `complete`, so a missing file is an error and never a silent new key; a key readable by others is refused.
Signing and checkpoint keys are numbered from 1 without a gap, and the old ones stay: without them what they signed, a
revocation say, could not be believed any more.

    keyring = Keyring.create(data)      # first start
    Keyring.complete(data)              # a directory of a version before there were checkpoints
    keyring = Keyring.open(data)
    keyring.ref(task_id)
"""

import base64
import copy
import functools
import hashlib
import hmac
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tasktrail.events.errors import TasktrailError
from tasktrail.events.subjects import framed, task_id, task_ref
from tasktrail.services.durable import write_once

KEY_BYTES = 32
_NONCE_BYTES = 12
_PSEUDONYM_BYTES = 20
_PSEUDONYMS_KEPT = 4096
_ORIGIN_BYTES = 10
_FILE = re.compile(r"(signing|wrapping|checkpoint)-(\d{1,6})\.key")
_FIRST_CHECKPOINT = "checkpoint-1.key"
_OUT_OF_USE = {
    "signing": "revocations and policies that it signed would count no more; keep old signing keys",
    "checkpoint": "checkpoints that it signed would count no more; keep old checkpoint keys",
}


class KeyringError(TasktrailError):
    """The keys are missing, unreadable or readable by others; the message says which and what to do."""

    reason = "keyring"


class Keyring:
    """Reference, signing, checkpoint and key-encryption keys of one installation."""

    def __init__(
        self,
        reference: bytes,
        signing: dict[int, bytes],
        wrapping: dict[int, bytes],
        checkpoint: Mapping[int, bytes] | None = None,
    ) -> None:
        self._reference = reference
        self._signing = {n: Ed25519PrivateKey.from_private_bytes(raw) for n, raw in signing.items()}
        self._wrapping = {n: AESGCM(raw) for n, raw in wrapping.items()}
        self._checkpoint = {n: Ed25519PrivateKey.from_private_bytes(raw) for n, raw in (checkpoint or {}).items()}
        self._signer = max(self._signing)
        self._wrapper = max(self._wrapping)
        self._pseudonym = functools.lru_cache(_PSEUDONYMS_KEPT)(self._made_pseudonym)

    @classmethod
    def create(cls, data: Path) -> "Keyring":
        """Make the keys that do not exist yet in `data`/keys and open them."""
        folder = data / "keys"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("reference.key", "signing-1.key", "wrapping-1.key"):
            write_once(folder / name, _hex(os.urandom(KEY_BYTES)))
        cls.complete(data)
        return cls.open(data)

    @staticmethod
    def complete(data: Path) -> None:
        """Make the first checkpoint key where there is none, and no checkpoint yet.

        Raises:
            KeyringError: `data` holds checkpoints, but not the key that signed them.
        """
        folder = data / "keys"
        if not folder.is_dir() or any(folder.glob("checkpoint-*.key")):
            return
        if (data / "checkpointed").exists() or any((data / "tlog" / "checkpoints").glob("*")):
            message = (
                f"no checkpoint key in {folder}, but {data} holds checkpoints, or held them: a new key could not "
                "continue them; restore your backup of the keys"
            )
            raise KeyringError(message)
        write_once(folder / _FIRST_CHECKPOINT, _hex(os.urandom(KEY_BYTES)))

    @classmethod
    def open(cls, data: Path) -> "Keyring":
        """The keys in `data`/keys.

        Raises:
            KeyringError: one is missing, malformed or readable by others.
        """
        folder = data / "keys"
        if not folder.is_dir():
            message = (
                f"no keys in {folder}; make them with `tasktrail init` (external NATS), or restore your backup of them"
            )
            raise KeyringError(message)
        numbered: dict[str, dict[int, bytes]] = {"signing": {}, "wrapping": {}, "checkpoint": {}}
        for path in folder.iterdir():
            found = _FILE.fullmatch(path.name)
            if found:
                numbered[found[1]][int(found[2])] = _read(path)
        for kind in ("signing", "wrapping"):
            if not numbered[kind]:
                message = f"no {kind} key in {folder}; restore your backup of the keys"
                raise KeyringError(message)
        for kind, why in _OUT_OF_USE.items():
            newest = max(numbered[kind], default=0)
            missing = sorted(set(range(1, newest + 1)) - set(numbered[kind]))
            if missing:
                message = (
                    f"{folder} holds {kind}-{newest}.key, but not {kind}-{missing[0]}.key: {why}, "
                    "restore your backup of it"
                )
                raise KeyringError(message)
        return cls(_read(folder / "reference.key"), numbered["signing"], numbered["wrapping"], numbered["checkpoint"])

    def oldest(self) -> "Keyring":
        """These keys, but signing as in the beginning: so that whoever holds none of the later keys believes it."""
        first = copy.copy(self)
        first._signer = min(self._signing)  # noqa: SLF001 - of the same class
        return first

    @staticmethod
    def exists(data: Path) -> bool:
        """Whether `data` holds keys."""
        return (data / "keys" / "reference.key").exists()

    def ref(self, task: str) -> str:
        """The reference of a task id."""
        return task_ref(self._reference, task)

    def task_id(self, *parts: str) -> str:
        """The task id for this identity context and command id."""
        return task_id(self._reference, *parts)

    def pseudonym(self, tenant: str, text: str) -> str:
        """What stands for `text` in a tenant: HMAC-SHA256, 160 bits, `p-` and 32 characters of base32."""
        return self._pseudonym(tenant, text)

    def _made_pseudonym(self, tenant: str, text: str) -> str:
        keyed = hmac.digest(self._reference, b"pseudonym\0" + framed(tenant, text), "sha256")
        return "p-" + base64.b32encode(keyed[:_PSEUDONYM_BYTES]).decode().lower()

    @property
    def kid(self) -> str:
        """The id of the signing key in use: the first 16 hex digits of SHA-256 of the public key."""
        return kid_of(self.public)

    @property
    def public_key(self) -> str:
        """The public key in use, base64url without padding."""
        return base64url(self.public)

    @property
    def public_keys(self) -> tuple[str, ...]:
        """Every public key of ours, also those no longer in use, base64url without padding."""
        raw = (key.public_key().public_bytes_raw() for key in self._signing.values())
        return tuple(base64url(one) for one in raw)

    @property
    def public(self) -> bytes:
        """The raw public key in use."""
        return self._signing[self._signer].public_key().public_bytes_raw()

    def sign(self, body: bytes) -> str:
        """Base64 of the Ed25519 signature over exactly these bytes (RFC 8032)."""
        return base64.b64encode(self._signing[self._signer].sign(body)).decode()

    @property
    def origin(self) -> str:
        """The name of this installation's log of checkpoints; as lasting as the reference key."""
        keyed = hmac.digest(self._reference, b"checkpoint origin", "sha256")
        return "tasktrail/" + base64.b32encode(keyed[:_ORIGIN_BYTES]).decode().lower()

    @property
    def checkpoint_publics(self) -> tuple[bytes, ...]:
        """The raw public keys of all checkpoint keys, the one in use first."""
        newest_first = sorted(self._checkpoint.items(), reverse=True)
        return tuple(key.public_key().public_bytes_raw() for _, key in newest_first)

    def sign_checkpoint(self, text: bytes) -> bytes:
        """The Ed25519 signature (64 bytes, RFC 8032) by the checkpoint key in use.

        Raises:
            KeyringError: there is none yet; `complete` makes the first.
        """
        if not self._checkpoint:
            message = "this keyring holds no checkpoint key; tasktrail up makes it at its next start"
            raise KeyringError(message)
        return self._checkpoint[max(self._checkpoint)].sign(text)

    def wrap(self, key: bytes, ref: str) -> bytes:
        """A task's key under the key-encryption key in use: one line of version, then nonce and ciphertext."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._wrapping[self._wrapper].encrypt(nonce, key, ref.encode())
        return f"{self._wrapper}\n".encode() + nonce + sealed

    def unwrap(self, wrapped: bytes, ref: str) -> bytes:
        """The task's key.

        Raises:
            KeyringError: it is wrapped by a key we do not hold, or is not this task's.
        """
        version, _, rest = wrapped.partition(b"\n")
        wrapper = self._wrapping.get(int(version)) if version.isdigit() else None
        if wrapper is None:
            message = f"task {ref}: its key is wrapped by version {version!r}, which is not in the keyring; restore it"
            raise KeyringError(message)
        try:
            return wrapper.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], ref.encode())
        except (InvalidTag, ValueError):
            message = f"task {ref}: its wrapped key does not open with version {version.decode()} of the wrapping key"
            raise KeyringError(message) from None


def kid_of(public: bytes) -> str:
    """The id of a raw public key: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def base64url(public: bytes) -> str:
    """A raw public key as the trail holds it: base64url without padding."""
    return base64.urlsafe_b64encode(public).decode().rstrip("=")


def _hex(raw: bytes) -> bytes:
    return raw.hex().encode() + b"\n"


def _read(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        text = path.read_bytes().strip()
    except OSError as error:
        message = f"cannot read the key {path}: {error.strerror}; restore your backup of the keys"
        raise KeyringError(message) from None
    if stat.S_IMODE(mode) & 0o077:
        message = f"{path} can be read by others (mode {stat.S_IMODE(mode):o}); run: chmod 600 {path}"
        raise KeyringError(message)
    try:
        raw = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        message = f"{path} does not hold {KEY_BYTES} bytes in hex; restore your backup of the keys"
        raise KeyringError(message)
    return raw
