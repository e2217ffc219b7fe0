"""The committed heads: for every subject of the trail how many messages it holds, the last one's sequence and leaf.

With their root in each checkpoint, the last entries of a task cannot be left out of its evidence, and a task that
never was can be proved absent.

A record is SHA-256(subject) (32 bytes), the count and the last sequence (8 bytes each, big endian) and the last RFC
6962 leaf (32 bytes). The first 16 bits of the key choose one of 65,536 buckets; a bucket's hash is SHA-256(0x00 and its
records, sorted), an inner node's SHA-256(0x01, left, right); the tree is 16 levels deep, whatever it holds.

Guarantees: records, position and the checkpoint's note change in one SQLite transaction (WAL, `synchronous=FULL`);
what was not committed is gone after a crash. A proof is checked against the node in memory before it is given.

    proof = log.heads.proof(subject)
    head = verify_head(checkpoint.heads, subject, proof)    # None: proved absent
"""

import contextlib
import itertools
import operator
import os
import sqlite3
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from tasktrail.projections.tlog.errors import BadProof, LogDamaged, LogError, NoLog
from tasktrail.projections.tlog.merkle import HASH_BYTES, node

__all__ = ["BUCKETS", "DEPTH", "FILE", "BadProof", "Head", "HeadProof", "Heads", "bucket_hash", "bucket_of", "key_of"]
__all__ += ["map_root", "record", "verify_head"]

