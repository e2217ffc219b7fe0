"""What the stand-alone verifier is made of: trees, notes, archive, JSON. Standard library only.

Guarantees: whatever the bytes, the answer is a value or `Bad` with what is wrong, and each thing has one form only:
base64, an archive or a document written in another way is refused. Runs on Python 3.9, because
`verifier` in `bundle.py` puts it into the `verify.py` of every bundle. It shares no code with the rest of tasktrail, so
that two implementations agree in the tests.

    is_included(leaf(body), index, size, proof, root)

Sources: RFC 6962 and 9162 (Merkle tree), C2SP signed-note, tlog-checkpoint and tlog-cosignature,
POSIX ustar.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

Check = Callable[[bytes, bytes, bytes], bool]
"""Whether the third is the Ed25519 signature of the second by the key that is the first."""
Json = dict[str, Any]


class Bad(Exception):
    """Something is not what it is said to be; the message says how."""


def bad(how: str) -> NoReturn:
    """Say so."""
    raise Bad(how)


# The tree (RFC 6962, section 2.1; RFC 9162, sections 2.1.3.2 and 2.1.4.2) and the map of heads


def leaf(body: bytes) -> bytes:
    """The hash of a leaf."""
    return hashlib.sha256(b"\0" + body).digest()


def node(left: bytes, right: bytes) -> bytes:
    """The hash of a node."""
    return hashlib.sha256(b"\1" + left + right).digest()


def gap_record(stream_seq: int) -> bytes:
    """What stands in the tree for a sequence that the stream does not hold."""
    return b"tasktrail/gap/v1\n%d\n" % stream_seq


def is_included(hashed: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the leaf at `index` of the tree of `size` leaves with this root is `hashed`."""
    if not 0 <= index < size:
        return False
    at, last = index, size - 1
    for step in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            hashed = node(step, hashed)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            hashed = node(hashed, step)
        at, last = at >> 1, last >> 1
    return last == 0 and hashed == root


def is_grown(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the tree of `new` leaves begins with the tree of `old` leaves."""
    if old in {0, new}:
        return not proof and (old == 0 or old_root == new_root)
    if not 0 < old < new:
        return False
    steps = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not steps:
        return False
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    first = second = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            first, second = node(step, first), node(step, second)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            second = node(second, step)
        at, last = at >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root


class Head(NamedTuple):
    """What the map of heads says of a subject: how many messages it has, the last one's sequence and leaf."""

    total: int = 0
    last_seq: int = 0
    leaf: bytes = b""


def head_of(root: bytes, subject: str, records: Sequence[bytes], path: Sequence[bytes]) -> Head:
    """The head of a subject, proved by the records of its bucket and the path from the bucket to the root."""
    key = hashlib.sha256(encoded(subject)).digest()
    is_formed = len(path) == 16 and len(records) <= 4096 and all(len(one) == 80 for one in records)  # noqa: PLR2004 - 65,536 buckets, records of 80 bytes
    if not is_formed or list(records) != sorted(set(records)):
        bad("its proof has not the form of one")
    if any(one[:2] != key[:2] for one in records):
        bad("its proof is of another bucket")
    hashed, at = hashlib.sha256(b"\0" + b"".join(records)).digest(), int.from_bytes(key[:2], "big")
    for step in path:
        hashed = node(step, hashed) if at & 1 else node(hashed, step)
        at >>= 1
    if hashed != root:
        bad("its proof does not lead to the heads that the checkpoint names")
    found = [one for one in records if one[:32] == key]
    if len(found) > 1:
        bad("its proof holds it twice")
    return Head(number_of(found[0][32:40]), number_of(found[0][40:48]), found[0][48:]) if found else Head()


def number_of(raw: bytes) -> int:
    """The number of these bytes, the most significant first."""
    return int.from_bytes(raw, "big")


# Signed notes (C2SP signed-note, tlog-checkpoint, tlog-cosignature)

_VKEY = re.compile(r"([^\s+]{1,256})\+([0-9a-f]{8})\+([A-Za-z0-9+/]{44,88}={0,2})")
ED25519, COSIGNATURE = 1, 4


class Key(NamedTuple):
    """A public key as somebody else than the bundle told it."""

    name: str
    id: bytes
    kind: int
    public: bytes

    @classmethod
    def of(cls, text: str) -> Key:
        """The key that `NAME+HASH+KEY` is, or Bad."""
        found = _VKEY.fullmatch(text.strip())
        raw = base64_of(found[3]) if found else b""
        if found is None or len(raw) != 33 or raw[0] not in {ED25519, COSIGNATURE}:  # noqa: PLR2004 - a kind and 32 bytes
            bad("a key is written NAME+HASH+KEY, as `tasktrail` and data/tlog/vkey show it")
        if hashlib.sha256(encoded(found[1]) + b"\n" + raw).hexdigest()[:8] != found[2]:
            bad(f"the hash {found[2]} in this key is not its own: it was cut or mistyped")
        return cls(found[1], bytes.fromhex(found[2]), raw[0], raw[1:])


class Checkpoint(NamedTuple):
    """A checkpoint with its signatures: (name, key id and signature)."""

    text: bytes
    signatures: list[tuple[str, bytes]]
    origin: str
    size: int
    root: bytes
    heads: bytes

    @classmethod
    def of(cls, raw: bytes) -> Checkpoint:
        """The checkpoint of these bytes, or Bad."""
        if len(raw) > 65_536 or raw.count(b"\n") > 70:  # noqa: PLR2004 - readers may limit both (C2SP signed-note)
            bad("it is longer than a checkpoint need be")
        text, separator, signed = raw.rpartition(b"\n\n")
        lines = (text + b"\n").decode("utf-8", "strict").split("\n") if _is_text(raw) else []
        if not separator or len(lines) != 5 or not signed.endswith(b"\n") or not lines[3].startswith("heads "):  # noqa: PLR2004 - origin, size, root, heads
            bad("it has not the form of a checkpoint of tasktrail's")
        root, heads = base64_of(lines[2]), base64_of(lines[3][6:])
        if not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]) or len(root) != 32 or len(heads) != 32:  # noqa: PLR2004 - SHA-256
            bad("its size or hashes are none")
        signatures: list[tuple[str, bytes]] = []
        for line in signed.decode().split("\n")[:-1]:
            dash, _, rest = line.partition(" ")
            name, _, value = rest.partition(" ")
            if dash != "\u2014" or not name or len(base64_of(value)) < 5:  # noqa: PLR2004 - a key id and a signature
                bad("a signature in it has not the form of one")
            signatures.append((name, base64_of(value)))
        return cls(text + b"\n", signatures, lines[0], int(lines[1]), root, heads)

    def _of_key(self, key: Key) -> list[bytes]:
        return [raw[4:] for name, raw in self.signatures if name == key.name and raw[:4] == key.id]

    def is_signed(self, key: Key, check: Check) -> bool:
        """Whether the log's key signed it."""
        mine = self.origin == key.name and key.kind == ED25519
        return mine and any(check(key.public, self.text, one) for one in self._of_key(key))

    def cosigned_at(self, witness: Key, check: Check) -> int | None:
        """When a witness cosigned it (epoch seconds); None when it did not."""
        for one in self._of_key(witness):
            at = number_of(one[:8])
            if check(witness.public, b"cosignature/v1\ntime %d\n" % at + self.text, one[8:]):
                return at
        return None


