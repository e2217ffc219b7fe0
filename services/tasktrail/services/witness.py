"""The witness: cosigns a log's checkpoints as long as each extends the one before (C2SP tlog-witness, add-checkpoint).

Guarantees: of each log it cosigns one growing history only, whatever it is sent and by whom; the newest checkpoint is
on disk before the cosignature of it leaves, and both are one step under a lock; a second witness on the same directory
is refused; it knows the logs it was given and no others, and never contacts anybody. Its directory holds `witness.key`
(mode 0600), `name`, `lock`, and per log the newest checkpoint it cosigned, under `logs/`.

    witness = Witness.open(Path("witness"), logs=[vkey_of_the_log])
    print(witness.vkey)
    status, content_type, body = witness.add_checkpoint(request_body)

Whoever runs it must not be whoever runs the log: that is all its worth. See docs/checkpoints.md.
"""

import asyncio
import base64
import binascii
import fcntl
import hashlib
import logging
import os
import stat
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tasktrail.events.errors import TasktrailError
from tasktrail.projections.tlog.merkle import root, verify_consistency
from tasktrail.projections.tlog.note import (
    COSIGNATURE,
    ED25519,
    Checkpoint,
    MalformedNote,
    Note,
    Verifier,
    cosign,
    vkey,
)
from tasktrail.services.durable import replace, write_once

_log = logging.getLogger(__name__)

BODY_BYTES_MAX = 64 * 1024
PROOF_LINES_MAX = 63
TEXT = "text/plain; charset=utf-8"
SIZE = "text/x.tlog.size"
"""Media type of a 409's body (C2SP tlog-witness): the size of the newest checkpoint cosigned."""

PATH = "/add-checkpoint"
_KEY_BYTES = 32
_HASH_BYTES = 32
_OTHERS = 0o077

Clock = Callable[[], float]
Message: TypeAlias = MutableMapping[str, Any]


class WitnessError(TasktrailError):
    """The witness cannot start on this directory or with these keys; the message says why and what to do."""

    reason = "witness"


class Answer(NamedTuple):
    """What an HTTP request is answered."""

    status: int
    content_type: str
    body: bytes


class _Refused(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.answer = Answer(status, TEXT, f"{why}\n".encode())


class Request(NamedTuple):
    """The body of `add-checkpoint`: the size the client believes is ours, the proof from there, the new checkpoint."""

    old: int
    proof: tuple[bytes, ...]
    note: Note

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read it.

        Raises:
            MalformedNote: it is not of the specification's form.
        """
        head, blank, note = body.partition(b"\n\n")
        lines = head.split(b"\n")
        first = lines[0].removeprefix(b"old ")
        if not blank or first == lines[0] or not first.isdigit() or (first[:1] == b"0" and first != b"0"):
            message = "The body is `old <size>`, proof lines, an empty line and the checkpoint."
            raise MalformedNote(message)
        if len(lines) - 1 > PROOF_LINES_MAX or len(first) > len(str(2**63)):
            message = f"A proof has at most {PROOF_LINES_MAX} lines, and a size fits into 63 bits."
            raise MalformedNote(message)
        return cls(int(first), tuple(_hash(line) for line in lines[1:]), Note.parse(note))

    def encode(self) -> bytes:
        """The body."""
        proof = b"".join(base64.b64encode(one) + b"\n" for one in self.proof)
        return b"old %d\n%s\n%s" % (self.old, proof, self.note.encode())


class Witness:
    """One witness on its directory; made by `open`."""

    def __init__(  # noqa: PLR0913, PLR0917 - what `open` finds
        self, folder: Path, name: str, key: Ed25519PrivateKey, logs: Sequence[str], clock: Clock, lock: int
    ) -> None:
        self.name = name
        self._held: int | None = lock
        self._logs: dict[str, list[Verifier]] = {}
        for text in logs:
            verifier = _verifier(text)
            self._logs.setdefault(verifier.name, []).append(verifier)
        self._folder, self._key, self._clock = folder, key, clock
        self._public = key.public_key().public_bytes_raw()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, logs: Sequence[str], *, name: str = "", clock: Clock = time.time) -> Self:
        """The witness of this directory; at first start it is made, with a key of its own and this name.

        `logs` are the verifier keys of the logs it cosigns, each named by the log's origin.

        Raises:
            WitnessError: another process has it open, it has another name, its key is missing or readable by others, or
                a verifier key is none.
        """
        (folder / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _take(folder / "lock")
        try:
            return cls(folder, *_identity(folder, name), logs, clock, lock)
        except BaseException:
            os.close(lock)
            raise

    def release(self) -> None:
        """Give the directory free; for when nothing is asked any more."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    @property
    def vkey(self) -> str:
        """The verifier key to give to logs, and to whoever checks cosignatures."""
        return vkey(self.name, self._public, COSIGNATURE)

    @property
    def origins(self) -> list[str]:
        """The logs it cosigns."""
        return sorted(self._logs)

    def add_checkpoint(self, body: bytes) -> Answer:
        """Cosign the checkpoint in the body, or say why not. Blocks for the disk; any thread."""
        try:
            request = Request.parse(body)
            checkpoint = Checkpoint.parse(request.note.text)
        except MalformedNote as error:
            return Answer(400, TEXT, f"{error}\n".encode())
        try:
            self._admit(request, checkpoint)
            with self._lock:
                return self._cosigned(request, checkpoint)
        except _Refused as refused:
            _log.warning("not cosigned: size %d of %s: %s", checkpoint.size, checkpoint.origin, refused)
            return refused.answer

    def newest(self, origin: str) -> Checkpoint | None:
        """The newest checkpoint cosigned for this log."""
        try:
            kept = self._place(origin).read_bytes()
        except FileNotFoundError:
            return None
        return Checkpoint.parse(Note.parse(kept).text)

    def _admit(self, request: Request, checkpoint: Checkpoint) -> None:
        verifiers = self._logs.get(checkpoint.origin)
        if verifiers is None:
            raise _Refused(404, "no log of this origin is known here")
        if not any(request.note.signed_by(one) for one in verifiers):
            raise _Refused(403, "no signature is by a key that is trusted for this origin")
        if request.old > checkpoint.size:
            raise _Refused(400, f"the old size {request.old} exceeds the checkpoint's, {checkpoint.size}")

    def _cosigned(self, request: Request, checkpoint: Checkpoint) -> Answer:
        known = self.newest(checkpoint.origin)
        size = known.size if known else 0
        if request.old != size:
            return Answer(409, SIZE, b"%d\n" % size)
        if known and checkpoint.size == size and checkpoint.text() != known.text():  # another root, or other heads
            _log.error("%s shows two checkpoints of size %d", checkpoint.origin, size)
            return Answer(409, SIZE, b"%d\n" % size)
        if not _extends(known, checkpoint, request.proof):
            _log.error("%s: size %d does not extend size %d", checkpoint.origin, checkpoint.size, size)
            raise _Refused(422, f"the proof does not show that this tree extends the one of size {size}")
        replace(self._place(checkpoint.origin), request.note.encode())
        line = cosign(request.note.text, self.name, self._public, self._key.sign, int(self._clock())).line()
        return Answer(200, TEXT, f"{line}\n".encode())

    def _place(self, origin: str) -> Path:
        return self._folder / "logs" / hashlib.sha256(origin.encode()).hexdigest()

    def close(self) -> None:
        """No request outlives its answer, so there is nothing to end when the server stops."""

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """The witness as an ASGI application: `POST /add-checkpoint`."""
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["path"] != PATH:
            answer = Answer(404, TEXT, b"POST /add-checkpoint is all there is\n")
        elif scope["method"] != "POST":
            answer = Answer(405, TEXT, b"send it by POST\n")
        else:
            body = await _body(receive)
            if body is None:
                answer = Answer(400, TEXT, b"the body is too large\n")
            else:
                answer = await asyncio.to_thread(self.add_checkpoint, body)
        headers = [
            (b"content-type", answer.content_type.encode()),
            (b"content-length", b"%d" % len(answer.body)),
            *([(b"allow", b"POST")] if answer.status == 405 else []),  # noqa: PLR2004 - Method Not Allowed
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})


