"""In what order are the sequences of several sources read? One endless order, of which a run reads the beginning.

Epoch e of a source is Megatron-Core's GPTDataset over one epoch of its documents, permuted with seed + e; its last, partial
sequence is left out. Which source sequence i comes from is Megatron-Core's greedy rule (`build_blending_indices`: the source
that is furthest behind its weight), and that looks only at what came before i. Invariant: sequence i depends on seed,
sequence length, weights and token sets alone, not on how many sequences a run asks for, so a run whose horizon is extended
goes on in the order of a run that was planned so from the beginning. Megatron-Core's own builder permutes over all epochs
of a horizon at once and does not have this property.
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets import helpers
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from megatron_jmed.config import DataConfig
from megatron_jmed.corpus.token_set import TokenSet
from megatron_jmed.data.batch import DocumentMarks, document_numbers, places_in_documents
from megatron_jmed.data.sft import ConversationRows
from megatron_jmed.data.sources import conversations_name, part_of_documents


class SourceSequences:
    """The sequences of one token set's documents `first` to `last`, epoch after epoch.

    Building an epoch writes its three index files into the config's cache; asking for a length builds nothing.
    """

    def __init__(self, indexed: IndexedDataset, prefix: str, documents: range, split: Split, config: GPTDatasetConfig):
        self._indexed, self._prefix, self._split, self.config = indexed, prefix, split, config
        self._documents = np.arange(documents.start, documents.stop, dtype=np.int32)
        self.epochs: list[GPTDataset] = []

    @cached_property
    def num_sequences(self) -> int:
        """Whole sequences in an epoch; each takes one token of the next for its last label."""
        tokens = int(np.sum(self._indexed.sequence_lengths[self._documents], dtype=np.int64))
        return (tokens - 1) // self.config.sequence_length

    def build(self, num_sequences: int) -> None:
        """Build, or open from the cache, the epochs that the first `num_sequences` sequences touch."""
        for epoch in range(len(self.epochs), -(-num_sequences // self.num_sequences)):
            config = replace(self.config, random_seed=self.config.random_seed + epoch)
            self.epochs.append(GPTDataset(self._indexed, self._prefix, self._documents, None, self._split, config))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, inside = divmod(int(index), self.num_sequences)
        return self.epochs[epoch][inside]

    def loss_weight(self, indices: np.ndarray) -> float:
        """What the labels of these sequences weigh together: 1 each."""
        return float(len(indices) * self.config.sequence_length)


class BlendedSequences(torch.utils.data.Dataset):
    """The first N sequences of the order: sequence i is number `dataset_sample_index[i]` of source `dataset_index[i]`.

    `marks` are those of its documents. Where conversations, which number themselves, are blended with documents, these are
    numbered here.
    """

    def __init__(self, sources: list["SourceSequences | ConversationRows"], dataset_index: np.ndarray,
                 dataset_sample_index: np.ndarray, marks: DocumentMarks | None = None):
        self.sources, self.dataset_index, self.dataset_sample_index = sources, dataset_index, dataset_sample_index
        self.marks, self._has_conversations = marks, any(isinstance(source, ConversationRows) for source in sources)
        for number, source in enumerate(sources):
            source.build(int(np.count_nonzero(dataset_index == number)))

    def __len__(self) -> int:
        return len(self.dataset_index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self.dataset_index[index]
        sample = self.sources[number][self.dataset_sample_index[index]]
        if self._has_conversations and "document" not in sample:
            document_1S = document_numbers(sample["tokens"][None], self.marks)
            sample |= {"document": document_1S[0], "position_ids": places_in_documents(document_1S)[0]}
        return {"dataset_id": number, **sample}

    def mean_loss_weight(self, first: int, last: int, num_micro_batches: int) -> float | None:
        """What the labels of sequences `first` to `last` weigh, for each of the micro-batches that they make up (see sft.py);
        None where there are no conversations: every micro-batch weighs the same."""
        if not self._has_conversations:
            return None
        numbers, indices = self.dataset_index[first:last], self.dataset_sample_index[first:last]
        weights = [source.loss_weight(indices[numbers == number]) for number, source in enumerate(self.sources)]
        return sum(weights) / num_micro_batches


def open_sources(token_sets: list[TokenSet], data: DataConfig, split: Split,
                 config: GPTDatasetConfig) -> list[SourceSequences | ConversationRows]:
    """Each token set's documents of `split`: the last `data.valid_ratio` of them are for validation, the others for training."""
    sources = []
    for number, token_set in enumerate(token_sets):
        documents = part_of_documents(token_set.num_documents, data.valid_ratio, split.name)
        if token_set.is_conversations:
            sources.append(ConversationRows(token_set, documents, config.sequence_length, config.random_seed, data.pack,
                                            Path(config.path_to_cache), conversations_name(number, split.name)))
        else:
            indexed = GPTDataset.build_low_level_dataset(token_set.prefix, config)
            sources.append(SourceSequences(indexed, token_set.prefix, documents, split, config))
    return sources


def blend(weights: list[float], size: int, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """(source, number within the source) of each of `size` sequences, in proportion to `weights`; kept in `cache`."""
    paths = cache / "blend-dataset_index.npy", cache / "blend-dataset_sample_index.npy"
    if all(path.exists() for path in paths):
        return tuple(np.load(path, mmap_mode="r") for path in paths)
    read = [number for number, weight in enumerate(weights) if weight > 0]  # the greedy rule may draw a weight of 0
    total = sum(weights)
    dataset_index, sample_index = np.zeros(size, dtype=np.int16), np.zeros(size, dtype=np.int64)
    helpers.build_blending_indices(dataset_index, sample_index, [weights[n] / total for n in read], len(read), size, False)
    indices = np.array(read, dtype=np.int16)[dataset_index], sample_index
    for path, index in zip(paths, indices, strict=True):
        np.save(path, index)
    return indices


def take_turns(num_sources: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The same number of sequences of each source, in turn: for validation, where every source counts alike."""
    order = np.arange(size)
    return (order % num_sources).astype(np.int16), order // num_sources
