"""A checkpoint folder as data: its tensors by key, read and written with plain torch.

The format is Megatron-Core's `torch_dist`: torch.distributed.checkpoint files plus metadata.json (which back end) and
common.pt (what is no tensor). A folder written here loads into Megatron-Core at any layout.
"""

import json
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_jmed.errors import CheckpointError
from megatron_jmed.run_folder import CheckpointState, begin_checkpoint, finish_checkpoint

_BACKEND = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch",
            "common_backend_version": 1}


class CheckpointReader:
    """The tensors of a checkpoint folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        try:
            metadata = dcp.FileSystemReader(folder).read_metadata()
        except FileNotFoundError:
            raise CheckpointError(f"{folder}: no .metadata file; not a torch_dist checkpoint") from None
        self._tensors = {key: value for key, value in metadata.state_dict_metadata.items()
                         if isinstance(value, TensorStorageMetadata)}

    def weight_keys(self) -> set[str]:
        """The keys of the model's weights (the optimizer's state is not a weight)."""
        return {key for key in self._tensors if not key.startswith("optimizer.")}

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].properties.dtype

    def read(self, key: str) -> torch.Tensor:
        """The whole tensor `key`, gathered from whatever shards hold it."""
        tensor = torch.empty(self.shape(key), dtype=self.dtype(key))
        try:
            dcp.load({key: tensor}, checkpoint_id=self._folder, no_dist=True)
        except CheckpointException:
            raise CheckpointError(f"{self._folder}: {key} cannot be read; its files are damaged or truncated") from None
        return tensor


def write_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], state: CheckpointState) -> None:
    """Write a weights-only checkpoint; it is whole only when state.json is there."""
    begin_checkpoint(folder)
    dcp.save(tensors, checkpoint_id=folder, no_dist=True)
    torch.save({}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(_BACKEND), encoding="utf-8")
    finish_checkpoint(folder, state)
