"""What has this run read, and what will it read? Computed anew from its config, token sets and index cache, nothing logged.

In: what `train` is started with. Out: the documents in each sequence of any steps, the steps in which any document comes,
and (read_account.py) tokens, epochs and unique documents up to any step. No process group, no GPU, no Megatron-Core: its
index cache is a few arrays, read memory-mapped, and every question is some passes of numpy over them. Global sequence g
(step g // global_batch_size) is

    source d = dataset_index[g], its drawing i = dataset_sample_index[g]          (BlendedDataset)
    sample s = shuffle_index[i]                                                   (GPTDataset of source d)
    the tokens from sample_index[s] to sample_index[s + 1]: pairs (position p, offset in the document there)
    document_index[p] = the number of the document at position p

`document_index` lists the documents of the training part once for each epoch. Laid end to end they are a stream of
tokens, and sample s is its tokens s*S to (s+1)*S as inputs, and one more as the last label; that last one is the first
input of sample s + 1. So a sequence has S + 1 tokens and counts as S, and a document whose first token is only a label
there is listed with the tokens 0 to 1.

Invariant: the tokens that are found here are those that the loop fed (tests compare hashes, `log.hash_batches`). Steps
count from 1, as in metrics.jsonl; those of `data.skip_steps` are marked and count as not read.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from megatron_jmed.config import RunConfig
from megatron_jmed.corpus.indexed import TokenIndex, read_index
from megatron_jmed.corpus.listing import Listing, load_listing
from megatron_jmed.corpus.tokens import TokenSet
from megatron_jmed.data.index_cache import find_cache
from megatron_jmed.data.sources import index_cache_of
from megatron_jmed.errors import ConfigError, CorpusError


@dataclass(frozen=True)
class SourceOrder:
    """In which order one source is read: Megatron-Core's three arrays of its training part."""

    document_index: np.ndarray  # [positions]
    sample_index: np.ndarray  # [samples + 1, 2]
    shuffle_index: np.ndarray  # [samples]


@dataclass(frozen=True)
class Pieces:
    """Parts of documents in sequences, one row each: tokens `begin` to `end` of document number `document` of source
    number `source` stand in sequence `sequence` (from 0) of step `step` (from 1), in the order in which they were read."""

    step: np.ndarray
    sequence: np.ndarray
    source: np.ndarray
    document: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.step)

    def where(self, rows: np.ndarray) -> "Pieces":
        return Pieces(*(getattr(self, field.name)[rows] for field in fields(self)))


