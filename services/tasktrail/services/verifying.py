"""`tasktrail verify`: a trail held against its log, its task chains and signatures, and its projections against it.

Guarantees: nothing is written but in a temporary directory; what could not be checked is in words in the verdict's
`not_checked`; whose key was believed is in it too. Projections are held against the trail only where the trail itself
is as its checkpoints say: of another trail they say nothing. Of a running service the log is read first, so that the
trail reaches at least as far.

    verdict = await verify(Order(data=Path(".tasktrail"), keys=("vkey.txt",)))
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC
from pathlib import Path

import msgspec

from tasktrail.events.errors import InvalidRequest
from tasktrail.events.subjects import TRAIL
from tasktrail.projections.audit.columns import Message
from tasktrail.projections.audit.errors import (
    AuditStoreError,
    StoreBusy,
    StoreMissing,
    StoreTooNew,
    StoreTooOld,
)
from tasktrail.projections.audit.store import AuditStore, Position
from tasktrail.projections.replay_rows import in_words, row_differences
from tasktrail.projections.tlog.findings import Finding, Kind, Verdict, found, with_more
from tasktrail.projections.tlog.verification import Verification
from tasktrail.services import archive
from tasktrail.services.bucket_reading import Fold
from tasktrail.services.keyring import Keyring
from tasktrail.services.log_reading import Trusted, WrongKey, check_files, read_checkpoints, read_log
from tasktrail.services.replay_comparing import audit_file
from tasktrail.services.trail_reading import NoTrailHere, TrailReader, open_trail

BATCH = 2_000
APPEND = 8_000
ROWS_MAX = 100
"""Rows of one table of the audit store that are named as different, at most."""

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is (0: not known)."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to verify. `keys`: verifier keys or files with some. `checkpoints`: files kept elsewhere, or directories.

    `archive`: a directory written by `tasktrail archive`, instead of the stream. `entry_key`: the first signing key.
    `token_file`, `case`: of the operator to whom a running service lends a copy of its audit store.
    """

    data: Path
    nats_url: str = ""
    nats_credentials: Path | None = None
    keys: tuple[str, ...] = ()
    entry_key: str = ""
    checkpoints: tuple[Path, ...] = ()
    archive: Path | None = None
    quick: bool = False
    token_file: Path | None = None
    case: str = ""


def _quiet(_doing: str, _done: int, _of: int) -> None:
    return None


async def verify(order: Order, progress: Progress = _quiet) -> Verdict:
    """The verdict. From a coroutine on the main thread, when the service is stopped: a broker is started to read.

    Raises:
        WrongKey, WrongCheckpoint: of what was given.
        NoTrailHere, Unavailable, BrokerError: the trail cannot be read.
    """
    _require_place(order)
    trusted = Trusted.of(order.keys, order.data)
    given = [read_checkpoints(path, trusted) for path in order.checkpoints]
    elsewhere = [one for kept in given for one in kept.known]
    log = read_log(order.data / "tlog", trusted)
    try:
        checking = Verification(
            [*log.known, *elsewhere], log.tree, pinned=order.entry_key, quick=order.quick, whole=order.archive is None
        )
    except ValueError as error:
        message = f"--entry-key is no Ed25519 public key in base64url: {error}"
        raise WrongKey(message) from None
    with tempfile.TemporaryDirectory(prefix="tasktrail-verify-") as scratch:
        if order.archive is not None:
            projections = _Projections(None, Path(scratch))
            verdict = _of_archive(order.archive, checking, progress)
        else:
            signed = max((one.size for one in log.known), default=0)
            with audit_file(order.data, order.token_file, order.case) as kept:
                projections = _Projections(kept, Path(scratch))
                verdict = await _of_trail(order, checking, projections, signed, progress)
    verdict = with_more(verdict, [*log.findings, *projections.findings], projections.not_checked)
    verdict = with_more(verdict, _files(order.data / "tlog", progress), _of_whom(order, trusted, verdict))
    verdict = with_more(verdict, (), [f"a checkpoint kept elsewhere: {why}" for kept in given for why in kept.left_out])
    how = "as given" if order.entry_key else "the first that the trail announces"
    return msgspec.structs.replace(
        verdict,
        key=f"{trusted.named()} ({trusted.source})",
        entry_key=f"{verdict.entry_key} ({how})" if verdict.entry_key else "none",
    )


