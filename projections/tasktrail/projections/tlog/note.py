"""Signed notes (C2SP signed-note), checkpoints (C2SP tlog-checkpoint) and cosignatures v1 (C2SP tlog-cosignature).

Guarantees: `Note.parse(note.encode()) == note`; what parses encodes to the same bytes, so a note has one form only. A
text is to be believed only after `signed_by` or `cosigned_at` said so. Two signatures of one key in one note are
refused. Ed25519 (RFC 8032) throughout; base64 is that of RFC 4648, section 4.

    text = Checkpoint("example.com/trail", size, root, heads).text()
    note = Note(text, (sign(text, "example.com/trail", public, key.sign),))
    assert Note.parse(note.encode()).signed_by(Verifier.of(vkey("example.com/trail", public)))
"""

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tasktrail.projections.tlog.errors import MalformedNote

__all__ = [
    "COSIGNATURE",
    "ED25519",
    "NOTE_BYTES_MAX",
    "SIGNATURES_MAX",
    "Checkpoint",
    "MalformedNote",
    "Note",
    "Signature",
    "Verifier",
    "cosign",
    "key_id",
    "sign",
    "vkey",
]

ED25519: Final = 0x01
"""Signature type: Ed25519 over the note's text."""
COSIGNATURE: Final = 0x04
"""Signature type: timestamped Ed25519 cosignature of a checkpoint."""
NOTE_BYTES_MAX: Final = 256 * 1024
SIGNATURES_MAX: Final = 64
_SIZE_MAX: Final = 2**63 - 1
_HASH_BYTES: Final = 32
_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_ID_BYTES: Final = 4
_TIME_BYTES: Final = 8
_HEADS: Final = "heads "
_DASH: Final = "\u2014 "

Signer = Callable[[bytes], bytes]
"""Signs a message with an Ed25519 private key: 64 bytes."""


def key_id(name: str, public: bytes, kind: int = ED25519) -> bytes:
    """The four bytes that say, with the name, which key made a signature."""
    return sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:_ID_BYTES]


def vkey(name: str, public: bytes, kind: int = ED25519) -> str:
    """The verifier key as text: name, key id and public key (32 bytes), as operators hand it to others.

    Raises:
        MalformedNote: the name or the key cannot stand in one.
    """
    _check_name(name)
    _check_key(kind, public)
    return f"{name}+{key_id(name, public, kind).hex()}+{_base64(bytes([kind]) + public)}"


def _check_name(name: str) -> None:
    if not name or "+" in name or any(char.isspace() or char < " " or "\ud800" <= char < "\ue000" for char in name):
        message = f"{name[:100]!r} is no key name: one is not empty and has no space and no plus sign."
        raise MalformedNote(message)


def _check_key(kind: int, public: bytes) -> None:
    if kind not in {ED25519, COSIGNATURE}:
        message = f"A key of signature type {kind:#04x} is not one of those known here: 0x01 and 0x04, both Ed25519."
        raise MalformedNote(message)
    if len(public) != _KEY_BYTES:
        message = f"An Ed25519 public key has {_KEY_BYTES} bytes, this one {len(public)}."
        raise MalformedNote(message)


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _unbase64(text: str, what: str) -> bytes:
    """The bytes; only the one canonical text of them is taken."""
    try:
        data = b64decode(text, validate=True)
    except (NotBase64, ValueError) as error:
        message = f"{what} is not base64."
        raise MalformedNote(message) from error
    if _base64(data) != text:
        message = f"{what} is not canonical base64."
        raise MalformedNote(message)
    return data