FILE: Final = "heads.sqlite"
DEPTH: Final = 16
BUCKETS: Final = 1 << DEPTH
RECORD_BYTES: Final = 2 * HASH_BYTES + 16
_BUCKET_BYTES: Final = 2
_SPILL: Final = 50_000
_SCAN: Final = BUCKETS // 4
_WAIT_S: Final = 30.0
_SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS records (
    bucket INTEGER NOT NULL, key BLOB NOT NULL, count INTEGER NOT NULL, last_seq INTEGER NOT NULL, leaf BLOB NOT NULL,
    PRIMARY KEY (bucket, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS buckets (bucket INTEGER PRIMARY KEY, hash BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS state (
    one INTEGER PRIMARY KEY CHECK (one = 1), position INTEGER NOT NULL, note BLOB NOT NULL
);
INSERT OR IGNORE INTO state VALUES (1, 0, x'');
COMMIT;
"""
_MOVE: Final = """
INSERT INTO records VALUES (?, ?, ?, ?, ?) ON CONFLICT (bucket, key)
DO UPDATE SET count = count + excluded.count, last_seq = excluded.last_seq, leaf = excluded.leaf
"""
_RECORDS: Final = "SELECT key, count, last_seq, leaf FROM records WHERE bucket = ? ORDER BY key"
_ALL: Final = "SELECT bucket, key, count, last_seq, leaf FROM records ORDER BY bucket, key"


@dataclass(frozen=True)
class Head:
    """The head of one subject. `leaf`: the RFC 6962 leaf hash of its last message, which has `last_seq`."""

    subject: str
    count: int
    last_seq: int
    leaf: bytes


@dataclass(frozen=True)
class HeadProof:
    """All records of the subject's bucket, sorted, and the 16 sibling hashes from the bucket up to the root."""

    records: list[bytes]
    path: list[bytes]


def key_of(subject: str) -> bytes:
    """The key of a subject's record."""
    return sha256(subject.encode()).digest()


def bucket_of(key: bytes) -> int:
    """The bucket a key belongs to."""
    return int.from_bytes(key[:2])


def record(key: bytes, count: int, last_seq: int, leaf: bytes) -> bytes:
    """The 80 bytes of one record."""
    return key + count.to_bytes(8) + last_seq.to_bytes(8) + leaf


def bucket_hash(records: Iterable[bytes]) -> bytes:
    """The hash of a bucket with these records, which are sorted."""
    return sha256(b"\x00" + b"".join(records)).digest()


EMPTY: Final = [bucket_hash(())]
"""The node over nothing but empty buckets, by height."""
for _ in range(DEPTH):
    EMPTY.append(node(EMPTY[-1], EMPTY[-1]))


def map_root(records: Iterable[bytes]) -> bytes:
    """The root of the map that holds these records, which may come in any order."""
    held: dict[bytes, list[bytes]] = {}
    for one in records:
        held.setdefault(one[:_BUCKET_BYTES], []).append(one)
    level = {int.from_bytes(begin): bucket_hash(sorted(some)) for begin, some in held.items()}
    for empty in EMPTY[:DEPTH]:
        get = level.get
        level = {
            number: sha256(b"\x01" + get(2 * number, empty) + get(2 * number + 1, empty)).digest()
            for number in {number >> 1 for number in level}
        }
    return level.get(0, EMPTY[DEPTH])


def verify_head(root: bytes, subject: str, proof: HeadProof) -> Head | None:
    """The head of the subject in the map with this root; None: the map is proved to have none.

    Raises:
        BadProof: the proof is not one, or not of this map.
    """
    key = key_of(subject)
    bucket = bucket_of(key)
    if len(proof.path) != DEPTH or any(len(hash_) != HASH_BYTES for hash_ in proof.path):
        message = f"The proof of a head has {DEPTH} hashes of {HASH_BYTES} bytes."
        raise BadProof(message)
    if any(len(one) != RECORD_BYTES or bucket_of(one) != bucket for one in proof.records):
        message = "The proof of a head holds something that is no record of the subject's bucket."
        raise BadProof(message)
    keys = [one[:HASH_BYTES] for one in proof.records]
    if any(first >= second for first, second in itertools.pairwise(keys)):
        message = "The records in the proof of a head are not sorted, or name one subject twice."
        raise BadProof(message)
    found = bucket_hash(proof.records)
    for height, sibling in enumerate(proof.path):
        found = node(sibling, found) if bucket >> height & 1 else node(found, sibling)
    if found != root:
        message = f"The proof of a head leads to {found.hex()}, not to the map's root {root.hex()}."
        raise BadProof(message)
    if key not in keys:
        return None
    mine = proof.records[keys.index(key)]
    count, last_seq = int.from_bytes(mine[32:40]), int.from_bytes(mine[40:48])
    return Head(subject, count, last_seq, mine[48:])


class Nodes:
    """The hashes of the map's tree in memory, 4 MiB: node 1 is the root, node n has the children 2n and 2n + 1."""

    def __init__(self) -> None:
        self._hashes = bytearray(HASH_BYTES)
        for depth in range(DEPTH + 1):
            self._hashes += EMPTY[DEPTH - depth] * (1 << depth)

    def __getitem__(self, number: int) -> bytes:
        return bytes(self._hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES])

    def bucket(self, bucket: int) -> bytes:
        """The hash of a bucket."""
        return self[BUCKETS + bucket]

    def root(self) -> bytes:
        """The root of the map."""
        return self[1]

    def change(self, hashes: Mapping[int, bytes]) -> None:
        """Set the hashes of these buckets, and of every node above them."""
        for bucket, hash_ in hashes.items():
            self._set(BUCKETS + bucket, hash_)
        above = {(BUCKETS + bucket) >> 1 for bucket in hashes}
        while above:
            for number in above:
                self._set(number, node(self[2 * number], self[2 * number + 1]))
            above = {number >> 1 for number in above if number > 1}

    def path(self, bucket: int) -> list[bytes]:
        """The siblings from a bucket up to the root."""
        number = BUCKETS + bucket
        return [self[(number >> height) ^ 1] for height in range(DEPTH)]

    def _set(self, number: int, hash_: bytes) -> None:
        self._hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES] = hash_


class Heads:
    """The heads of one log, in `heads.sqlite`. Any thread may call; `lock` is shared with the Log that owns them.

    Opened for reading it shows one commit, however the file moves on, until it is closed.
    """

    def __init__(
        self, folder: Path, *, read_only: bool = False, lock: contextlib.AbstractContextManager[object] | None = None
    ) -> None:
        self._file = folder / FILE
        self._lock = lock or threading.RLock()
        self._moved: dict[str, tuple[int, int, bytes]] = {}
        self._dirty: set[int] = set()
        self._nodes = Nodes()
        with self._using():
            self._db = _opened(self._file, read_only=read_only)
        try:
            with self._using():
                self.position, self.note = self._begin(read_only=read_only)
        except BaseException:
            self._db.close()
            raise

    def _begin(self, *, read_only: bool) -> tuple[int, bytes]:
        if read_only:
            self._db.execute("BEGIN")
            if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                message = f"{self._file} is being made; there is no log in it yet."
                raise NoLog(message)
        else:
            self._db.executescript(_SCHEMA)
        position, note = self._db.execute("SELECT position, note FROM state").fetchone()
        if not isinstance(position, int) or not isinstance(note, bytes) or position < 0:
            raise LogDamaged(FILE, "the table `state` does not hold a position and a note")
        buckets = dict(self._db.execute("SELECT bucket, hash FROM buckets").fetchall())
        if not all(0 <= bucket < BUCKETS and len(hash_) == HASH_BYTES for bucket, hash_ in buckets.items()):
            raise LogDamaged(FILE, "the table `buckets` does not hold hashes of buckets")
        self._nodes.change(buckets)
        return position, note

    @contextlib.contextmanager
    def _using(self) -> Generator[None]:
        """Hold the lock, and tell a damaged file from one that cannot be had now."""
        with self._lock:
            try:
                yield
            except sqlite3.OperationalError as error:
                if "no such" in str(error):
                    raise LogDamaged(FILE, f"the heads are not of the expected form: {error}") from error
                message = f"{self._file} cannot be used: {error}"
                raise LogError(message) from error
            except (sqlite3.Error, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise LogDamaged(FILE, f"the heads are not of the expected form: {error}") from error

    def move(self, subject: str, stream_seq: int, leaf: bytes) -> None:
        """Note one more message of a subject. The caller holds the lock, and calls `spill` now and then."""
        old = self._moved.get(subject)
        self._moved[subject] = (old[0] + 1 if old else 1, stream_seq, leaf)

    def spill(self) -> None:
        """Keep memory bounded between commits: many moves go into the open transaction."""
        if len(self._moved) >= _SPILL:
            with self._using():
                self._flush()

    def root(self) -> bytes:
        """The root of the map, with everything noted."""
        with self._using():
            self._settle()
            return self._nodes.root()

    def proof(self, subject: str) -> HeadProof:
        """The proof of the subject's head, or of its absence, for `root()`.

        While the log is being written, `root()` moves on: for a proof that fits a checkpoint open the log `read_only`.

        Raises:
            LogDamaged: the records in the file are not those the map was built from.
        """
        bucket = bucket_of(key_of(subject))
        with self._using():
            self._settle()
            records = self._records(bucket)
            path = self._nodes.path(bucket)
            expected = self._nodes.bucket(bucket)
        if bucket_hash(records) != expected:
            raise LogDamaged(FILE, f"the records of bucket {bucket} do not give its hash")
        return HeadProof(records, path)

    def commit(self, position: int, note: bytes) -> None:
        """Make everything noted durable, with the position it reaches and the note of its checkpoint."""
        with self._using():
            self._settle()
            self._write()
            self._db.execute("UPDATE state SET position = ?, note = ?", (position, note))
            self._db.execute("COMMIT")
            self.position, self.note = position, note

    def check(self) -> None:
        """Read every record and hold it against the map.

        Raises:
            LogDamaged: they do not fit.
        """
        with self._using():
            self._settle()
            found = dict(_hashes(self._db.execute(_ALL)))
            wrong = next((one for one in range(BUCKETS) if found.get(one, EMPTY[0]) != self._nodes.bucket(one)), None)
        if wrong is not None:
            raise LogDamaged(FILE, f"the records of bucket {wrong} do not give its hash")

    def close(self) -> None:
        """Let go of the file; what was not committed is gone."""
        with self._lock:
            self._db.close()

    def _write(self) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")

    def _flush(self) -> None:
        rows: list[tuple[int, bytes, int, int, bytes]] = []
        for subject, (count, last_seq, leaf) in self._moved.items():
            key = key_of(subject)
            rows.append((bucket_of(key), key, count, last_seq, leaf))
        rows.sort()
        self._write()
        self._db.executemany(_MOVE, rows)
        self._dirty.update(row[0] for row in rows)
        self._moved.clear()

    def _settle(self) -> None:
        """Bring the nodes up to date with what was noted."""
        if self._moved:
            self._flush()
        if not self._dirty:
            return
        if len(self._dirty) > _SCAN:
            found = {bucket: hash_ for bucket, hash_ in _hashes(self._db.execute(_ALL)) if bucket in self._dirty}
        else:
            found = {bucket: bucket_hash(self._records(bucket)) for bucket in self._dirty}
        self._db.executemany("INSERT OR REPLACE INTO buckets VALUES (?, ?)", sorted(found.items()))
        self._nodes.change(found)
        self._dirty.clear()

    def _records(self, bucket: int) -> list[bytes]:
        return [record(*row) for row in self._db.execute(_RECORDS, (bucket,))]


def _hashes(rows: Iterable[tuple[int, bytes, int, int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The hash of each bucket in rows ordered by bucket and key."""
    for bucket, members in itertools.groupby(rows, key=operator.itemgetter(0)):
        yield bucket, bucket_hash(record(*row[1:]) for row in members)


def _opened(file: Path, *, read_only: bool) -> sqlite3.Connection:
    address = file.absolute().as_uri()
    if not read_only:
        mode = "rwc"
    elif os.access(file.parent, os.W_OK) or file.with_name(f"{file.name}-wal").exists():
        mode = "ro"
    else:  # nobody can be writing there, and SQLite could not make the files a reader needs beside a WAL
        mode = "ro&immutable=1"
    db = sqlite3.connect(
        f"{address}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=_WAIT_S
    )
    try:
        db.execute("PRAGMA cache_size = -65536")
        if not read_only:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
    except BaseException:
        db.close()
        raise
    return db