def _is_text(raw: bytes) -> bool:
    try:
        return all(one >= " " or one == "\n" for one in raw.decode())
    except UnicodeDecodeError:
        return False


def base64_of(text: str) -> bytes:
    """What this is base64 of, in its one form; empty when it is not."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError:
        return b""
    return raw if base64.b64encode(raw).decode() == text else b""


# The archive: a POSIX tar, of which each byte but the contents follows from names and sizes

NAME = re.compile(
    r"(?:consistency|custody|heads|keys|manifest|messages|proofs)\.json|manifest\.sig|README\.txt|verify\.py"
    r"|entries/[1-9][0-9]{0,18}\.json|checkpoints/(?:0|[1-9][0-9]{0,18})|policies/[0-9a-f]{64}\.cedar"
)
_BLOCK = 512


def tar_header(name: str, size: int) -> bytes:
    """The header (POSIX ustar) of a plain file in a bundle: mode 0644, owner 0, time 0."""
    front = (
        name.encode("ascii").ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"%011o\0" % 0
    )
    back = (b"0" + bytes(100) + b"ustar\00000" + bytes(64) + b"0000000\0" * 2).ljust(356, b"\0")
    return front + b"%06o\0 " % (sum(front) + sum(back) + 8 * ord(" ")) + back


def tar_of(files: dict[str, bytes]) -> bytes:
    """These files as a bundle's archive: by name, each byte fixed."""
    parts: list[bytes] = []
    for name in sorted(files):
        body = files[name]
        parts += [tar_header(name, len(body)), body, bytes(-len(body) % _BLOCK)]
    return b"".join([*parts, bytes(2 * _BLOCK)])


def unpacked(data: bytes) -> dict[str, bytes]:
    """The files of a bundle. Raises Bad for all that `tar_of` would not have written."""
    files: dict[str, bytes] = {}
    at, before = 0, ""
    while data[at : at + _BLOCK].strip(b"\0"):
        header = data[at : at + _BLOCK]
        name = header[:100].rstrip(b"\0").decode("ascii", "replace")
        if not NAME.fullmatch(name):
            bad(f"the archive holds {name[:100]!a}, which no bundle has")
        size = int(header[124:135], 8) if re.fullmatch(rb"[0-7]{11}", header[124:135]) else -1
        if size < 0 or header != tar_header(name, size):
            bad(f"the archive's header of {name} is not as a bundle's is")
        if name <= before:
            bad(f"the archive holds {name} after {before}: twice, or not by name")
        start, end = at + _BLOCK, at + _BLOCK + size
        at, before = end + -size % _BLOCK, name
        if at > len(data) or data[end:at].strip(b"\0"):
            bad(f"the archive ends within {name}, or something is hidden after it")
        files[name] = data[start:end]
    if data[at:] != bytes(2 * _BLOCK):
        bad("the archive does not end as a bundle does: it was cut, or something was added")
    return files


