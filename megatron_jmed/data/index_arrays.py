"""In which order is one source read in one epoch? Three arrays, as Megatron-Core's GPTDataset keeps them."""

from dataclasses import dataclass

import numpy as np

EPOCH_ARRAYS = ("document_index", "sample_index", "shuffle_index")


@dataclass(frozen=True)
class EpochOrder:
    """`document_index` lists documents; sample s begins at position and offset `sample_index[s]` of it and ends where s + 1
    begins; drawing d is sample `shuffle_index[d]`. With `is_whole` samples hold whole documents (conversations), else tokens of
    a stream."""

    document_index: np.ndarray  # [positions]
    sample_index: np.ndarray  # [samples + 1, 2]
    shuffle_index: np.ndarray  # [samples]
    is_whole: bool = False
