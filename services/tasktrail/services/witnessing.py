"""Having checkpoints cosigned: the client of C2SP tlog-witness, and the cosigned checkpoints it keeps.

Guarantees: signing never waits for a witness; each has at most one request in flight, gets the newest checkpoint and at
most one every `EVERY_S`; nothing it says is believed but a cosignature that its key verifies; only the configured
address is contacted, no redirect is followed and no more than `ANSWER_BYTES_MAX` are read. A witness that refuses to go
along with our tree is loud in the log: it has seen another one, or does not know us. One that is not there now, as 429
or 5xx say, is asked again, and so it is after anything that fails here. A cosigned checkpoint, `cosigned/<size, 20
digits>`, is whole or not there, and gains signatures only.

    client = WitnessClient(witness, cosigned, consistency)
    client.start()
    client.offer(note)
"""

import asyncio
import logging
import re
import threading
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import httpx
import msgspec

from tasktrail.events.errors import TasktrailError, Unavailable
from tasktrail.projections.tlog.note import Checkpoint, MalformedNote, Note, Signature, Verifier
from tasktrail.services.addresses import is_loopback
from tasktrail.services.configuration import Witness
from tasktrail.services.durable import replace
from tasktrail.services.ending import end
from tasktrail.services.witness import PATH, PROOF_LINES_MAX, Request

_log = logging.getLogger(__name__)

EVERY_S = 5.0
ANSWER_S = 10.0
AGAIN_S, AGAIN_MOST_S = 5.0, 60.0
ANSWER_BYTES_MAX = 64 * 1024
_ASKED_MAX = 3
_SIZE = re.compile(rb"\d{1,19}")
_OK, _CONFLICT, _NO_PROOF, _TOO_MANY, _FAILING = 200, 409, 422, 429, 500

Consistency = Callable[[int, int], Awaitable[Sequence[bytes]]]
"""The proof that the tree of the second size extends that of the first."""


class WitnessState(StrEnum):
    """What a witness last did."""

    WAITING = "waiting"
    COSIGNS = "cosigns"
    UNREACHABLE = "unreachable"
    """Not there now; it is asked again."""
    REFUSES = "refuses"
    """It answers, and does not cosign."""
    FAILED = "failed"
    """Asking it failed here, as nobody foresaw; it is asked again."""


_LEVELS = {
    WitnessState.UNREACHABLE: logging.WARNING,
    WitnessState.REFUSES: logging.ERROR,
    WitnessState.FAILED: logging.ERROR,
}


class WitnessShown(msgspec.Struct, frozen=True, kw_only=True):
    """One witness: its name, where it is, what it last did (`waiting`: nothing yet), and the size it last cosigned."""

    name: str
    url: str
    state: WitnessState
    cosigned_size: int = 0
    cosigned_at: int = 0
    detail: str = ""


class Refuses(TasktrailError):
    """The witness has seen another tree than ours, or does not know us; the message says which."""

    reason = "witness_refuses"


