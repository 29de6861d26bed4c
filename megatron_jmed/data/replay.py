"""What has this run read, and what will it read? Computed anew from its config, token sets and index cache, nothing logged.

In: what `train` is started with. Out: the documents in each sequence of any steps, the steps in which any document comes,
and (read_account.py) tokens, epochs and unique documents up to any step. No process group, no GPU, no Megatron-Core: its
index cache is a few arrays, read memory-mapped, and every question is some passes of numpy over them. Global sequence g
(step g // global_batch_size) is

    source d = dataset_index[g], its drawing i = dataset_sample_index[g]          (blended.py)
    epoch e = i // N and sample s = shuffle_index[i % N], of the N samples of an epoch of source d
    the tokens from sample_index[s] to sample_index[s + 1]: pairs (position p, offset in the document there)
    document_index[p] = the number of the document at position p

The last three are arrays of Megatron-Core's GPTDataset, one of each for every epoch of a source. `document_index` lists the
documents of the training part in the epoch's order. Laid end to end they are a stream of tokens, and sample s is its tokens
s*S to (s+1)*S as inputs, and one more as the last label; that last one is the first input of sample s + 1. So a sequence
has S + 1 tokens and counts as S, and a document whose first token is only a label there is listed with the tokens 0 to 1.
Of a conversation set (sft.py) a sample is a row, which holds the whole conversations from position to position.

Invariant: the tokens that are found here are those that the loop fed (tests compare hashes, `log.hash_batches`). Steps
count from 1, as in metrics.jsonl; those of `data.skip_steps` are marked and count as not read.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megatron_jmed.config import RunConfig
from megatron_jmed.corpus.indexed import TokenIndex, read_index
from megatron_jmed.corpus.listing import Listing, load_listing
from megatron_jmed.corpus.token_set import TokenSet
from megatron_jmed.data.index_arrays import EPOCH_ARRAYS, EpochOrder
from megatron_jmed.data.index_cache import find_cache
from megatron_jmed.data.packing import filled_row
from megatron_jmed.data.sources import conversations_name, index_cache_of
from megatron_jmed.errors import ConfigError, CorpusError


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


class InEpoch(NamedTuple):
    """Which of some sequences belong to an epoch, and the place of each of those in its order."""

    mask: np.ndarray
    drawings: np.ndarray


class Replay:
    """Answers for one run. `orders` (of each source its epochs), `token_sets` and the listings are in the order of the blend."""

    def __init__(self, config: RunConfig, token_sets: list[TokenSet], dataset_index: np.ndarray, dataset_sample_index: np.ndarray,
                 orders: list[list[EpochOrder]]):
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
        found = []
        for source, orders in enumerate(self.orders):
            mine = sequences[self.dataset_index[sequences] == source]
            for epoch, inside in self.by_epoch(source, mine):
                found.append(self._pieces_of(source, orders[epoch], mine[inside.mask], inside.drawings))
        return _in_order(found)

    def by_epoch(self, source: int, sequences: np.ndarray) -> Iterator[tuple[int, "InEpoch"]]:
        """The epochs that global sequences of one source belong to, with which of them do, and their places in it."""
        drawings = self.dataset_sample_index[sequences]
        for epoch, order in enumerate(self.orders[source]):
            first = epoch * len(order.shuffle_index)
            mask = (drawings >= first) & (drawings < first + len(order.shuffle_index))
            if mask.any():
                yield epoch, InEpoch(mask, drawings[mask] - first)

    def _pieces_of(self, source: int, order: EpochOrder, sequences: np.ndarray, drawings: np.ndarray) -> Pieces:
        """Of global sequences that are all of one epoch of one source."""
        samples = order.shuffle_index[drawings].astype(np.int64)
        counts = _first_position(order, samples + 1) - _first_position(order, samples) + (not order.is_whole)
        rows = np.repeat(np.arange(len(samples)), counts)
        before = np.cumsum(counts) - counts
        positions = _first_position(order, samples)[rows] + np.arange(len(rows)) - before[rows]
        return self._cut(source, order, sequences[rows], samples[rows], positions)

    def _cut(self, source: int, order: EpochOrder, sequences: np.ndarray, samples: np.ndarray, positions: np.ndarray) -> Pieces:
        """One piece for each row: what of the document at a position belongs to a sample."""
        batch = self.config.budget.global_batch_size
        documents = order.document_index[positions].astype(np.int64)
        (first, begin), (last, end) = (order.sample_index[which].astype(np.int64).T for which in (samples, samples + 1))
        if order.is_whole:
            first = last = np.full_like(first, -1)  # no position is cut
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
        of_source = np.flatnonzero(self.dataset_index == source)
        found, first = [], 0
        for order in self.orders[source]:
            sequences = of_source[first : first + len(order.shuffle_index)]  # drawing i of a source is its sequence i
            found.append(self._pieces_of_documents(source, order, documents, sequences))
            first += len(order.shuffle_index)
        return _in_order(found)

    def _pieces_of_documents(self, source: int, order: EpochOrder, documents: list[int] | np.ndarray,
                             sequences: np.ndarray) -> Pieces:
        """In one epoch, of which the run reads `sequences`, in the order of their drawing."""
        positions = np.flatnonzero(np.isin(order.document_index, documents))
        firsts = np.ascontiguousarray(order.sample_index[:, 0])
        lowest = np.maximum(np.searchsorted(firsts, positions, side="left") - 1, 0)
        highest = np.minimum(np.searchsorted(firsts, positions, side="right") - 1, len(order.shuffle_index) - 1)
        if order.is_whole:
            lowest = highest  # no sample begins with the last label of the one before
        counts = np.maximum(highest - lowest + 1, 0)
        rows = np.repeat(np.arange(len(positions)), counts)
        samples = lowest[rows] + np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
        drawings = _drawings_of(order, samples)
        is_read = drawings < len(sequences)
        return self._cut(source, order, sequences[drawings[is_read]], samples[is_read], positions[rows][is_read])

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
        """How many of a source's documents, its first, are trained on (`open_sources` of blended.py)."""
        return round((1 - self.config.data.valid_ratio) * len(self.indices[source].lengths))

    # ---- tokens

    def tokens(self, step: int, sequence: int) -> np.ndarray:
        """The S + 1 ids of one sequence: its inputs and the last label."""
        pieces = self.pieces_of_steps(step, step)
        pieces = pieces.where(pieces.sequence == sequence)
        ids = [self._ids(*row) for row in zip(pieces.source, pieces.document, pieces.begin, pieces.end, strict=True)]
        token_set = self.token_sets[int(pieces.source[0])]
        if not token_set.is_conversations:
            return np.concatenate(ids)
        row = filled_row(ids, ids, self.config.budget.seq_length, max(token_set.tokenizer.eos_id, 0))
        return np.concatenate([row["tokens"], row["labels"][-1:]])

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
    return Replay(config, token_sets, *(np.load(cache / f"blend-{name}.npy", mmap_mode="r")
                                        for name in ("dataset_index", "dataset_sample_index")),
                  _cached_orders(cache, config.seed, token_sets))


