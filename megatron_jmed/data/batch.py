"""One micro-batch, as tensors on the device that computes.

Legend: B sequences in the micro-batch, S tokens in a sequence (under context parallelism: this rank's part of it).
"""

from dataclasses import dataclass
from typing import Any

import torch

from megatron_jmed.parallel import part_of_sequence


@dataclass(frozen=True)
class Batch:
    """Inputs and labels of B sequences; `source_B` is each sequence's index in the blend."""

    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    loss_mask_BS: torch.Tensor
    position_ids_BS: torch.Tensor
    source_B: torch.Tensor


def batch_from_sample(sample: dict[str, Any], device: torch.device, cp_rank: int = 0, cp_size: int = 1) -> Batch:
    """The Batch of a collated Megatron-Core sample (tokens, labels, loss_mask, position_ids, dataset_id) for one of the
    context-parallel ranks that share it."""
    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device, non_blocking=True)

    def mine(tensor_BS: torch.Tensor) -> torch.Tensor:
        return move(part_of_sequence(tensor_BS, 1, cp_rank, cp_size))

    return Batch(
        tokens_BS=mine(sample["tokens"]),
        labels_BS=mine(sample["labels"]),
        loss_mask_BS=mine(sample["loss_mask"]),
        position_ids_BS=mine(sample["position_ids"]),
        source_B=move(sample["dataset_id"].long()),
    )
