"""Holds a trail against its tree: what was changed, removed, reordered, substituted, duplicated, cut off or forked.

Guarantees: pure, and one pass over the trail; what is as it should be costs a few words of memory for each task. The
newest checkpoint whose root the tree's leaves give authenticates these leaves; each message is held against them, so
that a finding has its kind and its index. Where the leaves are lost or lie, the checkpoints alone place it between two
of them. Checkpoints are those of keys that somebody trusts: `Known` is made only of what `Note.signed_by` accepted.

    verification = Verification([Known(checkpoint, "its own log", own=True)], tree=Tree(log.size, log.leaves))
    verification.take(messages)
    verification.finish().ok

Formats: RFC 6962 section 2.1 for the tree, C2SP tlog-checkpoint for what is signed.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tasktrail.projections.audit.columns import Message
from tasktrail.projections.tlog import heads
from tasktrail.projections.tlog.chains import CONTROL, Chains, Signatures, ref_of
from tasktrail.projections.tlog.findings import FINDINGS_MAX, Finding, Kind, Verdict, in_order
from tasktrail.projections.tlog.judgement import Evidence, Foreign, Known, judge
from tasktrail.projections.tlog.merkle import EMPTY_ROOT, Frontier, gap_record, leaf
from tasktrail.projections.uncollected import uncollected

__all__ = ["FINDINGS_MAX", "Finding", "Kind", "Known", "Tree", "Verdict", "Verification"]

CHUNK = 4_096
HEADS_AT_MAX = 16


class Tree(NamedTuple):
    """Leaf hashes as the log keeps them, not yet to be believed.

    `leaves(first, end)`: those from index `first` to `end` - 1, fewer when some of them are lost.
    """

    size: int
    leaves: Callable[[int, int], Sequence[bytes]]


class Verification:
    """One verification. `size`: leaves of the trail so far."""

    def __init__(
        self,
        known: Sequence[Known],
        tree: Tree | None = None,
        *,
        pinned: str = "",
        quick: bool = False,
        whole: bool = True,
    ) -> None:
        """`pinned`: the first signing key, base64url. `quick`: no signatures. `whole`: the trail goes to its end.

        Raises:
            ValueError: `pinned` is no key.
        """
        self.size = 0
        self._known, self._quick, self._whole = tuple(known), quick, whole
        self._tree = tree or Tree(0, lambda _first, _end: ())
        self._findings: list[Finding] = []
        self._count = self._holes = self._unannounced = 0
        self._chains = Chains(self._find)
        self._signatures = Signatures(self._find, pinned)
        self._stops = sorted({one.size for one in known if one.size}, reverse=True)
        self._heads_at = self._sizes_of_heads()
        self._heads_roots: dict[int, bytes] = {}
        self._frontier = Frontier()
        self._roots = {0: EMPTY_ROOT}
        self._batch: list[bytes] = []
        self._messages: list[Message | None] = []
        self._tree_size = self._tree.size
        self._parted: int | None = None
        self._tree_frontier = self._frontier
        self._tree_tail: list[bytes] = []
        self._tree_has: frozenset[bytes] = frozenset()
        self._tail: list[bytes] = []
        self._tail_refs: list[str] = []
        self._foreign: dict[int, Foreign] = {}

    def _find(self, finding: Finding) -> None:
        self._findings.append(finding)

    def _sizes_of_heads(self) -> frozenset[int]:
        """The newest checkpoints of the log and of others: the heads are held against these."""
        with_heads = [one for one in self._known if one.checkpoint.heads]
        own = sorted({one.size for one in with_heads if one.own})[-1:]
        others = sorted({one.size for one in with_heads if not one.own})[1 - HEADS_AT_MAX :]
        return frozenset((*own, *others))

    @property
    def entry_key(self) -> str:
        """The signing key everything starts from, base64url; empty while the trail has announced none."""
        return self._signatures.first

    def take(self, messages: Iterable[Message]) -> None:
        """Take the next messages of the stream, in its order."""
        with uncollected():
            self._take(list(messages))

    def _take(self, some: list[Message]) -> None:
        at = 0
        while at < len(some):
            index = self.size + len(self._batch)
            missing = some[at].stream_seq - index - 1
            if missing > 0:
                self._skip(missing)
            else:
                at += self._take_run(index, some[at : at + self._next_stop() - index])

    def _take_run(self, index: int, run: list[Message]) -> int:
        """Take messages, none beyond the next stop, up to the first before which some are missing; how many it took."""
        seqs = [message.stream_seq for message in run]
        if seqs != list(range(index + 1, index + 1 + len(run))):
            run = run[: next((place for place, seq in enumerate(seqs) if seq > index + 1 + place), len(run))]
        self._batch += self._chains.take_all(index, run)
        if self._quick:
            for message in run:
                if message.subject == CONTROL:
                    self._signatures.learn(message)
        else:
            for place, message in enumerate(run, index):
                self._signatures.learn(message)
                self._signatures.take(place, message)
        self._messages += run
        self._count += len(run)
        if index + len(run) == self._next_stop():
            self._settle()
        return len(run)

    def _next_stop(self) -> int:
        """The next size at which what has come is held against the tree."""
        full = self.size + CHUNK
        return min(full, self._stops[-1]) if self._stops else full

    def _skip(self, count: int) -> None:
        """Sequences that the stream does not hold."""
        self._holes += count
        for _ in range(count):
            index = self.size + len(self._batch)
            self._batch.append(leaf(gap_record(index + 1)))
            self._messages.append(None)
            if index + 1 == self._next_stop():
                self._settle()

    def _settle(self) -> None:
        """Hold what has come against the tree's leaves, and grow."""
        batch, messages = self._batch, self._messages
        self._batch, self._messages = [], []
        if self._parted is None:
            there = self._leaves(self.size, self.size + len(batch))
            if there != batch[: len(there)]:
                same = next(at for at, pair in enumerate(zip(there, batch, strict=False)) if pair[0] != pair[1])
                self._part(self.size + same, batch[:same])
                self._follow(batch[same:], messages[same:])
        else:
            self._follow(batch, messages)
        self._frontier.extend(batch)
        self.size += len(batch)
        if self._stops and self.size == self._stops[-1]:
            self._stops.pop()
            self._roots[self.size] = self._frontier.root()
            if self.size in self._heads_at:
                self._heads_roots[self.size] = self._map_root()

    def _map_root(self) -> bytes:
        """The root of the map of heads as they are."""
        return heads.map_root(
            heads.record(heads.key_of(subject), count, stream_seq, hash_)
            for subject, count, stream_seq, hash_ in self._chains.heads()
        )

    def _leaves(self, first: int, end: int) -> list[bytes]:
        """The tree's leaves, as far as there are any; where some are lost, the tree ends."""
        wanted = min(end, self._tree_size)
        if first >= wanted:
            return []
        there = list(self._tree.leaves(first, wanted))
        self._tree_size = min(self._tree_size, first + len(there)) if len(there) < wanted - first else self._tree_size
        return there

    def _part(self, index: int, before: Sequence[bytes]) -> None:
        """Tree and trail are not the same from `index` on; `before` is what the frontier lacks up to it."""
        self._parted = index
        self._tree_frontier = copy.deepcopy(self._frontier)
        self._tree_frontier.extend(before)
        at = index
        while at < self._tree_size:
            there = self._leaves(at, at + CHUNK)
            self._tree_tail += there
            at += CHUNK
        self._tree_has = frozenset(self._tree_tail)

    def _follow(self, hashes: Sequence[bytes], messages: Sequence[Message | None]) -> None:
        """Remember what comes after the trail has parted from its tree."""
        for hash_, message in zip(hashes, messages, strict=True):
            self._tail.append(hash_)
            self._tail_refs.append(ref_of(message.subject) if message is not None else "")
            if hash_ not in self._tree_has:
                place = (self._parted or 0) + len(self._tail) - 1
                signed = message is not None and self._signatures.is_valid(message)
                self._foreign[place] = Foreign(hole=message is None, signed=signed)

    def finish(self) -> Verdict:
        """The verdict; no more messages come."""
        self._settle()
        self._unannounced = self._signatures.finish(whole=self._whole)
        if self._parted is None and self._whole and self.size < self._tree_size:
            self._part(self.size, ())
        evidence = Evidence(
            known=self._known,
            size=self.size,
            whole=self._whole,
            roots=self._roots,
            tree_roots=self._tree_roots(),
            tree_size=self._tree_size,
            parted=self._parted,
            tree_tail=self._tree_tail,
            tail=self._tail,
            refs=self._tail_refs,
            foreign=self._foreign,
            leaves=self._leaves,
            entries=tuple(self._findings),
            heads=self._heads_roots,
        )
        findings = in_order(judge(evidence))
        newest = max(self._known, key=lambda one: one.size, default=None)
        return Verdict(
            ok=not findings,
            entries=self._count,
            size=newest.size if newest else 0,
            root=newest.root.hex() if newest else "",
            checkpoint=newest.source if newest else "",
            checkpoints=len(self._known),
            found=len(findings),
            findings=findings[:FINDINGS_MAX],
            not_checked=self._not_checked(newest.size if newest else 0),
            entry_key=self.entry_key,
        )

    def _tree_roots(self) -> dict[int, bytes]:
        """Roots of what the tree's leaves give, at the sizes of checkpoints."""
        if self._parted is None:
            return {size: root for size, root in self._roots.items() if size <= self._tree_size}
        roots = {size: root for size, root in self._roots.items() if size <= self._parted}
        at, frontier = self._parted, self._tree_frontier
        for size in sorted({one.size for one in self._known}):
            if self._parted < size <= self._tree_size:
                frontier.extend(self._tree_tail[at - self._parted : size - self._parted])
                roots[size], at = frontier.root(), size
        return roots

    def _not_checked(self, newest: int) -> tuple[str, ...]:
        said: list[str] = []
        if self._quick:
            said.append("signatures of entries: left out, as --quick asks")
        if self.size > newest:
            said.append(f"entries from index {newest} on ({self.size - newest}): no checkpoint covers them yet")
        if not self._whole and self.size < newest:
            said.append(f"entries from index {self.size} on: what was given ends there")
        if self._unannounced:
            said.append(f"signatures of {self._unannounced} entries, by keys that what was given announces nowhere")
        holes = self._holes - sum(one.hole for one in self._foreign.values())
        if holes:
            said.append(f"what stood at {holes} sequences that neither the stream nor the tree has")
        return tuple(said)