# JSON that means one thing


def _once(pairs: list[tuple[str, Any]]) -> Json:
    members = dict(pairs)
    if len(members) != len(pairs):
        bad("it holds a member twice")
    return members


def _no_number(text: str) -> NoReturn:
    bad(f"it holds {text[:24]}, which is no number")


def _whole(text: str) -> int:
    return int(text) if len(text) < 20 else _no_number(text)  # noqa: PLR2004 - 64 bits


def _finite(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _no_number(text)


_DEPTH_MAX = 64


def _is_deep(read: object) -> bool:
    """Whether it is nested so deeply that writing it again could exhaust the stack."""
    level = [read]
    for _ in range(_DEPTH_MAX):
        inside = [inner for one in level for inner in cast("Any", one.values() if isinstance(one, dict) else one)]
        level = [one for one in inside if isinstance(one, (dict, list))]
        if not level:
            return False
    return True


def read_json(raw: bytes) -> Json:
    """The object that these bytes are, or Bad."""
    try:
        read = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_once,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_no_number,
        )
    except RecursionError:
        bad("it is nested too deeply")
    except ValueError as error:
        bad(f"it is no JSON: {type(error).__name__}")
    if not isinstance(read, dict):
        bad("it is no JSON object")
    if raw.count(b"{") + raw.count(b"[") > _DEPTH_MAX and _is_deep(cast("object", read)):
        bad("it is nested too deeply")
    return cast("Json", read)


def member(holder: Any, name: str, kind: type, default: Any = None) -> Any:  # noqa: ANN401 - JSON
    """A member of an object, of this type; Bad when it is not."""
    value = cast("Json", holder).get(name, default) if isinstance(holder, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        bad(f"its member {name} is no {kind.__name__}")
    return cast("Any", value)


def hashes(values: Any) -> list[bytes]:  # noqa: ANN401 - JSON
    """A list of hashes in base64; what is none is empty, and proves nothing."""
    if not isinstance(values, list):
        bad("a proof in it is no list")
    return [base64_of(one) if isinstance(one, str) else b"" for one in cast("Any", values)]


# What stands in an entry, and reading and printing


def encoded(text: str) -> bytes:
    """The UTF-8 of a text, or Bad: JSON can say half of a surrogate pair, and UTF-8 cannot."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        bad("a name in it holds half of a surrogate pair")


def task_subjects(tenant: str, ref: str) -> tuple[str, str]:
    """The subjects of a task's own entries and of accesses to it."""
    place = f"{_token(tenant)}.{ref}"
    return f"trail.1.task.{place}", f"trail.1.access.{place}"


def _token(tenant: str) -> str:
    raw = tenant.encode("utf-8", "surrogatepass")
    plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", tenant) and not tenant.startswith("x-")
    if plain or tenant == "_":
        return tenant
    short = len(raw) <= 40  # noqa: PLR2004 - a subject's token stays short
    kept = raw if short else hashlib.sha256(raw).digest()
    return ("x-" if short else "x--") + base64.b32encode(kept).decode().rstrip("=").lower()


def own_subjects(entry: Json) -> tuple[str, ...]:
    """The subjects on which an entry may stand."""
    tenant, ref = member(entry, "tenant", str), member(entry, "task_ref", str, "")
    if ref:
        return task_subjects(tenant, ref)[:1] if entry.get("task_seq") else task_subjects(tenant, ref)[1:]
    return tuple(f"trail.1.{kind}.{_token(tenant)}" for kind in ("denied", "control", "governance"))


def levels_of(authority: Json) -> tuple[str, str]:
    """The level of the principal, empty when nobody is named; and what in it a peer only said or claimed."""
    facts: list[tuple[str, Json]] = [
        (name, authority[name]) for name in ("principal", "client", "credential") if name in authority
    ]
    facts += [("actor", one) for one in member(authority, "actors", list, [])]
    levels = [(name, member(fact, "level", str)) for name, fact in facts]
    unproved = ", ".join(f"{name} {level}" for name, level in levels if level in {"asserted", "claimed"})
    return dict(levels).get("principal", ""), unproved


def printable(line: str) -> str:
    """A line that a terminal shows and does not obey."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a file that is not larger than it may be."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    return data if len(data) <= most else bad(f"{path} is larger than {most} bytes")


def key_of(said: str, kind: int) -> Key:
    """The key that is meant: as text, or the file that holds it. Raises Bad."""
    is_text = said.count("+") > 1
    found = Key.of(said if is_text else read_bounded(Path(said), 4096).decode("utf-8", "replace"))
    if found.kind != kind:
        bad(f"the key of {found.name} is that of a {'log' if found.kind == ED25519 else 'witness'}")
    return found