def replay_of(config: RunConfig, token_sets: list[TokenSet], data: Any) -> Replay:
    """The same for a run in progress, from its `PretrainData`."""
    orders = [[EpochOrder(epoch.document_index, epoch.sample_index, epoch.shuffle_index, token_set.is_conversations)
               for epoch in source.epochs] for source, token_set in zip(data.train.sources, token_sets, strict=True)]
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


def _cached_orders(cache: Path, seed: int, token_sets: list[TokenSet]) -> list[list[EpochOrder]]:
    """The arrays of a cache, memory-mapped: a file's description says of which token set it is, and by its seed which epoch."""
    found = {}
    for path in cache.glob("*-GPTDataset-train-description.txt"):
        words = json.loads(path.read_text())
        arrays = (_array(path, name) for name in ("document_index", "sample_index", "shuffle_index"))
        found[words["dataset_path"], words["random_seed"] - seed] = EpochOrder(*arrays)
    orders = []
    for number, token_set in enumerate(token_sets):
        if token_set.is_conversations:
            orders.append(_cached_rows(cache, conversations_name(number, "train")))
            continue
        epochs = itertools.takewhile(lambda key: key in found, ((token_set.prefix, epoch) for epoch in itertools.count()))
        orders.append([found[key] for key in epochs])
    return orders


def _cached_rows(cache: Path, name: str) -> list[EpochOrder]:
    """The same of a conversation set (sft.py)."""
    found = []
    while (cache / f"{name}-epoch{len(found)}-shuffle_index.npy").exists():
        arrays = (np.load(cache / f"{name}-epoch{len(found)}-{array}.npy", mmap_mode="r") for array in EPOCH_ARRAYS)
        found.append(EpochOrder(*arrays, is_whole=True))
    return found


def _array(description: Path, name: str) -> np.ndarray:
    return np.load(description.with_name(description.name.replace("description.txt", f"{name}.npy")), mmap_mode="r")


def _first_position(order: EpochOrder, samples: np.ndarray) -> np.ndarray:
    return order.sample_index[samples, 0].astype(np.int64)


def _drawings_of(order: EpochOrder, samples: np.ndarray) -> np.ndarray:
    """The place of each sample in the order of its epoch: where it stands in `shuffle_index`."""
    places = np.flatnonzero(np.isin(order.shuffle_index, samples))
    of_places = order.shuffle_index[places]
    by_sample = np.argsort(of_places, kind="stable")
    return places[by_sample][np.searchsorted(of_places[by_sample], samples)] if len(places) else np.zeros(0, np.int64)


def _in_order(found: list[Pieces]) -> Pieces:
    """Pieces of several sources as one, by step and sequence; those of one sequence keep their order."""
    empty = np.zeros(0, np.int64)
    joined = Pieces(*(np.concatenate([empty, *(getattr(pieces, field.name) for pieces in found)]) for field in fields(Pieces)))
    return joined.where(np.lexsort((joined.sequence, joined.step)))