def _require_place(order: Order) -> None:
    """See that there is something to verify where the order says.

    Raises:
        NoTrailHere: no service ever ran there, and nothing else is named to verify.
    """
    elsewhere = order.keys and (order.nats_url or order.archive is not None)
    if not elsewhere and not (order.data / "tlog").is_dir() and not Keyring.exists(order.data):
        message = f"no tasktrail data in {order.data}; name the data directory of the service with --data"
        raise NoTrailHere(message)


def _of_archive(folder: Path, checking: Verification, progress: Progress) -> Verdict:
    end = 0
    for segment in archive.manifest(folder).segments:
        if segment.first != end + 1:
            message = f"{folder} holds no segment with sequence {end + 1}; an archive is verified from its beginning on"
            raise InvalidRequest(message)
        end = segment.last
    damaged: list[Finding] = []
    try:
        for messages in archive.read(folder, batch=BATCH):
            checking.take(messages)
            progress("entries", messages[-1].stream_seq, end)
    except archive.ArchiveDamaged as error:
        damaged.append(found(Kind.CHANGED, checking.size, f"the archive cannot be read from here on: {error.message}"))
    return with_more(checking.finish(), damaged, ())


async def _of_trail(
    order: Order, checking: Verification, projections: "_Projections", signed: int, progress: Progress
) -> Verdict:
    async with open_trail(order.data, nats_url=order.nats_url, nats_credentials=order.nats_credentials) as trail:
        projections.begin(trail)
        async for messages in trail.messages(batch=BATCH):
            checking.take(messages)
            projections.take(messages)
            progress("entries", messages[-1].stream_seq, trail.last_seq)
        verdict = checking.finish()
        if all(one.kind is Kind.TREE for one in verdict.findings):
            progress("projections", 0, 0)
            await projections.finish(trail, signed)
        else:
            projections.leave("the trail itself is not as it should be")
    return verdict


def _files(folder: Path, progress: Progress) -> list[Finding]:
    if not folder.is_dir():
        return [found(Kind.TREE, None, f"there is no log in {folder}")]
    done = 0

    def told(hashes: int) -> None:
        nonlocal done
        done += hashes
        progress("the log's files", done, 0)

    return check_files(folder, told)


def _of_whom(order: Order, trusted: Trusted, verdict: Verdict) -> Iterator[str]:
    """What nobody but the owner of the directory vouches for."""
    if not order.keys:
        yield (
            f"whether the log's key is the right one: it was taken from {trusted.source}, beside the trail, so this "
            "proves nothing against whoever can write there; give --key"
        )
    if not order.checkpoints:
        yield (
            "whether all of it was replaced, or cut off and signed again: that takes a checkpoint kept elsewhere; "
            "give --checkpoint"
        )
    if not order.entry_key and verdict.entry_key and not order.quick:
        yield "whether the first signing key is the right one: the trail itself announces it; give --entry-key"


