"""Which near duplicates does corpus/dedup.py find, against brute force over every pair of a sample of real text?

Usage: python benchmarks/dedup_recall.py FILE [NUM_DOCUMENTS]. Prints, by true Jaccard similarity: the pairs, the share
that theory says is compared, the share that was (mean over seeds), and the share joined at the threshold; then, with
the tool's own run on the sample: how many documents go that should, and that should not.
"""

import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import orjson
from scipy.sparse import csr_matrix

from megatron_jmed.corpus.dedup import DedupSettings, dedup
from megatron_jmed.corpus.document import document_line, read_documents
from megatron_jmed.corpus.minhash import MinHash, exact_key, ngram_hashes, normalised, similarity, unit_of, units_of

EDGES = [0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0001]
THRESHOLD, SEEDS, BLOCK, NEIGHBOURING = 0.8, (0, 1, 2), 500, 10


def main(path: Path, num_documents: int) -> None:
    documents = list(read_documents(path))
    # Blocks of neighbours, so that texts made from one template stay together.
    step = max(1, len(documents) // num_documents)
    documents = [d for i, d in enumerate(documents) if (i // NEIGHBOURING) % step == 0][:num_documents]
    distinct = {exact_key(normalised(d.text)): d for d in reversed(documents)}
    documents = [d for d in documents if distinct[exact_key(normalised(d.text))] is d]
    units = [units_of(t, unit_of(d.lang, t)) for d in documents for t in [normalised(d.text)]]
    left, right, true = brute_force(units)
    bins = np.searchsorted(EDGES, true, side="right") - 1
    met, joined = np.zeros(len(true)), np.zeros(len(true))
    for seed in SEEDS:
        hasher = MinHash(seed=seed)
        signatures = np.stack([hasher.signature(one) for one in units])
        keys, low = hasher.band_keys(signatures), signatures.astype(np.uint16)
        for some in np.array_split(np.arange(len(true)), max(1, len(true) // 50_000)):
            together = (keys[left[some]] == keys[right[some]]).any(axis=1)
            met[some] += together
            joined[some] += together & (similarity(low[left[some]], low[right[some]]) >= THRESHOLD)
    theory = MinHash().found_share(true)
    if not (true >= THRESHOLD).any():
        print(f"{path.name}: {len(documents):,} documents, {len(true)} pairs from {EDGES[0]}, none from {THRESHOLD}")
        return
    print(f"{path.name}: {len(documents):,} distinct documents, {len(true):,} pairs from 0.3\n")
    print("| true Jaccard | pairs | compared, theory | compared | joined |\n|---|---|---|---|---|")
    for index, (low_edge, high_edge) in enumerate(pairwise(EDGES)):
        here = bins == index
        if here.any():
            shares = " | ".join(f"{100 * v[here].mean():.1f} %" for v in (theory, met / len(SEEDS), joined / len(SEEDS)))
            print(f"| {low_edge:.2f}-{min(high_edge, 1):.2f} | {here.sum():,} | {shares} |")
    alike = true >= THRESHOLD
    found = joined[alike].sum()
    print(f"\npairs from {THRESHOLD}: recall {found / (len(SEEDS) * alike.sum()):.3f}, precision {found / joined.sum():.3f}")
    by_document(documents, left, right, true)


def brute_force(units: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs (first, second, similarity) of at least EDGES[0], by the sets of their n-grams."""
    sets = [np.unique(ngram_hashes(one, MinHash().ngram)) for one in units]
    sizes = np.array([len(one) for one in sets])
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    table = csr_matrix((np.ones(len(columns), np.int32), columns, np.concatenate([[0], np.cumsum(sizes)])))
    found = []
    for start in range(0, len(sets), BLOCK):
        shared = (table[start : start + BLOCK] @ table.T).tocoo()
        first, second = shared.row + start, shared.col
        values = shared.data / (sizes[first] + sizes[second] - shared.data)
        wanted = (second > first) & (values >= EDGES[0])
        found.append((first[wanted], second[wanted], values[wanted]))
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))


def by_document(documents: list, left: np.ndarray, right: np.ndarray, true: np.ndarray) -> None:
    """Run the stage on the sample and say of each document that it removed, or not, whether that was right."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "sample.jsonl"
        source.write_bytes(b"".join(document_line(d) for d in documents))
        dedup([source], Path(folder) / "target", DedupSettings(threshold=THRESHOLD, progress=False))
        kept = {orjson.loads(document_line(d))["id"] for d in read_documents(Path(folder) / "target")}
    removed = np.array([d.id not in kept for d in documents])
    # The most similar earlier text decides whether a document should go; the most similar one at all, whether it may.
    earlier, any_other = np.zeros(len(documents)), np.zeros(len(documents))
    np.maximum.at(earlier, right, true)
    np.maximum.at(any_other, right, true)
    np.maximum.at(any_other, left, true)
    wanted = earlier >= THRESHOLD
    lowest = any_other[removed].min() if removed.any() else float("nan")
    print(
        f"documents: {wanted.sum():,} have an earlier text from {THRESHOLD}; {(wanted & removed).sum():,} of them went "
        f"(recall {(wanted & removed).sum() / wanted.sum():.3f}); {removed.sum():,} went in all, "
        f"{(removed & (any_other >= THRESHOLD)).sum():,} with another text from {THRESHOLD} "
        f"(precision {(removed & (any_other >= THRESHOLD)).sum() / removed.sum():.3f}), none below {lowest:.3f}\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4000)
