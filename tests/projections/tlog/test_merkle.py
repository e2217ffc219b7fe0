"""The tree of RFC 6962 and RFC 9162, held against published vectors and against an independent implementation."""

import random
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InmemoryTree  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

from tasktrail.projections.tlog import merkle
from tasktrail.projections.tlog.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    gap_record,
    inclusion_proof,
    leaf,
    node,
    root_at,
    verify_consistency,
    verify_inclusion,
)

pytestmark = pytest.mark.requirement("T2")

# The vectors that the Certificate Transparency project published for its trees, as in transparency-dev/merkle,
# proof/verify_test.go: eight leaves, the root at every size, and proofs.
CT_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
CT_INCLUSION = {
    (0, 1): (),
    (0, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (5, 8): (
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 3): ("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",),
    (1, 5): (
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ),
}
CT_CONSISTENCY = {
    (1, 1): (),
    (1, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (6, 8): (
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
    (2, 5): (
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ),
    (6, 7): (
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
}
EVERY_SIZE = 130


def nodes_of(leaves: Sequence[bytes]) -> merkle.Nodes:
    """The nodes over leaf hashes, by the definition."""

    @cache
    def nodes(level: int, index: int) -> bytes:
        if level == 0:
            return leaves[index]
        return node(nodes(level - 1, 2 * index), nodes(level - 1, 2 * index + 1))

    return nodes


def bodies(size: int) -> list[bytes]:
    return [b"entry %d" % number for number in range(size)]


def pymerkle_of(size: int) -> InmemoryTree:
    return InmemoryTree.init_from_entries(bodies(size), algorithm="sha256")


def unhex(texts: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(text) for text in texts]


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("size", range(9))
def test_roots_are_the_published_ones(size: int) -> None:
    hashes = [leaf(body) for body in CT_LEAVES[:size]]
    tree = Frontier()
    tree.extend(hashes)
    assert merkle.root(hashes).hex() == tree.root().hex() == CT_ROOTS[size]
    assert root_at(size, nodes_of(hashes)).hex() == CT_ROOTS[size]


@pytest.mark.parametrize(("index", "size"), CT_INCLUSION)
def test_inclusion_proofs_are_the_published_ones(index: int, size: int) -> None:
    hashes = [leaf(body) for body in CT_LEAVES]
    proof = inclusion_proof(index, size, nodes_of(hashes))
    assert proof == unhex(CT_INCLUSION[index, size])
    assert verify_inclusion(hashes[index], index, size, proof, bytes.fromhex(CT_ROOTS[size]))


@pytest.mark.parametrize(("old", "new"), CT_CONSISTENCY)
def test_consistency_proofs_are_the_published_ones(old: int, new: int) -> None:
    proof = consistency_proof(old, new, nodes_of([leaf(body) for body in CT_LEAVES]))
    assert proof == unhex(CT_CONSISTENCY[old, new])
    assert verify_consistency(old, new, bytes.fromhex(CT_ROOTS[old]), bytes.fromhex(CT_ROOTS[new]), proof)


def test_roots_and_inclusion_proofs_are_those_of_an_independent_implementation() -> None:
    """Pymerkle's path begins with the leaf itself; the rest is the audit path of RFC 9162."""
    other = pymerkle_of(EVERY_SIZE)
    hashes = [leaf(body) for body in bodies(EVERY_SIZE)]
    nodes = nodes_of(hashes)
    assert pymerkle_of(0).get_root() == merkle.root([]) == EMPTY_ROOT
    for size in range(1, EVERY_SIZE + 1):
        root = root_at(size, nodes)
        assert root == merkle.root(hashes[:size]) == other.get_root(size)
        for index in range(size):
            theirs = other.prove_inclusion(index + 1, size)
            ours = inclusion_proof(index, size, nodes)
            assert ours == theirs.path[1:], (index, size)
            assert verify_inclusion(hashes[index], index, size, theirs.path[1:], root)
            theirs.path[1:] = ours
            theirs.verify(hashes[index], root, index=index + 1, size=size)


def test_consistency_agrees_with_an_independent_implementation() -> None:
    """Pymerkle writes these proofs in a form of its own: theirs must hold for our roots, ours for theirs."""
    other = pymerkle_of(EVERY_SIZE)
    nodes = nodes_of([leaf(body) for body in bodies(EVERY_SIZE)])
    roots = [root_at(size, nodes) for size in range(EVERY_SIZE + 1)]
    for new in range(1, EVERY_SIZE + 1):
        for old in range(1, new + 1):
            other.prove_consistency(old, new).verify(roots[old], roots[new], prior_size=old, later_size=new)
            ours = consistency_proof(old, new, nodes)
            assert verify_consistency(old, new, other.get_root(old), other.get_root(new), ours), (old, new)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=700), st.randoms(use_true_random=False))
def test_trees_of_any_entries_agree_with_an_independent_implementation(
    entries: list[bytes], chance: random.Random
) -> None:
    other = InmemoryTree.init_from_entries(entries, algorithm="sha256")
    hashes = [leaf(body) for body in entries]
    nodes = nodes_of(hashes)
    new = len(entries)
    old, index = chance.randint(1, new), chance.randrange(new)
    roots = other.get_root(old), other.get_root(new)
    assert (root_at(old, nodes), merkle.root(hashes)) == roots
    proof = inclusion_proof(index, new, nodes)
    assert proof == other.prove_inclusion(index + 1, new).path[1:]
    assert verify_inclusion(hashes[index], index, new, proof, roots[1])
    assert verify_consistency(old, new, *roots, consistency_proof(old, new, nodes))


@given(st.lists(st.integers(0, 40), max_size=12))
def test_a_frontier_gives_the_same_root_however_the_leaves_come(batches: list[int]) -> None:
    tree, hashes = Frontier(), list[bytes]()
    for batch in batches:
        new = [leaf(b"%d" % (len(hashes) + number)) for number in range(batch)]
        hashes += new
        if batch == 1:
            tree.append(new[0])
        else:
            tree.extend(new)
        assert tree.size == len(hashes)
        assert tree.root() == merkle.root(hashes)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 8, 13, 16, 17])
