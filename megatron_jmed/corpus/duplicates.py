"""Which documents are copies of which, over a whole corpus that does not fit into memory?

In: the signatures of all documents. Out: for each document the first one of its group (itself, if it is to be kept),
and whether it equals another one exactly. Exact copies are grouped first; of them only the first is compared further.
For each band, the keys of one range of values are read from all runs and sorted (an external sort by range); texts
that share a key are candidates, and candidates whose estimated Jaccard similarity reaches the threshold are joined in
a union-find forest, whose roots are always the lowest-numbered, hence first, documents.
Invariant: groups are the connected components of the verified pairs, so neither the order of the bands nor the memory
setting (how many ranges, how many pairs at once) changes them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_jmed.corpus.minhash import MinHash, similarity
from megatron_jmed.corpus.signatures import EXACT_ROW, Signatures

# Each text in a bucket is compared with the bucket's first text and with this many before it: a bucket of a million
# form letters costs a few million comparisons, not a million squared.
NEIGHBOURS = 8
BYTES_PER_KEY = 256  # keys, documents, their order, and pairs at worst
BLOCK_DOCUMENTS = 2**16


def new_array(path: Path, dtype: type, num: int) -> np.ndarray:
    """An array on disk, mapped, with room for all of it: a full disk is an OSError here, not a bus error at some write."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(num,))
    with open(path, "r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, os.fstat(stream.fileno()).st_size)
    return array


class Forest:
    """Union-find over document numbers, in a file: a root is the lowest number of its group."""

    def __init__(self, path: Path, num_documents: int) -> None:
        self.parents = new_array(path, np.int64, num_documents)
        for start in range(0, num_documents, BLOCK_DOCUMENTS):
            stop = min(start + BLOCK_DOCUMENTS, num_documents)
            self.parents[start:stop] = np.arange(start, stop)

    def roots(self, documents: np.ndarray) -> np.ndarray:
        """The first document of each one's group; shortens the way for the next time."""
        roots = self.parents[documents]
        while not np.array_equal(above := self.parents[roots], roots):
            roots = above
        self.parents[documents] = roots
        return roots

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Make one group of the groups of each pair."""
        while True:
            left, right = self.roots(left), self.roots(right)
            apart = left != right
            if not apart.any():
                return
            left, right = left[apart], right[apart]
            # Where several pairs hang the same root, the lowest wins and the others come round again.
            np.minimum.at(self.parents, np.maximum(left, right), np.minimum(left, right))


@dataclass(frozen=True)
class Duplicates:
    """What was found; `kept[i]` is the document that stands for document i, both arrays on disk."""

    kept: np.ndarray  # int64
    exact: np.ndarray  # bool: equals the first document of its exact group, which is another
    largest_group: int
    num_groups: int
    near_similarity: dict[str, int]  # removed near duplicates by estimated similarity to the kept document


def find_duplicates(signatures: Signatures, minhash: MinHash, threshold: float, memory_bytes: int, folder: Path) -> Duplicates:
    """Group all documents; writes two arrays into `folder`."""
    forest = Forest(folder / "kept.npy", signatures.num_documents)
    exact = new_array(folder / "exact.npy", bool, signatures.num_documents)
    num_parts = max(1, -(-signatures.num_documents * BYTES_PER_KEY // memory_bytes))
    for part in range(num_parts):
        _join_exact(signatures, part, num_parts, forest, exact)
    # Two gathered signatures and their comparison, with as much again for what was read to gather them.
    pairs_at_once = max(1, memory_bytes // (10 * minhash.num_hashes))
    for row in range(1, minhash.bands + 1):
        for part in range(num_parts):
            for left, right in _candidates(*signatures.key_range(row, part, num_parts), exact):
                _join_similar(left, right, signatures, threshold, forest, pairs_at_once)
    return _summary(signatures, forest, exact, threshold)


def _join_exact(signatures: Signatures, part: int, num_parts: int, forest: Forest, exact: np.ndarray) -> None:
    """Join documents whose 128-bit keys are equal, and mark all but the first."""
    upper, documents = signatures.key_range(EXACT_ROW, part, num_parts)
    if not len(documents):
        return
    lower = signatures.values("lower", documents)
    order = np.lexsort((documents, lower, upper))
    upper, lower, documents = upper[order], lower[order], documents[order]
    same = (upper[1:] == upper[:-1]) & (lower[1:] == lower[:-1])
    firsts = documents[_group_starts(same)]
    forest.parents[documents] = firsts
    exact[documents] = documents != firsts


def _group_starts(same: np.ndarray) -> np.ndarray:
    """For each entry of a sorted array, where its group begins; `same[i]` says whether entry i + 1 equals entry i."""
    starts = np.arange(len(same) + 1)
    starts[1:][same] = 0
    return np.maximum.accumulate(starts)


def _candidates(keys: np.ndarray, documents: np.ndarray, exact: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of documents that share a key: each with the first of its bucket, then with those before it."""
    distinct = ~exact[documents]
    keys, documents = keys[distinct], documents[distinct]
    order = np.lexsort((documents, keys))
    keys, documents = keys[order], documents[order]
    starts = _group_starts(keys[1:] == keys[:-1])[: len(keys)]
    later = np.flatnonzero(starts != np.arange(len(keys)))
    yield documents[starts[later]], documents[later]
    for lag in range(1, NEIGHBOURS + 1):
        inside = later[later - lag > starts[later]]
        if not len(inside):
            return
        yield documents[inside - lag], documents[inside]


def _join_similar(
    left: np.ndarray, right: np.ndarray, signatures: Signatures, threshold: float, forest: Forest, pairs_at_once: int
) -> None:
    """Join the pairs that reach the threshold; those that are in one group already need no comparison."""
    for start in range(0, len(left), pairs_at_once):
        some_left, some_right = left[start : start + pairs_at_once], right[start : start + pairs_at_once]
        apart = forest.roots(some_left) != forest.roots(some_right)
        if not apart.any():
            continue
        some_left, some_right = some_left[apart], some_right[apart]
        alike = similarity(signatures.values("signatures", some_left), signatures.values("signatures", some_right))
        forest.join(some_left[alike >= threshold], some_right[alike >= threshold])


def _summary(signatures: Signatures, forest: Forest, exact: np.ndarray, threshold: float) -> Duplicates:
    """Let every document point straight at the kept one, and count groups and similarities."""
    edges = [threshold, *(edge for edge in (0.7, 0.8, 0.9, 0.95, 1.0) if edge > threshold)]
    names = [f"below {threshold:g} (through others)", *(f"from {edge:g}" for edge in edges)]
    counts, num_groups, largest = np.zeros(len(names), np.int64), 0, 1
    sizes = new_array(Path(forest.parents.filename).with_name("sizes.npy"), np.int64, len(forest.parents))
    for start in range(0, len(exact), BLOCK_DOCUMENTS):
        documents = np.arange(start, min(start + BLOCK_DOCUMENTS, len(exact)))
        roots = forest.roots(documents)
        np.add.at(sizes, roots, 1)
        near = (roots != documents) & ~exact[documents]
        if near.any():
            values = [signatures.values("signatures", side[near]) for side in (documents, roots)]
            np.add.at(counts, np.searchsorted(edges, similarity(*values), side="right"), 1)
    for start in range(0, len(exact), BLOCK_DOCUMENTS):
        block = sizes[start : start + BLOCK_DOCUMENTS]
        num_groups += int((block > 1).sum())
        largest = max(largest, int(block.max()))
    found = {name: int(count) for name, count in zip(names, counts, strict=True)}
    return Duplicates(forest.parents, exact, largest, num_groups, found)