class _Projections:
    """Builds both projections again while the trail is read, and holds what is kept against them."""

    def __init__(self, kept: Path | str | None, scratch: Path) -> None:
        """`kept`: the audit store; text that says why it cannot be had; None for the entries of an archive."""
        self.findings: list[Finding] = []
        self.not_checked: list[str] = []
        self._kept, self._scratch = kept if isinstance(kept, Path) else None, scratch / "rebuilt.duckdb"
        self._position: Position | None = None
        self._store: AuditStore | None = None
        self._waiting: list[Message] = []
        self._fold: Fold | None = None
        if kept is None:
            self.leave("the entries come from an archive")
        elif isinstance(kept, str):
            self.not_checked.append(f"audit store: {kept}")

    def leave(self, why: str) -> None:
        """Say that they are not compared, whatever was seen of them before."""
        self.findings.clear()
        self.not_checked = [f"audit store and current states: {why}"]
        self._close()

    def begin(self, trail: TrailReader) -> None:
        """See what there is to compare."""
        self._fold = Fold()
        if self._kept is None:
            return
        try:
            with contextlib.closing(AuditStore.open(self._kept, read_only=True)) as kept:
                self._position = kept.position()
        except StoreBusy:
            self.not_checked.append("audit store: the running service holds it; stop the service to have it checked")
        except StoreMissing:
            self.not_checked.append("audit store: there is none; the service builds it anew")
        except (StoreTooOld, StoreTooNew) as error:
            self.not_checked.append(f"audit store: {error.message}")
        except AuditStoreError as error:
            self.findings.append(found(Kind.DERIVED, None, error.message))
        if self._position is None or not self._position.stream or self._position.created is None:
            self._position = None
            return
        created = self._position.created.replace(tzinfo=UTC)
        if (self._position.stream, created) != (TRAIL, trail.created.astimezone(UTC)):
            what = f"the audit store was read from stream {self._position.stream} made {created}, not from this one, "
            self.findings.append(found(Kind.DERIVED, None, f"{what}made {trail.created}"))
        self._store = AuditStore.open(self._scratch)
        self._store.bind(self._position.stream, created, self._position.last_seq)

    def take(self, messages: list[Message]) -> None:
        """Take the next messages of the trail."""
        if self._fold is not None:
            self._fold.take(messages)
        if self._store is not None and self._position is not None:
            self._waiting += [one for one in messages if one.stream_seq <= self._position.last_seq]
            if len(self._waiting) >= APPEND:
                self._flush()

    def _flush(self) -> None:
        if self._store is not None and self._waiting:
            self._store.append(self._waiting)
        self._waiting = []

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()
        self._store, self._fold, self._waiting = None, None, []

    async def finish(self, trail: TrailReader, signed: int) -> None:
        """Compare. `signed`: the size of the log's newest checkpoint, up to which the audit store had read for sure."""
        self._flush()
        if self._store is not None and self._position is not None and self._kept is not None:
            self._store.close()
            self._store = None
            self._compare_rows(self._kept, self._position.last_seq, trail.last_seq, signed)
        if self._fold is not None:
            await self._compare_states(self._fold, trail)
        self._close()

    def _compare_rows(self, kept: Path, position: int, last_seq: int, signed: int) -> None:
        if position < signed:
            what = f"the audit store is older: it ends at sequence {position}, and a checkpoint covers {signed}"
            self.findings.append(found(Kind.DERIVED, position, what))
        elif position > last_seq:
            what = f"the audit store has read up to sequence {position}; the trail ends at {last_seq}"
            self.findings.append(found(Kind.DERIVED, last_seq, what))
            return
        elif position < last_seq:
            behind = last_seq - position
            self.not_checked.append(f"audit store: of {last_seq} entries the last {behind}, which it had not read yet")
        try:
            rows = list(row_differences(kept, self._scratch, most=ROWS_MAX))
        except AuditStoreError as error:
            self.findings.append(found(Kind.DERIVED, None, error.message))
            return
        for one in rows:
            index = None if one.stream_seq is None else one.stream_seq - 1
            self.findings.append(found(Kind.DERIVED, index, f"audit store: {in_words(one)}", one.task_ref or ""))

    async def _compare_states(self, fold: Fold, trail: TrailReader) -> None:
        states, position = await fold.differences(trail.nc, trail.created)
        if position is None:
            self.not_checked.append("current states: there is no bucket; the service builds it anew")
            return
        if position < trail.last_seq:
            behind = trail.last_seq - position
            self.not_checked.append(f"current states: what the last {behind} of {trail.last_seq} entries changed")
        for one in states:
            index = None if one.stream_seq is None else one.stream_seq - 1
            self.findings.append(found(Kind.DERIVED, index, f"bucket CURRENT: {one.what}", one.task_ref))
