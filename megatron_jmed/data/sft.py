"""Conversations -> rows, for instruction tuning: what blended.py's `SourceSequences` is for the documents of pre-training.

In: a conversation set (corpus/chat_tokens.py). Out: samples of S tokens, each with the loss weight of its label, its place in its
conversation and its conversation's number in the row; no conversation is cut, and none sees another. How they are packed, and in
what order they come, is packing.py's. Invariant: row i depends on seed, sequence length, `data.pack` and the set alone, so a run
resumes to the bit and may be extended, as in pre-training.

How losses are averaged. Megatron-Core divides the loss of each micro-batch by its own number of learnt tokens and takes the mean
over micro-batches and ranks; so a token of a row with few answers would count more than one of a row with many, and packing would
change what is learnt. Here every micro-batch is divided by the same number instead, the mean loss weight of the micro-batches of
the step (`mean_loss_weight`, known from the index before anything is computed). The mean over micro-batches and ranks is then

    sum over the global batch of weight x loss  /  sum over the global batch of weight,

however the conversations lie in rows, micro-batches and ranks. With replay of pre-training data the same holds, every token of
it with weight 1: as most tokens of a conversation are only read, a replayed row counts as much as several packed ones.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from megatron_jmed.corpus.indexed import read_whole_documents
from megatron_jmed.corpus.token_set import WEIGHTS_NAME, TokenSet
from megatron_jmed.data.index_arrays import EPOCH_ARRAYS, EpochOrder
from megatron_jmed.data.packing import Packing, epoch_order, filled_row, packing


class ConversationRows:
    """The rows of conversations `first` to `last` of a set, epoch after epoch.

    `cache` and `name`: where an epoch's arrays are kept; those that are there are opened, not made again.
    """

    def __init__(self, token_set: TokenSet, conversations: range, seq_length: int, seed: int, pack: bool, cache: Path, name: str):
        self.index = read_whole_documents(Path(f"{token_set.prefix}.idx"))
        self._ids = np.memmap(f"{token_set.prefix}.bin", self.index.dtype, "r")
        self._weights = np.memmap(Path(token_set.prefix).with_name(WEIGHTS_NAME), "<f2", "r")
        self._conversations, self._seq_length, self._seed, self._pack = conversations, seq_length, seed, pack
        self._pad = max(token_set.tokenizer.eos_id, 0)
        self._cache, self._name = cache, name
        self.epochs: list[EpochOrder] = []

    @cached_property
    def _num_tokens(self) -> np.ndarray:
        return np.array(self.index.lengths[self._conversations.start : self._conversations.stop], dtype=np.int64)

    @cached_property
    def _packing(self) -> Packing:
        row_of_slot = self._kept("packing", lambda: packing(self._num_tokens, self._seq_length, self._pack).row_of_slot)
        return Packing(row_of_slot, int(row_of_slot.max()) + 1)

    @cached_property
    def _weight_of(self) -> np.ndarray:
        """What the labels of each conversation weigh together."""
        return self._kept("weights", lambda: np.array([
            self._part(self._weights, number)[1:].sum(dtype=np.float64) for number in self._conversations]))

    @property
    def num_sequences(self) -> int:
        """Rows in an epoch."""
        return self._packing.num_rows

    @property
    def fill_ratio(self) -> float:
        """How much of the rows is filled with conversations."""
        return float((self._num_tokens - 1).sum() / (self.num_sequences * self._seq_length))

    def build(self, num_sequences: int) -> None:
        """Make, or open from the cache, the epochs that the first `num_sequences` rows touch, and all else that is kept there: who
        reads later, writes nothing."""
        assert len(self._weight_of) == len(self._conversations)
        for epoch in range(len(self.epochs), -(-num_sequences // self.num_sequences)):
            self.epochs.append(self._epoch(epoch))

    def _epoch(self, number: int) -> EpochOrder:
        paths = [self._cache / f"{self._name}-epoch{number}-{array}.npy" for array in EPOCH_ARRAYS]
        if not all(path.exists() for path in paths):
            order = epoch_order(self._packing, self._num_tokens, self._conversations.start, self._seed + number)
            for path, array in zip(paths, EPOCH_ARRAYS, strict=True):
                np.save(path, getattr(order, array))
        return EpochOrder(*(np.load(path, mmap_mode="r") for path in paths), is_whole=True)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, row = divmod(int(index), self.num_sequences)
        numbers = self._in_row(epoch, row)
        ids, weights = ([self._part(array, number) for number in numbers] for array in (self._ids, self._weights))
        return {name: torch.from_numpy(array) for name, array in filled_row(ids, weights, self._seq_length, self._pad).items()}

    def loss_weight(self, indices: np.ndarray) -> float:
        """What the labels of these rows weigh together."""
        rows = (self._in_row(*divmod(int(index), self.num_sequences)) for index in indices)
        return float(sum(self._weight_of[numbers - self._conversations.start].sum() for numbers in rows))

    def _in_row(self, epoch: int, row: int) -> np.ndarray:
        begin, end = self.epochs[epoch].sample_index[row : row + 2, 0]
        return np.asarray(self.epochs[epoch].document_index[begin:end])

    def _part(self, array: np.ndarray, number: int) -> np.ndarray:
        begin = int(self.index.offsets[number]) // self.index.dtype.itemsize
        return array[begin : begin + int(self.index.lengths[number])]

    def _kept(self, what: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of the cache, made where it is not there."""
        path = self._cache / f"{self._name}-{what}.npy"
        if not path.exists():
            np.save(path, make())
        return np.load(path, mmap_mode="r")
