"""The log's directory as evidence: its checkpoints and leaf hashes, whatever became of its files. Nothing is written.

Guarantees: a file that is missing, damaged or not signed by a trusted key is a finding, never an error; what can still
be read is. A running service may go on writing. `Log` refuses a damaged directory: it has to be sure, this has to say.

    read = read_log(data / "tlog", trusted)
    Verification(read.known, read.tree)
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tasktrail.events.errors import InvalidRequest
from tasktrail.projections.tlog.errors import LogDamaged, LogError, MalformedNote
from tasktrail.projections.tlog.findings import Finding, Kind, found
from tasktrail.projections.tlog.log import CHECKPOINT, CHECKPOINTS, Log
from tasktrail.projections.tlog.merkle import HASH_BYTES
from tasktrail.projections.tlog.note import ED25519, NOTE_BYTES_MAX, Checkpoint, Note, Verifier
from tasktrail.projections.tlog.tiles import WIDTH, Tiles
from tasktrail.projections.tlog.verification import Known, Tree

VKEY = "vkey"
_UNSIGNED_SHOWN = 10
_SIZE = re.compile(rf"{CHECKPOINTS}/(\d{{20}})", re.ASCII)


class WrongKey(InvalidRequest):
    """What was given as a key is none, or there is none to start from."""

    reason = "wrong_key"


class WrongCheckpoint(InvalidRequest):
    """What was given as a checkpoint is none that a trusted key has signed."""

    reason = "wrong_checkpoint"


class Trusted:
    """Keys somebody trusts: of the log, and of witnesses (type 0x04), whose cosignature is as good."""

    def __init__(self, verifiers: Sequence[Verifier], source: str) -> None:
        self.verifiers, self.source = tuple(verifiers), source

    @classmethod
    def of(cls, given: Sequence[str], data: Path) -> "Trusted":
        """Each a verifier key or a file with some, one a line; without any, those beside the trail.

        Raises:
            WrongKey: one is no verifier key, or there is none.
        """
        beside = data / "tlog" / VKEY
        if not given and not beside.is_file():
            message = f"there is no key in {beside}; give the log's verifier key with --key"
            raise WrongKey(message)
        verifiers: list[Verifier] = []
        for one in given or [str(beside)]:
            verifiers += _verifiers(one)
        return cls(verifiers, "as given" if given else str(beside))

    def named(self) -> str:
        """Their names and key ids."""
        return ", ".join(f"{one.name}+{one.key_id.hex()}" for one in self.verifiers)

    def signed(self, note: Note) -> bool:
        """Whether one of them signed or cosigned this."""
        return any(
            note.signed_by(one) if one.kind == ED25519 else note.cosigned_at(one) is not None for one in self.verifiers
        )


def _verifiers(given: str) -> list[Verifier]:
    lines = [given]
    if Path(given).is_file():
        try:
            lines = Path(given).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            message = f"cannot read the key {given}: {getattr(error, 'strerror', '') or 'it is no UTF-8 text'}"
            raise WrongKey(message) from None
    try:
        found_ = [Verifier.of(line.strip()) for line in lines if line.strip()]
    except MalformedNote as error:
        message = f"{given[:100]} is neither a verifier key nor a file with some: {error.message}"
        raise WrongKey(message) from None
    if not found_:
        message = f"{given} holds no verifier key"
        raise WrongKey(message)
    return found_


class Kept(NamedTuple):
    """Checkpoints that somebody kept elsewhere; and of the files beside them that are none, why not."""

    known: list[Known]
    left_out: list[str]


def read_checkpoints(path: Path, trusted: Trusted) -> Kept:
    """The checkpoint that somebody kept elsewhere in this file, or those in this directory, a copy of `[tlog] copies`.

    Raises:
        WrongCheckpoint: the file cannot be read, is none, or no trusted key has signed it; or so is every one in the
            directory.
    """
    if not path.is_dir():
        return Kept([_read_checkpoint(path, trusted)], [])
    kept = Kept([], [])
    for one in sorted(one for one in path.rglob("*") if one.is_file() and not one.name.startswith(".")):
        try:
            kept.known.append(_read_checkpoint(one, trusted))
        except WrongCheckpoint as wrong:
            kept.left_out.append(wrong.message)
    if not kept.known:
        first = f": {kept.left_out[0]}" if kept.left_out else ""
        message = f"{path} holds no checkpoint{first}"
        raise WrongCheckpoint(message)
    return kept


def _read_checkpoint(path: Path, trusted: Trusted) -> Known:
    """A checkpoint that somebody kept elsewhere.

    Raises:
        WrongCheckpoint: it cannot be read, is none, or no trusted key has signed it.
    """
    try:
        note = _note(path)
        checkpoint = Checkpoint.parse(note.text)
    except (OSError, MalformedNote) as error:
        message = f"{path} is no checkpoint: {getattr(error, 'strerror', '') or error}"
        raise WrongCheckpoint(message) from None
    if not trusted.signed(note):
        message = f"{path} is not signed by {trusted.named()} ({trusted.source}): it says nothing about this trail"
        raise WrongCheckpoint(message)
    return Known(checkpoint, str(path), own=False)


def _note(path: Path) -> Note:
    with path.open("rb") as file:
        return Note.parse(file.read(NOTE_BYTES_MAX + 1))


class LogRead(NamedTuple):
    """What a log's directory holds: its checkpoints, its leaf hashes, and what is wrong with its files."""

    known: list[Known]
    tree: Tree | None
    findings: list[Finding]