class Replay:
    """Answers for one run. `orders`, `token_sets` and the listings are those of the blend's sources, in its order."""

    def __init__(self, config: RunConfig, token_sets: list[TokenSet], dataset_index: np.ndarray, dataset_sample_index: np.ndarray,
                 orders: list[SourceOrder]):
        self.config = config
        self.source_names = tuple(source.name for source in config.data.blend)
        self.token_sets, self.orders = token_sets, orders
        self.dataset_index, self.dataset_sample_index = dataset_index, dataset_sample_index
        self.indices: list[TokenIndex] = [read_index(Path(f"{token_set.prefix}.idx")) for token_set in token_sets]
        self.listings: list[Listing | None] = [load_listing(Path(token_set.prefix).parent) for token_set in token_sets]

    # ---- steps -> documents

    def pieces_of_steps(self, first: int, last: int) -> Pieces:
        """What stands in every sequence of the steps `first` to `last`; ConfigError if the run has no such steps."""
        if not 1 <= first <= last <= self.config.num_steps:
            raise ConfigError(f"steps {first} to {last}: the run has the steps 1 to {self.config.num_steps:,}")
        batch = self.config.budget.global_batch_size
        sequences = np.arange((first - 1) * batch, last * batch)
        found = [self._pieces_of(source, sequences[self.dataset_index[sequences] == source])
                 for source in range(len(self.orders))]
        return _in_order(found)

    def _pieces_of(self, source: int, sequences: np.ndarray) -> Pieces:
        """Of global sequences that are all of one source."""
        order = self.orders[source]
        samples = order.shuffle_index[self.dataset_sample_index[sequences]].astype(np.int64)
        counts = _first_position(order, samples + 1) - _first_position(order, samples) + 1
        rows = np.repeat(np.arange(len(samples)), counts)
        before = np.cumsum(counts) - counts
        positions = _first_position(order, samples)[rows] + np.arange(len(rows)) - before[rows]
        return self._cut(source, sequences[rows], samples[rows], positions)

    def _cut(self, source: int, sequences: np.ndarray, samples: np.ndarray, positions: np.ndarray) -> Pieces:
        """One piece for each row: what of the document at a position belongs to a sample."""
        order, batch = self.orders[source], self.config.budget.global_batch_size
        documents = order.document_index[positions].astype(np.int64)
        (first, begin), (last, end) = (order.sample_index[which].astype(np.int64).T for which in (samples, samples + 1))
        return Pieces(
            step=sequences // batch + 1,
            sequence=sequences % batch,
            source=np.full(len(sequences), source),
            document=documents,
            begin=np.where(positions == first, begin, 0),
            end=np.where(positions == last, end + 1, self.indices[source].lengths[documents]),  # + 1: the last label
        )

    # ---- documents -> steps

    def pieces_of_documents(self, source: int, documents: list[int] | np.ndarray) -> Pieces:
        """Everywhere in the run that these documents of a source stand; nothing for those kept for validation."""
        order = self.orders[source]
        positions = np.flatnonzero(np.isin(order.document_index, documents))
        firsts = np.ascontiguousarray(order.sample_index[:, 0])
        lowest = np.maximum(np.searchsorted(firsts, positions, side="left") - 1, 0)
        highest = np.minimum(np.searchsorted(firsts, positions, side="right") - 1, len(order.shuffle_index) - 1)
        counts = np.maximum(highest - lowest + 1, 0)
        rows = np.repeat(np.arange(len(positions)), counts)
        samples = lowest[rows] + np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
        sequences = self._sequences_of(source, samples)
        is_drawn = sequences >= 0
        return _in_order([self._cut(source, sequences[is_drawn], samples[is_drawn], positions[rows][is_drawn])])

    def _sequences_of(self, source: int, samples: np.ndarray) -> np.ndarray:
        """The global sequence that each sample is; -1 for one that the run never draws."""
        if not len(samples):
            return samples
        order = self.orders[source]
        drawings = np.flatnonzero(np.isin(order.shuffle_index, samples))
        of_samples = order.shuffle_index[drawings]
        by_sample = np.argsort(of_samples, kind="stable")
        wanted = drawings[by_sample][np.searchsorted(of_samples[by_sample], samples)]
        sequences = self._sequences_from(source)
        drawn = self.dataset_sample_index[sequences]  # rising: the first sequence of a source is its drawing 0
        places = np.minimum(np.searchsorted(drawn, wanted), len(drawn) - 1)
        return np.where(drawn[places] == wanted, sequences[places], -1) if len(drawn) else np.full(len(samples), -1)

    def _sequences_from(self, source: int) -> np.ndarray:
        return np.flatnonzero(self.dataset_index == source)

    def find(self, identity: str) -> list[tuple[int, int]]:
        """(source, document number) of every document with this id; CorpusError if a source has no listing to look in."""
        unlisted = [str(Path(self.token_sets[source].prefix).parent) for source, one in enumerate(self.listings) if one is None]
        if unlisted:
            raise CorpusError(f"ids are not known for {', '.join(unlisted)}; run tools/list_documents.py {' '.join(unlisted)}")
        return [(source, document) for source, listing in enumerate(self.listings) for document in listing.find(identity)]

    def number_of(self, source_name: str) -> int:
        if source_name not in self.source_names:
            raise ConfigError(f"{source_name!r} is no source of this run; choose from {', '.join(self.source_names)}")
        return self.source_names.index(source_name)

    # ---- what documents are called

    def document_facts(self, source: int, document: int) -> dict[str, Any]:
        """Its source, number and tokens, and with a listing its id, language and characters; CorpusError if there is none."""
        lengths, listing = self.indices[source].lengths, self.listings[source]
        if not 0 <= document < len(lengths):
            raise CorpusError(f"{self.source_names[source]} has the documents 0 to {len(lengths) - 1:,}, and not {document:,}")
        facts: dict[str, Any] = {"source": self.source_names[source], "document": document, "num_tokens": int(lengths[document])}
        if listing:
            source_of_document, lang = listing.names[listing.groups[document]]
            facts |= {"id": listing.id(document), "source_of_document": source_of_document, "lang": lang,
                      "num_characters": int(listing.characters[document])}
        return facts

    def is_for_validation(self, source: int, document: int) -> bool:
        return document >= self.num_train_documents(source)

    def num_train_documents(self, source: int) -> int:
        return int(self.orders[source].document_index.max()) + 1  # the first documents of a set are trained on, all of them

    # ---- tokens

    def tokens(self, step: int, sequence: int) -> np.ndarray:
        """The S + 1 ids of one sequence: its inputs and the last label."""
        pieces = self.pieces_of_steps(step, step)
        pieces = pieces.where(pieces.sequence == sequence)
        rows = zip(pieces.source, pieces.document, pieces.begin, pieces.end, strict=True)
        return np.concatenate([self._ids(*row) for row in rows])

    def _ids(self, source: int, document: int, begin: int, end: int) -> np.ndarray:
        index = self.indices[source]
        offset = int(index.offsets[document]) + int(begin) * index.dtype.itemsize
        return np.fromfile(f"{self.token_sets[source].prefix}.bin", index.dtype, int(end - begin), offset=offset)