def _extends(known: Checkpoint | None, new: Checkpoint, proof: tuple[bytes, ...]) -> bool:
    if known is None or known.size == 0:
        return not proof and (new.size > 0 or new.root == root([]))
    return verify_consistency(known.size, new.size, known.root, new.root, list(proof))


async def _body(receive: Callable[[], Awaitable[Message]]) -> bytes | None:
    """The whole body; None when it is too large, or the client left."""
    body = b""
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        body += part
        if message["type"] == "http.disconnect" or len(body) > BODY_BYTES_MAX:
            return None
        if not message.get("more_body", False):
            return body


def _hash(line: bytes) -> bytes:
    try:
        raw = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != _HASH_BYTES or base64.b64encode(raw) != line:
        message = "A line of the proof is no base64 of 32 bytes."
        raise MalformedNote(message)
    return raw


def _verifier(text: str) -> Verifier:
    try:
        verifier = Verifier.of(text)
    except MalformedNote as error:
        message = f"--log {text[:200]}: {error}"
        raise WitnessError(message) from None
    if verifier.kind != ED25519:
        message = f"--log {text[:200]}: this is a witness's key; give the log's, in tlog/vkey of its data directory"
        raise WitnessError(message)
    return verifier


def _take(path: Path) -> int:
    """Keep other witnesses out of the directory until the descriptor is closed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        message = f"another witness runs on {path.parent}; end it first, or give another directory"
        raise WitnessError(message) from None
    return descriptor


def _identity(folder: Path, name: str) -> tuple[str, Ed25519PrivateKey]:
    """The witness's name and key, made when there are none."""
    key = _key(folder)
    public = key.public_key().public_bytes_raw()
    write_once(folder / "name", (name or f"tasktrail-witness/{public.hex()[:8]}").encode())
    kept = (folder / "name").read_text(encoding="utf-8")
    if name and kept != name:
        message = f"{folder} is the witness {kept}; leave --name out, or give another directory"
        raise WitnessError(message)
    try:
        vkey(kept, public, COSIGNATURE)
    except MalformedNote as error:
        message = f"{folder / 'name'}: {error}"
        raise WitnessError(message) from None
    return kept, key


def _key(folder: Path) -> Ed25519PrivateKey:
    path = folder / "witness.key"
    if not path.exists():
        if any((folder / "logs").glob("[!.]*")):
            message = f"{path} is gone, but this witness has cosigned: restore your backup of it"
            raise WitnessError(message)
        write_once(path, os.urandom(_KEY_BYTES).hex().encode() + b"\n")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS:
        message = f"{path} can be read by others (mode {mode:o}); run: chmod 600 {path}"
        raise WitnessError(message)
    try:
        raw = bytes.fromhex(path.read_text(encoding="ascii").strip())
        return Ed25519PrivateKey.from_private_bytes(raw)
    except ValueError:
        message = f"{path} does not hold {_KEY_BYTES} bytes in hex; restore your backup of it"
        raise WitnessError(message) from None
