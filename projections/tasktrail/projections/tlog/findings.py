"""What a verification says: findings, each of one kind and at one place, and the verdict.

Guarantees: kinds and their order are stable; the first finding of a verdict is the first bad place.

    verdict.ok, verdict.findings[0].kind, verdict.findings[0].index
"""

from collections.abc import Iterable
from enum import StrEnum

import msgspec

FINDINGS_MAX = 100


class Kind(StrEnum):
    """What is wrong. At one place the first of these is told first."""

    FORKED = "forked"  # two checkpoints of one key are of different histories
    TRUNCATED = "truncated"  # the trail ends before a checkpoint's size
    REMOVED = "removed"  # the tree has an entry here, the trail has not
    REORDERED = "reordered"  # the trail has the tree's entries in another order
    DUPLICATED = "duplicated"  # an entry is on the trail again
    SUBSTITUTED = "substituted"  # another entry, which is signed or the tree has elsewhere, stands in its place
    ADDED = "added"  # a message stands here that the tree has not
    CHANGED = "changed"  # the message is not as it was written
    UNSIGNED = "unsigned"  # its signature is missing, wrong, or of no key that counts
    UNCHAINED = "unchained"  # it does not continue its task's chain, or is no entry
    TREE = "tree"  # tiles, heads or checkpoints are not those of the trail
    DERIVED = "derived"  # a projection is not what the trail gives


_RANK = {kind: rank for rank, kind in enumerate(Kind)}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong. `index` counts leaves from 0, `stream_seq` is `index` + 1; None: of no one place.

    `until`: the index before which it lies, when it could not be placed more closely.
    """

    kind: Kind
    index: int | None = None
    stream_seq: int | None = None
    task_ref: str = ""
    what: str
    until: int | None = None


def found(kind: Kind, index: int | None, what: str, task_ref: str = "", until: int | None = None) -> Finding:
    """A finding, with the sequence of its index."""
    seq = None if index is None else index + 1
    return Finding(kind=kind, index=index, stream_seq=seq, task_ref=task_ref, what=what, until=until)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By place, then by kind; what has no place comes last."""
    return tuple(
        sorted(
            findings, key=lambda one: (one.index is None, one.index if one.index is not None else 0, _RANK[one.kind])
        )
    )


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a verification.

    `entries`: messages read. `size`, `root` (hex), `checkpoint`: of the newest checkpoint held against the trail, and
    where it came from; `checkpoints`: how many there were. `findings`: at most `FINDINGS_MAX` of `found`.
    `key`, `entry_key`: who was believed, and from where. `not_checked`: what this verdict says nothing about.
    """

    ok: bool
    entries: int
    size: int
    root: str
    checkpoint: str
    checkpoints: int
    found: int
    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...]
    key: str = ""
    entry_key: str = ""


def with_more(verdict: Verdict, findings: Iterable[Finding], not_checked: Iterable[str]) -> Verdict:
    """The verdict with what was found besides."""
    more = tuple(findings)
    return msgspec.structs.replace(
        verdict,
        ok=verdict.ok and not more,
        found=verdict.found + len(more),
        findings=in_order((*verdict.findings, *more))[:FINDINGS_MAX],
        not_checked=(*verdict.not_checked, *not_checked),
    )