class Cosigned:
    """The cosigned checkpoints of one log, in a directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def add(self, note: Note, cosignature: Signature) -> None:
        """Keep the checkpoint with one cosignature more; a later one of the same key replaces the earlier."""
        size = Checkpoint.parse(note.text).size
        with self._lock:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            known = self.at(size)
            before = known.signatures if known and known.text == note.text else note.signatures
            key = (cosignature.name, cosignature.key_id)
            others = tuple(one for one in before if (one.name, one.key_id) != key)
            replace(self._folder / f"{size:020}", Note(note.text, (*others, cosignature)).encode())

    def at(self, size: int) -> Note | None:
        """The checkpoint of this size with its cosignatures; None when nobody cosigned it."""
        try:
            return Note.parse((self._folder / f"{size:020}").read_bytes())
        except (FileNotFoundError, MalformedNote):
            return None

    def sizes(self) -> list[int]:
        """The sizes that somebody cosigned, in order."""
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())


class WitnessClient:
    """One witness."""

    def __init__(self, witness: Witness, cosigned: Cosigned, consistency: Consistency) -> None:
        """Raises MalformedNote: the witness's `vkey` is none."""
        self._url = witness.url.rstrip("/")
        self._verifier = Verifier.of(witness.vkey)
        self._cosigned, self._consistency = cosigned, consistency
        self.shown = WitnessShown(name=self._verifier.name, url=self._url, state=WitnessState.WAITING)
        self._size = 0
        """The size of the newest checkpoint it cosigned, as far as we know."""
        self._offered: Note | None = None
        self._wake = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to submit what is offered."""
        self._running = asyncio.create_task(self._run(), name=f"witness {self._verifier.name}")

    async def stop(self) -> None:
        """Stop; what was not cosigned by now is not."""
        if self._running is not None:
            await end(self._running)

    def offer(self, note: Note) -> None:
        """Have this checkpoint cosigned, unless a newer one is offered before its turn comes."""
        self._offered = note
        self._wake.set()

    async def _run(self) -> None:
        proxied = not is_loopback(urlsplit(self._url).hostname)
        while True:
            try:
                async with httpx.AsyncClient(timeout=ANSWER_S, follow_redirects=False, trust_env=proxied) as client:
                    await self._submit_all(client)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and does not end the asking
                detail = f"asking it failed: {type(error).__name__}: {error}"
                self._tell(WitnessState.FAILED, detail, error=error)
            await asyncio.sleep(AGAIN_MOST_S)
            self._wake.set()

    async def _submit_all(self, client: httpx.AsyncClient) -> NoReturn:
        """What is offered, each time the newest, again while it is not cosigned."""
        pause_s = AGAIN_S
        while True:
            await self._wake.wait()
            self._wake.clear()
            note = self._offered
            if note is None:
                continue
            try:
                async with asyncio.timeout(_ASKED_MAX * ANSWER_S):
                    await self._submit(client, note)
            except (httpx.HTTPError, TimeoutError) as error:
                self._tell(WitnessState.UNREACHABLE, f"no answer ({type(error).__name__})")
            except (TasktrailError, OSError) as error:
                state = WitnessState.REFUSES if isinstance(error, Refuses) else WitnessState.UNREACHABLE
                self._tell(state, str(error))
            else:
                pause_s = AGAIN_S
                await asyncio.sleep(EVERY_S)
                continue
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_MOST_S)
            self._wake.set()

    async def _submit(self, client: httpx.AsyncClient, note: Note) -> None:
        """One checkpoint, asked anew when the witness says from which size it wants the proof."""
        checkpoint = Checkpoint.parse(note.text)
        for _ in range(_ASKED_MAX):
            if self._size > checkpoint.size:
                message = f"it has cosigned a tree of size {self._size}, and ours has {checkpoint.size}"
                self._size = 0
                raise Refuses(message)
            proof = await self._consistency(self._size, checkpoint.size) if self._size else []
            if len(proof) > PROOF_LINES_MAX:
                message = f"a proof of {len(proof)} lines cannot be sent"
                raise Refuses(message)
            status, body = await self._post(client, Request(self._size, tuple(proof), note).encode())
            if status == _OK:
                await self._take(note, checkpoint.size, body)
                return
            told = body.strip()
            if status == _TOO_MANY or status >= _FAILING:
                raise Unavailable(_why(status, told))
            if status != _CONFLICT or not _SIZE.fullmatch(told) or int(told) == self._size:
                self._size = 0 if status == _CONFLICT else self._size
                raise Refuses(_why(status, told))
            self._size = int(told)
        message = "it names another size at every request: does another log use our name?"
        raise Refuses(message)

    async def _post(self, client: httpx.AsyncClient, body: bytes) -> tuple[int, bytes]:
        async with client.stream("POST", f"{self._url}{PATH}", content=body) as answer:
            taken = b""
            async for part in answer.aiter_bytes():
                taken += part
                if len(taken) > ANSWER_BYTES_MAX:
                    break
            return answer.status_code, taken[:ANSWER_BYTES_MAX]

    async def _take(self, note: Note, size: int, body: bytes) -> None:
        """Keep its cosignature."""
        for line in body.decode("utf-8", "replace").splitlines():
            try:
                signature = Signature.of(line)
            except MalformedNote:
                continue
            at = Note(note.text, (signature,)).cosigned_at(self._verifier)
            if at is not None:
                await asyncio.to_thread(self._cosigned.add, note, signature)
                self._size = size
                self._tell(WitnessState.COSIGNS, "", size, at)
                return
        message = "its answer holds no cosignature by its key; is vkey the one it prints?"
        raise Refuses(message)

    def _tell(
        self, state: WitnessState, detail: str, size: int = 0, at: int = 0, error: Exception | None = None
    ) -> None:
        before = self.shown
        self.shown = msgspec.structs.replace(
            before,
            state=state,
            detail=detail,
            cosigned_size=size or before.cosigned_size,
            cosigned_at=at or before.cosigned_at,
        )
        if (before.state, before.detail) != (state, detail):
            level = _LEVELS.get(state, logging.INFO)
            _log.log(level, "witness %s %s %s", self._verifier.name, state, detail, exc_info=error)


def _why(status: int, told: bytes) -> str:
    if status == _CONFLICT:
        return f"it has cosigned another tree of the same size, {told.decode('utf-8', 'replace')[:40]}"
    said = told.decode("utf-8", "replace")[:200]
    if status == _NO_PROOF:
        return f"it does not find that our tree extends the one it cosigned: {said}"
    return f"it answers {status}: {said}"