@dataclass(frozen=True)
class Verifier:
    """A public key somebody decided to trust, under a name, for one type of signature."""

    name: str
    key_id: bytes
    kind: int
    public: bytes

    @classmethod
    def of(cls, vkey_text: str) -> "Verifier":
        """Read a verifier key.

        Raises:
            MalformedNote: it is not of the form, or its key id is not that of its name and key.
        """
        parts = vkey_text.split("+", 2)
        if len(parts) != 3:  # noqa: PLR2004 - name, key id, key
            message = "A verifier key has the form <name>+<key id>+<base64 of type and key>."
            raise MalformedNote(message)
        name, id_, rest = parts
        _check_name(name)
        data = _unbase64(rest, "The key of a verifier key")
        kind, public = (data[0], data[1:]) if data else (0, b"")
        _check_key(kind, public)
        expected = key_id(name, public, kind)
        if id_ != expected.hex():
            message = (
                f"The verifier key of {name} says key id {id_[:16]!r}, but its name and key give {expected.hex()}."
            )
            raise MalformedNote(message)
        return cls(name, expected, kind, public)

    def accepts(self, message: bytes, signature: bytes) -> bool:
        """Whether this key made the 64 bytes over the message."""
        if len(signature) != _SIGNATURE_BYTES:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class Signature:
    """One signature line. `blob`: what follows the key id; its form is a matter of the key's type."""

    name: str
    key_id: bytes
    blob: bytes

    def line(self) -> str:
        """The line as it stands in a note, without its newline."""
        return f"{_DASH}{self.name} {_base64(self.key_id + self.blob)}"

    @classmethod
    def of(cls, line: str) -> "Signature":
        """Read one signature line, without its newline.

        Raises:
            MalformedNote: it is none.
        """
        name, space, rest = line.removeprefix(_DASH).partition(" ")
        if not line.startswith(_DASH) or not space:
            message = "A signature line is an em dash, the key's name and the base64 of its signature."
            raise MalformedNote(message)
        _check_name(name)
        data = _unbase64(rest, f"The signature of {name[:100]}")
        if len(data) <= _ID_BYTES:
            message = f"The signature of {name[:100]} is empty."
            raise MalformedNote(message)
        return cls(name, data[:_ID_BYTES], data[_ID_BYTES:])


@dataclass(frozen=True)
class Note:
    """A text and who signed it. The text ends with a newline and is believed only once a signature was verified."""

    text: str
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, data: bytes) -> "Note":
        """Read a signed note; no signature is verified.

        Raises:
            MalformedNote: not UTF-8, too long, with control characters, without a signature, two of one key, …
        """
        if len(data) > NOTE_BYTES_MAX:
            message = f"A note may have {NOTE_BYTES_MAX} bytes, this one has {len(data)}."
            raise MalformedNote(message)
        try:
            whole = data.decode()
        except UnicodeDecodeError as error:
            message = f"A note is UTF-8; byte {error.start} is not."
            raise MalformedNote(message) from error
        if any(char < " " and char != "\n" for char in whole):
            message = "A note has no control characters but newlines."
            raise MalformedNote(message)
        before, blank, after = whole.rpartition("\n\n")
        if not blank or not after.endswith("\n"):
            message = "A note is a text, an empty line and signature lines, each ended by a newline."
            raise MalformedNote(message)
        lines = after[:-1].split("\n")
        if len(lines) > SIGNATURES_MAX:
            message = f"A note may have {SIGNATURES_MAX} signatures, this one has {len(lines)}."
            raise MalformedNote(message)
        signatures = tuple(Signature.of(line) for line in lines)
        keys = {(signature.name, signature.key_id) for signature in signatures}
        if len(keys) != len(signatures):
            message = "Two signatures of the note are of one key."
            raise MalformedNote(message)
        return cls(before + "\n", signatures)

    def encode(self) -> bytes:
        """The note's bytes.

        Raises:
            MalformedNote: the text or a signature cannot stand in a note.
        """
        whole = f"{self.text}\n" + "".join(f"{signature.line()}\n" for signature in self.signatures)
        try:
            data = whole.encode()
        except UnicodeEncodeError as error:
            message = "The text of a note must be possible in UTF-8."
            raise MalformedNote(message) from error
        if Note.parse(data) != self:
            message = "The text of a note ends with a newline."
            raise MalformedNote(message)
        return data

    def signed_by(self, verifier: Verifier) -> bool:
        """Whether this key, of the type `ED25519`, signed the text."""
        blob = self._blob(verifier, ED25519)
        return blob is not None and verifier.accepts(self.text.encode(), blob)

    def cosigned_at(self, verifier: Verifier) -> int | None:
        """When this key, of the type `COSIGNATURE`, cosigned the checkpoint (seconds since 1970); None: it did not."""
        blob = self._blob(verifier, COSIGNATURE)
        if blob is None or len(blob) != _TIME_BYTES + _SIGNATURE_BYTES:
            return None
        time_s = int.from_bytes(blob[:_TIME_BYTES])
        message = _cosigned(self.text, time_s)
        if time_s > _SIZE_MAX or not verifier.accepts(message, blob[_TIME_BYTES:]):
            return None
        return time_s

    def _blob(self, verifier: Verifier, kind: int) -> bytes | None:
        if verifier.kind != kind:
            return None
        key = (verifier.name, verifier.key_id)
        return next((one.blob for one in self.signatures if (one.name, one.key_id) == key), None)