def open_replay(config: RunConfig, token_sets: list[TokenSet]) -> Replay:
    """The answers for a run whose index cache is on the disk; CorpusError if it is not."""
    caches, made_for = index_cache_of(config, token_sets)
    cache = find_cache(caches, made_for)
    if cache is None:
        raise CorpusError(f"{caches} holds no whole index cache of this run: it says which sequences the run reads. Run "
                          "tools/build_index_cache.py with the same config and changes, in the folder in which the run is started")
    return Replay(config, token_sets, *_cached_indices(cache))


def replay_of(config: RunConfig, token_sets: list[TokenSet], data: Any) -> Replay:
    """The same for a run in progress, from its `PretrainData`."""
    orders = [SourceOrder(one.document_index, one.sample_index, one.shuffle_index) for one in data.train.datasets]
    return Replay(config, token_sets, data.train.dataset_index, data.train.dataset_sample_index, orders)


def documents_of_step(config: RunConfig, token_sets: list[TokenSet], data: Any, step: int) -> list[str]:
    """"SOURCE ID (N tokens)" for every document of a step (from 1, as in metrics.jsonl), those with most tokens first.

    For whoever asks why the loss jumped. `data` is the run's PretrainData, or None for its index cache on the disk. Without
    a listing of the token set (tools/list_documents.py) a document's number stands for its id.
    """
    replay = replay_of(config, token_sets, data) if data else open_replay(config, token_sets)
    pieces = replay.pieces_of_steps(step, step)
    documents, rows = np.unique(np.stack([pieces.source, pieces.document]), axis=1, return_inverse=True)
    tokens = np.bincount(rows.ravel(), pieces.end - pieces.begin).astype(int)
    lines = []
    for number in np.argsort(-tokens, kind="stable"):
        source, document = (int(word) for word in documents[:, number])
        listing = replay.listings[source]
        name = listing.id(document) if listing else f"document {document}"
        lines.append(f"{replay.source_names[source]} {name} ({tokens[number]} tokens)")
    return lines


def _cached_indices(cache: Path) -> tuple[np.ndarray, np.ndarray, list[SourceOrder]]:
    """The arrays of a cache, memory-mapped. Its descriptions say which files are whose: the blend's lists its sources'."""
    (blend,) = cache.glob("*-BlendedDataset-train-description.txt")
    described = {path: json.loads(path.read_text()) for path in cache.glob("*-GPTDataset-train-description.txt")}
    orders = []
    for wanted in json.loads(blend.read_text())["datasets"]:
        path = next(path for path, words in described.items() if words == wanted)
        orders.append(SourceOrder(*(_array(path, name) for name in ("document_index", "sample_index", "shuffle_index"))))
    return _array(blend, "dataset_index"), _array(blend, "dataset_sample_index"), orders


def _array(description: Path, name: str) -> np.ndarray:
    return np.load(description.with_name(description.name.replace("description.txt", f"{name}.npy")), mmap_mode="r")


def _first_position(order: SourceOrder, samples: np.ndarray) -> np.ndarray:
    return order.sample_index[samples, 0].astype(np.int64)


def _in_order(found: list[Pieces]) -> Pieces:
    """Pieces of several sources as one, by step and sequence; those of one sequence keep their order."""
    joined = Pieces(*(np.concatenate([getattr(pieces, field.name) for pieces in found]) for field in fields(Pieces)))
    return joined.where(np.lexsort((joined.sequence, joined.step)))
