"""Weights from wherever they lie, as slices: what every writer and comparison reads."""

from pathlib import Path
from typing import Any, Protocol

import torch

from megatron_jmed.config import ModelConfig
from megatron_jmed.convert.hf import HfWeights
from megatron_jmed.convert.hf_config import model_from_hf_config, read_json
from megatron_jmed.convert.legacy import LegacyWeights, is_legacy
from megatron_jmed.convert.names import Row
from megatron_jmed.convert.torch_dist import CheckpointWeights
from megatron_jmed.errors import CheckpointError
from megatron_jmed.run_folder import STATE_NAME, RunFolder


class Weights(Protocol):
    """A model's weights. `get` may be called from several threads.

    `identity` (JSON) changes if the weights do: an interrupted conversion goes on only with the same. `hf_files` is the
    folder with the small Hugging Face files that came with them, if it exists.
    """

    name: str
    model: ModelConfig
    dtype: torch.dtype
    identity: dict[str, Any]
    hf_files: Path | None

    def get(self, row: Row, index: tuple[int, ...]) -> torch.Tensor:
        """One slice as Megatron-Core holds it (names.py), its vocabulary without padding."""


def open_weights(folder: Path, vocab_size: int | None = None, dtype: torch.dtype | None = None) -> Weights:
    """A Hugging Face folder, a run or checkpoint folder, or a legacy Megatron folder; CheckpointError if it is none.

    Everything that files say about themselves is checked here: names, shapes, number formats, the config's words.
    `vocab_size` is for legacy folders that do not say it (others must agree), `dtype` for Hugging Face folders of several.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: " + ("a file; give the folder that holds it" if folder.exists() else "no such folder"))
    if vocab_size is not None and vocab_size < 1:
        raise CheckpointError(f"--vocab-size {vocab_size}: the number of the tokenizer's pieces, at least 1")
    weights = _weights_in(folder, vocab_size, dtype)
    if vocab_size and vocab_size != weights.model.vocab_size:
        raise CheckpointError(f"{folder}: its vocabulary is {weights.model.vocab_size}, not the {vocab_size} given; leave that "
                              "out, or give this model's tokenizer")
    return weights


def _weights_in(folder: Path, vocab_size: int | None, dtype: torch.dtype | None) -> Weights:
    checkpoint = RunFolder(folder).latest_checkpoint() or folder
    if (checkpoint / STATE_NAME).exists() or (checkpoint / ".metadata").exists():
        return CheckpointWeights(checkpoint)
    if is_legacy(folder):
        return LegacyWeights(folder, vocab_size)
    if (folder / "config.json").exists():
        if "run_folder" in read_json(folder / "config.json"):
            raise CheckpointError(f"{folder}: a run that has saved no checkpoint yet")
        return HfWeights(folder, model_from_hf_config(folder), dtype)
    raise CheckpointError(f"{folder}: neither a Hugging Face folder (config.json), nor a run or checkpoint folder (state.json), "
                          "nor a legacy Megatron folder (mp_rank_*)")