def sign(text: str, name: str, public: bytes, signer: Signer) -> Signature:
    """Sign a note's text."""
    _check_name(name)
    return Signature(name, key_id(name, public, ED25519), signer(text.encode()))


def cosign(text: str, name: str, public: bytes, signer: Signer, time_s: int) -> Signature:
    """Cosign a checkpoint's text at a time, in seconds since 1970."""
    _check_name(name)
    if not 0 <= time_s <= _SIZE_MAX:
        message = f"{time_s} is no time of a cosignature: 0 to 2**63 - 1 seconds."
        raise MalformedNote(message)
    blob = time_s.to_bytes(_TIME_BYTES) + signer(_cosigned(text, time_s))
    return Signature(name, key_id(name, public, COSIGNATURE), blob)


def _cosigned(text: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()


@dataclass(frozen=True)
class Checkpoint:
    """What a log says of its tree. `heads`: the root of the committed heads, empty when there is no such line.

    `others`: further extension lines; tasktrail's own checkpoints have none, those of other logs are kept as they are.
    """

    origin: str
    size: int
    root: bytes
    heads: bytes = b""
    others: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """Read the text of a checkpoint's note.

        Raises:
            MalformedNote: it is none, or not in its one form.
        """
        if not text.endswith("\n"):
            message = "A checkpoint's text ends with a newline."
            raise MalformedNote(message)
        lines = text[:-1].split("\n")
        if len(lines) < 3 or not all(lines):  # noqa: PLR2004 - origin, size, root
            message = "A checkpoint has three lines at least (origin, size, root), and no empty one."
            raise MalformedNote(message)
        origin, size, root, *others = lines
        heads = b""
        if others and others[0].startswith(_HEADS):
            heads = _hash(others.pop(0).removeprefix(_HEADS), "The line `heads` of a checkpoint")
        if any(line.startswith(_HEADS) for line in others):
            message = "A checkpoint has one line `heads`, and it is the fourth."
            raise MalformedNote(message)
        return cls(origin, _size(size), _hash(root, "The root of a checkpoint"), heads, tuple(others))

    def text(self) -> str:
        """The text to sign.

        Raises:
            MalformedNote: these values are no checkpoint.
        """
        lines = [self.origin, str(self.size), _base64(self.root)]
        if self.heads:
            lines.append(_HEADS + _base64(self.heads))
        text = "".join(f"{line}\n" for line in (*lines, *self.others))
        if Checkpoint.parse(text) != self:
            message = "A line of a checkpoint has no newline in it."
            raise MalformedNote(message)
        return text


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or (text[0] == "0" and text != "0") or len(text) > len(str(_SIZE_MAX)):
        message = "The size of a checkpoint is a decimal number without leading zeroes, at most 2**63 - 1."
        raise MalformedNote(message)
    if int(text) > _SIZE_MAX:
        message = "The size of a checkpoint is at most 2**63 - 1."
        raise MalformedNote(message)
    return int(text)


def _hash(text: str, what: str) -> bytes:
    data = _unbase64(text, what)
    if len(data) != _HASH_BYTES:
        message = f"{what} has {_HASH_BYTES} bytes, not {len(data)}."
        raise MalformedNote(message)
    return data