def test_no_changed_inclusion_proof_is_taken(size: int) -> None:
    """The list of changes follows transparency-dev/merkle, proof/verify_test.go."""
    hashes = [leaf(body) for body in bodies(size)]
    root = merkle.root(hashes)
    some = leaf(b"something else")
    for index, mine in enumerate(hashes):
        proof = inclusion_proof(index, size, nodes_of(hashes))
        assert verify_inclusion(mine, index, size, proof, root)
        for wrong in (index - 1, index + 1, index ^ 2, -1, size, 2**70):
            assert not verify_inclusion(mine, wrong, size, proof, root)
        for wrong in (0, -1, index, size * 2, size // 2 if size > 1 else 2):
            assert not verify_inclusion(mine, index, wrong, proof, root)
        for wrong_root in (EMPTY_ROOT, some, b"", root[:31], root + b"\0"):
            assert not verify_inclusion(mine, index, size, proof, wrong_root)
        for wrong_leaf in (some, b"", mine[:31]):
            assert not verify_inclusion(wrong_leaf, index, size, proof, root)
        longer = [[*proof, b""], [*proof, root], [b"", *proof], [root, *proof], [*proof, some], [*proof, *proof, some]]
        shorter = [proof[:-1], proof[1:], proof[::-1] if len(proof) > 1 else [some]] if proof else []
        for changed in longer + shorter:
            assert not verify_inclusion(mine, index, size, changed, root)


@pytest.mark.parametrize(
    ("old", "new"), [(1, 2), (1, 8), (2, 3), (3, 7), (4, 7), (4, 8), (6, 7), (6, 8), (7, 8), (9, 17)]
)
def test_no_changed_consistency_proof_is_taken(old: int, new: int) -> None:
    """The list of changes follows transparency-dev/merkle, proof/verify_test.go."""
    hashes = [leaf(body) for body in bodies(new)]
    old_root, new_root = merkle.root(hashes[:old]), merkle.root(hashes)
    proof = consistency_proof(old, new, nodes_of(hashes))
    assert verify_consistency(old, new, old_root, new_root, proof)
    for wrong in (old - 1, old + 1, -1, 2**70):
        assert not verify_consistency(wrong, new, old_root, new_root, proof)
    for wrong in (new * 2, new // 2, 0, -1):
        assert not verify_consistency(old, wrong, old_root, new_root, proof)
    assert not verify_consistency(old, new, new_root, old_root, proof)
    assert not verify_consistency(old, new, old_root, old_root, proof)
    assert not verify_consistency(old, new, b"", new_root, proof)
    assert not verify_consistency(old, new, old_root, new_root[:31], proof)
    longer = [
        [*proof, b""],
        [*proof, old_root],
        [*proof, new_root],
        [b"", *proof],
        [old_root, *proof],
        [*proof, *proof],
    ]
    for changed in [*longer, [proof[0], *proof], proof[:-1], proof[1:], []]:
        assert not verify_consistency(old, new, old_root, new_root, changed)


@given(st.integers(1, 300), st.data())
def test_no_flipped_bit_is_taken(size: int, data: st.DataObject) -> None:
    hashes = [leaf(body) for body in bodies(size)]
    nodes = nodes_of(hashes)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    root, old_root, bit = merkle.root(hashes), merkle.root(hashes[:old]), data.draw(st.integers(0, 255))
    proof = inclusion_proof(index, size, nodes)
    assert not verify_inclusion(flipped(hashes[index], bit), index, size, proof, root)
    assert not verify_inclusion(hashes[index], index, size, proof, flipped(root, bit))
    for at in range(len(proof)):
        changed = [*proof[:at], flipped(proof[at], bit), *proof[at + 1 :]]
        assert not verify_inclusion(hashes[index], index, size, changed, root)
    proof = consistency_proof(old, size, nodes)
    assert not verify_consistency(old, size, flipped(old_root, bit), root, proof)
    assert not verify_consistency(old, size, old_root, flipped(root, bit), proof)
    for at in range(len(proof)):
        changed = [*proof[:at], flipped(proof[at], bit), *proof[at + 1 :]]
        assert not verify_consistency(old, size, old_root, root, changed)


def test_what_needs_no_proof_takes_none() -> None:
    """RFC 6962 proves only between trees that are not empty and differ; the rest follows from the roots alone."""
    one, two = leaf(b"1"), leaf(b"2")
    assert verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, [])
    assert verify_consistency(0, 5, EMPTY_ROOT, one, [])
    assert verify_consistency(3, 3, one, one, [])
    assert not verify_consistency(0, 0, one, one, [])
    assert not verify_consistency(0, 0, EMPTY_ROOT, one, [])
    assert not verify_consistency(0, 5, one, one, [])
    assert not verify_consistency(3, 3, one, two, [])
    assert not verify_consistency(2, 1, one, one, [])
    for old, new in ((0, 0), (0, 5), (3, 3)):
        assert not verify_consistency(old, new, EMPTY_ROOT, EMPTY_ROOT, [one])


def test_proofs_of_what_is_not_there_are_refused() -> None:
    nodes = nodes_of([leaf(b"1"), leaf(b"2")])
    for index, size in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="has no leaf"):
            inclusion_proof(index, size, nodes)
    for old, new in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="cannot begin with"):
            consistency_proof(old, new, nodes)


def test_the_record_of_a_gap_is_text_that_no_entry_can_be() -> None:
    """An entry is a JSON object (design.md, section 7); the record of a gap is the plan's of issue 4."""
    assert gap_record(1) == b"tasktrail/gap/v1\n1\n"
    assert gap_record(2**53) == b"tasktrail/gap/v1\n9007199254740992\n"
