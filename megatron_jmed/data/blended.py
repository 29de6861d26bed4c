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


class BlendedSequences(torch.utils.data.Dataset):
    """The first N sequences of the order: sequence i is number `dataset_sample_index[i]` of source `dataset_index[i]`."""

    def __init__(self, sources: list[SourceSequences], dataset_index: np.ndarray, dataset_sample_index: np.ndarray):
        self.sources, self.dataset_index, self.dataset_sample_index = sources, dataset_index, dataset_sample_index
        for number, source in enumerate(sources):
            source.build(int(np.count_nonzero(dataset_index == number)))

    @property
    def config(self) -> GPTDatasetConfig:
        return self.sources[0].config

    def __len__(self) -> int:
        return len(self.dataset_index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self.dataset_index[index]
        return {"dataset_id": number, **self.sources[number][self.dataset_sample_index[index]]}


def open_sources(prefixes: list[str], valid_ratio: float, split: Split, config: GPTDatasetConfig) -> list[SourceSequences]:
    """Each token set's documents of `split`: the last `valid_ratio` of them are for validation, the others for training."""
    sources = []
    for prefix in prefixes:
        indexed = GPTDataset.build_low_level_dataset(prefix, config)
        num_documents = GPTDataset.numel_low_level_dataset(indexed)
        border = round((1 - valid_ratio) * num_documents)
        documents = range(border) if split is Split.train else range(border, num_documents)
        sources.append(SourceSequences(indexed, prefix, documents, split, config))
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