def read_log(folder: Path, trusted: Trusted) -> LogRead:
    """The evidence in a log's directory; of a directory that is not there, none."""
    known: list[Known] = []
    findings: list[Finding] = []
    unsigned: list[str] = []
    names = sorted(one.name for one in folder.glob(f"{CHECKPOINTS}/*") if not one.name.startswith("."))
    for name in [*(f"{CHECKPOINTS}/{name}" for name in names), CHECKPOINT]:
        try:
            note = _note(folder / name)
            checkpoint = Checkpoint.parse(note.text)
        except FileNotFoundError:
            continue
        except (OSError, MalformedNote) as error:
            findings.append(found(Kind.TREE, None, f"{folder / name} is no checkpoint: {error}"))
            continue
        named = _SIZE.fullmatch(name)
        if not trusted.signed(note):
            unsigned.append(name)
        elif name != CHECKPOINT and (named is None or int(named[1]) != checkpoint.size):
            findings.append(found(Kind.TREE, None, f"{folder / name} is a checkpoint of {checkpoint.size} entries"))
        else:
            known.append(Known(checkpoint, str(folder / name), own=True))
    findings += _unsigned(folder, unsigned, trusted, any_signed=bool(known))
    distinct = list({(one.size, one.root, one.checkpoint.heads): one for one in reversed(known)}.values())
    size = max((one.size for one in distinct), default=0)
    tree = Tree(size, _leaves(Tiles(folder), size)) if size else None
    return LogRead(distinct, tree, findings)


def _unsigned(folder: Path, names: Sequence[str], trusted: Trusted, *, any_signed: bool) -> list[Finding]:
    if names and not any_signed:
        what = f"none of the {len(names)} checkpoints in {folder} is signed by {trusted.named()} ({trusted.source})"
        return [found(Kind.TREE, None, what)]
    return [
        found(Kind.TREE, None, f"{folder / name} is not signed by {trusted.named()} ({trusted.source})")
        for name in names[:_UNSIGNED_SHOWN]
    ]


def _leaves(tiles: Tiles, size: int) -> Callable[[int, int], list[bytes]]:
    """Leaf hashes out of the tiles of level 0; where one is lost, they end."""

    def read(first: int, end: int) -> list[bytes]:
        hashes: list[bytes] = []
        for index in range(first // WIDTH, -(-end // WIDTH)):
            begin = index * WIDTH
            try:
                raw = tiles.read(0, index, min(WIDTH, size - begin))
            except (LogDamaged, OSError):
                break
            here = [raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES)]
            hashes += here[max(first - begin, 0) : end - begin]
        return hashes

    return read


def check_files(folder: Path, told: Callable[[int], None]) -> list[Finding]:
    """Every tile and every head against the log's own newest checkpoint; see `Log.check`."""
    try:
        with Log.open(folder, read_only=True) as log:
            wrong = log.check(told)
    except LogDamaged as error:
        wrong = [error]
    except (LogError, OSError) as error:
        return [found(Kind.TREE, None, f"the log in {folder} cannot be opened: {error}")]
    return [found(Kind.TREE, None, f"{folder / one.path}: {one.what}") for one in wrong]
