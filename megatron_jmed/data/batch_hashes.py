"""What was really fed to the model? A hash of every sequence, by the rank that it was handed to; for debugging.

Out: RUN/batches/rank_N.jsonl, one line a sequence: {"step", "sequence", "hash"}; step as in metrics.jsonl (the first is
1), sequence within the step from 0. All ranks that are given a sequence write it: those that share a model (tensor and
context parallelism, the stages of a pipeline) hold the same. A resumed run appends. What the hashes should be, replay.py says from the index alone.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from megatron_jmed.run_folder import RunFolder


def sequence_hash(tokens: np.ndarray) -> str:
    """BLAKE2b (16 bytes) of a sequence: the ids of its S inputs and of the last label, as little-endian i64."""
    return hashlib.blake2b(tokens.astype("<i8").tobytes(), digest_size=16).hexdigest()


class BatchHashes:
    """Writes down what passes through it."""

    def __init__(self, folder: RunFolder, rank: int, global_batch_size: int):
        self._global_batch_size = global_batch_size
        folder.batches.mkdir(parents=True, exist_ok=True)
        self._lines = open(folder.batches / f"rank_{rank}.jsonl", "a", encoding="utf-8", buffering=1)

    def recorded(self, sequences: Iterator[list[int]], samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The samples as they come, each micro-batch with its sequences' numbers, hashed when it is asked for."""
        for numbers, sample in zip(sequences, samples, strict=True):
            labels_BS = sample["labels"].numpy()
            tokens = np.concatenate([sample["tokens"].numpy(), labels_BS[:, -1:]], axis=1)
            for number, ids in zip(numbers, tokens, strict=True):
                step, sequence = divmod(number, self._global_batch_size)
                self._lines.write(json.dumps({"step": step + 1, "sequence": sequence, "hash": sequence_hash(ids)}) + "\n")
            yield sample
